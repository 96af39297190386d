"""Sessions of generators: samples come as they end, requests join meanwhile, and every result is that of `generate`."""

import json
import threading
from dataclasses import dataclass, replace

import pytest
import torch

from inferscale.base import Generator, SearchStrategy
from inferscale.cost import Budget
from inferscale.engine import Solver, solve, solve_batch
from inferscale.flow import GenerateRequest, expand
from inferscale.generators import HFGenerator
from inferscale.rewards import HFProcessRewardModel
from inferscale.runtime import decoding
from inferscale.strategies import ABMCTS, DVTS, MCTS, REBASE, BeamSearch, ParticleFilter, RepeatedSampling
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyReward
from tests.reward_checkpoints import classifier
from tests.tiny_models import byte_tokenizer, root, shared_model, tiny_model

PROMPTS = ["Step 1: a b a b is 12\n", "b", "ab the", "12 = 12 x 2 x"]
RAGGED = {"max_step_tokens": 9, "max_new_tokens": 40, "eos_token_id": list(range(2, 30))}


def generator(cls=HFGenerator, **options):
    return cls(shared_model(), byte_tokenizer(), **{**RAGGED, **options})


class InRounds(HFGenerator):
    """The same model with a `generate` of its own, which alone is called."""

    rounds = 0

    def generate(self, requests):
        self.rounds += 1
        return super().generate(requests)


def requests_of(prompts=PROMPTS, n=4, **options):
    return [GenerateRequest(root(prompt), n, **{"until": "end", **options}) for prompt in prompts]


def collected(sampling):
    """All that is still to come, by ticket and index."""
    steps = {}
    while ended := sampling.collect():
        assert not {(ticket, index) for ticket, index, _ in ended} & steps.keys()
        steps.update({(ticket, index): step for ticket, index, step in ended})
    return steps


def plain(step):
    """A step without its log-probabilities, whose last digits depend on the batch."""
    return replace(step, logprob=None, confidence=None, model_logprob=None)


def same(groups):
    return [[plain(step) for step in steps] for steps in groups]


def in_order(tickets, steps):
    return [[steps.pop((ticket, index)) for index in range(ticket.request.n)] for ticket in tickets]


@pytest.mark.parametrize("options", [{}, {"cache": "none"}, {"micro_batch": 3}, {"check_every": 4}], ids=repr)
@pytest.mark.parametrize("until", ["step", "end"])
def test_requests_that_join_get_what_generate_gives_them(options, until):
    requests = requests_of(until=until)
    expected = generator().generate(requests)
    with generator(**options).open() as sampling:
        tickets, steps = [], {}
        for request in requests:  # each joins when some of the others have ended
            tickets.append(sampling.submit(request))
            steps.update({(ticket, index): step for ticket, index, step in sampling.collect()})
        steps.update(collected(sampling))
        assert same(in_order(tickets, steps)) == same(expected)
        assert not steps
        assert sampling.collect() == []


def test_samples_come_as_they_end_and_not_with_the_slowest():
    gen = generator()
    seen = []
    with gen.open() as sampling:
        sampling.on_tokens = seen.append
        sampling.submit(requests_of(PROMPTS[:1], 16)[0])
        rounds = []
        while ended := sampling.collect():
            rounds.append((len(seen), [len(step.token_ids) for _, _, step in ended]))
    assert len(rounds) > 4
    for looks, lengths in rounds:
        assert set(lengths) == {looks}, "a sample of so many tokens is there after so many looks"
    assert sum(seen) == gen.stats.decoded_tokens == sum(sum(lengths) for _, lengths in rounds)


def test_those_that_come_late_join_rows_that_decode(monkeypatch):
    rows = []

    class Counting(decoding.TreeDecoder):
        def step(self, tokens):
            rows.append(len(tokens))
            return super().step(tokens)

    monkeypatch.setattr(decoding, "TreeDecoder", Counting)
    gen = generator(eos_token_id=300, max_new_tokens=60)
    with gen.open() as sampling:
        early = sampling.submit(replace(requests_of(PROMPTS[:1], 2)[0], max_tokens=60))
        sampling.submit(replace(requests_of(PROMPTS[1:2], 1)[0], max_tokens=2))
        sampling.collect()  # the short one
        late = sampling.submit(replace(requests_of(PROMPTS[2:3], 1)[0], max_tokens=5))
        [(ticket, _, step)] = sampling.collect()
        assert (ticket, len(step.token_ids)) == (late, 5)
        assert max(rows[2:]) == 3
        assert {ticket for ticket, _ in collected(sampling)} == {early}


@pytest.mark.parametrize("cache", ["tree", "none"])
def test_a_cancelled_request_comes_back_with_what_was_drawn_and_the_others_do_not_notice(cache):
    requests = requests_of(PROMPTS[:3], 3)
    expected = generator(eos_token_id=300).generate(requests)
    with generator(eos_token_id=300, cache=cache, micro_batch=6).open() as sampling:
        tickets = [sampling.submit(request) for request in requests]
        looks = []

        def look(tokens):
            looks.append(tokens)
            if len(looks) == 5:
                raise KeyboardInterrupt

        sampling.on_tokens = look
        with pytest.raises(KeyboardInterrupt):
            sampling.collect()
        short = sampling.submit(replace(requests[0], max_tokens=2))
        steps = {}
        while not any(ticket is short for ticket, _ in steps):
            steps.update({(ticket, index): step for ticket, index, step in sampling.collect()})
        sampling.cancel(tickets[1])
        sampling.cancel(tickets[1])
        steps.update(collected(sampling))
        cut = [steps[tickets[1], index] for index in range(3)]
        for step, whole in zip(cut, expected[1], strict=True):
            assert plain(step) == plain(whole) or (
                step.finish_reason == "budget" and step.token_ids == whole.token_ids[: len(step.token_ids)]
            )
        assert same(in_order([tickets[0], tickets[2]], steps)) == same([expected[0], expected[2]])


def test_cancelling_frees_rows_at_once():
    gen = generator(eos_token_id=300)
    with gen.open() as sampling:
        long = sampling.submit(requests_of(PROMPTS[:1], 3)[0])
        sampling.submit(replace(requests_of(PROMPTS[1:2], 1)[0], max_tokens=4))
        sampling.collect()
        sampling.cancel(long)
        ended = sampling.collect()
        assert [(ticket, step.finish_reason, len(step.token_ids)) for ticket, _, step in ended] == [
            (long, "budget", 4)
        ] * 3
        assert sampling.collect() == []
    assert gen.stats.decoded_tokens == 16
    assert gen.stats.wasted_tokens == 0


def test_several_sessions_of_one_generator_do_not_notice_each_other():
    gen, requests = generator(), requests_of()
    expected = generator().generate(requests)
    with gen.open() as one, gen.open() as other:
        first = [one.submit(request) for request in requests]
        steps = {(ticket, index): step for ticket, index, step in one.collect()}
        second = [other.submit(request) for request in requests]
        assert same(gen.generate(requests)) == same(expected)
        assert same(in_order(second, collected(other))) == same(expected)
        assert same(in_order(first, {**steps, **collected(one)})) == same(expected)


@pytest.mark.parametrize("cache", ["tree", "none"])
def test_memory_that_runs_out_costs_time_and_no_sample(monkeypatch, cache):
    name = {"tree": "TreeDecoder", "none": "StatelessDecoder"}[cache]

    class Tight(getattr(decoding, name)):
        def step(self, tokens):
            if len(tokens) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
            return super().step(tokens)

    requests = requests_of()
    expected = generator(cache=cache).generate(requests)
    monkeypatch.setattr(decoding, name, Tight)
    gen = generator(cache=cache)
    with gen.open() as sampling:
        tickets = [sampling.submit(request) for request in requests]
        steps = collected(sampling)
        assert sum(len(step.token_ids) for step in steps.values()) == gen.stats.decoded_tokens
        assert same(in_order(tickets, steps)) == same(expected)
    assert gen._runner.rows <= 3
    assert gen.stats.wasted_tokens > 0


def test_a_prompt_that_does_not_fit_is_refused_and_the_session_goes_on():
    gen = HFGenerator(tiny_model(max_position_embeddings=64), byte_tokenizer(), **RAGGED)
    with gen.open() as sampling:
        ticket = sampling.submit(requests_of(PROMPTS[:1], 1)[0])
        with pytest.raises(ValueError, match="the model reads 64"):
            sampling.submit(requests_of(["a" * 200], 1)[0])
        assert {given for given, _ in collected(sampling)} == {ticket}


def test_one_generate_a_round_serves_a_generator_of_ones_own():
    class Own(ToyGenerator):
        sizes = ()

        def generate(self, requests):
            self.sizes = (*self.sizes, len(requests))
            return super().generate(requests)

    own, requests = Own(), requests_of(n=2)
    with own.open() as sampling:
        tickets = [sampling.submit(request) for request in requests[:3]]
        sampling.cancel(tickets[1])
        steps = collected(sampling)
        tickets.append(sampling.submit(requests[3]))
        steps.update(collected(sampling))
    assert own.sizes == (2, 1)
    found = in_order(tickets, steps)
    assert [found[0], *found[2:]] == ToyGenerator().generate([requests[0], *requests[2:]])
    assert {(step.finish_reason, step.text) for step in found[1]} == {("budget", "")}


def test_the_toys_session_hands_over_the_shortest_first_and_all_that_generate_gives():
    toy, requests = ToyGenerator(ragged=True), requests_of(n=3)
    with toy.open() as sampling:
        tickets = [sampling.submit(request) for request in requests[:2]]
        steps = {(ticket, index): step for ticket, index, step in sampling.collect()}
        lengths = [max(step.generated_tokens for step in steps.values())]
        assert len(steps) < 6
        tickets.append(sampling.submit(requests[2]))
        while ended := sampling.collect():
            assert {step.generated_tokens for ticket, _, step in ended if ticket in tickets[:2]} <= set(
                range(lengths[-1] + 1, 99)
            )
            lengths += [step.generated_tokens for ticket, _, step in ended if ticket in tickets[:2]][-1:]
            steps |= {(ticket, index): step for ticket, index, step in ended}
        dropped = sampling.submit(requests[3])
        sampling.cancel(dropped)
        assert {(t, step.finish_reason) for t, _, step in sampling.collect()} == {(dropped, "budget")}
    assert in_order(tickets, steps) == ToyGenerator().generate(requests[:3])
    assert toy.calls == 2


# -- searches --------------------------------------------------------------------------------------------------------


def content(result):
    """All of a result but its seconds and log-probabilities."""
    steps = [
        (node.key, node.is_scored and node.score, node.stats, node.step and plain(node.step))
        for node in result.root.walk()
    ]
    return steps, result.answer, result.stopped_by, result.cost.without_seconds()


@dataclass(frozen=True)
class Told(SearchStrategy):
    """Begins every answer with a text."""

    def search(self, root, rng):
        return (yield from expand([root], 6, until="end", forced="Step "))


STRATEGIES = [RepeatedSampling(5), BeamSearch(2, 3), REBASE(6), DVTS(2, 2), MCTS(6)]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("budget", [None, Budget(tokens=60), Budget(calls=7)], ids=repr)
def test_trees_scores_and_bills_are_those_of_rounds(strategy, budget):
    options = {"reward_model": ToyReward(), "budget": budget}
    rounds, session = generator(InRounds), generator()
    expected = solve_batch(PROMPTS, strategy, rounds, **options)
    assert rounds.rounds > 0
    found = solve_batch(PROMPTS, strategy, session, **options)
    assert [content(result) for result in found] == [content(result) for result in expected]
    assert all(budget is None or budget.tokens is None or result.cost.tokens <= budget.tokens for result in found)
    assert session.stats.decoded_tokens == rounds.stats.decoded_tokens


@pytest.mark.parametrize("strategy", [REBASE(4), MCTS(3), ABMCTS(4), ParticleFilter(3)], ids=repr)
def test_with_a_judge_that_keeps_prefixes_all_ways_give_one_tree_and_one_bill(strategy):
    def results(cls, prompts):
        judge = HFProcessRewardModel(classifier(byte_tokenizer()), byte_tokenizer(), format="trl")
        found = solve_batch(prompts, strategy, generator(cls, max_new_tokens=16), reward_model=judge)
        assert sum(result.cost.reward_flops for result in found) > 0
        nodes = [[(n.key, n.text, n.step and n.step.flops) for n in result.root.walk()] for result in found]
        return [(own, r.answer, r.cost.without_seconds()) for own, r in zip(nodes, found, strict=True)]

    together = results(HFGenerator, PROMPTS[:3])
    assert together == results(InRounds, PROMPTS[:3])
    assert together[1:2] == results(HFGenerator, PROMPTS[1:2])


def test_a_search_is_told_and_recorded_before_the_slowest_has_ended(tmp_path):
    gen, path = generator(), tmp_path / "journal.jsonl"
    told = []
    for result in Solver(RepeatedSampling(1), gen).stream([f"{p}{i}" for p in PROMPTS for i in range(6)], journal=path):
        recorded = [json.loads(line) for line in path.read_text().splitlines()]
        told.append((gen.stats.decoded_tokens, sum(row.get("kind") == "steps" for row in recorded)))
        assert result.cost.tokens <= gen.stats.decoded_tokens
    assert told == sorted(told)
    assert told[0][0] < told[-1][0] / 4
    assert told[0][1] < 12, "the others are still being drawn"


class Counted(ToyReward):
    """Counts the nodes of each call."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def score(self, nodes):
        self.batches.append(len(nodes))
        return super().score(nodes)


def test_steps_are_scored_in_batches_while_others_are_sampled():
    reward = Counted()
    results = solve_batch(
        PROMPTS * 3, BeamSearch(2, 2, max_depth=1), generator(max_step_tokens=40), reward_model=reward
    )
    assert sum(reward.batches) == sum(result.cost.num_scored for result in results) == 48
    assert 2 <= len(reward.batches) < 12
    assert max(reward.batches) > 4


def test_completions_are_scored_while_the_others_are_sampled():
    reward, gen = Counted(), generator()
    results = Solver(RepeatedSampling(4), gen, reward).stream(PROMPTS * 3)
    next(results)
    first = gen.stats.decoded_tokens
    assert len(reward.batches) <= 2
    assert len(list(results)) == 11
    assert first < gen.stats.decoded_tokens / 2
    assert sum(reward.batches) == 48


def test_a_search_that_is_cancelled_leaves_the_rows_and_the_others_go_on():
    expected = solve_batch(PROMPTS[1:], RepeatedSampling(4), generator())
    with Solver(RepeatedSampling(4), generator()).session() as session:
        searches = [session.start(prompt) for prompt in PROMPTS]
        ended = session.advance()
        session.cancel(searches[0])
        results = {search: session.finish(search) for search in ended if search is not searches[0]}
        while session.active:
            results |= {search: session.finish(search) for search in session.advance()}
    assert [content(results[search]) for search in searches[1:]] == [content(result) for result in expected]


def test_a_session_that_hands_nothing_over_is_told_so():
    class Silent(ToyGenerator):
        def open(self):
            sampling = Generator.open(self)
            sampling.collect = list
            return sampling

    with pytest.raises(RuntimeError, match=r"Silent.open\(\): collect\(\) returned no sample, though 4 have not ended"):
        solve_batch(PROMPTS[:2], RepeatedSampling(2), Silent())


def test_an_error_of_the_model_leaves_what_was_answered_before():
    class Judge(ToyReward):
        def score(self, nodes):
            raise RuntimeError("no judge today")

    with pytest.raises(RuntimeError, match="no judge today") as told:
        solve_batch(PROMPTS, RepeatedSampling(4), generator(), reward_model=Judge())
    assert sum(result.cost.num_generated for result in told.value.partial) >= 4
    with pytest.raises(KeyboardInterrupt):
        solve_batch(PROMPTS, RepeatedSampling(4), BrokenGenerator(die_after=0))


def dies_after(monkeypatch, forwards):
    """Decoders that are killed after some more forwards."""
    left = [forwards]

    class Dying(decoding.TreeDecoder):
        def step(self, tokens):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return super().step(tokens)

    monkeypatch.setattr(decoding, "TreeDecoder", Dying)


@pytest.mark.parametrize("strategy", [RepeatedSampling(6), REBASE(6), BeamSearch(2, 3)], ids=repr)
@pytest.mark.parametrize("budget", [None, Budget(tokens=90)], ids=repr)
def test_killed_at_any_token_it_loses_only_what_was_being_drawn(strategy, budget, tmp_path, monkeypatch):
    options = {"reward_model": ToyReward(), "budget": budget}
    whole = generator()
    expected = [content(result) for result in solve_batch(PROMPTS, strategy, whole, **options)]
    path, drawn = tmp_path / "journal.jsonl", 0
    for forwards in (3, 1, 9, 4):
        with monkeypatch.context() as patch:
            dies_after(patch, forwards)
            dying = generator()
            with pytest.raises(KeyboardInterrupt) as told:
                solve_batch(PROMPTS, strategy, dying, journal=path, **options)
        drawn += dying.stats.decoded_tokens
        samples = [node for result in told.value.partial for node in result.root.walk() if node.step]
        assert sum(len(node.step.token_ids) for node in samples) == drawn, "all that has ended is handed over"
        assert sum(result.cost.generated_tokens for result in told.value.partial) == drawn
        path.write_bytes(path.read_bytes() + b'{"torn": ')
    rest = generator()
    found = solve_batch(PROMPTS, strategy, rest, journal=path, **options)
    assert [content(result) for result in found] == expected
    assert drawn + rest.stats.decoded_tokens == whole.stats.decoded_tokens
    assert drawn > 0
    again = solve_batch(PROMPTS, strategy, silent := generator(), journal=path, **options)
    assert silent.stats.decoded_tokens == 0
    assert [content(result) for result in again] == expected


def test_samples_of_a_cancelled_answer_are_drawn_again(tmp_path):
    expected = content(solve("ab the", RepeatedSampling(8), generator()))
    path, cancel, gen = tmp_path / "journal.jsonl", threading.Event(), generator()
    decoder = gen._runner._tree
    step = type(decoder).step

    class Leaving(type(decoder)):
        def step(self, tokens):
            if gen.stats.decoded_tokens:
                cancel.set()
            return step(self, tokens)

    decoder.__class__ = Leaving
    result = solve("ab the", RepeatedSampling(8), gen, journal=path, cancel=cancel)
    assert result.stopped_by == "cancel"
    assert content(solve("ab the", RepeatedSampling(8), generator(), journal=path)) == expected


def test_forced_text_is_paid_for_once_also_after_a_kill(tmp_path, monkeypatch):
    expected = [content(result) for result in solve_batch(PROMPTS, Told(), generator())]
    path = tmp_path / "journal.jsonl"
    dies_after(monkeypatch, 6)
    with pytest.raises(KeyboardInterrupt):
        solve_batch(PROMPTS, Told(), generator(), journal=path)
    monkeypatch.undo()
    assert [content(result) for result in solve_batch(PROMPTS, Told(), generator(), journal=path)] == expected
