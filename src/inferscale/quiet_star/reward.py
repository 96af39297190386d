"""Rewards from thoughts: how much thinking helps a model to predict what a solution says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import torch

from inferscale.base import ProcessRewardModel, RewardModel
from inferscale.cost import Cost
from inferscale.flops.spec import forward_flops
from inferscale.runtime.charges import Charges
from inferscale.runtime.loading import check_length, context_length
from inferscale.runtime.prompts import PromptFormat
from inferscale.runtime.sampling import Sampler
from inferscale.tree import Node

from .model import QuietSTaR
from .thoughts import thought_numbers
from .traffic import ThoughtTraffic


class ThoughtUtility(ProcessRewardModel):
    """Mean gain in log-probability (nats) of a step's tokens from a thought before each: the reward of training.

    The text may come from any generator with the same tokenizer. Each node's own step is scored once.

    Attributes:
        quiet: The model.
        reduction: From step scores to one score.

    Example:
        >>> from inferscale import HFGenerator, RepeatedSampling, solve, zoo
        >>> from inferscale.quiet_star import QuietSTaR, ThoughtUtility
        >>> model, tokenizer = zoo.load("policy-xs")
        >>> policy = HFGenerator(model, tokenizer, max_new_tokens=8)
        >>> utility = ThoughtUtility(QuietSTaR(model, thought_length=2), tokenizer)
        >>> result = solve(zoo.problems()[0], RepeatedSampling(2), policy, reward_model=utility)
        >>> [abs(round(trajectory.score, 3)) for trajectory in result.trajectories]  # untrained thoughts gain nothing
        [0.0, 0.0]
    """

    no_effect = frozenset({"rows_at_once"})

    def __init__(
        self,
        quiet: QuietSTaR,
        tokenizer: Any,
        *,
        reduction: Literal["last", "min", "prod", "mean"] = "mean",
        num_thoughts: int = 1,
        temperature: float = 0.0,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        rows_at_once: int = 16,
    ) -> None:
        """Score with a model apart from the generator's, or with the same.

        Args:
            quiet: The model.
            tokenizer: Its tokenizer.
            reduction: From step scores to one score: ``"mean"``, ``"last"``, ``"min"`` or ``"prod"``.
            num_thoughts: Thoughts before each token; their probabilities are averaged.
            temperature: Of the thoughts; 0 takes the likeliest.
            chat_template: Put prompts into the tokenizer's chat template; by default if it has one.
            system_prompt: System turn of the chat.
            rows_at_once: Nodes scored in one pass.

        Raises:
            ValueError: If a number is below 1.
        """
        for name, value in (("num_thoughts", num_thoughts), ("rows_at_once", rows_at_once)):
            if value < 1:
                raise ValueError(f"{name}={value}: give a positive number")
        self.quiet = quiet
        self.reduction = reduction
        self._temperature = Sampler(temperature).temperature  # checked now, not at the first score
        self._rows = rows_at_once
        self._prompt = lru_cache(maxsize=4096)(PromptFormat.choose(tokenizer, chat_template, system_prompt).encode)
        self._known: dict[int, dict[int, list[float]]] = {}
        self._paid: dict[int, set[int]] = {}  # by root: nodes that an earlier process scored
        self._thoughts = num_thoughts
        charges = Charges(quiet.model)
        self._spec, self._traffic = charges.spec, ThoughtTraffic(charges, quiet)
        context = context_length(quiet.model.config, tokenizer)
        # the thought before the last token stands in the places from that token on
        self._context = None if context is None else context - quiet.thought_length - 1

    @property
    def model(self) -> QuietSTaR:
        """Alias of `quiet`, by the name that counters of FLOPs ask for."""
        return self.quiet

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """Return, for each node, the utility of each of its inner steps.

        Raises:
            ValueError: If a step has text and no token ids, or a path and a thought are longer than the model reads.
        """
        missing = self._missing(nodes)
        for first in range(0, len(missing), self._rows):
            self._score(missing[first : first + self._rows])
        return [[value for part in node.path for value in self._known[node.root.key][part.key]] for node in nodes]

    def _missing(self, nodes: Sequence[Node]) -> list[Node]:
        """Nodes on the paths that have no scores yet, each once."""
        missing: dict[int, Node] = {}
        for node in nodes:
            known = self._known.get(node.root.key, {})
            missing |= {part.key: part for part in node.path if part.key not in known}
        for part in missing.values():
            self._check_length(part, sum(map(len, self._ids(part))))
        return list(missing.values())

    def check_prompt(self, root: Node) -> None:
        """Refuses a prompt that leaves no room for a token with a thought before it."""
        self._check_length(root, len(self._prompt(root.problem)) + 1)

    def _check_length(self, node: Node, count: int) -> None:
        check_length(count, self._context, node, f"{type(self.quiet.model).__name__}, beside a thought,")

    def _ids(self, node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before the node's own step, prompt included, and those of the step."""
        parent, step = node.parent, node.step
        assert parent is not None
        assert step is not None
        if step.text and not step.token_ids:
            raise ValueError(
                f"{node!r} has text and no token ids: score what a generator with the same tokenizer sampled"
            )
        return self._prompt(node.problem) + parent.token_ids, step.token_ids

    def _score(self, nodes: Sequence[Node]) -> None:
        """Score the own steps of `nodes`: what comes before is padded on the left, so that the steps stand aligned."""
        rows = [self._ids(node) for node in nodes]
        left, right = max(len(before) for before, _ in rows), max(len(own) for _, own in rows)
        utilities: list[list[float]] = [[] for _ in rows]
        if right:
            ids, mask = torch.zeros(2, len(rows), left + right, dtype=torch.long).unbind()
            for row, (before, own) in enumerate(rows):
                ids[row, left - len(before) : left + len(own)] = torch.tensor(before + own)
                mask[row, left - len(before) : left + len(own)] = 1
            device = self.quiet.backbone.device
            places = torch.arange(right, device=device)
            # Streams are named by the node and the place in its step: a score does not depend on what else is scored.
            numbers = thought_numbers([n.key for n in nodes], self._thoughts, places, self.quiet.thought_length)
            found = self.quiet.score(
                ids.to(device),
                mask.to(device),
                positions=places + left - 1,  # the state before a token predicts it
                num_thoughts=self._thoughts,
                temperature=self._temperature,
                numbers=numbers,
            )
            utilities = found.utility.tolist()
        for node, values in zip(nodes, utilities, strict=True):
            assert node.step is not None
            means, start = [], 0
            for _, part in node.step.inner_steps():
                gains = values[start : start + len(part)]
                means.append(sum(gains) / len(gains) if gains else 0.0)
                start += len(part)
            self._known.setdefault(node.root.key, {})[node.key] = means

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """Return the tokens (thoughts among them), closed-form FLOPs and bytes of scoring what is not known yet.

        The first node of each tree is charged with the bytes of all, which share their passes.
        """
        missing = [part for part in self._missing(nodes) if part.key not in self._paid.get(part.root.key, ())]
        new = set(map(id, missing))
        costs = []
        for node in nodes:
            parts = [part for part in node.path if id(part) in new]
            new -= set(map(id, parts))  # a part that two nodes share is paid by the first
            cost = sum(map(self._cost_of, parts), Cost())
            if texts := [self._ids(part) for part in missing if part.root is node.root]:
                missing = [part for part in missing if part.root is not node.root]
                lengths = [(len(before) + len(own), len(own)) for before, own in texts]
                moved = self._traffic.scoring(lengths, self._thoughts)
                cost = replace(cost, reward_bytes=moved and sum(moved), cache_bytes=moved and moved.cache)
            costs.append(cost)
        return costs

    def _cost_of(self, node: Node) -> Cost:
        before, own = map(len, self._ids(node))
        thought = self.quiet.thought_length + 2
        tokens = before + own + own * self._thoughts * thought
        if self._spec is None:
            return Cost(scored_tokens=tokens)
        flops = forward_flops(self._spec, before + own, logits=own).causal
        for token in range(own):
            # T drawn tokens and the mixed state go through the output head: T + 1 = thought - 1
            one = forward_flops(self._spec, thought, before + token, logits=thought - 1).causal + self.quiet.head.flops
            flops += self._thoughts * one
        return Cost(scored_tokens=tokens, reward_flops=flops)

    def release(self, root: Node) -> None:
        """Forget the scores of a search that has ended."""
        self._known.pop(root.key, None)
        self._paid.pop(root.key, None)

    def recall(self, nodes: Sequence[Node]) -> None:
        """Take note that these nodes were scored and paid for in an earlier process."""
        for node in nodes:
            self._paid.setdefault(node.root.key, set()).update(part.key for part in node.path)


class WithThoughts(RewardModel):
    """A reward model plus the utility of thoughts: ``reward + weight * utility``.

    With ``weight=0`` it is the reward model alone: scores with and without thoughts compare the two.

    Attributes:
        reward: Any reward model.
        utility: Gain from thoughts.
        weight: Of the latter.

    Example:
        >>> from inferscale import HFGenerator, RepeatedSampling, solve, zoo
        >>> from inferscale.quiet_star import QuietSTaR, ThoughtUtility, WithThoughts
        >>> from inferscale.rewards import CheckerReward
        >>> model, tokenizer = zoo.load("policy-xs")
        >>> policy = HFGenerator(model, tokenizer, max_new_tokens=8)
        >>> utility = ThoughtUtility(QuietSTaR(model, thought_length=2), tokenizer)
        >>> judge = WithThoughts(CheckerReward(), utility, weight=0.1)
        >>> result = solve(zoo.problems()[0], RepeatedSampling(2), policy, reward_model=judge)
        >>> for trajectory in result.trajectories:  # untrained thoughts add nothing to what the checker says
        ...     print(trajectory.text.strip(), round(trajectory.score, 2))
        4 * 11 = 44 1.0
        11 * 4 = 44 1.0
    """

    def __init__(self, reward: RewardModel, utility: ThoughtUtility, weight: float = 1.0) -> None:
        self.reward = reward
        self.utility = utility
        self.weight = weight

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """Return the weighted sum for each node."""
        plain = self.reward.score(nodes)
        if self.weight == 0:
            return plain
        return [one + self.weight * other for one, other in zip(plain, self.utility.score(nodes), strict=True)]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """Return the sum of both costs for each node."""
        plain = self.reward.cost(nodes)
        if self.weight == 0:
            return plain
        return [one + other for one, other in zip(plain, self.utility.cost(nodes), strict=True)]

    def recall(self, nodes: Sequence[Node]) -> None:
        """Tell both of nodes that were scored in an earlier process."""
        self.reward.recall(nodes)
        self.utility.recall(nodes)

    def check_prompt(self, root: Node) -> None:
        """Ask both whether they can score what follows this prompt."""
        self.reward.check_prompt(root)
        self.utility.check_prompt(root)

    def release(self, root: Node) -> None:
        """Let both forget the search."""
        self.reward.release(root)
        self.utility.release(root)
