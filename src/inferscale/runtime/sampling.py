"""Drawing tokens: one counter-based uniform number per token, and the inverse CDF in the order of token ids.

A branch owns a 64-bit key. Its `t`-th token is drawn with the uniform number ``uniforms(key, t)``, which is a hash of
the two, so that what a branch samples depends on its key and its logits alone: not on the batch, not on a global
random state, not on the order of the calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Confidence: TypeAlias = Literal["logprob", "self_certainty", "deepconf"]

_BLOCK = 64  # ids per block of the two-level inverse CDF
_DIGITS = 2048  # values of the first digit, of 11 bits, of a float32 without its sign bit
_DIGIT_AT = (20, 10, 0)  # where that digit and the two after it, of 10 bits, begin
_DEEPCONF_TOP = 20  # candidates in a DeepConf token confidence


def _signed(number: int) -> int:
    """A 64-bit unsigned integer as the signed one of the same bits."""
    return number - 2**64 if number >= 2**63 else number


_GOLDEN = _signed(0x9E3779B97F4A7C15)


def uniforms(keys: Sequence[int] | NDArray[np.uint64], positions: int | NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in the open interval (0, 1), one for each key and position (broadcast).

    The value is the SplitMix64 output number `position` of the stream whose state is the mixed key (Steele, Lea and
    Flood 2014, "Fast splittable pseudorandom number generators"), cut to its upper 53 bits.

    Args:
        keys: 64-bit unsigned integers.
        positions: Counter in each key's stream, 0 and up.
    """
    on_host: NDArray[np.float64] = uniforms_on_device(as_bits(keys), as_bits(positions)).numpy()
    return on_host


def as_bits(numbers: int | Sequence[int] | NDArray[np.uint64]) -> Tensor:
    """64-bit unsigned integers as the int64 tensor of the same bits."""
    return torch.from_numpy(np.array(numbers, dtype=np.uint64).view(np.int64))


def uniforms_on_device(keys: Tensor, positions: Tensor) -> Tensor:
    """What `uniforms` gives, computed where the tensors are; see `as_bits`."""
    # int64 arithmetic is modulo 2**64, as that of unsigned numbers is; a shift to the right repeats the sign, however.
    mixed = _mix(_mix(keys ^ _GOLDEN) + _GOLDEN * (positions + 1))
    numbers: Tensor = (_shifted(mixed, 11).double() + 0.5) * 2.0**-53  # the half keeps 0 and 1 out
    return numbers


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    mixed: Tensor = z ^ _shifted(z, 31)
    return mixed


def _shifted(z: Tensor, places: int) -> Tensor:
    shifted: Tensor = (z >> places) & (2 ** (64 - places) - 1)
    return shifted


@dataclass(frozen=True, slots=True)
class Draws:
    """Tokens drawn for a batch of rows.

    Attributes:
        tokens: Ids, int64 `[batch]`.
        logprobs: Log-probability (nats) under the distribution drawn from, after temperature and filters; under the
            plain model distribution for greedy rows; `[batch]`.
        confidences: The token confidence that the sampler was asked for, under the plain model distribution; `[batch]`.
        model_logprobs: Log-probability (nats) under the plain model distribution, `[batch]`; ``None`` if the sampler
            does not tell.

    Example:
        >>> import torch
        >>> from inferscale.generators import Sampler
        >>> draws = Sampler().draw(torch.tensor([[0.0, 2.0], [5.0, 0.0]]), torch.tensor([0.5, 0.5]))
        >>> draws.tokens, draws.logprobs
        (tensor([1, 0]), tensor([-0.1269, -0.0067]))
    """

    tokens: Tensor
    logprobs: Tensor
    confidences: Tensor
    model_logprobs: Tensor | None = None

    def columns(self) -> Tensor:
        """Everything as float64, `[4, batch]`; NaN is a log-probability that is not told."""
        known = torch.full_like(self.logprobs, float("nan")) if self.model_logprobs is None else self.model_logprobs
        return torch.stack([c.double() for c in (self.tokens, self.logprobs, self.confidences, known)])


class TokenSampler(ABC):
    """Draws the next token of every row: what `HFGenerator` takes as ``sampler=``.

    Write ``draw`` for a sampler of your own. A row's token must come from its own logits and its own number alone: then
    a branch's tokens depend neither on the batch nor on the order of the calls.

    Example:
        >>> from dataclasses import dataclass
        >>> import inferscale as isc
        >>> from inferscale.generators import Draws, TokenSampler, inverse_cdf
        >>> @dataclass(frozen=True)
        ... class MinP(TokenSampler):
        ...     min_p: float = 0.1
        ...     def draw(self, logits, numbers):
        ...         p = logits.softmax(dim=-1)
        ...         p = p * (p >= self.min_p * p.amax(dim=-1, keepdim=True))
        ...         tokens, shares = inverse_cdf(p, numbers)
        ...         return Draws(tokens, shares.log(), shares.log())
        >>> generator = isc.HFGenerator(*isc.zoo.load("policy-xs"), sampler=MinP(), max_new_tokens=4)
        >>> len(isc.solve(isc.zoo.problems("dev")[0], isc.RepeatedSampling(4), generator).trajectories)
        4
    """

    @abstractmethod
    def draw(self, logits: Tensor, numbers: Tensor) -> Draws:
        """One token for each row.

        Args:
            logits: `[rows, vocabulary]`, float32; not to be changed in place.
            numbers: Uniform numbers in (0, 1), float64 `[rows]`, see `inverse_cdf`.
        """

    @property
    def has_temperature(self) -> bool:
        """True if `at` is written, so that requests may give a temperature."""
        return type(self).at is not TokenSampler.at

    def at(self, temperature: float) -> TokenSampler:
        """The sampler at another temperature, for requests that give one.

        Raises:
            ValueError: If it has none; write this method for one of your own.
        """
        raise ValueError(
            f"a request gives temperature={temperature}, and {self!r} has no temperature: write "
            f"{type(self).__name__}.at(temperature), which returns a sampler"
        )

    def draw_likeliest(self, logits: Tensor) -> Draws:
        """The likeliest token of each row, for greedy requests; logits `[rows, vocabulary]`, float32."""
        tokens = logits.argmax(dim=-1)
        logprobs = _pick(logits, tokens) - logits.logsumexp(dim=-1)
        return Draws(tokens, logprobs, logprobs, logprobs)

    def confidences(self, logits: Tensor, tokens: Tensor) -> Tensor | None:
        """Confidences of drawn tokens `[rows]` under the model's own `logits`, where processors have changed them.

        ``None`` leaves those that `draw` gave, under the processed logits.
        """
        return None

    def draw_mixed(
        self,
        logits: Tensor,
        numbers: Tensor,
        greedy: Tensor | None = None,
        processed: Tensor | None = None,
        others: Sequence[tuple[float, Tensor]] = (),
    ) -> Draws:
        """One token for each row, the likeliest where `greedy` says so.

        Args:
            logits: `[rows, vocabulary]`, any floating dtype.
            numbers: Uniform numbers in (0, 1), float64 `[rows]`.
            greedy: Rows that take the likeliest token, bool `[rows]`; ``None`` means none.
            processed: What logits processors have made of `logits`; ``None`` if there are none. Tokens are drawn from
                these; confidences stay those of the model where the sampler knows them.
            others: Temperatures other than the sampler's own, each with the rows, int64, that are drawn at it.
        """
        logits = logits.float()
        scores = logits if processed is None else processed
        drawn = self.draw(scores, numbers)
        for temperature, rows in others:
            drawn = _merged(drawn, self.at(temperature).draw(scores[rows], numbers[rows]), partial(_put_rows, rows))
        if greedy is not None:
            drawn = _merged(drawn, self.draw_likeliest(scores), lambda own, best: torch.where(greedy, best, own))
        if processed is None:
            return drawn
        plain = self.confidences(logits, drawn.tokens)
        own = _pick(logits, drawn.tokens) - logits.logsumexp(dim=-1)
        return replace(drawn, confidences=drawn.confidences if plain is None else plain, model_logprobs=own)


def _merged(drawn: Draws, others: Draws, put: Callable[[Tensor, Tensor], Tensor]) -> Draws:
    """Two kinds of draws as one, each column put together by `put`."""
    known = None
    if drawn.model_logprobs is not None and others.model_logprobs is not None:
        known = put(drawn.model_logprobs, others.model_logprobs)
    return Draws(
        put(drawn.tokens, others.tokens),
        put(drawn.logprobs, others.logprobs),
        put(drawn.confidences, others.confidences),
        known,
    )


def _put_rows(rows: Tensor, whole: Tensor, part: Tensor) -> Tensor:
    return whole.index_copy(0, rows, part.to(whole.dtype))


@dataclass(frozen=True, slots=True)
class Sampler(TokenSampler):
    """Temperature and filters, in the order temperature, top-k, top-p, min-p (that of transformers).

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Keep the `top_k` likeliest tokens (ties at the edge are all kept); 0 keeps all.
        top_p: Keep the smallest set of likeliest tokens whose mass reaches `top_p` (ties at the edge are all kept).
        confidence: ``"logprob"``: the token's log-probability. ``"self_certainty"``: minus the mean over the
            vocabulary of ``log(V p)`` (arXiv 2502.18581). ``"deepconf"``: minus the mean log-probability of the 20
            likeliest tokens (facebookresearch/deepconf). All under the plain model distribution.
        min_p: Keep the tokens that are at least `min_p` times as likely as the likeliest one (arXiv 2407.01082); 0
            keeps all.

    Raises:
        ValueError: If an option defines no distribution, or `confidence` is unknown.

    Example:
        >>> import torch
        >>> import inferscale as isc
        >>> from inferscale.generators import Sampler
        >>> sampler = Sampler(temperature=0.7, top_p=0.9)
        >>> logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]])  # of one row, over four tokens
        >>> sampler.draw(logits, torch.tensor([0.9])).tokens  # 0.9 is the row's random number
        tensor([1])
        >>> generator = isc.HFGenerator(*isc.zoo.load("policy-xs"), sampler=sampler)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    confidence: Confidence = "logprob"
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Refuses settings that define no distribution."""
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: give a finite number, 0 (greedy) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p}: give a number above 0 and at most 1 (1 keeps every token)")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: give 0 (keep every token) or a positive number")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p={self.min_p}: give a number from 0 (keep every token) to 1")
        if self.confidence not in ("logprob", "self_certainty", "deepconf"):
            raise ValueError(f'confidence={self.confidence!r}: choose "logprob", "self_certainty" or "deepconf"')

    def at(self, temperature: float) -> Sampler:
        """The same filters at another temperature."""
        return replace(self, temperature=temperature)

    def draw(self, logits: Tensor, numbers: Tensor) -> Draws:
        """One token for each row; `logits` may have any floating dtype, and are computed on in float32."""
        raw = logits.float()
        if self.temperature == 0.0:
            return self.draw_likeliest(raw)
        # Softmax weights exp((x - peak) / T), not normalised; those of T = 1 give the log-sum-exp as well, so that the
        # logits are read as often at every temperature.
        peak = raw.amax(dim=-1, keepdim=True)
        weights = raw - peak
        if self.temperature == 1.0:
            total = weights.exp_().sum(dim=-1)
        else:
            total = weights.exp().sum(dim=-1)
            weights.div_(self.temperature).exp_()
        log_total = peak[:, 0] + total.log()
        if self.top_k or self.top_p < 1.0:
            weights *= weights.clone().ge_(filter_threshold(weights, self.top_k, self.top_p)[:, None])
        if self.min_p:
            weights *= weights.clone().ge_(self.min_p)  # the likeliest has the weight 1
        tokens, shares = inverse_cdf(weights, numbers)
        own = _pick(raw, tokens) - log_total
        return Draws(tokens, shares.log().to(raw.dtype), self._confidences(raw, log_total, own), own)

    def draw_likeliest(self, logits: Tensor) -> Draws:
        """The likeliest token of each row, with its log-probability under the plain model distribution."""
        tokens, log_total = logits.argmax(dim=-1), logits.logsumexp(dim=-1)
        own = _pick(logits, tokens) - log_total
        return Draws(tokens, own, self._confidences(logits, log_total, own), own)

    def confidences(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Confidences of drawn tokens `[rows]`, of the kind that is asked for, under the model's own `logits`."""
        log_total = logits.logsumexp(dim=-1)
        return self._confidences(logits, log_total, _pick(logits, tokens) - log_total)

    def _confidences(self, raw: Tensor, log_total: Tensor, own: Tensor) -> Tensor:
        """Token confidences `[rows]` from the plain logits `raw`, their log-sum-exp and the log-probabilities `own`."""
        if self.confidence == "logprob":
            return own
        if self.confidence == "self_certainty":
            return log_total - raw.mean(dim=-1) - float(np.log(raw.shape[-1]))
        return log_total - raw.topk(min(_DEEPCONF_TOP, raw.shape[-1]), dim=-1).values.mean(dim=-1)


def choose_sampler(
    sampler: TokenSampler | None,
    temperature: float,
    top_p: float,
    top_k: int,
    confidence: Confidence,
    min_p: float = 0.0,
) -> TokenSampler:
    """The sampler that was given, or the one that its shortcuts say.

    Raises:
        ValueError: If both are given.
        TypeError: If `sampler` is none.
    """
    shortcut = Sampler(temperature, top_k, top_p, confidence, min_p)
    if sampler is None:
        return shortcut
    if not isinstance(sampler, TokenSampler):
        raise TypeError(f"sampler={sampler!r}: give a Sampler, or an object of a class that derives from TokenSampler")
    if shortcut != Sampler():
        raise ValueError(
            f"sampler={sampler!r} and {shortcut!r} are given: put temperature and filters into the sampler"
        )
    return sampler


def inverse_cdf(weights: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the first id whose cumulated weight exceeds `number` times the total, and that id's share.

    Two levels (sums of blocks of 64 ids, then one block) cost one pass over the vocabulary instead of a cumulative
    sum; sums are cumulated in float64. An id of weight 0 is never drawn.

    Args:
        weights: Unnormalised probabilities, float32 `[batch, vocabulary]`, each row with a positive sum.
        numbers: Uniform numbers in (0, 1), float64 `[batch]`.

    Returns:
        Ids, int64 `[batch]`, and their probabilities, float64 `[batch]`.

    Example:
        >>> import torch
        >>> from inferscale.generators import inverse_cdf
        >>> weights = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 5.0]])  # [rows, vocabulary], not normalised
        >>> inverse_cdf(weights, torch.tensor([0.3, 0.9]))
        (tensor([1, 2]), tensor([0.5000, 1.0000], dtype=torch.float64))
    """
    batch, size = weights.shape
    padded = torch.nn.functional.pad(weights, (0, -size % _BLOCK)) if size % _BLOCK else weights
    blocks = padded.view(batch, -1, _BLOCK)
    # First level: the block in which u * total falls. `right=True` finds the first sum that exceeds the target, so that
    # a block (below: an id) of weight 0, whose sum equals the one before it, is never taken.
    cumulated = blocks.sum(dim=-1).double().cumsum(dim=-1)  # [batch, blocks]
    target = numbers[:, None] * cumulated[:, -1:]
    index = torch.searchsorted(cumulated, target, right=True).clamp_(max=blocks.shape[1] - 1)
    before = torch.where(index > 0, cumulated.gather(1, (index - 1).clamp_(min=0)), 0.0)
    # Second level: the id in that block. Block sums are rounded to float32, so that what is left of the target may
    # reach the block's float64 sum; held just below, it finds the last id of positive weight, and not the one after.
    inside = blocks[torch.arange(batch, device=weights.device), index[:, 0]].double().cumsum(dim=-1)  # [batch, _BLOCK]
    end = inside[:, -1:]
    rest = torch.minimum(target - before, torch.nextafter(end, torch.zeros_like(end)))
    tokens = (index * _BLOCK + torch.searchsorted(inside, rest, right=True))[:, 0].clamp_(max=size - 1)  # for NaNs
    return tokens, _pick(padded, tokens).double() / cumulated[:, -1]


def filter_threshold(weights: Tensor, top_k: int, top_p: float) -> Tensor:
    """The least weight that the filters keep, for each row `[batch]`.

    Args:
        weights: Unnormalised probabilities, float32 `[batch, vocabulary]`.
        top_k: Candidates kept; 0 keeps all.
        top_p: Mass of the candidates that is kept; the likeliest token always is.
    """
    if not top_k:
        return _nucleus_edge(weights, top_p)
    best = weights.topk(min(top_k, weights.shape[-1]), dim=-1).values  # [batch, candidates], descending
    if top_p == 1.0:
        return best[:, -1]
    # A token is kept while the likelier ones hold less than top_p of what top-k has kept: the one that reaches top_p is
    # the last, and where they hold exactly top_p none is added.
    share = best / best.sum(dim=-1, keepdim=True)
    kept = ((share.cumsum(dim=-1) - share) < top_p).sum(dim=-1).clamp_(min=1)
    return _pick(best, kept - 1)


def _nucleus_edge(weights: Tensor, top_p: float) -> Tensor:
    """The greatest weight `[batch]` of which the tokens of at least this weight hold `top_p` of their row's mass.

    The vocabulary is not sorted. Floats of 0 or more are ordered as their bits are, so the masses of all values of the
    first 11 bits say with which of them the weight begins: tokens with other ones are in the nucleus, or are not,
    without a further look. A CPU sorts those that are left, a few in a hundred. A GPU would have to wait for their
    number, and a compiled step cannot know it: there the others lose their mass, and the weight's next 10 bits are
    found in the same way, and the last 10. Masses are added in float64.
    """
    weights = weights.detach().contiguous()
    if weights.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.stack([_row_edge(row, top_p) for row in weights]) if len(weights) else weights.new_zeros(0)
    return _edge_by_digits(weights, top_p)


def _row_edge(row: Tensor, top_p: float) -> Tensor:
    """`_nucleus_edge` of one row on a CPU."""
    candidates, passed, total = row.numpy(), 0.0, 0.0  # mass of the greater digits, and of all
    if len(row) > _DIGITS:  # a shorter one is sorted sooner
        digits = row.view(torch.int32) >> _DIGIT_AT[0]
        masses = torch.zeros(_DIGITS, dtype=torch.float64).scatter_add_(0, digits.long(), row.double())
        reached = masses.numpy()[::-1].cumsum()  # by all tokens from the greatest digit down
        total = float(reached[-1])
        greater = min(int(reached.searchsorted(top_p * total)), _DIGITS - 1)  # digits above the edge's
        candidates = candidates[np.flatnonzero(digits.numpy() == _DIGITS - 1 - greater)]
        passed = float(reached[greater - 1]) if greater else 0.0
    likeliest = np.sort(candidates)[::-1]
    held = likeliest.astype(np.float64).cumsum()
    before = int(held.searchsorted(top_p * (total or float(held[-1])) - passed)) if len(held) else 0
    # Where rounding leaves the last sum below what is wanted of it, all are kept.
    return row.new_tensor(likeliest[min(before, len(likeliest) - 1)] if len(likeliest) else 0.0)


def _edge_by_digits(weights: Tensor, top_p: float) -> Tensor:
    """`_nucleus_edge` without a look at what is on the device."""
    batch, first = len(weights), _DIGITS * torch.arange(len(weights), device=weights.device)[:, None]
    bits, mass = weights.view(torch.int32), weights.double()
    edge, wanted = bits.new_zeros(batch, 1), top_p * mass.sum(dim=-1, keepdim=True)
    for shift, values in zip(_DIGIT_AT, (_DIGITS, 1024, 1024), strict=True):
        digits = (bits >> shift) & (values - 1)
        held = mass.new_zeros(batch * _DIGITS).scatter_add_(0, (digits + first).view(-1), mass.view(-1))
        reached = held.view(batch, _DIGITS)[:, :values].flip(-1).cumsum(dim=-1)
        greater = (reached < wanted).sum(dim=-1, keepdim=True).clamp_(max=values - 1)
        edge |= ((values - 1 - greater) << shift).int()
        wanted = wanted - torch.where(greater > 0, reached.gather(1, (greater - 1).clamp_(min=0)), 0.0)
        mass = mass * (bits >> shift == edge >> shift)
    return edge.view(torch.float32)[:, 0]


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """``values[row, index[row]]`` for each row."""
    return values.gather(1, index[:, None])[:, 0]
