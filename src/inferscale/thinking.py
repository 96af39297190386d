"""Which part of a completion is thoughts, and which is the final one that answers (standard library only)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

_HARMONY_TURN = "<|end|><|start|>assistant"  # between two channels of one answer


@dataclass(frozen=True, slots=True)
class Thinking:
    r"""The markers that a model writes around its thoughts: the one setting that readers, rewards and strategies share.

    The final part is what follows the last end of thinking. A text that ends in the middle of its first thoughts has
    none; one without markers is all final, unless it began inside thoughts. An end that no start stands before closes
    thoughts that began with the text, as where the prompt holds the start.

    Attributes:
        start: The text that begins thoughts.
        end: The text that ends them; ``""`` says that the model does not think, and everything is final.
        prefilled: True if the prompt ends inside thoughts, so that a completion begins in the middle of them.

    Raises:
        TypeError: If a marker is no text.
        ValueError: If the markers are alike, or there is a start and no end.

    Example:
        >>> from inferscale import Thinking
        >>> Thinking().split(r"<think>Is it \boxed{12}? No: 3*5.</think>The answer is 15.")
        ('Is it \\boxed{12}? No: 3*5.', 'The answer is 15.')
        >>> Thinking(prefilled=True).split("Is it 12?")
        ('Is it 12?', None)
    """

    start: str = "<think>"
    end: str = "</think>"
    prefilled: bool = False

    def __post_init__(self) -> None:
        """Refuse markers that mark nothing."""
        for name, value in (("start", self.start), ("end", self.end)):
            if not isinstance(value, str):
                raise TypeError(f'Thinking({name}={value!r:.80}): give the text of the marker, such as "</think>"')
        if not self.end and (self.start or self.prefilled):
            raise ValueError(f'Thinking(start={self.start!r}, end=""): say what ends the thoughts, or start="" too')
        if self.end and self.start == self.end:
            raise ValueError(f"Thinking(start={self.start!r}, end={self.end!r}): start and end must differ")

    @property
    def is_harmony(self) -> bool:
        """True if thoughts are a channel of an answer that goes on in others, as gpt-oss writes them."""
        return self.end.startswith("<|channel|>")

    @property
    def forced_end(self) -> str:
        """The text that ends thoughts where a search forces their end."""
        return _HARMONY_TURN + self.end if self.is_harmony else self.end

    def end_in(self, text: str, start: int = 0) -> int:
        """Return where the thoughts end before the first end marker at or after `start`; -1 if there is none."""
        if not self.end:
            return -1
        match = next((m for m in _markers(self).finditer(text, start) if m.lastgroup == "end"), None)
        return -1 if match is None else match.start()

    def pieces(self, text: str) -> Iterator[tuple[bool, int, int]]:
        """Yield what `text` is made of, in order: whether it is thoughts, its start and its end, markers left out."""
        inside, position = self.prefilled, 0
        for match in _markers(self).finditer(text) if self.end else ():
            if match.lastgroup == "end":  # what stands before it was thoughts, whether or not their start was seen
                yield True, position, match.start()
            elif inside and text[position : match.start()].strip():
                continue  # a start within thoughts is a part of them
            elif not inside:
                yield False, position, match.start()
            inside, position = match.lastgroup == "start", match.end()
        yield inside, position, len(text)

    def final_pieces(self, text: str) -> list[tuple[int, int]]:
        """Return the pieces that answer: those outside of thoughts, after the first of them, that are not blank.

        Blank lines at their start are left out. A text that has left thinking and said nothing has an empty one; one
        that has not left it has none; one without thoughts is one whole.
        """
        pieces, found, left = list(self.pieces(text)), [], False
        for is_thought, start, end in pieces:
            if not is_thought and text[start:end].strip() and left:
                blank = len(text[start:end]) - len(text[start:end].lstrip())
                line = text.rfind("\n", start, start + blank)  # the indentation of a first line of code stays
                found.append((start + blank if line < 0 else line + 1, end))
            left = left or is_thought
        if not left:
            return [(0, len(text))]
        is_thought, _, end = pieces[-1]
        return found if found or is_thought else [(end, end)]

    def thoughts(self, text: str) -> str:
        """Return the thoughts alone; those of several blocks on lines of their own."""
        return "\n".join(text[start:end] for is_thought, start, end in self.pieces(text) if is_thought)

    def split(self, text: str) -> tuple[str, str | None]:
        """Return the thoughts and the final part, which is ``None`` if thinking never ended."""
        finals = self.final_pieces(text)
        return self.thoughts(text), text[slice(*finals[-1])] if finals else None

    def after(self, text: str) -> Thinking:
        """Return this setting for what follows `text`, the beginning of an answer, which may have opened thoughts."""
        *_, (is_open, _, _) = replace(self, prefilled=False).pieces(text)
        return replace(self, prefilled=is_open)

    def for_prompt(self, prompt: str) -> Thinking:
        """Return this setting for a prompt that may end with the start of thoughts."""
        ends_inside = bool(self.start) and prompt.rstrip().endswith(self.start)
        return replace(self, prefilled=True) if ends_inside else self


NO_THINKING = Thinking("", "")
"""The setting of a model that does not think: everything is final.

Example:
    >>> import inferscale as isc
    >>> from inferscale.thinking import NO_THINKING
    >>> NO_THINKING.split("The answer is 7.")
    ('', 'The answer is 7.')
    >>> solver = isc.Solver(isc.Greedy(), isc.testing.ToyGenerator(), thinking=False)
    >>> solver.markers == NO_THINKING
    True
"""

FORMS = (
    Thinking(),  # DeepSeek, Qwen, GLM, Nemotron, Phi, SmolLM3, ...
    Thinking("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss (harmony)
    Thinking("[THINK]", "[/THINK]"),  # Magistral
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    Thinking("<seed:think>", "</seed:think>"),  # Seed-OSS
    Thinking("<|channel>thought", "<channel|>"),  # Gemma 4
    Thinking("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    Thinking("<|im_start|>think", "<|im_start|>answer"),  # s1
    Thinking("◁think▷", "◁/think▷"),  # Kimi
    Thinking("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Thinking("<thought>", "</thought>"),
    Thinking("<thinking>", "</thinking>"),
    Thinking("<reasoning>", "</reasoning>"),
)
"""The markers that public models write.

Example:
    >>> from inferscale.thinking import FORMS
    >>> text = "[THINK]3 and 4.[/THINK]The answer is 7."
    >>> [form.split(text) for form in FORMS if form.end in text]
    [('3 and 4.', 'The answer is 7.')]
"""


def form_of(text: str) -> Thinking | None:
    """Return the public form whose marker comes first in `text`: in a completion or a chat template.

    Example:
        >>> from inferscale.thinking import form_of
        >>> form_of("[THINK]3 and 4.[/THINK]The answer is 7.")
        Thinking(start='[THINK]', end='[/THINK]', prefilled=False)
        >>> form_of("The answer is 7.") is None
        True
    """
    found = [(place, form) for form in FORMS for mark in (form.start, form.end) if (place := text.find(mark)) >= 0]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def thinking_in(text: str, thinking: Thinking | None) -> Thinking:
    """Return `thinking`, or where it is not known the form that a completion shows.

    Example:
        >>> from inferscale import Thinking
        >>> from inferscale.thinking import thinking_in
        >>> thinking_in("[THINK]3 and 4.[/THINK]7", None)
        Thinking(start='[THINK]', end='[/THINK]', prefilled=False)
        >>> thinking_in("<think>3 and 4.</think>7", Thinking("<reason>", "</reason>"))  # what was said counts
        Thinking(start='<reason>', end='</reason>', prefilled=False)
    """
    return thinking or form_of(text) or NO_THINKING


def thinking_for(prompt: str, prefill: str, thinking: Thinking | None) -> Thinking | None:
    r"""Return the setting for one problem; ``None`` where nothing tells.

    Args:
        prompt: Its prompt, which may end with the start of thoughts.
        prefill: The assistant's turn that is gone on with, which may end inside or after thoughts; "" if there is none.
        thinking: The setting of the search.

    Example:
        >>> from inferscale import Thinking
        >>> from inferscale.thinking import thinking_for
        >>> thinking_for("How many?<think>\n", "", Thinking())  # the prompt opens thoughts
        Thinking(start='<think>', end='</think>', prefilled=True)
        >>> thinking_for("How many?", "<think>3 and 4.</think>So", Thinking())  # the answer's beginning has closed them
        Thinking(start='<think>', end='</think>', prefilled=False)
    """
    if prefill:
        form = thinking or form_of(prefill)
        return None if form is None else form.after(prefill)
    if thinking is not None:
        return thinking.for_prompt(prompt)
    told = (form.for_prompt(prompt) for form in FORMS)
    return next((form for form in told if form.prefilled), None)


@lru_cache(maxsize=256)
def _markers(thinking: Thinking) -> re.Pattern[str]:
    """The pattern of start and end; groups are named after them."""
    # In harmony a channel is ended by the tokens of a new turn, which some decoders leave out.
    turn = r"(?:<\|end\|>)?(?:<\|start\|>)?(?:assistant)?" if thinking.is_harmony else ""
    marks = {"start": thinking.start, "end": thinking.end}
    longest_first = sorted((name for name in marks if marks[name]), key=lambda name: -len(marks[name]))
    return re.compile("|".join(f"(?P<{name}>{turn}{re.escape(marks[name])})" for name in longest_first))


__all__ = ["FORMS", "NO_THINKING", "Thinking", "form_of", "thinking_for", "thinking_in"]
