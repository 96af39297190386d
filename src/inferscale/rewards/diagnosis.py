"""How good a reward model is, before a search is spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inferscale.base import ProcessRewardModel, RewardModel
from inferscale.functional import best_of_k, pass_at_k

from .labelled_scores import labelled_scores, solution_scores
from .labels import LabelledSolution

_BINS = 10


@dataclass(frozen=True, slots=True)
class StepAUC:
    """How well the first errors at one step are told from right steps at the same place.

    Attributes:
        step: Which step, from 0.
        auc: Chance that a solution right up to there outscores, there, one whose first error is there; ties count half.
        right: Solutions of the first kind.
        wrong: Solutions of the second kind.
    """

    step: int
    auc: float
    right: int
    wrong: int


@dataclass(frozen=True, slots=True)
class Selection:
    """What picking the best of n candidates gives, unbiased over all subsets of n.

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
    """What `diagnose` found; what could not be measured is ``None`` or empty.

    Attributes:
        auc_by_step: For every step with right and wrong solutions.
        calibration_error: Expected calibration error in ten equal bins, in [0, 1]; only for scores in [0, 1].
        brier: Mean squared difference of step scores and labels; only for scores in [0, 1].
        selection: Best-of-n against the oracle, for n = 1, 2, 4, ...
    """

    auc_by_step: tuple[StepAUC, ...] = ()
    calibration_error: float | None = None
    brier: float | None = None
    selection: tuple[Selection, ...] = ()

    @property
    def first_error_auc(self) -> float | None:
        """Same-step first-error AUC: the mean over steps, weighted by their wrong solutions. 0.5 is a coin.

        Comparing at the same step leaves no credit for knowing that later steps are wrong more often.
        """
        wrong = sum(item.wrong for item in self.auc_by_step)
        return sum(item.auc * item.wrong for item in self.auc_by_step) / wrong if wrong else None

    @property
    def over_optimisation(self) -> float | None:
        """How far best-of-n has fallen from its highest value to that of the largest n.

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
    """What a reward model can tell apart, whether its numbers are chances, and what its choices are worth.

    Args:
        reward_model: The model; only a process reward model is measured on `solutions`.
        solutions: Solutions with step labels.
        candidates: For each problem several sampled solutions whose `correct` is known; surplus ones are left out so
            that all problems have equally many.

    Raises:
        TypeError: If there are labelled solutions, but the model gives no step scores.
        ValueError: If nothing is given, or a candidate's `correct` is not known.
    """
    if not solutions and not candidates:
        raise ValueError("give solutions with step labels, or candidates for each problem, or both")
    auc: tuple[StepAUC, ...] = ()
    error = brier = None
    if solutions:
        if not isinstance(reward_model, ProcessRewardModel):
            raise TypeError(f"{type(reward_model).__name__} gives no step scores: pass only candidates=...")
        auc = first_error_aucs(reward_model, solutions)
        error, brier = _calibration(reward_model, solutions)
    return Diagnosis(auc, error, brier, _selection(reward_model, candidates) if candidates else ())


def first_error_aucs(model: ProcessRewardModel, solutions: Sequence[LabelledSolution]) -> tuple[StepAUC, ...]:
    """The same-step first-error AUC of every step that has right and wrong solutions."""
    from inferscale.zoo.figures import first_error_auc

    chains = []
    for item, scores in zip(solutions, solution_scores(model, solutions), strict=True):
        judged = next((place for place, label in enumerate(item.labels) if label is None), len(scores))
        chains.append((scores[:judged], item.first_error if (item.first_error or 0) < judged else None))
    found = []
    for step in range(max((len(scores) for scores, _ in chains), default=0)):
        auc, right, wrong = first_error_auc(chains, step)
        if right and wrong:
            found.append(StepAUC(step, auc, right, wrong))
    return tuple(found)


def calibration_error(scores: Sequence[float], labels: Sequence[float], bins: int = _BINS) -> float:
    """Expected calibration error: over equal bins of scores, the mean gap between mean score and mean label.

    Args:
        scores: Chances in [0, 1].
        labels: In [0, 1], one for each.
        bins: How many.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    place = np.minimum((x * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=x - y, minlength=bins)
    return float(np.abs(gaps).sum() / len(x))


def _calibration(model: ProcessRewardModel, solutions: Sequence[LabelledSolution]) -> tuple[float | None, float | None]:
    pairs = [pair for row in labelled_scores(model, solutions) for pair in row]
    scores, labels = [score for score, _ in pairs], [label for _, label in pairs]
    if not pairs or not all(0 <= score <= 1 for score in scores):
        return None, None
    brier = float(np.mean((np.asarray(scores) - np.asarray(labels)) ** 2))
    return calibration_error(scores, labels), brier


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
    sizes = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})
    return tuple(
        Selection(n, float(np.mean(best_of_k(scores, correct, n))), float(np.mean(pass_at_k(correct, n))))
        for n in sizes
    )
