"""How to think while sampling, and what was thought, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inferscale.generators.branch import Branch

from .streams import STRIDE
from .when import EveryToken, Never, ThinkingRule


@dataclass(frozen=True)
class Thinking:
    """How to think while sampling.

    Attributes:
        length: Sampled tokens of a thought.
        temperature: Of the thoughts; 0 takes the likeliest.
        num_thoughts: Thoughts before a token; their predictions are averaged.
        rule: Before which tokens.
    """

    length: int
    temperature: float = 1.0
    num_thoughts: int = 1
    rule: ThinkingRule = field(default_factory=EveryToken)

    def __post_init__(self) -> None:
        """Refuses settings that say nothing."""
        if self.length < 0 or self.length >= STRIDE:
            raise ValueError(f"thought_length={self.length}: give 0 to {STRIDE - 1} tokens")
        if self.num_thoughts < 1:
            raise ValueError(f"num_thoughts={self.num_thoughts}: give at least one (Never() turns thoughts off)")

    @property
    def tokens(self) -> int:
        """Most tokens fed for the thoughts before one visible token, start and end included."""
        return 0 if isinstance(self.rule, Never) else self.num_thoughts * (self.length + 2)


@dataclass(frozen=True, slots=True)
class ThoughtRecord:
    """One thought, as recorded.

    Attributes:
        token_ids: Without start and end.
        logprob: Sum of the log-probabilities (nats).
        mixing_weight: Weight that it got.
    """

    token_ids: tuple[int, ...]
    logprob: float
    mixing_weight: float


@dataclass(slots=True)
class Trace:
    """What was thought for one branch.

    Attributes:
        branch: The branch.
        thought: For each visible token whether it was thought about.
        records: The thoughts before each visible token, if they are recorded; later tokens have none yet.
    """

    branch: Branch
    thought: list[bool] = field(default_factory=list)
    records: list[tuple[ThoughtRecord, ...]] = field(default_factory=list)

    def record(self, thoughts: Sequence[ThoughtRecord]) -> None:
        """Keeps the thoughts before the token that comes next."""
        self.records += [()] * (len(self.thought) - len(self.records))
        self.records.append(tuple(thoughts))

    def padded(self) -> tuple[tuple[ThoughtRecord, ...], ...]:
        """The records of every visible token, ``()`` where nothing was thought."""
        return tuple(self.records + [()] * (len(self.thought) - len(self.records)))
