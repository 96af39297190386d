"""Solutions with one error in them, as a policy might make it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from inferscale.zoo import task
from inferscale.zoo.story import Line, apply

from .data import write_line

_OPERATORS = "+-*/"


def corrupt(rng: random.Random, prompt: str) -> tuple[str, int]:
    """A solution with one injected error, cut after it, and the index of the wrong line."""
    lines, answer = task.reference(prompt)
    index = rng.randrange(len(lines) + 1)
    right = [write_line(rng, line) for line in lines[:index]]
    if index == len(lines):
        return "".join(right) + f"{task.ANSWER_PREFIX}{wrong_number(rng, answer)}", index
    wrong = corrupt_line(rng, lines[index], [*(line.result for line in lines), *(line.right for line in lines)])
    return "".join(right) + write_line(rng, wrong), index


def corrupt_line(rng: random.Random, line: Line, numbers: Sequence[int]) -> Line:
    """The line with a wrong result (4 in 5), another operator, or another operand out of `numbers` or near."""
    choice = rng.random()
    if choice < 0.1:
        op = rng.choice([op for op in _OPERATORS if op != line.op and not (op == "/" and line.right == 0)])
        return _recompute(rng, replace(line, op=op), line)
    if choice < 0.2:
        side = rng.choice(("left", "right"))
        value = rng.choice([*numbers, wrong_number(rng, getattr(line, side))])
        return _recompute(rng, replace(line, left=value) if side == "left" else replace(line, right=value), line)
    return replace(line, result=wrong_number(rng, line.result))


def _recompute(rng: random.Random, changed: Line, line: Line) -> Line:
    """The changed line with its own result; a wrong result instead where the change means nothing."""
    same = changed.op == line.op and {changed.left, changed.right} == {line.left, line.right}
    if same or changed.right == 0:
        return replace(line, result=wrong_number(rng, line.result))
    return replace(changed, result=abs(apply(changed.left, changed.op, changed.right)))


def wrong_number(rng: random.Random, value: int) -> int:
    """Another number that a policy might write: one digit off, a carry off, or near."""
    digits = list(str(value))
    while True:
        choice = rng.random()
        if choice < 0.5:
            place = rng.randrange(len(digits))
            candidate = int("".join([*digits[:place], str(rng.randrange(10)), *digits[place + 1 :]]))
        elif choice < 0.9:
            candidate = value + rng.choice((-10, 10, -1, 1, -2, 2, -9, 9, -100, 100))
        else:
            candidate = value + rng.randint(-30, 30)
        if candidate >= 0 and candidate != value:
            return candidate
