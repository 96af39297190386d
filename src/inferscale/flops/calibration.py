"""A closed form for any architecture, from a few small forwards that are counted op by op.

One row of a decoder costs ``A·s + B·s·(s + past) + C·nl + D·past`` with s new tokens and nl logits kept: matrices,
attention, head, and (latent attention) the expansion of the cache. Four forwards give the four constants, a fifth
decides whether the form holds. No key of the configuration is guessed.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import nn

from inferscale._compat import cache_argument, evaluating

from .ops import ExactMode, OpFlops, quietly
from .spec import AttentionGroup, ModelSpec, UnknownArchitectureError

_TOLERANCE = 0.001
_LONGEST = 8  # tokens in the longest probe
_ADVICE = 'count it op by op with FlopCounter(mode="exact")'


class CalibrationError(UnknownArchitectureError):
    """The four constants do not describe this model."""


class _Constants(NamedTuple):
    """FLOPs: A and C for a token, B for a query-key pair, D for a cached token."""

    linear: int
    pair: int
    head: int
    cached: int

    def flops(self, new: int, past: int, kept: int) -> int:
        """FLOPs of one row by the closed form."""
        return self.linear * new + self.pair * new * (new + past) + self.head * kept + self.cached * past


class _Sum:
    """Adds up what an `ExactMode` sees."""

    def __init__(self) -> None:
        self.full = 0
        self.unknown: set[str] = set()

    def on_flops(self, flops: OpFlops) -> None:
        """Adds one call."""
        self.full += flops.full

    def on_unknown(self, name: str) -> None:
        """Notes that the sum is not complete."""
        self.unknown.add(name)


def calibrate(model: Any) -> ModelSpec:
    """The closed form of a causal model, measured with five forwards of at most eight tokens.

    Shapes (d, L, heads) stay unknown, so conventions that need them cannot be used with it. Windows are read off the
    layers of the model's own cache.

    Args:
        model: A live model (``input_ids`` and ``past_key_values`` in, ``past_key_values`` out), or a transformers
            configuration, whose causal language model is then built without memory for its weights.

    Raises:
        CalibrationError: If the model cannot be run so, or what it costs has another form (state-space layers,
            linear attention).
    """
    if not isinstance(model, nn.Module):
        model = _on_meta(model)
    with evaluating(model), torch.no_grad():
        constants, windows = quietly(lambda: _solve(model))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelSpec(
        family=str(getattr(getattr(model, "config", None), "model_type", type(model).__name__)),
        linear=constants.linear,
        head=constants.head,
        attention=_groups(model, constants.pair, windows),
        parameters=parameters,
        active_weights=(constants.linear + constants.head) // 2,
        cached=constants.cached,
    )


def _solve(model: nn.Module) -> tuple[_Constants, list[int | None]]:
    """The four constants, checked by a fifth forward, and the window of each layer."""
    keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
    first, _ = _measure(model, 4, 0, 4)
    second, _ = _measure(model, _LONGEST, 0, _LONGEST)
    third = _measure(model, _LONGEST, 0, 1)[0] if keeps_logits else second
    fourth, _ = _measure(model, 2, 6, 2)
    check, windows = _measure(model, 5, 3, 5)
    _check_windows(model, windows)
    head = (second - third) // 7
    pair = (second - 2 * first) // 32
    linear = (first - 16 * pair) // 4 - head
    cached = (fourth - 2 * linear - 16 * pair - 2 * head) // 6
    constants = _Constants(linear, pair, head, cached)
    predicted = constants.flops(5, 3, 5)
    if min(constants) < 0 or linear == 0 or abs(predicted - check) > _TOLERANCE * check:
        raise CalibrationError(
            f"{type(model).__name__} does not cost A·s + B·s·(s + past) + C·logits + D·past: 5 tokens on a cache of 3 "
            f"should be {predicted:,} FLOPs and were {check:,}; {_ADVICE}"
        )
    return constants, windows


def _measure(model: nn.Module, new: int, past: int, kept: int) -> tuple[int, list[int | None]]:
    """FLOPs of `new` tokens on a cache of `past`, and the window of each layer of the cache."""
    cache = _forward(model, past, None, past)[1] if past else None
    counted, cache = _forward(model, new, cache, kept)
    if counted.unknown:
        raise CalibrationError(
            f"{type(model).__name__} runs {', '.join(sorted(counted.unknown))}, which has no formula: give it one with "
            f"inferscale.flops.register_flop_formula and calibrate again, or {_ADVICE}"
        )
    layers = getattr(cache, "layers", ())
    return counted.full, [getattr(layer, "sliding_window", None) for layer in layers]


def _forward(model: nn.Module, new: int, cache: Any, kept: int) -> tuple[_Sum, Any]:
    """Runs `new` tokens; what they cost, and the cache after them."""
    device = next(model.parameters()).device
    name = cache_argument(model)
    options: dict[str, Any] = {name: cache, "use_cache": True}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = kept
    counted = _Sum()
    try:
        with ExactMode(counted):
            output = model(input_ids=torch.arange(1, new + 1, device=device)[None], **options)
        return counted, getattr(output, name)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CalibrationError(
            f"{type(model).__name__} cannot be calibrated: a forward of {new} tokens with a key-value cache fails "
            f"({type(error).__name__}: {error}); {_ADVICE}"
        ) from error


def _check_windows(model: nn.Module, windows: list[int | None]) -> None:
    """Refuses windows so short that the probes themselves did not see everything."""
    short = [window for window in windows if window is not None and window < _LONGEST]
    if short:
        raise CalibrationError(
            f"{type(model).__name__} has a window of {min(short)} tokens, and calibration needs one of at least "
            f"{_LONGEST}; {_ADVICE}"
        )


def _groups(model: nn.Module, pair: int, windows: list[int | None]) -> tuple[AttentionGroup, ...]:
    """The attention by window, every layer of the cache having the same part of it."""
    kinds = list(dict.fromkeys(windows)) or [None]
    if len(kinds) > 1 and pair % len(windows):
        raise CalibrationError(f"{type(model).__name__} has layers with and without windows that differ; {_ADVICE}")
    shares = [windows.count(kind) for kind in kinds] if windows else [1]
    return tuple(
        AttentionGroup(pair * share // sum(shares), 0, kind) for kind, share in zip(kinds, shares, strict=True)
    )


def _on_meta(config: Any) -> nn.Module:
    """The causal language model of a configuration, with weights that take no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model
