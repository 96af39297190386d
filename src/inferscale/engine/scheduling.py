"""The calls that answer what searches ask for, checked and timed, and when searches are resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, get_args

from inferscale.base import Generator, ProcessRewardModel, RewardModel
from inferscale.cost import Cost
from inferscale.flow import GenerateRequest
from inferscale.tree import FinishReason, Node, Step

from .journal import Samples, Scores
from .search import Search

_REASONS = get_args(FinishReason)


@dataclass(frozen=True)
class ModelCalls:
    """Calls of the models for several searches at once, each part of the answer checked.

    Nothing here touches a search, so that a call can run in any thread.

    Attributes:
        generator: Samples steps.
        reward_model: Scores nodes.
    """

    generator: Generator
    reward_model: RewardModel | None

    def generate(self, batches: Sequence[Sequence[GenerateRequest]]) -> list[Samples]:
        """Return the answer to each search's requests, in one call; its time is divided by the samples."""
        requests = [request for batch in batches for request in batch]
        started = time.perf_counter()
        answers = self.generator.generate(requests)
        seconds = (time.perf_counter() - started) / sum(request.n for request in requests)
        _check_steps(requests, answers, type(self.generator).__name__)
        rest = iter(answers)
        return [
            Samples([list(steps) for steps in islice(rest, len(batch))], seconds * sum(r.n for r in batch))
            for batch in batches
        ]

    def score(self, batches: Sequence[Sequence[Node]]) -> list[Scores]:
        """Return the scores of each search's nodes, in one call; its time is divided by the nodes."""
        if self.reward_model is None:
            raise RuntimeError("there is no reward model to score with")
        nodes = [node for batch in batches for node in batch]
        name = type(self.reward_model).__name__
        started = time.perf_counter()
        costs = self.reward_model.cost(nodes)
        _check_count(costs, nodes, f"{name}.cost()", "costs")
        values: list[float]
        step_scores: list[list[float] | None]
        if isinstance(self.reward_model, ProcessRewardModel):
            # Scores are computed here from the step scores, so that the model reads each node once.
            lists = self.reward_model.step_scores(nodes)
            _check_count(lists, nodes, name)
            checked = [
                [_checked_score(value, node, name) for value in of_node]
                for node, of_node in zip(nodes, lists, strict=True)
            ]
            for node, of_node in zip(nodes, checked, strict=True):
                judge = self.reward_model.judge
                if not of_node and (judge == "all" or node.part(judge).inner_steps()):
                    raise ValueError(f"{name} gave no step score to {node!r}: give one for each step of the path")
            values = [self.reward_model.reduced(of_node) for of_node in checked]
            step_scores = [*checked]
        else:
            scores = self.reward_model.score(nodes)
            _check_count(scores, nodes, name)
            values = [_checked_score(value, node, name) for node, value in zip(nodes, scores, strict=True)]
            step_scores = [None] * len(nodes)
        seconds = (time.perf_counter() - started) / len(nodes)
        answers, start = [], 0
        for batch in batches:
            own = slice(start, start + len(batch))
            cost = Cost(
                scored_tokens=sum(int(cost.scored_tokens) for cost in costs[own]),
                reward_flops=sum(int(cost.reward_flops) for cost in costs[own]),
                seconds=seconds * len(batch),
                num_scored=len(batch),
            )
            answers.append(Scores(values[own], step_scores[own], cost))
            start += len(batch)
        return answers


def _check_steps(requests: Sequence[GenerateRequest], answers: Sequence[Sequence[Step]], name: str) -> None:
    if not isinstance(answers, Sequence) or not all(isinstance(steps, Sequence) for steps in answers):
        raise TypeError(f"{name}.generate() must return a list of steps for each request, not {answers!r:.100}")
    if len(answers) != len(requests):
        raise ValueError(
            f"{name}.generate() answered {len(answers)} of {len(requests)} requests: answer each, in order"
        )
    for request, steps in zip(requests, answers, strict=True):
        if len(steps) != request.n:
            raise ValueError(f"{name}.generate() returned {len(steps)} steps where {request.n} were asked for")
        for step in steps:
            if not isinstance(step, Step):
                raise TypeError(f"{name}.generate() must return Step objects, not {type(step).__name__} {step!r:.80}")
            if not isinstance(step.text, str):
                raise TypeError(f"{name}.generate() returned a step whose text is {step.text!r:.80}, and no string")
            if step.finish_reason not in _REASONS:
                raise ValueError(
                    f"{name}.generate() returned a step with finish_reason={step.finish_reason!r}: "
                    f"choose one of {', '.join(map(repr, _REASONS))}"
                )
            if request.until == "end" and step.finish_reason == "step":
                raise ValueError(
                    f'{name}.generate() ended a completion (until="end") with finish_reason="step", as if it could go '
                    'on: give "eos" or "length"'
                )


def _check_count(values: Sequence[object], nodes: Sequence[Node], name: str, what: str = "scores") -> None:
    try:
        count = len(values)
    except TypeError:
        raise TypeError(f"{name} must return a list of {what}, not {values!r:.100}") from None
    if count != len(nodes):
        raise ValueError(f"{name} returned {count} {what} for {len(nodes)} nodes: return one for each, in order")


def _checked_score(value: object, node: Node, name: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} scored {node!r} as {value!r}: a score must be a finite number")
    return number


class WaveScheduler:
    """Resumes all searches together, so that each call of a model is as large as can be."""

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    def advance(self, active: Collection[Search]) -> None:
        """Answer what the searches ask for: first all samples, then all scores; no call is made for nothing.

        Each search is asked once for each, so none can have two turns while another waits.
        """
        asking = [(search, batch) for search in active if (batch := search.next_samples(self._calls.generator))]
        if asking:
            answers = self._calls.generate([batch for _, batch in asking])
            for (search, batch), samples in zip(asking, answers, strict=True):
                search.take_samples(batch, samples)
        unscored = [(search, nodes) for search in active if (nodes := search.next_nodes())]
        if unscored:
            judged = self._calls.score([nodes for _, nodes in unscored])
            for (search, nodes), scores in zip(unscored, judged, strict=True):
                search.take_scores(nodes, scores)

    def cancel(self, search: Search) -> None:
        """Nothing is under way between waves."""

    def close(self, patient: bool) -> None:
        """Nothing is under way between waves."""


MAX_CALLS = 64
"""Most calls of the models under way at a time."""


class StreamScheduler:
    """Resumes each search as soon as its own answer is there, with a call for each in a thread.

    Trees and journal are touched by the caller's thread alone. What a search asks for and its random streams depend on
    that search alone, and so do the results: they are those of waves. Each search has at most one call under way, and
    the pool takes calls in the order in which they were sent, so that no search is passed over.
    """

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls
        self._pool = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="inferscale")
        # For each call the search that waits for it, and its method that takes the answer.
        self._under_way: dict[Future[Any], tuple[Search, Callable[[Any], None]]] = {}

    def advance(self, active: Collection[Search]) -> None:
        """Send what idle searches ask for; if all of them wait then, wait for the next answers."""
        busy = {search for search, _ in self._under_way.values()}
        for search in active:
            if search not in busy:
                self._send(search)
        if len(self._under_way) < len(active):
            return  # one has ended: its result goes out first
        answered, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        for future in answered:
            self._take(future)

    def cancel(self, search: Search) -> None:
        """Forget the call that `search`, now abandoned, has under way; its thread ends by itself."""
        self._under_way = {future: call for future, call in self._under_way.items() if call[0] is not search}

    def close(self, patient: bool) -> None:
        """End the threads.

        A `patient` caller has calls that are under way waited for and their answers kept: they have been paid for. Else
        they are left to end by themselves, their searches abandoned. No callback is called any more.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        for search, _ in self._under_way.values():
            search.on_step = None  # it may be what has failed
            if not patient:
                search.abandoned.set()
        answered, _ = wait(self._under_way, timeout=None if patient else 0)
        for future in answered:
            if not future.cancelled() and future.exception() is None:
                self._take(future)

    def _send(self, search: Search) -> None:
        """Submit the call that `search` waits for, unless it has ended."""
        context, calls = copy_context(), self._calls
        while search.leaves is None:
            if requests := search.next_samples(calls.generator):
                samples = self._pool.submit(context.run, calls.generate, [requests])
                self._under_way[samples] = (search, partial(search.take_samples, requests))
                return
            if nodes := search.next_nodes():
                scores = self._pool.submit(context.run, calls.score, [nodes])
                self._under_way[scores] = (search, partial(search.take_scores, nodes))
                return
            # It went on without a model, and may wait for the other one now.

    def _take(self, future: Future[Any]) -> None:
        _, take = self._under_way.pop(future)
        (answer,) = future.result()
        take(answer)
