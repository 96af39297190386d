"""What a sample is charged with: closed-form FLOPs that do not depend on the batch."""

from __future__ import annotations

import warnings
from typing import Any

from inferscale.cost import Cost
from inferscale.flops.formulas import ModelSpec, UnknownArchitectureError, forward_flops, model_spec

from .branch import Branch


class Charges:
    """Closed-form costs of a model's forwards, convention ``causal``, no padding.

    An architecture without a closed form is charged 0 FLOPs, with one warning.

    Attributes:
        spec: The constants of the closed form, or ``None``.
    """

    def __init__(self, model: Any, **head: Any) -> None:
        self.spec: ModelSpec | None = None
        try:
            self.spec = model_spec(model.config, **head)
        except UnknownArchitectureError as error:
            warnings.warn(f"FLOPs of this model will be reported as 0: {error}", UserWarning, stacklevel=3)

    def forward(self, new: int, past: int, logits: int) -> int:
        """FLOPs of `new` tokens after `past` cached ones, with the head run at `logits` positions."""
        if self.spec is None or new < 1:
            return 0
        return forward_flops(self.spec, new, past, logits=logits).causal

    def sample(self, branch: Branch) -> tuple[int, int]:
        """Prompt tokens and FLOPs of one finished sample.

        The first draw from a node pays for what no forward has read yet: the prompt at the root, the node's last token
        elsewhere. The first sample of a request pays for its forced text, which is read once for all of them. Each
        sampled token but the last pays for its own forward, so that the sum over a tree is the closed form of one
        pass with the prompt read once.
        """
        sampled, forced, path = len(branch.tokens), len(branch.forced), len(branch.path)
        if not sampled:
            return 0, 0
        first_draw = branch.request.first + branch.index == 0
        unread = (1 if path else len(branch.prompt)) if first_draw else 0
        shared = unread + (forced if branch.index == 0 else 0)
        prefix = len(branch.prefix)
        before = prefix - forced if branch.index == 0 else prefix
        flops = self.forward(shared, before - unread, logits=1)
        flops += self.forward(sampled - 1, prefix, logits=sampled - 1)
        prompt_tokens = (len(branch.prompt) if first_draw and not path else 0) + (forced if branch.index == 0 else 0)
        return prompt_tokens, flops

    def scoring(self, tokens: int, logits: int, past: int = 0) -> Cost:
        """The cost of reading `tokens` after `past` cached ones with the head run at `logits` positions."""
        return Cost(scored_tokens=tokens, reward_flops=self.forward(tokens, past, logits))
