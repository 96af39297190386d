"""Samples of a sharper model, ``p(y)**alpha``: by sequential Monte Carlo and by Metropolis-Hastings."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand, gather
from inferscale.functional import Resampling, effective_sample_size, logsumexp, resample, softmax
from inferscale.tree import Node

from .checks import check_choice, check_counts
from .particles import DEAD, equally_weighted, extend


def log_probabilities(node: Node, reader: str) -> tuple[float, float]:
    """``log p`` of a node's step under the model's own distribution, and ``log q`` under the one it was drawn from.

    Raises:
        ValueError: If the generator does not report both; the message begins with `reader`.
    """
    if node.step is None or node.step.model_logprob is None or node.step.logprob is None:
        raise ValueError(
            f"{reader} weighs samples by their log-probabilities, at temperature 1 and at the one they were drawn at, "
            "and the generator does not report both: use HFGenerator"
        )
    return node.step.model_logprob, node.step.logprob


def check_power(owner: PowerSMC | PowerMH) -> None:
    """Raise a ValueError unless ``owner.alpha`` is a finite number, 1 or more."""
    if not 1 <= owner.alpha < math.inf:
        raise ValueError(f"{type(owner).__name__}(alpha={owner.alpha!r}): give a finite number, 1 or more")


@dataclass(frozen=True)
class PowerSMC(SearchStrategy):
    """Samples of ``p(y)**alpha`` by sequential Monte Carlo (Azizi et al. 2026, arXiv:2602.10273).

    The whole completion is made more likely, not each token: temperature ``1 / alpha`` alone prefers tokens that are
    likely now to those that have a likely continuation. It is the proposal q here, and what is wrong with it is put
    right by weights; no reward model is needed. After t steps the target is ``p(y)**alpha_t``::

        extend each open particle by one step, sampled at temperature 1 / alpha_t
        lw_i += alpha_t log p(new_i) - alpha_(t-1) log p(old_i) - log q(step_i)   # a product over the step's tokens
        if ESS(lw) < ess_threshold N:  resample;  lw = logsumexp(lw) - log N for all

    The exponent rises from 1 to `alpha` over the first `bridge_depth` steps (exponent bridging), which leaves the last
    target as it is and the weights more even on the way. ``root.stats["log_evidence"]`` is the logarithm of an unbiased
    estimate of ``Z = sum_y p(y)**alpha``, ``root.stats["ess"]`` the effective sample size of each level.

    The particles that come back are equally weighted, repeats allowed: vote with plain `MajorityVote`. Give a generator
    that reports both log-probabilities of its steps (`HFGenerator`), without ``top_k``, ``top_p`` and ``min_p``: what
    they filter out is never proposed. Its temperature plays no part.

    Differs from the paper: particles are resampled between steps instead of blocks of tokens, and the exponent rises by
    steps; all particles come back, made equal in weight by a systematic resampling, where the paper draws one.

    Attributes:
        num_particles: N.
        alpha: The exponent, 1 or more (4 in the paper).
        bridge_depth: Steps over which the exponent rises; 0 begins at `alpha`.
        ess_threshold: Share of N below which the effective sample size triggers resampling; 1 at every level.
        resampling: ``"systematic"``, ``"stratified"``, ``"residual"`` or ``"multinomial"``.
        max_depth: Most steps in a path.

    Raises:
        ValueError: If a count is below 1, `alpha` below 1 or infinite, `bridge_depth` below 0, `ess_threshold` not in
            [0, 1], or `resampling` unknown; in a search, if the generator reports no log-probabilities.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import PowerSMC
        >>> from inferscale.testing import ToyGenerator
        >>> result = isc.solve("How many?", PowerSMC(num_particles=8, alpha=4.0), ToyGenerator())
        >>> len(result.trajectories), [round(size, 1) for size in result.root.stats["ess"]]
        (8, [1.1, 2.2, 4.4, 4.4])
    """

    num_particles: int = 16
    alpha: float = 4.0
    bridge_depth: int = 0
    ess_threshold: float = 0.5
    resampling: Resampling = "systematic"
    max_depth: int = 40

    def __post_init__(self) -> None:
        check_counts(self, "num_particles", "max_depth")
        check_counts(self, "bridge_depth", minimum=0)
        check_power(self)
        check_choice(self, "resampling", ("systematic", "stratified", "residual", "multinomial"))
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"PowerSMC(ess_threshold={self.ess_threshold!r}): give a share in [0, 1]")

    def exponent(self, level: int) -> float:
        """``alpha_t`` after `level` steps."""
        return 1 + (self.alpha - 1) * min(1.0, level / self.bridge_depth) if self.bridge_depth else self.alpha

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Equally weighted particles, repeats allowed."""
        n = self.num_particles
        particles, log_weights, log_p = [root] * n, [0.0] * n, [0.0] * n  # log_p: of each path from the root on
        sizes, lost, level = list[float](), False, 0
        for level in range(1, self.max_depth + 1):
            alive = [i for i in range(n) if not particles[i].is_finished and log_weights[i] > DEAD]
            if not alive:
                level -= 1
                break
            before, exponent = self.exponent(level - 1), self.exponent(level)
            new = yield from extend(particles, alive, temperature=1 / exponent, scored=False)
            for i in range(n):
                log_weights[i] += (exponent - before) * log_p[i]  # what is finished has the new exponent too
            for i in alive:
                if i not in new:
                    log_weights[i] = DEAD
                    continue
                step_p, step_q = log_probabilities(new[i], "PowerSMC")
                log_weights[i] += exponent * step_p - step_q
                log_p[i] += step_p
            particles = [new.get(i, node) for i, node in enumerate(particles)]
            if max(log_weights) == DEAD:
                log_weights, lost = [0.0] * n, True
            sizes.append(float(effective_sample_size(log_weights, log=True)))
            if sizes[-1] < self.ess_threshold * n:
                ancestors = resample(softmax(log_weights), n, self.resampling, rng).tolist()
                particles, log_p = [particles[i] for i in ancestors], [log_p[i] for i in ancestors]
                log_weights = [float(logsumexp(log_weights)) - math.log(n)] * n
        rest = self.alpha - self.exponent(level)  # all may have finished before the exponent has risen
        log_weights = [weight + rest * p for weight, p in zip(log_weights, log_p, strict=True)]
        root.stats["ess"] = sizes
        # Z = (1/N) sum_i w_i: resampling puts the mean weight back, so the product over levels is in it.
        root.stats["log_evidence"] = None if lost else float(logsumexp(log_weights)) - math.log(n)
        equal = equally_weighted(particles, log_weights, rng)
        return [node for node in equal if node is not root] or root.leaves()


@dataclass(frozen=True)
class PowerMH(SearchStrategy):
    """Samples of ``p(y)**alpha`` by Metropolis-Hastings (Karan and Du 2025, arXiv:2510.14901, algorithm 1).

    A chain grows by blocks. After each block it is changed `num_moves` times: a place in it is drawn, and all that
    follows is sampled anew at temperature ``1 / alpha``, the proposal q; the new path y' takes the place of y with the
    probability ::

        min(1, p(y')^alpha q(y | y') / (p(y)^alpha q(y' | y)))

    Each move leaves the target of its block invariant. The baseline of `PowerSMC`, which costs much less.

    Differs from the paper: places and blocks are steps instead of tokens; as a path may end early, a move between paths
    of T and T' steps has the factor T / T', for the chance of its place. As there, a chain whose path has ended after
    the moves of a block is done.

    Attributes:
        n: Independent chains.
        alpha: The exponent, 1 or more (4 in the paper).
        num_moves: Moves after each block (10 in the paper).
        block: Steps in a block.
        max_depth: Most steps in a path.

    Raises:
        ValueError: If a count is below 1, `num_moves` below 0, or `alpha` below 1 or infinite; in a search, if the
            generator reports no log-probabilities.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import PowerMH
        >>> from inferscale.testing import ToyGenerator
        >>> result = isc.solve("How many?", PowerMH(n=2, alpha=4.0, num_moves=3), ToyGenerator())
        >>> len(result.trajectories), result.cost.num_generated
        (2, 23)
    """

    n: int = 1
    alpha: float = 4.0
    num_moves: int = 10
    block: int = 4
    max_depth: int = 40

    def __post_init__(self) -> None:
        check_counts(self, "n", "block", "max_depth")
        check_counts(self, "num_moves", minimum=0)
        check_power(self)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The last path of each chain."""
        streams = [random.Random(rng.getrandbits(64)) for _ in range(self.n)]
        paths = yield from gather(self._chain(root, stream) for stream in streams)
        return [path[-1] for path in paths if path] or root.leaves()

    def _chain(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        path: list[Node] = []
        for depth in range(self.block, self.max_depth + self.block, self.block):
            depth = min(depth, self.max_depth)
            grown = yield from self._sampled(path[-1] if path else root, depth - len(path))
            if not grown:
                break
            path += grown
            for _ in range(self.num_moves):
                place = rng.randrange(len(path))
                suffix = yield from self._sampled(path[place - 1] if place else root, depth - place)
                if suffix:
                    ratio = self._log_weight(suffix) - self._log_weight(path[place:])
                    ratio += math.log(len(path)) - math.log(place + len(suffix))
                    if math.log(1 - rng.random()) < ratio:
                        path = path[:place] + suffix
            if path[-1].is_finished:
                break
        return path

    def _sampled(self, node: Node, depth: int) -> Flow[list[Node]]:
        """The nodes of a new path from `node`, up to `depth` steps; none if a sample failed."""
        path = [node]
        while len(path) <= depth and not path[-1].is_finished:
            new = yield from expand([path[-1]], temperature=1 / self.alpha)
            if not new:
                return []
            path += new
        return path[1:]

    def _log_weight(self, suffix: Sequence[Node]) -> float:
        """``alpha log p - log q`` of some steps."""
        pairs = [log_probabilities(node, "PowerMH") for node in suffix]
        return math.fsum(self.alpha * p - q for p, q in pairs)
