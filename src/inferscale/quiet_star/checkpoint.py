"""Saving and loading thinking models: our own layout, and that of the released code (ezelikman/quiet-star)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from inferscale.runtime.loading import CheckpointError, load_model

from .model import QuietSTaR


def thought_state(quiet: QuietSTaR) -> dict[str, Tensor]:
    """Start, end and the head's weights by name, not copied."""
    head = {f"head.{name}": tensor for name, tensor in quiet.head.state_dict().items()}
    return {"start": quiet.start, "end": quiet.end, **head}


def fill(quiet: QuietSTaR, tensors: dict[str, Tensor], source: str) -> None:
    """Copies start, end and head into `quiet`.

    Raises:
        CheckpointError: If `tensors` (found in `source`) does not hold just these.
    """
    wanted = thought_state(quiet)
    wrong = sorted(set(wanted) ^ set(tensors)) or [n for n in wanted if wanted[n].shape != tensors[n].shape]
    if wrong:
        raise CheckpointError(f"{source} does not fit this model: {', '.join(wrong)} missing, too many or misshapen")
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(tensors[name])


PUBLISHED_THOUGHT_LENGTH = 5
"""Sampled tokens of a thought of ``ezelikman/quietstar-8-ahead``: 8 passes, of which text, start and end take three."""
_PUBLISHED_SCALE = 100.0  # start and end are stored divided by this
_PUBLISHED_PREFIXES = ("talk_head.", "start_embedding", "end_embedding")


def load_published(
    source: Path, model: Any, thought_length: int | None, device: Any, dtype: Any, options: dict[str, Any]
) -> QuietSTaR:
    """A checkpoint of the released code: a base model with ``talk_head`` and two embeddings among its weights.

    The released code copies an untrained embedding over start and end when it runs; here the trained ones are used.
    """
    tensors = dict(_published_tensors(source))
    if not tensors:
        raise CheckpointError(
            f"{source} holds neither quiet_star.json nor weights named talk_head.*: give a folder that save_pretrained "
            "wrote, or a published Quiet-STaR checkpoint"
        )
    missing = {"start_embedding", "end_embedding", "talk_head.0.0.weight"} - set(tensors)
    if missing:
        raise CheckpointError(f"{source} lacks {', '.join(sorted(missing))}: only heads of three layers can be loaded")
    if model is None:
        model = _published_base(source, device, dtype)
    length = PUBLISHED_THOUGHT_LENGTH if thought_length is None else thought_length
    quiet = QuietSTaR(model, length, **{"forbidden_ids": _published_ids(source), **options})
    state = {
        name: tensors[f"{name}_embedding"].float()[0] * _PUBLISHED_SCALE  # row 1 belongs to a mode that is not used
        for name in ("start", "end")
    }
    prefix = "talk_head.0."
    state |= {f"head.layers.{n[len(prefix) :]}": t for n, t in tensors.items() if n.startswith(prefix)}
    fill(quiet, state, str(source))
    return quiet


def _published_tensors(source: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (not a dictionary)
                if name.startswith(_PUBLISHED_PREFIXES):
                    yield name, content.get_tensor(name)


def _published_base(source: Path, device: Any, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = dtype or ("float32" if target.type == "cpu" else "auto")
    auto_class: Any = AutoModelForCausalLM
    model, info = auto_class.from_pretrained(str(source), dtype=kind, output_loading_info=True, local_files_only=True)
    unexpected = [name for name in info["unexpected_keys"] if not name.startswith(_PUBLISHED_PREFIXES)]
    wrong = [*info["missing_keys"], *unexpected, *info["mismatched_keys"]]
    if wrong:
        raise CheckpointError(f"{source} does not fit {type(model).__name__}: {', '.join(map(str, wrong[:5]))}")
    return model.to(target).eval()


def _published_ids(source: Path) -> list[int]:
    """Ids of the two special tokens that the released code added and never trained away."""
    file = source / "added_tokens.json"
    names = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return [names[name] for name in ("<|startthought|>", "<|endthought|>") if name in names]


def overwrite_marks(quiet: QuietSTaR, token_id: int) -> None:
    """Sets start and end to a token's embedding, as the released code does at its first forward, trained or not.

    For reproducing figures that were measured with it: those of arXiv:2412.16260.

    Args:
        quiet: Changed in place.
        token_id: The first token of ``"---"``.
    """
    with torch.no_grad():
        vector = quiet.backbone.embed(torch.tensor(token_id, device=quiet.start.device))
        quiet.start.copy_(vector)
        quiet.end.copy_(vector)


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
