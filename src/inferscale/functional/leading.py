"""Expected credit of the answers that lead a vote, in float64, for thousands of votes.

The counts of the answers in `votes` samples are independent numbers given their sum: Poisson numbers where the samples
are drawn one by one (multinomial), binomial ones where they are a uniform subset of a pool. Then, with t the count of
the leaders, B_a the generating polynomial of count a below t, and L_a that of a count of t,

    E[credit] P(sum = votes) = [x^votes] sum_t sum_a credit_a L_a(x) int_0^1 prod_{b != a} (B_b(x) + y L_b(x)) dy,

since s others that are level leave a share of ``1 / (s + 1) = int_0^1 y^s dy``. The integral is a Gauss-Legendre sum,
and the coefficient of x^votes a mean over roots of unity, as many as the sum of all counts spreads over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Complexes: TypeAlias = NDArray[np.complex128]

_TINY = 1e-20  # probabilities that are left out
_LOG_TINY = math.log(_TINY)
_TOPS = 64  # counts t that are looked at together


class Law(Protocol):
    """A family of counts, closed under addition: the sum of counts of sizes m and n is one of size m + n."""

    def probabilities(self, size: float) -> Floats:
        """Probabilities of 0, 1, 2, ... up to what is beyond all doubt."""

    def transform(self, size: float, z: Complexes) -> Complexes:
        """Generating function ``E[z^count]``."""


@dataclass(frozen=True)
class Poisson:
    """Counts of samples that are drawn one by one; a size is the expected count."""

    def probabilities(self, size: float) -> Floats:
        """Probabilities of 0 up to more than 12 standard deviations above the mean."""
        steps = np.arange(1, int(size + 12 * math.sqrt(size)) + 40)
        return _chain(size / steps, int(size)) if size else np.ones(1)

    def transform(self, size: float, z: Complexes) -> Complexes:
        """``exp(size (z - 1))``."""
        return np.exp(size * (z - 1))


@dataclass(frozen=True)
class Binomial:
    """Counts of a pool of which each sample is kept with probability `p`, 0 < p < 1; a size is a number of samples."""

    p: float

    def probabilities(self, size: float) -> Floats:
        """Probabilities of 0..size."""
        steps = np.arange(1, int(size) + 1)
        return _chain((size + 1 - steps) / steps * (self.p / (1 - self.p)), int((size + 1) * self.p))

    def transform(self, size: float, z: Complexes) -> Complexes:
        """``(1 + p (z - 1))^size``."""
        power: Complexes = np.broadcast_to(_power(1 + self.p * (z - 1), int(size)), z.shape)
        return power


def leader_credit(
    law: Law, sizes: Sequence[float], repeats: Sequence[int], credit_of: Sequence[float], rest: float, votes: int
) -> float:
    """Expected credit of the leader among `votes` votes; answers tied for first share it. Right to about 1e-12.

    Args:
        law: Of the counts.
        sizes: Of each kind of answer.
        repeats: Answers of each kind, which are as likely as one another.
        credit_of: Credit of an answer of each kind, 0 to 1, on average.
        rest: Size of the votes that are for none of them.
        votes: Votes in all.
    """
    tables = [law.probabilities(size) for size in sizes]
    cumulated = [np.cumsum(table) for table in tables]
    whole = law.probabilities(rest + sum(size * repeat for size, repeat in zip(sizes, repeats, strict=True)))
    held = np.flatnonzero(whole > _TINY)
    # The coefficients at votes +- period, +- 2 period, ... are added to the one that is wanted: they are below _TINY.
    period = int(max(held[-1] - votes, votes - held[0]) + 1) | 1
    half = np.arange(period // 2 + 1)  # the other roots are their conjugates

    def powers(exponents: NDArray[np.int64]) -> Complexes:
        """Powers of the roots of unity, `[exponents, roots]`."""
        return np.exp(2j * np.pi / period * (np.multiply.outer(exponents, half) % period))

    z, weight = powers(np.array([1]))[0], np.where(half == 0, 1.0, 2.0) / period
    extract = weight * powers(np.array([-votes]))[0]
    last = min(
        votes, max((len(table) - 1 for table, credit in zip(tables, credit_of, strict=True) if credit), default=0)
    )
    alive = list(range(len(sizes)))
    below = [table[0] * np.ones_like(z) for table in tables]  # generating functions of counts below t
    total = 0.0
    for start in range(1, last + 1, _TOPS):
        tops = np.arange(start, min(start + _TOPS, last + 1))
        # Answers that cannot reach t are votes for nobody.
        for kind in [kind for kind in alive if tables[kind][start:].sum() <= _TINY]:
            alive.remove(kind)
            rest += sizes[kind] * repeats[kind]
        if not any(credit_of[kind] for kind in alive):
            break
        chances = {kind: _padded(tables[kind], tops) for kind in alive}
        if max(float(chance.max()) for chance in chances.values()) <= _TINY:
            continue
        roots = powers(tops)
        parts: list[tuple[Any, Any, int, float]] = []
        for kind in alive:
            level = chances[kind][:, None] * roots  # [tops, roots]
            under = below[kind] + np.cumsum(np.concatenate([0 * z[None], level]), axis=0)
            below[kind] = under[-1]
            parts.append((under[:-1], level, repeats[kind], credit_of[kind] * repeats[kind]))
        # Nobody with credit has such a count, or somebody is sure to have a greater one.
        up_to = {kind: cumulated[kind][np.minimum(tops, len(tables[kind]) - 1)] for kind in alive}
        log_led = sum(repeats[kind] * math.log(max(up_to[kind][-1], 1e-300)) for kind in alive)
        if all(chances[kind].max() <= _TINY for kind in alive if credit_of[kind]) or log_led < _LOG_TINY:
            continue
        first = law.transform(rest, z) * extract
        most = min(sum(repeats[kind] for kind in alive), votes // start) - 1  # others that may be level
        mean = sum(repeats[kind] * float((chances[kind] / np.maximum(up_to[kind], 1e-300)).max()) for kind in alive)
        for y, share in zip(*_nodes(_num_nodes(most, mean)), strict=True):
            ways, credit = first, np.zeros((1, 1))
            for under, level, repeat, gain in parts:
                factor = under + y * level
                others = _power(factor, repeat - 1)
                credit = (credit * factor + gain * ways * level) * others
                ways = ways * factor * others
            total += float(share) * float(credit.real.sum())
    return min(max(total / float(whole[votes]), 0.0), 1.0)


def _chain(ratios: Floats, mode: int) -> Floats:
    """Probabilities of 0..len(ratios), of which each is the one before times its ratio; summed up from the mode."""
    down, up = np.cumprod(1 / ratios[:mode][::-1])[::-1], np.cumprod(ratios[mode:])
    chances = np.concatenate([down, np.ones(1), up])
    return np.asarray(chances / chances.sum())


def _padded(table: Floats, counts: NDArray[np.int64]) -> Floats:
    """Probabilities of `counts`, of which those behind the table are 0."""
    return np.where(counts < len(table), table[np.minimum(counts, len(table) - 1)], 0.0)


def _power(x: Complexes, exponent: int) -> Any:
    """``x**exponent`` by squaring, which is quicker and nearer than by logarithms."""
    product: Any = 1.0
    while exponent:
        if exponent % 2:
            product = product * x
        exponent //= 2
        if exponent:
            x = x * x
    return product


def _num_nodes(most: int, mean: float) -> int:
    """Nodes that integrate the share of the credit where `most` answers, and on average at most `mean`, are level.

    As many nodes as half the degree are exact. The terms of degree s weigh as much as s answers that are level are
    likely, at most as of a Poisson number of this mean; and where the mean is great, the product is smooth: about
    ``exp(-mean (1 - y))``, whose Chebyshev coefficients fall as ``exp(-k^2 / mean)``.
    """
    likely, smooth = (mean + 9 * math.sqrt(mean) + 8) / 2, 3.2 * math.sqrt(most + 1) + 8
    return math.ceil(min(most // 2 + 1, likely, smooth))


@lru_cache(maxsize=64)
def _nodes(count: int) -> tuple[Floats, Floats]:
    """Gauss-Legendre nodes and weights on 0..1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2
