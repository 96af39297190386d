"""Answers in texts: how they are read, their normal form, and when two are the same (standard library only)."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TypeVar

MAX_ANSWER_CHARS = 512
"""Longer texts are not taken for answers by `extract_answer` and not rewritten by `normalize_answer`."""

CURRENCY = "$€£¥₹"
_MAX_LAYERS = 8  # of markup around markup
_MAX_EXPONENT = 308  # of scientific notation; beyond, a number stays a text
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"  # 1,250 or 1250
_DECIMAL = rf"(?:{_PLAIN}(?:\.\d*)?|\.\d+)"

# Commands around an answer; a box after a number holds its unit.
_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathbb|mbox|boxed|fbox|operatorname)\s*\{([^{}]*)\}"
)
_UNIT_BOX = re.compile(r"(?<=[\d}.])\s*\\(?:text|textrm|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?$")
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad\b|~|[\u00a0\u2009\u202f]")

# Numbers: sign, whole part and signed numerator and denominator of \frac; x 10^n; decimal, exponent, divisor and what
# follows; whole part and fraction of a mixed number and what follows.
_FRACTION = re.compile(rf"([-+]?)(\d*)\s*\\frac\{{([-+]?)({_DECIMAL})\}}\{{([-+]?)({_DECIMAL})\}}(?!\.?\d)")
_POWER_OF_TEN = re.compile(r"\s*(?:\\times|\\cdot|\*|×|·|x)\s*10\s*\^\s*(?:\{([-+]?\d+)\}|([-+]?\d+))")
_SCALED = re.compile(
    rf"([-+]?)\s*({_DECIMAL})(?:e([-+]?\d+))?(?:\s*/\s*([-+]?)\s*({_DECIMAL}))?(?![\d.,/:^])(.*)", re.IGNORECASE
)
_MIXED = re.compile(r"([-+]?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.,/:^])(.*)")

# Units: signs, short names written to the number, or one to four words, the first of two letters or more.
_NOT_UNITS = (  # words that make a formula, a time or a sentence of what follows a number
    r"(?:pi|and|or|to|times|plus|minus|over|choose|mod|sqrt|sin|cos|tan|log|ln|exp|am|pm|a\.m|p\.m|o'clock"
    r"|is|are|was|were|has|have|can|cannot|could|does|did|not|no|if|than|but|because|with|from)\b"
)
_UNIT = re.compile(
    r"\s*(?:\\?%|°|[€£¥₹$]|[kcm]m|[km]g|ml|km/h|mph|ft|lbs?|oz|hrs?|mins?|secs?"
    rf"|(?=\s+[a-z]{{2}})(?:\s+(?!{_NOT_UNITS})[a-z][a-z.'/-]*){{1,4}})(?:\^\{{?[23]\}}?|[²³])?\.?",
    re.IGNORECASE,
)
_SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def same_answer(first: str, second: str) -> bool:
    """True if two answers have one normal form: an equivalence relation, so groups do not depend on the order."""
    return first == second or normalize_answer(first) == normalize_answer(second)


def normalize_answer(answer: str) -> str:
    r"""The normal form of `answer`: a number as an exact one, any other text without markup.

    Numbers lose thousands commas, currency, leading and trailing zeros and units of up to four words:
    ``"$1,250.50"`` is ``"1250.5"``, ``"5 apples"`` is ``"5"``, ``"\frac{2}{4}"`` is ``"0.5"``, ``"2/6"`` is ``"1/3"``.
    A percent sign is a unit, as in the golds of GSM8K and MATH: ``"5%"`` is ``"5"`` and ``"10%"`` is not ``"0.1"``.
    There is no tolerance (it would not be transitive): ``"0.33"`` is not ``"1/3"``. Exponents beyond 308 are texts.

    Other texts lose LaTeX markup, a leading ``x =``, outer parentheses around one item, spaces beside punctuation
    and letter case. Texts beyond `MAX_ANSWER_CHARS` characters come back as they are.
    """
    return _normalize(answer) if len(answer) <= MAX_ANSWER_CHARS else answer


def parse_number(answer: str) -> Fraction | None:
    """The exact number that `answer` is, read as `normalize_answer` does; ``None`` if it is not one."""
    return _number(_without_markup(answer)) if len(answer) <= MAX_ANSWER_CHARS else None


@lru_cache(maxsize=16384)
def _normalize(answer: str) -> str:
    text = _without_markup(answer)
    number = _number(text)
    if number is None:
        text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text.replace("∞", r"\infty"))
        text = re.sub(r"\s*([^\w\s])\s*", r"\1", re.sub(r"\s+", " ", text))
        return text if "\\" in text else text.casefold()
    # A decimal if the denominator is 2^a 5^b, else a fraction in lowest terms.
    twos = (number.denominator & -number.denominator).bit_length() - 1
    rest, fives = number.denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"{number.numerator}/{number.denominator}"
    places = max(twos, fives)
    digits = str(abs(number.numerator) * 10**places // number.denominator).rjust(places + 1, "0")
    sign = "-" if number < 0 else ""
    return sign + (digits if not places else f"{digits[:-places]}.{digits[-places:]}")


def _without_markup(answer: str) -> str:
    """`answer` in ASCII digits, without LaTeX and Markdown around it, layer by layer."""
    text, before = "".join(map(_ascii, answer)), None
    for _ in range(_MAX_LAYERS):
        if text == before:
            break
        before = text
        text = text.strip().strip("*_`\"'“”").strip()
        text = _SPACES.sub(lambda match: "" if match[0] in (r"\,", r"\!") else " ", text)
        text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle", "", text)
        # $...$ and \(...\) around the whole; a dollar before a digit is money
        text = re.sub(r"^\\[(\[]|\\[)\]]$", "", re.sub(r"(?<!\\)\$(?!\d)|\\(?=\$)", "", text)).strip()
        text = re.sub(r"\\[dtc]frac", r"\\frac", text.replace("{,}", ",").replace(r"\%", "%"))
        text = re.sub(r"\s*\^\{?\\circ\}?|\\degree", "°", text)
        text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
        text = _WRAPPERS.sub(r" \1 ", _UNIT_BOX.sub("", text)).strip()
        text = re.sub(r"^[A-Za-z]\s*=(?!=)\s*", "", text.rstrip(".,;:? ")).strip()
        inside = re.fullmatch(r"\(([^(),]*)\)", text)
        text = text if inside is None else inside[1].strip()
    return text


def _ascii(character: str) -> str:
    """Digits, minus signs and full-width forms in ASCII; superscripts stay what they are."""
    if character.isascii():
        return character
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.decimal(character))
    if character in "\u2212\u2010\u2011\u2012\u2013\ufe63":
        return "-"
    return chr(ord(character) - 0xFEE0) if "\uff01" <= character <= "\uff5e" else character


def _number(text: str) -> Fraction | None:
    """The number that `text` is, unit included."""
    text = re.sub(rf"^([-+]?)\s*[{CURRENCY}]\s*", r"\1", text)
    text = re.sub(r"^10\s*\^", "1*10^", text)
    text = _POWER_OF_TEN.sub(lambda match: f"e{match[1] or match[2]}", text, count=1)
    text = _FRACTION.sub(_plain_fraction, text, count=1)
    mixed = _MIXED.fullmatch(text)
    if mixed is not None and int(mixed[3]) < int(mixed[4]):
        value = int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
        return _with_unit(-value if mixed[1] == "-" else value, mixed[5])
    match = _SCALED.fullmatch(text)
    if match is None:
        return None
    sign, digits, exponent, divisor_sign, divisor, rest = match.groups()
    value = _decimal(digits)
    if exponent is not None:
        if len(exponent) > 4 or abs(int(exponent)) > _MAX_EXPONENT:
            return None
        value *= Fraction(10) ** int(exponent)
    if divisor is not None:
        if _decimal(divisor) == 0:
            return None
        value /= _decimal(divisor)
    return _with_unit(-value if (sign == "-") != (divisor_sign == "-") else value, rest)


def _plain_fraction(match: re.Match[str]) -> str:
    r"""``3\frac{1}{2}`` as ``3 1/2``."""
    sign, whole, top_sign, top, bottom_sign, bottom = match.groups()
    negative = [sign, top_sign, bottom_sign].count("-") % 2 == 1
    return f"{'-' if negative else ''}{whole} {top}/{bottom}" if whole else f"{'-' if negative else ''}{top}/{bottom}"


def _decimal(digits: str) -> Fraction:
    return Fraction("0" + digits.replace(",", "").rstrip("."))


def _with_unit(value: Fraction, rest: str) -> Fraction | None:
    """`value` if `rest` is nothing or a unit, times a word such as "million"; else ``None``."""
    word = re.match(r"\s*([a-z]+)\b", rest, re.IGNORECASE)
    if word is not None and word[1].lower() in _SCALE:
        value, rest = value * _SCALE[word[1].lower()], rest[word.end() :]
    return value if not rest.strip() or _UNIT.fullmatch(rest) else None


T = TypeVar("T")

_MAX_CANDIDATES = 64  # of one kind that are looked at, last ones first

# "answer is", "answer:", "answer to the question is", not "answer is not": the bare answer or a sentence follows.
_PHRASE = re.compile(
    r"(?<![/\w])answer[*_]*(?:\s+(?:to|for|of)\s[^.\n:=]{1,80}?)?\s*(?:\bis\b|:)(?!\s+(?:not|in)\b)[\s:=*_]*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_INLINE_MATH = re.compile(r"\$(?!\s)([^$]*[^$\s])\$(?!\d)|\\\((.+?)\\\)")
# The predicate of "the number of apples is 5", if it begins with a number, a formula or money.
_LINKED = re.compile(r".*\b(?:is|are|was|were|equals)\s+([-+\u2212$€£¥₹\\]*[\d.\\].*|\$.*)", re.DOTALL)
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}")
_CHOICE = re.compile(r"\(?([A-Z])\)(?=\s|$)")
_MAGNITUDE = r"(?:\s+(?:thousand|million|billion|trillion|percent)\b)?"
# A number in running text: signed, with currency, a fraction, thousands commas, a ratio or a time, not an ordinal.
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
    for candidates in (_boxed, _after_phrase, _after_hashes, _last_number):
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
    """The texts after "the answer is", last one first."""
    for match in _last(_PHRASE.finditer(text)):
        yield _bare(text[match.end() : match.end() + 2 * MAX_ANSWER_CHARS])


def _after_hashes(text: str) -> Iterator[str]:
    """The texts after ``####``, last one first."""
    for part in _last(iter(text.split("####")[1:])):
        yield _bare(part[: 2 * MAX_ANSWER_CHARS])


def _last_number(text: str) -> Iterator[str]:
    """The last number."""
    for match in deque(_NUMBER.finditer(text), maxlen=1):
        yield match[0].lstrip(CURRENCY)


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


def text_before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    cut = min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))
    return text[:cut]


def answer_before(text: str, read: Callable[[str], str | None], stops: Sequence[str]) -> str | None:
    """The answer that `read` finds before the first of the stop texts."""
    return read(text_before(text, stops))


__all__ = ["MAX_ANSWER_CHARS", "extract_answer", "normalize_answer", "parse_number", "same_answer"]
