"""A model's configuration, read family by family (standard library only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GATED = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "granite"})
PLAIN = frozenset({"gpt2", "gpt_neox"})
SPARSE = frozenset({"mixtral", "qwen2_moe", "qwen3_moe"})
FAMILIES = tuple(sorted(GATED | PLAIN | SPARSE))
"""The ``model_type`` names that have a closed form."""

# A configuration file may leave out what equals the default of its class. Only these differ from d / heads and False.
_HEAD_DIM = {"qwen3": 128, "gemma": 256, "gemma2": 256, "gemma3_text": 256}
TIED = frozenset({"gpt2", "gemma", "gemma2", "gemma3_text"})
ALL_LAYERS_SLIDE = frozenset({"mistral", "mixtral", "phi3", "qwen3_moe"})
WINDOW_NEEDS_SWITCH = frozenset({"qwen2", "qwen3", "qwen2_moe", "qwen3_moe"})
_ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "num_experts": "num_local_experts",
}


class UnknownArchitectureError(ValueError):
    """No closed form is known for this architecture."""


@dataclass(frozen=True)
class Config:
    """One family's configuration as a mapping; a missing size is an error that names it."""

    family: str
    values: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key` (or of its older name), `default` if it is missing or ``None``."""
        for name in (key, _ALIASES.get(key, key)):
            if self.values.get(name) is not None:
                return self.values[name]
        return default

    def size(self, key: str) -> int:
        """The value of `key`, which the closed form cannot do without."""
        value = self.get(key)
        if value is None:
            raise ValueError(f"this {self.family!r} configuration has no {key!r}: pass the model's full configuration")
        return int(value)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.size("num_hidden_layers")

    @property
    def width(self) -> int:
        """Width of the residual stream, d."""
        return self.size("hidden_size")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.size("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.heads if self.family in PLAIN else int(self.get("num_key_value_heads", self.heads))

    @property
    def head_dim(self) -> int:
        """Width of one head, which need not be d / heads."""
        stated = None if self.family in PLAIN else self.get("head_dim")
        return int(stated or _HEAD_DIM.get(self.family) or self.width // self.heads)

    @property
    def intermediate(self) -> int:
        """Width of the dense MLP."""
        if self.family == "gpt2":
            return int(self.get("n_inner", 4 * self.width))
        return self.size("intermediate_size")


def read_config(outer: Mapping[str, Any]) -> Config:
    """The text model's configuration, if its family has a closed form."""
    inner = outer.get("text_config") or outer
    family = str(inner.get("model_type", outer.get("model_type", "")))
    if family not in FAMILIES:
        raise UnknownArchitectureError(
            f"no closed form for model_type {family!r} (known: {', '.join(FAMILIES)}); calibrate it from the live "
            "model with inferscale.flops.calibrate(model), or count with FlopCounter(mode='exact')"
        )
    if inner.get("use_bidirectional_attention") or inner.get("add_cross_attention"):
        raise UnknownArchitectureError(
            f"this {family!r} model is not a causal decoder (bidirectional or cross attention): "
            "count it with FlopCounter(mode='exact')"
        )
    return Config(family, inner)
