"""Thoughts and predictions as tensors, and the uniform numbers that thoughts are drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inferscale.runtime.branch import Branch
from inferscale.runtime.sampling import uniforms
from inferscale.tree import branch_key

from .head import mix


@dataclass(frozen=True, slots=True)
class Thoughts:
    """Sampled thoughts; gradients never flow through them.

    Attributes:
        tokens: Ids without start and end, int64 `[batch, thoughts, positions, T]`.
        logprobs: Their log-probabilities (nats) under the distribution drawn from, the same shape.
        positions: Indices of the text tokens that the thoughts follow, int64 `[positions]`.
    """

    tokens: Tensor
    logprobs: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True)
class Talk:
    """Hidden states of one pass over text and thoughts, with gradients.

    Look-ahead k (0 to ``n - 1``) predicts the token at index ``j + k + 1`` after the thought at position j, with the
    true tokens up to ``j + k`` given.

    Attributes:
        text: Last hidden states of the text, those of the plain model, `[batch, text, hidden]`.
        base: The same at positions ``j + k``, `[batch, 1, positions, n, hidden]`.
        thought: After the thought, `[batch, thoughts, positions, n, hidden]`.
        policy: From which the thought tokens are drawn, `[batch, thoughts, positions, T, hidden]`.
        mixing_weight: `[batch, thoughts, positions, n, 1]`.
    """

    text: Tensor
    base: Tensor
    thought: Tensor
    policy: Tensor
    mixing_weight: Tensor

    @property
    def mixed(self) -> Tensor:
        """Inputs of the output head, `[batch, thoughts, positions, n, hidden]`."""
        return mix(self.base, self.thought, self.mixing_weight)


@dataclass(frozen=True, slots=True)
class TextScores:
    """Log-probabilities of given tokens, with and without thoughts; each column is about the token after a position.

    Attributes:
        mixed: Log-probability (nats) with a thought before the token, `[batch, positions]`; 0 at padding.
        base: Log-probability of the plain model, the same shape.
        mixing_weight: Mean weight of the thoughts, the same shape.
    """

    mixed: Tensor
    base: Tensor
    mixing_weight: Tensor

    @property
    def utility(self) -> Tensor:
        """Gain from the thoughts in nats, `[batch, positions]`: the reward of training."""
        return self.mixed - self.base


@dataclass(frozen=True, slots=True)
class QuietSTaROutput:
    """Next-token predictions after a thought at every position.

    Attributes:
        logits: `[batch, text, vocabulary]`; with several thoughts, logarithms of the mean probabilities.
        base_logits: Of the plain model, the same shape.
        mixing_weight: Mean over the thoughts, `[batch, text, 1]`.
        thoughts: The thoughts.
    """

    logits: Tensor
    base_logits: Tensor
    mixing_weight: Tensor
    thoughts: Thoughts


# Every thought has a stream of uniform numbers (a key) and every place in the text a stretch of it (a range of
# counters): a thought depends on its row, its number and its place, not on where else is thought or what else is run.

STRIDE = 1 << 16
"""Numbers of a thought's stream that belong to one place in the text."""


def row_keys(seed: int, rows: int) -> list[int]:
    """Return the names of the streams of `rows` texts."""
    return [branch_key(seed, row) for row in range(rows)]


def thought_numbers(keys: Sequence[int], thoughts: int, places: Tensor, length: int) -> Tensor:
    """Return uniform numbers in (0, 1), `[rows * thoughts, positions, length]`, float64.

    Args:
        keys: Names of the rows' streams.
        thoughts: Thoughts for each position; each has a stream of its own.
        places: Those of the positions in a stream, `[positions]`, 0 and up.
        length: Sampled tokens of a thought.

    Raises:
        ValueError: If there is to be no thought.
    """
    if thoughts < 1:
        raise ValueError(f"num_thoughts={thoughts}: give at least one")
    streams = np.array([branch_key(key, thought) for key in keys for thought in range(thoughts)], dtype=np.uint64)
    return _numbers(streams[:, None], places.cpu().numpy().astype(np.uint64), length, places.device)


def branch_numbers(branches: Sequence[Branch], thoughts: int, length: int, device: torch.device) -> Tensor:
    """Return uniform numbers in (0, 1) for thoughts before each branch's next token, `[branches * thoughts, length]`.

    Args:
        branches: What is sampled; the tokens that one has so far are its place.
        thoughts: Thoughts for each branch.
        length: Sampled tokens of a thought.
        device: Where to put them.
    """
    # Negative numbers: 0 and up name the streams of a branch's children.
    keys = [branch_key(branch.key, -1 - thought) for branch in branches for thought in range(thoughts)]
    places = [len(branch.tokens) for branch in branches for _ in range(thoughts)]
    return _numbers(np.array(keys, dtype=np.uint64), np.array(places, dtype=np.uint64), length, device)


def _numbers(keys: NDArray[np.uint64], places: NDArray[np.uint64], length: int, device: torch.device) -> Tensor:
    """Return the numbers of keys and places (broadcast), `[..., length]`."""
    counters = places[..., None] * np.uint64(STRIDE) + np.arange(length, dtype=np.uint64)
    return torch.from_numpy(uniforms(keys[..., None], counters.astype(np.uint64))).to(device)
