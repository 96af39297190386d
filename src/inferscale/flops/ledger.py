"""Integers kept for every scope, model and phase, and the ways of adding them up (standard library only).

A ledger never stores "the FLOPs"; a convention (ours, or that of a paper) is a pure function of a tally and the model's
constants. The same functions estimate what a model would cost that is not there.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from .spec import (
    AttentionGroup,
    ModelSpec,
    PackedRows,
    causal_pairs,
    count_forward,
    full_pairs,
    interpolated,
    model_spec,
)

Phase: TypeAlias = Literal["prefill", "decode", "chunk", "head", "other"]
"""``"prefill"``: nothing was cached yet. ``"decode"``: one token on a cache. ``"chunk"``: several tokens on a cache.
``"head"``: the last matrix, called on its own. ``"other"``: outside of every watched model (exact mode only)."""

Label: TypeAlias = str | int | float | bool | None
Scope: TypeAlias = tuple[tuple[str, Label], ...]
"""Labels from the outermost scope to the innermost, as pairs of key and value."""


@dataclass(slots=True)
class Tally:
    """The counts in one leaf of the ledger; every field is an integer, and they add up.

    Attributes:
        forwards: Calls of the model.
        sequences: Rows of those calls.
        tokens: Tokens forwarded, padding included.
        sampled: Tokens drawn from the logits, inferred: one for each row of a forward that kept its last logits only.
        reported: Tokens drawn, as the generator told through `report_tokens`; it replaces the inferred number.
        useful: Tokens forwarded that are neither padding nor past the end, as the generator told.
        pairs: Query-key pairs of the whole rectangles, windows ignored.
        linear: FLOPs in the layers' matrices.
        head: FLOPs in the last matrix.
        attention_full: FLOPs of attention over the whole rectangle.
        attention_causal: FLOPs of attention over the pairs that the mask lets through.
        numbers_read: Weights and cached keys and values that have to come from memory, in numbers, not bytes.
    """

    forwards: int = 0
    sequences: int = 0
    tokens: int = 0
    sampled: int = 0
    reported: int = 0
    useful: int = 0
    pairs: int = 0
    linear: int = 0
    head: int = 0
    attention_full: int = 0
    attention_causal: int = 0
    numbers_read: int = 0

    def add(self, other: Tally) -> None:
        """Add `other` to this, field by field."""
        # Spelled out, since it runs once for every forward: a loop over the fields takes four times as long.
        self.forwards += other.forwards
        self.sequences += other.sequences
        self.tokens += other.tokens
        self.sampled += other.sampled
        self.reported += other.reported
        self.useful += other.useful
        self.pairs += other.pairs
        self.linear += other.linear
        self.head += other.head
        self.attention_full += other.attention_full
        self.attention_causal += other.attention_causal
        self.numbers_read += other.numbers_read


class ForwardShape(NamedTuple):
    """The sizes of one forward.

    Attributes:
        new: New tokens in each row; of packed rows, of all rows together.
        past: Tokens that the key-value cache holds for each row.
        batch: Rows.
        logits: Positions of each row that the head runs for; ``None`` for every new one.
        keeps_all: True if the cache keeps what has left a window too, and the mask alone hides it: then the rectangle
            of a layer with a window is as large as that of one without.
        packed: What attention does, if the cache packs rows into one sequence.
        is_opaque: True if the cache holds its keys and values elsewhere, and does not tell what attention does.
    """

    new: int
    past: int = 0
    batch: int = 1
    logits: int | None = None
    keeps_all: bool = False
    packed: PackedRows | None = None
    is_opaque: bool = False

    @property
    def phase(self) -> Phase:
        """The phase of the forward."""
        new, past = self.new, self.past
        if self.packed is not None:
            new, past = new // self.packed.rows, self.packed.read_tokens
        return "prefill" if past == 0 else "decode" if new == 1 else "chunk"

    def tally(self, spec: ModelSpec | None) -> Tally:
        """The tally of the forward; without a closed form, only what does not depend on it."""
        new, past, batch, logits, keeps_all, packed, _ = self
        if packed is not None:
            return self._packed_tally(spec, packed)
        # Who asks for the logits of one position alone is going to draw from them.
        sampled = batch if logits == 1 or (new == 1 and logits is None) else 0
        tally = Tally(1, batch, batch * new, sampled, pairs=batch * new * (new + past))
        if spec is None:
            return tally
        tally.linear, tally.head, tally.attention_full, tally.attention_causal = count_forward(
            spec, new, past, batch, logits
        )
        # A forward loads the matrices once for all rows, and each row's cache: what a query sees besides itself.
        tally.numbers_read = spec.active_weights + (batch * sum(spec.states or ()) if past else 0)
        for group in spec.attention if past else ():
            window = None if keeps_all else group.window
            tally.numbers_read += batch * group.kv_width * (full_pairs(1, past, window) - 1)
        if keeps_all:
            tally.attention_full = tally.pairs * sum(group.per_pair for group in spec.attention)
        return tally

    def _packed_tally(self, spec: ModelSpec | None, packed: PackedRows) -> Tally:
        kept = self.new if self.logits is None else self.logits
        tally = Tally(1, packed.rows, self.new, kept if packed.read_tokens else 0, pairs=packed.executed_pairs)
        if spec is not None:
            tally.linear, tally.head = self.new * spec.linear + packed.read_tokens * spec.cached, kept * spec.head
            tally.numbers_read = spec.active_weights
            tally.numbers_read += packed.rows * sum(spec.states or ()) if packed.read_tokens else 0
            # Rows of a model with recurrent layers are of one length.
            each = self.new // packed.rows
            tally.attention_full += packed.rows * interpolated(spec.scan, each) if spec.scan and each > 1 else 0
            for group in spec.attention:
                causal, executed = packed.pairs(group.window)
                tally.attention_full += group.per_pair * executed
                tally.attention_causal += group.per_pair * causal
                tally.numbers_read += group.kv_width * packed.read_tokens
        return tally


def sampling_tallies(
    spec: ModelSpec, prompt: int, new: int, n: int = 1, shared_prefix: bool = True
) -> tuple[Tally, Tally]:
    """The tallies of prefill and decoding when `n` completions of `new` tokens follow one prompt.

    The last token of a completion is sampled but never forwarded: `new` tokens are a prefill that keeps one position's
    logits and ``new - 1`` decoding steps.

    Raises:
        ValueError: If a number is too small.
    """
    for name, value, least in (("prompt", prompt, 1), ("new", new, 0), ("n", n, 1)):
        if value < least:
            raise ValueError(f"{name}={value}: it must be at least {least}")
    prefill = ForwardShape(prompt, batch=1 if shared_prefix else n, logits=1).tally(spec)
    prefill.sampled = n if new else 0
    # A single query sees all that is kept of the cache, so that rectangle and causal pairs are the same here, and the
    # pairs of the steps add up to those of one causal chunk. All but each query's own come from the cache.
    steps = max(new - 1, 0)
    pairs = causal_pairs(steps, prompt)
    attention = n * sum(group.per_pair * causal_pairs(steps, prompt, group.window) for group in spec.attention)
    kv_read = sum(group.kv_width * (causal_pairs(steps, prompt, group.window) - steps) for group in spec.attention)
    decode = Tally(
        forwards=steps,
        sequences=n * steps,
        tokens=n * steps,
        sampled=n * steps,
        pairs=n * pairs,
        linear=n * (steps * spec.linear + (pairs - steps) * spec.cached),
        head=n * steps * spec.head,
        attention_full=attention,
        attention_causal=attention,
        numbers_read=steps * spec.active_weights + n * kv_read,
    )
    return prefill, decode


Convention: TypeAlias = Callable[[Tally, ModelSpec], int]


def causal(tally: Tally, spec: ModelSpec | None = None) -> int:
    """Matrix products with attention over the pairs that the causal mask lets through: what the model needs."""
    return tally.linear + tally.head + tally.attention_causal


def full(tally: Tally, spec: ModelSpec | None = None) -> int:
    """Matrix products with attention over the whole rectangle: what eager attention executes."""
    return tally.linear + tally.head + tally.attention_full


def two_n(tally: Tally, spec: ModelSpec) -> int:
    """2·N for each token forwarded, N all parameters; for a mixture of experts far too much (all experts count)."""
    return 2 * spec.parameters * tally.tokens


def two_n_nominal(tally: Tally, spec: ModelSpec) -> int:
    """2·N for each token sampled, N the size in the model's name (7e9): the axis of arXiv:2408.00724.

    Prompts, attention and reward models are left out there; ask for the generator alone.
    """
    if spec.nominal_parameters is None:
        raise ValueError(
            f'the convention "2N_nominal" needs the size in the name of this {spec.family!r} model, which no '
            "configuration holds: pass nominal_parameters, as in nominal_parameters=7e9 (estimate_flops, model_spec) "
            'or nominal_parameters={"generator": 7e9} (FlopCounter)'
        )
    return 2 * spec.nominal_parameters * tally.sampled


def kaplan(tally: Tally, spec: ModelSpec) -> int:
    """2·N + 2·L·n_ctx·d_attn for each token forwarded (arXiv:2001.08361, Table 1), n_ctx the context at that token.

    N = 2·d·L·(2·d_attn + d_ff): no embeddings, no head, a two-matrix MLP, as many key heads as query heads.
    """
    layers, attention = _layers(spec), spec.num_heads * spec.head_dim
    parameters = 2 * spec.hidden_size * layers * (2 * attention + spec.intermediate_size)
    # Summed over the tokens, n_ctx is the number of query-key pairs.
    return 2 * parameters * tally.tokens + 2 * layers * attention * tally.pairs


def chinchilla(tally: Tally, spec: ModelSpec) -> int:
    """The forward pass of arXiv:2203.15556, Appendix F: the embedding as a matrix product, and softmax, are counted.

    A two-matrix MLP, as many key heads as query heads, and the whole rectangle of attention are assumed there.
    """
    layers, attention = _layers(spec), spec.num_heads * spec.head_dim
    vocabulary = 4 * spec.hidden_size * spec.vocab_size  # embedding and logits
    projections = 8 * spec.hidden_size * attention  # queries, keys and values; the output
    dense = 4 * spec.hidden_size * spec.intermediate_size  # up and down
    per_pair = 4 * attention + 3 * spec.num_heads  # logits and the sum over values; softmax
    return tally.tokens * (vocabulary + layers * (projections + dense)) + tally.pairs * layers * per_pair


def abdelhameed2024(tally: Tally, spec: ModelSpec) -> int:
    """The charge of arXiv:2412.16260 for each token sampled, as its released code computes it.

    C = 2·[2·d·L·(2·(d // heads) + d_ff)] + 2·L·d: the width of one head stands where the width of all heads belongs,
    one of three MLP matrices and the head are missing, and so is the length of the context. Too low by 1.86 times
    for Mistral-7B; kept to reproduce the paper's column.
    """
    layers, width = _layers(spec), spec.hidden_size
    matrices = 2 * width * layers * (2 * (width // spec.num_heads) + spec.intermediate_size)
    return (2 * matrices + 2 * layers * width) * tally.sampled


def _layers(spec: ModelSpec) -> int:
    """The number of layers; an error where the model's shape is not known."""
    if not spec.num_layers:
        raise ValueError(
            f"this convention needs the shape (d, L, heads, d_ff) of the {spec.family!r} model, and a calibrated "
            'closed form has none: use "causal", "full" or "2N"'
        )
    return spec.num_layers


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
"""Ways to count, by name: functions of what was counted and the model's constants, for `estimate_flops` and a
`FlopCounter`'s `flops_of`.

* ``"causal"``: matrix products, with attention over the pairs that the mask lets through. The default.
* ``"full"``: the same with attention over the whole rectangle, as torch's own counter has it.
* ``"2N"``: 2 FLOPs for each parameter and token forwarded.
* ``"2N_nominal"``: 2 for each parameter in the model's name and token sampled (Wu et al. 2024, arXiv:2408.00724).
* ``"kaplan"``: Kaplan et al. 2020 (arXiv:2001.08361), table 1.
* ``"chinchilla"``: Hoffmann et al. 2022 (arXiv:2203.15556), appendix F.
* ``"abdelhameed2024"``: as the code of AbdElhameed and Halim 2024 (arXiv:2412.16260), which counts too little.

Example:
    >>> from inferscale.flops import CONVENTIONS, estimate_flops
    >>> mistral = {
    ...     "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    ...     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768,
    ... }
    >>> for convention in CONVENTIONS:  # of the same 16 samples
    ...     flops = estimate_flops(
    ...         mistral, prompt=200, new=300, n=16, convention=convention, nominal_parameters=7e9
    ...     )
    ...     print(f"{convention:15} {flops:.3e}")
    causal          7.174e+13
    full            7.175e+13
    2N              7.225e+13
    2N_nominal      6.720e+13
    kaplan          5.932e+13
    chinchilla      6.245e+13
    abdelhameed2024 3.672e+13
"""


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
    if convention in ("causal", "full"):
        return causal(tally) if convention == "causal" else full(tally)
    if spec is None:
        raise ValueError(
            f'the convention {convention!r} needs the shape of {label!r}, which was only counted op by op: use "full"'
        )
    return CONVENTIONS[convention](tally, spec)


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
        shared_prefix: True if the prompt is forwarded once for all completions, False for once for each.
        convention: A name in `inferscale.flops.CONVENTIONS`.
        nominal_parameters: The size in the model's name, for ``"2N_nominal"``.

    Raises:
        UnknownArchitectureError: If the family has no closed form.
        ValueError: If a number is too small or the convention is unknown.

    Example:
        >>> from inferscale.flops import estimate_flops
        >>> llama = {
        ...     "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        ...     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        ... }
        >>> shared = estimate_flops(llama, prompt=200, new=300, n=16)
        >>> apart = estimate_flops(llama, prompt=200, new=300, n=16, shared_prefix=False)  # the prompt is read 16 times
        >>> f"{shared:.3e} {apart:.3e}"
        '1.244e+13 1.832e+13'
    """
    spec = model_spec(config, nominal_parameters=nominal_parameters)
    return sum(count(convention, tally, spec) for tally in sampling_tallies(spec, prompt, new, n, shared_prefix))


class LeafKey(NamedTuple):
    """The place of a tally in the ledger."""

    scope: Scope
    model: str
    phase: Phase


@dataclass
class Ledger:
    """Tallies by leaf, and the closed form of each model.

    Attributes:
        models: Labels, in the order in which they came.
        specs: The constants of each model; a model that is only counted exactly may have none.
        leaves: The tallies.
    """

    models: list[str] = field(default_factory=list)
    specs: dict[str, ModelSpec] = field(default_factory=dict)
    leaves: dict[LeafKey, Tally] = field(default_factory=dict)

    def add(self, key: LeafKey, tally: Tally) -> None:
        """Add to a leaf, a new one if there was none."""
        leaf = self.leaves.get(key)
        if leaf is None:
            self.add_model(key.model)
            leaf = self.leaves[key] = Tally()
        leaf.add(tally)

    def add_model(self, label: str, spec: ModelSpec | None = None) -> None:
        """Add a model and, if it is known, its closed form.

        Raises:
            ValueError: If the label already stands for a different model.
        """
        if label not in self.models:
            self.models.append(label)
        if spec is not None and self.specs.setdefault(label, spec) != spec:
            raise ValueError(f"{label!r} already stands for a different model: choose another label for one of the two")

    def merge(self, other: Ledger) -> None:
        """Add `other`'s tallies to this ledger; a label must stand for the same model in both."""
        for label in other.models:
            self.add_model(label, other.specs.get(label))
        for key, tally in other.leaves.items():
            self.add(key, tally)

    def view(self, *models: str) -> Iterator[tuple[LeafKey, Tally]]:
        """Each leaf of `models` (of all, if none is named), `sampled` being what was reported where anything was.

        Raises:
            ValueError: If a model is unknown.
        """
        unknown = sorted(set(models) - set(self.models))
        if unknown:
            raise ValueError(f"models {unknown} are not counted here, but {self.models} are")
        leaves = list(self.leaves.items())  # in one step: threads may go on counting
        # Reports come by model, not by leaf: one report takes the place of what was inferred in all leaves of a model.
        reporting = {key.model for key, tally in leaves if tally.reported}
        for key, tally in leaves:
            if not models or key.model in models:
                yield key, dataclasses.replace(tally, sampled=tally.reported) if key.model in reporting else tally

    def state_dict(self) -> dict[str, Any]:
        """The ledger in JSON types."""
        specs = {label: dataclasses.asdict(spec) for label, spec in self.specs.items()}
        leaves = [
            {"scope": [list(pair) for pair in key.scope], "model": key.model, "phase": key.phase}
            | dataclasses.asdict(tally)
            for key, tally in self.leaves.items()
        ]
        return {"models": list(self.models), "specs": specs, "leaves": leaves}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Ledger:
        """The ledger that `state_dict` described."""
        ledger = cls(models=[str(label) for label in state["models"]])
        for label, values in state["specs"].items():
            groups = tuple(AttentionGroup(**group) for group in values["attention"])
            scan = tuple((tokens, flops) for tokens, flops in values.get("scan", ()))
            states = values.get("states", (0, 0))
            known = {"attention": groups, "scan": scan, "states": states and tuple(states)}
            ledger.specs[label] = ModelSpec(**{**values, **known})
        for leaf in state["leaves"]:
            scope: Scope = tuple((str(key), value) for key, value in leaf["scope"])
            tally = Tally(**{item.name: int(leaf[item.name]) for item in dataclasses.fields(Tally)})
            ledger.add(LeafKey(scope, leaf["model"], leaf["phase"]), tally)
        return ledger


class Tokens(NamedTuple):
    """Tokens of all models together.

    Attributes:
        forwarded: Tokens that went into a model, padding included.
        sampled: Tokens drawn from a model's logits.
        useful: Tokens forwarded that are neither padding nor past the end; 0 unless the generator reports them.
    """

    forwarded: int
    sampled: int
    useful: int


class Report(ABC):
    """Sums, tables and utilisation of a ledger.

    Attributes:
        ledger: The counts, as integers that no convention has touched.
    """

    ledger: Ledger

    @property
    @abstractmethod
    def seconds(self) -> float:
        """Seconds that the counts took."""

    @property
    def flops(self) -> int:
        """FLOPs of all models, with attention over the pairs that the causal mask lets through."""
        return self.flops_of()

    def flops_of(self, *models: str, convention: str = "causal") -> int:
        """FLOPs of the models with these labels, by default of all, under a convention (a name in `CONVENTIONS`)."""
        return sum(self.flops_by("model", *models, convention=convention).values())

    def flops_by(self, key: str, *models: str, convention: str = "causal") -> dict[Label, int]:
        """FLOPs by ``"model"``, ``"phase"``, ``"scope"``, or a scope's label such as ``"problem"``.

        What has no such label is under ``None``. With `models`, only theirs are added up.
        """
        sums: dict[Label, int] = dict.fromkeys(models or self.ledger.models, 0) if key == "model" else {}
        for leaf, tally in self.ledger.view(*models):
            if key in ("model", "phase"):
                group: Label = getattr(leaf, key)
            elif key == "scope":
                group = _scope_name(leaf.scope)
            else:
                group = next((value for name, value in reversed(leaf.scope) if name == key), None)
            flops = count(convention, tally, self.ledger.specs.get(leaf.model), leaf.model)
            sums[group] = sums.get(group, 0) + flops
        return sums

    def tally(self, *models: str) -> Tally:
        """All integers of the models with these labels, by default of all, added up."""
        sums = Tally()
        for _, tally in self.ledger.view(*models):
            sums.add(tally)
        return sums

    @property
    def tokens(self) -> Tokens:
        """Tokens forwarded, sampled and useful, of all models."""
        sums = self.tally()
        return Tokens(sums.tokens, sums.sampled, sums.useful)

    def table(self, depth: int = 1) -> str:
        """The counts as text, by scope (to `depth` levels), model and phase."""
        sums: dict[LeafKey, Tally] = {}
        for (scope, model, phase), tally in self.ledger.view():
            sums.setdefault(LeafKey(scope[:depth], model, phase), Tally()).add(tally)
        rows: list[tuple[tuple[str, str, str], Tally]] = [
            ((_scope_name(scope) or "all", model, phase), tally) for (scope, model, phase), tally in sums.items()
        ]
        whole = Tally()
        for tally in sums.values():
            whole.add(tally)
        if len(rows) > 1:
            rows.append((("total", "", ""), whole))
        cells: list[tuple[str, ...]] = [
            ("scope", "model", "phase", "forwards", "tokens", "sampled", "causal", "full", "of all")
        ]
        for names, tally in rows:
            counts = (f"{number:,}" for number in (tally.forwards, tally.tokens, tally.sampled))
            share = full(tally) / (full(whole) or 1)
            cells.append((*names, *counts, _with_unit(causal(tally)), _with_unit(full(tally)), f"{share:.1%}"))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        sides = "<<<>>>>>>"
        lines = (
            "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
            for row in cells
        )
        return "\n".join(line.rstrip() for line in lines)

    def mfu(self, peak: float | str | None = None, convention: str = "causal") -> float:
        """Model FLOPs utilisation: FLOPs / (seconds × peak).

        Args:
            peak: FLOP/s of the hardware, or a name in `PEAK_FLOPS`.
            convention: What counts as FLOPs.

        Raises:
            ValueError: If the peak is missing; the message names those that are known.
        """
        rate = _peak(peak, PEAK_FLOPS, "peak", "FLOP/s")
        return self.flops_of(convention=convention) / (self.seconds * rate)

    def mbu(self, bandwidth: float | str | None = None, bytes_per_number: float = 2) -> float:
        """Model bandwidth utilisation: bytes of weights and cache that had to be loaded / (seconds × bandwidth).

        A forward loads the matrices that a token passes through once (of a mixture of experts: those of one token) and
        each row's cache, states of recurrent layers included.

        Args:
            bandwidth: Bytes per second of the hardware, or a name in `PEAK_BANDWIDTH`.
            bytes_per_number: 2 for half precision, 4 for float32.

        Raises:
            ValueError: If the bandwidth is missing; the message names those that are known.
        """
        rate = _peak(bandwidth, PEAK_BANDWIDTH, "bandwidth", "bytes/s")
        return self.tally().numbers_read * bytes_per_number / (self.seconds * rate)

    def get_total_flops(self) -> int:
        """FLOPs with the whole rectangle of attention, as ``torch.utils.flop_counter.FlopCounterMode`` has it."""
        return self.flops_of(convention="full")

    def get_flop_counts(self) -> dict[str, dict[str, int]]:
        """FLOPs as torch has them: of everything under ``"Global"``, and of each model, by kind."""
        tallies = {"Global": self.tally(), **{label: self.tally(label) for label in self.ledger.models}}
        return {
            label: {"linear": tally.linear, "head": tally.head, "attention": tally.attention_full}
            for label, tally in tallies.items()
        }

    def get_table(self, depth: int | None = None) -> str:
        """The table as text, under torch's name."""
        return self.table(1 if depth is None else depth)


def _scope_name(scope: Scope) -> str:
    """A scope as text: ``problem=3/rollout``."""
    return "/".join(str(value) if name == "name" else f"{name}={value}" for name, value in scope)


def _with_unit(flops: int) -> str:
    """`flops` with four digits and a unit: ``12.73T``."""
    value = float(flops)
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000:
            return f"{value:.4g}{unit}"
        value /= 1000
    return f"{value:.4g}E"


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
"""Peak FLOP/s of dense matrix products (no sparsity) by device and precision, from vendors' data sheets.

Example:
    >>> from inferscale.flops import PEAK_FLOPS, estimate_flops
    >>> llama = {
    ...     "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    ...     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    ... }
    >>> flops = estimate_flops(llama, prompt=200, new=300, n=16)
    >>> f"{flops / PEAK_FLOPS['L4-bf16']:.2f} s on an L4 at best"
    '0.10 s on an L4 at best'
"""

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
"""Peak bytes per second of a device's memory by its name, from vendors' data sheets.

Example:
    >>> from inferscale.flops import PEAK_BANDWIDTH, PEAK_FLOPS
    >>> weights = 2 * 7.2e9  # bytes of 7.2 billion numbers in bfloat16
    >>> f"{1e3 * weights / PEAK_BANDWIDTH['H200']:.1f} ms for a token at least, since all weights are read"
    '3.0 ms for a token at least, since all weights are read'
    >>> PEAK_FLOPS["H200-bf16"] / PEAK_BANDWIDTH["H200"]  # FLOPs that take as long as reading a byte
    206.04166666666666
"""


def _peak(peak: float | str | None, known: Mapping[str, float], option: str, unit: str) -> float:
    """The peak as a number; one that is missing, unknown or not positive is an error that names those known."""
    if isinstance(peak, str) and peak in known:
        return known[peak]
    if peak is None or isinstance(peak, str) or not peak > 0:
        raise ValueError(
            f"{option}={peak!r}: give the hardware's peak in {unit} or a name out of {', '.join(known)}"
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

    Example:
        >>> from inferscale.flops import measured_peak
        >>> peak = measured_peak(size=128, seconds=0.01)
        >>> peak > 0  # FLOP/s
        True
    """
    import torch

    left = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    wait: Callable[[], None] = torch.cuda.synchronize if left.is_cuda else lambda: None
    best, until = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < until:
        wait()
        start = time.perf_counter()
        torch.mm(left, left)
        wait()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def measured_bandwidth(megabytes: int = 256, seconds: float = 0.3) -> float:
    """Bytes per second of the CPU's memory: of the fastest copy seen within `seconds`, read and written together.

    Args:
        megabytes: Size of what is copied, in MiB; more than the caches hold.
        seconds: How long to try.

    Example:
        >>> from inferscale.flops import measured_bandwidth
        >>> rate = measured_bandwidth(megabytes=4, seconds=0.01)
        >>> rate > 0  # bytes a second
        True
    """
    import numpy as np

    source = np.ones(megabytes * 2**17)
    target = np.empty_like(source)
    best, until = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < until:
        start = time.perf_counter()
        np.copyto(target, source)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start))
    return best
