"""What NumPy and torch spell differently, so that each function of the package is written once.

torch is never imported here: it is used only when the caller passed a tensor, so it is loaded already.
"""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A NumPy array or a torch tensor; as an argument also a (nested) list of numbers."""


def is_torch(value: object) -> bool:
    """Whether `value` is a torch tensor, found out without importing torch."""
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "device")


class Arrays:
    """Operations on NumPy arrays; `TorchArrays` gives the same ones on tensors."""

    xp: Any = np

    def float64(self, value: Array) -> Array:
        """`value` in float64."""
        return np.asarray(value, dtype=np.float64)

    def float32(self, value: Array) -> Array:
        """`value` in float32."""
        return np.asarray(value, dtype=np.float32)

    def int64(self, value: Array) -> Array:
        """`value` in int64; fractions are cut off."""
        return np.asarray(value).astype(np.int64)

    def boolean(self, value: Array) -> Array:
        """`value` as booleans."""
        return np.asarray(value).astype(np.bool_)

    def arange(self, n: int) -> Array:
        """0, 1, ..., n - 1 in int64."""
        return np.arange(n, dtype=np.int64)

    def flip(self, value: Array) -> Array:
        """`value` with its last axis reversed."""
        return np.flip(value, -1)

    def gather(self, value: Array, index: Array) -> Array:
        """``value[..., index]`` along the last axis, row by row."""
        return np.take_along_axis(value, index, axis=-1)

    def argsort(self, value: Array, descending: bool = False) -> Array:
        """Stable order of the last axis; among equal values the earlier position comes first."""
        return np.argsort(-value if descending else value, axis=-1, kind="stable")

    def cumsum(self, value: Array) -> Array:
        """Running sums of the last axis."""
        return np.cumsum(value, axis=-1)

    def searchsorted(self, rows: Array, values: Array, side: str) -> Array:
        """Insertion points of `values` into the ascending `rows`, both ``[..., n]``, row by row."""
        flat_rows, flat_values = rows.reshape(-1, rows.shape[-1]), values.reshape(-1, values.shape[-1])
        found = [np.searchsorted(row, value, side=side) for row, value in zip(flat_rows, flat_values, strict=True)]  # type: ignore[call-overload]
        return np.asarray(found, dtype=np.int64).reshape(values.shape)


class TorchArrays(Arrays):
    """Operations on torch tensors of one device."""

    def __init__(self, device: Any) -> None:
        self.xp = sys.modules["torch"]
        self.device = device

    def _convert(self, value: Array, dtype: Any) -> Array:
        return self.xp.as_tensor(value, device=self.device).to(dtype)

    def float64(self, value: Array) -> Array:
        """`value` in float64."""
        return self._convert(
            np.asarray(value, np.float64) if isinstance(value, (list, tuple)) else value, self.xp.float64
        )

    def float32(self, value: Array) -> Array:
        """`value` in float32."""
        return self._convert(value, self.xp.float32)

    def int64(self, value: Array) -> Array:
        """`value` in int64; fractions are cut off."""
        return self._convert(value, self.xp.int64)

    def boolean(self, value: Array) -> Array:
        """`value` as booleans."""
        return self._convert(value, self.xp.bool)

    def arange(self, n: int) -> Array:
        """0, 1, ..., n - 1 in int64."""
        return self.xp.arange(n, dtype=self.xp.int64, device=self.device)

    def flip(self, value: Array) -> Array:
        """`value` with its last axis reversed."""
        return self.xp.flip(value, (-1,))

    def gather(self, value: Array, index: Array) -> Array:
        """``value[..., index]`` along the last axis, row by row."""
        return self.xp.take_along_dim(value, index, dim=-1)

    def argsort(self, value: Array, descending: bool = False) -> Array:
        """Stable order of the last axis; among equal values the earlier position comes first."""
        return self.xp.argsort(value, dim=-1, descending=descending, stable=True)

    def cumsum(self, value: Array) -> Array:
        """Running sums of the last axis."""
        return self.xp.cumsum(value, dim=-1)

    def searchsorted(self, rows: Array, values: Array, side: str) -> Array:
        """Insertion points of `values` into the ascending `rows`, both ``[..., n]``, row by row."""
        return self.xp.searchsorted(rows.contiguous(), values.contiguous(), side=side)


NUMPY = Arrays()


def arrays_of(*values: object) -> Arrays:
    """The operations for `values`: those of the first tensor's device, or NumPy's if there is none."""
    for value in values:
        if is_torch(value):
            return TorchArrays(value.device)  # type: ignore[attr-defined]
    return NUMPY


def require_items(name: str, value: Array) -> None:
    """Raise unless `value` has a last axis with something on it."""
    if value.ndim == 0 or value.shape[-1] == 0:
        raise ValueError(f"{name} is empty (shape {tuple(value.shape)}): give at least one number on the last axis")


def whole_numbers(ops: Arrays, name: str, value: Array) -> Array:
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


def require(condition: Array, message: str) -> None:
    """Raise a ValueError with `message` unless all of `condition` is true (waits for a GPU to answer)."""
    if not bool(condition.all()):
        raise ValueError(message)


def check_temperature(temperature: float) -> float:
    """`temperature` as a float.

    Raises:
        ValueError: If it is not above 0 (infinity is allowed: all scores weigh the same).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature!r}; for all to the best use a small one, 1e-6")
    return float(temperature)
