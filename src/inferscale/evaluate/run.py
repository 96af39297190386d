"""What a run's folder holds, read back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferscale.aggregators import SameAnswer
from inferscale.answers import same_answer
from inferscale.result import SearchResult
from inferscale.tree import Problem

from .records import Record, read_records

FORMAT = "inferscale.Run"
ABOUT, RECORDS, JOURNAL, LOCK = "run.json", "records.jsonl", "journal.jsonl", "lock"


@dataclass(frozen=True)
class Run:
    """An evaluation on disk.

    Attributes:
        directory: Its folder.
        about: The content of ``run.json``: configuration, fingerprints, versions.
        records: One for each solved problem, in the order of the problems. Keys: ``key``, ``index``, ``id``,
            ``status`` ("ok"; "partial" for the best so far of a search that was broken off), ``answer``, ``gold``,
            ``correct`` (``None`` without a gold answer), ``correct_each`` (of every trajectory), ``measured``,
            ``result`` (`SearchResult.to_dict`, the tree included).
    """

    directory: Path
    about: Mapping[str, Any]
    records: list[Record] = field(repr=False)

    @property
    def finished(self) -> list[Record]:
        """Records of problems whose search has ended."""
        return [record for record in self.records if record["status"] == "ok"]

    @property
    def is_complete(self) -> bool:
        """Whether every problem has been solved."""
        return len(self.finished) == int(self.about["identity"]["problems"]["count"])

    @property
    def accuracy(self) -> float:
        """Share of graded problems answered right; NaN without one."""
        graded = self._graded()
        return sum(graded) / len(graded) if graded else math.nan

    @property
    def standard_error(self) -> float:
        """Of the accuracy, over problems; NaN with fewer than two."""
        count = len(self._graded())
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (count - 1)) if count > 1 else math.nan

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory that the run has used: of the GPU where there is one, else of the process."""
        return max((record["measured"]["peak_memory_bytes"] for record in self.finished), default=None)

    def results(self) -> Iterator[SearchResult]:
        """The searches, trees included, one after the other."""
        return (SearchResult.from_dict(record["result"]) for record in self.finished)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each solved problem: what it cost and whether it was right, without the tree."""
        kept = ("index", "id", "status", "answer", "gold", "correct")
        return [
            {**{name: record[name] for name in kept}, "trajectories": len(record["result"]["trajectories"]),
             "stopped_by": record["result"]["stopped_by"], **record["result"]["cost"]}
            for record in self.records
        ]  # fmt: skip

    def to_pandas(self) -> Any:
        """`rows` as a data frame (extra ``plot``)."""
        from inferscale._optional import require

        return require("pandas", "plot").DataFrame(self.rows())

    def _graded(self) -> list[bool]:
        return [record["correct"] for record in self.finished if record["correct"] is not None]


def load_run(directory: str | os.PathLike[str]) -> Run:
    """A run, complete or not, as far as its files go.

    Raises:
        ValueError: If there is no run, its files are damaged, or a newer version wrote them.
    """
    folder = Path(directory)
    about = read_about(folder)
    if about is None:
        raise ValueError(f"there is no run in {str(folder)!r} (no {ABOUT}): give a folder that an evaluation wrote")
    return Run(folder, about, latest_records(folder / RECORDS))


def read_about(folder: Path) -> dict[str, Any] | None:
    """The content of ``run.json``, or ``None`` if there is none.

    Raises:
        ValueError: If it is not one, or a newer version wrote it.
    """
    if not (folder / ABOUT).exists():
        return None
    try:
        about: Any = json.loads((folder / ABOUT).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / ABOUT} is damaged ({error}): restore it, or give another folder") from None
    found = about.get("format") if isinstance(about, dict) else about
    if found != FORMAT:
        raise ValueError(f"{folder / ABOUT} is not the description of a run: format is {str(found)[:80]!r}")
    if about["version"] > 1:
        raise ValueError(f"{folder / ABOUT} was written by a newer inferscale (version {about['version']}): update")
    return dict(about)


def latest_records(path: Path) -> list[Record]:
    """The last record of each problem, in the order of the problems."""
    latest = {record["key"]: record for record in read_records(path)}
    return sorted(latest.values(), key=lambda record: int(record["index"]))


def make_record(index: int, key: str, result: SearchResult, grade: SameAnswer, memory: int | None) -> Record:
    """The line of one result."""
    each = graded([t.answer for t in result.trajectories], result.problem, grade)
    correct = None if each is None else each[result.trajectories.index(result.selected)]
    return {
        "key": key,
        "index": index,
        "id": result.problem.id,
        "status": "partial" if result.stopped_by == "error" else "ok",
        "answer": result.answer,
        "gold": result.problem.answer,
        "correct": correct,
        "correct_each": each,
        "measured": {"peak_memory_bytes": memory},
        "result": result.to_dict(),
    }


def graded(answers: list[str | None], problem: Problem, grade: SameAnswer = same_answer) -> list[bool] | None:
    """Whether each answer is right (``None`` never is), or ``None`` if the problem has no gold answer."""
    gold = problem.answer
    if gold is None:
        return None
    known = {answer: grade(answer, gold) for answer in dict.fromkeys(answers) if answer is not None}
    return [answer is not None and known[answer] for answer in answers]
