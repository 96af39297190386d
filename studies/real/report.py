"""The tables of the page, out of the records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from inferscale.engine.result import SearchResult


def all_tables(runs: Mapping[str, Sequence[SearchResult]]) -> Iterator[str]:
    """Lines of all tables."""
    for name, results in runs.items():
        yield f"{name} {len(results)}"
