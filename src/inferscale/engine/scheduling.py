"""The one loop that answers what searches ask for, and resumes each when its answer is there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from itertools import groupby

from inferscale.base import MAX_CALLS, Generator, ProcessRewardModel, RewardModel, Ticket, came, check_steps
from inferscale.cost import Cost, Meter
from inferscale.flow import GenerateRequest
from inferscale.tree import Node, Step

from .journal import Samples, Scores
from .search import Search


def scored(reward_model: RewardModel, batches: Sequence[Sequence[Node]]) -> list[Scores]:
    """Return the scores of each search's nodes, checked, in one call; its time is divided by the nodes.

    Nothing here touches a search, so that the call can run in any thread.
    """
    nodes = [node for batch in batches for node in batch]
    name = type(reward_model).__name__
    started = time.perf_counter()
    costs = reward_model.cost(nodes)
    _check_count(costs, nodes, f"{name}.cost()", "costs")
    values: list[float]
    step_scores: list[list[float] | None]
    if isinstance(reward_model, ProcessRewardModel):
        # Scores are computed here from the step scores, so that the model reads each node once.
        lists = reward_model.step_scores(nodes)
        _check_count(lists, nodes, name)
        checked = [
            [_checked_score(value, node, name) for value in of_node] for node, of_node in zip(nodes, lists, strict=True)
        ]
        for node, of_node in zip(nodes, checked, strict=True):
            steps = len(node.part(reward_model.judge).inner_steps())
            if len(of_node) != steps:
                given = f"{len(of_node)} step scores" if of_node else "no step score"
                raise ValueError(
                    f"{name} gave {given} to {node!r}: give one for each of the {steps} steps of the path that are "
                    f'judged, node.part("{reward_model.judge}").inner_steps()'
                )
        values = [reward_model.reduced(of_node) for of_node in checked]
        step_scores = [*checked]
    else:
        scores = reward_model.score(nodes)
        _check_count(scores, nodes, name)
        values = [_checked_score(value, node, name) for value, node in zip(scores, nodes, strict=True)]
        step_scores = [None] * len(nodes)
    seconds = (time.perf_counter() - started) / len(nodes)
    answers, start = [], 0
    for batch in batches:
        own = slice(start, start + len(batch))
        # NumPy's integers would overflow in silence
        tokens, flops = (sum(int(getattr(c, name)) for c in costs[own]) for name in ("scored_tokens", "reward_flops"))
        moved, cache = (_sum(getattr(c, name) for c in costs[own]) for name in ("reward_bytes", "cache_bytes"))
        if not moved and (tokens or flops):  # a model of one's own, which does not tell
            moved = cache = None
        cost = Cost(
            scored_tokens=tokens,
            reward_flops=flops,
            seconds=seconds * len(batch),
            num_scored=len(batch),
            reward_bytes=moved,
            cache_bytes=cache,
            rounds=1,
            phases={"score": seconds * len(batch)},
            reward_joules=None,
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
        prefill: Of those, the share of the time in which prompts and paths were read; ``None`` if nobody tells.
        joules: The share of the energy; ``None`` where none is measured.
        tickets: Of what was submitted: the place of its request, and that of its first sample among those.
    """

    requests: Sequence[GenerateRequest]
    num_open: int
    steps: Sequence[dict[int, Step]]
    seconds: float = 0.0
    prefill: float | None = None
    joules: float | None = None
    tickets: dict[Ticket, tuple[int, int]] = field(default_factory=dict)

    def samples(self) -> Samples:
        """The steps in order, with what was measured."""
        steps = [[step for _, step in sorted(known.items())] for known in self.steps]
        return Samples(steps, self.seconds, prefill=self.prefill, joules=self.joules)


_LOOK = 1.0
"""Seconds between two looks at sessions of which one does not wait for samples alone."""


class Scheduler:
    """Answers what searches ask for: each goes on as soon as its own samples, or scores, are there.

    All samples are asked of one session of the generator. Nodes are scored in batches: when at least as many wait for a
    score as steps are being drawn, or others draw them in threads. With models in this process all of it is decided by
    counts and never by a clock, so that the same call makes the same batches again. A `concurrent` reward model is
    asked for each search apart, at once and in a thread, while others sample.

    Trees and journal are touched by the caller's thread alone.
    """

    def __init__(self, generator: Generator, reward_model: RewardModel | None, meter: Meter | None = None) -> None:
        self._generator = generator
        self._meter = meter
        self._reward_model = reward_model
        self._scores_apart = reward_model is not None and reward_model.concurrent
        self._sampling = generator.open()
        self._asked: dict[Search, Asked] = {}
        self._owners: dict[Ticket, Search] = {}
        self._pool = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="inferscale")
        self._scoring: dict[Future[list[Scores]], tuple[Search, Sequence[Node]]] = {}  # calls under way

    def advance(self, active: Collection[Search]) -> None:
        """Submit what idle searches ask for, wait for the next answers, and have nodes scored that wait.

        It comes back at once if a search has ended, so that its result goes out first.
        """
        for search in self._idle(active):
            while requests := search.next_samples(self._generator):
                self._submit(search, requests)
                if search in self._asked:  # else a journal held all of it
                    break
        if self._scores_apart:
            for search, nodes in self._unscored(active):
                call = self._pool.submit(copy_context().run, self._scored, [nodes])
                self._scoring[call] = search, nodes
        if any(search.leaves is not None for search in active):
            return
        self._wait()
        unscored = [] if self._scores_apart else self._unscored(active)
        if unscored and self._is_worth_a_call(unscored):
            judged = self._scored([nodes for _, nodes in unscored])
            for (search, nodes), scores in zip(unscored, judged, strict=True):
                search.take_scores(nodes, scores)

    def _idle(self, active: Collection[Search]) -> list[Search]:
        """The searches that wait for no answer."""
        judged = {search for search, _ in self._scoring.values()}
        return [search for search in active if search not in self._asked and search not in judged]

    def _unscored(self, active: Collection[Search]) -> list[tuple[Search, Sequence[Node]]]:
        """The searches whose nodes wait for a score, with those."""
        return [(search, nodes) for search in self._idle(active) if (nodes := search.next_nodes())]

    def _scored(self, batches: Sequence[Sequence[Node]]) -> list[Scores]:
        if self._reward_model is None:
            raise RuntimeError("there is no reward model to score with")
        joules, answers = self._joules(), scored(self._reward_model, batches)
        if (spent := _since(joules, self._joules())) is None:
            return answers
        each = spent / sum(map(len, batches))
        return [scores._replace(cost=replace(scores.cost, reward_joules=each * len(batch)))
                for scores, batch in zip(answers, batches, strict=True)]  # fmt: skip

    def _joules(self) -> float | None:
        return None if self._meter is None else self._meter.read()

    def _is_worth_a_call(self, unscored: Sequence[tuple[Search, Sequence[Node]]]) -> bool:
        """True if so many nodes wait that those of the steps that are being drawn need not be waited for."""
        if self._sampling.calls:  # they take as long as they take, and nobody else need stand still
            return True
        # whole completions may take long too
        steps = sum(asked.num_open for asked in self._asked.values() if asked.requests[0].until == "step")
        waiting = sum(len(nodes) for _, nodes in unscored)
        return waiting >= steps or any(search.stopped_by is not None for search, _ in unscored)

    def watch(self, on_tokens: Callable[[int], object]) -> None:
        """Have tokens told as they are drawn, by generators that can."""
        self._sampling.on_tokens = on_tokens

    def most_tokens(self) -> float | None:
        """The mean over searches that wait for samples of the most tokens they have then; ``None`` if nobody knows."""
        most = []
        for search, asked in self._asked.items():
            bounds = [self._generator.max_sample_tokens(request) for request in asked.requests]
            if not all(bounds):
                return None
            most.append(search.cost.tokens + sum(r.n * (b or 0) for r, b in zip(asked.requests, bounds, strict=True)))
        return sum(most) / len(most) if most else None

    def _submit(self, search: Search, requests: Sequence[GenerateRequest]) -> None:
        """Ask for what no journal holds."""
        started, steps = time.perf_counter(), [search.drawn(request) for request in requests]
        num_open = sum(request.n - len(known) for request, known in zip(requests, steps, strict=True))
        asked = self._asked[search] = Asked(requests, num_open, steps)
        asked.prefill = None if self._sampling.prefill_seconds is None else 0.0
        asked.joules = None if self._meter is None else 0.0
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

    def _wait(self) -> None:
        """Wait until samples have ended, or scores are there; searches that have all of theirs go on."""
        started, num_open = time.perf_counter(), sum(asked.num_open for asked in self._asked.values())
        prefill, joules = self._sampling.prefill_seconds, self._joules()
        self._sampling.begin()
        calls = self._sampling.calls
        if self._scoring and (calls or not num_open):
            wait([*calls, *self._scoring], _LOOK, FIRST_COMPLETED)
        ended: list[tuple[Ticket, int, Step]] = []
        if num_open and (not calls or not self._scoring or any(call.done() for call in calls)):
            ended = self._sampling.collect()
            if not ended:
                name = type(self._generator).__name__
                raise RuntimeError(f"{name}.open(): collect() returned no sample, though {num_open} have not ended")
        seconds = time.perf_counter() - started
        read, spent = _since(prefill, self._sampling.prefill_seconds), _since(joules, self._joules())
        for asked in self._asked.values():  # time and energy are divided by the samples that were waited for
            share = asked.num_open / num_open
            asked.seconds += seconds * share
            asked.prefill = None if asked.prefill is None or read is None else asked.prefill + read * share
            asked.joules = None if asked.joules is None or spent is None else asked.joules + spent * share
        self._take_samples(ended)
        done = [call for call in self._scoring if call.done()]
        self._take_scores(list(filter(came, done)) or done)

    def _take_samples(self, ended: Sequence[tuple[Ticket, int, Step]]) -> None:
        new: list[tuple[Search, int, int]] = []
        for ticket, index, step in ended:
            if ticket in self._owners:  # else its search was cancelled
                search = self._owners[ticket]
                asked = self._asked[search]
                place, first = asked.tickets[ticket]
                asked.steps[place][first + index] = step
                asked.num_open -= 1
                search.saw(asked.requests[place], step)
                new.append((search, place, first + index))
        for search, place, index in new:
            asked = self._asked[search]
            if asked.num_open:
                search.record_part(asked.requests[place], index, asked.steps[place][index])
        for search in [search for search, asked in self._asked.items() if not asked.num_open]:
            self._take(search)

    def _take_scores(self, calls: Sequence[Future[list[Scores]]]) -> None:
        for call in calls:
            search, nodes = self._scoring.pop(call)
            (scores,) = call.result()
            search.take_scores(nodes, scores)

    def _take(self, search: Search) -> None:
        """Give a search its answer, which is complete."""
        asked = self._forget(search)
        samples = asked.samples()
        check_steps(asked.requests, samples.steps, type(self._generator).__name__)
        search.take_samples(asked.requests, samples)

    def _forget(self, search: Search) -> Asked:
        asked = self._asked.pop(search)
        for ticket in asked.tickets:
            del self._owners[ticket]
        return asked

    def cancel(self, search: Search) -> None:
        """Forget what `search` waits for: its samples end with what was drawn of them, a call in a thread by itself."""
        if search in self._asked:
            for ticket in self._forget(search).tickets:
                self._sampling.cancel(ticket)
        for call in [call for call, (other, _) in self._scoring.items() if other is search]:
            del self._scoring[call]
            call.cancel()

    def close(self, patient: bool) -> None:
        """Drop what is under way, and keep what has ended.

        A `patient` caller has calls in threads waited for, and their answers kept: they have been paid for. Else they
        are left to end by themselves, their searches abandoned. No callback is called any more.
        """
        for search in (*self._asked, *(search for search, _ in self._scoring.values())):
            search.on_step = None  # it may be what has failed
            if not patient:
                search.abandoned.set()
        self._sampling.halt()
        self._pool.shutdown(wait=False, cancel_futures=True)
        begun = [call for call in (*self._sampling.calls, *self._scoring) if not call.cancelled()]
        wait(begun, timeout=None if patient else 0)
        while any(map(came, self._sampling.calls)):
            self._take_samples(self._sampling.collect())
        self._sampling.close()
        self._take_scores(list(filter(came, self._scoring)))
        for search, asked in list(self._asked.items()):
            if patient and not asked.num_open:
                self._take(search)
            else:
                search.take_part(asked.requests, asked.steps, asked.samples())
        self._asked, self._owners = {}, {}


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(map(int, known))  # type: ignore[arg-type]


def _since(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else now - before


def _gaps(n: int, known: Container[int]) -> Iterator[tuple[int, int]]:
    """The places below `n` that are not known, as runs: the first place and the number of each."""
    for is_known, run in groupby(range(n), lambda place: place in known):
        if not is_known:
            places = list(run)
            yield places[0], len(places)
