"""Tables and plots of Wu et al. 2024 (arXiv:2408.00724), measured on the embedded models, with both ways to count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inferscale import zoo
from inferscale.scaling import CurvePoint, Vote, fit_optimal_size, pareto_frontier
from studies.experiments import table_of_savings

from .report import CURVES, SIZES, Records, costs, grouped, mean_and_error, pick, sample_curves

SEARCHES = ("REBASE", "BeamSearch", "DVTS")
SHOWN: tuple[Vote, ...] = ("majority", "best-of-n", "weighted")


def curve_points(records: Records, reward: str, reduction: str) -> list[CurvePoint]:
    """Every policy, strategy, vote and size as points with measured FLOPs (policy and reward model apart)."""
    judged = [r for r in pick(records, reward=reward) if r["softmax_temperature"] in (None, 0.1)]
    points: list[CurvePoint] = []
    parameters = {policy: zoo.card(policy).parameters for policy in {r["policy"] for r in judged}}
    for policy in sorted(parameters, key=lambda name: parameters[name]):
        of_policy, about = pick(judged, policy=policy), {"model": policy, "parameters": parameters[policy]}
        points += _sampled(pick(of_policy, strategy="RepeatedSampling", n=64), reduction, about)
        for strategy in SEARCHES:
            for n, runs in sorted(grouped(pick(of_policy, strategy=strategy), lambda r: r["n"]).items()):
                values = {v: np.array([r["votes"][_name(v, reduction)] for r in runs], dtype=float) for v in SHOWN}
                points += [_point(runs, strategy, v, n, None, values[v], about) for v in SHOWN]
    return points


def in_the_papers_convention(points: Iterable[CurvePoint]) -> list[CurvePoint]:
    """The points at 2 x parameters x sampled tokens: no prompt, no attention, no reward model."""
    return [replace(p, generator_flops=2 * (p.parameters or 0) * p.tokens, reward_flops=0.0) for p in points]


def paper_parts(records: Records, reward: str, reduction: str, folder: Path) -> dict[str, list[str]]:
    """The page's measured parts by name, as markdown; the plots are drawn on the way."""
    whole = curve_points(records, reward, reduction)
    theirs = in_the_papers_convention(whole)
    _draw(whole, theirs, folder)
    return {
        "savings": [*_savings(whole, theirs)],
        "methods": [*_every_method(whole, theirs)],
        "sizes": [*_sizes(whole, theirs)],
        "frontiers": [*_frontiers(whole, theirs)],
    }


def paper(records: Records, reward: str, reduction: str, folder: Path) -> Iterator[str]:
    """All of it, one part after the other."""
    for lines in paper_parts(records, reward, reduction, folder).values():
        yield from lines


def _sampled(runs: list[dict[str, Any]], reduction: str, about: dict[str, Any]) -> list[CurvePoint]:
    if not runs:
        return []
    curves = [sample_curves(r, reduction, [v for v in CURVES if v in SHOWN]) for r in runs]
    return [
        _point(runs, "RepeatedSampling", vote, k, k, np.array([c[vote][k] for c in curves]), about)
        for vote in SHOWN
        for k in SIZES
    ]


def _point(
    runs: Records, strategy: str, vote: Vote, n: int, k: int | None, values: Any, about: dict[str, Any]
) -> CurvePoint:
    accuracy, error = mean_and_error(values)
    tokens, policy, reward = costs(runs, k)
    charged = strategy != "RepeatedSampling" or vote != "majority"
    return CurvePoint(
        strategy, vote, n, accuracy, error, values.shape[1], tokens, 1e6 * policy, 1e6 * reward if charged else 0.0,
        float(np.mean([r["seconds"] for r in runs])), per_problem=tuple(values.mean(axis=0).tolist()), **about,
    )  # fmt: skip


def _name(vote: str, reduction: str) -> str:
    return vote if vote == "majority" else f"{vote} {reduction}"


def _savings(whole: Sequence[CurvePoint], theirs: Sequence[CurvePoint]) -> Iterator[str]:
    """Table 1: what REBASE needs to be as good as the best that weighted sampling reaches."""
    yield "| policy | weighted sampling n: accuracy | REBASE n: accuracy | saving, paper's | policy, exact | all |"
    yield "|---|---|---|---|---|---|"
    counts = (
        table_of_savings(theirs, "generator_flops"),
        table_of_savings(whole, "generator_flops"),
        table_of_savings(whole, "flops"),
    )
    for first, second, third in zip(*counts, strict=True):
        ratios = " | ".join(
            "never as good" if r["saving"] is None else f"{r['saving']:.2f}" for r in (first, second, third)
        )
        best = f"{first['sampling_n']}: {100 * first['sampling']:.1f}"
        found = "" if first["rebase"] is None else f"{first['rebase_n']}: {100 * first['rebase']:.1f}"
        yield f"| {first['model']} | {best} | {found} | {ratios} |"


def _every_method(whole: Sequence[CurvePoint], theirs: Sequence[CurvePoint]) -> Iterator[str]:
    """Table 4: every vote at each size, MFLOPs in both ways of counting."""
    yield "\n| policy | strategy | paper's MFLOPs | policy, exact | + reward | majority | best of n | weighted |"
    yield "|---|---|---|---|---|---|---|---|"
    cheap = {_key(p): p.generator_flops for p in theirs}
    rows = grouped_points(p for p in whole if p.strategy != "RepeatedSampling" or p.n in (1, 4, 16, 64))
    for (model, strategy, n), votes in rows.items():
        most = max(votes.values(), key=lambda p: p.reward_flops)
        cells = " | ".join(f"{100 * votes[v].accuracy:.1f} ± {100 * votes[v].standard_error:.1f}" for v in SHOWN)
        flops = (cheap[_key(most)], most.generator_flops, most.flops)
        yield f"| {model} | {_short(strategy)} {n} | " + " | ".join(f"{f / 1e6:,.1f}" for f in flops) + f" | {cells} |"


def grouped_points(points: Iterable[CurvePoint]) -> dict[tuple[str, str, int], dict[str, CurvePoint]]:
    """The votes of each model, strategy and size."""
    rows: dict[tuple[str, str, int], dict[str, CurvePoint]] = {}
    for p in points:
        rows.setdefault((p.model, p.strategy, p.n), {})[p.vote] = p
    return rows


def _key(p: CurvePoint) -> tuple[str, str, int, str]:
    return p.model, p.strategy, p.n, p.vote


def _sizes(whole: Sequence[CurvePoint], theirs: Sequence[CurvePoint]) -> Iterator[str]:
    """The fit of the optimal size, weighted votes over samples, as in the paper's figure on Pythia."""
    yield ""
    for title, points in (("paper's convention", theirs), ("policy and reward model", whole)):
        chosen = [p for p in points if p.vote == "weighted" and p.strategy == "RepeatedSampling"]
        if len({p.parameters for p in pareto_frontier(chosen)}) < 2:
            yield f"* Optimal size, {title}: one size is best at every budget."
            continue
        fit = fit_optimal_size(chosen)
        yield f"* Optimal size, {title}: log10 C = {fit.a:.2f} log10 N {fit.b:+.2f} ({fit.points} frontier points)."


def _frontiers(whole: Sequence[CurvePoint], theirs: Sequence[CurvePoint]) -> Iterator[str]:
    """What is best at each budget, with and without the reward model."""
    for title, points in (("paper's convention", theirs), ("policy and reward model", whole)):
        yield f"\n| best at each budget, {title} | vote | MFLOPs | accuracy |\n|---|---|---|---|"
        for p in pareto_frontier(points):
            accuracy = f"{100 * p.accuracy:.1f} ± {100 * p.standard_error:.1f}"
            yield f"| {p.model}, {_short(p.strategy)} {p.n} | {p.vote} | {p.flops / 1e6:,.1f} | {accuracy} |"


def _short(strategy: str) -> str:
    return "sampling" if strategy == "RepeatedSampling" else strategy


def _draw(whole: Sequence[CurvePoint], theirs: Sequence[CurvePoint], folder: Path) -> None:
    """Error against compute for the size family, and for the strategies, in both ways of counting."""
    from matplotlib.figure import Figure

    from inferscale.viz import label_lines, plot_frontier, plot_scaling

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels, titles = figure.subplots(2, 2, sharey=True), ("paper's convention", "policy and reward model")
    for row, title, points in zip(panels, titles, (theirs, whole), strict=True):
        weighted = [replace(p, strategy=_short(p.strategy)) for p in points if p.vote == "weighted"]
        family = [p for p in weighted if p.strategy == "sampling"]
        methods = [p for p in weighted if p.strategy in ("sampling", "REBASE")]
        for axis, shown, name in zip(row, (family, methods), ("sizes", "strategies"), strict=True):
            plot_scaling(shown, "flops", "error", ax=axis, label="method")
            axis.set_title(f"{name}, weighted vote: {title}")
        plot_frontier(family, "flops", "error", ax=row[0])
        for axis in row:
            axis.set_xlabel("FLOPs per problem")
    label_lines(figure)
    figure.savefig(folder / "papers.png", dpi=110)
