"""Search trees and votes as text, in which model output can do no harm."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from inferscale.aggregators import answer_groups
from inferscale.answers import normalize_answer
from inferscale.tree import Node, Trajectory

_MARKS_IN_A_ROW = 3
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Fillers, blanks and variation selectors, which Python counts among printable characters."""
_BETWEEN_LINES = re.compile(r"\s*\n\s*")


def visible(text: str, limit: int = 4000) -> str:
    r"""`text` with every character in sight, at most `limit` of them; still to be escaped for HTML.

    Control and format characters, lone surrogates and odd spaces become escapes such as ``\x1b`` and ``\u202e``, so
    that nothing is hidden and no text turns the direction of what follows; piles of combining marks are cut to three.
    """
    shown, pile, before = [], 0, ""
    for character in text[:limit]:
        pile = pile + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        if pile <= _MARKS_IN_A_ROW:
            shown.append(character if _is_seen(character, before) else ascii(character)[1:-1])
        before = character
    return "".join(shown) + ("…" if len(text) > limit else "")


def _is_seen(character: str, before: str) -> bool:
    if character in "\ufe0e\ufe0f":  # the style of a symbol such as a heart
        return before != "" and unicodedata.category(before) == "So"
    return character == "\n" or (character.isprintable() and not _UNSEEN.match(character))


def one_line(text: str, width: int) -> str:
    r"""`text` on one line of at most `width` columns (a wide character takes two), with nothing hidden in it.

    Example:
        >>> from inferscale.viz import one_line
        >>> print(one_line("7 * 6 = 42\n42 - 20 = 22", width=40))
        7 * 6 = 42 ⏎ 42 - 20 = 22
        >>> print(one_line("Mia has seven trays with six pens in each", width=20))
        Mia has seven trays…
        >>> print(one_line("\x1b[31mred", width=20))  # what a terminal would obey is shown instead
        \x1b[31mred
    """
    shown = _BETWEEN_LINES.sub(" ⏎ ", visible(text.strip(), 4 * width))
    if columns(shown) <= width:
        return shown
    kept, used = [], 1  # the ellipsis
    for character in shown:
        used += columns(character)
        if used > width:
            break
        kept.append(character)
    return "".join(kept).rstrip() + "…"


def columns(text: str) -> int:
    """The columns that `text` takes in a font of fixed width."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def escaped(text: str) -> str:
    """`text` for HTML: markup escaped, quotes too, and ASCII alone, so that no page's encoding can change it."""
    return html.escape(text, quote=True).encode("ascii", "xmlcharrefreplace").decode("ascii")


MOST_VOTES = 8
"""Most answers whose votes are shown one by one; the others are summed up.

Example:
    >>> from inferscale import RepeatedSampling, solve
    >>> from inferscale.testing import ToyGenerator
    >>> from inferscale.viz import MOST_VOTES, votes_of
    >>> result = solve("How many?", RepeatedSampling(64), ToyGenerator(num_answers=10))
    >>> votes = votes_of(result.trajectories)
    >>> f"{len(votes)} answers, of which {len(votes[:MOST_VOTES])} get a bar of their own"
    '10 answers, of which 8 get a bar of their own'
"""


@dataclass(frozen=True)
class Votes:
    """The trajectories with one answer; ``None`` abstains.

    Attributes:
        answer: As the first of them wrote it.
        members: The trajectories, in order.

    Example:
        >>> from inferscale import RepeatedSampling, solve
        >>> from inferscale.testing import ToyGenerator, ToyReward
        >>> from inferscale.viz import votes_of
        >>> result = solve("How many?", RepeatedSampling(8), ToyGenerator(), reward_model=ToyReward())
        >>> first = votes_of(result.trajectories)[0]
        >>> first.answer, first.number, round(first.score, 2), first.has(result.selected)
        ('1', 3, 0.69, True)
    """

    answer: str | None
    members: tuple[Trajectory, ...]

    @property
    def number(self) -> int:
        """Number of trajectories with this answer."""
        return len(self.members)

    @property
    def scores(self) -> list[float]:
        """Scores of those that have one."""
        return [member.score for member in self.members if member.score is not None]

    @property
    def score(self) -> float | None:
        """The mean score, or ``None``."""
        scores = self.scores
        return sum(score / len(scores) for score in scores) if scores else None

    def has(self, trajectory: Trajectory) -> bool:
        """True if a trajectory is one of them."""
        return trajectory in self.members


def votes_of(trajectories: Sequence[Trajectory]) -> list[Votes]:
    """The votes for each answer, the most frequent first, then in order of appearance; abstentions last.

    Example:
        >>> from inferscale import RepeatedSampling, solve
        >>> from inferscale.testing import ToyGenerator
        >>> from inferscale.viz import votes_of
        >>> result = solve("How many?", RepeatedSampling(8), ToyGenerator())
        >>> {votes.answer: votes.number for votes in votes_of(result.trajectories)}
        {'1': 3, '2': 2, '0': 2, '3': 1}
    """
    groups = sorted(answer_groups(trajectories, range(len(trajectories))), key=len, reverse=True)
    abstained = [place for place, trajectory in enumerate(trajectories) if trajectory.answer is None]
    return [
        Votes(trajectories[group[0]].answer, tuple(trajectories[place] for place in group))
        for group in [*groups, *([abstained] if abstained else [])]
    ]


def render_tree(root: Node, selected: Node | None = None, max_text: int = 60) -> str:
    r"""The tree below `root`, one line for each node: branch, score, last step, and how it ended.

    Below a whole tree stand the prompts that were asked beside it, each with its replies.

    Args:
        root: Where to start.
        selected: A leaf to mark with ``*``, with its whole path.
        max_text: Most characters of a step's text.

    Example:
        >>> from inferscale import BeamSearch, render_tree, solve
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> result = solve("How many?", BeamSearch(1, 2), ToyGenerator(depth=2), reward_model=ToyProcessReward())
        >>> print(render_tree(result.root, result.selected_leaf, max_text=24))
        How many?
        ├─ *u q w i c\n 0.516
        │  ├─ *e x r\n 0.951
        │  │  ├─ The answer is 2 0.285 [eos]
        │  │  └─ *The answer is 3 0.788 [eos]
        │  └─ q c j z\n 0.561
        └─ t i l o k\n 0.003
    """
    chosen = set() if selected is None else set(selected.path)
    lines = [*_lines(root, chosen, max_text)]
    for number, note in enumerate([] if root.parent else root.side_notes, 1):
        asked, *replies = _lines(note, chosen, max_text)
        lines += [f"side note {number}: {asked}", *replies]
    return "\n".join(lines)


def _lines(root: Node, chosen: set[Node], max_text: int) -> Iterator[str]:
    waiting = [(root, "", "")]  # a stack and not a recursion: a tree may be deeper than Python's stack
    while waiting:
        node, branch, indent = waiting.pop()
        yield branch + _label(node, chosen, max_text)
        last = len(node.children) - 1
        below = [
            (child, indent + ("└─ " if place == last else "├─ "), indent + ("   " if place == last else "│  "))
            for place, child in enumerate(node.children)
        ]
        waiting += reversed(below)


def _label(node: Node, chosen: set[Node], max_text: int) -> str:
    text = repr(node.problem.prompt if node.step is None else node.step.text)[1:-1]
    text = text if len(text) <= max_text else text[: max_text - 1] + "…"
    mark = "*" if node in chosen else ""
    score = f" {node.score:.3f}" if node.is_scored else ""
    reason = f" [{node.step.finish_reason}]" if node.step is not None and node.is_finished else ""
    return f"{mark}{text}{score}{reason}"


State: TypeAlias = Literal["chosen", "kept", "pruned", "open"]
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
        state: On the path to the reported answer, on that to another leaf that the search returned, or on none;
            ``"open"`` while the search goes on.
        depth: Steps from the root.
        is_whole: Whether all below it is in `nodes`, so that nothing is drawn below.
        answer: The answer of a returned leaf.
        children: Places of the marks below.

    Example:
        >>> from inferscale import REBASE, solve
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> from inferscale.viz import marks_of
        >>> result = solve("How many?", REBASE(4), ToyGenerator(depth=1), reward_model=ToyProcessReward())
        >>> for mark in marks_of(result.root, result.leaves, result.trajectories, result.selected_leaf):
        ...     print(mark.depth * "  " + mark.state, mark.scores and f"{mark.score:.2f}", mark.answer)
        chosen [] None
          pruned 0.52 None
          pruned 0.00 None
          pruned 0.11 None
          chosen 0.68 None
            chosen 0.71 1
            kept 0.28 2
            kept 0.71 1
            kept 0.43 0
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
        """True if it stands for several nodes."""
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

    Example:
        >>> from inferscale import BeamSearch, solve
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> from inferscale.viz import marks_of
        >>> result = solve("How many?", BeamSearch(4, 4), ToyGenerator(), reward_model=ToyProcessReward())
        >>> parts = (result.root, result.leaves, result.trajectories, result.selected_leaf)
        >>> [len(marks_of(*parts, fold=fold)) for fold in ("nothing", "alike", "others")]
        [65, 31, 10]
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
    """The marks of a tree, folded as much as it takes to be read; see `marks_of`.

    Example:
        >>> from inferscale import RepeatedSampling, solve
        >>> from inferscale.testing import ToyGenerator
        >>> from inferscale.viz import marks_of, readable_marks
        >>> result = solve("How many?", RepeatedSampling(100), ToyGenerator())
        >>> parts = (result.root, result.leaves, result.trajectories, result.selected_leaf)
        >>> len(marks_of(*parts)), len(readable_marks(*parts))  # equal answers have become one mark
        (101, 6)
    """
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
        self._normalize = trajectories[0].equality.normalize if trajectories else normalize_answer
        self._answers = {
            leaf: trajectory.answer for leaf, trajectory in zip(leaves, trajectories, strict=bool(trajectories))
        }

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
        return None if answer is None else self._normalize(answer)
