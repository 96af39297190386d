"""The tokenizer of a model that a server runs: prompts as ids, and counts where the server gives none."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ._remote_replies import Choice
from ._remote_server import Prefix
from .prompts import PromptFormat
from .text import TokenText


@dataclass(frozen=True)
class Reading:
    """What a tokenizer is needed for.

    Attributes:
        text: Text of ids, step ends.
        chat: Whether prompts go through its chat template.
        encode: Ids of a prompt.
    """

    text: TokenText
    chat: bool
    encode: Callable[[str], tuple[int, ...]]

    @classmethod
    def of(cls, tokenizer: Any, delimiter: str, chat_template: bool | None, system_prompt: str | None) -> Reading:
        """By a tokenizer, or a folder or hub id to load it from."""
        if isinstance(tokenizer, str | os.PathLike):
            from .loading import load_tokenizer

            tokenizer = load_tokenizer(tokenizer, tokenizer)
        end = tokenizer.eos_token_id
        text = TokenText(tokenizer, delimiter, () if end is None else (end,))
        prompts = PromptFormat.choose(tokenizer, chat_template, system_prompt)
        return cls(text, prompts.chat, lru_cache(maxsize=4096)(prompts.encode))

    def count(self, prefix: Prefix) -> int:
        """Tokens of a prefix."""
        if prefix.ids is not None:
            return len(prefix.ids)
        answer = self.text.encode_plain(prefix.answer) if prefix.answer else []
        return len(self.encode(prefix.prompt)) + len(answer)

    def count_sampled(self, choice: Choice) -> int:
        """Tokens of a sample; a stop string or an end of sequence that its text does not show counts as one."""
        unseen = choice.finish == "stop" and self.text.delimiter not in choice.text
        return len(self.text.encode_plain(choice.text)) + unseen
