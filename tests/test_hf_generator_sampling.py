"""The sampler against brute force, transformers' warpers and statistics."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TopKLogitsWarper, TopPLogitsWarper

from inferscale.flow import GenerateRequest
from inferscale.generators import Draws, HFGenerator, Sampler, TokenSampler, inverse_cdf
from inferscale.quiet_star import QuietSTaRGenerator
from inferscale.runtime import sampling
from inferscale.runtime.sampling import choose_sampler, filter_threshold, uniforms
from inferscale.tree import Node, Problem
from tests.quiet_star_tools import wrapped
from tests.tiny_models import byte_tokenizer, tiny_model

MASK = 2**64 - 1


def splitmix(key: int, position: int) -> float:
    """The same stream on Python integers, written from the definition."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    return ((mix((mix(key ^ golden) + golden * (position + 1)) & MASK) >> 11) + 0.5) / 2**53


@given(st.lists(st.integers(0, MASK), min_size=1, max_size=5), st.integers(0, 5000))
def test_uniforms_equal_the_definition(keys, position):
    assert uniforms(keys, position).tolist() == [splitmix(key, position) for key in keys]
    assert all(0.0 < u < 1.0 for u in uniforms(keys, position))


@pytest.mark.parametrize("axis", ["keys", "positions"])
def test_uniforms_are_uniform_and_neighbours_do_not_depend_on_each_other(axis):
    count, cells = 40_000, 20
    numbers = np.arange(count, dtype=np.uint64)
    u = uniforms(numbers, 3) if axis == "keys" else uniforms([12345], numbers)
    chi = ((np.bincount((u * cells).astype(int), minlength=cells) - count / cells) ** 2 / (count / cells)).sum()
    assert chi < 50  # 19 degrees of freedom: 1 in 10,000 is above 50
    pairs = (u[:-1] * cells).astype(int) * cells + (u[1:] * cells).astype(int)
    expected = (count - 1) / cells**2
    chi = ((np.bincount(pairs, minlength=cells**2) - expected) ** 2 / expected).sum()
    assert abs(chi - 399) < 4.5 * math.sqrt(2 * 399)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.025


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_inverse_cdf_equals_a_loop(size, seed):
    rng = np.random.default_rng(seed)
    weights = rng.random((4, size)).astype(np.float32) * (rng.random((4, size)) < 0.6)
    weights[:, rng.integers(size)] = 0.5
    numbers = rng.random(4)
    tokens, shares = inverse_cdf(torch.from_numpy(weights), torch.from_numpy(numbers))
    for row, token in enumerate(tokens.tolist()):
        w = weights[row].astype(np.float64)
        cdf = np.cumsum(w) / w.sum()
        assert w[token] > 0
        assert cdf[token] > numbers[row] - 1e-6
        assert token == 0 or cdf[token - 1] <= numbers[row] + 1e-6
        assert shares[row].item() == pytest.approx(w[token] / w.sum(), rel=1e-5)


@pytest.mark.parametrize("number", [2.0**-54, 1 - 2.0**-53])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_the_ends_of_the_unit_interval_stay_inside_the_support(number, size):
    weights = torch.zeros(1, size)
    inside = sorted({size // 3, size // 2})
    weights[0, inside] = torch.tensor([0.1, 1e-30])[: len(inside)]
    tokens, _ = inverse_cdf(weights, torch.tensor([number], dtype=torch.float64))
    assert tokens.item() in inside


def warped(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    ids = torch.zeros(len(logits), 1, dtype=torch.long)
    logits = logits / temperature
    if top_k:
        logits = TopKLogitsWarper(top_k)(ids, logits)
    return TopPLogitsWarper(top_p)(ids, logits) if top_p < 1 else logits


FILTERS = [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.6), (0.8, 7, 0.5), (1.5, 300, 0.9), (1.0, 0, 0.999)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), FILTERS)
def test_draws_follow_the_distribution_of_transformers_warpers(temperature, top_k, top_p):
    logits = torch.randn(1, 700, generator=torch.Generator().manual_seed(1)) * 3
    log_p = warped(logits, temperature, top_k, top_p).log_softmax(-1)[0]
    count = 8_000
    numbers = torch.from_numpy(uniforms(np.arange(count, dtype=np.uint64), 0))
    draws = Sampler(temperature, top_k, top_p).draw(logits.expand(count, -1), numbers)
    torch.testing.assert_close(draws.logprobs, log_p[draws.tokens], atol=2e-4, rtol=1e-4)
    seen = torch.bincount(draws.tokens, minlength=700).double()
    expected = log_p.exp().double() * count
    likely = expected > 20
    assert (((seen - expected) ** 2 / expected)[likely].sum()) < likely.sum() + 5 * math.sqrt(2 * likely.sum())
    assert seen[expected == 0].sum() == 0
    torch.testing.assert_close(draws.confidences, logits.log_softmax(-1)[0][draws.tokens], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(draws.model_logprobs, draws.confidences)


def test_flat_distributions_take_the_exact_path_of_top_p():
    logits = torch.randn(3, 2000, generator=torch.Generator().manual_seed(2)) * 0.01
    kept = [(warped(row[None], 1.0, 0, 0.8) > -math.inf).sum().item() for row in logits]
    numbers = torch.from_numpy(uniforms(np.arange(3, dtype=np.uint64), 0))
    draws = Sampler(top_p=0.8).draw(logits, numbers)
    assert min(kept) > 256
    for logprob, count in zip(draws.logprobs.tolist(), kept, strict=True):
        assert logprob == pytest.approx(-math.log(count), abs=0.1)


def sorted_edge(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """The last weight of the nucleus, by sorting the whole vocabulary."""
    ordered = weights.double().sort(dim=-1, descending=True).values
    reached = ordered.cumsum(dim=-1)
    kept = (reached - ordered < top_p * reached[:, -1:]).sum(dim=-1, keepdim=True).clamp_(min=1)
    return ordered.gather(1, kept - 1)[:, 0].float()


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("size", [1, 50, 3_000, 20_000])
def test_the_nucleus_is_that_of_the_sorted_vocabulary_though_nothing_is_sorted(size, spread):
    logits = torch.randn(5, size, generator=torch.Generator().manual_seed(size)) * spread
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    numbers = torch.from_numpy(uniforms(np.arange(5, dtype=np.uint64), 1))
    for ties in (weights, (weights * 8).round() + 1):  # counts, which are many times the same
        for top_p in (0.1, 0.5, 0.9, 0.999, 1 - 1e-9):
            edge = sorted_edge(ties, top_p)
            assert torch.equal(filter_threshold(ties, 0, top_p), edge)
            assert torch.equal(sampling._edge_by_digits(ties, top_p), edge)  # what a GPU does
    tokens = Sampler(top_p=0.9).draw(logits, numbers).tokens
    kept = weights * (weights >= sorted_edge(weights, 0.9)[:, None])
    assert torch.equal(tokens, inverse_cdf(kept, numbers)[0])


@pytest.mark.parametrize("sampler", [Sampler(top_p=0.9), Sampler(0.7, top_p=0.9, min_p=0.01), Sampler(0.7, 20, 0.9)])
def test_a_draw_never_waits_for_the_device(sampler):
    """Tensors without contents have no answer to a look at them."""
    draws = sampler.draw(torch.empty(3, 5_000, device="meta"), torch.empty(3, dtype=torch.float64, device="meta"))
    assert draws.tokens.shape == draws.logprobs.shape == draws.confidences.shape == (3,)


def test_top_p_is_a_part_of_a_step_that_is_captured_whole():
    logits = torch.randn(3, 3_000, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)

    def draw(logits):
        return filter_threshold(logits.softmax(-1), 0, 0.9)

    assert torch.equal(torch.compile(draw, fullgraph=True, backend="eager")(logits), draw(logits))
    # However the logits lie in memory, and whether or not they have gradients.
    other = logits.T.contiguous().T.requires_grad_()
    assert torch.equal(Sampler(top_p=0.9).draw(other, numbers).tokens, Sampler(top_p=0.9).draw(logits, numbers).tokens)


class ReadsOf(TorchDispatchMode):
    """Counts the operations that go over all of a tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.tensor, self.reads = tensor, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        whole = any(isinstance(a, torch.Tensor) and a.data_ptr() == self.tensor.data_ptr() for a in args)
        self.reads += whole and function is not torch.ops.aten.gather.default
        return function(*args, **(kwargs or {}))


def test_logits_are_read_as_often_at_every_temperature():
    logits, numbers = torch.randn(2, 500), torch.tensor([0.2, 0.7], dtype=torch.float64)
    reads = []
    for temperature in (1.0, 0.7):
        with ReadsOf(logits) as counted:
            Sampler(temperature, top_p=0.9).draw(logits, numbers)
        reads.append(counted.reads)
    assert reads == [2, 2]  # the peak, and what is left without it


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.7, 20, 0.9), Sampler(top_p=0.5), Sampler(0.0)])
def test_a_row_alone_draws_what_it_draws_in_a_batch(sampler):
    logits = torch.randn(37, 501, generator=torch.Generator().manual_seed(3)) * 2
    numbers = torch.from_numpy(uniforms(np.arange(37, dtype=np.uint64), 9))
    batch = sampler.draw(logits, numbers)
    for row in range(37):
        alone = sampler.draw(logits[row : row + 1], numbers[row : row + 1])
        assert alone.tokens.item() == batch.tokens[row].item()
        assert alone.logprobs.item() == pytest.approx(batch.logprobs[row].item(), abs=1e-5)


def test_greedy_rows_take_the_likeliest_token_and_leave_the_others_alone():
    logits = torch.randn(6, 90, generator=torch.Generator().manual_seed(4))
    numbers = torch.full((6,), 0.999, dtype=torch.float64)
    plain = Sampler().draw(logits, numbers)
    mixed = Sampler().draw_mixed(logits, numbers, torch.tensor([True, False] * 3))
    assert mixed.tokens[::2].tolist() == logits[::2].argmax(-1).tolist()
    assert mixed.tokens[1::2].tolist() == plain.tokens[1::2].tolist()
    assert Sampler(0.0).draw(logits, numbers).tokens.tolist() == logits.argmax(-1).tolist()
    expected = logits.log_softmax(-1).amax(-1)
    torch.testing.assert_close(Sampler(0.0).draw(logits, numbers).logprobs, expected, atol=1e-5, rtol=1e-5)


def test_confidences_equal_their_definitions():
    logits = torch.randn(2, 100, generator=torch.Generator().manual_seed(5)) * 2
    numbers = torch.tensor([0.3, 0.6], dtype=torch.float64)
    log_p = logits.log_softmax(-1)
    certainty = Sampler(confidence="self_certainty").draw(logits, numbers).confidences
    torch.testing.assert_close(certainty, -(log_p + math.log(100)).mean(-1), atol=1e-4, rtol=1e-4)
    deep = Sampler(confidence="deepconf").draw(logits, numbers).confidences
    torch.testing.assert_close(deep, -log_p.sort(-1, descending=True).values[:, :20].mean(-1), atol=1e-4, rtol=1e-4)
    flat = Sampler(confidence="self_certainty").draw(torch.zeros(1, 50), numbers[:1]).confidences
    assert flat.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"top_k": -1}, "top_k=-1"),
        ({"confidence": "sure"}, "confidence='sure'"),
    ],
)
def test_settings_that_define_no_distribution_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Sampler(**options)


@dataclass(frozen=True)
class MinP(TokenSampler):
    """Ten lines of a user: keep what is at least `min_p` times as likely as the likeliest token."""

    min_p: float = 0.3

    def draw(self, logits, numbers):
        p = logits.softmax(dim=-1)
        p = p * (p >= self.min_p * p.amax(dim=-1, keepdim=True))
        tokens, shares = inverse_cdf(p, numbers)
        return Draws(tokens, shares.log(), shares.log())


def test_a_sampler_of_ones_own_keeps_its_promise_in_a_batch():
    logits = torch.randn(40, 200, generator=torch.Generator().manual_seed(6)) * 2
    numbers = torch.from_numpy(uniforms(np.arange(40, dtype=np.uint64), 1))
    greedy = torch.arange(40) % 2 == 0
    draws = MinP().draw_mixed(logits.bfloat16(), numbers, greedy)
    p = logits.bfloat16().float().softmax(-1)
    assert (p.gather(1, draws.tokens[:, None])[:, 0] >= 0.3 * p.amax(-1) - 1e-6).all()
    assert draws.tokens[greedy].tolist() == p[greedy].argmax(-1).tolist()
    torch.testing.assert_close(draws.logprobs[greedy].float(), p[greedy].amax(-1).log(), atol=1e-4, rtol=1e-4)
    assert draws.tokens[~greedy].tolist() != p[~greedy].argmax(-1).tolist()


def test_a_sampler_or_its_shortcuts():
    sampler = MinP()
    assert choose_sampler(sampler, 1.0, 1.0, 0, "logprob") is sampler
    assert choose_sampler(None, 0.5, 0.9, 3, "deepconf") == Sampler(0.5, 3, 0.9, "deepconf")
    with pytest.raises(ValueError, match=r"MinP\(min_p=0.3\) and Sampler\(temperature=0.5, .* are given"):
        choose_sampler(sampler, 0.5, 1.0, 0, "logprob")
    with pytest.raises(TypeError, match="derives from TokenSampler"):
        choose_sampler(lambda logits, numbers: logits, 1.0, 1.0, 0, "logprob")


@pytest.mark.parametrize("kind", ["plain", "thinking"])
def test_requests_at_temperatures_of_their_own_are_other_generators(kind):
    """Rows at several temperatures in one batch draw what generators made with them draw."""
    model, of_kind = (
        (tiny_model("llama"), HFGenerator) if kind == "plain" else (wrapped("llama", 2), QuietSTaRGenerator)
    )

    def made(temperature):
        return of_kind(model, byte_tokenizer(), max_new_tokens=6, temperature=temperature, eos_token_id=319)

    roots = [Node(Problem(text), key=place) for place, text in enumerate(("ab", "cde"))]
    own, temperatures = made(0.9), (None, 0.2, 1.7, 0.0)
    requests = [
        GenerateRequest(root, 2, "end", temperature=t, first=2 * place)
        for root in roots
        for place, t in enumerate(temperatures)
    ]
    mixed = own.generate(requests)
    for request, steps in zip(requests, mixed, strict=True):
        other = made(request.temperature or 0.9)
        expected = other.generate([replace(request, temperature=None, greedy=request.temperature == 0)])[0]
        assert [step.token_ids for step in steps] == [step.token_ids for step in expected]
        for name in ("logprob", "model_logprob"):
            known = [getattr(step, name) for step in expected]
            assert [getattr(step, name) for step in steps] == pytest.approx(known, abs=1e-4)
    assert len({step.token_ids for steps in mixed for step in steps}) > 6


def test_a_sampler_without_a_temperature_refuses_requests_that_give_one():
    @dataclass(frozen=True)
    class First(TokenSampler):
        def draw(self, logits, numbers):
            tokens, shares = inverse_cdf(logits.softmax(dim=-1), numbers)
            return Draws(tokens, shares.log(), shares.log())

    generator = HFGenerator(tiny_model("llama"), byte_tokenizer(), sampler=First(), max_new_tokens=2)
    with pytest.raises(ValueError, match=r"write First.at\(temperature\)"):
        generator.generate([GenerateRequest(Node(Problem("ab"), key=1), temperature=0.5)])
