"""Search trees as text."""

from __future__ import annotations

from collections.abc import Iterator

from .tree import Node


def render_tree(root: Node, selected: Node | None = None, max_text: int = 60) -> str:
    """The tree below `root`, one line for each node: branch, score, last step, and how it ended.

    Args:
        root: Where to start.
        selected: A leaf to mark with ``*``, with its whole path.
        max_text: Most characters of a step's text.
    """
    chosen = set() if selected is None else set(selected.path)
    return "\n".join(_lines(root, "", chosen, max_text))


def _lines(node: Node, indent: str, chosen: set[Node], max_text: int) -> Iterator[str]:
    yield _label(node, chosen, max_text)
    for position, child in enumerate(node.children):
        last = position == len(node.children) - 1
        lines = _lines(child, indent, chosen, max_text)
        yield indent + ("└─ " if last else "├─ ") + next(lines)
        for line in lines:
            yield indent + ("   " if last else "│  ") + line


def _label(node: Node, chosen: set[Node], max_text: int) -> str:
    text = repr(node.problem.prompt if node.step is None else node.step.text)[1:-1]
    text = text if len(text) <= max_text else text[: max_text - 1] + "…"
    mark = "*" if node in chosen else ""
    score = f" {node.score:.3f}" if node.is_scored else ""
    reason = f" [{node.step.finish_reason}]" if node.step is not None and node.is_finished else ""
    return f"{mark}{text}{score}{reason}"
