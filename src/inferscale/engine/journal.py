"""A record of the models' answers, from which a search that was killed goes on."""

from __future__ import annotations

import json
import os
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from inferscale.cost import Cost
from inferscale.flow import GenerateRequest
from inferscale.tree import Node, Step

from .result import as_plain, step_from_dict, step_to_dict

FORMAT = "inferscale.Journal"
VERSION = 1


@dataclass(frozen=True)
class RecordedSteps:
    """The answer to one portion of samples."""

    steps: list[list[Step]]
    seconds: float


@dataclass(frozen=True)
class RecordedScores:
    """The answer to one request for scores."""

    scores: list[float]
    step_scores: list[list[float] | None]
    cost: Cost

    def give(self, nodes: Sequence[Node]) -> None:
        """Puts the scores on the nodes."""
        for node, value, steps in zip(nodes, self.scores, self.step_scores, strict=True):
            node.score = value
            node.step_scores = None if steps is None else tuple(steps)


class Journal:
    """An append-only file of JSON lines: a header, then one line for each answer, flushed once a wave.

    Searches are deterministic given their answers, so replaying them rebuilds trees, scores and costs exactly; where
    the clock ended one is recorded too. A torn last line, as a kill leaves it, is cut off.
    """

    def __init__(self, file: IO[str] | None, records: dict[str, deque[dict[str, Any]]]) -> None:
        self._file = file
        self._records = records

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None, fingerprint: dict[str, str]) -> Journal:
        """The journal at `path`, made if it is not there; without a path, one that records nothing.

        Raises:
            ValueError: If the file belongs to another call (strategy, budget or seed differ), or is damaged.
        """
        if path is None:
            return cls(None, {})
        target = Path(path)
        header = {"format": FORMAT, "version": VERSION, **fingerprint}
        records: defaultdict[str, deque[dict[str, Any]]] = defaultdict(deque)
        rows = _read(target, header)
        for row in rows[1:]:
            records[row["root"]].append(row)
        file = target.open("a", encoding="utf-8")
        if not rows:
            file.write(json.dumps(header) + "\n")
        return cls(file, dict(records))

    def __enter__(self) -> Self:
        """The journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def holds(self, root: Node) -> bool:
        """Whether there are answers to replay for the search of `root`."""
        return bool(self._records.get(f"{root.key:016x}"))

    def recorded_timeout(self, root: Node) -> bool:
        """Whether the record says that the clock ended the search here; it is said once."""
        rows = self._records.get(f"{root.key:016x}")
        if not rows or rows[0]["kind"] != "timeout":
            return False
        rows.popleft()
        return True

    def recorded_steps(self, root: Node, portion: Sequence[GenerateRequest]) -> RecordedSteps | None:
        """The recorded answer to `portion`, or ``None`` when the record has ended."""
        row = self._next(root, "steps")
        if row is None:
            return None
        if [len(steps) for steps in row["steps"]] != [request.n for request in portion]:
            raise ValueError("the journal does not fit this search: its code has changed since; delete the journal")
        return RecordedSteps([[step_from_dict(step) for step in steps] for steps in row["steps"]], row["seconds"])

    def recorded_scores(self, root: Node, nodes: Sequence[Node]) -> RecordedScores | None:
        """The recorded scores of `nodes`, or ``None`` when the record has ended."""
        row = self._next(root, "scores")
        if row is None:
            return None
        if len(row["scores"]) != len(nodes):
            raise ValueError("the journal does not fit this search: its code has changed since; delete the journal")
        return RecordedScores(row["scores"], row["step_scores"], Cost(**row["cost"]))

    def record_steps(
        self, root: Node, portion: Sequence[GenerateRequest], steps: Sequence[Sequence[Step]], seconds: float
    ) -> None:
        """Writes the answer to `portion`."""
        if self._file is not None:
            rows = [[step_to_dict(step) for step in group] for group in steps]
            self._write(root, {"kind": "steps", "steps": rows, "seconds": seconds})

    def record_scores(self, root: Node, nodes: Sequence[Node], cost: Cost) -> None:
        """Writes the scores of `nodes`."""
        if self._file is not None:
            scores, step_scores = [node.score for node in nodes], [node.step_scores for node in nodes]
            self._write(root, {"kind": "scores", "scores": scores, "step_scores": step_scores, "cost": asdict(cost)})

    def record_timeout(self, root: Node) -> None:
        """Writes that the clock ended the search of `root` here, which a replay could not tell."""
        self._write(root, {"kind": "timeout"})

    def flush(self) -> None:
        """Hands what was written to the operating system, where it survives a kill of this process."""
        if self._file is not None:
            self._file.flush()

    def _write(self, root: Node, row: dict[str, Any]) -> None:
        if self._file is not None:
            line = json.dumps({"root": f"{root.key:016x}", **row}, allow_nan=False, default=as_plain)
            self._file.write(line + "\n")

    def _next(self, root: Node, kind: str) -> dict[str, Any] | None:
        rows = self._records.get(f"{root.key:016x}")
        if not rows:
            return None
        row = rows.popleft()
        if row["kind"] != kind:
            raise ValueError(f"the journal does not fit this search: it holds {row['kind']} where {kind} are asked for")
        return row


def _read(path: Path, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The complete lines of the file; a torn last line is cut off it, once it is known to be a journal of this call."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    rows = [_row(line, number, path) for number, line in enumerate(whole.splitlines(), 1)]
    if rows:
        _check_header(rows[0], header, path)
    elif not json.dumps(header).encode().startswith(data):
        raise ValueError(f"{path} is no journal, and is left as it is: give another path")
    if len(whole) != len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return rows


def _row(line: bytes, number: int, path: Path) -> dict[str, Any]:
    """The object of a line: the header of the first one, a record of the others."""
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if isinstance(row, dict) and (number == 1 or {"root", "kind"} <= row.keys()):
        return row
    if number == 1:
        raise ValueError(f"{path} is no journal: give another path")
    raise ValueError(f"the journal {path} is damaged at line {number}: give another path, or delete it")


def _check_header(found: Mapping[str, Any], header: Mapping[str, Any], path: Path) -> None:
    if found.get("format") != FORMAT:
        raise ValueError(f"{path} is no journal: give another path")
    different = sorted(key for key in header if found.get(key) != header[key])
    if different:
        raise ValueError(
            f"the journal {path} was written by another call ({', '.join(different)} differ): "
            "give another path, or delete it"
        )
