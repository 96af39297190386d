"""The objective of Quiet-STaR: a non-myopic likelihood, and REINFORCE on what a thought added to it.

With look-aheads k = 0 to n - 1 after the thought i at position j, and CE a token's negative log-likelihood::

    base   = mean_j CE_base(j)                        the plain model, every token
    talk   = 1/n sum_k mean_ij CE_mix(i, j, k)        after thoughts
    R_ij   = sum_k [CE_base(j + k) - CE_mix(i, j, k)]
    policy = -1/T sum_t mean_ij A_ij log softmax(logits_t / reinforce_temperature)[c_t]
    loss   = base_weight * base + talk_weight * talk + policy_weight * policy

A is the advantage: R less a baseline, without a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from .model import QuietSTaR
from .thoughts import Thoughts

Baseline: TypeAlias = Literal["mean", "leave_one_out", "base"]


def _check_baseline(baseline: Baseline, num_thoughts: int) -> None:
    if baseline not in get_args(Baseline):
        raise ValueError(f'baseline={baseline!r}: choose "mean", "leave_one_out" or "base"')
    if baseline == "leave_one_out" and num_thoughts < 2:
        raise ValueError('baseline="leave_one_out" compares thoughts with each other: set num_thoughts to 2 or more')


@dataclass(frozen=True, slots=True)
class Objective:
    """Hyperparameters of the loss; each default is the published one, but for `policy_weight`.

    Published is what the released training script of Zelikman et al. 2024 (arXiv:2403.09629) sets.

    Attributes:
        talk_length: Look-ahead tokens n after a thought (published: 4).
        num_thoughts: Thoughts r for each position (published: 2).
        thought_temperature: Temperature that thoughts are sampled at (published: 1).
        reinforce_temperature: Divides the logits in the policy term alone (published: 3, which flattens the gradient
            and biases it; 1 is unbiased).
        base_weight: Weight of the plain likelihood (published: 0.5).
        talk_weight: Weight of the likelihood after thoughts (published: 0.5).
        policy_weight: Weight of REINFORCE. Published: 1e6, under a clipped gradient norm, so that this term alone sets
            the clip factor; 1 here.
        baseline: Taken off the reward: the ``"mean"`` over a position's thoughts (published), the mean of the
            others (``"leave_one_out"``, unbiased), or nothing but the plain model's likelihood, which is in the reward
            (``"base"``; what ``"mean"`` is with one thought).
        clip_negative: Drop thoughts that did worse than the baseline (published).

    Raises:
        ValueError: If a number is too small, or the baseline is unknown or needs more thoughts.

    Example:
        >>> from inferscale.quiet_star import Objective
        >>> unbiased = Objective(baseline="leave_one_out", clip_negative=False, reinforce_temperature=1.0)
        >>> unbiased.num_thoughts, unbiased.talk_length  # the published ones
        (2, 4)
        >>> Objective(num_thoughts=1, baseline="leave_one_out")
        Traceback (most recent call last):
            ...
        ValueError: baseline="leave_one_out" compares thoughts with each other: set num_thoughts to 2 or more
    """

    talk_length: int = 4
    num_thoughts: int = 2
    thought_temperature: float = 1.0
    reinforce_temperature: float = 3.0
    base_weight: float = 0.5
    talk_weight: float = 0.5
    policy_weight: float = 1.0
    baseline: Baseline = "mean"
    clip_negative: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that define no objective."""
        if self.talk_length < 1 or self.num_thoughts < 1:
            raise ValueError(f"{self!r}: talk_length and num_thoughts must be at least 1")
        if not self.reinforce_temperature > 0:
            raise ValueError(f"reinforce_temperature={self.reinforce_temperature}: give a positive number")
        _check_baseline(self.baseline, self.num_thoughts)


PUBLISHED_OBJECTIVE = Objective(policy_weight=1e6)
"""The settings of the released training script: those of `Objective`, and a `policy_weight` of 1e6.

Example:
    >>> from dataclasses import replace
    >>> from inferscale.quiet_star import PUBLISHED_OBJECTIVE, Recipe
    >>> PUBLISHED_OBJECTIVE.policy_weight, PUBLISHED_OBJECTIVE.talk_length
    (1000000.0, 4)
    >>> recipe = Recipe(objective=replace(PUBLISHED_OBJECTIVE, talk_length=8))  # the rest as published
    >>> recipe.objective.num_thoughts
    2
"""


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Terms of the loss of one batch, unweighted; scalars with gradients unless said.

    Attributes:
        total: The weighted sum.
        base: Plain negative log-likelihood (nats a token).
        talk: The same after thoughts.
        policy: REINFORCE.
        rewards: R, detached, `[batch, thoughts, positions]`.
        advantages: A, detached, the same shape.
        valid: True where a position has a target that counts, bool `[batch, positions]`.
        mixing_weight: Mean of the weights at look-ahead 0, detached.
    """

    total: Tensor
    base: Tensor
    talk: Tensor
    policy: Tensor
    rewards: Tensor
    advantages: Tensor
    valid: Tensor
    mixing_weight: Tensor

    @property
    def reward(self) -> Tensor:
        """Mean of the rewards at positions that count, 0 if none does."""
        return _mean(self.rewards, self.valid.unsqueeze(1))


def advantages(rewards: Tensor, baseline: Baseline = "mean", clip_negative: bool = True) -> Tensor:
    """Compute how much better each thought did than its baseline; no gradient flows back.

    Args:
        rewards: R, in nats, `[batch, thoughts, positions]`.
        baseline: See `Objective`.
        clip_negative: Turn negative ones into 0.

    Returns:
        The advantages A, `[batch, thoughts, positions]`.

    Raises:
        ValueError: If the baseline is unknown, or compares thoughts of which there is one.

    Example:
        >>> import torch
        >>> from inferscale.quiet_star import advantages
        >>> rewards = torch.tensor([0.5, 0.1, 0.0]).reshape(1, 3, 1)  # three thoughts at one position
        >>> advantages(rewards).flatten()  # as published: over the mean, negative ones dropped
        tensor([0.3000, 0.0000, 0.0000])
        >>> advantages(rewards, "leave_one_out", clip_negative=False).flatten()
        tensor([ 0.4500, -0.1500, -0.3000])
    """
    rewards = rewards.detach()
    count = rewards.shape[1]
    _check_baseline(baseline, count)
    if baseline == "mean" and count > 1:  # holds the sample itself, which shrinks the gradient by 1 - 1/r
        rewards = rewards - rewards.mean(dim=1, keepdim=True)
    elif baseline == "leave_one_out":  # R_i - mean of the others = (R_i - mean of all) r / (r - 1)
        rewards = (rewards - rewards.mean(dim=1, keepdim=True)) * count / (count - 1)
    return rewards.clamp(min=0) if clip_negative else rewards


def quiet_star_loss(
    quiet: QuietSTaR,
    input_ids: Tensor,
    thoughts: Thoughts,
    objective: Objective,
    *,
    attention_mask: Tensor | None = None,
    in_loss: Tensor | None = None,
) -> LossTerms:
    r"""Compute the loss of a batch after its thoughts, in one pass with gradients.

    The likelihood of the text without and with thoughts, and REINFORCE on what the thoughts added to it (Zelikman et
    al. 2024, arXiv:2403.09629, section 4.4).

    Differs from the paper: means are over targets that count (the released code takes some over padding too).

    Args:
        quiet: The model.
        input_ids: `[batch, text]`.
        thoughts: Sampled by `QuietSTaR.think`, at positions that have `objective.talk_length` tokens after them.
        objective: Hyperparameters.
        attention_mask: 1 for text and 0 for padding, `[batch, text]`.
        in_loss: Which tokens count as targets, bool `[batch, text]`; padding never does.

    Returns:
        The terms of the loss, of which ``total`` is to be minimised, with the rewards and advantages of the thoughts.

    Raises:
        ValueError: If look-aheads reach past the text.

    Example:
        >>> import torch
        >>> from inferscale import zoo
        >>> from inferscale.quiet_star import Objective, QuietSTaR, quiet_star_loss
        >>> model, tokenizer = zoo.load("policy-xs")
        >>> quiet, objective = QuietSTaR(model, thought_length=2), Objective(talk_length=2)
        >>> ids = tokenizer("7 * 6 = 42\n42 - 20 = 22\n", return_tensors="pt")["input_ids"]
        >>> thoughts = quiet.think(ids, positions=torch.arange(8), num_thoughts=objective.num_thoughts)
        >>> terms = quiet_star_loss(quiet, ids, thoughts, objective)
        >>> terms.total.backward()
        >>> terms.rewards.shape, quiet.head.last.weight.grad is not None
        (torch.Size([1, 2, 8]), True)
    """
    last = int(thoughts.positions.max()) + objective.talk_length
    if last >= input_ids.shape[1]:
        raise ValueError(
            f"talk_length={objective.talk_length} reaches past the text of {input_ids.shape[1]} tokens from position "
            f"{int(thoughts.positions.max())}: think at earlier positions"
        )
    counts = torch.ones_like(input_ids, dtype=torch.bool) if in_loss is None else in_loss.bool()
    kept = torch.ones_like(counts) if attention_mask is None else attention_mask.bool()
    counts = counts & kept
    counts[:, 1:] &= kept[:, :-1]  # the first token after padding is predicted from nothing
    talk = quiet.talk(input_ids, attention_mask, thoughts, objective.talk_length)

    # Likelihoods. The state at index j + k predicts the token at j + k + 1; both are `[positions, n]`.
    index = thoughts.positions[:, None] + torch.arange(objective.talk_length, device=input_ids.device)
    base = quiet.token_logprobs(talk.text[:, :-1], input_ids[:, 1:])  # -CE_base, [batch, text - 1]
    mixed = quiet.token_logprobs(talk.mixed, input_ids[:, index + 1].unsqueeze(1))  # -CE_mix, [batch, r, positions, n]
    target = (counts[:, index + 1] & kept[:, thoughts.positions, None]).unsqueeze(1)  # [batch, 1, positions, n]
    base_loss = -_mean(base, counts[:, 1:])
    # a mean for each look-ahead and then over them: near the end of a text, fewer of the far targets count
    talk_loss = -torch.stack([_mean(mixed[..., k], target[..., k]) for k in range(objective.talk_length)]).mean()

    # REINFORCE (section 4.4). The reward has no gradient: thoughts learn through the log-probability of their tokens.
    gain = (mixed - base[:, index].unsqueeze(1)) * target
    rewards = gain.detach().sum(dim=-1)  # R, [batch, r, positions]
    better = advantages(rewards, objective.baseline, objective.clip_negative)
    valid = target[:, 0].any(dim=-1)  # [batch, positions]
    if thoughts.tokens.shape[-1]:
        drawn = quiet.token_logprobs(talk.policy, thoughts.tokens, objective.reinforce_temperature).mean(dim=-1)
        policy = -_mean(drawn * better.to(drawn.dtype), valid.unsqueeze(1))
    else:
        policy = talk.policy.sum() * 0.0  # thoughts of no length: 0, and still part of the graph
    return LossTerms(
        total=objective.base_weight * base_loss + objective.talk_weight * talk_loss + objective.policy_weight * policy,
        base=base_loss,
        talk=talk_loss,
        policy=policy,
        rewards=rewards,
        advantages=better,
        valid=valid,
        mixing_weight=_mean(talk.mixing_weight.detach()[..., 0, 0], valid.unsqueeze(1)),
    )


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over what counts (broadcast); 0 if nothing does."""
    counted = counted.expand(values.shape)
    return (values * counted).sum() / counted.sum().clamp(min=1)
