"""Particle Gibbs: particle filters chained through a path that each of them keeps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from inferscale.base import SearchStrategy
from inferscale.flow import Flow
from inferscale.functional import effective_sample_size, logsumexp, resample, softmax
from inferscale.tree import Node

from ._checks import check_counts
from ._smc import DEAD, equally_weighted, extend, log_increment, revived
from .particle import ParticleFilter


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
    """

    num_particles: int = 16
    num_iterations: int = 4
    ess_threshold: float = 0.5
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
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
            reference = draw_reference(particles, log_weights, rng)
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
            if level < len(replay):
                new[0] = replay[level]
            for i in [0, *alive] if level < len(replay) else alive:
                log_weights[i] += log_increment(new[i], particles[i], root) if i in new else DEAD
            particles = [new.get(i, node) for i, node in enumerate(particles)]
            log_weights, _ = revived(log_weights)
            if float(effective_sample_size(log_weights, log=True)) < self.ess_threshold * n:
                particles, log_weights = self._resampled(particles, log_weights, rng)
        return particles, log_weights

    def _resampled(
        self, particles: Sequence[Node], log_weights: Sequence[float], rng: random.Random
    ) -> tuple[list[Node], list[float]]:
        n = len(particles)
        ancestors = resample(softmax(log_weights), n - 1, "multinomial", rng).tolist()
        return [particles[i] for i in (0, *ancestors)], [float(logsumexp(log_weights))] * n


def draw_reference(particles: Sequence[Node], log_weights: Sequence[float], rng: random.Random) -> Node:
    """One particle, drawn in proportion to its weight."""
    return particles[int(resample(softmax(log_weights), 1, "multinomial", rng)[0])]
