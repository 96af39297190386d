"""Closed forms of a forward pass, exact to the last digit, from a transformers configuration (standard library only).

With batch b, s new tokens, `past` cached ones, nl logits kept and a window w (the last term only for layers that have
one)::

    linear = b * s * spec.linear
    head   = b * nl * spec.head
    full   = b * per_pair * s * (s + min(past, w - 1))
    causal = b * per_pair * sum(min(past + i, w) for i in 1..s)

Only matrix products count, a multiply-add as 2. Norms, activations, softmax and rotary embeddings are left out: below
0.1 % of a 134M Llama. Configurations are read family by family and never guessed: reading an unknown family with the
keys of a known one is off by 11 to 26 % on OPT, BLOOM and Falcon.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Layers that attend alike.

    Attributes:
        per_pair: FLOPs of one query-key pair, QKᵀ and AV, over the layers of the group: ``4 * heads * head_dim`` each.
        kv_width: Cached numbers for one token, keys and values, over the layers of the group.
        window: Positions that a query sees, itself included; ``None`` for all.
    """

    per_pair: int
    kv_width: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The constants of a model's closed form. Unit: FLOPs, where a multiply-add is 2.

    Attributes:
        family: The configuration's ``model_type``.
        linear: FLOPs for one token in all layers' matrices (projections, MLP, router, the experts that it uses).
        head: FLOPs for one position in the matrix after the last layer.
        attention: Layers by attention window.
        parameters: Numbers in all weights. From a configuration: matrices and embeddings, without norms and biases
            (below 0.1 % in models of 100M and more); from a live model: exact.
        active_weights: Numbers in the matrices that one token passes through, head included.
        cached: FLOPs for one cached token in every forward (latent attention expands its cache again); mostly 0.
        hidden_size: Width of the residual stream, d; 0 in a calibrated spec, like the other shapes.
        num_layers: Layers, L.
        num_heads: Query heads.
        head_dim: Width of a head; the heads together may be wider or narrower than d.
        intermediate_size: Width of the (dense) MLP.
        vocab_size: Rows of the embedding.
        nominal_parameters: The size in the model's name, such as 7e9; no configuration holds it.
    """

    family: str
    linear: int
    head: int
    attention: tuple[AttentionGroup, ...]
    parameters: int
    active_weights: int
    cached: int = 0
    hidden_size: int = 0
    num_layers: int = 0
    num_heads: int = 0
    head_dim: int = 0
    intermediate_size: int = 0
    vocab_size: int = 0
    nominal_parameters: int | None = None


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs of one forward (or of several) by kind, as exact integers.

    Attributes:
        linear: In the layers' matrices.
        head: In the matrix after the last layer.
        attention_full: QKᵀ and AV over the whole rectangle of queries and keys.
        attention_causal: QKᵀ and AV over the pairs that the causal mask (and the window) lets through.
    """

    linear: int = 0
    head: int = 0
    attention_full: int = 0
    attention_causal: int = 0

    @property
    def causal(self) -> int:
        """FLOPs that the mathematics needs: masked pairs are not counted."""
        return self.linear + self.head + self.attention_causal

    @property
    def full(self) -> int:
        """FLOPs that a plain matrix product executes: masked pairs are counted."""
        return self.linear + self.head + self.attention_full

    def __add__(self, other: Flops) -> Flops:
        """The sum, kind by kind."""
        return Flops(
            self.linear + other.linear,
            self.head + other.head,
            self.attention_full + other.attention_full,
            self.attention_causal + other.attention_causal,
        )

    def __mul__(self, times: int) -> Flops:
        """The FLOPs of `times` equal forwards."""
        return Flops(self.linear * times, self.head * times, self.attention_full * times, self.attention_causal * times)

    __rmul__ = __mul__


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


__all__ = [
    "FAMILIES",
    "AttentionGroup",
    "Flops",
    "ModelSpec",
    "PackedRows",
    "UnknownArchitectureError",
    "causal_pairs",
    "count_forward",
    "forward_flops",
    "full_pairs",
    "head_of_class",
    "model_spec",
    "ragged_forward_flops",
]


class PackedRows(NamedTuple):
    """What attention does in a forward that packs rows of different lengths into one sequence.

    A cache that packs rows gives one as its attribute ``packed_rows``; a `FlopCounter` then counts attention by it.

    Attributes:
        rows: Rows of the batch.
        causal_pairs: Query-key pairs that the mask lets through, over all rows.
        executed_pairs: Query-key pairs that are computed, masked ones and padding included.
        read_tokens: Cached tokens whose keys and values are read, a shared prefix once.
    """

    rows: int
    causal_pairs: int
    executed_pairs: int
    read_tokens: int


def full_pairs(new: int, past: int, window: int | None = None) -> int:
    """Query-key pairs of the whole rectangle: `new` queries against the new keys and the cached ones kept."""
    return new * (new + (past if window is None else min(past, window - 1)))


def causal_pairs(new: int, past: int, window: int | None = None) -> int:
    """Query-key pairs that a causal mask lets through: the i-th new token sees ``min(past + i, window)``."""
    if window is None or past + new <= window:
        return new * past + new * (new + 1) // 2
    growing = max(window - past, 0)
    return growing * past + growing * (growing + 1) // 2 + (new - growing) * window


def forward_flops(spec: ModelSpec, new: int, past: int = 0, batch: int = 1, logits: int | None = None) -> Flops:
    """FLOPs of one forward of `batch` equally long rows, by kind.

    Args:
        spec: The model's constants, see `model_spec`.
        new: New tokens in each row.
        past: Tokens that the key-value cache holds for each row.
        batch: Rows.
        logits: Positions of each row that the head runs for; ``None`` for every new one.
    """
    return Flops(*count_forward(spec, new, past, batch, logits))


def count_forward(spec: ModelSpec, new: int, past: int, batch: int, logits: int | None) -> tuple[int, int, int, int]:
    """The fields of `forward_flops` as a tuple, for callers that count every forward of a loop."""
    full = causal = 0
    for group in spec.attention:
        full += group.per_pair * full_pairs(new, past, group.window)
        causal += group.per_pair * causal_pairs(new, past, group.window)
    kept = new if logits is None else logits
    linear = new * spec.linear + past * spec.cached
    return batch * linear, batch * kept * spec.head, batch * full, batch * causal


def ragged_forward_flops(
    spec: ModelSpec, new: Sequence[int], past: Sequence[int], logits: Sequence[int] | None = None
) -> Flops:
    """FLOPs of one forward of rows of different lengths, padding not counted.

    Args:
        spec: The model's constants.
        new: New tokens of each row, `[B]`.
        past: Cached tokens of each row, `[B]`.
        logits: Positions that the head runs for in each row, `[B]`; ``None`` for every new one.
    """
    kept = new if logits is None else logits
    total = Flops()
    for new_tokens, past_tokens, positions in zip(new, past, kept, strict=True):
        total += forward_flops(spec, new_tokens, past_tokens, logits=positions)
    return total


def forward_cost(spec: ModelSpec | None, new: int, past: int, logits: int) -> int:
    """FLOPs of `new` tokens after `past` cached ones, with the head run at `logits` positions; 0 without a form."""
    return 0 if spec is None or new < 1 else forward_flops(spec, new, past, logits=logits).causal


def sample_flops(spec: ModelSpec | None, prefix: int, read: int, sampled: int) -> int:
    """FLOPs of one sample of `sampled` tokens after `prefix` tokens, the last `read` of which nobody has read before.

    Each sampled token but the last pays for its own forward, so that the sum over a tree is the closed form of one
    pass with the prompt read once.
    """
    flops = forward_cost(spec, read, prefix - read, logits=1)
    return flops + forward_cost(spec, sampled - 1, prefix, logits=sampled - 1)
