"""Texts at which a completion ends for whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def read_until(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    cut = min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))
    return text[:cut]


def answer_until(text: str, read: Callable[[str], str | None], stops: Sequence[str]) -> str | None:
    """The answer that `read` finds before the first of the stop texts."""
    return read(read_until(text, stops))
