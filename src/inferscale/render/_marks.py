"""What is drawn of a search tree: a mark for each node, or one for several that are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from inferscale.answers import normalize_answer
from inferscale.tree import Node, Trajectory

State: TypeAlias = Literal["chosen", "kept", "pruned"]
FOLD_ABOVE = 60
"""Nodes above which pruned subtrees and equal leaves are folded."""
MOST_DRAWN = 1000
"""Most marks of one picture."""
Fold: TypeAlias = Literal["nothing", "alike", "others"]
_GROUPS = 12
"""Answers of one parent's leaves that get a mark of their own when folded."""


@dataclass
class Mark:
    """A node, or several that are drawn as one.

    Attributes:
        nodes: The node, or all that were folded, parents first.
        state: On the path to the reported answer, on that to another leaf that the search returned, or on none.
        depth: Steps from the root.
        is_whole: Whether all below it is in `nodes`, so that nothing is drawn below.
        answer: The answer of a returned leaf.
        children: Places of the marks below.
    """

    nodes: list[Node]
    state: State
    depth: int
    is_whole: bool = False
    answer: str | None = None
    children: list[int] = field(default_factory=list)

    @property
    def scores(self) -> list[float]:
        """Scores of the nodes that have one."""
        return [node.score for node in self.nodes if node.is_scored]

    @property
    def score(self) -> float | None:
        """The mean score, or ``None``."""
        scores = self.scores
        return sum(score / len(scores) for score in scores) if scores else None

    @property
    def is_folded(self) -> bool:
        """Whether it stands for several nodes."""
        return len(self.nodes) > 1


def marks_of(
    root: Node, leaves: Sequence[Node], trajectories: Sequence[Trajectory], selected: Node, fold: Fold = "nothing"
) -> list[Mark]:
    """The marks of a tree, parents first; the first is the root.

    Args:
        root: The tree.
        leaves: What the search returned.
        trajectories: Their records, in the same order.
        selected: The leaf that is reported.
        fold: What becomes one mark: ``"alike"`` is all that was pruned below one parent, and its leaves with equal
            answers; ``"others"`` is all below one parent that was pruned, and all that was returned. The path to
            `selected` is never folded, and comes first where others are.
    """
    folding = _Folding(root, leaves, trajectories, selected, fold)
    made = [Mark([root], "chosen", 0)]
    for mark in made:  # grows while it is read
        if mark.is_whole:
            continue
        for group in folding.groups(mark.nodes[0].children):
            mark.children.append(len(made))
            made.append(folding.mark(group, mark.depth + 1))
    return made


def readable_marks(
    root: Node, leaves: Sequence[Node], trajectories: Sequence[Trajectory], selected: Node
) -> list[Mark]:
    """The marks of a tree, folded as much as it takes to be read; see `marks_of`."""
    marks = marks_of(root, leaves, trajectories, selected)
    if len(marks) > FOLD_ABOVE:
        marks = marks_of(root, leaves, trajectories, selected, "alike")
    if len(marks) > MOST_DRAWN:
        marks = marks_of(root, leaves, trajectories, selected, "others")
    return marks


class _Folding:
    """Which nodes of a search were chosen, returned or pruned, and which of them are alike."""

    def __init__(
        self, root: Node, leaves: Sequence[Node], trajectories: Sequence[Trajectory], selected: Node, fold: Fold
    ) -> None:
        self._fold = fold
        self._chosen = {root, *selected.path}
        self._kept = {node for leaf in leaves for node in leaf.path}
        self._answers = {leaf: trajectory.answer for leaf, trajectory in zip(leaves, trajectories, strict=True)}

    def groups(self, siblings: Sequence[Node]) -> list[list[Node]]:
        """The siblings that one mark stands for each, in order of first appearance."""
        if self._fold == "nothing":
            return [[node] for node in siblings]
        keys = [self._key(node) for node in siblings]
        answers = Counter(key for key in keys if isinstance(key, tuple))
        rare = {key for key, _ in answers.most_common()[_GROUPS:]}
        grouped: dict[object, list[Node]] = {node: [] for node in siblings if node in self._chosen}
        for node, key in zip(siblings, keys, strict=True):
            grouped.setdefault("rare" if key in rare else key, []).append(node)
        return list(grouped.values())

    def mark(self, group: Sequence[Node], depth: int) -> Mark:
        """The mark of some siblings, and of all that is below them where that is folded."""
        state = self._state(group[0])
        whole = state != "chosen" and (self._fold == "others" or (self._fold == "alike" and state == "pruned"))
        nodes = [below for node in group for below in node.walk()] if whole else list(group)
        alike = len({self._form(node) for node in group}) == 1
        return Mark(nodes, state, depth, whole or len(group) > 1, self._answers.get(group[0]) if alike else None)

    def _key(self, node: Node) -> object:
        state = self._state(node)
        if state == "chosen":
            return node
        if state == "pruned" or self._fold == "others":
            return state
        return node if node.children else ("answer", self._form(node))

    def _state(self, node: Node) -> State:
        return "chosen" if node in self._chosen else "kept" if node in self._kept else "pruned"

    def _form(self, node: Node) -> str | None:
        answer = self._answers.get(node)
        return None if answer is None else normalize_answer(answer)
