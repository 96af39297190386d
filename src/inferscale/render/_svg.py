"""A search tree as an SVG picture: from left to right, with each step written on its branch while there is room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from inferscale.tree import Node

from ._colours import Scale
from ._layout import tidy_rows
from ._marks import Mark
from ._safe import columns, escaped, one_line, visible

MOST_LABELLED = 40
"""Marks up to which the steps are written on the branches."""
MOST_ANSWERED = 150
"""Marks up to which the answers are written behind the leaves."""
_WIDTH = 730.0  # what a tree may take before it scrolls, in pixels
_LETTER = 6.7  # width of a letter at 11 pixels, in pixels
_BEND = 30.0  # width of the curve that leads to a branch
_MARGIN = 14.0
_KINDS = {"pruned": "pruned", "kept": "returned"}
_DRAWN = {"pruned": 0, "kept": 1, "chosen": 2}  # later ones lie on top


@dataclass(frozen=True)
class _Plan:
    """Where everything goes, in pixels.

    Attributes:
        x: Of each depth.
        y: Of each mark.
        radius: Of a mark.
        letters: Most letters on a branch; 0 for none.
        with_ends: Whether answers are written behind the leaves.
        size: Width and height of the picture.
    """

    x: list[float]
    y: list[float]
    radius: float
    letters: int
    with_ends: bool
    size: tuple[float, float]


def svg(marks: Sequence[Mark], scale: Scale, label: str) -> str:
    """The picture of a tree; every mark says on hover what it stands for.

    Args:
        marks: As `marks_of` returns them.
        scale: Colours of the scores.
        label: What a screen reader says.
    """
    plan = _plan(marks)
    order = sorted(range(len(marks)), key=lambda place: _DRAWN[marks[place].state])
    edges = [edge for parent in order for edge in _edges(marks, plan, parent)]
    nodes = [_node(marks[place], plan, plan.y[place], scale) for place in order]
    width, height = plan.size
    names = f'role="img" aria-label="{escaped(label)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" {names} fill="currentColor" font-size="11" font-family="monospace">'
        f'<g class="edges" fill="none" stroke="currentColor">{"".join(edges)}</g>'
        f"{''.join(nodes)}</svg>"
    )


def _plan(marks: Sequence[Mark]) -> _Plan:
    depth = max(mark.depth for mark in marks)
    room = _WIDTH / max(depth, 1)
    if len(marks) <= MOST_LABELLED:
        pitch, radius, letters = 38.0, 6.0, int(min(48, max(14, (room - _BEND) / _LETTER)))
        widths = _widths(marks, letters, depth)
    else:
        pitch, radius, letters = (14.0, 4.0, 0) if len(marks) <= MOST_ANSWERED else (9.0, 3.0, 0)
        widths = [0.0, *[min(170.0, max(20.0, room))] * depth]
    x = [_MARGIN + sum(widths[: level + 1]) for level in range(depth + 1)]
    above = 8.0 * bool(letters)
    y = [_MARGIN + above + pitch * row for row in tidy_rows([mark.children for mark in marks])]
    with_ends = len(marks) <= MOST_ANSWERED
    right = max(x[mark.depth] + columns(_end(mark)) * _LETTER * with_ends for mark in marks)
    return _Plan(x, y, radius, letters, with_ends, (right + radius + 2 * _MARGIN, max(y) + above + _MARGIN))


def _widths(marks: Sequence[Mark], letters: int, depth: int) -> list[float]:
    """The width of each depth's column: that of the longest text on its branches."""
    widths = [0.0] * (depth + 1)
    for mark in marks[1:]:
        text = max(columns(_text(mark, letters)), 5) * _LETTER + 10
        widths[mark.depth] = max(widths[mark.depth], _BEND + text)
    return widths


def _edges(marks: Sequence[Mark], plan: _Plan, parent: int) -> Iterator[str]:
    x, y = plan.x[marks[parent].depth], plan.y[parent]
    bend = _BEND if plan.letters else 0.75 * (plan.x[-1] - plan.x[0]) / max(1, len(plan.x) - 1)
    for place in sorted(marks[parent].children, key=lambda place: _DRAWN[marks[place].state]):
        mark, end = marks[place], plan.y[place]
        curve = f"M{x:.1f} {y:.1f}C{x + bend / 2:.1f} {y:.1f} {x + bend / 2:.1f} {end:.1f} {x + bend:.1f} {end:.1f}"
        yield f'<path class="{mark.state}" d="{curve}H{plan.x[mark.depth]:.1f}"/>'


def _node(mark: Mark, plan: _Plan, y: float, scale: Scale) -> str:
    x = plan.x[mark.depth]
    drawn = f'<g class="{mark.state}"><title>{escaped(hover(mark))}</title>{_shape(mark, x, y, plan, scale)}'
    if plan.letters and mark.depth:
        start = plan.x[mark.depth - 1] + _BEND
        drawn += f'<text x="{start:.1f}" y="{y - 5:.1f}">{escaped(_text(mark, plan.letters))}</text>'
        if mark.score is not None:
            drawn += f'<text class="score" x="{start:.1f}" y="{y + 12:.1f}">{scale.written(mark.score)}</text>'
    if plan.with_ends and (end := _end(mark)):
        drawn += f'<text class="end" x="{x + plan.radius + 5:.1f}" y="{y + 4:.1f}">{escaped(end)}</text>'
    return drawn + "</g>"


def _shape(mark: Mark, x: float, y: float, plan: _Plan, scale: Scale) -> str:
    """A circle for a step, a square for an end, a triangle for several nodes in one."""
    r = plan.radius * {"chosen": 1.25, "kept": 1.0, "pruned": 0.8}[mark.state]
    fill = f'class="mark" fill="{scale.colour(mark.score)}"'
    if mark.is_folded:
        r *= 1.25
        return f'<path {fill} d="M{x - r:.1f} {y:.1f}L{x + r:.1f} {y - r:.1f}V{y + r:.1f}Z"/>'
    if mark.nodes[0].is_finished:
        return f'<rect {fill} x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:.1f}" height="{2 * r:.1f}" rx="1.5"/>'
    return f'<circle {fill} cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'


def _text(mark: Mark, letters: int) -> str:
    """What is written on the branch."""
    if mark.is_folded:
        return f"{len(mark.nodes)} {_KINDS[mark.state]}"
    step = mark.nodes[0].step
    return "" if step is None else one_line(step.text, letters)


def _end(mark: Mark) -> str:
    """What is written behind the mark: the answer of a leaf, or why it has none."""
    if mark.answer is not None:
        return one_line(mark.answer, 16)
    step = mark.nodes[0].step
    return step.finish_reason if step is not None and not mark.is_folded and mark.nodes[0].is_failed else ""


def hover(mark: Mark) -> str:
    """All that is known about a mark, for people: lines of text, still to be escaped."""
    return _about_many(mark) if mark.is_folded else _about(mark.nodes[0], mark.answer)


def _about_many(mark: Mark) -> str:
    said = f"{len(mark.nodes)} {_KINDS[mark.state]} nodes"
    if mark.answer is not None:
        said += f", answer {one_line(mark.answer, 40)}"
    scores = mark.scores
    return said + (f"\nscores {min(scores):.3g} to {max(scores):.3g}, mean {mark.score:.3g}" if scores else "")


def _about(node: Node, answer: str | None) -> str:
    if node.step is None:
        return "prompt\n" + visible(node.problem.prompt, 300)
    facts = [f"step {node.depth}", f"{node.step.generated_tokens} tokens"]
    if node.is_scored:
        facts.append(f"score {node.score:.4g}")
    if node.step.logprob is not None:
        facts.append(f"log-probability {node.step.logprob:.3g}")
    if node.is_finished:
        facts.append(f"ended: {node.step.finish_reason}")
    facts += [f"{one_line(str(name), 20)} {one_line(str(value), 20)}" for name, value in list(node.stats.items())[:6]]
    if answer is not None:
        facts.append(f"answer {one_line(answer, 40)}")
    return " · ".join(facts) + "\n" + visible(node.step.text.strip(), 300)
