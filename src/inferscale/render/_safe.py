"""Model text that can do no harm on a page: nothing invisible, nothing endless, no markup."""

from __future__ import annotations

import html
import re
import unicodedata

_MARKS_IN_A_ROW = 3
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Fillers, blanks and variation selectors, which Python counts among printable characters."""
_BETWEEN_LINES = re.compile(r"\s*\n\s*")


def visible(text: str, limit: int = 4000) -> str:
    r"""`text` with every character in sight, at most `limit` of them; still to be escaped for HTML.

    Control and format characters, lone surrogates and odd spaces become escapes such as ``\x1b`` and ``\u202e``, so
    that nothing is hidden and no text turns the direction of what follows; piles of combining marks are cut to three.
    """
    shown, pile, before = [], 0, ""
    for character in text[:limit]:
        pile = pile + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        if pile <= _MARKS_IN_A_ROW:
            shown.append(character if _is_seen(character, before) else ascii(character)[1:-1])
        before = character
    return "".join(shown) + ("…" if len(text) > limit else "")


def _is_seen(character: str, before: str) -> bool:
    if character in "\ufe0e\ufe0f":  # the style of a symbol such as a heart
        return before != "" and unicodedata.category(before) == "So"
    return character == "\n" or (character.isprintable() and not _UNSEEN.match(character))


def one_line(text: str, width: int) -> str:
    """`text` on one line of at most `width` columns (a wide character takes two)."""
    shown = _BETWEEN_LINES.sub(" ⏎ ", visible(text.strip(), 4 * width))
    if columns(shown) <= width:
        return shown
    kept, used = [], 1  # the ellipsis
    for character in shown:
        used += columns(character)
        if used > width:
            break
        kept.append(character)
    return "".join(kept).rstrip() + "…"


def columns(text: str) -> int:
    """The columns that `text` takes in a font of fixed width."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def escaped(text: str) -> str:
    """`text` for HTML: markup escaped, quotes too, and ASCII alone, so that no page's encoding can change it."""
    return html.escape(text, quote=True).encode("ascii", "xmlcharrefreplace").decode("ascii")
