"""The way of thinking in parallel that is right for a model, found by trying it on this very model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from inferscale._evaluating import evaluating

from .backbone import FULL_PRECISION, Backbone, UnsupportedModelError
from .parallel import Way, open_session, read_text

_PROBE_ERRORS = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)


@dataclass(frozen=True)
class ParallelCheck:
    """What the self-check found.

    Attributes:
        way: The way that is used.
        errors: For each way that was tried, the greatest error of a hidden state against thinking at one position at
            a time, in standard deviations; or what it raised.
    """

    way: Way
    errors: dict[str, float | str] = field(default_factory=dict)


@torch.no_grad()
def check_parallel(backbone: Backbone, wanted: Literal["auto", "mask", "fold"] = "auto") -> ParallelCheck:
    """The first way that agrees with thinking at one position at a time, tried on this very model.

    A mask that a model does not understand is mostly ignored in silence, so that no list of families can be trusted.
    Windows longer than the handful of tokens that are tried are taken from the configuration.

    Args:
        backbone: The model.
        wanted: ``"mask"`` or ``"fold"`` allow that way alone.

    Raises:
        UnsupportedModelError: If no allowed way agrees.
    """
    errors: dict[str, float | str] = {}
    tolerance = 1e-3 if backbone.dtype in FULL_PRECISION else 0.25
    with evaluating(backbone.model), torch.autocast(backbone.device.type, enabled=False):
        trial = _Trial(backbone)
        for way in _candidates(backbone, wanted):
            error = errors[way] = trial.error(way)
            if isinstance(error, float) and error < tolerance:
                if way == "fold" and wanted == "auto":
                    _warn_fold(backbone, errors)
                return ParallelCheck(way, errors)
    raise UnsupportedModelError(
        f"parallel thoughts disagree with single ones for {type(backbone.model).__name__} under "
        f"{backbone.attention!r} attention ({errors}): load it with attn_implementation='sdpa' or 'eager'"
        + (", or allow parallel='auto'" if wanted != "auto" else "")
    )


def _candidates(backbone: Backbone, wanted: str) -> list[Way]:
    ways: list[Way] = []
    if wanted != "fold" and backbone.attention_only and backbone.takes_positions:
        ways = ["mask_by_kind", "mask"] if len(backbone.kinds) > 1 else ["mask", "mask_by_kind"]
        if not backbone.kinds:
            ways = ["mask"]
    return ways + (["fold"] if wanted != "mask" else [])


def _warn_fold(backbone: Backbone, errors: dict[str, float | str]) -> None:
    found = "; ".join(f"{way}: {error}" for way, error in errors.items() if way != "fold")
    warnings.warn(
        f"{type(backbone.model).__name__} under {backbone.attention!r} attention cannot run parallel thoughts through "
        f"a mask ({found or 'not pure attention with explicit positions'}): every thought becomes a row of the batch, "
        "which reads its text again. Pass parallel='fold' to say that you know",
        UserWarning,
        stacklevel=4,
    )


class _Trial:
    """Two texts of five tokens, thoughts of three tokens at every position, and the truth about them."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        size, device = backbone.vocabulary, backbone.device
        self._ids = (torch.arange(10, device=device).reshape(2, 5) * 13 + 3) % size
        self._thought_ids = (torch.arange(30, device=device).reshape(2, 5, 3) * 29 + 11) % size
        self._truth = self._one_by_one()

    def error(self, way: Way) -> float | str:
        """Greatest difference from the truth in standard deviations, or what was raised."""
        try:
            found = self._run(way)
        except _PROBE_ERRORS as error:
            return f"{type(error).__name__}: {error}"[:200]
        worst = (found.double() - self._truth).abs().max() / self._truth.std()
        return float(worst) if bool(torch.isfinite(worst)) else "not finite"

    def _run(self, way: Way) -> Tensor:
        backbone = self._backbone
        text = read_text(backbone, backbone.embed(self._ids), None, way)
        session = open_session(backbone, text, torch.arange(5, device=self._ids.device), way, max_rows=10)
        embeds = backbone.embed(self._thought_ids)
        first = session.feed(embeds[:, :, :1])
        rest = session.feed(embeds[:, :, 1:])
        session.close()
        return torch.cat([first, rest], dim=2)

    def _one_by_one(self) -> Tensor:
        columns = []
        for position in range(5):
            ids = torch.cat([self._ids[:, : position + 1], self._thought_ids[:, position]], dim=1)
            columns.append(self._backbone.states(self._backbone.embed(ids))[:, -3:])
        return torch.stack(columns, dim=1).double()
