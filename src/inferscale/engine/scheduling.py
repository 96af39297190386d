"""The calls that answer what searches ask for, checked and timed, and when searches are resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar, get_args

from inferscale.base import Generator, ProcessRewardModel, RewardModel
from inferscale.cost import Cost
from inferscale.flow import GenerateRequest
from inferscale.functional import reduce_steps
from inferscale.tree import FinishReason, Node, Step

from .journal import Journal, RecordedScores, RecordedSteps
from .search import Search

Wanted = TypeVar("Wanted")

_REASONS = get_args(FinishReason)


@dataclass(frozen=True)
class Models:
    """What answers the searches: the models, and before them the journal of an earlier call.

    A portion is what one search asks for at a time: requests for samples, or nodes to score. Only `sample` and `judge`
    run a model, and they touch no search and no journal, so that they can run in any thread.

    Attributes:
        generator: Samples steps.
        reward_model: Scores nodes.
        journal: Answers first, and records what the models answer.
    """

    generator: Generator
    reward_model: RewardModel | None
    journal: Journal

    def samples_for(self, search: Search) -> list[GenerateRequest]:
        """The samples that `search` waits for and the journal does not hold; ``[]`` if there are none."""
        while portion := self._wanted(search, partial(search.portion, self.generator)):
            recorded = self.journal.recorded_steps(search.root, portion)
            if recorded is None:
                return portion
            search.started -= recorded.seconds
            search.attach(portion, recorded.steps, recorded.seconds)
        return []

    def nodes_for(self, search: Search) -> tuple[Node, ...]:
        """The nodes that `search` waits for the scores of and the journal does not hold; ``()`` if there are none.

        Scores out of the journal resume the search, which may then wait for samples.
        """
        nodes = self._wanted(search, search.to_score)
        if not nodes:
            return ()
        if self.reward_model is None:
            raise ValueError(f"{search.strategy!r} scores its nodes: pass reward_model=...")
        recorded = self.journal.recorded_scores(search.root, nodes)
        if recorded is None:
            return nodes
        recorded.give(nodes)
        search.started -= recorded.cost.seconds
        search.scored(recorded.cost)
        return ()

    def _wanted(self, search: Search, ask: Callable[[], Wanted]) -> Wanted:
        """What `ask` says that `search` waits for; a search ends where its clock ended it in an earlier call.

        The clock ends no search whose answers are still replayed: it would end elsewhere than it did.
        """
        if self.journal.recorded_timeout(search.root):
            search.stop("seconds")
        search.replaying = self.journal.holds(search.root)
        stopped_by = search.stopped_by
        wanted = ask()
        if stopped_by is None and search.stopped_by == "seconds":
            self.journal.record_timeout(search.root)
        return wanted

    def sample(self, portions: Sequence[Sequence[GenerateRequest]]) -> list[RecordedSteps]:
        """The answer to each portion, in one call of the generator; its time is divided by the samples."""
        requests = [request for portion in portions for request in portion]
        started = time.perf_counter()
        answers = iter(_checked_steps(requests, self.generator.generate(requests), self.generator))
        seconds = (time.perf_counter() - started) / sum(request.n for request in requests)
        shares = [seconds * sum(request.n for request in portion) for portion in portions]
        return [
            RecordedSteps([list(next(answers)) for _ in portion], share)
            for portion, share in zip(portions, shares, strict=True)
        ]

    def judge(self, portions: Sequence[Sequence[Node]]) -> list[RecordedScores]:
        """The scores of each portion, in one call of the reward model; its time is divided by the nodes."""
        if self.reward_model is None:
            raise RuntimeError("there is no reward model to judge with")
        nodes = [node for portion in portions for node in portion]
        started = time.perf_counter()
        costs = self.reward_model.cost(nodes)
        _check_count(costs, nodes, f"{type(self.reward_model).__name__}.cost()", "costs")
        scores = _checked_scores(nodes, self.reward_model)
        seconds = (time.perf_counter() - started) / len(nodes)
        rows = iter(list(zip(scores, costs, strict=True)))
        answers = []
        for portion in portions:
            given, bills = zip(*islice(rows, len(portion)), strict=True)
            values, steps = zip(*given, strict=True)
            answers.append(RecordedScores(list(values), list(steps), _sum_costs(bills, seconds)))
        return answers

    def take_steps(self, search: Search, portion: Sequence[GenerateRequest], answer: RecordedSteps) -> None:
        """Records an answer and resumes the search with it."""
        self.journal.record_steps(search.root, portion, answer.steps, answer.seconds)
        search.attach(portion, answer.steps, answer.seconds)

    def take_scores(self, search: Search, nodes: Sequence[Node], answer: RecordedScores) -> None:
        """Records an answer and resumes the search with it."""
        answer.give(nodes)
        self.journal.record_scores(search.root, nodes, answer.cost)
        search.scored(answer.cost)


def _checked_steps(
    requests: Sequence[GenerateRequest], answers: Sequence[Sequence[Step]], generator: Generator
) -> Sequence[Sequence[Step]]:
    name = type(generator).__name__
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
            _check_step(request, step, name)
    return answers


def _check_step(request: GenerateRequest, step: object, name: str) -> None:
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
            f'{name}.generate() ended a completion (until="end") with finish_reason="step", as if it could go on: '
            'give "eos" or "length"'
        )


def _sum_costs(costs: Sequence[Cost], seconds_each: float) -> Cost:
    scored = sum(int(cost.scored_tokens) for cost in costs)
    flops = sum(int(cost.reward_flops) for cost in costs)
    return Cost(scored_tokens=scored, reward_flops=flops, seconds=seconds_each * len(costs), num_scored=len(costs))


def _checked_scores(nodes: Sequence[Node], reward_model: RewardModel) -> list[tuple[float, list[float] | None]]:
    """For each node its score, and its step scores if the model gives any."""
    name = type(reward_model).__name__
    if not isinstance(reward_model, ProcessRewardModel):
        scores = reward_model.score(nodes)
        _check_count(scores, nodes, name)
        return [(_checked_score(value, node, name), None) for node, value in zip(nodes, scores, strict=True)]
    lists = reward_model.step_scores(nodes)
    _check_count(lists, nodes, name)
    found: list[tuple[float, list[float] | None]] = []
    for node, step_scores in zip(nodes, lists, strict=True):
        checked = [_checked_score(value, node, name) for value in step_scores]
        if not checked:
            raise ValueError(f"{name} gave no step score to {node!r}: give one for each step of the path")
        found.append((float(reduce_steps(checked, reward_model.reduction)), checked))
    return found


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


Portion = TypeVar("Portion")
Answer = TypeVar("Answer")


class Waves:
    """Resumes all searches together, so that each model call is as large as can be."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def __enter__(self) -> Self:
        """The schedule."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is under way between waves."""

    def advance(self, active: Sequence[Search]) -> None:
        """Answers what the searches ask for: first all samples, then all scores."""
        models = self._models
        self._call(active, models.samples_for, models.sample, models.take_steps)
        self._call(active, models.nodes_for, models.judge, models.take_scores)

    def _call(
        self,
        active: Sequence[Search],
        wanted: Callable[[Search], Portion],
        run: Callable[[list[Portion]], Sequence[Answer]],
        take: Callable[[Search, Portion, Answer], None],
    ) -> None:
        """Answers what is `wanted` by one model, in one call for all searches; none is made where nothing is."""
        portions = [(search, portion) for search in active if (portion := wanted(search))]
        if not portions:
            return
        answers = run([portion for _, portion in portions])
        for (search, portion), answer in zip(portions, answers, strict=True):
            take(search, portion, answer)
        self._models.journal.flush()


MAX_CALLS = 64
"""Most calls of the models under way at a time."""


@dataclass(frozen=True)
class _Call:
    """A call of a model.

    Attributes:
        search: Who waits for it.
        run: Runs the model, in any thread.
        take: Hands the answer over.
    """

    search: Search
    run: Callable[[], list[Any]]
    take: Callable[[Any], None]


class Streams:
    """Hands every search's portion to a thread of its own; trees and journal are touched by the caller's thread alone.

    A portion and its random streams depend on its search alone, and so do the results: they are those of waves.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._pool = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="inferscale")
        self._under_way: dict[Future[list[Any]], _Call] = {}

    def __enter__(self) -> Self:
        """The schedule."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the threads.

        After an error the calls that are under way are waited for and their answers kept: they have been paid for.
        After an interrupt, or when the caller has had enough, they are left to end by themselves.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        patient = kind is not None and issubclass(kind, Exception)
        answered, _ = wait(self._under_way, timeout=None if patient else 0)
        for future in answered:
            if not future.cancelled() and future.exception() is None:
                self._take(future)

    def advance(self, active: Sequence[Search]) -> None:
        """Sends what idle searches ask for; if all of them wait then, waits for the next answers."""
        busy = {call.search for call in self._under_way.values()}
        for search in active:
            call = None if search in busy else self._next_call(search)
            if call is not None:
                self._under_way[self._pool.submit(copy_context().run, call.run)] = call
        if len(self._under_way) < len(active):
            return
        answered, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        for future in answered:
            self._take(future)

    def _next_call(self, search: Search) -> _Call | None:
        """The call that `search` waits for, once its journal has no more answers; ``None`` if it has ended."""
        models = self._models
        while search.leaves is None:
            if portion := models.samples_for(search):
                return _Call(search, partial(models.sample, [portion]), partial(models.take_steps, search, portion))
            if nodes := models.nodes_for(search):
                return _Call(search, partial(models.judge, [nodes]), partial(models.take_scores, search, nodes))
        return None

    def _take(self, future: Future[list[Any]]) -> None:
        """Resumes the search whose answer is there."""
        call = self._under_way.pop(future)
        (answer,) = future.result()
        call.take(answer)
        self._models.journal.flush()
