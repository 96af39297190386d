"""Text as token ids, in the pieces that a reward model's recipe names, so that no mark has to be searched for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

Ids = tuple[int, ...]


class TagError(ValueError):
    """A tokenizer does not have a tag as the format says."""


class TextEncoder:
    """Encodes pieces of text so that control tokens and step tags written in them stay text.

    Whoever writes ``</s>`` or a step tag into a solution gets letters, not the token.

    Attributes:
        tokenizer: The tokenizer.
        bos: The id that the tokenizer names as the beginning of sequence, or ``None``.
        specials: Ids of control tokens.
    """

    def __init__(self, tokenizer: Any, tags: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id
        self.specials = frozenset(tokenizer.all_special_ids)
        visible = [tag.strip() for tag in tags if tag.strip()]
        self._guarded = self.specials | {self.one_id(tag) for tag in tags if tag.strip()}
        self._tags = _pattern(visible)
        self._words = _pattern([*tokenizer.all_special_tokens, *visible])
        self.plain = lru_cache(maxsize=65536)(self._plain)
        self.continued = lru_cache(maxsize=65536)(self._continued)

    def _plain(self, text: str) -> Ids:
        """Ids of a text that is tokenised alone."""
        ids = self._raw(text)
        return ids if self._guarded.isdisjoint(ids) else self._as_letters(text)

    def _continued(self, text: str, after: str | None = None) -> Ids:
        """Ids that `text` has where it follows `after` in a text that is tokenised as a whole.

        Args:
            text: The text.
            after: What stands before it; by default something that merges with no text of its kind.

        Raises:
            ValueError: If the tokenizer merges the two.
        """
        if not text:
            return ()
        whole = self._after(text, [after] if after is not None else _NEUTRAL[text[0].isspace()])
        if whole is None and after is not None:
            raise ValueError(f"this tokenizer merges {after!r} with the start of {text[:40]!r}: strip the text")
        tail = self._raw(text) if whole is None else whole
        return tail if self._guarded.isdisjoint(tail) else self._as_letters(text)

    def _after(self, text: str, before: Sequence[str]) -> Ids | None:
        """Ids of `text` after the first of `before` that does not merge with it."""
        for head in before:
            start, whole = self._raw(head), self._raw(head + text)
            if whole[: len(start)] == start:
                return whole[len(start) :]
        return None

    def one_id(self, text: str) -> int:
        """The id of `text`, written as it stands in running text (``" +"`` where a space is before it).

        Raises:
            TagError: If the tokenizer splits it.
        """
        ids = self._after(text, _NEUTRAL[text[0].isspace()]) or self._raw(text)
        if len(ids) != 1:
            raise TagError(f"the tag {text!r} is {len(ids)} tokens in this tokenizer, {list(ids)}, and must be one")
        return ids[0]

    def specials_before(self) -> Ids:
        """Ids that the tokenizer puts before a text by itself."""
        plain, whole = self._raw("a"), tuple(self.tokenizer("a")["input_ids"])
        starts = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
        return whole[: starts[0]] if starts else ()

    def chat(self, messages: Sequence[Mapping[str, str]], answer_follows: bool) -> Ids:
        """Ids of a chat, up to where the assistant's turn begins if `answer_follows`.

        Raises:
            ValueError: If the tokenizer has no chat template.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError("this format is a chat, but the tokenizer has no chat template: it is another model's")
        options: dict[str, Any] = {}
        forbidden = self._tags  # an added token need not be one that transformers calls a control token
        if "sanitize_control_tokens" in inspect.signature(self.tokenizer.apply_chat_template).parameters:
            options["sanitize_control_tokens"] = True
        else:
            forbidden = self._words
        turns = [{**turn, "content": " ".join(_cut(forbidden, turn["content"]))} for turn in messages]
        encoded = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=answer_follows, tokenize=True, return_dict=True, **options
        )
        return tuple(encoded["input_ids"])

    def _raw(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def _as_letters(self, text: str) -> Ids:
        """Ids of `text` with every guarded word cut after its first letter."""
        return tuple(i for piece in _cut(self._words, text) for i in self._raw(piece))


_NEUTRAL = (("\n", "a", "."), ("a", "."))
"""Texts that tokenizers do not merge with what follows them, for what starts without and with white space."""


def _pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(set(words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _cut(pattern: re.Pattern[str] | None, text: str) -> list[str]:
    """Pieces of `text`, cut after the first letter of every match."""
    places = [] if pattern is None else [match.start() + 1 for match in pattern.finditer(text)]
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
