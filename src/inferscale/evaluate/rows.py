"""Rows of data sets: reading files, and what each data set calls its question and its gold answer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from inferscale.answers import extract_answer, normalize_answer

from .prompts import Example

Row: TypeAlias = Mapping[str, Any]


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Rows of a ``.jsonl`` file, a ``.json`` list, or all ``.json`` files below a folder (one row each).

    Raises:
        ValueError: If there is no such file, it holds no rows, or a line is not an object.
    """
    source = Path(path).expanduser()
    if not source.exists():
        raise ValueError(f"there is no file {str(path)!r}: give an existing .jsonl or .json file")
    rows: list[Any] = []
    if source.is_dir():
        for file in sorted(source.rglob("*.json")):
            row = _parsed(_content(file), str(file))
            rows.append({"unique_id": str(file.relative_to(source)), **row} if isinstance(row, dict) else row)
    elif source.suffix == ".json":
        whole = _parsed(_content(source), str(source))
        rows = whole if isinstance(whole, list) else [whole]
    else:
        lines = _content(source).split("\n")
        rows = [_parsed(line, f"{source}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"{str(path)!r} holds no rows")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of {str(path)!r} is not an object with fields: {row!r:.80}")
    return rows


def example_from_fields(row: Row, number: int, fields: Mapping[str, str]) -> Example:
    """A row of your own.

    Args:
        row: The row.
        number: Its position, its name if it has none.
        fields: Names of the fields for ``"question"``, ``"answer"``, ``"solution"``, ``"id"``, ``"group"`` and
            ``"domain"``; those left out are looked for under their own names, and under ``"prompt"`` for the question.

    Raises:
        ValueError: If the question or the gold answer is empty, or the answer is no text or number.
    """
    extra = ("solution", "id", "group", "domain")
    names = {key: key for key in ("question", "answer", *extra)} | dict(fields)
    if "question" not in fields and "question" not in row and "prompt" in row:
        names["question"] = "prompt"
    # what was named must be there; only what is optional by nature and was not named may be missing
    optional = {key: row[names[key]] if key in fields else row.get(names[key]) for key in extra}
    question = row[names["question"]]
    return Example(
        question=question if isinstance(question, str) and question.strip() else _question(question, number),
        answer=_gold(row[names["answer"]], number),
        solution=_text(optional["solution"]),
        id=str(number if optional["id"] is None else optional["id"]),
        group=_text(optional["group"]),
        domain=_text(optional["domain"]),
    )


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
    answer = extract_answer(solution) if given in (None, "") else _gold(given, number)
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
        raise ValueError(f"{file} is not text in UTF-8: give a .jsonl or .json file") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}): give a .jsonl file with one object per line") from None


def _question(value: Any, number: int) -> str:
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"row {number} has a question that is no text: {value!r:.80}")
    text = _text(value)
    if not text:
        raise ValueError(f"row {number} has no question: it is empty")
    return text


def _gold(value: Any, number: int) -> str:
    if not isinstance(value, str | int | float | None) or value != value:
        raise ValueError(f"row {number} has no gold answer that is a text or a number: {value!r:.80}")
    text = _text(value)
    if not text:
        raise ValueError(f"row {number} has no gold answer: it is {'null' if value is None else 'empty'}")
    return text


def _text(value: Any) -> str:
    """A value as text; ``""`` for null."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
