"""Fields of a JSON object, each checked; a dotted name is that of the last part, within what the client sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .errors import bad_field


def says_nothing(value: object) -> bool:
    """Whether a field might as well be left out."""
    return value is None or value is False or value in ("", [], {})


def an_object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object of that name, or an empty one."""
    value = _get(body, name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_field(name, f"give an object, not {value!r:.40}")
    return value


def an_integer(body: Mapping[str, Any], name: str, default: int | None, least: int | None = 1) -> int | None:
    """The whole number of that name."""
    value = _get(body, name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        raise bad_field(name, "give a whole number" + ("" if least is None else f", {least} or more"))
    return value


def a_number(body: Mapping[str, Any], name: str) -> float | None:
    """The positive number of that name."""
    value = _get(body, name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise bad_field(name, f"give a number greater than 0, not {value!r:.40}")
    return value


def a_text(body: Mapping[str, Any], name: str, default: str | None) -> str | None:
    """The text of that name."""
    value = _get(body, name)
    if value is None:
        return default
    if not isinstance(value, str) or not value:
        raise bad_field(name, f"give a text, not {value!r:.40}")
    return value


def a_flag(body: Mapping[str, Any], name: str) -> bool:
    """Whether the field of that name is true."""
    value = _get(body, name)
    if value is not None and not isinstance(value, bool):
        raise bad_field(name, f"give true or false, not {value!r:.40}")
    return bool(value)


def texts(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The text or the list of texts of that name, without empty ones."""
    value = _get(body, name)
    given = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in given):
        raise bad_field(name, "give a text or a list of texts")
    return tuple(text for text in given if text)


def check_known(body: Mapping[str, Any], name: str, known: frozenset[str]) -> None:
    """Refuses what is not known in the object of that name: a misspelt wish would be passed over."""
    if unknown := sorted(set(body) - known):
        raise bad_field(f"{name}.{unknown[0]}", f"there is no such field: choose from {', '.join(sorted(known))}")


def _get(body: Mapping[str, Any], name: str) -> Any:
    return body.get(name.rpartition(".")[2])
