"""The files of a run: ``run.json`` (written whole), ``records.jsonl`` (appended to), and the lock."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

from inferscale.result import as_plain, finite

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
