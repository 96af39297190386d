"""Adaptive branching: Thompson sampling decides whether to go wider or deeper."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
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


# The middles of 12 equally likely parts of |N(0, 1)|, whose distribution function is 2 Phi(x) - 1.
_HALF_NORMAL = [NormalDist().inv_cdf((1 + (i + 0.5) / 12) / 2) for i in range(12)]
_SCALES = np.array([(0.2 * a, 0.3 * y) for a in _HALF_NORMAL for y in _HALF_NORMAL]).T  # of equal prior weight


def mixed_draws(groups: Sequence[tuple[int, float, float]], rng: np.random.Generator) -> tuple[Floats, float]:
    """A score drawn for one more child in each group, and for a child that begins a new group: variant M.

    The mixed model: ``r_ij ~ N(alpha_j, sigma_y^2)`` for the scores in the subtree of child j, ``alpha_j ~ N(mu,
    sigma_alpha^2)``, and the priors ``mu ~ N(0.5, 0.2^2)``, ``sigma_alpha ~ |N(0, 0.2^2)|`` and ``sigma_y ~
    |N(0, 0.3^2)|`` (arXiv:2503.04412). Given both scales all is normal, so they are drawn from a grid of 12 x 12 equal
    parts of their priors by their marginal likelihood, and the rest exactly.

    Args:
        groups: For each child the number of scores in its subtree, their mean, and the sum of squares around it.
        rng: Draws.
    """
    n, mean, squares = np.array(groups, dtype=float).reshape(-1, 3).T  # [groups]
    alpha, y = _SCALES  # [cells]
    within = y[:, None] ** 2 / n
    between = alpha[:, None] ** 2 + within  # variance of a group's mean around mu
    precision = 1 / 0.2**2 + (1 / between).sum(1)
    centre = (0.5 / 0.2**2 + (mean / between).sum(1)) / precision
    # log p(scores | cell): scores around their group's mean, means around mu, mu integrated out
    evidence = -np.log(y) * (n - 1).sum() - squares.sum() / (2 * y**2) - 0.5 * np.log(precision)
    evidence += -0.5 * np.log(between).sum(1) - 0.5 * (mean**2 / between).sum(1) + 0.5 * precision * centre**2
    weights = np.exp(evidence - evidence.max()).cumsum()
    cell = min(int(np.searchsorted(weights, rng.random() * weights[-1], side="right")), len(weights) - 1)
    mu = centre[cell] + rng.standard_normal() / math.sqrt(precision[cell])
    share = alpha[cell] ** 2 / between[cell]  # of the group's own mean in the belief about alpha_j
    middle, spread = mu + share * (mean - mu), alpha[cell] * np.sqrt(1 - share)
    known = middle + spread * rng.standard_normal(len(n)) + y[cell] * rng.standard_normal(len(n))
    return known, float(mu + alpha[cell] * rng.standard_normal() + y[cell] * rng.standard_normal())


class _Place:
    """A node where a child can be made, and the beliefs about its arms."""

    __slots__ = (
        *("_table", "answer", "belief", "count", "deeper", "index", "kids", "mean", "node", "parent", "squares"),
        "wider",
    )

    def __init__(self, node: Node, parent: _Place | None, kind: type[NormalPosterior | BetaPosterior], answer: str):
        self.node, self.parent, self.answer = node, parent, answer
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # of the scores in this subtree
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
        self.count += 1
        delta = value - self.mean
        self.mean += delta / self.count
        self.squares += delta * (value - self.mean)
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
    """Adaptive branching Monte Carlo tree search (Inoue et al. 2025, arXiv:2503.04412; treequest).

    Every node has an arm that makes a new child (GEN), an arm that goes down to one of its children (CONT), and a
    belief about each child. From the root on, theta_GEN and theta_CONT are drawn from the beliefs: without children
    or with ``theta_GEN >= theta_CONT`` a child is made here, else the child with the greatest draw is entered. The
    new child's score r goes to its own belief and its parent's GEN arm, and on every step up to the child entered and
    its parent's CONT arm. Scores must be in [0, 1]. This is variant A; ``posterior="mixed"`` is variant M: the scores
    in the subtree of each child are a group of a mixed model, see `mixed_draws`, and the child, or the new one, with
    the greatest draw is chosen.

    With several `generators` every child is made by one of them: the one with the greatest draw from the belief about
    the scores of all the children that it has made in this tree. ``cost.shares`` tells what each of them cost.

    Nodes are whole answers. A child of the root is a new answer, a child of an answer is a revision, sampled from the
    prompt with the answer and `instruction` forced before it; in the tree it is a child of the root, whose text holds
    what was forced.

    Differs from the paper: models are the only actions; a revision sees the answer that it revises alone; variant M
    draws from a grid in place of a Markov chain. With ``until="step"`` nodes are prefixes instead: a child is one more
    step, judged by a process reward model, and finished nodes cannot be entered (with many steps to an answer few paths
    finish, because every node on the way may branch again). Every draw comes from the seed (treequest draws from a
    global state).

    Attributes:
        n: Children made.
        posterior: ``"normal"``, the normal-inverse-chi-squared belief, ``"beta"`` with Jeffreys' prior, or ``"mixed"``.
        until: ``"end"`` samples whole answers, ``"step"`` one step at a time.
        num_parallel: Children made at a time, before their scores are known; more than 1 saves model calls.
        instruction: The text that asks for a revision, with ``until="end"``.
        max_depth: Most steps in a path, or revisions in a row.
        generators: Names of the generators that make children, where the search has several; with ``until="end"``,
            since text of one model cannot be continued step by step by another.

    Raises:
        ValueError: If a count is below 1, a choice is unknown, or `generators` are to make single steps; in a search,
            if a score is not in [0, 1].

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import ABMCTS
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> result = isc.Solver(ABMCTS(n=16), ToyGenerator(), ToyProcessReward(), isc.BestOfN()).solve("How many?")
        >>> revised = [leaf for leaf in result.leaves if "write a better answer" in leaf.text]
        >>> len(result.leaves), len(revised)
        (16, 10)
    """

    n: int = 64
    posterior: Literal["normal", "beta", "mixed"] = "normal"
    until: Literal["step", "end"] = "end"
    num_parallel: int = 1
    instruction: str = "\nLet me check this and write a better answer.\n"
    max_depth: int = 40
    generators: tuple[str, ...] = ()
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "n", "num_parallel", "max_depth")
        check_choice(self, "posterior", ("normal", "beta", "mixed"))
        check_choice(self, "until", ("step", "end"))
        object.__setattr__(self, "generators", tuple(self.generators))
        if self.generators and self.until == "step":
            raise ValueError('ABMCTS(until="step", generators=...): several generators make whole answers, until="end"')

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All answers in order, or the leaves of the tree of steps."""
        kind = BetaPosterior if self.posterior == "beta" else NormalPosterior
        top, answers, left = _Place(root, None, kind, ""), list[Node](), self.n
        actions: dict[str | None, Posterior] = {name: kind() for name in self.generators or (None,)}
        while left:
            picks = [self._select(top, rng) for _ in range(min(self.num_parallel, left))]
            left -= len(picks)
            names = [_action(actions, rng) for _ in picks]
            made = yield from self._sample(root, [*zip(picks, names, strict=True)])
            yield from score(node for _, node, _ in made)
            for pick, node, answer in made:
                if not 0 <= node.score <= 1:
                    raise ValueError(
                        f"ABMCTS needs scores in [0, 1], and {node!r} has {node.score:.4g}: rescale the reward"
                    )
                if node.step is not None and node.step.generator in actions:
                    actions[node.step.generator].observe(node.score)
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
            if self.posterior == "mixed" and place.kids:
                numbers = np.random.default_rng(rng.getrandbits(64))
                known, new = mixed_draws([(kid.count, kid.mean, kid.squares) for kid in place.kids], numbers)
                if new >= known.max():
                    break
                place = place.kids[int(known.argmax())]
                continue
            if not place.kids or place.wider.draw(rng) >= place.deeper.draw(rng):  # theta_GEN >= theta_CONT
                break
            place = place.best_kid(rng)
        return place

    def _sample(self, root: Node, picks: Sequence[tuple[_Place, str | None]]) -> Flow[list[tuple[_Place, Node, str]]]:
        """Place, child, and the sampled text of an answer; picks whose sample failed are missing."""
        counts = Counter(picks)  # one request for each place and generator, however often it was picked
        if self.until == "step":
            place_of = {pick.node: pick for pick, _ in counts}
            nodes = yield from expand(list(place_of), list(counts.values()))
            return [(place_of[node.parent or root], node, "") for node in nodes]
        forced = [revision_prompt([pick.answer], self.instruction) if pick.parent else "" for pick, _ in counts]
        requests = [
            GenerateRequest(root, count, "end", forced=text, generator=name)
            for ((_, name), count), text in zip(counts.items(), forced, strict=True)
        ]
        groups: list[list[Node]] = yield Generate(tuple(requests))
        return [
            (pick, node, answer)
            for (pick, _), text, group in zip(counts, forced, groups, strict=True)
            for node, answer in attempts_in([node for node in group if not node.is_failed], text)
        ]


def _action(actions: Mapping[str | None, Posterior], rng: random.Random) -> str | None:
    """The generator with the greatest draw; without a draw if there is one."""
    return max(actions, key=lambda name: actions[name].draw(rng)) if len(actions) > 1 else next(iter(actions))
