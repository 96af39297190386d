"""Labels for steps without people: sampling on from a step and seeing how often the answer comes out right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from inferscale.answers import extract_answer, same_answer
from inferscale.base import Generator
from inferscale.flow import GenerateRequest
from inferscale.tree import Node, Problem, Step, branch_key, root_key

from .labels import LabelledSolution

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
