"""A reward model's memory, by content."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Generic, Self, TypeVar

from inferscale.base import ProcessRewardModel, RewardModel
from inferscale.cost import Cost
from inferscale.functional import Reduction
from inferscale.tree import Node

from .combining import check_members, counted, is_process

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
