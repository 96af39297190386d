"""Particle filtering: sampling whole solutions in proportion to what the reward model thinks of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from inferscale.base import SearchStrategy
from inferscale.flow import Flow
from inferscale.functional import Resampling, effective_sample_size, logsumexp, resample, softmax
from inferscale.tree import Node

from ._checks import check_choice, check_counts, check_positive
from ._smc import DEAD, equally_weighted, extend, log_increment, log_potential, revived

_ODDS_CLIP = 1e-7


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
    """

    num_particles: int = 16
    ess_threshold: float = 0.5
    resampling: Resampling = "systematic"
    weighting: Literal["incremental", "paper", "its_hub"] = "incremental"
    tempering: Literal["none", "ess", "entropy", "linear"] = "none"
    softmax_temperature: float = 1.0
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "num_particles", "max_depth")
        check_positive(self, "softmax_temperature")
        check_choice(self, "resampling", ("systematic", "stratified", "residual", "multinomial"))
        check_choice(self, "weighting", ("incremental", "paper", "its_hub"))
        check_choice(self, "tempering", ("none", "ess", "entropy", "linear"))
        if not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ParticleFilter(ess_threshold={self.ess_threshold!r}): give a share in [0, 1]")
        if self.tempering != "none" and self.weighting != "incremental":
            raise ValueError(f'ParticleFilter(tempering={self.tempering!r}) needs weighting="incremental"')

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
            log_weights = self._reweighted(particles, log_weights, alive, new, root)
            particles = [new.get(i, node) for i, node in enumerate(particles)]
            log_weights, died = revived(log_weights)
            lost = lost or died
            sizes.append(float(effective_sample_size(log_weights, log=True)))
            if self.weighting != "incremental" or sizes[-1] < self.ess_threshold * n:
                particles, log_weights = self._resampled(particles, log_weights, sizes[-1], level, rng)
        root.stats["ess"] = sizes
        if self.weighting == "incremental":
            root.stats["log_evidence"] = None if lost else float(logsumexp(log_weights)) - math.log(n)
        return particles, log_weights

    def _reweighted(
        self,
        particles: Sequence[Node],
        log_weights: Sequence[float],
        alive: Sequence[int],
        new: dict[int, Node],
        root: Node,
    ) -> list[float]:
        weights = list(log_weights)
        for i in alive:
            weights[i] = weights[i] + log_increment(new[i], particles[i], root) if i in new else DEAD
        if self.weighting == "incremental":
            return weights
        current = [new.get(i, node) for i, node in enumerate(particles)]
        return [DEAD if w == DEAD else self._published(node, root) for node, w in zip(current, weights, strict=True)]

    def _published(self, node: Node, root: Node) -> float:
        log_potential(node, root)  # refuses negative scores
        value = node.score
        if self.weighting == "its_hub":
            clipped = min(max(value, _ODDS_CLIP), 1 - _ODDS_CLIP)
            value = math.log(clipped) - math.log1p(-clipped)
        return value / self.softmax_temperature

    def _resampled(
        self, particles: Sequence[Node], log_weights: Sequence[float], size: float, level: int, rng: random.Random
    ) -> tuple[list[Node], list[float]]:
        n, total = len(particles), float(logsumexp(log_weights))
        tau = self._temperature([math.exp(w - total) for w in log_weights], size, level)
        flat_total = float(logsumexp([w / tau for w in log_weights]))
        ancestors = resample(softmax(log_weights, tau), n, self.resampling, rng).tolist()
        # Drawn with p instead of w: log w/p is put back as a weight. It is 0 without tempering.
        corrections = [(log_weights[i] - total) - (log_weights[i] / tau - flat_total) for i in ancestors]
        return [particles[i] for i in ancestors], [total - math.log(n) + correction for correction in corrections]

    def _temperature(self, weights: Sequence[float], size: float, level: int) -> float:
        """Tau, 1 unless tempering is on, the level is in the first half and the effective sample size is small."""
        n, progress = len(weights), level / self.max_depth
        if self.tempering == "none" or progress >= 0.5 or size >= n / 2:
            return 1.0
        if self.tempering == "linear":
            return 2 - progress
        if self.tempering == "ess":
            return max(1.0, n / size * (1 - progress))
        entropy = -math.fsum(w * math.log(w) for w in weights if w) / math.log(n)
        beta = entropy + (1 - entropy) * progress
        return max(1.0, 1 / max(beta, 1e-6))
