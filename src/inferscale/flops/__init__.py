"""Exact, attributed and almost free counts of floating-point operations."""

from .conventions import CONVENTIONS
from .estimate import estimate_flops
from .formulas import Flops, ModelSpec, UnknownArchitectureError, forward_flops, model_spec

__all__ = [
    "CONVENTIONS",
    "Flops",
    "ModelSpec",
    "UnknownArchitectureError",
    "estimate_flops",
    "forward_flops",
    "model_spec",
]
