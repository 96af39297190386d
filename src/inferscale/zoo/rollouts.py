"""Samples training rollouts from a checkpoint: ``python -m inferscale.zoo.rollouts CHECKPOINT NAME --output FILE``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .train import report

app = typer.Typer(add_completion=False)


@app.command()
def rollouts(
    checkpoint: Annotated[Path, typer.Argument(help="a checkpoint of the policy")],
    name: Annotated[str, typer.Argument(help="policy-xs, policy-s or policy-m")],
    output: Annotated[Path, typer.Option(help="the file to write, one JSON object a line")],
    problems: Annotated[int, typer.Option(help="training problems")] = 3000,
    n: Annotated[int, typer.Option(help="samples of each")] = 4,
    seed: Annotated[int, typer.Option(help="of problems and samples")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
) -> None:
    """Samples solutions of fresh training problems at temperature 1 and writes the distinct ones."""
    import torch

    from .training import loop, recipes
    from .training.rollouts import make_rollouts, write_rollouts

    torch.set_num_threads(threads)
    run = loop.start(recipes.POLICIES[name])
    run.model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    run.model.train(False)
    made = make_rollouts(run.model, name, problems, n, seed)
    write_rollouts(made, output)
    report(f"{len(made)} distinct rollouts of {problems} problems in {output}")


if __name__ == "__main__":
    app()
