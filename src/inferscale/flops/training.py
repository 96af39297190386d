"""FLOPs of training: a callback for transformers' ``Trainer``, and so for the trainers of TRL."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from .counter import FlopCounter


class FlopCallback(TrainerCallback):
    """Counts every matrix product of a training run, backward passes too, and logs it as ``flops``.

    Needs accelerate, as ``Trainer`` does::

        callback = FlopCallback()
        Trainer(model, args, train_dataset=..., callbacks=[callback]).train()
        print(callback.counter.table())

    The trainer's own ``total_flos`` is 6 x parameters x tokens, an estimate.

    Attributes:
        counter: The counter, once training has begun; of a second run it is another one.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from inferscale.flops import FlopCallback
        >>> callback, state = FlopCallback(), SimpleNamespace(log_history=[])
        >>> model = torch.nn.Linear(8, 2)
        >>> callback.on_train_begin(None, state, None, model=model)  # what ``Trainer(..., callbacks=[callback])`` does
        >>> model(torch.ones(4, 8)).sum().backward()
        >>> callback.on_train_end(None, state, None)
        >>> callback.counter.flops  # forward and backward: 2 products of 2 x 4 x 8 x 2
        256
    """

    counter: FlopCounter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Begin to count."""
        self.counter = FlopCounter(model, mode="exact")
        self.counter.__enter__()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
        """Add the FLOPs so far to what is logged."""
        if self.counter is not None:
            for row in (logs, *state.log_history[-1:]):  # what is reported, and the record of it that was made before
                if row is not None:
                    row["flops"] = self.counter.flops

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """End counting."""
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
