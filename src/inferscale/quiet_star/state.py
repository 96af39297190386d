"""The tensors that thinking adds to a model, by name."""

from __future__ import annotations

import torch
from torch import Tensor

from inferscale.generators.loading import CheckpointError

from .model import QuietSTaR


def thought_state(quiet: QuietSTaR) -> dict[str, Tensor]:
    """Start, end and the head's weights by name, not copied."""
    head = {f"head.{name}": tensor for name, tensor in quiet.head.state_dict().items()}
    return {"start": quiet.start, "end": quiet.end, **head}


def fill(quiet: QuietSTaR, tensors: dict[str, Tensor], source: str) -> None:
    """Copies start, end and head into `quiet`.

    Raises:
        CheckpointError: If `tensors` (found in `source`) does not hold just these.
    """
    wanted = thought_state(quiet)
    wrong = sorted(set(wanted) ^ set(tensors)) or [n for n in wanted if wanted[n].shape != tensors[n].shape]
    if wrong:
        raise CheckpointError(f"{source} does not fit this model: {', '.join(wrong)} missing, too many or misshapen")
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(tensors[name])
