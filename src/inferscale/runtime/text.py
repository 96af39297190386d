"""From prompts to token ids, and from ids to text and step ends, without encoding anything twice."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferscale.thinking import FORMS, Thinking, form_of

_PROBE = "What is 2 + 2?"
_PARTIAL = "\ufffd"  # what a decoder shows for a character whose bytes are not complete


@dataclass(frozen=True)
class PromptFormat:
    """Plain text, or a user turn of a chat.

    Attributes:
        tokenizer: The tokenizer.
        chat: True if the chat template is used.
        system_prompt: The system turn of the chat.
    """

    tokenizer: Any
    chat: bool
    system_prompt: str | None = None

    @classmethod
    def choose(cls, tokenizer: Any, chat_template: bool | None, system_prompt: str | None) -> PromptFormat:
        """The chat template where the tokenizer has one, unless told otherwise.

        Raises:
            ValueError: If a chat template is asked for (or needed by `system_prompt`) and there is none.
        """
        has_template = bool(getattr(tokenizer, "chat_template", None))
        chat = has_template if chat_template is None else chat_template
        if chat and not has_template:
            raise ValueError("chat_template=True, but this tokenizer has no chat template: set tokenizer.chat_template")
        if system_prompt is not None and not chat:
            raise ValueError("system_prompt needs a chat template: put the text into the problem's prompt instead")
        return cls(tokenizer, chat, system_prompt)

    def encode(self, prompt: str, answer: str | None = None) -> tuple[int, ...]:
        """Ids of `prompt` (and of a whole `answer`), with the special tokens that the tokenizer or its template adds.

        Raises:
            ValueError: If that gives no ids.
        """
        ids = self._chat_ids(prompt, answer) if self.chat else self.tokenizer(prompt + (answer or ""))["input_ids"]
        if not ids:
            raise ValueError(f"the prompt {prompt[:80]!r} has no tokens: nothing to continue")
        return tuple(ids)

    def thinking(self) -> Thinking | None:
        """The markers of thoughts that chat template or vocabulary show; ``None`` if neither does."""
        template = getattr(self.tokenizer, "chat_template", None) or ""
        template = template.get("default", "") if isinstance(template, dict) else template
        form = form_of(template)
        if form is None or not self.chat:
            added = self.tokenizer.get_added_vocab() if hasattr(self.tokenizer, "get_added_vocab") else ()
            return form or next((form for form in FORMS if form.start in added and form.end in added), None)
        rendered = self.tokenizer.decode(list(self.encode(_PROBE)), skip_special_tokens=False)
        return form.after(rendered[max(rendered.rfind(_PROBE), 0) :])

    def _chat_ids(self, prompt: str, answer: str | None) -> list[int]:
        options: dict[str, Any] = {}
        if "sanitize_control_tokens" in inspect.signature(self.tokenizer.apply_chat_template).parameters:
            options["sanitize_control_tokens"] = True  # a prompt must not forge turns of the chat
        else:
            prompt, answer = self._defused(prompt), answer if answer is None else self._defused(answer)
        messages = [{"role": "user", "content": prompt}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        encoded = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=answer is None, tokenize=True, return_dict=True, **options
        )
        ids: list[int] = encoded["input_ids"]
        return ids

    def _defused(self, text: str) -> str:
        """The text with a space in every control token, for versions of transformers that do not sanitise."""
        words = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
        for word in sorted(words, key=len, reverse=True):
            text = text.replace(word, f"{word[0]} {word[1:]}")
        return text


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
