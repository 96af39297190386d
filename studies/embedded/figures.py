"""Figures of the embedded models: solved shares, votes, and how well a judge finds the first error."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inferscale.functional import best_of_k, majority_at_k, pass_at_k, reduce_steps, weighted_majority_at_k
from inferscale.rewards.calibration import first_error_auc
from inferscale.tree import Problem
from inferscale.zoo import task


@dataclass(frozen=True)
class Samples:
    """Sampled solutions of some problems, equally many of each.

    Attributes:
        problems: The problems.
        completions: `[P][N]` texts.
    """

    problems: Sequence[Problem]
    completions: Sequence[Sequence[str]]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """`[P, N]`, whether each states the right answer."""
        pairs = zip(self.problems, self.completions, strict=True)
        return np.asarray([[task.is_correct(problem.prompt, text) for text in texts] for problem, texts in pairs])

    @property
    def answer_ids(self) -> NDArray[np.int64]:
        """`[P, N]`, the stated answers, -1 where none is stated."""
        answers = [[task.stated_answer(text) for text in texts] for texts in self.completions]
        return np.asarray([[-1 if answer is None else int(answer) for answer in row] for row in answers])

    @property
    def levels(self) -> NDArray[np.int64]:
        """`[P]`."""
        return np.asarray([task.level_of(problem) for problem in self.problems])

    def flat(self) -> tuple[list[str], list[str]]:
        """Prompts and completions, one of each for every sample."""
        prompts = [problem.prompt for problem, row in zip(self.problems, self.completions, strict=True) for _ in row]
        return prompts, [text for row in self.completions for text in row]


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean over problems and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def policy_figures(samples: Samples) -> dict[str, float]:
    """pass@1, pass@N and majority@N with standard errors over problems, and pass@1 of every level."""
    correct, total = samples.correct, samples.correct.shape[1]
    figures: dict[str, float] = {}
    for name, values in {
        "pass@1": pass_at_k(correct, 1),
        f"pass@{total}": pass_at_k(correct, total),
        f"majority@{total}": majority_at_k(samples.answer_ids, correct, total),
    }.items():
        figures[name], figures[f"{name} se"] = (round(value, 4) for value in mean_and_error(values))
    for level in sorted(task.LEVELS):
        at_level = correct[samples.levels == level]
        if len(at_level):
            figures[f"pass@1 level {level}"] = round(float(at_level.mean()), 4)
            figures[f"pass@{total} level {level}"] = round(float(at_level.any(1).mean()), 4)
    return figures


def judge_figures(samples: Samples, step_scores: Sequence[Sequence[float]], k: int = 16) -> dict[str, float]:
    """How well step scores judge sampled solutions.

    Args:
        samples: The solutions.
        step_scores: One score a line for every sample, in the order of ``samples.flat()``.
        k: Candidates of best-of-k and the votes.

    Returns:
        The same-line first-error AUC of every line, their mean weighted by the number of wrong chains, and
        best-of-k and weighted votes by reduction beside the plain majority.
    """
    prompts, texts = samples.flat()
    errors = [task.first_error(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    chains = list(zip(step_scores, errors, strict=True))
    figures: dict[str, float] = {}
    pooled, weight = 0.0, 0
    for line in range(max(spec.max_steps for spec in task.LEVELS.values()) + 1):
        auc, right, wrong = first_error_auc(chains, line)
        if min(right, wrong) >= 20:
            figures[f"auc line {line + 1}"] = round(auc, 4)
            pooled, weight = pooled + auc * wrong, weight + wrong
    figures["auc mean"] = round(pooled / weight, 4) if weight else float("nan")
    return figures | _vote_figures(samples, step_scores, k)


def _vote_figures(samples: Samples, step_scores: Sequence[Sequence[float]], k: int) -> dict[str, float]:
    correct, ids = samples.correct, samples.answer_ids
    figures = {f"pass@{k}": float(pass_at_k(correct, k).mean())}
    figures[f"majority@{k}"] = float(majority_at_k(ids, correct, k).mean())
    for reduction in ("last", "min", "prod"):
        scores = np.asarray([float(reduce_steps(row, reduction)) if row else 0.0 for row in step_scores])
        scores = scores.reshape(correct.shape)
        figures[f"best-of-{k} {reduction}"] = float(best_of_k(scores, correct, k).mean())
        vote = weighted_majority_at_k(ids, correct, k, weights=scores, rng=random.Random(0), num_subsets=20)[0]
        figures[f"weighted@{k} {reduction}"] = float(vote.mean())
    return {name: round(value, 4) for name, value in figures.items()}


def paired_wins(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Share of pairs in which the right step outscores the wrong one; ties count half."""
    difference = np.asarray(right) - np.asarray(wrong)
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())
