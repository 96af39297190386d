"""From a node to the ids that a reward model reads: the prompt, then every step on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from inferscale.generators.kv_store import chain_key
from inferscale.generators.prompts import PromptFormat
from inferscale.tree import Node, Step


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

    def steps(self, step: Step) -> list[tuple[int, ...]]:
        """Ids of each inner step of `step`."""
        return [self._inner(text, ids) for text, ids in step.inner_steps()]

    def _inner(self, text: str, ids: Sequence[int]) -> tuple[int, ...]:
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
class Part:
    """What one node adds to its path.

    Attributes:
        key: Name of the path up to here.
        ids: Ids read.
        marks: Places in `ids` where the model is read.
        targets: For each mark the id predicted there, for models that are asked so.
        counts: Marks of each inner step.
        ends: Whether the path ends with this node.
    """

    key: int
    ids: tuple[int, ...]
    marks: tuple[int, ...]
    targets: tuple[int, ...]
    counts: tuple[int, ...]
    ends: bool


@dataclass(frozen=True, slots=True)
class Path:
    """A node's whole path.

    Attributes:
        root: Key of its root.
        shared: Ids that all paths of the problem start with.
        parts: What each node adds, first to last.
    """

    root: int
    shared: tuple[int, ...]
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        """Number of ids."""
        return len(self.shared) + sum(len(part.ids) for part in self.parts)

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids."""
        return (*self.shared, *(i for part in self.parts for i in part.ids))

    @property
    def marks(self) -> list[int]:
        """Places in `ids` where the model is read."""
        marks, start = [], len(self.shared)
        for part in self.parts:
            marks += [start + mark for mark in part.marks]
            start += len(part.ids)
        return marks


def step_ends(node: Node, encoder: StepEncoder) -> Path:
    """The path of `node`, read at the last id of each step."""
    prompt, parts = encoder.prompt(node), []
    key = chain_key(0, prompt)
    for step_node in node.path:
        steps = _steps(step_node, encoder)
        ends = [sum(map(len, steps[: i + 1])) - 1 for i in range(len(steps))]
        ids = tuple(i for step in steps for i in step)
        key = chain_key(chain_key(key, ids), ends, kind=step_node.is_finished)
        parts.append(Part(key, ids, tuple(ends), (), (1,) * len(steps), step_node.is_finished))
    return Path(node.root.key, prompt, tuple(parts))


def predictions(node: Node, encoder: StepEncoder) -> Path:
    """The path of `node`, read where each id of its steps is predicted: one place earlier."""
    prompt = encoder.prompt(node)
    last, parts = prompt[-1], []
    key = chain_key(0, prompt[:-1])
    for step_node in node.path:
        steps = _steps(step_node, encoder)
        targets = tuple(i for step in steps for i in step)
        ids = (last, *targets[:-1]) if targets else ()
        counts = tuple(map(len, steps))
        key = chain_key(chain_key(key, targets), counts, kind=step_node.is_finished)
        parts.append(Part(key, ids, tuple(range(len(ids))), targets, counts, step_node.is_finished))
        last = targets[-1] if targets else last
    return Path(node.root.key, prompt[:-1], tuple(parts))


def _steps(node: Node, encoder: StepEncoder) -> list[tuple[int, ...]]:
    return [] if node.step is None else encoder.steps(node.step)
