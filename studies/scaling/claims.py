"""What the study is asked: each question with its measured answer, a paired test and its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from inferscale.scaling import paired_difference

from .report import SIZES, Floats, Records, costs, grouped, mean_and_error, pick, sample_curves

WIDTHS = (4, 16, 64)
"""Of the searches that are spoken of; the tables have all."""


def claims(records: Records, reward: str, reduction: str, small: str, large: str) -> Iterable[str]:
    """The answers, as markdown list items."""
    trained = dict.fromkeys((r["policy"], r["reward"]) for r in records if r["reward"].startswith("prm"))
    for policy, judge in trained:
        yield from weighted_against_majority(records, policy, judge, reduction)
        yield from search_against_sampling(records, policy, judge, reduction)
    for judge in [judge for policy, judge in trained if policy == small]:
        yield from small_against_large(records, reward, reduction, small, large, judge)


def _sampling(records: Records, policy: str, reward: str) -> Records:
    return pick(records, policy=policy, reward=reward, strategy="RepeatedSampling", n=64)


def _curve(runs: Records, reduction: str, vote: str) -> dict[int, Floats]:
    """Each problem's expected correctness at each size, mean over seeds."""
    curves = [sample_curves(r, reduction) for r in runs]
    return {k: np.mean([c[vote][k] for c in curves], axis=0) for k in SIZES}


def _searches(records: Records, policy: str, reward: str) -> dict[int, Records]:
    found = pick(records, policy=policy, reward=reward, strategy="REBASE")
    chosen = [r for r in found if r["softmax_temperature"] == 0.1 and r["n"] in WIDTHS]
    return dict(sorted(grouped(chosen, lambda r: r["n"]).items()))


def _correct(runs: Records, vote: str) -> Floats:
    return np.asarray(np.mean([r["votes"][vote] for r in runs], axis=0))


def _difference(first: Floats, second: Floats) -> str:
    found = paired_difference(first.tolist(), second.tolist(), np.random.default_rng(0))
    # Values are means over seeds or subsets, not 0 or 1: a paired z-test, where McNemar's would have to round them.
    p_value = math.erfc(abs(found.difference) / found.standard_error / math.sqrt(2))
    shown = "< 0.0001" if p_value < 1e-4 else f"= {p_value:.4f}"
    interval = f"95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return f"{100 * found.difference:+.1f} points ({interval}; p {shown})"


def weighted_against_majority(records: Records, policy: str, reward: str, reduction: str) -> Iterable[str]:
    """Weighted against majority votes over 16 samples."""
    runs = _sampling(records, policy, reward)
    if runs:
        weighted, majority = _curve(runs, reduction, "weighted")[16], _curve(runs, reduction, "majority")[16]
        yield (
            f"* {policy} by {reward}, 16 samples: weighted vote {100 * weighted.mean():.1f} %, "
            f"majority {100 * majority.mean():.1f} %: "
            f"{_difference(weighted, majority)}."
        )


def search_against_sampling(records: Records, policy: str, reward: str, reduction: str) -> Iterable[str]:
    """REBASE against the weighted vote over 64 samples, and the FLOPs that sampling needs for the same accuracy."""
    runs = _sampling(records, policy, reward)
    for n, searches in _searches(records, policy, reward).items():
        if not runs:
            return
        found = _correct(searches, f"weighted {reduction}")
        curve = _curve(runs, reduction, "weighted")
        _, search_policy, search_reward = costs(searches)
        needed = [k for k in SIZES if curve[k].mean() >= found.mean()]
        size = needed[0] if needed else SIZES[-1]
        _, base, extra = costs(runs, size)
        ratio = (base + extra) / (search_policy + search_reward)
        reach = f"needs {size} samples" if needed else f"does not reach it with {size} samples"
        yield (
            f"* {policy} by {reward}, REBASE {n} {100 * found.mean():.1f} % "
            f"against 64 weighted samples {100 * curve[64].mean():.1f} %: "
            f"{_difference(found, curve[64])}; weighted sampling {reach}, {ratio:.1f} times the total FLOPs "
            f"({base / search_policy:.1f} times the policy FLOPs)."
        )


def small_against_large(
    records: Records, reward: str, reduction: str, small: str, large: str, judge: str
) -> Iterable[str]:
    """The small policy with REBASE under a judge against the large one sampling, at equal total FLOPs."""
    runs = _sampling(records, large, reward)
    if not runs:
        return
    for vote, charged in (("majority", False), ("weighted", True)):
        curve = _curve(runs, reduction, vote)
        points = []
        for k in SIZES:
            _, base, extra = costs(runs, k)
            points.append((np.log(base + (extra if charged else 0.0)), curve[k].mean()))
        x, y = (np.array(column) for column in zip(*points, strict=True))
        for n, searches in _searches(records, small, judge).items():
            accuracy, error = mean_and_error(
                np.array([r["votes"][f"weighted {reduction}"] for r in searches], dtype=float)
            )
            _, base, extra = costs(searches)
            other = float(np.interp(np.log(base + extra), x, y))
            verdict = "ahead of" if accuracy > other else "behind"
            yield (
                f"* {small} + REBASE {n} by {judge}: {100 * accuracy:.1f} ± {100 * error:.1f} % "
                f"at {base + extra:,.0f} MFLOPs in all, "
                f"{verdict} {large} with {vote} votes at the same FLOPs ({100 * other:.1f} %, interpolated)."
            )
