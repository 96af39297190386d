"""From a model's outputs at one place to one number, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Read: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From float32 outputs `[marks, outputs]` and target ids `[marks]` to one number for each mark `[marks]`."""


def read_pair(good: int, bad: int) -> Read:
    """P(good) in a softmax over the two outputs."""

    def read(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.sigmoid(logits[:, good] - logits[:, bad])

    return read


def read_sigmoid(logits: Tensor, targets: Tensor) -> Tensor:
    """The sigmoid of a single output."""
    return torch.sigmoid(logits[:, 0])


def read_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target."""
    return logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]


def read_self_certainty(logits: Tensor, targets: Tensor) -> Tensor:
    """How far the prediction is from uniform, in nats: ``KL(uniform || p)`` (Kang et al. 2025, arXiv:2502.18581)."""
    return -logits.log_softmax(dim=-1).mean(dim=-1) - math.log(logits.shape[-1])
