"""From a transformers configuration to a `ModelSpec` (standard library only).

Configurations are read family by family and never guessed: reading an unknown family with the keys of a known one is
off by 11 to 26 % on OPT, BLOOM and Falcon.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from .config import (
    ALL_LAYERS_SLIDE,
    PLAIN,
    SPARSE,
    TIED,
    WINDOW_NEEDS_SWITCH,
    Config,
    UnknownArchitectureError,
    read_config,
)
from .spec import AttentionGroup, ModelSpec

HeadKind: TypeAlias = Literal["lm", "labels", "process-reward", "none"]
"""The last matrix: to the vocabulary, to labels, to labels through a square layer first, or none."""


def model_spec(config: Any, *, head: HeadKind | None = None, nominal_parameters: float | None = None) -> ModelSpec:
    """The constants of the closed form for `config`.

    Args:
        config: A transformers configuration or its dictionary (``config.json``); of a multimodal one the text model is
            read. A `ModelSpec` comes back as it is, but for `nominal_parameters`.
        head: What follows the last layer; by default read from the configuration's ``architectures``, and a language
            model's head where that is empty.
        nominal_parameters: The size in the model's name, for the convention ``"2N_nominal"``.

    Raises:
        TypeError: If `config` is no configuration.
        UnknownArchitectureError: If the family has no closed form.
        ValueError: If the configuration lacks a size.
    """
    nominal = None if nominal_parameters is None else int(nominal_parameters)
    if isinstance(config, ModelSpec):
        return config if nominal is None else dataclasses.replace(config, nominal_parameters=nominal)
    if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
        raise TypeError(
            f"{config!r:.80} is no configuration: give model.config, or transformers.AutoConfig.from_pretrained(...)"
        )
    outer: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    cfg = read_config(outer)
    projections = (
        2 * cfg.width * cfg.head_dim * (cfg.heads + 2 * cfg.kv_heads) + 2 * cfg.heads * cfg.head_dim * cfg.width
    )
    mlp, mlp_weights = _mlp(cfg)
    head_flops = _head(cfg, head or _head_kind(outer), _num_labels(outer))
    linear = projections * cfg.layers + mlp
    return ModelSpec(
        family=cfg.family,
        linear=linear,
        head=head_flops,
        attention=_attention(cfg),
        parameters=projections * cfg.layers // 2 + mlp_weights + _embedding_weights(cfg, outer, head_flops),
        active_weights=(linear + head_flops) // 2,
        hidden_size=cfg.width,
        num_layers=cfg.layers,
        num_heads=cfg.heads,
        head_dim=cfg.head_dim,
        intermediate_size=cfg.intermediate,
        vocab_size=cfg.size("vocab_size"),
        nominal_parameters=nominal,
    )


def _mlp(cfg: Config) -> tuple[int, int]:
    """FLOPs for one token in the MLPs of all layers, and the numbers that their matrices hold."""
    if cfg.family in PLAIN:
        return 4 * cfg.width * cfg.intermediate * cfg.layers, 2 * cfg.width * cfg.intermediate * cfg.layers
    dense_flops, dense_weights = 6 * cfg.width * cfg.intermediate, 3 * cfg.width * cfg.intermediate
    sparse = _sparse_layers(cfg)
    dense = cfg.layers - sparse
    if not sparse:
        return dense_flops * dense, dense_weights * dense
    experts, used = cfg.size("num_experts"), cfg.size("num_experts_per_tok")
    expert = cfg.width * (cfg.intermediate if cfg.family == "mixtral" else cfg.size("moe_intermediate_size"))
    router, shared = cfg.width * experts, 0
    if cfg.family == "qwen2_moe":  # one shared expert, and the gate that weighs it
        shared = 3 * cfg.width * cfg.size("shared_expert_intermediate_size") + cfg.width
    sparse_flops = 2 * router + used * 6 * expert + 2 * shared
    sparse_weights = router + experts * 3 * expert + shared
    return dense_flops * dense + sparse_flops * sparse, dense_weights * dense + sparse_weights * sparse


def _sparse_layers(cfg: Config) -> int:
    """Number of layers with a mixture of experts."""
    if cfg.family not in SPARSE:
        return 0
    if cfg.family == "mixtral":
        return cfg.layers
    step, dense = int(cfg.get("decoder_sparse_step", 1)), set(cfg.get("mlp_only_layers", ()))
    return sum(layer not in dense and (layer + 1) % step == 0 for layer in range(cfg.layers))


def _attention(cfg: Config) -> tuple[AttentionGroup, ...]:
    """The layers grouped by their window."""
    per_layer, kv_width = 4 * cfg.heads * cfg.head_dim, 2 * cfg.kv_heads * cfg.head_dim
    counts = Counter(_windows(cfg))
    return tuple(AttentionGroup(per_layer * count, kv_width * count, window) for window, count in counts.items())


def _windows(cfg: Config) -> list[int | None]:
    """The window of every layer; ``None`` where it sees everything."""
    window = cfg.get("sliding_window")
    switched_off = cfg.family in WINDOW_NEEDS_SWITCH and not cfg.get("use_sliding_window", False)
    if not window or switched_off:
        return [None] * cfg.layers
    if cfg.family in ALL_LAYERS_SLIDE:
        return [int(window)] * cfg.layers
    slides = [kind == "sliding_attention" for kind in cfg.get("layer_types", ())] or _default_slides(cfg)
    return [int(window) if slide else None for slide in slides]


def _default_slides(cfg: Config) -> list[bool]:
    """Which layers slide where an older configuration file does not list ``layer_types``."""
    layers, first = range(cfg.layers), int(cfg.get("max_window_layers", 28))
    match cfg.family:
        case "gemma2":
            return [layer % 2 == 0 for layer in layers]
        case "gemma3_text":
            pattern = int(cfg.get("sliding_window_pattern") or cfg.get("_sliding_window_pattern", 6))
            return [(layer + 1) % pattern != 0 for layer in layers]
        case "qwen2" | "qwen3":
            return [layer >= first for layer in layers]
        case "qwen2_moe":
            return [layer % 2 == 0 and layer < first for layer in layers]
        case _:
            return [False for _ in layers]


def _head_kind(outer: Mapping[str, Any]) -> HeadKind:
    """The head that the configuration's ``architectures`` names; a language model's where none is named."""
    names = outer.get("architectures") or ("ForCausalLM",)
    return head_of_class(str(names[0]))


def head_of_class(name: str) -> HeadKind:
    """The head of a transformers class, by the ending of its name."""
    if name.endswith(("ForProcessRewardModel", "ForRewardModel")):  # Qwen2.5-Math's own classes: two linear layers
        return "process-reward"
    if name.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return "labels"
    if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return "lm"
    if name.endswith("Model"):
        return "none"
    raise UnknownArchitectureError(
        f"no closed form for the head of {name}: pass head='lm', 'labels', 'process-reward' or 'none' to model_spec()"
    )


def _num_labels(outer: Mapping[str, Any]) -> int:
    """Number of labels of a classification head; transformers' own default is 2."""
    labels = outer.get("id2label")
    return len(labels) if labels else int(outer.get("num_labels") or 2)


def _head(cfg: Config, kind: HeadKind, labels: int) -> int:
    """FLOPs of the head for one position."""
    match kind:
        case "lm":
            return 2 * cfg.width * cfg.size("vocab_size")
        case "labels":
            return 2 * cfg.width * labels
        case "process-reward":
            return 2 * cfg.width * cfg.width + 2 * cfg.width * labels
        case "none":
            return 0


def _embedding_weights(cfg: Config, outer: Mapping[str, Any], head_flops: int) -> int:
    """Numbers in the embeddings and in the head, tied ones once."""
    embedding = cfg.width * cfg.size("vocab_size")
    positions = cfg.width * int(cfg.get("max_position_embeddings", 1024)) if cfg.family == "gpt2" else 0
    tied = outer.get("tie_word_embeddings", cfg.get("tie_word_embeddings", cfg.family in TIED))
    shared = tied and head_flops == 2 * embedding
    return embedding + positions + (0 if shared else head_flops // 2)
