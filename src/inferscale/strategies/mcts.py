"""Monte Carlo tree search, with the published rules of selection, expansion, value and backup as objects."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand, score
from inferscale.tree import Node

from .checks import check_choice, check_counts, check_positive


class MCTSTree:
    """Counts of one search. A path is a list of nodes from the root of the search down.

    Invariant: a node is closed when it has finished, is at the depth limit, or has been expanded and has no open
    child; closing the last open child closes the parent, so that a search is over when its root is closed.

    Attributes:
        root: The node that the search starts from.
        kids: Children of each node that was expanded, roll-outs left out.
        visits: N, the number of values that were backed up through a node.
        value: Q, their mean.
        in_flight: Simulations under way through a node: virtual losses.
        passes: Simulations that went through a node, the one that made it included.
        closed: Nodes that are not selected; while they are expanded, also those that get all their children at once.
    """

    def __init__(self, root: Node) -> None:
        self.root = root
        self.kids: dict[Node, list[Node]] = {}
        self.visits: defaultdict[Node, int] = defaultdict(int)
        self.value: defaultdict[Node, float] = defaultdict(float)
        self.in_flight: defaultdict[Node, int] = defaultdict(int)
        self.passes: defaultdict[Node, int] = defaultdict(int)
        self.closed: set[Node] = set()
        self._num_open: defaultdict[Node, int] = defaultdict(int)

    def open_kids(self, node: Node) -> list[Node]:
        """Children of `node` that can be selected, oldest first."""
        closed = self.closed
        return [kid for kid in self.kids.get(node, ()) if kid not in closed]

    def visits_now(self, node: Node) -> int:
        """N with virtual losses."""
        return self.visits[node] + self.in_flight[node]

    def value_now(self, node: Node) -> float:
        """Q with virtual losses, each of which counts as a value of 0."""
        visits, losses = self.visits[node], self.in_flight[node]
        return self.value[node] * visits / (visits + losses) if losses else self.value[node]

    def begin(self, path: Sequence[Node]) -> None:
        """Put virtual losses on `path`: a simulation is under way along it."""
        for node in path:
            self.in_flight[node] += 1
            self.passes[node] += 1

    def end(self, path: Sequence[Node]) -> None:
        """Take the virtual losses of a simulation that has come back off `path`."""
        for node in path:
            self.in_flight[node] -= 1
        self.kids.setdefault(path[-1], [])

    def add(self, path: Sequence[Node], kid: Node, value: float, is_closed: bool) -> None:
        """Hang a new child under the path's last node and back its value up to the root."""
        self.kids[path[-1]].append(kid)
        self.passes[kid] = 1
        if is_closed:
            self.closed.add(kid)
        else:
            self._num_open[path[-1]] += 1
        for node in (*path, kid):  # N += 1, Q += (V - Q) / N
            self.visits[node] += 1
            self.value[node] += (value - self.value[node]) / self.visits[node]

    def close(self, path: Sequence[Node]) -> None:
        """Take the path's last node out of selection, with the ancestors that lose their last open child."""
        for depth in range(len(path) - 1, -1, -1):
            self.closed.add(path[depth])
            if depth:
                self._num_open[path[depth - 1]] -= 1
                if self._num_open[path[depth - 1]]:
                    return

    def reopen(self, path: Sequence[Node]) -> None:
        """Undo `close` if the path's last node has an open child by now."""
        if not self._num_open[path[-1]]:
            return
        for depth in range(len(path) - 1, -1, -1):
            if path[depth] not in self.closed:
                return
            self.closed.remove(path[depth])
            if depth:
                self._num_open[path[depth - 1]] += 1


class Rule(Protocol):
    """Picks one of the open children of a node; the earliest on ties."""

    def __call__(self, tree: MCTSTree, node: Node, kids: Sequence[Node]) -> Node:
        """One of `kids`, which is not empty."""


@dataclass(frozen=True)
class UCT:
    """``Q(c) + c_uct * sqrt(ln N(node) / N(c))`` (Kocsis and Szepesvari 2006)."""

    c_uct: float

    def __call__(self, tree: MCTSTree, node: Node, kids: Sequence[Node]) -> Node:
        """The child with the greatest upper bound; N(c) is at least 1, since being sampled is a visit."""
        log_visits = math.log(tree.visits_now(node))

        def bound(kid: Node) -> float:
            return tree.value_now(kid) + self.c_uct * math.sqrt(log_visits / tree.visits_now(kid))

        return max(kids, key=bound)


_PUCT_BASE = 19652  # c_base of AlphaZero (Silver et al. 2018)


@dataclass
class PUCT:
    """``Q(c) + c(N) * P(c) * sqrt(N) / (1 + N(c))`` with ``c(N) = c_puct + ln((N + 19653) / 19652)``.

    Attributes:
        c_puct: The constant part of c(N).
        prior: P: ``"uniform"`` or ``"logprob"``.
        noise: Weight of the Dirichlet noise in the priors of the root's children.
        noise_alpha: Its concentration.
        rng: Source of the noise.
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
        if priors is None or len(priors) != len(tree.kids[node]):  # progressive widening has added a child
            priors = self._priors[node] = self._new_priors(tree.kids[node], node is tree.root)
        visits = tree.visits_now(node)
        factor = (self.c_puct + math.log((visits + _PUCT_BASE + 1) / _PUCT_BASE)) * math.sqrt(visits)

        def bound(kid: Node) -> float:
            return tree.value_now(kid) + factor * priors[kid] / (1 + tree.visits_now(kid))

        return max(kids, key=bound)

    def _new_priors(self, kids: Sequence[Node], is_root: bool) -> dict[Node, float]:
        priors = [1 / len(kids)] * len(kids) if self.prior == "uniform" else logprob_priors(kids)
        if is_root and self.noise:  # (1 - noise) P + noise eta with eta ~ Dirichlet(alpha): gammas over their sum
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
        if kid.step is None or kid.step.logprob is None:
            raise ValueError(f'{kid!r} has no log-probability: the generator gives none, so use prior="uniform"')
        copies.setdefault(kid.step.text, []).append(index)
    firsts = [kids[group[0]].step for group in copies.values()]
    means = [(step.logprob or 0.0) / max(1, step.generated_tokens) for step in firsts if step is not None]
    weights = [math.exp(mean - max(means)) for mean in means]
    priors = [0.0] * len(kids)
    for group, weight in zip(copies.values(), weights, strict=True):
        for index in group:
            priors[index] = weight / math.fsum(weights) / len(group)
    return priors


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


_GUMBEL_VISITS = 50  # c_visit and c_scale of Danihelka et al. 2022, section 3.4
_GUMBEL_SCALE = 0.1
_GUMBEL_CANDIDATES = 16


def scaled_values(values: Sequence[float], most_visits: int) -> list[float]:
    """The sigma of Danihelka et al. 2022, equation 8: values scaled to [0, 1] times ``(50 + max N) * 0.1``."""
    low, high = min(values), max(values)
    factor = (_GUMBEL_VISITS + most_visits) * _GUMBEL_SCALE / ((high - low) or 1.0)
    return [(value - low) * factor for value in values]


@dataclass
class Gumbel:
    """Sequential halving over Gumbel-sampled candidates at the root, the improved policy below.

    The paper's logits are 0 here: children are samples of the model, so that its prior is in them already. Its
    completed values need no completion: every child was evaluated when it was sampled.

    Attributes:
        num_simulations: Simulations of the whole search, the root's expansion included.
        rng: Source of the Gumbel numbers.
    """

    num_simulations: int
    rng: random.Random
    _gumbels: dict[Node, float] = field(default_factory=dict)
    _turns: dict[Node, int] = field(default_factory=dict)  # visits that the schedule gave to each candidate
    _schedule: list[int] = field(default_factory=list)  # of the visits to come, the next one last

    def __call__(self, tree: MCTSTree, node: Node, kids: Sequence[Node]) -> Node:
        """The scheduled candidate at the root; below, the child whose visits lag most behind the improved policy."""
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
        # g = -ln(-ln u) with u in (0, 1), never 0 or 1; the m greatest are a sample without replacement
        self._gumbels = {kid: -math.log(-math.log((self.rng.getrandbits(52) + 0.5) / 2**52)) for kid in kids}
        candidates = sorted(kids, key=lambda kid: -self._gumbels[kid])[:_GUMBEL_CANDIDATES]
        self._turns = {kid: 1 for kid in kids if kid in candidates}
        # Being sampled and evaluated was each candidate's first visit: those entries of the schedule are served.
        m = len(candidates)
        self._schedule = sequential_halving(m, m + self.num_simulations - 1)[m:][::-1]

    def _best(self, tree: MCTSTree, kids: Sequence[Node]) -> Node:
        """``argmax_c g(c) + logit(c) + sigma(Q(c))`` among `kids`, with values scaled over all of the root's."""
        everyone = tree.kids[tree.root]
        most = max(tree.passes[kid] for kid in everyone)
        scaled = dict(zip(everyone, scaled_values([tree.value[kid] for kid in everyone], most), strict=True))
        return max(kids, key=lambda kid: self._gumbels[kid] + scaled[kid])

    def _below(self, tree: MCTSTree, kids: Sequence[Node]) -> Node:
        """``argmax_c pi'(c) - N(c) / (1 + sum_b N(b))`` with ``pi' = softmax(logits + sigma(Q))`` (section 5).

        The 1 in the denominator is the visit to come: the frequencies after it are to be nearest to pi'.
        """
        passes = [tree.passes[kid] for kid in kids]
        scaled = scaled_values([tree.value[kid] for kid in kids], max(passes))
        weights = [math.exp(value - max(scaled)) for value in scaled]
        total, visits = math.fsum(weights), 1 + sum(passes)
        lag = [weight / total - count / visits for weight, count in zip(weights, passes, strict=True)]
        return kids[lag.index(max(lag))]


_PAPER_WIDTHS = {32: 4, 64: 8, 128: 16}


@dataclass(frozen=True)
class MCTS(SearchStrategy):
    """Monte Carlo tree search; by default the baseline of Wu et al. 2024 (arXiv:2408.00724, appendix C).

    One simulation goes down from the root to a node that has no children yet, samples its children, and backs their
    values up: for every new child c and every node n on its path, ``N(n) += 1`` and ``Q(n) += (V(c) - Q(n)) / N(n)``.
    By default V is the process reward model's score (no roll-out), and the child with the greatest
    ``Q + C sqrt(ln N(parent) / N)``, C = 1, is followed. `MCTS.paper` gives the paper's three settings.

    Differs from the paper: decided here, where it is silent, are that one simulation is one expansion, that each
    child starts with N = 1 and Q = its score and is backed up on its own, and that a subtree whose leaves have all
    finished is closed, so that no simulation is spent on a leaf that cannot grow. Ties go to the earliest child.
    With the Gumbel root every child is evaluated when it is sampled, which counts as its first visit, so that no
    value has to be made up for unvisited children.

    Attributes:
        num_simulations: Expansions.
        c_uct: Exploration constant of UCT, in units of the score.
        root_branching: Children of the root (with `widening`, no limit but that one).
        branching: Children of every other node.
        selection: ``"uct"``; ``"puct"`` (Silver et al. 2018; constants of mctx); ``"gumbel"``: sequential halving
            over at most 16 root candidates and the improved policy below (Danihelka et al. 2022, "Policy improvement
            by planning with Gumbel").
        c_puct: Constant part of PUCT's exploration factor.
        prior: P of PUCT: ``"uniform"``, because children sampled from the model follow its prior already, or
            ``"logprob"``, the softmax of mean token log-probabilities over distinct siblings.
        noise: Weight of Dirichlet noise in the priors of the root's children (0.25 in AlphaZero).
        noise_alpha: Its concentration.
        evaluate: V of a new child: its ``"reward"``; the score of one completion from it (``"rollout"``), which stays
            in the tree as a finished leaf; or a ``"mix"`` of both.
        rollout_weight: Weight of the roll-out in the mix.
        widening: Exponent a of progressive widening: a node may have ``ceil(N^a)`` children, and passing through it
            adds one as long as it has fewer. ``None`` samples all children at once.
        num_parallel: Simulations under way at a time, kept apart by virtual losses (a loss counts as a value of 0);
            more than 1 saves model calls and changes the tree.
        max_depth: Most steps in a path.

    Raises:
        ValueError: If a count is below 1, a constant is not above 0, a weight not in [0, 1], `widening` not in (0, 1],
            a choice unknown, or an option does not belong to this `selection`.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> result = isc.solve("How many?", isc.MCTS(16), ToyGenerator(), reward_model=ToyProcessReward())
        >>> [(child.stats["visits"], round(child.stats["value"], 2)) for child in result.root.children]
        [(9, 0.57), (5, 0.17), (13, 0.61), (7, 0.43)]
    """

    num_simulations: int = 32
    c_uct: float = 1.0
    root_branching: int = 4
    branching: int = 2
    selection: Literal["uct", "puct", "gumbel"] = "uct"
    c_puct: float = 1.25
    prior: Literal["uniform", "logprob"] = "uniform"
    noise: float = 0.0
    noise_alpha: float = 0.3
    evaluate: Literal["reward", "rollout", "mix"] = "reward"
    rollout_weight: float = 0.5
    widening: float | None = None
    num_parallel: int = 1
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "num_simulations", "root_branching", "branching", "num_parallel", "max_depth")
        check_positive(self, "c_uct", "c_puct", "noise_alpha", finite=True)
        check_choice(self, "selection", ("uct", "puct", "gumbel"))
        check_choice(self, "prior", ("uniform", "logprob"))
        check_choice(self, "evaluate", ("reward", "rollout", "mix"))
        for name in ("noise", "rollout_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"MCTS({name}={getattr(self, name)!r}): give a weight in [0, 1]")
        if self.selection != "puct" and (self.noise or self.prior != "uniform"):
            raise ValueError(f'MCTS(selection="{self.selection}"): noise and prior are read by selection="puct" alone')
        if self.widening is not None and (self.selection == "gumbel" or not 0 < self.widening <= 1):
            raise ValueError(f"MCTS(widening={self.widening!r}): give an exponent in (0, 1], not with a Gumbel root")

    @classmethod
    def paper(cls, num_simulations: int = 32) -> MCTS:
        """One of the settings of Wu et al. 2024: 32, 64 or 128 expansions with 4, 8 or 16 children at the root."""
        if num_simulations not in _PAPER_WIDTHS:
            raise ValueError(f"MCTS.paper({num_simulations!r}): the paper has 32, 64 and 128 simulations")
        return cls(num_simulations, c_uct=1.0, root_branching=_PAPER_WIDTHS[num_simulations], branching=2)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves of the whole tree; nodes carry their visits and values in `stats`."""
        tree, left = MCTSTree(root), self.num_simulations
        rule: Rule = UCT(self.c_uct) if self.selection == "uct" else Gumbel(left, rng)
        if self.selection == "puct":
            rule = PUCT(self.c_puct, self.prior, self.noise, self.noise_alpha, rng)
        try:
            while left and root not in tree.closed:
                # Selection: paths down to nodes that get children, one for each simulation under way.
                wave: list[list[Node]] = []
                while len(wave) < min(left, self.num_parallel) and root not in tree.closed:
                    path = self._select(tree, rule)
                    if path is None:
                        break
                    tree.begin(path)
                    if self.widening is None:
                        tree.close(path)
                    wave.append(path)
                left -= len(wave)
                # Expansion: all children at once, or with widening one for each path that ends at the node.
                counts = dict.fromkeys((path[-1] for path in wave), 0)
                for node in (path[-1] for path in wave):
                    if self.widening is None:
                        counts[node] = self.root_branching if node is root else self.branching
                    else:
                        counts[node] += 1
                children = yield from expand(list(counts), list(counts.values()))
                values = yield from self._evaluate(children)
                # Backup: the losses come off, and each child's value goes up its path.
                for path in wave:
                    tree.end(path)
                path_to = {path[-1]: path for path in wave}
                for child, value in zip(children, values, strict=True):
                    at_limit = child.depth - root.depth >= self.max_depth
                    tree.add(path_to[child.parent or root], child, value, child.is_finished or at_limit)
                if self.widening is None:
                    for path in wave:
                        tree.reopen(path)
        finally:  # also where a budget ends the search
            for node, visits in tree.visits.items():
                node.stats.update(visits=visits, value=tree.value[node])
            if isinstance(rule, Gumbel) and (choice := rule.choice(tree)) is not None:
                root.stats["choice"] = root.children.index(choice)
        return root.leaves()

    def _select(self, tree: MCTSTree, rule: Rule) -> list[Node] | None:
        """The path from the root to a node that gets children, or ``None`` if it must wait for those under way."""
        path = [tree.root]
        while True:
            node, kids = path[-1], tree.open_kids(path[-1])
            if self.widening is None:
                grows = node not in tree.kids
            else:
                # Under way through a node but through none of its children: new children of its own.
                coming = tree.in_flight[node] - sum(tree.in_flight[kid] for kid in tree.kids.get(node, ()))
                allowed = math.ceil(tree.visits_now(node) ** self.widening - 1e-9)  # ceil(N^a)
                grows = len(tree.kids.get(node, ())) + coming < allowed or not (kids or coming)
            if grows:
                return path
            if not kids:
                return None
            path.append(rule(tree, node, kids))

    def _evaluate(self, children: Sequence[Node]) -> Flow[list[float]]:
        """V of each new child."""
        if self.evaluate == "reward":
            yield from score(children)
            return [child.score for child in children]
        rolled = yield from expand([child for child in children if not child.is_finished], until="end")
        end_of = {node.parent: node for node in rolled}
        ends = [end_of.get(child, child) for child in children]  # where the roll-out failed, the child itself
        if self.evaluate == "rollout":
            yield from score(ends)
            return [end.score for end in ends]
        yield from score([*children, *ends])
        weight = self.rollout_weight
        return [(1 - weight) * child.score + weight * end.score for child, end in zip(children, ends, strict=True)]
