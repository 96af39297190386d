"""From ids to text and step ends, without encoding anything twice."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from inferscale.thinking import Thinking

StepDelimiter: TypeAlias = str | re.Pattern[str] | Callable[[str], int | None]
"""The end of a step: a text, a regular expression, or a function from a text to the end of its first step."""

_PARTIAL = "\ufffd"  # what a decoder shows for a character whose bytes are not complete


def step_end(text: str, delimiter: StepDelimiter, start: int = 0) -> int:
    """End of the first step of `text`, its delimiter included; -1 if it does not.

    The delimiter counts at or after `start`, with a character before it that is not blank. A function is given the text
    after `start` from its first step's first character that is not blank.

    Raises:
        ValueError: If a function's answer is no place in its text.
    """
    first = len(text) - len(text.lstrip())
    if isinstance(delimiter, str):
        place = text.find(delimiter, max(first + 1, start))
        return place if place < 0 else place + len(delimiter)
    if isinstance(delimiter, re.Pattern):
        match = delimiter.search(text, max(first + 1, start))
        return -1 if match is None else match.end()
    begin = max(first, start)
    end = delimiter(text[begin:])
    if end is None or end in (-1, 0):
        return -1
    if isinstance(end, bool) or not isinstance(end, int | np.integer) or not 0 < end <= len(text) - begin:
        raise ValueError(
            f"step_delimiter returned {end!r} for a text of {len(text) - begin} characters: give the end of its first "
            "step, or None while there is none"
        )
    return begin + int(end)


def stop_place(text: str, stops: Iterable[str], start: int) -> int:
    """Where the first stop string begins in `text` that ends after `start`; -1 if there is none.

    The first is the one that is complete first, however the text is cut into tokens; of those that are complete at the
    same character, the longest.
    """
    found = [(place + len(s), place) for s in stops if (place := text.find(s, max(start - len(s) + 1, 0))) >= 0]
    return min(found)[1] if found else -1


class TokenText:
    """A tokenizer as the stepping code sees it: text of ids, step ends, stop strings, ends of sequence.

    Attributes:
        delimiter: What ends a step.
        stops: Texts that end the answer, and are left out of it.
        eos_ids: Ids that end the answer.
        thinking: The markers of thoughts that the tokenizer shows; ``None`` if it shows none.
    """

    def __init__(
        self,
        tokenizer: Any,
        delimiter: StepDelimiter,
        eos_ids: Iterable[int],
        thinking: Thinking | None = None,
        stops: Sequence[str] = (),
    ) -> None:
        self.delimiter = checked_delimiter(delimiter)
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        specials = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        marks = "" if thinking is None else thinking.start + thinking.forced_end
        hidden = [word for word in specials if word not in marks]
        if isinstance(delimiter, str) and delimiter in hidden:
            raise ValueError(
                f"step_delimiter={delimiter!r} is a special token, which never appears in text: give ordinary text"
            )
        stops = checked_stops(stops)
        # A special token never appears in text. As a stop string of its own it is found by its id.
        ids = {tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop in specials}
        self.stops = tuple(stop for stop in stops if stop not in specials)
        for stop in self.stops:
            if inside := [word for word in hidden if word in stop]:
                raise ValueError(
                    f"stop={stop!r} holds {inside[0]!r}, a special token, which never appears in text: give it alone"
                )
        self.eos_ids = frozenset(eos_ids) | ids
        self._tokenizer = tokenizer
        self.thinking = thinking
        self._unseen = hidden
        self._hidden = lru_cache(maxsize=64)(self._hidden_ids)
        self.stopping_at = lru_cache(maxsize=64)(self._stopping_at)
        self._may_end = np.full(len(tokenizer), -1, dtype=np.int8)  # 1 yes, 0 no, -1 not known yet
        # Of these characters one is in every token that completes something; None: any token may.
        self._last = {text[-1] for text in (delimiter, *self.stops)} if isinstance(delimiter, str) else None

    def _stopping_at(self, stops: tuple[str, ...]) -> TokenText:
        """The same with further stop strings; those that hold a special token beside other text never come."""
        come = [stop for stop in stops if stop in self._unseen or not any(word in stop for word in self._unseen)]
        return TokenText(self._tokenizer, self.delimiter, self.eos_ids, self.thinking, (*self.stops, *come))

    def decode(self, ids: Sequence[int], final: bool, thinking: Thinking | None = None) -> str:
        """Text of `ids`, special tokens left out, but for those that mark thoughts.

        Args:
            ids: Ids of a path from its start.
            final: True if the path ends here. If it goes on, an incomplete last character is held back: the text of
                the longer path then starts with this text.
            thinking: The markers of thoughts; by default those that the tokenizer shows.
        """
        hidden = self._hidden(thinking or self.thinking)
        if hidden is None:
            text = self.bare(ids)
        else:
            text = self._tokenizer.decode(
                [i for i in ids if i not in hidden], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return text if final else text.rstrip(_PARTIAL)

    def bare(self, ids: Sequence[int]) -> str:
        """Text of `ids` without any special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _hidden_ids(self, thinking: Thinking | None) -> frozenset[int] | None:
        """Ids of special tokens that are left out of texts, if there are some that mark thoughts and must stay."""
        if thinking is None or not thinking.end:
            return None
        special = {i: str(token) for i, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(self._tokenizer.all_special_ids, self._tokenizer.all_special_tokens, strict=True))
        marks = thinking.start + thinking.forced_end
        kept = {i for i, token in special.items() if token in marks} - self.eos_ids
        return frozenset(special.keys() - kept) if kept else None

    def may_end(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Array that is True where a step, or the answer, can end with the id, seen alone; most cannot."""
        if tokens.max(initial=-1) >= len(self._may_end):
            self._may_end = np.pad(self._may_end, (0, int(tokens.max())), constant_values=-1)
        for token in np.unique(tokens[self._may_end[tokens] < 0]).tolist():
            self._may_end[token] = token in self.eos_ids or self._may_complete(token)
        ends: NDArray[np.bool_] = self._may_end[tokens] == 1
        return ends

    def _may_complete(self, token: int) -> bool:
        """True if the step delimiter, or a stop string, can be complete after `token`."""
        if self._last is None:
            return True
        # Twice, since a decoder may strip a space at the start of what it is given.
        text = self.decode([token, token], final=True)
        return _PARTIAL in text or any(last in text for last in self._last)

    def has_step_end(self, text: str, start: int = 0) -> bool:
        """True if the delimiter stands in `text` at or after `start`, with a character before it that is not blank."""
        return step_end(text, self.delimiter, start) >= 0

    def check_delimiter(self) -> None:
        """Warn if the tokenizer loses the step delimiter, so that no step can end there."""
        if isinstance(self.delimiter, str):
            # Between two words, since a decoder may strip what stands at either end, or write what is between.
            word = [next((i for i in range(len(self._tokenizer)) if self.bare([i]).strip()), 0)]
            text = self.decode([*word, *self.encode_plain(self.delimiter), *word], final=True)
            if self.delimiter not in text:
                warnings.warn(
                    f"the tokenizer cannot write step_delimiter={self.delimiter!r}, of which it makes {text!r} between "
                    "two words: steps will end by length alone; give a delimiter that it keeps",
                    stacklevel=3,
                )

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text` on its own, without special tokens around it."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def checked_delimiter(delimiter: Any) -> StepDelimiter:
    """The step delimiter, if it is one.

    Raises:
        ValueError: If it is no text, regular expression or function, or one that would end a step at every token.
    """
    if isinstance(delimiter, re.Pattern) and isinstance(delimiter.pattern, str):
        if delimiter.search("") is not None:
            raise ValueError(f"step_delimiter={delimiter!r} matches the empty text: every token would end a step")
    elif not (isinstance(delimiter, str) and delimiter) and (not callable(delimiter) or isinstance(delimiter, type)):
        raise ValueError(
            f'step_delimiter={delimiter!r}: give the text that ends a step, for example "\\n", a compiled regular '
            "expression, or a function from a text to the end of its first step"
        )
    return delimiter  # type: ignore[no-any-return]


def checked_stops(stops: str | Sequence[str]) -> tuple[str, ...]:
    """The stop strings; one alone is a text.

    Raises:
        ValueError: If one is empty, or no text.
    """
    given = (stops,) if isinstance(stops, str) else tuple(stops)
    for stop in given:
        if not isinstance(stop, str) or not stop:
            raise ValueError(f'stop={stops!r}: give texts that end the answer, for example ["\\n\\nQuestion:"]')
    return given
