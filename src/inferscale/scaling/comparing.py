"""Paired comparison of two methods on the same problems, and problems by difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .curves import CurvePoint


@dataclass(frozen=True)
class PairedDifference:
    """The first accuracy minus the second, over the same problems.

    Attributes:
        difference: Mean over problems.
        low: Lower end of the bootstrap interval.
        high: Upper end.
        standard_error: Of the difference, over problems.
        only_first: Problems that the first has right (more than half, of expectations) and the second has not.
        only_second: The other way round.
        both: Problems that both have right.
        neither: Problems that neither has right.
        p_value: McNemar's exact two-sided test of `only_first` against `only_second`.

    Example:
        >>> import numpy as np
        >>> from inferscale.scaling import paired_difference
        >>> found = paired_difference([1, 1, 1, 1, 0, 1], [1, 0, 0, 1, 0, 1], np.random.default_rng(0))
        >>> print(f"{found.difference:+.2f} ({found.low:.2f} to {found.high:.2f})", found.is_significant)
        +0.33 (0.00 to 0.67) False
    """

    difference: float
    low: float
    high: float
    standard_error: float
    only_first: int
    only_second: int
    both: int
    neither: int
    p_value: float

    @property
    def is_significant(self) -> bool:
        """True if the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_difference(
    first: CurvePoint | Sequence[float],
    second: CurvePoint | Sequence[float],
    rng: np.random.Generator,
    resamples: int = 10_000,
    confidence_level: float = 0.95,
) -> PairedDifference:
    """Difference of accuracy between `first` and `second`, with a percentile bootstrap over problems.

    Args:
        first: A point, or the correctness (0 to 1) of each problem.
        second: The same for the other method, problems in the same order.
        rng: Draws the bootstrap samples.
        resamples: How many.
        confidence_level: Of the interval.

    Raises:
        ValueError: If there are fewer than two problems, not as many in both, a number is not finite, or
            `resamples` or `confidence_level` is out of range.

    Example:
        >>> import numpy as np
        >>> from inferscale.scaling import paired_difference
        >>> rebase = [1, 1, 1, 1, 0, 1, 1, 1]  # correctness of eight problems
        >>> votes = [1, 0, 0, 1, 0, 1, 0, 1]
        >>> found = paired_difference(rebase, votes, np.random.default_rng(0))
        >>> found.difference, found.only_first, found.only_second, found.p_value
        (0.375, 3, 0, 0.25)
    """
    if resamples < 1 or not 0 < confidence_level < 1:
        raise ValueError(
            f"resamples={resamples}, confidence_level={confidence_level}: at least one, and a number between 0 and 1"
        )
    a, b = _values(first), _values(second)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"a paired comparison needs the same problems in both, at least two; got {len(a)} and {len(b)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a paired comparison needs the correctness of every problem; one is NaN or infinite")
    gap = a - b
    means = [gap[rng.integers(len(gap), size=(rows, len(gap)))].mean(axis=1) for rows in _pieces(resamples)]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence_level) / 2, (1 + confidence_level) / 2])
    right_a, right_b = a > 0.5, b > 0.5
    only_first, only_second = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return PairedDifference(
        float(gap.mean()), float(low), float(high), float(gap.std(ddof=1) / len(gap) ** 0.5), only_first, only_second,
        int((right_a & right_b).sum()), int((~right_a & ~right_b).sum()), mcnemar_p_value(only_first, only_second),
    )  # fmt: skip


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: are the discordant problems evenly split? 1 if there are none.

    Args:
        only_first: Problems that the first method alone has right.
        only_second: Problems that the second alone has right.

    Example:
        >>> from inferscale.scaling import mcnemar_p_value
        >>> round(mcnemar_p_value(12, 3), 3)  # 12 problems that only the first method solves, 3 only the second
        0.035
    """
    if only_first + only_second == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second).pvalue)


def _pieces(total: int, most: int = 500) -> list[int]:
    """`total` as a sum of numbers up to `most`: the memory of a bootstrap stays small."""
    return [most] * (total // most) + ([total % most] if total % most else [])


def _values(method: CurvePoint | Sequence[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    given = method.per_problem if isinstance(method, CurvePoint) else method
    return np.asarray(given, dtype=np.float64)


T = TypeVar("T")


def split_by(items: Sequence[T], groups: Sequence[str]) -> dict[str, list[T]]:
    """The items of each group, groups in order of name.

    Args:
        items: One for each problem: results, evidence, anything.
        groups: The group of each problem, for example ``"level 3"``.

    Raises:
        ValueError: If there are not as many groups as items.

    Example:
        >>> from inferscale.scaling import split_by
        >>> split_by([0.9, 0.2, 0.8, 0.4], ["easy", "hard", "easy", "hard"])
        {'easy': [0.9, 0.8], 'hard': [0.2, 0.4]}
    """
    if len(items) != len(groups):
        raise ValueError(f"one group for each item: got {len(items)} items and {len(groups)} groups")
    return {
        name: [item for item, group in zip(items, groups, strict=True) if group == name] for name in sorted(set(groups))
    }


def difficulty_bins(pass_rates: Sequence[float], bins: int = 5) -> list[int]:
    """The bin of each problem, 1 (easiest) to `bins`, equally many in each: by rank of the model's own pass rate.

    Quantiles of pass@1 are the difficulty of Snell et al. 2024 (arXiv:2408.03314). Problems with equal pass rates
    keep their order. Rates from gold answers make it an oracle; rates from a reward model do not. Rates and the
    accuracies shown by bin must come from different samples: a bin of lucky problems is easy by selection.

    Args:
        pass_rates: Share of each problem's samples that are right, or what stands for it; higher is easier.
        bins: Number of bins.

    Raises:
        ValueError: If there are fewer problems than bins, or a rate is NaN.

    Example:
        >>> from inferscale.scaling import difficulty_bins
        >>> difficulty_bins([0.9, 0.1, 0.6, 0.0, 0.4, 1.0], bins=3)  # pass rates; bin 1 is the easiest
        [1, 3, 2, 3, 2, 1]
    """
    if not 1 <= bins <= len(pass_rates):
        raise ValueError(f"bins={bins}: give at least 1 and at most one for each of the {len(pass_rates)} problems")
    rates = np.asarray(pass_rates, dtype=np.float64)
    if np.isnan(rates).any():
        raise ValueError("a pass rate is NaN: leave out problems that were not sampled")
    order = np.argsort(-rates, kind="stable")
    result = np.empty(len(order), dtype=np.int64)
    result[order] = np.arange(len(order)) * bins // len(order) + 1
    return [int(value) for value in result]
