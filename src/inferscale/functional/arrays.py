"""One set of names for operations that NumPy and torch spell differently, so that each function is written once.

torch is never imported here: it is used only when the caller passed a tensor, so it is loaded already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np


class ArrayOrTensor(Protocol):
    """An array of numbers as it is passed in: NumPy's, or torch's on any device."""

    @property
    def shape(self) -> Any:
        """Lengths of the axes."""

    @property
    def dtype(self) -> Any:
        """Kind of the numbers."""

    def __getitem__(self, index: Any, /) -> Any: ...

    def tolist(self) -> Any:
        """The numbers in nested lists."""


ArrayLike: TypeAlias = ArrayOrTensor | Sequence[Any]
"""An array or a tensor, or a (nested) list of numbers, which becomes a NumPy array.

Example:
    >>> from inferscale.functional import ArrayLike, pass_at_k
    >>> def mean_coverage(correct: ArrayLike, k: int) -> float:
    ...     return float(pass_at_k(correct, k).mean())
    >>> mean_coverage([[1, 0, 0, 0], [1, 1, 0, 0]], k=2)  # two problems, four samples of each
    0.6666666666666667
"""

Array: TypeAlias = Any
"""A NumPy array, or a torch tensor on the same device where a tensor was passed.

Example:
    >>> import torch
    >>> from inferscale.functional import softmax
    >>> [type(softmax(scores)).__name__ for scores in ([1.0, 2.0], torch.tensor([1.0, 2.0]))]
    ['ndarray', 'Tensor']
"""


class NumpyOps:
    """Operations on the last axis of NumPy arrays, and conversions."""

    xp: Any = np

    def cast(self, value: Any, kind: str) -> Any:
        """`value` in another kind of numbers; fractions are cut off where it is a whole one."""
        return np.asarray(value, dtype=getattr(np, kind))

    def float64(self, value: Any) -> Any:
        """`value` in float64."""
        return self.cast(value, "float64")

    def float32(self, value: Any) -> Any:
        """`value` in float32."""
        return self.cast(value, "float32")

    def int64(self, value: Any) -> Any:
        """`value` in int64."""
        return self.cast(value, "int64")

    def boolean(self, value: Any) -> Any:
        """`value` as booleans."""
        return self.cast(value, "bool")

    def arange(self, n: int) -> Any:
        """0, 1, ..., n - 1 in int64."""
        return self.int64(np.arange(n))

    def flip(self, value: Any) -> Any:
        """`value` with its last axis reversed."""
        return np.flip(value, -1)

    def gather(self, value: Any, index: Any) -> Any:
        """``value[..., index]`` along the last axis, row by row."""
        return np.take_along_axis(value, index, axis=-1)

    def argsort(self, value: Any, descending: bool = False) -> Any:
        """Stable order of the last axis; among equal values the earlier position comes first."""
        return np.argsort(-value if descending else value, axis=-1, kind="stable")

    def cumsum(self, value: Any) -> Any:
        """Running sums of the last axis."""
        return np.cumsum(value, axis=-1)

    def searchsorted(self, rows: Any, values: Any, side: Any) -> Any:
        """Insertion points of `values` into the ascending `rows`, both `[..., n]`, row by row."""
        flat_rows, flat_values = rows.reshape(-1, rows.shape[-1]), values.reshape(-1, values.shape[-1])
        found = [np.searchsorted(row, value, side=side) for row, value in zip(flat_rows, flat_values, strict=True)]
        return np.asarray(found, dtype=np.int64).reshape(values.shape)


class _TorchOps(NumpyOps):
    """The same operations on torch tensors of one device."""

    def __init__(self, device: Any) -> None:
        self.xp = sys.modules["torch"]
        self.device = device

    def cast(self, value: Any, kind: str) -> Any:
        value = value if is_torch(value) else np.asarray(value)  # lists become float64, as in NumPy, not float32
        return self.xp.as_tensor(value, dtype=getattr(self.xp, kind), device=self.device)

    def flip(self, value: Any) -> Any:
        return self.xp.flip(value, (-1,))

    def gather(self, value: Any, index: Any) -> Any:
        return self.xp.take_along_dim(value, index, dim=-1)

    def argsort(self, value: Any, descending: bool = False) -> Any:
        return self.xp.argsort(value, dim=-1, descending=descending, stable=True)

    def cumsum(self, value: Any) -> Any:
        return self.xp.cumsum(value, dim=-1)

    def searchsorted(self, rows: Any, values: Any, side: Any) -> Any:
        return self.xp.searchsorted(rows.contiguous(), values.contiguous(), side=side)


NUMPY = NumpyOps()


def is_torch(value: object) -> bool:
    """True if `value` is a torch tensor, found out without importing torch."""
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "device")


def ops_for(*values: Any) -> NumpyOps:
    """The operations for `values`: those of the first tensor's device, or NumPy's if there is none."""
    return next((_TorchOps(value.device) for value in values if is_torch(value)), NUMPY)


def require(condition: Any, message: str) -> None:
    """Raise a ValueError with `message` unless all of `condition` is true (waits for a GPU to answer)."""
    if not bool(condition.all()):
        raise ValueError(message)


def require_items(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` has a last axis with something on it."""
    if value.ndim == 0 or value.shape[-1] == 0:
        raise ValueError(f"{name} is empty (shape {tuple(value.shape)}): give at least one number on the last axis")


def whole_numbers(ops: NumpyOps, name: str, value: Any) -> Any:
    """`value` in int64.

    Raises:
        ValueError: If it holds anything but integers (or booleans), or one that int64 does not hold.
    """
    value = value if is_torch(value) else np.asarray(value)
    if not any(kind in str(value.dtype) for kind in ("int", "bool")):
        raise ValueError(f"{name} must be whole numbers, got an array of {value.dtype}")
    if not is_torch(value) and value.dtype == np.uint64 and (value > np.iinfo(np.int64).max).any():
        raise ValueError(f"{name} must be at most 2**63 - 1: greater ones would be negative in int64")
    return ops.int64(value)


def check_temperature(temperature: float) -> float:
    """`temperature` as a float.

    Raises:
        ValueError: If it is not above 0 (infinity is allowed: all scores weigh the same).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature!r}; for all to the best use a small one, 1e-6")
    return float(temperature)
