"""Sums, tables and utilisation of a ledger, and estimates for models that are not there (standard library only).

A ledger never stores "the FLOPs"; a convention (ours, or that of a paper) is a pure function of a tally and the model's
constants.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from .ledger import Label, LeafKey, Ledger, Scope, Tally, forward_tally
from .spec import ModelSpec, causal_pairs, model_spec

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


def sampling_tallies(
    spec: ModelSpec, prompt: int, new: int, n: int = 1, shared_prefix: bool = True
) -> tuple[Tally, Tally]:
    """The tallies of prefill and decoding when `n` completions of `new` tokens follow one prompt.

    The last token of a completion is sampled but never read: `new` tokens are a prefill that keeps one position's
    logits and ``new - 1`` decoding steps.

    Args:
        spec: The model's constants.
        prompt: Tokens of the prompt.
        new: Tokens of each completion.
        n: Completions.
        shared_prefix: Whether the prompt is read once for all completions, or once for each.

    Raises:
        ValueError: If a number is too small.
    """
    for name, value, least in (("prompt", prompt, 1), ("new", new, 0), ("n", n, 1)):
        if value < least:
            raise ValueError(f"{name}={value}: it must be at least {least}")
    prefill = forward_tally(spec, prompt, batch=1 if shared_prefix else n, logits=1)
    prefill.sampled = n if new else 0
    return prefill, _decoding(spec, prompt, max(new - 1, 0), n)


def _decoding(spec: ModelSpec, past: int, steps: int, n: int) -> Tally:
    """The tally of `steps` decoding steps of `n` rows, in closed form.

    A single query sees all that is kept of the cache, so rectangle and causal pairs are the same here, and the pairs
    of the steps add up to those of one causal chunk.
    """
    attention = sum(group.per_pair * causal_pairs(steps, past, group.window) for group in spec.attention)
    pairs = causal_pairs(steps, past)
    cached = pairs - steps  # tokens in the cache, summed over the steps
    kv_read = sum(group.kv_width * (causal_pairs(steps, past, group.window) - steps) for group in spec.attention)
    return Tally(
        forwards=steps,
        sequences=n * steps,
        tokens=n * steps,
        sampled=n * steps,
        pairs=n * pairs,
        linear=n * (steps * spec.linear + cached * spec.cached),
        head=n * steps * spec.head,
        attention_full=n * attention,
        attention_causal=n * attention,
        numbers_read=steps * spec.active_weights + n * kv_read,
    )


def estimate_flops(
    config: Any,
    *,
    prompt: int,
    new: int,
    n: int = 1,
    shared_prefix: bool = True,
    convention: str = "causal",
    nominal_parameters: float | None = None,
) -> int:
    """FLOPs of sampling `n` completions of `new` tokens after one prompt, without a model.

    Args:
        config: A transformers configuration, its dictionary, or a `ModelSpec`.
        prompt: Tokens of the prompt.
        new: Tokens of each completion.
        n: Completions.
        shared_prefix: Whether the prompt is read once for all completions, or once for each.
        convention: A name in `inferscale.flops.CONVENTIONS`.
        nominal_parameters: The size in the model's name, for ``"2N_nominal"``.

    Raises:
        UnknownArchitectureError: If the family has no closed form.
        ValueError: If a number is too small or the convention is unknown.
    """
    spec = model_spec(config, nominal_parameters=nominal_parameters)
    prefill, decode = sampling_tallies(spec, prompt, new, n, shared_prefix)
    return count(convention, prefill, spec) + count(convention, decode, spec)


# Vendors' data sheets: dense matrix products (no sparsity), per device.
PEAK_FLOPS: Mapping[str, float] = MappingProxyType(
    {
        "A100-bf16": 312e12,
        "A100-tf32": 156e12,
        "H100-SXM-bf16": 989e12,
        "H100-PCIe-bf16": 756e12,
        "H200-bf16": 989e12,
        "L4-bf16": 121e12,
        "L40S-bf16": 362e12,
        "T4-fp16": 65e12,
        "V100-fp16": 125e12,
        "RTX4090-bf16": 165e12,
    }
)
"""FLOP/s by name."""

PEAK_BANDWIDTH: Mapping[str, float] = MappingProxyType(
    {
        "A100-40GB": 1.555e12,
        "A100-80GB": 2.039e12,
        "H100-SXM": 3.35e12,
        "H100-PCIe": 2.0e12,
        "H200": 4.8e12,
        "L4": 0.3e12,
        "L40S": 0.864e12,
        "T4": 0.32e12,
        "V100": 0.9e12,
        "RTX4090": 1.008e12,
    }
)
"""Bytes per second by name."""


def resolve_peak(peak: float | str | None, known: Mapping[str, float], what: str, unit: str) -> float:
    """The peak as a number.

    Raises:
        ValueError: If it is missing, unknown or not positive; the message names the peaks that are known.
    """
    if isinstance(peak, str) and peak in known:
        return known[peak]
    if peak is None or isinstance(peak, str) or not peak > 0:
        raise ValueError(
            f"{what}={peak!r}: give the hardware's peak in {unit} or a name out of {', '.join(known)}"
            + ("; measured_peak() measures one" if unit == "FLOP/s" else "")
        )
    return float(peak)


def measured_peak(device: str = "cpu", dtype: str = "float32", size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of the fastest square matrix product seen within `seconds`, for hardware without a data sheet.

    Args:
        device: A torch device.
        dtype: A torch dtype's name.
        size: Rows and columns; a GPU wants 8192.
        seconds: How long to try.
    """
    import torch

    left = torch.randn(size, size, device=device).to(getattr(torch, dtype))

    def wait() -> None:
        if left.is_cuda:
            torch.cuda.synchronize()

    best, until = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < until:
        wait()
        start = time.perf_counter()
        torch.mm(left, left)
        wait()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


class Tokens(NamedTuple):
    """Tokens of all models together.

    Attributes:
        read: Tokens that went into a model, padding included.
        sampled: Tokens drawn from a model's logits.
        useful: Tokens read that are neither padding nor past the end; 0 unless the generator reports them.
    """

    read: int
    sampled: int
    useful: int


def leaves(ledger: Ledger, include: Sequence[str] | None) -> list[tuple[LeafKey, Tally]]:
    """The leaves of the models in `include`, or of all.

    Raises:
        ValueError: If a label is unknown.
    """
    wanted = None if include is None else set(include)
    if wanted is not None and wanted - set(ledger.models):
        raise ValueError(f"include={sorted(wanted)}: the models counted here are {ledger.models}")
    return [(key, tally) for key, tally in ledger.view() if wanted is None or key.model in wanted]


def total(ledger: Ledger, convention: str, include: Sequence[str] | None) -> int:
    """FLOPs of the models in `include` under one convention."""
    return sum(by(ledger, "model", convention, include).values())


def by(ledger: Ledger, key: str, convention: str, include: Sequence[str] | None) -> dict[Label, int]:
    """FLOPs by model, phase, scope, or the value of a scope's label."""
    models = ledger.models if include is None else [label for label in ledger.models if label in set(include)]
    sums: dict[Label, int] = dict.fromkeys(models, 0) if key == "model" else {}
    for leaf, tally in leaves(ledger, include):
        name = _group(leaf, key)
        flops = count(convention, tally, ledger.specs.get(leaf.model), leaf.model)
        sums[name] = sums.get(name, 0) + flops
    return sums


def _group(leaf: LeafKey, key: str) -> Label:
    """What `leaf` is called when leaves are grouped by `key`; ``None`` where it has no such label."""
    if key == "model":
        return leaf.model
    if key == "phase":
        return leaf.phase
    if key == "scope":
        return scope_name(leaf.scope)
    return next((value for name, value in reversed(leaf.scope) if name == key), None)


def scope_name(scope: Scope) -> str:
    """A scope as text: ``problem=3/rollout``."""
    return "/".join(str(value) if name == "name" else f"{name}={value}" for name, value in scope)


def table(ledger: Ledger, depth: int) -> str:
    """Counts by scope (to `depth` levels), model and phase, as text."""
    rows: dict[tuple[Scope, str, str], Tally] = {}
    for key, tally in ledger.view():
        rows.setdefault((key.scope[:depth], key.model, key.phase), Tally()).add(tally)
    whole = sum(full(tally) for tally in rows.values())
    header = ["scope", "model", "phase", "forwards", "read", "sampled", "causal", "full", "of all"]
    cells = [
        [scope_name(scope) or "all", model, phase, *_numbers(tally, whole)]
        for (scope, model, phase), tally in rows.items()
    ]
    if len(cells) > 1:
        everything = Tally()
        for tally in rows.values():
            everything.add(tally)
        cells.append(["total", "", "", *_numbers(everything, whole)])
    return _aligned([header, *cells])


def _numbers(tally: Tally, whole: int) -> list[str]:
    share = full(tally) / whole if whole else 0.0
    counts = [f"{number:,}" for number in (tally.forwards, tally.tokens, tally.sampled)]
    return [*counts, format_flops(causal(tally)), format_flops(full(tally)), f"{share:.1%}"]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first three to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            f"{cell:<{width}}" if i < 3 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def format_flops(flops: int) -> str:
    """`flops` with four digits and a unit: ``12.73T``."""
    value = float(flops)
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000:
            return f"{value:.4g}{unit}"
        value /= 1000
    return f"{value:.4g}E"


class Readout(ABC):
    """What can be read off a ledger.

    Attributes:
        ledger: The counts, as integers that no convention has touched.
    """

    ledger: Ledger

    @property
    @abstractmethod
    def seconds(self) -> float:
        """Seconds that the counts took."""

    def total(self, convention: str = "causal", include: Sequence[str] | None = None) -> int:
        """FLOPs under a convention (a name in `CONVENTIONS`) of the models in `include`, by default of all."""
        return total(self.ledger, convention, include)

    def by(self, key: str, convention: str = "causal", include: Sequence[str] | None = None) -> dict[Label, int]:
        """FLOPs by ``"model"``, ``"phase"``, ``"scope"``, or a scope's label such as ``"problem"``.

        What has no such label is under ``None``.
        """
        return by(self.ledger, key, convention, include)

    def tally(self, include: Sequence[str] | None = None) -> Tally:
        """All integers of the models in `include`, added up."""
        sums = Tally()
        for _, tally in leaves(self.ledger, include):
            sums.add(tally)
        return sums

    def table(self, depth: int = 1) -> str:
        """The counts as text, by scope (to `depth` levels), model and phase."""
        return table(self.ledger, depth)

    @property
    def tokens(self) -> Tokens:
        """Tokens read, sampled and useful, of all models."""
        sums = self.tally()
        return Tokens(sums.tokens, sums.sampled, sums.useful)

    def mfu(self, peak: float | str | None = None, convention: str = "causal") -> float:
        """Model FLOPs utilisation: FLOPs / (seconds × peak).

        Args:
            peak: FLOP/s of the hardware, or a name in `PEAK_FLOPS`.
            convention: What counts as FLOPs.

        Raises:
            ValueError: If the peak is missing; the message names those that are known.
        """
        rate = resolve_peak(peak, PEAK_FLOPS, "peak", "FLOP/s")
        return self.total(convention) / (self.seconds * rate)

    def mbu(self, bandwidth: float | str | None = None, bytes_per_number: float = 2) -> float:
        """Model bandwidth utilisation: bytes of weights and cache that had to be read / (seconds × bandwidth).

        A forward reads the matrices that a token passes through once (of a mixture of experts: those of one token) and
        each row's cache. A calibrated form does not know the cache.

        Args:
            bandwidth: Bytes per second of the hardware, or a name in `PEAK_BANDWIDTH`.
            bytes_per_number: 2 for half precision, 4 for float32.
        """
        rate = resolve_peak(bandwidth, PEAK_BANDWIDTH, "bandwidth", "bytes/s")
        return self.tally().numbers_read * bytes_per_number / (self.seconds * rate)

    def get_total_flops(self) -> int:
        """Like ``torch.utils.flop_counter.FlopCounterMode``: FLOPs with the whole rectangle of attention."""
        return self.total("full")

    def get_flop_counts(self) -> dict[str, dict[str, int]]:
        """Like torch's: FLOPs (whole rectangle) of everything under ``"Global"``, and of each model, by kind."""
        counts = {label: _by_kind(self.tally([label])) for label in self.ledger.models}
        return {"Global": _by_kind(self.tally()), **counts}

    def get_table(self, depth: int | None = None) -> str:
        """Like torch's: the table as text."""
        return self.table(1 if depth is None else depth)


def _by_kind(tally: Tally) -> dict[str, int]:
    return {"linear": tally.linear, "head": tally.head, "attention": tally.attention_full}
