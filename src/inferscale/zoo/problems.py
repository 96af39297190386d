"""The fixed problem sets: 500 to test on and 500 to choose on."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Literal

from inferscale.tree import Problem

from . import task

TEST_FILE = "problems-test.jsonl"
SIZE = 500


def problems(split: Literal["test", "dev"] = "test") -> list[Problem]:
    """The 500 fixed problems of a split, 100 of each level in turn.

    ``"test"`` is a file in the package, for final figures; ``"dev"`` is for every choice before. For other or more
    problems see `inferscale.zoo.task.generate`.

    Raises:
        ValueError: If `split` is neither.
    """
    if split == "dev":
        return task.generate(SIZE, seed=0, split="dev")
    if split != "test":
        raise ValueError(f"problems({split!r}): choose 'test' or 'dev'; for training use task.generate(split='train')")
    text = files("inferscale.zoo").joinpath(TEST_FILE).read_text(encoding="utf-8")
    return [Problem(**json.loads(line)) for line in text.splitlines()]


def write_test_file() -> str:
    """The content of the test file, made anew from its seed."""
    fixed = task.generate(SIZE, seed=0, split="test")
    return "".join(json.dumps({"prompt": item.prompt, "answer": item.answer, "id": item.id}) + "\n" for item in fixed)
