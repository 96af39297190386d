"""Reward models made of others: an ensemble, a weighted sum of functions, a memory by content."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence, Sized
from hashlib import blake2b
from typing import Any, Generic, Literal, Self, TypeVar

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


T = TypeVar("T")


class CachedReward(RewardModel):
    """A reward model that is asked once for equal contents, in whatever tree, search or run of this process they are.

    Of a process reward model it is one itself. What is known costs nothing. Contents are the prompt, gold answer and
    id of the problem, and of each step the text, ids, inner ends and how it finished.

    Attributes:
        model: The model.
    """

    def __new__(cls, model: RewardModel | None = None, *args: Any, **options: Any) -> Self:
        """A process reward model where `model` is; copies and pickles come here without arguments."""
        if cls is CachedReward and is_process(model):
            return super().__new__(_CachedProcess)  # type: ignore[return-value]
        return super().__new__(cls)

    def __init__(self, model: RewardModel, max_entries: int = 1_000_000) -> None:
        """Starts empty.

        Args:
            model: The model.
            max_entries: Most scores kept; the least recently used go first.

        Raises:
            TypeError: If `model` is not a reward model.
            ValueError: If `max_entries` is not positive.
        """
        check_members([model])
        if max_entries < 1:
            raise ValueError(f"max_entries={max_entries}: keep at least one")
        self.model = model
        self._hits = self._misses = 0
        self._scores: _Memory[float] = _Memory(max_entries)
        self._lists: _Memory[list[float]] = _Memory(max_entries)

    @property
    def hits(self) -> int:
        """Scores that were known."""
        return self._hits

    @property
    def misses(self) -> int:
        """Scores that the model was asked for."""
        return self._misses

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The scores, known or asked for."""
        return self._remembered(nodes, self._scores, self.model.score)

    def _remembered(
        self, nodes: Sequence[Node], memory: _Memory[T], ask: Callable[[Sequence[Node]], list[T]]
    ) -> list[T]:
        keys = [content_key(node) for node in nodes]
        unknown: dict[str, Node] = {}
        for key, node in zip(keys, nodes, strict=True):
            if key not in memory.entries:
                unknown.setdefault(key, node)
        self._misses += len(unknown)
        self._hits += len(nodes) - len(unknown)
        found = ask(list(unknown.values())) if unknown else []  # a function need not bear no nodes
        new = dict(zip(unknown, counted(found, unknown, self.model), strict=True))
        answer = [new[key] if key in new else memory.get(key) for key in keys]
        memory.put(new)
        return answer

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What the model charges for contents that are not known; nothing for others."""
        memory: _Memory[Any] = self._lists if is_process(self) else self._scores
        keys = [content_key(node) for node in nodes]
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in memory.entries}
        places = sorted(first.values())
        costs = [Cost()] * len(nodes)
        for place, cost in zip(places, self.model.cost([nodes[place] for place in places]), strict=True):
            costs[place] = cost
        return costs

    def release(self, root: Node) -> None:
        """Tells the model; scores are kept."""
        self.model.release(root)


class _CachedProcess(CachedReward, ProcessRewardModel):
    """A `CachedReward` of a process reward model."""

    reduction: Reduction

    def __init__(self, model: RewardModel, max_entries: int = 1_000_000) -> None:
        super().__init__(model, max_entries)
        assert isinstance(model, ProcessRewardModel)
        self._judge = model
        self.reduction = model.reduction

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """The step scores, known or asked for."""
        return [list(scores) for scores in self._remembered(nodes, self._lists, self._judge.step_scores)]

    score = ProcessRewardModel.score


class _Memory(Generic[T]):
    """Values by key; the least recently used go first."""

    def __init__(self, most: int) -> None:
        self.entries: OrderedDict[str, T] = OrderedDict()
        self._most = most

    def get(self, key: str) -> T:
        self.entries.move_to_end(key)
        return self.entries[key]

    def put(self, new: dict[str, T]) -> None:
        self.entries.update(new)
        while len(self.entries) > self._most:
            self.entries.popitem(last=False)


def content_key(node: Node) -> str:
    """A name of what a node says, the same for equal contents: 32 hexadecimal digits."""
    problem = node.problem
    steps = [[step.text, step.token_ids, step.inner_ends, step.finish_reason] for step in node.steps]
    text = json.dumps([problem.prompt, problem.answer, problem.id, steps], ensure_ascii=False)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
