"""Making a reward model's step scores mean what they say: chances of being right, learnt from labelled steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from inferscale.base import ProcessRewardModel
from inferscale.cost import Cost
from inferscale.functional import Reduction
from inferscale.tree import Node

from .labelled_scores import labelled_scores
from .labels import LabelledSolution

Floats = NDArray[np.float64]


class Calibration(Protocol):
    """A growing function from scores to chances."""

    @classmethod
    def fit(cls, scores: Sequence[float], labels: Sequence[float]) -> Self:
        """Learns it from scores and labels between 0 and 1."""
        ...

    def __call__(self, score: float) -> float:
        """The chance that a step with this score is right."""
        ...


@dataclass(frozen=True, slots=True)
class PlattCalibration:
    """``sigmoid(slope * score + intercept)`` (Platt 1999), two numbers, for few labels.

    Attributes:
        slope: Of the score; never negative.
        intercept: Added.
    """

    slope: float
    intercept: float

    @classmethod
    def fit(cls, scores: Sequence[float], labels: Sequence[float]) -> Self:
        """The maximum-likelihood curve, with Platt's pull away from 0 and 1.

        Args:
            scores: Any finite numbers.
            labels: Chances between 0 and 1 of the same length.

        Raises:
            ValueError: If there are no labels of both kinds.
        """
        from scipy.optimize import minimize
        from scipy.special import expit

        x, y = _checked(scores, labels)
        good = float(y.sum())
        bad = len(y) - good
        # Platt's targets: (N+ + 1) / (N+ + 2) for right steps and 1 / (N- + 2) for wrong ones
        target = y * (good + 1) / (good + 2) + (1 - y) / (bad + 2)
        centre, spread = float(x.mean()), float(x.std()) or 1.0
        z = (x - centre) / spread

        def loss(parameters: Floats) -> tuple[float, Floats]:
            margin = parameters[0] * z + parameters[1]
            error = expit(margin) - target
            total = float(np.logaddexp(0, margin).sum() - (target * margin).sum())
            return total, np.array([(error * z).sum(), error.sum()])

        start = np.array([1.0, math.log((good + 1) / (bad + 1))])
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)]).x
        slope = float(found[0]) / spread
        return cls(slope, float(found[1]) - slope * centre)

    def __call__(self, score: float) -> float:
        """The chance that a step with this score is right."""
        margin = self.slope * score + self.intercept
        return 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))


@dataclass(frozen=True, slots=True)
class IsotonicCalibration:
    """The best growing function (pool adjacent violators), straight between its knots, for many labels.

    Attributes:
        scores: Knots, growing.
        chances: The value at each.
    """

    scores: tuple[float, ...]
    chances: tuple[float, ...]

    @classmethod
    def fit(cls, scores: Sequence[float], labels: Sequence[float]) -> Self:
        """The least-squares growing function of the scores.

        Raises:
            ValueError: If there are no labels of both kinds.
        """
        from scipy.optimize import isotonic_regression

        x, y = _checked(scores, labels)
        knots, place, counts = np.unique(x, return_inverse=True, return_counts=True)
        means = np.bincount(place, weights=y) / counts
        return cls(tuple(knots.tolist()), tuple(isotonic_regression(means, weights=counts).x.tolist()))

    def __call__(self, score: float) -> float:
        """The chance that a step with this score is right."""
        return float(np.interp(score, self.scores, self.chances))


class CalibratedReward(ProcessRewardModel):
    """A process reward model whose step scores are chances of being right.

    Calibrated scores can be multiplied (``reduction="prod"``), compared with those of another model and joined with
    them. The order of steps does not change, but for ties of `IsotonicCalibration`.

    Attributes:
        model: The model.
        calibration: From its step scores to chances.
        reduction: How calibrated step scores become one score.
    """

    def __init__(self, model: ProcessRewardModel, calibration: Calibration, reduction: Reduction | None = None) -> None:
        """Wraps a model; its own reduction is kept unless another is given.

        Raises:
            TypeError: If `model` is not a process reward model.
        """
        if not isinstance(model, ProcessRewardModel):
            raise TypeError(f"CalibratedReward needs step scores, which {type(model).__name__} does not give")
        self.model = model
        self.concurrent = model.concurrent
        self.calibration = calibration
        self.reduction = reduction or model.reduction

    @classmethod
    def fit(
        cls,
        model: ProcessRewardModel,
        solutions: Sequence[LabelledSolution],
        method: type[Any] = PlattCalibration,
        reduction: Reduction | None = None,
    ) -> Self:
        """The model, calibrated on labelled steps.

        Args:
            model: The model.
            solutions: Solutions with labels, other ones than those that it will be judged on.
            method: `PlattCalibration`, `IsotonicCalibration`, or a class with the same `fit`.
            reduction: How calibrated step scores become one score.

        Raises:
            ValueError: If there are no labels of both kinds.
        """
        pairs = [pair for row in labelled_scores(model, solutions) for pair in row]
        return cls(model, method.fit([score for score, _ in pairs], [label for _, label in pairs]), reduction)

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """The chance of each step."""
        return [[self.calibration(score) for score in scores] for scores in self.model.step_scores(nodes)]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What the model costs."""
        return self.model.cost(nodes)

    def release(self, root: Node) -> None:
        """Tells the model."""
        self.model.release(root)


def _checked(scores: Sequence[float], labels: Sequence[float]) -> tuple[Floats, Floats]:
    x, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"{len(scores)} scores and {len(labels)} labels: give one label for each score")
    if not len(x) or not y.max() > y.min():
        raise ValueError("calibration needs right and wrong steps: all labels given are the same")
    if not np.isfinite(x).all() or not ((y >= 0) & (y <= 1)).all():
        raise ValueError("scores must be finite numbers and labels between 0 and 1")
    return x, y
