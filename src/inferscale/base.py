"""The four parts that a search is made of: generator, reward model, aggregator, strategy."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from .cost import Cost
from .flow import Flow, GenerateRequest
from .functional import Reduction, reduce_steps
from .thinking import Thinking
from .tree import Node, Step, Trajectory


class Generator(ABC):
    """Samples continuations. The only part that runs the language model.

    Attributes:
        concurrent: True if `generate` may be called from several threads at a time, as ``schedule="stream"`` does. Then
            `release` may come while calls for its search, whose answers nobody will read, are still running.
        thinking: The markers that the model writes around its thoughts; ``None`` if the generator cannot tell.
        takes_messages: True if it renders conversations (`Problem.messages`) as turns; another one reads their text,
            `Problem.prompt`.
    """

    concurrent: bool = False
    thinking: Thinking | None = None
    takes_messages: bool = False

    @abstractmethod
    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """Return ``request.n`` steps for each request, in order.

        The `i`-th sample of a request must depend on nothing but the prefix and
        ``branch_key(request.node.key, request.first + i)``; then results do not depend on the batch.
        """

    def max_sample_tokens(self, request: GenerateRequest) -> int | None:
        """Return the most tokens that one sample of `request` can have; ``None`` if there is no bound.

        The engine uses it to fill a token budget without passing it: with no bound, samples are drawn one at a
        time once there is a token budget.
        """
        return None

    def release(self, root: Node) -> None:
        """Forget what was cached for the search of ``root.problem``, which has ended."""


class RewardModel(ABC):
    """Scores partial or complete solutions; higher is better.

    Attributes:
        concurrent: True if `cost` and `score` may be called from several threads at a time; see `Generator`.
    """

    concurrent: bool = False

    @abstractmethod
    def score(self, nodes: Sequence[Node]) -> list[float]:
        """Return one finite number for each node."""

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """Return the price of scoring each node (`scored_tokens` and `reward_flops`), asked before it is scored."""
        return [Cost()] * len(nodes)

    def check_prompt(self, root: Node) -> None:
        """Raise a ValueError if no solution of ``root.problem`` can be scored; asked before anything is sampled.

        A prompt that is longer than the model reads is such a case. By default every prompt will do.
        """

    def release(self, root: Node) -> None:
        """Forget what was cached for the search of ``root.problem``, which has ended."""


class ProcessRewardModel(RewardModel):
    """Judges every step of a solution.

    Attributes:
        reduction: The way from step scores to one score: ``"last"``, ``"min"``, ``"prod"`` or ``"mean"``.
    """

    reduction: Reduction = "last"

    @abstractmethod
    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """Return for each node one finite number for each of ``node.inner_steps()``, in order."""

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """Return the step scores of each node, reduced."""
        return [float(reduce_steps(scores, self.reduction)) for scores in self.step_scores(nodes)]


class Aggregator(ABC):
    """Picks the trajectory to report out of those that a search returned.

    Attributes:
        needs_scores: True if trajectories must have scores.
        reads_answers: True if it compares answers; a trajectory without one is then reported only if all have none.
    """

    needs_scores: ClassVar[bool] = False
    reads_answers: ClassVar[bool] = True

    @abstractmethod
    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """Return one of `trajectories`."""


class SearchStrategy(ABC):
    """Decides what to sample next. Subclasses are frozen dataclasses of hyperparameters only.

    Attributes:
        needs_scores: True if `search` scores nodes, so that a reward model must be given.
    """

    needs_scores: ClassVar[bool] = False

    @abstractmethod
    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Return the leaves to vote over, as a Python generator that yields requests (see `inferscale.flow`)."""


def check_scores(
    reward_model: object | None, *parts: SearchStrategy | Aggregator, advice: str = "pass reward_model=..."
) -> None:
    """Raise a ValueError, which ends with `advice`, if one of `parts` needs scores and no reward model gives any."""
    for part in parts:
        if reward_model is None and part.needs_scores:
            does = "scores its nodes" if isinstance(part, SearchStrategy) else "reads scores"
            raise ValueError(f"{part!r} {does}: {advice}")
