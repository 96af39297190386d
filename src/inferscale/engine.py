"""The one driver of every search: it merges what the searches of all problems ask for into shared calls."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from ._progress import Progress
from ._search import ExtractAnswer, Search, trajectory
from ._waves import generate_wave, score_wave
from .aggregators import MajorityVote
from .answers import extract_answer as default_extract_answer
from .base import Aggregator, Generator, RewardModel, SearchStrategy
from .cost import Budget
from .journal import Journal
from .result import SearchResult
from .tree import Node, Problem


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
    journal: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> SearchResult:
    """The result of one search; see `solve_batch`."""
    return solve_batch(
        [problem],
        strategy,
        generator,
        reward_model=reward_model,
        aggregator=aggregator,
        extract_answer=extract_answer,
        budget=budget,
        seed=seed,
        journal=journal,
        progress=progress,
    )[0]


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
    batch_size: int | None = None,
    journal: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> list[SearchResult]:
    """One `SearchResult` for each problem, in order; all searches share their generate and score calls.

    A result does not depend on which other problems are solved beside it: random streams derive from
    ``f"{seed}/{prompt}"`` (and from the occurrence number where a prompt is given more than once).

    Args:
        problems: Problems, or prompts.
        strategy: What to sample next.
        generator: Samples the steps.
        reward_model: Scores nodes; leaves that the strategy left unscored are scored too.
        aggregator: Picks the trajectory to report; `MajorityVote` by default.
        extract_answer: Reads the answer out of a completion; ``None`` abstains.
        budget: The most that each problem may cost.
        seed: Any integer; the same seed gives the same trees.
        batch_size: Problems searched at the same time; all of them by default.
        journal: A file that records every answer of the models, so that a search that was killed goes on where it
            was when the same call is made again.
        progress: Show a progress bar.

    Returns:
        The results.

    Raises:
        TypeError: If a part is not what it should be, or the strategy yields something that is not a request.
        ValueError: If the input is bad, the generator returns too few steps, or a reward is not a finite number.
            What was found until then is on the exception's ``partial`` attribute, a list of results.
    """
    given = _checked_problems(problems)
    task = _Task(
        strategy, generator, reward_model, aggregator or MajorityVote(), extract_answer, budget, seed, batch_size
    )
    task.check()
    with Journal.open(journal, task.fingerprint()) as record, Progress(len(given), progress) as bar:
        results = dict(_run(given, task, record, bar))
    return [results[index] for index in range(len(given))]


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
    batch_size: int | None = 64,
    journal: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Iterator[SearchResult]:
    """Results as they finish, at most `batch_size` problems at a time; see `solve_batch` for the arguments.

    `problems` may be endless: a problem is taken when there is room for it.
    """
    task = _Task(
        strategy, generator, reward_model, aggregator or MajorityVote(), extract_answer, budget, seed, batch_size
    )
    task.check()
    if isinstance(problems, str):
        raise TypeError("stream() takes an iterable of problems; for one prompt call solve()")
    return _stream(problems, task, journal, progress)


def _stream(
    problems: Iterable[Problem | str], task: _Task, journal: str | os.PathLike[str] | None, progress: bool
) -> Iterator[SearchResult]:
    total = len(problems) if isinstance(problems, Sequence) else None
    with Journal.open(journal, task.fingerprint()) as record, Progress(total, progress) as bar:
        for _, result in _run(map(_coerced, problems), task, record, bar):
            yield result


@dataclass(frozen=True)
class _Task:
    """The parts of a call, checked before any compute is spent."""

    strategy: SearchStrategy
    generator: Generator
    reward_model: RewardModel | None
    aggregator: Aggregator
    extract_answer: ExtractAnswer
    budget: Budget | None
    seed: int
    batch_size: int | None

    def check(self) -> None:
        _check_part("strategy", self.strategy, SearchStrategy, "give an instance such as REBASE(width=16)")
        _check_part("generator", self.generator, Generator, "wrap a model: HFGenerator(model, tokenizer)")
        _check_part("aggregator", self.aggregator, Aggregator, "give an instance such as MajorityVote()")
        if self.reward_model is not None:
            _check_part("reward_model", self.reward_model, RewardModel, "wrap a function: RewardFunction(f)")
        if self.budget is not None:
            _check_part("budget", self.budget, Budget, "give Budget(tokens=..., flops=..., seconds=..., calls=...)")
        if not callable(self.extract_answer):
            raise TypeError(f"extract_answer must be a function of the completion, not {self.extract_answer!r}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: at least one problem must be searched at a time")
        if self.reward_model is None and self.strategy.needs_scores:
            raise ValueError(f"{self.strategy!r} scores its nodes: pass reward_model=...")
        if self.reward_model is None and self.aggregator.needs_scores:
            raise ValueError(f"{self.aggregator!r} reads scores: pass reward_model=...")

    def fingerprint(self) -> dict[str, str]:
        return {"strategy": repr(self.strategy), "budget": repr(self.budget), "seed": repr(self.seed)}

    def result(self, search: Search, stopped_by: str | None) -> SearchResult:
        leaves = search.root.leaves() if search.leaves is None else search.leaves
        trajectories = tuple(trajectory(leaf, self.extract_answer) for leaf in leaves)
        usable = trajectories
        if self.aggregator.needs_scores:
            usable = tuple(t for t in trajectories if t.score is not None)
        selected = self.aggregator.select(usable) if usable else trajectories[0]
        return SearchResult(
            search.root.problem, selected, trajectories, tuple(leaves), search.root, search.cost, stopped_by
        )


def _check_part(name: str, part: object, kind: type, hint: str) -> None:
    if not isinstance(part, kind):
        given = f"the class {part.__name__}" if isinstance(part, type) else f"{type(part).__name__} {part!r:.80}"
        raise TypeError(f"{name} must be a {kind.__name__}, not {given}: {hint}")


def _coerced(problem: Problem | str) -> Problem:
    if isinstance(problem, str):
        return Problem(problem)
    if not isinstance(problem, Problem):
        raise TypeError(f"a problem is a Problem or a prompt, not {type(problem).__name__}: {problem!r:.80}")
    return problem


def _checked_problems(problems: Sequence[Problem | str]) -> list[Problem]:
    if isinstance(problems, str):
        raise TypeError("solve_batch() takes a list of problems; for one prompt call solve()")
    given = [_coerced(problem) for problem in problems]
    if not given:
        raise ValueError("solve_batch() was given no problems: pass at least one")
    return given


def _run(
    problems: Iterable[Problem], task: _Task, journal: Journal, bar: Progress
) -> Iterator[tuple[int, SearchResult]]:
    """Waves of one generate call and one score call until every search has ended."""
    waiting = enumerate(problems)
    seen: Counter[str] = Counter()
    active: list[Search] = []
    done: list[SearchResult] = []
    try:
        while True:
            room = None if task.batch_size is None else task.batch_size - len(active)
            for index, problem in islice(waiting, room):
                active.append(_start(index, problem, task, seen))
            if not active:
                return
            generate_wave(active, task.generator, journal)
            score_wave(active, task.reward_model, journal)
            ended = [search for search in active if search.leaves is not None]
            active = [search for search in active if search.leaves is None]
            for search in ended:
                result = task.result(search, search.stopped_by)
                _release(search.root, task)
                done.append(result)
                bar.finished(result)
                yield search.index, result
            bar.wave(active)
    except BaseException as error:
        error.__dict__["partial"] = done + [task.result(search, "error") for search in active]
        raise
    finally:
        for search in active:
            _release(search.root, task)


def _start(index: int, problem: Problem, task: _Task, seen: Counter[str]) -> Search:
    occurrence = seen[problem.prompt]
    seen[problem.prompt] += 1
    stream_name = f"{task.seed}/{problem.prompt}" + (f"/{occurrence}" if occurrence else "")
    return Search(index, problem, stream_name, task.strategy, task.budget, task.reward_model is not None)


def _release(root: Node, task: _Task) -> None:
    task.generator.release(root)
    if task.reward_model is not None:
        task.reward_model.release(root)
