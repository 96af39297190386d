"""Requests and replies in OpenAI's shapes, with ours in fields named ``inferscale``."""

from __future__ import annotations

import math
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from inferscale.answers import answer_until, read_until
from inferscale.base import SearchStrategy
from inferscale.cost import Budget, Cost
from inferscale.engine.result import SearchResult
from inferscale.engine.solver import Solver
from inferscale.flow import Flow, Generate, GenerateRequest, rewrite
from inferscale.tree import Node, Problem, Trajectory

from .dispatcher import Job
from .service import Service


class APIError(Exception):
    """A request that is not served.

    Attributes:
        status: HTTP status.
        headers: HTTP headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self._details = {"message": message, "type": kind, "param": param, "code": code}

    def body(self) -> dict[str, Any]:
        """The answer in the shape that OpenAI's clients read."""
        return {"error": self._details}


def bad_field(name: str, message: str) -> APIError:
    """The error for a field of the request that does not fit."""
    return APIError(400, f"{name}: {message}", param=name)


def says_nothing(value: object) -> bool:
    """Whether a field might as well be left out."""
    return value is None or value is False or value in ("", [], {})


def an_object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object of that name, or an empty one."""
    value = _get(body, name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_field(name, f"give an object, not {value!r:.40}")
    return value


def an_integer(body: Mapping[str, Any], name: str, default: int | None, least: int | None = 1) -> int | None:
    """The whole number of that name."""
    value = _get(body, name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        raise bad_field(name, "give a whole number" + ("" if least is None else f", {least} or more"))
    return value


def a_number(body: Mapping[str, Any], name: str) -> float | None:
    """The positive number of that name."""
    value = _get(body, name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise bad_field(name, f"give a number greater than 0, not {value!r:.40}")
    return value


def a_text(body: Mapping[str, Any], name: str, default: str | None) -> str | None:
    """The text of that name."""
    value = _get(body, name)
    if value is None:
        return default
    if not isinstance(value, str) or not value:
        raise bad_field(name, f"give a text, not {value!r:.40}")
    return value


def a_flag(body: Mapping[str, Any], name: str) -> bool:
    """Whether the field of that name is true."""
    value = _get(body, name)
    if value is not None and not isinstance(value, bool):
        raise bad_field(name, f"give true or false, not {value!r:.40}")
    return bool(value)


def texts(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The text or the list of texts of that name, without empty ones."""
    value = _get(body, name)
    given = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in given):
        raise bad_field(name, "give a text or a list of texts")
    return tuple(text for text in given if text)


def check_known(body: Mapping[str, Any], name: str, known: frozenset[str]) -> None:
    """Refuses what is not known in the object of that name: a misspelt wish would be passed over."""
    if unknown := sorted(set(body) - known):
        raise bad_field(f"{name}.{unknown[0]}", f"there is no such field: choose from {', '.join(sorted(known))}")


def _get(body: Mapping[str, Any], name: str) -> Any:
    return body.get(name.rpartition(".")[2])


def read_prompts(body: Mapping[str, Any], chat: bool, service: Service) -> list[str]:
    """The prompts of a request, each ended as the service says.

    Raises:
        APIError: If there is none, or it cannot be read.
    """
    if chat:
        texts = [_checked_prompt("messages", _conversation(body.get("messages")))]
    else:
        texts = _texts(body.get("prompt"), service.limits.max_prompts)
    end = service.prompt_end
    return [text if text.endswith(end) else text + end for text in texts]


def _texts(given: object, most: int) -> list[str]:
    prompts = given if isinstance(given, list) else [given]
    if not prompts or len(prompts) > most:
        raise bad_field("prompt", f"{len(prompts)} prompts: give 1 to {most} in a request")
    return [_checked_prompt("prompt", prompt) for prompt in prompts]


def _checked_prompt(name: str, prompt: object) -> str:
    if not isinstance(prompt, str):
        hint = "token ids are not read (lm-eval: tokenized_requests=False)"
        raise bad_field(name, f"give a text or a list of texts; {hint}")
    if not prompt:
        raise bad_field(name, "there is nothing to answer: the text is empty")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise bad_field(name, "the text holds half a character (a lone surrogate)") from None
    return prompt


def _conversation(messages: object) -> str:
    """One text: what the user said, after what the system said; of several turns, who said what."""
    if not isinstance(messages, list) or not messages:
        raise bad_field("messages", "give a list of messages, the last one the user's")
    turns = [_turn(message) for message in messages]
    if turns[-1][0] != "user":
        raise bad_field("messages", f"the last message is the {turns[-1][0]}'s: it must be the user's")
    head = [text for role, text in turns if role == "system"]
    said = [(role, text) for role, text in turns if role != "system"]
    if len(said) == 1:
        return "\n\n".join([*head, said[0][1]])
    return "\n\n".join([*head, *(f"{role.capitalize()}: {text}" for role, text in said), "Assistant:"])


def _turn(message: object) -> tuple[str, str]:
    roles = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or role not in roles:
        raise bad_field("messages", f"the role {str(role)[:40]!r} is not served: system, user or assistant")
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    told = [text for text in texts if isinstance(text, str)]
    if len(told) != len(parts):
        raise bad_field("messages", "the content must be text")
    return roles[role], "".join(told)


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
        solver: How they are searched.
        strategy: What the client asked for, without the cap on lengths.
        stops: Texts at which answers end.
        stream: Whether the answer comes in events.
        include_usage: Whether the last event is the bill.
        trajectories: Whether all trajectories are reported.
        ignored: Fields that were given and mean nothing here.
    """

    endpoint: Endpoint
    prompts: tuple[str, ...]
    solver: Solver
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
            made.append(Job(Problem(prompt), self.solver, seen[prompt]))
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
        solver=_solver(body, ours, strategy, stops, service),
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


def _solver(
    body: Mapping[str, Any], ours: Mapping[str, Any], strategy: SearchStrategy, stops: tuple[str, ...], service: Service
) -> Solver:
    vote = a_text(ours, "inferscale.aggregator", a_text(ours, "inferscale.vote", None))
    seed = an_integer(ours, "inferscale.seed", an_integer(body, "seed", None, least=None), least=None)
    longest = an_integer(body, "max_completion_tokens", an_integer(body, "max_tokens", None))
    aggregator = _made("inferscale.aggregator", lambda: service.make_vote(vote))
    judged = strategy.needs_scores or aggregator.needs_scores  # else nobody reads what scoring would cost
    return Solver(
        strategy=strategy if longest is None else Shortened(strategy, longest),
        generator=service.generator,
        reward_model=service.reward_model if judged else None,
        aggregator=aggregator,
        extract_answer=partial(answer_until, read=service.extract_answer, stops=stops),
        budget=service.limits.capped(_budget(an_object(ours, "inferscale.budget"))),
        seed=service.seed if seed is None else seed,
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


_NAMES = {"chat": ("chatcmpl", "chat.completion", "chat.completion.chunk"),
          "text": ("cmpl", "text_completion", "text_completion")}  # fmt: skip


def told_cost(cost: Cost) -> dict[str, Any]:
    """A bill, with the sum of the FLOPs."""
    return {**asdict(cost), "flops": cost.flops}


@dataclass(frozen=True)
class Answer:
    """Writes the answer to one request, whole or as the events of a stream.

    Attributes:
        ask: The request.
        model: The model's name.
        id: The answer's name.
        created: When, in seconds since 1970.
    """

    ask: Ask
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, results: Sequence[SearchResult]) -> dict[str, Any]:
        """The answer.

        Raises:
            APIError: If the model failed.
        """
        choices = [
            {"index": index, **self._content("message", self._text(result)), "logprobs": None, **self._end(result)}
            for index, result in enumerate(results)
        ]
        return {**self._head(chunk=False), "choices": choices, **self._bill(results)}

    def progress(self, states: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """An event without text that says how far the searches of the prompts `states` are."""
        empty = {**self._content("delta", ""), "finish_reason": None}
        return self._chunk(
            [{"index": index, **empty, "inferscale": {"progress": state}} for index, state in states.items()]
        )

    def found(self, index: int, result: SearchResult) -> list[dict[str, Any]]:
        """The events of a prompt's answer: the text, and that it has ended.

        Raises:
            APIError: If the model failed.
        """
        text = {"index": index, **self._content("delta", self._text(result)), "finish_reason": None}
        nothing: dict[str, Any] = {"delta": {}} if self.ask.endpoint == "chat" else {"text": ""}
        end = {"index": index, **nothing, **self._end(result)}
        return [self._chunk([text]), self._chunk([end])]

    def total(self, results: Sequence[SearchResult]) -> dict[str, Any]:
        """The last event: the bill."""
        return {**self._chunk([]), **self._bill(results)}

    def _head(self, chunk: bool) -> dict[str, Any]:
        prefix, whole, part = _NAMES[self.ask.endpoint]
        named = {"id": f"{prefix}-{self.id}", "object": part if chunk else whole}
        return {**named, "created": self.created, "model": self.model}

    def _chunk(self, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self._head(chunk=True), "choices": list(choices)}

    def _content(self, name: str, text: str) -> dict[str, Any]:
        return {name: {"role": "assistant", "content": text}} if self.ask.endpoint == "chat" else {"text": text}

    def _text(self, result: SearchResult) -> str:
        step = result.selected.steps[-1] if result.selected.steps else None
        if step is not None and step.finish_reason == "error":
            raise APIError(502, f"the model failed: {step.text}", kind="server_error", code="model_failed")
        return read_until(result.text, self.ask.stops)

    def _end(self, result: SearchResult) -> dict[str, Any]:
        """Why the text ended, and how the search went."""
        selected = result.selected
        ended = bool(selected.steps) and selected.steps[-1].finish_reason in ("eos", "empty")
        stopped = ended or len(read_until(result.text, self.ask.stops)) < len(result.text)
        told: dict[str, Any] = {
            "answer": result.answer,
            "score": selected.score,
            "num_trajectories": len(result.trajectories),
            "stopped_by": result.stopped_by,
            "cost": told_cost(result.cost),
        }
        if self.ask.trajectories:
            told["trajectories"] = [_trajectory(trajectory) for trajectory in result.trajectories]
        return {"finish_reason": "stop" if stopped else "length", "inferscale": told}

    def _bill(self, results: Sequence[SearchResult]) -> dict[str, Any]:
        cost = sum((result.cost for result in results), Cost())
        reported = sum(step.generated_tokens for result in results for step in result.selected.steps)
        usage = {
            "prompt_tokens": cost.prompt_tokens,
            "completion_tokens": cost.tokens,
            "total_tokens": cost.prompt_tokens + cost.tokens,
            "completion_tokens_details": {"reasoning_tokens": cost.tokens - reported},
        }
        solver = self.ask.solver
        told = {
            "strategy": repr(self.ask.strategy),
            "aggregator": repr(solver.vote),
            "seed": solver.seed,
            "budget": None if solver.budget is None else asdict(solver.budget),
            "ignored": list(self.ask.ignored),
            "cost": told_cost(cost),
        }
        return {"usage": usage, "inferscale": told}


def _trajectory(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "text": trajectory.text,
        "answer": trajectory.answer,
        "score": trajectory.score,
        "step_scores": trajectory.step_scores,
    }
