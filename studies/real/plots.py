"""The picture of the page: accuracy on SVAMP against FLOPs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inferscale._compat import require
from inferscale.scaling import CostName, CurvePoint
from inferscale.viz import label_lines, plot_scaling

from .report import BESIDE, SAMPLING, Runs, sampling_points, search_points
from .searches import RUNS, SAMPLES


def plot_all(runs: Runs, folder: Path) -> Path:
    """Writes the picture, votes above and searches below, without and with the reward model's FLOPs; its path."""
    figure = require("matplotlib.figure", "plot").Figure(figsize=(11, 7), layout="constrained")
    points = points_of("svamp", runs)
    votes = [replace(p, strategy="sampling") for p in points if p.strategy == SAMPLING]
    searches = [p for p in votes if p.vote == "weighted"] + [p for p in points if p.strategy != SAMPLING]
    costs: tuple[CostName, CostName] = ("generator_flops", "flops")
    for row, shown in zip(figure.subplots(2, 2, sharex="col", sharey=True), (votes, searches), strict=True):
        for axes, cost in zip(row, costs, strict=True):
            plot_scaling(shown, cost, ax=axes)
            axes.label_outer()
    label_lines(figure)
    path = folder / "real_model.png"
    figure.savefig(path, dpi=110)
    return path


def points_of(dataset: str, runs: Runs) -> list[CurvePoint]:
    """Votes over samples, and the searches by weighted votes, on the problems that all of them have."""
    searches = {name: runs[f"{name}-{dataset}"] for name in BESIDE if f"{name}-{dataset}" in runs}
    count = min(map(len, [runs[f"{SAMPLES}-{dataset}"], *searches.values()]))
    points = [*sampling_points(runs[f"{SAMPLES}-{dataset}"][:count], ["weighted", "majority", "best-of-n"]).values()]
    for name, results in searches.items():
        line = type(RUNS[name].strategy).__name__  # widths of one strategy are one line
        points.append(search_points(line, results[:count], ["weighted"])["weighted"])
    return points
