"""A solver that is used again, and sessions in which searches are driven one by one."""

import gc
import threading
import tracemalloc
from dataclasses import replace

import pytest

import inferscale as isc
from inferscale.engine import Solver, solve_batch, stream
from inferscale.strategies import RepeatedSampling
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyReward

PROMPTS = ["How many?", "How many more?", "How many are left, and why?"]
LONG = 120.0
"""Seconds after which a test that hangs fails."""


class Listening(ToyGenerator):
    """The toy, which notes the searches that it may forget."""

    concurrent = True

    def __init__(self, hook=lambda prompt: None):
        super().__init__()
        self.hook, self.released = hook, []

    def generate(self, requests):
        self.hook(requests[0].node.problem.prompt)
        return super().generate(requests)

    def release(self, root):
        self.released.append(root.problem.prompt)


class Judge(ToyReward):
    concurrent = True


def content(result):
    """All of a result but its seconds."""
    return {**result.to_dict(), "cost": result.cost.without_seconds()}


def driven(session):
    """The results of the searches of a session, in the order of their start."""
    results = {}
    while session.active:
        for search in session.advance():
            results[search.index] = session.finish(search)
    return [results[index] for index in sorted(results)]


# -- a solver ----------------------------------------------------------------------------------------------------------


def test_a_solver_gives_what_the_functions_give_again_and_again():
    solver = Solver(isc.REBASE(4), ToyGenerator(), ToyReward(), isc.BestOfN(), budget=isc.Budget(tokens=90), seed=3)
    options = {"reward_model": ToyReward(), "aggregator": isc.BestOfN(), "budget": isc.Budget(tokens=90), "seed": 3}
    expected = [content(r) for r in solve_batch(PROMPTS, isc.REBASE(4), ToyGenerator(), **options)]
    for _ in range(2):
        assert [content(r) for r in solver.solve_batch(PROMPTS)] == expected
        assert content(solver.solve(PROMPTS[1])) == expected[1]
        streamed = {r.problem.prompt: content(r) for r in solver.stream(PROMPTS)}
        assert [streamed[prompt] for prompt in PROMPTS] == expected


def test_options_are_checked_when_it_is_made():
    with pytest.raises(ValueError, match=r"REBASE\(width=4.*scores its nodes: pass reward_model"):
        Solver(isc.REBASE(4), ToyGenerator())
    with pytest.raises(TypeError, match="aggregator must be an Aggregator, not builtin_function_or_method"):
        Solver(isc.Greedy(), ToyGenerator(), aggregator=max)
    solver = Solver(isc.Greedy(), ToyGenerator())
    with pytest.raises(ValueError, match="batch_size=0"):
        replace(solver, batch_size=0)
    assert replace(solver, seed=7).seed == 7


@pytest.mark.parametrize("start", [lambda p: Solver(isc.Greedy(), ToyGenerator()).stream(p),
                                   lambda p: stream(p, isc.Greedy(), ToyGenerator(), batch_size=None)])  # fmt: skip
def test_a_stream_of_unknown_length_has_room_for_64(start):
    taken = []

    def endless():
        for index in range(10**9):
            taken.append(index)
            yield f"problem {index}"

    results = start(endless())
    next(results)
    assert len(taken) == 64
    results.close()


# -- sessions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrent", [False, True])
def test_searches_of_any_options_share_a_session_and_are_those_of_their_own(concurrent):
    generator, judge = Listening(), Judge()
    generator.concurrent = judge.concurrent = concurrent
    solver = Solver(isc.REBASE(4), generator, judge)
    others = [
        replace(solver, strategy=isc.BeamSearch(2, 2), budget=isc.Budget(tokens=40), seed=5),
        replace(solver, strategy=isc.RepeatedSampling(3), reward_model=None, read_answer=lambda text: "42"),
        solver,
    ]
    with solver.session() as session:
        for prompt, other in zip(PROMPTS, others, strict=True):
            session.start(prompt, other)
        results = driven(session)
    assert [content(r) for r in results] == [content(o.solve(p)) for o, p in zip(others, PROMPTS, strict=True)]
    assert results[1].answer == "42"
    assert all(trajectory.score is None for trajectory in results[1].trajectories)
    assert sorted(generator.released[:3]) == sorted(PROMPTS)


def test_searches_may_join_while_others_are_under_way():
    generator = ToyGenerator()
    solver = Solver(isc.REBASE(4), generator, ToyReward())
    with solver.session() as session:
        session.start(PROMPTS[0])
        assert session.advance() == []
        session.start(isc.Problem(PROMPTS[1], id="late"))
        session.start(PROMPTS[0])
        assert [search.root.problem.id for search in session.active] == [None, "late", None]
        results = driven(session)
    expected = solver.solve_batch([PROMPTS[0], PROMPTS[1], PROMPTS[0]])  # the third is another problem than the first
    assert [r.root.key for r in results] == [r.root.key for r in expected]
    assert [r.selected.text for r in results] == [r.selected.text for r in expected]


def test_the_caller_may_count_equal_prompts_itself():
    solver = Solver(isc.RepeatedSampling(2), ToyGenerator())
    with solver.session() as session:
        keys = [session.start(PROMPTS[0], occurrence=number).root.key for number in (1, 0, 1)]
    assert keys[0] == keys[2] != keys[1] == solver.solve(PROMPTS[0]).root.key


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_cancelled_search_is_forgotten_and_the_others_do_not_notice(concurrent):
    generator, judge = Listening(), Judge()
    generator.concurrent = judge.concurrent = concurrent
    solver = Solver(isc.BeamSearch(2, 2), generator, judge)
    with solver.session() as session:
        searches = [session.start(prompt) for prompt in PROMPTS]
        session.advance()
        session.cancel(searches[1])
        session.cancel(searches[1])  # once more does nothing
        assert generator.released == [PROMPTS[1]]
        results = driven(session)
    assert [r.problem.prompt for r in results] == [PROMPTS[0], PROMPTS[2]]
    assert [content(r) for r in results] == [content(solver.solve(p)) for p in (PROMPTS[0], PROMPTS[2])]


def test_the_call_of_a_cancelled_search_is_not_waited_for():
    freed, ended = threading.Event(), threading.Event()

    def hook(prompt):
        if prompt == PROMPTS[0]:
            freed.wait(LONG)
            ended.set()

    solver = Solver(isc.RepeatedSampling(2), Listening(hook))
    with solver.session() as session:
        slow = session.start(PROMPTS[0])
        session.start(PROMPTS[1])
        (fast,) = session.advance()
        session.finish(fast)
        session.cancel(slow)
        session.start(PROMPTS[2])
        assert [r.problem.prompt for r in driven(session)] == [PROMPTS[2]]
        assert slow.cost.num_generated == 0
    assert not ended.is_set()
    freed.set()


def test_an_error_takes_the_best_so_far_of_open_searches_along():
    generator = Listening()
    generator.concurrent = False  # both are answered in the first round
    solver = Solver(isc.BeamSearch(2, 2), generator, ToyReward())

    def broken_off():
        with solver.session() as session:
            session.start(PROMPTS[0])
            session.start(PROMPTS[1], replace(solver, strategy=isc.RepeatedSampling(2)))
            (done,) = session.advance()
            session.finish(done)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as error:
        broken_off()
    (partial,) = error.value.partial
    assert (partial.problem.prompt, partial.stopped_by, partial.cost.num_generated) == (PROMPTS[0], "error", 4)
    assert sorted(generator.released) == sorted(PROMPTS[:2])


def test_a_session_goes_on_from_its_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    solver = Solver(isc.BeamSearch(2, 2), BrokenGenerator(die_after=3), ToyReward())
    with pytest.raises(KeyboardInterrupt):
        solver.solve(PROMPTS[0], journal=path)
    rest = ToyGenerator()
    again = replace(solver, generator=rest)
    with again.session(path) as session:
        search = session.start(PROMPTS[0])
        assert search.cost.num_generated == 12
        assert rest.calls == 0
        (resumed,) = driven(session)
    assert content(resumed) == content(again.solve(PROMPTS[0]))
    with replace(solver, generator=BrokenGenerator(die_after=0)).session(path) as session:
        search = session.start(PROMPTS[0])
        assert search.leaves is not None
        assert session.advance() == [search]
        assert content(session.finish(search)) == content(resumed)


def test_a_journal_holds_the_searches_of_one_solver(tmp_path):
    solver = Solver(isc.RepeatedSampling(2), ToyGenerator())
    with solver.session(tmp_path / "journal.jsonl") as session:
        session.start(PROMPTS[0], replace(solver, read_answer=lambda text: None))
        with pytest.raises(ValueError, match="of one strategy, budget and seed: open another session"):
            session.start(PROMPTS[1], replace(solver, seed=1))
        assert len(driven(session)) == 1


def test_a_stream_keeps_nothing_of_problems_that_are_done_but_a_hash():
    """Bytes that Python holds after 50 and after 250 prompts of 4 kB."""
    held = []
    prompts = (f"{number:8d}" * 512 for number in range(250))
    tracemalloc.start()
    try:
        for done, _ in enumerate(stream(prompts, RepeatedSampling(1), ToyGenerator(), batch_size=4), start=1):
            if done in (50, 250):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert (held[1] - held[0]) / 200 < 300


def test_a_long_prompt_that_comes_again_is_another_problem():
    twice = list(stream(["a" * 5000, "b" * 5000, "a" * 5000], RepeatedSampling(1), ToyGenerator()))
    texts = {result.root.key: result.problem.prompt[0] for result in twice}
    assert sorted(texts.values()) == ["a", "a", "b"]
