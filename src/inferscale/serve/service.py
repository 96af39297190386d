"""The models that are served, and limits of what a request may have of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from inferscale.answers import Reader
from inferscale.base import Aggregator, Generator, RewardModel, SearchStrategy, check_scores
from inferscale.cost import Budget, Meter
from inferscale.engine.solver import Solver
from inferscale.evaluate.parts import make_strategy, make_vote
from inferscale.thinking import Thinking

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names by which a machine calls itself."""

_NO_REWARD_MODEL = "this server has no reward model (--reward)"

_MAX_CHARACTERS = 300
"""Most characters of a strategy or a vote that a request names."""


@dataclass(frozen=True)
class Limits:
    """Limits of all requests together, and of each.

    Attributes:
        max_active: Searches that share the model's batches.
        max_waiting: Searches that wait for a place; what comes on top is refused (429).
        max_body_bytes: Size of a request.
        max_prompts: Prompts of a request.
        max_size: The greatest whole number in a strategy that a request names (width, samples, depth).
        budget: The most that each prompt may cost; a request may ask for less.
        progress_seconds: Time between two progress events of a stream.

    Raises:
        ValueError: If a limit is not above 0.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.serve import Limits, Service
        >>> limits = Limits(max_active=8, max_size=64, budget=isc.Budget(tokens=20_000))
        >>> service = Service(isc.testing.ToyGenerator(), limits=limits)
        >>> Limits(max_active=0)
        Traceback (most recent call last):
            ...
        ValueError: Limits(max_active=0): give a number greater than 0
    """

    max_active: int = 64
    max_waiting: int = 256
    max_body_bytes: int = 2**20
    max_prompts: int = 64
    max_size: int = 1024
    budget: Budget = field(default_factory=lambda: Budget(tokens=100_000, seconds=600))
    progress_seconds: float = 0.5

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could be served."""
        for limit in fields(self):
            value = getattr(self, limit.name)
            if limit.name != "budget" and not value > 0:
                raise ValueError(f"Limits({limit.name}={value!r}): give a number greater than 0")

    def capped(self, wanted: Budget) -> Budget:
        """Return the wanted budget, lowered to what a prompt may cost."""
        names = {**wanted.caps, **self.budget.caps}
        lowest = {name: min(b.caps[name] for b in (wanted, self.budget) if name in b.caps) for name in names}
        return Budget(**lowest, price=self.budget.price)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Service:
    """The models that answer, and the search that a request gets when it names none.

    Attributes:
        generator: Samples steps, in one thread.
        reward_model: Scores nodes for strategies and votes that read scores; without one they are refused.
        name: The model's name for clients.
        strategy: The strategy of requests that name none, as a command line names it, or one of `presets`.
        width: Its samples or leaves.
        vote: The aggregator of requests that name none.
        seed: The seed of requests that give none.
        presets: Strategies of your own by the name that requests give.
        limits: Limits of all requests together, and of each.
        api_key: The key that clients must present (``Authorization: Bearer ...``); without it only clients on this
            machine are served.
        prompt_end: Text that every plain prompt must end with; it is added where it is missing.
        read_answer: Reads the answer out of a completion, where a request does not say what kind it is.
        thinking: The markers of thoughts, as in `Solver`: chat answers are sent without them, and thoughts apart.
        energy: Reads the energy that the models use, as in `Solver`; what it reads is told in ``inferscale.energy``.

    Raises:
        ValueError: If strategy or vote cannot be made or served, or the key cannot be sent.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.serve import Service
        >>> own = {"careful": isc.strategies.AdaptiveConsistency(32)}
        >>> service = Service(isc.testing.ToyGenerator(), name="toy", strategy="careful", presets=own)
        >>> service.make_solver().solve("How many?").answer
        '2'
    """

    generator: Generator
    reward_model: RewardModel | None = None
    name: str = "inferscale"
    strategy: str = "sampling"
    width: int = 16
    vote: str = "majority"
    seed: int = 0
    presets: Mapping[str, SearchStrategy] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = field(default=None, repr=False)
    prompt_end: str = ""
    read_answer: Reader | None = None
    thinking: Thinking | Literal[False] | None = None
    energy: Meter | None = None

    def __post_init__(self) -> None:
        """Refuse a default that could not be served."""
        self.make_strategy()
        self.make_vote()
        if self.api_key is not None and not self.api_key.isascii():
            raise ValueError("the API key holds characters that no HTTP header can carry: use letters and digits")

    def make_solver(self) -> Solver:
        """Return the search that requests get which say nothing of it."""
        return Solver(
            self.make_strategy(), self.generator, self.reward_model, self.make_vote(),
            read_answer=self.read_answer, thinking=self.thinking, budget=self.limits.budget, seed=self.seed,
            energy=self.energy,
        )  # fmt: skip

    def make_strategy(self, text: str | None = None, width: int | None = None) -> SearchStrategy:
        """Return the strategy that a request names, or the service's own.

        Raises:
            ValueError: If there is none, it is too large, or there is no reward model for it.
        """
        name = text or self.strategy
        if width is not None:
            if name in self.presets or "(" in name:
                raise ValueError(
                    f"the width of {name!r} is its own: give one to a strategy of one word, such as rebase"
                )
            name = name.partition(":")[0]
        made = self.presets.get(name)
        if made is None:
            made = make_strategy(_short(name), self.width if width is None else width)
            if not isinstance(made, SearchStrategy):
                raise ValueError(f"{name!r} is not a strategy: name one, such as rebase:16 or REBASE(width=16)")
            if text is not None or width is not None:
                _check_size(made, self.limits.max_size)
        check_scores(self.reward_model, made, advice=_NO_REWARD_MODEL)
        return made

    def make_vote(self, text: str | None = None) -> Aggregator:
        """Return the aggregator that a request names, or the service's own.

        Raises:
            ValueError: If there is none, or there is no reward model for it.
        """
        made = make_vote(_short(text or self.vote))
        if not isinstance(made, Aggregator):
            raise ValueError(f"{text!r} is not a vote: name one, such as weighted or BordaVote(p=0.7)")
        check_scores(self.reward_model, made, advice=_NO_REWARD_MODEL)
        return made


def _short(text: str) -> str:
    """`text`, unless it is so long that reading it as a call would take long."""
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"{text[:40]!r}...: a strategy or vote has at most {_MAX_CHARACTERS} characters here")
    return text


def _check_size(part: Any, most: int) -> None:
    """Refuse whole numbers that would make a strategy larger than is served, also in strategies within it."""
    for option in fields(part):
        value = getattr(part, option.name)
        if is_dataclass(value):
            _check_size(value, most)
        elif isinstance(value, int) and value > most:
            raise ValueError(f"{option.name}={value} of {type(part).__name__} is more than this server's {most}")


def check_host(host: str, api_key: str | None) -> None:
    """Raise a ValueError where anybody could come in."""
    if api_key is None and host not in LOOPBACK:
        raise ValueError(
            f"{host} can be reached from other machines: set INFERSCALE_API_KEY to the key that clients must present, "
            "or listen at 127.0.0.1"
        )
