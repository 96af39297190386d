"""The cost of a search, and the budget that it is given (standard library only)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any


@dataclass(frozen=True, slots=True)
class Cost:
    """Measured cost; costs add up with ``+``.

    Attributes:
        prompt_tokens: Prompt and forced tokens read by the generator; a shared prompt counts once.
        generated_tokens: Tokens sampled, end of sequence included, pruned and failed branches too.
        thought_tokens: Hidden thought tokens sampled (Quiet-STaR); not part of `generated_tokens`.
        scored_tokens: Tokens read by the reward model.
        generator_flops: FLOPs of the generator (a multiply-add is 2), closed form, no padding.
        reward_flops: FLOPs of the reward model, closed form, no padding.
        seconds: Time spent in the generator and the reward model; a call that serves several problems is divided
            among them by their samples, or by their nodes.
        num_generated: Samples drawn (steps or whole completions).
        num_scored: Nodes scored.
        shares: What of it was spent on generating something that is told apart: ``"ask"``, the side prompts
            (`inferscale.flow.ask`), and, where `solve` was given several generators, each by its name.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    thought_tokens: int = 0
    scored_tokens: int = 0
    generator_flops: int = 0
    reward_flops: int = 0
    seconds: float = 0.0
    num_generated: int = 0
    num_scored: int = 0
    shares: Mapping[str, Cost] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Make costs of shares that come as plain data."""
        if self.shares:
            costs = {name: each if isinstance(each, Cost) else Cost(**each) for name, each in self.shares.items()}
            object.__setattr__(self, "shares", costs)

    def __add__(self, other: Cost) -> Cost:
        """Return the sum, field by field."""
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(
            self.prompt_tokens + other.prompt_tokens,
            self.generated_tokens + other.generated_tokens,
            self.thought_tokens + other.thought_tokens,
            self.scored_tokens + other.scored_tokens,
            self.generator_flops + other.generator_flops,
            self.reward_flops + other.reward_flops,
            self.seconds + other.seconds,
            self.num_generated + other.num_generated,
            self.num_scored + other.num_scored,
            {
                name: self.shares.get(name, Cost()) + other.shares.get(name, Cost())
                for name in dict.fromkeys((*self.shares, *other.shares))
            },
        )

    def __radd__(self, other: object) -> Cost:
        """Make ``sum(costs)`` work, which starts from 0."""
        return self if other == 0 else NotImplemented

    @property
    def flops(self) -> int:
        """FLOPs of generator and reward model together."""
        return self.generator_flops + self.reward_flops

    @property
    def tokens(self) -> int:
        """Tokens sampled, thoughts included."""
        return self.generated_tokens + self.thought_tokens


@dataclass(frozen=True, slots=True)
class Budget:
    """A cap that every strategy honours: the search stops, and the best so far is returned.

    ``tokens`` and ``calls`` are never exceeded: samples are drawn in their order until the cap is met, and the sample
    that meets it is cut there (``finish_reason="budget"``). ``seconds`` cut all samples that are being drawn, at the
    next token, and those that have not begun are left out; generators of your own may look at the clock as well
    (`GenerateRequest.is_over`), or are waited for. ``flops`` are checked before each call, so one call can pass them.
    Scoring the leaves that are returned is always done, and counted.

    Attributes:
        tokens: Sampled tokens, thoughts included.
        flops: FLOPs of generator and reward model.
        seconds: Wall-clock seconds since the search of this problem began; an answer that is replayed from a journal
            counts for the seconds that its model took.
        calls: Samples drawn (steps or whole completions).
    """

    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    calls: int | None = None

    def __post_init__(self) -> None:
        """Refuse caps that are not positive or are no counts; numbers of other libraries become Python's."""
        for name in ("tokens", "flops", "seconds", "calls"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _checked_cap(name, value))

    def exhausted(self, cost: Cost, elapsed: float) -> str | None:
        """Return the name of the first cap that `cost` or `elapsed` (seconds) has met, or ``None``."""
        spent = {"tokens": cost.tokens, "flops": cost.flops, "seconds": elapsed, "calls": cost.num_generated}
        for name, value in spent.items():
            cap = getattr(self, name)
            if cap is not None and value >= cap:
                return name
        return None


def _checked_cap(name: str, value: Any) -> float:
    if not value > 0:
        raise ValueError(f"Budget({name}={value!r}): a cap must be greater than 0; leave it out for no cap")
    if isinstance(value, Integral):
        return int(value)
    if name in ("tokens", "calls"):
        if not math.isfinite(value) or value != int(value):
            raise ValueError(f"Budget({name}={value!r}): give a whole number, or leave it out for no cap")
        return int(value)
    return float(value)
