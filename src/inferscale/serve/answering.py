"""What a client is told: results, progress and bills in OpenAI's shapes, with ours in fields named ``inferscale``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from inferscale._stops import read_until
from inferscale.cost import Cost
from inferscale.result import SearchResult
from inferscale.tree import Trajectory

from .asking import Ask
from .errors import APIError

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
        task = self.ask.task
        told = {
            "strategy": repr(self.ask.strategy),
            "aggregator": repr(task.vote),
            "seed": task.seed,
            "budget": None if task.budget is None else asdict(task.budget),
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
