"""The one driver of every search: it merges what the searches of all problems ask for into shared calls."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from ._progress import Progress
from ._search import ExtractAnswer, Search
from ._task import Schedule, Task, coerced
from .answers import extract_answer as default_extract_answer
from .base import Aggregator, Generator, RewardModel, SearchStrategy
from .cost import Budget
from .journal import Journal
from .result import SearchResult
from .tree import Problem


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
