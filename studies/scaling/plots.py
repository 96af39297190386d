"""Plots of the study: accuracy against FLOPs, and the two sensitivities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from inferscale.viz import label_lines
from inferscale.viz.plots import COLOURS

from .report import SIZES, Records, costs, grouped, mean_and_error, pick, sample_curves


def plot_all(records: Records, reward: str, reduction: str, folder: Path) -> list[Path]:
    """Writes the pictures; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [_scaling(records, reward, reduction, folder / "scaling.png")]
    if any(r["reward"].startswith("simulated-") for r in records):
        made.append(_sensitivity(records, reward, reduction, folder / "sensitivity.png"))
    return made


def _scaling(records: Records, reward: str, reduction: str, path: Path) -> Path:
    """Accuracy against policy FLOPs (above) and policy and reward FLOPs (below), a panel for each policy."""
    policies = list(dict.fromkeys(r["policy"] for r in records))
    figure = Figure(figsize=(5.6 * len(policies), 8), layout="constrained")
    rows = figure.subplots(2, len(policies), sharey=True, squeeze=False)
    for row, whole in zip(rows, (False, True), strict=True):
        for axis, policy in zip(row, policies, strict=True):
            _policy_curves(axis, records, policy, reward, reduction, whole)
            axis.set_xscale("log")
            axis.set_xlabel(f"{'policy and reward model' if whole else 'policy alone'}, FLOPs per problem")
            axis.set_title(policy)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("accuracy, %")
    label_lines(figure)
    figure.savefig(path, dpi=110)
    return path


def _policy_curves(axis: Any, records: Records, policy: str, reward: str, reduction: str, whole: bool) -> None:
    runs = pick(records, policy=policy, reward=reward, strategy="RepeatedSampling", n=64)
    if runs:
        curves = [sample_curves(r, reduction) for r in runs]
        for vote, colour in (("majority", COLOURS[0]), ("weighted", COLOURS[1])):
            x = [_flops(runs, k, whole and vote != "majority") for k in SIZES]
            y = [100 * mean_and_error(np.array([c[vote][k] for c in curves]))[0] for k in SIZES]
            axis.plot(x, y, color=colour, marker=".", label=f"sampling, {vote}")
    looks = {"color": COLOURS[2], "fmt": "-s"}
    _search_curve(axis, records, policy, reward, reduction, whole, **looks, label="REBASE, weighted")
    others = {r["reward"] for r in pick(records, policy=policy) if r["reward"].startswith("prm")} - {reward}
    for other, colour in zip(sorted(others), COLOURS[3:], strict=False):
        looks = {"color": colour, "fmt": "-D"}
        _search_curve(axis, records, policy, other, reduction, whole, **looks, label=f"REBASE by {other}")


def _search_curve(
    axis: Any, records: Records, policy: str, reward: str, reduction: str, whole: bool, **looks: str
) -> None:
    found = pick(records, policy=policy, reward=reward, strategy="REBASE")
    points = []
    for _, group in sorted(grouped([r for r in found if r["softmax_temperature"] == 0.1], lambda r: r["n"]).items()):
        votes = np.array([r["votes"][f"weighted {reduction}"] for r in group], dtype=float)
        points.append((_flops(group, None, whole), *mean_and_error(votes)))
    if points:
        x, y, e = (np.array(column) for column in zip(*points, strict=True))
        axis.errorbar(x, 100 * y, 100 * e, markersize=5, capsize=2, **looks)


def _flops(runs: Records, k: int | None, with_reward: bool) -> float:
    _, policy, reward = costs(runs, k)
    return (policy + (reward if with_reward else 0.0)) * 1e6


def _sensitivity(records: Records, reward: str, reduction: str, path: Path) -> Path:
    """REBASE against T_b (left) and against the quality of the reward (right)."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    noisy = [r for r in records if r["reward"].startswith("simulated-")]
    policy = noisy[0]["policy"]
    sweep = pick(records, policy=policy, reward=reward, strategy="REBASE", n=16)
    _points(
        left,
        grouped(sweep, lambda r: r["softmax_temperature"]),
        f"weighted {reduction}",
        "REBASE 16, weighted vote",
        COLOURS[2],
    )
    left.set_xscale("log")
    left.set_xlabel("softmax temperature T_b")
    left.set_ylabel("accuracy, %")
    by_auc = {
        float(name.removeprefix("simulated-")): runs for name, runs in grouped(noisy, lambda r: r["reward"]).items()
    }
    lines = (("REBASE", "weighted last"), ("RepeatedSampling", "weighted prod"), ("RepeatedSampling", "majority"))
    for (strategy, vote), colour in zip(lines, (COLOURS[2], COLOURS[1], COLOURS[0]), strict=True):
        groups = {auc: pick(runs, strategy=strategy) for auc, runs in by_auc.items()}
        _points(right, groups, vote, f"{strategy} 16, {vote}", colour)
    right.set_xlabel("AUC of the noisy checker, right step against first error")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(f"{policy}, 16 samples or leaves")
    label_lines(figure)
    figure.savefig(path, dpi=110)
    return path


def _points(axis: Any, groups: dict[float, list[dict[str, Any]]], vote: str, label: str, colour: str) -> None:
    rows = [
        (x, *mean_and_error(np.array([r["votes"][vote] for r in runs], dtype=float)))
        for x, runs in sorted(groups.items())
        if runs
    ]
    x, y, e = (np.array(column) for column in zip(*rows, strict=True))
    axis.errorbar(x, 100 * y, 100 * e, marker="o", capsize=2, color=colour, label=label)
