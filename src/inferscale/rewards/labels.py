"""Solutions with a label for every step, and reading them from files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferscale.tree import Node, Problem, Step, branch_key, root_key


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """A solution whose steps have been judged.

    Attributes:
        problem: The problem.
        steps: Text of each step.
        labels: For each step 1.0 (right so far), 0.0 (wrong), something between (a share of roll-outs that succeeded),
            or ``None`` (not judged).
        correct: Whether the final answer is right; ``None`` if that is not known.
    """

    problem: Problem
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]
    correct: bool | None = None

    def __post_init__(self) -> None:
        """Refuses labels that do not fit."""
        if len(self.labels) != len(self.steps) or not self.steps:
            raise ValueError(f"{len(self.labels)} labels for {len(self.steps)} steps: give one each, None if unknown")
        outside = [label for label in self.labels if label is not None and not 0 <= label <= 1]
        if outside:
            raise ValueError(f"labels are between 0 (wrong) and 1 (right) or None, got {outside[:3]}")
        if not all(step.strip() for step in self.steps):
            raise ValueError("a step is nothing but white space: leave it out")

    @property
    def first_error(self) -> int | None:
        """Place (from 0) of the first step whose label is 0; ``None`` if there is none."""
        return next((place for place, label in enumerate(self.labels) if label == 0), None)

    def node(self) -> Node:
        """The solution as a finished path, one node for each step, for a reward model to score."""
        node = Node(self.problem, key=root_key(f"labelled/{self.problem.prompt}"))
        for place, text in enumerate(self.steps):
            last = place + 1 == len(self.steps)
            step = Step(text if last or text.endswith("\n") else text + "\n", finish_reason="eos" if last else "step")
            node = Node(self.problem, step, node, branch_key(node.key, 0))
        return node


def write_labelled(solutions: Sequence[LabelledSolution], path: str | Path) -> None:
    """Writes solutions, one JSON object a line, with the gold answers and ids of problems that have them."""
    lines = []
    for item in solutions:
        problem = item.problem
        row = {"problem": problem.prompt, "steps": item.steps, "labels": item.labels, "correct": item.correct}
        row |= {name: value for name, value in (("answer", problem.answer), ("id", problem.id)) if value is not None}
        lines.append(json.dumps(row, allow_nan=False) + "\n")  # ASCII: a lone surrogate can be written too
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_labelled(path: str | Path) -> list[LabelledSolution]:
    """Solutions out of a file of `write_labelled`.

    Raises:
        ValueError: If a line is not what it should be; the message has its number.
    """
    return [_labelled(row, f"{path}:{number}") for number, row in _rows(path)]


def _labelled(row: dict[str, Any], where: str) -> LabelledSolution:
    try:
        problem = Problem(row["problem"], row.get("answer"), row.get("id"))
        if not isinstance(row["steps"], list) or not all(isinstance(step, str) for step in row["steps"]):
            raise TypeError("steps are a list of texts")
        return LabelledSolution(problem, tuple(row["steps"]), tuple(row["labels"]), row.get("correct"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: a line is an object with problem, steps and labels ({type(error).__name__}: {error})"
        ) from error


def read_big_bench_mistake(path: str | Path) -> list[LabelledSolution]:
    """BIG-Bench-Mistake (Tyen et al. 2023, arXiv:2311.08516): chains whose first mistake is marked.

    Steps after the first mistake are not judged.
    """
    solutions = []
    for _, row in _rows(path):
        steps, mistake = tuple(row["steps"]), row["mistake_index"]
        solutions.append(
            LabelledSolution(
                Problem(row["input"], row["target"]),
                steps,
                _until_error(len(steps), mistake),
                row["answer"] == row["target"],
            )
        )
    return solutions


def read_prmbench(path: str | Path) -> list[LabelledSolution]:
    """PRMBench (Song et al. 2025, arXiv:2501.03124): solutions with injected errors, and their originals without.

    Steps after the first error are not judged. Errors that are listed beyond the last step are left out.
    """
    solutions = []
    for _, row in _rows(path):
        steps = tuple(row["steps"])
        errors = [place - 1 for place in row["error_steps"] if 1 <= place <= len(steps)]
        problem = Problem(row["question"], id=row["id"])
        solutions.append(LabelledSolution(problem, steps, _until_error(len(steps), min(errors, default=None))))
        original = tuple(row["original_steps"])
        solutions.append(LabelledSolution(problem, original, (1.0,) * len(original)))
    return solutions


def read_rollout_trees(path: str | Path) -> list[LabelledSolution]:
    """OpenR's OmegaPRM trees: every path to a leaf, labelled with the share of roll-outs that succeeded."""
    solutions = []
    for _, row in _rows(path):
        problem = Problem(row["question"], row["gold"])
        for steps, values in _tree_paths(row["tree"]):
            kept = [(text, value) for text, value in zip(steps, values, strict=True) if text.strip()]
            texts, labels = [text for text, _ in kept], [value for _, value in kept]
            solutions.append(LabelledSolution(problem, tuple(texts), tuple(labels)))
    return solutions


def _tree_paths(tree: dict[str, Any]) -> Iterator[tuple[list[str], list[float]]]:
    for child in tree["c"]:
        if not child["c"]:
            yield [child["t"]], [child["mc"]]
        for steps, values in _tree_paths(child):
            yield [child["t"], *steps], [child["mc"], *values]


def _until_error(count: int, error: int | None) -> tuple[float | None, ...]:
    return tuple(1.0 if error is None or place < error else 0.0 if place == error else None for place in range(count))


def _rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: the line is not JSON ({error})") from None
