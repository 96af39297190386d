"""From a node to the ids that a reward model reads: the prompt, then every step on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from inferscale.generators.prompts import PromptFormat
from inferscale.tree import Node


class StepEncoder:
    """Encodes the prompt once and each step on its own, so that ids of a longer path start with those of its prefix.

    A text that is encoded as a whole can get other ids at its step ends: with a Qwen-style tokenizer that happens at
    two of three.

    Attributes:
        separator: Text that ends every encoded step; a step that does not end with it gets it.
        use_token_ids: Whether the steps' own ids are used (the generator has the same tokenizer).
    """

    def __init__(self, tokenizer: Any, prompts: PromptFormat, separator: str | None, use_token_ids: bool) -> None:
        self.separator = separator
        self.use_token_ids = use_token_ids
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._prompt = lru_cache(maxsize=4096)(prompts.encode)
        self._plain = lru_cache(maxsize=65536)(self._encode_plain)

    def prompt(self, node: Node) -> tuple[int, ...]:
        """Ids of the problem's prompt."""
        return self._prompt(node.problem.prompt)

    def steps(self, node: Node) -> list[tuple[int, ...]]:
        """Ids of each of ``node.inner_steps()``."""
        return [self._step(text, ids) for text, ids in node.inner_steps()]

    def _step(self, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        end = self._plain(self.separator) if self.separator else ()
        if not self.use_token_ids:
            body = text.removesuffix(self.separator).rstrip() if self.separator else text
            return self._plain(body) + end
        if not ids:
            raise ValueError(f"use_token_ids=True, but the step {text[:60]!r} carries no ids: pass use_token_ids=False")
        kept = tuple(ids)
        while kept and kept[-1] in self._special:  # the end of sequence belongs to no step
            kept = kept[:-1]
        return kept if self.separator and text.endswith(self.separator) else kept + end

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class Ends:
    """A path's ids.

    Attributes:
        ids: Prompt and steps.
        prompt: Number of prompt ids.
        ends: Position after the last id of each step.
    """

    ids: tuple[int, ...]
    prompt: int
    ends: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, encoder: StepEncoder) -> Ends:
        """The whole path of `node`."""
        ids, ends = list(encoder.prompt(node)), []
        prompt = len(ids)
        for step in encoder.steps(node):
            ids += step
            ends.append(len(ids))
        return cls(tuple(ids), prompt, tuple(ends))
