"""Draws the rooms of the package and who imports whom: docs/images/rooms.svg.

python docs/draw_rooms.py

An arrow is drawn where a room may import another one that it does not already reach over other arrows.
"""

import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

PICTURE = Path(__file__).parent / "images" / "rooms.svg"
Rooms = Mapping[str, AbstractSet[str]]
WIDTH, HEIGHT, MARGIN = 104, 34, 24
# fmt: off
PLACES = {  # column and row
    "plots": (0.5, 0), "serve": (2.5, 0), "ray": (1.5, 0), "evaluate": (2.5, 1),
    "scaling": (1, 2), "testing": (0, 2),
    "engine": (1, 3), "viz": (1, 4), "aggregators": (1, 5),
    "quiet_star": (3, 3), "rewards": (5, 3), "generators": (4, 4),
    "strategies": (2, 5), "runtime": (3, 5), "flops": (3, 6),
    "base": (1, 7), "flow": (1, 8), "zoo": (5, 8), "_http": (4, 8),
    "cost": (0, 9), "tree": (1, 9), "functional": (2, 9), "identity": (3, 9), "_compat": (4, 9),
    "answers": (1, 10), "thinking": (1, 11),
}
# fmt: on
COLOURS = {
    "#e8eef7": ("_compat", "tree", "thinking", "cost", "identity", "flow", "base", "functional", "answers"),
    "#fdebd3": ("flops", "runtime", "generators", "rewards", "quiet_star", "zoo", "_http"),
    "#e3f3e6": ("strategies", "aggregators"),
}
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1d2733;text-anchor:middle}"
    "rect.room{stroke:#5b6b7d;stroke-width:1}path{fill:none;stroke:#7d8da0;stroke-width:1.2}"
)


def reached(rooms: Rooms, room: str) -> set[str]:
    """Everything that `room` may import, and what that may import, and so on."""
    return set(rooms[room]).union(*(reached(rooms, other) for other in rooms[room]))


def arrows(rooms: Rooms) -> list[tuple[str, str]]:
    """What each room may import and does not reach over another room."""
    return [
        (room, other)
        for room in rooms
        for other in sorted(rooms[room])
        if not any(other in reached(rooms, between) for between in rooms[room])
    ]


def drawn(rooms: Rooms) -> str:
    """The picture, as SVG."""
    half = WIDTH / 2 + MARGIN
    where = {room: (half + 150 * PLACES[room][0], half - 30 + 66 * PLACES[room][1]) for room in rooms}
    width = max(x for x, _ in where.values()) + WIDTH / 2 + MARGIN
    height = max(y for _, y in where.values()) + HEIGHT / 2 + MARGIN
    colour = {room: fill for fill, names in COLOURS.items() for room in names}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>The rooms of inferscale</title><style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,1 L7,4 L0,7 z" style="fill:#7d8da0;stroke:none"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="10" fill="#ffffff"/>',
    ]
    for room, other in arrows(rooms):
        (x, y), (u, v) = where[room], where[other]
        y, v = y + HEIGHT / 2, v - HEIGHT / 2
        bend = (v - y) / 2
        parts.append(
            f'<path data-from="{room}" data-to="{other}" marker-end="url(#tip)" '
            f'd="M{x:.0f},{y:.0f} C{x:.0f},{y + bend:.0f} {u:.0f},{v - bend:.0f} {u:.0f},{v:.0f}"/>'
        )
    for room, (x, y) in where.items():
        parts.append(
            f'<rect class="room" x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" '
            f'rx="6" fill="{colour.get(room, "#f3e9f7")}"/><text x="{x:.0f}" y="{y + 4.5:.0f}">{room}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.test_architecture import ROOMS

    PICTURE.write_text(drawn(ROOMS), encoding="utf-8")
