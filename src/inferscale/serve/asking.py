"""What a request asks for: OpenAI's fields, and ours in the field ``inferscale``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from inferscale._stops import answer_until
from inferscale._task import Task
from inferscale.base import SearchStrategy
from inferscale.cost import Budget
from inferscale.tree import Problem

from .errors import APIError, bad_field
from .fields import a_flag, a_number, a_text, an_integer, an_object, check_known, says_nothing, texts
from .jobs import Job
from .lengths import Shortened
from .prompts import read_prompts
from .service import Service

T = TypeVar("T")
Endpoint: TypeAlias = Literal["chat", "text"]

OURS = frozenset({"strategy", "width", "n", "aggregator", "vote", "budget", "seed", "trajectories"})
"""Fields of the field ``inferscale``; ``n`` and ``vote`` are other names of ``width`` and ``aggregator``."""

CAPS = frozenset({"tokens", "flops", "seconds", "calls"})

USED = frozenset(
    {"model", "messages", "prompt", "max_tokens", "max_completion_tokens", "stop", "stream", "stream_options", "seed"}
    | {"n", "best_of", "response_format", "inferscale"}
)
"""Fields of OpenAI's that mean something here."""

REFUSED = {
    "logprobs": "a search has no log-probabilities to report",
    "top_logprobs": "a search has no log-probabilities to report",
    "prompt_logprobs": "a search does not score its prompt",
    "echo": "an answer does not repeat its prompt",
    "suffix": "a search goes on from its prompt alone",
    "logit_bias": "the server's own sampler is used",
    "tools": "a search answers without tools",
    "functions": "a search answers without tools",
}
"""Fields that would change what an answer means, and why they are not served."""


@dataclass(frozen=True)
class Ask:
    """A request, checked.

    Attributes:
        endpoint: Chat or text.
        prompts: One search each.
        task: How they are searched.
        strategy: What the client asked for, without the cap on lengths.
        stops: Texts at which answers end.
        stream: Whether the answer comes in events.
        include_usage: Whether the last event is the bill.
        trajectories: Whether all trajectories are reported.
        ignored: Fields that were given and mean nothing here.
    """

    endpoint: Endpoint
    prompts: tuple[str, ...]
    task: Task
    strategy: SearchStrategy
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    trajectories: bool
    ignored: tuple[str, ...]

    def jobs(self) -> list[Job]:
        """A search for each prompt."""
        seen, made = Counter[str](), list[Job]()
        for prompt in self.prompts:
            made.append(Job(Problem(prompt), self.task, seen[prompt]))
            seen[prompt] += 1
        return made


def read_ask(body: object, endpoint: Endpoint, service: Service) -> Ask:
    """The request in `body`.

    Raises:
        APIError: If something in it does not fit; the message says what to do.
    """
    if not isinstance(body, dict):
        raise APIError(400, "the body is not a JSON object")
    _check_served(body, service)
    ours = an_object(body, "inferscale")
    check_known(ours, "inferscale", OURS)
    stops = texts(body, "stop")
    strategy = _strategy(ours, service)
    return Ask(
        endpoint,
        prompts=tuple(read_prompts(body, endpoint == "chat", service)),
        task=_task(body, ours, strategy, stops, service),
        strategy=strategy,
        stops=stops,
        stream=a_flag(body, "stream"),
        include_usage=a_flag(an_object(body, "stream_options"), "stream_options.include_usage"),
        trajectories=a_flag(ours, "inferscale.trajectories"),
        ignored=tuple(sorted(name for name in set(body) - USED if not says_nothing(body[name]))),
    )


def _check_served(body: Mapping[str, Any], service: Service) -> None:
    if body.get("model") not in (None, service.name):
        raise APIError(
            404, f"there is no model {str(body.get('model'))[:80]!r} here: {service.name!r} is served",
            code="model_not_found", param="model",
        )  # fmt: skip
    for name, reason in REFUSED.items():
        if not says_nothing(body.get(name)):
            raise bad_field(name, f"not served: {reason}; leave it out")
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1):
            raise bad_field(name, 'a search reports one answer: set its samples by "inferscale": {"width": ...}')
    if an_object(body, "response_format").get("type", "text") != "text":
        raise bad_field("response_format", "only text is served")


def _strategy(ours: Mapping[str, Any], service: Service) -> SearchStrategy:
    width = an_integer(ours, "inferscale.width", an_integer(ours, "inferscale.n", None))
    name = a_text(ours, "inferscale.strategy", None)
    return _made("inferscale.strategy", lambda: service.make_strategy(name, width))


def _task(
    body: Mapping[str, Any], ours: Mapping[str, Any], strategy: SearchStrategy, stops: tuple[str, ...], service: Service
) -> Task:
    vote = a_text(ours, "inferscale.aggregator", a_text(ours, "inferscale.vote", None))
    seed = an_integer(ours, "inferscale.seed", an_integer(body, "seed", None, least=None), least=None)
    longest = an_integer(body, "max_completion_tokens", an_integer(body, "max_tokens", None))
    aggregator = _made("inferscale.aggregator", lambda: service.make_vote(vote))
    judged = strategy.needs_scores or aggregator.needs_scores  # else nobody reads what scoring would cost
    return Task(
        strategy=strategy if longest is None else Shortened(strategy, longest),
        generator=service.generator,
        reward_model=service.reward_model if judged else None,
        aggregator=aggregator,
        extract_answer=partial(answer_until, read=service.extract_answer, stops=stops),
        budget=service.limits.capped(_budget(an_object(ours, "inferscale.budget"))),
        seed=service.seed if seed is None else seed,
        schedule="wave",
        batch_size=None,
    )


def _budget(given: Mapping[str, Any]) -> Budget:
    check_known(given, "inferscale.budget", CAPS)
    tokens, calls = (an_integer(given, f"inferscale.budget.{name}", None) for name in ("tokens", "calls"))
    flops, seconds = (a_number(given, f"inferscale.budget.{name}") for name in ("flops", "seconds"))
    return Budget(tokens, flops, seconds, calls)


def _made(name: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except (ValueError, RecursionError) as error:
        raise bad_field(name, str(error)) from None
