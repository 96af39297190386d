"""Drawing random stories of the embedded task, by level (standard library only)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .story import CONTAINERS, NAMES, OBJECTS, QUESTIONS, TEMPLATES, Event, Kind, derive, final_value


@dataclass(frozen=True, slots=True)
class Level:
    """How hard a problem is.

    Attributes:
        min_steps: Fewest operations.
        max_steps: Most operations.
        limit: Greatest value of any result.
        table: Greatest first factor of a product of two stated numbers; the second is at most 9.
    """

    min_steps: int
    max_steps: int
    limit: int
    table: int

    @property
    def reach(self) -> int:
        """Greatest number that a sentence adds or takes away at once."""
        return max(20, self.limit // 4)


LEVELS: dict[int, Level] = {
    1: Level(3, 4, 100, 9),
    2: Level(4, 5, 300, 12),
    3: Level(6, 7, 800, 15),
    4: Level(7, 8, 1500, 20),
    5: Level(8, 10, 3000, 30),
}

_WEIGHTS: dict[Kind, int] = {
    "add": 8, "sub": 8, "add_groups": 6, "sub_groups": 5, "times": 4, "split": 3, "fraction": 4,
}  # fmt: skip
_LINES: dict[Kind, int] = {"add_groups": 2, "sub_groups": 2, "fraction": 2}


def draw_events(rng: random.Random, level: Level) -> list[Event]:
    """A random story of the level, every result in ``1..limit``."""
    steps_left = rng.randint(level.min_steps, level.max_steps)
    events = [_draw_start(rng, level)]
    total = final_value(events)
    steps_left -= len(derive(events))
    kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    while steps_left:
        kind = rng.choices(kinds, weights)[0]
        drawn = _draw_event(rng, kind, total, level) if _LINES.get(kind, 1) <= steps_left else None
        if drawn is not None:
            event, total = drawn
            events.append(event)
            steps_left -= _LINES.get(kind, 1)
    return events


def _draw_start(rng: random.Random, level: Level) -> Event:
    kind: Kind = rng.choice(("start", "start_groups", "start_times"))
    if kind == "start":
        return Event(kind, (rng.randint(5, level.reach),))
    if kind == "start_groups":
        first = rng.randint(2, level.table)
        return Event(kind, (first, rng.randint(2, min(9, level.limit // first))))
    times = rng.randint(2, 5)
    return Event(kind, (rng.randint(3, min(5 * level.table, level.limit // times)), times))


def _draw_event(rng: random.Random, kind: Kind, total: int, level: Level) -> tuple[Event, int] | None:
    """An event and the quantity after it, or ``None`` if the drawn numbers leave the range."""
    if kind in ("add", "sub"):
        values: tuple[int, ...] = (rng.randint(2, level.reach),)
        after = total + values[0] if kind == "add" else total - values[0]
    elif kind in ("add_groups", "sub_groups"):
        values = (rng.randint(2, level.table), rng.randint(2, 9))
        after = total + values[0] * values[1] * (1 if kind == "add_groups" else -1)
    else:
        values = (rng.randint(2, 5),)
        if kind != "times" and total % values[0]:
            return None
        part = total // values[0]
        after = total * values[0] if kind == "times" else part if kind == "split" else total - part
    return (Event(kind, values), after) if 1 <= after <= level.limit else None


def write_prompt(rng: random.Random, events: list[Event]) -> str:
    """The story of the events in random words, the question and its end of line included."""
    name, other = rng.sample(NAMES, 2)
    words = {"n": name, "m": other, "o": rng.choice(OBJECTS)}
    parts = [
        rng.choice(TEMPLATES[event.kind]).format(*event.values, c=rng.choice(CONTAINERS), **words) for event in events
    ]
    return " ".join([*parts, rng.choice(QUESTIONS).format(**words)])
