"""Reward models made of others: an average or the worst of several, a weighted sum of functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from typing import Any, Literal, Self

from inferscale.base import ProcessRewardModel, RewardModel
from inferscale.cost import Cost
from inferscale.functional import Reduction
from inferscale.tree import Node

from .functions import RewardFunction


class _Joined(RewardModel):
    """A reward model made of `_members`."""

    _members: tuple[RewardModel, ...]

    def _join(self, members: Sequence[RewardModel]) -> None:
        check_members(members)
        self._members = tuple(members)
        self.concurrent = all(member.concurrent for member in members)

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What all members cost together."""
        return [sum(costs, Cost()) for costs in zip(*(member.cost(nodes) for member in self._members), strict=True)]

    def release(self, root: Node) -> None:
        """Tells the members."""
        for member in self._members:
            member.release(root)


class EnsembleReward(_Joined):
    """Several reward models as one: the (weighted) mean of their scores, or the least of them.

    Of process reward models alone it is one itself: their step scores are joined step by step. The least score is the
    careful choice against over-optimisation (Coste et al. 2024, arXiv:2310.02743).

    Attributes:
        models: The members; their scores must be on one scale, see `CalibratedReward`.
        join: ``"mean"`` or ``"min"``.
        weights: A weight for each member, for the mean; they need not sum to 1.
    """

    def __new__(cls, models: Sequence[RewardModel] = (), *args: Any, **options: Any) -> Self:
        """A process reward model where all members are; copies and pickles come here without arguments."""
        if cls is EnsembleReward and models and all(map(is_process, models)):
            return super().__new__(_ProcessEnsemble)  # type: ignore[return-value]
        return super().__new__(cls)

    def __init__(
        self,
        models: Sequence[RewardModel],
        join: Literal["mean", "min"] = "mean",
        *,
        weights: Sequence[float] | None = None,
        reduction: Reduction | None = None,
    ) -> None:
        """Checks the members.

        Args:
            models: At least one.
            join: How their scores become one.
            weights: For ``"mean"``.
            reduction: How joined step scores become one; by default as in the first member. Only for process reward
                models.

        Raises:
            TypeError: If a member is not a reward model.
            ValueError: If there is none, or `join`, `weights` or `reduction` do not fit.
        """
        self._join(models)
        if join not in ("mean", "min"):
            raise ValueError(f'join={join!r}: choose "mean" or "min"')
        if weights is not None and join == "min":
            raise ValueError('weights belong to join="mean": the least score has none')
        self.models = self._members
        self.join = join
        self.weights = _checked_weights(weights, len(self.models))
        if math.fsum(self.weights) <= 0:
            raise ValueError(f"weights={list(self.weights)}: a mean needs weights with a positive sum")
        if reduction is not None and not is_process(self):
            raise ValueError("reduction=... joins step scores, but not all members are process reward models")

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The joined scores.

        Raises:
            ValueError: If a member gives no score for a node, or a wrong number of scores.
        """
        rows = [counted(model.score(nodes), nodes, model) for model in self.models]
        for model, scores in zip(self.models, rows, strict=True):
            if None in scores:
                raise ValueError(f"{name_of(model)} returned None for a node: in WeightedReward it may abstain")
        return [self._joined(values) for values in zip(*rows, strict=True)]

    def _joined(self, values: Sequence[float]) -> float:
        if self.join == "min":
            return min(values)
        return math.fsum(w * v for w, v in zip(self.weights, values, strict=True)) / math.fsum(self.weights)


class _ProcessEnsemble(EnsembleReward, ProcessRewardModel):
    """An `EnsembleReward` of process reward models."""

    reduction: Reduction

    def __init__(
        self,
        models: Sequence[RewardModel],
        join: Literal["mean", "min"] = "mean",
        *,
        weights: Sequence[float] | None = None,
        reduction: Reduction | None = None,
    ) -> None:
        super().__init__(models, join, weights=weights, reduction=reduction)
        self._judges = [model for model in models if isinstance(model, ProcessRewardModel)]
        self.reduction = reduction or self._judges[0].reduction

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """The members' step scores, joined step by step."""
        rows = [counted(model.step_scores(nodes), nodes, model) for model in self._judges]
        return [self._joined_steps(node, lists) for node, lists in zip(nodes, zip(*rows, strict=True), strict=True)]

    def _joined_steps(self, node: Node, lists: Sequence[list[float]]) -> list[float]:
        counts = [len(values) for values in lists]
        if len(set(counts)) > 1:
            raise ValueError(f"the members of an ensemble gave {counts} step scores to {node!r}: they must agree")
        return [self._joined(values) for values in zip(*lists, strict=True)]

    score = ProcessRewardModel.score


class WeightedReward(_Joined):
    """A weighted sum of functions and reward models, in the manner of TRL's ``reward_funcs`` and ``reward_weights``.

    A function that returns ``None`` for a node abstains: it is left out of that node's sum, as if it had given 0. If
    all abstain, nothing can be scored, and that is an error.

    Attributes:
        parts: The members; plain functions are wrapped in `RewardFunction`.
        weights: One for each, 1 by default; a negative one makes a penalty.
    """

    def __init__(
        self,
        parts: Sequence[RewardModel | Callable[..., Any]],
        weights: Sequence[float] | None = None,
    ) -> None:
        """Wraps the functions.

        Raises:
            ValueError: If there is no part, not one weight for each, or a weight that is not finite.
        """
        self._join([part if isinstance(part, RewardModel) else RewardFunction(part) for part in parts])
        self.parts = self._members
        self.weights = _checked_weights(weights, len(self.parts))

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The weighted sums.

        Raises:
            ValueError: If all parts abstain from a node, or one gives a wrong number of scores.
        """
        rows = [counted(part.score(nodes), nodes, part) for part in self.parts]
        return [self._sum(node, values) for node, values in zip(nodes, zip(*rows, strict=True), strict=True)]

    def _sum(self, node: Node, values: Sequence[float | None]) -> float:
        given = [w * float(v) for w, v in zip(self.weights, values, strict=True) if v is not None]
        if not given:
            names = ", ".join(name_of(part) for part in self.parts)
            raise ValueError(f"every part of the reward ({names}) returned None for {node!r}: add one that applies")
        return math.fsum(given)


def check_members(models: Sequence[object]) -> None:
    """Raises if there is none, or one is no reward model."""
    if not models:
        raise ValueError("give at least one reward model")
    for model in models:
        if not isinstance(model, RewardModel):
            raise TypeError(f"{type(model).__name__} is not a reward model: wrap a function in RewardFunction(f)")


def _checked_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    found = (1.0,) * count if weights is None else tuple(float(weight) for weight in weights)
    if len(found) != count:
        raise ValueError(f"{len(found)} weights for {count} members: give one for each")
    if not all(math.isfinite(weight) for weight in found):
        raise ValueError(f"weights={list(found)}: give finite numbers")
    return found


def counted(answers: list[Any], nodes: Sized, model: RewardModel) -> list[Any]:
    """`answers`, once there is one for each node."""
    if len(answers) != len(nodes):
        raise ValueError(f"{name_of(model)} returned {len(answers)} scores for {len(nodes)} nodes: return one for each")
    return answers


def name_of(model: RewardModel) -> str:
    """The name of a function or of a model's class."""
    return model.name if isinstance(model, RewardFunction) else type(model).__name__


def is_process(model: object) -> bool:
    """Whether it judges steps."""
    return isinstance(model, ProcessRewardModel)
