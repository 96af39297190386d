"""The thread that drives the searches of all requests."""

from collections import Counter

import pytest

import inferscale as isc
from inferscale.answers import read_answer
from inferscale.base import Generator
from inferscale.engine import Solver
from inferscale.serve.dispatcher import BusyError, ClosedError, Dispatcher, Job, UnreadablePromptError
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.tree import Problem
from tests.serve_tools import GatedToy, until

REBASE_4 = isc.REBASE(4)


class PoisonError(Exception):
    """Of no family that a server could list."""


class Picky(Generator):
    """The toy, which fails on prompts that hold "poison" and cannot read those that hold "long"."""

    def __init__(self):
        self.toy, self.batches = ToyGenerator(), []

    def generate(self, requests):
        self.batches.append(len({request.node.root for request in requests}))
        if any("poison" in request.node.problem.prompt and request.node.depth == 1 for request in requests):
            raise PoisonError("poisoned")
        return self.toy.generate(requests)

    def max_sample_tokens(self, request):
        if "long" in request.node.problem.prompt:
            raise ValueError("the prompt is too long")
        return self.toy.max_sample_tokens(request)


def job(generator, prompt, strategy=REBASE_4, seed=0, reward=None, extract=read_answer):
    solver = Solver(strategy, generator, reward or ToyReward(), read_answer=extract, seed=seed)
    return Job(Problem(prompt), solver)


def outcome(job):
    result = job.future.result(20)
    return [(t.text, t.score) for t in result.trajectories], result.selected.text, result.cost.tokens


def alone(prompt, strategy=REBASE_4, seed=0):
    result = isc.solve(prompt, strategy, ToyGenerator(), reward_model=ToyReward(), seed=seed)
    return [(t.text, t.score) for t in result.trajectories], result.selected.text, result.cost.tokens


@pytest.fixture
def dispatch():
    """Makes a running dispatcher, which is closed in the end."""
    made = []

    def make(generator, max_active=64, max_waiting=64, reward=None, **options):
        solver = Solver(REBASE_4, generator, reward or ToyReward())
        made.append(Dispatcher(solver, max_active, max_waiting, **options))
        made[-1].start()
        return made[-1]

    yield make
    for dispatcher in made:
        dispatcher.close()


def test_searches_of_all_kinds_share_each_call(dispatch):
    toy = GatedToy()
    dispatcher = dispatch(toy)
    dispatcher.submit([job(toy, "the first")])
    until(lambda: toy.arrived == 1)  # the others come while its call is under way
    kinds = [isc.REBASE(4), isc.BeamSearch(2, 2), isc.strategies.MCTS(num_simulations=6), isc.RepeatedSampling(3)]
    jobs = [job(toy, f"How many are {i}?", kinds[i % 4], seed=i) for i in range(20)]
    dispatcher.submit(jobs)
    toy.gate.set()
    found = [outcome(each) for each in jobs]
    assert found == [alone(f"How many are {i}?", kinds[i % 4], seed=i) for i in range(20)]
    slowest = ToyGenerator()
    isc.solve("How many are 2?", kinds[2], slowest, reward_model=ToyReward(), seed=2)
    assert toy.toy.calls <= slowest.calls + 4  # not the hundreds that they take one by one


def test_the_same_request_at_the_same_time_gets_the_same_answer(dispatch):
    model, tokenizer = isc.zoo.load("policy-xs")
    generator = isc.HFGenerator(model, tokenizer, max_new_tokens=24)
    prompt = isc.zoo.problems("test")[0].prompt
    kinds = [isc.RepeatedSampling(2), isc.REBASE(3), isc.Greedy()]
    dispatcher = dispatch(generator)
    jobs = [job(generator, prompt, kinds[i % 3]) for i in range(6)]
    dispatcher.submit(jobs)
    for each, strategy in zip(jobs, kinds * 2, strict=True):
        result = each.future.result(60)
        single = isc.solve(prompt, strategy, generator, reward_model=ToyReward())
        assert [t.text for t in result.trajectories] == [t.text for t in single.trajectories]
        assert result.cost.generator_flops == single.cost.generator_flops


def test_a_search_that_fails_fails_alone(dispatch):
    picky = Picky()
    dispatcher = dispatch(picky)
    prompts = ["How many?", "poison", "How many more?", "more poison", "How many are left, and why?"]
    jobs = [job(picky, prompt) for prompt in prompts]
    dispatcher.submit(jobs)
    for prompt, each in zip(prompts, jobs, strict=True):
        if "poison" in prompt:
            with pytest.raises(PoisonError, match="poisoned"):
                each.future.result(20)
        else:
            assert outcome(each) == alone(prompt)
    late = job(picky, "How many?")
    dispatcher.submit([late])
    assert outcome(late) == alone("How many?")
    assert dispatcher.num_active == dispatcher.num_waiting == 0


def test_a_strategy_or_an_answer_that_fails_fails_alone(dispatch):
    toy = ToyGenerator()

    def refuse(text):
        raise TypeError("no such answer")

    dispatcher = dispatch(toy)
    jobs = [
        job(toy, "How many?"),
        job(toy, "How many?", isc.strategies.Then(isc.RepeatedSampling(2), isc.RepeatedSampling(2))),
        job(toy, "How many more?", extract=refuse),
    ]
    jobs[1].solver.__dict__["strategy"] = "not a strategy"  # begins to fail in the thread
    dispatcher.submit(jobs)
    assert outcome(jobs[0]) == alone("How many?")
    with pytest.raises(AttributeError):
        jobs[1].future.result(20)
    with pytest.raises(TypeError, match="no such answer"):
        jobs[2].future.result(20)


def test_a_prompt_that_cannot_be_read_is_told_apart(dispatch):
    picky = Picky()
    dispatcher = dispatch(picky)
    jobs = [job(picky, "a long story"), job(picky, "How many?")]
    dispatcher.submit(jobs)
    with pytest.raises(UnreadablePromptError, match="too long"):
        jobs[0].future.result(20)
    assert outcome(jobs[1]) == alone("How many?")


def test_cancelled_searches_end_and_the_others_do_not_notice(dispatch):
    toy, ended = GatedToy(), Counter()
    dispatcher = dispatch(toy, max_active=2, ended=lambda job, how: ended.update([how]))
    jobs = [job(toy, f"How many are {i}?") for i in range(4)]
    dispatcher.submit(jobs)
    until(lambda: toy.arrived == 1)
    assert jobs[0].progress() == {"state": "searching", "tokens": 0, "samples": 0, "scored": 0}
    assert jobs[3].progress()["state"] == "waiting"
    assert jobs[0].future.cancel()
    assert jobs[3].future.cancel()
    toy.gate.set()
    assert [outcome(jobs[i]) for i in (1, 2)] == [alone(f"How many are {i}?") for i in (1, 2)]
    until(lambda: ended.total() == 4)
    assert ended == {"finished": 2, "cancelled": 2}
    assert 0 < jobs[0].cost.tokens < jobs[1].cost.tokens  # what was spent on it is known


class Looking(Generator):
    """The toy, whose every call waits until one of its requests is over, as long as there is a prompt "left"."""

    def __init__(self):
        self.toy, self.arrived = ToyGenerator(), 0

    def generate(self, requests):
        self.arrived += 1
        if any(request.node.problem.prompt == "left" for request in requests):
            until(lambda: any(request.is_over for request in requests))
        return self.toy.generate(requests)


def test_a_cancelled_search_frees_its_rows_within_the_call(dispatch):
    looking, judged, ended = Looking(), set(), []

    class Judge(ToyReward):
        def score(self, nodes):
            judged.update(node.problem.prompt for node in nodes)
            return super().score(nodes)

    dispatcher = dispatch(looking, reward=Judge(), ended=lambda job, how: ended.append((job.problem.prompt, how)))
    jobs = [job(looking, "left"), job(looking, "How many?")]
    dispatcher.submit(jobs)
    until(lambda: looking.arrived == 1)
    assert jobs[0].future.cancel()  # in this thread, while the call is under way
    assert outcome(jobs[1]) == alone("How many?")
    until(lambda: len(ended) == 2)
    assert set(ended) == {("left", "cancelled"), ("How many?", "finished")}
    assert jobs[0].cost.tokens == 4  # a token of each sample
    assert judged == {"How many?"}


def test_all_of_a_request_is_taken_or_nothing(dispatch):
    toy = GatedToy()
    dispatcher = dispatch(toy, max_active=1, max_waiting=3)
    dispatcher.submit([job(toy, "How many?"), job(toy, "How many more?")])
    with pytest.raises(BusyError) as busy:
        dispatcher.submit([job(toy, "a"), job(toy, "b"), job(toy, "c")])
    assert 1 <= busy.value.retry_after <= 60
    last = [job(toy, "a"), job(toy, "b")]
    dispatcher.submit(last)
    toy.gate.set()
    assert [outcome(each) for each in last] == [alone("a"), alone("b")]


def test_models_forget_every_search(dispatch):
    released = []

    class Remembering(Picky):
        def release(self, root):
            released.append(root.problem.prompt)

    picky = Remembering()
    dispatcher = dispatch(picky)
    jobs = [job(picky, prompt) for prompt in ("How many?", "poison", "a long story")]
    dispatcher.submit(jobs)
    until(lambda: all(each.future.done() for each in jobs))
    assert set(released) == {"How many?", "poison"}


def test_a_search_that_cannot_be_forgotten_fails_alone(dispatch):
    class Forgetful(Picky):
        def release(self, root):
            if "sticky" in root.problem.prompt:
                raise RuntimeError("cannot forget")

    forgetful = Forgetful()
    dispatcher = dispatch(forgetful)
    prompts = ["How many?", "sticky", "poison", "sticky too", "How many more?"]
    jobs = [job(forgetful, prompt) for prompt in prompts]
    dispatcher.submit(jobs)
    assert outcome(jobs[0]) == alone("How many?")
    assert outcome(jobs[4]) == alone("How many more?")
    for each, message in ((jobs[1], "cannot forget"), (jobs[2], "poisoned"), (jobs[3], "cannot forget")):
        with pytest.raises((RuntimeError, PoisonError), match=message):
            each.future.result(20)
    assert dispatcher.is_open
    assert dispatcher.num_active == dispatcher.num_waiting == 0


def test_the_first_search_begins_it(dispatch):
    toy = ToyGenerator()
    dispatcher = Dispatcher(Solver(REBASE_4, toy, ToyReward()), 1, 1)
    assert dispatcher.is_open
    each = job(toy, "How many?")
    dispatcher.submit([each])
    assert outcome(each) == alone("How many?")
    dispatcher.start()
    dispatcher.close()
    assert not dispatcher.is_open


def test_drained_it_ends_what_it_has(dispatch):
    toy = GatedToy()
    dispatcher = dispatch(toy, max_active=1)
    jobs = [job(toy, "How many?"), job(toy, "How many more?")]
    dispatcher.submit(jobs)
    dispatcher.drain()
    with pytest.raises(ClosedError, match="shutting down"):
        dispatcher.submit([job(toy, "a")])
    toy.gate.set()
    assert [outcome(each) for each in jobs] == [alone("How many?"), alone("How many more?")]


def test_closed_it_fails_what_it_has(dispatch):
    toy = GatedToy()
    dispatcher = dispatch(toy, max_active=1)
    jobs = [job(toy, "How many?"), job(toy, "How many more?")]
    dispatcher.submit(jobs)
    until(lambda: toy.arrived == 1)
    toy.gate.set()
    dispatcher.close()
    assert not dispatcher.is_alive
    assert jobs[0].search.abandoned.is_set()
    assert all(each.future.done() for each in jobs)
    with pytest.raises(ClosedError, match="the server ended before the search did"):
        jobs[1].future.result()
    with pytest.raises(ClosedError):
        dispatcher.submit([job(toy, "a")])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_client_waits_for_a_thread_that_has_died(dispatch):
    class Fatal(Picky):
        def generate(self, requests):
            raise KeyboardInterrupt

    fatal = Fatal()
    dispatcher = dispatch(fatal)
    each = job(fatal, "How many?")
    dispatcher.submit([each])
    with pytest.raises(ClosedError):
        each.future.result(20)
    assert not dispatcher.accepting
