"""The price of a sample or a score: closed-form FLOPs that do not depend on the batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from inferscale.cost import Cost
from inferscale.flops.calibration import calibrate, closed_form
from inferscale.flops.spec import ModelSpec, UnknownArchitectureError, forward_cost, model_spec, sample_flops

from .branch import Branch


class Charges:
    """Closed-form costs of a model's forwards, convention ``causal``, no padding.

    The form comes from the configuration, or from a few small forwards; a model that cannot be run so is charged 0
    FLOPs, with one warning.

    Attributes:
        spec: The constants of the closed form, or ``None``.
    """

    def __init__(self, model: Any) -> None:
        """Finds the closed form of a model, or of the configuration of one that runs elsewhere."""
        self.spec: ModelSpec | None = None
        try:
            self.spec = _form_of(model)
        except UnknownArchitectureError as error:
            warnings.warn(f"FLOPs of this model will be reported as 0: {error}", UserWarning, stacklevel=4)

    def forward(self, new: int, past: int, logits: int) -> int:
        """FLOPs of `new` tokens after `past` cached ones, with the head run at `logits` positions."""
        return forward_cost(self.spec, new, past, logits)

    def sample(self, branch: Branch) -> tuple[int, int]:
        """Prompt tokens and FLOPs of one finished sample.

        The first draw from a node pays for what no forward has read yet: the prompt at the root, the node's last token
        elsewhere. The first sample of a request pays for its forced text, which is read once for all of them.
        """
        sampled, forced, path = len(branch.tokens), len(branch.forced), len(branch.path)
        if not sampled:
            return 0, 0
        first_draw = branch.request.first + branch.index == branch.request.payer
        unread = (1 if path else len(branch.prompt)) if first_draw else 0
        read = unread + (forced if branch.index == 0 else 0)
        flops = sample_flops(self.spec, len(branch.prefix), read, sampled)
        prompt_tokens = (len(branch.prompt) if first_draw and not path else 0) + (forced if branch.index == 0 else 0)
        return prompt_tokens, flops

    def scoring(self, tokens: int, logits: int, past: int = 0) -> Cost:
        """The cost of reading `tokens` after `past` cached ones with the head run at `logits` positions."""
        return Cost(scored_tokens=tokens, reward_flops=self.forward(tokens, past, logits))


def _form_of(model: Any) -> ModelSpec:
    if isinstance(model, torch.nn.Module):
        return closed_form(model)
    try:
        return model_spec(model)
    except UnknownArchitectureError:
        if isinstance(model, Mapping):  # makes no model that could be measured
            raise
        return calibrate(model)
