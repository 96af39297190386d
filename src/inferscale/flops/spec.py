"""Closed forms of a forward pass, exact to the last digit, from a transformers configuration (standard library only).

With batch b, s new tokens, `past` cached ones, nl logits kept and a window w (the last term only for layers that have
one)::

    linear = b * s * spec.linear + b * spec.per_row + s * spec.per_position + spec.per_forward
    head   = b * nl * spec.head
    full   = b * per_pair * s * (s + min(past, w - 1))
    causal = b * per_pair * sum(min(past + i, w) for i in 1..s)

Only matrix products count, a multiply-add as 2. Norms, activations, softmax and rotary embeddings are left out: below
0.1 % of a 134M Llama. Configurations are taken family by family and never guessed: an unknown family taken with the
keys of a known one is off by 11 to 26 % on OPT, BLOOM and Falcon.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Layers that attend alike.

    Attributes:
        per_pair: FLOPs of one query-key pair, QKᵀ and AV, over the layers of the group: ``4 * heads * head_dim`` each.
        kv_width: Cached numbers for one token, keys and values, over the layers of the group.
        window: Positions that a query sees, itself included; ``None`` for all.
        is_causal: False for an encoder's, whose queries see what comes after them too: half of a window.
    """

    per_pair: int
    kv_width: int
    window: int | None = None
    is_causal: bool = True


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
        per_row: FLOPs for each row, however long (an encoder's pooler, and its head at one position); mostly 0.
        per_forward: FLOPs of a forward, whatever its rows (DeBERTa projects its relative positions); mostly 0.
        per_position: The same for each position of the longest row (DeBERTa's first version); mostly 0.
        states: Numbers in the states of a row's recurrent layers, which every forward of the row reads and writes:
            those in the model's dtype (convolutions), and those in float32 (recurrences). ``None`` if what the model
            keeps of a text was not seen; then its bytes are not known.
        scan: What a forward of several new tokens executes beyond its tokens one by one, for some numbers of tokens,
            ascending: ``(tokens, FLOPs)``, interpolated between. Recurrent layers read a prompt in chunks, and pad
            convolutions. A part of ``full`` alone; mostly empty.
        hidden_size: Width of the residual stream, d; 0 in a calibrated spec, like the other shapes.
        num_layers: Layers, L.
        num_heads: Query heads.
        head_dim: Width of a head; the heads together may be wider or narrower than d.
        intermediate_size: Width of the (dense) MLP.
        vocab_size: Rows of the embedding.
        nominal_parameters: The size in the model's name, such as 7e9; no configuration holds it.

    Example:
        >>> from inferscale.flops import model_spec
        >>> llama = {
        ...     "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        ...     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        ... }
        >>> spec = model_spec(llama)
        >>> f"{spec.parameters:,} parameters, {spec.linear + spec.head:,} FLOPs a token without attention"
        '1,498,415,104 parameters, 2,471,493,632 FLOPs a token without attention'
        >>> spec.attention
        (AttentionGroup(per_pair=131072, kv_width=16384, window=None, is_causal=True),)
    """

    family: str
    linear: int
    head: int
    attention: tuple[AttentionGroup, ...]
    parameters: int
    active_weights: int
    cached: int = 0
    per_row: int = 0
    per_forward: int = 0
    per_position: int = 0
    states: tuple[int, int] | None = (0, 0)
    scan: tuple[tuple[int, int], ...] = ()
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
        attention_full: QKᵀ and AV over the whole rectangle of queries and keys, and the scans of recurrent layers.
        attention_causal: QKᵀ and AV over the pairs that the causal mask (and the window) lets through.

    Example:
        >>> from inferscale.flops import forward_flops, model_spec
        >>> llama = {
        ...     "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        ...     "num_attention_heads": 4, "vocab_size": 1000,
        ... }
        >>> spec = model_spec(llama)
        >>> prefill, step = forward_flops(spec, new=100, logits=1), forward_flops(spec, new=1, past=100)
        >>> step
        Flops(linear=163840, head=128000, attention_full=51712, attention_causal=51712)
        >>> (prefill + 20 * step).causal, prefill.full - prefill.causal  # what a mask saves
        (25968640, 2534400)
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


class PackedRows(NamedTuple):
    """The work of attention in a forward that packs rows of different lengths into one sequence.

    A cache that packs rows gives one as its attribute ``packed_rows``; a `FlopCounter` then counts attention by it.

    Attributes:
        rows: Rows of the batch.
        causal_pairs: Query-key pairs that the mask lets through, over all rows.
        executed_pairs: Query-key pairs that are computed, masked ones and padding included.
        read_tokens: Cached tokens whose keys and values are read, a shared prefix once.
        windowed: Causal and executed pairs of layers with a window of the given size; ``None`` if they are the same.

    Example:
        >>> from inferscale.flops import PackedRows
        >>> lengths = (3, 5)  # two prompts, packed into one sequence of eight tokens
        >>> needed = sum(length * (length + 1) // 2 for length in lengths)
        >>> packed = PackedRows(rows=2, causal_pairs=needed, executed_pairs=8 * 8, read_tokens=0)
        >>> packed.pairs(window=None)  # what the mask lets through, what is computed
        (21, 64)
    """

    rows: int
    causal_pairs: int
    executed_pairs: int
    read_tokens: int
    windowed: Callable[[int], tuple[int, int]] | None = None

    def pairs(self, window: int | None) -> tuple[int, int]:
        """Causal and executed pairs of layers with this window."""
        if window is None or self.windowed is None:
            return self.causal_pairs, self.executed_pairs
        return self.windowed(window)


class UnknownArchitectureError(ValueError):
    """Refusal to guess the closed form of an architecture for which none is known.

    Example:
        >>> from inferscale.flops import model_spec
        >>> model_spec({"model_type": "opt", "hidden_size": 64})
        Traceback (most recent call last):
            ...
        inferscale.flops.spec.UnknownArchitectureError: no closed form for model_type 'opt' (known: gemma, ...
    """


HeadKind: TypeAlias = Literal["lm", "labels", "process-reward", "none"]
"""The last matrix: to the vocabulary, to labels, to labels through a square layer first, or none."""

_GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "granite"}
_PLAIN = {"gpt2", "gpt_neox"}
SPARSE = frozenset({"mixtral", "qwen2_moe", "qwen3_moe"})
FAMILIES = tuple(sorted(_GATED | _PLAIN | SPARSE))
"""The ``model_type`` names that have a closed form."""

# A configuration file may leave out what equals the default of its class. Only these differ from d / heads and False.
_HEAD_DIM = {"qwen3": 128, "gemma": 256, "gemma2": 256, "gemma3_text": 256}
_TIED = {"gpt2", "gemma", "gemma2", "gemma3_text"}
_ALL_LAYERS_SLIDE = {"mistral", "mixtral", "phi3", "qwen3_moe"}
_WINDOW_NEEDS_SWITCH = {"qwen2", "qwen3", "qwen2_moe", "qwen3_moe"}
_OLDER_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "num_experts": "num_local_experts",
}


class _Config:
    """One family's configuration as a mapping; a missing size is an error that names it."""

    def __init__(self, outer: Mapping[str, Any]) -> None:
        """Take the text model's part, if its family has a closed form."""
        self._values = outer.get("text_config") or outer
        self.family = str(self._values.get("model_type", outer.get("model_type", "")))
        if self.family not in FAMILIES:
            raise UnknownArchitectureError(
                f"no closed form for model_type {self.family!r} (known: {', '.join(FAMILIES)}); calibrate it from the "
                "live model with inferscale.flops.calibrate(model), or count with FlopCounter(mode='exact')"
            )
        if self.get("use_bidirectional_attention") or self.get("add_cross_attention"):
            raise UnknownArchitectureError(
                f"this {self.family!r} model is not a causal decoder (bidirectional or cross attention): "
                "count it with FlopCounter(mode='exact')"
            )

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key` (or of its older name), `default` if it is missing or ``None``."""
        for name in (key, _OLDER_NAMES.get(key, key)):
            if self._values.get(name) is not None:
                return self._values[name]
        return default

    def size(self, key: str) -> int:
        """The value of `key`, which the closed form cannot do without."""
        value = self.get(key)
        if value is None:
            raise ValueError(f"this {self.family!r} configuration has no {key!r}: pass the model's full configuration")
        return int(value)


def model_spec(config: Any, *, head: HeadKind | None = None, nominal_parameters: float | None = None) -> ModelSpec:
    """The constants of the closed form for `config`.

    Args:
        config: A transformers configuration or its dictionary (``config.json``); of a multimodal one the text model is
            taken. A `ModelSpec` comes back as it is, but for `nominal_parameters`.
        head: What follows the last layer; by default taken from the configuration's ``architectures``, and a language
            model's head where that is empty.
        nominal_parameters: The size in the model's name, for the convention ``"2N_nominal"``.

    Raises:
        TypeError: If `config` is no configuration.
        UnknownArchitectureError: If the family has no closed form.
        ValueError: If the configuration lacks a size.

    Example:
        >>> from inferscale.flops import model_spec
        >>> qwen = {
        ...     "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        ...     "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        ... }
        >>> spec, judge = model_spec(qwen), model_spec(qwen, head="labels")
        >>> f"{spec.parameters / 1e9:.2f} billion parameters; heads of {spec.head:,} and {judge.head:,} FLOPs"
        '0.49 billion parameters; heads of 272,269,312 and 3,584 FLOPs'
    """
    nominal = None if nominal_parameters is None else int(nominal_parameters)
    if isinstance(config, ModelSpec):
        return config if nominal is None else dataclasses.replace(config, nominal_parameters=nominal)
    if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
        raise TypeError(
            f"{config!r:.80} is no configuration: give model.config, or transformers.AutoConfig.from_pretrained(...)"
        )
    outer: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    cfg = _Config(outer)
    width, layers, heads = (cfg.size(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    vocabulary, kv_heads, head_dim = cfg.size("vocab_size"), heads, width // heads
    if cfg.family not in _PLAIN:
        kv_heads = int(cfg.get("num_key_value_heads", heads))
        head_dim = int(cfg.get("head_dim") or _HEAD_DIM.get(cfg.family) or head_dim)
    intermediate = int(cfg.get("n_inner", 4 * width)) if cfg.family == "gpt2" else cfg.size("intermediate_size")

    # Matrices are counted in weights: a token costs 2 FLOPs a weight. Queries and outputs are `[d, heads * head_dim]`,
    # keys and values `[d, kv_heads * head_dim]`: narrower with grouped queries (GQA).
    projections = layers * 2 * width * head_dim * (heads + kv_heads)
    mlp, mlp_used = _mlp_weights(cfg, layers, width, intermediate)
    labels = len(outer.get("id2label") or ()) or int(outer.get("num_labels") or 2)  # 2 by default in transformers
    head_weights = {
        "lm": width * vocabulary,
        "labels": width * labels,
        "process-reward": width * width + width * labels,
        "none": 0,
    }[head or head_of_class(str((outer.get("architectures") or ("ForCausalLM",))[0]))]

    # The input embedding is a lookup: it has weights and no FLOPs. A tied head has FLOPs and no weights of its own.
    embedding = width * vocabulary
    is_tied = outer.get("tie_word_embeddings", cfg.get("tie_word_embeddings", cfg.family in _TIED))
    positions = width * int(cfg.get("max_position_embeddings", 1024)) if cfg.family == "gpt2" else 0
    own_head = 0 if is_tied and head_weights == embedding else head_weights

    # A query-key pair takes 2 * head_dim FLOPs in QKᵀ and as many in AV, for every query head: GQA shares what is
    # cached, not what is computed.
    windows = Counter(_windows(cfg, layers))
    attention = tuple(
        AttentionGroup(4 * heads * head_dim * count, 2 * kv_heads * head_dim * count, window)
        for window, count in windows.items()
    )
    return ModelSpec(
        family=cfg.family,
        linear=2 * (projections + mlp_used),
        head=2 * head_weights,
        attention=attention,
        parameters=projections + mlp + embedding + positions + own_head,
        active_weights=projections + mlp_used + head_weights,
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        head_dim=head_dim,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        nominal_parameters=nominal,
    )


def _mlp_weights(cfg: _Config, layers: int, width: int, intermediate: int) -> tuple[int, int]:
    """Weights in the MLPs of all layers, and those of them that one token passes through."""
    # Up and down; beside the up projection stands a gate in all families but GPT's.
    dense = (2 if cfg.family in _PLAIN else 3) * width * intermediate
    sparse_layers = 0
    if cfg.family == "mixtral":
        sparse_layers = layers
    elif cfg.family in SPARSE:
        step, excepted = int(cfg.get("decoder_sparse_step", 1)), set(cfg.get("mlp_only_layers", ()))
        sparse_layers = sum(layer not in excepted and (layer + 1) % step == 0 for layer in range(layers))
    if not sparse_layers:
        return (layers * dense,) * 2
    # A mixture of experts: every token passes the router `[d, experts]` and `used` of the gated expert MLPs.
    experts, used = cfg.size("num_experts"), cfg.size("num_experts_per_tok")
    expert = 3 * width * (intermediate if cfg.family == "mixtral" else cfg.size("moe_intermediate_size"))
    always = width * experts
    if cfg.family == "qwen2_moe":  # one expert that all tokens share, and the gate `[d, 1]` that weighs it
        always += 3 * width * cfg.size("shared_expert_intermediate_size") + width
    rest = (layers - sparse_layers) * dense
    return rest + sparse_layers * (always + experts * expert), rest + sparse_layers * (always + used * expert)


def _windows(cfg: _Config, layers: int) -> list[int | None]:
    """The window of every layer; ``None`` where it sees everything."""
    window = cfg.get("sliding_window")
    if not window or (cfg.family in _WINDOW_NEEDS_SWITCH and not cfg.get("use_sliding_window", False)):
        return [None] * layers
    if cfg.family in _ALL_LAYERS_SLIDE:
        return [int(window)] * layers
    slides = [kind == "sliding_attention" for kind in cfg.get("layer_types", ())]
    if not slides:  # older files do not list their layers; the classes had these rules
        first = int(cfg.get("max_window_layers", 28))
        pattern = int(cfg.get("sliding_window_pattern") or cfg.get("_sliding_window_pattern", 6))
        slides = {
            "gemma2": [layer % 2 == 0 for layer in range(layers)],
            "gemma3_text": [(layer + 1) % pattern != 0 for layer in range(layers)],
            "qwen2": [layer >= first for layer in range(layers)],
            "qwen3": [layer >= first for layer in range(layers)],
            "qwen2_moe": [layer % 2 == 0 and layer < first for layer in range(layers)],
        }.get(cfg.family, [False] * layers)
    return [int(window) if slide else None for slide in slides]


def head_of_class(name: str) -> HeadKind:
    """The head of a transformers class, by the ending of its name."""
    if name.endswith(("ForProcessRewardModel", "ForRewardModel")):  # Qwen2.5-Math's own classes: two linear layers
        return "process-reward"
    if name.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return "labels"
    if name.endswith(("ForCausalLM", "LMHeadModel", "WithLMHead", "ForConditionalGeneration")):
        return "lm"
    if name.endswith("Model"):
        return "none"
    raise UnknownArchitectureError(
        f"no closed form for the head of {name}: pass head='lm', 'labels', 'process-reward' or 'none' to model_spec()"
    )


def full_pairs(new: int, past: int, window: int | None = None) -> int:
    """Query-key pairs of the whole rectangle: `new` queries against the new keys and the cached ones kept."""
    return new * (new + (past if window is None else min(past, window - 1)))


def causal_pairs(new: int, past: int, window: int | None = None) -> int:
    """Query-key pairs that a causal mask lets through: the i-th new token sees ``min(past + i, window)``."""
    if window is None or past + new <= window:
        return new * past + new * (new + 1) // 2
    # A triangle while the window fills, then a band of constant height.
    growing = max(window - past, 0)
    return growing * past + growing * (growing + 1) // 2 + (new - growing) * window


def encoder_pairs(length: int, window: int | None = None) -> int:
    """Query-key pairs of an encoder: all of them, or those at most half a window apart."""
    if window is None or length <= window // 2 + 1:
        return length * length
    reach = window // 2  # a band around the diagonal, less its two corners
    return length * (2 * reach + 1) - reach * (reach + 1)


def interpolated(points: Sequence[tuple[int, int]], place: int) -> int:
    """The value at `place` on parabolas through three neighbours of `points`, which ascend; lines beyond the ends."""
    if len(points) < 3 or not points[0][0] <= place <= points[-1][0]:
        (x, y), (nearer, value) = points[:2] if place < points[0][0] else points[-2:]
        return y + (value - y) * (place - x) // (nearer - x)
    last = max(2, next(i for i, (x, _) in enumerate(points) if x >= place))
    (a, first), (b, second), (c, third) = points[last - 2 : last + 1]
    # Newton's divided differences, over one denominator.
    slope, further = (second - first) * (c - b), (third - second) * (b - a)
    scale = (b - a) * (c - b)
    bent = (further - slope) * (place - b)
    return first + (slope * (c - a) + bent) * (place - a) // (scale * (c - a))


def forward_flops(spec: ModelSpec, new: int, past: int = 0, batch: int = 1, logits: int | None = None) -> Flops:
    """FLOPs of one forward of `batch` equally long rows, by kind.

    Args:
        spec: The model's constants, see `model_spec`.
        new: New tokens in each row.
        past: Tokens that the key-value cache holds for each row.
        batch: Rows.
        logits: Positions of each row that the head runs for; ``None`` for every new one.

    Example:
        >>> from inferscale.flops import forward_flops, model_spec
        >>> llama = {
        ...     "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        ...     "num_attention_heads": 4, "vocab_size": 1000,
        ... }
        >>> spec = model_spec(llama)
        >>> [forward_flops(spec, new=1, past=past).causal for past in (0, 100, 10_000)]  # attention grows with the past
        [292352, 343552, 5412352]
    """
    return Flops(*count_forward(spec, new, past, batch, logits))


def count_forward(spec: ModelSpec, new: int, past: int, batch: int, logits: int | None) -> tuple[int, int, int, int]:
    """The fields of `forward_flops` as a tuple, for callers that count every forward of a loop."""
    full = causal = 0
    for group in spec.attention:
        full += group.per_pair * full_pairs(new, past, group.window)
        pairs = causal_pairs(new, past, group.window) if group.is_causal else encoder_pairs(new, group.window)
        causal += group.per_pair * pairs
    kept = new if logits is None else logits
    # Latent attention (MLA) caches a narrow vector for each token and multiplies it out again in every forward; what
    # grows linearly with the cache is `cached`. A recurrent layer takes the same work for every token; what its scan of
    # several tokens does beyond it depends on the implementation.
    full += interpolated(spec.scan, new) if new > 1 and spec.scan else 0
    linear = batch * (new * spec.linear + past * spec.cached + spec.per_row)
    return linear + new * spec.per_position + spec.per_forward, batch * kept * spec.head, batch * full, batch * causal


def forward_cost(spec: ModelSpec | None, new: int, past: int, logits: int) -> int:
    """FLOPs of `new` tokens after `past` cached ones, with the head run at `logits` positions; 0 without a form."""
    return 0 if spec is None or new < 1 else forward_flops(spec, new, past, logits=logits).causal


def sample_flops(spec: ModelSpec | None, prefix: int, read: int, sampled: int) -> int:
    """FLOPs of one sample of `sampled` tokens after `prefix` tokens, the last `read` of which no forward had before.

    Each sampled token but the last pays for its own forward, so that the sum over a tree is the closed form of one
    pass with the prompt forwarded once.
    """
    flops = forward_cost(spec, read, prefix - read, logits=1)
    return flops + forward_cost(spec, sampled - 1, prefix, logits=sampled - 1)
