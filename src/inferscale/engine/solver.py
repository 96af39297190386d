"""The one driver of every search: it merges what the searches of all problems ask for into shared calls."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Integral
from typing import Literal, TypeAlias, get_args

from inferscale.aggregators import MajorityVote
from inferscale.answers import extract_answer as default_extract_answer
from inferscale.base import Aggregator, Generator, ProcessRewardModel, RewardModel, SearchStrategy
from inferscale.cost import Budget
from inferscale.functional import Reduction
from inferscale.tree import Node, Problem

from .journal import Journal
from .progress import Progress
from .result import SearchResult, voted
from .scheduling import Models, Streams, Waves
from .search import ExtractAnswer, Search, trajectory

Schedule: TypeAlias = Literal["wave", "stream"]
"""When searches are resumed: all together, or each when its own answers are there."""


@dataclass(frozen=True)
class Task:
    """The arguments of a call; see `inferscale.engine.solve_batch`."""

    strategy: SearchStrategy
    generator: Generator
    reward_model: RewardModel | None
    aggregator: Aggregator | None
    extract_answer: ExtractAnswer
    budget: Budget | None
    seed: int
    schedule: Schedule
    batch_size: int | None

    def __post_init__(self) -> None:
        """Refuses parts that are not what they should be, or do not fit each other."""
        _check_part("strategy", self.strategy, SearchStrategy, "give an instance such as REBASE(width=16)")
        _check_part("generator", self.generator, Generator, "wrap a model: HFGenerator(model, tokenizer)")
        if self.aggregator is not None:
            _check_part("aggregator", self.aggregator, Aggregator, "give an instance such as MajorityVote()")
        if self.reward_model is not None:
            _check_part("reward_model", self.reward_model, RewardModel, "wrap a function: RewardFunction(f)")
        if self.budget is not None:
            _check_part("budget", self.budget, Budget, "give Budget(tokens=..., flops=..., seconds=..., calls=...)")
        if not callable(self.extract_answer):
            raise TypeError(f"extract_answer must be a function of the completion, not {self.extract_answer!r}")
        self._check_integers()
        if self.reward_model is None and self.strategy.needs_scores:
            raise ValueError(f"{self.strategy!r} scores its nodes: pass reward_model=...")
        if self.reward_model is None and self.vote.needs_scores:
            raise ValueError(f"{self.vote!r} reads scores: pass reward_model=...")
        self._check_reduction()
        self._check_schedule()

    def _check_reduction(self) -> None:
        judge = self.reward_model
        if isinstance(judge, ProcessRewardModel) and judge.reduction not in get_args(Reduction):
            choices = ", ".join(map(repr, get_args(Reduction)))
            raise ValueError(f"{type(judge).__name__} has reduction={judge.reduction!r}: choose one of {choices}")

    def _check_integers(self) -> None:
        seed: object = self.seed
        if not isinstance(seed, Integral):
            raise TypeError(f"seed must be an integer, not {seed!r}")
        object.__setattr__(self, "seed", int(seed))  # NumPy's are written differently, in the fingerprint too
        size: object = self.batch_size
        if size is not None:
            if not isinstance(size, Integral) or int(size) < 1:
                raise ValueError(f"batch_size={size}: at least one problem must be searched at a time")
            object.__setattr__(self, "batch_size", int(size))

    def _check_schedule(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ValueError(f'schedule={self.schedule!r}: choose "wave" or "stream"')
        if self.schedule == "wave":
            return
        for part in (self.generator, self.reward_model):
            if part is not None and not part.concurrent:
                name = type(part).__name__
                raise ValueError(
                    f'schedule="stream" calls {name} from several threads at a time, and its `concurrent` is False: '
                    f'use schedule="wave", or set `concurrent = True` on a {name} that can be called so'
                )

    @property
    def vote(self) -> Aggregator:
        """What picks the trajectory to report."""
        return self.aggregator or MajorityVote()

    def fingerprint(self) -> dict[str, str]:
        """What a journal must have been written with to be continued; the schedule does not matter."""
        return {"strategy": repr(self.strategy), "budget": repr(self.budget), "seed": repr(self.seed)}

    def scheduler(self, journal: Journal) -> Waves | Streams:
        """What resumes the searches."""
        models = Models(self.generator, self.reward_model, journal)
        return Waves(models) if self.schedule == "wave" else Streams(models)

    def start(self, index: int, problem: Problem, seen: Counter[str]) -> Search:
        """The search of a problem; `seen` counts equal prompts, which are different problems."""
        occurrence = seen[problem.prompt]
        seen[problem.prompt] += 1
        again = f"#{occurrence}" if occurrence else ""  # before the prompt, which may hold anything
        stream_name = f"{self.seed}{again}/{problem.prompt}"
        return Search(index, problem, stream_name, self.strategy, self.budget, self.reward_model is not None)

    def finish(self, search: Search) -> SearchResult:
        """The result of a search that has ended, which the models may forget then."""
        result = self.result(search)
        self.release(search.root)
        return result

    def result(self, search: Search) -> SearchResult:
        """What `search` has found until now."""
        stopped_by = "error" if search.leaves is None else search.stopped_by
        leaves = search.root.leaves() if search.leaves is None else search.leaves
        trajectories = tuple(trajectory(leaf, self.extract_answer) for leaf in leaves)
        unscored = self.vote.needs_scores and all(t.score is None for t in trajectories)  # all samples failed
        selected = trajectories[0] if unscored else voted(self.vote, trajectories)
        return SearchResult(
            search.root.problem, selected, trajectories, tuple(leaves), search.root, search.cost, stopped_by
        )

    def kept(self, search: Search) -> SearchResult:
        """`result` after an error, which may have come from reading answers or voting: then the tree without them."""
        try:
            return self.result(search)
        except Exception:
            return replace(self, extract_answer=_no_answer, aggregator=None).result(search)

    def release(self, root: Node) -> None:
        """Tells the models that a search has ended."""
        self.generator.release(root)
        if self.reward_model is not None:
            self.reward_model.release(root)


def coerced(problem: Problem | str) -> Problem:
    """The problem, of which a prompt may stand alone.

    Raises:
        TypeError: If it is neither.
        ValueError: If the prompt is empty or holds half a character.
    """
    given = Problem(problem) if isinstance(problem, str) else problem
    if not isinstance(given, Problem):
        raise TypeError(
            f"a problem is a Problem or a prompt, not {type(given).__name__} {given!r:.80}: "
            "write Problem(prompt, answer=...)"
        )
    try:
        given.prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the prompt {given.prompt!r:.80} holds half a character (a lone surrogate)") from None
    return given


def _no_answer(text: str) -> None:
    """Reads nothing."""


def _check_part(name: str, part: object, kind: type, hint: str) -> None:
    if not isinstance(part, kind):
        given = f"the class {part.__name__}" if isinstance(part, type) else f"{type(part).__name__} {part!r:.80}"
        raise TypeError(f"{name} must be {_with_article(kind.__name__)}, not {given}: {hint}")


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def solve(
    problem: Problem | str,
    strategy: SearchStrategy,
    generator: Generator,
    *,
    reward_model: RewardModel | None = None,
    aggregator: Aggregator | None = None,
    extract_answer: ExtractAnswer = default_extract_answer,
    budget: Budget | None = None,
    seed: int = 0,
    schedule: Schedule = "wave",
    journal: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> SearchResult:
    """The result of one search; see `solve_batch`."""
    task = Task(strategy, generator, reward_model, aggregator, extract_answer, budget, seed, schedule, None)
    return _solve_all([coerced(problem)], task, journal, progress)[0]


def solve_batch(
    problems: Sequence[Problem | str],
    strategy: SearchStrategy,
    generator: Generator,
    *,
    reward_model: RewardModel | None = None,
    aggregator: Aggregator | None = None,
    extract_answer: ExtractAnswer = default_extract_answer,
    budget: Budget | None = None,
    seed: int = 0,
    schedule: Schedule = "wave",
    batch_size: int | None = None,
    journal: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> list[SearchResult]:
    """One `SearchResult` for each problem, in order; all searches share their generate and score calls.

    A result does not depend on which other problems are solved beside it: random streams derive from
    ``f"{seed}/{prompt}"`` (and from the occurrence number where a prompt is given more than once).

    An exception that comes once searches have begun, an interrupt too, has an attribute ``partial``: a list of the
    results that were finished, and of the best so far of the searches under way.

    Args:
        problems: Problems, or prompts.
        strategy: What to sample next.
        generator: Samples the steps.
        reward_model: Scores nodes; leaves that the strategy left unscored are scored too.
        aggregator: Picks the trajectory to report; `MajorityVote` by default.
        extract_answer: Reads the answer out of a completion; ``None`` abstains.
        budget: The most that each problem may cost.
        seed: Any integer; the same seed gives the same trees.
        schedule: ``"wave"`` resumes all searches together, with one generate and one score call for all of them:
            the largest batches, for models in process. ``"stream"`` resumes each search as soon as its own answers
            are there, with a call for each in a thread (64 at most): no search waits for a slower one, for models on
            a server. Trees, scores and costs are the same in both, but for seconds.
        batch_size: Problems searched at the same time; all of them by default.
        journal: A file that records every answer of the models, so that a search that was killed goes on where it
            was when the same call is made again. It knows strategy, budget and seed, and not the models.
        progress: Show a progress bar.

    Returns:
        The results.

    Raises:
        TypeError: If a part is not what it should be, or the strategy yields something that is not a request.
        ValueError: If the input is bad, the generator returns too few steps, a reward is not a finite number, or
            ``schedule="stream"`` is asked of a part that is not `concurrent`, or the journal is damaged or belongs to
            another call.
    """
    given = _checked_problems(problems)
    task = Task(strategy, generator, reward_model, aggregator, extract_answer, budget, seed, schedule, batch_size)
    return _solve_all(given, task, journal, progress)


def stream(
    problems: Iterable[Problem | str],
    strategy: SearchStrategy,
    generator: Generator,
    *,
    reward_model: RewardModel | None = None,
    aggregator: Aggregator | None = None,
    extract_answer: ExtractAnswer = default_extract_answer,
    budget: Budget | None = None,
    seed: int = 0,
    schedule: Schedule = "wave",
    batch_size: int | None = 64,
    journal: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Iterator[SearchResult]:
    """Results as they finish, at most `batch_size` problems at a time; see `solve_batch` for the arguments.

    `problems` may be endless: a problem is taken when there is room for it, and a result that was handed out is not
    kept. So an exception's ``partial`` holds the best so far of the searches that were under way, and no others.
    """
    if isinstance(problems, str):
        raise TypeError("stream() takes an iterable of problems; for one prompt call solve()")
    total = len(problems) if isinstance(problems, Sequence) else None
    task = Task(strategy, generator, reward_model, aggregator, extract_answer, budget, seed, schedule, batch_size)
    return (result for _, result in _run(map(coerced, problems), task, journal, progress, total))


def _checked_problems(problems: Sequence[Problem | str]) -> list[Problem]:
    if isinstance(problems, str):
        raise TypeError("solve_batch() takes a list of problems; for one prompt call solve()")
    given = [coerced(problem) for problem in problems]
    if not given:
        raise ValueError("solve_batch() was given no problems: pass at least one")
    return given


def _solve_all(
    problems: Sequence[Problem], task: Task, journal: str | os.PathLike[str] | None, progress: bool
) -> list[SearchResult]:
    results: dict[int, SearchResult] = {}
    try:
        for index, result in _run(problems, task, journal, progress, len(problems)):
            results[index] = result  # noqa: PERF403 (what came before an error is kept)
    except BaseException as error:
        error.__dict__["partial"] = [*results.values(), *error.__dict__.get("partial", ())]
        raise
    return [results[index] for index in range(len(problems))]


def _run(
    problems: Iterable[Problem],
    task: Task,
    journal: str | os.PathLike[str] | None,
    progress: bool,
    total: int | None,
) -> Iterator[tuple[int, SearchResult]]:
    """Results with the places of their problems, as they finish; none is kept, for there may be no end of them."""
    waiting = enumerate(problems)
    seen: Counter[str] = Counter()
    active: list[Search] = []
    with Journal.open(journal, task.fingerprint()) as record, Progress(total, progress) as bar:
        try:
            with task.scheduler(record) as scheduler:
                while True:
                    room = None if task.batch_size is None else task.batch_size - len(active)
                    active += [task.start(index, problem, seen) for index, problem in islice(waiting, room)]
                    if not active:
                        return
                    scheduler.advance(active)
                    for search in [search for search in active if search.leaves is not None]:
                        result = task.finish(search)
                        active.remove(search)
                        bar.finished(result)
                        yield search.index, result
                    bar.resumed(active)
        except BaseException as error:
            error.__dict__["partial"] = [task.kept(search) for search in active]
            raise
        finally:
            for search in active:
                task.release(search.root)
