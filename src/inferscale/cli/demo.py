"""The demo: the strategies side by side on an embedded model, or on a real one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from inferscale.aggregators import BestOfN, MajorityVote
from inferscale.base import Aggregator, Generator, RewardModel, SearchStrategy
from inferscale.cost import Cost
from inferscale.engine.result import SearchResult
from inferscale.engine.solver import solve_batch
from inferscale.strategies import DVTS, REBASE, BeamSearch, Greedy, RepeatedSampling
from inferscale.tree import Problem

if TYPE_CHECKING:
    from inferscale.generators import HFGenerator


@dataclass(frozen=True)
class Setting:
    """Defaults of the demo.

    Attributes:
        problems: Number of problems.
        width: Samples or leaves of each strategy.
        temperature: Of sampling.
        reward: Name of the reward model.
    """

    problems: int
    width: int
    temperature: float
    reward: str


EMBEDDED = Setting(60, 16, 1.0, "prm-s")
REAL = Setting(20, 4, 0.5, "likelihood")  # some minutes on two cores

_SHOTS = (
    ("Anna has 5 red and 7 green apples. How many apples does she have?", "5 + 7 = 12", "12"),
    ("A ticket costs 3 dollars. How much do 9 tickets cost?", "9 * 3 = 27", "27"),
    ("Kim had 20 nuts. She ate 8 of them. How many nuts are left?", "20 - 8 = 12", "12"),
)


def real_parts(model: str, temperature: float) -> tuple[list[Problem], HFGenerator, RewardModel]:
    """Word problems behind worked examples of two lines, a real model that continues them, and its own likelihood."""
    from inferscale import zoo
    from inferscale.generators import HFGenerator
    from inferscale.rewards import LikelihoodReward

    shots = "".join(f"Question: {q}\nAnswer:\n{line}\nThe answer is {n}.\n\n" for q, line, n in _SHOTS)
    problems = [replace(p, prompt=f"{shots}Question: {p.prompt}\nAnswer:\n") for p in zoo.word_problems()]
    generator = HFGenerator(
        *zoo.load(model), temperature=temperature, stop=("\n\n", "Question:"), max_new_tokens=48, chat_template=False
    )
    reward = LikelihoodReward.from_generator(
        generator, token_reduction="min", reduction="min", use_token_ids=True, step_separator=None
    )
    return problems, generator, reward


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
    beams = max(1, width // branching)
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
            BeamSearch(beams, branching),
            [(f"beam search {beams}x{branching}, weighted vote", MajorityVote(weighted=True))],
        ),
        (DVTS(beams, branching), [(f"DVTS {beams}x{branching}, weighted vote", MajorityVote(weighted=True))]),
        (REBASE(width), [(f"REBASE width={width}, weighted vote", MajorityVote(weighted=True))]),
    ]
    if beams == 1:
        del searches[3]  # the subtrees of DVTS are one beam search each
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
