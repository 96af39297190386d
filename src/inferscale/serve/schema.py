"""Requests and replies in OpenAI's shapes, with ours in fields named ``inferscale``."""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypeVar

from inferscale.answers import Before, reader_of, text_before
from inferscale.base import SearchStrategy
from inferscale.cost import Budget, Cost
from inferscale.engine import SearchResult, Solver
from inferscale.evaluate.parts import Shortened as Shortened
from inferscale.tree import Problem

from .dispatcher import Job
from .service import Service

T = TypeVar("T")
Endpoint: TypeAlias = Literal["chat", "text"]

OURS = frozenset(
    {"strategy", "width", "n", "aggregator", "vote", "budget", "seed", "trajectories", "tree", "answer_kind"}
)
"""Fields of the field ``inferscale``; ``n`` and ``vote`` are other names of ``width`` and ``aggregator``."""

CAPS = frozenset({"tokens", "flops", "seconds", "calls", "bytes", "joules"})

USED = frozenset(
    {"model", "messages", "prompt", "max_tokens", "max_completion_tokens", "stop", "stream", "stream_options", "seed"}
    | {"n", "best_of", "response_format", "continue_final_message", "add_generation_prompt", "inferscale"}
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
    "tool_choice": "a search answers without tools",
    "function_call": "a search answers without tools",
    "modalities": "an answer is text",
    "audio": "an answer is text",
    "web_search_options": "a search reads nothing but its prompt",
    "reasoning_effort": "the chat template's variables are the server's own",
    "verbosity": "the chat template's variables are the server's own",
    "chat_template_kwargs": "the chat template's variables are the server's own",
    "chat_template": "the chat template is the server's own",
    **dict.fromkeys(
        ("frequency_penalty", "presence_penalty", "repetition_penalty", "bad_words", "allowed_token_ids"),
        "the server's own sampler is used",
    ),
    **dict.fromkeys(
        ("stop_token_ids", "ignore_eos", "min_tokens"), "an answer ends where the model ends it, or at a text of stop"
    ),
    **dict.fromkeys(
        ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar"),
        "only text is served",
    ),
}
"""Fields that would change what an answer means, and why they are not served."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,), "min_tokens": (0,),
    "modalities": (["text"],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
}  # fmt: skip
"""Values of such fields that mean the same as leaving them out."""


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


class Fields:
    """A JSON object of a request, whose values are checked as they are taken; null counts as left out.

    Attributes:
        values: The object.
        path: Its own name in errors, before those of its fields: ``"inferscale."``, say.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self.values, self.path = values, path

    def _take(self, name: str, fits: Callable[[Any], bool], expected: str) -> Any:
        value = self.values.get(name)
        if value is not None and not fits(value):
            raise bad_field(self.path + name, f"give {expected}, not {value!r:.40}")
        return value

    def inner(self, name: str, known: frozenset[str] | None = None) -> Fields:
        """The object of that name, or an empty one; a field that is not `known` is refused, for it may be misspelt."""
        inner = Fields(self._take(name, lambda v: isinstance(v, dict), "an object") or {}, f"{self.path}{name}.")
        if known is not None and (unknown := sorted(set(inner.values) - known)):
            raise bad_field(inner.path + unknown[0], f"there is no such field: choose from {', '.join(sorted(known))}")
        return inner

    def integer(self, *names: str, least: int | None = 1) -> int | None:
        """The whole number of the first of these names that is given."""
        expected = "a whole number" + ("" if least is None else f", {least} or more")
        taken = [
            self._take(name, lambda v: type(v) is int and (least is None or v >= least), expected) for name in names
        ]
        return next((value for value in taken if value is not None), None)

    def number(self, name: str) -> float | None:
        """The positive number of that name."""
        number = self._take(name, lambda v: type(v) in (int, float) and 0 < v < math.inf, "a number greater than 0")
        return None if number is None else float(number)

    def text(self, *names: str) -> str | None:
        """The text of the first of these names that is given."""
        taken = [self._take(name, lambda v: isinstance(v, str) and v != "", "a text") for name in names]
        return next((value for value in taken if value is not None), None)

    def texts(self, name: str) -> tuple[str, ...]:
        """The text or the list of texts of that name, without empty ones."""
        value = self.values.get(name)
        given = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in given):
            raise bad_field(self.path + name, "give a text or a list of texts")
        return tuple(text for text in given if text)

    def flag(self, name: str) -> bool:
        """True if the field of that name is."""
        return bool(self._take(name, lambda v: isinstance(v, bool), "true or false"))


def is_blank(value: object) -> bool:
    """True for what means the same as leaving the field out."""
    return value is None or value is False or value in ("", [], {})


@dataclass(frozen=True)
class CompletionRequest:
    """A request for completions, checked.

    Attributes:
        endpoint: Chat or text.
        problems: One search each.
        solver: Their searches' options.
        strategy: The strategy that the client asked for, without the cap on lengths.
        stops: Texts at which answers end.
        stream: True if the answer comes in events.
        include_usage: True if the last event is the bill.
        trajectories: True if all trajectories are reported.
        tree: True if the search tree is, as HTML; in a stream while it grows.
        ignored: Fields that were given and mean nothing here.
    """

    endpoint: Endpoint
    problems: tuple[Problem, ...]
    solver: Solver
    strategy: SearchStrategy
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    trajectories: bool
    tree: bool
    ignored: tuple[str, ...]

    @classmethod
    def parse(cls, body: object, endpoint: Endpoint, service: Service) -> CompletionRequest:
        """Check the request in `body`.

        Raises:
            APIError: If something in it does not fit; the message says what to do.
        """
        if not isinstance(body, dict):
            raise APIError(400, "the body is not a JSON object")
        fields = Fields(body)
        if body.get("model") not in (None, service.name):
            raise APIError(
                404, f"there is no model {str(body.get('model'))[:80]!r} here: {service.name!r} is served",
                code="model_not_found", param="model",
            )  # fmt: skip
        for name, reason in REFUSED.items():
            if not is_blank(body.get(name)) and body[name] not in NEUTRAL.get(name, ()):
                raise bad_field(name, f"not served: {reason}; leave it out")
        for name in ("n", "best_of"):
            if body.get(name) not in (None, 1):
                raise bad_field(name, 'a search reports one answer: set its samples by "inferscale": {"width": ...}')
        if fields.inner("response_format").values.get("type", "text") != "text":
            raise bad_field("response_format", "only text is served")
        ours = fields.inner("inferscale", OURS)
        stops = fields.texts("stop")
        width, kind, vote = ours.integer("width", "n"), ours.text("strategy"), ours.text("aggregator", "vote")
        strategy = _made("inferscale.strategy", lambda: service.make_strategy(kind, width))
        aggregator = _made("inferscale.aggregator", lambda: service.make_vote(vote))
        answer_kind = ours.text("answer_kind")
        named = None if answer_kind is None else _made("inferscale.answer_kind", lambda: reader_of(answer_kind))
        seed = ours.integer("seed", least=None)
        if seed is None:
            seed = fields.integer("seed", least=None)
        longest = fields.integer("max_completion_tokens", "max_tokens")
        caps = ours.inner("budget", CAPS)
        budget = Budget(
            caps.integer("tokens"), caps.number("flops"), caps.number("seconds"), caps.integer("calls"),
            bytes=caps.number("bytes"), joules=caps.number("joules"),
        )  # fmt: skip
        if budget.joules is not None and (service.energy is None or service.energy.read() is None):
            why = "it was started without --energy" if service.energy is None else service.energy.source
            raise bad_field("inferscale.budget", f"this server measures no joules ({why}): cap another cost")
        if budget.bytes is not None and service.generator.traffic((), ()) is None:
            raise bad_field("inferscale.budget", "this model cannot tell its bytes: cap another cost")
        judged = strategy.needs_scores or aggregator.needs_scores  # else nobody reads what scoring would cost
        solver = Solver(
            strategy,
            service.generator,
            service.reward_model if judged else None,
            aggregator,
            read_answer=Before(stops, named or service.read_answer),
            thinking=service.thinking,
            budget=service.limits.capped(budget),
            seed=service.seed if seed is None else seed,
            energy=service.energy,
        )
        # A stop ends no thoughts: where there may be some, what follows it is sampled, and cut from the answer.
        ends = () if solver.markers is not None and solver.markers.end else stops
        if longest is not None or ends:
            solver = replace(solver, strategy=Shortened(strategy, longest, ends))
        return cls(
            endpoint,
            problems=tuple(_problems(body, endpoint, service)),
            solver=solver,
            strategy=strategy,
            stops=stops,
            stream=fields.flag("stream"),
            include_usage=fields.inner("stream_options").flag("include_usage"),
            trajectories=ours.flag("trajectories"),
            tree=ours.flag("tree"),
            ignored=tuple(sorted(name for name in set(body) - USED - REFUSED.keys() if not is_blank(body[name]))),
        )

    def jobs(self) -> list[Job]:
        """A search for each problem."""
        seen = Counter[Problem]()
        jobs = []
        for problem in self.problems:
            jobs.append(Job(problem, self.solver, seen[problem], draws=self.tree and self.stream))
            seen[problem] += 1
        return jobs


def _made(name: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except (ValueError, RecursionError) as error:
        raise bad_field(name, str(error)) from None


def _problems(body: Mapping[str, Any], endpoint: Endpoint, service: Service) -> list[Problem]:
    """The problems of a request; those that are text are ended as the service says."""
    end = service.prompt_end
    if endpoint == "chat":
        name, problem = "messages", _conversation(body.get("messages"), body.get("continue_final_message") is True)
        rendered = service.generator.takes_messages and problem.turns != [{"role": "user", "content": problem.prompt}]
        problems = [problem] if rendered else [Problem(problem.prompt.removesuffix(end) + end)]
    else:
        name, value = "prompt", body.get("prompt")
        given: list[Any] = value if isinstance(value, list) else [value]
        most = service.limits.max_prompts
        if not 0 < len(given) <= most:
            raise bad_field("prompt", f"{len(given)} prompts: give 1 to {most} in a request")
        if not all(isinstance(prompt, str) for prompt in given):
            hint = "token ids are not read (lm-eval: tokenized_requests=False)"
            raise bad_field(name, f"give a text or a list of texts; {hint}")
        if "" in given:
            raise bad_field(name, "there is nothing to answer: the text is empty")
        problems = [Problem(prompt.removesuffix(end) + end) for prompt in given]
    try:
        "".join(problem.stream for problem in problems).encode()
    except UnicodeEncodeError:
        raise bad_field(name, "the text holds half a character (a lone surrogate)") from None
    return problems


_READ = ("role", "content", "name", "reasoning_content")
"""Fields of a turn that reach the chat template."""


def _conversation(messages: object, goes_on: bool) -> Problem:
    """The conversation in the messages of a request; `goes_on` takes a last turn of the assistant's as begun."""
    if not isinstance(messages, list) or not messages:
        raise bad_field("messages", "give a list of messages, the last one the user's")
    roles = ("system", "developer", "user", "assistant")
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(message, dict) or role not in roles:
            raise bad_field("messages", f"the role {str(role)[:40]!r} is not served: system, user or assistant")
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
            raise bad_field("messages", "the content must be text")
        if unread := [name for name in ("tool_calls", "function_call", "audio") if not is_blank(message.get(name))]:
            raise bad_field("messages", f"{unread[0]} of a turn is not served: a search answers without tools, in text")
    last = messages[-1]["role"]
    if last != "user" and not (goes_on and last == "assistant"):
        raise bad_field("messages", f"the last message is the {last}'s: it must be the user's, or the assistant's with "
                        "continue_final_message=true")  # fmt: skip
    try:
        return Problem(
            messages=[{name: turn[name] for name in _READ if turn.get(name) is not None} for turn in messages]
        )
    except (TypeError, ValueError) as error:
        raise bad_field("messages", str(error)) from None


@dataclass(frozen=True)
class Reply:
    """Writes the reply to one request, whole or as the events of a stream.

    Attributes:
        request: The request.
        model: The model's name.
        id: The reply's name.
        created: When, in seconds since 1970.
    """

    request: CompletionRequest
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, results: Sequence[SearchResult]) -> dict[str, Any]:
        """Return the reply.

        Raises:
            APIError: If the model failed.
        """
        choices = [
            {"index": index, **self._content("message", *self._texts(result)), "logprobs": None, **self._end(result)}
            for index, result in enumerate(results)
        ]
        kind = "chat.completion" if self.request.endpoint == "chat" else "text_completion"
        return {**self._head(kind, choices), **self._bill(results)}

    def progress(self, states: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Return an event without text that says how far the searches of the prompts `states` are."""
        empty = {**self._content("delta", ""), "finish_reason": None}
        return self._chunk([{"index": i, **empty, "inferscale": {"progress": state}} for i, state in states.items()])

    def found(self, index: int, result: SearchResult) -> list[dict[str, Any]]:
        """Return the events of a prompt's answer: the text, and that it has ended.

        Raises:
            APIError: If the model failed.
        """
        text = {"index": index, **self._content("delta", *self._texts(result)), "finish_reason": None}
        nothing: dict[str, Any] = {"delta": {}} if self.request.endpoint == "chat" else {"text": ""}
        return [self._chunk([text]), self._chunk([{"index": index, **nothing, **self._end(result)}])]

    def total(self, results: Sequence[SearchResult]) -> dict[str, Any]:
        """Return the last event: the bill."""
        return {**self._chunk([]), **self._bill(results)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self.request.endpoint == "chat" else "text_completion", choices)

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        prefix = "chatcmpl" if self.request.endpoint == "chat" else "cmpl"
        named = {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}
        return {**named, "choices": choices}

    def _content(self, name: str, text: str, thoughts: str = "") -> dict[str, Any]:
        if self.request.endpoint != "chat":
            return {"text": text}
        return {name: {"role": "assistant", "content": text, **({"reasoning_content": thoughts} if thoughts else {})}}

    def _texts(self, result: SearchResult) -> tuple[str, str]:
        """The answer of a chat and the thoughts before it; for completions the whole text. Stops cut no thoughts.

        Raises:
            APIError: If the model failed.
        """
        step = result.selected.steps[-1] if result.selected.steps else None
        if step is not None and step.finish_reason == "error":
            raise APIError(502, f"the model failed: {step.text}", kind="server_error", code="model_failed")
        thoughts, final, kept = self._final(result)
        return (kept if self.request.endpoint == "chat" else result.text.removesuffix(final) + kept), thoughts

    def _final(self, result: SearchResult) -> tuple[str, str, str]:
        """Thoughts, the final part, and that up to the first stop."""
        thoughts, final = result.selected.split()
        return thoughts, final, text_before(final, self.request.stops)

    def _end(self, result: SearchResult) -> dict[str, Any]:
        """The reason why the text ended, and the outcome of the search."""
        selected = result.selected
        ended = bool(selected.steps) and selected.steps[-1].finish_reason in ("eos", "empty")
        _, final, kept = self._final(result)
        stopped = ended or len(kept) < len(final)
        told: dict[str, Any] = {
            "answer": result.answer,
            "score": selected.score,
            "num_trajectories": len(result.trajectories),
            "abstentions": asdict(result.abstentions),
            "stopped_by": result.stopped_by,
            "cost": result.cost.to_dict(),
        }
        if self.request.tree:
            told["tree"] = result.to_html()
        if self.request.trajectories:
            told["trajectories"] = [
                {"text": t.text, "answer": t.answer, "score": t.score, "step_scores": t.step_scores}
                for t in result.trajectories
            ]
        return {"finish_reason": "stop" if stopped else "length", "inferscale": told}

    def _bill(self, results: Sequence[SearchResult]) -> dict[str, Any]:
        """The cost of all prompts; tokens that are in no answer count as reasoning."""
        cost = sum((result.cost for result in results), Cost())
        reported = sum(step.generated_tokens for result in results for step in result.selected.steps)
        usage = {
            "prompt_tokens": cost.prompt_tokens,
            "completion_tokens": cost.tokens,
            "total_tokens": cost.prompt_tokens + cost.tokens,
            "completion_tokens_details": {"reasoning_tokens": cost.tokens - reported},
        }
        solver = self.request.solver
        told = {
            "strategy": repr(self.request.strategy),
            "aggregator": repr(solver.vote),
            "seed": solver.seed,
            "budget": None if solver.budget is None else asdict(solver.budget),
            "ignored": list(self.request.ignored),
            "cost": cost.to_dict(),
            "energy": "not measured: the server was started without --energy"
            if solver.energy is None
            else solver.energy.source,
        }
        return {"usage": usage, "inferscale": told}
