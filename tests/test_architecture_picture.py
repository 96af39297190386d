"""The picture of the rooms shows what the import test holds."""

import re
import runpy
from pathlib import Path

import pytest

from tests.test_architecture import ROOMS

DOCS = Path(__file__).parent.parent / "docs"
PICTURE = (DOCS / "images" / "rooms.svg").read_text(encoding="utf-8")
DRAWING = runpy.run_path(str(DOCS / "draw_rooms.py"))
ARROWS = re.findall(r'data-from="(\w+)" data-to="(\w+)"', PICTURE)


def reached(arrows, room):
    found, todo = set(), [room]
    while todo:
        here = todo.pop()
        more = {other for start, other in arrows if start == here} - found
        found, todo = found | more, todo + sorted(more)
    return found


def test_every_room_has_its_box():
    assert sorted(re.findall(r"<text[^>]*>(\w+)</text>", PICTURE)) == sorted(ROOMS), "run `make pictures`"
    assert set(DRAWING["PLACES"]) == set(ROOMS), "give every room a place in docs/draw_rooms.py"


@pytest.mark.parametrize("room", ROOMS)
def test_the_arrows_lead_where_a_room_may_look(room):
    allowed = [(start, other) for start, others in ROOMS.items() for other in others]
    assert reached(ARROWS, room) == reached(allowed, room), "run `make pictures`"
    assert room not in reached(ARROWS, room), f"{room} imports itself over others"


def test_no_arrow_can_be_left_out():
    assert len(set(ARROWS)) == len(ARROWS)
    for start, other in ARROWS:
        rest = [arrow for arrow in ARROWS if arrow != (start, other)]
        assert other not in reached(rest, start)
