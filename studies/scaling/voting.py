"""Theory beside measurement: the vote over n samples predicted from other samples, and where it ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inferscale.scaling import estimate_voting_limit, weighted_accuracy

from .report import SIZES, Floats, Pooled, Records, mean_and_error, pick, pooled, sample_curves

VOTES = ("majority", "weighted")


@dataclass(frozen=True)
class VotePoint:
    """A vote over `n` samples, measured and predicted, with standard errors over problems."""

    n: int
    measured: float
    measured_error: float
    predicted: float
    difference: float
    difference_error: float


def predicted(samples: Pooled, n: int, vote: str, rng: np.random.Generator, trials: int) -> Floats:
    """Each problem's chance that the vote over `n` draws from its recorded answers is right (Monte Carlo)."""
    chances = []
    for ids, gold, scores in zip(samples.ids, samples.golds, samples.scores, strict=True):
        counts = np.bincount([i for i in ids if i >= 0], minlength=1)
        total = np.bincount([i for i in ids if i >= 0], [s for i, s in zip(ids, scores, strict=True) if i >= 0])
        weights = np.ones(len(counts)) if vote == "majority" else total / np.maximum(counts, 1)
        right = 0.0 if gold < 0 else weighted_accuracy(counts / len(ids), weights, gold, n, rng, trials)[0]
        chances.append(right)
    return np.asarray(chances)


def compare(
    runs: Records, vote: str, reduction: str, sizes: Sequence[int] = SIZES, trials: int = 400
) -> list[VotePoint]:
    """For each size the measured vote, and the one that theory predicts.

    Each seed in turn is measured, and predicted from the answers of the others: no sample is used for both.
    """
    rng = np.random.default_rng(0)
    others = [pooled([r for r in runs if r is not run], reduction) for run in runs]
    curves = [sample_curves(run, reduction, [vote], sizes)[vote] for run in runs]
    points = []
    for n in sizes:
        found = np.array([curve[n] for curve in curves])
        expected = np.array([predicted(samples, n, vote, rng, trials) for samples in others])
        measured, error = mean_and_error(found)
        gap, gap_error = mean_and_error(found - expected)
        points.append(VotePoint(n, measured, error, float(expected.mean()), gap, gap_error))
    return points


def limit(runs: Records, vote: str, reduction: str) -> tuple[float, float, float]:
    """The limit of the vote from all samples (Theorem 1, or 2 for the weighted one), and its 95 % interval."""
    whole = pooled(runs, reduction)
    scores = None if vote == "majority" else whole.scores
    return estimate_voting_limit(whole.ids, whole.golds, np.random.default_rng(0), scores, resamples=200)


def voting(records: Records, policy: str, reward: str, reduction: str, picture: Path) -> Iterable[str]:
    """A markdown table of measurement, prediction and limit; the picture is drawn on the way."""
    runs = pick(records, policy=policy, reward=reward, strategy="RepeatedSampling", n=64)
    if len(runs) < 2:
        raise ValueError(f"{policy} judged by {reward} has {len(runs)} seeds of 64 samples: a prediction needs two")
    found = {vote: compare(runs, vote, reduction) for vote in VOTES}
    limits = {vote: limit(runs, vote, reduction) for vote in VOTES}
    draw(found, limits, policy, picture)
    yield "| vote | n | measured, % | predicted, % | measured − predicted |\n|---|---|---|---|---|"
    for vote, points in found.items():
        for p in points:
            yield (
                f"| {vote} | {p.n} | {100 * p.measured:.1f} ± {100 * p.measured_error:.1f} | {100 * p.predicted:.1f} | "
                f"{100 * p.difference:+.1f} ± {100 * p.difference_error:.1f} |"
            )
        estimate, low, high = (100 * value for value in limits[vote])
        yield f"| {vote} | ∞ | | {estimate:.1f} (95 % interval {low:.1f} to {high:.1f}) | |"
    yield f"\n{picture}"


def draw(
    found: dict[str, list[VotePoint]], limits: dict[str, tuple[float, float, float]], policy: str, path: Path
) -> None:
    """A panel for each vote: measured with error bars, the predicted curve, and the limit with its interval."""
    from matplotlib.figure import Figure

    from inferscale.viz import label_lines
    from inferscale.viz.plots import COLOURS

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, (vote, points) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        sizes = [p.n for p in points]
        bars = [100 * p.measured_error for p in points]
        axis.plot(sizes, [100 * p.predicted for p in points], color=COLOURS[1], label="predicted")
        axis.errorbar(
            sizes, [100 * p.measured for p in points], bars, fmt="o", color=COLOURS[0], capsize=2, label="measured"
        )
        estimate, low, high = (100 * value for value in limits[vote])
        axis.axhline(estimate, color=COLOURS[2], linestyle="--", linewidth=1, label="limit, 95 % interval")
        axis.axhspan(low, high, color=COLOURS[2], alpha=0.1)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("samples")
        axis.set_title(f"{policy}, {vote} vote")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy, %")
    label_lines(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
