"""Exact, attributed and almost free counts of floating-point operations.

`FlopCounter` counts what live models do; the closed forms (`model_spec`, `forward_flops`, `estimate_flops`) need no
model and no torch. A multiply-add is 2 FLOPs, and only matrix products count.

Example:
    >>> import inferscale as isc
    >>> model, _ = isc.zoo.load("policy-xs")
    >>> spec = isc.flops.model_spec(model.config)
    >>> isc.flops.forward_flops(spec, new=1, past=99)  # one token after a prefix of 99
    Flops(linear=179712, head=21504, attention_full=57600, attention_causal=57600)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscale._compat import late_names

from .energy import Energy, EnergyMeter
from .ledger import CONVENTIONS, PEAK_BANDWIDTH, PEAK_FLOPS, estimate_flops, measured_bandwidth, measured_peak
from .spec import Flops, ModelSpec, PackedRows, UnknownArchitectureError, forward_flops, model_spec

if TYPE_CHECKING:
    from .calibration import CalibrationError, calibrate, closed_form
    from .counter import FlopCounter, FlopsWarning, VerificationError, report_tokens
    from .ops import register_flop_formula
    from .training import FlopCallback

__all__ = [
    "CONVENTIONS",
    "CalibrationError",
    "Energy",
    "EnergyMeter",
    "FlopCallback",
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
    "measured_bandwidth",
    "measured_peak",
    "model_spec",
    "register_flop_formula",
    "report_tokens",
]

# These need torch, and are loaded when they are asked for.
_LAZY = {
    "CalibrationError": ".calibration",
    "FlopCallback": ".training",
    "FlopCounter": ".counter",
    "FlopsWarning": ".counter",
    "VerificationError": ".counter",
    "calibrate": ".calibration",
    "closed_form": ".calibration",
    "register_flop_formula": ".ops",
    "report_tokens": ".counter",
}


__getattr__ = late_names(__name__, _LAZY)
