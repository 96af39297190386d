"""What thinking and talking return, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

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
        """The states that the output head reads, `[batch, thoughts, positions, n, hidden]`."""
        return mix(self.base, self.thought, self.mixing_weight)


@dataclass(frozen=True, slots=True)
class TextScores:
    """How likely given tokens are, with and without thoughts; each column is about the token after a position.

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
        """What the thoughts added, in nats, `[batch, positions]`: the reward of training."""
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


def mean_of_thoughts(logits: Tensor) -> Tensor:
    """Logarithms of the mean probabilities over dimension 1; the logits themselves if there is one thought."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits.float().log_softmax(dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])
