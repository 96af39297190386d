"""The rule that all votes share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias, get_args

from inferscale.answers import normalize_answer
from inferscale.base import Aggregator
from inferscale.functional import Reduction, reduce_steps
from inferscale.tree import Trajectory

SameAnswer: TypeAlias = Callable[[str, str], bool]
"""Tells whether two answers are the same; it need be neither symmetric nor transitive."""

Normalize: TypeAlias = Callable[[str], str]
"""Gives an answer's normal form: answers with one normal form are the same."""

StepReduction: TypeAlias = Reduction | Callable[[Sequence[float]], float]
"""A named reduction of step scores, or a function of them (which may see scores outside [0, 1])."""


def group_answers(
    answers: Iterable[str | None], same_answer: SameAnswer | None = None, normalize: Normalize = normalize_answer
) -> list[list[int]]:
    """Positions of equal answers, groups and members in order of appearance; ``None`` is in no group.

    An answer joins the group that holds its normal form, else the first one whose first answer `same_answer`
    accepts, else it starts a group.

    Args:
        answers: The answers.
        same_answer: Tried both ways round; ``None`` compares normal forms alone.
        normalize: Gives the normal form; ``str`` compares answers as they are written.
    """
    groups: list[list[int]] = []
    firsts: list[str] = []
    group_of_form: dict[str, list[int]] = {}
    for position, answer in enumerate(answers):
        if answer is None:
            continue
        form = normalize(answer)
        group = group_of_form.get(form)
        if group is None and same_answer is not None:
            known = zip(firsts, groups, strict=True)
            group = next((g for first, g in known if same_answer(answer, first) or same_answer(first, answer)), None)
        if group is None:
            group = []
            groups.append(group)
            firsts.append(answer)
        group_of_form[form] = group
        group.append(position)
    return groups


def vote(
    trajectories: Sequence[Trajectory],
    weights: Mapping[int, float],
    scores: Mapping[int, float],
    grouping: tuple[SameAnswer | None, Normalize],
) -> Trajectory:
    """The best-scored trajectory of the group with the greatest weight.

    Args:
        trajectories: At least one.
        weights: By position; a trajectory without a weight or an answer abstains.
        scores: By position; they break ties between groups if all voters have one.
        grouping: The last two arguments of `group_answers`.
    """
    groups = group_answers((t.answer if i in weights else None for i, t in enumerate(trajectories)), *grouping)
    if not groups:
        return trajectories[best(candidates(trajectories, scores), scores)]
    use_scores = all(i in scores for group in groups for i in group)

    def rank(group: Sequence[int]) -> tuple[float | Fraction, float | Fraction]:
        return _total([weights[i] for i in group]), _total([scores[i] for i in group] if use_scores else [])

    winner: list[int] = max(groups, key=rank)  # the first of equals
    return trajectories[best(winner, scores)]


def _total(values: Sequence[float]) -> float | Fraction:
    """The sum in whatever order; exact where it is beyond floating-point numbers."""
    try:
        return math.fsum(values)
    except OverflowError:
        return sum(map(Fraction, values), Fraction(0))


def candidates(trajectories: Sequence[Trajectory], scores: Mapping[int, float]) -> list[int]:
    """Positions with an answer and a score; if there is none, with an answer; if there is none, all."""
    answered = [i for i, trajectory in enumerate(trajectories) if trajectory.answer is not None]
    return [i for i in answered if i in scores] or answered or list(range(len(trajectories)))


def best(positions: Iterable[int], scores: Mapping[int, float]) -> int:
    """The best-scored of `positions`, the first on ties; those without a score come last."""
    return max(positions, key=lambda i: scores.get(i, -math.inf))


def known_scores(
    aggregator: Aggregator, trajectories: Sequence[Trajectory], reduction: StepReduction | None
) -> dict[int, float]:
    """Scores by position, of the trajectories that have one.

    Raises:
        ValueError: If there are no trajectories, `aggregator` needs scores and there are none, or one is not finite.
    """
    require_some(aggregator, trajectories)
    found = ((i, _score(trajectory, reduction)) for i, trajectory in enumerate(trajectories))
    scores = {i: score for i, score in found if score is not None}
    if aggregator.needs_scores and not scores:
        missing = "scores: pass reward_model=..." if reduction is None else "step scores: use a ProcessRewardModel"
        raise ValueError(f"{aggregator!r} needs trajectories with {missing}")
    for score in scores.values():
        if not math.isfinite(score):
            raise ValueError(f"{aggregator!r} needs finite scores, got {score!r}")
    return scores


def as_weights(
    aggregator: Aggregator, scores: Mapping[int, float], advice: str = "rescale them, or use BordaVote()"
) -> Mapping[int, float]:
    """`scores`, if they can be weights.

    Raises:
        ValueError: If one is negative or not finite.
    """
    for score in scores.values():
        if not 0 <= score < math.inf:
            raise ValueError(f"{aggregator!r} needs weights of 0 or more, got {score!r}: {advice}")
    return scores


def check_reduction(aggregator: Aggregator, reduction: StepReduction | None) -> None:
    """Raise a ValueError unless `reduction` is a name or a function, or there is none."""
    if reduction is not None and not callable(reduction) and reduction not in get_args(Reduction):
        names = ", ".join(map(repr, get_args(Reduction)))
        raise ValueError(f"{type(aggregator).__name__}(reduction={reduction!r}): choose one of {names}, or a function")


def require_some(aggregator: Aggregator, trajectories: Sequence[Trajectory]) -> None:
    """Raise a ValueError if there are no trajectories."""
    if not trajectories:
        raise ValueError(f"{aggregator!r} has no trajectories to choose from: the list is empty")


def _score(trajectory: Trajectory, reduction: StepReduction | None) -> float | None:
    if reduction is None:
        return trajectory.score
    if not trajectory.step_scores:
        return None
    if callable(reduction):
        return float(reduction(trajectory.step_scores))
    return float(reduce_steps(trajectory.step_scores, reduction))
