"""Repeated sampling that stops when the answer is settled: adaptive consistency, early stopping, DeepConf."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from inferscale.answers import extract_answer, normalize_answer
from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand
from inferscale.tree import Node

from .checks import check_choice, check_counts

_EXACT_STATES = 20_000
_DRAWS = 1000
_POINTS = 4001
_MAX_EXPONENT = 700.0  # exp of it is just within float64


@lru_cache(maxsize=4096)
def beta_probability(first: int, second: int) -> float:
    """``P(p1 > p2)`` for the two leading answers with so many votes, under a uniform prior.

    ``1 - I_half(v1 + 1, v2 + 1) = sum_{j <= v1} C(n, j) / 2^n`` with ``n = v1 + v2 + 1``: the stop of
    Adaptive-Consistency (Aggarwal et al. 2023, arXiv:2305.11860).
    """
    n = first + second + 1
    return float(sum(math.comb(n, j) for j in range(first + 1)) / (1 << n))


@lru_cache(maxsize=4096)
def dirichlet_probability(counts: tuple[int, ...]) -> float:
    """``P(p1 > all others)`` for votes `counts`, the leader's first, under ``p ~ Dirichlet(counts + 1)``.

    A Dirichlet vector is gamma variables over their sum, so this is the integral of the leader's Gamma(v1 + 1) density
    times the others' distribution functions; Simpson's rule, error below 1e-9 for up to a few hundred votes. With two
    answers it is `beta_probability`.
    """
    leader = counts[0]
    high = leader + 1 + 12 * math.sqrt(leader + 1) + 30
    x = np.linspace(0.0, high, _POINTS)
    density = np.exp(leader * np.log(np.maximum(x, 1e-300)) - x - math.lgamma(leader + 1))
    if leader == 0:
        density = np.exp(-x)
    for count in counts[1:]:
        density = density * _erlang_distribution(x, count)
    simpson = np.ones(_POINTS)
    simpson[1:-1:2], simpson[2:-1:2] = 4.0, 2.0
    return float((density * simpson).sum() * (x[1] - x[0]) / 3)


def _erlang_distribution(x: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Distribution function of Gamma(count + 1): ``1 - exp(-x) sum_{k <= count} x^k / k!``."""
    if x[-1] < _MAX_EXPONENT:
        total = term = np.ones_like(x)
        for k in range(1, count + 1):
            term = term * x / k
            total = total + term
        below: NDArray[np.float64] = np.exp(-x) * total
    else:  # the terms and their sum are beyond float64, their products with exp(-x) are not
        log_x, below = np.log(np.maximum(x, 1e-300)), np.exp(-x)
        for k in range(1, count + 1):
            below = below + np.exp(k * log_x - x - math.lgamma(k + 1))
    return 1 - below


def expected_stop(
    probabilities: Sequence[float], n: int, batch: int, stops: Callable[[tuple[int, ...]], bool]
) -> float:
    """Expected number of samples paid for by a search that stops once `stops` holds for the votes.

    Args:
        probabilities: Chance of each answer; what is missing to 1 abstains.
        n: Where it stops at the latest.
        batch: Samples are paid for in blocks of so many; the rule is tested after each sample.
        stops: Called with the votes of each answer.

    Exact over all vote counts where there are few of them, else the mean over 1,000 simulated runs of a fixed seed.
    """
    chances = check_probabilities(probabilities)
    states = math.comb(n + len(chances), len(chances))
    stop_times = _exact_stop_times if states <= _EXACT_STATES else _simulated_stop_times
    return math.fsum(
        mass * min(n, math.ceil(time / batch) * batch) for time, mass in stop_times(chances, n, stops).items()
    )


def check_probabilities(probabilities: Sequence[float]) -> list[float]:
    """The probabilities greater than 0.

    Raises:
        ValueError: If one is negative, all are 0, or they sum to more than 1.
    """
    if any(p < 0 for p in probabilities) or not 0 < math.fsum(probabilities) <= 1 + 1e-9:
        raise ValueError(f"probabilities={list(probabilities)!r}: give chances of answers, at most 1 together")
    return [p for p in probabilities if p > 0]


def _exact_stop_times(chances: Sequence[float], n: int, stops: Callable[[tuple[int, ...]], bool]) -> dict[int, float]:
    abstains = max(0.0, 1 - math.fsum(chances))
    times: dict[int, float] = {}
    masses = {(0,) * len(chances): 1.0}
    for time in range(1, n + 1):
        after: defaultdict[tuple[int, ...], float] = defaultdict(float)
        for votes, mass in masses.items():
            after[votes] += mass * abstains
            for i, chance in enumerate(chances):
                after[(*votes[:i], votes[i] + 1, *votes[i + 1 :])] += mass * chance
        masses = {votes: mass for votes, mass in after.items() if time < n and not stops(votes)}
        times[time] = math.fsum(after.values()) - math.fsum(masses.values())
    return times


def _simulated_stop_times(
    chances: Sequence[float], n: int, stops: Callable[[tuple[int, ...]], bool]
) -> dict[int, float]:
    rng, times = Random(0), Counter[int]()
    cumulative, answers = list(accumulate([*chances, max(0.0, 1 - math.fsum(chances))])), range(len(chances) + 1)
    for _ in range(_DRAWS):
        votes = [0] * len(answers)
        for time, answer in enumerate(rng.choices(answers, cum_weights=cumulative, k=n), 1):
            votes[answer] += 1
            if time == n or stops(tuple(votes[:-1])):
                times[time] += 1
                break
    return {time: count / _DRAWS for time, count in times.items()}


def expected_windows(probabilities: Sequence[float], window: int, n: int) -> float:
    """Expected samples of early-stopping self-consistency: ``w (1 - (1 - Q)^M) / Q``.

    ``Q = sum_a p_a^w`` is the chance that a window is unanimous and ``M = floor(n / w)`` the number of
    windows (Li et al. 2024, arXiv:2401.10480, in closed form).
    """
    chances, windows = check_probabilities(probabilities), n // window
    unanimous = math.fsum(chance**window for chance in chances)
    return window * -math.expm1(windows * math.log1p(-unanimous)) / unanimous if unanimous < 1 else float(window)


ExtractAnswer: TypeAlias = Callable[[str], str | None]
_CATEGORIES = 5


@dataclass(frozen=True)
class AdaptiveConsistency(SearchStrategy):
    """Samples until the leading answer is surely the majority (Aggarwal et al. 2023, arXiv:2305.11860).

    With v1 >= v2 votes for the two leading answers it stops when ``P(p1 > p2)``, see `beta_probability`, reaches
    `threshold`: 4 to 0, 6 to 1, 8 to 2, ... at 0.95. Vote with `MajorityVote`. A sample without an answer is a sample
    and not a vote.

    Differs from the paper: the Dirichlet rule always has five answers, unseen ones with no vote (the authors' package
    takes the leading answers that it has seen). The rule is tested after every sample, also inside a block, and all
    samples of the block that were paid for come back.

    Attributes:
        n: Where it stops at the latest.
        threshold: The probability that must be reached.
        rule: ``"beta"`` compares the two leading answers, ``"dirichlet"`` the leader with the next four.
        num_parallel: Samples drawn at a time; 1 is the paper's, more saves model calls.
        extract_answer: The function given to `solve`, which does not hand it to the search.
    """

    n: int = 40
    threshold: float = 0.95
    rule: Literal["beta", "dirichlet"] = "beta"
    num_parallel: int = 1
    extract_answer: ExtractAnswer = field(default=extract_answer, repr=False)

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "n", "num_parallel")
        check_choice(self, "rule", ("beta", "dirichlet"))
        if not 0.5 < self.threshold < 1:
            raise ValueError(f"AdaptiveConsistency(threshold={self.threshold!r}): give a probability in (0.5, 1)")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All samples drawn until the stop."""
        leaves, votes, drawn, decided = list[Node](), Counter[str](), 0, False
        while drawn < self.n and not decided:
            block = min(self.num_parallel, self.n - drawn)
            drawn += block
            new = yield from expand([root], block, until="end")
            leaves += new
            for answer in answers_of(new, self.extract_answer):
                votes.update([answer] if answer is not None else [])
                decided = decided or self.decides(list(votes.values()))
        return leaves or root.leaves()

    def decides(self, votes: Sequence[int]) -> bool:
        """Whether the rule stops at these numbers of votes."""
        ranked = sorted(votes, reverse=True) + [0] * _CATEGORIES
        if self.rule == "beta":
            return beta_probability(ranked[0], ranked[1]) >= self.threshold
        return dirichlet_probability(tuple(ranked[:_CATEGORIES])) >= self.threshold

    def expected_samples(self, probabilities: Sequence[float]) -> float:
        """How many samples a problem will take whose answers have these chances; what is missing to 1 abstains."""
        return expected_stop(probabilities, self.n, self.num_parallel, self.decides)


@dataclass(frozen=True)
class EarlyStoppingConsistency(SearchStrategy):
    """Samples in windows and stops when a window is unanimous (ESC; Li et al. 2024, arXiv:2401.10480).

    Whole windows only. A window all of whose samples have one and the same answer decides: its samples come back, so
    that every vote gives its answer; the earlier ones stay in the tree. Without such a window all samples come back.

    Attributes:
        window: Samples in a window (the paper: 8 on MATH, 5 elsewhere).
        n: Where it stops at the latest; what does not fill a window is not drawn.
        extract_answer: The function given to `solve`, which does not hand it to the search.
    """

    window: int = 5
    n: int = 40
    extract_answer: ExtractAnswer = field(default=extract_answer, repr=False)

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "window", "n")
        if self.n < self.window:
            raise ValueError(
                f"EarlyStoppingConsistency(window={self.window}, n={self.n}): n must hold at least one window"
            )

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The samples of the window that decided, or all."""
        leaves = list[Node]()
        for _ in range(self.n // self.window):
            new = yield from expand([root], self.window, until="end")
            answers = answers_of(new, self.extract_answer)
            if len(new) == self.window and answers[0] is not None and len(set(answers)) == 1:
                return new
            leaves += new
        return leaves or root.leaves()

    def expected_samples(self, probabilities: Sequence[float]) -> float:
        """How many samples a problem will take whose answers have these chances; what is missing to 1 abstains."""
        return expected_windows(probabilities, self.window, self.n)


def answers_of(leaves: Sequence[Node], extract: ExtractAnswer) -> list[str | None]:
    """The normal form of each leaf's answer; ``None`` for an unfinished leaf or one without."""
    answers = [extract(leaf.text) if leaf.is_finished else None for leaf in leaves]
    return [None if answer is None else normalize_answer(answer) for answer in answers]


@dataclass(frozen=True)
class SamplingPlan:
    """What an adaptive strategy will cost, estimated before it runs.

    Attributes:
        expected_samples: Mean samples of a problem.
        n: What sampling without a stop would take.
    """

    expected_samples: float
    n: int

    @property
    def saving(self) -> float:
        """Share of the samples that is saved."""
        return 1 - self.expected_samples / self.n


def plan_sampling(
    strategy: AdaptiveConsistency | EarlyStoppingConsistency, pilot: Sequence[Sequence[str | None]]
) -> SamplingPlan:
    """The expected cost of `strategy`, from a few answers to each of some pilot problems.

    Args:
        strategy: What is to be planned.
        pilot: For each pilot problem the answers sampled, ``None`` where there was none.

    The pilot's frequencies stand for the chances, so a short pilot makes problems look easier than they are: with k
    answers no chance below 1/k is seen.

    Raises:
        ValueError: If a pilot problem has no sample.
    """
    if not pilot or not all(pilot):
        raise ValueError("plan_sampling needs at least one sample of each pilot problem")
    total = 0.0
    for answers in pilot:
        votes = Counter(normalize_answer(answer) for answer in answers if answer is not None)
        chances = [count / len(answers) for count in votes.values()]
        total += strategy.expected_samples(chances) if chances else strategy.n
    return SamplingPlan(total / len(pilot), strategy.n)


@dataclass(frozen=True)
class DeepConf(SearchStrategy):
    """Confidence-filtered sampling (Fu et al. 2025, arXiv:2508.15260, online).

    `num_warmup` traces run to their ends. The threshold is the quantile of their lowest group confidences that `keep`
    of them reach. Later traces are abandoned as soon as the confidence of the current group of tokens falls below
    it, so their remaining tokens are never sampled. It stops when one answer has the share `consensus` of the votes.
    Vote with ``ConfidenceVote(reduction="min")``. Confidence is measured where the logits are: use a generator that
    reports it, such as ``HFGenerator(..., confidence="deepconf")``.

    Differs from the paper: traces are sampled step by step and looked at after every step, so a group ends with a
    step and holds the fewest last steps that have `window` tokens (all steps while there are fewer); the consensus
    counts traces instead of their confidences; warm-up traces below the threshold come back too.

    Attributes:
        num_warmup: Traces that set the threshold.
        n: Traces in all.
        keep: Share of the warm-up traces above the threshold (0.9, or 0.1 for the paper's aggressive variant).
        window: Tokens in a group (2,048 in the paper, whose traces are long).
        consensus: Share of the votes at which it stops; ``None`` samples all.
        num_parallel: Traces sampled at a time after the warm-up.
        max_depth: Most steps in a path.
        extract_answer: The function given to `solve`, which does not hand it to the search.
    """

    num_warmup: int = 16
    n: int = 64
    keep: float = 0.9
    window: int = 2048
    consensus: float | None = 0.95
    num_parallel: int = 16
    max_depth: int = 40
    extract_answer: ExtractAnswer = field(default=extract_answer, repr=False)

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "num_warmup", "n", "window", "num_parallel", "max_depth")
        if not 0 < self.keep <= 1:
            raise ValueError(f"DeepConf(keep={self.keep!r}): give a share in (0, 1]")
        if self.consensus is not None and not 0.5 < self.consensus <= 1:
            raise ValueError(f"DeepConf(consensus={self.consensus!r}): give a share in (0.5, 1], or None")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The traces that ran to their ends."""
        drawn = min(self.num_warmup, self.n)
        done = yield from self._trace(root, drawn, -math.inf)
        lowest = [min(self.group_confidence(node) for node in leaf.path[root.depth :]) for leaf in done]
        threshold = float(np.quantile(lowest, 1 - self.keep)) if lowest else -math.inf
        while drawn < self.n and not self._agreed(done):
            block = min(self.num_parallel, self.n - drawn)
            drawn += block
            done += yield from self._trace(root, block, threshold)
        return done or root.leaves()

    def group_confidence(self, node: Node) -> float:
        """Mean token confidence of the last steps that hold `window` tokens.

        Raises:
            ValueError: If the generator reports no confidence.
        """
        total, tokens = 0.0, 0
        for step in reversed(node.steps):
            if step.confidence is None:
                raise ValueError('DeepConf reads confidences: use HFGenerator(..., confidence="deepconf")')
            total += step.confidence * step.generated_tokens
            tokens += step.generated_tokens
            if tokens >= self.window:
                break
        return total / max(tokens, 1)

    def _trace(self, root: Node, n: int, threshold: float) -> Flow[list[Node]]:
        """Those of `n` new traces that ended above the threshold."""
        done, frontier, counts = list[Node](), [root], [n]
        for _ in range(self.max_depth):
            nodes = yield from expand(frontier, counts)
            kept = [node for node in nodes if self.group_confidence(node) >= threshold]
            done += [node for node in kept if node.is_finished]
            frontier = [node for node in kept if not node.is_finished]
            counts = [1] * len(frontier)
            if not frontier:
                break
        return done

    def _agreed(self, leaves: Sequence[Node]) -> bool:
        votes = Counter(answer for answer in answers_of(leaves, self.extract_answer) if answer is not None)
        return self.consensus is not None and max(votes.values(), default=0) >= self.consensus * votes.total() > 0
