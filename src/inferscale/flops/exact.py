"""A dispatch mode that counts every matrix product that runs, and names those that it cannot count."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode

from .ops import Formula, OpFlops, formula_for

Action: TypeAlias = Formula | Literal["pass", "decompose", "unknown", "metadata"]


class Sink(Protocol):
    """Where an `ExactMode` puts what it sees."""

    def on_flops(self, flops: OpFlops) -> None:
        """One counted call."""

    def on_unknown(self, name: str) -> None:
        """One call of an operator that may hold a matrix product and has no formula."""


class ExactMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
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
