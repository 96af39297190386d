"""One thread that drives all searches: those of all requests share the model's batches."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from inferscale.cost import Cost
from inferscale.engine import Search, SearchResult, SearchUpdate, Session, Solver
from inferscale.flow import GenerateRequest
from inferscale.tree import Node, Problem
from inferscale.viz import growing

_PICTURE_SECONDS = 0.3
"""Least seconds between two pictures of a tree."""


class BusyError(Exception):
    """There is no room for another search.

    Attributes:
        retry_after: Seconds until there may be.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many searches are waiting")
        self.retry_after = retry_after


class ClosedError(Exception):
    """No more searches are begun, or this one was ended before its time."""


class UnreadablePromptError(ValueError):
    """The generator or the reward model cannot read the prompt."""


@dataclass(eq=False)
class Job:
    """A search for one prompt: cancelled by its future, which holds the result in the end.

    A search that is cancelled ends at the next token, also within a call that it shares with others.

    Attributes:
        problem: The problem.
        solver: Strategy, vote, budget and seed.
        occurrence: Number of equal prompts before it in the same request.
        future: The result.
        draws: True if the tree is drawn while it grows.
        search: The search, once it has begun.
        is_suspect: True if it was among searches of which one made a model fail; it then runs alone.
        created: When it was made, on the clock of `time.perf_counter`.
    """

    problem: Problem
    solver: Solver
    occurrence: int = 0
    future: Future[SearchResult] = field(default_factory=Future)
    draws: bool = False
    search: Search | None = field(default=None, init=False)
    is_suspect: bool = field(default=False, init=False)
    created: float = field(default_factory=time.perf_counter, init=False)
    _picture: str = field(default="", init=False, repr=False)
    _drawn: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        """Has its search abandoned as soon as the future is cancelled, in whatever thread that is."""
        self.future.add_done_callback(lambda future: self.begin(self.search))

    def begin(self, search: Search | None) -> None:
        """Take the search, which may be cancelled already."""
        self.search = search
        if search is not None and self.future.cancelled():
            search.abandoned.set()

    def draw(self, update: SearchUpdate) -> None:
        """Draw the tree, in the thread that grows it, if the last picture is some time ago."""
        nodes = update.sampled or update.scored
        if nodes and time.perf_counter() - self._drawn >= _PICTURE_SECONDS:
            self._picture, self._drawn = growing(nodes[0].root), time.perf_counter()

    @property
    def cost(self) -> Cost:
        """The cost until now."""
        return Cost() if self.search is None else self.search.cost

    def progress(self) -> dict[str, Any]:
        """Numbers for the client."""
        cost, state = self.cost, "waiting" if self.search is None else "searching"
        told = {"state": state, "tokens": cost.tokens, "samples": cost.num_generated, "scored": cost.num_scored}
        picture, self._picture = self._picture, ""  # each is sent once
        return {**told, "tree": picture} if picture else told


class Dispatcher:
    """Takes searches, gives each its turn, and hands the results over.

    Searches of any strategy, budget and seed share one session of the generator, and are scored together; in float32 a
    result does not depend on what is searched beside it. Searches begin in the order in which they came.

    Whatever a model, a strategy or a vote raises fails the search that is to blame, and no other. An error out of a
    shared call does not say which one that is: then all of them become suspects, which begin again, one at a time and
    before anything else; the one to blame fails when it is alone.

    Attributes:
        accepting: True while new searches are taken.
    """

    def __init__(
        self,
        solver: Solver,
        max_active: int,
        max_waiting: int,
        ended: Callable[[Job, str], None] = lambda job, outcome: None,
    ) -> None:
        """Makes the thread.

        Args:
            solver: The models that are called.
            max_active: Searches at a time.
            max_waiting: Searches that wait for a place.
            ended: Called with each search that has ended, and ``"finished"``, ``"failed"`` or ``"cancelled"``.
        """
        self.accepting = True
        self._solver = solver
        self._max_active, self._max_waiting, self._ended = max_active, max_waiting, ended
        # What is below is shared with the threads that submit: it changes under this lock alone.
        self._changed = threading.Condition()
        self._closing = False
        self._waiting: deque[Job] = deque()
        self._active: dict[Search, Job] = {}
        self._recent: deque[float] = deque([1.0], maxlen=32)  # seconds that searches took, waiting included
        self._thread = threading.Thread(target=self._run, name="inferscale-search", daemon=True)

    @property
    def num_active(self) -> int:
        """Searches that have begun."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Searches that wait for a place."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """True while the searching thread runs."""
        return self._thread.is_alive()

    @property
    def is_open(self) -> bool:
        """True while searches are taken: it was not told to end, and its thread has not died."""
        return self.accepting and (self._thread.ident is None or self.is_alive)

    def start(self) -> None:
        """Begin to work, unless it has; the first search begins it too, where nobody else did."""
        with self._changed:
            if self._thread.ident is None:
                self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all of the jobs, or none.

        Raises:
            BusyError: If there is no room for them.
            ClosedError: If no more are taken.
        """
        with self._changed:
            if not self.is_open:
                raise ClosedError("the server is shutting down")
            if len(jobs) > self._max_active + self._max_waiting - self.num_active - self.num_waiting:
                raise BusyError(min(60, math.ceil(fmean(self._recent))))
            self._waiting.extend(jobs)
            self.start()
            self._changed.notify()

    def drain(self) -> None:
        """Take no more searches; those that it has go on."""
        self.accepting = False

    def abandon(self) -> None:
        """Fail all searches at once, also those whose model's call does not end; who waits for them is told."""
        self.drain()
        with self._changed:
            self._closing = True
            jobs = [*self._active.values(), *self._waiting]
            for search in self._active:
                search.abandoned.set()
            for job in jobs:
                self._tell(job, "failed", error=ClosedError("the server ended before the search did"))
            self._changed.notify()

    def close(self) -> None:
        """End the thread; searches that have not ended fail, at the next token of the call that is under way."""
        self.drain()
        with self._changed:
            self._closing = True
            for search in self._active:
                search.abandoned.set()
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with self._solver.session() as session:
            try:
                while not self._closing:
                    with self._changed:
                        self._changed.wait_for(lambda: self._active or self._waiting or self._closing)
                        jobs = [*self._active.values(), *self._waiting]
                    for job in jobs:
                        if job.future.cancelled():
                            self._end(session, job, "cancelled")
                    self._begin_waiting(session)
                    if self._active and not self._closing:
                        self._wave(session)
            finally:
                with self._changed:
                    self.accepting = False
                    jobs = [*self._active.values(), *self._waiting]
                for job in jobs:
                    self._end(session, job, "failed", error=ClosedError("the server ended before the search did"))

    def _begin_waiting(self, session: Session) -> None:
        """Begin searches while there is room; a suspect has all of it."""
        while self._waiting and len(self._active) < self._max_active:
            job = self._waiting[0]
            if self._active and (job.is_suspect or any(other.is_suspect for other in self._active.values())):
                return
            try:
                try:
                    job.solver.generator.max_sample_tokens(GenerateRequest(Node(job.problem)))
                    if job.solver.reward_model is not None:
                        job.solver.reward_model.check_prompt(Node(job.problem))
                except ValueError as error:
                    raise UnreadablePromptError(str(error)) from None
                search = session.start(
                    job.problem, job.solver, occurrence=job.occurrence, on_step=job.draw if job.draws else None
                )
            except Exception as error:
                self._end(session, job, "failed", error=error)
                continue
            with self._changed:
                self._waiting.remove(job)
                self._active[search] = job
                job.begin(search)

    def _wave(self, session: Session) -> None:
        try:
            ended = session.advance()
        except Exception as error:
            begun = list(self._active.items())
            if len(begun) == 1:
                self._end(session, begun[0][1], "failed", error=error)
                return
            with self._changed:
                self._active.clear()
                self._waiting.extendleft(job for _, job in reversed(begun))
            for search, job in begun:
                job.is_suspect = True
                try:
                    session.cancel(search)
                except Exception as failure:
                    self._end(session, job, "failed", error=failure)
            return
        for search in ended:
            job = self._active[search]
            if search.abandoned.is_set():
                continue  # the end of it is told where all such ends are
            try:
                result = session.finish(search)
            except Exception as error:
                self._end(session, job, "failed", error=error)
            else:
                self._end(session, job, "finished", result)

    def _end(
        self, session: Session, job: Job, outcome: str, result: SearchResult | None = None,
        error: BaseException | None = None,
    ) -> None:  # fmt: skip
        """Take a job out, have the models forget its search, and tell who waits for it."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            elif job.search is not None:
                del self._active[job.search]
            self._recent.append(time.perf_counter() - job.created)
        try:
            if job.search is not None:
                session.cancel(job.search)
        except Exception as failure:
            outcome, error = "cancelled" if outcome == "cancelled" else "failed", error or failure
        with self._changed:
            self._tell(job, outcome, result, error)

    def _tell(
        self, job: Job, outcome: str, result: SearchResult | None = None, error: BaseException | None = None
    ) -> None:
        """Hand the outcome of a job over, unless that has been done; under the lock."""
        if job.future.done() and not job.future.cancelled():
            return
        if outcome != "cancelled" and not job.future.set_running_or_notify_cancel():
            outcome = "cancelled"
        self._ended(job, outcome)
        if outcome == "finished" and result is not None:
            job.future.set_result(result)
        elif outcome == "failed":
            job.future.set_exception(error)
