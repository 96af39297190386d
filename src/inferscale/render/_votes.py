"""How many trajectories gave which answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferscale.aggregators import group_answers
from inferscale.tree import Trajectory

MOST_VOTES = 8
"""Answers whose votes are shown; the others are summed up."""


@dataclass(frozen=True)
class Votes:
    """The trajectories with one answer; ``None`` abstains.

    Attributes:
        answer: As the first of them wrote it.
        members: The trajectories, in order.
    """

    answer: str | None
    members: tuple[Trajectory, ...]

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.members)

    @property
    def scores(self) -> list[float]:
        """Scores of those that have one."""
        return [member.score for member in self.members if member.score is not None]

    @property
    def score(self) -> float | None:
        """The mean score, or ``None``."""
        scores = self.scores
        return sum(score / len(scores) for score in scores) if scores else None

    def has(self, trajectory: Trajectory) -> bool:
        """Whether a trajectory is one of them."""
        return trajectory in self.members


def votes_of(trajectories: Sequence[Trajectory]) -> list[Votes]:
    """The votes for each answer, the most frequent first, then in order of appearance; abstentions last."""
    answers = [trajectory.answer for trajectory in trajectories]
    groups = sorted(group_answers(answers), key=len, reverse=True)
    abstained = [place for place, answer in enumerate(answers) if answer is None]
    return [
        Votes(answers[group[0]], tuple(trajectories[place] for place in group))
        for group in [*groups, *([abstained] if abstained else [])]
    ]
