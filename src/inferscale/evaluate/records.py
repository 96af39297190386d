"""The files of a run (``run.json``, ``records.jsonl``, a lock), what it was made with, and reading it back."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, TypeAlias

from inferscale.answers import SameAnswer
from inferscale.cost import Cost
from inferscale.engine.files import RunLockedError as RunLockedError
from inferscale.engine.files import append_line, keep_whole, read_lines, sealed, unsealed, write_atomically
from inferscale.engine.files import locked as locked
from inferscale.engine.journal import repair_journal
from inferscale.engine.result import Abstentions, SearchResult, finite
from inferscale.identity import digest
from inferscale.tree import Problem, Trajectory

VERSION = 1
Record: TypeAlias = dict[str, Any]


def append(file: IO[bytes], record: Record, fsync: bool = False) -> None:
    """Adds one line with a checksum, see `append_line`; numbers that are not finite become null."""
    append_line(file, sealed(finite({"v": VERSION, **record})), fsync)


def read_records(path: Path) -> list[Record]:
    """Complete lines of a records file; a torn last line, as a kill leaves it, is passed over.

    Raises:
        ValueError: If a line before the last is damaged, or one was written by a newer version.
    """
    if not path.exists():
        return []
    records: list[Record] = []
    for number, record in enumerate(read_lines(path.read_bytes())[0], 1):
        version = None if record is None else record.get("v")
        if isinstance(version, int) and version > VERSION:
            raise ValueError(f"{path}, line {number} was written by a newer inferscale (version {version} > "
                             f"{VERSION}): update to read it")  # fmt: skip
        if record is None or not isinstance(version, int) or "key" not in record:
            raise ValueError(f"{path}, line {number} is damaged: restore the file, or run `inferscale repair "
                             f"{path.parent}` and then the evaluation, which solves its problem again")  # fmt: skip
        records.append(record)
    return records


def cut_torn_line(path: Path) -> None:
    """Takes a torn last line off the file, so that what is appended next starts a line of its own."""
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(path, whole)


def keep_lines(path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Rewrites a file of JSON lines without those that are not `wanted`, and without a torn last line.

    Raises:
        ValueError: If a line before the last is damaged.
    """
    if not path.exists():
        return
    rows, lines = read_lines(path.read_bytes())
    kept = []
    for number, (row, line) in enumerate(zip(rows, lines, strict=True), 1):
        if not row:
            raise ValueError(f"{path}, line {number} is damaged: restore the file, or run `inferscale repair "
                             f"{path.parent}`, which keeps what is whole")  # fmt: skip
        if wanted(row):
            kept.append(line)
    if len(kept) < len(lines):
        write_atomically(path, b"".join(line + b"\n" for line in kept))


def prune_journal(path: Path, finished: Collection[int]) -> None:
    """Takes the searches with these root keys out of a search journal: their results are in the records."""
    names = {f"{key:016x}" for key in finished}
    keep_lines(path, lambda row: row.get("root") not in names)


def problem_keys(problems: Sequence[Problem], configuration: str) -> list[str]:
    """A name for each problem under one configuration; a prompt that comes again gets another one each time."""
    seen: Counter[str] = Counter()
    keys = []
    for problem in problems:
        further = [part for part in (problem.columns, problem.kind) if part]
        keys.append(digest([configuration, problem.stream, problem.answer, seen[problem.stream], *further]))
        seen[problem.stream] += 1
    return keys


def versions(
    packages: Iterable[str] = ("inferscale", "torch", "transformers", "numpy", "math-verify"),
) -> dict[str, str]:
    """Versions of Python and of those packages that are installed; none is imported."""
    found = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> Mapping[str, Any] | None:
    """Commit and whether tracked files differ from it (``None``: git cannot tell); ``None`` outside of a checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if status is None else bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


FORMAT = "inferscale.Run"
ABOUT, RECORDS, JOURNAL, LOCK = "run.json", "records.jsonl", "journal.jsonl", "lock"


@dataclass(frozen=True)
class Run:
    """An evaluation on disk.

    Attributes:
        directory: Its folder.
        about: The content of ``run.json``: configuration, fingerprints, versions.
        records: One for each solved problem, in the order of the problems. Keys: ``key``, ``index``, ``id``,
            ``group`` (of the row that the problem was read from, or ``None``),
            ``status`` ("ok"; "partial" for the best so far of a search that was broken off), ``answer``, ``gold``,
            ``correct`` (``None`` without a gold answer), ``correct_each`` (of every trajectory), ``measured``,
            ``result`` (`SearchResult.to_dict`, the tree included).

    Example:
        >>> from inferscale import Problem, RepeatedSampling
        >>> from inferscale.evaluate import run_evaluation
        >>> from inferscale.testing import ToyGenerator
        >>> problems = [Problem(f"Question {i}?", answer="2") for i in range(12)]
        >>> run = run_evaluation(problems, RepeatedSampling(8), ToyGenerator(depth=2), "runs/toy")
        >>> run.is_complete, f"{run.accuracy:.2f} +- {run.standard_error:.2f}", run.abstentions.trajectories
        (True, '0.08 +- 0.08', 96)
        >>> {name: run.rows()[0][name] for name in ("answer", "gold", "correct", "generated_tokens")}
        {'answer': '3', 'gold': '2', 'correct': False, 'generated_tokens': 80}
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
        """True once every problem has been solved."""
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
        """The most bytes of memory that the run has used: of the GPU where there is one, else of the process."""
        return max((record["measured"]["peak_memory_bytes"] for record in self.finished), default=None)

    @property
    def abstentions(self) -> Abstentions:
        """Count how many trajectories of all problems have no answer, and why."""
        return sum((abstentions_in(record["result"]) for record in self.finished), Abstentions())

    def results(self) -> Iterator[SearchResult]:
        """The searches, trees included, one after the other.

        Raises:
            ValueError: If the record of one is damaged.
        """
        for record in self.finished:
            try:
                yield SearchResult.from_dict(record["result"])
            except ValueError as error:
                where = f"{self.directory / RECORDS}, problem {record['index']}"
                raise ValueError(f"{where}: {error}") from None

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each solved problem: what it cost and whether it was right, without the tree."""
        kept = ("index", "id", "group", "status", "answer", "gold", "correct")
        rows = []
        for record in self.records:
            silent = abstentions_in(record["result"])
            counts = {"cut": silent.cut, "unread": silent.unread, "abstaining": silent.abstaining}
            rows.append(
                {**{name: record.get(name) for name in kept}, "trajectories": silent.trajectories, **counts,
                 "stopped_by": record["result"]["stopped_by"], **asdict(Cost.from_dict(record["result"]["cost"]))}
            )  # fmt: skip
        return rows

    def to_pandas(self) -> Any:
        """`rows` as a data frame (extra ``plot``)."""
        from inferscale._compat import require

        return require("pandas", "plot").DataFrame(self.rows())

    def _graded(self) -> list[bool]:
        return [record["correct"] for record in self.finished if record["correct"] is not None]


def abstentions_in(result: Mapping[str, Any]) -> Abstentions:
    """Those of a result that is written as plain data."""
    nodes = result["nodes"]
    return Abstentions.count(
        (row["answer"], nodes[row["node"]].get("step", {}).get("finish_reason")) for row in result["trajectories"]
    )


_MEMBERS = {"key", "index", "id", "status", "answer", "gold", "correct", "correct_each", "measured", "result"}


def load_run(directory: str | os.PathLike[str]) -> Run:
    """A run, complete or not, as far as its files go.

    Raises:
        ValueError: If there is no run, its files are damaged, or a newer version wrote them.

    Example:
        >>> from inferscale import BestOfN, Problem, RepeatedSampling
        >>> from inferscale.evaluate import load_run, run_evaluation
        >>> from inferscale.testing import ToyGenerator, ToyReward
        >>> problems = [Problem(f"Question {i}?", answer="2") for i in range(12)]
        >>> run = run_evaluation(problems, RepeatedSampling(8), ToyGenerator(), "runs/old", reward_model=ToyReward())
        >>> results = list(load_run("runs/old").results())
        >>> chosen = [BestOfN().select(result.trajectories) for result in results]  # another vote, at no cost
        >>> sum(vote.answer == "2" for vote in chosen), "of", len(chosen)
        (1, 'of', 12)
    """
    folder = Path(directory)
    about = read_about(folder)
    if about is None:
        raise ValueError(f"there is no run in {str(folder)!r} (no {ABOUT}): give a folder that an evaluation wrote")
    records = latest_records(folder / RECORDS)
    if lacking := [record for record in records if not record.keys() >= _MEMBERS]:
        missing = ", ".join(sorted(_MEMBERS - lacking[0].keys()))
        raise ValueError(f"{folder / RECORDS}: the record {lacking[0]['key']!r:.80} is damaged, since it lacks "
                         f"{missing}: restore the file")  # fmt: skip
    return Run(folder, about, records)


def read_about(folder: Path) -> dict[str, Any] | None:
    """The content of ``run.json``, or ``None`` if there is none.

    Raises:
        ValueError: If it is not one, or a newer version wrote it.
    """
    if not (folder / ABOUT).exists():
        return None
    text = (folder / ABOUT).read_bytes()
    about: Any = unsealed(text)
    if about is None:
        try:
            about, why = json.loads(text), "its checksum is another"
        except ValueError as error:
            about, why = {}, str(error)
        if isinstance(about, dict):
            raise ValueError(f"{folder / ABOUT} is damaged ({why}): restore it; or delete it, and the same evaluation "
                             "writes it anew and goes on with the records, which are not touched")  # fmt: skip
    found = about.get("format") if isinstance(about, dict) else about
    if found != FORMAT:
        raise ValueError(f"{folder / ABOUT} is not the description of a run: format is {str(found)[:80]!r}")
    if about["version"] > 1:
        raise ValueError(f"{folder / ABOUT} was written by a newer inferscale (version {about['version']}): update")
    return dict(about)


def repair_run(folder: Path) -> list[tuple[Path, int, int]]:
    """Keeps what is whole in the files of a run; for each file its name, and how many lines stayed and did not.

    The same evaluation then goes on with what is there. What was taken out stands in ``NAME.damaged``.

    Raises:
        RunLockedError: If another process is writing into the run.
    """
    with locked(folder / LOCK):
        done = []
        if (folder / RECORDS).exists():
            done.append((folder / RECORDS, *keep_whole(folder / RECORDS, _are_records)))
        if (folder / JOURNAL).exists():
            done.append((folder / JOURNAL, *repair_journal(folder / JOURNAL)))
        return done


def _are_records(rows: Sequence[Mapping[str, Any] | None]) -> list[bool]:
    return [row is not None and isinstance(row.get("v"), int) and "key" in row for row in rows]


def latest_records(path: Path) -> list[Record]:
    """The last record of each problem, in the order of the problems."""
    latest = {record["key"]: record for record in read_records(path)}
    return sorted(latest.values(), key=lambda record: int(record.get("index", 0)))


def make_record(
    index: int, key: str, result: SearchResult, same_answer: SameAnswer | None, memory: int | None
) -> Record:
    """The line of one result."""
    each = graded(result.trajectories, same_answer)
    correct = None if each is None else each[result.trajectories.index(result.selected)]
    return {
        "key": key,
        "index": index,
        "id": result.problem.id,
        "group": (result.problem.columns or {}).get("group"),
        "status": "partial" if result.stopped_by == "error" else "ok",
        "answer": result.answer,
        "gold": result.problem.answer,
        "correct": correct,
        "correct_each": each,
        "measured": {"peak_memory_bytes": memory},
        "result": result.to_dict(),
    }


def graded(trajectories: Sequence[Trajectory], same_answer: SameAnswer | None = None) -> list[bool] | None:
    """Grade each answer (``None`` is never right), by the equality of its kind if no other is given.

    Returns ``None`` if the problem has no gold answer.
    """
    gold = trajectories[0].problem.answer
    if gold is None:
        return None
    agree = same_answer or trajectories[0].equality.same
    answers = dict.fromkeys(t.answer for t in trajectories if t.answer is not None)
    known = {answer: agree(answer, gold) for answer in answers}
    return [t.answer is not None and known[t.answer] for t in trajectories]
