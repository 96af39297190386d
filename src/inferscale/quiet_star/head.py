"""The mixing head: how much a thought may change the next-token prediction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

_INIT_STD = 0.02


class ThoughtMixingHead(nn.Module):
    """Network for the weight of a thought at each position: 0 keeps the base prediction, 1 takes the thought's.

    Three linear layers with ReLU between them read the base and the thought hidden state side by side
    (arXiv:2403.09629, section 4.3). The last layer starts at zero, so an untrained head leaves the base model as it is.

    Differs from the paper: its text puts the weight on the base prediction, its released code on the thought; this is
    the code's convention.

    Args:
        hidden_size: Width d of the hidden states.
        bounded: Pass the weight through tanh, so that it stays between -1 and 1. The published head is unbounded.
        seed: Of the first weights; the global random state is left as it is.

    Raises:
        ValueError: If `hidden_size` is below 1.

    Example:
        >>> import torch
        >>> from inferscale.quiet_star import ThoughtMixingHead, mix
        >>> head = ThoughtMixingHead(hidden_size=8)
        >>> base, thought = torch.randn(2, 5, 8).unbind()  # five positions
        >>> weight = head(base, thought)
        >>> weight.shape, bool((mix(base, thought, weight) == base).all())  # untrained: thoughts change nothing
        (torch.Size([5, 1]), True)
    """

    def __init__(self, hidden_size: int, bounded: bool = False, seed: int = 0) -> None:
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"hidden_size={hidden_size}: give the width of the model's hidden states")
        self.hidden_size = hidden_size
        self.bounded = bounded
        sizes = ((2 * hidden_size, hidden_size, True), (hidden_size, hidden_size, True), (hidden_size, 1, False))
        # skip_init: the layers' own first weights would draw from the global random state
        first, second, last = (skip_init(nn.Linear, *size) for size in sizes)
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (first, second):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw) * _INIT_STD)
                layer.bias.zero_()
            last.weight.zero_()

    @property
    def last(self) -> nn.Linear:
        """Last layer, zero in an untrained head."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def flops(self) -> int:
        """FLOPs for one position: 6 d² + 2 d."""
        return 6 * self.hidden_size**2 + 2 * self.hidden_size

    def forward(self, base_hidden: Tensor, thought_hidden: Tensor) -> Tensor:
        """Return the mixing weight, `[..., 1]`.

        Args:
            base_hidden: Last hidden state at the text token, `[..., hidden]`.
            thought_hidden: Last hidden state after the thought, `[..., hidden]` (broadcast against the other).

        Raises:
            ValueError: If a width is not `hidden_size`.
        """
        for name, states in (("base_hidden", base_hidden), ("thought_hidden", thought_hidden)):
            if states.shape[-1] != self.hidden_size:
                raise ValueError(
                    f"{name} has shape {tuple(states.shape)}, but this head mixes states of width {self.hidden_size}"
                )
        shape = torch.broadcast_shapes(base_hidden.shape, thought_hidden.shape)
        pair = torch.cat([base_hidden.expand(shape), thought_hidden.expand(shape)], dim=-1)  # [..., 2 * hidden]
        weight: Tensor = self.layers(pair.to(self.last.weight.dtype))
        return weight.tanh() if self.bounded else weight


def mix(base_hidden: Tensor, thought_hidden: Tensor, mixing_weight: Tensor) -> Tensor:
    """Return ``(1 - w) * base + w * thought`` in the states' dtype; exactly the base where the weight is 0.

    As in the released code, hidden states are mixed and go through the model's output head once. The paper's mix of
    log-probabilities (section 4.3), renormalised, is the same distribution unless the model soft-caps its logits.

    Args:
        base_hidden: `[..., hidden]`.
        thought_hidden: `[..., hidden]`.
        mixing_weight: w, `[..., 1]`.

    Returns:
        `[..., hidden]`.

    Example:
        >>> import torch
        >>> from inferscale.quiet_star import mix
        >>> base, thought = torch.zeros(2), torch.ones(2)
        >>> [mix(base, thought, torch.tensor([weight])).tolist() for weight in (0.0, 0.25, 1.0)]
        [[0.0, 0.0], [0.25, 0.25], [1.0, 1.0]]
    """
    weight = mixing_weight.to(base_hidden.dtype)
    return (1 - weight) * base_hidden + weight * thought_hidden


def mean_of_thoughts(logits: Tensor) -> Tensor:
    """Return logarithms of the mean probabilities over dimension 1; the logits themselves if there is one thought."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits.float().log_softmax(dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])
