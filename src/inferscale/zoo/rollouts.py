"""Samples training rollouts: ``python -m inferscale.zoo.rollouts policy-s --output FILE``, from an embedded policy.

``python -m inferscale.zoo.rollouts CHECKPOINT policy-s --output FILE`` samples from a checkpoint of a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .train import report

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

app = typer.Typer(add_completion=False)


@app.command()
def rollouts(
    source: Annotated[str, typer.Argument(help="an embedded policy, or a checkpoint of a run")],
    output: Annotated[Path, typer.Option(help="the file to write, one JSON object a line")],
    name: Annotated[str | None, typer.Argument(help="policy-xs, policy-s or policy-m, of a checkpoint")] = None,
    problems: Annotated[int, typer.Option(help="training problems")] = 3000,
    n: Annotated[int, typer.Option(help="samples of each")] = 4,
    seed: Annotated[int, typer.Option(help="of problems and samples")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
) -> None:
    """Samples solutions of fresh training problems at temperature 1 and writes the distinct ones."""
    import torch

    from .training.rollouts import make_rollouts, write_rollouts

    torch.set_num_threads(threads)
    made = make_rollouts(_policy(source, name), name or source, problems, n, seed)
    write_rollouts(made, output)
    report(f"{len(made)} distinct rollouts of {problems} problems in {output}")


def _policy(source: str, name: str | None) -> LlamaForCausalLM:
    """The embedded policy, or the one in a checkpoint of the recipe `name`."""
    from .training import loop, recipes

    if name is None:
        from .models import load

        if source not in recipes.POLICIES:
            policies = ", ".join(recipes.POLICIES)
            raise typer.BadParameter(f"{source!r}: give one of {policies}, or a checkpoint and one of them after it")
        return load(source)[0]
    import torch

    model = loop.start(recipes.POLICIES[name]).model
    model.load_state_dict(torch.load(source, weights_only=True)["model"])
    model.train(False)
    return model


if __name__ == "__main__":
    app()
