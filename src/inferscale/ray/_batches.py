"""Batches of problems on their way to the actors, and their results on the way back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from inferscale._progress import Progress
from inferscale._task import coerced
from inferscale.result import SearchResult
from inferscale.tree import Problem


def checked_problems(problems: Sequence[Problem | str]) -> list[Problem]:
    """The problems.

    Raises:
        TypeError: If it is one prompt, or one of them is neither a problem nor a prompt.
        ValueError: If one of them has no prompt.
    """
    if isinstance(problems, str):
        raise TypeError("solve_dataset() takes a list of problems; for one prompt call solve()")
    return [coerced(problem) for problem in problems]


def make_batches(problems: Sequence[Problem], batch_size: int) -> list[list[int]]:
    """The places of the problems of each batch.

    Equal prompts stay together in their order: what tells their random streams apart is how many came before.

    Raises:
        ValueError: If there are no problems, or no room in a batch.
    """
    if not problems:
        raise ValueError("there are no problems to solve: pass at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give at least 1")
    equal: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        equal.setdefault(problem.prompt, []).append(index)
    batches: list[list[int]] = [[]]
    for places in equal.values():
        if batches[-1] and len(batches[-1]) + len(places) > batch_size:
            batches.append([])
        batches[-1] += places
    return batches


def row_of(batch: Sequence[int], problems: Sequence[Problem]) -> dict[str, str]:
    """What an actor is sent of a batch."""
    return {"places": json.dumps(batch), "problems": json.dumps([asdict(problems[index]) for index in batch])}


def results_of(rows: Iterator[Mapping[str, str]], total: int, progress: bool) -> Iterator[tuple[int, SearchResult]]:
    """The results of all rows; a result that is lost or comes twice is an error."""
    missing = set(range(total))
    with Progress(total, progress) as bar:
        for row in rows:
            for index, told in zip(json.loads(row["places"]), json.loads(row["results"]), strict=True):
                if index not in missing:
                    raise RuntimeError(f"Ray returned the result of problem {index} twice")
                missing.remove(index)
                result = SearchResult.from_dict(told)
                bar.finished(result)
                yield index, result
    if missing:
        raise RuntimeError(f"Ray returned no result for {len(missing)} problems, the first one {min(missing)}")
