"""Running a batch in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


class SearchMemoryError(RuntimeError):
    """Not even one row fits into memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: ``torch.OutOfMemoryError``, or the CPU allocator's ``RuntimeError``."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("allocate" in text or "alloc_cpu" in text or "out of memory" in text)


def run_in_pieces(
    items: Sequence[T],
    size: int,
    run: Callable[[Sequence[T]], None],
    describe: Callable[[T], str],
    make_room: Callable[[], None] = lambda: None,
) -> int:
    """Calls `run` on consecutive pieces of at most `size` items; returns the size that did fit.

    When memory runs out, `make_room` is called, and the piece is halved and tried again: `run` must be able to start a
    piece afresh.

    Raises:
        SearchMemoryError: If a single item does not fit.
    """
    start = 0
    while start < len(items):
        piece = items[start : start + size]
        try:
            run(piece)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(piece) == 1:
                raise SearchMemoryError(f"out of memory with a single row: {describe(piece[0])} ({error})") from error
            size = len(piece) // 2
        else:
            start += len(piece)
            continue
        # Outside of the handler, where the traceback no longer holds on to the failed piece's tensors.
        make_room()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return size
