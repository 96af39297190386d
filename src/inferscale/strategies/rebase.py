"""Reward-balanced search."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand, score
from inferscale.functional import rebase_allocation
from inferscale.tree import Node

from ._checks import check_choice, check_counts, check_positive


@dataclass(frozen=True)
class REBASE(SearchStrategy):
    """Reward-balanced search (Wu et al. 2024, arXiv:2408.00724, section 3.1.2).

    Each level shares what is left of the width over the open nodes by a softmax of their scores, so good prefixes
    get many children, poor ones few or none, and no roll-out is needed. A finished leaf takes one unit of the width
    for good; the search ends with at most `width` leaves, at about the cost of sampling `width` solutions.

    Differs from the paper: children are allocated by the sequential ceiling of the authors' code in exact form, so
    that the counts always add up to the width left (``rounding="paper"`` and ``"released"`` reproduce both published
    rules, which over- and underspend); paths that are unfinished at `max_depth` are returned, flagged by
    ``is_finished``, and abstain from votes (the released code drops them); the path length limit is the generator's
    ``max_new_tokens`` and does end a path (in the released code it never fires).

    Attributes:
        width: Leaves that the search may finish (N in the paper).
        softmax_temperature: T_b, in units of the score: 0.1 in the paper (0.2 in the released settings). Rescale it
            for a reward outside of (0, 1).
        max_depth: Most steps in a path.
        rounding: ``"exact"``, or the published ``"paper"`` and ``"released"``.
        truncate_ratio: Keep only this share of the best open nodes before sharing; ``None`` keeps all.
    """

    width: int = 16
    softmax_temperature: float = 0.1
    max_depth: int = 40
    rounding: Literal["exact", "paper", "released"] = "exact"
    truncate_ratio: float | None = None
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "width", "max_depth")
        check_positive(self, "softmax_temperature")
        check_choice(self, "rounding", ("exact", "paper", "released"))
        if self.truncate_ratio is not None and not 0 < self.truncate_ratio <= 1:
            raise ValueError(f"REBASE(truncate_ratio={self.truncate_ratio}): give a share in (0, 1], or None")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Finished leaves, then the paths still open; what is left of a search that died out."""
        finished: list[Node] = []
        frontier, counts = [root], [self.width]
        for _ in range(self.max_depth):
            children = yield from expand(frontier, counts)
            yield from score(children)
            finished += [node for node in children if node.is_finished]
            frontier = [node for node in children if not node.is_finished]
            width_left = self.width - len(finished)
            if not frontier or width_left <= 0:
                break
            counts = self._allocate([node.score for node in frontier], width_left)
            for node, count in zip(frontier, counts, strict=True):
                node.stats["allocated"] = count
        return finished + frontier or root.leaves()

    def _allocate(self, scores: list[float], width_left: int) -> list[int]:
        counts = rebase_allocation(
            scores, width_left, self.softmax_temperature, rounding=self.rounding, truncate_ratio=self.truncate_ratio
        )
        return [int(count) for count in counts]
