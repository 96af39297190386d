"""Diagnosis of a reward model on labelled steps, and calibration: scores that are probabilities of being right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from inferscale.base import ProcessRewardModel, RewardModel
from inferscale.cost import Cost
from inferscale.functional import Reduction, best_of_k, pass_at_k
from inferscale.tree import Node

from .labels import LabelledSolution


def solution_scores(model: ProcessRewardModel, solutions: Sequence[LabelledSolution]) -> list[list[float]]:
    """The step scores of each solution.

    Raises:
        ValueError: If the model gives another number of scores than there are steps.
    """
    nodes = [item.node() for item in solutions]
    lists = model.step_scores(nodes)
    for node in {node.root.key: node.root for node in nodes}.values():
        model.release(node)
    name = type(model).__name__
    if len(lists) != len(solutions):
        raise ValueError(f"{name} scored {len(lists)} of {len(solutions)} solutions")
    for item, scores in zip(solutions, lists, strict=True):
        if len(scores) != len(item.steps):
            raise ValueError(
                f"{name} gave {len(scores)} scores for {len(item.steps)} steps of {item.problem.prompt!r:.80}"
            )
    return lists


def judged_steps(
    solutions: Sequence[LabelledSolution], lists: Sequence[Sequence[float]]
) -> tuple[list[float], list[float]]:
    """Scores and labels of all steps that have a label."""
    pairs = [
        (score, label)
        for item, scores in zip(solutions, lists, strict=True)
        for score, label in zip(scores, item.labels, strict=True)
        if label is not None
    ]
    return [score for score, _ in pairs], [label for _, label in pairs]


Floats = NDArray[np.float64]


class Calibration(Protocol):
    """A growing function from scores to probabilities."""

    @classmethod
    def fit(cls, scores: Sequence[float], labels: Sequence[float]) -> Self:
        """The function that fits scores and labels between 0 and 1."""
        ...

    def __call__(self, score: float) -> float:
        """The probability that a step with this score is right."""
        ...


@dataclass(frozen=True, slots=True)
class PlattCalibration:
    """``sigmoid(slope * score + intercept)`` (Platt 1999), two numbers, for few labels.

    Attributes:
        slope: Of the score; never negative.
        intercept: Added.

    Example:
        >>> from inferscale.rewards import PlattCalibration
        >>> scores, labels = [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0], [0, 0, 1, 0, 1, 1]
        >>> calibration = PlattCalibration.fit(scores, labels)
        >>> [round(calibration(score), 2) for score in (-2.0, 0.0, 3.0)]
        [0.21, 0.43, 0.79]
    """

    slope: float
    intercept: float

    @classmethod
    def fit(cls, scores: Sequence[float], labels: Sequence[float]) -> Self:
        """The maximum-likelihood curve, with Platt's pull away from 0 and 1.

        Args:
            scores: Any finite numbers.
            labels: Numbers between 0 and 1, one for each score.

        Raises:
            ValueError: If there are no labels of both kinds.
        """
        from scipy.optimize import minimize
        from scipy.special import expit

        x, y = _checked(scores, labels)
        good = float(y.sum())
        bad = len(y) - good
        # Platt's targets, the posterior means under a uniform prior: (N+ + 1) / (N+ + 2) for right steps and
        # 1 / (N- + 2) for wrong ones. With 1 and 0 the slope of separable labels would have no bound.
        target = y * (good + 1) / (good + 2) + (1 - y) / (bad + 2)
        # standardised scores, so that the solver's steps fit whatever scale they come in
        centre, spread = float(x.mean()), float(x.std()) or 1.0
        z = (x - centre) / spread

        def loss(parameters: Floats) -> tuple[float, Floats]:
            # cross-entropy of p = sigmoid(m) is log(1 + exp(m)) - target * m, its derivative by m is p - target
            margin = parameters[0] * z + parameters[1]
            error = expit(margin) - target
            total = float(np.logaddexp(0, margin).sum() - (target * margin).sum())
            return total, np.array([(error * z).sum(), error.sum()])

        start = np.array([1.0, math.log((good + 1) / (bad + 1))])
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)]).x
        slope = float(found[0]) / spread  # a z + b = (a / spread) x + (b - a centre / spread)
        return cls(slope, float(found[1]) - slope * centre)

    def __call__(self, score: float) -> float:
        """The probability that a step with this score is right."""
        margin = self.slope * score + self.intercept  # the exponent is never positive: no overflow
        return 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))


@dataclass(frozen=True, slots=True)
class IsotonicCalibration:
    """The best growing function (pool adjacent violators), straight between its knots, for many labels.

    Attributes:
        scores: Knots, growing.
        probabilities: The value at each.

    Example:
        >>> from inferscale.rewards import IsotonicCalibration
        >>> scores, labels = [0.1, 0.2, 0.4, 0.6, 0.8, 0.9], [0, 0, 1, 0, 1, 1]
        >>> calibration = IsotonicCalibration.fit(scores, labels)
        >>> [calibration(score) for score in (0.15, 0.5, 0.85)]
        [0.0, 0.5, 1.0]
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def fit(cls, scores: Sequence[float], labels: Sequence[float]) -> Self:
        """The least-squares growing function of the scores.

        Raises:
            ValueError: If there are no labels of both kinds.
        """
        from scipy.optimize import isotonic_regression

        x, y = _checked(scores, labels)
        # equal scores must get one value: their mean label, weighted by their number
        knots, place, counts = np.unique(x, return_inverse=True, return_counts=True)
        means = np.bincount(place, weights=y) / counts
        return cls(tuple(knots.tolist()), tuple(isotonic_regression(means, weights=counts).x.tolist()))

    def __call__(self, score: float) -> float:
        """The probability that a step with this score is right."""
        return float(np.interp(score, self.scores, self.probabilities))


class CalibratedReward(ProcessRewardModel):
    """A process reward model whose step scores are probabilities of being right.

    Calibrated scores can be multiplied (``reduction="prod"``), compared with those of another model and joined with
    them. The order of steps does not change, but for ties of `IsotonicCalibration`.

    Attributes:
        model: The model.
        calibration: From its step scores to probabilities.
        reduction: How calibrated step scores become one score.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.rewards import CalibratedReward, LabelledSolution
        >>> class Length(isc.ProcessRewardModel):  # scores that are no probabilities
        ...     def step_scores(self, nodes):
        ...         return [[float(len(text)) for text, _ in node.inner_steps()] for node in nodes]
        >>> texts = {"2 + 3 = 5": 1.0, "5": 0.0, "1 + 1 = 2": 1.0, "two": 0.0}
        >>> solutions = [LabelledSolution(isc.Problem("p"), (text,), (label,)) for text, label in texts.items()]
        >>> reward = CalibratedReward.fit(Length(), solutions, reduction="prod")
        >>> [round(score, 2) for score in reward.score([solution.node() for solution in solutions])]
        [0.74, 0.2, 0.74, 0.32]
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
        self.judge = model.judge

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
        return cls(model, method.fit(*judged_steps(solutions, solution_scores(model, solutions))), reduction)

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """The probability of each step."""
        return [[self.calibration(score) for score in scores] for scores in self.model.step_scores(nodes)]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The costs of the model."""
        return self.model.cost(nodes)

    def recall(self, nodes: Sequence[Node]) -> None:
        """Tells the model."""
        self.model.recall(nodes)

    def check_prompt(self, root: Node) -> None:
        """Asks the model."""
        self.model.check_prompt(root)

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


@dataclass(frozen=True, slots=True)
class StepAUC:
    """Separation of first errors at one step from right steps at the same place.

    Attributes:
        step: The step, from 0.
        auc: Probability that a solution right up to there outscores, there, one whose first error is there (ties count
            half).
        right: Solutions of the first kind.
        wrong: Solutions of the second kind.
    """

    step: int
    auc: float
    right: int
    wrong: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Accuracy of picking the best of n candidates, unbiased over all subsets of n.

    Attributes:
        n: Candidates.
        best_of_n: Share of problems answered right when the reward model picks.
        oracle: Share when a perfect judge picks (pass@n).
    """

    n: int
    best_of_n: float
    oracle: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Findings of `diagnose`; what could not be measured is ``None`` or empty.

    Attributes:
        auc_by_step: For every step with right and wrong solutions.
        calibration_error: Expected calibration error in ten equal bins, in [0, 1]; only for scores in [0, 1].
        brier: Mean squared difference of step scores and labels; only for scores in [0, 1].
        selection: Best-of-n against the oracle, for n = 1, 2, 4, ...
        outcome_auc: Probability that a solution with the right answer outscores one with a wrong answer, whatever
            their problems (ties count half); only where `correct` is known. 0.5 is a coin.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.rewards import LabelledSolution, diagnose
        >>> def solution(text, label):
        ...     return LabelledSolution(isc.Problem("What is 2 + 3?"), (text,), (label,), correct=bool(label))
        >>> right, wrong = solution("2 + 3 = 5", 1.0), solution("2 + 3 = 6", 0.0)
        >>> class Five(isc.ProcessRewardModel):
        ...     def step_scores(self, nodes):
        ...         return [[0.9 if "5" in text else 0.2 for text, _ in node.inner_steps()] for node in nodes]
        >>> found = diagnose(Five(), [right, wrong], candidates=[[right, wrong]])
        >>> found.first_error_auc, round(found.brier, 3)
        (1.0, 0.025)
        >>> [(row.n, row.best_of_n, row.oracle) for row in found.selection]
        [(1, 0.5, 0.5), (2, 1.0, 1.0)]
    """

    auc_by_step: tuple[StepAUC, ...] = ()
    calibration_error: float | None = None
    brier: float | None = None
    selection: tuple[Selection, ...] = ()
    outcome_auc: float | None = None

    @property
    def first_error_auc(self) -> float | None:
        """Same-step first-error AUC: the mean over steps, weighted by their wrong solutions. 0.5 is a coin.

        Comparing at the same step leaves no credit for knowing that later steps are wrong more often.
        """
        wrong = sum(item.wrong for item in self.auc_by_step)
        return sum(item.auc * item.wrong for item in self.auc_by_step) / wrong if wrong else None

    @property
    def over_optimisation(self) -> float | None:
        """Fall of best-of-n from its highest value to that of the largest n.

        Above 0: with more candidates the model finds those that it mistakes for right ones (Gao et al. 2023,
        arXiv:2210.10760), and less search is better.
        """
        if not self.selection:
            return None
        return max(item.best_of_n for item in self.selection) - self.selection[-1].best_of_n


def diagnose(
    reward_model: RewardModel,
    solutions: Sequence[LabelledSolution] = (),
    candidates: Sequence[Sequence[LabelledSolution]] = (),
) -> Diagnosis:
    """Discrimination, calibration and best-of-n accuracy of a reward model.

    Args:
        reward_model: The model; only a process reward model is measured on `solutions`.
        solutions: Solutions with step labels.
        candidates: For each problem several sampled solutions whose `correct` is known; surplus ones are left out so
            that all problems have equally many.

    Raises:
        TypeError: If there are labelled solutions, but the model gives no step scores.
        ValueError: If nothing is given, or a candidate's `correct` is not known.

    Example:
        >>> import inferscale as isc
        >>> from inferscale import zoo
        >>> from inferscale.rewards import LabelledSolution, diagnose
        >>> solutions = []
        >>> for problem in zoo.problems("dev")[:4]:
        ...     steps = zoo.task.solution(problem.prompt).splitlines()
        ...     solutions.append(LabelledSolution(problem, tuple(steps), (1.0,) * len(steps), correct=True))
        ...     wrong = (steps[0] + "0", *steps[1:])  # a slip in the first step
        ...     solutions.append(LabelledSolution(problem, wrong, (0.0, *(None,) * (len(steps) - 1)), correct=False))
        >>> prm = isc.HFProcessRewardModel(*zoo.load("prm-xs"), good_token="<good>", bad_token="<bad>")
        >>> diagnose(prm, solutions).first_error_auc
        1.0
    """
    if not solutions and not candidates:
        raise ValueError("give solutions with step labels, or candidates for each problem, or both")
    found = Diagnosis(selection=_selection(reward_model, candidates) if candidates else ())
    if not solutions:
        return found
    if not isinstance(reward_model, ProcessRewardModel):
        raise TypeError(f"{type(reward_model).__name__} gives no step scores: pass only candidates=...")
    lists = solution_scores(reward_model, solutions)
    chains: list[tuple[Sequence[float], int | None]] = []
    for item, scores in zip(solutions, lists, strict=True):
        # nothing is known of the steps from the first one without a label on
        judged = next((place for place, label in enumerate(item.labels) if label is None), len(scores))
        error = item.first_error
        chains.append((scores[:judged], error if error is not None and error < judged else None))
    longest = max(len(scores) for scores, _ in chains)
    aucs = [StepAUC(step, *first_error_auc(chains, step)) for step in range(longest)]
    ends = [(reward_model.reduced(scores), item.correct) for item, scores in zip(solutions, lists, strict=True)]
    right, wrong = ([score for score, correct in ends if correct is wanted] for wanted in (True, False))
    found = replace(
        found,
        auc_by_step=tuple(item for item in aucs if item.right and item.wrong),
        outcome_auc=_area(right, wrong) if right and wrong else None,
    )
    values, labels = judged_steps(solutions, lists)
    if not values or not all(0 <= value <= 1 for value in values):
        return found
    brier = float(np.mean((np.asarray(values) - np.asarray(labels)) ** 2))
    return replace(found, calibration_error=calibration_error(values, labels), brier=brier)


def first_error_auc(chains: Sequence[tuple[Sequence[float], int | None]], step: int) -> tuple[float, int, int]:
    """Probability that a chain right through `step` outscores, there, one whose first error is there; ties count half.

    Args:
        chains: Step scores of each solution and the place of its first wrong step, ``None`` if there is none.
        step: The step, from 0.

    Returns:
        The AUC, and the numbers of right and wrong chains that it compares; NaN when one of them is 0.
    """
    right = [scores[step] for scores, error in chains if len(scores) > step and (error is None or error > step)]
    wrong = [scores[step] for scores, error in chains if error == step]
    if not right or not wrong:
        return math.nan, len(right), len(wrong)
    return _area(right, wrong), len(right), len(wrong)


def _area(right: Sequence[float], wrong: Sequence[float]) -> float:
    """The area under the ROC curve: the share of pairs in which the right one is higher, ties by half."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(right, wrong).statistic) / (len(right) * len(wrong))


def calibration_error(scores: Sequence[float], labels: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error: over equal bins of scores, the mean gap between mean score and mean label.

    Args:
        scores: Probabilities in [0, 1].
        labels: In [0, 1], one for each.
        bins: Number of bins.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    place = np.minimum((x * bins).astype(int), bins - 1)
    # sum over bins of (n_b / n) |mean score - mean label| = sum of |sum of differences in b| / n
    gaps = np.bincount(place, weights=x - y, minlength=bins)
    return float(np.abs(gaps).sum() / len(x))


def _selection(model: RewardModel, candidates: Sequence[Sequence[LabelledSolution]]) -> tuple[Selection, ...]:
    most = min(map(len, candidates))
    kept = [item for group in candidates for item in group[:most]]
    unknown = next((item for item in kept if item.correct is None), None)
    if most < 1 or unknown is not None:
        named = "a problem has no candidate" if unknown is None else f"a candidate of {unknown.problem.prompt!r:.80}"
        raise ValueError(f"{named}: every problem needs candidates whose `correct` is True or False")
    nodes = [item.node() for item in kept]
    scores = np.asarray(model.score(nodes), np.float64).reshape(len(candidates), most)
    for node in nodes:
        model.release(node.root)
    correct = np.asarray([bool(item.correct) for item in kept]).reshape(scores.shape)
    sizes = sorted({most, *(2**power for power in range(most.bit_length()))})
    return tuple(
        Selection(n, float(np.mean(best_of_k(scores, correct, n))), float(np.mean(pass_at_k(correct, n))))
        for n in sizes
    )
