"""How a problem and its steps are laid out before a process reward model; data, and what encodes by it.

Every layout puts the place where a step is scored at the last id of that step's piece, and a piece never changes when
more steps follow: so whole texts and growing trees are read alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, Protocol

from inferscale.generators.kv_store import chain_key
from inferscale.tree import Node

from .paths import Part, Path
from .tokens import Ids, TextEncoder

_NUMBERED = re.compile(r"Step \d+:")


class PieceEncoder(Protocol):
    """Gives the ids of a problem and of its steps."""

    def shared(self, problem: str, texts: Sequence[str]) -> Ids:
        """Ids before the first step's piece."""
        ...

    def pieces(self, problem: str, texts: Sequence[str]) -> list[Ids]:
        """Ids of each step; the last one is where its score is read."""
        ...


@dataclass(frozen=True, slots=True)
class PlainPrompt:
    """The problem as text.

    Attributes:
        template: Text with ``{problem}``.
        bos: Which ids come first: those that the ``"tokenizer"`` adds by itself, the beginning of sequence if there
            is one (``"always"``), or none (``"never"``).
    """

    template: str = "{problem}"
    bos: Literal["tokenizer", "always", "never"] = "tokenizer"

    def ids(self, problem: str, text: TextEncoder) -> Ids:
        """Ids of the prompt."""
        before: Ids = text.specials_before() if self.bos == "tokenizer" else ()
        if self.bos == "always" and text.bos is not None:
            before = (text.bos,)
        return before + text.plain(self.template.replace("{problem}", problem))


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The problem as the user's turn of the tokenizer's chat template; the steps are the assistant's turn.

    Attributes:
        system: The system's turn.
    """

    system: str | None = None

    def ids(self, problem: str, text: TextEncoder) -> Ids:
        """Ids up to where the assistant's turn begins."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        return text.chat([*messages, {"role": "user", "content": problem}], answer_follows=True)


@dataclass(frozen=True, slots=True)
class RunningText:
    """Steps as a text after the prompt, each ended by a separator at whose last id it is scored.

    Attributes:
        prompt: What comes before.
        step: Text of a step, with ``{step}`` and perhaps ``{number}`` (from 1); the solution's own "Step 3:" stays.
        separator: Text after every step, the last one included.
        lead: Text between the prompt and the first step.
        join: Text between a separator and the next step.
        alone: Whether step and separator are each tokenised alone; else they have the ids of one running text.
        one_id: Whether the separator must be one token.
    """

    prompt: PlainPrompt | ChatPrompt = PlainPrompt()
    step: str = "{step}"
    separator: str = "\n"
    lead: str = ""
    join: str = ""
    alone: bool = False
    one_id: bool = True

    @property
    def tags(self) -> tuple[str, ...]:
        """Texts that a solution must not be able to write."""
        return (self.separator,) if self.one_id else ()

    def encoder(self, tokenizer: Any) -> PieceEncoder:
        """What encodes by this layout.

        Raises:
            TagError: If the separator must be one token and is not.
        """
        return _RunningTextEncoder(self, TextEncoder(tokenizer, self.tags))


class _RunningTextEncoder:
    def __init__(self, layout: RunningText, text: TextEncoder) -> None:
        self._layout = layout
        self._text = text
        self._separator: Ids = (text.one_id(layout.separator),) if layout.one_id else text.plain(layout.separator)
        self._prompt = lru_cache(maxsize=4096)(lambda problem: layout.prompt.ids(problem, text))

    def shared(self, problem: str, texts: Sequence[str]) -> Ids:
        return self._prompt(problem)

    def pieces(self, problem: str, texts: Sequence[str]) -> list[Ids]:
        return [self._piece(number, text.strip()) for number, text in enumerate(texts, 1)]

    def _piece(self, number: int, step: str) -> Ids:
        layout = self._layout
        template = "{step}" if _NUMBERED.match(step) and "{number}" in layout.step else layout.step
        # the step comes last: nothing written in it is taken for a field
        body = template.replace("{number}", str(number)).replace("{step}", step)
        body = (layout.lead if number == 1 else layout.join) + body
        if layout.alone:
            return self._text.plain(body) + self._separator
        after = None if number == 1 else layout.separator
        return self._text.continued(body, after) + self._separator


def step_path(node: Node, encoder: PieceEncoder) -> Path:
    """The path of `node` as the encoder lays it out, read at the last id of each step's piece."""
    problem = node.problem.prompt
    texts = [text for text, _ in node.inner_steps()]
    pieces, parts = iter(encoder.pieces(problem, texts)), []
    shared = encoder.shared(problem, texts)
    key = chain_key(0, shared)
    for place in node.path:
        own = [next(pieces) for _ in place.step.inner_steps()] if place.step is not None else []
        ends = tuple(end - 1 for end in accumulate(map(len, own)))
        ids = tuple(i for piece in own for i in piece)
        key = chain_key(chain_key(key, ids), ends, kind=place.is_finished)
        parts.append(Part(key, ids, ends, (), (1,) * len(own), place.is_finished))
    return Path(node.root.key, shared, tuple(parts))
