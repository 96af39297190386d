"""Sums and tables of a ledger (standard library only)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .conventions import causal, count, full
from .ledger import Label, LeafKey, Ledger, Scope, Tally


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
