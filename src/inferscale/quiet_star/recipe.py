"""What a training run is given: hyperparameters and batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .losses import Objective


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of training; each default is the published one unless said.

    Attributes:
        objective: Those of the loss.
        lr: Peak learning rate of the base (published: 1e-6).
        head_lr_scale: Times `lr` for the mixing head (published: 1).
        embedding_lr_scale: Times `lr` for start and end (published: 100, by storing them divided by 100).
        weight_decay: Of AdamW (published: 0.001); start and end have none.
        warmup_steps: Steps of linear warm-up (published: 20).
        decay_steps: Steps over which the rate then falls to 0 (published: 100,000).
        steps: Steps taken (published: 100).
        accumulation: Batches of one step (published: 2, of 4 sequences with 2 thoughts each).
        max_grad_norm: Clips the gradient of the base and that of head, start and end, each by its own norm
            (published: 1, of all together).
        freeze_base: Train head, start and end alone.
        precision: ``"bfloat16"`` runs the model in half precision; the weights stay in float32 either way.
        seed: Names the streams of thoughts.
    """

    objective: Objective = field(default_factory=Objective)
    lr: float = 1e-6
    head_lr_scale: float = 1.0
    embedding_lr_scale: float = 100.0
    weight_decay: float = 1e-3
    warmup_steps: int = 20
    decay_steps: int = 100_000
    steps: int = 100
    accumulation: int = 2
    max_grad_norm: float = 1.0
    freeze_base: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses settings that train nothing, or not as they say."""
        for name, value, least in (
            ("accumulation", self.accumulation, 1),
            ("decay_steps", self.decay_steps, 1),
            ("warmup_steps", self.warmup_steps, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value}: give at least {least}")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm}: give a positive number")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'precision={self.precision!r}: choose "float32" or "bfloat16"')

    def lr_factor(self, step: int) -> float:
        """Times the peak learning rate at a step, counted from 0."""
        warm = min((step + 1) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return warm * max(1.0 - max(step - self.warmup_steps, 0) / self.decay_steps, 0.0)


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts to think about.

    Attributes:
        input_ids: `[batch, text]`.
        attention_mask: 1 for text and 0 for padding, `[batch, text]`; ``None`` for no padding.
        in_loss: Which tokens count as targets, bool `[batch, text]`; ``None`` for all.
        positions: Indices of the tokens to think after, `[positions]`; ``None`` for all that have room.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None
    in_loss: Tensor | None = None
    positions: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        given = (self.input_ids, self.attention_mask, self.in_loss, self.positions)
        ids, *rest = (None if item is None else item.to(device) for item in given)
        assert ids is not None
        return Batch(ids, *rest)
