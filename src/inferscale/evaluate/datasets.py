r"""Data sets as problems with prompts: GSM8K, MATH, SVAMP, your own files, and the embedded task.

Rows come from local files, or through the optional ``datasets`` package. Gold answers are the text after ``####``
(GSM8K), the ``answer`` field or the last ``\boxed{}`` (MATH), the number (SVAMP), or the field you name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
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
    """

    question: str
    answer: str
    solution: str = ""
    id: str = ""
    group: str = ""
    domain: str = ""
    kind: str | None = None


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
    """

    template: str
    shown: str = "{solution}\nThe answer is {answer}."
    instruction: str = ""
    separator: str = "\n\n"
    stop: str = "\nQuestion:"
    shots: tuple[Example, ...] = ()

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
        """The whole prompt of a question."""
        parts = [self.instruction] if self.instruction else []
        parts += [self._filled(shot.question) + self._shown(shot) for shot in self.shots]
        return self.separator.join([*parts, self._filled(question)])

    def problem(self, example: Example) -> Problem:
        """The problem of a row."""
        return Problem(self.prompt(example.question), example.answer, example.id or None, kind=example.kind)

    def reader(self, reader: Reader | None = None) -> Reader | None:
        """Reader of answers for prompts of this style, to pass as `read_answer`.

        It reads as `reader` does, by default that of the problem's kind, up to where the model goes on with a question
        of its own.
        """
        return Before((self.stop,), reader) if self.stop else reader

    def _filled(self, question: str) -> str:
        # replaced, not formatted: a question may hold braces
        return self.template.replace("{question}", question)

    def _shown(self, shot: Example) -> str:
        head, _, tail = self.shown.partition("{solution}")
        whole = head.replace("{answer}", shot.answer)
        if "{solution}" in self.shown:
            whole += shot.solution + tail.replace("{answer}", shot.answer)
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
        shown=" {solution}",
        instruction=r"Solve the problem step by step and put the final answer in \boxed{}.",
        stop="\nProblem:",
    ),
    "plain": PromptStyle("{question}", shown="{solution}", stop=""),
}
"""Styles by name: ``"cot"`` (zero-shot chain of thought, Kojima et al. 2022, arXiv:2205.11916), ``"direct"`` (the
answer alone), ``"steps"`` (one step per line, for searches over steps), ``"boxed"`` (as MATH's solutions) and
``"plain"`` (the question as it is, for chat models and the embedded task)."""


def prompt_style(style: str | PromptStyle) -> PromptStyle:
    """The style of that name; a style is returned as it is.

    Raises:
        ValueError: If there is no such style.
    """
    if isinstance(style, PromptStyle):
        return style
    if style not in STYLES:
        raise ValueError(f"unknown prompt style {style!r}: choose one of {', '.join(STYLES)}, or give a PromptStyle")
    return STYLES[style]


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
        fields: Names of the fields for ``"question"``, ``"answer"``, ``"solution"``, ``"id"``, ``"group"``,
            ``"domain"``, ``"answer_kind"`` and ``"choices"``; those left out are looked for under their own names, and
            under ``"prompt"`` for the question. Choices (a list of texts, or ``{"text": [...], "label": [...]}``) are
            put under the question with a letter for each; the answer is then a letter or label, a place in the list
            (from 0 on), or one of its texts.

    Raises:
        ValueError: If the question or the gold answer is empty, or the answer is no text or number, or no choice.
    """
    extra = ("solution", "id", "group", "domain", "answer_kind", "choices")
    names = {key: key for key in ("question", "answer", *extra)} | dict(fields)
    if "question" not in fields and "question" not in row and "prompt" in row:
        names["question"] = "prompt"
    # what was named must be there; only what is optional by nature and was not named may be missing
    optional = {key: row[names[key]] if key in fields else row.get(names[key]) for key in extra}
    question = row[names["question"]]
    question = question if isinstance(question, str) and question.strip() else _question(question, number)
    answer, kind = _gold(row[names["answer"]], number), _text(optional["answer_kind"]) or None
    if optional["choices"] is not None:
        choices, answer, kind = _lettered(optional["choices"], row[names["answer"]], number)
        question = f"{question.rstrip()}\n{choices}"
    return Example(
        question=question,
        answer=answer,
        solution=_text(optional["solution"]),
        id=str(number if optional["id"] is None else optional["id"]),
        group=_text(optional["group"]),
        domain=_text(optional["domain"]),
        kind=kind,
    )


def _lettered(choices: Any, answer: Any, number: int) -> tuple[str, str, str]:
    """The choices with their letters, the letter of the answer, and the kind."""
    listed, labels = (choices.get("text"), choices.get("label")) if isinstance(choices, Mapping) else (choices, None)
    if not isinstance(listed, list) or not 2 <= len(listed) <= len(ascii_uppercase):
        raise ValueError(f"row {number} has choices that are no list of 2 to 26: {choices!r:.80}")
    texts, letters = [_text(choice) for choice in listed], ascii_uppercase[: len(listed)]
    gold = _text(answer)
    if isinstance(answer, int) and 0 <= answer < len(texts):
        gold = letters[answer]
    for names in (labels or [], texts):
        if list(names).count(gold) == 1:
            gold = letters[list(names).index(gold)]
            break
    if len(gold) != 1 or gold.upper() not in letters:
        raise ValueError(f"row {number} has the answer {answer!r:.80}, which is none of its {len(texts)} choices: give "
                         f"a letter from A to {letters[-1]}, a place from 0 on, or the text of one")  # fmt: skip
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    return lines, gold.upper(), f"choice:{letters}"


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


HUB: dict[str, tuple[str, str | None, str]] = {
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "math": ("HuggingFaceH4/MATH-500", None, "test"),
    "svamp": ("ChilleD/SVAMP", None, "test"),
}
"""Where ``datasets`` finds a data set: its hub id, configuration and default split."""

NAMES = ("gsm8k", "math", "svamp", "embedded", "jsonl")
ANSWER_KINDS = {"gsm8k": "number", "math": "expression", "svamp": "number"}
"""What the answers of a data set are; rows of your own say it themselves, or nothing."""


def load_problems(
    dataset: str,
    data: str | os.PathLike[str] | None = None,
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
            (your own rows).
        data: A ``.jsonl`` or ``.json`` file, or for MATH a folder of them; without it the hub is asked through the
            optional package ``datasets``.
        split: ``"test"`` or ``"dev"`` of the embedded task; the hub's split otherwise.
        style: A name of `STYLES` or a `PromptStyle`; ``"cot"`` by default, ``"plain"`` for the embedded task.
        shots: Worked examples shown before each question, for example ``load_examples("gsm8k", train)[:8]``.
        fields: Names of your own fields: ``{"question": "body", "answer": "gold"}``; see `example_from_fields`.
        kind: What all answers are (`inferscale.answers.KINDS`), whatever data set and rows say.
        limit: Take the first so many.

    Raises:
        ValueError: If the data set is unknown, a file is missing or empty, a row lacks a field, or an option would
            have no effect (a file for the embedded task, a split of a file).
        ImportError: If the hub is asked and ``datasets`` is not installed.
    """
    chosen = prompt_style(style or ("plain" if dataset == "embedded" else "cot"))
    if shots:
        chosen = chosen.with_shots(shots)
    examples = load_examples(dataset, data, split=split, fields=fields, kind=kind, limit=limit)
    return [chosen.problem(example) for example in examples]


def load_examples(
    dataset: str,
    data: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    fields: Mapping[str, str] | None = None,
    kind: str | None = None,
    limit: int | None = None,
) -> list[Example]:
    """Rows of a data set before they are put into a prompt; see `load_problems`."""
    if kind is not None:
        reader_of(kind)  # refuses an unknown one
    if dataset not in NAMES:
        raise ValueError(f"unknown data set {dataset!r}: choose one of {', '.join(NAMES)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: take at least one problem")
    if dataset == "embedded" and (data is not None or fields):
        raise ValueError("the embedded task is read from no file: name the data set of your file, or 'jsonl'")
    if data is not None and split is not None:
        raise ValueError(f"split={split!r}: a file has no splits, give the path of that split's file")
    if dataset == "embedded":
        return [replace(example, kind=kind or example.kind) for example in _embedded(split)[:limit]]
    if dataset == "jsonl" and data is None:
        raise ValueError("the data set 'jsonl' needs data: give the path of your .jsonl or .json file")
    rows: Iterable[Row] = read_rows(data) if data is not None else _hub_rows(dataset, split)
    read = _own_rows(fields) if fields or dataset == "jsonl" else READERS[dataset]
    examples = []
    for number, row in enumerate(rows):
        if limit is not None and number >= limit:
            break
        try:
            example = read(row, number)
            examples.append(replace(example, kind=kind or example.kind or ANSWER_KINDS.get(dataset)))
        except KeyError as error:
            raise ValueError(
                f"row {number} of {data or dataset} has no field {error}: it has {', '.join(map(str, row))}; "
                "give fields={'question': ..., 'answer': ...}"
            ) from None
    return examples


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
