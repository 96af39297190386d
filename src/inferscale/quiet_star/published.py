"""Checkpoints in the layout of the released code (ezelikman/quiet-star)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from inferscale.generators.loading import CheckpointError

from .model import QuietSTaR
from .state import fill

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
