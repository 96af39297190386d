"""Forwards that are not plain batches: packed rows, caches that keep everything, wrappers around a model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.cache_utils import Cache

from inferscale.flops import (
    FlopCounter,
    Flops,
    FlopsWarning,
    PackedRows,
    VerificationError,
    closed_form,
    forward_flops,
    model_spec,
)
from inferscale.flops.ledger import ForwardShape
from inferscale.generators import HFGenerator
from tests.flops_models import hand_config, hand_model
from tests.tiny_models import byte_tokenizer, cached, grow_all, root, tiny_model

SPEC = model_spec(hand_config("llama"))


def flops_of_rows(new, past):
    """FLOPs of rows of different lengths, each on its own and with the head run at one position."""
    return sum((forward_flops(SPEC, n, p, logits=1) for n, p in zip(new, past, strict=True)), Flops())


class PackedCache(DynamicCache):
    """A cache whose forward stands for several rows."""

    def __init__(self, new, past):
        super().__init__()
        pairs = zip(new, past, strict=True)
        causal = sum(n * p + n * (n + 1) // 2 for n, p in pairs)
        self.packed_rows = PackedRows(len(new), causal, sum(new) ** 2, sum(past))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 30)), min_size=1, max_size=6))
def test_packed_rows_cost_what_rows_cost_alone(rows):
    new, past = zip(*rows, strict=True)
    packed = PackedCache(new, past).packed_rows
    tally = ForwardShape(sum(new), logits=len(rows), packed=packed).tally(SPEC)
    alone = flops_of_rows(new, past)
    assert tally.linear + tally.head + tally.attention_causal == alone.causal
    assert tally.sequences == len(rows)


def test_a_forward_of_packed_rows_is_counted_row_by_row():
    model = hand_model("llama")
    with torch.no_grad(), FlopCounter(model, mode="verify") as counter:
        model(torch.arange(6)[None], **cached(model, PackedCache([4, 2], [0, 0])), logits_to_keep=torch.tensor([3, 5]))
    assert counter.flops == flops_of_rows([4, 2], [0, 0]).causal
    assert counter.tally().sequences == 2
    assert set(counter.flops_by("phase")) == {"prefill"}
    with torch.no_grad(), FlopCounter(model) as counter:
        model(torch.arange(3)[None], **cached(model, PackedCache([1, 1, 1], [8, 9, 10])))
    assert set(counter.flops_by("phase")) == {"decode"}
    assert counter.tokens.sampled == 3


def test_packed_rows_that_lie_are_caught():
    model = hand_model("llama")
    cache = PackedCache([40, 20], [0, 0])
    cache.packed_rows = cache.packed_rows._replace(executed_pairs=1)
    with pytest.raises(VerificationError):
        _forward(model, FlopCounter(model, mode="verify"), cache)


def _forward(model, counter, cache):
    with torch.no_grad(), counter:
        model(torch.arange(60)[None], **cached(model, cache))


class OpaqueCache(Cache):
    """A cache that keeps keys and values where nobody sees them."""

    def __init__(self):
        super().__init__(layers=[])

    def update(self, keys, values, layer_idx, *args, **kwargs):
        return keys, values

    def get_seq_length(self, layer_idx=0):
        return 0

    def get_mask_sizes(self, query_length, layer_idx):
        return query_length, 0


def test_a_cache_that_tells_nothing_is_reported():
    model = hand_model("llama")
    counter = FlopCounter(model)
    with pytest.warns(FlopsWarning, match="packed_rows"):
        _forward(model, counter, OpaqueCache())
    assert list(counter.uncounted) == ["attention of 'model' over a cache without layers of its own"]


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_a_cache_may_keep_what_has_left_the_window(family):
    model = hand_model(family)
    ids = torch.arange(80).reshape(2, 40)

    def work(cache):
        model(ids, **cached(model, cache))
        model(ids[:, :5], **cached(model, cache))
        model(ids[:, :1], **cached(model, cache))

    counts = {}
    for name, make in (("slides", lambda: DynamicCache(config=model.config)), ("keeps", DynamicCache)):
        with torch.no_grad(), FlopCounter(model, mode="verify") as analytic, FlopCounter(model, mode="exact") as exact:
            work(make())
        assert analytic.flops_of(convention="full") == exact.flops_of(convention="full")
        counts[name] = analytic.flops_of(convention="full"), analytic.flops
    assert counts["keeps"][0] > counts["slides"][0]
    assert counts["keeps"][1] == counts["slides"][1]  # what the mask lets through is the same


class Adviser(torch.nn.Module):
    """A wrapper that runs a small network beside the model that it holds."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.advice = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

    def forward(self, input_ids):
        hidden = self.model.model(input_ids).last_hidden_state
        return self.model.lm_head(hidden) * self.advice(hidden)


@pytest.mark.parametrize("mode", ["analytic", "exact", "verify"])
def test_layers_beside_a_wrapped_model_count_with_it(mode):
    wrapper = Adviser(hand_model("llama"))
    ids = torch.arange(128).reshape(2, 64)
    with torch.no_grad(), FlopCounter(generator=wrapper, mode=mode) as counter:
        wrapper(ids)
    whole = forward_flops(SPEC, 64, batch=2).full + 128 * 2 * (64 * 16 + 16)
    assert counter.flops_of(convention="full") == whole
    assert not counter.uncounted
    assert closed_form(wrapper) == closed_form(wrapper.model)


def test_a_search_with_shared_prefixes_is_counted_exactly():
    def sample(generator, seed):
        roots = [root(prompt, seed) for prompt in ("Step 1: a b", "Step 222: a b c d", "x")]
        children = [node for group in grow_all(generator, roots, 4) for node in group]
        grow_all(generator, [node for node in children if not node.is_finished], 2)
        return sum(node.step.flops for tree in roots for node in tree.walk() if node.step is not None)

    counters = {}
    for mode in ("analytic", "exact", "verify"):
        generator = HFGenerator(tiny_model(), byte_tokenizer(), max_step_tokens=8, max_new_tokens=20)
        sample(generator, 1)  # the self-check of the first call is no part of it
        with FlopCounter(generator, mode=mode) as counters[mode]:
            charged = sample(generator, 2)
        assert not counters[mode].uncounted
    assert counters["analytic"].flops_of(convention="full") == counters["exact"].flops_of(convention="full")
    # What ran is what is charged to the branches, but for the head at the end of each prompt's packed part.
    assert counters["analytic"].flops == pytest.approx(charged, rel=0.01)
