"""A search result as HTML and SVG for notebooks and files, with nothing from outside (no script, font or picture)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from inferscale.tree import Node, Trajectory

from .text import (
    FOLD_ABOVE,
    MOST_DRAWN,
    MOST_VOTES,
    Mark,
    Votes,
    columns,
    escaped,
    marks_of,
    one_line,
    readable_marks,
    visible,
    votes_of,
)

RAMP = ("#e66101", "#fdb863", "#d4d4d4", "#80b7dc", "#0f6cb8")
"""Colours of scores from the lowest to the highest: orange over grey to blue.

Example:
    >>> from inferscale.viz import RAMP, Scale
    >>> Scale(0.0, 1.0).colour(0.0) == RAMP[0], Scale(0.0, 1.0).colour(1.0) == RAMP[-1]
    (True, True)
"""
UNSCORED = "#9aa0a6"
"""The colour of nodes without a score.

Example:
    >>> from inferscale.viz import UNSCORED, Scale
    >>> Scale.of([0.2, 0.9]).colour(None) == UNSCORED
    True
"""


@dataclass(frozen=True)
class Scale:
    """The range of scores that the ramp spans: 0 to 1 if no score lies outside, else lowest to highest.

    Example:
        >>> from inferscale.viz import Scale
        >>> scale = Scale.of([-2.5, 0.5, 3.5])  # logits of an outcome reward model, say
        >>> scale.share(0.5), scale.colour(3.5), scale.written(-2.5)
        (0.5, '#0f6cb8', '-2.5')
    """

    low: float
    high: float

    @classmethod
    def of(cls, scores: Iterable[float]) -> Scale:
        """The scale of some scores."""
        known = [0.0, *scores]
        if min(known) >= 0 and max(known) <= 1:
            return cls(0.0, 1.0)
        return cls(min(known[1:]), max(known[1:]))

    def share(self, score: float) -> float:
        """Position of a score in the scale, from 0 to 1; 0.5 where all are equal."""
        span = self.high / 2 - self.low / 2  # halves, so that no range is too great
        return min(1.0, max(0.0, (score / 2 - self.low / 2) / span)) if span > 0 else 0.5

    def written(self, score: float) -> str:
        """A score as text: three places where it lies between 0 and 1, else three digits."""
        return f"{score:.3f}" if (self.low, self.high) == (0.0, 1.0) else f"{score:.3g}"

    def colour(self, score: float | None) -> str:
        """The colour of a score as ``#rrggbb``; grey for none."""
        if score is None:
            return UNSCORED
        place = self.share(score) * (len(RAMP) - 1)
        left = min(int(place), len(RAMP) - 2)
        pairs = zip(_rgb(RAMP[left]), _rgb(RAMP[left + 1]), strict=True)
        return "#" + "".join(f"{round(a + (b - a) * (place - left)):02x}" for a, b in pairs)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


APART = 1.0
"""Rows between siblings."""
COUSINS_APART = 1.5
"""Rows between neighbours with different parents."""

_Outline = list[tuple[float, float]]


def tidy_rows(children: Sequence[Sequence[int]]) -> list[float]:
    """The rows at which the nodes of a tree are drawn, the least one 0; the column of each is its depth.

    Children keep their order, a parent is half-way between its first and its last child, nodes of one depth are at
    least 1 row apart, or 1.5 if their parents differ, no edges cross, and equal subtrees look the same wherever they
    are (Reingold and Tilford 1981, Tidier drawings of trees).

    Args:
        children: For each node the places of its children, which come after it; node 0 is the root.

    Example:
        >>> from inferscale.viz import tidy_rows
        >>> tidy_rows([[1, 4], [2, 3], [], [], []])  # a root, its two children, and two below the first
        [1.0, 0.5, 0.0, 1.0, 1.5]
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
    """Distance by which a subtree must go down to clear those before it."""
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


_RULES = """
.inferscale{font:13px/1.45 system-ui,sans-serif;color:inherit;max-width:62em;text-align:left}
.inferscale p,.inferscale dl,.inferscale table,.inferscale pre{margin:.4em 0}
.inferscale .answer{font-size:22px;font-weight:600;overflow-wrap:anywhere}
.inferscale .note{font-size:12px;font-weight:400;opacity:.75}
.inferscale dl{display:grid;grid-template-columns:max-content 1fr;gap:.15em 1em}
.inferscale dl dt,.inferscale dl dd{margin:0;padding:0;font-weight:400;line-height:inherit}
.inferscale dl dt{opacity:.65}
.inferscale dl dd{overflow-wrap:anywhere;white-space:pre-line}
.inferscale .votes{border-collapse:collapse;border:0;font-size:13px;table-layout:auto;width:auto;display:table}
.inferscale table.votes tbody tr:nth-child(n){background:none;border:0}
.inferscale .votes th,.inferscale .votes td{padding:1px 12px 1px 0;border:0;text-align:left;font-weight:400;
background:none;color:inherit;font-variant-numeric:tabular-nums;max-width:24em;overflow-wrap:anywhere}
.inferscale .votes .wins th,.inferscale .votes .wins td{font-weight:700}
.inferscale .votes th{min-width:2.5em}
.inferscale .votes td{white-space:nowrap}
.inferscale .votes .bar{width:260px;min-width:60px}
.inferscale .bar span{display:block;height:13px;min-width:2px;border-radius:2px;box-sizing:border-box;
border:1px solid rgba(128,128,128,.6)}
.inferscale summary{cursor:pointer;margin:.5em 0;font-weight:600}
.inferscale .tree{overflow:auto;max-height:560px;border:1px solid rgba(128,128,128,.35);border-radius:6px}
.inferscale details pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:400px;overflow:auto;padding:.6em;
background:rgba(128,128,128,.1);color:inherit;border-radius:6px;
font:12px/1.5 ui-monospace,"DejaVu Sans Mono",Menlo,monospace}
.inferscale svg{max-width:none;display:block}
.inferscale .edges .chosen{stroke-width:3}
.inferscale .edges :is(.kept,.open){stroke-width:1.3;opacity:.5}
.inferscale .edges .pruned{stroke-width:1.1;opacity:.4;stroke-dasharray:3 3}
.inferscale .compact .edges :is(.kept,.open){stroke-width:1}
.inferscale .compact .edges .pruned{stroke-dasharray:2 2;opacity:.3}
.inferscale .mark{stroke:currentColor;stroke-width:1;stroke-opacity:.55}
.inferscale .chosen .mark{stroke-width:2;stroke-opacity:1}
.inferscale g:hover>.mark{stroke-width:3;stroke-opacity:1}
.inferscale text{font:11px ui-monospace,"DejaVu Sans Mono",Menlo,monospace;fill:currentColor;white-space:pre}
.inferscale g.pruned text{opacity:.6}
.inferscale text.score{font-size:10px;opacity:.65}
.inferscale text.end{font-size:10px}
.inferscale .chosen text{font-weight:700}
.inferscale .legend{opacity:1;display:flex;flex-wrap:wrap;gap:.2em 1.4em;align-items:center}
.inferscale .legend svg{display:inline-block;vertical-align:middle}
.inferscale .ramp{display:inline-block;width:90px;height:10px;border-radius:2px;vertical-align:middle}
"""
STYLE = f"<style>{_RULES.strip()}</style>"


MOST_LABELLED = 40
"""Marks up to which the steps are written on the branches."""
MOST_ANSWERED = 150
"""Most marks of a tree that has its answers written behind the leaves.

Example:
    >>> from inferscale import RepeatedSampling, solve
    >>> from inferscale.testing import ToyGenerator
    >>> from inferscale.viz import MOST_ANSWERED, readable_marks
    >>> result = solve("How many?", RepeatedSampling(8), ToyGenerator())
    >>> marks = readable_marks(result.root, result.leaves, result.trajectories, result.selected_leaf)
    >>> len(marks) <= MOST_ANSWERED  # so `plot_tree` writes the answers beside the leaves
    True
"""
_WIDTH = 730.0  # what a tree may take before it scrolls, in pixels
_LETTER = 6.7  # width of a letter at 11 pixels, in pixels
_BEND = 30.0  # width of the curve that leads to a branch
_MARGIN = 14.0
_KINDS = {"pruned": "pruned", "kept": "returned", "open": "open"}
_DRAWN = {"pruned": 0, "open": 1, "kept": 1, "chosen": 2}  # later ones lie on top


@dataclass(frozen=True)
class _Plan:
    """Places of everything drawn, in pixels.

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

    Example:
        >>> from inferscale import RepeatedSampling, solve
        >>> from inferscale.testing import ToyGenerator
        >>> from inferscale.viz import Scale, marks_of, svg
        >>> result = solve("How many?", RepeatedSampling(2), ToyGenerator())
        >>> marks = marks_of(result.root, result.leaves, result.trajectories, result.selected_leaf)
        >>> picture = svg(marks, Scale.of([]), "two samples")
        >>> picture[:4], picture.count("<title>")  # a mark for the prompt and for each sample
        ('<svg', 3)
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
    r = plan.radius * {"chosen": 1.25, "kept": 1.0, "open": 1.0, "pruned": 0.8}[mark.state]
    fill = f'class="mark" fill="{scale.colour(mark.score)}"'
    if mark.is_folded:
        r *= 1.25
        return f'<path {fill} d="M{x - r:.1f} {y:.1f}L{x + r:.1f} {y - r:.1f}V{y + r:.1f}Z"/>'
    if mark.nodes[0].is_finished:
        return f'<rect {fill} x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:.1f}" height="{2 * r:.1f}" rx="1.5"/>'
    return f'<circle {fill} cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'


def _text(mark: Mark, letters: int) -> str:
    """Text on the branch."""
    if mark.is_folded:
        return f"{len(mark.nodes)} {_KINDS[mark.state]}"
    step = mark.nodes[0].step
    return "" if step is None else one_line(step.text, letters)


def _end(mark: Mark) -> str:
    """Text behind the mark: the answer of a leaf, or why it has none."""
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


_SHAPES = (
    ("step", "step", 'circle cx="5" cy="5" r="4"'),
    ("end", "end", 'rect x="1" y="1" width="8" height="8" rx="1.5"'),
    ("several", "several nodes", 'path d="M1 5L9 1V9Z"'),
)


def page(
    root: Node, leaves: Sequence[Node], trajectories: Sequence[Trajectory], place: int, facts: Mapping[str, str]
) -> str:
    """The HTML of a result: ASCII, no script, nothing from outside, good for light and dark pages.

    Args:
        root: The search tree.
        leaves: What the search returned.
        trajectories: Their records, in the same order.
        place: Which of them is reported.
        facts: What else to say, by name.

    Example:
        >>> from inferscale import RepeatedSampling, solve
        >>> from inferscale.testing import ToyGenerator
        >>> from inferscale.viz import page
        >>> result = solve("How many?", RepeatedSampling(4), ToyGenerator())
        >>> place = result.trajectories.index(result.selected)
        >>> text = page(result.root, result.leaves, result.trajectories, place, {"strategy": "RepeatedSampling(4)"})
        >>> text.isascii(), "<script" in text  # safe in any page
        (True, False)
    """
    selected = trajectories[place]
    rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(visible(fact, 600))}</dd>" for name, fact in facts.items())
    return (
        f'<div class="inferscale">{STYLE}{_answer(selected)}{_votes(trajectories, selected)}<dl>{rows}</dl>'
        f"{_tree(root, leaves, trajectories, leaves[place])}{_side_notes(root)}"
        f"<details><summary>Reported solution</summary><pre>{escaped(visible(selected.text))}</pre></details></div>"
    )


def growing(root: Node) -> str:
    """The HTML of a tree whose search goes on: of no node is it known yet what becomes of it.

    Where it is too large to be read, the paths to the finished and to the deepest leaves are drawn, and what else
    stands below one parent is one mark.

    Args:
        root: The search tree as it is.

    Returns:
        ASCII, without scripts, as `page`.

    Example:
        >>> from inferscale import BeamSearch, solve
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> from inferscale.viz import growing
        >>> pictures = []  # what a page would show one after the other
        >>> def draw(update):
        ...     pictures.append(growing((update.sampled or update.scored)[0].root))
        >>> result = solve("How many?", BeamSearch(2, 2), ToyGenerator(), reward_model=ToyProcessReward(), on_step=draw)
        >>> [picture.split("Search tree: ")[1].split(" until")[0] for picture in pictures]
        ['5 nodes', '5 nodes', '9 nodes', '9 nodes', '13 nodes', '13 nodes', '17 nodes', '17 nodes']
    """
    leaves = [node for node in root.walk() if not node.children]
    deepest = max(node.depth for node in leaves)
    marks = readable_marks(root, [n for n in leaves if n.is_finished or n.depth == deepest], (), root)
    for mark in marks:
        mark.state = "open"
    nodes = sum(len(mark.nodes) for mark in marks)
    title = f"Search tree: {nodes:,} nodes until now"
    kind = "tree" if len(marks) <= MOST_LABELLED else "tree compact"
    picture = svg(marks, Scale.of(score for mark in marks for score in mark.scores), title)
    return f'<div class="inferscale">{STYLE}<p class="note">{title}</p><div class="{kind}">{picture}</div></div>'


def _answer(selected: Trajectory) -> str:
    answer, gold = selected.answer, selected.problem.answer
    shown = "<i>no answer</i>" if answer is None else f"<bdi>{escaped(one_line(answer, 120))}</bdi>"
    if gold is not None:
        verdict = (
            "&#10003; right" if selected.is_correct else f"&#10007; expected <bdi>{escaped(one_line(gold, 60))}</bdi>"
        )
        shown += f' <span class="note">{verdict}</span>'
    return f'<p class="answer">{shown}</p>'


def _votes(trajectories: Sequence[Trajectory], selected: Trajectory) -> str:
    """A table with a bar for each answer, the most frequent ones first."""
    found = votes_of(trajectories)
    scale = Scale.of(score for votes in found for score in votes.scores)
    rows = [_vote(votes, scale, len(trajectories), votes.has(selected)) for votes in found[:MOST_VOTES]]
    if rest := found[MOST_VOTES:]:
        number = sum(votes.number for votes in rest)
        rows.append(f'<tr class="note"><th>{len(rest)} more</th><td></td><td>{number}</td><td></td></tr>')
    return f'<table class="votes"><tbody>{"".join(rows)}</tbody></table>'


def _vote(votes: Votes, scale: Scale, total: int, wins: bool) -> str:
    answer = "<i>no answer</i>" if votes.answer is None else f"<bdi>{escaped(one_line(votes.answer, 40))}</bdi>"
    bar = f'<span style="width:{100 * votes.number / total:.1f}%;background:{scale.colour(votes.score)}"></span>'
    score = "" if votes.score is None else f"mean score {scale.written(votes.score)}"
    name = ' class="wins"' if wins else ""
    return f'<tr{name}><th>{answer}</th><td class="bar">{bar}</td><td>{votes.number}</td><td>{score}</td></tr>'


def _tree(root: Node, leaves: Sequence[Node], trajectories: Sequence[Trajectory], selected: Node) -> str:
    every = marks_of(root, leaves, trajectories, selected)
    shown = readable_marks(root, leaves, trajectories, selected)
    scale = Scale.of(score for mark in every for score in mark.scores)
    pruned = sum(mark.state == "pruned" for mark in every)
    title = f"Search tree: {len(every):,} nodes, {len(set(leaves)):,} leaves returned, {pruned:,} nodes pruned"
    if len(every) <= FOLD_ABOVE:
        return _details(title, shown, scale, is_open=True)
    pictures = _details(title + " (like ones in one mark)", shown, scale, is_open=True)
    if len(every) <= MOST_DRAWN:
        pictures += _details("Search tree, every node", every, scale, is_open=False)
    return pictures


MOST_NOTES = 100
"""Side prompts that are written out."""


def _side_notes(root: Node) -> str:
    """The prompts that were asked beside the tree, with their replies."""
    notes = root.side_notes
    if not notes:
        return ""
    rows = ""
    for note in notes[:MOST_NOTES]:
        replies = [reply.step.text if reply.step else "" for reply in note.children] or ["(no reply)"]
        rows += f"<dt><pre>{escaped(visible(note.problem.prompt, 600))}</pre></dt>"
        rows += "".join(f"<dd><pre>{escaped(visible(reply, 600))}</pre></dd>" for reply in replies)
    more = f"<p>and {len(notes) - MOST_NOTES:,} more</p>" if len(notes) > MOST_NOTES else ""
    count = sum(len(note.children) for note in notes)
    title = f"Side notes: {len(notes):,} prompts asked beside the solutions, {count:,} replies"
    return f"<details><summary>{title}</summary><dl>{rows}</dl>{more}</details>"


def _details(title: str, marks: Sequence[Mark], scale: Scale, is_open: bool) -> str:
    kind = "tree" if len(marks) <= MOST_LABELLED else "tree compact"
    opened = ' open=""' if is_open else ""
    return (
        f"<details{opened}><summary>{escaped(title)}</summary>"
        f'<div class="{kind}">{svg(marks, scale, title)}</div>'
        f'<p class="legend note">{"".join(_legend(marks, scale))}</p></details>'
    )


def _legend(marks: Sequence[Mark], scale: Scale) -> Iterator[str]:
    """Legend of the colours, lines and shapes that occur in a picture."""
    if any(mark.scores for mark in marks):
        ramp = f'<span class="ramp" style="background:linear-gradient(90deg,{",".join(RAMP)})"></span>'
        yield f"<span>score {scale.low:.3g} {ramp} {scale.high:.3g}</span>"
    states = {mark.state for mark in marks}
    for state, meaning in (("chosen", "reported"), ("kept", "returned"), ("pruned", "pruned")):
        if state in states:
            line = f'<g class="edges" fill="none" stroke="currentColor"><path class="{state}" d="M1 5H25"/></g>'
            yield f'<span><svg width="26" height="10">{line}</svg> {meaning}</span>'
    kinds = {"several" if mark.is_folded else "end" if mark.nodes[0].is_finished else "step" for mark in marks}
    for kind, meaning, shape in _SHAPES:
        if kind in kinds:
            yield f'<span><svg width="10" height="10" fill="{UNSCORED}"><{shape} class="mark"/></svg> {meaning}</span>'
