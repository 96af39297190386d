"""Checks of hyperparameters, so that a bad one is refused where it is written."""

from __future__ import annotations

from numbers import Integral


def check_counts(owner: object, *names: str, minimum: int = 1) -> None:
    """Raises unless each named attribute of `owner` is an integer of at least `minimum`."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int | Integral) or value is True or value < minimum:
            raise ValueError(f"{type(owner).__name__}({name}={value!r}): {name} must be an integer >= {minimum}")


def check_positive(owner: object, *names: str) -> None:
    """Raises unless each named attribute of `owner` is a number greater than 0."""
    for name in names:
        value = getattr(owner, name)
        if not value > 0:
            raise ValueError(f"{type(owner).__name__}({name}={value!r}): {name} must be greater than 0")


def check_choice(owner: object, name: str, choices: tuple[str, ...]) -> None:
    """Raises unless the named attribute of `owner` is one of `choices`."""
    value = getattr(owner, name)
    if value not in choices:
        raise ValueError(f"{type(owner).__name__}({name}={value!r}): choose one of {', '.join(map(repr, choices))}")
