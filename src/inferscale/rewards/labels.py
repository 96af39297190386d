"""Solutions with a label for every step: loaded from files, or labelled by completions sampled after each step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inferscale.answers import chosen_reader, equality_of
from inferscale.base import Generator
from inferscale.flow import GenerateRequest
from inferscale.tree import Node, Problem, Step, branch_key, root_key


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """A solution whose steps have been judged.

    Attributes:
        problem: The problem.
        steps: Text of each step.
        labels: For each step 1.0 (right so far), 0.0 (wrong), something between (a share of roll-outs that succeeded),
            or ``None`` (not judged).
        correct: True if the final answer is right; ``None`` if that is not known.
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
        node = Node(self.problem, key=root_key(f"labelled/{self.problem.stream}"))
        for place, text in enumerate(self.steps):
            last = place + 1 == len(self.steps)
            step = Step(text if last or text.endswith("\n") else text + "\n", finish_reason="eos" if last else "step")
            node = Node(self.problem, step, node, branch_key(node.key, 0))
        return node


def save_labelled(solutions: Sequence[LabelledSolution], path: str | Path) -> None:
    """Writes solutions, one JSON object a line, with whatever else their problems have (answer, id, messages)."""
    lines = []
    for item in solutions:
        row = {"problem": item.problem.prompt, "steps": item.steps, "labels": item.labels, "correct": item.correct}
        row |= {name: value for name, value in item.problem.to_dict().items() if name != "prompt"}
        lines.append(json.dumps(row, allow_nan=False) + "\n")  # ASCII: a lone surrogate can be written too
    Path(path).write_text("".join(lines), encoding="utf-8")


def load_labelled(path: str | Path) -> list[LabelledSolution]:
    """Solutions out of a file of `save_labelled`.

    Raises:
        ValueError: If a line is not what it should be; the message has its number.
    """
    solutions = []
    for number, row in _rows(path):
        try:
            chat = {name: row[name] for name in ("messages", "columns") if name in row}
            prompt = "" if "messages" in row else row["problem"]
            problem = Problem(prompt, row.get("answer"), row.get("id"), **chat)
            if not isinstance(row["steps"], list) or not all(isinstance(step, str) for step in row["steps"]):
                raise TypeError("steps are a list of texts")
            solutions.append(LabelledSolution(problem, tuple(row["steps"]), tuple(row["labels"]), row.get("correct")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}:{number}: a line is an object with problem, steps and labels ({type(error).__name__}: {error})"
            ) from error
    return solutions


def load_big_bench_mistake(path: str | Path) -> list[LabelledSolution]:
    """BIG-Bench-Mistake (Tyen et al. 2023, arXiv:2311.08516): chains whose first mistake is marked.

    Steps after the first mistake are not judged.
    """
    solutions = []
    for _, row in _rows(path):
        problem, steps = Problem(row["input"], row["target"]), tuple(row["steps"])
        labels = _until_error(len(steps), row["mistake_index"])
        solutions.append(LabelledSolution(problem, steps, labels, row["answer"] == row["target"]))
    return solutions


def load_prmbench(path: str | Path) -> list[LabelledSolution]:
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


def load_rollout_trees(path: str | Path) -> list[LabelledSolution]:
    """OpenR's OmegaPRM trees: every path to a leaf, labelled with the share of roll-outs that succeeded."""
    solutions = []
    for _, row in _rows(path):
        problem = Problem(row["question"], row["gold"])
        for path_to_leaf in _tree_paths(row["tree"]):
            steps = [child for child in path_to_leaf if child["t"].strip()]
            texts, labels = tuple(child["t"] for child in steps), tuple(child["mc"] for child in steps)
            solutions.append(LabelledSolution(problem, texts, labels))
    return solutions


def _tree_paths(tree: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Paths below a node to each leaf; a node has text ``t``, share ``mc`` of right roll-outs and children ``c``."""
    for child in tree["c"]:
        if not child["c"]:
            yield [child]
        for path in _tree_paths(child):
            yield [child, *path]


def _until_error(count: int, error: int | None) -> tuple[float | None, ...]:
    """Labels of `count` steps: right up to the first error, which is wrong, and unknown after it."""
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


def answers_gold(problem: Problem, text: str) -> bool:
    """True if the answer that stands in `text` is the problem's gold answer.

    Raises:
        ValueError: If the problem has none.
    """
    if problem.answer is None:
        raise ValueError(f"the problem {problem.prompt!r:.80} has no gold answer: give one, or check_solution=...")
    found = chosen_reader(None, problem.kind)(text)
    return found is not None and equality_of(None, problem.kind).same(found, problem.answer)


def label_by_rollouts(
    nodes: Sequence[Node],
    generator: Generator,
    check_solution: Callable[[Problem, str], bool] = answers_gold,
    *,
    n: int = 8,
    target: Literal["soft", "hard", "first_error"] = "soft",
) -> list[LabelledSolution]:
    """Solutions with a label for every step, from completions sampled after it.

    ``"soft"``: the share of `n` completions that end right, ``"hard"``: whether any does (Math-Shepherd, Wang et al.
    2024, arXiv:2312.08935). ``"first_error"``: the first step after which none ends right, found by
    halving (OmegaPRM, Luo et al. 2024, arXiv:2406.06592): steps before it are 1, it is 0, later ones are not
    judged. That takes about ``log2(steps) * n`` completions instead of ``steps * n``; it trusts that no step after
    the first error can be completed rightly, and that every step of a finished right solution is right.

    Args:
        nodes: Sampled solutions, as a generator or a search made them (inner steps of completions count as steps).
        generator: Samples the completions, with its own temperature.
        check_solution: True for a problem and a whole solution that ends right.
        n: Completions after each step.
        target: Kind of the labels.

    Returns:
        One for each node, in order. A finished step has no completions: it is labelled by its own answer.

    Raises:
        ValueError: If `n` or `target` is bad, or a node has no steps or ends with a failed sample.
        RuntimeError: If all completions after a step failed (on a server); a part that failed is left out.
    """
    if n < 1:
        raise ValueError(f"n={n}: sample at least one completion")
    if target not in ("soft", "hard", "first_error"):
        raise ValueError(f'target={target!r}: choose "soft", "hard" or "first_error"')
    solutions = [_prefixes(node, place) for place, node in enumerate(nodes)]

    def shares(prefixes: Sequence[Node]) -> list[float]:
        """The share of right completions of each prefix, in one call; a finished one is its own completion."""
        requests = [GenerateRequest(node, n, until="end") for node in prefixes if not node.is_finished]
        answers = iter(generator.generate(requests) if requests else [])
        found = []
        for node in prefixes:
            if node.is_finished:
                found.append(float(check_solution(node.problem, node.text)))
                continue
            steps = next(answers)
            given = [step for step in steps if step.finish_reason != "error"]  # of a server that gave no answer
            if not given:
                raise RuntimeError(f"all {len(steps)} completions of {node!r} failed: {steps[0].text[:200]}")
            # what was cut at a length has no answer, whatever stands in it
            ended = [node.text + step.text for step in given if step.finish_reason == "eos"]
            found.append(sum(check_solution(node.problem, text) for text in ended) / len(given))
        return found

    correct = [check_solution(node.problem, node.text) if node.is_finished else None for node in nodes]
    labels: list[tuple[float | None, ...]]
    try:
        if target == "first_error":
            errors = _first_errors(solutions, correct, shares)
            labels = [_until_error(len(own), error) for own, error in zip(solutions, errors, strict=True)]
        else:
            values = iter(shares([prefix for own in solutions for prefix in own]))
            found = [[next(values) for _ in own] for own in solutions]
            labels = [tuple(own if target == "soft" else [float(value > 0) for value in own]) for own in found]
    finally:
        for own in solutions:
            generator.release(own[0].root)
    return [
        LabelledSolution(node.problem, tuple(text for text, _ in node.inner_steps()), own, right)
        for node, own, right in zip(nodes, labels, correct, strict=True)
    ]


def _prefixes(source: Node, place: int) -> list[Node]:
    """The node after each step, on a path of its own with one node for each inner step."""
    pieces = source.inner_steps()
    if not pieces or source.step is None or source.is_failed:
        raise ValueError(f"{source!r} has no steps to label, or a failed sample for its last one: leave it out")
    # equal solutions are different samples: their completions must not be the same
    key = root_key(f"rollouts/{place}/{source.key}/{source.problem.stream}")
    node = Node(source.problem, key=key, thinking=source.thinking)
    prefixes = []
    for number, (text, ids) in enumerate(pieces, 1):
        reason = source.step.finish_reason if number == len(pieces) else "step"
        node = Node(source.problem, Step(text, ids, finish_reason=reason), node, branch_key(node.key, 0))
        prefixes.append(node)
    return prefixes


def _first_errors(
    solutions: Sequence[Sequence[Node]],
    correct: Sequence[bool | None],
    shares: Callable[[Sequence[Node]], list[float]],
) -> list[int]:
    """Place of each first error by halving, or the number of steps; a round is one call for all that are still open."""
    # steps before low are right, and so far no step before high is known to be the first error
    low = [len(prefixes) if right else 0 for prefixes, right in zip(solutions, correct, strict=True)]
    high = [len(prefixes) for prefixes in solutions]
    while open_ones := [i for i in range(len(solutions)) if low[i] < high[i]]:
        middles = [(low[i] + high[i]) // 2 for i in open_ones]
        values = shares([solutions[i][middle] for i, middle in zip(open_ones, middles, strict=True)])
        for i, middle, value in zip(open_ones, middles, values, strict=True):
            if value > 0:
                low[i] = middle + 1
            else:
                high[i] = middle
    return low
