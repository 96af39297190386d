"""Problems by difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def split_by(items: Sequence[T], groups: Sequence[str]) -> dict[str, list[T]]:
    """The items of each group, groups in order of name.

    Args:
        items: One for each problem: results, evidence, anything.
        groups: The group of each problem, for example ``"level 3"``.
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

    Raises:
        ValueError: If there are fewer problems than bins, or a rate is NaN.
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
