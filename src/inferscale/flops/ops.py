"""FLOPs of single torch operators, the dispatch mode that counts them as they run, and who is counting."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry as torch_registry

from .ledger import Phase, Scope
from .spec import causal_pairs


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


Action: TypeAlias = Formula | Literal["pass", "decompose", "unknown", "metadata"]


class Sink(Protocol):
    """Where an `ExactMode` puts what it sees."""

    def on_flops(self, flops: OpFlops) -> None:
        """One counted call."""

    def on_unknown(self, name: str) -> None:
        """One call of an operator that may hold a matrix product and has no formula."""


class ExactMode(TorchDispatchMode):
    """Counts the operators of the thread that it is pushed in.

    Compiled graphs run as they are (``ignore_compile_internals``); their calls of library kernels are seen, fused
    Triton kernels and replays of CUDA graphs are not.
    """

    supports_higher_order_operators = True

    def __init__(self, sink: Sink) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sink = sink

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leaves `torch.compile` on: without it a model would fall back to eager mode, for good."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operator's own result."""
        action = _ACTIONS.get(func) or _resolve(func)
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
            action = "unknown"
        result = func(*args, **kwargs)
        if callable(action) and not _is_sparse(args):
            self.sink.on_flops(action(args, kwargs, result))
        else:
            self.sink.on_unknown(str(func))
        return result


_ACTIONS: dict[Any, Action] = {}

# Names of operators that may hold a matrix product, and words that show that one does not.
_PRODUCT = re.compile(
    r"(?:^|_)(?:(?:add|badd|addb|s|hs|sspadd|b)?mm|matmul|ge?mm|ge?mv|addmv|addr|q?linear|attention|attn|q?conv[123]?d?"
    r"|convolution|lstm|gru|rnn|cdist|v?dot|bilinear|trilinear|transformer|linalg|fft|int[48]pack|einsum)(?:_|$)"
)
_HARMLESS = re.compile(r"(?:^|_)(?:upsample|convert|pack|prepack|flatten|cache|errors|norm|cross|diagonal)(?:_|$)")
_METADATA = re.compile(
    r"(?:sym_)?(?:is_contiguous|size|stride|storage_offset|numel)|is_strides_like_format|is_non_overlapping_and_dense"
    r"|dim|layout"
)
_BUILTIN = frozenset({"aten", "prim", "prims", "inductor", "inductor_prims", "rngprims", "debugprims", "mkldnn", "mkl"})
_WITHOUT_ARITHMETIC = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd", "profiler", "_dtensor"})


def _resolve(func: Any) -> Action:
    """What to do with an operator; remembered, except where a formula may still be registered for it."""
    formula = formula_for(func)
    if formula is not None:
        return formula if _may_change(func) else _ACTIONS.setdefault(func, formula)
    if not isinstance(func, torch._ops.OpOverload):
        return "unknown"
    action = _kind(func)
    return action if action == "unknown" else _ACTIONS.setdefault(func, action)


def _may_change(func: Any) -> bool:
    """Whether someone may register another formula for `func` later: whatever is not torch's own."""
    return not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten"


def _kind(func: torch._ops.OpOverload) -> Action:
    """How to treat an operator that has no formula."""
    name = func._schema.name.split("::")[1]
    if _METADATA.fullmatch(name) and func.namespace in ("aten", "prim"):
        return "metadata"
    if func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd):
        return "decompose"
    if func.namespace in _WITHOUT_ARITHMETIC:
        return "pass"
    may_be_product = _PRODUCT.search(name) and not _HARMLESS.search(name)
    return "unknown" if may_be_product or func.namespace not in _BUILTIN else "pass"


def _is_sparse(args: tuple[Any, ...]) -> bool:
    """Whether a tensor is stored sparsely, so that its shape does not tell the work."""
    return any(isinstance(arg, torch.Tensor) and arg.layout is not torch.strided for arg in args[:3])


T = TypeVar("T")

Entry: TypeAlias = tuple[Any, Scope]
"""A counter and the scope that it is in."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One ``with`` block of a counter, or of one of its scopes.

    Attributes:
        owner: The counter.
        scope: The scope that the block is in.
        parent: The block around it.
        is_scope: Whether it is a scope's block.
        entries: Each active counter once, with its innermost scope.
        name: What stays the same when a block around it ends first and the frame is made anew.
    """

    owner: Any
    scope: Scope
    parent: Frame | None
    is_scope: bool
    entries: tuple[Entry, ...]
    name: object


@dataclass(slots=True, eq=False)
class Call:
    """A forward that is running.

    Attributes:
        watch: The hooks of the model.
        module: What was called: the model, its body or its last matrix.
        phase: The phase.
        in_head: Whether the last matrix is running.
        expected: FLOPs by the closed form, for each counter that verifies.
        executed: FLOPs seen so far, for each counter that verifies.
        has_mode: Whether the dispatch mode was pushed for this call alone, its thread having none.
    """

    watch: Any
    module: Any
    phase: Phase
    in_head: bool = False
    expected: dict[Any, int] | None = None
    executed: Counter[Any] | None = None
    has_mode: bool = False


_frame: ContextVar[Frame | None] = ContextVar("inferscale_flops_frame", default=None)
_calls: ContextVar[tuple[Call, ...]] = ContextVar("inferscale_flops_calls", default=())
_unwatched: ContextVar[bool] = ContextVar("inferscale_flops_unwatched", default=False)
_quiet: ContextVar[bool] = ContextVar("inferscale_flops_quiet", default=False)


def active() -> tuple[Entry, ...]:
    """The counters that count here, outermost first."""
    frame = _frame.get()
    return () if frame is None else frame.entries


def scope_of(owner: Any) -> Scope | None:
    """The scope that `owner` is in here; ``None`` if it does not count here."""
    return next((scope for counter, scope in active() if counter is owner), None)


def enter(owner: Any, scope: Scope, is_scope: bool = False) -> Frame:
    """Opens a block of `owner`."""
    parent = _frame.get()
    if parent is None:
        _calls.set(())  # a forward that was interrupted may have left its own
    frame = _push(owner, scope, parent, is_scope, object())
    _frame.set(frame)
    return frame


def leave(frame: Frame) -> None:
    """Closes a block, whether or not blocks opened after it are still open."""
    _frame.set(_without(_frame.get(), frame))


def innermost_block(owner: Any) -> Frame | None:
    """The block of `owner` itself that was opened last, scopes left out."""
    frame = _frame.get()
    while frame is not None and (frame.owner is not owner or frame.is_scope):
        frame = frame.parent
    return frame


def _push(owner: Any, scope: Scope, parent: Frame | None, is_scope: bool, name: object) -> Frame:
    others = () if parent is None else tuple(entry for entry in parent.entries if entry[0] is not owner)
    return Frame(owner, scope, parent, is_scope, (*others, (owner, scope)), name)


def _without(top: Frame | None, frame: Frame) -> Frame | None:
    """The chain of blocks with `frame` taken out."""
    if top is None or top.name is frame.name:
        return None if top is None else top.parent
    return _push(top.owner, top.scope, _without(top.parent, frame), top.is_scope, top.name)


def running() -> tuple[Call, ...]:
    """Forwards that are running here, outermost first."""
    return _calls.get()


def running_call(watch: Any) -> Call | None:
    """The innermost forward of `watch` that is running here."""
    for call in reversed(_calls.get()):
        if call.watch is watch:
            return call
    return None


def begin_call(call: Call) -> None:
    """Notes that a forward has begun."""
    _calls.set((*_calls.get(), call))


def end_call(watch: Any, module: Any) -> Call | None:
    """Takes back the innermost forward of `watch` if it was a call of `module`, and what was left open inside."""
    calls = _calls.get()
    for index in range(len(calls) - 1, -1, -1):
        if calls[index].watch is watch:
            if calls[index].module is not module:
                return None
            _calls.set(calls[:index])
            return calls[index]
    return None


@contextmanager
def unwatched_call() -> Iterator[None]:
    """A block in which a model runs that has been noticed to be unwatched."""
    token = _unwatched.set(True)
    try:
        yield
    finally:
        _unwatched.reset(token)


def in_unwatched_call() -> bool:
    """Whether such a model is running here."""
    return _unwatched.get()


def is_quiet() -> bool:
    """Whether forwards that no counter counts are meant to be so."""
    return _quiet.get()


def quietly(work: Callable[[], T]) -> T:
    """The result of `work`, run where no counter is active and none complains."""

    def run() -> T:
        _quiet.set(True)
        return work()

    return Context().run(run)
