"""The models' answers, and a record of them from which a search that was killed goes on."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from inferscale.cost import Cost
from inferscale.identity import compare, warn_of_unknown
from inferscale.tree import Node, Step

from .files import RunLockedError, append_line, keep_whole, read_lines, sealed, try_lock
from .result import step_from_dict, step_to_dict

FORMAT = "inferscale.Journal"
VERSION = 2
_MEASURED = ("stopped_by", "prefill", "joules", "python", "first_answer")
"""What a line of samples has only where it is known."""


class Samples(NamedTuple):
    """A generator's answer to one search: the steps of each request, and the search's share of the seconds.

    `prefill` is the part of the seconds in which prompts and paths were read, `joules` the search's share of the
    energy; ``None`` where they were not measured. `python` are the search's own seconds before it asked for this, and
    `first_answer` those until its first finished solution, if there is one by now. `stopped_by` says what cut samples
    short and ended the search with this answer: ``"seconds"`` or ``"cancel"``.
    """

    steps: Sequence[Sequence[Step]]
    seconds: float
    stopped_by: str | None = None
    prefill: float | None = None
    joules: float | None = None
    python: float | None = None
    first_answer: float | None = None


class Scores(NamedTuple):
    """A reward model's answer to one search: of each node its score, its step scores if it has any, and the bill."""

    values: Sequence[float]
    step_scores: Sequence[Sequence[float] | None]
    cost: Cost


class Journal:
    """An append-only file of JSON lines: a header, then one line for each answer of a model to one search.

    ``journal=`` of `solve` and its like opens one, and goes on from what it holds.

    ``{"format", "version", "identity"}`` is the header, with those of strategy, models, thinking, budget and seed. An
    answer names its search by the key of its root and its place among the answers to it: ``{"root", "n", "kind":
    "steps", "steps", "seconds"}``, with what else was measured (`Samples`), or ``{"root", "n", "kind": "scores",
    "scores", "step_scores", "cost"}``. Steps that the clock cut, so that the search ended with them, have
    ``"stopped_by": "seconds"`` too, and ``{"root", "n", "kind": "timeout"}`` stands where it ended a search between two
    answers, with ``"stopped_by": "pool"`` if it was that of a pool: nothing else could tell. Every line ends with a
    checksum.

    The answers to one search stand in the order in which it asked. Searches are deterministic given their answers, so
    giving them again rebuilds trees, scores and costs exactly; what is asked for after the last one goes to the models.
    The lines of different searches may stand in any order: no two runs need be answered alike.

    Where an answer takes long, the samples of it that have ended stand before it, each named by its branch: ``{"root",
    "kind": "sample", "key", "step"}``. They count until the next other line of their search, which holds them again.

    Each line is handed to the operating system when it is written, where it survives a kill of this process. A torn
    last line, as a kill leaves it, is cut off. One call at a time writes: the file is locked.

    Example:
        >>> import tempfile
        >>> import inferscale as isc
        >>> from inferscale.testing import BrokenGenerator, ToyGenerator, ToyReward
        >>> options = {"reward_model": ToyReward(), "journal": f"{tempfile.mkdtemp()}/search.jsonl"}
        >>> try:  # killed in the third call of the model
        ...     isc.solve("How many?", isc.REBASE(4), BrokenGenerator(die_after=2), **options)
        ... except KeyboardInterrupt:
        ...     generator = ToyGenerator()
        ...     result = isc.solve("How many?", isc.REBASE(4), generator, **options)  # goes on there
        >>> result.answer, generator.calls
        ('1', 2)
    """

    def __init__(self, file: IO[bytes], rows: Mapping[str, list[dict[str, Any]]]) -> None:
        self._file = file
        self._rows = dict(rows)
        self._count = Counter({root: sum(row["kind"] != "sample" for row in own) for root, own in rows.items()})

    @classmethod
    def open(cls, path: str | os.PathLike[str], identity: dict[str, Any]) -> Journal:
        """Open the journal at `path`, or begin it; a warning says which parts cannot tell what they are.

        Raises:
            ValueError: If the file belongs to another call (a part, budget or seed differs), or is damaged.
            RunLockedError: If another call is writing to it.
        """
        target = Path(path)
        warn_of_unknown(identity, f"the journal {target}")
        header = {"format": FORMAT, "version": VERSION, "identity": identity}
        file = target.open("ab", buffering=0)
        try:
            if not try_lock(file):
                raise RunLockedError(f"another call is writing to the journal {target}: wait for it, or give another")
            rows = _load(target, header)
            if not rows:
                append_line(file, sealed(header))
        except BaseException:
            file.close()
            raise
        by_root: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows[1:]:
            of_root = by_root[row["root"]]
            while row["kind"] != "sample" and of_root and of_root[-1]["kind"] == "sample":
                of_root.pop()
            of_root.append(row)
        return cls(file, by_root)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def samples(self, root: Node) -> dict[int, Step]:
        """Return the steps of an answer that was not complete, by the keys of their branches; ask before `answers`."""
        rows = self._rows.get(f"{root.key:016x}", [])
        return {int(row["key"], 16): step_from_dict(row["step"]) for row in rows if row["kind"] == "sample"}

    def answers(self, root: Node) -> Iterator[Samples | Scores | str]:
        """Yield what is recorded for the search of `root`, once; where the clock ended it, what it ran out of."""
        for row in self._rows.pop(f"{root.key:016x}", ()):
            if row["kind"] == "sample":
                continue
            if row["kind"] == "steps":
                groups = [[step_from_dict(step) for step in steps] for steps in row["steps"]]
                yield Samples(groups, row["seconds"], *(row.get(name) for name in _MEASURED))
            elif row["kind"] == "scores":
                yield Scores(row["scores"], row["step_scores"], Cost.from_dict(row["cost"]))
            else:
                yield row.get("stopped_by", "seconds")

    def record_sample(self, root: Node, key: int, step: Step) -> None:
        """Write one sample of an answer that is not complete, under the key of its branch."""
        self._write(root, {"kind": "sample", "key": f"{key:016x}", "step": step_to_dict(step)})

    def record(self, root: Node, answer: Samples | Scores | str) -> None:
        """Write an answer to the search of `root`, or ``"seconds"`` or ``"pool"``: whose clock ended it here."""
        if isinstance(answer, Samples):
            steps = [[step_to_dict(step) for step in group] for group in answer.steps]
            row = {"kind": "steps", "steps": steps, "seconds": answer.seconds}
            row |= {name: value for name in _MEASURED if (value := getattr(answer, name)) is not None}
        elif isinstance(answer, Scores):
            row = {"kind": "scores", "scores": answer.values, "step_scores": answer.step_scores}
            row["cost"] = answer.cost.to_dict()
        else:
            row = {"kind": "timeout"} if answer == "seconds" else {"kind": "timeout", "stopped_by": answer}
        self._write(root, row)

    def _write(self, root: Node, row: Mapping[str, Any]) -> None:
        name = f"{root.key:016x}"
        place = {} if row["kind"] == "sample" else {"n": self._count[name]}
        append_line(self._file, sealed({"root": name, **place, **row}))
        self._count[name] += len(place)


def _load(path: Path, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the complete lines of the file; a torn last line is cut off, once the file is known to be of this call."""
    data = path.read_bytes()
    rows, lines = read_lines(data)
    advice = f"run `inferscale repair {path}`, which keeps what is whole, or give another path"
    if lines:
        first = rows[0]
        if first is None or first.get("format") != FORMAT:
            if b'"format": "' + FORMAT.encode() in lines[0]:
                raise ValueError(f"the journal {path} is damaged at line 1: give another path, or delete it")
            raise ValueError(f"{path} is no journal: give another path")
        if first.get("version") != VERSION:
            raise ValueError(
                f"the journal {path} has version {first.get('version')}, and this inferscale goes on with version "
                f"{VERSION}: use the one that wrote it, or give another path"
            )
        apart = compare(first.get("identity"), header["identity"])
        if apart.changed:
            raise ValueError(
                f"the journal {path} was written by another call ({apart}): give another path, or delete it"
            )
        use = usable(rows)
        if not all(use):
            raise ValueError(f"the journal {path} is damaged at line {use.index(False) + 1}: {advice}")
    # Less than a line is ours only if it is the beginning of our header.
    elif not sealed(header).encode().startswith(data):
        raise ValueError(f"{path} is no journal, and is left as it is: give another path")
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)
    return [row for row in rows if row is not None]


def repair_journal(path: Path) -> tuple[int, int]:
    """Keep the lines of a journal that are whole and can be used; return how many stay, and how many do not.

    What was taken out stands in ``NAME.damaged``. Of a search that lost a line, those before it stay: it goes on there.

    Raises:
        ValueError: If it is no journal, or its header is damaged, so that nobody can tell whose answers it holds.
        RunLockedError: If a call is writing to it.
    """
    with path.open("ab") as file:
        if not try_lock(file):
            raise RunLockedError(f"a call is writing to the journal {path}: wait for it")
        rows, lines = read_lines(path.read_bytes())
        if lines and (rows[0] is None or rows[0].get("format") != FORMAT):
            raise ValueError(f"the first line of {path} says whose answers the others are, and is damaged: restore it, "
                             "or give the call another journal")  # fmt: skip
        return keep_whole(path, usable)


def usable(rows: Sequence[Mapping[str, Any] | None]) -> list[bool]:
    """Say of each line of a journal whether its search can be given it: none that comes before it is missing.

    The places of answers tell, in journals that have them; without them, a damaged line may be any search's.
    """
    use: list[bool] = []
    count, some_are_lost = Counter[str](), False
    for row in rows:
        known = row is not None and (not use or {"root", "kind"} <= row.keys())
        if row is not None and known and use and row["kind"] != "sample":
            place = row.get("n", -1 if some_are_lost else count[row["root"]])
            known = place == count[row["root"]]
            count[row["root"]] += known
        some_are_lost = some_are_lost or not known
        use.append(known)
    return use
