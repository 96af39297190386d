"""The demo: the strategies side by side on an embedded model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from inferscale.aggregators import BestOfN, MajorityVote
from inferscale.base import Aggregator, Generator, RewardModel, SearchStrategy
from inferscale.cost import Cost
from inferscale.engine.result import SearchResult
from inferscale.engine.solver import solve_batch
from inferscale.strategies import DVTS, REBASE, BeamSearch, Greedy, RepeatedSampling
from inferscale.tree import Problem


@dataclass(frozen=True)
class Row:
    """One line of the demo's table.

    Attributes:
        name: Strategy and vote.
        accuracy: Share of problems answered right.
        standard_error: Of the accuracy, over problems.
        cost: Mean cost of a problem.
        wall_seconds: Time in the models, for all problems.
    """

    name: str
    accuracy: float
    standard_error: float
    cost: Cost
    wall_seconds: float


def rows(
    problems: Sequence[Problem],
    generator: Generator,
    reward_model: RewardModel,
    width: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Row]:
    """The table's rows, as they are measured; votes over the same samples are read without sampling again."""
    branching = min(4, width)
    searches: list[tuple[SearchStrategy, list[tuple[str, Aggregator]]]] = [
        (Greedy(), [("greedy", MajorityVote())]),
        (
            RepeatedSampling(width),
            [
                (f"sampling n={width}, majority vote", MajorityVote()),
                (f"sampling n={width}, weighted vote", MajorityVote(weighted=True)),
                (f"sampling n={width}, best of n", BestOfN()),
            ],
        ),
        (
            BeamSearch(max(1, width // branching), branching),
            [(f"beam search {max(1, width // branching)}x{branching}, weighted vote", MajorityVote(weighted=True))],
        ),
        (
            DVTS(max(1, width // branching), branching),
            [(f"DVTS {max(1, width // branching)}x{branching}, weighted vote", MajorityVote(weighted=True))],
        ),
        (REBASE(width), [(f"REBASE width={width}, weighted vote", MajorityVote(weighted=True))]),
    ]
    for strategy, votes in searches:
        scored = None if isinstance(strategy, Greedy) else reward_model
        results = solve_batch(problems, strategy, generator, reward_model=scored, seed=seed, progress=progress)
        for name, aggregator in votes:
            judged = [result.reaggregate(aggregator) for result in results]
            unscored = not aggregator.needs_scores and not strategy.needs_scores
            yield _row(name, judged, without_reward=unscored)


def _row(name: str, results: Sequence[SearchResult], without_reward: bool) -> Row:
    """The row of some results; a vote that reads no score is not charged for the reward model."""
    right = [bool(result.is_correct) for result in results]
    accuracy = sum(right) / len(right)
    total = sum((result.cost for result in results), Cost())
    count = len(results)
    cost = Cost(
        prompt_tokens=total.prompt_tokens // count,
        generated_tokens=total.generated_tokens // count,
        scored_tokens=0 if without_reward else total.scored_tokens // count,
        generator_flops=total.generator_flops // count,
        reward_flops=0 if without_reward else total.reward_flops // count,
        num_generated=total.num_generated // count,
    )
    error = math.sqrt(accuracy * (1 - accuracy) / (count - 1)) if count > 1 else math.nan
    return Row(name, accuracy, error, cost, total.seconds)


HEADER = f"{'strategy':<38} {'accuracy':>15} {'tokens':>8} {'MFLOPs':>9} {'reward':>9} {'seconds':>8}"


def format_row(row: Row) -> str:
    """The row as text: accuracy in percent with its standard error; tokens and FLOPs are means over problems."""
    accuracy = f"{100 * row.accuracy:5.1f} ± {100 * row.standard_error:4.1f} %"
    reward = f"{row.cost.reward_flops / 1e6:.1f}"
    return (
        f"{row.name:<38} {accuracy:>15} {row.cost.generated_tokens:>8,} "
        f"{row.cost.generator_flops / 1e6:>9.1f} {reward:>9} {row.wall_seconds:>8.1f}"
    )
