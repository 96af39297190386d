"""The picture of the page: accuracy on SVAMP against FLOPs."""

from __future__ import annotations

from pathlib import Path

from inferscale._compat import require
from inferscale.scaling import CostName, CurvePoint
from inferscale.viz.plots import plot_scaling

from .report import BESIDE, Runs, sampling_points, search_points
from .searches import RUNS, SAMPLES


def plot_all(runs: Runs, folder: Path) -> Path:
    """Writes the picture, against the FLOPs of the policy alone and with those of the reward model; its path."""
    figure = require("matplotlib.figure", "plot").Figure(figsize=(11, 4), layout="constrained")
    points = points_of("svamp", runs)
    costs: tuple[CostName, CostName] = ("generator_flops", "flops")
    for axes, cost in zip(figure.subplots(1, 2, sharey=True), costs, strict=True):
        plot_scaling(points, cost, ax=axes)
    path = folder / "real_model.png"
    figure.savefig(path, dpi=110)
    return path


def points_of(dataset: str, runs: Runs) -> list[CurvePoint]:
    """Votes over samples, and the searches by weighted votes, on the problems that all of them have."""
    searches = {name: runs[f"{name}-{dataset}"] for name in BESIDE if f"{name}-{dataset}" in runs}
    count = min(map(len, [runs[f"{SAMPLES}-{dataset}"], *searches.values()]))
    points = [*sampling_points(runs[f"{SAMPLES}-{dataset}"][:count], ["majority", "weighted", "best-of-n"]).values()]
    for name, results in searches.items():
        line = type(RUNS[name].strategy).__name__  # widths of one strategy are one line
        points.append(search_points(line, results[:count], ["weighted"])["weighted"])
    return points
