"""Best-first and depth-first search over steps, ranked by the reward model (tree of thoughts)."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass
from typing import ClassVar

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand, score
from inferscale.tree import Node

from ._checks import check_counts


@dataclass(frozen=True)
class BestFirst(SearchStrategy):
    """Best-first search: always expand the open node with the best score (the older one on ties).

    The breadth-first tree of thoughts (Yao et al. 2023, arXiv:2305.10601) is `BeamSearch`; this is its greedy cousin
    without levels, as in treequest.

    Attributes:
        num_expansions: Nodes expanded.
        branching: Children of each.
        num_parallel: Nodes expanded at a time, the best ones; more than 1 saves model calls and is less greedy.
        max_finished: Stop once so many leaves have finished; ``None`` spends all expansions.
        max_depth: Most steps in a path.
    """

    num_expansions: int = 32
    branching: int = 2
    num_parallel: int = 1
    max_finished: int | None = None
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "num_expansions", "branching", "num_parallel", "max_depth")
        if self.max_finished is not None:
            check_counts(self, "max_finished")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves of the whole tree."""
        heap = [(0.0, 0, root)]
        pushed, finished, left = 1, 0, self.num_expansions
        while heap and left and (self.max_finished is None or finished < self.max_finished):
            batch = [heapq.heappop(heap)[2] for _ in range(min(self.num_parallel, left, len(heap)))]
            left -= len(batch)
            children = yield from expand(batch, self.branching)
            yield from score(children)
            for child in children:
                if child.is_finished:
                    finished += 1
                elif child.depth - root.depth < self.max_depth:
                    heapq.heappush(heap, (-child.score, pushed, child))
                    pushed += 1
        return root.leaves()


@dataclass(frozen=True)
class DepthFirst(SearchStrategy):
    """Depth-first search with pruning and backtracking (Yao et al. 2023, arXiv:2305.10601, algorithm 2).

    Children are visited in descending order of score, those below `threshold` never; a dead end goes back to the
    best sibling that is left.

    Differs from the paper: it stops after `max_finished` visited leaves or `num_expansions`, and returns every
    finished leaf that was paid for, visited or not.

    Attributes:
        num_expansions: Most nodes expanded.
        branching: Children of each.
        threshold: Children with a lower score are pruned; ``None`` prunes none.
        max_finished: Stop at so many finished leaves visited; ``None`` goes on while there is something to visit.
        max_depth: Most steps in a path.
    """

    num_expansions: int = 32
    branching: int = 4
    threshold: float | None = None
    max_finished: int | None = 1
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "num_expansions", "branching", "max_depth")
        if self.threshold is not None and math.isnan(self.threshold):
            raise ValueError("DepthFirst(threshold=nan) would prune every child: give a score, or None")
        if self.max_finished is not None:
            check_counts(self, "max_finished")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves of the whole tree."""
        stack, finished, left = [root], 0, self.num_expansions
        while stack and (self.max_finished is None or finished < self.max_finished):
            node = stack.pop()
            if node.is_finished:
                finished += 1
            elif left and node.depth - root.depth < self.max_depth:
                left -= 1
                children = yield from expand([node], self.branching)
                yield from score(children)
                ranked = sorted(children, key=lambda child: -child.score)
                stack += reversed([child for child in ranked if self._is_promising(child)])
        return root.leaves()

    def _is_promising(self, child: Node) -> bool:
        return self.threshold is None or child.score >= self.threshold
