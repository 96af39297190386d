r"""Data sets as problems: GSM8K, MATH, SVAMP, your own files, and the embedded task.

Rows come from local files, or through the optional ``datasets`` package. Gold answers are the text after ``####``
(GSM8K), the ``answer`` field or the last ``\boxed{}`` (MATH), the number (SVAMP), or the field you name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module

from inferscale.tree import Problem

from .prompts import Example, PromptStyle, prompt_style
from .rows import READERS, Row, example_from_fields, read_rows

HUB: dict[str, tuple[str, str | None, str]] = {
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "math": ("HuggingFaceH4/MATH-500", None, "test"),
    "svamp": ("ChilleD/SVAMP", None, "test"),
}
"""Where ``datasets`` finds a data set: its hub id, configuration and default split."""

NAMES = ("gsm8k", "math", "svamp", "embedded", "jsonl")


def load_problems(
    dataset: str,
    data: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    style: str | PromptStyle | None = None,
    shots: Sequence[Example] = (),
    fields: Mapping[str, str] | None = None,
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
        limit: Take the first so many.

    Raises:
        ValueError: If the data set is unknown, a file is missing or empty, a row lacks a field, or an option would
            have no effect (a file for the embedded task, a split of a file).
        ImportError: If the hub is asked and ``datasets`` is not installed.
    """
    chosen = prompt_style(style or ("plain" if dataset == "embedded" else "cot"))
    if shots:
        chosen = chosen.with_shots(shots)
    examples = load_examples(dataset, data, split=split, fields=fields, limit=limit)
    return [chosen.problem(example) for example in examples]


def load_examples(
    dataset: str,
    data: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[Example]:
    """Rows of a data set before they are put into a prompt; see `load_problems`."""
    if dataset not in NAMES:
        raise ValueError(f"unknown data set {dataset!r}: choose one of {', '.join(NAMES)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: take at least one problem")
    if dataset == "embedded" and (data is not None or fields):
        raise ValueError("the embedded task is read from no file: name the data set of your file, or 'jsonl'")
    if data is not None and split is not None:
        raise ValueError(f"split={split!r}: a file has no splits, give the path of that split's file")
    if dataset == "embedded":
        return _embedded(split)[:limit]
    if dataset == "jsonl" and data is None:
        raise ValueError("the data set 'jsonl' needs data: give the path of your .jsonl or .json file")
    rows: Iterable[Row] = read_rows(data) if data is not None else _hub_rows(dataset, split)
    read = _own_rows(fields) if fields or dataset == "jsonl" else READERS[dataset]
    examples = []
    for number, row in enumerate(rows):
        if limit is not None and number >= limit:
            break
        try:
            examples.append(read(row, number))
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
    return Example(problem.prompt, str(problem.answer), solution, problem.id or "", level, domain)


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
