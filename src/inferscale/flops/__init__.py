"""Exact, attributed and almost free counts of floating-point operations.

`FlopCounter` counts what live models do; the closed forms (`model_spec`, `forward_flops`, `estimate_flops`) need no
model and no torch. A multiply-add is 2 FLOPs, and only matrix products count.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .conventions import CONVENTIONS
from .estimate import estimate_flops
from .formulas import Flops, ModelSpec, PackedRows, UnknownArchitectureError, forward_flops, model_spec
from .peaks import PEAK_BANDWIDTH, PEAK_FLOPS, measured_peak

if TYPE_CHECKING:
    from .binding import closed_form
    from .calibration import CalibrationError, calibrate
    from .counter import FlopCounter
    from .ops import register_flop_formula
    from .recorder import FlopsWarning, VerificationError, report_tokens

__all__ = [
    "CONVENTIONS",
    "CalibrationError",
    "FlopCounter",
    "Flops",
    "FlopsWarning",
    "ModelSpec",
    "PEAK_BANDWIDTH",
    "PEAK_FLOPS",
    "PackedRows",
    "UnknownArchitectureError",
    "VerificationError",
    "calibrate",
    "closed_form",
    "estimate_flops",
    "forward_flops",
    "measured_peak",
    "model_spec",
    "register_flop_formula",
    "report_tokens",
]

# These need torch, and are loaded when they are asked for.
_LAZY = {
    "CalibrationError": "calibration",
    "FlopCounter": "counter",
    "FlopsWarning": "recorder",
    "VerificationError": "recorder",
    "calibrate": "calibration",
    "closed_form": "binding",
    "register_flop_formula": "ops",
    "report_tokens": "recorder",
}


def __getattr__(name: str) -> Any:
    """A name that needs torch."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value
