"""Attention layers that do not ask transformers' ``AttentionInterface``, and ALiBi.

What these layers do between their matrices is written here once more, over `tree_attention`; the probe at load compares
it with their own forward, as for every model.

ALiBi adds a slope times the distance to each score. What a query's own position adds is equal for all of its keys and
falls out of the softmax; so keys carry their position in two more dimensions, and queries the slope of their head
beside it. Nothing else has to know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .kv import Plan, UnsupportedModelError, tree_attention

_DIGIT = 256  # positions are written in digits that bfloat16 holds exactly


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head (Press et al. 2022, arXiv:2108.12409, section 3)."""
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(heads - power)]


@lru_cache(maxsize=32)  # a step that is recorded copies nothing to the device
def _slopes(heads: int, device: torch.device) -> Tensor:
    return torch.tensor(alibi_slopes(heads), device=device)


def with_alibi(query: Tensor, key: Tensor, slopes: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys whose products are larger by the slope of the head times the position of the key.

    Args:
        query: `[rows, heads, tokens, head_dim]`.
        key: `[rows, kv_heads, tokens, head_dim]`.
        slopes: `[heads]`, over the scale of the scores.
        positions: Of the tokens, `[rows, tokens]`, in any shape.
    """
    positions = positions.view(len(key), -1)
    digits = torch.stack([positions // _DIGIT, positions % _DIGIT], dim=-1).to(key)
    weights = torch.stack([slopes * _DIGIT, slopes], dim=-1).to(query.dtype)
    query = torch.cat([query, weights[None, :, None].expand(*query.shape[:3], 2)], dim=-1)
    return query, torch.cat([key, digits[:, None].expand(*key.shape[:3], 2)], dim=-1)


def _attend(
    module: Any, plan: Plan, qkv: tuple[Tensor, Tensor, Tensor], layer: int, scale: float, window: int | None = None
) -> Tensor:
    """Outputs `[rows, tokens, all heads]` of queries, keys and values `[rows, heads, tokens, head_dim]`."""
    query, (key, value) = qkv[0], plan.update(qkv[1], qkv[2], layer)
    out, _ = tree_attention(module, query, key, value, None, scaling=scale, sliding_window=window)
    return out.flatten(2)


def _heads(x: Tensor, count: int) -> Tensor:
    """`[rows, tokens, all heads]` as `[rows, heads, tokens, head_dim]`."""
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def _bloom(module: Any, plan: Plan, hidden_states: Tensor, residual: Tensor, **_: Any) -> tuple[Tensor, None]:
    fused = module.query_key_value(hidden_states).unflatten(2, (module.num_heads, 3, -1))
    query, key, value = fused.permute(3, 0, 2, 1, 4)  # [3, rows, heads, tokens, head_dim]
    slopes = _slopes(module.num_heads, key.device) * module.beta / module.inv_norm_factor
    query, key = with_alibi(query, key, slopes, plan.positions)
    out = _attend(module, plan, (query, key, value), module.layer_idx, module.inv_norm_factor)
    return module.dense(out) + residual, None


def _mpt(module: Any, plan: Plan, hidden_states: Tensor, position_bias: Tensor, **_: Any) -> tuple[Tensor, None]:
    fused = module.Wqkv(hidden_states)
    if module.clip_qkv:
        fused = fused.clamp(-module.clip_qkv, module.clip_qkv)
    query, key, value = (_heads(x, module.n_heads) for x in fused.chunk(3, dim=2))
    slopes = (position_bias[:, 0, -1] - position_bias[:, 0, -2]) / module.softmax_scale
    query, key = with_alibi(query, key, slopes, plan.positions)
    out = _attend(module, plan, (query, key, value), module.layer_idx, module.softmax_scale)
    return module.out_proj(out), None


def _falcon(
    module: Any,
    plan: Plan,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    fused = module.query_key_value(hidden_states).unflatten(2, (module.num_kv_heads, -1, module.head_dim))
    query = fused[..., :-2, :].flatten(2, 3).transpose(1, 2)  # several heads of queries to one of keys and of values
    key, value = fused[..., -2, :].transpose(1, 2), fused[..., -1, :].transpose(1, 2)
    if alibi is None:
        assert position_embeddings is not None
        cos, sin = (x[:, None] for x in position_embeddings)

        def turned(x: Tensor) -> Tensor:
            left, right = x.chunk(2, dim=-1)
            return x * cos + torch.cat([-right, left], dim=-1) * sin

        query, key = turned(query), turned(key)
    else:
        if any(math.log2(slope) % 1 for slope in alibi_slopes(module.num_heads)):
            raise UnsupportedModelError("Falcon rounds its ALiBi to bfloat16")
        # Of slopes that are powers of 2, rounding the product rounds the position.
        rounded = plan.positions.to(torch.bfloat16).long()
        query, key = with_alibi(query, key, _slopes(module.num_heads, key.device), rounded)
    out = _attend(module, plan, (query, key, value), module.layer_idx, module.inv_norm_factor)
    return module.dense(out), None


def _gpt_neo(module: Any, plan: Plan, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    projections = (module.q_proj, module.k_proj, module.v_proj)
    query, key, value = (_heads(project(hidden_states), module.num_heads) for project in projections)
    window = module.config.window_size if module.attention_type == "local" else None
    return module.out_proj(_attend(module, plan, (query, key, value), module.layer_id, 1.0, window)), None


OWN_ATTENTION: dict[str, Callable[..., tuple[Tensor, None]]] = {
    "BloomAttention": _bloom,
    "MptAttention": _mpt,
    "FalconAttention": _falcon,
    "GPTNeoSelfAttention": _gpt_neo,
}
"""By the name of transformers' class: what is called in place of its ``forward``, with the layer and the plan."""


WANTS_MASK = ("MptAttention",)
"""Layers of models whose forward fails without a mask, though nothing reads it."""


def own_attention(model: nn.Module) -> list[tuple[nn.Module, Callable[..., tuple[Tensor, None]]]]:
    """The layers of a model that need another forward, with it."""
    return [
        (module, OWN_ATTENTION[type(module).__name__])
        for module in model.modules()
        if type(module).__name__ in OWN_ATTENTION and type(module).__module__.startswith("transformers.models.")
    ]
