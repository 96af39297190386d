"""The models' answers, and a record of them from which a search that was killed goes on."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple

from inferscale.cost import Cost
from inferscale.identity import compare, warn_of_unknown
from inferscale.tree import Node, Step

from .result import as_plain, step_from_dict, step_to_dict

FORMAT = "inferscale.Journal"
VERSION = 2


class Samples(NamedTuple):
    """A generator's answer to one search: the steps of each request, and the search's share of the seconds.

    `stopped_by` says what cut samples short and ended the search with this answer: ``"seconds"`` or ``"cancel"``.
    """

    steps: Sequence[Sequence[Step]]
    seconds: float
    stopped_by: str | None = None


class Scores(NamedTuple):
    """A reward model's answer to one search: of each node its score, its step scores if it has any, and the bill."""

    values: Sequence[float]
    step_scores: Sequence[Sequence[float] | None]
    cost: Cost


class Journal:
    """An append-only file of JSON lines: a header, then one line for each answer of a model to one search.

    ``{"format", "version", "identity"}`` is the header, with those of strategy, models, thinking, budget and seed. An
    answer names its search by the key of its root: ``{"root", "kind": "steps", "steps", "seconds"}`` or ``{"root",
    "kind": "scores", "scores", "step_scores", "cost"}``. Steps that the clock cut, so that the search ended with them,
    have ``"stopped_by": "seconds"`` too, and ``{"root", "kind": "timeout"}`` stands where it ended a search between two
    answers: nothing else could tell.

    The answers to one search stand in the order in which it asked. Searches are deterministic given their answers, so
    giving them again rebuilds trees, scores and costs exactly; what is asked for after the last one goes to the models.
    The lines of different searches may stand in any order, which is why either schedule continues the other's journal.

    Where an answer takes long, the samples of it that have ended stand before it, each named by its branch: ``{"root",
    "kind": "sample", "key", "step"}``. They count until the next other line of their search, which holds them again.

    Each line is handed to the operating system when it is written, where it survives a kill of this process. A torn
    last line, as a kill leaves it, is cut off.
    """

    def __init__(self, file: IO[str], rows: dict[str, list[dict[str, Any]]]) -> None:
        self._file = file
        self._rows = rows

    @classmethod
    def open(cls, path: str | os.PathLike[str], identity: dict[str, Any]) -> Journal:
        """Open the journal at `path`, or begin it; a warning says which parts cannot tell what they are.

        Raises:
            ValueError: If the file belongs to another call (a part, budget or seed differs), or is damaged.
        """
        target = Path(path)
        warn_of_unknown(identity, f"the journal {target}")
        header = {"format": FORMAT, "version": VERSION, "identity": identity}
        by_root: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        rows = _load(target, header)
        for row in rows[1:]:
            of_root = by_root[row["root"]]
            while row["kind"] != "sample" and of_root and of_root[-1]["kind"] == "sample":
                of_root.pop()
            of_root.append(row)
        file = target.open("a", encoding="utf-8", buffering=1)  # by the line
        if not rows:
            file.write(json.dumps(header) + "\n")
        return cls(file, dict(by_root))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def samples(self, root: Node) -> dict[int, Step]:
        """Return the steps of an answer that was not complete, by the keys of their branches; ask before `answers`."""
        rows = self._rows.get(f"{root.key:016x}", [])
        return {int(row["key"], 16): step_from_dict(row["step"]) for row in rows if row["kind"] == "sample"}

    def answers(self, root: Node) -> Iterator[Samples | Scores | None]:
        """Yield what is recorded for the search of `root`, once; ``None`` stands where the clock ended it."""
        for row in self._rows.pop(f"{root.key:016x}", ()):
            if row["kind"] == "sample":
                continue
            if row["kind"] == "steps":
                groups = [[step_from_dict(step) for step in steps] for steps in row["steps"]]
                yield Samples(groups, row["seconds"], row.get("stopped_by"))
            elif row["kind"] == "scores":
                yield Scores(row["scores"], row["step_scores"], Cost(**row["cost"]))
            else:
                yield None

    def record_sample(self, root: Node, key: int, step: Step) -> None:
        """Write one sample of an answer that is not complete, under the key of its branch."""
        self._write(root, {"kind": "sample", "key": f"{key:016x}", "step": step_to_dict(step)})

    def record(self, root: Node, answer: Samples | Scores | None) -> None:
        """Write an answer to the search of `root`; ``None`` says that the clock ended it here."""
        if isinstance(answer, Samples):
            steps = [[step_to_dict(step) for step in group] for group in answer.steps]
            row = {"kind": "steps", "steps": steps, "seconds": answer.seconds}
            row |= {} if answer.stopped_by is None else {"stopped_by": answer.stopped_by}
        elif isinstance(answer, Scores):
            row = {"kind": "scores", "scores": answer.values, "step_scores": answer.step_scores}
            row["cost"] = asdict(answer.cost)
        else:
            row = {"kind": "timeout"}
        self._write(root, row)

    def _write(self, root: Node, row: Mapping[str, Any]) -> None:
        line = json.dumps({"root": f"{root.key:016x}", **row}, allow_nan=False, default=as_plain)
        self._file.write(line + "\n")


def _load(path: Path, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the complete lines of the file; a torn last line is cut off, once the file is known to be of this call."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if number == 1:
            if not isinstance(row, dict) or row.get("format") != FORMAT:
                raise ValueError(f"{path} is no journal: give another path")
            if row.get("version") != VERSION:
                raise ValueError(
                    f"the journal {path} has version {row.get('version')}, and this inferscale goes on with version "
                    f"{VERSION}: use the one that wrote it, or give another path"
                )
            apart = compare(row.get("identity"), header["identity"])
            if apart.changed:
                raise ValueError(
                    f"the journal {path} was written by another call ({apart}): give another path, or delete it"
                )
        elif not isinstance(row, dict) or not {"root", "kind"} <= row.keys():
            raise ValueError(f"the journal {path} is damaged at line {number}: give another path, or delete it")
        rows.append(row)
    # Less than a line is ours only if it is the beginning of our header.
    if not rows and not json.dumps(header).encode().startswith(data):
        raise ValueError(f"{path} is no journal, and is left as it is: give another path")
    if len(whole) != len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return rows
