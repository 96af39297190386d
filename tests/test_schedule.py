"""Models that may be called from several threads: the results of rounds, without waiting for the slowest."""

import threading
import time
from concurrent.futures import wait
from dataclasses import dataclass

import pytest
from test_conformance import ONE_OF_EACH

import inferscale.base
from inferscale.base import Calls, RewardModel, SearchStrategy
from inferscale.cost import Budget
from inferscale.engine import solve, solve_batch, stream
from inferscale.flow import GenerateRequest, Score, expand, score
from inferscale.rewards.functions import RewardFunction
from inferscale.strategies import REBASE, BeamSearch, Greedy, RepeatedSampling
from inferscale.testing import PROMPTS, BrokenGenerator, ToyGenerator, ToyProcessReward, ToyReward
from inferscale.tree import Node, Problem, root_key

LONG = 120.0
"""Seconds after which a test that hangs fails."""


class Remote(ToyGenerator):
    concurrent = True

    def identity(self):
        return ToyGenerator().identity()


class RemoteReward(ToyReward):
    concurrent = True

    def identity(self):
        return ToyReward().identity()


class Dying(BrokenGenerator):
    concurrent = True


class Hooked(Remote):
    """Calls a function with the prompt and the depth before it answers."""

    def __init__(self, hook):
        super().__init__()
        self.hook = hook

    def generate(self, requests):
        self.hook(requests[0].node.problem.prompt, requests[0].node.depth)
        return super().generate(requests)


def threaded(prompts, strategy, generator=None, reward=None, **options):
    reward = reward or RemoteReward()
    return solve_batch(prompts, strategy, generator or Remote(), reward_model=reward, **options)


def in_rounds(prompts, strategy, **options):
    return solve_batch(prompts, strategy, ToyGenerator(), reward_model=ToyReward(), **options)


def content(result):
    """All of a result but its seconds."""
    return {**result.to_dict(), "cost": result.cost.without_seconds()}


def contents(results):
    return [content(result) for result in results]


# -- the same results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ONE_OF_EACH, ids=repr)
def test_every_strategy_gives_the_trees_and_costs_of_rounds(strategy):
    prompts = [*PROMPTS, PROMPTS[0]]
    expected = contents(in_rounds(prompts, strategy))
    assert contents(threaded(prompts, strategy)) == expected
    assert contents(threaded(prompts, strategy, batch_size=2)) == expected


@pytest.mark.parametrize(
    "budget", [Budget(tokens=1), Budget(tokens=33), Budget(calls=7), Budget(flops=20_000)], ids=repr
)
def test_budgets_stop_it_where_they_stop_rounds(budget):
    for strategy in (REBASE(8), RepeatedSampling(8), BeamSearch(2, 4)):
        expected = in_rounds(PROMPTS, strategy, budget=budget)
        results = threaded(PROMPTS, strategy, budget=budget)
        assert contents(results) == contents(expected)
        assert {result.stopped_by for result in results} != {None}


def test_a_time_budget_ends_it():
    (result,) = threaded(PROMPTS[:1], REBASE(4), budget=Budget(seconds=1e-9))
    assert (result.stopped_by, result.cost.num_generated) == ("seconds", 0)


def test_step_scores_are_those_of_rounds():
    class Judge(ToyProcessReward):
        concurrent = True

    expected = solve("How many?", REBASE(4), ToyGenerator(), reward_model=ToyProcessReward("min"))
    assert content(solve("How many?", REBASE(4), Remote(), reward_model=Judge("min"))) == content(expected)


def test_a_search_without_a_reward_model_streams_too():
    results = solve_batch(PROMPTS, RepeatedSampling(3), Remote())
    assert contents(results) == contents(solve_batch(PROMPTS, RepeatedSampling(3), ToyGenerator()))


@pytest.mark.parametrize("concurrent", [False, True])
def test_an_empty_wish_for_scores_is_answered_at_once(concurrent):
    class Odd(SearchStrategy):
        def search(self, root, rng):
            assert (yield Score(())) is None
            return (yield from expand([root], until="end"))

    parts = (Remote(), RemoteReward()) if concurrent else (ToyGenerator(), ToyReward())
    assert solve("How many?", Odd(), parts[0], reward_model=parts[1]).trajectories


# -- nobody waits for the slowest --------------------------------------------------------------------------------------


def test_a_fast_problem_finishes_while_a_slow_one_waits():
    fast_is_done = threading.Event()

    def hook(prompt, depth):
        if prompt == PROMPTS[0]:
            assert fast_is_done.wait(LONG), "the fast problem waited for the slow one"

    results = stream(PROMPTS[:2], REBASE(4), Hooked(hook), reward_model=RemoteReward())
    first = next(results)
    fast_is_done.set()
    assert [first.problem.prompt, next(results).problem.prompt] == [PROMPTS[1], PROMPTS[0]]


def test_problems_are_in_their_calls_together():
    meeting = threading.Barrier(len(PROMPTS), timeout=LONG)
    results = threaded(PROMPTS, REBASE(4), Hooked(lambda prompt, depth: meeting.wait() if depth == 0 else None))
    assert contents(results) == contents(in_rounds(PROMPTS, REBASE(4)))


def test_one_problem_can_be_scored_while_another_samples():
    scoring = threading.Event()

    class Judge(RemoteReward):
        def score(self, nodes):
            scoring.set()
            return super().score(nodes)

    def hook(prompt, depth):
        assert prompt == PROMPTS[0] or scoring.wait(LONG)

    assert len(threaded(PROMPTS[:2], REBASE(4), Hooked(hook), Judge())) == 2


def most_at_a_time(count, **options):
    lock, now, most = threading.Lock(), 0, 0

    def hook(prompt, depth):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.002)
        with lock:
            now -= 1

    threaded([f"How many of {i}?" for i in range(count)], RepeatedSampling(1), Hooked(hook), **options)
    return most


def test_the_number_of_calls_at_a_time_is_bounded(monkeypatch):
    assert most_at_a_time(12, batch_size=3) <= 3
    monkeypatch.setattr(inferscale.base, "MAX_CALLS", 2)
    assert most_at_a_time(12) == 2


def test_stream_takes_problems_as_there_is_room():
    taken = []

    def endless():
        for index in range(10**9):
            taken.append(index)
            yield f"problem {index}"

    results = stream(endless(), REBASE(2), Remote(), reward_model=RemoteReward(), batch_size=3)
    assert len({next(results).problem.prompt for _ in range(7)}) == 7
    assert len(taken) <= 10
    results.close()


def test_seconds_are_those_of_the_problems_own_calls():
    fast_is_done = threading.Event()

    def hook(prompt, depth):
        assert prompt != PROMPTS[0] or fast_is_done.wait(LONG)

    results = stream(PROMPTS[:2], RepeatedSampling(2), Hooked(hook))
    fast = next(results)
    threading.Timer(0.05, fast_is_done.set).start()
    assert next(results).cost.seconds > fast.cost.seconds > 0


def test_progress_is_shown(capsys):
    threaded(PROMPTS, RepeatedSampling(2), progress=True)
    assert "3/3" in capsys.readouterr().err


# -- who may be called from threads -----------------------------------------------------------------------------------


def test_a_judge_that_may_not_is_asked_in_the_callers_thread():
    class Judge(ToyReward):
        threads = frozenset()

        def score(self, nodes):
            self.threads |= {threading.current_thread()}
            return super().score(nodes)

    judge = Judge()
    results = solve_batch(PROMPTS, REBASE(4), Remote(), reward_model=judge)
    assert contents(results) == contents(in_rounds(PROMPTS, REBASE(4)))
    assert judge.threads == {threading.current_thread()}


def test_a_server_scores_while_a_model_in_this_process_samples():
    asked, scored = threading.Event(), threading.Event()

    class Judge(RemoteReward):
        def score(self, nodes):
            asked.set()
            assert scored.wait(LONG), "sampling waited for the scores"
            return super().score(nodes)

    class Local(ToyGenerator):
        def generate(self, requests):
            if asked.is_set() and requests[0].node.problem.prompt == PROMPTS[1]:
                scored.set()
            return super().generate(requests)

    @dataclass(frozen=True)
    class Twice(SearchStrategy):
        def search(self, root, rng):
            first = yield from expand([root])
            if root.problem.prompt == PROMPTS[0]:
                yield from score(first)
            return (yield from expand(first))

    assert len(solve_batch(PROMPTS[:2], Twice(), Local(), reward_model=Judge())) == 2


def test_the_option_schedule_is_gone():
    with pytest.raises(TypeError, match="schedule"):
        solve("How many?", Greedy(), Remote(), schedule="stream")


def test_an_instance_may_say_that_it_is_concurrent():
    reward = RewardFunction(lambda prompts, completions: [float(len(text)) for text in completions])
    reward.concurrent = True
    assert len(threaded(PROMPTS, REBASE(4), reward=reward)) == 3


# -- nothing paid for is lost ------------------------------------------------------------------------------------------


def killed(strategy, calls, path):
    """The interrupt that ends the search, if it takes more than so many calls."""
    try:
        threaded(PROMPTS, strategy, Dying(die_after=calls), journal=path)
    except KeyboardInterrupt as interrupt:
        return interrupt
    return None


@pytest.mark.parametrize("strategy", ONE_OF_EACH, ids=repr)
def test_killed_anywhere_it_ends_the_same_from_its_journal(strategy, tmp_path):
    expected = contents(in_rounds(PROMPTS, strategy))
    for calls in (1, 4, 7):
        path = tmp_path / f"{calls}.jsonl"
        interrupt = killed(strategy, calls, path)
        assert calls > 1 or all(result.trajectories for result in interrupt.partial)
        assert contents(threaded(PROMPTS, strategy, journal=path)) == expected
        done = Remote()
        assert contents(threaded(PROMPTS, strategy, done, journal=path)) == expected
        assert done.calls == 0


def test_a_journal_goes_on_with_rounds_and_the_other_way_round(tmp_path):
    expected = contents(in_rounds(PROMPTS, REBASE(6)))
    for calls in (1, 3):
        path = tmp_path / f"{calls}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            threaded(PROMPTS, REBASE(6), Dying(die_after=calls), journal=path)
        assert contents(in_rounds(PROMPTS, REBASE(6), journal=path)) == expected
    path = tmp_path / "rounds.jsonl"
    with pytest.raises(KeyboardInterrupt):
        solve_batch(PROMPTS, REBASE(6), BrokenGenerator(die_after=2), reward_model=ToyReward(), journal=path)
    assert contents(threaded(PROMPTS, REBASE(6), journal=path)) == expected


class DownError(Exception):
    pass


def test_calls_that_have_not_begun_are_not_waited_for_after_an_error(monkeypatch):
    monkeypatch.setattr(inferscale.base, "MAX_CALLS", 1)
    closed, seen = threading.Event(), []

    class Closing(Calls):
        def close(self):
            super().close()
            closed.set()

    def hook(prompt, depth):
        seen.append(prompt)
        if prompt == PROMPTS[0]:
            raise DownError
        assert closed.wait(LONG)

    generator = Hooked(hook)
    generator.open = lambda: Closing(generator)
    with pytest.raises(DownError):
        threaded(PROMPTS, RepeatedSampling(2), generator)
    assert PROMPTS[2] not in seen


def test_after_an_error_what_is_under_way_is_kept(tmp_path):
    both_under_way, failed = threading.Barrier(2, timeout=LONG), threading.Event()

    def hook(prompt, depth):
        both_under_way.wait()
        if prompt == PROMPTS[0]:
            failed.set()
            raise DownError
        assert failed.wait(LONG)
        time.sleep(0.05)

    path = tmp_path / "journal.jsonl"
    with pytest.raises(DownError) as error:
        threaded(PROMPTS[:2], RepeatedSampling(3), Hooked(hook), journal=path)
    nothing, kept = error.value.partial
    assert (nothing.cost.num_generated, kept.cost.num_generated) == (0, 3)
    assert [nothing.stopped_by, kept.stopped_by] == ["error", "error"]
    asked = []
    resumed = threaded(
        PROMPTS[:2], RepeatedSampling(3), Hooked(lambda prompt, depth: asked.append(prompt)), journal=path
    )
    assert asked == [PROMPTS[0]]
    assert contents(resumed) == contents(in_rounds(PROMPTS[:2], RepeatedSampling(3)))


def test_an_interrupt_does_not_wait_for_what_is_under_way():
    ready, freed, ended = threading.Event(), threading.Event(), threading.Event()

    def hook(prompt, depth):
        if prompt == PROMPTS[1]:
            ready.set()
            freed.wait(LONG)
            ended.set()
        elif depth == 1:
            assert ready.wait(LONG)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupt:
        threaded(PROMPTS[:2], REBASE(4), Hooked(hook))
    assert not ended.is_set()
    freed.set()
    assert [result.cost.num_generated for result in interrupt.value.partial] == [4, 0]
    assert [result.stopped_by for result in interrupt.value.partial] == ["error", "error"]


def test_a_caller_who_has_had_enough_does_not_wait():
    waiting, freed, ended = threading.Event(), threading.Event(), threading.Event()

    def hook(prompt, depth):
        if prompt == PROMPTS[0]:
            waiting.set()
            freed.wait(LONG)
            ended.set()
        else:
            waiting.wait(LONG)

    results = stream(PROMPTS, RepeatedSampling(1), Hooked(hook))
    assert next(results).problem.prompt != PROMPTS[0]
    results.close()
    assert not ended.is_set()
    freed.set()


def test_finished_problems_survive_the_failure_of_a_later_one():
    def hook(prompt, depth):
        if prompt == PROMPTS[2]:
            raise DownError

    with pytest.raises(DownError) as error:
        threaded(PROMPTS, RepeatedSampling(2), Hooked(hook), batch_size=1)
    assert [result.stopped_by for result in error.value.partial] == [None, None, "error"]


@pytest.mark.parametrize("concurrent", [False, True])
def test_every_search_is_released_once(concurrent):
    class Listening(Remote):
        released = ()

        def release(self, root):
            self.released += (root.problem.prompt,)

    generator = Listening()
    generator.concurrent = concurrent
    results = stream(PROMPTS, RepeatedSampling(1), generator)
    next(results)
    results.close()
    assert sorted(generator.released) == sorted(PROMPTS)


def test_a_reward_that_is_no_number_is_an_error_in_both():
    class Bad(RewardModel):
        concurrent = True

        def score(self, nodes):
            return [float("nan")] * len(nodes)

    with pytest.raises(ValueError, match="a score must be a finite number"):
        threaded(PROMPTS, REBASE(4), reward=Bad())


def test_parts_see_the_callers_context():
    from contextvars import ContextVar

    name = ContextVar("name", default="nobody")
    seen = []
    name.set("caller")
    threaded(PROMPTS, RepeatedSampling(1), Hooked(lambda prompt, depth: seen.append(name.get())))
    assert seen == ["caller"] * 3


def test_no_thread_is_left_behind():
    before = ours()  # such as the one loop of all connections to servers
    threaded(PROMPTS, REBASE(4))
    threads, deadline = [thread for thread in ours() if thread not in before], time.monotonic() + 10 * LONG
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)


def ours():
    return [thread for thread in threading.enumerate() if thread.name.startswith("inferscale")]


# -- the session ------------------------------------------------------------------------------------------------------


def test_a_call_that_failed_is_made_again_and_what_came_with_it_is_kept():
    failures = [DownError]

    def hook(prompt, depth):
        if prompt == PROMPTS[0] and failures:
            raise failures.pop()

    requests = [GenerateRequest(Node(Problem(p), key=root_key(p)), 2) for p in PROMPTS[:2]]
    with Hooked(hook).open() as sampling:
        tickets = [sampling.submit(request) for request in requests]
        sampling.begin()
        wait(sampling.calls)
        ended = sampling.collect()
        assert [(ticket, index) for ticket, index, _ in ended] == [(tickets[1], 0), (tickets[1], 1)]
        with pytest.raises(DownError):
            sampling.collect()
        ended += sampling.collect()
        assert sampling.collect() == []
    steps = {(ticket, index): step for ticket, index, step in ended}
    assert [[steps[ticket, i] for i in range(2)] for ticket in tickets] == ToyGenerator().generate(requests)


def test_requests_of_a_tree_share_a_call_and_one_that_is_taken_back_is_not_handed_over():
    asked, gate = [], threading.Event()

    class Waiting(Remote):
        def generate(self, requests):
            asked.append(len(requests))
            assert gate.wait(LONG)
            return super().generate(requests)

    one, other = (Node(Problem(p), key=root_key(p)) for p in PROMPTS[:2])
    with Waiting().open() as sampling:
        kept, taken = sampling.submit(GenerateRequest(one)), sampling.submit(GenerateRequest(one, first=1))
        alone = sampling.submit(GenerateRequest(other))
        sampling.begin()
        for ticket in (taken, alone, alone):
            sampling.cancel(ticket)
        assert [(t, step.finish_reason) for t, _, step in sampling.collect()] == [(taken, "budget"), (alone, "budget")]
        gate.set()
        assert [ticket for ticket, _, _ in sampling.collect()] == [kept]
        assert sampling.collect() == []
    assert sorted(asked) == [1, 2]
