"""What to watch of what the user passed: the language model in it, its body and its last matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Target:
    """What to watch.

    Attributes:
        module: The language model.
        extras: Linear layers that a wrapper of ours or the user's runs beside it.
    """

    module: nn.Module
    extras: tuple[nn.Linear, ...] = ()


def target_of(model: Any) -> Target:
    """What to watch of `model`: itself, or what its ``model`` attribute holds (generators, reward models, wrappers).

    Raises:
        TypeError: If there is no torch module.
    """
    found = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(found, nn.Module):
        raise TypeError(
            f"FlopCounter watches torch modules, and generators and reward models that hold one as `.model`; got "
            f"{type(model).__name__}. For a served model, count with counter.add(config, prompt=..., new=...)"
        )
    module: nn.Module = getattr(found, "_orig_mod", found)  # torch.compile's wrapper runs the hooks of what it wraps
    inner = getattr(module, "model", None)
    if _is_language_model(module) or not (isinstance(inner, nn.Module) and _is_language_model(inner)):
        return Target(module)
    inside = set(map(id, inner.modules()))
    beside = [part for part in module.modules() if isinstance(part, nn.Linear) and id(part) not in inside]
    return Target(inner, tuple(beside))


def _is_language_model(module: nn.Module) -> bool:
    """Whether `module` is a whole model of transformers."""
    return hasattr(module, "base_model_prefix") and hasattr(module, "get_output_embeddings")


def unwrap(module: nn.Module) -> nn.Module:
    """What a data-parallel wrapper holds, or the module itself."""
    is_wrapper = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner = module.module if is_wrapper else module
    assert isinstance(inner, nn.Module)
    return inner


def bodies_of(module: nn.Module) -> list[nn.Module]:
    """The parts of a transformers model that hold all layers and not the last matrix: mostly one.

    OPT and models with other towers hold their decoder in a part of that part, and either may be called.
    """
    body = getattr(module, str(getattr(module, "base_model_prefix", "") or "-"), None)
    find = getattr(module, "get_decoder", None)
    found = [part for part in (body, find() if callable(find) else None) if isinstance(part, nn.Module)]
    return [part for part in dict.fromkeys(found) if part is not module]


def head_of(module: nn.Module) -> nn.Module | None:
    """The last matrix (or the small network in its place) of a transformers model."""
    if not hasattr(module, "base_model_prefix"):
        return None
    names = ("lm_head", "embed_out", "score", "classifier", "v_head")
    heads = [part for name in names if isinstance(part := getattr(module, name, None), nn.Module)]
    return heads[0] if heads else None
