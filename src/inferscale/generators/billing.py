"""Closed-form FLOPs of samples, for models that are here and for models that a server runs (no torch)."""

from __future__ import annotations

from inferscale.flops.formulas import ModelSpec, forward_flops


def forward_cost(spec: ModelSpec | None, new: int, past: int, logits: int) -> int:
    """FLOPs of `new` tokens after `past` cached ones, with the head run at `logits` positions; 0 without a form."""
    return 0 if spec is None or new < 1 else forward_flops(spec, new, past, logits=logits).causal


def sample_flops(spec: ModelSpec | None, prefix: int, read: int, sampled: int) -> int:
    """FLOPs of one sample of `sampled` tokens after `prefix` tokens, the last `read` of which nobody has read before.

    Each sampled token but the last pays for its own forward, so that the sum over a tree is the closed form of one
    pass with the prompt read once.
    """
    flops = forward_cost(spec, read, prefix - read, logits=1)
    return flops + forward_cost(spec, sampled - 1, prefix, logits=sampled - 1)
