"""Checks of hyperparameters, so that a bad one is refused where it is written."""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import numpy as np

from inferscale.base import SearchStrategy


def check_counts(owner: Any, *names: str, minimum: int = 1) -> None:
    """Raise a ValueError unless each named attribute of `owner` is an integer of at least `minimum`.

    Before that, NumPy's numbers among all attributes become Python's: strategies that are equal are written alike.
    """
    for item in fields(owner):
        if isinstance(value := getattr(owner, item.name), np.generic):
            object.__setattr__(owner, item.name, value.item())
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int | Integral) or value is True or value < minimum:
            raise ValueError(f"{type(owner).__name__}({name}={value!r}): {name} must be an integer >= {minimum}")


def check_positive(owner: object, *names: str, finite: bool = False) -> None:
    """Raise a ValueError unless each named attribute of `owner` is above 0, and below infinity if `finite`."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, Real) or not float(value) > 0:
            raise ValueError(f"{type(owner).__name__}({name}={value!r}): {name} must be greater than 0")
        if finite and value == math.inf:
            raise ValueError(f"{type(owner).__name__}({name}={value!r}): {name} must be a finite number")


def check_choice(owner: object, name: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless the named attribute of `owner` is one of `choices`."""
    value = getattr(owner, name)
    if value not in choices:
        raise ValueError(f"{type(owner).__name__}({name}={value!r}): choose one of {', '.join(map(repr, choices))}")


def check_members(owner: object, *members: object) -> None:
    """Raise a TypeError unless the strategies that `owner` is made of are strategies."""
    for member in members:
        if not isinstance(member, SearchStrategy):
            given = f"the class {member.__name__}" if isinstance(member, type) else repr(member)[:80]
            raise TypeError(f"{type(owner).__name__} is made of strategies such as REBASE(width=16), not of {given}")


def check_embedder(owner: Any) -> None:
    """Raise a TypeError unless ``owner.embedder`` is ``None`` or an `Embedder`."""
    if owner.embedder is not None and not callable(getattr(owner.embedder, "embed", None)):
        raise TypeError(
            f"{type(owner).__name__}(embedder={owner.embedder!r:.80}): give an object with embed(texts) -> [n, d], "
            "or None to ask the generator"
        )
