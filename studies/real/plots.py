"""Pictures of the page: accuracy against FLOPs, a panel for each data set."""

from __future__ import annotations

from pathlib import Path

from inferscale._compat import require
from inferscale.scaling import CurvePoint
from inferscale.viz.plots import plot_scaling

from .report import BESIDE, TITLES, Runs, is_scored, sampling_points, search_points
from .searches import RUNS, SAMPLES


def plot_all(runs: Runs, folder: Path) -> Path:
    """Writes the picture of accuracy against the FLOPs of policy and reward model; its path."""
    datasets = [dataset for dataset in TITLES if is_scored(runs.get(f"{SAMPLES}-{dataset}", ()))]
    figure = require("matplotlib.figure", "plot").Figure(figsize=(5.4 * len(datasets), 4), layout="constrained")
    for axes, dataset in zip(figure.subplots(1, len(datasets), squeeze=False).flat, datasets, strict=True):
        plot_scaling(points_of(dataset, runs), "flops", ax=axes, label="name")
        axes.set_title(TITLES[dataset])
    path = folder / "real_model.png"
    figure.savefig(path, dpi=110)
    return path


def points_of(dataset: str, runs: Runs) -> list[CurvePoint]:
    """The points of a panel: votes over samples, and the searches by weighted votes, on the problems of all."""
    searches = {name: runs[f"{name}-{dataset}"] for name in BESIDE if f"{name}-{dataset}" in runs}
    count = min(map(len, [runs[f"{SAMPLES}-{dataset}"], *searches.values()]))
    points = [*sampling_points(runs[f"{SAMPLES}-{dataset}"][:count], ["majority", "weighted", "coverage"]).values()]
    for name, results in searches.items():
        line = type(RUNS[name].strategy).__name__  # widths of one strategy are one line
        points.append(search_points(line, results[:count], ["weighted"])["weighted"])
    return points
