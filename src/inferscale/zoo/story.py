"""Sentences of the embedded task: events, their wording, and reading a story back (standard library only)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal[
    "start", "start_groups", "start_times", "add", "sub", "add_groups", "sub_groups", "times", "split", "fraction"
]

NAMES = (
    "Mia", "Tom", "Ana", "Ben", "Zoe", "Leo", "Eva", "Max", "Ida", "Sam", "Lea", "Jan", "Amy", "Kai", "Nora", "Paul",
)  # fmt: skip
OBJECTS = ("pens", "coins", "books", "cards", "shells", "stamps", "beads", "nuts", "eggs", "apples", "plums", "stones")
CONTAINERS = ("boxes", "bags", "trays", "jars", "baskets", "packs")

TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "start": ("{n} has {0} {o}.", "{n} starts with {0} {o}."),
    "start_groups": ("{n} has {0} {c} with {1} {o} in each.", "{n} starts with {0} {c} of {1} {o}."),
    "start_times": (
        "{m} has {0} {o}. {n} has {1} times as many.",
        "{m} owns {0} {o}. {n} starts with {1} times as many.",
    ),
    "add": ("{n} buys {0} more.", "{n} finds {0} {o}.", "{n} gets {0} from {m}."),
    "sub": ("{n} sells {0} of them.", "{n} loses {0}.", "{n} gives {0} to {m}."),
    "add_groups": ("{n} buys {0} {c} of {1}.", "{n} finds {0} {c} with {1} in each."),
    "sub_groups": ("{n} sells {0} {c} of {1}.", "{n} loses {0} {c} with {1} in each."),
    "times": ("{n} collects more until there are {0} times as many.", "Then {n} has {0} times as many."),
    "split": (
        "{n} makes {0} equal parts and keeps one.",
        "{n} shares them equally among {0} people and keeps one part.",
    ),
    "fraction": ("{n} sells one of every {0}.", "{n} gives one of every {0} to {m}."),
}
QUESTIONS = ("How many {o} does {n} have now?\n", "How many {o} are left?\n")


@dataclass(frozen=True, slots=True)
class Event:
    """One sentence's meaning: what happens to the running quantity, and by which numbers."""

    kind: Kind
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the reference derivation, ``left op right = result``.

    Attributes:
        left: First operand.
        op: One of ``+ - * /``.
        right: Second operand.
        result: The exact result.
        left_from: Index of the line whose result `left` is, or ``None`` if the story states it.
        right_from: The same for `right`.
    """

    left: int
    op: str
    right: int
    result: int
    left_from: int | None = None
    right_from: int | None = None

    def text(self, swap: bool = False) -> str:
        """The line as the policies write it, end of line included; `swap` exchanges the operands."""
        left, right = (self.right, self.left) if swap else (self.left, self.right)
        return f"{left} {self.op} {right} = {self.result}\n"


def apply(left: int, op: str, right: int) -> int:
    """The result of one operation; division rounds down.

    Raises:
        ValueError: If `op` is not one of ``+ - * /``.
    """
    if op == "+":
        return left + right
    if op == "-":
        return left - right
    if op == "*":
        return left * right
    if op == "/":
        return left // right
    raise ValueError(f"an operator is one of + - * /, got {op!r}")


def derive(events: list[Event]) -> list[Line]:
    """The reference derivation of a story, one `Line` per operation."""
    lines: list[Line] = []
    total, source = 0, None  # the running quantity and the line it came from

    def write(left: int, op: str, right: int, left_from: int | None, right_from: int | None = None) -> int:
        lines.append(Line(left, op, right, apply(left, op, right), left_from, right_from))
        return lines[-1].result

    for event in events:
        first, second = (*event.values, 0)[:2]
        if event.kind == "start":
            total = first
            continue
        if event.kind in ("start_groups", "start_times"):
            total = write(first, "*", second, None)
        elif event.kind in ("add_groups", "sub_groups"):
            group = write(first, "*", second, None)
            total = write(total, "+" if event.kind == "add_groups" else "-", group, source, len(lines) - 1)
        elif event.kind == "fraction":
            part = write(total, "/", first, source)
            total = write(total, "-", part, source, len(lines) - 1)
        else:
            op = {"add": "+", "sub": "-", "times": "*", "split": "/"}[event.kind]
            total = write(total, op, first, source)
        source = len(lines) - 1
    return lines


def final_value(events: list[Event]) -> int:
    """The running quantity after all events."""
    lines = derive(events)
    return lines[-1].result if lines else events[0].values[0]


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[Kind, re.Pattern[str]]]:
    """A compiled pattern per wording, longest first so that no wording hides behind a shorter one."""
    words = {"n": "|".join(NAMES), "m": "|".join(NAMES), "o": "|".join(OBJECTS), "c": "|".join(CONTAINERS)}
    patterns = []
    for kind, texts in TEMPLATES.items():
        for text in texts:
            pattern = re.escape(text)
            for key, choices in words.items():
                pattern = pattern.replace(re.escape(f"{{{key}}}"), f"(?:{choices})")
            for index in range(2):
                pattern = pattern.replace(re.escape(f"{{{index}}}"), "([0-9]+)")
            patterns.append((kind, re.compile(pattern + " ")))
    return sorted(patterns, key=lambda item: -len(item[1].pattern))


def read_events(prompt: str) -> list[Event]:
    """The events that a story tells, in order.

    Raises:
        ValueError: If the text is not a story of the embedded task.
    """
    events: list[Event] = []
    position = 0
    while not prompt.startswith("How many ", position):
        found = ((kind, pattern.match(prompt, position)) for kind, pattern in _patterns())
        kind, match = next(((kind, match) for kind, match in found if match), (None, None))
        starts = kind is not None and kind.startswith("start")
        if kind is None or match is None or starts == bool(events):
            raise ValueError(
                f"not a problem of the embedded task, cannot read {prompt[position : position + 60]!r}: "
                "use a prompt made by inferscale.zoo.task.generate"
            )
        events.append(Event(kind, tuple(int(value) for value in match.groups())))
        position = match.end()
    if not events:
        raise ValueError(f"not a problem of the embedded task: {prompt[:60]!r} tells no story")
    return events
