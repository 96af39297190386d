"""Sampling without search: one greedy completion, or many independent ones."""

from __future__ import annotations

import random
from dataclasses import dataclass

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand
from inferscale.tree import Node

from .checks import check_counts


@dataclass(frozen=True)
class Greedy(SearchStrategy):
    """One greedy completion: the likeliest token each time."""

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The completion."""
        return expand([root], until="end", greedy=True)


@dataclass(frozen=True)
class RepeatedSampling(SearchStrategy):
    """`n` independent completions.

    With `MajorityVote` this is self-consistency (Wang et al. 2022, arXiv:2203.11171), with
    ``MajorityVote(weighted=True)`` the weighted majority vote and with `BestOfN` best-of-n of Wu et al. 2024
    (arXiv:2408.00724, section 3.1.1): which one is the aggregator's business, not the search's.

    Attributes:
        n: Completions.
    """

    n: int = 16

    def __post_init__(self) -> None:
        """Refuses ``n < 1``."""
        check_counts(self, "n")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The completions, in the order of sampling."""
        return expand([root], self.n, until="end")
