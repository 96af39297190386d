"""``schedule="stream"``: the same results as waves, without waiting for the slowest."""

import threading
import time
from dataclasses import replace

import pytest
from test_conformance import STRATEGIES

import inferscale.engine.scheduling
from inferscale.base import RewardModel, SearchStrategy
from inferscale.cost import Budget
from inferscale.engine import solve, solve_batch, stream
from inferscale.flow import Score, expand
from inferscale.rewards.functions import RewardFunction
from inferscale.strategies import REBASE, BeamSearch, Greedy, RepeatedSampling
from inferscale.testing import PROMPTS, BrokenGenerator, ToyGenerator, ToyProcessReward, ToyReward

LONG = 20.0
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


def streamed(prompts, strategy, generator=None, reward=None, **options):
    reward = reward or RemoteReward()
    return solve_batch(prompts, strategy, generator or Remote(), reward_model=reward, schedule="stream", **options)


def in_waves(prompts, strategy, **options):
    return solve_batch(prompts, strategy, ToyGenerator(), reward_model=ToyReward(), **options)


def content(result):
    """All of a result but its seconds."""
    return {**result.to_dict(), "cost": replace(result.cost, seconds=0)}


def contents(results):
    return [content(result) for result in results]


# -- the same results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_every_strategy_gives_the_trees_and_costs_of_waves(strategy):
    prompts = [*PROMPTS, PROMPTS[0]]
    expected = contents(in_waves(prompts, strategy))
    assert contents(streamed(prompts, strategy)) == expected
    assert contents(streamed(prompts, strategy, batch_size=2)) == expected


@pytest.mark.parametrize(
    "budget", [Budget(tokens=1), Budget(tokens=33), Budget(calls=7), Budget(flops=20_000)], ids=repr
)
def test_budgets_stop_it_where_they_stop_waves(budget):
    for strategy in (REBASE(8), RepeatedSampling(8), BeamSearch(2, 4)):
        expected = in_waves(PROMPTS, strategy, budget=budget)
        results = streamed(PROMPTS, strategy, budget=budget)
        assert contents(results) == contents(expected)
        assert {result.stopped_by for result in results} != {None}


def test_a_time_budget_ends_it():
    (result,) = streamed(PROMPTS[:1], REBASE(4), budget=Budget(seconds=1e-9))
    assert (result.stopped_by, result.cost.num_generated) == ("seconds", 0)


def test_step_scores_are_those_of_waves():
    class Judge(ToyProcessReward):
        concurrent = True

    expected = solve("How many?", REBASE(4), ToyGenerator(), reward_model=ToyProcessReward("min"))
    assert content(solve("How many?", REBASE(4), Remote(), reward_model=Judge("min"), schedule="stream")) == content(
        expected
    )


def test_a_search_without_a_reward_model_streams_too():
    results = solve_batch(PROMPTS, RepeatedSampling(3), Remote(), schedule="stream")
    assert contents(results) == contents(solve_batch(PROMPTS, RepeatedSampling(3), ToyGenerator()))


@pytest.mark.parametrize("schedule", ["wave", "stream"])
def test_an_empty_wish_for_scores_is_answered_at_once(schedule):
    class Odd(SearchStrategy):
        def search(self, root, rng):
            assert (yield Score(())) is None
            return (yield from expand([root], until="end"))

    assert solve("How many?", Odd(), Remote(), reward_model=RemoteReward(), schedule=schedule).trajectories


# -- nobody waits for the slowest --------------------------------------------------------------------------------------


def test_a_fast_problem_finishes_while_a_slow_one_waits():
    fast_is_done = threading.Event()

    def hook(prompt, depth):
        if prompt == PROMPTS[0]:
            assert fast_is_done.wait(LONG), "the fast problem waited for the slow one"

    results = stream(PROMPTS[:2], REBASE(4), Hooked(hook), reward_model=RemoteReward(), schedule="stream")
    first = next(results)
    fast_is_done.set()
    assert [first.problem.prompt, next(results).problem.prompt] == [PROMPTS[1], PROMPTS[0]]


def test_problems_are_in_their_calls_together():
    meeting = threading.Barrier(len(PROMPTS), timeout=LONG)
    results = streamed(PROMPTS, REBASE(4), Hooked(lambda prompt, depth: meeting.wait() if depth == 0 else None))
    assert contents(results) == contents(in_waves(PROMPTS, REBASE(4)))


def test_one_problem_can_be_scored_while_another_samples():
    scoring = threading.Event()

    class Judge(RemoteReward):
        def score(self, nodes):
            scoring.set()
            return super().score(nodes)

    def hook(prompt, depth):
        assert prompt == PROMPTS[0] or scoring.wait(LONG)

    assert len(streamed(PROMPTS[:2], REBASE(4), Hooked(hook), Judge())) == 2


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

    streamed([f"How many of {i}?" for i in range(count)], RepeatedSampling(1), Hooked(hook), **options)
    return most


def test_the_number_of_calls_at_a_time_is_bounded(monkeypatch):
    assert most_at_a_time(12, batch_size=3) <= 3
    monkeypatch.setattr(inferscale.engine.scheduling, "MAX_CALLS", 2)
    assert most_at_a_time(12) == 2


def test_stream_takes_problems_as_there_is_room():
    taken = []

    def endless():
        for index in range(10**9):
            taken.append(index)
            yield f"problem {index}"

    results = stream(endless(), REBASE(2), Remote(), reward_model=RemoteReward(), batch_size=3, schedule="stream")
    assert len({next(results).problem.prompt for _ in range(7)}) == 7
    assert len(taken) <= 10
    results.close()


def test_seconds_are_those_of_the_problems_own_calls():
    def hook(prompt, depth):
        time.sleep(0.1 if prompt == PROMPTS[0] else 0.0)

    slow, fast = streamed(PROMPTS[:2], RepeatedSampling(2), Hooked(hook))
    assert slow.cost.seconds >= 0.1 > fast.cost.seconds > 0


def test_progress_is_shown(capsys):
    streamed(PROMPTS, RepeatedSampling(2), progress=True)
    assert "3/3" in capsys.readouterr().err


# -- parts that cannot be called so -----------------------------------------------------------------------------------


def test_parts_that_are_not_concurrent_are_refused_before_any_compute():
    generator, reward = Remote(), ToyReward()
    with pytest.raises(ValueError, match=r"ToyReward from several threads.*use schedule=\"wave\", or set"):
        streamed(PROMPTS, REBASE(4), generator, reward)
    with pytest.raises(ValueError, match="ToyGenerator from several threads"):
        stream(PROMPTS, Greedy(), ToyGenerator(), schedule="stream")
    with pytest.raises(ValueError, match=r'schedule="waves": choose "wave" or "stream"|schedule=.waves.'):
        solve("How many?", Greedy(), generator, schedule="waves")
    assert (generator.calls, reward.calls) == (0, 0)


def test_an_instance_may_say_that_it_is_concurrent():
    reward = RewardFunction(lambda prompts, completions: [float(len(text)) for text in completions])
    reward.concurrent = True
    assert len(streamed(PROMPTS, REBASE(4), reward=reward)) == 3


# -- nothing paid for is lost ------------------------------------------------------------------------------------------


def killed(strategy, calls, path):
    """The interrupt that ends the search, if it takes more than so many calls."""
    try:
        streamed(PROMPTS, strategy, Dying(die_after=calls), journal=path)
    except KeyboardInterrupt as interrupt:
        return interrupt
    return None


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_killed_anywhere_it_ends_the_same_from_its_journal(strategy, tmp_path):
    expected = contents(in_waves(PROMPTS, strategy))
    for calls in (1, 4, 7):
        path = tmp_path / f"{calls}.jsonl"
        interrupt = killed(strategy, calls, path)
        assert calls > 1 or all(result.trajectories for result in interrupt.partial)
        assert contents(streamed(PROMPTS, strategy, journal=path)) == expected
        done = Remote()
        assert contents(streamed(PROMPTS, strategy, done, journal=path)) == expected
        assert done.calls == 0


def test_a_journal_goes_on_under_the_other_schedule(tmp_path):
    expected = contents(in_waves(PROMPTS, REBASE(6)))
    for calls in (1, 3):
        path = tmp_path / f"{calls}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            streamed(PROMPTS, REBASE(6), Dying(die_after=calls), journal=path)
        assert contents(in_waves(PROMPTS, REBASE(6), journal=path)) == expected
    path = tmp_path / "waves.jsonl"
    with pytest.raises(KeyboardInterrupt):
        solve_batch(PROMPTS, REBASE(6), BrokenGenerator(die_after=2), reward_model=ToyReward(), journal=path)
    assert contents(streamed(PROMPTS, REBASE(6), journal=path)) == expected


class DownError(Exception):
    pass


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
        streamed(PROMPTS[:2], RepeatedSampling(3), Hooked(hook), journal=path)
    nothing, kept = error.value.partial
    assert (nothing.cost.num_generated, kept.cost.num_generated) == (0, 3)
    assert [nothing.stopped_by, kept.stopped_by] == ["error", "error"]
    asked = []
    resumed = streamed(
        PROMPTS[:2], RepeatedSampling(3), Hooked(lambda prompt, depth: asked.append(prompt)), journal=path
    )
    assert asked == [PROMPTS[0]]
    assert contents(resumed) == contents(in_waves(PROMPTS[:2], RepeatedSampling(3)))


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
        streamed(PROMPTS[:2], REBASE(4), Hooked(hook))
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

    results = stream(PROMPTS, RepeatedSampling(1), Hooked(hook), schedule="stream")
    assert next(results).problem.prompt != PROMPTS[0]
    results.close()
    assert not ended.is_set()
    freed.set()


def test_finished_problems_survive_the_failure_of_a_later_one():
    def hook(prompt, depth):
        if prompt == PROMPTS[2]:
            raise DownError

    with pytest.raises(DownError) as error:
        streamed(PROMPTS, RepeatedSampling(2), Hooked(hook), batch_size=1)
    assert [result.stopped_by for result in error.value.partial] == [None, None, "error"]


@pytest.mark.parametrize("schedule", ["wave", "stream"])
def test_every_search_is_released_once(schedule):
    class Listening(Remote):
        released = ()

        def release(self, root):
            self.released += (root.problem.prompt,)

    generator = Listening()
    results = stream(PROMPTS, RepeatedSampling(1), generator, schedule=schedule)
    next(results)
    results.close()
    assert sorted(generator.released) == sorted(PROMPTS)


def test_a_reward_that_is_no_number_is_an_error_in_both():
    class Bad(RewardModel):
        concurrent = True

        def score(self, nodes):
            return [float("nan")] * len(nodes)

    with pytest.raises(ValueError, match="a score must be a finite number"):
        streamed(PROMPTS, REBASE(4), reward=Bad())


def test_parts_see_the_callers_context():
    from contextvars import ContextVar

    name = ContextVar("name", default="nobody")
    seen = []
    name.set("caller")
    streamed(PROMPTS, RepeatedSampling(1), Hooked(lambda prompt, depth: seen.append(name.get())))
    assert seen == ["caller"] * 3


def test_no_thread_is_left_behind():
    before = ours()  # such as the one loop of all connections to servers
    streamed(PROMPTS, REBASE(4))
    threads, deadline = [thread for thread in ours() if thread not in before], time.monotonic() + 10 * LONG
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)


def ours():
    return [thread for thread in threading.enumerate() if thread.name.startswith("inferscale")]
