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
    r"""A solution whose steps have been judged.

    Attributes:
        problem: The problem.
        steps: Text of each step.
        labels: For each step 1.0 (right so far), 0.0 (wrong), something between (a share of roll-outs that succeeded),
            or ``None`` (not judged).
        correct: True if the final answer is right; ``None`` if that is not known.

    Raises:
        ValueError: If there is not one label for each step, one is not in [0, 1], or a step is blank.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.rewards import LabelledSolution
        >>> problem = isc.Problem("What is (2 + 3) * 2?", "10")
        >>> steps = ("2 + 3 = 5", "5 * 2 = 11", "The answer is 11")
        >>> solution = LabelledSolution(problem, steps, (1.0, 0.0, None), correct=False)
        >>> solution.first_error
        1
        >>> solution.node().text
        '2 + 3 = 5\n5 * 2 = 11\nThe answer is 11'
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
    """Writes solutions, one JSON object a line, with whatever else their problems have (answer, id, messages).

    Example:
        >>> from pathlib import Path
        >>> import inferscale as isc
        >>> from inferscale.rewards import LabelledSolution, load_labelled, save_labelled
        >>> solutions = [LabelledSolution(isc.Problem("What is 2 + 3?", "5"), ("2 + 3 = 6",), (0.0,), correct=False)]
        >>> save_labelled(solutions, "labels.jsonl")
        >>> print(Path("labels.jsonl").read_text().strip())
        {"problem": "What is 2 + 3?", "steps": ["2 + 3 = 6"], "labels": [0.0], "correct": false, "answer": "5"}
        >>> load_labelled("labels.jsonl") == solutions
        True
    """
    lines = []
    for item in solutions:
        row = {"problem": item.problem.prompt, "steps": item.steps, "labels": item.labels, "correct": item.correct}
        row |= {name: value for name, value in item.problem.to_dict().items() if name != "prompt"}
        lines.append(json.dumps(row, allow_nan=False) + "\n")  # ASCII: a lone surrogate can be written too
    Path(path).write_text("".join(lines), encoding="utf-8")


def load_labelled(path: str | Path) -> list[LabelledSolution]:
    """Solutions out of a file of `save_labelled`.

    Args:
        path: Lines of JSON with ``problem`` (or ``messages``), ``steps`` and ``labels``, see `LabelledSolution`, and
            perhaps ``correct``, ``answer``, ``id``, ``columns`` and ``kind``.

    Raises:
        ValueError: If a line is not what it should be; the message has its number.

    Example:
        >>> from pathlib import Path
        >>> from inferscale.rewards import load_labelled
        >>> line = '{"problem": "What is 2 + 3?", "steps": ["3 + 2 = 5", "The answer is 6"], "labels": [1, 0]}'
        >>> _ = Path("labels.jsonl").write_text(line)
        >>> [solution] = load_labelled("labels.jsonl")
        >>> solution.problem.prompt, solution.labels, solution.first_error
        ('What is 2 + 3?', (1, 0), 1)
    """
    return _loaded(path, _own_row, "problem, steps and labels")


def _own_row(row: dict[str, Any]) -> list[LabelledSolution]:
    if not isinstance(row["steps"], list) or not all(isinstance(step, str) for step in row["steps"]):
        raise TypeError("steps are a list of texts")
    given = {name: row[name] for name in ("answer", "id", "messages", "columns", "kind") if name in row}
    problem = Problem("" if "messages" in row else row["problem"], **given)
    return [LabelledSolution(problem, tuple(row["steps"]), tuple(row["labels"]), row.get("correct"))]


def load_big_bench_mistake(path: str | Path) -> list[LabelledSolution]:
    """BIG-Bench-Mistake (Tyen et al. 2023, arXiv:2311.08516): chains whose first mistake is marked.

    Steps after the first mistake are not judged.

    Args:
        path: Lines of JSON with ``input``, ``target``, ``steps``, ``answer`` and ``mistake_index`` (from 0; null for a
            chain without a mistake).

    Raises:
        ValueError: If a line is not such an object; the message has its number.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> from inferscale.rewards.labels import load_big_bench_mistake
        >>> row = {"input": "What is 2 + 3 - 1?", "target": "4", "answer": "5"}
        >>> row |= {"steps": ["2 + 3 = 6", "6 - 1 = 5"], "mistake_index": 0}
        >>> _ = Path("mistakes.jsonl").write_text(json.dumps(row))
        >>> [solution] = load_big_bench_mistake("mistakes.jsonl")
        >>> solution.labels, solution.correct
        ((0.0, None), False)
    """
    return _loaded(path, _mistake_row, "input, target, steps, answer and mistake_index")


def _mistake_row(row: dict[str, Any]) -> list[LabelledSolution]:
    problem, steps = Problem(row["input"], row["target"]), tuple(row["steps"])
    labels = _until_error(len(steps), row["mistake_index"])
    return [LabelledSolution(problem, steps, labels, row["answer"] == row["target"])]


def load_prmbench(path: str | Path) -> list[LabelledSolution]:
    """PRMBench (Song et al. 2025, arXiv:2501.03124): solutions with injected errors, and their originals without.

    Steps after the first error are not judged. Errors that are listed beyond the last step are left out.

    Args:
        path: Lines of JSON with ``id``, ``question``, ``original_steps``, ``steps`` and ``error_steps`` (from 1).

    Returns:
        For each line the solution with errors, and the original.

    Raises:
        ValueError: If a line is not such an object; the message has its number.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> from inferscale.rewards.labels import load_prmbench
        >>> row = {"id": "1", "question": "What is 2 + 3 - 1?", "original_steps": ["2 + 3 = 5", "5 - 1 = 4"]}
        >>> row |= {"steps": ["2 + 3 = 5", "5 - 1 = 3"], "error_steps": [2]}
        >>> _ = Path("prmbench.jsonl").write_text(json.dumps(row))
        >>> [solution.labels for solution in load_prmbench("prmbench.jsonl")]
        [(1.0, 0.0), (1.0, 1.0)]
    """
    return _loaded(path, _prmbench_row, "id, question, steps, error_steps and original_steps")


def _prmbench_row(row: dict[str, Any]) -> list[LabelledSolution]:
    problem, steps, original = Problem(row["question"], id=row["id"]), tuple(row["steps"]), tuple(row["original_steps"])
    errors = [place - 1 for place in row["error_steps"] if 1 <= place <= len(steps)]
    return [
        LabelledSolution(problem, steps, _until_error(len(steps), min(errors, default=None))),
        LabelledSolution(problem, original, (1.0,) * len(original)),
    ]


def load_rollout_trees(path: str | Path) -> list[LabelledSolution]:
    """OpenR's OmegaPRM trees: every path to a leaf, labelled with the share of roll-outs that succeeded.

    Args:
        path: Lines of JSON with ``question``, ``gold`` and ``tree``, whose nodes have a text ``t``, a share ``mc`` and
            children ``c``.

    Raises:
        ValueError: If a line is not such an object; the message has its number.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> from inferscale.rewards.labels import load_rollout_trees
        >>> ends = [{"t": "5 - 1 = 4", "mc": 1.0, "c": []}, {"t": "5 - 1 = 3", "mc": 0.0, "c": []}]
        >>> tree = {"t": "", "mc": 0.5, "c": [{"t": "2 + 3 = 5", "mc": 0.5, "c": ends}]}
        >>> row = {"question": "What is 2 + 3 - 1?", "gold": "4", "tree": tree}
        >>> _ = Path("trees.jsonl").write_text(json.dumps(row))
        >>> [(solution.steps, solution.labels) for solution in load_rollout_trees("trees.jsonl")]
        [(('2 + 3 = 5', '5 - 1 = 4'), (0.5, 1.0)), (('2 + 3 = 5', '5 - 1 = 3'), (0.5, 0.0))]
    """
    return _loaded(path, _tree_row, "question, gold and tree")


def _tree_row(row: dict[str, Any]) -> list[LabelledSolution]:
    problem, solutions = Problem(row["question"], row["gold"]), []
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


def _loaded(
    path: str | Path, solutions_of: Callable[[dict[str, Any]], list[LabelledSolution]], fields: str
) -> list[LabelledSolution]:
    """The solutions of every line of a file; a line that is not what it should be is named by its number."""
    solutions = []
    for number, row in _rows(path):
        try:
            solutions += solutions_of(row)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}:{number}: a line is an object with {fields} ({type(error).__name__}: {error})"
            ) from error
    return solutions


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

    Example:
        >>> import inferscale as isc
        >>> from inferscale.rewards import label_by_rollouts
        >>> generator, reward = isc.testing.ToyGenerator(), isc.testing.ToyReward()
        >>> result = isc.solve(isc.Problem("How many?", "1"), isc.BeamSearch(1, 2), generator, reward_model=reward)
        >>> [solution] = label_by_rollouts(result.leaves[:1], generator, n=8)
        >>> solution.labels, solution.correct  # shares of 8 completions of each step that end with 1
        ((0.375, 0.125, 0.0, 1.0), True)
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
