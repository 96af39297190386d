"""A search result as HTML for notebooks and files: the answer, the votes, the cost, and the tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from inferscale.answers import same_answer
from inferscale.tree import Node, Trajectory

from ._colours import RAMP, UNSCORED, Scale
from ._marks import FOLD_ABOVE, MOST_DRAWN, Mark, marks_of, readable_marks
from ._safe import escaped, one_line, visible
from ._style import STYLE
from ._svg import MOST_LABELLED, svg
from ._votes import MOST_VOTES, Votes, votes_of

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
    """
    selected = trajectories[place]
    rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(visible(fact, 600))}</dd>" for name, fact in facts.items())
    return (
        f'<div class="inferscale">{STYLE}{_answer(selected)}{_votes(trajectories, selected)}<dl>{rows}</dl>'
        f"{_tree(root, leaves, trajectories, leaves[place])}"
        f"<details><summary>Reported solution</summary><pre>{escaped(visible(selected.text))}</pre></details></div>"
    )


def _answer(selected: Trajectory) -> str:
    answer, gold = selected.answer, selected.problem.answer
    shown = "<i>no answer</i>" if answer is None else f"<bdi>{escaped(one_line(answer, 120))}</bdi>"
    if gold is not None:
        right = answer is not None and same_answer(answer, gold)
        verdict = "&#10003; right" if right else f"&#10007; expected <bdi>{escaped(one_line(gold, 60))}</bdi>"
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


def _details(title: str, marks: Sequence[Mark], scale: Scale, is_open: bool) -> str:
    kind = "tree" if len(marks) <= MOST_LABELLED else "tree compact"
    opened = ' open=""' if is_open else ""
    return (
        f"<details{opened}><summary>{escaped(title)}</summary>"
        f'<div class="{kind}">{svg(marks, scale, title)}</div>'
        f'<p class="legend note">{"".join(_legend(marks, scale))}</p></details>'
    )


def _legend(marks: Sequence[Mark], scale: Scale) -> Iterator[str]:
    """What the colours, lines and shapes that occur in a picture mean."""
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
