"""From requests to branches: what stands before the first sampled id, and how long a sample can get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from inferscale.flow import GenerateRequest
from inferscale.tree import branch_key

from .branch import Branch, Limits, path_ids
from .text import TokenText

EncodePrompt: TypeAlias = Callable[[str], tuple[int, ...]]


def open_branches(request: GenerateRequest, encode: EncodePrompt, text: TokenText, limits: Limits) -> list[Branch]:
    """A branch for each sample of `request`, in order.

    Raises:
        ValueError: If the prompt does not fit into the model's context, or the node has no token ids.
    """
    prompt, path = _prompt_ids(request, encode, limits), path_ids(request.node)
    forced = forced_ids(request, text)
    keys = [branch_key(request.node.key, request.first + index) for index in range(request.n)]
    return [Branch(request, index, key, prompt, path, forced, text, limits) for index, key in enumerate(keys)]


def side_by_side(branches: Sequence[Branch]) -> list[Branch]:
    """The branches with those of a problem, and of a node, together: each in the place of its first."""
    roots: dict[int, int] = {}
    nodes: dict[int, int] = {}
    for branch in branches:
        node = branch.request.node
        roots.setdefault(id(node.root), len(roots))
        nodes.setdefault(id(node), len(nodes))
    return sorted(branches, key=lambda b: (roots[id(b.request.node.root)], nodes[id(b.request.node)]))


def most_sample_tokens(request: GenerateRequest, encode: EncodePrompt, text: TokenText, limits: Limits) -> int:
    """The most tokens that one sample of `request` can have, its own `max_tokens` left out.

    Raises:
        ValueError: If the prompt does not fit into the model's context.
    """
    before = len(request.node.token_ids) + len(forced_ids(request, text))
    room = limits.room(len(_prompt_ids(request, encode, limits)), before)
    return max(min(room, limits.step) if request.until == "step" else room, 1)


def _prompt_ids(request: GenerateRequest, encode: EncodePrompt, limits: Limits) -> tuple[int, ...]:
    prompt = request.node.problem.prompt
    ids = encode(prompt)
    if limits.context is not None and len(ids) >= limits.context:
        raise ValueError(
            f"the prompt {prompt[:80]!r} has {len(ids)} tokens and the model reads {limits.context}: "
            "there is no room for an answer; shorten it"
        )
    return ids


def forced_ids(request: GenerateRequest, text: TokenText) -> tuple[int, ...]:
    """Ids of the forced text, on its own."""
    return tuple(text.encode_plain(request.forced)) if request.forced else ()
