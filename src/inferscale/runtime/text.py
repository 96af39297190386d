"""From ids to text and step ends, without encoding anything twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferscale.thinking import Thinking

_PARTIAL = "\ufffd"  # what a decoder shows for a character whose bytes are not complete


def step_end(text: str, delimiter: str, start: int = 0) -> int:
    """End of the first step of `text`, its delimiter included; -1 if it does not.

    The delimiter counts at or after `start`, with a character before it that is not blank.
    """
    first = len(text) - len(text.lstrip())
    place = text.find(delimiter, max(first + 1, start))
    return place if place < 0 else place + len(delimiter)


class TokenText:
    """A tokenizer as the stepping code sees it: text of ids, step ends, ends of sequence.

    Attributes:
        delimiter: The text that ends a step.
        eos_ids: Ids that end the answer.
        thinking: The markers of thoughts that the tokenizer shows; ``None`` if it shows none.
    """

    def __init__(
        self, tokenizer: Any, delimiter: str, eos_ids: Iterable[int], thinking: Thinking | None = None
    ) -> None:
        if not isinstance(delimiter, str) or not delimiter:
            raise ValueError(f'step_delimiter={delimiter!r}: give the text that ends a step, for example "\\n"')
        if delimiter in tokenizer.all_special_tokens:
            raise ValueError(
                f"step_delimiter={delimiter!r} is a special token, which never appears in text: give ordinary text"
            )
        self.delimiter = delimiter
        self.eos_ids = frozenset(eos_ids)
        self._tokenizer = tokenizer
        self.thinking = thinking
        self._hidden = lru_cache(maxsize=64)(self._hidden_ids)
        self._may_end = np.full(len(tokenizer), -1, dtype=np.int8)  # 1 yes, 0 no, -1 not known yet

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
        """True if the step delimiter can be complete after `token`."""
        # A decoder may strip a space at the start of what it is given, so a final space cannot be ruled out.
        text = self.decode([token], final=True)
        return self.delimiter[-1] in text or _PARTIAL in text or self.delimiter[-1] == " "

    def has_step_end(self, text: str, start: int = 0) -> bool:
        """True if the delimiter stands in `text` at or after `start`, with a character before it that is not blank."""
        return step_end(text, self.delimiter, start) >= 0

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text` on its own, without special tokens around it."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
