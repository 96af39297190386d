"""Which child a simulation goes to: UCT, PUCT, and the Gumbel root with sequential halving."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from inferscale.tree import Node

from ._mcts_tree import MCTSTree

_PUCT_BASE = 19652
_GUMBEL_VISITS = 50  # c_visit and c_scale of Danihelka et al. 2022, section 3.4
_GUMBEL_SCALE = 0.1
_GUMBEL_CANDIDATES = 16


class Rule(Protocol):
    """Picks one of the open children of a node; the earliest on ties."""

    def __call__(self, tree: MCTSTree, node: Node, kids: Sequence[Node]) -> Node:
        """One of `kids`, which is not empty."""


@dataclass(frozen=True)
class UCT:
    """``Q(c) + c_uct * sqrt(ln N(node) / N(c))``."""

    c_uct: float

    def __call__(self, tree: MCTSTree, node: Node, kids: Sequence[Node]) -> Node:
        """The child with the greatest upper confidence bound."""
        log_visits = math.log(tree.visits_now(node))

        def bound(kid: Node) -> float:
            return tree.value_now(kid) + self.c_uct * math.sqrt(log_visits / tree.visits_now(kid))

        return max(kids, key=bound)


@dataclass
class PUCT:
    """``Q(c) + c(N) * P(c) * sqrt(N) / (1 + N(c))`` with ``c(N) = c_puct + ln((N + 19653) / 19652)``.

    Attributes:
        c_puct: The constant part of c(N).
        prior: What P is: ``"uniform"`` or ``"logprob"``.
        noise: Weight of the Dirichlet noise in the priors of the root's children.
        noise_alpha: Its concentration.
        rng: Where the noise comes from.
    """

    c_puct: float
    prior: Literal["uniform", "logprob"]
    noise: float
    noise_alpha: float
    rng: random.Random
    _priors: dict[Node, dict[Node, float]] = field(default_factory=dict)

    def __call__(self, tree: MCTSTree, node: Node, kids: Sequence[Node]) -> Node:
        """The child with the greatest bound."""
        priors = self._priors.get(node)
        if priors is None or len(priors) != len(tree.kids[node]):
            priors = self._priors[node] = self._new_priors(tree.kids[node], node is tree.root)
        visits = tree.visits_now(node)
        factor = (self.c_puct + math.log((visits + _PUCT_BASE + 1) / _PUCT_BASE)) * math.sqrt(visits)

        def bound(kid: Node) -> float:
            return tree.value_now(kid) + factor * priors[kid] / (1 + tree.visits_now(kid))

        return max(kids, key=bound)

    def _new_priors(self, kids: Sequence[Node], is_root: bool) -> dict[Node, float]:
        priors = [1 / len(kids)] * len(kids) if self.prior == "uniform" else logprob_priors(kids)
        if is_root and self.noise:
            draws = [self.rng.gammavariate(self.noise_alpha, 1.0) for _ in kids]
            total = math.fsum(draws) or 1.0
            mix = zip(priors, draws, strict=True)
            priors = [(1 - self.noise) * prior + self.noise * draw / total for prior, draw in mix]
        return dict(zip(kids, priors, strict=True))


def logprob_priors(kids: Sequence[Node]) -> list[float]:
    """Softmax of the mean token log-probability over distinct texts; siblings with equal text share its part.

    Raises:
        ValueError: If the generator gave no log-probability.
    """
    copies: dict[str, list[int]] = {}
    for index, kid in enumerate(kids):
        copies.setdefault(kid.step.text if kid.step else "", []).append(index)
    means = [_mean_logprob(kids[group[0]]) for group in copies.values()]
    weights = [math.exp(mean - max(means)) for mean in means]
    priors = [0.0] * len(kids)
    for group, weight in zip(copies.values(), weights, strict=True):
        for index in group:
            priors[index] = weight / math.fsum(weights) / len(group)
    return priors


def _mean_logprob(kid: Node) -> float:
    if kid.step is None or kid.step.logprob is None:
        raise ValueError(f'{kid!r} has no log-probability: the generator gives none, so use prior="uniform"')
    return kid.step.logprob / max(1, kid.step.generated_tokens)


def sequential_halving(num_candidates: int, num_visits: int) -> list[int]:
    """For each visit in turn, how many visits the chosen candidate must have had before.

    With ``L = ceil(log2 m)`` rounds and r candidates alive, each of them gets ``max(1, n // (L r))`` visits, then the
    better half goes on (Karnin et al. 2013; mctx).
    """
    if num_candidates <= 1:
        return list(range(num_visits))
    rounds, alive = math.ceil(math.log2(num_candidates)), num_candidates
    schedule, had = list[int](), [0] * num_candidates
    while len(schedule) < num_visits:
        for _ in range(max(1, num_visits // (rounds * alive))):
            schedule += had[:alive]
            had[:alive] = [count + 1 for count in had[:alive]]
        alive = max(2, alive // 2)
    return schedule[:num_visits]


def scaled_values(values: Sequence[float], most_visits: int) -> list[float]:
    """The sigma of Danihelka et al. 2022, equation 8: values scaled to [0, 1] times ``(50 + max N) * 0.1``."""
    low, high = min(values), max(values)
    factor = (_GUMBEL_VISITS + most_visits) * _GUMBEL_SCALE / ((high - low) or 1.0)
    return [(value - low) * factor for value in values]


@dataclass
class Gumbel:
    """Sequential halving over Gumbel-sampled candidates at the root, the improved policy below.

    Attributes:
        num_simulations: Simulations of the whole search, the root's expansion included.
        rng: Where the Gumbel numbers come from.
    """

    num_simulations: int
    rng: random.Random
    _gumbels: dict[Node, float] = field(default_factory=dict)
    _turns: dict[Node, int] = field(default_factory=dict)
    _schedule: list[int] = field(default_factory=list)

    def __call__(self, tree: MCTSTree, node: Node, kids: Sequence[Node]) -> Node:
        """The scheduled candidate at the root; below, where visits lag most behind the improved policy."""
        if node is not tree.root:
            return self._below(tree, kids)
        if not self._turns:
            self._draw(tree.kids[node])
        required = self._schedule.pop()
        chosen = self._best(tree, [kid for kid, turns in self._turns.items() if turns == required])
        self._turns[chosen] += 1
        if chosen in kids:
            return chosen
        # A closed candidate hands its visit to the best open one.
        return self._best(tree, [kid for kid in self._turns if kid in kids] or kids)

    def choice(self, tree: MCTSTree) -> Node | None:
        """The best of the most visited candidates: the child that the search decides for."""
        most = max(self._turns.values(), default=0)
        finalists = [kid for kid, turns in self._turns.items() if turns == most]
        return self._best(tree, finalists) if finalists else None

    def _draw(self, kids: Sequence[Node]) -> None:
        self._gumbels = {kid: -math.log(-math.log((self.rng.getrandbits(52) + 0.5) / 2**52)) for kid in kids}
        candidates = sorted(kids, key=lambda kid: -self._gumbels[kid])[:_GUMBEL_CANDIDATES]
        self._turns = {kid: 1 for kid in kids if kid in candidates}
        # Being sampled and evaluated was each candidate's first visit: those entries of the schedule are served.
        m = len(candidates)
        self._schedule = sequential_halving(m, m + self.num_simulations - 1)[m:][::-1]

    def _best(self, tree: MCTSTree, kids: Sequence[Node]) -> Node:
        everyone = tree.kids[tree.root]
        most = max(tree.passes[kid] for kid in everyone)
        scaled = dict(zip(everyone, scaled_values([tree.value[kid] for kid in everyone], most), strict=True))
        return max(kids, key=lambda kid: self._gumbels[kid] + scaled[kid])  # the logit of a sampled child is 0

    def _below(self, tree: MCTSTree, kids: Sequence[Node]) -> Node:
        passes = [tree.passes[kid] for kid in kids]
        scaled = scaled_values([tree.value[kid] for kid in kids], max(passes))
        weights = [math.exp(value - max(scaled)) for value in scaled]
        total, visits = math.fsum(weights), 1 + sum(passes)
        lag = [weight / total - count / visits for weight, count in zip(weights, passes, strict=True)]
        return kids[lag.index(max(lag))]
