"""Points of a scaling curve, and the evidence that they are computed from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from inferscale.aggregators import SameAnswer, group_answers
from inferscale.answers import same_answer
from inferscale.result import SearchResult
from inferscale.tree import Step

Floats: TypeAlias = NDArray[np.float64]
Vote: TypeAlias = Literal["majority", "weighted", "best-of-n", "coverage"]
VOTES: tuple[Vote, ...] = ("majority", "weighted", "best-of-n", "coverage")
SCORED_VOTES = ("weighted", "best-of-n")


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy and cost of one strategy, with one vote, at one number of samples; costs are means over problems.

    Attributes:
        strategy: The strategy, without its number of samples.
        vote: ``"majority"`` (tied answers share the credit), ``"weighted"``, ``"best-of-n"``, or ``"coverage"``
            (any sample is right: an upper bound, not a method).
        n: Samples, or leaves of the search.
        accuracy: Share of problems answered right.
        standard_error: Of the accuracy, over problems.
        problems: Number of problems.
        tokens: Sampled tokens of a problem, pruned branches included.
        generator_flops: FLOPs of the policy, prompt included once.
        reward_flops: FLOPs of the reward model; 0 for a vote over samples that reads no score.
        seconds: Time in the models.
        memory_bytes: Most memory of the run, if it was measured.
        model: Name of the policy.
        parameters: Its size, for fits of the optimal size.
        per_problem: Expected correctness of each problem, in their order; for paired comparisons.
    """

    strategy: str
    vote: Vote
    n: int
    accuracy: float
    standard_error: float
    problems: int
    tokens: float
    generator_flops: float
    reward_flops: float
    seconds: float
    memory_bytes: int | None = None
    model: str = ""
    parameters: int | None = None
    per_problem: tuple[float, ...] = field(default=(), repr=False)

    @property
    def flops(self) -> float:
        """FLOPs of policy and reward model together."""
        return self.generator_flops + self.reward_flops

    @property
    def error(self) -> float:
        """Share of problems answered wrong."""
        return 1.0 - self.accuracy

    @property
    def method(self) -> str:
        """Model and strategy."""
        return ", ".join(part for part in (self.model, self.strategy) if part)

    @property
    def name(self) -> str:
        """Model, strategy and vote: points of one name are one curve."""
        return f"{self.method}, {self.vote}"

    def row(self) -> dict[str, Any]:
        """Plain data for tables, without the numbers of single problems."""
        kept = (f.name for f in fields(self) if f.name != "per_problem")
        return {**{name: getattr(self, name) for name in kept}, "flops": self.flops}


@dataclass(frozen=True)
class Evidence:
    """What one search found for one problem.

    Attributes:
        ids: `[N]`, answers as numbers, -1 for an abstention.
        correct: `[N]`, 0 or 1.
        scores: `[N]`, or ``None`` if a trajectory with an answer has none.
        shared: Cost paid once, whatever the number of samples: tokens 0, generator FLOPs of the prompt.
        each: Cost of one sample on average: tokens, generator FLOPs, reward FLOPs, seconds.
    """

    ids: NDArray[np.int64]
    correct: NDArray[np.int64]
    scores: Floats | None
    shared: Floats
    each: Floats

    @property
    def size(self) -> int:
        """Number of samples N."""
        return len(self.ids)


def gather_evidence(
    results: Sequence[SearchResult],
    grade: SameAnswer = same_answer,
    correct: Sequence[Sequence[bool]] | None = None,
) -> list[Evidence]:
    """The evidence of each result.

    Args:
        results: Searches of problems with gold answers.
        grade: Tells whether two answers are the same; joins the answers of a vote too.
        correct: Whether each trajectory is right, if that is known (as in the records of a run).

    Raises:
        ValueError: If a problem has no gold answer.
    """
    predicate = None if grade is same_answer else grade
    return [
        _evidence(result, grade, predicate, None if correct is None else correct[index])
        for index, result in enumerate(results)
    ]


def point(values: Floats, cost: Floats, strategy: str, vote: Vote, n: int, charged: bool, **about: Any) -> CurvePoint:
    """The point of per-problem values `[P]` and costs `[P, 4]` (tokens, generator and reward FLOPs, seconds)."""
    tokens, generator, reward, seconds = cost.mean(axis=0).tolist()
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return CurvePoint(
        strategy, vote, n, float(values.mean()), error, len(values), tokens, generator, reward if charged else 0.0,
        seconds, per_problem=tuple(values.tolist()), **about,
    )  # fmt: skip


def _evidence(
    result: SearchResult, grade: SameAnswer, predicate: Callable[[str, str], bool] | None, known: Sequence[bool] | None
) -> Evidence:
    answers = [trajectory.answer for trajectory in result.trajectories]
    gold = result.problem.answer
    if gold is None:
        raise ValueError(f"{result.problem.id or result.problem.prompt[:60]!r} has no gold answer to grade with")
    ids = np.full(len(answers), -1, dtype=np.int64)
    for number, group in enumerate(group_answers(answers, predicate)):
        ids[group] = number
    if known is None:
        verdicts = {answer: grade(answer, gold) for answer in dict.fromkeys(answers) if answer is not None}
        known = [answer is not None and verdicts[answer] for answer in answers]
    if len(known) != len(answers):
        raise ValueError(f"{len(known)} verdicts for {len(answers)} trajectories of {result.problem.prompt[:60]!r}")
    given = [t.score for t in result.trajectories]
    missing = any(score is None for score, answer in zip(given, answers, strict=True) if answer is not None)
    scores = None if missing else np.asarray([0.0 if score is None else score for score in given])
    shared, each = _costs(result)
    return Evidence(ids, np.asarray(known, dtype=np.int64), scores, shared, each)


def _costs(result: SearchResult) -> tuple[Floats, Floats]:
    cost, count = result.cost, max(len(result.trajectories), 1)
    prompt = _prompt_flops([child.step for child in result.root.children if child.step is not None])
    shared = np.asarray([0.0, prompt, 0.0, 0.0])
    total = np.asarray([cost.tokens, cost.generator_flops, cost.reward_flops, cost.seconds], dtype=np.float64)
    return shared, (total - shared) / count


def _prompt_flops(samples: Sequence[Step]) -> float:
    """FLOPs of reading the prompt: what the samples that were charged with it cost beyond the others, by token."""
    free = [step for step in samples if not step.prompt_tokens and step.generated_tokens]
    if not free:
        return 0.0
    per_token = sum(step.flops for step in free) / sum(step.generated_tokens for step in free)
    paid = [step for step in samples if step.prompt_tokens]
    return max(0.0, float(sum(step.flops - per_token * step.generated_tokens for step in paid)))
