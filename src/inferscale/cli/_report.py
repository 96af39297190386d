"""``inferscale report`` and ``inferscale plot``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._parts import UsageError
from ._points import read_points

if TYPE_CHECKING:
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
    unknown = [name for name in vote or () if name not in VOTES]
    if unknown:
        raise UsageError(f"--vote {unknown[0]}: choose among {', '.join(VOTES)}")
    points = [p for p in read_points(folders) if not vote or p.vote in vote]
    if not points:
        raise UsageError(f"no run has scores, which --vote {', '.join(vote or ())} needs")
    plot_votes(points, x, y).savefig(out)  # type: ignore[arg-type]
    typer.echo(f"wrote {out}")


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
