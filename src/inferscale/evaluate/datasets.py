r"""Data sets as problems with prompts: GSM8K, MATH, SVAMP, your own rows, and the embedded task.

Rows come from local files, from tables that are in memory (a data set of ``datasets``, a data frame, a list of
dictionaries), or from the hub through the optional ``datasets`` package. Gold answers are the text after ``####``
(GSM8K), the ``answer`` field or the last ``\boxed{}`` (MATH), the number (SVAMP), or the field you name.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import islice
from numbers import Number, Real
from pathlib import Path
from string import ascii_uppercase
from typing import Any, TypeAlias

from inferscale.answers import Before, Reader, normalize_answer, read_answer, reader_of
from inferscale.tree import Problem


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set.

    Attributes:
        question: The question alone.
        answer: The gold answer, without markup.
        solution: A worked solution, for few-shot prompts; ``""`` if there is none.
        id: A name for tables and files.
        group: What results may be split by (a level, a type); ``""`` if there is nothing.
        domain: The field that the question is from (a subject, a kind of operation); ``""`` if it is not known.
        kind: What the answer is, see `Problem`; ``None`` if it is not known.
        columns: Whatever else the row holds, by name.
        messages: The turns of a question that is a conversation, as `Problem` takes them; `question` is their text.

    Example:
        >>> from inferscale.evaluate import STYLES, Example
        >>> shot = Example("A pen costs 2 euros. What do 3 pens cost?", answer="6", solution="3 * 2 = 6")
        >>> print(STYLES["cot"].with_shots([shot]).prompt("How many legs have 4 dogs?"))
        Question: A pen costs 2 euros. What do 3 pens cost?
        Answer: Let's think step by step.
        3 * 2 = 6
        The answer is 6.
        <BLANKLINE>
        Question: How many legs have 4 dogs?
        Answer: Let's think step by step.
    """

    question: str
    answer: str
    solution: str = ""
    id: str = ""
    group: str = ""
    domain: str = ""
    kind: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    messages: Sequence[Mapping[str, Any]] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class PromptStyle:
    r"""A prompt format.

    Attributes:
        template: The prompt of one question, with ``{question}`` once; what the model writes follows it.
        shown: What is shown as the completion of a worked example, with ``{solution}`` and ``{answer}``.
        instruction: Put before everything.
        separator: Between worked examples, and before the question.
        stop: What a base model writes when it goes on with a question of its own; answers are read before it.
        shots: Worked examples.
        as_turns: True makes conversations (``Problem.messages``) for generators with a chat template: the instruction
            is the system's turn, a worked example one of the user's and one of the assistant's.

    Raises:
        ValueError: If the template does not hold ``{question}`` once.

    Example:
        >>> from inferscale.evaluate import Example, PromptStyle
        >>> style = PromptStyle("Q: {question}\nA:", shown=" {answer}", stop="\nQ:")
        >>> print(style.with_shots([Example("1 + 1?", "2")]).prompt("2 + 2?"))
        Q: 1 + 1?
        A: 2
        <BLANKLINE>
        Q: 2 + 2?
        A:
        >>> read = style.reader()
        >>> read(" 4\nQ: What is 5 + 5?\nA: 10")  # a base model goes on with a question of its own
        '4'
    """

    template: str
    shown: str = "{solution}\nThe answer is {answer}."
    instruction: str = ""
    separator: str = "\n\n"
    stop: str = "\nQuestion:"
    shots: tuple[Example, ...] = ()
    as_turns: bool = False

    def __post_init__(self) -> None:
        """Refuses a template without the question."""
        if self.template.count("{question}") != 1:
            raise ValueError(f"template={self.template!r} must hold {{question}} once: it is where the question goes")

    def with_shots(self, shots: Sequence[Example]) -> PromptStyle:
        """This style with worked examples.

        Raises:
            ValueError: If the style shows solutions and an example has none.
        """
        bare = [shot for shot in shots if not shot.solution] if "{solution}" in self.shown else []
        if bare:
            raise ValueError(f"the example {bare[0].id or bare[0].question[:60]!r} has no solution to show: choose "
                             "others, or style 'direct'")  # fmt: skip
        return replace(self, shots=tuple(shots))

    def prompt(self, question: str) -> str:
        """The whole prompt of a question; of turns, their text."""
        if self.as_turns:
            return Problem(messages=self.messages(Example(question, ""))).prompt
        parts = [self.instruction] if self.instruction else []
        parts += [self._before_shown(shot.question) + self._shown(shot) for shot in self.shots]
        return self.separator.join([*parts, self._before_shown(question) if self.shots else self._filled(question)])

    def messages(self, example: Example) -> list[Mapping[str, Any]]:
        """The turns of a question: the system's, those of worked examples, and its own.

        The instruction stands in for a conversation's own system turn, if it has none; its last turn of the user's is
        put into the template.
        """
        turns = [dict(turn) for turn in example.messages or [{"role": "user", "content": example.question}]]
        asked = max(place for place, turn in enumerate(turns) if turn["role"] == "user")
        turns[asked]["content"] = self._filled(turns[asked]["content"])
        head = [{"role": "system", "content": self.instruction}] if self.instruction else []
        if turns[0]["role"] == "system":
            head, turns = turns[:1], turns[1:]
        for shot in self.shots:
            shown = self._shown(shot).strip()
            asks = shot.messages or [{"role": "user", "content": self._filled(shot.question)}]
            head += [dict(turn) for turn in asks if turn["role"] != "system"]
            head.append({"role": "assistant", "content": shown})
        return [*head, *turns]

    def problem(self, example: Example) -> Problem:
        """The problem of a row; its columns are the row's, with its ``"group"`` and ``"domain"`` if there are any.

        Raises:
            ValueError: If the row is a conversation and the style makes texts.
        """
        if example.messages is not None and not self.as_turns:
            raise ValueError(f"the row {example.id or example.question[:60]!r} is a conversation, of which this style "
                             "would make a text: choose style 'chat', or a PromptStyle with as_turns=True")  # fmt: skip
        told = {name: value for name in ("group", "domain") if (value := getattr(example, name))}
        columns = {**example.columns, **told}
        return Problem(
            "" if self.as_turns else self.prompt(example.question),
            example.answer,
            example.id or None,
            messages=self.messages(example) if self.as_turns else None,
            kind=example.kind,
            columns=columns or None,
        )

    def reader(self, reader: Reader | None = None) -> Reader | None:
        """Reader of answers for prompts of this style, to pass as `read_answer`.

        It reads as `reader` does, by default that of the problem's kind, up to where the model goes on with a question
        of its own.
        """
        return Before((self.stop,), reader) if self.stop else reader

    def _filled(self, question: str) -> str:
        # replaced, not formatted: a question may hold braces
        return self.template.replace("{question}", question)

    def _before_shown(self, question: str) -> str:
        """The template of a question that a solution follows, on a line of its own if nothing else is between them."""
        filled = self._filled(question)
        touches = self.template.endswith("{question}") and not self.shown[:1].isspace()
        return filled + "\n" if touches and not filled.endswith("\n") else filled

    def _shown(self, shot: Example) -> str:
        head, _, tail = self.shown.partition("{solution}")
        whole = head.replace("{answer}", shot.answer)
        if "{solution}" in self.shown:
            boxed = r"\boxed"
            closed = boxed in tail and boxed in shot.solution  # as MATH's solutions are: the answer is not said twice
            whole += shot.solution + ("" if closed else tail.replace("{answer}", shot.answer))
        return whole


STYLES: dict[str, PromptStyle] = {
    "cot": PromptStyle("Question: {question}\nAnswer: Let's think step by step.\n"),
    "direct": PromptStyle("Question: {question}\nAnswer:", shown=" {answer}"),
    "steps": PromptStyle(
        "Question: {question}\nSolution:\n",
        shown="{solution}\nThe answer is: {answer}",
        instruction='Solve the problem. Write one step per line, then a last line "The answer is: " and the answer.',
    ),
    "boxed": PromptStyle(
        "Problem: {question}\nSolution:",
        shown=" {solution}\nThe answer is \\boxed{{answer}}.",
        instruction=r"Solve the problem step by step and put the final answer in \boxed{}.",
        stop="\nProblem:",
    ),
    "plain": PromptStyle("{question}", shown="{solution}", stop=""),
    "chat": PromptStyle("{question}", stop="", as_turns=True),
}
"""Styles by name: ``"cot"`` (zero-shot chain of thought, Kojima et al. 2022, arXiv:2205.11916), ``"direct"`` (the
answer alone), ``"steps"`` (one step per line, for searches over steps), ``"boxed"`` (as MATH's solutions), ``"plain"``
(the question as it is, for the embedded task and for chat models) and ``"chat"`` (the question as a turn, worked
examples as turns before it; for rows that are conversations, too).

Example:
    >>> from inferscale.evaluate import STYLES
    >>> list(STYLES)
    ['cot', 'direct', 'steps', 'boxed', 'plain', 'chat']
    >>> print(STYLES["steps"].prompt("How many legs have 4 dogs?"))
    Solve the problem. Write one step per line, then a last line "The answer is: " and the answer.
    <BLANKLINE>
    Question: How many legs have 4 dogs?
    Solution:
"""


def prompt_style(style: str | PromptStyle) -> PromptStyle:
    r"""The style of that name; a style is returned as it is.

    Raises:
        ValueError: If there is no such style.

    Example:
        >>> from inferscale.evaluate import prompt_style
        >>> prompt_style("direct").template
        'Question: {question}\nAnswer:'
        >>> prompt_style("cots")
        Traceback (most recent call last):
            ...
        ValueError: unknown prompt style 'cots': choose one of cot, direct, steps, boxed, plain, chat, or give a ...
    """
    if isinstance(style, PromptStyle):
        return style
    if style not in STYLES:
        raise ValueError(f"unknown prompt style {style!r}: choose one of {', '.join(STYLES)}, or give a PromptStyle")
    return STYLES[style]


Row: TypeAlias = Mapping[str, Any]


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Rows of a ``.jsonl`` file, a ``.json`` list, a ``.csv`` or ``.tsv`` table, or all ``.json`` files below a folder.

    The first line of a table names its columns; semicolons and tabs between them are told from commas by that line.

    Raises:
        ValueError: If there is no such file, it holds no rows, or a line is not an object or does not fit the header.
    """
    source = Path(path).expanduser()
    if not source.exists():
        raise ValueError(f"there is no file {str(path)!r}: give an existing {_FILES}")
    rows: list[Any] = []
    if source.is_dir():
        for file in sorted(source.rglob("*.json")):
            row = _parsed(_content(file), str(file))
            rows.append({"unique_id": str(file.relative_to(source)), **row} if isinstance(row, dict) else row)
    elif source.suffix == ".json":
        whole = _parsed(_content(source), str(source))
        rows = whole if isinstance(whole, list) else [whole]
    elif source.suffix.lower() in (".csv", ".tsv"):
        rows = _csv_rows(_content(source), str(source))
    else:
        lines = _content(source).split("\n")
        rows = [_parsed(line, f"{source}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"{str(path)!r} holds no rows")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of {str(path)!r} is not an object with fields: {row!r:.80}")
    return rows


def _csv_rows(text: str, where: str) -> list[Any]:
    header = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    try:
        names, rows = list(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise ValueError(f"{where}, line {reader.line_num}, is not CSV ({error}): a quote may be open") from None
    if len(set(names)) < len(names):
        raise ValueError(f"{where} names a column twice: {', '.join(names)}")
    for number, row in enumerate(rows):
        if None in row:
            raise ValueError(f"row {number} of {where} has more cells than the {len(names)} columns of its header: "
                             "put texts with commas in quotes")  # fmt: skip
    return rows


def table_rows(table: Any, split: str | None = None) -> Iterable[Row]:
    """Rows of a table that is in memory.

    Args:
        table: A data set of ``datasets`` (one that streams, too), a data frame of pandas or polars, a table of pyarrow,
            or dictionaries; by their methods, so that none of these packages is imported. Several splits by name
            (``DatasetDict``) need `split`.
        split: The split to take.

    Raises:
        TypeError: If it is no table.
        ValueError: If there is no such split, or a column comes twice.
    """
    if isinstance(table, Mapping) and all(hasattr(part, "column_names") for part in table.values()):
        if split not in table:
            told = "needs split=..." if split is None else f"has no split {split!r}"
            raise ValueError(f"a data set with the splits {', '.join(map(str, table))} {told}")
        return table_rows(table[split])
    if split is not None:
        raise ValueError(f"split={split!r}: this {type(table).__name__} has no splits, give the rows of one")
    for method in ("to_dicts", "to_pylist"):  # polars, pyarrow
        if callable(getattr(table, method, None)):
            return list(getattr(table, method)())
    if hasattr(table, "columns") and callable(getattr(table, "to_dict", None)):  # pandas
        names = list(table.columns)
        if len(set(names)) < len(names):
            raise ValueError(f"the data frame names a column twice: {', '.join(map(str, names))}")
        return list(table.to_dict(orient="records"))
    if isinstance(table, str | bytes | Mapping) or not isinstance(table, Iterable):
        raise TypeError(
            f"{type(table).__name__} {table!r:.60} is no table: give a data set of `datasets`, a data frame, or a list "
            "of dictionaries"
        )
    return table


def example_from_fields(row: Row, number: int, fields: Mapping[str, str]) -> Example:
    """A row of your own.

    Args:
        row: The row.
        number: Its position, its name if it has none.
        fields: Names of the fields for ``"question"``, ``"answer"``, ``"solution"``, ``"id"``, ``"group"``,
            ``"domain"``, ``"answer_kind"`` and ``"choices"``; those left out are looked for under their own names, and
            under ``"prompt"`` or ``"messages"`` for the question, which is a text or a conversation (see `Problem`).
            Choices (a list of texts, or ``{"text": [...], "label": [...]}``) are put under the question with a letter
            for each; the answer is then a letter or label, a place in the list (from 0 on; where the choices are
            numbers, one of these), or one of its texts.

    All other fields become the example's columns, but for what is no plain data (images, bytes).

    Raises:
        ValueError: If the question or the gold answer is missing (``None``, NaN, empty), a conversation does not fit,
            the answer is no text or number, or no choice, or `fields` names a part that there is not.
    """
    extra = ("solution", "id", "group", "domain", "answer_kind", "choices")
    names = {key: key for key in ("question", "answer", *extra)} | dict(fields)
    if unknown := [key for key in fields if key not in ("question", "answer", *extra)]:
        turned = " (the part comes first, then your field)" if fields[unknown[0]] in names else ""
        raise ValueError(
            f"fields={dict(fields)!r:.200}: there is no part {unknown[0]!r} of a row; the parts are question, answer, "
            f"{', '.join(extra)}{turned}"
        )
    if "question" not in fields:
        names["question"] = next((name for name in ("question", "prompt", "messages") if name in row), "question")
    # what was named must be there; only what is optional by nature and was not named may be missing
    optional = {key: _python(row[names[key]] if key in fields else row.get(names[key])) for key in extra}
    asked, messages = row[names["question"]], None
    if isinstance(asked := asked if isinstance(asked, str) else _python(asked), list | tuple):
        messages = _conversation(asked, number, names["question"])
    elif not (isinstance(asked, str) and asked.strip()):
        asked = _question(asked, number)
    answer, kind = _gold(row[names["answer"]], number), _text(optional["answer_kind"]) or None
    if optional["choices"] is not None:
        choices, answer, kind = _lettered(optional["choices"], _python(row[names["answer"]]), number)
        if messages is None:
            asked = f"{asked.rstrip()}\n{choices}"
        else:
            last = max(place for place, turn in enumerate(messages) if turn["role"] == "user")
            messages[last]["content"] = f"{messages[last]['content'].rstrip()}\n{choices}"
    return Example(
        question=asked if messages is None else Problem(messages=messages).prompt,
        messages=None if messages is None else tuple(messages),
        answer=answer,
        solution=_text(optional["solution"]),
        id=str(number if optional["id"] is None else optional["id"]),
        group=_text(optional["group"]),
        domain=_text(optional["domain"]),
        kind=kind,
        columns=_columns(row, {names[key] for key in ("question", "answer", "id", "answer_kind")}),
    )


def _conversation(turns: Sequence[Any], number: int, name: str) -> list[dict[str, Any]]:
    try:
        problem = Problem(messages=turns)
    except (TypeError, ValueError) as error:
        raise ValueError(f"row {number} has a question that is no text and no conversation: {error}") from None
    if problem.prefill and name == "messages":  # of a row for training
        raise ValueError(f"row {number} has messages that end with the assistant's turn, which would be gone on with: "
                         "leave it out, or name their field, fields={'question': 'messages'}")  # fmt: skip
    return problem.turns


def _lettered(choices: Any, answer: Any, number: int) -> tuple[str, str, str]:
    """The choices with their letters, the letter of the answer, and the kind."""
    both = (choices.get("text"), choices.get("label")) if isinstance(choices, Mapping) else (choices, None)
    listed, labels = map(_python, both)
    if not isinstance(listed, list) or not 2 <= len(listed) <= len(ascii_uppercase):
        raise ValueError(f"row {number} has choices that are no list of 2 to 26: {choices!r:.80}")
    texts, letters = [_text(choice) for choice in listed], ascii_uppercase[: len(listed)]
    gold, is_place = _text(answer), isinstance(answer, Real) and answer in range(len(texts)) and answer not in listed
    named = [labels or []] if is_place else [labels or [], texts, [text.casefold() for text in texts]]
    found = [list(map(str, names)) for names in named]
    places = [names.index(name) for names in found for name in (gold, gold.casefold()) if names.count(name) == 1]
    if is_place:  # 1.0 is one, too: pandas has no whole numbers beside NaN
        places.append(int(answer))
    letter = letters[places[0]] if places else gold.strip("()[].: ").upper()
    if len(letter) != 1 or letter not in letters:
        raise ValueError(f"row {number} has the answer {answer!r:.80}, which is none of its {len(texts)} choices: give "
                         f"a letter from A to {letters[-1]}, a place from 0 on, or the text of one")  # fmt: skip
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    return lines, letter, f"choice:{letters}"


def _columns(row: Row, used: set[str]) -> dict[str, Any]:
    """The fields of `row` that are not `used`, in plain data: ``None`` for what is missing, dates as text."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name in used:
            continue
        if _is_missing(value):
            found[str(name)] = None
        elif callable(getattr(value, "isoformat", None)):
            found[str(name)] = value.isoformat()
        else:
            try:
                Problem("?", columns={str(name): value})
            except TypeError:  # no plain data
                continue
            found[str(name)] = value
    return found


def gsm8k_example(row: Row, number: int) -> Example:
    """A row of GSM8K (Cobbe et al. 2021, arXiv:2110.14168): gold after ``####``, calculator marks taken out."""
    solution, marker, gold = str(row["answer"]).rpartition("####")
    if not marker:
        raise ValueError(f"row {number} of GSM8K has no '####' before its gold answer: {row['answer']!r:.80}")
    shown = re.sub(r"<<[^<>]*>>", "", solution).strip()
    return Example(_question(row["question"], number), _gold(normalize_answer(gold), number), shown, f"gsm8k/{number}")


def math_example(row: Row, number: int) -> Example:
    r"""A row of MATH (Hendrycks et al. 2021, arXiv:2103.03874): gold from ``answer``, else the last ``\boxed``."""
    question, solution = _question(row["problem"], number), _text(row.get("solution"))
    given = row.get("answer")
    answer = read_answer(solution) if given in (None, "") else _gold(given, number)
    if not answer:
        raise ValueError(f"row {number} of MATH has neither an answer nor a solution with \\boxed{{...}}")
    level = _text(row.get("level")).removeprefix("Level ")
    name = _text(row.get("unique_id")) or f"math/{number}"
    subject = _text(row.get("subject", row.get("type")))
    return Example(question, answer, solution, name, f"level {level}" if level else "", subject)


def svamp_example(row: Row, number: int) -> Example:
    """A row of SVAMP (Patel et al. 2021, arXiv:2103.07191); the equation stands for a solution."""
    body = _question(row["Body"], number)
    question = f"{body}{'' if body[-1:] in '.?!,' else '.'} {_question(row['Question'], number)}"
    answer = normalize_answer(_gold(row["Answer"], number))
    name = f"svamp/{_text(row.get('ID')) or number}"
    kind = _text(row.get("Type"))
    return Example(question, answer, _text(row.get("Equation")), name, kind, kind)


READERS: dict[str, Callable[[Row, int], Example]] = {
    "gsm8k": gsm8k_example,
    "math": math_example,
    "svamp": svamp_example,
}


def _content(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text in UTF-8: give a {_FILES}") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}): give a .jsonl file with one object per line") from None


_FILES = ".jsonl, .json or .csv file, or a table that is in memory"


def _question(value: Any, number: int) -> str:
    if not (_is_missing(value) or isinstance(value, str | Number)):
        raise ValueError(f"row {number} has a question that is no text: {value!r:.80}")
    text = _text(value)
    if not text:
        raise ValueError(f"row {number} has no question: it is empty")
    return text


def _gold(value: Any, number: int) -> str:
    """The gold answer: a row without one cannot be graded, and is told, not left out."""
    if not isinstance(value, str | Number | None) or (value is not None and _is_missing(value)):
        raise ValueError(f"row {number} has no gold answer that is a text or a number: {value!r:.80}{_WITHOUT}")
    text = _text(value)
    if not text:
        what = "null" if value is None else "empty"
        raise ValueError(f"row {number} has no gold answer: it is {what}{_WITHOUT}")
    return text


_WITHOUT = " (leave out rows that have none)"


def _is_missing(value: Any) -> bool:
    """True for ``None`` and NaN, and what pandas puts in their place."""
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, Number) and value != value)
    )


def _python(value: Any) -> Any:
    """A value without the array or the number of NumPy around it; ``None`` for one that is missing."""
    if _is_missing(value):
        return None
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def _text(value: Any) -> str:
    """A value as text; ``""`` for one that is missing."""
    if _is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():  # whole numbers beside a missing one are floats in pandas
        value = int(value)
    return str(value).strip()


HUB: dict[str, tuple[str, str | None, str]] = {
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "math": ("HuggingFaceH4/MATH-500", None, "test"),
    "svamp": ("ChilleD/SVAMP", None, "test"),
}
"""Where ``datasets`` finds a data set: its hub id, configuration and default split."""

NAMES = ("gsm8k", "math", "svamp", "embedded", "jsonl")
ANSWER_KINDS = {"gsm8k": "number", "math": "expression", "svamp": "number"}
"""Kinds of answers by data set; rows of your own say it themselves, or nothing."""


Data: TypeAlias = str | os.PathLike[str] | Any
"""A file of rows, or a table in memory; see `read_rows` and `table_rows`."""


def load_problems(
    dataset: Data,
    data: Data | None = None,
    *,
    split: str | None = None,
    style: str | PromptStyle | None = None,
    shots: Sequence[Example] = (),
    fields: Mapping[str, str] | None = None,
    kind: str | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """Problems of a data set, in its order.

    Args:
        dataset: ``"gsm8k"``, ``"math"``, ``"svamp"``, ``"embedded"`` (the task of `inferscale.zoo`) or ``"jsonl"``
            (your own rows). Or your own rows themselves: a file or a table, as `data`.
        data: A ``.jsonl``, ``.json``, ``.csv`` or ``.tsv`` file, for MATH a folder, or a table in memory: a data set
            of ``datasets``, a data frame, a list of dictionaries. Without it the hub is asked through the optional
            package ``datasets``.
        split: ``"test"`` or ``"dev"`` of the embedded task; the split of the hub, or of a data set that has several.
        style: A name of `STYLES` or a `PromptStyle`; ``"cot"`` by default, ``"plain"`` for the embedded task,
            and ``"chat"`` for rows whose question is a conversation.
        shots: Worked examples shown before each question, for example ``load_examples("gsm8k", train)[:8]``.
        fields: Names of your own fields by what they hold: ``{"question": "body", "answer": "gold"}``. A row has a
            ``question`` (a text, or a conversation; else ``prompt`` or ``messages`` is taken) and an ``answer``, and
            may have a ``solution``, ``id``, ``group``, ``domain``, ``answer_kind`` and ``choices``, which are put under
            the question with letters; its answer is then a letter, a place from 0 on, or one of their texts. All other
            fields become `Problem.columns`, for reward functions and tables.
        kind: What all answers are (`inferscale.answers.KINDS`), whatever data set and rows say.
        limit: Take the first so many.

    Raises:
        TypeError: If `data` is neither a file nor a table.
        ValueError: If the data set is unknown, a file is missing or empty, a row lacks a field, or an option would
            have no effect (a file for the embedded task, a split of a file).
        ImportError: If the hub is asked and ``datasets`` is not installed.

    Example:
        >>> from inferscale.evaluate import load_problems
        >>> rows = [{"question": "Which is a planet?", "choices": ["Mars", "Sirius"], "answer": "Mars"}]
        >>> problem = load_problems(rows, style="direct")[0]
        >>> print(problem.prompt)
        Question: Which is a planet?
        A. Mars
        B. Sirius
        Answer:
        >>> problem.answer, problem.kind
        ('A', 'choice:AB')
    """
    is_embedded = isinstance(dataset, str) and dataset == "embedded"
    chosen = prompt_style(style or ("plain" if is_embedded else "cot"))
    turns = chosen if style else STYLES["chat"]  # conversations stay what they are
    examples = load_examples(dataset, data, split=split, fields=fields, kind=kind, limit=limit)
    if is_embedded:  # the problems of `inferscale.zoo` as they are: their ids name the level
        examples = [replace(example, group="", domain="") for example in examples]
    styles = [chosen if example.messages is None else turns for example in examples]
    shown = {kind: kind.with_shots(shots) if shots else kind for kind in dict.fromkeys(styles)}
    return [shown[kind].problem(example) for kind, example in zip(styles, examples, strict=True)]


def load_examples(
    dataset: Data,
    data: Data | None = None,
    *,
    split: str | None = None,
    fields: Mapping[str, str] | None = None,
    kind: str | None = None,
    limit: int | None = None,
) -> list[Example]:
    """Rows of a data set before they are put into a prompt, for worked examples or a `PromptStyle` of your own.

    Args:
        dataset: As in `load_problems`.
        data: As in `load_problems`.
        split: As in `load_problems`.
        fields: As in `load_problems`.
        kind: As in `load_problems`.
        limit: Take the first so many.

    Raises:
        TypeError: As `load_problems`.
        ValueError: As `load_problems`.
        ImportError: As `load_problems`.

    Example:
        >>> from inferscale.evaluate import load_examples
        >>> rows = [{"body": "What is 2 + 2?", "gold": 4, "level": "easy", "year": 2026}]
        >>> example = load_examples(rows, fields={"question": "body", "answer": "gold", "group": "level"})[0]
        >>> example.question, example.answer, example.group
        ('What is 2 + 2?', '4', 'easy')
        >>> example.columns  # what else a row holds goes along, for tables and reward functions
        {'level': 'easy', 'year': 2026}
    """
    if kind is not None:
        reader_of(kind)  # refuses an unknown one
    if data is None and _is_data(dataset):
        dataset, data = "jsonl", dataset
    if not isinstance(dataset, str) or dataset not in NAMES:
        raise ValueError(f"unknown data set {dataset!r:.80}: choose one of {', '.join(NAMES)}, or give a {_FILES}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: take at least one problem")
    if dataset == "embedded" and (data is not None or fields):
        raise ValueError("the embedded task is read from no file: name the data set of your file, or 'jsonl'")
    is_file = isinstance(data, str | os.PathLike)
    if is_file and split is not None:
        raise ValueError(f"split={split!r}: a file has no splits, give the path of that split's file")
    if dataset == "embedded":
        return [replace(example, kind=kind or example.kind) for example in _embedded(split)[:limit]]
    if dataset == "jsonl" and data is None:
        raise ValueError(f"the data set 'jsonl' needs data: give the path of your {_FILES}")
    rows = _hub_rows(dataset, split) if data is None else read_rows(data) if is_file else table_rows(data, split)
    name = data if is_file else dataset if data is None else f"the {type(data).__name__}"
    read = _own_rows(fields) if fields or dataset == "jsonl" else READERS[dataset]
    examples = []
    for number, row in enumerate(islice(rows, limit)):  # one that streams is read no further
        if not isinstance(row, Mapping):
            raise TypeError(f"row {number} of {name} is no dictionary: {row!r:.80}")
        try:
            example = read(row, number)
            examples.append(replace(example, kind=kind or example.kind or ANSWER_KINDS.get(dataset)))
        except KeyError as error:
            raise ValueError(
                f"row {number} of {name} has no field {error}: it has {', '.join(map(str, row))}; "
                "give fields={'question': ..., 'answer': ...} (questions without gold answers go to solve_batch as "
                "texts)"
            ) from None
    if not examples:
        raise ValueError(f"{name} holds no rows")
    return examples


def _is_data(given: Any) -> bool:
    """True for rows, or a file of them, where the name of a data set could stand."""
    if not isinstance(given, str | os.PathLike):
        return True
    path = Path(given)
    return given not in NAMES and (path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".json") or path.is_file())


def _own_rows(fields: Mapping[str, str] | None) -> Callable[[Row, int], Example]:
    return lambda row, number: example_from_fields(row, number, fields or {})


def _embedded(split: str | None) -> list[Example]:
    from inferscale import zoo

    if split not in (None, "test", "dev"):
        raise ValueError(f"split={split!r}: the embedded task has 'test' and 'dev'")
    return [_embedded_example(problem) for problem in zoo.problems("dev" if split == "dev" else "test")]


def _embedded_example(problem: Problem) -> Example:
    from inferscale.zoo import task

    solution, level = task.solution(problem.prompt), f"level {task.level_of(problem)}"
    domain = "with division" if " / " in solution else "without division"
    return Example(problem.prompt, str(problem.answer), solution, problem.id or "", level, domain, problem.kind)


def _hub_rows(dataset: str, split: str | None) -> Iterable[Row]:
    name, configuration, default = HUB[dataset]
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise ImportError(
            f"{dataset} without a local file needs the package datasets: pip install datasets, or pass the path of "
            "a .jsonl or .json file"
        ) from None
    rows: Iterable[Row] = datasets.load_dataset(name, configuration, split=split or default)
    return rows
