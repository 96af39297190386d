r"""Reading the answer out of a text, and when two answers are the same (standard library only).

A reader is a small object with a kind: `read_answer` (the default, which takes the best evidence there is), `Number`,
`Choice`, `YesNo`, `Expression`, `Code`, `Text`, or a class of your own. ``reader(text)`` gives the answer as it is
written, or ``None``; ``reader.read_cut(text)`` that of a text that was cut off, which counts only if it was complete
before the cut; ``reader.same(first, second)`` is the equality that belongs to the kind. The name of a kind, such as
``"choice:ABCD"``, goes into problems, files and command lines; `reader_of` gives its reader.

Thoughts are no evidence: what counts is the final part, which follows the end of thinking (see `Thinking`), up to where
the model invents a further question.

Evidence is looked for in this order, the last of a kind counting: ``<answer>...</answer>`` and ``{"answer": ...}``;
``\boxed{...}``, unless it is taken back; what follows "the answer is" and its like; what follows ``####``; a text that
is nothing but an answer; a number alone on the first line, or in bold on the last; the last
formula or number, whichever ends later.

Example:
    >>> from inferscale.answers import Choice, read_answer
    >>> read_answer("So each of them pays $12.50."), Choice("ABCD")("The answer is (C), since B is too small.")
    ('12.50', 'C')
    >>> read_answer.same("12.5", r"\frac{25}{2}")
    True
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import ClassVar, TypeAlias, TypeVar

from .thinking import NO_THINKING, Thinking, thinking_in

Reader: TypeAlias = Callable[[str], str | None]
"""Reads the answer out of a completion; ``None`` abstains.

Example:
    >>> import inferscale as isc
    >>> def after_arrow(text):  # any function of a text that returns a text or None
    ...     return text.rpartition("=>")[2].strip() or None if "=>" in text else None
    >>> after_arrow("3 + 4 => 7"), after_arrow("I do not know")
    ('7', None)
    >>> result = isc.solve("How many?", isc.RepeatedSampling(4), isc.testing.ToyGenerator(), read_answer=after_arrow)
    >>> result.abstentions.unread
    4
"""

SameAnswer: TypeAlias = Callable[[str, str], bool]
"""Tells whether two answers are the same; it need be neither symmetric nor transitive.

Example:
    >>> import inferscale as isc
    >>> def close(first, second):
    ...     return abs(float(first) - float(second)) < 0.5
    >>> isc.answers.group_answers(["4.1", "9", "3.8"], close)
    [[0, 2], [1]]
    >>> vote = isc.MajorityVote(same_answer=close)
"""

Normalize: TypeAlias = Callable[[str], str]
"""Gives an answer's normal form: answers with one normal form are the same.

Example:
    >>> import inferscale as isc
    >>> def last_word(answer):
    ...     return answer.split()[-1].casefold()
    >>> isc.answers.group_answers(["in Paris", "Paris", "Lyon"], normalize=last_word)
    [[0, 1], [2]]
    >>> vote = isc.MajorityVote(normalize=last_word)
"""

MAX_ANSWER_CHARS = 512
"""Most characters of an answer: longer texts are not read as one (but by `Text` and `Code`), nor normalised.

Example:
    >>> import inferscale as isc
    >>> isc.answers.normalize_answer("1,250.50"), isc.answers.MAX_ANSWER_CHARS
    ('1250.5', 512)
    >>> long = "1,250.50 " * 100
    >>> isc.answers.normalize_answer(long) == long
    True
"""

CURRENCY = "$€£¥₹"
_MAX_LAYERS = 8  # of markup around markup
_MAX_EXPONENT = 308  # of scientific notation; beyond, a number stays a text
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![ \d])|\d+)"
_DECIMAL = rf"(?:{_PLAIN}(?:\.\d*)?|\.\d+)"
_MIN_DIGITS = 3  # significant digits from which on a decimal may stand for the fraction that it rounds

# Commands around an answer; a box after a number holds its unit.
_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|emph|mathrm|mathbf|mathit|mathbb|mbox|boxed|fbox|operatorname)"
    r"\s*\{([^{}]*)\}"
)
_UNIT_BOX = re.compile(r"(?<=[\d}.])\s*\\(?:text|textrm|textnormal|mathrm|mbox)\s*\{([^{}]*)\}(?:\^\{?([23])\}?)?$")

# Numbers: sign, whole part and signed numerator and denominator of \frac; x 10^n; decimal, exponent, divisor and what
# follows; whole part and fraction of a mixed number and what follows.
_FRACTION = re.compile(rf"([-+]?)(\d*)\s*\\frac\{{([-+]?)({_DECIMAL})\}}\{{([-+]?)({_DECIMAL})\}}(?!\.?\d)")
_POWER_OF_TEN = re.compile(r"\s*(?:\\times|\\cdot|\*|×|·|x)\s*10\s*\^\s*(?:\{([-+]?\d+)\}|([-+]?\d+))")
_SCALED = re.compile(
    rf"([-+]?)\s*({_DECIMAL})(?:e([-+]?\d+))?(?:\s*/\s*([-+]?)\s*({_DECIMAL}))?(?![\d.,/:^])(.*)", re.IGNORECASE
)
_POINTS_OF_THOUSANDS = re.compile(
    r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+(?=,\d+(?![\d,]))|\d{1,3}(?:\.\d{3}){2,}(?![\d.,]))(?:,(\d+))?"
)
_DECIMAL_COMMA = re.compile(r"([-+]?)((?:\d{4,}|0),\d+|\d+,\d{2})(?!\d|,)")  # 1000,99 and 0,125 and 2,74; not 1,2
_MIXED = re.compile(r"([-+]?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.,/:^])(.*)")

# Units: signs, short names written to the number, or one to four words, the first of two letters or more.
_NOT_UNITS = (  # words that make a formula, a time or a sentence of what follows a number
    r"(?:pi|and|or|to|times|plus|minus|over|choose|mod|sqrt|sin|cos|tan|log|ln|exp|am|pm|a\.m|p\.m|o'clock"
    r"|is|are|was|were|has|have|can|cannot|could|does|did|not|no|if|than|but|because|with|from)\b"
)
# Symbols of units with their prefixes, after a space: in "5m" and "2x" the letter may be a variable.
_PREFIXED = r"(?:(?-i:[kMGTmcdnµμ])?(?-i:m|g|L|s|J|W|N|V|A|Pa|Hz|mol|K|C|F|Ω|eV|cal|bar|B|Wh|h))"
_SYMBOLIC = rf"{_PREFIXED}(?:\^\{{?-?\d\}}?)?(?:[/·]{_PREFIXED}(?:\^\{{?-?\d\}}?)?)*(?![\w/])"
_UNIT = re.compile(
    rf"\s*(?:\\?%|°\s*[CF]?|[€£¥₹$]|(?<=\s)(?!(?-i:[msh])(?![\w/])){_SYMBOLIC}|[kcmd]m|m(?=\^|²|³)|[km]?g|mi|ml|k?m/h|m/s|mph|ft|lbs?|oz|hrs?|mins?|secs?"
    rf"|(?=\s+[a-z]{{2}})(?:\s+(?!{_NOT_UNITS})[a-z][a-z.'/-]*){{1,4}})(?:\^\{{?[23]\}}?|[²³])?\.?",
    re.IGNORECASE,
)
_SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SPACES = re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad(?![a-z])|~|[\u00a0\u2009\u202f]")

# Units of measure, by every name of theirs: two answers in different ones are not the same. Any other word after a
# number ("apples", "dollars", "degrees", "%") says what is counted and is left out.
_MEASURES = {
    name: unit
    for unit, names in {
        "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "dm": "dm decimeter decimetre",
        "m": "meter metre", "km": "km kilometer kilometre", "in": "inch inches", "ft": "ft foot feet",
        "yd": "yd yard", "mi": "mi mile", "mg": "mg milligram", "g": "gram g", "kg": "kg kilogram kilo",
        "t": "tonne ton", "lb": "lb lbs pound", "oz": "oz ounce", "ml": "ml milliliter millilitre",
        "l": "liter litre", "gal": "gallon gal", "s": "sec secs second", "min": "min mins minute",
        "h": "hr hrs hour", "d": "day", "wk": "week", "mo": "month", "yr": "year",
        "km/h": "km/h kph", "mph": "mph", "m/s": "m/s", "J": "joule", "W": "watt", "N": "newton", "V": "volt",
        "A": "amp ampere", "Pa": "pascal", "Hz": "hertz", "K": "kelvin", "kJ": "kilojoule", "kW": "kilowatt",
        "mol": "mole", "acre": "acre", "ha": "hectare", "rad": "radian rad", "°C": "celsius °c", "°F": "fahrenheit °f",
    }.items()
    for name in names.split()
}  # fmt: skip
_SINGLE_LETTER_UNITS = {"m": "meter", "g": "gram", "l": "liter", "s": "second", "h": "hour", "d": "day"}  # in a \text


# --- Two answers: are they the same? ----------------------------------------------------------------------------------


def same_answer(first: str | None, second: str | None) -> bool:
    r"""True if two answers mean the same; symmetric, and ``None`` (no answer) is not the same as anything.

    Equal normal forms are the same. Beyond that, a number without a unit of measure agrees with the same number in any
    one (``"15"`` and ``"15 cm"``, but never ``"5 cm"`` and ``"5 m"``), and a decimal of three or more digits with the
    fraction that it rounds (``"0.0833"`` and ``"1/12"``; two decimals must be equal). So it is not transitive:
    `group_answers` lets an answer into a group only if it agrees with all that are in it.

    Example:
        >>> import inferscale as isc
        >>> isc.same_answer("0.5", r"\frac{1}{2}"), isc.same_answer("15 cm", "15"), isc.same_answer("5 cm", "5 m")
        (True, True, False)
        >>> isc.same_answer("(1, 2)", "(2, 1)"), isc.same_answer("1 or 2", r"\{2, 1\}")
        (False, True)
    """
    if first is None or second is None:
        return False
    if first == second:
        return True
    if max(len(first), len(second)) > MAX_ANSWER_CHARS:
        return False
    return _agree(_parsed(first), _parsed(second))


class AnswerGroups:
    r"""Groups of answers that are the same, built one answer at a time.

    An answer joins the group that holds its normal form, else the first one that it agrees with, else it starts a
    group. So what is added later changes nothing for those before.

    Args:
        same_answer: A measure of your own, tried both ways round against the first answer of each group.
        normalize: A normal form of your own; ``str`` compares answers as they are written.
        reader: Its equality and normal form count where none of your own is given, `read_answer`'s by default. By its
            equality an answer must agree with all normal forms in the group: ``"5"`` joins ``"5 cm"``, and ``"5 km"``
            does not follow.

    Example:
        >>> from inferscale.answers import AnswerGroups
        >>> groups = AnswerGroups()
        >>> [groups.add(answer) for answer in ("1/2", "0.75", "0.5", r"\frac{3}{4}")]
        [0, 1, 0, 1]
        >>> groups.first(1)
        '0.75'
    """

    def __init__(
        self,
        same_answer: SameAnswer | None = None,
        normalize: Normalize | None = None,
        reader: AnswerReader | None = None,
    ) -> None:
        kind = reader or read_answer
        self._agree = same_answer or (kind.same if normalize is None else str.__eq__)
        self._normalize = normalize or kind.normalize
        self._looked_at = None if same_answer is None else 1
        self._members: list[list[str]] = []  # of each group, one answer for each normal form
        self._group_of_form: dict[str, int] = {}

    def add(self, answer: str) -> int:
        """Return the number of the answer's group; groups are numbered in order of appearance."""
        form = self._normalize(answer)
        number = self._group_of_form.get(form)
        if number is None:
            agreeing = (i for i, known in enumerate(self._members) if self._agrees(answer, known[: self._looked_at]))
            number = self._group_of_form[form] = next(agreeing, len(self._members))
            if number == len(self._members):
                self._members.append([])
            self._members[number].append(answer)
        return number

    def first(self, number: int) -> str:
        """Return the answer that began a group."""
        return self._members[number][0]

    def _agrees(self, answer: str, known: Sequence[str]) -> bool:
        return all(self._agree(answer, other) or self._agree(other, answer) for other in known)


def group_answers(
    answers: Iterable[str | None],
    same_answer: SameAnswer | None = None,
    normalize: Normalize | None = None,
    reader: AnswerReader | None = None,
) -> list[list[int]]:
    r"""Return the positions of answers that are the same, groups and members in order of appearance.

    Args:
        answers: The answers; ``None`` is in no group.
        same_answer: As in `AnswerGroups`.
        normalize: As in `AnswerGroups`.
        reader: As in `AnswerGroups`.

    Example:
        >>> from inferscale.answers import group_answers
        >>> group_answers(["1/2", "0.5", None, "3", r"\frac{1}{2}"])
        [[0, 1, 4], [3]]
    """
    known = AnswerGroups(same_answer, normalize, reader)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for position, answer in enumerate(answers):
        if answer is not None:
            groups[known.add(answer)].append(position)
    return list(groups.values())


def normalize_answer(answer: str) -> str:
    r"""Return the normal form of `answer`: a number as an exact one, any other text without markup.

    Numbers lose thousands commas and spaces, currency, leading and trailing zeros and what they count, and keep their
    unit of measure: ``"$1,250.50"`` is ``"1250.5"``, ``"5 apples"`` is ``"5"``, ``"5\text{ cm}"`` is ``"5 cm"``,
    ``"\frac{2}{4}"`` is ``"0.5"``, ``"2/6"`` is ``"1/3"``. A percent sign counts: ``"5%"`` is ``"5"`` and not
    ``"0.05"``, as in the golds of GSM8K and MATH. Exponents beyond 308 are texts.

    Several values (``"3 or -2"``, ``"\{-2, 3\}"``, ``"x = 3, x = -2"``) are a set, whatever their order; tuples and
    intervals keep order and brackets; ``\pm`` is two values. A leading ``x =`` goes, an equation stays one.

    Other texts lose LaTeX markup, spaces beside punctuation and letter case. Texts beyond `MAX_ANSWER_CHARS`
    characters come back as they are.

    Example:
        >>> from inferscale import normalize_answer
        >>> [normalize_answer(answer) for answer in ("$1,250.50", r"\frac{2}{4}", r"5\text{ cm}", "3 or -2", "x = 7")]
        ['1250.5', '0.5', '5 cm', '{-2;3}', '7']
    """
    return _parsed(answer).form if len(answer) <= MAX_ANSWER_CHARS else answer


def parse_number(answer: str) -> Fraction | None:
    """Return the exact number that `answer` is, whatever its unit; ``None`` if it is not one.

    Example:
        >>> from inferscale.answers import parse_number
        >>> parse_number("3/4"), parse_number("$1,250"), parse_number("a lot")
        (Fraction(3, 4), Fraction(1250, 1), None)
    """
    return _parsed(answer).number if len(answer) <= MAX_ANSWER_CHARS else None


def is_relation(answer: str) -> bool:
    """True for an equation or inequality with more than a name on its left side; not for a set or interval."""
    if len(answer) > MAX_ANSWER_CHARS or brackets(answer):
        return False
    return _RELATION.search(_without_markup(answer)) is not None


def is_range(answer: str) -> bool:
    """True for what may be a union of intervals or a named set."""
    return re.search(r"\\cup|∪|\\infty|∞|\\mathbb|\\R\b|\[|\\in(?![a-z])", answer) is not None


def brackets(answer: str) -> str:
    """Return how several values are held together: ``"()"``, ``"[)"``, ``"{}"``, ..., or ``""`` for one value."""
    return _parsed(answer).brackets if len(answer) <= MAX_ANSWER_CHARS else ""


@dataclass(frozen=True, slots=True)
class _Parsed:
    """An answer taken apart.

    Attributes:
        form: The normal form.
        number: Its value, if it is one number.
        unit: Its unit of measure, or "".
        places: Decimal places, if it is written as a decimal of at least `_MIN_DIGITS` significant digits.
        brackets: How `items` are held together: "{}" for a set or list, or the brackets of a tuple or interval.
        items: Several values: sorted in a set, in order elsewhere.
    """

    form: str
    number: Fraction | None = None
    unit: str = ""
    places: int | None = None
    brackets: str = ""
    items: tuple[_Parsed, ...] = ()


def _agree(first: _Parsed, second: _Parsed) -> bool:
    if first.form == second.form:
        return True
    if first.number is not None and second.number is not None:
        if first.unit != second.unit and first.unit and second.unit:
            return False
        return first.number == second.number or _rounds(first, second) or _rounds(second, first)
    if not first.items or first.brackets != second.brackets or len(first.items) != len(second.items):
        return False
    if first.brackets != "{}":
        return all(map(_agree, first.items, second.items))
    left = list(second.items)  # a set: each value takes one that it agrees with
    for item in first.items:
        partner = next((other for other in left if _agree(item, other)), None)
        if partner is None:
            return False
        left.remove(partner)
    return True


def _rounds(decimal: _Parsed, exact: _Parsed) -> bool:
    """True if `decimal` is `exact`, a fraction, rounded or cut to the digits given."""
    if decimal.places is None or decimal.number is None or exact.number is None or "/" not in exact.form:
        return False
    return abs(decimal.number - exact.number) < Fraction(1, 10**decimal.places)


@lru_cache(maxsize=16384)
def _parsed(answer: str) -> _Parsed:
    return _parse(_without_markup(answer), depth=0)


def _parse(text: str, depth: int) -> _Parsed:
    found = _measured(text)
    if found is not None:
        value, unit = found
        form = _write(value) + (f" {unit}" if unit else "")
        return _Parsed(form, value, unit, _decimal_places(text))
    if depth < 3 and (several := _values(text)) is not None:
        kind, texts = several
        items = [_parse(_unnamed(_unwrapped(item)), depth + 1) for item in texts]
        if kind == "{}":
            items = sorted({item.form: item for item in items}.values(), key=lambda item: item.form)
        if len(items) == 1 and kind == "{}" and not re.match(r"\\?\{", text):
            return items[0]
        form = kind[0] + ";".join(item.form for item in items) + kind[1]
        return _Parsed(form, brackets=kind, items=tuple(items))
    return _Parsed(_text_form(text))


def _text_form(text: str) -> str:
    for sign, command in {
        "∞": r"\infty",
        "π": r"\pi",
        "√": r"\sqrt",
        r"\varnothing": r"\emptyset",
        "∅": r"\emptyset",
    }.items():
        text = text.replace(sign, command)
    text = re.sub(r"(?<![\\A-Za-z])sqrt(?=\s*\()", r"\\sqrt", text)
    text = re.sub(r"\\sqrt\s*(?:(\w)|\((\w+)\))", lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text)
    text = re.sub(r"(?<=[a-z]),?\s+and\s+(?=\d)|(?<=[a-z]),\s+(?=\d)", " ", text) if _is_compound(text) else text
    text = re.sub(r"\\(?:cdot|times)(?![a-z])", "*", text)
    text = re.sub(r"\\left\[?\s*\\begin\{array\}\{[^{}]*\}|\\begin\{[pbvB]?(?:small)?matrix\}", "[[", text)
    text = re.sub(r"\s*(?:\\\\)?\s*(?:\\end\{array\}\s*\\right\]?|\\end\{[pbvB]?(?:small)?matrix\})", "]]", text)
    text = _ordered_relation(text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"\s*([^\w\s])\s*", r"\1", re.sub(r"\s+", " ", text))
    text = re.sub(r"(?<=[}\d)])\s+(?=\\)", "", text)
    return text if "\\" in text else text.casefold()


_SYMBOLS = {"<=": "≤", ">=": "≥", "!=": "≠", r"\leq": "≤", r"\geq": "≥", r"\neq": "≠", r"\le": "≤", r"\ge": "≥",
            r"\ne": "≠", r"\lt": "<", r"\gt": ">"}  # fmt: skip
_SYMBOL = re.compile(r"<=|>=|!=|\\(?:leq|geq|neq|leqslant|geqslant|le|ge|ne|lt|gt)(?![a-z])")
_FLIPPED = {">": "<", "≥": "≤"}


def _ordered_relation(text: str) -> str:
    """`text` with plain signs of order, smaller side first; ``x ≥ 5`` and ``5 ≤ x`` are written alike."""
    text = _SYMBOL.sub(lambda match: _SYMBOLS.get(match[0].replace("slant", ""), match[0]), text)
    parts = re.split(r"([<>≤≥])", text)
    if len(parts) < 3 or not {*parts[1::2]} <= {">", "≥"}:
        return text
    return "".join(_FLIPPED.get(part, part.strip()) for part in reversed(parts))


_CHAIN = re.compile(r"([^<≤]+)([<≤])\s*(?:\\?[A-Za-z](?:_\{?\w+\}?)?|[A-Za-z]\([a-z]\))\s*([<≤])([^<≤]+)")


_RAY = re.compile(r"([-+]?\d[\d./]*)\s*([<≤])\s*([A-Za-z])|([A-Za-z])\s*([<≤])\s*([-+]?\d[\d./]*)")


def _interval(text: str) -> tuple[str, list[str]] | None:
    r"""``1 ≤ x < 3`` as ``[1, 3)``, and ``x > 5`` as ``(5, \infty)``."""
    ordered = _ordered_relation(text)
    ray = _RAY.fullmatch(ordered)
    if ray is not None:
        above = ray[1] is not None
        sign, end = (ray[2], ray[1]) if above else (ray[5], ray[6])
        closed = sign == "≤"
        return ("[" if closed else "(") + ")" if above else "(" + ("]" if closed else ")"), (
            [end, r"\infty"] if above else [r"-\infty", end]
        )
    chain = _CHAIN.fullmatch(ordered)
    if chain is None:
        return None
    return ("(" if chain[2] == "<" else "[") + (")" if chain[3] == "<" else "]"), [chain[1].strip(), chain[4].strip()]


_CONNECTORS = re.compile(
    r"\s*(?:[,;]\s*(?:\b(?:and|or)\b)?|\b(?:and|or)\b|(?<=\d)(?:and|or)(?=[\d(])|(?<=\))or(?=\())\s*"
)
_OPEN, _CLOSE = "([{", ")]}"


def _values(text: str) -> tuple[str, list[str]] | None:
    r"""The brackets and the texts of several values, or ``None`` if `text` is one.

    ``\{1, 3\}`` and ``1 or 3`` are sets, ``(1, 3)`` a tuple or open interval, ``[1, 3)`` an interval.
    """
    interval = _interval(text)
    if interval is not None:
        return interval
    inner = re.fullmatch(r"\\?\{(.*?)\\?\}", text, re.DOTALL)
    if inner is not None:
        return "{}", [value for part in _split(inner[1]) for value in _both_signs(part)]
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _closes_at(text) == len(text) - 1:
        parts = _split(text[1:-1])
        return (text[0] + text[-1], parts) if len(parts) > 1 else None
    parts = _split(text)
    values = [value for part in parts for value in _both_signs(part)]
    if len(values) < 2 or any(_PLAIN_WORD.search(value) for value in values):
        return None
    return "{}", values


_PLAIN_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_PM = re.compile(r"\\pm(?![a-z])|±")


def _both_signs(text: str) -> list[str]:
    r"""``1 \pm a`` as ``1 + a`` and ``1 - a``; a text with no sign, or several, as it is."""
    if len(_PM.findall(text)) != 1:
        return [text]
    plus = _PM.sub("+", text).strip().removeprefix("+").strip()
    return [plus, _PM.sub("-", text)]


def _split(text: str) -> list[str]:
    """`text` at the commas, semicolons and "and"s that stand in no bracket."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character == "\\" and text[position + 1 : position + 2] in ("{", "}"):
            depth += 1 if text[position + 1] == "{" else -1
            position += 2
            continue
        if character == "\\" and text[position + 1 : position + 2] in (",", ";"):
            position += 2  # a space
            continue
        if character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
        elif depth == 0 and (match := _CONNECTORS.match(text, position)) is not None and match[0].strip():
            parts.append(text[start:position])
            start = position = match.end()
            continue
        position += 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def _closes_at(text: str) -> int:
    """Position at which the bracket that `text` begins with is closed, or -1; ``[0, 1)`` closes too."""
    depth = 0
    for position, character in enumerate(text):
        if character in "([":
            depth += 1
        elif character in ")]":
            depth -= 1
            if depth == 0:
                return position
    return -1


_NAME = r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?'?(?:\^\{-1\})?(?:\([^()=]*\))?|\([A-Za-z](?:\s*,\s*[A-Za-z])+\))"
_NAMED = re.compile(rf"^{_NAME}(?:\s*:\s*{_NAME})*\s*(?:=(?!=)|\\in(?![a-z])|\\approx(?![a-z])|≈|:=)\s*")
_RELATION = re.compile(r"[=<>≤≥≠]|\\(?:le|ge|lt|gt|ne|leq|geq|neq)(?![a-z])")


def _unnamed(text: str) -> str:
    """`text` without a leading ``x =``, ``f(x) =``, ``(x, y) =`` or ``x in``."""
    return _NAMED.sub("", text, count=1).strip() if not re.match(r"^(?:\\[a-z]*frac|\\sqrt)", text) else text


def _without_markup(answer: str) -> str:
    """`answer` in ASCII digits, without LaTeX and Markdown around it, layer by layer."""
    text = _plain_text("".join(map(_ascii, _SUPERSCRIPTS.sub(_plain_superscript, answer))))
    for _ in range(_MAX_LAYERS):
        bare = _unnamed(_unwrapped(text))
        if bare == text:
            break
        text = bare
    return text


def _unwrapped(text: str) -> str:
    """`text` without its outermost markup."""
    text = text.strip().strip("*_`\"'“”").strip()
    text = re.sub(r"\\!\s*", "", re.sub(r",?\s*\\q?quad\s*", ", ", text)).strip(", ")
    text = _SPACES.sub(lambda match: "" if match[0] in (r"\,", r"\!") else " ", text)
    text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])|\\(?:display|text)style(?![a-z])", "", text)
    text = re.sub(r"^\\[(\[]|\\[)\]]$", "", re.sub(r"(?<!\\)\$(?!\d)|\\(?=\$)", "", text)).strip()
    text = re.sub(r"\\[dtc]frac", r"\\frac", text.replace("{,}", ",").replace(r"\%", "%"))
    text = re.sub(r"\s*\^\{?\\circ\}?|\\degree", "°", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\mathrm\s*\{([a-zA-Z])\}", r"\1", text)
    text = _WRAPPERS.sub(r" \1 ", _UNIT_BOX.sub(_plain_unit, text)).strip()
    text = re.sub(r",\s*,", ",", text.rstrip(".,;:? ")).strip()
    inside = re.fullmatch(r"\(([^(),;]*)\)", text)
    return text if inside is None else inside[1].strip()


def _plain_unit(match: re.Match[str]) -> str:
    r"""``5\text{ cm}^2`` as ``5 cm^2``, and ``5\text{ m}`` as ``5 meter``, for the letter alone may be a variable."""
    name = match[1].strip()
    name = _SINGLE_LETTER_UNITS.get(name, name)
    return f" {name}" + (f"^{match[2]}" if match[2] else "")


_SUPERSCRIPTS = re.compile(r"[⁻⁺]?[⁰¹²³⁴-⁹]+|\d?[½⅓⅔¼¾⅕-⅞]")


def _plain_superscript(match: re.Match[str]) -> str:
    """``10⁸`` as ``10^8``, and ``1½`` as ``1 1/2``."""
    plain = unicodedata.normalize("NFKC", match[0]).replace("\u2212", "-").replace("\u2044", "/")
    if "/" in plain:
        whole = match[0][:-1]
        return f"{whole} {plain[len(whole) :]}".strip()
    return f"^{plain}" if len(plain) == 1 else f"^{{{plain}}}"


def _ascii(character: str) -> str:
    """Digits, minus signs and full-width forms in ASCII; superscripts stay what they are."""
    if character.isascii():
        return character
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.decimal(character))
    if character in "\u2212\u2010\u2011\u2012\u2013\ufe63":
        return "-"
    return chr(ord(character) - 0xFEE0) if "\uff01" <= character <= "\uff5e" else character


def _measured(text: str) -> tuple[Fraction, str] | None:
    """The number that `text` is and its unit of measure."""
    text = re.sub(rf"^([-+]?)\s*[{CURRENCY}]\s*", r"\1", text)
    text = _POINTS_OF_THOUSANDS.sub(_without_points, text, count=1)
    comma = _DECIMAL_COMMA.match(text)
    if comma is not None:
        text = comma[1] + comma[2].replace(",", ".") + text[comma.end() :]
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


def _without_points(match: re.Match[str]) -> str:
    """``1.250,50`` as ``1250.50``."""
    return match[1].replace(".", "") + (f".{match[2]}" if match[2] else "")


def _plain_fraction(match: re.Match[str]) -> str:
    r"""``3\frac{1}{2}`` as ``3 1/2``."""
    sign, whole, top_sign, top, bottom_sign, bottom = match.groups()
    negative = [sign, top_sign, bottom_sign].count("-") % 2 == 1
    return f"{'-' if negative else ''}{whole} {top}/{bottom}" if whole else f"{'-' if negative else ''}{top}/{bottom}"


def _decimal(digits: str) -> Fraction:
    return Fraction("0" + digits.replace(",", "").replace(" ", "").rstrip("."))


def _decimal_places(text: str) -> int | None:
    """Decimal places of a plain decimal with `_MIN_DIGITS` significant digits or more, else ``None``."""
    match = re.fullmatch(r"\D*(\d*)[.,](\d+)(?:\.\.\.|…|\\l?dots)?\D*", text)
    if match is None or len((match[1] + match[2]).lstrip("0")) < _MIN_DIGITS:
        return None
    return len(match[2])


def _with_unit(value: Fraction, rest: str) -> tuple[Fraction, str] | None:
    """`value` times a word such as "million", and the unit in `rest`; ``None`` if `rest` is no unit."""
    rest = re.sub(r"^(?:\.\.\.|…|\\l?dots)", "", rest)
    word = re.match(r"\s*([a-z]+)\b", rest, re.IGNORECASE)
    if word is not None and word[1].lower() in _SCALE:
        value, rest = value * _SCALE[word[1].lower()], rest[word.end() :]
    if not rest.strip():
        return value, ""
    return (value, _measure(rest)) if _UNIT.fullmatch(rest) else None


def _measure(text: str) -> str:
    """The unit of measure that `text` names, with its power; "" if it names something else."""
    text = text.strip().rstrip(".").replace("²", "^2").replace("³", "^3")
    text = re.sub(r"^(?:°\s*|degrees?\s+)(?=(?:C|F|celsius|fahrenheit)$)", "°", text, flags=re.IGNORECASE)
    text = re.sub(r"^°(?=[a-z]{2})", "", text, flags=re.IGNORECASE)
    if re.fullmatch(_SYMBOLIC, text) and text.lower().partition("^")[0] not in {"m", *_MEASURES}:
        return re.sub(r"[{}]", "", text)  # capitals count: 5 mW and 5 MW
    name, _, power = text.lower().partition("^")
    words = name.split()
    for prefix, value in (("square", "2"), ("sq", "2"), ("cubic", "3")):
        if words and words[0].rstrip(".") == prefix:
            words, power = words[1:], value
    if len(words) != 1:
        return ""
    if words[0] == "m" and power:
        return "m" + power.strip("{}")
    unit = _MEASURES.get(words[0]) or _MEASURES.get(words[0].removesuffix("s"))
    return "" if unit is None else unit + power.strip("{}")


def _write(number: Fraction) -> str:
    """A decimal if it ends, else a fraction in lowest terms."""
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


# --- Where the answer stands in a text --------------------------------------------------------------------------------

T = TypeVar("T")

_MAX_CANDIDATES = 64  # of one kind that are looked at, last ones first

# "answer is", "answer:", "answer to the question is", not "answer is not": the bare answer or a sentence follows.
_PHRASE = re.compile(
    r"(?<![/\w])(?:answer|ans)\b[*_]*(?:\s+(?:to|for|of)\s[^.\n:=]{1,80}?)?"
    r"\s*(?:\b(?:is|equals|(?:would|should|must) be)\b|[:：])(?!\s+(?:not|in)\b)[\s:=*_]*"
    r"|(?<![/\w])answer[*_]*\s*(?:[=→]|(?<=\s)[-–—](?=\s))[\s*_]*"
    r"|^[#*_ ]*(?:final |correct )?answer[*_]*\s*\n\s*"  # a heading
    r"|\b(?:antwort|respuesta|resposta|risposta|réponse|ответ|jawaban)\b[*_]*(?:\s+\w+){0,2}?"
    r"\s*(?:\b(?:ist|es|é|è|est|adalah)\b|[:：=—-])[\s:：*_]*"
    r"|(?:答案|答え|정답)[*_]*\s*(?:应该|應該)?\s*(?:[是为為は은는]|[:：])[\s:：*_]*",
    re.IGNORECASE | re.MULTILINE,
)
_BEFORE_PHRASE = re.compile(r"\bis\s+(?:the|our|my)\s+(?:final\s+|correct\s+)?answer\b", re.IGNORECASE)
_DECLARED = re.compile(
    r"<answer>((?:[^<]|<(?!/?answer>))*)</answer>"
    r"|[\"'](?:final[_ ])?answer[\"']\s*:\s*"
    r"(?:\"((?:\\.|[^\"\\])*)\"|'((?:\\.|[^'\\])*)'|([^\s,}\[{\"'][^,}\n]*))\s*[,}\n]",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(r"\b(?:wait|actually|wrong|incorrect|mistaken?|correction)\b", re.IGNORECASE)
_OPTION = re.compile(r"\b(?:option|choice)\s*(?:is|:)?\s*[*_]*\(?([A-Z])\)?(?![\w'’])")
_SENTENCE_END = re.compile(r"[.!?](?=[*_]*(?:\s|$))|。|\n")
_DISPLAY_MATH = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\begin\{(?:equation|align|gather)\*?\}(.+?)\\end\{(?:equation|align|gather)\*?\}",
    re.DOTALL,
)
_INLINE_MATH = re.compile(
    r"(?<![\\$])\$\s+([^$\n]*\\[^$]*?)\s+\$"
    r"|(?<![\\$])\$(?![ \n$])((?:\\.|[^$\\])*?(?:\\.|[^$\\\s]))\$(?!\d)|\\\((.+?)\\\)"
)
_LINKED = re.compile(r".*\b(?:is|are|was|were|equals)\s+([-+\u2212$€£¥₹\\]*[\d.\\].*|\$.*)", re.DOTALL)
_WORD = re.compile(
    r"(?<![\\A-Za-z{])(?!(?:and|or|sqrt|sin|cos|tan|log|ln|exp|pi)(?![A-Za-z]))[A-Za-z]{2,}|[^\W\d_a-zA-Zα-ωΑ-Ωπ²³¹⁰-₉]{2,}"
)
_CHOICE = re.compile(r"\(([A-Z])\)(?=\s|$)|([A-Z])\)(?=\s)")
_REASON = r"(?=\s*(?:[,;:!]|$|[-–—]|\(|because\b|since\b|as\b|for\b|but\b))"
_LETTER = re.compile(rf"[*_]*\(?([A-Z])[.)]?[*_]*{_REASON}")
_VERDICT = re.compile(rf"[*_]*(yes|no|true|false)[*_]*{_REASON}", re.IGNORECASE)
_MAGNITUDE = r"(?:\s+(?:thousand|million|billion|trillion|percent)\b)?"
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])[-+\u2212]\s?)?"  # a sign, not a subtraction
    rf"[{CURRENCY}]?(?:(?<=[{CURRENCY}])[-\u2212])?"
    r"(?:(?:(?<![A-Za-z_\d.])\d+\s?)?\\[dt]?frac\{-?\d+\}\{-?\d+\}"
    r"|(?<![A-Za-z_\d.^])(?<!\^\{)(?:\d+ \d+/\d+(?![/\d])|\d{1,3}(?: \d{3})+(?! ?\d|-)"  # 2 1/2 and 17 000
    r"|\d{1,3}(?:\.\d{3})+,\d+(?![\d,])|\d{1,3}(?:\.\d{3}){2,}(?![\d.])"  # 1.250,50 and 1.234.567
    r"|\d+(?:,\d{3})+(?!\d)"
    r"|\d+,\d\d?(?![\d,])|\d+|(?=\.\d))(?:\.\d+)?(?:[eE][-+]?\d+\b)?[½⅓⅔¼¾]?(?:[/:]\d+(?:\.\d+)?)*"
    r"(?:\s*(?:\\times|\\cdot|[×·*x])\s*10(?=\s?[\^⁻⁰¹²³⁴-⁹]))?(?:\^(?:[-\u2212]?\d+|\{[-\u2212]?\d+\})|[⁻⁰¹²³⁴-⁹]+)?"
    rf"(?!\d|(?:st|nd|rd|th)\b)(?:\\?%)?{_MAGNITUDE}|[½⅓⅔¼¾])"
)
_AFTER_NUMBER = re.compile(r"\s*((?:square|cubic|sq\.?)\s+)?([A-Za-z/]{2,})(\^\{?[23]\}?|[²³])?(?![\w])")
_COMPOUND = re.compile(
    r"\d[\d.,]*\s+[a-z]+(?:,?\s+(?:and\s+)?\d[\d.,]*\s+[a-z]+)+", re.IGNORECASE
)  # 3 hours 20 minutes
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_DATE = re.compile(
    rf"{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?\b"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?:,?\s+\d{{4}})?\b",
    re.IGNORECASE,
)  # January 5, 2020 and 5 January 2020: no number in them is the answer
_AND = re.compile(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])")
_LISTED = re.compile(r"\bare\s+([-+\u2212]?\d[\d./]*(?:,?\s*(?:,|and|or)\s*[-+\u2212]?\d[\d./]*)+)(?=\.?\s*$)")
_BARE_START = re.compile(r"[-+\u2212\d.(\[{\\$€£¥₹|√±]|[A-Za-z]\w*\s*=")
_JOINED = re.compile(r"[\s,;]*(?:and|or|\\text\{\s*(?:and|or)\s*\}|\\q?quad)?[\s,;.]*", re.IGNORECASE)


_MAX_QUESTIONS = 8  # headings that are looked at: the first may belong to the solution
_HEADINGS = "Question|Q|Problem|Exercise|Example|Human|User|Instruction|Input|Passage|Task"
_NEXT_QUESTION = re.compile(
    rf"\n[ \t]*(?:(?:[#*\[]+\s?)?({_HEADINGS})\b[ \t]*(\d*)[*\]]*[ \t]*[:.]"
    rf"|[#*\[]+[ \t]?({_HEADINGS})\b[ \t]*(\d*)[*\]]*[ \t]*\n)"
    r"|<\|user\|>|<\|im_start\|>\s*user|<\|start_header_id\|>\s*user|<start_of_turn>\s*user|\[INST\]"
    r"|<\|endoftext\|>|<\|end_of_text\|>|<\|eot_id\|>|</s>|<eos>|<end_of_turn>"
    r"|<\|im_end\|>(?!\s*<\|im_start\|>(?:think|answer))",
    re.IGNORECASE,
)
_NEXT_ANSWER = re.compile(
    r"\n[ \t]*(?:[#*\[]+\s?)?(?:Answer|A|Solution|Assistant|AI|Response|Output)\b\s*\d*[*\]]*\s*[:\n]", re.IGNORECASE
)


_STARTS_WITH_NUMBER = re.compile(
    rf"\W*(?:{_NUMBER.pattern})\s*(?:[a-z]+\s*)?(?:[,;:(]|$|and\b|as\b|so\b|which\b)", re.IGNORECASE
)


class AnswerReader(ABC):
    """Reads the answer out of a completion, and knows when two of its answers are the same.

    Subclasses are frozen dataclasses of options; they implement `find`.

    Example:
        >>> from dataclasses import dataclass
        >>> from inferscale.answers import AnswerReader
        >>> @dataclass(frozen=True)
        ... class Hex(AnswerReader):
        ...     def find(self, text, stated=False):
        ...         return next((word for word in reversed(text.split()) if word.startswith("0x")), None)
        ...     def same(self, first, second):
        ...         return int(first, 16) == int(second, 16)
        >>> Hex()("First 0x0a, so it is 0x0f"), Hex().same("0x0f", "0xF")
        ('0x0f', True)
    """

    kind: ClassVar[str] = "answer"

    @abstractmethod
    def find(self, text: str, stated: bool = False) -> str | None:
        """Return the answer in `text` as it is written, or ``None``.

        Args:
            text: The completion alone. With the prompt before it, "The answer is" of the question would count.
            stated: Take nothing but what is said to be the answer (a box, "the answer is", ``####``).
        """

    def __call__(self, text: str, thinking: Thinking | None = None) -> str | None:
        """Return the answer in the final part of `text`, as it is written, or ``None``.

        Args:
            text: A completion.
            thinking: The markers of thoughts; by default those of the public form that the text shows.
        """
        final = final_part(text, thinking, self.find)
        return None if final is None else self.find(final)

    def read_cut(self, text: str, thinking: Thinking | None = None) -> str | None:
        """Return the answer of a text that was cut off: one that was stated, and complete before the cut."""
        final = final_part(text, thinking, self.find)
        if final is None or _has_open_box(final):
            return None
        complete = complete_part(final)
        if _PHRASE.search(final, len(complete)) and _TAKEN_BACK.search(
            final[len(complete) - 40 :] if len(complete) > 40 else final
        ):
            return None  # it was correcting itself
        return self.find(complete, stated=True)

    def same(self, first: str, second: str) -> bool:
        """True if two answers of this kind mean the same."""
        return same_answer(first, second)

    def normalize(self, answer: str) -> str:
        """Return a form whose equality implies `same`: the answer itself, where a kind has an equality of its own."""
        return normalize_answer(answer) if type(self).same is AnswerReader.same else answer

    def for_kind(self, kind: str | None) -> AnswerReader:
        """Return the reader for a problem of this kind: this one, whatever the problem says."""
        return self


def answer_of(reader: Reader, text: str, cut: bool = False, thinking: Thinking | None = None) -> str | None:
    """Return what `reader` reads in the final part of `text`; ``None`` for a text that never leaves its thoughts.

    Args:
        reader: A reader. A plain function must read the same answer without the unfinished end of a cut text.
        text: A completion.
        cut: True if the text was cut off: then only what was complete before counts.
        thinking: The markers of thoughts; by default those of the public form that the text shows.
    """
    if isinstance(reader, AnswerReader):
        return reader.read_cut(text, thinking) if cut else reader(text, thinking)
    final = final_part(text, thinking)
    if final is None or not cut:
        return None if final is None else reader(final)
    answer = reader(complete_part(final))
    return answer if answer is not None and reader(final) == answer else None


def final_part(
    text: str, thinking: Thinking | None = None, find: Callable[[str, bool], str | None] | None = None
) -> str | None:
    """Return what of a completion answers the question; ``None`` if it never leaves its thoughts. See `final_span`."""
    span = final_span(text, thinking, find)
    return None if span is None else text[slice(*span)]


def final_span(
    text: str, thinking: Thinking | None = None, find: Callable[[str, bool], str | None] | None = None
) -> tuple[int, int] | None:
    """Return start and end of what answers the question: what follows the last end of thinking, up to a next question.

    A model that has answered may invent a further question and answer that one too. A heading such as "Question:" or
    "Q:" outside of thoughts is one if the answer was stated before it, or if some answer stands before it and a heading
    of an answer follows: the form of worked examples. The control tokens of a user's turn are always one.

    Args:
        text: A completion.
        thinking: The markers of thoughts; by default those of the public form that the text shows.
        find: What finds an answer in a text, or (with True) a stated one; by default that of `read_answer`.

    Returns:
        ``None`` for a text that never leaves its thoughts.
    """
    find = find or read_answer.find
    pieces = thinking_in(text, thinking).final_pieces(text)
    for start, end in pieces:
        for match in islice(_NEXT_QUESTION.finditer(text, start, end), _MAX_QUESTIONS):
            stop = match.start()
            if text[stop] == "\n":  # of blank lines the first one's end is kept
                stop = text.index("\n", len(text[:stop].rstrip())) + 1
            before, heading, number = text[start:stop], match[1] or match[3], match[2] or match[4]
            if not before.strip():
                continue
            if number and re.search(rf"\b{heading}\s*{int(number) - 1}\b", before, re.IGNORECASE):
                continue  # "Question 2:" after "Question 1:" is a part of the solution
            stated = heading is None or find(before, True) is not None  # a mark of the next turn needs no answer
            if stated or (_NEXT_ANSWER.search(text, match.end(), end) and find(before, False) is not None):
                return start, stop
    return pieces[-1] if pieces else None


def complete_part(text: str) -> str:
    """Return a cut text up to its last complete sentence, line or box."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)|。|\n", text)]
    boxes = [start + len(content) + 1 for start, content in _boxes(text)]
    declared = [match.end() for match in _DECLARED.finditer(text)]
    return text[: max([0, *ends[-1:], *boxes[-1:], *declared[-1:]])]


@dataclass(frozen=True)
class _BestEvidence(AnswerReader):
    kind: ClassVar[str] = "any"

    def find(self, text: str, stated: bool = False) -> str | None:
        if _has_open_box(text):
            return None
        text = _plain_text(text)
        return _first(candidate for way in (*_STATED, *(() if stated else _UNSTATED)) for candidate in way(text))

    def __repr__(self) -> str:
        return "read_answer"


read_answer = _BestEvidence()
r"""The default reader: the best evidence of an answer of any kind.

Example:
    >>> from inferscale import read_answer
    >>> read_answer("Half of 24 is 12. The answer is 12."), read_answer(r"Thus \boxed{x^2 + 1}."), read_answer("Well.")
    ('12', 'x^2 + 1', None)
    >>> read_answer("<think>Is it 12?</think>It is 15."), read_answer("<think>Is it 12?")
    ('15', None)
"""


# A power or a root, of numbers alone: it stays whole, for no number inside it is the answer.
_ARITHMETIC = re.compile(
    r"(?=.*(?:\^|sqrt|√|\\pi|π))(?:[\d\s.,+*/(){}^!$√π-]|\\(?:sqrt|[dt]?frac|cdot|times|pi|left|right)(?![a-z]))+"
)


@dataclass(frozen=True)
class Number(AnswerReader):
    """The number that is given as the answer, or the last one in the text; ``"3,5"`` is a decimal.

    Example:
        >>> from inferscale.answers import Number
        >>> reader = Number()
        >>> reader("So she pays 3 * 12 = 36 dollars."), reader("It took 3 hours and 20 minutes.")
        ('36', None)
        >>> reader.same("1,000", "1000.0"), reader.same("5 cm", "5 m")
        (True, False)
    """

    kind: ClassVar[str] = "number"

    def find(self, text: str, stated: bool = False) -> str | None:
        """Return the number in the best evidence that holds one; ``None`` for a quantity of several numbers."""
        text = _POINTS_OF_THOUSANDS.sub(_without_points, _plain_text(text))
        text = re.sub(r"(?<![\d,])(\d+),(\d{1,2})(?![\d,])", r"\1.\2", text)
        for way in (*_STATED, *(() if stated else (_nothing_else, _first_line, _emphasised, _last_compound, _numbers))):
            for candidate in way(text):
                if _is_compound(candidate):
                    return None  # 3 hours and 20 minutes: no number in it is the answer
                if candidate and (parse_number(candidate) is not None or _ARITHMETIC.fullmatch(candidate)):
                    return str(candidate)
                found = [str(match[0]) for match in _NUMBER.finditer(candidate)]
                if found:
                    return found[-1].lstrip(CURRENCY)
        return None

    def same(self, first: str, second: str) -> bool:
        """True if both are the same number, in units that do not contradict each other."""
        if parse_number(first) is None and parse_number(second) is None:
            return first == second
        commas = (re.sub(r"(?<=\d),(?=\d{1,2}$)", ".", text.strip()) for text in (first, second))
        return same_answer(*commas)


@dataclass(frozen=True)
class Choice(AnswerReader):
    """The letter of a multiple-choice answer, as it is written.

    Attributes:
        options: The letters that there are.

    Raises:
        ValueError: If `options` are no letters.

    Example:
        >>> from inferscale.answers import Choice
        >>> reader = Choice("ABCD")
        >>> reader("A is too small, so the answer is (C)."), reader("Both B and C.")
        ('C', None)
    """

    options: str = "ABCDEFGHIJ"
    kind: ClassVar[str] = "choice"

    def __post_init__(self) -> None:
        """Refuse options that are no letters."""
        if not isinstance(self.options, str) or not self.options.isalnum():
            raise ValueError(f'Choice({self.options!r}): give the letters in a row, such as "ABCD"')

    def find(self, text: str, stated: bool = False) -> str | None:
        """Return the letter that is given as the answer, else one that begins or ends the text alone.

        Several letters together (``"B and C"``) are no answer to a question with one.
        """
        letters = re.escape("".join(sorted({*self.options.upper(), *self.options.lower()})))
        begins = re.compile(rf"{_BEFORE_LETTER}([{letters}])(?=[\s.):,;\]}}*_$\"'`”’>\\/。，、）-]|$)(?![-'’]\w)")
        more = re.compile(rf"[)\s*_]*(?:,|/|&|\band\b|\bor\b)\s*(?:(?:and|or)\s+)?\(?[{letters}]\)?[\s*_]*(?:[.,;:]|$)")
        both = re.compile(rf"(?:both|either|neither)\s+\(?[{letters}]\)?\s+(?:and|or|nor)\s", re.IGNORECASE)
        for way in (_declared, _after_final_line, _boxed, _phrase_lines):
            for candidate in way(text):
                if both.match(candidate):
                    return None
                match = begins.match(candidate)
                if match is not None and not _is_article(match[1], candidate[match.end() :]):
                    return None if more.match(candidate, match.end()) else str(match[1])
        named = re.compile(rf"\b(?:option|choice|answer)\b\s*(?:is|:)?\s*[*_]*\(?([{letters}])\)?(?![\w'’])", re.I)
        capitals = letters.upper() if self.options.isalpha() else letters
        called = re.compile(
            rf"(?<![\w'’])([{capitals}])[)*_\"'.]*\s+(?:is|must be)\s+(?:\w+ly\s+)?(?:the\s+)?(?:only\s+)?"
            rf"(?:correct|right|true|best|answer)\b"
            rf"|\b(?:choose|chose|pick|select|go(?:ing)? with|must be|is|[Ii]t['’]s)\s+{_BEFORE_LETTER}([{capitals}])"
            rf"(?=\W*$|[)*_]*(?:[.,;:](?=\s)|\s+(?:because|since|as|over|not)\b))"
            rf"|\b(?i:hence|thus|therefore|so),?\s+\(?([{capitals}])\)?(?=\W*$)"
            rf"|\b[Oo]nly\s+\(?([{capitals}])\)?\s+(?:remains|fits|works|is\s+left)\b"
        )
        for pattern in (called, named):
            found = [
                match[match.lastindex or 1]
                for match in pattern.finditer(text)
                if not _DENIED.match(text, match.end())
                and not _is_article(match[match.lastindex or 1], text[match.end() :])
            ]
            if found:
                return str(found[-1])
        alone = begins.match(text.strip()[:80])
        if not stated and alone is not None and not re.search(r"\w", text.strip()[alone.end() :]):
            return str(alone[1])
        if stated:
            return None
        lines = [line.strip(" \t\r\"'`[]") for line in text.strip().splitlines() if line.strip()]
        starts = [re.match(rf"[*_]*\(?([{letters}])(?:[.):][*_]*(?:\s|$)|\)?[*_]*$)", line) for line in lines]
        listed = len({match[1] for match in starts if match is not None}) > 1  # the options, repeated
        for line, match in zip([*lines[:1], *lines[-1:]], [*starts[:1], *starts[-1:]], strict=True):
            if match is not None and not (listed and match.end() < len(line)):
                return str(match[1])
        marked = re.findall(rf"\(([{letters}])\)|\*\*\(?([{letters}])\)?\.?\*\*", text)
        return (marked[-1][0] or marked[-1][1]) if marked else None

    def same(self, first: str, second: str) -> bool:
        """True for the same letter, whatever its case and brackets."""
        return first.strip("()[]. ").casefold() == second.strip("()[]. ").casefold()


_BEFORE_LETTER = (  # markup and words that may stand before the letter
    r"(?:[\s*_$(\[<{\"'`“‘]|\\[(\[]|\\(?:text|math)[a-z]*\s*\{|\\(?:mbox|boxed|fbox)\s*\{"
    r"|(?i:the|letter|option|choice|\w+ly|therefore|indeed|thus)\b(?=[\s(:*]))*"
)
_DENIED = re.compile(
    r"[)*_\"'.]*\s+(?:(?:is|are|was|must|would|seems|can)\s+(?:\w+ly\s+)?(?:not|incorrect|wrong|false|too|ruled|out)\b"
    r"|\w+n['’]t\b|cannot\b|does\s+not\b)"
)


def _is_article(letter: str, rest: str) -> bool:
    """True for "a car", "I think": a word and no choice."""
    return (
        letter in "aAI"
        and re.match(r"\s+[a-z]{2,}", rest) is not None
        and not re.match(r"\s+(?:because|since|as|for|but|is|and)\b", rest)
    )


@dataclass(frozen=True)
class YesNo(AnswerReader):
    """``"yes"`` or ``"no"``; "true" and "false" mean the same.

    Example:
        >>> from inferscale.answers import YesNo
        >>> YesNo()("No. The two sides differ."), YesNo()("The statement is not true."), YesNo().same("yes", "True")
        ('no', 'no', True)
    """

    kind: ClassVar[str] = "yesno"

    def find(self, text: str, stated: bool = False) -> str | None:
        """Return the verdict that is given as the answer, else the one that begins the text, else its last one."""
        for way in (_declared, _after_final_line, _boxed, _phrase_lines, _after_hashes):
            for candidate in way(text):
                if (verdict := next(_verdicts(candidate[:80]), None)) is not None:
                    return verdict[1]
        if stated:
            return None
        found = list(_verdicts(text))
        if found and not text[: found[0][0]].strip(" \t\r\n*_\"'>#") and found[0][2]:
            return found[0][1]
        return found[-1][1] if found else None

    def same(self, first: str, second: str) -> bool:
        """True for the same verdict."""
        return _verdict(first.strip(" .*_")) == _verdict(second.strip(" .*_"))


_YES_NO = re.compile(
    r"(?:\b(not|isn['’]t|never|cannot be)\s+(?:\w+ly\s+|a\s+)?)?\b(yes|no|true|false)\b"
    r"(?P<other>[\s,]*\b(?:and|or|nor)\s+(?:yes|no|true|false)\b|/(?:yes|no|true|false)\b)?"
    r"(?P<noun>[ \t]+(?!(?:because|since|as|for|but|it|they|he|she|you|we|i|that|this|there|the)\b)[a-z])?",
    re.IGNORECASE,
)


def _verdicts(text: str) -> Iterator[tuple[int, str, bool]]:
    """Start of each verdict, itself, and whether it stands alone; "no reason", "yes or no", "not yes" are none."""
    for match in _YES_NO.finditer(text):
        word, negated, noun = match[2].lower(), match[1] is not None, match["noun"] is not None
        if match["other"] or (word == "no" and noun) or (negated and word in ("yes", "no")):
            continue
        verdict = _verdict(word)
        yield match.start(), {"yes": "no", "no": "yes"}[verdict] if negated else verdict, not noun


def _verdict(word: str) -> str:
    return {"true": "yes", "false": "no"}.get(word.lower(), word.lower())


@dataclass(frozen=True)
class Expression(AnswerReader):
    r"""A formula: the one that is given as the answer, else the last one, whole.

    Example:
        >>> from inferscale.answers import Expression
        >>> reader = Expression()
        >>> reader(r"Hence $f(x) = \boxed{2x + 1}$."), reader.same("2x + 1", "2x+1")
        ('2x + 1', True)
    """

    kind: ClassVar[str] = "expression"

    def find(self, text: str, stated: bool = False) -> str | None:
        """Return the formula in the best evidence."""
        return _first(candidate for way in (*_STATED, *(() if stated else _UNSTATED)) for candidate in way(text))


@dataclass(frozen=True)
class Text(AnswerReader):
    r"""The whole text, or what follows its last "Answer:" line; compared without case and white space.

    Attributes:
        after: A text after whose last occurrence the answer begins; "" takes the whole.

    Example:
        >>> from inferscale.answers import Text
        >>> reader = Text(after="Answer:")
        >>> reader("The sky.\nAnswer: Deep  blue"), reader.same("Deep  blue", "deep blue")
        ('Deep  blue', True)
    """

    after: str = ""
    kind: ClassVar[str] = "text"

    def find(self, text: str, stated: bool = False) -> str | None:
        """Return the text."""
        _, mark, tail = text.rpartition(self.after) if self.after else ("", "", text)
        return (tail.strip() or None) if mark or not self.after else None

    def read_cut(self, text: str, thinking: Thinking | None = None) -> str | None:
        """Return ``None``: a text that was cut off is not whole."""
        return None

    def same(self, first: str, second: str) -> bool:
        """True for the same words."""
        return " ".join(first.casefold().split()) == " ".join(second.casefold().split())


@dataclass(frozen=True)
class Code(AnswerReader):
    r"""The last fenced block of code, or the whole text if there is no fence; compared line by line.

    Example:
        >>> from inferscale.answers import Code
        >>> text = "Sure:\n```python\ndef double(x):\n    return 2 * x\n```\nIt doubles x."
        >>> print(Code()(text))
        def double(x):
            return 2 * x
    """

    kind: ClassVar[str] = "code"

    def find(self, text: str, stated: bool = False) -> str | None:
        """Return the code."""
        block: list[str] = []
        last, fence = None, ""
        for line in text.splitlines():
            mark = line.strip()
            if not fence and mark.startswith(("```", "~~~")):
                fence, block = mark[:3], []
            elif fence and mark.startswith(fence) and not mark.strip(fence[0]):
                last, fence = "\n".join(block), ""
            else:
                block.append(line)
        if last is not None:
            return last.strip("\n") or None
        return None if stated or "```" in text else text.strip("\n") or None

    def read_cut(self, text: str, thinking: Thinking | None = None) -> str | None:
        """Return the last block that was closed before the cut."""
        final = final_part(text, thinking, self.find)
        return None if final is None else self.find(final, stated=True)

    def same(self, first: str, second: str) -> bool:
        """True for the same lines, spaces at their ends apart."""
        one, two = ([line.rstrip() for line in text.strip().splitlines()] for text in (first, second))
        return one == two


@dataclass(frozen=True)
class Before(AnswerReader):
    r"""Another reader, on the text before the first of some stop texts; where there is one, the text is not cut.

    Attributes:
        stops: The stop texts, such as ``"\nQuestion:"`` of a base model that goes on with a question of its own.
        reader: The other reader; ``None`` is that of the problem's kind.

    Example:
        >>> from inferscale.answers import Before, Number
        >>> reader = Before(("\n\nExercise",), Number())
        >>> text = "3 + 4 = 7\n\nExercise 2. Add 2 to 7, which gives 9."
        >>> Number()(text), reader(text)
        ('9', '7')
    """

    stops: tuple[str, ...]
    reader: Reader | None = None
    kind: ClassVar[str] = "before"

    def find(self, text: str, stated: bool = False) -> str | None:
        """Return what the other reader finds before the stop."""
        own, other = text_before(text, self.stops), self.reader or read_answer
        return other.find(own, stated) if isinstance(other, AnswerReader) else other(own)

    def read_cut(self, text: str, thinking: Thinking | None = None) -> str | None:
        """Return what the other reader reads before the stop; in a text that was cut before one, as it reads such."""
        final = final_part(text, thinking, self.find)
        if final is None:
            return None
        own = text_before(final, self.stops)
        return answer_of(self.reader or read_answer, own, own == final and text.endswith(final), NO_THINKING)

    def same(self, first: str, second: str) -> bool:
        """True if the two are the same for the other reader."""
        return equality_of(self.reader).same(first, second)

    def normalize(self, answer: str) -> str:
        """Return the other reader's normal form."""
        return equality_of(self.reader).normalize(answer)

    def for_kind(self, kind: str | None) -> AnswerReader:
        """Return this reader, with that of the problem's kind if it has no other."""
        return Before(self.stops, chosen_reader(self.reader, kind))


KINDS: dict[str, Callable[..., AnswerReader]] = {
    "any": _BestEvidence,
    "number": Number,
    "choice": Choice,
    "yesno": YesNo,
    "expression": Expression,
    "code": Code,
    "text": Text,
}
"""Kinds of answers by name. ``"choice:ABCDE"`` says which letters there are, ``"text:Answer:"`` after what the text
begins; ``"any"`` is `read_answer`.

Example:
    >>> import inferscale as isc
    >>> sorted(isc.answers.KINDS)
    ['any', 'choice', 'code', 'expression', 'number', 'text', 'yesno']
    >>> problem = isc.Problem("Which? A) 3 B) 4 C) 5", answer="B", kind="choice:ABC")
    >>> isc.answers.reader_of(problem.kind)("So it must be B).")
    'B'
"""


@lru_cache
def reader_of(kind: str) -> AnswerReader:
    """Return the reader of a kind, by its name in `KINDS`.

    Raises:
        TypeError: If `kind` is no text.
        ValueError: If there is no such kind.

    Example:
        >>> from inferscale.answers import reader_of
        >>> reader_of("choice:ABCD")("So the answer is (C).")
        'C'
        >>> reader_of("letters")
        Traceback (most recent call last):
            ...
        ValueError: unknown kind of answer 'letters': choose one of any, number, choice, yesno, expression, code, text
    """
    if not isinstance(kind, str):
        raise TypeError(f'kind={kind!r:.80}: name it, such as "number" or "choice:ABCD"; a reader goes in read_answer=')
    name, colon, option = kind.partition(":")
    if name not in KINDS:
        raise ValueError(f"unknown kind of answer {kind!r}: choose one of {', '.join(KINDS)}")
    if not colon:
        return KINDS[name]()
    if name not in ("choice", "text"):
        raise ValueError(f"kind={kind!r}: {name} takes nothing after a colon; choice:ABCDE and text:Answer: do")
    return KINDS[name](option)


def kind_of(reader: Reader | None) -> str | None:
    """Return the name by which `reader_of` makes a reader with the same equality; ``None`` for one of your own.

    Example:
        >>> from inferscale.answers import Choice, kind_of
        >>> kind_of(Choice("ABCD")), kind_of(lambda text: text)
        ('choice:ABCD', None)
    """
    if isinstance(reader, Before):
        return kind_of(reader.reader)
    if not isinstance(reader, AnswerReader) or type(reader) not in KINDS.values():
        return None
    option = reader.options if isinstance(reader, Choice) else reader.after if isinstance(reader, Text) else ""
    name = reader.kind
    return name if reader == reader_of(name) else f"{name}:{option}"


def chosen_reader(reader: Reader | None, kind: str | None) -> Reader:
    """Return the reader of a problem's answers: the one that was given, else that of its kind, else `read_answer`."""
    if isinstance(reader, AnswerReader):
        return reader.for_kind(kind)
    return reader or equality_of(None, kind)


def equality_of(reader: Reader | None, kind: str | None = None) -> AnswerReader:
    """Return the reader whose equality counts: a plain function has none, so that it is that of the problem's kind."""
    if isinstance(reader, AnswerReader):
        return reader
    return read_answer if kind is None else reader_of(kind)


_DOUBLED = re.compile(r"(?<!\\)\\\\(?=(?:d?frac|boxed|left|right|text|sqrt|pi|cdot|times|infty|cup)(?![a-z]))")


def _plain_text(text: str) -> str:
    r"""`text` without GSM8K's calculator marks, and with one backslash where ``\\frac`` was escaped twice."""
    text = re.sub(r"<<[^<>]*>>", "", text)
    return re.sub(r"(?<!\\)\\\\(?=[A-Za-z])", r"\\", text) if _DOUBLED.search(text) else text


def _first(candidates: Iterable[str]) -> str | None:
    for candidate in candidates:
        answer = candidate.strip()
        if answer and len(answer) <= MAX_ANSWER_CHARS:
            return answer
    return None


def _last(matches: Iterator[T]) -> Iterator[T]:
    """The last `_MAX_CANDIDATES`, last one first."""
    return reversed(deque(matches, maxlen=_MAX_CANDIDATES))


_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:\{|([^\s{}$\\]+))")
_NEXT_STEP = re.compile(
    r"\b(?:then|so|but|thus|hence|therefore|now|next|which|gives?|means?|not|instead|is|was|wait)\b", re.I
)


def _boxes(text: str) -> list[tuple[int, str]]:
    r"""Start and contents of the last ``\boxed{...}``, in order; "" for one that was never closed."""
    found = []
    for match in _last(_BOX.finditer(text)):
        if match[1] is not None:
            found.append((match.start(1), match[1].rstrip(".,;")))
        elif (content := _balanced(text, match.end())) is not None:
            found.append((match.end(), content))
        else:
            found.append((match.end(), ""))  # open: what stands before it is no answer any more
    return found[::-1]


def _has_open_box(text: str) -> bool:
    r"""True if the last ``\boxed{`` was never closed: the text was cut while its answer was being written."""
    last = next(_last(_BOX.finditer(text)), None)
    return last is not None and last[1] is None and _balanced(text, last.end()) is None


def _boxed(text: str) -> Iterator[str]:
    r"""Contents of ``\boxed{...}``, last one first; boxes of one sentence together."""
    boxes = [(start, content) for start, content in _boxes(text) if content.strip()]
    group: list[str] = []
    for index in range(len(boxes) - 1, -1, -1):
        start, content = boxes[index]
        before = boxes[index - 1] if index else None
        if before is not None and start < before[0] + len(before[1]):
            continue  # a box in a box
        inner = _BOX.match(content)
        group.insert(0, content if inner is None or inner[1] is not None else content[inner.end() :].rstrip("}"))
        gap = None if before is None else _BOX.sub("", text[before[0] + len(before[1]) + 1 : start])
        if gap is None or not _joins(gap):
            yield ", ".join(dict.fromkeys(group))
            group = []


def _joins(gap: str) -> bool:
    """True if the text between two boxes says that both belong to one answer."""
    if len(gap) > 60 or _SENTENCE_END.search(gap) or _NEXT_STEP.search(gap):
        return False
    bare = re.sub(r"\\[()\[\]]|[\s$]|\\q?quad|\\text", " ", gap).strip()
    return not bare or bare[0] in ",;" or re.search(r"\b(?:and|or)\b|,", bare) is not None


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


def _phrase_lines(text: str) -> Iterator[str]:
    """The line that follows "the answer is", as it is, last one first."""
    for match in _last(_PHRASE.finditer(text)):
        yield text[match.end() : match.end() + 2 * MAX_ANSWER_CHARS].split("\n", 1)[0]


def _declared(text: str) -> Iterator[str]:
    """The answer in a field of JSON or in a tag that is named so, last one first."""
    for match in _last(_DECLARED.finditer(text)):
        content = next((group for group in match.groups() if group is not None), "").strip()
        inner = next((inner for way in (_boxed, _after_phrase) for inner in way(content)), None)
        yield content if inner is None else inner


def _after_final_line(text: str) -> Iterator[str]:
    """The line after "the final answer is" behind every box, or after any "the answer is" if the box is taken back."""
    boxes = _boxes(text)
    start = boxes[-1][0] + len(boxes[-1][1]) if boxes else len(text)
    last = next(_last(match for match in _PHRASE.finditer(text, start)), None)
    if last is None:
        return
    between = text[start : last.start()]
    if re.search(r"\b(?:final|correct)\s+$", between, re.IGNORECASE) or _TAKEN_BACK.search(between):
        yield text[last.end() : last.end() + 2 * MAX_ANSWER_CHARS]


def _after_final(text: str) -> Iterator[str]:
    """The answer of `_after_final_line`, without the sentence around it."""
    yield from map(_bare, _after_final_line(text))


def _after_phrase(text: str) -> Iterator[str]:
    """The texts after "the answer is", last one first."""
    for match in _last(_PHRASE.finditer(text)):
        rest = text[match.end() : match.end() + 2 * MAX_ANSWER_CHARS]
        if "\n" in match[0]:
            rest = re.sub(r"^(?:[-–—•+]|1[.)])\s+(?=\S)", "", rest)  # an item of a list, not a sign
        yield _bare(rest)


def _before_phrase(text: str) -> Iterator[str]:
    """The formula, number or letter before "is the answer", last one first."""
    for match in _last(_BEFORE_PHRASE.finditer(text)):
        before = text[max(0, match.start() - MAX_ANSWER_CHARS) : match.start()].rstrip()
        formulas = [formula for formula in _INLINE_MATH.finditer(before) if formula.end() == len(before)]
        word = before.rsplit(maxsplit=1)[-1:] if not formulas else [formulas[-1][0]]
        if word and re.search(r"[\d$\\]|^\W*[A-Z]\W*$", word[0]):
            yield _bare(word[0])


def _after_option(text: str) -> Iterator[str]:
    """The letter after "option"."""
    for match in _last(_OPTION.finditer(text)):
        yield match[1]


def _after_hashes(text: str) -> Iterator[str]:
    """The texts after ``####``, last one first."""
    for part in _last(iter(text.split("####")[1:])):
        yield _bare(part[: 2 * MAX_ANSWER_CHARS])


def _nothing_else(text: str) -> Iterator[str]:
    """A text that is nothing but an answer: a formula, formulas joined by "and", a number, a quantity."""
    bare = text.strip()
    if not bare or len(bare) > MAX_ANSWER_CHARS:
        return
    joined = _joined_formulas(bare)
    if joined is not None:
        yield joined
    elif _COMPOUND.fullmatch(bare.rstrip(".")):
        yield bare.rstrip(".")
    elif "\n" not in bare and _BARE_START.match(bare) and not _WORD.search(bare):
        yield _formula(bare.rstrip(".,;")) if "=" in bare else bare.rstrip(".,;")


def _first_line(text: str) -> Iterator[str]:
    """A number that is the first line alone, before an explanation."""
    line, _, rest = text.strip().partition("\n\n")
    number = _NUMBER.fullmatch(line.strip(" *_$."))
    if number is not None and _WORD.search(rest):
        yield number[0]


def _joined_formulas(text: str) -> str | None:
    """Formulas and nothing between them but "and", "or" and commas: their contents; ``None`` for any other text."""
    display = re.sub(r"\$\$(.+?)\$\$", lambda match: f"${match[1].strip()}$", text, flags=re.DOTALL)
    matches = list(_DISPLAY_MATH.finditer(display)) or list(_INLINE_MATH.finditer(display))
    if not matches:
        return None
    between, end = [], 0
    for match in matches:
        between.append(display[end : match.start()])
        end = match.end()
    between.append(display[end:])
    if not all(_JOINED.fullmatch(gap) for gap in between) or re.search(r"[A-Za-z]", between[0] + between[-1]):
        return None
    contents = [next(group for group in match.groups() if group is not None).strip() for match in matches]
    return _formula(contents[0]) if len(contents) == 1 else ", ".join(contents)


def _last_value(text: str) -> Iterator[str]:
    """The last formula or the last number, whichever ends later; formulas of one sentence that belong together."""
    number, number_end = "", -1
    for found in _NUMBER.finditer(text):
        number, number_end = found[0], found.end()
    tail_start = max(0, len(text) - 8 * MAX_ANSWER_CHARS)
    tail = text[tail_start:]
    spans = sorted(
        (match.start(), match.end(), match)
        for pattern in (_DISPLAY_MATH, _INLINE_MATH)
        for match in pattern.finditer(tail)
    )
    if spans and tail_start + spans[-1][1] >= number_end:
        joined = [spans[-1][2]]
        for start, end, match in reversed(spans[:-1]):
            gap = tail[end : joined[0].start()]
            if start < end <= joined[0].start() and gap.strip() and _JOINED.fullmatch(gap) and "." not in gap:
                joined.insert(0, match)
            else:
                break
        contents = [next(group for group in match.groups() if group is not None).strip() for match in joined]
        whole = tail[joined[0].start() : joined[-1].end()]
        same_name = len({_sides(content)[0].strip() for content in contents}) == 1 and "=" in contents[0]
        together = len(joined) > 1 and (_AND.search(whole) or same_name)
        yield ", ".join(contents) if together else _formula(contents[-1])
    yield from _last_compound(text)
    listed = _LISTED.search(tail)
    if listed is not None:
        yield listed[1]
    unit = _AFTER_NUMBER.match(text, number_end) if number_end >= 0 else None
    yield _number_and_measure(number, unit)


def _last_compound(text: str) -> Iterator[str]:
    """The last quantity of several numbers and units of measure, if no number follows."""
    tail = text[-8 * MAX_ANSWER_CHARS :]
    match = next(_last(_COMPOUND.finditer(tail)), None)
    if match is not None and _is_compound(match[0]) and not _NUMBER.search(tail, match.end()):
        yield match[0]


def _is_compound(text: str) -> bool:
    """True for a quantity of several numbers and units of measure: "3 hours and 20 minutes"."""
    bare = text.strip(" .")
    return _COMPOUND.fullmatch(bare) is not None and all(
        map(_measure, re.findall(r"\d\s+([a-z]+)", bare, re.IGNORECASE))
    )


def _emphasised(text: str) -> Iterator[str]:
    """The last number in bold on the last line."""
    line = text.rstrip().rpartition("\n")[2]
    for match in _last(re.finditer(r"\*\*([^*]+)\*\*", line)):
        number = _NUMBER.match(match[1].strip())
        if number is not None and _AFTER_NUMBER.fullmatch(match[1].strip(), number.end()):
            yield match[1].strip()
        elif number is not None and number.end() == len(match[1].strip()):
            yield _number_and_measure(number[0], _AFTER_NUMBER.match(line, match.end()))


def _numbers(text: str) -> Iterator[str]:
    """The last number."""
    last = ""
    for match in _NUMBER.finditer(text):
        last = match[0]
    yield last.lstrip(CURRENCY)


def _number_and_measure(number: str, after: re.Match[str] | None) -> str:
    """The number, with the unit of measure that follows it."""
    number = number.lstrip(CURRENCY)
    if not number or after is None or not _measure(f"{after[1] or ''}{after[2]}{after[3] or ''}"):
        return number
    return f"{number} {(after[1] or '')}{after[2]}{after[3] or ''}"


_ALIGNED = re.compile(r"\\(?:begin|end)\{(?:aligned|gathered|split|align\*?)\}")
_MODULUS = re.compile(r"\\?\|\s*(?:\\vec|\\mathbf)?\s*\{?\\?[A-Za-z]+\}?\s*\\?\|")


def _formula(text: str) -> str:
    """The value that a formula gives: the right side of ``x = 5`` and of ``6 * 8 = 48``; an equation stays whole."""
    text = text.strip().rstrip(".,; ")
    rows = _ALIGNED.sub("", text)
    if rows != text or ("&" in text and "\\begin" not in text):  # the last row of aligned equations
        text = ([row for row in rows.split("\\\\") if row.strip()] or [""])[-1].replace("&", "").strip().rstrip(".,; ")
    parts = _sides(text)
    if len(parts) == 1:
        return _NAMED.sub("", text, count=1).strip() if re.search(r"\\approx|≈", text) else text
    if any(_CONNECTORS.search(part) and _split(part)[1:] for part in parts[1:-1]) or len(_split(text)) > 1:
        return text  # several equations
    left, right = parts[0].strip(), parts[-1].strip()
    right = re.split(r"\\approx(?![a-z])|≈", right)[0].strip() or right
    if (
        re.fullmatch(_NAME, left)
        or re.match(r"\\(?:lim|int|sum|prod)(?![a-z])", left)
        or _MODULUS.fullmatch(left)
        or not (_has_variable(left) or _has_variable(right))
    ):
        return right
    return right if len(parts) > 2 and right != "0" else text


def _sides(text: str) -> list[str]:
    """`text` at the equals signs that stand in no brace or bracket."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "{([":
            depth += 1
        elif character in "})]":
            depth -= 1
        elif character == "=" and depth <= 0 and text[position - 1 : position] not in ("<", ">", "!", ":", "="):
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _has_variable(text: str) -> bool:
    """True if a letter stands for something; not that of a command, nor the x of ``6 x 8``."""
    bare = re.sub(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    bare = re.sub(r"(?<=\d)\s*x\s*(?=\d)", " ", bare)
    return re.search(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", bare) is not None


def _bare(text: str) -> str:
    """The answer at the start of `text`, without the sentence around it."""
    text = text.lstrip()
    display = _DISPLAY_MATH.match(text)
    if display is not None:
        return _formula(next(group for group in display.groups() if group is not None))
    sentence = _SENTENCE_END.split(text, maxsplit=1)[0]
    for pattern in (_VERDICT, _LETTER):
        short = pattern.match(sentence)
        if short is not None and (pattern is _VERDICT or short.end() < len(sentence.rstrip(" *_"))):
            return short[1]
    sentence = sentence.strip().strip("*_`\"'“”").rstrip(".,;:!?")
    if sentence.count("]") > sentence.count("[") + sentence.count("("):
        sentence = sentence.rstrip("].")  # [answer: 5]
    date = _DATE.match(sentence)
    if date is not None:
        return date[0]
    sentence = re.split(r",?\s+(?:because|since)\b", sentence, maxsplit=1)[0]
    linked = _LINKED.search(sentence)
    if linked is not None and not _STARTS_WITH_NUMBER.match(sentence):
        sentence = linked[1]
    joined = _joined_formulas(sentence)
    if joined is not None:
        return joined
    math = _INLINE_MATH.match(sentence) or (_INLINE_MATH.search(sentence) if _WORD.search(sentence) else None)
    if math is not None:
        return _formula(math[1] or math[2] or math[3])
    choice = _CHOICE.match(sentence)
    if choice is not None and sentence.strip("() ") != (choice[1] or choice[2]):
        return choice[1] or choice[2]
    if not _WORD.search(sentence):
        return _formula(sentence) if "=" in sentence else sentence
    if _COMPOUND.fullmatch(sentence):
        return sentence
    _, equals, right = sentence.partition("=")
    if equals and "=" not in right and _NUMBER.match(right.strip()):
        return _number_at(right)
    return _number_at(sentence) or sentence


def _number_at(sentence: str) -> str:
    """The first number of a sentence, with its unit of measure; "" if there is none."""
    number = _NUMBER.search(sentence)
    return "" if number is None else _number_and_measure(number[0], _AFTER_NUMBER.match(sentence, number.end()))


def text_before(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of the stop texts."""
    cut = min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))
    return text[:cut]


_STATED = (_declared, _after_final, _boxed, _after_phrase, _before_phrase, _after_option, _after_hashes)
_UNSTATED = (_nothing_else, _first_line, _emphasised, _last_value)
"""Ways to find the answer, the best evidence first: where it is said to be one, and where it is not."""


__all__ = [
    "KINDS",
    "MAX_ANSWER_CHARS",
    "AnswerGroups",
    "AnswerReader",
    "Before",
    "Choice",
    "Code",
    "Expression",
    "Normalize",
    "Number",
    "Reader",
    "SameAnswer",
    "Text",
    "YesNo",
    "group_answers",
    "kind_of",
    "normalize_answer",
    "parse_number",
    "read_answer",
    "reader_of",
    "same_answer",
]
