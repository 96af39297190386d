"""``inferscale report`` and ``inferscale plot``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferscale.evaluate.parts import make_strategy

from ._parts import UsageError

if TYPE_CHECKING:
    from inferscale.evaluate import Run
    from inferscale.scaling import CurvePoint

COSTS = ("flops", "generator_flops", "reward_flops", "tokens", "seconds")
Folders = Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold them.")]
COLUMNS = ("n", "accuracy", "tokens", "policy FLOPs", "reward FLOPs", "seconds", "problems")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(report)
    app.command()(plot)


def report(
    folders: Folders,
    curve: Annotated[bool, typer.Option(help="Every number of samples, not only the greatest.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the points there too.")] = None,
) -> None:
    """Accuracy and cost of runs, every vote read from the same samples; costs are means over problems."""
    points = read_points(folders)
    shown = points if curve else _greatest(points)
    width = max(len(p.name) for p in shown)
    typer.echo(f"{'model, strategy, vote':<{width}} {COLUMNS[0]:>4} {COLUMNS[1]:>14} " + _cells(COLUMNS[2:]))
    for p in shown:
        accuracy = f"{100 * p.accuracy:.1f} ± {100 * p.standard_error:.1f} %"
        costs = f"{p.tokens:.0f}", f"{p.generator_flops:.3g}", f"{p.reward_flops:.3g}", f"{p.seconds:.2f}"
        typer.echo(f"{p.name:<{width}} {p.n:>4} {accuracy:>14} " + _cells([*costs, p.problems]))
    typer.echo("± one standard error over problems; coverage is an upper bound (any sample is right), not a method.")
    if csv is not None:
        _write_csv(points, csv)


def plot(
    folders: Folders,
    out: Annotated[Path, typer.Option(help="The figure's file: .png, .pdf or .svg.")] = Path("scaling.png"),
    x: Annotated[str, typer.Option(help=f"One of {', '.join(COSTS)}.")] = "flops",
    y: Annotated[str, typer.Option(help="accuracy or error.")] = "accuracy",
    vote: Annotated[list[str] | None, typer.Option(help="Repeat it: only these votes.")] = None,
) -> None:
    """Draw accuracy against cost: one panel for each vote, a line for each model and strategy."""
    from inferscale.plotting import plot_votes
    from inferscale.scaling import VOTES

    if x not in COSTS:
        raise UsageError(f"--x {x}: choose one of {', '.join(COSTS)}")
    if y not in ("accuracy", "error"):
        raise UsageError(f"--y {y}: choose accuracy or error")
    wanted = [name for name in VOTES if not vote or name in vote]
    points = [p for p in read_points(folders) if p.vote in wanted]
    if not points:
        raise UsageError(f"no run has a vote {', '.join(vote or ())}: choose among {', '.join(VOTES)}")
    plot_votes(points, x, y).savefig(out)  # type: ignore[arg-type]
    typer.echo(f"wrote {out}")


def read_points(folders: Iterable[Path]) -> list[CurvePoint]:
    """Points of all runs in and below the folders; runs that differ in their seed alone are averaged."""
    from inferscale.evaluate import load_run
    from inferscale.scaling import curve_of_results

    files = [file for folder in folders for file in sorted(folder.rglob("run.json"))]
    if not files:
        raise UsageError(f"no runs in {', '.join(map(str, folders))}: give folders that `inferscale eval` wrote")
    groups: dict[str, list[Run]] = {}
    for file in files:
        run = load_run(file.parent)
        if not run.is_complete:
            typer.echo(f"{run.directory} is not complete and is left out: run its command again", err=True)
            continue
        groups.setdefault(_without_seed(run.about["identity"]), []).append(run)
    points: list[CurvePoint] = []
    for runs in groups.values():
        first = runs[0].about["identity"]
        points += curve_of_results(
            [list(run.results()) for run in runs], _strategy(first["strategy"]),
            correct=[[record["correct_each"] for record in run.finished] for run in runs],
            memory_bytes=max(run.peak_memory_bytes or 0 for run in runs) or None, model=_model(first),
        )  # fmt: skip
    if not points:
        raise UsageError("no complete run to report")
    return points


def _without_seed(identity: dict[str, Any]) -> str:
    return str({name: value for name, value in identity.items() if name != "seed"})


def _strategy(text: str) -> Any:
    """The strategy of a run, or its text when it is not one of ours."""
    try:
        return make_strategy(text) if "(" in text else text
    except ValueError:
        return text


def _model(identity: dict[str, Any]) -> str:
    return str(identity["config"].get("model", ""))


def _greatest(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """The points without those of fewer samples of the same run."""
    most: dict[str, int] = {}
    for p in points:
        most[p.name] = max(p.n, most.get(p.name, 0))
    return [p for p in points if p.strategy != "RepeatedSampling" or p.n == most[p.name]]


def _cells(values: Iterable[Any]) -> str:
    return " ".join(f"{value!s:>12}" for value in values)


def _write_csv(points: Sequence[CurvePoint], path: Path) -> None:
    import csv

    rows = [p.row() for p in points]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    typer.echo(f"wrote {path}")
