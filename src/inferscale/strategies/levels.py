"""Searches that grow a tree level by level, or best node first.

Level by level: beam search, DVTS, REBASE and its heirs DORA and ETS. Best node first: best-first, depth-first.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from inferscale.base import Embedder, SearchStrategy
from inferscale.flow import Flow, embed, expand, gather, score
from inferscale.functional import (
    cosine_similarities,
    dora_allocation,
    ets_selection,
    likeness_clusters,
    rebase_allocation,
)
from inferscale.tree import Node

from .checks import check_choice, check_counts, check_embedder, check_positive


def look_ahead(nodes: Sequence[Node], depth: int) -> Flow[list[float]]:
    """The score of each node after up to `depth` more steps taken greedily; the node's own score for ``depth=0``.

    The roll-out is charged and scored, and takes no part in the tree or in votes (Snell et al. 2024,
    arXiv:2408.03314, section 5.1).
    """
    ends = list(nodes)
    for _ in range(depth):
        rolled = yield from expand([end for end in ends if not end.is_finished], greedy=True, attach=False)
        if not rolled:
            break
        next_of = {node.parent: node for node in rolled}
        ends = [next_of.get(end, end) for end in ends]  # a path that ended, or whose next sample failed, stays put
    yield from score(ends)
    return [end.score for end in ends]


def grow(nodes: Sequence[Node], n: int | Sequence[int], depth: int) -> Flow[list[Node]]:
    """`n` new paths from each node, `depth` steps long where they do not end sooner.

    They fork at their first step alone, and only their ends are candidates: a verifier looks every `depth` steps (the
    granularity g of VG-Search; Chen et al. 2025, arXiv:2505.11730, section 3).
    """
    ends = yield from expand(nodes, n)
    for _ in range(depth - 1):
        grown = yield from expand([end for end in ends if not end.is_finished])
        if not grown:
            break
        next_of = {node.parent: node for node in grown}
        ends = [next_of.get(end, end) for end in ends]  # a path that ended, or whose next sample failed, stays put
    return ends


@dataclass(frozen=True)
class BeamSearch(SearchStrategy):
    r"""Beam search against a process reward model (Snell et al. 2024, arXiv:2408.03314, section 5.1).

    Snell et al. write N for the children of a level and M for the children of a beam: ``beam_width = N / M`` and
    ``branching = M``.

    Differs from the paper: a finished path competes for its slot in the beam and is never left out of the result;
    the search ends when the whole beam has finished (search-and-learn expands on until no beam is open).

    Attributes:
        beam_width: Beams kept after each level.
        branching: Children of each beam; the root gets ``beam_width * branching``.
        max_depth: Most steps in a path.
        lookahead: Greedy steps that a child is rolled out before it is ranked; 0 ranks it by its own score.
        filter_duplicates: Let only the first of several candidates with the same whole text compete.
        granularity: Steps between two looks of the verifier (g of Chen et al. 2025, arXiv:2505.11730): a child is the
            end of so many steps, and the nodes between are not scored.

    Raises:
        ValueError: If a count is below 1, or `lookahead` below 0.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> strategy = isc.BeamSearch(beam_width=2, branching=2)
        >>> result = isc.solve("How many?", strategy, ToyGenerator(depth=2), reward_model=ToyProcessReward())
        >>> print(isc.render_tree(result.root))
        How many?
        ├─ u q w i c\n 0.516
        │  ├─ e x r\n 0.951
        │  │  ├─ The answer is 2 0.285 [eos]
        │  │  └─ The answer is 3 0.788 [eos]
        │  └─ q c j z\n 0.561
        ├─ t i l o k\n 0.003
        ├─ o b m b o\n 0.108
        └─ p x z e f\n 0.684
           ├─ s b c\n 0.645
           │  ├─ The answer is 3 0.475 [eos]
           │  └─ The answer is 3 0.475 [eos]
           └─ n z v p\n 0.360
    """

    beam_width: int = 4
    branching: int = 4
    max_depth: int = 40
    lookahead: int = 0
    filter_duplicates: bool = False
    granularity: int = 1
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "beam_width", "branching", "max_depth", "granularity")
        check_counts(self, "lookahead", minimum=0)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All finished leaves, or the last beam if none has finished, or what is left of a beam that died out."""
        return (yield from self.survivors(root)) or root.leaves()

    def survivors(self, root: Node) -> Flow[list[Node]]:
        """All finished leaves, or the last beam, which is empty if every sample from it failed."""
        beam, branching, done = [root], self.beam_width * self.branching, list[Node]()
        value: dict[Node, float] = {}
        for depth in range(0, self.max_depth, self.granularity):
            alive = [node for node in beam if not node.is_finished]
            if not alive:
                break
            children = yield from grow(alive, branching, min(self.granularity, self.max_depth - depth))
            branching = self.branching
            value.update(zip(children, (yield from look_ahead(children, self.lookahead)), strict=True))
            done += [node for node in children if node.is_finished]
            candidates = [node for node in beam if node.is_finished] + children
            if self.filter_duplicates:
                first: dict[str, Node] = {}
                for node in candidates:
                    first.setdefault(node.text, node)
                candidates = list(first.values())
            # Python's sort is stable: among equal values the older node keeps its place.
            beam = sorted(candidates, key=lambda node: -value[node])[: self.beam_width]
        return done or beam


@dataclass(frozen=True)
class DVTS(SearchStrategy):
    """Diverse verifier tree search: independent narrow beams from the root.

    `num_subtrees` times ``BeamSearch(1, branching)``; subtrees never compete, so a subtree survives low scores
    (Beeching, Tunstall and Rush 2024, "Scaling test-time compute with open models").

    Differs from the source: each subtree samples its own `branching` first steps and ends when its best path has
    finished; what is returned are the finished leaves (search-and-learn returns the last candidates of each subtree,
    unfinished ones too).

    Attributes:
        num_subtrees: Independent beams.
        branching: Children of each beam at each level.
        max_depth: Most steps in a path.
        lookahead: As in `BeamSearch`.
        granularity: As in `BeamSearch`.

    Raises:
        ValueError: If a count is below 1, or `lookahead` below 0.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> strategy = isc.DVTS(num_subtrees=4, branching=2)
        >>> result = isc.solve("How many?", strategy, ToyGenerator(), reward_model=ToyProcessReward())
        >>> sorted(len([leaf for leaf in child.leaves() if leaf.is_finished]) for child in result.root.children)
        [0, 0, 0, 0, 2, 2, 2, 2]
    """

    num_subtrees: int = 4
    branching: int = 4
    max_depth: int = 40
    lookahead: int = 0
    granularity: int = 1
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "num_subtrees", "branching", "max_depth", "granularity")
        check_counts(self, "lookahead", minimum=0)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The finished leaves of all subtrees, or their open paths if none has finished."""
        # Side by side, so that the subtrees share their calls; each keeps its best path, whatever the others score.
        beam = BeamSearch(1, self.branching, self.max_depth, self.lookahead, granularity=self.granularity)
        groups = yield from gather(beam.survivors(root) for _ in range(self.num_subtrees))
        leaves = [leaf for group in groups for leaf in group]
        return [leaf for leaf in leaves if leaf.is_finished] or leaves or root.leaves()


@dataclass(frozen=True)
class StepwiseGreedy(SearchStrategy):
    r"""Best-of-n at every step: samples `n` continuations and keeps the best-scored one.

    The same tree as ``BeamSearch(1, n)``.

    Attributes:
        n: Samples of each step.
        max_depth: Most steps in a path.
        granularity: As in `BeamSearch`.

    Raises:
        ValueError: If a count is below 1.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import StepwiseGreedy
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> result = isc.solve("How many?", StepwiseGreedy(n=4), ToyGenerator(depth=2), reward_model=ToyProcessReward())
        >>> print(isc.render_tree(result.root))
        How many?
        ├─ u q w i c\n 0.516
        ├─ t i l o k\n 0.003
        ├─ o b m b o\n 0.108
        └─ p x z e f\n 0.684
           ├─ s b c\n 0.645
           │  ├─ The answer is 3 0.475 [eos]
           │  ├─ The answer is 3 0.475 [eos]
           │  ├─ The answer is 0 0.454 [eos]
           │  └─ The answer is 2 0.039 [eos]
           ├─ n z v p\n 0.360
           ├─ q q p\n 0.563
           └─ d w\n 0.355
    """

    n: int = 4
    max_depth: int = 40
    granularity: int = 1
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "n", "max_depth", "granularity")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All finished leaves, or the path so far if none has finished."""
        return BeamSearch(1, self.n, self.max_depth, granularity=self.granularity).search(root, rng)


def reward_balanced(
    root: Node, width: int, max_depth: int, granularity: int, allocate: Callable[[list[Node], int], Flow[list[int]]]
) -> Flow[list[Node]]:
    """The loop of `REBASE` and its heirs, which differ in who gets how many children.

    Args:
        root: Where the search begins.
        width: Leaves that it may finish.
        max_depth: Most steps in a path.
        granularity: Steps between two looks of the verifier.
        allocate: Given the open nodes, scored, and the width that is left, the number of children of each.

    Returns:
        Finished leaves, then the paths still open; what is left of a search that died out.
    """
    finished: list[Node] = []
    frontier, counts = [root], [width]
    for depth in range(0, max_depth, granularity):
        children = yield from grow(frontier, counts, min(granularity, max_depth - depth))
        yield from score(children)
        finished += [node for node in children if node.is_finished]
        frontier = [node for node in children if not node.is_finished]
        width_left = width - len(finished)  # a finished leaf keeps its unit of the width
        if not frontier or width_left <= 0:
            break
        counts = yield from allocate(frontier, width_left)  # a node with 0 is pruned
        for node, count in zip(frontier, counts, strict=True):
            node.stats["allocated"] = count
    return finished + frontier or root.leaves()


@dataclass(frozen=True)
class REBASE(SearchStrategy):
    """Reward-balanced search (Wu et al. 2024, arXiv:2408.00724, section 3.1.2).

    Each level shares what is left of the width over the open nodes by a softmax of their scores, so good prefixes
    get many children, poor ones few or none, and no roll-out is needed. A finished leaf takes one unit of the width
    for good; the search ends with at most `width` leaves, at about the cost of sampling `width` solutions.

    Differs from the paper: children are allocated by the sequential ceiling of the authors' code in exact form, so
    that the counts always add up to the width left (``rounding="paper"`` and ``"released"`` reproduce both published
    rules, which over- and underspend); paths that are unfinished at `max_depth` are returned, flagged by
    ``is_finished``, and abstain from votes (the released code drops them); the path length limit is the generator's
    ``max_new_tokens`` and does end a path (in the released code it never fires).

    Attributes:
        width: Leaves that the search may finish (N in the paper).
        softmax_temperature: T_b, in units of the score: 0.1 in the paper (0.2 in the released settings). Rescale it
            for a reward outside of (0, 1).
        max_depth: Most steps in a path.
        rounding: ``"exact"``, or the published ``"paper"`` and ``"released"``.
        truncate_ratio: Keep only this share of the best open nodes before sharing; ``None`` keeps all.
        granularity: As in `BeamSearch`.

    Raises:
        ValueError: If a count is below 1, the temperature is not above 0, `truncate_ratio` not in (0, 1], or `rounding`
            unknown.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> result = isc.solve("How many?", isc.REBASE(width=8), ToyGenerator(), reward_model=ToyProcessReward())
        >>> [(f"{node.score:.2f}", len(node.children)) for node in result.root.children]  # better steps, more children
        [('0.52', 1), ('0.00', 0), ('0.11', 0), ('0.68', 6), ('0.45', 0), ('0.23', 0), ('0.13', 0), ('0.49', 1)]
        >>> len(result.trajectories), result.answer
        (8, '3')
    """

    width: int = 16
    softmax_temperature: float = 0.1
    max_depth: int = 40
    rounding: Literal["exact", "paper", "released"] = "exact"
    truncate_ratio: float | None = None
    granularity: int = 1
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "width", "max_depth", "granularity")
        check_positive(self, "softmax_temperature")
        check_choice(self, "rounding", ("exact", "paper", "released"))
        if self.truncate_ratio is not None and not 0 < self.truncate_ratio <= 1:
            raise ValueError(f"REBASE(truncate_ratio={self.truncate_ratio}): give a share in (0, 1], or None")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Finished leaves, then the paths still open; what is left of a search that died out."""
        return reward_balanced(root, self.width, self.max_depth, self.granularity, self.allocate)

    def allocate(self, frontier: Sequence[Node], width: int) -> Flow[list[int]]:
        """Children of each open node: ``W_j = Round(width * exp(R_j / T_b) / sum_k exp(R_k / T_b))``."""
        yield from ()  # scores are all that it needs
        scores = [node.score for node in frontier]
        counts: list[int] = rebase_allocation(
            scores, width, self.softmax_temperature, self.rounding, truncate_ratio=self.truncate_ratio
        ).tolist()
        return counts


def similarities(texts: Sequence[str], embedder: Embedder | None) -> Flow[np.ndarray]:
    """The cosine between every two texts, `[n, n]`, by an embedder, or as `embed` sees them.

    Raises:
        ValueError: If there is no vector for each text.
    """
    vectors = np.asarray((yield from embed(texts)) if embedder is None else embedder.embed(texts), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        who = "the generator" if embedder is None else type(embedder).__name__
        raise ValueError(
            f"{who}.embed() gave an array of shape {vectors.shape} for {len(texts)} texts: give [n, d], a row for each"
        )
    return np.asarray(cosine_similarities(vectors))


@dataclass(frozen=True)
class DORA(SearchStrategy):
    """Direction-oriented resource allocation (Wang et al. 2025, arXiv:2506.15707, section 3.3).

    `REBASE` shares the width over solutions, so a direction that many of them take gets it several times. Here
    solutions that are alike share the weight of one (equations 10 to 13)::

        S_ij = cos(e_i, e_j)                                   # e: an embedding of the solution so far
        P_ij = exp(S_ij / T_s) / sum_j' exp(S_ij' / T_s)
        w'_i ~ softmax(R / T_b)_i * gamma_i,  gamma_i = P_ii   # one over the size of its direction, softly
        B_i  = Round(N w'_i)

    Differs from the paper: counts are rounded as in `REBASE`, so that they add up, and in one round (the released code
    first drops nodes to which REBASE would give nothing); a finished leaf keeps its unit of the width; without an
    `embedder` the policy's own hidden states say what is alike, which is charged, or character n-grams where the
    generator has none (see `inferscale.flow.embed`).

    Attributes:
        width: Leaves that the search may finish (N in the paper).
        softmax_temperature: T_b, in units of the score.
        similarity_temperature: T_s, in units of the cosine; 0.01 in the paper. Infinity makes it `REBASE`.
        max_depth: Most steps in a path.
        granularity: As in `BeamSearch`.
        embedder: Gives the vectors whose cosines say which solutions are alike, at no charge; ``None`` asks the
            generator.

    Raises:
        TypeError: If `embedder` is none.
        ValueError: If a count is below 1, or a temperature is not above 0.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import DORA
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> result = isc.solve("How many?", DORA(width=8), ToyGenerator(), reward_model=ToyProcessReward())
        >>> result.answer, len(result.trajectories)
        ('3', 8)
        >>> alike = [[1.0, 0.99, 0.1], [0.99, 1.0, 0.1], [0.1, 0.1, 1.0]]  # of three prefixes, two go in one direction
        >>> isc.functional.rebase_allocation([0.7, 0.7, 0.7], 9, 0.1).tolist()
        [3, 3, 3]
        >>> isc.functional.dora_allocation([0.7, 0.7, 0.7], alike, 9, 0.1, 0.01).tolist()
        [3, 2, 4]
    """

    width: int = 16
    softmax_temperature: float = 0.1
    similarity_temperature: float = 0.01
    max_depth: int = 40
    granularity: int = 1
    embedder: Embedder | None = field(default=None, repr=False)
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "width", "max_depth", "granularity")
        check_positive(self, "softmax_temperature", "similarity_temperature")
        check_embedder(self)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Finished leaves, then the paths still open; what is left of a search that died out."""
        return reward_balanced(root, self.width, self.max_depth, self.granularity, self.allocate)

    def allocate(self, frontier: Sequence[Node], width: int) -> Flow[list[int]]:
        """Children of each open node."""
        cosines = yield from similarities([node.text for node in frontier], self.embedder)
        counts: list[int] = dora_allocation(
            [node.score for node in frontier], cosines, width, self.softmax_temperature, self.similarity_temperature
        ).tolist()
        return counts


@dataclass(frozen=True)
class ETS(SearchStrategy):
    """Efficient tree search (Hooper et al. 2025, arXiv:2502.13575): `REBASE` on a subset of the open nodes.

    The subset S shares much of its paths, and so of the KV cache, and still holds all kinds of steps::

        max_S  sum_{i in S} W_i  -  lambda_b |V_S| / |V|  +  lambda_d |C_S| / |C|

    with W the shares of REBASE, V_S the nodes of the tree that S keeps alive (itself included), and C_S the clusters of
    newest steps that it covers (average linkage over cosine distances). It is an integer linear programme, solved
    exactly. The width that is left is then shared over S as in REBASE.

    Differs from the paper: shares and counts are rounded as in `REBASE`, so that they add up; without an `embedder`
    steps are compared as in `DORA` instead of by a model for mathematical text.

    Attributes:
        width: Leaves that the search may finish.
        softmax_temperature: T_b, in units of the score (0.2 in the published settings).
        cost_weight: lambda_b, the price of keeping the whole tree (1 to 2 in the paper; 0 prunes nothing).
        coverage_weight: lambda_d, what it is worth to cover all clusters.
        max_distance: Mean cosine distance up to which steps are in one cluster.
        max_depth: Most steps in a path.
        granularity: As in `BeamSearch`.
        embedder: As in `DORA`.

    Raises:
        TypeError: If `embedder` is none.
        ValueError: If a count is below 1, the temperature is not above 0, or a weight or distance is below 0 or
            infinite.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import ETS
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> generator, reward = ToyGenerator(), ToyProcessReward()
        >>> for strategy in (ETS(width=8, cost_weight=2.0), isc.REBASE(width=8)):
        ...     result = isc.solve("How many?", strategy, generator, reward_model=reward)
        ...     print(sum(1 for node in result.root.walk() if node.children), "prefixes were continued")
        5 prefixes were continued
        9 prefixes were continued
    """

    width: int = 16
    softmax_temperature: float = 0.1
    cost_weight: float = 1.0
    coverage_weight: float = 1.0
    max_distance: float = 0.05
    max_depth: int = 40
    granularity: int = 1
    embedder: Embedder | None = field(default=None, repr=False)
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "width", "max_depth", "granularity")
        check_positive(self, "softmax_temperature")
        for name in ("cost_weight", "coverage_weight", "max_distance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"ETS({name}={getattr(self, name)!r}): give a finite number, 0 or more")
        check_embedder(self)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Finished leaves, then the paths still open; what is left of a search that died out."""

        def allocate(frontier: Sequence[Node], width: int) -> Flow[list[int]]:
            scores = np.asarray([node.score for node in frontier])
            shares = rebase_allocation(scores, width, self.softmax_temperature) / width
            # The inner nodes that the frontier keeps alive, and which of them each path needs.
            paths = [leaf.path[root.depth : -1] for leaf in frontier]
            inner = list(dict.fromkeys(node for path in paths for node in path))
            needed = np.asarray([[node in path for node in inner] for path in map(set, paths)], dtype=bool)
            cosines = yield from similarities([leaf.step.text if leaf.step else "" for leaf in frontier], self.embedder)
            kept = ets_selection(
                shares, needed, likeness_clusters(cosines, self.max_distance), self.cost_weight, self.coverage_weight
            )
            counts: list[int] = rebase_allocation(scores, width, self.softmax_temperature, mask=kept).tolist()
            return counts

        return reward_balanced(root, self.width, self.max_depth, self.granularity, allocate)


@dataclass(frozen=True)
class BestFirst(SearchStrategy):
    """Best-first search: always expand the open node with the best score (the older one on ties).

    The breadth-first tree of thoughts (Yao et al. 2023, arXiv:2305.10601) is `BeamSearch`; this is its greedy cousin
    without levels, as in treequest.

    Attributes:
        num_expansions: Nodes expanded.
        branching: Children of each.
        num_parallel: Nodes expanded at a time, the best ones; more than 1 saves model calls and is less greedy.
        max_finished: Stop once so many leaves have finished; ``None`` spends all expansions.
        max_depth: Most steps in a path.

    Raises:
        ValueError: If a count is below 1.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import BestFirst
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> strategy = BestFirst(num_expansions=32, max_finished=2)
        >>> result = isc.solve("How many?", strategy, ToyGenerator(), reward_model=ToyProcessReward())
        >>> len(result.trajectories), result.cost.num_generated
        (2, 8)
    """

    num_expansions: int = 32
    branching: int = 2
    num_parallel: int = 1
    max_finished: int | None = None
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "num_expansions", "branching", "num_parallel", "max_depth")
        if self.max_finished is not None:
            check_counts(self, "max_finished")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves of the whole tree."""
        heap = [(0.0, 0, root)]  # (minus the score, age, open node): the age keeps ties in order
        pushed, finished, left = 1, 0, self.num_expansions
        while heap and left and (self.max_finished is None or finished < self.max_finished):
            # With num_parallel > 1 the second best and so on are expanded before the best one's children are seen.
            batch = [heapq.heappop(heap)[2] for _ in range(min(self.num_parallel, left, len(heap)))]
            left -= len(batch)
            children = yield from expand(batch, self.branching)
            yield from score(children)
            for child in children:
                if child.is_finished:
                    finished += 1
                elif child.depth - root.depth < self.max_depth:
                    heapq.heappush(heap, (-child.score, pushed, child))
                    pushed += 1
        return root.leaves()


@dataclass(frozen=True)
class DepthFirst(SearchStrategy):
    """Depth-first search with pruning and backtracking (Yao et al. 2023, arXiv:2305.10601, algorithm 2).

    Children are visited in descending order of score, those below `threshold` never; a dead end goes back to the
    best sibling that is left.

    Differs from the paper: it stops after `max_finished` visited leaves or `num_expansions`, and returns every
    finished leaf that was paid for, visited or not.

    Attributes:
        num_expansions: Most nodes expanded.
        branching: Children of each.
        threshold: Children with a lower score are pruned; ``None`` prunes none.
        max_finished: Stop at so many finished leaves visited; ``None`` goes on while there is something to visit.
        max_depth: Most steps in a path.

    Raises:
        ValueError: If a count is below 1, or `threshold` is NaN.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import DepthFirst
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> strategy = DepthFirst(num_expansions=32, branching=3, threshold=0.3)
        >>> result = isc.solve("How many?", strategy, ToyGenerator(), reward_model=ToyProcessReward())
        >>> result.answer, result.cost.num_generated
        ('3', 12)
    """

    num_expansions: int = 32
    branching: int = 4
    threshold: float | None = None
    max_finished: int | None = 1
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "num_expansions", "branching", "max_depth")
        if self.threshold is not None and math.isnan(self.threshold):
            raise ValueError("DepthFirst(threshold=nan) would prune every child: give a score, or None")
        if self.max_finished is not None:
            check_counts(self, "max_finished")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves of the whole tree."""
        stack, finished, left = [root], 0, self.num_expansions
        while stack and (self.max_finished is None or finished < self.max_finished):
            node = stack.pop()
            if node.is_finished:
                finished += 1
            elif left and node.depth - root.depth < self.max_depth:
                left -= 1
                children = yield from expand([node], self.branching)
                yield from score(children)
                ranked = sorted(children, key=lambda child: -child.score)
                # Reversed, so that the best child is on top of the stack and its subtree is searched first.
                stack += [c for c in reversed(ranked) if self.threshold is None or c.score >= self.threshold]
        return root.leaves()
