"""Strategies made of strategies: in parallel, in sequence, as a fallback, or chosen by difficulty."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np

from inferscale.answers import Normalize, group_answers
from inferscale.base import SearchStrategy
from inferscale.flow import Flow, answer, expand, gather, limit, score
from inferscale.tree import Node

from .checks import check_choice, check_counts, check_members

Accept: TypeAlias = Callable[[Sequence[Node]], bool]


def any_finished(leaves: Sequence[Node]) -> bool:
    """True if a leaf has finished with a usable text."""
    return any(leaf.is_finished and not leaf.is_failed for leaf in leaves)


def joined(earlier: Sequence[Node], later: Sequence[Node]) -> list[Node]:
    """The leaves of two searches from one root, without failed ones where there are others.

    A search that returns the leaves of the whole tree returns those of an earlier search again: they count once. A
    leaf that one search returns several times, as a particle filter does, stays as often.
    """
    known = set(earlier)
    leaves = [*earlier, *(leaf for leaf in later if leaf not in known)]
    return [leaf for leaf in leaves if not leaf.is_failed] or leaves


def _stream(rng: random.Random) -> random.Random:
    """A child stream, so that composing strategies does not change a member's draws."""
    return random.Random(rng.getrandbits(64))


@dataclass(frozen=True)
class _Pair(SearchStrategy):
    """Two strategies, one after the other."""

    first: SearchStrategy
    second: SearchStrategy

    def __post_init__(self) -> None:
        check_members(self, self.first, self.second)

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """True if one of the two scores nodes."""
        return self.first.needs_scores or self.second.needs_scores


@dataclass(frozen=True)
class Then(_Pair):
    """`first`, and from each leaf that it leaves open a search by `second`, all side by side.

    ``Then(BeamSearch(4, 4, max_depth=3), RepeatedSampling(2))`` spends search on the beginning only.

    Attributes:
        first: The strategy that begins.
        second: The strategy that goes on from open leaves.

    Raises:
        TypeError: If a part is no strategy.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Then
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> strategy = Then(isc.BeamSearch(2, 4, max_depth=1), isc.RepeatedSampling(3))  # search the first step alone
        >>> result = isc.solve("How many?", strategy, ToyGenerator(), reward_model=ToyProcessReward())
        >>> len(result.trajectories), len({trajectory.steps[0].text for trajectory in result.trajectories})
        (6, 2)
    """

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Leaves that `first` finished, then those that `second` found from the others."""
        leaves = yield from self.first.search(root, _stream(rng))
        open_leaves = [leaf for leaf in leaves if not leaf.is_finished]
        groups = yield from gather(self.second.search(leaf, _stream(rng)) for leaf in open_leaves)
        found = [leaf for group in groups for leaf in group if not leaf.is_failed]
        return [leaf for leaf in leaves if leaf.is_finished] + found or root.leaves()


@dataclass(frozen=True)
class Fallback(_Pair):
    """`first`, and `second` as well if the leaves of the first are not accepted.

    Attributes:
        first: The strategy that is tried.
        second: The strategy that runs too if that was not enough.
        accept: Tells whether the leaves of `first` will do; by default if one has finished.

    Raises:
        TypeError: If a part is no strategy.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Fallback
        >>> from inferscale.testing import ToyGenerator
        >>> def agree(leaves):
        ...     return len({leaf.text.split()[-1] for leaf in leaves}) == 1
        >>> strategy = Fallback(isc.RepeatedSampling(2), isc.RepeatedSampling(8), accept=agree)
        >>> [len(isc.solve("How many?", strategy, ToyGenerator(num_answers=n)).trajectories) for n in (1, 4)]
        [2, 10]
    """

    accept: Accept = field(default=any_finished, repr=False)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves of `first`, with those of `second` if it had to run."""
        leaves = yield from self.first.search(root, _stream(rng))
        if not self.accept(leaves):
            leaves = joined(leaves, (yield from self.second.search(root, _stream(rng))))
        return leaves


@dataclass(frozen=True)
class Restart(SearchStrategy):
    """`strategy` again and again, each time from the root with new samples, until its leaves are accepted.

    Attributes:
        strategy: The strategy that is run.
        n: Most runs.
        accept: Tells whether the leaves of a run will do; by default if one has finished.

    Raises:
        TypeError: If `strategy` is none.
        ValueError: If `n` is below 1.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Restart
        >>> from inferscale.testing import ToyGenerator
        >>> def has_three(leaves):
        ...     return any(leaf.text.endswith("3") for leaf in leaves)
        >>> result = isc.solve("How many?", Restart(isc.RepeatedSampling(2), n=10, accept=has_three), ToyGenerator())
        >>> [trajectory.answer for trajectory in result.trajectories]
        ['1', '2', '0', '0', '2', '3']
    """

    strategy: SearchStrategy
    n: int = 3
    accept: Accept = field(default=any_finished, repr=False)

    def __post_init__(self) -> None:
        check_members(self, self.strategy)
        check_counts(self, "n")

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """True if the strategy scores nodes."""
        return self.strategy.needs_scores

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves of all runs, in order."""
        leaves = list[Node]()
        for _ in range(self.n):
            new = yield from self.strategy.search(root, _stream(rng))
            leaves = joined(leaves, new)
            if self.accept(new):
                break
        return leaves


@dataclass(frozen=True)
class Limited(SearchStrategy):
    """`strategy`, ended with its best effort before it asks for more than `n` samples.

    Attributes:
        strategy: The strategy that is run.
        n: Most samples drawn (steps or whole completions).

    Raises:
        TypeError: If `strategy` is none.
        ValueError: If `n` is below 1.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Limited
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> result = isc.solve("How many?", Limited(isc.MCTS(64), 20), ToyGenerator(), reward_model=ToyProcessReward())
        >>> result.cost.num_generated
        20
    """

    strategy: SearchStrategy
    n: int

    def __post_init__(self) -> None:
        check_members(self, self.strategy)
        check_counts(self, "n")

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """True if the strategy scores nodes."""
        return self.strategy.needs_scores

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves that the strategy returns, or those so far."""
        return limit(self.strategy.search(root, rng), root, self.n)


Measure: TypeAlias = Literal["score", "agreement"]
"""``"score"``: one minus the mean score; ``"agreement"``: one minus the share of the leading answer."""


def difficulty(
    scores: Sequence[float] = (),
    answers: Sequence[str | None] = (),
    measure: Measure = "score",
    normalize: Normalize | None = None,
) -> float:
    """The difficulty of a problem, estimated from a few samples of it; greater is harder.

    Args:
        scores: The samples' final scores, read for ``"score"`` (the predicted difficulty of Snell et al.).
        answers: The samples' answers, read for ``"agreement"``; ``None`` agrees with nothing.
        measure: Which of the two.
        normalize: Gives the form by which answers are the same, as in `group_answers`.

    Raises:
        ValueError: If there is no sample, or the measure is unknown.

    Example:
        >>> from inferscale.strategies import difficulty
        >>> round(difficulty([0.9, 0.8, 0.1, 0.6]), 2)  # the scores of four samples
        0.4
        >>> difficulty(answers=["4", "4", "7", None], measure="agreement")
        0.5
    """
    if measure not in get_args(Measure):
        raise ValueError(f'difficulty(measure={measure!r}): choose "score" or "agreement"')
    samples = len(scores) if measure == "score" else len(answers)
    if samples == 0:
        raise ValueError(f'difficulty(measure="{measure}") needs at least one sample')
    if measure == "score":
        if None in scores:
            raise ValueError('difficulty(measure="score"): a sample has no score; pass reward_model=... when you draw '
                             'the samples, or give answers=... and measure="agreement"')  # fmt: skip
        return 1 - math.fsum(scores) / samples
    return 1 - max(map(len, group_answers(answers, normalize=normalize)), default=0) / samples


@dataclass(frozen=True)
class ComputeOptimal(SearchStrategy):
    """Estimates how hard a problem is from a few samples, then searches as is best for that difficulty.

    Snell et al. 2024 (arXiv:2408.03314, section 3): ``theta*(q, N) = argmax_theta E[correct | theta, N, q]``, with q
    replaced by a difficulty bin. `fit_compute_optimal` makes one from results on problems with known answers.

    Differs from the paper: the samples that estimate the difficulty are charged, and they come back as candidates
    together with the leaves of the strategy that was chosen (the paper leaves their cost out).

    Attributes:
        strategies: One for each bin, the easiest first.
        thresholds: Difficulties between the bins, ascending; one fewer than strategies.
        num_probes: Samples that estimate the difficulty.
        measure: As in `difficulty`.

    Raises:
        TypeError: If one of `strategies` is none.
        ValueError: If there is not one threshold between each two strategies, they do not ascend, `num_probes` is below
            1, or `measure` unknown.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import ComputeOptimal
        >>> strategy = ComputeOptimal(
        ...     (isc.RepeatedSampling(4), isc.REBASE(8)), thresholds=(0.5,), num_probes=4, measure="agreement"
        ... )
        >>> strategy.bin_of(0.25), strategy.bin_of(0.75)  # of four probes three agree, or none
        (0, 1)
        >>> generator, reward = isc.testing.ToyGenerator(), isc.testing.ToyReward()
        >>> result = isc.solve("How many?", strategy, generator, reward_model=reward)
        >>> result.root.stats, len(result.trajectories)
        ({'difficulty_bin': 0}, 8)
    """

    strategies: tuple[SearchStrategy, ...]
    thresholds: tuple[float, ...]
    num_probes: int = 4
    measure: Measure = "score"

    def __post_init__(self) -> None:
        check_counts(self, "num_probes")
        check_choice(self, "measure", ("score", "agreement"))
        object.__setattr__(self, "strategies", tuple(self.strategies))
        check_members(self, *self.strategies)
        object.__setattr__(self, "thresholds", tuple(map(float, self.thresholds)))
        if len(self.strategies) != len(self.thresholds) + 1:
            raise ValueError(
                f"ComputeOptimal has {len(self.strategies)} strategies and {len(self.thresholds)} thresholds: "
                "give one threshold between each two strategies"
            )
        if any(map(math.isnan, self.thresholds)) or list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(f"ComputeOptimal(thresholds={self.thresholds}): give them in ascending order")

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """True if probes or a member's nodes are scored."""
        return self.measure == "score" or any(strategy.needs_scores for strategy in self.strategies)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The probes, then the leaves of the strategy for their difficulty."""
        probes = yield from expand([root], self.num_probes, until="end")
        chosen = len(self.thresholds)  # the hardest bin, if all probes failed
        if probes and self.measure == "score":
            yield from score(probes)
            chosen = self.bin_of(difficulty([probe.score for probe in probes]))
        elif probes:
            answers = yield from answer(probes)  # equal ones as one text
            chosen = self.bin_of(difficulty(answers=answers, measure="agreement", normalize=str))
        root.stats["difficulty_bin"] = chosen
        leaves = yield from self.strategies[chosen].search(root, _stream(rng))
        return joined(probes, leaves)

    def bin_of(self, hardness: float) -> int:
        """The bin of a problem with this `difficulty`."""
        return bisect_left(self.thresholds, hardness)


@dataclass(frozen=True)
class ComputeOptimalFit:
    """A strategy for each difficulty, chosen on problems with known answers.

    Attributes:
        strategy: The strategy to use from now on.
        accuracy: Two-fold cross-validated: each half of a bin is answered by what is best on the other half.
        bin_accuracy: The same for each bin.
        table: Mean correctness of each candidate in each bin, `[bins][candidates]`.
        candidates: The strategies, in the order of the table's columns.
        bin_sizes: Problems in each bin.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import fit_compute_optimal
        >>> difficulties = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9]
        >>> outcomes = {isc.RepeatedSampling(16): [1, 1, 1, 0, 0, 0], isc.REBASE(8): [1, 0, 1, 1, 0, 1]}
        >>> fit = fit_compute_optimal(difficulties, outcomes, num_bins=2)
        >>> fit.strategy.strategies[0], type(fit.strategy.strategies[1]).__name__
        (RepeatedSampling(n=16), 'REBASE')
        >>> [[round(mean, 2) for mean in row] for row in fit.table], fit.bin_sizes
        ([[1.0, 0.67], [0.0, 0.67]], (3, 3))
    """

    strategy: ComputeOptimal
    accuracy: float
    bin_accuracy: tuple[float, ...]
    table: tuple[tuple[float, ...], ...]
    candidates: tuple[SearchStrategy, ...]
    bin_sizes: tuple[int, ...]


def fit_compute_optimal(
    difficulties: Sequence[float],
    outcomes: Mapping[SearchStrategy, Sequence[float]],
    *,
    num_bins: int = 5,
    num_probes: int = 4,
    measure: Measure = "score",
    seed: int = 0,
) -> ComputeOptimalFit:
    """The best candidate for each difficulty bin, and its accuracy by cross-validation.

    Args:
        difficulties: Of each problem, estimated as at answer time: by `difficulty` from `num_probes` samples.
        outcomes: For each candidate strategy, how right it was on each problem (0 to 1), at equal budgets.
        num_bins: Quantile bins of equal size.
        num_probes: Samples that estimated the difficulties.
        measure: As in `difficulty`.
        seed: Of the split into halves.

    Returns:
        The strategy and its figures. Equally good candidates: the first in the mapping.

    Raises:
        ValueError: If counts differ, a number is not finite, or a bin has fewer than two problems.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import fit_compute_optimal
        >>> difficulties = [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]
        >>> outcomes = {  # how right each was on each problem, at one budget
        ...     isc.RepeatedSampling(16): [1, 1, 1, 1, 0, 0, 1, 0],
        ...     isc.REBASE(8): [0, 1, 0, 1, 1, 1, 1, 0],
        ... }
        >>> fit = fit_compute_optimal(difficulties, outcomes, num_bins=2)
        >>> [type(strategy).__name__ for strategy in fit.strategy.strategies], fit.strategy.thresholds
        (['RepeatedSampling', 'REBASE'], (0.5,))
        >>> fit.accuracy  # cross-validated
        0.875
    """
    candidates, rows = tuple(outcomes), [list(row) for row in outcomes.values()]
    if not candidates or num_bins < 1:
        raise ValueError("fit_compute_optimal needs at least one candidate strategy and one bin")
    for candidate, row in zip(candidates, rows, strict=True):
        if len(row) != len(difficulties):
            problems = f"{len(difficulties)} problems: give one for each"
            raise ValueError(f"{candidate!r} has {len(row)} outcomes for {problems}")
        if None in row or not all(map(math.isfinite, row)):
            raise ValueError(f"{candidate!r} has an outcome that is no finite number: give 0 to 1 for each problem")
    if None in difficulties or not all(map(math.isfinite, difficulties)):
        raise ValueError("a difficulty is no finite number: give one for each problem, by difficulty()")
    shares = np.arange(1, num_bins) / num_bins
    thresholds = tuple(np.quantile(np.asarray(difficulties, dtype=float), shares).tolist())
    bins = [[i for i, d in enumerate(difficulties) if bisect_left(thresholds, d) == b] for b in range(num_bins)]
    sizes = tuple(map(len, bins))
    if min(sizes) < 2:
        raise ValueError(
            f"bins of {list(sizes)} problems: every one needs two; give more problems or num_bins < {num_bins}"
        )

    def mean(row: Sequence[float], members: Sequence[int]) -> float:
        return math.fsum(row[i] for i in members) / len(members)

    # argmax_theta of the mean outcome in each bin; the first candidate of equals
    table = tuple(tuple(mean(row, members) for row in rows) for members in bins)
    best = tuple(candidates[max(range(len(rows)), key=means.__getitem__)] for means in table)
    rng, right = random.Random(seed), []
    for members in bins:  # each half is answered by the candidate that is best on the other half
        shuffled = rng.sample(members, len(members))
        halves = shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :]
        total = 0.0
        for choose_on, judge_on in (halves, halves[::-1]):
            chosen = max(rows, key=lambda row: mean(row, choose_on))
            total += math.fsum(chosen[i] for i in judge_on)
        right.append(total)
    return ComputeOptimalFit(
        ComputeOptimal(best, thresholds, num_probes, measure),
        math.fsum(right) / len(difficulties),
        tuple(total / size for total, size in zip(right, sizes, strict=True)),
        table,
        candidates,
        sizes,
    )
