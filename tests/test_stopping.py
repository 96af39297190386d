"""Ends that come from outside: deadlines and cancellations that reach into a call, callbacks, and the event loop."""

import asyncio
import json
import pickle
import threading
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

import inferscale as isc
from inferscale import flow
from inferscale.base import Generator
from inferscale.cost import Budget
from inferscale.engine import Solver, asolve, search, solve, solve_batch, stream
from inferscale.flow import GenerateRequest
from inferscale.generators import HFGenerator
from inferscale.quiet_star import QuietSTaRGenerator
from inferscale.strategies import REBASE, BeamSearch, RepeatedSampling
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyProcessReward, ToyReward, check_generator
from inferscale.tree import Step
from tests.quiet_star_tools import wrapped
from tests.tiny_models import byte_tokenizer, root, shared_model, tiny_model

PROMPTS = ["How many apples?", "How many pears?", "How many plums?"]


class Looks:
    """Says that a request is over from the given look on."""

    def __init__(self, most):
        self.left = most

    def __call__(self):
        self.left -= 1
        return self.left < 0


class Clock:
    """A clock that goes on by `tick` seconds whenever somebody looks, in the place of the machine's."""

    def __init__(self, tick):
        self.now, self.tick = 0.0, tick

    def __call__(self):
        self.now += self.tick
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Makes the clock of the engine and of requests."""

    def make(tick=0.0):
        made = Clock(tick)
        for module in (flow, search):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made, perf_counter=made))
        return made

    return make


def hugging_face(**options):
    options = {"max_step_tokens": 30, "max_new_tokens": 40, "step_delimiter": "never", **options}
    return HFGenerator(shared_model(), byte_tokenizer(), eos_token_id=300, **options)


# -- in a local generator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["tree", "none"])
@pytest.mark.parametrize("check_every", [1, 4])
def test_what_was_drawn_until_the_look_is_returned_and_billed(cache, check_every):
    gen = hugging_face(cache=cache, check_every=check_every)
    request = GenerateRequest(root("Step 1: a b"), 3)
    drawn = 3 * check_every  # a look before each of the three samples begins, then one after each few tokens
    (expected,) = hugging_face(cache=cache).generate([replace(request, max_tokens=drawn)])
    (cut,) = gen.generate([replace(request, is_cancelled=Looks(3 + 2))])
    assert cut == expected
    assert {step.finish_reason for step in cut} == {"budget"}
    assert gen.stats.decoded_tokens == 3 * drawn
    assert gen.stats.wasted_tokens == 0


@pytest.mark.parametrize("cache", ["tree", "none"])
def test_samples_that_have_no_place_yet_are_not_begun(cache):
    gen = hugging_face(cache=cache, micro_batch=2)
    (steps,) = gen.generate([GenerateRequest(root("a b"), 5, forced="So ", is_cancelled=Looks(2))])
    assert [step.generated_tokens for step in steps] == [1, 1, 0, 0, 0]
    assert {step.finish_reason for step in steps} == {"budget"}
    assert [step.prompt_tokens > 0 for step in steps] == [True, False, False, False, False]
    nothing = GenerateRequest(root("a b"), 2, deadline=time.monotonic() - 1)
    assert [step.text for step in gen.generate([nothing])[0]] == ["", ""]
    assert gen.stats.decoded_tokens == 2


def test_the_others_of_a_call_do_not_notice():
    one, other = GenerateRequest(root("a b"), 4), GenerateRequest(root("Step 1:"), 4, until="end")
    for options in ({}, {"micro_batch": 3}, {"check_every": 5}, {"cache": "none"}):
        gen = hugging_face(**options)
        (expected,) = hugging_face().generate([other])
        cut, whole = gen.generate([replace(one, is_cancelled=Looks(7)), other])
        assert [step.token_ids for step in whole] == [step.token_ids for step in expected]
        assert [step.flops for step in whole] == [step.flops for step in expected]
        assert "budget" in {step.finish_reason for step in cut}


def test_thoughts_before_the_look_are_billed():
    def thinking():
        return QuietSTaRGenerator(
            wrapped("llama", 2), byte_tokenizer(), step_delimiter="never", max_step_tokens=20, eos_token_id=300
        )

    request = GenerateRequest(root("a b"), 3, forced="So ")
    (expected,) = thinking().generate([replace(request, max_tokens=2 * (1 + 4))])  # two tokens, thoughts of four each
    (cut,) = thinking().generate([replace(request, is_cancelled=Looks(3 + 1))])
    assert cut == expected
    assert [step.thought_tokens for step in cut] == [8, 8, 8]
    (nothing,) = thinking().generate([replace(request, deadline=0.0)])
    assert [(step.generated_tokens, step.thought_tokens, step.flops) for step in nothing] == [(0, 0, 0)] * 3


# -- through the engine ------------------------------------------------------------------------------------------------


def test_a_budget_of_seconds_reaches_into_a_call(clock):
    clock(0.001)  # a sample asks for the time when it begins, and all of them together after each token
    gen = hugging_face(max_step_tokens=400, max_new_tokens=400, micro_batch=64)
    result = solve(PROMPTS[0], RepeatedSampling(2000), gen, reward_model=ToyReward(), budget=Budget(seconds=0.2))
    steps = [node.step for node in result.root.children]
    assert result.stopped_by == "seconds"
    assert len(steps) == result.cost.num_generated == result.root.num_draws < 2000
    assert 100 < max(len(step.token_ids) for step in steps) < 200
    assert result.cost.generated_tokens == sum(len(step.token_ids) for step in steps) == gen.stats.decoded_tokens
    assert result.cost.generator_flops == sum(step.flops for step in steps)
    assert all(step.token_ids for step in steps)
    assert all(leaf.is_scored for leaf in result.leaves)


class Late(Generator):
    """The toy, whose time is over in the second call: of each request only the first sample has begun."""

    def __init__(self, clock):
        self.toy, self.clock = ToyGenerator(), clock

    def identity(self):
        return self.toy.identity()

    def generate(self, requests):
        groups = self.toy.generate(requests)
        if self.toy.calls == 1:
            return groups
        self.clock.now += 1
        return [[replace(steps[0], finish_reason="budget"), *[Step("", finish_reason="budget")] * (len(steps) - 1)]
                for steps in groups]  # fmt: skip


@pytest.mark.parametrize("strategy", [REBASE(6), BeamSearch(2, 3), RepeatedSampling(4)])
def test_a_search_that_ended_within_a_call_ends_there_again(tmp_path, clock, strategy):
    options = {"reward_model": ToyProcessReward(), "budget": Budget(seconds=0.3), "journal": tmp_path / "journal"}
    first = solve_batch(PROMPTS, strategy, Late(clock()), **options)
    again = solve_batch(PROMPTS, strategy, BrokenGenerator(die_after=0), **options)
    assert [result.to_dict() for result in again] == [result.to_dict() for result in first]
    rows = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    if not isinstance(strategy, RepeatedSampling):
        assert {result.stopped_by for result in first} == {"seconds"}
        assert sum(row.get("stopped_by") == "seconds" for row in rows) == len(PROMPTS)
        assert all(node.step.token_ids for result in first for node in result.root.walk() if node.step)
        assert all(node.num_draws == len(node.children) for result in first for node in result.root.walk())


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_cancelled_call_returns_the_best_so_far(concurrent):
    cancel = threading.Event()

    class Cancelling(ToyGenerator):
        def generate(self, requests):
            if max(request.node.depth for request in requests) == 2:
                cancel.set()
            return super().generate(requests)

    reward = ToyReward()
    generator = Cancelling()
    generator.concurrent = reward.concurrent = concurrent
    solver = Solver(BeamSearch(2, 3), generator, reward, isc.BestOfN(), batch_size=2)
    results = solver.solve_batch(PROMPTS, cancel=cancel)
    assert [result.problem.prompt for result in results] == PROMPTS
    assert {result.stopped_by for result in results} == {"cancel"}
    assert all(leaf.is_scored for result in results for leaf in result.leaves if leaf.step)
    assert results[2].leaves == (results[2].root,)  # never begun
    assert results[0].selected.score == max(trajectory.score for trajectory in results[0].trajectories)
    assert solver.solve(PROMPTS[0], cancel=cancel).cost.num_generated == 0


def test_a_cancelled_stream_takes_no_more_problems():
    cancel, taken = threading.Event(), []

    def problems():
        for number in range(1000):
            taken.append(number)
            yield f"How many are {number}?"

    results = []
    for result in stream(problems(), RepeatedSampling(2), ToyGenerator(), batch_size=4, cancel=cancel):
        results.append(result)
        cancel.set()
    assert len(taken) <= 5
    assert len(results) == 4


def test_a_bad_event_or_callback_is_refused_before_anything_runs():
    toy = ToyGenerator()
    with pytest.raises(TypeError, match=r"cancel must be a threading\.Event, not True"):
        solve(PROMPTS[0], RepeatedSampling(2), toy, cancel=True)
    with pytest.raises(TypeError, match="on_step must be a function"):
        solve(PROMPTS[0], RepeatedSampling(2), toy, on_step="print")
    assert toy.calls == 0


def test_nothing_is_scored_for_nobody():
    reward = ToyReward()
    solver = Solver(RepeatedSampling(3), ToyGenerator(), reward)
    with solver.session() as session:
        left = session.start(PROMPTS[0])
        left.abandoned.set()
        assert session.advance() == [left]
        assert session.finish(left).stopped_by == "cancel"
    assert (solver.generator.calls, reward.calls) == (0, 0)


def test_a_request_of_a_search_can_be_sent_elsewhere():
    class Sending(ToyGenerator):
        def generate(self, requests):
            return super().generate(pickle.loads(pickle.dumps(requests)))  # noqa: S301 (its own)

    options = {"reward_model": ToyReward(), "budget": Budget(seconds=1000)}
    result = solve(PROMPTS[0], REBASE(4), Sending(), cancel=threading.Event(), **options)
    assert result.trajectories == solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=ToyReward()).trajectories


# -- callbacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrent", [False, True])
def test_every_answer_is_told(concurrent):
    toy, reward = ToyGenerator(), ToyReward()
    toy.concurrent = reward.concurrent = concurrent
    updates, threads = [], set()

    def on_step(update):
        updates.append(update)
        threads.add(threading.current_thread())

    results = solve_batch(PROMPTS, REBASE(4), toy, reward_model=reward, on_step=on_step)
    assert threads == {threading.current_thread()}
    for index, result in enumerate(results):
        own = [update for update in updates if update.index == index]
        nodes = [node for node in result.root.walk() if node.step is not None]
        assert {update.problem for update in own} == {result.problem}
        assert {node for update in own for node in update.sampled} == set(nodes)
        assert {node for update in own for node in update.scored} == {node for node in nodes if node.is_scored}
        assert sum(len(update.sampled) for update in own) == own[-1].cost.num_generated
        assert [update.cost.tokens for update in own] == sorted(update.cost.tokens for update in own)
        assert own[-1].cost == result.cost


def test_an_error_in_a_callback_ends_the_call_and_what_was_paid_for_is_kept():
    def on_step(update):
        if update.scored:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as error:
        solve_batch(PROMPTS, REBASE(4), ToyGenerator(), reward_model=ToyReward(), on_step=on_step)
    assert [result.cost.num_generated for result in error.value.partial] == [4, 4, 4]


def test_answers_out_of_a_journal_are_not_told_again(tmp_path):
    updates = []
    options = {"reward_model": ToyReward(), "journal": tmp_path / "journal", "on_step": updates.append}
    with pytest.raises(KeyboardInterrupt):
        solve(PROMPTS[0], REBASE(4), BrokenGenerator(die_after=2), **options)
    before = len(updates)
    result = solve(PROMPTS[0], REBASE(4), ToyGenerator(), **options)
    assert before == 4
    assert sum(len(update.sampled) for update in updates) == result.cost.num_generated


# -- the event loop ----------------------------------------------------------------------------------------------------


def test_the_event_loop_goes_on_meanwhile():
    gate = threading.Event()

    class Waiting(ToyGenerator):
        def generate(self, requests):
            assert gate.wait(120)  # for the loop, which must run for it
            return super().generate(requests)

    async def main():
        task = asyncio.create_task(asolve(PROMPTS[0], REBASE(4), Waiting(), reward_model=ToyReward()))
        await asyncio.sleep(0)
        gate.set()
        return await task

    expected = solve(PROMPTS[0], REBASE(4), ToyGenerator(), reward_model=ToyReward())
    assert asyncio.run(main()).trajectories == expected.trajectories


def test_a_cancelled_task_ends_its_search():
    begun, ended = threading.Event(), threading.Event()
    reward = ToyReward()

    @dataclass
    class Endless(ToyGenerator):
        def generate(self, requests):
            begun.set()
            while not all(request.is_over for request in requests):
                time.sleep(0.001)
            return super().generate(requests)

        def release(self, root):
            ended.set()

    generator = Endless()

    async def main():
        task = asyncio.create_task(asolve(PROMPTS[0], REBASE(4), generator, reward_model=reward))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended.wait(120)
    assert (generator.calls, reward.calls) == (1, 0)


def test_errors_and_counters_reach_the_one_who_awaits():
    async def main():
        with pytest.raises(KeyboardInterrupt) as error:
            await Solver(REBASE(4), BrokenGenerator(die_after=1), ToyReward()).asolve_batch(PROMPTS)
        assert [result.stopped_by for result in error.value.partial] == ["error"] * 3
        model = tiny_model()
        gen = HFGenerator(model, byte_tokenizer(), max_step_tokens=4, max_new_tokens=8)
        with isc.FlopCounter(model) as counter, counter.scope(problem=1):
            result = await Solver(RepeatedSampling(2), gen).asolve("a b")
        return counter, result

    counter, result = asyncio.run(main())
    assert counter.flops == sum(counter.flops_by("problem").values()) > 0
    assert set(counter.flops_by("problem")) == {1}
    assert result.cost.generated_tokens > 0


def test_the_promise_of_a_cut_is_checked():
    check_generator(ToyGenerator())

    class Inventing(ToyGenerator):
        def generate(self, requests):
            return [[replace(step, text="x") if request.is_over else step for step in steps]
                    for request, steps in zip(requests, super().generate(requests), strict=True)]  # fmt: skip

    with pytest.raises(AssertionError, match="its time over"):
        check_generator(Inventing())
