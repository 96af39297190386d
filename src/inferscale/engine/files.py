"""Files that outlive a kill: lines and documents with checksums, appended or replaced in one piece, and locks."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

SEAL = "crc32"
"""Last member of a JSON object that was written with a checksum: the CRC-32 of the object's text without it."""


class RunLockedError(RuntimeError):
    """Refusal to write where another process, or another call in this one, is writing.

    Example:
        >>> from inferscale import Problem, RepeatedSampling
        >>> from inferscale.evaluate import run_evaluation
        >>> from inferscale.testing import ToyGenerator
        >>> problems = [Problem("How many?", answer="3")]
        >>> class Meanwhile(ToyGenerator):
        ...     def generate(self, requests):  # another evaluation of the same folder while this one runs
        ...         return run_evaluation(problems, RepeatedSampling(4), ToyGenerator(), "runs/locked")
        >>> run_evaluation(problems, RepeatedSampling(4), Meanwhile(), "runs/locked")
        Traceback (most recent call last):
            ...
        inferscale.engine.files.RunLockedError: another process (pid ...) is writing into runs/locked: wait for ...
    """


def as_plain(value: Any) -> Any:
    """Return a number or an array of NumPy or torch as Python's, for ``json.dumps(..., default=as_plain)``."""
    try:
        return value.tolist()
    except AttributeError:
        raise TypeError(f"{type(value).__name__} {value!r:.80} has no place in JSON") from None


def sealed(row: Mapping[str, Any], indent: int | None = None, allow_nan: bool = False) -> str:
    """Return `row` as JSON with its checksum.

    The text of an object is the same again when it has been read and is written, so that the checksum holds however a
    file is laid out, as long as nothing in it is changed.
    """
    text = json.dumps(row, allow_nan=allow_nan, default=as_plain)
    if indent is None:
        return f'{text[:-1]}{", " * bool(row)}"{SEAL}": "{_crc(text)}"}}'
    return json.dumps({**json.loads(text), SEAL: _crc(text)}, indent=indent)


def unsealed(text: str | bytes, must: bool = False) -> dict[str, Any] | None:
    """Return the object that a text holds, without its checksum; ``None`` if it holds none, or another one.

    Args:
        text: JSON.
        must: Whether a checksum has to be there; files of older versions have none.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    told = row.pop(SEAL, None)
    if told is None:
        return None if must else row
    return row if told == _crc(json.dumps(row)) else None


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def read_lines(data: bytes) -> tuple[list[dict[str, Any] | None], list[bytes]]:
    """Return for each complete line the object that it holds (``None``: damaged), and the lines themselves.

    Once a line has a checksum, all that follow must have one. What stands after the last line end is a torn line, as a
    kill leaves it, and is in neither.
    """
    lines = data.split(b"\n")[:-1]
    rows: list[dict[str, Any] | None] = []
    must = False
    for line in lines:
        rows.append(unsealed(line, must))
        must = must or f'"{SEAL}"'.encode() in line
    return rows, lines


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Has an error of the operating system name the file, as that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def append_line(file: IO[bytes], text: str, fsync: bool = False) -> None:
    """Add one line and hand it to the operating system, where it survives a kill of this process.

    A line that does not fit is taken back, so that no other follows a torn one.

    Args:
        file: Opened for appending, unbuffered.
        text: The line.
        fsync: Also wait until it is on the disk, where it survives a power cut.
    """
    whole = rest = text.encode() + b"\n"
    with naming(getattr(file, "name", "")):
        try:
            while rest:  # a disk that is nearly full takes a part
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size - (len(whole) - len(rest)))
            raise
        if fsync:
            os.fsync(file.fileno())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill, finds the old or the new content, never a part of it."""
    temporary = path.with_name(path.name + ".tmp")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)  # a part of it would take room on a full disk
            raise


def keep_whole(path: Path, follows: Callable[[Sequence[dict[str, Any] | None]], list[bool]]) -> tuple[int, int]:
    """Rewrite a file of lines without those that are damaged, and those that are no use without them.

    What is taken out is added to ``NAME.damaged`` first.

    Args:
        path: The file.
        follows: Given what each line holds, says which are to stay.

    Returns:
        The number of lines that stay, and of those that do not.
    """
    data = path.read_bytes()
    rows, lines = read_lines(data)
    stay = follows(rows)
    torn = data[data.rfind(b"\n") + 1 :]
    taken = [line for line, kept in zip(lines, stay, strict=True) if not kept] + ([torn] if torn else [])
    if taken:
        with naming(path), path.with_name(path.name + ".damaged").open("ab") as file:
            file.write(b"".join(line + b"\n" for line in taken))
        write_atomically(path, b"".join(line + b"\n" for line, kept in zip(lines, stay, strict=True) if kept))
    return sum(stay), len(taken)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file; it is gone with the process, however that ends.

    Raises:
        RunLockedError: If another writer holds it.
    """
    with path.open("a+b", buffering=0) as file:
        if not try_lock(file):
            file.seek(0)
            holder = file.read().decode("ascii", "replace").strip() or "unknown"
            raise RunLockedError(
                f"another process (pid {holder}) is writing into {path.parent}: wait for it, or give another folder"
            )
        with naming(path):
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield


if sys.platform == "win32":
    import msvcrt

    def try_lock(file: IO[Any]) -> bool:
        """Lock an open file until it is closed; False if somebody else has."""
        place = file.tell()
        file.seek(1 << 40)  # beyond the text: a locked byte cannot be read by others
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            file.seek(place)
        return True

else:
    import fcntl

    def try_lock(file: IO[Any]) -> bool:
        """Lock an open file until it is closed; False if somebody else has."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
