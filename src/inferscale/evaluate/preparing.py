"""Opening a run's folder: a new one, one to go on in, or one of another configuration."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferscale.aggregators import SameAnswer
from inferscale.tree import Problem

from .fingerprints import digest, git_state, versions
from .records import cut_torn_line, keep_lines, write_atomically
from .run import ABOUT, FORMAT, JOURNAL, RECORDS, latest_records, read_about


class ChangedRunError(ValueError):
    """The folder holds a run of another configuration."""


@dataclass(frozen=True)
class Task:
    """What is run in a folder.

    Attributes:
        folder: The folder.
        problems: The problems.
        keys: A name for each under the configuration.
        grade: Tells whether an answer is right.
        fsync: Whether each record is waited for.
    """

    folder: Path
    problems: list[Problem]
    keys: list[str]
    grade: SameAnswer
    fsync: bool


def prepare(task: Task, identity: Mapping[str, Any], force: bool) -> None:
    """Writes ``run.json``, or checks that what is there belongs to this call.

    Raises:
        ChangedRunError: If it does not and `force` is not set.
    """
    about = read_about(task.folder)
    cut_torn_line(task.folder / RECORDS)
    identity = json.loads(json.dumps(identity, default=str))
    if about is None:
        _check_orphans(task, force)
    else:
        changed = _differences(about["identity"], identity)
        if not changed:
            return
        if not force:
            raise ChangedRunError(_what_changed(task.folder, about["identity"], identity, changed))
        _put_aside(task, digest(about["identity"])[:8], keep_journal=changed == ["problems"])
    fresh = {"format": FORMAT, "version": 1, "identity": identity, "versions": versions(), "git": git_state(Path.cwd()),
             "command": sys.argv, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}  # fmt: skip
    write_atomically(task.folder / ABOUT, json.dumps(fresh, indent=1) + "\n")


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


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of what differs; by digest, for NaN is not equal to itself."""
    return sorted(name for name in {*old, *new} if digest(old.get(name)) != digest(new.get(name)))


def _what_changed(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]) -> str:
    told = "; ".join(f"{name} was {str(old.get(name))[:120]} and is {str(new.get(name))[:120]}" for name in names)
    return (
        f"{folder} holds a run of another configuration ({told}): give another folder, or force=True (--force) to go "
        "on with what is still valid"
    )


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
    write_atomically(records, "".join(json.dumps(row) + "\n" for row in rows))
