"""FLOPs of single torch operators, by what they were called with.

Every formula takes ``(args, kwargs, result)`` of the call and returns its `OpFlops`. A multiply-add is 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils.flop_counter import flop_registry as torch_registry

from .formulas import causal_pairs


class OpFlops(NamedTuple):
    """FLOPs of one call.

    Attributes:
        full: Everything that the shapes imply.
        causal: Without the query-key pairs that ``is_causal=True`` masks; equal to `full` for all other operators.
        is_attention: Whether the operator is a whole attention.
    """

    full: int
    causal: int
    is_attention: bool = False


Formula: TypeAlias = Callable[[tuple[Any, ...], Mapping[str, Any], Any], OpFlops]

_registered: dict[Any, Callable[..., int]] = {}


def register_flop_formula(targets: Any, get_raw: bool = False) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A decorator that gives `targets` a formula for ``mode="exact"``, as ``torch.utils.flop_counter`` does.

    Args:
        targets: An operator such as ``torch.ops.my_library.my_op``, or a list of them.
        get_raw: Whether the formula takes the arguments themselves and ``out_val=``, or shapes in the place of tensors
            and ``out_shape=``.

    Formulas given to torch's own ``register_flop_formula`` are honoured too; one registered here comes first, and may
    be replaced.
    """

    def register(formula: Callable[..., int]) -> Callable[..., int]:
        for target in targets if isinstance(targets, (list, tuple)) else [targets]:
            _registered[target] = formula if get_raw else _on_shapes(formula)
        return formula

    return register


def _on_shapes(formula: Callable[..., int]) -> Callable[..., int]:
    """`formula` called with shapes in the place of tensors."""

    def shape(value: Any) -> Any:
        return value.shape if isinstance(value, torch.Tensor) else value

    def on_shapes(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        shapes, named, out = torch.utils._pytree.tree_map(shape, (args, kwargs, out_val))
        return formula(*shapes, out_shape=out, **named)

    return on_shapes


def formula_for(func: Any) -> Formula | None:
    """The formula of an operator, or ``None``: a registered one, ours, or torch's, in this order."""
    packet = getattr(func, "_overloadpacket", func)
    for key in (func, packet):
        if key in _registered:
            return _from_torch_signature(_registered[key])
    name = func._schema.name if isinstance(func, torch._ops.OpOverload) else str(func)
    if name in _SDPA:
        return _sdpa(_position(func, "is_causal"))
    if name in _FORMULAS:
        return _FORMULAS[name]
    return _from_torch_signature(torch_registry[packet]) if packet in torch_registry else None


def _from_torch_signature(formula: Callable[..., int]) -> Formula:
    """A formula of torch's signature as one of ours."""

    def call(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> OpFlops:
        flops = int(formula(*args, **kwargs, out_val=result))
        return OpFlops(flops, flops)

    return call


def _position(func: Any, argument: str) -> int:
    """Where `argument` stands in the operator's schema."""
    return [item.name for item in func._schema.arguments].index(argument)


def _product(index: int) -> Formula:
    """A matrix product whose left side is argument `index`: each number of the result sums over its last axis."""

    def flops(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> OpFlops:
        total = 2 * result.numel() * args[index].shape[-1]
        return OpFlops(total, total)

    return flops


def _sum_of_products(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> OpFlops:
    """``addbmm``: a batch of products, added up."""
    total = 2 * args[1].numel() * args[2].shape[-1]
    return OpFlops(total, total)


def _grouped(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> OpFlops:
    """``_grouped_mm``: every row of the ragged side belongs to exactly one group.

    ``[M, K] @ [G, K, N]``, ``[G, M, K] @ [K, N]`` and ``[M, K] @ [K, N]`` are all 2·M·K·N; two batches are a bmm.
    """
    left, right = args[0], args[1]
    batch = left.shape[0] if left.dim() == right.dim() == 3 else 1
    total = 2 * batch * left.shape[-2] * left.shape[-1] * right.shape[-1]
    return OpFlops(total, total)


def _convolution(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> OpFlops:
    """``convolution(input, weight, bias, stride, padding, dilation, transposed, ...)``, grouped or not."""
    source, weight = args[0], args[1]
    transposed = bool(args[6]) if len(args) > 6 else False
    positions = source if transposed else result
    total = 2 * positions.numel() * math.prod(weight.shape[1:])
    return OpFlops(total, total)


def _sdpa(causal_position: int) -> Formula:
    """Attention of ``query [B, H, S, D]``, ``key [B, H', T, D]``, ``value [B, H', T, Dv]``; query heads count."""

    def flops(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> OpFlops:
        query, key, value = args[:3]
        queries, keys = query.shape[-2], key.shape[-2]
        per_pair = 2 * math.prod(query.shape[:-2]) * (query.shape[-1] + value.shape[-1])
        is_causal = args[causal_position] if len(args) > causal_position else kwargs.get("is_causal", False)
        pairs = causal_pairs(queries, 0, keys) if is_causal else queries * keys
        return OpFlops(per_pair * queries * keys, per_pair * pairs, is_attention=True)

    return flops


def _sdpa_backward(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> OpFlops:
    """Backward of attention: the scores again, then the gradients of values, scores, queries and keys."""
    _, query, key, value = args[:4]
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    total = 2 * pairs * (3 * query.shape[-1] + 2 * value.shape[-1])
    return OpFlops(total, total, is_attention=True)


_SDPA = frozenset(
    {
        "aten::scaled_dot_product_attention",
        "aten::_scaled_dot_product_attention_math",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_fused_attention_overrideable",
    }
)

_LEFT_IS_FIRST = (
    *("mm", "bmm", "mv", "dot", "vdot", "linear", "matmul", "mkldnn_linear", "_int_mm", "_scaled_mm", "_scaled_mm_v2"),
    *("_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu"),
)
_LEFT_IS_SECOND = ("addmm", "baddbmm", "addmv", "_addmm_activation")
_OTHER_LINEAR = (
    *("mkldnn::_linear_pointwise", "mkl::_mkl_linear", "onednn::qlinear_pointwise"),
    *("quantized::linear", "quantized::linear_relu", "quantized::linear_dynamic", "quantized::linear_relu_dynamic"),
)
_CONVOLUTIONS = ("convolution", "_convolution", "convolution_overrideable")

_FORMULAS: dict[str, Formula] = {
    **{f"aten::{name}{suffix}": _product(0) for name in _LEFT_IS_FIRST for suffix in ("", "_")},
    **{f"aten::{name}{suffix}": _product(1) for name in _LEFT_IS_SECOND for suffix in ("", "_")},
    **{name: _product(0) for name in _OTHER_LINEAR},
    **{f"aten::{name}": _convolution for name in _CONVOLUTIONS},
    "aten::addbmm": _sum_of_products,
    "aten::addbmm_": _sum_of_products,
    "aten::_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm_v2": _grouped,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _sdpa_backward,
    "aten::_scaled_dot_product_fused_attention_overrideable_backward": _sdpa_backward,
}
