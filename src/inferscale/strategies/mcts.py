"""Monte Carlo tree search over steps."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand, score
from inferscale.tree import Node

from ._checks import check_choice, check_counts, check_positive
from ._mcts_rules import PUCT, UCT, Gumbel, Rule
from ._mcts_tree import MCTSTree

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
        """Refuses hyperparameters out of range."""
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
    def paper(cls, simulations: int = 32) -> MCTS:
        """One of the settings of Wu et al. 2024: 32, 64 or 128 expansions with 4, 8 or 16 children at the root."""
        if simulations not in _PAPER_WIDTHS:
            raise ValueError(f"MCTS.paper({simulations!r}): the paper has 32, 64 and 128 simulations")
        return cls(simulations, c_uct=1.0, root_branching=_PAPER_WIDTHS[simulations], branching=2)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves of the whole tree; nodes carry their visits and values in `stats`."""
        tree, rule = MCTSTree(root), self._rule(rng)
        left = self.num_simulations
        try:
            while left and root not in tree.closed:
                wave = self._wave(tree, rule, min(left, self.num_parallel))
                left -= len(wave)
                yield from self._simulate(tree, wave)
        finally:
            tree.annotate()
            if isinstance(rule, Gumbel) and (choice := rule.choice(tree)) is not None:
                root.stats["choice"] = root.children.index(choice)
        return root.leaves()

    def _rule(self, rng: random.Random) -> Rule:
        if self.selection == "puct":
            return PUCT(self.c_puct, self.prior, self.noise, self.noise_alpha, rng)
        return UCT(self.c_uct) if self.selection == "uct" else Gumbel(self.num_simulations, rng)

    def _wave(self, tree: MCTSTree, rule: Rule, size: int) -> list[list[Node]]:
        """Paths to the nodes to expand next; at least one."""
        wave: list[list[Node]] = []
        while len(wave) < size and tree.root not in tree.closed:
            path = self._descend(tree, rule)
            if path is None:
                break
            tree.begin(path)
            if self.widening is None:
                tree.close(path)
            wave.append(path)
        return wave

    def _descend(self, tree: MCTSTree, rule: Rule) -> list[Node] | None:
        """The path from the root to a node that gets children, or ``None`` if it must wait for those under way."""
        path = [tree.root]
        while True:
            node = path[-1]
            kids = tree.open_kids(node)
            if self._grows(tree, node, kids):
                return path
            if not kids:
                return None
            path.append(rule(tree, node, kids))

    def _grows(self, tree: MCTSTree, node: Node, kids: Sequence[Node]) -> bool:
        if self.widening is None:
            return node not in tree.kids
        # Under way through a node but through none of its children: new children of its own.
        coming = tree.in_flight[node] - sum(tree.in_flight[kid] for kid in tree.kids.get(node, ()))
        allowed = math.ceil(tree.visits_now(node) ** self.widening - 1e-9)
        return len(tree.kids.get(node, ())) + coming < allowed or not (kids or coming)

    def _simulate(self, tree: MCTSTree, wave: Sequence[list[Node]]) -> Flow[None]:
        counts = dict.fromkeys((path[-1] for path in wave), 0)
        for path in wave:
            counts[path[-1]] += self._num_children(tree, path[-1])
        children = yield from expand(list(counts), list(counts.values()))
        values = yield from self._values(children)
        for path in wave:
            tree.end(path)
        path_to = {path[-1]: path for path in wave}
        for child, value in zip(children, values, strict=True):
            at_limit = child.depth - tree.root.depth >= self.max_depth
            tree.add(path_to[child.parent or tree.root], child, value, child.is_finished or at_limit)
        if self.widening is None:
            for path in wave:
                tree.reopen(path)

    def _num_children(self, tree: MCTSTree, node: Node) -> int:
        if self.widening is not None:
            return 1
        return self.root_branching if node is tree.root else self.branching

    def _values(self, children: Sequence[Node]) -> Flow[list[float]]:
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
