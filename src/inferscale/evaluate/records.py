"""The files of a run (``run.json``, ``records.jsonl``, a lock), what it was made with, and reading it back."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, TypeAlias

from inferscale.answers import SameAnswer
from inferscale.engine.result import Abstentions, SearchResult, as_plain, finite
from inferscale.identity import digest
from inferscale.tree import Problem, Trajectory

VERSION = 1
Record: TypeAlias = dict[str, Any]


class RunLockedError(RuntimeError):
    """Another process is writing into the run."""


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a kill, finds the old or the new content, never a part of it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def append(file: IO[bytes], record: Record, fsync: bool = False) -> None:
    """Adds one line and hands it to the operating system, where it survives a kill of this process.

    Args:
        file: Opened for appending, unbuffered.
        record: Plain data; numbers that are not finite become null.
        fsync: Also wait until it is on the disk, where it survives a power cut.
    """
    rest = (json.dumps(finite({"v": VERSION, **record}), allow_nan=False, default=as_plain) + "\n").encode()
    while rest:  # a disk that is nearly full takes a part; a torn line must not be followed by another one
        rest = rest[file.write(rest) :]
    if fsync:
        os.fsync(file.fileno())


def read_records(path: Path) -> list[Record]:
    """Complete lines of a records file; a torn last line, as a kill leaves it, is passed over.

    Raises:
        ValueError: If a line before the last is damaged, or one was written by a newer version.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        record = _parsed(line)
        version = record.get("v")
        if not isinstance(version, int) or (version <= VERSION and "key" not in record):
            raise ValueError(f"{path}, line {number} is damaged: restore the file, or delete that line "
                             "(its problem is then solved again)")  # fmt: skip
        if record["v"] > VERSION:
            raise ValueError(f"{path}, line {number} was written by a newer inferscale (version {record['v']} > "
                             f"{VERSION}): update to read it")  # fmt: skip
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
    *lines, _torn = path.read_text("utf-8", errors="replace").split("\n")
    kept = []
    for number, line in enumerate(lines, 1):
        row = _parsed(line)
        if not row:
            raise ValueError(f"{path}, line {number} is damaged: restore the file, or delete it")
        if wanted(row):
            kept.append(line)
    if len(kept) < len(lines):
        write_atomically(path, "".join(line + "\n" for line in kept))


def prune_journal(path: Path, finished: Collection[int]) -> None:
    """Takes the searches with these root keys out of a search journal: their results are in the records."""
    names = {f"{key:016x}" for key in finished}
    keep_lines(path, lambda row: row.get("root") not in names)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a run; it is gone with the process, however that ends.

    Raises:
        RunLockedError: If another writer holds it.
    """
    with path.open("a+", encoding="utf-8") as file:
        if not _try_lock(file):
            file.seek(0)
            raise RunLockedError(
                f"another process (pid {file.read().strip() or 'unknown'}) is writing into {path.parent}: wait for it, "
                "or give another folder"
            )
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[str]) -> bool:
        file.seek(1 << 20)  # beyond the text: a locked byte cannot be read by others
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _parsed(line: bytes | str) -> dict[str, Any]:
    """The object of a line; an empty one if the line holds none."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


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
        """The most memory that the run has used: of the GPU where there is one, else of the process."""
        return max((record["measured"]["peak_memory_bytes"] for record in self.finished), default=None)

    @property
    def abstentions(self) -> Abstentions:
        """Count how many trajectories of all problems have no answer, and why."""
        return sum((abstentions_in(record["result"]) for record in self.finished), Abstentions())

    def results(self) -> Iterator[SearchResult]:
        """The searches, trees included, one after the other."""
        return (SearchResult.from_dict(record["result"]) for record in self.finished)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each solved problem: what it cost and whether it was right, without the tree."""
        kept = ("index", "id", "group", "status", "answer", "gold", "correct")
        rows = []
        for record in self.records:
            silent = abstentions_in(record["result"])
            counts = {"cut": silent.cut, "unread": silent.unread, "abstaining": silent.abstaining}
            rows.append(
                {**{name: record.get(name) for name in kept}, "trajectories": silent.trajectories, **counts,
                 "stopped_by": record["result"]["stopped_by"], **record["result"]["cost"]}
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
