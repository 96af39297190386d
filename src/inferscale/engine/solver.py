"""The one driver of every search: it merges what the searches of all problems ask for into shared calls."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import wraps
from itertools import islice, takewhile
from numbers import Integral
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, get_args

from inferscale._compat import suggests_options
from inferscale.aggregators import MajorityVote
from inferscale.answers import Reader, chosen_reader
from inferscale.base import (
    Aggregator,
    Generator,
    Planned,
    ProcessRewardModel,
    RewardModel,
    SearchStrategy,
    check_judge,
    check_scores,
)
from inferscale.cost import Budget, Meter
from inferscale.functional import Reduction
from inferscale.identity import compare, identity_of
from inferscale.strategies.pooling import AdaptiveVote, Allocation
from inferscale.thinking import NO_THINKING, Thinking
from inferscale.tree import Node, Problem, root_key

from .journal import Journal
from .pool import Pool, pooled_strategy
from .progress import ProgressBar
from .result import Answers, SearchResult, trajectory, voted
from .scheduling import Scheduler
from .search import Grant, Search, SearchUpdate
from .several import GeneratorGroup

P = ParamSpec("P")
R = TypeVar("R")

OnStep: TypeAlias = Callable[[SearchUpdate], object]
"""Called in the driver's thread with every answer that a search gets."""

STREAM_SIZE = 64
"""Problems searched at the same time where their number is not known and none is given."""


@dataclass(frozen=True)
class Solver:
    """Everything about a search but the problem, checked once; `solve`, `solve_batch` and `stream` build one each.

    A result does not depend on which other problems are solved beside it, unless they share a pool (`solve_batch`):
    random streams derive from ``f"{seed}/{problem.stream}"``, for a plain prompt ``f"{seed}/{prompt}"`` (and from the
    occurrence number where a problem is given more than once).

    An exception that comes once searches have begun, an interrupt too, has an attribute ``partial``: a list of the
    best so far of the searches under way, and in `solve` and `solve_batch` of the results that were finished.
    Use `dataclasses.replace` for a solver with another option.

    Attributes:
        strategy: Decides what is sampled next; a plan is replaced by what it chooses for the budget.
        generator: Samples the steps. A dictionary gives several by name, for strategies that name one in a request;
            the first is asked where no name is given, and ``cost.shares`` tells their costs apart.
        reward_model: Scores nodes; leaves that the strategy left unscored are scored too.
        aggregator: Picks the trajectory to report; `MajorityVote` by default.
        read_answer: Reads the answer out of the final part of a completion (``None`` abstains), for the result and for
            strategies that look at answers; by default the reader of the problem's kind, and without one
            `inferscale.answers.read_answer`.
        thinking: The markers that the model writes around its thoughts, such as ``Thinking("<think>", "</think>")``:
            readers, reward models and strategies take them from here. ``None`` asks the generator, and where it cannot
            tell, a text shows its own; ``False`` says that there are no thoughts.
        budget: The most that each problem may cost.
        seed: Any integer; the same seed gives the same trees.
        batch_size: Problems searched at the same time; by default all of them, and 64 of a stream of unknown length.
        energy: Reads the energy that the models use, such as ``EnergyMeter("cuda")`` of `inferscale.flops`: costs then
            have joules, or ``None`` where it cannot be read (``energy.source`` says why).

    Raises:
        TypeError: If a part is not what it should be.
        ValueError: If scores are needed and there is no reward model, or the budget caps what cannot be measured.

    Example:
        >>> import inferscale as isc
        >>> from dataclasses import replace
        >>> solver = isc.Solver(isc.RepeatedSampling(8), isc.testing.ToyGenerator(), budget=isc.Budget(tokens=200))
        >>> solver.solve("How many?").answer
        '1'
        >>> replace(solver, seed=1).solve("How many?").answer
        '3'
    """

    strategy: SearchStrategy
    generator: Generator
    reward_model: RewardModel | None = None
    aggregator: Aggregator | None = None
    _: KW_ONLY
    read_answer: Reader | None = None
    thinking: Thinking | Literal[False] | None = None
    budget: Budget | None = None
    seed: int = 0
    batch_size: int | None = None
    energy: Meter | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse parts that are not what they should be, or do not fit each other; a plan becomes what it chooses."""
        object.__setattr__(self, "generator", _one(self.generator))
        if isinstance(self.strategy, Planned):
            if self.aggregator is not None:
                raise ValueError(f"a plan chooses the vote: leave out aggregator={self.aggregator!r}")
            names, parts = ("strategy", "generator", "reward_model", "aggregator"), self.strategy.parts_for
            chosen = dict(zip(names, parts(self.generator, self.reward_model, self.budget), strict=True))
            for name, part in {**chosen, "budget": None}.items():
                object.__setattr__(self, name, part)
        hints: dict[str, tuple[type, str]] = {
            "strategy": (SearchStrategy, "give an instance such as REBASE(width=16)"),
            "generator": (Generator, "wrap a model: HFGenerator(model, tokenizer)"),
            "reward_model": (RewardModel, "wrap a function: RewardFunction(f)"),
            "aggregator": (Aggregator, "give an instance such as MajorityVote()"),
            "budget": (Budget, "give Budget(tokens=..., flops=..., seconds=..., calls=...) or another cap"),
        }
        for name, (kind, hint) in hints.items():
            part = getattr(self, name)
            if isinstance(part, kind) or (part is None and name not in ("strategy", "generator")):
                continue
            given = f"the class {part.__name__}" if isinstance(part, type) else f"{type(part).__name__} {part!r:.80}"
            article = "an" if kind is Aggregator else "a"
            raise TypeError(f"{name} must be {article} {kind.__name__}, not {given}: {hint}")
        if self.read_answer is not None and not callable(self.read_answer):
            raise TypeError(f"read_answer must be a function of the completion, not {self.read_answer!r}")
        if self.thinking is not None and self.thinking is not False and not isinstance(self.thinking, Thinking):
            raise TypeError(f'thinking={self.thinking!r:.80}: give Thinking("<think>", "</think>"), False or None')
        seed: object = self.seed
        if not isinstance(seed, Integral):
            raise TypeError(f"seed must be an integer, not {seed!r}")
        object.__setattr__(self, "seed", int(seed))  # NumPy's are written differently
        size: object = self.batch_size
        if size is not None:
            if not isinstance(size, Integral) or int(size) < 1:
                raise ValueError(f"batch_size={size}: at least one problem must be searched at a time")
            object.__setattr__(self, "batch_size", int(size))
        check_scores(self.reward_model, self.strategy, self.vote)
        if self.energy is not None and not callable(getattr(self.energy, "read", None)):
            raise TypeError(f'energy must be a meter, not {self.energy!r:.80}: give EnergyMeter("cuda")')
        if self.energy is not None and any(part.concurrent for part in self._parts()):
            raise ValueError(
                "energy=... measures models in this process, and a model here is asked from threads, as a server is: "
                "leave it out"
            )
        self._check_measured(self.budget)
        judge = self.reward_model
        if judge is not None:
            check_judge(judge.judge)
        if isinstance(judge, ProcessRewardModel) and judge.reduction not in get_args(Reduction):
            choices = ", ".join(map(repr, get_args(Reduction)))
            raise ValueError(f"{type(judge).__name__} has reduction={judge.reduction!r}: choose one of {choices}")

    def _parts(self) -> list[Generator | RewardModel]:
        """The models, several generators one by one."""
        several = self.generator.generators if isinstance(self.generator, GeneratorGroup) else {"": self.generator}
        return [*several.values(), *([] if self.reward_model is None else [self.reward_model])]

    def _check_measured(self, budget: Budget | None) -> None:
        """Refuse a budget that caps what nobody measures."""
        if budget is None:
            return
        if budget.joules is not None and (self.energy is None or self.energy.read() is None):
            why = 'pass energy=EnergyMeter("cuda")' if self.energy is None else self.energy.source
            raise ValueError(f"Budget(joules={budget.joules:g}) needs a meter that can be read: {why}")
        if budget.bytes is not None and self.generator.traffic((), ()) is None:
            name = type(self.generator).__name__
            raise ValueError(f"Budget(bytes={budget.bytes:g}): {name} cannot tell its bytes: cap another cost")

    @property
    def markers(self) -> Thinking | None:
        """The markers of thoughts: those given, else the generator's; ``None`` if neither tells."""
        given, own = self.thinking, self.generator.thinking
        if not given:
            return own if given is None else NO_THINKING
        # The generator alone knows that its template opens thoughts.
        return own if own == replace(given, prefilled=True) else given

    @property
    def vote(self) -> Aggregator:
        """The aggregator that picks the trajectory to report."""
        return self.aggregator or MajorityVote()

    def solve(
        self,
        problem: Problem | str,
        *,
        journal: str | os.PathLike[str] | None = None,
        progress: bool = False,
        cancel: threading.Event | None = None,
        on_step: OnStep | None = None,
    ) -> SearchResult:
        """Return the result of one search; see `solve_batch`."""
        return self.solve_batch([problem], journal=journal, progress=progress, cancel=cancel, on_step=on_step)[0]

    def solve_batch(
        self,
        problems: Sequence[Problem | str],
        *,
        journal: str | os.PathLike[str] | None = None,
        progress: bool = False,
        cancel: threading.Event | None = None,
        on_step: OnStep | None = None,
        pool: Budget | None = None,
        allocation: Allocation | None = None,
    ) -> list[SearchResult]:
        """Return one `SearchResult` for each problem, in order; all searches share their generate and score calls.

        Args:
            problems: Problems, or prompts.
            pool: The most that all problems together may cost. It goes where `allocation` says, so that here, and
                nowhere else, a result depends on the problems beside it: ``stopped_by="pool"`` says where it does. The
                same problems, seed and pool give the same results.
            allocation: Who gets the next sample of the pool, see `inferscale.strategies.pooling`; by default
                `AdaptiveVote`.
            journal: A file that records every answer of the models, so that a search that was killed or cancelled goes
                on where it was when the same call is made again. Strategy, models, thinking, budget and seed must have
                the `identity` that they had; answers may be read and voted on in another way. With a pool, this, the
                allocation, and the problems must be the same too.
            progress: Show a progress bar.
            cancel: When it is set, from any thread, every search ends with the best so far
                (``stopped_by="cancel"``): samples that are being drawn end at the next token, leaves are scored, and
                problems whose search has not begun get a result without samples.
            on_step: Called with a `SearchUpdate` after every answer that a search gets from a model. An exception out
                of it ends the call as any other does.

        Raises:
            TypeError: If the strategy yields something that is not a request, or a model answers in another form.
            ValueError: If the input is bad, the generator returns too few steps, a reward is not a finite number, or
                the journal is damaged or belongs to another call.
        """
        given = as_problems(problems, "solve_batch")
        solver, shared = self._sharing(pool, allocation)
        return solver._solved(given, journal, progress, cancel, on_step, pool=shared)

    def _sharing(self, budget: Budget | None, allocation: Allocation | None) -> tuple[Solver, Pool | None]:
        """The solver whose searches share a pool, and that pool; this one and ``None`` if there is no budget for it."""
        if budget is None:
            if allocation is not None:
                raise ValueError(f"allocation={allocation!r} shares out a pool: give pool=Budget(tokens=...) too")
            return self, None
        allocation = allocation or AdaptiveVote()
        if not isinstance(budget, Budget) or not isinstance(allocation, Allocation):
            raise TypeError(
                f"pool={budget!r:.80}, allocation={allocation!r:.80}: give Budget(tokens=...), and an Allocation such "
                "as AdaptiveVote()"
            )
        if self.batch_size is not None:
            raise ValueError("a pool has all searches run side by side: leave out batch_size=...")
        self._check_measured(budget)
        if allocation.needs_scores and self.reward_model is None:
            raise ValueError(f"{allocation!r} reads scores: pass reward_model=...")
        return replace(self, strategy=pooled_strategy(self.strategy, allocation)), Pool(budget, allocation)

    async def asolve(
        self,
        problem: Problem | str,
        *,
        journal: str | os.PathLike[str] | None = None,
        progress: bool = False,
        cancel: threading.Event | None = None,
        on_step: OnStep | None = None,
    ) -> SearchResult:
        """Return the result of one search, which runs in a thread of its own; see `asolve_batch`."""
        (result,) = await self.asolve_batch(
            [problem], journal=journal, progress=progress, cancel=cancel, on_step=on_step
        )
        return result

    async def asolve_batch(
        self,
        problems: Sequence[Problem | str],
        *,
        journal: str | os.PathLike[str] | None = None,
        progress: bool = False,
        cancel: threading.Event | None = None,
        on_step: OnStep | None = None,
        pool: Budget | None = None,
        allocation: Allocation | None = None,
    ) -> list[SearchResult]:
        """Return what `solve_batch` does, and let the event loop go on meanwhile: the driver has a thread of its own.

        Context variables, and so open FLOP counters, are those of the caller. `on_step` is called in that thread. When
        the task that awaits this is cancelled, the searches end at the next token, and nobody waits for that.
        """
        given = as_problems(problems, "asolve_batch")
        solver, shared = self._sharing(pool, allocation)
        abandoned = threading.Event()
        driver = ThreadPoolExecutor(1, thread_name_prefix="inferscale-driver")
        work = driver.submit(
            copy_context().run, solver._solved, given, journal, progress, cancel, on_step, abandoned, shared
        )
        driver.shutdown(wait=False)  # after its work
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            abandoned.set()
            raise

    def _solved(
        self,
        problems: Sequence[Problem],
        journal: str | os.PathLike[str] | None,
        progress: bool,
        cancel: threading.Event | None,
        on_step: OnStep | None,
        abandoned: threading.Event | None = None,
        pool: Pool | None = None,
    ) -> list[SearchResult]:
        if not problems:
            raise ValueError("solve_batch() was given no problems: pass at least one")
        if self.reward_model is not None:
            for problem in problems:  # each again when it starts: here so that the last is refused before the first
                self.reward_model.check_prompt(Node(problem))
        results: dict[int, SearchResult] = {}
        try:
            for index, result in self._results(
                iter(problems), len(problems), self.batch_size, journal, progress, cancel, on_step, abandoned, pool
            ):
                results[index] = result  # noqa: PERF403 (what came before an error is kept)
        except BaseException as error:
            error.__dict__["partial"] = [*results.values(), *error.__dict__.get("partial", ())]
            raise
        return [results[index] for index in range(len(problems))]

    def stream(
        self,
        problems: Iterable[Problem | str],
        *,
        journal: str | os.PathLike[str] | None = None,
        progress: bool | ProgressBar = False,
        cancel: threading.Event | None = None,
        on_step: OnStep | None = None,
    ) -> Iterator[SearchResult]:
        """Yield results as they finish; see `solve_batch` for the arguments.

        `problems` may be endless: a problem is taken when there is room for it, and none any more after `cancel`; a
        result that was handed out is not kept. So an exception's ``partial`` holds the best so far of the searches that
        were under way, and no others. A `ProgressBar` given as `progress` is told of tokens, and not of results.
        """
        _refuse_no_list(problems, "stream")
        total = len(problems) if isinstance(problems, Sequence) else None
        size = STREAM_SIZE if self.batch_size is None and total is None else self.batch_size
        given: Iterator[Problem] = map(as_problem, problems)
        if cancel is not None:
            given = takewhile(lambda problem: not cancel.is_set(), given)
        return (result for _, result in self._results(given, total, size, journal, progress, cancel, on_step))

    def _results(
        self,
        problems: Iterator[Problem],
        total: int | None,
        batch_size: int | None,
        journal: str | os.PathLike[str] | None,
        progress: bool | ProgressBar,
        cancel: threading.Event | None,
        on_step: OnStep | None,
        abandoned: threading.Event | None = None,
        pool: Pool | None = None,
    ) -> Iterator[tuple[int, SearchResult]]:
        """Yield results with the places of their problems; none is kept, for there may be no end of them."""
        rounds = 0
        own = None if isinstance(progress, ProgressBar) or not progress else ProgressBar(total)
        bar = progress if isinstance(progress, ProgressBar) else own
        with own or nullcontext(), self._session(journal, pool) as session:

            def show() -> None:
                if bar is not None:
                    open_tokens = sum(search.cost.tokens for search in session.active)
                    bar.show(open_tokens, session.most_tokens(), rounds=rounds)

            def look(tokens: int) -> None:
                if bar is not None and bar.drew(tokens):
                    show()

            if bar is not None:
                session.watch(look)
            while True:
                room = None if batch_size is None else batch_size - len(session.active)
                for problem in islice(problems, room):
                    session.start(problem, cancel=cancel, abandoned=abandoned, on_step=on_step)
                if not session.active:
                    return
                for search in session.advance():
                    result = session.finish(search)
                    if own is not None:
                        own.finished(result)
                    yield search.index, result
                rounds += 1
                show()

    def session(self, journal: str | os.PathLike[str] | None = None) -> AbstractContextManager[Session]:
        """Open a `Session`, for servers and loops that start and end searches one by one.

        When it closes, the models forget the searches that are still under way; an exception out of it takes the best
        so far of each of them along, as ``partial``.

        Args:
            journal: As in `solve_batch`.
        """
        return self._session(journal, None)

    @contextmanager
    def _session(self, journal: str | os.PathLike[str] | None, pool: Pool | None) -> Iterator[Session]:
        scheduler = Scheduler(self.generator, self.reward_model, self.energy)
        # How answers are read is no part of it: the models' answers may be read and voted on in another way, unless an
        # allocation looks at them.
        identity = {**self._course(), **self._models()}
        if pool is not None:
            identity |= {"pool": identity_of(pool.budget), "allocation": identity_of(pool.allocation), **self._votes()}
        record = None if journal is None else Journal.open(journal, identity)
        session = Session(self, scheduler, record, pool)
        failed = False
        try:
            try:
                yield session
            except Exception:
                failed = True
                raise
            finally:
                scheduler.close(patient=failed)  # what is under way is paid for: `partial` and the journal get it
        except BaseException as error:
            error.__dict__["partial"] = [solver.best_so_far(search) for search, solver in session.active.items()]
            raise
        finally:
            try:
                for search in session.active:
                    self.release(search.root)
            finally:
                if record is not None:
                    record.close()

    def identity(self) -> dict[str, Any]:
        """Return what results depend on: every part's `identity`, the budget and the seed."""
        return {**self._course(), **self._models(), **self._votes()}

    def _course(self) -> dict[str, Any]:
        """Return the identity of what leads a search, whatever the models are."""
        options = {"strategy": self.strategy, "thinking": self.markers, "budget": self.budget, "seed": self.seed}
        return {name: identity_of(option) for name, option in options.items()}

    def _models(self) -> dict[str, Any]:
        return {"generator": identity_of(self.generator), "reward_model": identity_of(self.reward_model)}

    def _votes(self) -> dict[str, Any]:
        return {"aggregator": identity_of(self.vote), "read_answer": identity_of(self.read_answer)}

    def result(self, search: Search) -> SearchResult:
        """Return what `search` has found until now."""
        stopped_by = "error" if search.leaves is None else search.stopped_by
        leaves = search.root.leaves() if search.leaves is None else search.leaves
        reader = chosen_reader(self.read_answer, search.root.problem.kind)
        trajectories = tuple(trajectory(leaf, reader) for leaf in leaves)
        unscored = self.vote.needs_scores and all(t.score is None for t in trajectories)  # all samples failed
        selected = trajectories[0] if unscored else voted(self.vote, trajectories)
        return SearchResult(
            search.root.problem, selected, trajectories, tuple(leaves), search.root, search.cost, stopped_by
        )

    def best_so_far(self, search: Search) -> SearchResult:
        """`result` after an error, which may have come from reading answers or voting: then the tree without them."""
        try:
            return self.result(search)
        except Exception:
            return replace(self, read_answer=lambda text: None, aggregator=None).result(search)

    def release(self, root: Node) -> None:
        """Tell the models that the search of `root` has ended."""
        for asked in (root, *root.side_notes):
            self.generator.release(asked)
        if self.reward_model is not None:
            self.reward_model.release(root)


def _passes_on(method: Callable[P, R]) -> Callable[P, R]:
    """`method` of a session, out of which no StopIteration comes: it would end the caller's results without a word."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError(f"a model, a reader, a vote or a callback raised {error!r}") from error

    return call


class Session:
    """Searches under way that share the calls of their models; `Solver.session` opens one.

    Attributes:
        solver: The models that are called, and the options of searches that are started without others.
        active: The searches under way, each with the solver that it was started with, in the order of their start.

    Example:
        >>> import inferscale as isc
        >>> solver = isc.Solver(isc.RepeatedSampling(4), isc.testing.ToyGenerator())
        >>> with solver.session() as session:
        ...     first, second = session.start("How many?"), session.start("How many more?")
        ...     while session.active:
        ...         for search in session.advance():
        ...             print(search.root.problem.prompt, session.finish(search).answer)
        How many? 0
        How many more? 2
    """

    def __init__(self, solver: Solver, scheduler: Scheduler, journal: Journal | None, pool: Pool | None = None) -> None:
        self.solver = solver
        self.active: dict[Search, Solver] = {}
        self._scheduler = scheduler
        self._journal = journal
        self._pool = pool
        self._num_started = 0
        self._occurrences: Counter[int] = Counter()  # by a hash: prompts may be long, and a session may see many

    @_passes_on
    def start(
        self,
        problem: Problem | str,
        solver: Solver | None = None,
        *,
        occurrence: int | None = None,
        cancel: threading.Event | None = None,
        abandoned: threading.Event | None = None,
        on_step: OnStep | None = None,
    ) -> Search:
        """Begin the search of `problem`; where a journal holds answers to it, they are given at once.

        Args:
            problem: The problem, or its prompt.
            solver: Another strategy, aggregator, budget, seed or way to read answers for this search. The session's
                models are called; leaves are scored if this solver has a reward model.
            occurrence: Number of equal prompts before this one, which are different problems with random streams of
                their own; counted by the session by default.
            cancel: Ends the search with the best so far, see `Solver.solve_batch`.
            abandoned: Ends it when nobody waits for its result any more: the same, and nothing is scored.
            on_step: See `Solver.solve_batch`.

        Raises:
            ValueError: If the session has a journal, which knows one strategy, budget and seed, and `solver` another,
                what the journal holds does not fit the search, or the reward model cannot read the prompt.
        """
        given, chosen = as_problem(problem), solver or self.solver
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):  # multiprocessing's are events too
            raise TypeError(f"cancel must be a threading.Event, not {cancel!r:.80}")
        if on_step is not None and not callable(on_step):
            raise TypeError(f"on_step must be a function of a SearchUpdate, not {on_step!r:.80}")
        foreign = chosen is not self.solver and self._journal is not None
        if foreign and (apart := compare(self.solver._course(), chosen._course())).changed:
            raise ValueError(
                f"a journal holds the searches of one strategy, budget and seed: open another session ({apart})"
            )
        if self.solver.reward_model is not None and chosen.reward_model is not None:
            self.solver.reward_model.check_prompt(Node(given))
        if occurrence is None:
            key = root_key(given.stream)
            occurrence = self._occurrences[key]
            self._occurrences[key] += 1
        again = f"#{occurrence}" if occurrence else ""  # before the prompt, which may hold anything
        search = Search(
            self._num_started, given, f"{chosen.seed}{again}/{given.stream}", chosen.strategy, chosen.budget,
            chosen.reward_model is not None, Answers(chosen.read_answer, given.kind, chosen.vote),
            self._journal, thinking=chosen.markers, cancel=cancel, abandoned=abandoned, on_step=on_step,
            generator=self.solver.generator, grant=None if self._pool is None else Grant(),
        )  # fmt: skip
        self._num_started += 1
        self.active[search] = chosen
        search.replay(self.solver.generator, self.solver.reward_model)
        return search

    @_passes_on
    def advance(self) -> list[Search]:
        """Answer what the active searches wait for, one round of it; return those that have ended."""
        if self._pool is not None:
            self._pool.grant(list(self.active), self.solver.generator)
            for search in self.active:
                search.replay(self.solver.generator, self.solver.reward_model)
        self._scheduler.advance(self.active.keys())
        return [search for search in self.active if search.leaves is not None]

    def watch(self, on_tokens: Callable[[int], object]) -> None:
        """Have `on_tokens` called with the number of tokens just drawn, if the generator's session tells it."""
        self._scheduler.watch(on_tokens)

    def most_tokens(self) -> float | None:
        """Return the most tokens that a search has with what it waits for, on average; ``None`` if nobody knows."""
        return self._scheduler.most_tokens()

    @_passes_on
    def finish(self, search: Search) -> SearchResult:
        """Return the result of a search that has ended, which the models may forget then."""
        result = self.active[search].result(search)
        if self._pool is not None:
            self._pool.finished(search)
        self.solver.release(search.root)
        del self.active[search]
        return result

    def cancel(self, search: Search) -> None:
        """End a search without a result; its call that is under way, if any, ends at the next token, unwaited for."""
        if self.active.pop(search, None) is not None:
            search.abandoned.set()
            self._scheduler.cancel(search)
            self.solver.release(search.root)


def _one(generator: Generator | Mapping[str, Generator]) -> Generator:
    """The generator, or the group of several."""
    return GeneratorGroup(generator) if isinstance(generator, Mapping) else generator


def as_problem(problem: Problem | str) -> Problem:
    """Return the problem, of which a prompt may stand alone.

    Raises:
        TypeError: If it is neither.
        ValueError: If the prompt is empty or holds half a character.
    """
    given = Problem(problem) if isinstance(problem, str) else problem
    if not isinstance(given, Problem):
        raise TypeError(
            f"a problem is a Problem or a prompt, not {type(given).__name__} {given!r:.80}: "
            "write Problem(prompt, answer=...), or Problem(messages=[...])"
        )
    try:
        given.stream.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the prompt {given.prompt!r:.80} holds half a character (a lone surrogate)") from None
    return given


def as_problems(problems: Sequence[Problem | str], caller: str) -> list[Problem]:
    """Return the problems that were given to the function `caller`; see `as_problem`."""
    _refuse_no_list(problems, caller)
    return [as_problem(problem) for problem in problems]


def _refuse_no_list(problems: Iterable[Problem | str], caller: str) -> None:
    """Raise a ``TypeError`` for what is iterated over by its characters, or by the names of its columns."""
    takes = f"{caller}() takes {'an iterable' if caller == 'stream' else 'a list'} of problems"
    if isinstance(problems, str):
        raise TypeError(f"{takes}; for one prompt call solve()")
    if isinstance(problems, Mapping) or hasattr(problems, "columns"):
        raise TypeError(
            f"{takes}, not {type(problems).__name__}: inferscale.evaluate.load_problems "
            'makes problems of a table, and a column of prompts is taken as it is (frame["question"])'
        )


@suggests_options
def solve(
    problem: Problem | str,
    strategy: SearchStrategy | Planned,
    generator: Generator | Mapping[str, Generator],
    *,
    reward_model: RewardModel | None = None,
    aggregator: Aggregator | None = None,
    read_answer: Reader | None = None,
    thinking: Thinking | Literal[False] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    journal: str | os.PathLike[str] | None = None,
    progress: bool = False,
    cancel: threading.Event | None = None,
    on_step: OnStep | None = None,
    energy: Meter | None = None,
) -> SearchResult:
    """Return the result of one search.

    Args:
        problem: The problem, or its prompt.
        strategy: Decides what is sampled next, such as ``REBASE(width=16)``; or a `Plan`, which chooses one.
        generator: Samples the steps, such as an `HFGenerator`; or several by name, in a dictionary.
        reward_model: Scores nodes; needed by strategies and votes that read scores.
        aggregator: Picks the trajectory to report; `MajorityVote` by default.
        read_answer: Reads the answer out of a completion; by default that of the problem's kind, or `read_answer`.
        thinking: The markers of thoughts; ``None`` asks the generator, ``False`` says that there are none.
        budget: The most that the search may cost.
        seed: Any integer; the same seed gives the same trees.
        journal: A file that records the models' answers: after a kill the same call goes on where it was.
        progress: Show a progress bar.
        cancel: When it is set, from any thread, the search ends with the best so far.
        on_step: Called with a `SearchUpdate` after every answer that a search gets from a model.
        energy: Reads the energy that the models use, such as ``EnergyMeter("cuda")`` of `inferscale.flops`.

    Raises:
        TypeError: If a part is not what it should be, or the strategy yields something that is not a request.
        ValueError: If the input is bad, parts do not fit each other (scores are needed and there is no reward model),
            a model answers in a wrong form, or the journal belongs to another call.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> result = isc.solve("How many?", isc.REBASE(8), ToyGenerator(), reward_model=ToyProcessReward())
        >>> result.answer, len(result.trajectories), result.cost.tokens
        ('3', 8, 121)
    """
    solver = Solver(strategy, _one(generator), reward_model, aggregator, read_answer=read_answer, thinking=thinking,  # type: ignore[arg-type]
                    budget=budget, seed=seed, energy=energy)  # fmt: skip
    return solver.solve(problem, journal=journal, progress=progress, cancel=cancel, on_step=on_step)


@suggests_options
async def asolve(
    problem: Problem | str,
    strategy: SearchStrategy | Planned,
    generator: Generator | Mapping[str, Generator],
    *,
    reward_model: RewardModel | None = None,
    aggregator: Aggregator | None = None,
    read_answer: Reader | None = None,
    thinking: Thinking | Literal[False] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    journal: str | os.PathLike[str] | None = None,
    progress: bool = False,
    cancel: threading.Event | None = None,
    on_step: OnStep | None = None,
    energy: Meter | None = None,
) -> SearchResult:
    """Return the result of one search and let the event loop go on meanwhile.

    The options are those of `solve`. The search runs in a thread of its own, see `Solver.asolve_batch`.

    Example:
        >>> import asyncio
        >>> import inferscale as isc
        >>> async def main():
        ...     generator, prompts = isc.testing.ToyGenerator(), ("How many?", "How many more?")
        ...     searches = [isc.asolve(prompt, isc.RepeatedSampling(4), generator) for prompt in prompts]
        ...     return [result.answer for result in await asyncio.gather(*searches)]
        >>> asyncio.run(main())  # in a notebook: await main()
        ['0', '2']
    """
    solver = Solver(strategy, _one(generator), reward_model, aggregator, read_answer=read_answer, thinking=thinking,  # type: ignore[arg-type]
                    budget=budget, seed=seed, energy=energy)  # fmt: skip
    return await solver.asolve(problem, journal=journal, progress=progress, cancel=cancel, on_step=on_step)


@suggests_options
def solve_batch(
    problems: Sequence[Problem | str],
    strategy: SearchStrategy | Planned,
    generator: Generator | Mapping[str, Generator],
    *,
    reward_model: RewardModel | None = None,
    aggregator: Aggregator | None = None,
    read_answer: Reader | None = None,
    thinking: Thinking | Literal[False] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    journal: str | os.PathLike[str] | None = None,
    progress: bool = False,
    cancel: threading.Event | None = None,
    on_step: OnStep | None = None,
    pool: Budget | None = None,
    allocation: Allocation | None = None,
    energy: Meter | None = None,
) -> list[SearchResult]:
    """Return one `SearchResult` for each problem, in order; all searches share their generate and score calls.

    Args:
        problems: Problems, or prompts.
        strategy: Decides what is sampled next, such as ``REBASE(width=16)``; or a `Plan`, which chooses one.
        generator: Samples the steps, such as an `HFGenerator`; or several by name, in a dictionary.
        reward_model: Scores nodes; needed by strategies and votes that read scores.
        aggregator: Picks the trajectory to report; `MajorityVote` by default.
        read_answer: Reads the answer out of a completion; by default that of the problem's kind, or `read_answer`.
        thinking: The markers of thoughts; ``None`` asks the generator, ``False`` says that there are none.
        budget: The most that each problem may cost.
        seed: Any integer; the same seed gives the same trees.
        batch_size: Problems searched at the same time; by default all of them.
        journal: A file that records the models' answers: after a kill the same call goes on where it was.
        progress: Show a progress bar.
        cancel: When it is set, from any thread, every search ends with the best so far.
        on_step: Called with a `SearchUpdate` after every answer that a search gets from a model.
        pool: The most that all problems together may cost; see `Solver.solve_batch`.
        allocation: Who gets the next sample of the pool; by default `AdaptiveVote`.
        energy: Reads the energy that the models use, such as ``EnergyMeter("cuda")`` of `inferscale.flops`.

    Raises:
        TypeError: If a part is not what it should be, or the strategy yields something that is not a request.
        ValueError: If the input is bad, parts do not fit each other (scores are needed and there is no reward model),
            a model answers in a wrong form, or the journal belongs to another call.

    Example:
        >>> import inferscale as isc
        >>> generator = isc.testing.ToyGenerator()
        >>> results = isc.solve_batch(["How many?", "How many more?"], isc.RepeatedSampling(8), generator)
        >>> [result.answer for result in results], generator.calls
        (['1', '2'], 1)
    """
    solver = Solver(strategy, _one(generator), reward_model, aggregator, read_answer=read_answer, thinking=thinking,  # type: ignore[arg-type]
                    budget=budget, seed=seed, batch_size=batch_size, energy=energy)  # fmt: skip
    return solver.solve_batch(
        problems, journal=journal, progress=progress, cancel=cancel, on_step=on_step, pool=pool, allocation=allocation
    )


@suggests_options
def stream(
    problems: Iterable[Problem | str],
    strategy: SearchStrategy | Planned,
    generator: Generator | Mapping[str, Generator],
    *,
    reward_model: RewardModel | None = None,
    aggregator: Aggregator | None = None,
    read_answer: Reader | None = None,
    thinking: Thinking | Literal[False] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    batch_size: int | None = STREAM_SIZE,
    journal: str | os.PathLike[str] | None = None,
    progress: bool = False,
    cancel: threading.Event | None = None,
    on_step: OnStep | None = None,
    energy: Meter | None = None,
) -> Iterator[SearchResult]:
    """Yield results as they finish, at most `batch_size` problems at a time.

    The options are those of `solve_batch`. `problems` may be endless; a problem is taken when there is room for it.

    Example:
        >>> import inferscale as isc
        >>> prompts = (f"How many in box {number}?" for number in range(1_000_000))  # taken as there is room
        >>> for result in isc.stream(prompts, isc.RepeatedSampling(4), isc.testing.ToyGenerator(), batch_size=2):
        ...     print(result.problem.prompt, result.answer)
        ...     break
        How many in box 0? 2
    """
    solver = Solver(strategy, _one(generator), reward_model, aggregator, read_answer=read_answer, thinking=thinking,  # type: ignore[arg-type]
                    budget=budget, seed=seed, batch_size=batch_size, energy=energy)  # fmt: skip
    return solver.stream(problems, journal=journal, progress=progress, cancel=cancel, on_step=on_step)
