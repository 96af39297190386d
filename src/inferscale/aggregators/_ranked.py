"""Votes whose weights are ranks or confidences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from inferscale.answers import normalize_answer
from inferscale.base import Aggregator
from inferscale.tree import Trajectory

from ._voting import (
    Normalize,
    SameAnswer,
    StepReduction,
    as_weights,
    check_reduction,
    known_scores,
    require_some,
    vote,
)

_MAX_EXPONENT = 700.0  # exp of it is just within float64


@dataclass(frozen=True)
class BordaVote(Aggregator):
    """A vote weighted by rank: of n voters the r-th best by score has the weight ``(n - r + 1) ** p``.

    Kang et al. 2025 (arXiv:2502.18581) rank by self-certainty and use p = 0.5 in their script. With p = 0 it is the
    majority vote; the greater p, the closer to best-of-n.

    Attributes:
        p: The exponent, 0 or more.
        reduction: Scores trajectories anew from their step scores; ``None`` takes the scores they have.
        same_answer: As in `MajorityVote`.
        normalize: As in `MajorityVote`.
    """

    p: float = 0.5
    reduction: StepReduction | None = None
    same_answer: SameAnswer | None = None
    normalize: Normalize = field(default=normalize_answer, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.p) and self.p >= 0):
            raise ValueError(f"BordaVote: p must be 0 or more, got {self.p!r}")
        check_reduction(self, self.reduction)

    @property
    def needs_scores(self) -> bool:
        """Whether trajectories must have scores."""
        return True

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """The best-scored trajectory with the winning answer; equal scores rank in order of appearance.

        Raises:
            ValueError: If there is none, no trajectory has a score, or one is not finite.
        """
        scores = known_scores(self, trajectories, self.reduction)
        voters = [i for i in scores if trajectories[i].answer is not None]
        ranked = sorted(voters, key=scores.__getitem__, reverse=True)
        n = len(voters)
        # Sums of whole powers are exact, so ties are ties; where n^p is beyond float64, weights are shares of it.
        unit = 1 if (self.p + 1) * math.log(max(n, 1)) < _MAX_EXPONENT else n
        weights = {i: ((n - rank) / unit) ** self.p for rank, i in enumerate(ranked)}
        return vote(trajectories, weights, scores, (self.same_answer, self.normalize))


@dataclass(frozen=True)
class ConfidenceVote(Aggregator):
    """A vote weighted by the confidence that the generator reported with each step.

    ``over="min"`` is the lowest group of DeepConf (arXiv:2508.15260) with steps for groups.

    Attributes:
        over: Confidence of a trajectory from those of its steps: their ``"mean"`` over tokens, ``"min"`` or
            ``"last"``.
        same_answer: As in `MajorityVote`.
        normalize: As in `MajorityVote`.
    """

    over: Literal["mean", "min", "last"] = "mean"
    same_answer: SameAnswer | None = None
    normalize: Normalize = field(default=normalize_answer, repr=False)

    def __post_init__(self) -> None:
        if self.over not in ("mean", "min", "last"):
            raise ValueError(f'ConfidenceVote: over must be "mean", "min" or "last", got {self.over!r}')

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """The most confident trajectory with the winning answer; one of unknown confidence abstains.

        Raises:
            ValueError: If there is none, no confidence is known, or one is negative or not finite.
        """
        require_some(self, trajectories)
        known = ((i, self._confidence(trajectory)) for i, trajectory in enumerate(trajectories))
        advice = 'a generator made with confidence="self_certainty" or "deepconf" reports such'
        weights = as_weights(self, {i: confidence for i, confidence in known if confidence is not None}, advice)
        if not weights:
            raise ValueError(f"{self!r} found no confidence: use a generator that reports it, or MajorityVote()")
        return vote(trajectories, weights, weights, (self.same_answer, self.normalize))

    def _confidence(self, trajectory: Trajectory) -> float | None:
        """Confidence of the whole, ``None`` unless all steps have one."""
        known = [step.confidence for step in trajectory.steps if step.confidence is not None]
        if not known or len(known) < len(trajectory.steps):
            return None
        if any(map(math.isnan, known)):
            return math.nan  # min() may pass over it
        if self.over != "mean":
            return min(known) if self.over == "min" else known[-1]
        tokens = [max(step.generated_tokens, 1) for step in trajectory.steps]
        return math.fsum(value * count for value, count in zip(known, tokens, strict=True)) / sum(tokens)
