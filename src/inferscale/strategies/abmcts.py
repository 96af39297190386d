"""Adaptive branching: Thompson sampling decides whether to go wider or deeper."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, Generate, GenerateRequest, expand, score
from inferscale.tree import Node

from .checks import check_choice, check_counts
from .revising import attempts_in, revision_prompt

Floats: TypeAlias = NDArray[np.float64]

_FEW = 32  # beliefs that are drawn from one by one, with numbers of `rng` itself: quicker for so few


class Posterior(Protocol):
    """A belief about the mean score of an arm."""

    @property
    def parameters(self) -> tuple[float, ...]:
        """The numbers that `draw_each` needs."""

    def observe(self, value: float) -> None:
        """Take a score in."""

    def draw(self, rng: random.Random) -> float:
        """A mean score drawn from the belief."""

    @staticmethod
    def draw_each(parameters: Floats, rng: np.random.Generator) -> Floats:
        """A mean score from each of the beliefs with the `parameters` `[beliefs, numbers]`."""


class NormalPosterior:
    """Normal-inverse-chi-squared belief with the prior m 0, kappa 1, nu 1, tau^2 0.1.

    ``kappa' = kappa + n``, ``nu' = nu + n``, ``m' = (kappa m + n x) / kappa'`` and
    ``tau^2' = (nu tau^2 + sum (x_i - x)^2 + n kappa (m - x)^2 / kappa') / nu'`` with x the mean of n scores.
    """

    __slots__ = ("_mean", "_scale", "_squares", "kappa", "m", "nu", "tau2")

    def __init__(self) -> None:
        self._mean = self._squares = self.m = 0.0
        self.kappa = self.nu = 1.0
        self.tau2 = 0.1
        self._scale = math.sqrt(self.tau2 / 2)

    def observe(self, value: float) -> None:
        """Take a score in (Welford's update)."""
        n, delta = self.nu, value - self._mean  # nu is one more than the scores so far
        self._mean += delta / n
        self._squares += delta * (value - self._mean)
        self.kappa = self.nu = n + 1
        self.m = n * self._mean / self.kappa
        self.tau2 = (0.1 + self._squares + self.m * self._mean) / self.nu
        self._scale = math.sqrt(self.nu * self.tau2 / 2 / self.kappa)

    def draw(self, rng: random.Random) -> float:
        """``sigma^2 ~ InvGamma(nu'/2, nu' tau^2'/2)``, then ``mu ~ N(m', sigma^2 / kappa')``."""
        return self.m + self._scale * rng.gauss(0.0, 1.0) / math.sqrt(rng.gammavariate(self.nu / 2, 1.0))

    @property
    def parameters(self) -> tuple[float, ...]:
        """The numbers that `draw_each` needs."""
        return self.m, self._scale, self.nu / 2

    @staticmethod
    def draw_each(parameters: Floats, rng: np.random.Generator) -> Floats:
        """A mean score from each of many beliefs."""
        m, scale, shape = parameters.T
        return np.asarray(m + scale * rng.standard_normal(len(m)) / np.sqrt(rng.standard_gamma(shape)))


class BetaPosterior:
    """Beta belief with Jeffreys' prior: a += r, b += 1 - r."""

    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a = self.b = 0.5

    def observe(self, value: float) -> None:
        """Take a score in."""
        self.a += value
        self.b += 1 - value

    def draw(self, rng: random.Random) -> float:
        """``mu ~ Beta(a, b)``."""
        return rng.betavariate(self.a, self.b)

    @property
    def parameters(self) -> tuple[float, ...]:
        """The numbers that `draw_each` needs."""
        return self.a, self.b

    @staticmethod
    def draw_each(parameters: Floats, rng: np.random.Generator) -> Floats:
        """A mean score from each of many beliefs."""
        return np.asarray(rng.beta(parameters[:, 0], parameters[:, 1]))


class _Place:
    """A node where a child can be made, and the beliefs about its arms."""

    __slots__ = ("_table", "answer", "belief", "deeper", "index", "kids", "node", "parent", "wider")

    def __init__(self, node: Node, parent: _Place | None, kind: type[NormalPosterior | BetaPosterior], answer: str):
        self.node, self.parent, self.answer = node, parent, answer
        self.kids: list[_Place] = []
        self.belief: Posterior = kind()
        self.wider: Posterior = kind()  # GEN
        self.deeper: Posterior = kind()  # CONT
        self.index = 0  # among the kids of the parent
        self._table = np.zeros((_FEW, len(self.belief.parameters)))  # parameters of the kids' beliefs

    def add(self, kid: _Place, value: float) -> None:
        """Make a kid with this score an arm, and learn from it."""
        kid.index = len(self.kids)
        if kid.index == len(self._table):
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        self.kids.append(kid)
        kid._observe(value)
        self.learn(value)

    def best_kid(self, rng: random.Random) -> _Place:
        """The kid from whose belief the greatest number is drawn."""
        if len(self.kids) <= _FEW:
            draws = [kid.belief.draw(rng) for kid in self.kids]
            return self.kids[draws.index(max(draws))]
        numbers = np.random.default_rng(rng.getrandbits(64))
        return self.kids[int(self.belief.draw_each(self._table[: len(self.kids)], numbers).argmax())]

    def _observe(self, value: float) -> None:
        """Take a score into the belief about this place, which its parent chooses by."""
        self.belief.observe(value)
        if self.parent is not None:
            self.parent._table[self.index] = self.belief.parameters

    def learn(self, value: float) -> None:
        """Take the score of a new child in, up to the root."""
        self.wider.observe(value)  # the child was made here
        place = self
        while place.parent is not None:
            place._observe(value)
            place = place.parent
            place.deeper.observe(value)


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
        n: Children made.
        posterior: ``"normal"``, the normal-inverse-chi-squared belief, or ``"beta"`` with Jeffreys' prior.
        until: ``"end"`` samples whole answers, ``"step"`` one step at a time.
        num_parallel: Children made at a time, before their scores are known; more than 1 saves model calls.
        instruction: The text that asks for a revision, with ``until="end"``.
        max_depth: Most steps in a path, or revisions in a row.
    """

    n: int = 64
    posterior: Literal["normal", "beta"] = "normal"
    until: Literal["step", "end"] = "end"
    num_parallel: int = 1
    instruction: str = "\nLet me check this and write a better answer.\n"
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "n", "num_parallel", "max_depth")
        check_choice(self, "posterior", ("normal", "beta"))
        check_choice(self, "until", ("step", "end"))

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All answers in order, or the leaves of the tree of steps."""
        kind = NormalPosterior if self.posterior == "normal" else BetaPosterior
        top, answers, left = _Place(root, None, kind, ""), list[Node](), self.n
        while left:
            picks = [self._select(top, rng) for _ in range(min(self.num_parallel, left))]
            left -= len(picks)
            made = yield from self._sample(root, picks)
            yield from score(node for _, node, _ in made)
            for pick, node, answer in made:
                if not 0 <= node.score <= 1:
                    raise ValueError(
                        f"ABMCTS needs scores in [0, 1], and {node!r} has {node.score:.4g}: rescale the reward"
                    )
                if self.until == "end" or not node.is_finished:
                    pick.add(_Place(node, pick, kind, answer), node.score)
                else:
                    pick.learn(node.score)
            answers += [node for _, node, _ in made]
        return answers if self.until == "end" and answers else root.leaves()

    def _select(self, top: _Place, rng: random.Random) -> _Place:
        """The place that gets a child: Thompson sampling on every level from the root down."""
        place = top
        for _ in range(self.max_depth - 1):
            if not place.kids or place.wider.draw(rng) >= place.deeper.draw(rng):  # theta_GEN >= theta_CONT
                break
            place = place.best_kid(rng)
        return place

    def _sample(self, root: Node, picks: Sequence[_Place]) -> Flow[list[tuple[_Place, Node, str]]]:
        """Place, child, and the sampled text of an answer; picks whose sample failed are missing."""
        counts = Counter(picks)  # one request for each place, however often it was picked
        if self.until == "step":
            place_of = {pick.node: pick for pick in counts}
            nodes = yield from expand(list(place_of), list(counts.values()))
            return [(place_of[node.parent or root], node, "") for node in nodes]
        forced = [revision_prompt([pick.answer], self.instruction) if pick.parent else "" for pick in counts]
        requests = [
            GenerateRequest(root, count, "end", forced=text)
            for count, text in zip(counts.values(), forced, strict=True)
        ]
        groups: list[list[Node]] = yield Generate(tuple(requests))
        return [
            (pick, node, answer)
            for pick, text, group in zip(counts, forced, groups, strict=True)
            for node, answer in attempts_in([node for node in group if not node.is_failed], text)
        ]
