"""DeepConf: traces that the model itself is unsure of are abandoned."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from inferscale.answers import extract_answer
from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand
from inferscale.tree import Node

from ._checks import check_counts
from .adaptive import ExtractAnswer, answers_of


@dataclass(frozen=True)
class DeepConf(SearchStrategy):
    """Confidence-filtered sampling (Fu et al. 2025, arXiv:2508.15260, online).

    `num_warmup` traces run to their ends. The threshold is the quantile of their lowest group confidences that `keep`
    of them reach. Later traces are abandoned as soon as the confidence of the current group of tokens falls below
    it, so their remaining tokens are never sampled. It stops when one answer has the share `consensus` of the votes.
    Vote with ``ConfidenceVote(over="min")``. Confidence is measured where the logits are: use a generator that reports
    it, such as ``HFGenerator(..., confidence="deepconf")``.

    Differs from the paper: traces are sampled step by step and looked at after every step, so a group ends with a
    step and holds the fewest last steps that have `window` tokens (all steps while there are fewer); the consensus
    counts traces instead of their confidences; warm-up traces below the threshold come back too.

    Attributes:
        num_warmup: Traces that set the threshold.
        max_samples: Traces in all.
        keep: Share of the warm-up traces above the threshold (0.9, or 0.1 for the paper's aggressive variant).
        window: Tokens in a group (2,048 in the paper, whose traces are long).
        consensus: Share of the votes at which it stops; ``None`` samples all.
        batch: Traces sampled at a time after the warm-up.
        max_depth: Most steps in a path.
        extract_answer: The function given to `solve`, which does not hand it to the search.
    """

    num_warmup: int = 16
    max_samples: int = 64
    keep: float = 0.9
    window: int = 2048
    consensus: float | None = 0.95
    batch: int = 16
    max_depth: int = 40
    extract_answer: ExtractAnswer = field(default=extract_answer, repr=False)

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "num_warmup", "max_samples", "window", "batch", "max_depth")
        if not 0 < self.keep <= 1:
            raise ValueError(f"DeepConf(keep={self.keep!r}): give a share in (0, 1]")
        if self.consensus is not None and not 0.5 < self.consensus <= 1:
            raise ValueError(f"DeepConf(consensus={self.consensus!r}): give a share in (0.5, 1], or None")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The traces that ran to their ends."""
        drawn = min(self.num_warmup, self.max_samples)
        done = yield from self._trace(root, drawn, -math.inf)
        lowest = [min(self.group_confidence(node) for node in leaf.path[root.depth :]) for leaf in done]
        threshold = float(np.quantile(lowest, 1 - self.keep)) if lowest else -math.inf
        while drawn < self.max_samples and not self._agreed(done):
            block = min(self.batch, self.max_samples - drawn)
            drawn += block
            done += yield from self._trace(root, block, threshold)
        return done or root.leaves()

    def group_confidence(self, node: Node) -> float:
        """Mean token confidence of the last steps that hold `window` tokens.

        Raises:
            ValueError: If the generator reports no confidence.
        """
        total, tokens = 0.0, 0
        for step in reversed(node.steps):
            if step.confidence is None:
                raise ValueError('DeepConf reads confidences: use HFGenerator(..., confidence="deepconf")')
            total += step.confidence * step.generated_tokens
            tokens += step.generated_tokens
            if tokens >= self.window:
                break
        return total / max(tokens, 1)

    def _trace(self, root: Node, n: int, threshold: float) -> Flow[list[Node]]:
        """Those of `n` new traces that ended above the threshold."""
        done, frontier, counts = list[Node](), [root], [n]
        for _ in range(self.max_depth):
            nodes = yield from expand(frontier, counts)
            kept = [node for node in nodes if self.group_confidence(node) >= threshold]
            done += [node for node in kept if node.is_finished]
            frontier = [node for node in kept if not node.is_finished]
            counts = [1] * len(frontier)
            if not frontier:
                break
        return done

    def _agreed(self, leaves: Sequence[Node]) -> bool:
        votes = Counter(answer for answer in answers_of(leaves, self.extract_answer) if answer is not None)
        return self.consensus is not None and max(votes.values(), default=0) >= self.consensus * votes.total() > 0
