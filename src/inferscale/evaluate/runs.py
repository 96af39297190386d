"""Evaluations that survive a kill: a folder with what was run, one record per problem, and a journal to go on from."""

from __future__ import annotations

import collections.abc
import itertools
import json
import os
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

from inferscale._compat import suggests_options
from inferscale.aggregators import MajorityVote
from inferscale.answers import Reader, SameAnswer
from inferscale.base import Aggregator, Generator, Planned, RewardModel, SearchStrategy
from inferscale.cost import Budget, Meter
from inferscale.engine.files import locked, sealed, write_atomically
from inferscale.engine.progress import ProgressBar
from inferscale.engine.result import SearchResult
from inferscale.engine.solver import Solver, as_problems
from inferscale.identity import Differences, compare, digest, identity_of
from inferscale.thinking import Thinking
from inferscale.tree import Problem

from .records import (
    ABOUT,
    FORMAT,
    JOURNAL,
    LOCK,
    RECORDS,
    Run,
    append,
    cut_torn_line,
    git_state,
    keep_lines,
    latest_records,
    load_run,
    make_record,
    problem_keys,
    prune_journal,
    read_about,
    versions,
)


class ChangedRunError(ValueError):
    """Refusal to go on in a folder that holds a run of another configuration.

    Example:
        >>> from inferscale import Problem, RepeatedSampling
        >>> from inferscale.evaluate import run_evaluation
        >>> from inferscale.testing import ToyGenerator
        >>> problems = [Problem("How many?", answer="3")]
        >>> run = run_evaluation(problems, RepeatedSampling(4), ToyGenerator(), "runs/votes")
        >>> run = run_evaluation(problems, RepeatedSampling(8), ToyGenerator(), "runs/votes")
        Traceback (most recent call last):
            ...
        inferscale.evaluate.runs.ChangedRunError: runs/votes holds a run of another configuration (strategy.n ...
    """


@dataclass(frozen=True)
class Task:
    """Problems of a run, and how they are graded and recorded.

    Attributes:
        folder: The folder.
        problems: The problems.
        keys: A name for each under the configuration.
        strategy: The strategy, as a call that makes it.
        parameters: Of the generator's model; ``None`` if that is not in this process.
        same_answer: Tells whether an answer is right.
        fsync: Whether each record is waited for.
    """

    folder: Path
    problems: list[Problem]
    keys: list[str]
    strategy: str
    parameters: int | None
    same_answer: SameAnswer | None
    fsync: bool


def prepare(task: Task, identity: Mapping[str, Any], force: bool) -> None:
    """Writes ``run.json``, or checks that what is there belongs to this call.

    Raises:
        ChangedRunError: If it does not, or cannot be told to, and `force` is not set.
    """
    about = read_about(task.folder)
    cut_torn_line(task.folder / RECORDS)
    identity = json.loads(json.dumps(identity, default=str))
    if about is None:
        _check_orphans(task, force)
    else:
        apart = compare(about["identity"], identity)
        if not apart.changed and not apart.unknown:
            return
        if not force:
            raise ChangedRunError(_why_not(task.folder, apart))
        if apart.changed:
            same_parts = all(name.startswith("problems.") for name in apart.changed)
            _put_aside(task, digest(about["identity"])[:8], keep_journal=same_parts and not apart.unknown)
        else:
            _adopt(task)
    fresh = {"format": FORMAT, "version": 1, "identity": identity, "strategy": task.strategy,
             "parameters": task.parameters, "versions": versions(),
             "git": git_state(Path.cwd()), "command": sys.argv,
             "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}  # fmt: skip
    write_atomically(task.folder / ABOUT, sealed(fresh, indent=1, allow_nan=True) + "\n")


def _check_orphans(task: Task, force: bool) -> None:
    """Records whose ``run.json`` is gone may stay only if they are of this configuration."""
    keys = set(task.keys)
    if all(record["key"] in keys for record in latest_records(task.folder / RECORDS)):
        return
    if not force:
        raise ChangedRunError(
            f"{task.folder} holds records of another configuration, without the {ABOUT} that describes it: give "
            "another folder, or force=True (--force) to put them aside"
        )
    _put_aside(task, "unknown", keep_journal=False)


def _why_not(folder: Path, apart: Differences) -> str:
    if apart.changed:
        return (
            f"{folder} holds a run of another configuration ({apart}): give another folder, or force=True (--force) to "
            "go on with what is still valid"
        )
    return (
        f"{folder} holds a run with {' and '.join(apart.unknown)}, which has no identity(): whether it is the same one "
        "cannot be told. Give another folder, or force=True (--force) to go on as if it were; with a method "
        "`identity(self)`, which returns what its texts or scores depend on, later runs can be compared"
    )


def _adopt(task: Task) -> None:
    """Gives the records the keys that they have under the identity of now."""
    records = task.folder / RECORDS
    rows = [{**record, "key": task.keys[record["index"]]} for record in latest_records(records)]
    write_atomically(records, "".join(sealed(row) + "\n" for row in rows))


def _put_aside(task: Task, name: str, keep_journal: bool) -> None:
    records = task.folder / RECORDS
    if records.exists():
        content = records.read_text("utf-8")
        write_atomically(_free(task.folder, name, content), content)
        keys = set(task.keys)
        keep_lines(records, lambda row: row["key"] in keys)
        _renumber(task, records)
    if not keep_journal:
        (task.folder / JOURNAL).unlink(missing_ok=True)


def _free(folder: Path, name: str, content: str) -> Path:
    """A file that holds nothing else: what was put aside before, also by a call that was killed, stays."""
    ends = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    paths = (folder / f"records-{name}{end}.jsonl" for end in ends)
    return next(path for path in paths if not path.exists() or path.read_text("utf-8") == content)


def _renumber(task: Task, records: Path) -> None:
    """Gives the records that are left the positions of their problems in the new set."""
    index = {key: position for position, key in enumerate(task.keys)}
    rows = [{**record, "index": index[record["key"]]} for record in latest_records(records)]
    write_atomically(records, "".join(sealed(row) + "\n" for row in rows))


@suggests_options
def run_evaluation(
    problems: Sequence[Problem | str],
    strategy: SearchStrategy | Planned,
    generator: Generator | Mapping[str, Generator],
    directory: str | os.PathLike[str],
    *,
    reward_model: RewardModel | None = None,
    aggregator: Aggregator | None = None,
    read_answer: Reader | None = None,
    thinking: Thinking | Literal[False] | None = None,
    same_answer: SameAnswer | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    batch_size: int = 64,
    config: Mapping[str, Any] | None = None,
    first: int | None = None,
    force: bool = False,
    fsync: bool = False,
    progress: bool = False,
    energy: Meter | None = None,
) -> Run:
    """Solves and grades problems, each recorded in `directory` as soon as it is solved; the run.

    The same call again goes on where the last one ended, however it ended: solved problems are not solved again, and
    half-done searches go on from their journal. A part of your own that is no dataclass tells by its method `identity`
    what it is; without one, a warning says that the run cannot be resumed safely, and only `force` goes on with it. In
    float32 the records are those of an undisturbed run (times, memory and the last digits of log-probabilities apart).
    ``run.json`` holds the configuration and its versions, ``records.jsonl`` a line for each problem; where the call
    breaks off, the best so far of each open search is recorded as partial.

    Args:
        problems: Problems with gold answers, or prompts.
        strategy: What to sample; a plan is replaced by what it chooses for the budget.
        generator: Samples the steps; several by name, as in `solve`.
        directory: The run's folder, made if it is not there.
        reward_model: As in `solve_batch`.
        aggregator: As in `solve_batch`.
        read_answer: As in `solve_batch`.
        thinking: As in `solve_batch`.
        same_answer: Called with an answer and the gold answer, such as a `MathGrader`; by default the equality of the
            problem's kind.
        budget: The most that each problem may cost.
        seed: Any integer.
        batch_size: Problems searched at the same time.
        config: Further facts about the run, plain data; part of its configuration.
        first: Solve no more than the first so many problems in this call; a later one goes on.
        force: Where the folder holds a run of another configuration: keep what is still valid (nothing, unless only
            the set of problems has changed), put the rest aside, and go on. Where a part has no `identity`: go on, as
            if it were the same.
        fsync: Wait for the disk after each record: a power cut loses nothing either.
        progress: Show a progress bar with the accuracy so far and the time left.
        energy: As in `solve_batch`; no part of the run's configuration.

    Raises:
        ChangedRunError: If the folder holds a run of another configuration, or of parts of which that cannot be told,
            and `force` is not set.
        RunLockedError: If another process is writing into the folder.
        ValueError: If there are no problems, or the folder's files are damaged.

    Example:
        >>> from inferscale import Problem, RepeatedSampling
        >>> from inferscale.evaluate import run_evaluation
        >>> from inferscale.testing import ToyGenerator
        >>> problems, toy = [Problem(f"Question {i}?", answer="2") for i in range(12)], ToyGenerator()
        >>> run = run_evaluation(problems, RepeatedSampling(8), toy, "runs/eight", first=5)  # some of them today
        >>> len(run.finished), run.is_complete
        (5, False)
        >>> run = run_evaluation(problems, RepeatedSampling(8), toy, "runs/eight")  # only the rest is solved
        >>> len(run.finished), run.is_complete, round(run.accuracy, 2)
        (12, True, 0.17)
    """
    given = [replace(p) for p in as_problems(problems, "run_evaluation")]  # copies: known by identity
    if not given:
        raise ValueError("run_evaluation() was given no problems: pass at least one")
    vote = aggregator or (None if isinstance(strategy, Planned) else MajorityVote())  # which a plan chooses
    search, sampler = cast(SearchStrategy, strategy), cast(Generator, generator)  # a plan, several by name: as in solve
    solver = Solver(search, sampler, reward_model, vote, read_answer=read_answer, thinking=thinking, budget=budget,
                    seed=seed, batch_size=batch_size, energy=energy)  # fmt: skip
    identity = {**solver.identity(), "same_answer": identity_of(same_answer), "config": dict(config or {})}
    written = repr(solver.strategy) if is_dataclass(solver.strategy) else type(solver.strategy).__name__
    model: Any = getattr(solver.generator, "model", None)
    size = int(model.num_parameters()) if hasattr(model, "num_parameters") else None
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(folder, given, problem_keys(given, digest(identity)), written, size, same_answer, fsync)
    with locked(folder / LOCK):
        prepare(task, {**identity, "problems": {"count": len(given), "sha256": digest(problem_keys(given, ""))}}, force)
        _solve_rest(task, solver, progress, len(given) if first is None else first)
    return load_run(folder)


def _solve_rest(task: Task, solver: Solver, progress: bool, first: int) -> None:
    """Solves what is not recorded as solved among the first so many problems, and records it."""
    journal = task.folder / JOURNAL
    done = {record["key"]: record for record in latest_records(task.folder / RECORDS) if record["status"] == "ok"}
    prune_journal(journal, {record["result"]["nodes"][0]["key"] for record in done.values()})
    left = [index for index in _left(task, done) if index < first]
    verdicts = [record["correct"] for record in done.values() if record["correct"] is not None]
    position = {id(task.problems[index]): index for index in left}
    total, right, graded = len(task.problems), sum(verdicts), len(verdicts)
    with (
        (task.folder / RECORDS).open("ab", buffering=0) as file,
        ProgressBar(total, done=len(done), right=right, graded=graded) if progress else nullcontext() as bar,
        closing(
            _keeping_partial(
                solver.stream([task.problems[index] for index in left], journal=journal, progress=bar or False),
                task,
                position,
                done,
                file,
            )
        ) as solved,
    ):
        for result in solved:
            index = position[id(result.problem)]
            if task.keys[index] in done:
                continue  # solved again only because an equal prompt comes later
            record = make_record(index, task.keys[index], result, task.same_answer, peak_memory_bytes())
            append(file, record, task.fsync)
            if bar is not None:
                bar.count(result.cost.tokens, record["correct"])
    journal.unlink(missing_ok=True)


def _left(task: Task, done: Mapping[str, Any]) -> list[int]:
    """Positions to solve: those not done, and those with a prompt that comes again and is not done there.

    Random streams of equal prompts are told apart by how many came before in the same call.
    """
    unsolved = {problem.stream for problem, key in zip(task.problems, task.keys, strict=True) if key not in done}
    last = {p.stream: i for i, (p, key) in enumerate(zip(task.problems, task.keys, strict=True)) if key not in done}
    return [i for i, p in enumerate(task.problems) if p.stream in unsolved and i <= last[p.stream]]


def _keeping_partial(
    results: Iterator[SearchResult],
    task: Task,
    position: Mapping[int, int],
    done: Container[str],
    file: IO[bytes],
) -> collections.abc.Generator[SearchResult, None, None]:
    """The results; when they break off, the best so far of each open search is recorded as partial."""
    try:
        yield from results
    except BaseException as error:
        for result in error.__dict__.get("partial", []):
            index = position[id(result.problem)]
            if result.stopped_by == "error" and task.keys[index] not in done:
                append(file, make_record(index, task.keys[index], result, task.same_answer, peak_memory_bytes()))
        raise


def peak_memory_bytes() -> int | None:
    """The most memory used so far: torch's on a GPU if it runs there, else of this process; ``None`` if unknown."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
