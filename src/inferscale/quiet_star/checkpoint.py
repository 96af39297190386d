"""Folders of thoughts on disk: our own layout, and that of the released code (ezelikman/quiet-star)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from inferscale import zoo
from inferscale.runtime.loading import CheckpointError, load_model

_FORMAT = 1
_CONFIG = "quiet_star.json"
_WEIGHTS = "quiet_star.safetensors"
_SAMPLE = 256  # numbers of each weight that a fingerprint looks at

PUBLISHED_THOUGHT_LENGTH = 5
"""Sampled tokens of a thought of ``ezelikman/quietstar-8-ahead``: 8 passes, of which text, start and end take three."""
_PUBLISHED_SCALE = 100.0  # start and end are stored divided by this
_PUBLISHED_PREFIXES = ("talk_head.", "start_embedding", "end_embedding")


@dataclass(frozen=True)
class ThoughtCheckpoint:
    """Start, end and mixing head as they lie in a folder, and the base that they belong to.

    Attributes:
        source: The folder.
        tensors: Weights by name: ``start``, ``end`` and ``head.*``.
        thought_length: Sampled tokens of a thought.
        bounded: True if the mixing weight is bounded.
        forbidden_ids: Ids that no distribution may emit.
        base: Name of the base model (of the hub or of `zoo`), or the folder that holds it; ``""`` if it is not known.
        base_is_local: True if `base` is no more than the name of a folder that lay on the machine where it was saved.
        published: True for the layout of the released code, whose base has the thoughts among its own weights.
        base_dtype: Of the base when it was saved.
        base_fingerprint: See `fingerprint`; ``None`` if it was not saved.
    """

    source: Path
    tensors: dict[str, Tensor]
    thought_length: int
    bounded: bool
    forbidden_ids: tuple[int, ...]
    base: str
    published: bool = False
    base_dtype: str = ""
    base_fingerprint: str | None = None
    base_is_local: bool = False

    @classmethod
    def load(cls, path_or_id: str | os.PathLike[str]) -> ThoughtCheckpoint:
        """Load a folder of either layout, or a repository of the hub that holds one.

        Raises:
            CheckpointError: If there is none, it holds neither layout or one of another version, or a tensor is
                missing.
        """
        source = _local(path_or_id)
        if not (source / _CONFIG).is_file():
            return cls._published(source)
        settings: dict[str, Any] = json.loads((source / _CONFIG).read_text(encoding="utf-8"))
        if settings.get("format") != _FORMAT:
            raise CheckpointError(
                f"{source / _CONFIG} has format {settings.get('format')!r}; this inferscale reads format {_FORMAT}"
            )
        base = settings["base"]
        return cls(
            source,
            load_file(source / _WEIGHTS),
            settings["thought_length"],
            settings["bounded"],
            tuple(settings["forbidden_ids"]),
            base=str(source) if base["merged"] else base["name"],
            base_dtype=base["dtype"],
            base_fingerprint=base["fingerprint"],
            base_is_local=base.get("local", False) and not base["merged"],
        )

    @classmethod
    def _published(cls, source: Path) -> ThoughtCheckpoint:
        """Load the layout of the released code: a base model with ``talk_head`` and two embeddings among its weights.

        The released code copies an untrained embedding over start and end when it runs; here the trained ones are used.
        """
        found: dict[str, Tensor] = {}
        for file in sorted(source.glob("*.safetensors")):
            with safe_open(file, framework="pt") as content:
                names = [name for name in content.keys() if name.startswith(_PUBLISHED_PREFIXES)]  # noqa: SIM118
                found |= {name: content.get_tensor(name) for name in names}
        if not found:
            raise CheckpointError(
                f"{source} holds neither quiet_star.json nor weights named talk_head.*: give a folder that "
                "save_pretrained wrote, or a published Quiet-STaR checkpoint"
            )
        missing = {"start_embedding", "end_embedding", "talk_head.0.0.weight"} - set(found)
        if missing:
            raise CheckpointError(
                f"{source} lacks {', '.join(sorted(missing))}: only heads of three layers can be loaded"
            )
        # row 1 of an embedding belongs to a mode that is not used
        tensors = {n: found[f"{n}_embedding"].float()[0] * _PUBLISHED_SCALE for n in ("start", "end")}
        prefix = "talk_head.0."
        tensors |= {f"head.layers.{n[len(prefix) :]}": t for n, t in found.items() if n.startswith(prefix)}
        # two special tokens that the released code added to the vocabulary and never trained away
        added = source / "added_tokens.json"
        ids = json.loads(added.read_text(encoding="utf-8")) if added.is_file() else {}
        forbidden = tuple(ids[name] for name in ("<|startthought|>", "<|endthought|>") if name in ids)
        return cls(source, tensors, PUBLISHED_THOUGHT_LENGTH, False, forbidden, str(source), published=True)

    def write(self, *, merged: bool) -> None:
        """Write our own layout to `source`, made if it is not there; `merged` says that the base will lie beside it."""
        self.source.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, self.source / _WEIGHTS)
        settings = {
            "format": _FORMAT,
            "thought_length": self.thought_length,
            "bounded": self.bounded,
            "forbidden_ids": list(self.forbidden_ids),
            "base": {
                "name": self.base,
                "local": self.base_is_local,
                "merged": merged,
                "dtype": self.base_dtype,
                "fingerprint": self.base_fingerprint,
            },
        }
        (self.source / _CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def load_base(self, model: Any = None, loader: Callable[..., Any] | None = None, **load_options: Any) -> Any:
        """Load the base model, or `model` in its place (an object, a folder, or a hub id).

        Args:
            model: The base, if it is at hand.
            loader: The public function whose options these are.
            load_options: ``device``, ``dtype`` and options of ``from_pretrained``.

        Raises:
            CheckpointError: If it is not known where the base lies.
        """
        if model is None and not self.base:
            raise CheckpointError(
                f"{self.source} does not say where its base lies: pass model=..., or save with merge=True"
            )
        if model is None and self.base_is_local:
            raise CheckpointError(
                f"the base of {self.source} lay in a folder named {self.base!r} when it was saved: pass model=..., "
                "that folder or the model"
            )
        if model is None and self.base in {card.name for card in zoo.list(packaged=True)}:
            model = zoo.path(self.base)
        from transformers import AutoModelForCausalLM

        auto_class = _PublishedBase if model is None and self.published else AutoModelForCausalLM
        if isinstance(model, torch.nn.Module):
            given = sorted(name for name, value in load_options.items() if value is not None)
            if given:
                raise TypeError(f"{', '.join(given)}: only used when the base is loaded, but an object was given")
            return model
        return load_model(self.base if model is None else model, auto_class, loader=loader, **load_options)

    def check_base(self, model: Any, dtype: torch.dtype) -> None:
        """Raise ``CheckpointError`` if a base of the saved dtype is not the one that was saved."""
        if self.base_fingerprint and self.base_dtype == str(dtype) and self.base_fingerprint != fingerprint(model):
            raise CheckpointError(
                f"the base model given for {self.source} is not the one that its thoughts were saved with: load that "
                "one (if it was trained, save with merge=True)"
            )


class _PublishedBase:
    """``AutoModelForCausalLM`` for folders whose weights hold those of thoughts too."""

    @staticmethod
    def from_pretrained(source: str, **options: Any) -> tuple[Any, dict[str, Any]]:
        from transformers import AutoModelForCausalLM

        auto_class: Any = AutoModelForCausalLM
        model, info = auto_class.from_pretrained(source, **options)
        unexpected = [name for name in info["unexpected_keys"] if not name.startswith(_PUBLISHED_PREFIXES)]
        return model, {**info, "unexpected_keys": unexpected}


def _local(path_or_id: str | os.PathLike[str]) -> Path:
    """The folder, or the local copy of a repository of the hub."""
    folder = Path(path_or_id).expanduser()
    if folder.is_dir() or isinstance(path_or_id, os.PathLike) or folder.is_absolute():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path_or_id))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path_or_id!r} is no folder, and cannot be had from the hub: {error}") from error


def base_name(model: Any) -> tuple[str, bool]:
    """Return the name of a base, of `zoo` or of the hub, or else of its folder without the way there; is it the last?

    The way is of use on one machine alone, and nobody else's business.
    """
    name = str(getattr(model, "name_or_path", ""))
    if not name or not Path(name).exists():
        return name, False
    known = zoo.name_of(name)
    return (Path(name).resolve().name, True) if known is None else (known, False)


def fingerprint(model: Any, *, frozen: bool = False) -> str:
    """Return a hash of up to 256 numbers of every weight, which tells two trained models of one shape apart.

    Args:
        model: The model.
        frozen: Look at weights without gradients alone.
    """
    digest = blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        if frozen and parameter.requires_grad:
            continue
        flat = parameter.detach().flatten()
        sample = flat[:: max(len(flat) // _SAMPLE, 1)].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()
