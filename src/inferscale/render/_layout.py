"""Where the nodes of a tree go: a tidy drawing, after Reingold and Tilford 1981."""

from __future__ import annotations

from collections.abc import Sequence

APART = 1.0
"""Rows between siblings."""
COUSINS_APART = 1.5
"""Rows between neighbours with different parents."""

_Outline = list[tuple[float, float]]


def tidy_rows(children: Sequence[Sequence[int]]) -> list[float]:
    """A row for each node, the least one 0; its column is its depth.

    Children keep their order, a parent is half-way between its first and its last child, nodes of one depth are at
    least `APART` (siblings) or `COUSINS_APART` rows apart, no edges cross, and equal subtrees look the same wherever
    they are.

    Args:
        children: For each node the places of its children, which come after it; node 0 is the root.
    """
    offsets = [0.0] * len(children)  # from the parent
    outlines: list[_Outline] = [[] for _ in children]  # first and last row of each level below, from the node
    for node in reversed(range(len(children))):
        outline: _Outline = []
        for child in children[node]:
            offsets[child] = _room(outline, outlines[child])
            outline = _joined(outline, outlines[child], offsets[child])
            outlines[child] = []
        middle = (outline[0][0] + outline[0][1]) / 2 if outline else 0.0
        for child in children[node]:
            offsets[child] -= middle
        outlines[node] = [(0.0, 0.0), *((first - middle, last - middle) for first, last in outline)]
    top = min((first for first, _ in outlines[0]), default=0.0)
    rows = [-top] * len(children)
    for node, below in enumerate(children):
        for child in below:
            rows[child] = rows[node] + offsets[child]
    return rows


def _room(outline: _Outline, following: _Outline) -> float:
    """How far down a subtree must go to clear those before it."""
    pairs = zip(outline, following, strict=False)
    return max(
        (last - first + (COUSINS_APART if level else APART) for level, ((_, last), (first, _)) in enumerate(pairs)),
        default=0.0,
    )


def _joined(outline: _Outline, following: _Outline, offset: float) -> _Outline:
    """The outline of both; `following` lies `offset` rows down."""
    common = min(len(outline), len(following))
    both = [(outline[level][0], following[level][1] + offset) for level in range(common)]
    return [*both, *outline[common:], *((first + offset, last + offset) for first, last in following[common:])]
