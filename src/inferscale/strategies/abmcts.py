"""Adaptive branching: Thompson sampling decides whether to go wider or deeper."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, Generate, GenerateRequest, expand, score
from inferscale.tree import Node

from ._checks import check_choice, check_counts
from ._forcing import attempts_in, revision_prompt


class Posterior(Protocol):
    """What is believed about the mean score of an arm."""

    def observe(self, value: float) -> None:
        """Takes a score in."""

    def draw(self, rng: random.Random) -> float:
        """A mean score drawn from the belief."""


class NormalPosterior:
    """Normal-inverse-chi-squared belief with the prior m 0, kappa 1, nu 1, tau^2 0.1.

    ``kappa' = kappa + n``, ``nu' = nu + n``, ``m' = (kappa m + n x) / kappa'`` and
    ``tau^2' = (nu tau^2 + sum (x_i - x)^2 + n kappa (m - x)^2 / kappa') / nu'`` with x the mean of n scores.
    """

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, 0.0, 0.0
        self._update()

    def observe(self, value: float) -> None:
        """Takes a score in (Welford's update)."""
        self.n += 1
        delta = value - self.mean
        self.mean += delta / self.n
        self.squares += delta * (value - self.mean)
        self._update()

    def _update(self) -> None:
        self.kappa = self.nu = 1.0 + self.n
        self.m = self.n * self.mean / self.kappa
        self.tau2 = (0.1 + self.squares + self.n * self.mean**2 / self.kappa) / self.nu
        self._scale = math.sqrt(self.nu * self.tau2 / 2 / self.kappa)

    def draw(self, rng: random.Random) -> float:
        """``sigma^2 ~ InvGamma(nu'/2, nu' tau^2'/2)``, then ``mu ~ N(m', sigma^2 / kappa')``."""
        return self.m + self._scale * rng.gauss(0.0, 1.0) / math.sqrt(rng.gammavariate(self.nu / 2, 1.0))


class BetaPosterior:
    """Beta belief with Jeffreys' prior: a += r, b += 1 - r."""

    def __init__(self) -> None:
        self.a = self.b = 0.5

    def observe(self, value: float) -> None:
        """Takes a score in."""
        self.a += value
        self.b += 1 - value

    def draw(self, rng: random.Random) -> float:
        """``mu ~ Beta(a, b)``."""
        return rng.betavariate(self.a, self.b)


class _Arms:
    """The tree of one search: who follows whom, and what is believed about each arm."""

    def __init__(self, kind: type[NormalPosterior | BetaPosterior]) -> None:
        self.kids: defaultdict[Node, list[Node]] = defaultdict(list)
        self.parent: dict[Node, Node] = {}
        self.answer: dict[Node, str] = {}  # what was sampled, without forced text
        self.wider: defaultdict[Node, Posterior] = defaultdict(kind)  # GEN
        self.deeper: defaultdict[Node, Posterior] = defaultdict(kind)  # CONT
        self.child: defaultdict[Node, Posterior] = defaultdict(kind)

    def add(self, parent: Node, node: Node) -> None:
        """Hangs `node` under `parent` and takes its score in, up to the root."""
        value = node.score
        self.kids[parent].append(node)
        self.parent[node] = parent
        self.child[node].observe(value)
        self.wider[parent].observe(value)
        while parent in self.parent:
            self.child[parent].observe(value)
            parent = self.parent[parent]
            self.deeper[parent].observe(value)


@dataclass(frozen=True)
class ABMCTS(SearchStrategy):
    """Adaptive branching Monte Carlo tree search, variant A (Inoue et al. 2025, arXiv:2503.04412; treequest).

    Every node has an arm that makes a new child (GEN), an arm that goes down to one of its children (CONT), and a
    belief about each child. From the root on, theta_GEN and theta_CONT are drawn from the beliefs: without children
    or with ``theta_GEN >= theta_CONT`` a child is made here, else the child with the greatest draw is entered. The
    new child's score r goes to its own belief and its parent's GEN arm, and on every step up to the child entered and
    its parent's CONT arm. Scores must be in [0, 1].

    Nodes are whole answers. A child of the root is a new answer, a child of an answer is a revision, sampled from the
    prompt with the answer and `instruction` forced before it; in the tree it is a child of the root, whose text holds
    what was forced.

    Differs from the paper: there is one model and one prompt, so no choice of an action; a revision sees the answer
    that it revises alone. With ``until="step"`` nodes are prefixes instead: a child is one more step, judged by a
    process reward model, and finished nodes cannot be entered (with many steps to an answer few paths finish, because
    every node on the way may branch again). Every draw comes from the seed (treequest draws from a global state).

    Attributes:
        num_samples: Children made.
        posterior: ``"normal"``, the normal-inverse-chi-squared belief, or ``"beta"`` with Jeffreys' prior.
        until: What a sample is: a whole answer (``"end"``), or one ``"step"``.
        num_parallel: Children made at a time, before their scores are known; more than 1 saves model calls.
        instruction: What asks for a revision, with ``until="end"``.
        max_depth: Most steps in a path, or revisions in a row.
    """

    num_samples: int = 64
    posterior: Literal["normal", "beta"] = "normal"
    until: Literal["step", "end"] = "end"
    num_parallel: int = 1
    instruction: str = "\nLet me check this and write a better answer.\n"
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "num_samples", "num_parallel", "max_depth")
        check_choice(self, "posterior", ("normal", "beta"))
        check_choice(self, "until", ("step", "end"))

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All answers in order, or the leaves of the tree of steps."""
        arms = _Arms(NormalPosterior if self.posterior == "normal" else BetaPosterior)
        left = self.num_samples
        while left:
            picks = [self._select(arms, root, rng) for _ in range(min(self.num_parallel, left))]
            left -= len(picks)
            children = yield from self._sample(arms, root, picks)
            yield from score(node for _, node in children)
            for parent, node in children:
                self._check(node)
                arms.add(parent, node)
        return list(arms.answer) or root.leaves()

    def _select(self, arms: _Arms, root: Node, rng: random.Random) -> Node:
        """The node that gets a child."""
        node, depth = root, 0
        while True:
            depth += 1
            kids = [kid for kid in arms.kids[node] if depth < self.max_depth and self._can_grow(kid)]
            if not kids or arms.wider[node].draw(rng) >= arms.deeper[node].draw(rng):
                return node
            draws = [arms.child[kid].draw(rng) for kid in kids]
            node = kids[draws.index(max(draws))]

    def _can_grow(self, node: Node) -> bool:
        return self.until == "end" or not node.is_finished

    def _sample(self, arms: _Arms, root: Node, picks: Sequence[Node]) -> Flow[list[tuple[Node, Node]]]:
        """A child of each pick, as pairs of parent and child; picks whose sample failed are missing."""
        counts = {pick: picks.count(pick) for pick in picks}
        if self.until == "step":
            nodes = yield from expand(list(counts), list(counts.values()))
            return [(node.parent or root, node) for node in nodes]
        forced = ["" if pick is root else revision_prompt([arms.answer[pick]], self.instruction) for pick in counts]
        wishes = zip(counts.values(), forced, strict=True)
        groups: list[list[Node]] = yield Generate(
            tuple(GenerateRequest(root, count, "end", forced=text) for count, text in wishes)
        )
        pairs = list[tuple[Node, Node]]()
        for pick, text, group in zip(counts, forced, groups, strict=True):
            usable = attempts_in([node for node in group if not node.is_failed], text)
            arms.answer.update(usable)
            pairs += [(pick, node) for node, _ in usable]
        return pairs

    def _check(self, node: Node) -> None:
        if not 0 <= node.score <= 1:
            raise ValueError(f"ABMCTS needs scores in [0, 1], and {node!r} has {node.score:.4g}: rescale the reward")
