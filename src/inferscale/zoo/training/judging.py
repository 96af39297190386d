"""Rows that train and test the process reward model: labels of the exact checker, rollouts, and corrupted steps."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inferscale.tree import Problem
from inferscale.zoo import task
from inferscale.zoo.tokenizer import BOS, EOS, encode

from .data import Row, cut_batches, drill_line, write_line
from .mistakes import corrupt, wrong_number

ANSWER_ENDS = ("", "\n")  # half of the answers end with </s>, as sampled, half with the separator of steps


@dataclass(frozen=True, slots=True)
class JudgedRow(Row):
    """A training sequence of the process reward model, cut after its first wrong line.

    Attributes:
        labels: For every token, 1 if the solution is right up to and including it, 0 if it is not, -1 for no label.
        ends: For every token, whether a step ends there.
    """

    labels: tuple[int, ...]
    ends: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    """A sampled solution.

    Attributes:
        prompt: The problem.
        completion: What the policy wrote.
        policy: Who wrote it.
    """

    prompt: str
    completion: str
    policy: str


def split_lines(completion: str) -> list[str]:
    """Lines with their end of line; lines of white space alone are left out, as the checker does."""
    return [line for line in completion.splitlines(keepends=True) if line.strip()]


def line_tokens(line: str, is_last: bool) -> list[int]:
    """Token ids of a line; the last line of a finished solution ends with ``</s>``."""
    return encode(line) + ([EOS] if is_last and not line.endswith("\n") else [])


def expected_lines(prompt: str, index: int) -> list[list[int]]:
    """Token ids of the ways to write the reference's line at a place; ``[]`` past the end."""
    lines, answer = task.reference(prompt)
    if index == len(lines):
        return [line_tokens(f"{task.ANSWER_PREFIX}{answer}", is_last=True)]
    if index > len(lines):
        return []
    line = lines[index]
    return [encode(line.text())] + ([encode(line.text(swap=True))] if line.op in "+*" else [])


def judged_row(prompt: str, completion: str) -> JudgedRow:
    """A solution with the label of every token, cut after the first wrong line.

    Within a wrong line the tokens before the first deviation from every right way to write it count as right.
    """
    head = [BOS, *encode(prompt)]
    token_ids, labels, ends = list(head), [-1] * len(head), [False] * len(head)
    in_loss = [False] * len(head)
    lines = split_lines(completion)
    for index, (line, is_right) in enumerate(zip(lines, task.check_steps(prompt, completion), strict=True)):
        ids = line_tokens(line, is_last=index == len(lines) - 1)
        right = len(ids) if is_right else _right_tokens(ids, prompt, index)
        token_ids += ids
        labels += [1] * right + [0] * (len(ids) - right)
        ends += [False] * (len(ids) - 1) + [True]
        in_loss += [is_right] * len(ids)
        if not is_right:
            break
    return JudgedRow(tuple(token_ids), tuple(in_loss), tuple(labels), tuple(ends))


def _right_tokens(ids: list[int], prompt: str, index: int) -> int:
    """How many tokens of a wrong line come before its first deviation; at most all but the last."""
    return min(len(ids) - 1, max((_common(ids, other) for other in expected_lines(prompt, index)), default=0))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


def pair_rows(rng: random.Random, problem: Problem) -> list[JudgedRow]:
    """A right solution and one with an injected error, of the same problem."""
    lines, answer = task.reference(problem.prompt)
    gold = "".join(write_line(rng, line) for line in lines) + f"{task.ANSWER_PREFIX}{answer}"
    end = rng.choice(ANSWER_ENDS)
    return [judged_row(problem.prompt, gold + end), judged_row(problem.prompt, corrupt(rng, problem.prompt)[0] + end)]


def drill_judged_row(rng: random.Random, lines: int = 10) -> JudgedRow:
    """Arithmetic lines without a story, half of them with a wrong result; each is labelled on its own.

    Ten labels of arithmetic alone in a short row: this is where comparing a result with the expected one is learned.
    """
    token_ids, in_loss, labels, ends = [BOS], [False], [-1], [False]
    for _ in range(lines):
        line = drill_line(rng)
        expected = write_line(rng, line)
        head, expected_tail = (encode(part) for part in re.split("(?<== )", expected))
        is_right = rng.random() < 0.5
        tail = expected_tail if is_right else encode(f"{wrong_number(rng, line.result)}\n")
        right = len(tail) if is_right else min(len(tail) - 1, _common(tail, expected_tail))
        token_ids += head + tail
        in_loss += [False] * len(head) + [is_right] * len(tail)
        labels += [-1] * len(head) + [1] * right + [0] * (len(tail) - right)
        ends += [False] * (len(head) + len(tail) - 1) + [True]
    return JudgedRow(tuple(token_ids), tuple(in_loss), tuple(labels), tuple(ends))


def judge_batches(
    seed: int, batch_size: int, step: int, rollouts: Sequence[Rollout], shares: tuple[float, float]
) -> list[list[JudgedRow]]:
    """Eight batches that start at `step`: drills, pairs, and rollouts; `shares` are those of drills and pairs."""
    rng = random.Random(f"inferscale.zoo/judge/{seed}/{step}")
    problems = task.problem_stream(rng.getrandbits(62), split="train")
    rows: list[JudgedRow] = []
    while len(rows) < 8 * batch_size:
        choice = rng.random()
        if choice < shares[0]:
            rows.append(drill_judged_row(rng))
        elif choice < shares[0] + shares[1] / 2 or not rollouts:  # a pair is two rows
            rows += pair_rows(rng, next(problems))
        else:
            rollout = rng.choice(rollouts)
            rows.append(judged_row(rollout.prompt, rollout.completion + rng.choice(ANSWER_ENDS)))
    batches: list[list[JudgedRow]] = cut_batches(rng, list(rows[: 8 * batch_size]), batch_size)  # type: ignore[assignment]
    return batches


def collate_labels(rows: Sequence[JudgedRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows' ``labels: [B, T]`` and ``ends: [B, T]``, padded with -1 and False."""
    width = max(len(row.token_ids) for row in rows)
    labels = torch.tensor([[*row.labels, *[-1] * (width - len(row.labels))] for row in rows])
    ends = torch.tensor([[*row.ends, *[False] * (width - len(row.ends))] for row in rows])
    return labels, ends
