"""Reading a transformers model at marked positions of many sequences, in right-padded batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from inferscale.generators.memory import run_in_pieces

Read: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From float32 logits `[marks, outputs]` and target ids `[marks]` to one number for each mark `[marks]`."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A sequence, and where the model is read.

    Attributes:
        ids: Token ids.
        marks: Positions to read, in order.
        targets: For each mark the id that `Read` is given, for models that predict tokens; ``()`` for others.
    """

    ids: tuple[int, ...]
    marks: tuple[int, ...]
    targets: tuple[int, ...] = ()


class BatchReader:
    """Runs whole sequences, right-padded, shortest first.

    Attributes:
        model: The model; its first output is logits of every position.
    """

    def __init__(self, model: Any, read: Read, rows: int) -> None:
        self.model = model
        self._read = read
        self._rows = rows
        self._parameters = inspect.signature(model.forward).parameters

    def __call__(self, sequences: Sequence[Marked]) -> list[list[float]]:
        """One number for each mark of each sequence."""
        found: dict[int, list[float]] = {}
        order = sorted((i for i, s in enumerate(sequences) if s.marks), key=lambda i: len(sequences[i].ids))

        def run(piece: Sequence[int]) -> None:
            found.update(zip(piece, self._run([sequences[i] for i in piece]), strict=True))

        with torch.inference_mode():
            self._rows = run_in_pieces(order, self._rows, run, lambda i: f"{len(sequences[i].ids)} tokens")
        return [found.get(i, []) for i in range(len(sequences))]

    def _run(self, batch: Sequence[Marked]) -> list[list[float]]:
        ids, mask = padded([row.ids for row in batch], 0, self.model.device)
        positions = sorted({mark for row in batch for mark in row.marks})
        options: dict[str, Any] = {}
        if "logits_to_keep" in self._parameters:  # the head runs only where some row is read
            options["logits_to_keep"] = torch.tensor(positions, device=ids.device)
        else:
            positions = list(range(ids.shape[1]))
        if "position_ids" in self._parameters:
            options["position_ids"] = torch.arange(ids.shape[1], device=ids.device)[None].expand_as(ids)
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
        column = {position: i for i, position in enumerate(positions)}
        rows = [i for i, row in enumerate(batch) for _ in row.marks]
        columns = [column[mark] for row in batch for mark in row.marks]
        targets = [t for row in batch for t in (row.targets or (0,) * len(row.marks))]
        values = self._read(logits[rows, columns].float(), torch.tensor(targets, device=ids.device)).tolist()
        return split(values, [len(row.marks) for row in batch])


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[rows, longest]`, padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def split(values: Sequence[float], counts: Sequence[int]) -> list[list[float]]:
    """`values` cut into consecutive lists of the given lengths."""
    pieces, start = [], 0
    for count in counts:
        pieces.append(list(values[start : start + count]))
        start += count
    return pieces


def read_pair(good: int, bad: int) -> Read:
    """P(good) in a softmax over the two ids."""

    def read(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.sigmoid(logits[:, good] - logits[:, bad])

    return read


def read_sigmoid(logits: Tensor, targets: Tensor) -> Tensor:
    """The sigmoid of a single output."""
    return torch.sigmoid(logits[:, 0])


def read_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target."""
    return logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
