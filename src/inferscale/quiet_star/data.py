"""Batches of text to think about: the embedded task, or a file of texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from inferscale.generators.sampling import uniforms

from .recipe import Batch


def task_batches(batch_size: int, talk_length: int, seed: int = 0, level: int | None = None) -> Callable[[int], Batch]:
    """Batches of fresh problems of the embedded task with their reference solutions; only solutions count.

    Args:
        batch_size: Problems in a batch.
        talk_length: Look-ahead of the loss, for the positions to think at.
        seed: Names the stream of problems.
        level: Of the task, 1 to 5; by default all of them in turn.
    """
    from inferscale.zoo import task
    from inferscale.zoo.tokenizer import BOS, EOS, encode

    def batch_of(number: int) -> Batch:
        problems = task.generate(batch_size, seed=(seed << 24) + number, level=level, split="train")
        rows = []
        for problem in problems:
            prompt, solution = [BOS, *encode(problem.prompt)], [*encode(task.solution(problem.prompt)), EOS]
            rows.append((prompt, solution))
        return _aligned(rows, talk_length)

    return batch_of


def _aligned(rows: Sequence[tuple[list[int], list[int]]], talk_length: int) -> Batch:
    """Prompts padded on the left and solutions on the right, so that all rows think at the same columns."""
    before, after = max(len(p) for p, _ in rows), max(len(s) for _, s in rows)
    ids, mask, target = (torch.zeros(len(rows), before + after, dtype=torch.long) for _ in range(3))
    for row, (prompt, solution) in enumerate(rows):
        first, last = before - len(prompt), before + len(solution)
        ids[row, first:last] = torch.tensor(prompt + solution)
        mask[row, first:last] = 1
        target[row, before:last] = 1
    positions = torch.arange(before - 1, before + after - talk_length)
    return Batch(ids, mask, target.bool(), positions)


def read_texts(path: Path) -> list[str]:
    """The texts of a file: the ``"text"`` of each line of a ``.jsonl``, or the paragraphs of anything else.

    Raises:
        ValueError: If there are none, or a line of a ``.jsonl`` has none.
    """
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        texts = [_text_of(line, path) for line in content.splitlines() if line.strip()]
    else:
        texts = [part.strip() for part in content.split("\n\n") if part.strip()]
    if not texts:
        raise ValueError(f"{path} holds no texts: give a .jsonl file with a 'text' in each line, or paragraphs")
    return texts


def _text_of(line: str, path: Path) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a line that is no JSON, {line[:40]!r}: {error}") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{path} has a line without a 'text', {line[:40]!r}: every line needs one")
    return text


def span_batches(
    texts: Sequence[str], tokenizer: Any, batch_size: int = 4, span: int = 256, seed: int = 0
) -> Callable[[int], Batch]:
    """Batches of random spans of texts, as in the released script: 4 spans of 256 tokens.

    Args:
        texts: Documents; those shorter than a span are left out.
        tokenizer: Gives the ids.
        batch_size: Spans in a batch.
        span: Tokens of a span.
        seed: Names the stream of spans.

    Raises:
        ValueError: If no text is long enough.
    """
    encoded = [ids for ids in (tokenizer(text)["input_ids"] for text in texts) if len(ids) >= span]
    if not encoded:
        raise ValueError(f"none of the {len(texts)} texts has {span} tokens: lower the span")

    def batch_of(number: int) -> Batch:
        draws = uniforms([((seed << 32) + number) % 2**64], torch.arange(2 * batch_size).numpy().astype("uint64"))
        rows = []
        for which, where in draws.reshape(batch_size, 2).tolist():
            ids = encoded[int(which * len(encoded))]
            first = int(where * (len(ids) - span + 1))
            rows.append(ids[first : first + span])
        return Batch(torch.tensor(rows))

    return batch_of
