"""Trains the embedded models: ``python -m inferscale.zoo.train policy-s --folder runs/policy-s``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help="Train the embedded models; every run resumes from its last checkpoint.")


def _report(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@app.command()
def policy(
    name: Annotated[str, typer.Argument(help="policy-xs, policy-s or policy-m")],
    folder: Annotated[Path, typer.Option(help="where checkpoints go; an existing run there is resumed")],
    steps: Annotated[int | None, typer.Option(help="steps in all, instead of the recipe's")] = None,
    decay_steps: Annotated[int | None, typer.Option(help="steps of the last decay, instead of the recipe's")] = None,
    start_from: Annotated[Path | None, typer.Option(help="checkpoint to go on from, instead of the last one")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="steps between checkpoints")] = 500,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
) -> None:
    """Train a policy."""
    import torch

    from .training import loop, recipes

    if name not in recipes.POLICIES:
        raise typer.BadParameter(f"{name!r} is not a policy: choose one of {', '.join(recipes.POLICIES)}")
    torch.set_num_threads(threads)
    recipe = recipes.POLICIES[name]
    run = loop.start(
        replace(
            recipe,
            steps=recipe.steps if steps is None else steps,
            decay_steps=recipe.decay_steps if decay_steps is None else decay_steps,
        )
    )
    last = start_from or max(folder.glob("step-*.pt"), default=None)
    if last is not None:
        loop.load_checkpoint(run, last)
        _report(f"resumed at step {run.step} from {last.name}")
    loop.drive(run, folder, _report, checkpoint_every)


if __name__ == "__main__":
    app()
