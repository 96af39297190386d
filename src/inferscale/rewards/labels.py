"""Solutions with a label for every step: read from files, or made by sampling on from each step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inferscale.answers import extract_answer, same_answer
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


IsCorrect = Callable[[Problem, str], bool]


def answers_gold(problem: Problem, text: str) -> bool:
    """Whether the answer read out of `text` is the problem's gold answer.

    Raises:
        ValueError: If the problem has none.
    """
    if problem.answer is None:
        raise ValueError(f"the problem {problem.prompt!r:.80} has no gold answer: give one, or is_correct=...")
    found = extract_answer(text)
    return found is not None and same_answer(found, problem.answer)


def label_by_rollouts(
    nodes: Sequence[Node],
    generator: Generator,
    is_correct: IsCorrect = answers_gold,
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
        is_correct: Whether a whole solution of a problem ends right.
        n: Completions after each step.
        target: What the labels are.

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
    chains = [_Chain.of(node, place) for place, node in enumerate(nodes)]
    judge = _Judge(generator, is_correct, n)
    correct = [is_correct(node.problem, node.text) if node.is_finished else None for node in nodes]
    try:
        if target == "first_error":
            labels = _first_errors(chains, correct, judge)
        else:
            values = iter(judge.values([prefix for chain in chains for prefix in chain.prefixes]))
            shares = [[next(values) for _ in chain.prefixes] for chain in chains]
            labels = [tuple(own if target == "soft" else [float(value > 0) for value in own]) for own in shares]
    finally:
        for chain in chains:
            generator.release(chain.root)
    return [
        LabelledSolution(node.problem, chain.texts, found, right)
        for node, chain, found, right in zip(nodes, chains, labels, correct, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Chain:
    """A solution as a path of its own, one node for each step.

    Attributes:
        root: Where it starts.
        prefixes: The node after each step.
        texts: Text of each step.
    """

    root: Node
    prefixes: tuple[Node, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, source: Node, place: int) -> _Chain:
        pieces = source.inner_steps()
        if not pieces or source.is_failed:
            raise ValueError(f"{source!r} has no steps to label, or a failed sample for its last one: leave it out")
        # equal solutions are different samples: their completions must not be the same
        root = Node(source.problem, key=root_key(f"rollouts/{place}/{source.key}/{source.problem.prompt}"))
        node, prefixes = root, []
        for number, (text, ids) in enumerate(pieces, 1):
            last = number == len(pieces) and source.step is not None
            reason = source.step.finish_reason if last and source.step is not None else "step"
            node = Node(source.problem, Step(text, ids, finish_reason=reason), node, branch_key(node.key, 0))
            prefixes.append(node)
        return cls(root, tuple(prefixes), tuple(text for text, _ in pieces))


@dataclass(frozen=True, slots=True)
class _Judge:
    generator: Generator
    is_correct: IsCorrect
    n: int

    def values(self, prefixes: Sequence[Node]) -> list[float]:
        """The share of completions of each prefix that end right."""
        requests = [GenerateRequest(node, self.n, until="end") for node in prefixes if not node.is_finished]
        answers = iter(self.generator.generate(requests) if requests else [])
        return [self._own(node) if node.is_finished else self._share(node, next(answers)) for node in prefixes]

    def _own(self, node: Node) -> float:
        return float(self.is_correct(node.problem, node.text))

    def _share(self, node: Node, steps: Sequence[Step]) -> float:
        given = [step for step in steps if step.finish_reason != "error"]  # of a server that gave no answer
        if not given:
            raise RuntimeError(f"all {len(steps)} completions of {node!r} failed: {steps[0].text[:200]}")
        right = [step.finish_reason == "eos" and self.is_correct(node.problem, node.text + step.text) for step in given]
        return sum(right) / len(right)


def _first_errors(
    chains: Sequence[_Chain], correct: Sequence[bool | None], judge: _Judge
) -> list[tuple[float | None, ...]]:
    """Labels by halving; in each round one call serves all solutions that are still open."""
    # steps before low are right, and so far no step before high is known to be the first error
    low = [len(chain.texts) if right else 0 for chain, right in zip(chains, correct, strict=True)]
    high = [len(chain.texts) for chain in chains]
    while open_ones := [i for i in range(len(chains)) if low[i] < high[i]]:
        middles = [(low[i] + high[i]) // 2 for i in open_ones]
        values = judge.values([chains[i].prefixes[middle] for i, middle in zip(open_ones, middles, strict=True)])
        for i, middle, value in zip(open_ones, middles, values, strict=True):
            if value > 0:
                low[i] = middle + 1
            else:
                high[i] = middle
    return [
        tuple(1.0 if place < first else 0.0 if place == first else None for place in range(len(chain.texts)))
        for chain, first in zip(chains, low, strict=True)
    ]
