"""``inferscale eval`` and ``inferscale sweep``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferscale.evaluate.parts import check_scores, make_reward, make_strategy, make_vote

from ._parts import STRATEGY_HELP, Model, Seed
from ._runs import RunOptions, takes_run_options

if TYPE_CHECKING:
    from inferscale.base import SearchStrategy
    from inferscale.evaluate import Run


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("eval")(takes_run_options(evaluate))
    app.command()(takes_run_options(sweep))


def evaluate(
    out: Annotated[Path | None, typer.Option(help="The run's folder; made from the options by default.")] = None,
    model: Model = "policy-s",
    strategy: Annotated[str, typer.Option(help=STRATEGY_HELP)] = "sampling",
    seed: Seed = 0,
    *,
    options: RunOptions,
) -> None:
    """Solve and grade a data set; the same command again goes on where it ended."""
    search = make_strategy(strategy, options.width)
    check_scores(search, make_vote(options.vote), options.reward)
    problems = options.problems()
    generator = options.generator(model)
    reward_model = None if options.reward is None else make_reward(options.reward, model)
    folder = out or Path("runs") / slug(options.dataset, model, search, options.reward, seed)
    show(options.run(problems, search, generator, reward_model, seed, folder, model))


def sweep(
    out: Annotated[Path, typer.Option(help="Folder that gets one run's folder for each combination.")],
    strategy: Annotated[list[str], typer.Option(help=f"Repeat it. {STRATEGY_HELP}")],
    seed: Annotated[list[int] | None, typer.Option(help="Repeat it: one run of each strategy for each seed.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Repeat it: a path, a hub id, an embedded policy.")] = None,
    *,
    options: RunOptions,
) -> None:
    """Evaluate every combination of models, strategies and seeds; the same command again goes on where it ended."""
    searches = [make_strategy(text, options.width) for text in strategy]
    for search in searches:
        check_scores(search, make_vote(options.vote), options.reward)
    problems = options.problems()
    for name in model or ["policy-s"]:
        generator = options.generator(name)
        reward_model = None if options.reward is None else make_reward(options.reward, name)
        for search in searches:
            for number in seed or [0]:
                folder = out / slug(options.dataset, name, search, options.reward, number)
                show(options.run(problems, search, generator, reward_model, number, folder, name))


def slug(dataset: str, model: str, search: SearchStrategy, reward: str | None, seed: int) -> str:
    """A folder's name: what was run, without characters that a shell or a file system minds."""
    parts: list[Any] = [dataset, Path(model).name, repr(search), Path(reward).name if reward else None, f"seed{seed}"]
    text = "-".join(str(part) for part in parts if part)
    return re.sub(r"[^A-Za-z0-9.=]+", "-", text).replace("-.", "").strip("-")[:180]


def show(run: Run) -> None:
    """Prints one line for a run."""
    graded = f"accuracy {100 * run.accuracy:.1f} ± {100 * run.standard_error:.1f} %"
    if run.accuracy != run.accuracy:
        graded = "no gold answers"
    silent = sum(record["answer"] is None for record in run.finished)
    typer.echo(f"{graded}, {len(run.finished)} problems ({silent} without an answer)  {run.directory}")
