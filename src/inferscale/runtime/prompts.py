"""How a prompt becomes token ids: plain, or through the tokenizer's chat template."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PromptFormat:
    """Plain text, or a user turn of a chat.

    Attributes:
        tokenizer: The tokenizer.
        chat: Whether the chat template is used.
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
