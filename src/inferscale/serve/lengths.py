"""A cap on the length of every path of a search."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, Generate, GenerateRequest, rewrite
from inferscale.tree import Node


@dataclass(frozen=True)
class Shortened(SearchStrategy):
    """`strategy` with paths of at most `max_tokens` sampled tokens.

    A path that ends a step exactly there is given one token more, so that it ends.

    Attributes:
        strategy: What is run.
        max_tokens: Most sampled tokens of a path.
    """

    strategy: SearchStrategy
    max_tokens: int

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """Whether the strategy scores nodes."""
        return self.strategy.needs_scores

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """What the strategy returns."""
        return rewrite(
            self.strategy.search(root, rng), lambda asked: Generate(tuple(self._cut(wish) for wish in asked.requests))
        )

    def _cut(self, wish: GenerateRequest) -> GenerateRequest:
        left = max(1, self.max_tokens - sum(step.generated_tokens for step in wish.node.steps))
        return replace(wish, max_tokens=left if wish.max_tokens is None else min(left, wish.max_tokens))
