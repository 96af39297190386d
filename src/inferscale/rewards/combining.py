"""Reward models made of others: ensembles, a weighted sum of functions, scores kept by content, and of what fits."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Literal, TypeVar

from inferscale.base import ContextLengthError, ProcessRewardModel, RewardModel
from inferscale.cost import Cost
from inferscale.functional import Reduction
from inferscale.tree import Node, branch_key

from .functions import RewardFunction

T = TypeVar("T")


def _told(costs: list[Cost]) -> list[Cost]:
    """Costs of a call; of a model of one's own that tells tokens and no bytes, these are not known."""
    if any(c.reward_bytes != 0 for c in costs) or not any(c.scored_tokens or c.reward_flops for c in costs):
        return costs
    return [replace(c, reward_bytes=None, cache_bytes=None) for c in costs]


class _CombinedReward(RewardModel):
    """A reward model with members and a weight for each; its cost is what all cost together."""

    weights: tuple[float, ...]
    _members: tuple[RewardModel, ...]

    def _set_members(self, members: Sequence[RewardModel], weights: Sequence[float] | None) -> None:
        if not members:
            raise ValueError("give at least one reward model")
        for member in members:
            _check_model(member)
        self._members = tuple(members)
        self.concurrent = all(member.concurrent for member in members)
        self.weights = (1.0,) * len(members) if weights is None else tuple(float(weight) for weight in weights)
        if len(self.weights) != len(members):
            raise ValueError(f"{len(self.weights)} weights for {len(members)} members: give one for each")
        if not all(math.isfinite(weight) for weight in self.weights):
            raise ValueError(f"weights={list(self.weights)}: give finite numbers")

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The costs of all members together."""
        members = [member.cost(nodes) for member in self._members]
        if any(cost.reward_bytes for costs in members for cost in costs):  # beside those that tell
            members = [_told(costs) for costs in members]
        return [sum(costs, Cost()) for costs in zip(*members, strict=True)]

    def recall(self, nodes: Sequence[Node]) -> None:
        """Tells the members."""
        for member in self._members:
            member.recall(nodes)

    def check_prompt(self, root: Node) -> None:
        """Asks the members."""
        for member in self._members:
            member.check_prompt(root)

    def release(self, root: Node) -> None:
        """Passes the root on to the members."""
        for member in self._members:
            member.release(root)


class EnsembleReward(_CombinedReward):
    """Several reward models as one: the (weighted) mean of their scores, or the least of them.

    The least score is the careful choice against over-optimisation (Coste et al. 2024, arXiv:2310.02743). Process
    reward models among the members give their reduced scores; `EnsembleProcessReward` combines them step by step.

    Attributes:
        models: The members; their scores must be on one scale, see `CalibratedReward`.
        member_reduction: ``"mean"`` or ``"min"``.
        weights: A weight for each member, for the mean; they need not sum to 1.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.rewards import EnsembleReward
        >>> first, second = isc.testing.ToyReward(), isc.RewardFunction(lambda nodes: [0.5 for node in nodes])
        >>> careful = EnsembleReward([first, second], "min")  # against over-optimisation of one of them
        >>> result = isc.solve("How many?", isc.RepeatedSampling(8), isc.testing.ToyGenerator(), reward_model=careful)
        >>> max(trajectory.score for trajectory in result.trajectories)
        0.5
    """

    models: tuple[RewardModel, ...]

    def __init__(
        self,
        models: Sequence[RewardModel],
        member_reduction: Literal["mean", "min"] = "mean",
        *,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Checks the members.

        Args:
            models: At least one.
            member_reduction: How their scores become one.
            weights: For ``"mean"``.

        Raises:
            TypeError: If a member is not a reward model.
            ValueError: If there is none, or `member_reduction` or `weights` do not fit.
        """
        self._set_members(models, weights)
        if member_reduction not in ("mean", "min"):
            raise ValueError(f'member_reduction={member_reduction!r}: choose "mean" or "min"')
        if weights is not None and member_reduction == "min":
            raise ValueError('weights belong to member_reduction="mean": the least score has none')
        if math.fsum(self.weights) <= 0:
            raise ValueError(f"weights={list(self.weights)}: a mean needs weights with a positive sum")
        self.models = self._members
        self.member_reduction = member_reduction

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The members' scores, reduced.

        Raises:
            ValueError: If a member gives no score for a node, or a wrong number of scores.
        """
        rows = [_counted(model.score(nodes), nodes, model) for model in self.models]
        for model, scores in zip(self.models, rows, strict=True):
            if None in scores:
                raise ValueError(f"{_name_of(model)} returned None for a node: in WeightedReward it may abstain")
        return [self._reduced(values) for values in zip(*rows, strict=True)]

    def _reduced(self, values: Sequence[float]) -> float:
        if self.member_reduction == "min":
            return min(values)
        return math.fsum(w * v for w, v in zip(self.weights, values, strict=True)) / math.fsum(self.weights)


class EnsembleProcessReward(EnsembleReward, ProcessRewardModel):
    """Several process reward models as one: the (weighted) mean of their step scores, or the least, step by step.

    Attributes:
        models: The members; their step scores must be on one scale, see `CalibratedReward`.
        member_reduction: ``"mean"`` or ``"min"``.
        weights: A weight for each member, for the mean; they need not sum to 1.
        reduction: How the combined step scores become one score.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.rewards import EnsembleProcessReward
        >>> class Even(isc.ProcessRewardModel):
        ...     def step_scores(self, nodes):
        ...         return [[0.5 for _ in node.inner_steps()] for node in nodes]
        >>> both = EnsembleProcessReward([isc.testing.ToyProcessReward(), Even()], weights=[3, 1], reduction="min")
        >>> result = isc.solve("How many?", isc.REBASE(4), isc.testing.ToyGenerator(), reward_model=both)
        >>> [round(score, 2) for score in result.selected.step_scores]
        [0.64, 0.61, 0.28, 0.47]
    """

    models: tuple[ProcessRewardModel, ...]

    def __init__(
        self,
        models: Sequence[ProcessRewardModel],
        member_reduction: Literal["mean", "min"] = "mean",
        *,
        weights: Sequence[float] | None = None,
        reduction: Reduction | None = None,
    ) -> None:
        """Checks the members, as `EnsembleReward` does, and that all are process reward models.

        Args:
            models: At least one.
            member_reduction: How their step scores become one.
            weights: For ``"mean"``.
            reduction: How combined step scores become one score; by default as in the first member.
        """
        super().__init__(models, member_reduction, weights=weights)
        for model in models:
            _check_process(model, "EnsembleReward")
        self.reduction = reduction or models[0].reduction
        self.judge = models[0].judge
        if len({model.judge for model in models}) > 1:
            raise ValueError(f"members judge {[model.judge for model in models]}: give all one judge=")

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """For each node and step the members' scores, reduced.

        Raises:
            ValueError: If members do not agree on the number of steps.
        """
        rows = [_counted(model.step_scores(nodes), nodes, model) for model in self.models]
        found = []
        for node, lists in zip(nodes, zip(*rows, strict=True), strict=True):
            counts = [len(values) for values in lists]
            if len(set(counts)) > 1:
                raise ValueError(f"the members of an ensemble gave {counts} step scores to {node!r}: they must agree")
            found.append([self._reduced(values) for values in zip(*lists, strict=True)])
        return found

    score = ProcessRewardModel.score


class WeightedReward(_CombinedReward):
    """A weighted sum of functions and reward models, in the manner of TRL's ``reward_funcs`` and ``reward_weights``.

    A function that returns ``None`` for a node abstains: it is left out of that node's sum, as if it had given 0. If
    all abstain, nothing can be scored, and that is an error.

    Attributes:
        parts: The members; plain functions are wrapped in `RewardFunction`.
        weights: One for each, 1 by default; a negative one makes a penalty.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.rewards import WeightedReward
        >>> def right(completions, answer, **columns):
        ...     return [float(text.endswith(gold)) for text, gold in zip(completions, answer)]
        >>> def length(completions, **columns):
        ...     return [len(text) for text in completions]
        >>> reward = WeightedReward([right, length], weights=[1.0, -0.001])
        >>> solver = isc.Solver(isc.RepeatedSampling(8), isc.testing.ToyGenerator(), reward, isc.BestOfN())
        >>> round(solver.solve(isc.Problem("How many?", answer="3")).selected.score, 3)
        0.963
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
        self._set_members([p if isinstance(p, RewardModel) else RewardFunction(p) for p in parts], weights)
        self.parts = self._members

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The weighted sums.

        Raises:
            ValueError: If all parts abstain from a node, or one gives a wrong number of scores.
        """
        rows = [_counted(part.score(nodes), nodes, part) for part in self.parts]
        sums = []
        for node, values in zip(nodes, zip(*rows, strict=True), strict=True):
            given = [w * float(v) for w, v in zip(self.weights, values, strict=True) if v is not None]
            if not given:
                names = ", ".join(_name_of(part) for part in self.parts)
                raise ValueError(f"every part of the reward ({names}) returned None for {node!r}: add one that applies")
            sums.append(math.fsum(given))
        return sums


class CachedReward(RewardModel):
    """A reward model that is asked once for equal contents, in whatever tree, search or run of this process they are.

    What is known costs nothing. Contents are the prompt, gold answer and id of the problem, and of each step the text,
    ids, inner ends and how it finished. `CachedProcessReward` keeps the step scores of a process reward model.

    Attributes:
        model: The model.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.rewards import CachedReward
        >>> judge = CachedReward(isc.testing.ToyReward())
        >>> for _ in range(2):  # the second search samples the same again, and pays nothing for its scores
        ...     result = isc.solve("How many?", isc.RepeatedSampling(4), isc.testing.ToyGenerator(), reward_model=judge)
        >>> judge.misses, judge.hits
        (4, 4)
    """

    no_effect = frozenset({"max_entries"})

    def __init__(self, model: RewardModel, max_entries: int = 1_000_000) -> None:
        """Starts empty.

        Args:
            model: The model.
            max_entries: Most nodes whose scores are kept; the least recently used go first.

        Raises:
            TypeError: If `model` is not a reward model, or one whose step scores would be lost.
            ValueError: If `max_entries` is not positive.
        """
        _check_model(model)
        if isinstance(model, ProcessRewardModel) and not isinstance(self, ProcessRewardModel):
            raise TypeError(f"{type(model).__name__} gives step scores: CachedProcessReward(model) keeps them")
        if max_entries < 1:
            raise ValueError(f"max_entries={max_entries}: keep at least one")
        self.model = model
        self._max_entries = max_entries
        self._entries: OrderedDict[str, Any] = OrderedDict()  # least recently used first
        self._paid: set[str] = set()  # contents whose scores an earlier process had
        self._hits = self._misses = 0

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
        return self._lookup(nodes, self.model.score)

    def _lookup(self, nodes: Sequence[Node], ask: Callable[[Sequence[Node]], list[T]]) -> list[T]:
        keys = [content_key(node) for node in nodes]
        unknown: dict[str, Node] = {}
        for key, node in zip(keys, nodes, strict=True):
            if key not in self._entries:
                unknown.setdefault(key, node)
        self._misses += len(unknown)
        self._hits += len(nodes) - len(unknown)
        found = ask(list(unknown.values())) if unknown else []  # a function need not bear no nodes
        new = dict(zip(unknown, _counted(found, unknown, self.model), strict=True))
        for key in keys:
            if key not in new:
                self._entries.move_to_end(key)
        answer = [new[key] if key in new else self._entries[key] for key in keys]
        self._entries.update(new)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
        return answer

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The costs of the model for contents that are not known; nothing for others."""
        keys = [content_key(node) for node in nodes]
        known = self._paid.union(self._entries)
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in known}
        places = sorted(first.values())
        costs = [Cost()] * len(nodes)
        for place, cost in zip(places, self.model.cost([nodes[place] for place in places]), strict=True):
            costs[place] = cost
        return costs

    def recall(self, nodes: Sequence[Node]) -> None:
        """Takes their contents for paid; tells the model of those that it was asked for."""
        new = {key: node for node in nodes if (key := content_key(node)) not in self._entries and key not in self._paid}
        self._paid.update(new)
        self.model.recall(list(new.values()))

    def check_prompt(self, root: Node) -> None:
        """Asks the model."""
        self.model.check_prompt(root)

    def release(self, root: Node) -> None:
        """Passes the root on to the model; scores are kept."""
        self.model.release(root)


class CachedProcessReward(CachedReward, ProcessRewardModel):
    """A process reward model that is asked once for equal contents; see `CachedReward`.

    Attributes:
        model: The model.
        reduction: How step scores become one score, as in the model.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.rewards import CachedProcessReward
        >>> judge = CachedProcessReward(isc.testing.ToyProcessReward("min"))
        >>> for strategy in (isc.REBASE(4), isc.REBASE(8)):  # the second search scores new nodes alone
        ...     result = isc.solve("How many?", strategy, isc.testing.ToyGenerator(), reward_model=judge)
        >>> judge.misses, judge.hits
        (33, 15)
    """

    model: ProcessRewardModel

    def __init__(self, model: ProcessRewardModel, max_entries: int = 1_000_000) -> None:
        """Starts empty, as `CachedReward` does.

        Args:
            model: The model.
            max_entries: Most nodes whose step scores are kept; the least recently used go first.
        """
        super().__init__(model, max_entries)
        _check_process(model, "CachedReward")
        self.reduction = model.reduction
        self.judge = model.judge

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """The step scores, known or asked for."""
        return [list(scores) for scores in self._lookup(nodes, self.model.step_scores)]

    score = ProcessRewardModel.score


class TruncatedReward(RewardModel):
    """A reward model that judges a path which is too long for it by the steps that fit.

    Such a path gets the score of its longest beginning, in whole steps, that the model reads; ``"truncated"`` in
    `Node.stats` tells. Without this wrapper, the first such path ends all searches. `TruncatedProcessReward` gives step
    scores.

    Attributes:
        model: The model.
        judge: The part of a solution that is judged, as in the model.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.base import ContextLengthError
        >>> class Short(isc.RewardModel):  # reads 36 characters
        ...     def cost(self, nodes):
        ...         if any(len(node.text) > 36 for node in nodes):
        ...             raise ContextLengthError("a solution is longer than 36 characters")
        ...         return super().cost(nodes)
        ...     def score(self, nodes):
        ...         return [isc.testing.unit_hash(node.text) for node in nodes]
        >>> reward = isc.rewards.TruncatedReward(Short())
        >>> result = isc.solve("How many?", isc.RepeatedSampling(4), isc.testing.ToyGenerator(), reward_model=reward)
        >>> [(len(leaf.text), leaf.stats) for leaf in result.leaves]
        [(37, {'truncated': True}), (45, {'truncated': True}), (39, {'truncated': True}), (37, {'truncated': True})]
    """

    def __init__(self, model: RewardModel) -> None:
        """Wraps `model`.

        Raises:
            TypeError: If it is not a reward model, or one whose step scores would be lost.
        """
        _check_model(model)
        if isinstance(model, ProcessRewardModel) and not isinstance(self, ProcessRewardModel):
            raise TypeError(f"{type(model).__name__} gives step scores: TruncatedProcessReward(model) keeps them")
        self.model = model
        self.judge = model.judge
        self.concurrent = model.concurrent
        self._beginnings: dict[Node, dict[Node, Node]] = {}  # by root

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The model's scores of what fits.

        Raises:
            ContextLengthError: If not even the first step of a path does.
        """
        return self.model.score(self._fitting(nodes))

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The costs of the model for what fits."""
        return self.model.cost(self._fitting(nodes))

    def recall(self, nodes: Sequence[Node]) -> None:
        """Tells the model of what fits."""
        self.model.recall(self._fitting(nodes))

    def check_prompt(self, root: Node) -> None:
        """Asks the model."""
        self.model.check_prompt(root)

    def release(self, root: Node) -> None:
        """Passes the root on to the model."""
        self._beginnings.pop(root, None)
        self.model.release(root)

    def _fitting(self, nodes: Sequence[Node]) -> list[Node]:
        """Each node, or the longest beginning of its path that fits."""
        if not self._too_long(nodes):
            return list(nodes)
        found = []
        for node in nodes:
            known = self._beginnings.setdefault(node.root, {})
            if node not in known and self._too_long([node]):
                known[node] = self._beginning(node)
                node.stats["truncated"] = True
            found.append(known.get(node, node))
        return found

    def _beginning(self, node: Node) -> Node:
        steps = list(_beginnings(node))
        fits = bisect_left(steps, True, key=lambda beginning: self._too_long([beginning]))
        if not fits or not steps[fits - 1].part(self.judge).inner_steps():
            self.model.cost([node])  # says which lengths do not fit
        return steps[fits - 1]

    def _too_long(self, nodes: Sequence[Node]) -> bool:
        try:
            self.model.cost(nodes)
        except ContextLengthError:
            return True
        return False


class TruncatedProcessReward(TruncatedReward, ProcessRewardModel):
    r"""A process reward model that judges a path which is too long for it by the steps that fit; see `TruncatedReward`.

    The steps that do not fit have the score of the last one that does.

    Attributes:
        model: The model.
        reduction: How step scores become one score, as in the model.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.rewards import LabelledSolution, TruncatedProcessReward
        >>> prm = isc.HFProcessRewardModel(*isc.zoo.load("prm-xs"), good_token="<good>", bad_token="<bad>")
        >>> steps = ("1 + 1 = 2",) * 100  # more than the 512 tokens that the model reads
        >>> leaf = LabelledSolution(isc.Problem("1 + 1"), steps, (None,) * 100).node()
        >>> [scores] = TruncatedProcessReward(prm).step_scores([leaf])
        >>> len(scores), leaf.stats
        (100, {'truncated': True})
    """

    model: ProcessRewardModel

    def __init__(self, model: ProcessRewardModel) -> None:
        """Wraps `model`."""
        super().__init__(model)
        _check_process(model, "TruncatedReward")
        self.reduction = model.reduction

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """The step scores of what fits, and the last of them again for every step that does not.

        Raises:
            ContextLengthError: If not even the first step of a path fits.
        """
        fitting = self._fitting(nodes)
        found = [list(scores) for scores in self.model.step_scores(fitting)]
        for node, beginning, scores in zip(nodes, fitting, found, strict=True):
            if beginning is not node:
                scores += scores[-1:] * (len(node.part(self.judge).inner_steps()) - len(scores))
        return found

    score = ProcessRewardModel.score


def _beginnings(node: Node) -> Iterator[Node]:
    """The path of `node` up to the end of each step, inner steps included, shortest first."""
    for place in node.path:
        assert place.step is not None
        for number, (text_end, id_end) in enumerate(place.step.inner_ends[:-1], 1):
            step = replace(
                place.step, text=place.step.text[:text_end], token_ids=place.step.token_ids[:id_end],
                inner_ends=place.step.inner_ends[:number], finish_reason="step",
            )  # fmt: skip
            yield Node(place.problem, step, place.parent, branch_key(place.key, number))
        yield place


def _check_model(model: object) -> None:
    if not isinstance(model, RewardModel):
        raise TypeError(f"{type(model).__name__} is not a reward model: wrap a function in RewardFunction(f)")


def _check_process(model: object, other: str) -> None:
    if not isinstance(model, ProcessRewardModel):
        raise TypeError(f"{type(model).__name__} is not a process reward model: use {other}")


def _counted(answers: list[T], nodes: Sized, model: RewardModel) -> list[T]:
    """`answers`, once there is one for each node."""
    if len(answers) != len(nodes):
        raise ValueError(
            f"{_name_of(model)} returned {len(answers)} scores for {len(nodes)} nodes: return one for each"
        )
    return answers


def _name_of(model: RewardModel) -> str:
    return model.name if isinstance(model, RewardFunction) else type(model).__name__


def content_key(node: Node) -> str:
    """A name of what a node says, the same for equal contents: 32 hexadecimal digits."""
    problem = node.problem
    steps = [[step.text, step.token_ids, step.inner_ends, step.finish_reason] for step in node.steps]
    more = [problem.columns or None, repr(node.thinking)] if problem.columns or node.thinking else []
    text = json.dumps([problem.stream, problem.answer, problem.id, steps, *more], ensure_ascii=False)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
