"""Best-of-n against over-optimisation: the hedged vote over all recorded samples, and the n that suits it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from inferscale.functional import best_of_k_chances, optimal_n

from .report import Floats, Records, answer_ids, mean_and_error, pick, sample_curves, shown

SIZES = (1, 2, 4, 8, 16, 32, 64)


def hedged(record: dict[str, Any], reduction: str, n: int) -> Floats:
    """Whether `HedgedBestOfN(n)` over all samples of each problem is right."""
    right = []
    for sample in record["samples"]:
        ids = answer_ids(sample["answers"])
        voters = [i for i, answer in enumerate(ids) if answer >= 0]
        if not voters:
            right.append(0.0)
            continue
        scores = [sample["scores"][reduction][i] for i in voters]
        chances = best_of_k_chances(scores, min(n, len(voters)))
        totals = np.bincount([ids[i] for i in voters], chances)
        right.append(float(sample["right"][ids.index(int(totals.argmax()))]))
    return np.array(right)


def hedging(records: Records, reward: str, reduction: str) -> Iterable[str]:
    """A table for each policy: best of n, and the hedged vote of the same n over all 64 samples."""
    for policy in dict.fromkeys(record["policy"] for record in records):
        runs = pick(records, policy=policy, reward=reward, strategy="RepeatedSampling", n=64)
        if not runs:
            continue
        curves = [sample_curves(run, reduction, ["best-of-n", "weighted"], SIZES) for run in runs]
        best = {n: np.array([curve["best-of-n"][n] for curve in curves]) for n in SIZES}
        vote = {n: np.array([hedged(run, reduction, n) for run in runs]) for n in SIZES}
        weighted = np.array([curve["weighted"][64] for curve in curves])
        yield f"{policy}, {reward}, {reduction}; {len(runs)} seeds"
        yield "| n | best of n | hedged, best of n over 64 samples |"
        yield "|---|---|---|"
        yield from (f"| {n} | {shown(best[n])} | {shown(vote[n])} |" for n in SIZES)
        # The n is chosen on the problems of one half, and measured on those of the other.
        half = np.arange(len(vote[1][0])) % 2 == 0
        held_out = np.empty_like(weighted)
        for own in (half, ~half):
            n = max(SIZES, key=lambda n: vote[n][:, own].mean())
            held_out[:, ~own] = vote[n][:, ~own]
        scores = np.array([[s["scores"][reduction] for s in run["samples"]] for run in runs])
        right = np.array([[s["right"] for s in run["samples"]] for run in runs])
        answered = np.array([[answer is not None for answer in s["answers"]] for run in runs for s in run["samples"]])
        least = optimal_n(scores.reshape(-1, 64), right.reshape(-1, 64), answered)
        yield f"best n of best-of-n: {least}; weighted vote over 64: {shown(weighted)}"
        for name, other in (("best of 64", best[64]), ("the weighted vote", weighted)):
            mean, error = mean_and_error(held_out - other)
            yield f"hedged, n chosen on other problems, less {name}: {100 * mean:+.1f} ± {100 * error:.1f}"
        yield ""
