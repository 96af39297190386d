"""Sequential Monte Carlo: particle filters and particle Gibbs."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand, score
from inferscale.functional import Resampling, effective_sample_size, logsumexp, resample, softmax
from inferscale.tree import Node

from .checks import check_choice, check_counts, check_positive

DEAD = -math.inf  # log-weight of a particle whose sample failed or was scored 0


def extend(
    particles: Sequence[Node], which: Sequence[int], temperature: float | None = None, scored: bool = True
) -> Flow[dict[int, Node]]:
    """The next node of each particle in `which`, scored if wanted; particles whose sample failed are missing.

    A node held by k particles gets k children, one for each.
    """
    counts = Counter(particles[i] for i in which)
    children = yield from expand(list(counts), list(counts.values()), temperature=temperature)
    if scored:
        yield from score(children)
    waiting: defaultdict[Node | None, deque[Node]] = defaultdict(deque)  # children that no particle has moved to yet
    for child in children:
        waiting[child.parent].append(child)
    return {i: waiting[particles[i]].popleft() for i in which if waiting[particles[i]]}


def log_potential(node: Node, root: Node, twist: float = 1.0) -> float:
    """``log phi(node)``: the logarithm of its score, times `twist` while its path is open; 0 at the root of the search.

    Raises:
        ValueError: If the score is negative.
    """
    if node is root:
        return 0.0
    if node.score < 0:
        raise ValueError(
            f"particle methods weight nodes by their scores, which must be 0 or more, and {node!r} has "
            f"{node.score:.4g}: rescale the reward, for example by a logistic function"
        )
    power = 1.0 if node.is_finished else twist
    return power * math.log(node.score) if node.score else (DEAD if power else 0.0)


def log_increment(new: Node, old: Node, root: Node, twist: float = 1.0) -> float:
    """``log phi(new) - log phi(old)``; where phi(old) = 0 the path starts anew."""
    before = log_potential(old, root, twist)
    return log_potential(new, root, twist) - (0.0 if before == DEAD else before)


def equally_weighted(particles: Sequence[Node], log_weights: Sequence[float], rng: random.Random) -> list[Node]:
    """Particles of equal weight: a systematic resampling where the weights differ."""
    if max(log_weights) - min(log_weights) < 1e-12:
        return list(particles)
    # Systematic: particle i stays floor(N w_i) times or once more, so that little is lost to chance.
    ancestors = resample(softmax(log_weights), len(particles), "systematic", rng)
    return [particles[i] for i in ancestors]


@dataclass(frozen=True)
class ParticleFilter(SearchStrategy):
    """Sequential Monte Carlo (Puri et al. 2025, arXiv:2502.01618), properly weighted.

    After t steps the target is ``pi_t(y) ~ p_LM(y) phi(y)`` with phi the node's score, 0 or more, and phi(root) = 1::

        extend each open particle by one sampled step
        lw_i += log phi(new_i) - log phi(old_i)                   # nothing for a finished particle
        if ESS(lw) < ess_threshold N:  resample;  lw = logsumexp(lw) - log N for all

    The score's reduction decides the target: with ``"prod"`` the increment is log r_t and the target is the paper's
    state-space model (equation 2); with ``"last"`` it telescopes to p_LM times the last score. The estimate of the
    normaliser, ``root.stats["log_evidence"]``, is unbiased: E[exp(log_evidence)] = Z for any number of particles,
    scheme and threshold.

    The particles that come back are equally weighted, repeats allowed: vote with plain `MajorityVote`; a weighted
    vote would count the score twice.

    Differs from the paper: its text, its algorithm 1 and its code are three different samplers, none of them
    properly weighted. The last two are here to reproduce: ``weighting="paper"`` replaces the weights by exp(score),
    ``"its_hub"`` by the odds ``score / (1 - score)``, finished particles included, at every level; both resample at
    every level (their code by ``resampling="multinomial"``). A particle whose sample failed, or which is scored 0,
    has weight 0 and is not extended; if all are so, they go on with equal weights and ``log_evidence`` is ``None``.

    Attributes:
        num_particles: N.
        ess_threshold: Share of N below which the effective sample size triggers resampling; 1 at every level.
        resampling: ``"systematic"``, ``"stratified"``, ``"residual"`` or ``"multinomial"``.
        weighting: ``"incremental"``, or the published ``"paper"`` and ``"its_hub"``.
        tempering: In the first half of `max_depth`, when the effective sample size is below N/2, draw ancestors from
            flatter weights ``softmax(lw / tau)``: tau by the ``"ess"``, the ``"entropy"`` or the level alone
            (``"linear"``), as in its_hub; here the weights are corrected for it, so that the filter stays proper.
        softmax_temperature: Divides the log-weights of ``"paper"`` and ``"its_hub"``.
        max_depth: Most steps in a path.
        twist: Twisted SMC (Feng et al. 2024, arXiv:2410.01920): the potential of a path that is still open is
            ``score**twist``, of one that has ended the score, so that the target over finished paths is the same for
            every twist. 1 takes the scores of beginnings for a value function, 0.5 its square root, which is best for
            samples of the model if scores of finished paths are 0 and 1; 0 looks at finished paths alone.

    Raises:
        ValueError: If a count is below 1, `ess_threshold` not in [0, 1], `twist` below 0 or infinite, a choice unknown,
            or `tempering` or `twist` given with published weights; in a search, if a score is negative.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> reward = ToyProcessReward("prod")
        >>> result = isc.solve("How many?", isc.ParticleFilter(8), ToyGenerator(), reward_model=reward)
        >>> isc.answer_weights(result.trajectories), round(result.root.stats["log_evidence"], 2)
        ({'3': 4.0, '2': 1.0, '1': 1.0, '0': 2.0}, -3.53)
    """

    num_particles: int = 16
    ess_threshold: float = 0.5
    resampling: Resampling = "systematic"
    weighting: Literal["incremental", "paper", "its_hub"] = "incremental"
    tempering: Literal["none", "ess", "entropy", "linear"] = "none"
    softmax_temperature: float = 1.0
    max_depth: int = 40
    twist: float = 1.0
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "num_particles", "max_depth")
        check_positive(self, "softmax_temperature")
        if not 0 <= self.twist < math.inf:
            raise ValueError(f"ParticleFilter(twist={self.twist!r}): give a finite number, 0 or more")
        check_choice(self, "resampling", ("systematic", "stratified", "residual", "multinomial"))
        check_choice(self, "weighting", ("incremental", "paper", "its_hub"))
        check_choice(self, "tempering", ("none", "ess", "entropy", "linear"))
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ParticleFilter(ess_threshold={self.ess_threshold!r}): give a share in [0, 1]")
        if self.tempering != "none" and self.weighting != "incremental":
            raise ValueError(f'ParticleFilter(tempering={self.tempering!r}) needs weighting="incremental"')
        if self.twist != 1 and self.weighting != "incremental":
            raise ValueError(f'ParticleFilter(twist={self.twist!r}) needs weighting="incremental"')

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Equally weighted particles, repeats allowed."""
        particles, log_weights = yield from self.weighted(root, rng)
        equal = equally_weighted(particles, log_weights, rng)
        return [node for node in equal if node is not root] or root.leaves()

    def weighted(self, root: Node, rng: random.Random) -> Flow[tuple[list[Node], list[float]]]:
        """The particles after the last level and their log-weights."""
        n = self.num_particles
        particles, log_weights, lost, sizes = [root] * n, [0.0] * n, False, list[float]()
        for level in range(1, self.max_depth + 1):
            alive = [i for i in range(n) if not particles[i].is_finished and log_weights[i] > DEAD]
            if not alive:
                break
            new = yield from extend(particles, alive)
            for i in alive:  # w_i *= phi(new_i) / phi(old_i), in logarithms
                log_weights[i] += log_increment(new[i], particles[i], root, self.twist) if i in new else DEAD
            particles = [new.get(i, node) for i, node in enumerate(particles)]
            if self.weighting != "incremental":
                log_weights = [
                    w if w == DEAD else self._published(node, root)
                    for node, w in zip(particles, log_weights, strict=True)
                ]
            if max(log_weights) == DEAD:
                log_weights, lost = [0.0] * n, True
            sizes.append(float(effective_sample_size(log_weights, log=True)))  # (sum w)^2 / sum w^2
            if self.weighting != "incremental" or sizes[-1] < self.ess_threshold * n:
                particles, log_weights = self._resampled(particles, log_weights, sizes[-1], level, rng)
        root.stats["ess"] = sizes
        if self.weighting == "incremental":
            # Z = (1/N) sum_i w_i: resampling puts the mean weight back, so the product over levels is in it.
            root.stats["log_evidence"] = None if lost else float(logsumexp(log_weights)) - math.log(n)
        return particles, log_weights

    def _published(self, node: Node, root: Node) -> float:
        """The log-weight of the paper's or its_hub's sampler: the score, or its log-odds, over the temperature."""
        log_potential(node, root)  # refuses negative scores
        value = node.score
        if self.weighting == "its_hub":
            clipped = min(max(value, 1e-7), 1 - 1e-7)
            value = math.log(clipped) - math.log1p(-clipped)
        return value / self.softmax_temperature

    def _resampled(
        self, particles: Sequence[Node], log_weights: Sequence[float], size: float, level: int, rng: random.Random
    ) -> tuple[list[Node], list[float]]:
        n, total = len(particles), float(logsumexp(log_weights))
        tau = self._temperature([math.exp(w - total) for w in log_weights], size, level)
        flat_total = float(logsumexp([w / tau for w in log_weights]))
        ancestors = resample(softmax(log_weights, tau), n, self.resampling, rng).tolist()
        # Drawn with p ~ w^(1/tau) instead of w: log w/p is put back as a weight. It is 0 without tempering.
        corrections = [(log_weights[i] - total) - (log_weights[i] / tau - flat_total) for i in ancestors]
        return [particles[i] for i in ancestors], [total - math.log(n) + correction for correction in corrections]

    def _temperature(self, weights: Sequence[float], size: float, level: int) -> float:
        """Tau, 1 unless tempering is on, the level is in the first half and the effective sample size is small."""
        n, progress = len(weights), level / self.max_depth
        if self.tempering == "none" or progress >= 0.5 or size >= n / 2:
            return 1.0
        if self.tempering == "linear":
            return 2 - progress  # from 2 to 1.5
        if self.tempering == "ess":
            return max(1.0, n / size * (1 - progress))  # the fewer particles count, the flatter
        entropy = -math.fsum(w * math.log(w) for w in weights if w) / math.log(n)  # 1 for equal weights
        beta = entropy + (1 - entropy) * progress
        return max(1.0, 1 / max(beta, 1e-6))


@dataclass(frozen=True)
class ParticleGibbs(SearchStrategy):
    """Particle Gibbs (Andrieu, Doucet and Holenstein 2010; Puri et al. 2025, arXiv:2502.01618, section 3.3).

    The first iteration is a `ParticleFilter`. A reference path is drawn from its final weights; in each further
    iteration particle 0 replays the reference while the others are sampled anew, and a new reference is drawn. At a
    resampling particle 0 keeps itself and the others draw their ancestors among all particles, the reference
    included: a copy of it is cut at the current step and goes on freely. Each iteration leaves the target of
    `ParticleFilter` invariant, whatever the number of particles. New paths: ``N + (num_iterations - 1) (N - 1)``.

    The equally weighted particles of all iterations come back, repeats allowed: vote with plain `MajorityVote`.

    Differs from the paper: weights are incremental, so that the target is the same as that of the filter; there is no
    ancestor sampling, which needs the log-probability of a given text after another prefix (generators do not report
    it), so that the head of the reference changes only when it is not drawn again.

    Attributes:
        num_particles: N, at least 2.
        num_iterations: Iterations, the first filter included.
        ess_threshold: As in `ParticleFilter`, over all N particles.
        max_depth: Most steps in a path.

    Raises:
        ValueError: If there are fewer than 2 particles, no iteration, or `ess_threshold` is not in [0, 1]; in a search,
            if a score is negative.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import ParticleGibbs
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> strategy = ParticleGibbs(num_particles=8, num_iterations=3)
        >>> result = isc.solve("How many?", strategy, ToyGenerator(), reward_model=ToyProcessReward("prod"))
        >>> len(result.trajectories), result.answer
        (24, '1')
    """

    num_particles: int = 16
    num_iterations: int = 4
    ess_threshold: float = 0.5
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "num_particles", minimum=2)
        check_counts(self, "num_iterations", "max_depth")
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ParticleGibbs(ess_threshold={self.ess_threshold!r}): give a share in [0, 1]")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The equally weighted particles of every iteration, in order."""
        first = ParticleFilter(self.num_particles, self.ess_threshold, "multinomial", max_depth=self.max_depth)
        particles, log_weights = yield from first.weighted(root, rng)
        pool = equally_weighted(particles, log_weights, rng)
        for _ in range(self.num_iterations - 1):
            reference = draw_reference(particles, log_weights, rng)  # a path drawn by the final weights
            if reference is root:  # every sample failed: there is nothing to keep
                particles, log_weights = yield from first.weighted(root, rng)
            else:
                particles, log_weights = yield from self.conditional(root, reference, rng)
            pool += equally_weighted(particles, log_weights, rng)
        return [node for node in pool if node is not root] or root.leaves()

    def conditional(self, root: Node, reference: Node, rng: random.Random) -> Flow[tuple[list[Node], list[float]]]:
        """Particles and log-weights of one conditional filter; particle 0 holds `reference` at the end."""
        n, replay = self.num_particles, reference.path[root.depth :]
        particles, log_weights = [root] * n, [0.0] * n
        for level in range(self.max_depth):
            alive = [i for i in range(1, n) if not particles[i].is_finished and log_weights[i] > DEAD]
            if not alive and level >= len(replay):
                break
            new = yield from extend(particles, alive)
            if level < len(replay):  # particle 0 goes on along the reference, which is not sampled again
                new[0] = replay[level]
            for i in [0, *alive] if level < len(replay) else alive:
                log_weights[i] += log_increment(new[i], particles[i], root) if i in new else DEAD
            particles = [new.get(i, node) for i, node in enumerate(particles)]
            if max(log_weights) == DEAD:
                log_weights = [0.0] * n
            if float(effective_sample_size(log_weights, log=True)) < self.ess_threshold * n:
                # Conditional multinomial resampling: particle 0 is its own ancestor, the others draw among all N.
                ancestors = resample(softmax(log_weights), n - 1, "multinomial", rng).tolist()
                particles = [particles[i] for i in (0, *ancestors)]
                log_weights = [float(logsumexp(log_weights))] * n
        return particles, log_weights


def draw_reference(particles: Sequence[Node], log_weights: Sequence[float], rng: random.Random) -> Node:
    """One particle, drawn in proportion to its weight."""
    return particles[int(resample(softmax(log_weights), 1, "multinomial", rng)[0])]
