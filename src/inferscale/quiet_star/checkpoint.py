"""Saving and loading: start, end and head in a file of their own, the base by reference or beside them."""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from inferscale.generators.loading import CheckpointError, load_model

from .model import QuietSTaR
from .published import load_published
from .state import fill, thought_state

_FORMAT = 1
CONFIG = "quiet_star.json"
WEIGHTS = "quiet_star.safetensors"
_SAMPLE = 256


def save(quiet: QuietSTaR, folder: str | os.PathLike[str], *, merge: bool = False) -> None:
    """Writes start, end, head and settings.

    Args:
        quiet: The wrapper.
        folder: Where to; made if it is not there.
        merge: Write the base model beside them, so that the folder is complete and also loads as the plain base. Needed
            once the base itself was trained; otherwise the base is remembered by its name.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().contiguous() for name, tensor in thought_state(quiet).items()}
    save_file(weights, target / WEIGHTS)
    settings = {
        "format": _FORMAT,
        "thought_length": quiet.thought_length,
        "bounded": quiet.head.bounded,
        "forbidden_ids": list(quiet.forbidden_ids),
        "base": {
            "name": str(getattr(quiet.model, "name_or_path", "")),
            "merged": merge,
            "dtype": str(quiet.start.dtype),
            "fingerprint": fingerprint(quiet.model),
        },
    }
    (target / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    if merge:
        quiet.model.save_pretrained(target)


def load(
    folder: str | os.PathLike[str],
    model: Any = None,
    *,
    thought_length: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> QuietSTaR:
    """The wrapper in a folder: one that `save` wrote, or the layout of the published checkpoints.

    Args:
        folder: Where it lies.
        model: The base model, if it is at hand; by default the one saved beside or remembered by name.
        thought_length: Instead of the saved one. Published checkpoints do not say theirs: 5 by default, which is that
            of ``quietstar-8-ahead``.
        device: Where to run a base that is loaded here.
        dtype: Of a base that is loaded here; by default float32 on a CPU and the checkpoint's own elsewhere.
        options: Passed on to `QuietSTaR`.

    Raises:
        CheckpointError: If the folder holds neither layout or one of another version, a tensor is missing, or the base
            is not the one that the thoughts were trained with.
    """
    source = Path(folder)
    if not (source / CONFIG).is_file():
        return load_published(source, model, thought_length, device, dtype, options)
    settings = _read_settings(source / CONFIG)
    base = settings["base"]
    if model is None:
        model = source if base["merged"] else base["name"]
        if not model:
            raise CheckpointError(f"{source} does not say where its base lies: pass model=..., or save with merge=True")
    model = _base_model(model, device, dtype)
    options = {"bounded": settings["bounded"], "forbidden_ids": settings["forbidden_ids"], **options}
    length = settings["thought_length"] if thought_length is None else thought_length
    quiet = QuietSTaR(model, length, **options)
    if base["dtype"] == str(quiet.start.dtype) and base["fingerprint"] != fingerprint(model):
        raise CheckpointError(
            f"the base model given for {source} is not the one that its thoughts were saved with: load that one (if it "
            "was trained, save with merge=True)"
        )
    fill(quiet, load_file(source / WEIGHTS), str(source / WEIGHTS))
    return quiet


def _read_settings(file: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if settings.get("format") != _FORMAT:
        raise CheckpointError(f"{file} has format {settings.get('format')!r}; this inferscale reads format {_FORMAT}")
    return settings


def fingerprint(model: Any) -> str:
    """A hash of up to 256 numbers of every weight, which tells two trained models of one shape apart."""
    digest = blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(len(flat) // _SAMPLE, 1)].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _base_model(model: Any, device: Any, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return load_model(model, AutoModelForCausalLM, device=device, dtype=dtype)
