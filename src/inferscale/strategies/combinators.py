"""Strategies made of strategies: one after another, one instead of another, or again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, gather, limit
from inferscale.tree import Node

from ._checks import check_counts, check_members

Accept: TypeAlias = Callable[[Sequence[Node]], bool]


def any_finished(leaves: Sequence[Node]) -> bool:
    """Whether a leaf has finished with a usable text."""
    return any(leaf.is_finished and not leaf.is_failed for leaf in leaves)


def joined(earlier: Sequence[Node], later: Sequence[Node]) -> list[Node]:
    """The leaves of two searches from one root, without failed ones where there are others.

    A search that returns the leaves of the whole tree returns those of an earlier search again: they count once. A
    leaf that one search returns several times, as a particle filter does, stays as often.
    """
    known = set(earlier)
    leaves = [*earlier, *(leaf for leaf in later if leaf not in known)]
    return [leaf for leaf in leaves if not leaf.is_failed] or leaves


def _stream(rng: random.Random) -> random.Random:
    """A child stream, so that composing strategies does not change a member's draws."""
    return random.Random(rng.getrandbits(64))


@dataclass(frozen=True)
class _Pair(SearchStrategy):
    """Two strategies, one after the other."""

    first: SearchStrategy
    second: SearchStrategy

    def __post_init__(self) -> None:
        """Refuses what is no strategy."""
        check_members(self, self.first, self.second)

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """Whether one of the two scores nodes."""
        return self.first.needs_scores or self.second.needs_scores


@dataclass(frozen=True)
class Then(_Pair):
    """`first`, and from each leaf that it leaves open a search by `second`, all side by side.

    ``Then(BeamSearch(4, 4, max_depth=3), RepeatedSampling(2))`` spends search on the beginning only.

    Attributes:
        first: Where it begins.
        second: How open leaves go on.
    """

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Leaves that `first` finished, then those that `second` found from the others."""
        leaves = yield from self.first.search(root, _stream(rng))
        open_leaves = [leaf for leaf in leaves if not leaf.is_finished]
        groups = yield from gather(self.second.search(leaf, _stream(rng)) for leaf in open_leaves)
        found = [leaf for group in groups for leaf in group if not leaf.is_failed]
        return [leaf for leaf in leaves if leaf.is_finished] + found or root.leaves()


@dataclass(frozen=True)
class Fallback(_Pair):
    """`first`, and `second` as well if the leaves of the first are not accepted.

    Attributes:
        first: What is tried.
        second: What is done if that was not enough.
        accept: Whether the leaves of `first` will do; by default if one has finished.
    """

    accept: Accept = field(default=any_finished, repr=False)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves of `first`, with those of `second` if it had to run."""
        leaves = yield from self.first.search(root, _stream(rng))
        if not self.accept(leaves):
            leaves = joined(leaves, (yield from self.second.search(root, _stream(rng))))
        return leaves


@dataclass(frozen=True)
class Restart(SearchStrategy):
    """`strategy` again and again, each time from the root with new samples, until its leaves are accepted.

    Attributes:
        strategy: What is run.
        times: How often at most.
        accept: Whether the leaves of a run will do; by default if one has finished.
    """

    strategy: SearchStrategy
    times: int = 3
    accept: Accept = field(default=any_finished, repr=False)

    def __post_init__(self) -> None:
        """Refuses ``times < 1`` and what is no strategy."""
        check_members(self, self.strategy)
        check_counts(self, "times")

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """Whether the strategy scores nodes."""
        return self.strategy.needs_scores

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves of all runs, in order."""
        leaves = list[Node]()
        for _ in range(self.times):
            new = yield from self.strategy.search(root, _stream(rng))
            leaves = joined(leaves, new)
            if self.accept(new):
                break
        return leaves


@dataclass(frozen=True)
class Limited(SearchStrategy):
    """`strategy`, ended with its best effort before it asks for more than `samples` samples.

    Attributes:
        strategy: What is run.
        samples: Most samples drawn (steps or whole completions).
    """

    strategy: SearchStrategy
    samples: int

    def __post_init__(self) -> None:
        """Refuses ``samples < 1`` and what is no strategy."""
        check_members(self, self.strategy)
        check_counts(self, "samples")

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """Whether the strategy scores nodes."""
        return self.strategy.needs_scores

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """What the strategy returns, or the leaves so far."""
        return limit(self.strategy.search(root, rng), root, self.samples)
