"""Beam search over steps, its look-ahead, and diverse verifier tree search."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand, gather, score
from inferscale.tree import Node

from ._checks import check_counts


def look_ahead(nodes: Sequence[Node], depth: int) -> Flow[list[float]]:
    """The score of each node after up to `depth` more steps taken greedily; the node's own score for ``depth=0``.

    The roll-out is charged and scored, and takes no part in the tree or in votes (Snell et al. 2024,
    arXiv:2408.03314, section 5.1).
    """
    ends = list(nodes)
    for _ in range(depth):
        rolled = yield from expand([end for end in ends if not end.is_finished], greedy=True, attach=False)
        if not rolled:
            break
        next_of = {node.parent: node for node in rolled}
        ends = [next_of.get(end, end) for end in ends]
    yield from score(ends)
    return [end.score for end in ends]


def first_of_each_text(nodes: Sequence[Node]) -> list[Node]:
    """The nodes without those whose whole text another one had before them, in order."""
    first: dict[str, Node] = {}
    for node in nodes:
        first.setdefault(node.text, node)
    return list(first.values())


@dataclass(frozen=True)
class BeamSearch(SearchStrategy):
    """Beam search against a process reward model (Snell et al. 2024, arXiv:2408.03314, section 5.1).

    Snell et al. write N for the children of a level and M for the children of a beam: ``beam_width = N / M`` and
    ``branching = M``.

    Differs from the paper: a finished path competes for its slot in the beam and is never left out of the result;
    the search ends when the whole beam has finished (search-and-learn expands on until no beam is open).

    Attributes:
        beam_width: Beams kept after each level.
        branching: Children of each beam; the root gets ``beam_width * branching``.
        max_depth: Most steps in a path.
        lookahead: Greedy steps that a child is rolled out before it is ranked; 0 ranks it by its own score.
        filter_duplicates: Let only the first of several candidates with the same whole text compete.
    """

    beam_width: int = 4
    branching: int = 4
    max_depth: int = 40
    lookahead: int = 0
    filter_duplicates: bool = False
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "beam_width", "branching", "max_depth")
        check_counts(self, "lookahead", minimum=0)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All finished leaves, or the last beam if none has finished, or what is left of a beam that died out."""
        return (yield from self.survivors(root)) or root.leaves()

    def survivors(self, root: Node) -> Flow[list[Node]]:
        """All finished leaves, or the last beam, which is empty if every sample from it failed."""
        beam, counts, done = [root], [self.beam_width * self.branching], list[Node]()
        value: dict[Node, float] = {}
        for _ in range(self.max_depth):
            alive = [node for node in beam if not node.is_finished]
            if not alive:
                break
            children = yield from expand(alive, counts)
            value.update(zip(children, (yield from look_ahead(children, self.lookahead)), strict=True))
            done += [node for node in children if node.is_finished]
            candidates = [node for node in beam if node.is_finished] + children
            if self.filter_duplicates:
                candidates = first_of_each_text(candidates)
            # Python's sort is stable: among equal values the older node keeps its place.
            beam = sorted(candidates, key=lambda node: -value[node])[: self.beam_width]
            counts = [self.branching] * sum(not node.is_finished for node in beam)
        return done or beam


@dataclass(frozen=True)
class DVTS(SearchStrategy):
    """Diverse verifier tree search: independent narrow beams from the root.

    `num_subtrees` times ``BeamSearch(1, branching)``; subtrees never compete, so a subtree survives low scores
    (Beeching, Tunstall and Rush 2024, "Scaling test-time compute with open models").

    Differs from the source: each subtree samples its own `branching` first steps and ends when its best path has
    finished; what is returned are the finished leaves (search-and-learn returns the last candidates of each subtree,
    unfinished ones too).

    Attributes:
        num_subtrees: Independent beams.
        branching: Children of each beam at each level.
        max_depth: Most steps in a path.
        lookahead: As in `BeamSearch`.
    """

    num_subtrees: int = 4
    branching: int = 4
    max_depth: int = 40
    lookahead: int = 0
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "num_subtrees", "branching", "max_depth")
        check_counts(self, "lookahead", minimum=0)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The finished leaves of all subtrees, or their open paths if none has finished."""
        beam = BeamSearch(1, self.branching, self.max_depth, self.lookahead)
        groups = yield from gather(beam.survivors(root) for _ in range(self.num_subtrees))
        leaves = [leaf for group in groups for leaf in group]
        return [leaf for leaf in leaves if leaf.is_finished] or leaves or root.leaves()


@dataclass(frozen=True)
class StepwiseGreedy(SearchStrategy):
    """At every step sample `k` continuations and keep the best-scored one (best-of-n at the level of steps).

    The same tree as ``BeamSearch(1, k)``.

    Attributes:
        k: Samples of each step.
        max_depth: Most steps in a path.
    """

    k: int = 4
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "k", "max_depth")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All finished leaves, or the path so far if none has finished."""
        node, done = root, list[Node]()
        for _ in range(self.max_depth):
            children = yield from expand([node], self.k)
            yield from score(children)
            done += [child for child in children if child.is_finished]
            if not children:
                return done or root.leaves()
            node = max(children, key=lambda child: child.score)
            if node.is_finished:
                break
        return done or [node]
