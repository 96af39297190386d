"""Ways to turn a tally into one number of FLOPs: ours, and those of the papers (standard library only).

A ledger never stores "the FLOPs"; a convention is a pure function of a tally and the model's constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from .ledger import Tally
from .spec import ModelSpec

Convention: TypeAlias = Callable[[Tally, ModelSpec], int]


def causal(tally: Tally, spec: ModelSpec | None = None) -> int:
    """Matrix products with attention over the pairs that the causal mask lets through: what the model needs."""
    return tally.linear + tally.head + tally.attention_causal


def full(tally: Tally, spec: ModelSpec | None = None) -> int:
    """Matrix products with attention over the whole rectangle: what eager attention executes."""
    return tally.linear + tally.head + tally.attention_full


def two_n(tally: Tally, spec: ModelSpec) -> int:
    """2·N for each token read, N all parameters; for a mixture of experts far too much (all experts count)."""
    return 2 * spec.parameters * tally.tokens


def two_n_nominal(tally: Tally, spec: ModelSpec) -> int:
    """2·N for each token sampled, N the size in the model's name (7e9): the axis of arXiv:2408.00724.

    Prompts, attention and reward models are left out there; ask for ``include=("generator",)``.
    """
    if spec.nominal_parameters is None:
        raise ValueError(
            f'the convention "2N_nominal" needs the size in the name of this {spec.family!r} model, which no '
            "configuration holds: pass nominal_parameters, as in nominal_parameters=7e9 (estimate_flops, model_spec) "
            'or nominal_parameters={"generator": 7e9} (FlopCounter)'
        )
    return 2 * spec.nominal_parameters * tally.sampled


def kaplan(tally: Tally, spec: ModelSpec) -> int:
    """2·N + 2·L·n_ctx·d_attn for each token read (arXiv:2001.08361, Table 1), n_ctx the context at that token.

    N = 2·d·L·(2·d_attn + d_ff): no embeddings, no head, a two-matrix MLP, as many key heads as query heads.
    """
    layers, attention = _shape(spec), spec.num_heads * spec.head_dim
    parameters = 2 * spec.hidden_size * layers * (2 * attention + spec.intermediate_size)
    return 2 * parameters * tally.tokens + 2 * layers * attention * tally.pairs


def chinchilla(tally: Tally, spec: ModelSpec) -> int:
    """The forward pass of arXiv:2203.15556, Appendix F: the embedding as a matrix product, and softmax, are counted.

    A two-matrix MLP, as many key heads as query heads, and the whole rectangle of attention are assumed there.
    """
    layers, attention = _shape(spec), spec.num_heads * spec.head_dim
    vocabulary = 4 * spec.hidden_size * spec.vocab_size  # embedding and logits
    projections = 8 * spec.hidden_size * attention
    dense = 4 * spec.hidden_size * spec.intermediate_size
    per_pair = 4 * attention + 3 * spec.num_heads
    return tally.tokens * (vocabulary + layers * (projections + dense)) + tally.pairs * layers * per_pair


def abdelhameed2024(tally: Tally, spec: ModelSpec) -> int:
    """What arXiv:2412.16260 charges for each token sampled, as its released code computes it.

    C = 2·[2·d·L·(2·(d // heads) + d_ff)] + 2·L·d: the width of one head stands where the width of all heads belongs,
    one of three MLP matrices and the head are missing, and so is the length of the context. Too low by 1.86 times
    for Mistral-7B; kept to reproduce the paper's column.
    """
    layers, width = _shape(spec), spec.hidden_size
    matrices = 2 * width * layers * (2 * (width // spec.num_heads) + spec.intermediate_size)
    return (2 * matrices + 2 * layers * width) * tally.sampled


CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        "causal": causal,
        "full": full,
        "2N": two_n,
        "2N_nominal": two_n_nominal,
        "kaplan": kaplan,
        "chinchilla": chinchilla,
        "abdelhameed2024": abdelhameed2024,
    }
)
"""Conventions by name."""


def count(convention: str, tally: Tally, spec: ModelSpec | None, label: str = "model") -> int:
    """FLOPs of `tally` under the convention named `convention`.

    Args:
        convention: A name in `CONVENTIONS`.
        tally: What was counted.
        spec: The model's constants; ``"causal"`` and ``"full"`` do without.
        label: The model's name in messages.

    Raises:
        ValueError: If the name is unknown, or the convention needs what is not known of the model.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}: choose one of {', '.join(CONVENTIONS)}")
    if convention == "causal":
        return causal(tally)
    if convention == "full":
        return full(tally)
    if spec is None:
        raise ValueError(
            f'the convention {convention!r} needs the shape of {label!r}, which was only counted op by op: use "full"'
        )
    return CONVENTIONS[convention](tally, spec)


def _shape(spec: ModelSpec) -> int:
    """The number of layers, if the model's shape is known."""
    if not spec.num_layers:
        raise ValueError(
            f"this convention needs the shape (d, L, heads, d_ff) of the {spec.family!r} model, and a calibrated "
            'closed form has none: use "causal", "full" or "2N"'
        )
    return spec.num_layers
