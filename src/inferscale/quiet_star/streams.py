"""The uniform numbers that thoughts are drawn with: a stream for each thought, a stretch of it for each place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inferscale.runtime.branch import Branch
from inferscale.runtime.sampling import uniforms
from inferscale.tree import branch_key

STRIDE = 1 << 16
"""Numbers of a thought stream that belong to one place in the text."""


def row_keys(seed: int, rows: int) -> list[int]:
    """Names of the streams of `rows` texts."""
    return [branch_key(seed, row) for row in range(rows)]


def thought_numbers(keys: Sequence[int], thoughts: int, places: Tensor, length: int) -> Tensor:
    """Uniform numbers in (0, 1), `[rows * thoughts, positions, length]`, float64.

    Each row and thought has a stream of its own, and each position its place in it.

    Args:
        keys: Names of the rows' streams.
        thoughts: Thoughts for each position.
        places: Those of the positions, `[positions]`, 0 and up.
        length: Sampled tokens of a thought.

    Raises:
        ValueError: If there is to be no thought.
    """
    if thoughts < 1:
        raise ValueError(f"num_thoughts={thoughts}: give at least one")
    streams = np.array([branch_key(key, thought) for key in keys for thought in range(thoughts)], dtype=np.uint64)
    return _numbers(streams[:, None], places.cpu().numpy().astype(np.uint64), length, places.device)


def branch_numbers(branches: Sequence[Branch], thoughts: int, length: int, device: torch.device) -> Tensor:
    """Uniform numbers in (0, 1) for thoughts before the next token of each branch, `[branches * thoughts, length]`.

    Args:
        branches: What is sampled; the tokens that one has so far are its place.
        thoughts: Thoughts for each branch.
        length: Sampled tokens of a thought.
        device: Where to put them.
    """
    keys = [branch_key(branch.key, -1 - thought) for branch in branches for thought in range(thoughts)]
    places = [len(branch.tokens) for branch in branches for _ in range(thoughts)]
    return _numbers(np.array(keys, dtype=np.uint64), np.array(places, dtype=np.uint64), length, device)


def _numbers(keys: NDArray[np.uint64], places: NDArray[np.uint64], length: int, device: torch.device) -> Tensor:
    """Numbers for keys and places (broadcast), `[..., length]`."""
    counters = places[..., None] * np.uint64(STRIDE) + np.arange(length, dtype=np.uint64)
    return torch.from_numpy(uniforms(keys[..., None], counters.astype(np.uint64))).to(device)
