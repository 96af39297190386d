"""What is watched while the process reward model trains: on development problems, never on the test set."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from inferscale.zoo import task
from inferscale.zoo.figures import first_error_auc, paired_wins

from .data import write_line
from .judge import score_steps
from .judging import Rollout
from .loop import Run
from .mistakes import corrupt

Pairs = tuple[list[str], list[str], list[str], list[int]]


def corrupted_pairs(count: int, seed: int, split: task.Split = "dev") -> Pairs:
    """Prompts, right solutions, solutions with one injected error, and the index of the wrong line, `count` of each."""
    rng = random.Random(f"inferscale.zoo/pairs/{seed}")
    prompts = [problem.prompt for problem in task.generate(count, seed, split=split)]
    right, wrong, errors = [], [], []
    for prompt in prompts:
        lines, answer = task.reference(prompt)
        right.append("".join(write_line(rng, line) for line in lines) + f"{task.ANSWER_PREFIX}{answer}")
        text, error = corrupt(rng, prompt)
        wrong.append(text)
        errors.append(error)
    return prompts, right, wrong, errors


def pair_scores(
    score: Callable[[Sequence[str], Sequence[str]], list[list[float]]], pairs: Pairs
) -> tuple[list[float], list[float]]:
    """Scores of the right and of the corrupted step of every pair, at the same line."""
    prompts, right, wrong, errors = pairs
    good, bad = score(prompts, right), score(prompts, wrong)
    return [row[at] for row, at in zip(good, errors, strict=True)], [
        row[at] for row, at in zip(bad, errors, strict=True)
    ]


def judge_monitor(rollouts: Sequence[Rollout], count: int = 300) -> Callable[[Run], str]:
    """A function that reports the paired win rate and the same-line first-error AUC of a run's model.

    The rollouts are of training problems; they tell whether the model learns at all. The gates are measured by
    `inferscale.zoo.evaluate` on held-out problems.
    """
    pairs = corrupted_pairs(count, seed=0)
    errors = [task.first_error(item.prompt, item.completion) for item in rollouts]

    def watch(run: Run) -> str:
        run.model.train(False)
        right, wrong = pair_scores(lambda prompts, texts: score_steps(run.model, prompts, texts), pairs)
        scores = score_steps(run.model, [item.prompt for item in rollouts], [item.completion for item in rollouts])
        chains = list(zip(scores, errors, strict=True))
        by_line = [first_error_auc(chains, line) for line in range(6)]
        text = " ".join(f"{auc:.3f}" for auc, _, _ in by_line)
        return f"pairs won {paired_wins(right, wrong):.3f} auc by line {text}"

    return watch
