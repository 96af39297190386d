"""The nodes of a search tree, and the keys that their random streams derive from (standard library only)."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from ._records import Problem, Step


class UnscoredNodeError(AttributeError):
    """A score was read before a reward model gave one."""


class Node:
    """A prefix of a solution: the root, or a parent's prefix and one more `Step`.

    Nodes are made by the engine; strategies only read them. Two nodes are equal only if they are the same object:
    siblings with equal text are different samples.

    Attributes:
        problem: The problem that the tree belongs to.
        step: The step that leads here; ``None`` at the root.
        parent: The node before; ``None`` at the root.
        children: Nodes sampled from here, in the order of sampling; look-ahead is not among them.
        depth: Number of steps from the root.
        step_scores: What a process reward model gave to each step of the path, or ``None``.
        stats: Numbers for people (visits, values); the library never reads them back.
        key: A 64-bit name of the path; random streams of samples from here derive from it.
        num_draws: Samples drawn from here so far, look-ahead included.
    """

    __slots__ = ("_score", "children", "depth", "key", "num_draws", "parent", "problem", "stats", "step", "step_scores")

    def __init__(self, problem: Problem, step: Step | None = None, parent: Node | None = None, key: int = 0) -> None:
        self.problem = problem
        self.step = step
        self.parent = parent
        self.children: list[Node] = []
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.step_scores: tuple[float, ...] | None = None
        self.stats: dict[str, Any] = {}
        self.key = key
        self.num_draws = 0
        self._score: float | None = None

    @property
    def score(self) -> float:
        """The reward model's score; higher is better.

        Raises:
            UnscoredNodeError: If the node has no score yet.
        """
        if self._score is None:
            raise UnscoredNodeError(
                f"{self!r} has no score yet: write `yield from score(nodes)` before reading `node.score`"
            )
        return self._score

    @score.setter
    def score(self, value: float) -> None:
        self._score = value

    @property
    def is_scored(self) -> bool:
        """Whether a reward model has scored this node."""
        return self._score is not None

    @property
    def is_finished(self) -> bool:
        """Whether the path has ended: it cannot be expanded."""
        return self.step is not None and self.step.finish_reason != "step"

    @property
    def is_failed(self) -> bool:
        """Whether the path ended without a usable sample (nothing but white space, or an error)."""
        return self.step is not None and self.step.finish_reason in ("empty", "error")

    @property
    def root(self) -> Node:
        """The node of the bare prompt."""
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    @property
    def path(self) -> list[Node]:
        """Nodes from the root's child to this one; ``[]`` for the root."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    @property
    def steps(self) -> tuple[Step, ...]:
        """Steps of the path, first to last."""
        return tuple(node.step for node in self.path if node.step is not None)

    @property
    def text(self) -> str:
        """The solution so far, without the prompt."""
        return "".join(step.text for step in self.steps)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids along the path, sampled and forced, without the prompt."""
        return tuple(token for step in self.steps for token in step.token_ids)

    def inner_steps(self) -> list[tuple[str, tuple[int, ...]]]:
        """Text and ids of every step of the solution, completions split where their inner steps end."""
        return [piece for step in self.steps for piece in step.inner_steps()]

    def walk(self) -> Iterator[Node]:
        """This node and all below, parents first, children in the order of sampling."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def leaves(self) -> list[Node]:
        """The finished leaves below, or all leaves if none has finished: the one meaning of "best effort".

        A path whose further samples all failed ends before them; failed samples count only where nothing else is.
        """
        nodes = list(self.walk())
        ends = [n for n in nodes if n.step and not n.is_failed and all(child.is_failed for child in n.children)]
        return [n for n in ends if n.is_finished] or ends or [n for n in nodes if not n.children]

    def __repr__(self) -> str:
        """Depth, score and the last step's text."""
        score = "unscored" if self._score is None else f"score={self._score:.4g}"
        reason = "root" if self.step is None else self.step.finish_reason
        text = self.problem.prompt if self.step is None else self.step.text
        return f"<Node depth={self.depth} {score} {reason} {text[:40]!r}>"


def branch_key(parent_key: int, draw: int) -> int:
    """The 64-bit key of the `draw`-th sample from the node with `parent_key`."""
    return int.from_bytes(blake2b(b"%d/%d" % (parent_key, draw), digest_size=8).digest(), "little")


def root_key(stream: str) -> int:
    """The 64-bit key of a problem's root, from ``f"{seed}/{prompt}"``."""
    return int.from_bytes(blake2b(stream.encode(), digest_size=8).digest(), "little")
