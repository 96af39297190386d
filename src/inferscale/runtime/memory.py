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
    done = 0

    def run_rest(size: int) -> None:
        nonlocal done
        while done < len(items):
            run(items[done : done + size])
            done += size

    return run_halving(run_rest, size, lambda: items[done:], describe, make_room)


def run_halving(
    run: Callable[[int], None],
    size: int,
    left: Callable[[], Sequence[T]],
    describe: Callable[[T], str],
    make_room: Callable[[], None],
) -> int:
    """Calls `run` with a number of rows, half of it again whenever memory runs out; returns the number that did fit.

    Args:
        run: Does all that is left, so many rows at a time.
        size: Rows to begin with.
        left: What is not done.
        describe: What is said of the item that does not fit.
        make_room: Called when memory has run out.

    Raises:
        SearchMemoryError: If one row does not fit, though room was made.
    """
    failed = 0
    while True:
        try:
            run(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            items = left()
            size = min(size, len(items))
            if size == 1 and failed == len(items):
                told = f"out of memory with a single row: {describe(items[0])}; {len(items)} to go ({error})"
                raise SearchMemoryError(told) from error
            size, failed = max(size // 2, 1), len(items)
        else:
            return size
        # Outside of the handler, where the traceback no longer holds on to the failed rows' tensors.
        make_room()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
