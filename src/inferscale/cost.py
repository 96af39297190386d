"""The cost of a search, and the budget that it is given (standard library only)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from numbers import Integral
from typing import Any, Protocol

FORMAT = "inferscale.Cost"
VERSION = 1
CONVENTION = "causal"
"""The convention of FLOP counts (`inferscale.flops.CONVENTIONS`): no masked pairs or padding, a multiply-add is 2."""

_DERIVED = ("tokens", "flops", "bytes", "joules")


@dataclass(frozen=True, slots=True)
class Cost:
    """Measured cost of a search; costs add up with ``+``.

    What is not known is ``None``, and so is every sum that it is part of. Tokens, FLOPs, bytes and rounds are those of
    the search alone: they depend neither on the problems beside it nor on what is cached, and a resumed run has the
    same. Seconds and joules are the search's share of what was measured.

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
        resent_tokens: Prompt and path tokens that a server was sent again, beyond `prompt_tokens`; it charges for them.
        cached_tokens: Of all tokens that a server was sent, those that it says it had in its cache.
        generator_bytes: Weights, keys and values (and states of recurrent layers) that the generator reads and writes:
            weights once for each forward of the search's rows, keys and values of a prompt once for all rows
            (`inferscale.flops.traffic`).
        reward_bytes: The same of the reward model.
        cache_bytes: The part of both that is keys, values and states.
        rounds: Forwards that follow one another, the part of latency that no hardware takes away: tokens of the longest
            sample of each answer, and one for each call that scores.
        phases: The seconds by phase: ``"prefill"`` (prompts and paths read) and ``"decode"``, or ``"generate"`` where
            the generator does not tell them apart; and ``"score"``. On top of them ``"python"``, the strategy's own
            time until it asked for the last of these. Not compared.
        first_answer: Seconds from the beginning of the search to its first finished solution; ``None`` without one.
            In a sum, divide by the number of problems. Not compared.
        generator_joules: Energy while the generator ran, where it was measured (``energy=`` of `solve`).
        reward_joules: Energy while the reward model ran.

    Example:
        >>> import inferscale as isc
        >>> result = isc.solve("How many?", isc.RepeatedSampling(4), isc.testing.ToyGenerator())
        >>> result.cost.tokens, result.cost.prompt_tokens, result.cost.num_generated, result.cost.flops
        (65, 2, 4, 67000)
        >>> sum([result.cost, result.cost]).tokens
        130
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
    _: KW_ONLY
    resent_tokens: int = 0
    cached_tokens: int = 0
    generator_bytes: int | None = 0
    reward_bytes: int | None = 0
    cache_bytes: int | None = 0
    rounds: int | None = 0
    phases: Mapping[str, float] = field(default_factory=dict, compare=False)
    first_answer: float | None = field(default=0.0, compare=False)
    generator_joules: float | None = 0.0
    reward_joules: float | None = 0.0

    def __post_init__(self) -> None:
        """Make costs of shares that come as plain data."""
        if self.shares:
            costs = {name: each if isinstance(each, Cost) else Cost(**each) for name, each in self.shares.items()}
            object.__setattr__(self, "shares", costs)

    def __add__(self, other: Cost) -> Cost:
        """Return the sum, field by field."""
        if not isinstance(other, Cost):
            return NotImplemented
        sums: dict[str, Any] = {name: _plus(getattr(self, name), getattr(other, name)) for name in _NUMBERS}
        return Cost(**sums, shares=_merged(self.shares, other.shares), phases=_merged(self.phases, other.phases))

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

    @property
    def bytes(self) -> int | None:
        """Bytes that generator and reward model move."""
        total: int | None = _plus(self.generator_bytes, self.reward_bytes)
        return total

    @property
    def joules(self) -> float | None:
        """Energy of generator and reward model together."""
        total: float | None = _plus(self.generator_joules, self.reward_joules)
        return total

    def eflops(self, intensity: float) -> float | None:
        """Return FLOPs + intensity x bytes of keys and values (Kinetics, arXiv:2506.05333).

        Weights are left out there: a server shares them among so many problems that they cost little.

        Args:
            intensity: FLOPs that take as long as moving a byte: ``inferscale.scaling.device("h200").intensity``.
        """
        return None if self.cache_bytes is None else self.flops + intensity * self.cache_bytes

    def without_seconds(self) -> Cost:
        """Return the cost without what clocks, meters and servers told, for comparisons: the rest is deterministic."""
        shares = {name: share.without_seconds() for name, share in self.shares.items()}
        return replace(
            self, seconds=0.0, phases={}, first_answer=None, generator_joules=None, reward_joules=None, resent_tokens=0,
            cached_tokens=0, shares=shares,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, as ``inferscale/cost.schema.json`` describes it."""
        derived = {name: getattr(self, name) for name in _DERIVED}
        return {"format": FORMAT, "version": VERSION, "convention": CONVENTION, **asdict(self), **derived}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cost:
        """Return the cost that `to_dict`, or a version of inferscale before it, turned into `data`.

        Raises:
            TypeError: If there are fields that no cost has.
            ValueError: If it was written by a newer version.
        """
        if data.get("version", 0) > VERSION:
            raise ValueError(f"a cost of version {data['version']} is a newer inferscale's: update to read it")
        header = ("format", "version", "convention", *_DERIVED)
        given = {name: value for name, value in data.items() if name not in header}
        if "format" not in data:  # what was not counted then is not known
            unknown = dict.fromkeys(_LATER)
            shares = {name: cls(**{**unknown, **share}) for name, share in data.get("shares", {}).items()}
            given = {**unknown, **given, "shares": shares}
        return cls(**given)


_NUMBERS = tuple(each.name for each in fields(Cost) if each.name not in ("shares", "phases"))
_LATER = (
    "generator_bytes", "reward_bytes", "cache_bytes", "rounds", "first_answer", "generator_joules", "reward_joules"
)  # fmt: skip


class Meter(Protocol):
    """Reads the energy used until now, such as an `inferscale.flops.EnergyMeter`."""

    @property
    def source(self) -> str:
        """The counter, or why there is none."""

    def read(self) -> float | None:
        """Joules since some moment; ``None`` if they are not known."""


def _plus(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one + other


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one[name] + other[name] if name in one and name in other else one.get(name, other.get(name))
            for name in dict.fromkeys((*one, *other))}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Price:
    """Prices of tokens and hours, in any currency: of a served model by its tokens, of hardware by its time.

    Attributes:
        input: Of a million prompt tokens, those that a server was sent again included.
        output: Of a million sampled tokens, thoughts included.
        hour: Of an hour of the hardware.
        cached: Of a million prompt tokens that the server says it had in its cache; by default `input`.

    Raises:
        ValueError: If a price is negative or infinite, or none is above 0.

    Example:
        >>> import inferscale as isc
        >>> price = isc.Price(input=0.5, output=2.0)  # of a million tokens
        >>> cost = isc.Cost(prompt_tokens=2000, generated_tokens=10_000)
        >>> round(price.of(cost), 4)
        0.021
        >>> budget = isc.Budget(money=0.01, price=price)  # of each problem
    """

    input: float = 0.0
    output: float = 0.0
    hour: float = 0.0
    cached: float | None = None

    def __post_init__(self) -> None:
        """Refuse prices below 0, and a table of nothing."""
        prices = (self.input, self.output, self.hour, self.cached or 0.0)
        if any(not 0 <= price < math.inf for price in prices) or not any(prices):
            raise ValueError(f"{self!r}: give prices of 0 or more, at least one of them greater")

    def of(self, cost: Cost) -> float:
        """Return the price of a cost; its seconds are those in the models, shared by the problems of a batch."""
        return self.at(cost.prompt_tokens + cost.resent_tokens, cost.tokens, cost.seconds, cost.cached_tokens)

    def at(self, prompt_tokens: float, tokens: float, seconds: float, cached_tokens: float = 0) -> float:
        """Return the price of so many tokens and seconds; `cached_tokens` are part of the prompt's."""
        cached = self.input if self.cached is None else self.cached
        read = self.input * (prompt_tokens - cached_tokens) + cached * cached_tokens
        return (read + self.output * tokens) / 1e6 + self.hour * seconds / 3600

    def identity(self) -> dict[str, Any]:
        """Return the prices; that of cached tokens only where it is given, as older runs have it."""
        return {name: price for name, price in asdict(self).items() if price is not None}


@dataclass(frozen=True, slots=True)
class Budget:
    """A cap that every strategy honours: the search stops, and the best so far is returned.

    ``tokens`` and ``calls`` are never exceeded: samples are drawn in their order until the cap is met, and the sample
    that meets it is cut there (``finish_reason="budget"``). ``seconds`` cut all samples that are being drawn, at the
    next token, and those that have not begun are left out; generators of your own may look at the clock as well
    (`GenerateRequest.is_over`), or are waited for. ``flops``, ``bytes``, ``joules`` and ``money`` are looked at before
    each call, so one call can pass them. Scoring the leaves that are returned is always done, and counted.

    Attributes:
        tokens: Sampled tokens, thoughts included.
        flops: FLOPs of generator and reward model.
        seconds: Wall-clock seconds since the search of this problem began; an answer that is replayed from a journal
            counts for the seconds that its model took.
        calls: Samples drawn (steps or whole completions).
        money: What `price` makes of the cost.
        price: What things cost, needed for `money`.
        bytes: Bytes that generator and reward model move (`Cost.bytes`); both must be able to tell.
        joules: Energy of generator and reward model, which needs a meter: ``energy=`` of `solve`.

    Raises:
        ValueError: If a cap is not above 0, a count of tokens or calls is not whole, or `money` and `price` are not
            both given.

    Example:
        >>> import inferscale as isc
        >>> generator = isc.testing.ToyGenerator()
        >>> result = isc.solve("How many?", isc.RepeatedSampling(64), generator, budget=isc.Budget(tokens=100))
        >>> result.cost.tokens, result.stopped_by, len(result.trajectories)
        (100, 'tokens', 7)
    """

    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    calls: int | None = None
    money: float | None = None
    price: Price | None = None
    bytes: float | None = None
    joules: float | None = None

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
        return {**first, **self.caps, **({} if self.price is None else {"price": self.price})}

    def exhausted(self, cost: Cost, elapsed: float) -> str | None:
        """Return the name of the first cap that `cost` or `elapsed` (seconds) has met, or ``None``.

        Raises:
            ValueError: If what is capped is not known.
        """
        spent: dict[str, float | None] = {
            "tokens": cost.tokens,
            "flops": cost.flops,
            "seconds": elapsed,
            "calls": cost.num_generated,
            "money": None if self.price is None else self.price.of(cost),
            "bytes": cost.bytes,
            "joules": cost.joules,
        }
        for name, cap in self.caps.items():
            value = spent[name]
            if value is None:
                raise ValueError(f"Budget({name}={cap:g}) cannot be kept: {_UNKNOWN[name]}")
            if value >= cap:
                return name
        return None


_UNKNOWN = {
    "bytes": "the generator or the reward model cannot tell what bytes it moves (a model in this process can)",
    "joules": 'energy is not measured: pass energy=EnergyMeter("cuda"), of a device whose counter can be read',
}


CAPS = ("tokens", "flops", "seconds", "calls", "money", "bytes", "joules")
"""Names of what a budget can cap."""


def _checked_cap(name: str, value: Any) -> float:
    if isinstance(value, str) or not value > 0:
        raise ValueError(f"Budget({name}={value!r}): a cap must be greater than 0; leave it out for no cap")
    if isinstance(value, Integral):
        return int(value)
    if name in ("tokens", "calls"):
        if not math.isfinite(value) or value != int(value):
            raise ValueError(f"Budget({name}={value!r}): give a whole number, or leave it out for no cap")
        return int(value)
    return float(value)
