"""Reading an answer out of a completion."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import TypeVar

from ._comparing import CURRENCY, MAX_ANSWER_CHARS

T = TypeVar("T")

_MAX_CANDIDATES = 64  # of one kind that are looked at, last ones first

_PHRASE = re.compile(
    r"(?<![/\w])answer[*_]*(?:\s+(?:to|for|of)\s[^.\n:=]{1,80}?)?\s*(?:\bis\b|:)(?!\s+(?:not|in)\b)[\s:=*_]*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_INLINE_MATH = re.compile(r"\$(?!\s)([^$]*[^$\s])\$(?!\d)|\\\((.+?)\\\)")
_LINKED = re.compile(r".*\b(?:is|are|was|were|equals)\s+([-+\u2212$€£¥₹\\]*[\d.\\].*|\$.*)", re.DOTALL)
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}")
_CHOICE = re.compile(r"\(?([A-Z])\)(?=\s|$)")
_MAGNITUDE = r"(?:\s+(?:thousand|million|billion|trillion|percent)\b)?"
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])[-+\u2212]\s?)?"  # a sign, not a subtraction
    rf"[{CURRENCY}]?(?:(?<=[{CURRENCY}])[-\u2212])?"
    r"(?:\\[dt]?frac\{-?\d+\}\{-?\d+\}"
    rf"|(?<![A-Za-z_\d.])(?:\d+(?:,\d{{3}})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+\b)?(?:[/:]\d+(?:\.\d+)?)*"
    rf"(?!\d|(?:st|nd|rd|th)\b)(?:\\?%)?{_MAGNITUDE})"
)


def extract_answer(text: str) -> str | None:
    r"""The answer that `text` gives, or ``None`` if it gives none.

    Looked for in this order, the last match of a kind counting: ``\boxed{...}`` with balanced braces; after "the
    answer is" and its like ("the answer to the question is", "Final answer:"); after ``####``; else the last number.
    Where a sentence follows instead of a bare answer, its first number is taken, or what follows its only "=".

    Args:
        text: The completion alone. With the prompt before it, "The answer is" of the question would count.

    Returns:
        The answer as written, without markup, at most `MAX_ANSWER_CHARS` long; not yet normalised.
    """
    text = re.sub(r"<<[^<>]*>>", "", text)  # GSM8K's calculator marks
    for candidates in (_boxed, _after_phrase, _after_hashes, _numbers):
        for candidate in candidates(text):
            answer = candidate.strip()
            if answer and len(answer) <= MAX_ANSWER_CHARS:
                return answer
    return None


def _last(matches: Iterator[T]) -> Iterator[T]:
    """The last `_MAX_CANDIDATES`, last one first."""
    return reversed(deque(matches, maxlen=_MAX_CANDIDATES))


def _boxed(text: str) -> Iterator[str]:
    r"""Contents of ``\boxed{...}``, last one first."""
    for match in _last(re.finditer(r"\\f?boxed\s*(?:\{|([^\s{}$\\]+))", text)):
        if match[1] is not None:
            yield match[1].rstrip(".,;")
            continue
        content = _balanced(text, match.end())
        if content is not None:
            yield content


def _balanced(text: str, start: int) -> str | None:
    """The text from `start`, just after a brace, up to the one that closes it."""
    depth, position = 1, start
    stop = min(len(text), start + 2 * MAX_ANSWER_CHARS)
    while position < stop:
        character = text[position]
        if character == "\\":
            position += 1  # an escaped brace is text
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[start:position]
        position += 1
    return None


def _after_phrase(text: str) -> Iterator[str]:
    """What follows "the answer is", last one first."""
    for match in _last(_PHRASE.finditer(text)):
        yield _bare(text[match.end() : match.end() + 2 * MAX_ANSWER_CHARS])


def _after_hashes(text: str) -> Iterator[str]:
    """What follows ``####``, last one first."""
    for part in _last(iter(text.split("####")[1:])):
        yield _bare(part[: 2 * MAX_ANSWER_CHARS])


def _numbers(text: str) -> Iterator[str]:
    """The last number."""
    last = ""
    for match in _NUMBER.finditer(text):
        last = match[0]
    yield last.lstrip(CURRENCY)


def _bare(text: str) -> str:
    """The answer at the start of `text`, without the sentence around it."""
    sentence = _SENTENCE_END.split(text.lstrip(), maxsplit=1)[0]
    sentence = sentence.strip().strip("*_`\"'“”").rstrip(".,;:!?")
    linked = _LINKED.search(sentence)
    if linked is not None:
        sentence = linked[1]
    math = _INLINE_MATH.match(sentence) or (_INLINE_MATH.search(sentence) if _WORD.search(sentence) else None)
    if math is not None:
        sentence = (math[1] or math[2]).strip(".,; ")
    _, equals, right = sentence.partition("=")
    if equals and "=" not in right and ("," not in sentence or _NUMBER.fullmatch(right.strip())):
        return right.strip()
    if not _WORD.search(sentence):
        return sentence
    choice = _CHOICE.match(sentence)
    if choice is not None:
        return choice[1]
    number = _NUMBER.search(sentence)
    return sentence if number is None else number[0].lstrip(CURRENCY)
