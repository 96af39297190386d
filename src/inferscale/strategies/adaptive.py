"""Repeated sampling that stops when the vote is decided."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from inferscale.answers import extract_answer, normalize_answer
from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand
from inferscale.tree import Node

from ._checks import check_choice, check_counts
from .stopping import beta_confidence, dirichlet_confidence, expected_stop, expected_windows

ExtractAnswer: TypeAlias = Callable[[str], str | None]
_CATEGORIES = 5


@dataclass(frozen=True)
class AdaptiveConsistency(SearchStrategy):
    """Samples until the leading answer is surely the majority (Aggarwal et al. 2023, arXiv:2305.11860).

    With v1 >= v2 votes for the two leading answers it stops when ``P(p1 > p2)``, see `beta_confidence`, reaches
    `confidence`: 4 to 0, 6 to 1, 8 to 2, ... at 0.95. Vote with `MajorityVote`. A sample without an answer is a sample
    and not a vote.

    Differs from the paper: the Dirichlet rule always has five answers, unseen ones with no vote (the authors' package
    takes the leading answers that it has seen). The rule is tested after every sample, also inside a block, and all
    samples of the block that were paid for come back.

    Attributes:
        max_samples: Where it stops at the latest.
        confidence: The probability that must be reached.
        rule: ``"beta"`` compares the two leading answers, ``"dirichlet"`` the leader with the next four.
        batch: Samples drawn at a time; 1 is the paper's, more saves model calls.
        extract_answer: The function given to `solve`, which does not hand it to the search.
    """

    max_samples: int = 40
    confidence: float = 0.95
    rule: Literal["beta", "dirichlet"] = "beta"
    batch: int = 1
    extract_answer: ExtractAnswer = field(default=extract_answer, repr=False)

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "max_samples", "batch")
        check_choice(self, "rule", ("beta", "dirichlet"))
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"AdaptiveConsistency(confidence={self.confidence!r}): give a probability in (0.5, 1)")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All samples drawn until the stop."""
        leaves, votes, drawn, decided = list[Node](), Counter[str](), 0, False
        while drawn < self.max_samples and not decided:
            block = min(self.batch, self.max_samples - drawn)
            drawn += block
            new = yield from expand([root], block, until="end")
            leaves += new
            for answer in answers_of(new, self.extract_answer):
                votes.update([answer] if answer is not None else [])
                decided = decided or self.decides(list(votes.values()))
        return leaves or root.leaves()

    def decides(self, votes: Sequence[int]) -> bool:
        """Whether the rule stops at these numbers of votes."""
        ranked = sorted(votes, reverse=True) + [0] * _CATEGORIES
        if self.rule == "beta":
            return beta_confidence(ranked[0], ranked[1]) >= self.confidence
        return dirichlet_confidence(tuple(ranked[:_CATEGORIES])) >= self.confidence

    def expected_samples(self, probabilities: Sequence[float]) -> float:
        """How many samples a problem will take whose answers have these chances; what is missing to 1 abstains."""
        return expected_stop(probabilities, self.max_samples, self.batch, self.decides)


@dataclass(frozen=True)
class EarlyStoppingConsistency(SearchStrategy):
    """Samples in windows and stops when a window is unanimous (ESC; Li et al. 2024, arXiv:2401.10480).

    Whole windows only. A window all of whose samples have one and the same answer decides: its samples come back, so
    that every vote gives its answer; the earlier ones stay in the tree. Without such a window all samples come back.

    Attributes:
        window: Samples in a window (the paper: 8 on MATH, 5 elsewhere).
        max_samples: Where it stops at the latest; what does not fill a window is not drawn.
        extract_answer: The function given to `solve`, which does not hand it to the search.
    """

    window: int = 5
    max_samples: int = 40
    extract_answer: ExtractAnswer = field(default=extract_answer, repr=False)

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "window", "max_samples")
        if self.max_samples < self.window:
            raise ValueError(
                f"EarlyStoppingConsistency(window={self.window}, max_samples={self.max_samples}): "
                "max_samples must hold at least one window"
            )

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The samples of the window that decided, or all."""
        leaves = list[Node]()
        for _ in range(self.max_samples // self.window):
            new = yield from expand([root], self.window, until="end")
            answers = answers_of(new, self.extract_answer)
            if len(new) == self.window and answers[0] is not None and len(set(answers)) == 1:
                return new
            leaves += new
        return leaves or root.leaves()

    def expected_samples(self, probabilities: Sequence[float]) -> float:
        """How many samples a problem will take whose answers have these chances; what is missing to 1 abstains."""
        return expected_windows(probabilities, self.window, self.max_samples)


def answers_of(leaves: Sequence[Node], extract: ExtractAnswer) -> list[str | None]:
    """The normal form of each leaf's answer; ``None`` for an unfinished leaf or one without."""
    answers = [extract(leaf.text) if leaf.is_finished else None for leaf in leaves]
    return [None if answer is None else normalize_answer(answer) for answer in answers]


@dataclass(frozen=True)
class SamplingPlan:
    """What an adaptive strategy will cost, estimated before it runs.

    Attributes:
        expected_samples: Mean samples of a problem.
        max_samples: What sampling without a stop would take.
    """

    expected_samples: float
    max_samples: int

    @property
    def saving(self) -> float:
        """Share of the samples that is saved."""
        return 1 - self.expected_samples / self.max_samples


def plan_sampling(
    strategy: AdaptiveConsistency | EarlyStoppingConsistency, pilot: Sequence[Sequence[str | None]]
) -> SamplingPlan:
    """The expected cost of `strategy`, from a few answers to each of some pilot problems.

    Args:
        strategy: What is to be planned.
        pilot: For each pilot problem the answers sampled, ``None`` where there was none.

    The pilot's frequencies stand for the chances, so a short pilot makes problems look easier than they are: with k
    answers no chance below 1/k is seen.

    Raises:
        ValueError: If a pilot problem has no sample.
    """
    if not pilot or not all(pilot):
        raise ValueError("plan_sampling needs at least one sample of each pilot problem")
    total = 0.0
    for answers in pilot:
        votes = Counter(normalize_answer(answer) for answer in answers if answer is not None)
        chances = [count / len(answers) for count in votes.values()]
        total += strategy.expected_samples(chances) if chances else strategy.max_samples
    return SamplingPlan(total / len(pilot), strategy.max_samples)
