"""Whether a `Session` computes what the model's own forward computes, found out before it is trusted."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from .kv_attention import UnsupportedModelError
from .kv_tree import Session
from .loading import evaluating

_LONGEST = 12


def length_bound(config: Any) -> int | None:
    """The longest sequence for which every layer sees every earlier token in one and the same way.

    Sliding windows and rotary embeddings that change with the length are left to the model's own forward beyond it;
    ``None`` if there is no bound.
    """
    text = config.get_text_config()
    bounds: list[int] = []
    kinds = getattr(text, "layer_types", None)
    slides = kinds is None or any("sliding" in str(kind) or "chunked" in str(kind) for kind in kinds)
    if slides and getattr(text, "use_sliding_window", True):
        windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
        bounds += [int(window) for window in windows if window]
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if str(rope.get("rope_type", rope.get("type", ""))) in ("dynamic", "longrope"):
        original = rope.get("original_max_position_embeddings")
        original = original or getattr(text, "original_max_position_embeddings", None) or text.max_position_embeddings
        bounds.append(int(original))
    return min(bounds, default=None)


def checked_session(model: Any) -> Session | None:
    """A session that computes what the model computes; ``None``, with a warning, if this model cannot be run so."""
    try:
        with evaluating(model), torch.inference_mode():
            session = Session(model)
            check_session(session)
    except UnsupportedModelError as error:
        warnings.warn(
            f"{type(model).__name__} is run without shared prefixes, slower and with equal results: {error}",
            stacklevel=4,
        )
        return None
    return session


def check_session(session: Session) -> None:
    """Compares the logits of a short forked, ragged run with plain forwards.

    Logits are compared, not tokens: with a corrupted key the likeliest token can be the same every time.

    Raises:
        UnsupportedModelError: If they differ, or the model cannot be run in this way.
    """
    model = session.model
    size = model.get_input_embeddings().weight.shape[0]
    ids = [(7919 * (i + 1)) % size for i in range(_LONGEST)]
    try:
        ours, whole = _forked_run(session, ids)
        plain = [_plain_logits(model, row) for row in whole]
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedModelError(f"a probe failed: {type(error).__name__}: {error}") from error
    found, expected = torch.stack(ours), torch.stack(plain)
    spread = float(expected.std(correction=0)) or 1.0
    worst = float((found - expected).abs().max())
    if not worst <= _tolerance(model.dtype) * spread:
        raise UnsupportedModelError(f"a probe's logits differ by {worst:.2g} where their spread is {spread:.2g}")


def _forked_run(session: Session, ids: list[int]) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Logits after two prompts, a ragged extension, a fork with a prune, a step of all rows and one of some."""
    segments = session.prefill([ids[:5], ids[3:5]])
    batch = session.open(segments, 2)
    session.extend(batch, [ids[5:8], ids[5:6]])
    batch = batch.select([0, 0, 1])
    rows = [ids[:8], ids[:8], ids[3:6]]
    for live in ([0, 1, 2], [1, 2]):
        new = [ids[8 + row] for row in live]
        logits = session.step(batch, live, torch.tensor(new, device=session.model.device))
        rows = [[*row, ids[8 + i]] if i in live else row for i, row in enumerate(rows)]
    return list(logits.float()), [rows[i] for i in live]


def _plain_logits(model: Any, ids: list[int]) -> torch.Tensor:
    row = torch.tensor([ids], device=model.device)
    logits: torch.Tensor = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits
    return logits[0, -1].float()


def _tolerance(dtype: torch.dtype) -> float:
    """Largest difference in units of the logits' spread: about a hundred roundings."""
    return max(1e-3, 16 * torch.finfo(dtype).eps)
