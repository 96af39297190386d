"""One ledger of integers, kept for every scope, model and phase, and the clock beside it (standard library only)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from .spec import AttentionGroup, ModelSpec, PackedRows, count_forward, full_pairs

Phase: TypeAlias = Literal["prefill", "decode", "chunk", "head", "other"]
"""``"prefill"``: nothing was cached yet. ``"decode"``: one token on a cache. ``"chunk"``: several tokens on a cache.
``"head"``: the last matrix, called on its own. ``"other"``: outside of every watched model (exact mode only)."""

Label: TypeAlias = str | int | float | bool | None
Scope: TypeAlias = tuple[tuple[str, Label], ...]
"""Labels from the outermost scope to the innermost, as pairs of key and value."""


@dataclass(slots=True)
class Tally:
    """What was counted in one leaf of the ledger; every field is an integer, and they add up.

    Attributes:
        forwards: Calls of the model.
        sequences: Rows of those calls.
        tokens: Tokens read, padding included.
        sampled: Tokens drawn from the logits, inferred: one for each row of a forward that kept its last logits only.
        reported: Tokens drawn, as the generator told through `report_tokens`; it replaces the inferred number.
        useful: Tokens read that are neither padding nor past the end, as the generator told.
        pairs: Query-key pairs of the whole rectangles, windows ignored.
        linear: FLOPs in the layers' matrices.
        head: FLOPs in the last matrix.
        attention_full: FLOPs of attention over the whole rectangle.
        attention_causal: FLOPs of attention over the pairs that the mask lets through.
        numbers_read: Weights and cached keys and values that have to be read from memory, in numbers, not bytes.
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
        """Adds `other` to this, field by field."""
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


TALLY_FIELDS = tuple(item.name for item in dataclasses.fields(Tally))


def forward_tally(
    spec: ModelSpec, new: int, past: int = 0, batch: int = 1, logits: int | None = None, keeps_all: bool = False
) -> Tally:
    """The tally of one forward of `batch` equally long rows; arguments as for `forward_flops`.

    With `keeps_all`, the cache keeps what has left a window too, and the mask alone hides it: then the rectangle of a
    layer with a window is as large as that of one without.
    """
    tally = forward_sizes(new, past, batch, logits)
    tally.linear, tally.head, tally.attention_full, tally.attention_causal = count_forward(
        spec, new, past, batch, logits
    )
    tally.numbers_read = spec.active_weights
    for group in spec.attention if past else ():
        window = None if keeps_all else group.window
        tally.numbers_read += batch * group.kv_width * (full_pairs(1, past, window) - 1)
    if keeps_all:
        tally.attention_full = tally.pairs * sum(group.per_pair for group in spec.attention)
    return tally


def packed_tally(spec: ModelSpec | None, new: int, positions: int, packed: PackedRows) -> Tally:
    """The tally of one forward of packed rows.

    Args:
        spec: The model's constants; ``None`` leaves out what depends on them.
        new: New tokens of all rows together.
        positions: Positions that the head runs for, of all rows together.
        packed: What attention does.
    """
    tally = Tally(1, packed.rows, new, positions if packed.read_tokens else 0, pairs=packed.executed_pairs)
    if spec is None:
        return tally
    tally.linear, tally.head = new * spec.linear + packed.read_tokens * spec.cached, positions * spec.head
    tally.numbers_read = spec.active_weights
    for group in spec.attention:
        tally.attention_full += group.per_pair * packed.executed_pairs
        tally.attention_causal += group.per_pair * packed.causal_pairs
        tally.numbers_read += group.kv_width * packed.read_tokens
    return tally


def forward_sizes(new: int, past: int, batch: int, logits: int | None) -> Tally:
    """The tally of one forward without what depends on the model."""
    sampled = batch if logits == 1 or (new == 1 and logits is None) else 0
    return Tally(1, batch, batch * new, sampled, pairs=batch * new * (new + past))


def phase_of(new: int, past: int) -> Phase:
    """The phase of a forward of `new` tokens on `past` cached ones."""
    return "prefill" if past == 0 else "decode" if new == 1 else "chunk"


class LeafKey(NamedTuple):
    """Where a tally belongs."""

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

    def leaf(self, scope: Scope, model: str, phase: Phase) -> Tally:
        """The tally of one leaf, a new one if there was none."""
        key = LeafKey(scope, model, phase)
        tally = self.leaves.get(key)
        if tally is None:
            self.add_model(model)
            tally = self.leaves[key] = Tally()
        return tally

    def add_model(self, label: str, spec: ModelSpec | None = None) -> None:
        """Notes a model and, if it is known, its closed form.

        Raises:
            ValueError: If the label already stands for a different model.
        """
        if label not in self.models:
            self.models.append(label)
        if spec is not None and self.specs.setdefault(label, spec) != spec:
            raise ValueError(f"{label!r} already stands for a different model: choose another label for one of the two")

    def merge(self, other: Ledger) -> None:
        """Adds `other`'s tallies to this ledger; a label must stand for the same model in both."""
        for label in other.models:
            self.add_model(label, other.specs.get(label))
        for key, tally in other.leaves.items():
            self.leaf(key.scope, key.model, key.phase).add(tally)

    def view(self) -> Iterator[tuple[LeafKey, Tally]]:
        """Each leaf, with `sampled` as reported wherever the model's generator reports it."""
        leaves = list(self.leaves.items())  # threads may go on counting
        reporting = {key.model for key, tally in leaves if tally.reported}
        for key, tally in leaves:
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
            ledger.specs[label] = ModelSpec(**{**values, "attention": groups})
        for leaf in state["leaves"]:
            scope: Scope = tuple((str(key), value) for key, value in leaf["scope"])
            tally = Tally(**{name: int(leaf[name]) for name in TALLY_FIELDS})
            ledger.leaf(scope, leaf["model"], leaf["phase"]).add(tally)
        return ledger
