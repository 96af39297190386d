"""Search trees as text."""

from __future__ import annotations

from collections.abc import Iterator

from inferscale.tree import Node


def render_tree(root: Node, selected: Node | None = None, max_text: int = 60) -> str:
    """The tree below `root`, one line for each node: branch, score, last step, and how it ended.

    Args:
        root: Where to start.
        selected: A leaf to mark with ``*``, with its whole path.
        max_text: Most characters of a step's text.
    """
    chosen = set() if selected is None else set(selected.path)
    return "\n".join(_lines(root, chosen, max_text))


def _lines(root: Node, chosen: set[Node], max_text: int) -> Iterator[str]:
    waiting = [(root, "", "")]  # a stack and not a recursion: a tree may be deeper than Python's stack
    while waiting:
        node, branch, indent = waiting.pop()
        yield branch + _label(node, chosen, max_text)
        last = len(node.children) - 1
        below = [
            (child, indent + ("└─ " if place == last else "├─ "), indent + ("   " if place == last else "│  "))
            for place, child in enumerate(node.children)
        ]
        waiting += reversed(below)


def _label(node: Node, chosen: set[Node], max_text: int) -> str:
    text = repr(node.problem.prompt if node.step is None else node.step.text)[1:-1]
    text = text if len(text) <= max_text else text[: max_text - 1] + "…"
    mark = "*" if node in chosen else ""
    score = f" {node.score:.3f}" if node.is_scored else ""
    reason = f" [{node.step.finish_reason}]" if node.step is not None and node.is_finished else ""
    return f"{mark}{text}{score}{reason}"
