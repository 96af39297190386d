"""What hardware can do at most, for utilisation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType

# Vendors' data sheets: dense matrix products (no sparsity), per device.
PEAK_FLOPS: Mapping[str, float] = MappingProxyType(
    {
        "A100-bf16": 312e12,
        "A100-tf32": 156e12,
        "H100-SXM-bf16": 989e12,
        "H100-PCIe-bf16": 756e12,
        "H200-bf16": 989e12,
        "L4-bf16": 121e12,
        "L40S-bf16": 362e12,
        "T4-fp16": 65e12,
        "V100-fp16": 125e12,
        "RTX4090-bf16": 165e12,
    }
)
"""FLOP/s by name."""

PEAK_BANDWIDTH: Mapping[str, float] = MappingProxyType(
    {
        "A100-40GB": 1.555e12,
        "A100-80GB": 2.039e12,
        "H100-SXM": 3.35e12,
        "H100-PCIe": 2.0e12,
        "H200": 4.8e12,
        "L4": 0.3e12,
        "L40S": 0.864e12,
        "T4": 0.32e12,
        "V100": 0.9e12,
        "RTX4090": 1.008e12,
    }
)
"""Bytes per second by name."""


def resolve_peak(peak: float | str | None, known: Mapping[str, float], what: str, unit: str) -> float:
    """The peak as a number.

    Raises:
        ValueError: If it is missing, unknown or not positive; the message names the peaks that are known.
    """
    if isinstance(peak, str) and peak in known:
        return known[peak]
    if peak is None or isinstance(peak, str) or not peak > 0:
        raise ValueError(
            f"{what}={peak!r}: give the hardware's peak in {unit} or a name out of {', '.join(known)}"
            + ("; measured_peak() measures one" if unit == "FLOP/s" else "")
        )
    return float(peak)


def measured_peak(device: str = "cpu", dtype: str = "float32", size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of the fastest square matrix product seen within `seconds`, for hardware without a data sheet.

    Args:
        device: A torch device.
        dtype: A torch dtype's name.
        size: Rows and columns; a GPU wants 8192.
        seconds: How long to try.
    """
    import torch

    left = torch.randn(size, size, device=device).to(getattr(torch, dtype))

    def wait() -> None:
        if left.is_cuda:
            torch.cuda.synchronize()

    best, until = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < until:
        wait()
        start = time.perf_counter()
        torch.mm(left, left)
        wait()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
