"""The constants of a model's closed form, as plain data (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass


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
