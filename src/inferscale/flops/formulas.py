"""Closed forms of a forward pass, exact to the last digit (standard library only).

With batch b, s new tokens, `past` cached ones, nl logits kept and a window w (the last term only for layers that have
one)::

    linear = b * s * spec.linear
    head   = b * nl * spec.head
    full   = b * per_pair * s * (s + min(past, w - 1))
    causal = b * per_pair * sum(min(past + i, w) for i in 1..s)

Only matrix products count, a multiply-add as 2. Norms, activations, softmax and rotary embeddings are left out: below
0.1 % of a 134M Llama.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .config import FAMILIES, UnknownArchitectureError
from .families import head_of_class, model_spec
from .spec import AttentionGroup, Flops, ModelSpec

__all__ = [
    "FAMILIES",
    "AttentionGroup",
    "Flops",
    "ModelSpec",
    "PackedRows",
    "UnknownArchitectureError",
    "causal_pairs",
    "count_forward",
    "forward_flops",
    "full_pairs",
    "head_of_class",
    "model_spec",
    "ragged_forward_flops",
]


class PackedRows(NamedTuple):
    """What attention does in a forward that packs rows of different lengths into one sequence.

    A cache that packs rows gives one as its attribute ``packed_rows``; a `FlopCounter` then counts attention by it.

    Attributes:
        rows: Rows of the batch.
        causal_pairs: Query-key pairs that the mask lets through, over all rows.
        executed_pairs: Query-key pairs that are computed, masked ones and padding included.
        read_tokens: Cached tokens whose keys and values are read, a shared prefix once.
    """

    rows: int
    causal_pairs: int
    executed_pairs: int
    read_tokens: int


def full_pairs(new: int, past: int, window: int | None = None) -> int:
    """Query-key pairs of the whole rectangle: `new` queries against the new keys and the cached ones kept."""
    return new * (new + (past if window is None else min(past, window - 1)))


def causal_pairs(new: int, past: int, window: int | None = None) -> int:
    """Query-key pairs that a causal mask lets through: the i-th new token sees ``min(past + i, window)``."""
    if window is None or past + new <= window:
        return new * past + new * (new + 1) // 2
    growing = max(window - past, 0)
    return growing * past + growing * (growing + 1) // 2 + (new - growing) * window


def forward_flops(spec: ModelSpec, new: int, past: int = 0, batch: int = 1, logits: int | None = None) -> Flops:
    """FLOPs of one forward of `batch` equally long rows, by kind.

    Args:
        spec: The model's constants, see `model_spec`.
        new: New tokens in each row.
        past: Tokens that the key-value cache holds for each row.
        batch: Rows.
        logits: Positions of each row that the head runs for; ``None`` for every new one.
    """
    return Flops(*count_forward(spec, new, past, batch, logits))


def count_forward(spec: ModelSpec, new: int, past: int, batch: int, logits: int | None) -> tuple[int, int, int, int]:
    """The fields of `forward_flops` as a tuple, for callers that count every forward of a loop."""
    full = causal = 0
    for group in spec.attention:
        full += group.per_pair * full_pairs(new, past, group.window)
        causal += group.per_pair * causal_pairs(new, past, group.window)
    kept = new if logits is None else logits
    linear = new * spec.linear + past * spec.cached
    return batch * linear, batch * kept * spec.head, batch * full, batch * causal


def ragged_forward_flops(
    spec: ModelSpec, new: Sequence[int], past: Sequence[int], logits: Sequence[int] | None = None
) -> Flops:
    """FLOPs of one forward of rows of different lengths, padding not counted.

    Args:
        spec: The model's constants.
        new: New tokens of each row, `[B]`.
        past: Cached tokens of each row, `[B]`.
        logits: Positions that the head runs for in each row, `[B]`; ``None`` for every new one.
    """
    kept = new if logits is None else logits
    total = Flops()
    for new_tokens, past_tokens, positions in zip(new, past, kept, strict=True):
        total += forward_flops(spec, new_tokens, past_tokens, logits=positions)
    return total
