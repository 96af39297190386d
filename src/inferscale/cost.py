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
            (`inferscale.flow.ask`); ``"thinking"``, the sampled tokens of thoughts, where the search has a `Thinking`
            (`generated_tokens` alone: what else thoughts cost is not told apart); and, where `solve` was given several
            generators, each by its name.
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
class Price:
    """What tokens and hours cost, in any currency: of a served model by its tokens, of hardware by its time.

    Attributes:
        input: Of a million prompt tokens.
        output: Of a million sampled tokens, thoughts included.
        hour: Of an hour of the hardware.
    """

    input: float = 0.0
    output: float = 0.0
    hour: float = 0.0

    def __post_init__(self) -> None:
        """Refuse prices below 0, and a table of nothing."""
        prices = (self.input, self.output, self.hour)
        if any(not 0 <= price < math.inf for price in prices) or not any(prices):
            raise ValueError(f"{self!r}: give prices of 0 or more, at least one of them greater")

    def of(self, cost: Cost) -> float:
        """Return the price of a cost; its seconds are those in the models, shared by the problems of a batch."""
        return self.at(cost.prompt_tokens, cost.tokens, cost.seconds)

    def at(self, prompt_tokens: float, tokens: float, seconds: float) -> float:
        """Return the price of so many tokens and seconds."""
        return (self.input * prompt_tokens + self.output * tokens) / 1e6 + self.hour * seconds / 3600


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
        money: What `price` makes of the cost; looked at as ``flops`` are.
        price: What things cost, needed for `money`.
    """

    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    calls: int | None = None
    money: float | None = None
    price: Price | None = None

    def __post_init__(self) -> None:
        """Refuse caps that are not positive or are no counts; numbers of other libraries become Python's."""
        for name in CAPS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _checked_cap(name, value))
        if (self.money is None) != (self.price is None):
            raise ValueError(f"{self!r}: money and price=Price(...) belong together, give both or none")

    @property
    def caps(self) -> dict[str, float]:
        """Return the caps that were given, by name."""
        return {name: getattr(self, name) for name in CAPS if getattr(self, name) is not None}

    def identity(self) -> dict[str, Any]:
        """Return the caps; those that came after the first four only where they are given, as older runs have it."""
        first = {name: getattr(self, name) for name in CAPS[:4]}
        return first if self.money is None else {**first, "money": self.money, "price": self.price}

    def exhausted(self, cost: Cost, elapsed: float) -> str | None:
        """Return the name of the first cap that `cost` or `elapsed` (seconds) has met, or ``None``."""
        spent: dict[str, float] = {
            "tokens": cost.tokens,
            "flops": cost.flops,
            "seconds": elapsed,
            "calls": cost.num_generated,
        }
        if self.price is not None:
            spent["money"] = self.price.of(cost)
        for name, value in spent.items():
            cap = getattr(self, name)
            if cap is not None and value >= cap:
                return name
        return None


CAPS = ("tokens", "flops", "seconds", "calls", "money")
"""Names of what a budget can cap."""


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
