"""Steps as the turns of a chat, each answered with a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .layouts import PieceEncoder
from .tokens import Ids, TextEncoder


@dataclass(frozen=True, slots=True)
class Turns:
    """Every step a user's turn of a chat, every verdict the assistant's answer, scored where it is about to answer.

    Attributes:
        first: The first turn, with ``{problem}`` and ``{step}``; later turns are the bare step.
        answer: What the assistant has answered to each earlier step.
    """

    first: str = "{problem} {step}"
    answer: str = "+"

    @property
    def tags(self) -> tuple[str, ...]:
        """Texts that a solution must not be able to write: the chat template guards them."""
        return ()

    def encoder(self, tokenizer: Any) -> PieceEncoder:
        """What encodes by this layout.

        Raises:
            ValueError: If there is no chat template, or it does not put the answer where it will be predicted.
        """
        encoder = _TurnsEncoder(self, TextEncoder(tokenizer))
        encoder.check()
        return encoder


class _TurnsEncoder:
    def __init__(self, layout: Turns, text: TextEncoder) -> None:
        self._layout = layout
        self._text = text
        self._up_to = lru_cache(maxsize=4096)(self._render)

    def shared(self, problem: str, texts: Sequence[str]) -> Ids:
        if not texts:
            return ()
        ids, common = self._up_to(problem, (texts[0].strip(),)), self._common(problem)
        return common if ids[: len(common)] == common else ()

    def pieces(self, problem: str, texts: Sequence[str]) -> list[Ids]:
        steps = tuple(text.strip() for text in texts)
        before, pieces = self.shared(problem, texts), []
        for count in range(1, len(steps) + 1):
            ids = self._up_to(problem, steps[:count])
            if ids[: len(before)] != before:
                raise ValueError("this chat template rewrites earlier turns: its scores cannot be read step by step")
            pieces.append(ids[len(before) :])
            before = ids
        return pieces

    def check(self) -> None:
        """Refuses a tokenizer whose template does not answer at the place that is read."""
        answer = self._text.one_id(self._layout.answer)
        first, second = self._up_to("a", ("b",)), self._up_to("a", ("b", "c"))
        if second[: len(first)] != first or second[len(first) : len(first) + 1] != (answer,):
            raise ValueError(
                f"this chat template does not put {self._layout.answer!r} where the assistant's turn begins: "
                "its model does not read steps as turns"
            )

    def _common(self, problem: str) -> Ids:
        """Ids that all first turns of a problem start with."""
        one, other = self._up_to(problem, ("a",)), self._up_to(problem, ("1",))
        same = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), len(one))
        return one[:same]

    def _render(self, problem: str, steps: tuple[str, ...]) -> Ids:
        messages = []
        for number, step in enumerate(steps):
            # the step comes last: nothing written in it is taken for a field
            turn = self._layout.first.replace("{problem}", problem, 1) if number == 0 else "{step}"
            head, _, tail = turn.rpartition("{step}")
            messages.append({"role": "user", "content": head + step + tail})
            messages.append({"role": "assistant", "content": self._layout.answer})
        return self._text.chat(messages[:-1], answer_follows=True)
