"""The embedded task: word problems about one running quantity, with an exact checker of every step.

A story gives a start and a few events; a solution writes one operation per line and then the answer::

    Mia has 7 trays with 6 pens in each. Mia sells 20 of them. How many pens are left?
    7 * 6 = 42
    42 - 20 = 22
    The answer is: 22

The prompt ends with the end of line after the question. Steps end with the end of line; the answer line ends the
solution. Everything is computed from the prompt's text alone, so the checker needs no gold answer::

    step_labels(prompt, completion)   # [True, True, False]: right so far, for every line
    first_error(prompt, completion)   # 2, or None when nothing is wrong so far
    is_correct(prompt, completion)    # whether the stated answer is right

Standard library only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, TypeAlias

from inferscale.tree import Problem

from .drawing import LEVELS, draw_events, write_prompt
from .story import Line, derive, final_value, read_events

__all__ = [
    "ANSWER_PREFIX",
    "LEVELS",
    "Split",
    "check_steps",
    "first_error",
    "generate",
    "is_correct",
    "level_of",
    "problem_stream",
    "reference",
    "solution",
    "split_of",
    "stated_answer",
    "step_labels",
]

Split: TypeAlias = Literal["train", "dev", "test"]

ANSWER_PREFIX = "The answer is: "
_STEP = re.compile(r"\s*([0-9]+) ([-+*/]) ([0-9]+) = ([0-9]+)\s*")
_ANSWER = re.compile(r"\s*The answer is: ([0-9]+)\s*")
_BUCKETS = 16  # one in 16 problems belongs to "test", one to "dev", the others to "train"


def generate(n: int, seed: int, level: int | None = None, split: Split = "test") -> list[Problem]:
    """`n` problems; the same arguments always give the same problems, in any process.

    Args:
        n: How many.
        seed: Names the stream of problems.
        level: 1 (easiest) to 5; ``None`` mixes all five in equal parts.
        split: Which part of all problems to draw from. A problem's part depends on its text alone, so the three
            parts never share a problem whatever the seeds; the models were trained on ``"train"`` only.

    Raises:
        ValueError: If `level` or `split` is not known, or `n` is negative.
    """
    if n < 0:
        raise ValueError(f"generate(n={n}): n is a number of problems, 0 or more")
    stream = problem_stream(seed, level, split)
    return [next(stream) for _ in range(n)]


def problem_stream(seed: int, level: int | None = None, split: Split = "test") -> Iterator[Problem]:
    """Problems without end, those of `generate` in the same order."""
    if level is not None and level not in LEVELS:
        raise ValueError(f"level={level!r}: choose one of {sorted(LEVELS)}, or None for a mix of all")
    if split not in ("train", "dev", "test"):
        raise ValueError(f"split={split!r}: choose 'train', 'dev' or 'test'")
    rng = random.Random(f"inferscale.zoo.task/{split}/{level}/{seed}")
    return _draw_stream(rng, level, split, f"{split}-{seed}")


def _draw_stream(rng: random.Random, level: int | None, split: Split, name: str) -> Iterator[Problem]:
    index = 0
    while True:
        this_level = level or 1 + index % len(LEVELS)
        events = draw_events(rng, LEVELS[this_level])
        prompt = write_prompt(rng, events)
        if split_of(prompt) == split:
            yield Problem(prompt, str(final_value(events)), f"{name}-L{this_level}-{index}")
            index += 1


def split_of(prompt: str) -> Split:
    """The part that a prompt belongs to, from its text alone."""
    bucket = blake2b(prompt.encode(), digest_size=1).digest()[0] % _BUCKETS
    return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


def level_of(problem: Problem) -> int:
    """The level of a generated problem, read from its id.

    Raises:
        ValueError: If the id was not made by `generate`.
    """
    match = re.search(r"-L([1-5])-", problem.id or "")
    if match is None:
        raise ValueError(f"no level in the id {problem.id!r}: pass a problem made by inferscale.zoo.task.generate")
    return int(match.group(1))


@lru_cache(maxsize=4096)
def reference(prompt: str) -> tuple[tuple[Line, ...], int]:
    """The reference derivation of a prompt and its answer.

    Raises:
        ValueError: If the prompt is not a problem of this task.
    """
    events = read_events(prompt)
    return tuple(derive(events)), final_value(events)


def solution(prompt: str) -> str:
    """The reference solution as text, answer line included."""
    lines, answer = reference(prompt)
    return "".join(line.text() for line in lines) + f"{ANSWER_PREFIX}{answer}"


def check_steps(prompt: str, completion: str) -> list[bool]:
    """For every line of the completion on its own, whether it is the reference's line at that place.

    A line is right when operator, operands (either order for ``+`` and ``*``) and result are those of the
    reference; the answer line is right after the last operation and with the right number. Lines of white space
    are passed over. Another derivation that reaches the answer counts as wrong: the stories leave little room
    for one.
    """
    lines, answer = reference(prompt)
    written = [line for line in completion.split("\n") if line.strip()]
    return [_is_right(text, index, lines, answer) for index, text in enumerate(written)]


def _is_right(text: str, index: int, lines: tuple[Line, ...], answer: int) -> bool:
    if index >= len(lines):
        match = _ANSWER.fullmatch(text)
        return index == len(lines) and match is not None and int(match.group(1)) == answer
    match = _STEP.fullmatch(text)
    if match is None:
        return False
    left, op, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
    line = lines[index]
    same = (left, right) == (line.left, line.right) or (op in "+*" and (right, left) == (line.left, line.right))
    return op == line.op and same and result == line.result


def step_labels(prompt: str, completion: str) -> list[bool]:
    """For every line, whether the solution is right up to and including it (the labels of a process reward model)."""
    checks = check_steps(prompt, completion)
    return [all(checks[: index + 1]) for index in range(len(checks))]


def first_error(prompt: str, completion: str) -> int | None:
    """The index of the first wrong line, or ``None`` when nothing is wrong so far."""
    checks = check_steps(prompt, completion)
    return checks.index(False) if False in checks else None


def stated_answer(completion: str) -> str | None:
    """The number on the last line that states an answer, or ``None``."""
    matches = [match for line in completion.split("\n") if (match := _ANSWER.fullmatch(line))]
    return str(int(matches[-1].group(1))) if matches else None


def is_correct(prompt: str, completion: str) -> bool:
    """Whether the completion states the right answer, however it got there."""
    return stated_answer(completion) == str(reference(prompt)[1])
