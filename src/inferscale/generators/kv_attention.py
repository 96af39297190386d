"""Attention of packed rows over a shared prefix and a private suffix, for unmodified transformers models.

All new tokens of all rows stand in one packed sequence ``[1, tokens]``, so that the linear layers see no padding. Each
attention layer stores the new keys and values where the plan of the forward says, and attends in two parts: the
queries of all rows of a problem against the problem's prompt, read once, and each row against its own suffix. The
parts are joined exactly by their log-sum-exps (Hydragen, arXiv 2402.05099; FlashInfer's cascade)::

    out = out_private + (out_shared - out_private) * sigmoid(lse_shared - lse_private)

The model calls this through transformers' ``AttentionInterface``; which plan is running is known through a context
variable, since not every model passes further arguments down to its attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from inferscale.flops.formulas import PackedRows

NAME = "inferscale_tree"
_CPU_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


class UnsupportedModelError(RuntimeError):
    """This model's attention is not what the shared-prefix decoder computes."""


class Plan(ABC):
    """Where a forward's keys and values go, and what its queries see."""

    @property
    @abstractmethod
    def work(self) -> PackedRows:
        """What attention does in this forward, for a `FlopCounter`."""

    @abstractmethod
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Stores the new keys and values of a layer; returns the outputs.

        Args:
            layer: Index of the layer.
            query: `[heads, tokens, head_dim]`.
            key: `[kv_heads, tokens, head_dim]`.
            value: `[kv_heads, tokens, head_dim]`.
            scale: Factor of the scores.

        Returns:
            `[heads, tokens, head_dim]`.
        """


class PlanCache(Cache):
    """Hands a model's keys and values through to the running plan, layer by layer.

    Attributes:
        plan: Where they go.
        layer: The layer that is running.
        attended: Layers that have called `tree_attention`.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(layers=[])
        self.plan = plan
        self.layer = -1
        self.attended = 0

    @property
    def packed_rows(self) -> PackedRows:
        """What attention does in this forward: one sequence stands for many rows."""
        return self.plan.work

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values alone; `tree_attention` brings in the others."""
        self.layer = layer_idx
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions are always given."""
        return 0


_running: ContextVar[PlanCache | None] = ContextVar("inferscale_running_plan", default=None)


@contextmanager
def running(cache: PlanCache) -> Iterator[None]:
    """Lets `tree_attention` know which plan is running."""
    token = _running.set(cache)
    try:
        yield
    finally:
        _running.reset(token)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls; outputs `[1, tokens, heads, head_dim]`."""
    cache = _running.get()
    asked = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if cache is None or asked or query.shape[-1] != value.shape[-1]:
        raise UnsupportedModelError(f"attention with {', '.join(asked) or 'an unknown layout'}")
    cache.attended += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = cache.plan.attend(cache.layer, query[0], key[0], value[0], scale)
    return out.transpose(0, 1)[None].contiguous(), None


AttentionInterface.register(NAME, tree_attention)


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention over some of the keys, and what is needed to join it with the rest.

    Args:
        query: `[batch, heads, queries, head_dim]`.
        key: `[batch, heads, keys, head_dim]`.
        value: `[batch, heads, keys, head_dim]`.
        bias: Added to the scores, `[batch, 1, queries or 1, keys]`; -inf hides a key; every query sees at least one.
        scale: Factor of the scores.

    Returns:
        Outputs, as `query`, and the log-sum-exps of the scores, float32 `[batch, heads, queries]`.
    """
    if query.device.type == "cpu" and _CPU_FLASH is not None:
        out, lse = _CPU_FLASH(query, key, value, attn_mask=bias, scale=scale)
        return out, lse
    scores = torch.matmul(query, key.transpose(-1, -2)).float().mul_(scale)
    if bias is not None:
        scores += bias
    lse = scores.logsumexp(dim=-1)
    weights = scores.sub_(lse[..., None]).exp_()
    return torch.matmul(weights.to(value.dtype), value), lse


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of a sequence's last tokens to all tokens up to themselves.

    Args:
        query: `[heads, new, head_dim]`.
        key: `[kv_heads, tokens, head_dim]`, the new tokens last.
        value: `[kv_heads, tokens, head_dim]`.
        scale: Factor of the scores.

    Returns:
        `[heads, new, head_dim]`.
    """
    new, tokens = query.shape[1], key.shape[1]
    mask = None
    if new < tokens:
        mask = torch.ones(new, tokens, dtype=torch.bool, device=query.device).tril_(tokens - new)
    out: Tensor = torch.nn.functional.scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return out[0]


def join(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Attention over two disjoint sets of keys, from its two parts."""
    share = torch.sigmoid(other_lse - lse).to(out.dtype)[..., None]
    return torch.lerp(out, other, share)
