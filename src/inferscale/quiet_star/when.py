"""When to think: rules as objects (standard library only)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next token will stand.

    Attributes:
        step_tokens: Tokens sampled since the step began; 0 for its first.
        tokens: Tokens sampled in this request so far.
        entropy: Of the plain model's distribution (nats); ``None`` unless the rule needs it.
    """

    step_tokens: int
    tokens: int
    entropy: float | None = None


class ThinkingRule(ABC):
    """Decides before which tokens a thought is worth its cost."""

    @property
    def needs_entropy(self) -> bool:
        """Whether the plain prediction must be made first."""
        return False

    @abstractmethod
    def thinks(self, place: Place) -> bool:
        """Whether to think before the token at `place`."""


@dataclass(frozen=True)
class EveryToken(ThinkingRule):
    """Think before every token (the paper)."""

    def thinks(self, place: Place) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class StepStarts(ThinkingRule):
    """Think before the first tokens of every step alone.

    Attributes:
        tokens: How many.
    """

    tokens: int = 1

    def thinks(self, place: Place) -> bool:
        """Whether the step has fewer tokens than that."""
        return place.step_tokens < self.tokens


@dataclass(frozen=True)
class HighEntropy(ThinkingRule):
    """Think where the plain model is unsure.

    Attributes:
        nats: Least entropy of its prediction.
    """

    nats: float = 1.0

    @property
    def needs_entropy(self) -> bool:
        """It does."""
        return True

    def thinks(self, place: Place) -> bool:
        """Whether the entropy is as high as that."""
        return place.entropy is not None and place.entropy >= self.nats


@dataclass(frozen=True)
class Never(ThinkingRule):
    """Do not think: the plain model, for comparisons."""

    def thinks(self, place: Place) -> bool:
        """Never."""
        return False
