"""Counting, best-of-n and the oracle, and the table of weights that a vote is decided by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inferscale.answers import normalize_answer
from inferscale.answers import same_answer as _same_answer
from inferscale.base import Aggregator
from inferscale.tree import Trajectory

from ._voting import (
    Normalize,
    SameAnswer,
    StepReduction,
    as_weights,
    best,
    candidates,
    check_reduction,
    group_answers,
    known_scores,
    require_some,
    vote,
)


@dataclass(frozen=True)
class MajorityVote(Aggregator):
    """The answer with the most trajectories, or with the greatest sum of scores (self-consistency, arXiv:2203.11171).

    Attributes:
        weighted: Whether a trajectory counts by its score (which must be 0 or more) instead of by 1.
        reduction: Scores trajectories anew from their step scores; ``None`` takes the scores they have.
        same_answer: Joins answers with different normal forms, called as ``f(a, b) or f(b, a)`` with the first answer
            of each group; ``None`` compares normal forms alone.
        normalize: Gives an answer's normal form; ``str`` compares answers as they are written.
    """

    weighted: bool = False
    reduction: StepReduction | None = None
    same_answer: SameAnswer | None = None
    normalize: Normalize = field(default=normalize_answer, repr=False)

    def __post_init__(self) -> None:
        check_reduction(self, self.reduction)

    @property
    def needs_scores(self) -> bool:
        """Whether trajectories must have scores."""
        return self.weighted or self.reduction is not None

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """The best-scored trajectory with the winning answer.

        Raises:
            ValueError: If there is none, or scores are needed and missing, negative (weighted) or not finite.
        """
        scores = known_scores(self, trajectories, self.reduction)
        return vote(trajectories, self._weights(trajectories, scores), scores, (self.same_answer, self.normalize))

    def _weights(self, trajectories: Sequence[Trajectory], scores: Mapping[int, float]) -> Mapping[int, float]:
        return as_weights(self, scores) if self.weighted else dict.fromkeys(range(len(trajectories)), 1.0)


@dataclass(frozen=True)
class BestOfN(Aggregator):
    """The trajectory with the greatest score among those with an answer; the earliest on ties.

    Attributes:
        reduction: Scores trajectories anew from their step scores; ``None`` takes the scores they have.
    """

    reduction: StepReduction | None = None

    def __post_init__(self) -> None:
        check_reduction(self, self.reduction)

    @property
    def needs_scores(self) -> bool:
        """Whether trajectories must have scores."""
        return True

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """The best-scored trajectory.

        Raises:
            ValueError: If there is none, no trajectory has a score, or one is not finite.
        """
        scores = known_scores(self, trajectories, self.reduction)
        return trajectories[best(candidates(trajectories, scores), scores)]


@dataclass(frozen=True)
class Oracle(Aggregator):
    """The first trajectory with a correct answer, for evaluation only: its accuracy is the coverage, pass@n.

    Without a correct one it is the first with an answer.

    Attributes:
        grade: Called with an answer and the problem's gold answer.
    """

    grade: SameAnswer = field(default=_same_answer, repr=False)

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """A correct trajectory, if there is one.

        Raises:
            ValueError: If there is no trajectory, or the problem has no gold answer.
        """
        require_some(self, trajectories)
        gold = trajectories[0].problem.answer
        if gold is None:
            raise ValueError("Oracle compares with the gold answer: give Problem(prompt, answer=...)")
        answered = [t for t in trajectories if t.answer is not None]
        correct = (t for t in answered if t.answer is not None and self.grade(t.answer, gold))
        return next(correct, (answered or trajectories)[0])


def answer_weights(
    trajectories: Sequence[Trajectory],
    weighted: bool = False,
    reduction: StepReduction | None = None,
    same_answer: SameAnswer | None = None,
    normalize: Normalize = normalize_answer,
) -> dict[str, float]:
    """Total weight of each answer, in order of first appearance; abstentions are left out.

    Args:
        trajectories: What a search returned.
        weighted: Whether a trajectory counts by its score instead of by 1.
        reduction: As in `MajorityVote`.
        same_answer: As in `MajorityVote`.
        normalize: As in `MajorityVote`.

    Returns:
        The first answer of each group as it was written, with the group's weight; empty if all abstain.

    Raises:
        ValueError: If scores are needed and missing, negative or not finite.
    """
    if not trajectories:
        return {}
    majority = MajorityVote(weighted, reduction, same_answer)
    weights = majority._weights(trajectories, known_scores(majority, trajectories, reduction))
    groups = group_answers(
        (t.answer if i in weights else None for i, t in enumerate(trajectories)), same_answer, normalize
    )
    return {str(trajectories[group[0]].answer): math.fsum(weights[i] for i in group) for group in groups}
