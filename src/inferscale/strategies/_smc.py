"""Steps that the particle methods share. A particle set is a list of nodes, repeats allowed, and their log-weights."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Sequence

from inferscale.flow import Flow, expand, score
from inferscale.functional import resample, softmax
from inferscale.tree import Node

DEAD = -math.inf  # the log-weight of a particle whose sample failed or was scored 0


def extend(particles: Sequence[Node], which: Sequence[int]) -> Flow[dict[int, Node]]:
    """The next node of each particle in `which`, scored; particles whose sample failed are missing.

    A node held by k particles gets k children, one for each.
    """
    counts = Counter(particles[i] for i in which)
    children = yield from expand(list(counts), list(counts.values()))
    yield from score(children)
    waiting: defaultdict[Node | None, deque[Node]] = defaultdict(deque)
    for child in children:
        waiting[child.parent].append(child)
    return {i: waiting[particles[i]].popleft() for i in which if waiting[particles[i]]}


def log_potential(node: Node, root: Node) -> float:
    """``log phi(node)``: the logarithm of its score, 0 at the root of the search.

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
    return math.log(node.score) if node.score else DEAD


def log_increment(new: Node, old: Node, root: Node) -> float:
    """``log phi(new) - log phi(old)``; where phi(old) = 0 the path starts anew."""
    before = log_potential(old, root)
    return log_potential(new, root) - (0.0 if before == DEAD else before)


def revived(log_weights: Sequence[float]) -> tuple[list[float], bool]:
    """The log-weights, equal ones if all are 0 in weight, and whether that was so: an answer is still returned."""
    died = max(log_weights) == DEAD
    return ([0.0] * len(log_weights) if died else list(log_weights)), died


def equally_weighted(particles: Sequence[Node], log_weights: Sequence[float], rng: random.Random) -> list[Node]:
    """Particles of equal weight: a systematic resampling where the weights differ."""
    if max(log_weights) - min(log_weights) < 1e-12:
        return list(particles)
    ancestors = resample(softmax(log_weights), len(particles), "systematic", rng)
    return [particles[i] for i in ancestors]
