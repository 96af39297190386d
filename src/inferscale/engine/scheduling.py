"""The calls that answer what searches ask for, checked and timed, and when searches are resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from typing import Any

from inferscale.base import Generator, ProcessRewardModel, RewardModel, Ticket, check_steps
from inferscale.cost import Cost
from inferscale.flow import GenerateRequest
from inferscale.tree import Node, Step

from .journal import Samples, Scores
from .search import Search


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
        check_steps(requests, answers, type(self.generator).__name__)
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
                steps = len(node.part(self.reward_model.judge).inner_steps())
                if len(of_node) != steps:
                    given = f"{len(of_node)} step scores" if of_node else "no step score"
                    raise ValueError(
                        f"{name} gave {given} to {node!r}: give one for each of the {steps} steps of the path that are "
                        f'judged, node.part("{self.reward_model.judge}").inner_steps()'
                    )
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


def _check_count(values: Sequence[object], nodes: Sequence[Node], name: str, what: str = "scores") -> None:
    if isinstance(values, str | Mapping) or not (hasattr(values, "__len__") and hasattr(values, "__getitem__")):
        raise TypeError(f"{name} must return a list of {what}, not {type(values).__name__} {values!r:.100}")
    count = len(values)
    if count != len(nodes):
        raise ValueError(f"{name} returned {count} {what} for {len(nodes)} nodes: return one for each, in order")


def _checked_score(value: object, node: Node, name: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        hint = " (None abstains, and only beside others in a WeightedReward)" if value is None else ""
        raise ValueError(f"{name} scored {node!r} as {value!r}: a score must be a finite number{hint}")
    return number


@dataclass
class Asked:
    """The requests of one search that are being answered.

    Attributes:
        requests: The requests.
        num_open: Number of samples that have not ended.
        steps: For each request the samples that have ended, by their place.
        seconds: The search's share of the time until now.
        tickets: Of what was submitted: the place of its request, and that of its first sample among those.
    """

    requests: Sequence[GenerateRequest]
    num_open: int
    steps: Sequence[dict[int, Step]]
    seconds: float = 0.0
    tickets: dict[Ticket, tuple[int, int]] = field(default_factory=dict)

    @property
    def num_open_steps(self) -> int:
        """Number of samples that have not ended, and will soon: whole completions may take long."""
        pairs = zip(self.requests, self.steps, strict=True)
        return sum(request.n - len(known) for request, known in pairs if request.until == "step")


class WaveScheduler:
    """Resumes each search as soon as its own answers are there; all of them share the generator's session.

    A generator that knows no other way answers in rounds, and then all searches are resumed together. Scores are asked
    for in batches: when at least half as many nodes wait for one as steps are still being drawn. All of it is decided
    by counts and never by a clock, so that the same call makes the same batches again.
    """

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls
        self._sampling = calls.generator.open()
        self._asked: dict[Search, Asked] = {}
        self._owners: dict[Ticket, Search] = {}

    def advance(self, active: Collection[Search]) -> None:
        """Submit what idle searches ask for, wait for samples to end, and have nodes scored that wait.

        Each search is asked once for each, so none can have two turns while another waits.
        """
        for search in active:
            if search not in self._asked and (requests := search.next_samples(self._calls.generator)):
                self._submit(search, requests)
        if self._asked:
            self._collect()
        unscored = [(search, nodes) for search in active if (nodes := search.next_nodes())]
        if unscored and self._is_worth_a_call(unscored):
            judged = self._calls.score([nodes for _, nodes in unscored])
            for (search, nodes), scores in zip(unscored, judged, strict=True):
                search.take_scores(nodes, scores)

    def _is_worth_a_call(self, unscored: Sequence[tuple[Search, Sequence[Node]]]) -> bool:
        """True if so many nodes wait that those of the steps that are being drawn need not be waited for."""
        steps = sum(asked.num_open_steps for asked in self._asked.values())
        waiting = sum(len(nodes) for _, nodes in unscored)
        return 2 * waiting >= steps or any(search.stopped_by is not None for search, _ in unscored)

    def watch(self, on_tokens: Callable[[int], object]) -> None:
        """Have tokens told as they are drawn, by generators that can."""
        self._sampling.on_tokens = on_tokens

    def most_tokens(self) -> float | None:
        """The mean over searches that wait for samples of the most tokens they have then; ``None`` if nobody knows."""
        most = []
        for search, asked in self._asked.items():
            bounds = [self._calls.generator.max_sample_tokens(request) for request in asked.requests]
            if not all(bounds):
                return None
            most.append(search.cost.tokens + sum(r.n * (b or 0) for r, b in zip(asked.requests, bounds, strict=True)))
        return sum(most) / len(most) if most else None

    def _submit(self, search: Search, requests: Sequence[GenerateRequest]) -> None:
        """Ask for what no journal holds."""
        started, steps = time.perf_counter(), [search.drawn(request) for request in requests]
        num_open = sum(request.n - len(known) for request, known in zip(requests, steps, strict=True))
        asked = self._asked[search] = Asked(requests, num_open, steps)
        try:
            for place, (request, known) in enumerate(zip(requests, steps, strict=True)):
                for first, n in _gaps(request.n, known):
                    rest = replace(request, n=n, first=request.first + first) if known else request
                    ticket = self._sampling.submit(rest)
                    asked.tickets[ticket], self._owners[ticket] = (place, first), search
        except BaseException:
            self.cancel(search)
            raise
        asked.seconds = time.perf_counter() - started
        if not num_open:
            self._take(search)

    def _collect(self) -> None:
        """Wait until samples have ended; searches that have all of theirs go on."""
        started, num_open = time.perf_counter(), sum(asked.num_open for asked in self._asked.values())
        ended = self._sampling.collect()
        seconds = (time.perf_counter() - started) / num_open
        for asked in self._asked.values():  # time is divided by the samples that were waited for
            asked.seconds += seconds * asked.num_open
        if not ended:
            name = type(self._calls.generator).__name__
            raise RuntimeError(f"{name}.open(): collect() returned no sample, though {num_open} have not ended")
        new: list[tuple[Search, int, int]] = []
        for ticket, index, step in ended:
            if ticket in self._owners:  # else its search was cancelled
                search = self._owners[ticket]
                asked = self._asked[search]
                place, first = asked.tickets[ticket]
                asked.steps[place][first + index] = step
                asked.num_open -= 1
                new.append((search, place, first + index))
        for search, place, index in new:
            asked = self._asked[search]
            if asked.num_open:
                search.record_part(asked.requests[place], index, asked.steps[place][index])
        for search in [search for search, asked in self._asked.items() if not asked.num_open]:
            self._take(search)

    def _take(self, search: Search) -> None:
        """Give a search its answer, which is complete."""
        asked = self._forget(search)
        steps = [[step for _, step in sorted(known.items())] for known in asked.steps]
        check_steps(asked.requests, steps, type(self._calls.generator).__name__)
        search.take_samples(asked.requests, Samples(steps, asked.seconds))

    def _forget(self, search: Search) -> Asked:
        asked = self._asked.pop(search)
        for ticket in asked.tickets:
            del self._owners[ticket]
        return asked

    def cancel(self, search: Search) -> None:
        """Forget what `search` waits for: its samples end with what was drawn of them."""
        if search in self._asked:
            for ticket in self._forget(search).tickets:
                self._sampling.cancel(ticket)

    def close(self, patient: bool) -> None:
        """Drop what is under way, and keep what has ended; a `patient` caller has complete answers taken."""
        self._sampling.close()
        for search, asked in list(self._asked.items()):
            search.on_step = None  # it may be what has failed
            if patient and not asked.num_open:
                self._take(search)
            else:
                search.take_part(asked.requests, asked.steps, asked.seconds)
        self._asked, self._owners = {}, {}


def _gaps(n: int, known: Container[int]) -> Iterator[tuple[int, int]]:
    """The places below `n` that are not known, as runs: the first place and the number of each."""
    for is_known, run in groupby(range(n), lambda place: place in known):
        if not is_known:
            places = list(run)
            yield places[0], len(places)


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

    def watch(self, on_tokens: Callable[[int], object]) -> None:
        """Nothing: calls of generators tell no tokens before they end."""

    def most_tokens(self) -> None:
        """Nobody knows: how far a call has come cannot be seen."""

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
