"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from inferscale.evaluate.parts import STRATEGIES, VOTES

STRATEGY_HELP = f"One of {', '.join(STRATEGIES)} (with a size: rebase:16), or one in full: 'MCTS(num_simulations=64)'."

Model = Annotated[str, typer.Option(help="A local path, a hub id, or an embedded policy.")]
Reward = Annotated[
    str | None, typer.Option(help="checker (embedded task), likelihood, a process reward model, or outcome@PATH.")
]
Width = Annotated[int, typer.Option(help="Samples or leaves.")]
Vote = Annotated[str, typer.Option(help=f"One of {', '.join(VOTES)}, or one in full: 'BordaVote(p=0.7)'.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature.")]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of a solution.")]
StepDelimiter = Annotated[str, typer.Option(help="What ends a step.")]
Tokens = Annotated[int | None, typer.Option(help="Token budget of a problem.")]
Seed = Annotated[int, typer.Option(help="Any integer.")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]


class UsageError(Exception):
    """Bad input: one line that says what to do."""
