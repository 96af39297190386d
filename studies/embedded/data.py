"""Training rows of the embedded policies: solved problems, and drills of bare arithmetic.

Solutions with one error in them, as a policy might make it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from inferscale.tree import Problem
from inferscale.zoo import task
from inferscale.zoo.task import Line, apply
from inferscale.zoo.tokenizer import BOS, EOS, PAD, encode

SWAP_CHANCE = 0.25  # of + and * lines written with their operands exchanged
_POOL = 8  # batches drawn together and sorted by length, so that rows of a batch need little padding


@dataclass(frozen=True, slots=True)
class Row:
    """One training sequence.

    Attributes:
        token_ids: Prompt and completion, ``<s>`` and ``</s>`` included.
        in_loss: For every token, whether predicting it is trained.
    """

    token_ids: tuple[int, ...]
    in_loss: tuple[bool, ...]


def write_line(rng: random.Random, line: Line) -> str:
    """The line's text, operands of ``+`` and ``*`` exchanged now and then."""
    return line.text(swap=line.op in "+*" and rng.random() < SWAP_CHANCE)


def problem_row(rng: random.Random, problem: Problem) -> Row:
    """A problem with its reference solution; the loss covers the solution and the end of sequence."""
    lines, answer = task.reference(problem.prompt)
    prompt = [BOS, *encode(problem.prompt)]
    text = "".join(write_line(rng, line) for line in lines) + f"{task.ANSWER_PREFIX}{answer}"
    completion = [*encode(text), EOS]
    return Row((*prompt, *completion), (False,) * len(prompt) + (True,) * len(completion))


def drill_line(rng: random.Random) -> Line:
    """One operation with numbers as they occur at a random level."""
    level = rng.choice(list(task.LEVELS.values()))
    op = rng.choices("+-*/", (3, 3, 2, 2))[0]
    if op in "+-":
        total = rng.randint(2, level.limit)
        part = rng.randint(1, min(total, max(9 * level.table, level.reach)))
        left, right = (total - part, part) if op == "+" else (total, part)
    elif op == "*" and rng.random() < 0.6:
        left, right = rng.randint(2, level.table), rng.randint(2, 9)
    else:
        right = rng.randint(2, 5)
        part = rng.randint(1, level.limit // right)
        left = part if op == "*" else part * right
    return Line(left, op, right, apply(left, op, right))


def drill_row(rng: random.Random, lines: int = 10) -> Row:
    """Arithmetic lines without a story; the loss covers results only."""
    token_ids, in_loss = [BOS], [False]
    for _ in range(lines):
        question, _, result = write_line(rng, drill_line(rng)).partition("= ")
        head, tail = encode(f"{question}= "), encode(result)
        token_ids += head + tail
        in_loss += [False] * len(head) + [True] * len(tail)
    return Row(tuple(token_ids), tuple(in_loss))


def collate(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as ``token_ids: [B, T]`` and ``in_loss: [B, T]``, padded on the right."""
    width = max(len(row.token_ids) for row in rows)
    token_ids = np.full((len(rows), width), PAD, dtype=np.int64)
    in_loss = np.zeros((len(rows), width), dtype=bool)
    for index, row in enumerate(rows):
        token_ids[index, : len(row.token_ids)] = row.token_ids
        in_loss[index, : len(row.in_loss)] = row.in_loss
    return torch.from_numpy(token_ids), torch.from_numpy(in_loss)


def policy_batches(seed: int, batch_size: int, step: int, drill_share: float) -> list[list[Row]]:
    """The batches of the pool that holds `step`: a function of the arguments alone, so a run resumes exactly."""
    pool = step // _POOL
    rng = random.Random(f"inferscale.zoo/policy/{seed}/{pool}")
    problems: Iterator[Problem] = task.problem_stream(rng.getrandbits(62), split="train")
    rows = [
        drill_row(rng) if rng.random() < drill_share else problem_row(rng, next(problems))
        for _ in range(_POOL * batch_size)
    ]
    return cut_batches(rng, rows, batch_size)


def cut_batches(rng: random.Random, rows: list[Row], batch_size: int) -> list[list[Row]]:
    """Batches of rows of about equal length, in random order."""
    rows = sorted(rows, key=lambda row: len(row.token_ids))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    rng.shuffle(batches)
    return batches


def position_in_pool(step: int) -> int:
    """Which batch of its pool a step takes."""
    return step % _POOL


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
