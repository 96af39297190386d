"""A page of the documentation whose tables are printed by a command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path


def fill(page: Path, parts: Mapping[str, Iterable[str]]) -> None:
    """Writes each part between its marks, ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.

    Raises:
        ValueError: If the page lacks a mark.
    """
    text = page.read_text(encoding="utf-8")
    for name, lines in parts.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in text or end not in text:
            raise ValueError(f"{page} has no {begin} ... {end}: add both marks where the {name} belong")
        inner = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
        head, tail = text.split(begin)[0], text.split(end)[1]
        text = f"{head}{begin}\n\n{inner}\n\n{end}{tail}"
    page.write_text(text, encoding="utf-8")
