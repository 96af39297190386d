"""Text forced before sampling: how a search asks for one more attempt."""

from __future__ import annotations

from collections.abc import Sequence

from inferscale.tree import Node


def sampled_text(node: Node, forced: str) -> str:
    """The part of the node's last step that was sampled, without the text forced before it."""
    return "" if node.step is None else node.step.text.removeprefix(forced)


def attempts_in(nodes: Sequence[Node], forced: str) -> list[tuple[Node, str]]:
    """The nodes that hold more than the text forced before them, each with the text that was sampled.

    A path that the forced text has filled up ends without a token of its own; it would repeat an earlier answer.
    """
    pairs = [(node, sampled_text(node, forced)) for node in nodes]
    return [(node, text) for node, text in pairs if text.strip()]


def revision_prompt(attempts: Sequence[str], instruction: str) -> str:
    """What is forced before a revision: each earlier attempt, followed by the instruction to try again."""
    return "".join(attempt + instruction for attempt in attempts)
