"""Sessions of the thinking generator: whoever joins, every step, thought and bill is that of a request alone."""

from dataclasses import replace

import pytest
import torch

from inferscale import REBASE, BeamSearch, RepeatedSampling, solve_batch
from inferscale.flow import GenerateRequest
from inferscale.quiet_star import HighEntropy, QuietSTaRGenerator, StepStarts
from inferscale.quiet_star.cache import CachedText
from inferscale.testing import ToyReward
from tests.quiet_star_tools import wrapped
from tests.tiny_models import byte_tokenizer, root

PROMPTS = ["Step 1: a b a b is 12\n", "b", "ab the", "12 = 12 x 2 x"]
RAGGED = {"max_step_tokens": 9, "max_new_tokens": 12, "eos_token_id": list(range(2, 60))}


def generator(family="llama", cls=QuietSTaRGenerator, **options):
    unmasked = {"parallel": "fold"} if family == "mamba" else {}
    return cls(wrapped(family, 2, **unmasked), byte_tokenizer(), **{**RAGGED, **options})


class InRounds(QuietSTaRGenerator):
    """The same with a `generate` of its own, which alone is called."""

    rounds = 0

    def generate(self, requests):
        self.rounds += 1
        return super().generate(requests)


def requests(n=3):
    caps = [None, 40, 3, 11]  # the third does not do for a single thought
    return [
        GenerateRequest(root(p), n, until="end", max_tokens=cap, greedy=not number)
        for number, (p, cap) in enumerate(zip(PROMPTS, caps, strict=True))
    ]


def plain(step):
    return replace(step, logprob=None, confidence=None, model_logprob=None)


def ids_of(records):
    """Ids of the thoughts of each branch."""
    return {key: [[record.token_ids for record in place] for place in places] for key, places in records.items()}


@pytest.fixture
def joined(monkeypatch):
    """Numbers of rows that texts had when others joined them."""
    sizes = []

    def noting(texts):
        sizes.append([len(text.keep) for text in texts])
        return original(texts)

    original = CachedText.joined
    monkeypatch.setattr(CachedText, "joined", noting)
    return sizes


@pytest.mark.filterwarnings("ignore:FLOPs of this model will be reported as 0")
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("gpt2", {"micro_batch": 4}),
        ("llama", {"num_thoughts": 2, "when": HighEntropy(4.45)}),
        ("llama", {"cache": "none", "when": StepStarts(2)}),
        ("mistral_window", {}),
        ("mamba", {}),
    ],
    ids=str,
)
def test_requests_that_join_get_what_they_get_alone(family, options, joined):
    gen, expected = generator(family, **options, record_thoughts=True), {}
    for request in requests():
        expected[request.node.problem.prompt] = [plain(step) for step in gen.generate([request])[0]]
    alone = ids_of(gen._decoder.records)
    gen.forget_thoughts()
    with gen.open() as sampling:
        found = {}
        for request in requests():
            sampling.submit(request)
            found |= {(t.request.node.problem.prompt, i): plain(step) for t, i, step in sampling.collect()}
        while ended := sampling.collect():
            found |= {(t.request.node.problem.prompt, i): plain(step) for t, i, step in ended}
    assert found == {(prompt, i): step for prompt, steps in expected.items() for i, step in enumerate(steps)}
    assert any(step.thought_tokens for step in found.values())
    assert not any(step.thought_tokens for (prompt, _), step in found.items() if prompt == PROMPTS[2])
    assert ids_of(gen._decoder.records) == alone
    assert bool(joined) == (family not in ("mistral_window", "mamba")), "rows that count padding take no others in"


def test_the_same_request_twice_is_billed_twice():
    gen, request = generator(), requests()[1]
    (alone,) = gen.generate([request])
    for steps in gen.generate([request, request]):
        assert [plain(step) for step in steps] == [plain(step) for step in alone]


def test_sessions_do_not_notice_each_other_and_what_is_cancelled_is_cut():
    gen, (one, _, _, other) = generator(), requests()
    expected = [[plain(step) for step in steps] for steps in generator().generate([one, other])]
    with gen.open() as first, gen.open() as second:
        first.submit(one)
        found = {i: step for _, i, step in first.collect()}
        ticket = second.submit(one)
        second.submit(other)
        ended = {(t is ticket, i): step for t, i, step in second.collect()}
        second.cancel(ticket)
        while more := second.collect():
            ended |= {(t is ticket, i): step for t, i, step in more}
        while more := first.collect():
            found |= {i: step for _, i, step in more}
    assert [plain(found[i]) for i in range(3)] == expected[0]
    assert [plain(ended[False, i]) for i in range(3)] == expected[1]
    for i, whole in enumerate(expected[0]):
        cut = ended[True, i]
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
        assert cut.thought_tokens == len(cut.token_ids) * 4


def test_memory_that_runs_out_costs_time_and_nothing_else(monkeypatch):
    expected = [[plain(step) for step in steps] for steps in generator().generate(requests())]
    feed = CachedText.feed

    def tight(self, embeds, keep=None):
        if len(embeds) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return feed(self, embeds, keep)

    monkeypatch.setattr(CachedText, "feed", tight)
    gen = generator()
    assert [[plain(step) for step in steps] for steps in gen.generate(requests())] == expected
    assert gen._runner.rows <= 4


@pytest.mark.parametrize("strategy", [RepeatedSampling(4), REBASE(4), BeamSearch(2, 2)], ids=repr)
def test_trees_and_bills_are_those_of_rounds(strategy, joined):
    def content(result):
        steps = [
            (node.key, node.is_scored and node.score, node.step and plain(node.step)) for node in result.root.walk()
        ]
        return steps, result.cost.without_seconds()

    rounds = generator(cls=InRounds)
    expected = solve_batch(PROMPTS, strategy, rounds, reward_model=ToyReward())
    assert rounds.rounds > 0
    joined.clear()
    found = solve_batch(PROMPTS, strategy, generator(micro_batch=8), reward_model=ToyReward())
    assert [content(result) for result in found] == [content(result) for result in expected]
    assert joined
