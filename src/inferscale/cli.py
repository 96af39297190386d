"""The command line: ``inferscale demo``, ``inferscale solve``, ``inferscale models``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from .base import Aggregator, Generator, RewardModel, SearchStrategy

app = typer.Typer(
    name="inferscale",
    help="Inference-time scaling of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
STRATEGIES = ("greedy", "sampling", "beam", "dvts", "rebase")
VOTES = ("majority", "weighted", "best-of-n")


class UsageError(Exception):
    """Bad input: one line that says what to do."""


def main() -> None:
    """Runs the command line; bad input is one line on standard error and exit code 2, Ctrl-C is 130."""
    try:
        app(standalone_mode=True)
    except (UsageError, ValueError, TypeError, OSError, ImportError) as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"inferscale: {' '.join(message.split())}", err=True)
    sys.exit(code)


@app.command()
def demo(
    problems: Annotated[int, typer.Option(min=2, help="Problems of the fixed test set (at most 500).")] = 60,
    width: Annotated[int, typer.Option(min=1, help="Samples or leaves of each strategy.")] = 16,
    model: Annotated[str, typer.Option(help="An embedded policy.")] = "policy-s",
    reward: Annotated[str, typer.Option(help="'checker' (the exact oracle) or an embedded reward model.")] = "checker",
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Any integer.")] = 0,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Compare the strategies on an embedded model: accuracy, tokens, FLOPs. No network needed."""
    from . import zoo
    from .demo import HEADER, format_row, rows

    chosen = zoo.problems("test")[:problems]
    generator, reward_model = _generator(model, temperature), _reward(reward)
    typer.echo(f"{model}, reward: {reward}, {len(chosen)} test problems, temperature {temperature}, seed {seed}")
    typer.echo("Tokens, generator FLOPs and reward FLOPs are means over problems; seconds are for all of them.")
    typer.echo(HEADER)
    for row in rows(chosen, generator, reward_model, width, seed, progress):
        typer.echo(format_row(row))
    if reward == "checker":
        typer.echo("The checker is an oracle that knows every right step, and costs nothing: an upper bound.")


@app.command()
def solve(
    prompt: Annotated[str, typer.Argument(help="The problem.")],
    model: Annotated[str, typer.Option(help="A local path, a hub id, or an embedded policy.")] = "policy-s",
    strategy: Annotated[str, typer.Option(help=f"One of {', '.join(STRATEGIES)}.")] = "rebase",
    vote: Annotated[str, typer.Option(help=f"One of {', '.join(VOTES)}.")] = "majority",
    width: Annotated[int, typer.Option(help="Samples or leaves.")] = 16,
    reward: Annotated[str | None, typer.Option(help="'checker', 'likelihood', or a process reward model.")] = None,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 0.8,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a solution.")] = 512,
    step_delimiter: Annotated[str, typer.Option(help="What ends a step.")] = "\\n",
    tokens: Annotated[int | None, typer.Option(help="Token budget.")] = None,
    seed: Annotated[int, typer.Option(help="Any integer.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the whole result there as JSON.")] = None,
    tree: Annotated[bool, typer.Option(help="Print the search tree.")] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Search for the answer to one problem."""
    from .cost import Budget
    from .engine import solve as run
    from .render import render_tree

    search, aggregator = _strategy(strategy, width), _vote(vote)
    if reward is None and (search.needs_scores or aggregator.needs_scores):
        needy = f"--strategy {strategy}" if search.needs_scores else f"--vote {vote}"
        raise UsageError(f"{needy} needs scores: give --reward checker, likelihood, or a process reward model")
    budget = None if tokens is None else Budget(tokens=tokens)
    generator = _generator(model, temperature, max_new_tokens, step_delimiter.encode().decode("unicode_escape"))
    reward_model = None if reward is None else _reward(reward, model)
    if _is_embedded(model) and not prompt.endswith("\n"):
        prompt += "\n"  # the embedded policies read a question as a line
    result = run(
        prompt, search, generator, reward_model=reward_model, aggregator=aggregator, budget=budget, seed=seed,
        progress=progress,
    )  # fmt: skip
    if tree:
        chosen = result.leaves[result.trajectories.index(result.selected)]
        typer.echo(render_tree(result.root, selected=chosen))
    typer.echo(result.text.rstrip())
    typer.echo(f"answer: {result.answer}")
    cost = result.cost
    typer.echo(
        f"{len(result.trajectories)} trajectories, {cost.tokens:,} tokens, {cost.generator_flops:.3g} generator FLOPs, "
        f"{cost.reward_flops:.3g} reward FLOPs, {cost.seconds:.1f} s"
        + (f", stopped by {result.stopped_by}" if result.stopped_by else "")
    )
    if save is not None:
        typer.echo(f"saved to {result.save(save)}")


@app.command()
def models() -> None:
    """List the embedded models."""
    from . import zoo

    for card in zoo.list():
        figures = ", ".join(f"{name} {value}" for name, value in card.figures.items())
        typer.echo(f"{card.name:<12} {card.kind:<22} {card.parameters:>10,} parameters  {figures}")


def _strategy(name: str, width: int) -> SearchStrategy:
    from .strategies import DVTS, REBASE, BeamSearch, Greedy, RepeatedSampling

    if width < 1:
        raise UsageError(f"--width {width}: give at least 1")
    branching = min(4, width)
    made: dict[str, SearchStrategy] = {
        "greedy": Greedy(),
        "sampling": RepeatedSampling(width),
        "beam": BeamSearch(max(1, width // branching), branching),
        "dvts": DVTS(max(1, width // branching), branching),
        "rebase": REBASE(width),
    }
    if name not in made:
        raise UsageError(f"unknown strategy {name!r}: choose one of {', '.join(STRATEGIES)}")
    return made[name]


def _vote(name: str) -> Aggregator:
    from .aggregators import BestOfN, MajorityVote

    made: dict[str, Aggregator] = {
        "majority": MajorityVote(),
        "weighted": MajorityVote(weighted=True),
        "best-of-n": BestOfN(),
    }
    if name not in made:
        raise UsageError(f"unknown vote {name!r}: choose one of {', '.join(VOTES)}")
    return made[name]


def _generator(model: str, temperature: float, max_new_tokens: int = 512, step_delimiter: str = "\n") -> Generator:
    from . import zoo
    from .generators import HFGenerator

    parts: tuple[Any, ...] = zoo.load(model) if _is_embedded(model) else (model,)
    return HFGenerator(*parts, temperature=temperature, max_new_tokens=max_new_tokens, step_delimiter=step_delimiter)


def _reward(name: str, policy: str = "") -> RewardModel:
    from . import zoo
    from .rewards import CheckerReward, HFProcessRewardModel, LikelihoodReward

    if name == "checker":
        return CheckerReward()
    if name == "likelihood":
        return LikelihoodReward(*zoo.load(policy)) if _is_embedded(policy) else LikelihoodReward(policy)
    return HFProcessRewardModel(*zoo.load(name)) if _is_embedded(name) else HFProcessRewardModel(name)


def _is_embedded(name: str) -> bool:
    from . import zoo

    return name in {card.name for card in zoo.list()}
