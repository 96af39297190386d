"""``inferscale demo``, ``inferscale solve``, ``inferscale models``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferscale.evaluate.parts import check_scores, embedded, make_generator, make_reward, make_strategy, make_vote

from ._parts import (
    STRATEGY_HELP,
    MaxNewTokens,
    Model,
    Progress,
    Reward,
    Seed,
    StepDelimiter,
    Temperature,
    Tokens,
    Vote,
    Width,
)

if TYPE_CHECKING:
    from inferscale.result import SearchResult


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(demo)
    app.command()(solve)
    app.command()(models)


def demo(
    problems: Annotated[int, typer.Option(min=2, help="Problems of the fixed test set (at most 500).")] = 60,
    width: Annotated[int, typer.Option(min=1, help="Samples or leaves of each strategy.")] = 16,
    model: Annotated[str, typer.Option(help="An embedded policy.")] = "policy-s",
    reward: Annotated[str, typer.Option(help="'checker' (the exact oracle) or an embedded reward model.")] = "prm-s",
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Compare the strategies on an embedded model: accuracy, tokens, FLOPs. No network needed."""
    from inferscale import zoo
    from inferscale.demo import HEADER, format_row, rows

    chosen = zoo.problems("test")[:problems]
    generator, reward_model = make_generator(model, temperature), make_reward(reward)
    typer.echo(f"{model}, reward: {reward}, {len(chosen)} test problems, temperature {temperature}, seed {seed}")
    typer.echo("Tokens and MFLOPs of policy and reward model are means over problems; seconds are for all of them.")
    typer.echo(HEADER)
    for row in rows(chosen, generator, reward_model, width, seed, progress):
        typer.echo(format_row(row))
    if reward == "checker":
        typer.echo("The checker is an oracle that knows every right step, and costs nothing: an upper bound.")


def solve(
    prompt: Annotated[str, typer.Argument(help="The problem.")],
    model: Model = "policy-s",
    strategy: Annotated[str, typer.Option(help=STRATEGY_HELP)] = "rebase",
    vote: Vote = "majority",
    width: Width = 16,
    reward: Reward = None,
    temperature: Temperature = 0.8,
    max_new_tokens: MaxNewTokens = 512,
    step_delimiter: StepDelimiter = "\\n",
    tokens: Tokens = None,
    seed: Seed = 0,
    save: Annotated[Path | None, typer.Option(help="Write the whole result there as JSON.")] = None,
    tree: Annotated[bool, typer.Option(help="Print the search tree.")] = False,
    progress: Progress = True,
) -> None:
    """Search for the answer to one problem."""
    from inferscale.cost import Budget
    from inferscale.engine import solve as run

    search, aggregator = make_strategy(strategy, width), make_vote(vote)
    check_scores(search, aggregator, reward)
    budget = None if tokens is None else Budget(tokens=tokens)
    generator = make_generator(model, temperature, max_new_tokens, step_delimiter)
    reward_model = None if reward is None else make_reward(reward, model)
    if model in embedded() and not prompt.endswith("\n"):
        prompt += "\n"  # the embedded policies read a question as a line
    result = run(
        prompt, search, generator, reward_model=reward_model, aggregator=aggregator, budget=budget, seed=seed,
        progress=progress,
    )  # fmt: skip
    _show(result, tree)
    if save is not None:
        typer.echo(f"saved to {result.save(save)}")


def models() -> None:
    """List the embedded models."""
    from inferscale import zoo

    for card in zoo.list():
        figures = ", ".join(f"{name} {value}" for name, value in card.figures.items())
        typer.echo(f"{card.name:<12} {card.kind:<22} {card.parameters:>10,} parameters  {figures}")


def _printable(text: str) -> str:
    """`text` with escapes for what would command a terminal, or cannot be written to it."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: ascii(match[0])[1:-1], text)


def _show(result: SearchResult, tree: bool) -> None:
    from inferscale.render import render_tree

    if tree:
        typer.echo(render_tree(result.root, selected=result.selected_leaf))
    typer.echo(_printable(result.text.rstrip()))
    typer.echo(f"answer: {_printable(str(result.answer))}")
    cost = result.cost
    typer.echo(
        f"{len(result.trajectories)} trajectories, {cost.tokens:,} tokens, {cost.generator_flops:.3g} generator FLOPs, "
        f"{cost.reward_flops:.3g} reward FLOPs, {cost.seconds:.1f} s"
        + (f", stopped by {result.stopped_by}" if result.stopped_by else "")
    )
