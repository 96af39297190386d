"""Bytes of thoughts: what the passes of a search read and write, counted as they are made."""

import pytest

import inferscale as isc
from inferscale.flops import closed_form
from inferscale.quiet_star import HighEntropy, Never, QuietSTaRGenerator, StepStarts, ThoughtUtility
from inferscale.quiet_star.cache import CachedText
from inferscale.quiet_star.parallel import MaskedSession
from inferscale.testing import ToyReward
from tests.quiet_star_tools import wrapped
from tests.tiny_models import byte_tokenizer

PROMPT = "Step 12: a b\n"


def generator(quiet, **options):
    given = {"max_step_tokens": 4, "max_new_tokens": 9, "eos_token_id": 319, **options}
    return QuietSTaRGenerator(quiet, byte_tokenizer(), **given)


class Meter:
    """Counts passes as they are made: weights in bytes, cached tokens of all rows read and written, states moved."""

    def __init__(self, quiet, monkeypatch):
        self.spec = closed_form(quiet.model)
        self.passes = self.heads = self.mixes = self.tokens = self.moves = 0
        self.quiet, feed = quiet, CachedText.feed

        def fed(text, embeds, keep=None):
            if embeds.shape[1] > 1 and text.keep.shape[1] and not text.backbone.attention_only:
                return feed(text, embeds, keep)  # comes again, token by token
            before = text.keep.sum(dim=1)
            after = feed(text, embeds, keep)
            new = text.keep.sum(dim=1) - before
            self.tokens += int((before + new).sum())
            self.moves += int((new > 0).sum() + ((new > 0) & (before > 0)).sum())
            return after

        monkeypatch.setattr(CachedText, "feed", fed)
        count = self.count
        for part, name in (
            (quiet.backbone.decoder, "passes"),
            (quiet.model.get_output_embeddings(), "heads"),
            (quiet.head, "mixes"),
        ):
            part.register_forward_hook(lambda *call, name=name: count(name))

    def count(self, name):
        setattr(self, name, getattr(self, name) + 1)

    @property
    def weights(self):
        head = self.spec.head // 2
        numbers = self.passes * (self.spec.active_weights - head) + self.heads * head
        return 4 * (numbers + self.mixes * sum(part.numel() for part in self.quiet.head.parameters()))

    @property
    def cache(self):
        return 4 * (self.tokens * sum(g.kv_width for g in self.spec.attention) + self.moves * sum(self.spec.states))


@pytest.mark.parametrize(
    ("family", "length", "options"),
    [
        ("llama", 3, {}),
        ("llama", 0, {}),
        ("llama", 2, {"num_thoughts": 2}),
        ("llama", 1, {"when": StepStarts(2)}),
        ("llama", 2, {"when": Never()}),
        pytest.param("mamba", 2, {}, marks=pytest.mark.slow),
        pytest.param("lfm2", 1, {"when": StepStarts(1)}, marks=pytest.mark.slow),
    ],
)
def test_bytes_are_those_of_the_passes_that_are_made(family, length, options, monkeypatch):
    quiet = wrapped(family, length, parallel="auto" if family == "llama" else "fold")
    gen = generator(quiet, **options)
    isc.solve(PROMPT, isc.Greedy(), gen)  # whose first pass is preceded by a check
    meter = Meter(quiet, monkeypatch)
    cost = isc.solve(PROMPT, isc.RepeatedSampling(3), gen, seed=1).cost
    assert (cost.bytes - cost.cache_bytes, cost.cache_bytes) == (meter.weights, meter.cache)
    if family == "llama":  # which reads what nodes share once
        before = meter.weights, meter.cache
        cost = isc.solve(PROMPT, isc.REBASE(3), gen, reward_model=isc.RewardFunction(lambda ns: [0.5] * len(ns))).cost
        made = meter.weights - before[0], meter.cache - before[1]
        assert (cost.generator_bytes - cost.cache_bytes, cost.cache_bytes) == made


def test_a_thought_by_hand():
    """Two layers of 2 heads of 8 numbers, keys and values: 64 numbers a token. One token is drawn behind a prompt."""
    quiet = wrapped("llama", 2)
    gen = generator(quiet, max_step_tokens=1, max_new_tokens=1)
    cost = isc.solve(PROMPT, isc.Greedy(), gen).cost
    c = cost.prompt_tokens - 1
    # the text before its last token; [x, start], [c_1], [c_2, end]
    read, written = c + (c + 2) + (c + 3), c + 2 + 1 + 2
    spec = closed_form(quiet.model)
    mixing = sum(part.numel() for part in quiet.head.parameters())
    assert cost.cache_bytes == 4 * 64 * (read + written)
    assert cost.generator_bytes == cost.cache_bytes + 4 * (4 * spec.active_weights - spec.head // 2 + mixing)


@pytest.mark.parametrize("family", ["llama", pytest.param("mamba", marks=pytest.mark.slow)])
def test_bytes_do_not_depend_on_the_batch_and_can_be_capped(family):
    quiet = wrapped(family, 1, parallel="auto" if family == "llama" else "fold")
    prompts = [PROMPT, "x", "ab the is ab"]
    together = isc.solve_batch(prompts, isc.REBASE(2), generator(quiet), reward_model=ToyReward())
    for prompt, result in zip(prompts, together, strict=True):
        plain = generator(quiet, cache="none", micro_batch=1)
        alone = isc.solve(prompt, isc.REBASE(2), plain, reward_model=ToyReward())
        assert result.cost.without_seconds() == alone.cost.without_seconds()
        assert result.cost.generator_bytes > result.cost.cache_bytes > 0
    most = together[0].cost.generator_bytes // 2
    half = isc.solve(PROMPT, isc.REBASE(2), generator(quiet), reward_model=ToyReward(), budget=isc.Budget(bytes=most))
    assert half.stopped_by == "bytes"
    assert most <= half.cost.bytes < together[0].cost.bytes


def test_thoughts_by_entropy_tell_no_bytes():
    gen = generator(wrapped("llama", 1), when=HighEntropy(4.45))
    assert isc.solve("x", isc.Greedy(), gen).cost.bytes is None
    with pytest.raises(ValueError, match="QuietSTaRGenerator cannot tell its bytes"):
        isc.solve("x", isc.Greedy(), gen, budget=isc.Budget(bytes=1e9))


def test_a_step_says_where_it_thought():
    gen = generator(wrapped("llama", 1), when=StepStarts(2), max_step_tokens=3)
    step = gen.generate([isc.GenerateRequest(isc.Node(isc.Problem("a b")), until="end")])[0][0]
    trace = [place % 3 < 2 for place in range(9)]
    assert gen._places(step, 0) == trace[: step.generated_tokens]


@pytest.mark.parametrize(("thoughts", "size"), [(1, None), (2, 3)])
def test_scores_of_thoughts_tell_their_bytes(thoughts, size, monkeypatch):
    quiet = wrapped("llama", 2, positions_at_once=size)
    leaf = isc.solve(PROMPT, isc.Greedy(), generator(quiet)).root.children[0]
    quiet.parallel_check  # noqa: B018 (runs now)
    reward = ThoughtUtility(quiet, byte_tokenizer(), num_thoughts=thoughts)
    cost, meter = reward.cost([leaf])[0], Meter(quiet, monkeypatch)
    feed = MaskedSession.feed

    def fed(session, embeds):
        length = session._text.cache.get_seq_length() + embeds.shape[1] * embeds.shape[2]
        meter.tokens += len(embeds) * length
        return feed(session, embeds)

    monkeypatch.setattr(MaskedSession, "feed", fed)
    reward.score([leaf])
    meter.tokens += len(byte_tokenizer()(PROMPT)["input_ids"]) + len(leaf.token_ids)  # the text itself
    assert (cost.reward_bytes - cost.cache_bytes, cost.cache_bytes) == (meter.weights, meter.cache)
    assert sum(isc.Cost() + each for each in reward.cost([leaf])).reward_bytes == 0  # it is known now
