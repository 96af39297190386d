"""FLOPs of single torch operators, and the dispatch mode that counts them as they run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry as torch_registry
from torch.utils.flop_counter import shape_wrapper

from .spec import causal_pairs


class OpFlops(NamedTuple):
    """FLOPs of one call.

    Attributes:
        full: Everything that the shapes imply.
        causal: Without the query-key pairs that ``is_causal=True`` masks; equal to `full` for all other operators.
        is_attention: True for an operator that is a whole attention.
    """

    full: int
    causal: int
    is_attention: bool = False


Formula: TypeAlias = Callable[[tuple[Any, ...], Mapping[str, Any], Any], "int | OpFlops"]
"""FLOPs out of an operator's arguments, keyword arguments and result."""

_registered: dict[Any, Callable[..., int]] = {}


def register_flop_formula(targets: Any, get_raw: bool = False) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A decorator that gives `targets` a formula for ``mode="exact"``, as ``torch.utils.flop_counter`` does.

    Formulas given to torch's own ``register_flop_formula`` are honoured too; one registered here comes first, and may
    be replaced.

    Args:
        targets: An operator such as ``torch.ops.my_library.my_op``, or a list of them.
        get_raw: True if the formula takes the arguments themselves and ``out_val=``, False if it takes shapes in the
            place of tensors and ``out_shape=``.

    Example:
        >>> import torch
        >>> from inferscale.flops import FlopCounter, register_flop_formula
        >>> @torch.library.custom_op("inferscale_example::power", mutates_args=())
        ... def power(x: torch.Tensor) -> torch.Tensor:
        ...     return x @ x @ x
        >>> @register_flop_formula(torch.ops.inferscale_example.power)
        ... def power_flops(x_shape, *args, out_shape=None, **kwargs):
        ...     n = x_shape[0]
        ...     return 2 * 2 * n**3
        >>> with FlopCounter(mode="exact") as counter:
        ...     y = power(torch.eye(10))
        >>> counter.flops
        4000
    """

    def register(formula: Callable[..., int]) -> Callable[..., int]:
        for target in targets if isinstance(targets, (list, tuple)) else [targets]:
            _registered[target] = formula if get_raw else shape_wrapper(formula)
        return formula

    return register


def _product(index: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """A matrix product whose left side is argument `index`: each number of the result sums over its last axis."""
    product = result[0] if isinstance(result, tuple) else result  # bitsandbytes gives the columns of outliers, too
    return int(2 * product.numel() * args[index].shape[-1])


def _sum_of_products(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """``addbmm(sum, left [B, M, K], right [B, K, N])``: the result has lost the axis B."""
    return int(2 * args[1].numel() * args[2].shape[-1])


def _grouped(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """``_grouped_mm``: every row of the ragged side belongs to exactly one group.

    ``[M, K] @ [G, K, N]``, ``[G, M, K] @ [K, N]`` and ``[M, K] @ [K, N]`` are all 2·M·K·N; two batches are a bmm.
    """
    left, right = args[0], args[1]
    batch = left.shape[0] if left.dim() == right.dim() == 3 else 1
    return int(2 * batch * left.shape[-2] * left.shape[-1] * right.shape[-1])


def _convolution(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """``convolution(input, weight, bias, stride, padding, dilation, transposed, ...)``, grouped or not.

    Each number of the result sums over ``weight [out, in / groups, *kernel]`` without its first axis. A transposed one
    scatters each number of the input over ``weight [in, out / groups, *kernel]`` instead.
    """
    source, weight = args[0], args[1]
    is_transposed = len(args) > 6 and args[6]
    return int(2 * (source if is_transposed else result).numel() * math.prod(weight.shape[1:]))


def _triangular_solve(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """``linalg_solve_triangular(A [..., n, n], B [..., n, k])``: half of the n·n·k multiply-adds of a product."""
    return int(result.numel() * args[0].shape[-1])


def _attention(causal: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> OpFlops:
    """Attention of ``query [B, H, S, D]``, ``key [B, H', T, D]``, ``value [B, H', T, Dv]``; query heads count.

    Argument number `causal` is ``is_causal``: then the i-th query sees the first i keys, and no more than T.
    """
    query, key, value = args[:3]
    queries, keys = query.shape[-2], key.shape[-2]
    per_pair = 2 * math.prod(query.shape[:-2]) * (query.shape[-1] + value.shape[-1])
    is_causal = args[causal] if len(args) > causal else kwargs.get("is_causal", False)
    pairs = causal_pairs(queries, 0, keys) if is_causal else queries * keys
    return OpFlops(per_pair * queries * keys, per_pair * pairs, is_attention=True)


def _attention_backward(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> OpFlops:
    """Five products: the scores again, then the gradients of values, scores, queries and keys.

    Scores and the gradients of queries and keys sum over D or write it; the other two do so with Dv.
    """
    _, query, key, value = args[:4]
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    total = 2 * pairs * (3 * query.shape[-1] + 2 * value.shape[-1])
    return OpFlops(total, total, is_attention=True)


# What `_product` counts, by the position of the left side; other namespaces than aten are named.
_PRODUCTS = {
    0: (
        *("mm", "bmm", "mv", "dot", "vdot", "linear", "matmul", "mkldnn_linear", "_int_mm"),
        *("_scaled_mm", "_scaled_mm_v2", "_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu"),
        *("mkldnn::_linear_pointwise", "mkl::_mkl_linear", "onednn::qlinear_pointwise", "quantized::linear"),
        *("quantized::linear_relu", "quantized::linear_dynamic", "quantized::linear_relu_dynamic"),
        *("bitsandbytes::gemm_4bit", "bitsandbytes::gemv_4bit", "bitsandbytes::int8_linear_matmul"),
        *("bitsandbytes::int8_scaled_mm", "bitsandbytes::int8_mixed_scaled_mm"),
    ),
    1: ("addmm", "addmm_", "baddbmm", "baddbmm_", "addmv", "addmv_", "_addmm_activation"),
}
_FORMULAS: dict[str, Formula] = {
    **{
        name if "::" in name else f"aten::{name}": partial(_product, index)
        for index, names in _PRODUCTS.items()
        for name in names
    },
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::convolution_overrideable": _convolution,
    "aten::linalg_solve_triangular": _triangular_solve,
    "aten::addbmm": _sum_of_products,
    "aten::addbmm_": _sum_of_products,
    "aten::_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm_v2": _grouped,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "aten::_scaled_dot_product_fused_attention_overrideable_backward": _attention_backward,
}
_ATTENTION = {
    "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product_attention_math",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
}

# Names of operators that may hold a matrix product, and words that show that one does not.
_PRODUCT = re.compile(
    r"(?:^|_)(?:(?:add|badd|addb|s|hs|sspadd|b)?mm|matmul|ge?mm|ge?mv|addmv|addr|q?linear|attention|attn|q?conv[123]?d?"
    r"|convolution|lstm|gru|rnn|cdist|v?dot|bilinear|trilinear|transformer|linalg|fft|int[48]pack|einsum)(?:_|$)"
)
_HARMLESS = re.compile(r"(?:^|_)(?:upsample|convert|pack|prepack|flatten|cache|errors|norm|cross|diagonal)(?:_|$)")
_CONVERSION = re.compile(r"(?:^|_)(?:de)?quant(?:ize)?(?:_|$)")  # no products, whoever's operator it is
_METADATA = re.compile(
    r"(?:sym_)?(?:is_contiguous|size|stride|storage_offset|numel)|is_strides_like_format|is_non_overlapping_and_dense"
    r"|dim|layout"
)
_BUILTIN = {"aten", "prim", "prims", "inductor", "inductor_prims", "rngprims", "debugprims", "mkldnn", "mkl"}
_WITHOUT_ARITHMETIC = {"c10d", "_c10d_functional", "_c10d_functional_autograd", "profiler", "_dtensor"}

Action: TypeAlias = Formula | Literal["pass", "decompose", "unknown", "metadata"]
_actions: dict[Any, Action] = {}


def _action(func: Any) -> Action:
    """The treatment of an operator; remembered, except where a formula may still be registered for it."""
    formula = _formula(func)
    if not isinstance(func, torch._ops.OpOverload):  # flex attention and other operators of higher order
        return formula or "unknown"
    if formula is not None:
        return _actions.setdefault(func, formula) if func.namespace == "aten" else formula
    name = func._schema.name.split("::")[1]
    action: Action
    if _METADATA.fullmatch(name) and func.namespace in ("aten", "prim"):
        action = "metadata"
    elif func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd):
        action = "decompose"
    elif func.namespace in _WITHOUT_ARITHMETIC or _CONVERSION.search(name):
        action = "pass"
    elif func.namespace not in _BUILTIN or (_PRODUCT.search(name) and not _HARMLESS.search(name)):
        return "unknown"
    else:
        action = "pass"
    return _actions.setdefault(func, action)


def _formula(func: Any) -> Formula | None:
    """The formula of an operator, or ``None``: a registered one, ours, or torch's, in this order."""
    packet = getattr(func, "_overloadpacket", func)
    name = func._schema.name if isinstance(func, torch._ops.OpOverload) else str(func)
    theirs = _registered.get(func) or _registered.get(packet)
    if theirs is None:
        if name in _ATTENTION:
            return partial(_attention, [item.name for item in func._schema.arguments].index("is_causal"))
        if name in _FORMULAS:
            return _FORMULAS[name]
        theirs = torch_registry.get(packet)
    if theirs is None:
        return None
    formula = theirs
    return lambda args, kwargs, result: int(formula(*args, **kwargs, out_val=result))


class ExactMode(TorchDispatchMode):
    """A dispatch mode that counts the operators of the thread that it is pushed in.

    It sees what reaches the dispatcher below autograd. Operators that torch itself puts together out of others are
    taken apart (``decompose``), and their parts come back here; a kernel with a formula is counted as a whole.
    Compiled graphs run as they are (``ignore_compile_internals``); their calls of library kernels are seen, fused
    Triton kernels and replays of CUDA graphs are not.
    """

    supports_higher_order_operators = True

    def __init__(self, record: Callable[[Any, OpFlops | None], None]) -> None:
        """Call `record` with each operator that counts, and its FLOPs.

        FLOPs are ``None`` where an operator may hold a matrix product and has no formula.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = record

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """True, so that `torch.compile` stays on: without it a model would fall back to eager mode, for good."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operator's own result."""
        action = _actions.get(func) or _action(func)
        kwargs = kwargs or {}
        if action == "pass":
            return func(*args, **kwargs)
        if action == "metadata":  # a tensor subclass with its own sizes asks; the mode has no answer
            return NotImplemented
        if action == "decompose":
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        # Of a tensor that is stored sparsely, the shape does not tell the work.
        is_sparse = any(isinstance(arg, torch.Tensor) and arg.layout is not torch.strided for arg in args[:3])
        if callable(action) and not is_sparse:
            flops = action(args, kwargs, result)
            self.record(func, flops if isinstance(flops, OpFlops) else OpFlops(flops, flops))
        else:
            self.record(func, None)
        return result
