"""Independent samples: one greedy, many, or many of which some are stopped.

Sampling ends once the answer is settled (adaptive consistency, ESC), or samples end that are not worth going on with
(DeepConf, speculative rejection).
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from inferscale.answers import group_answers
from inferscale.base import SearchStrategy
from inferscale.flow import Flow, answer, expand, gather, score
from inferscale.tree import Node

from .checks import check_choice, check_counts


@dataclass(frozen=True)
class Greedy(SearchStrategy):
    """One greedy completion: the likeliest token each time.

    Example:
        >>> import inferscale as isc
        >>> generator = isc.testing.ToyGenerator()
        >>> first, second = (isc.solve("How many?", isc.Greedy(), generator, seed=seed) for seed in (0, 1))
        >>> first.text == second.text  # nothing is drawn
        True
    """

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The completion."""
        return expand([root], until="end", greedy=True)


@dataclass(frozen=True)
class RepeatedSampling(SearchStrategy):
    """`n` independent completions.

    With `MajorityVote` this is self-consistency (Wang et al. 2022, arXiv:2203.11171), with
    ``MajorityVote(weighted=True)`` the weighted majority vote and with `BestOfN` best-of-n of Wu et al. 2024
    (arXiv:2408.00724, section 3.1.1): which one is the aggregator's business, not the search's.

    Attributes:
        n: Completions.

    Raises:
        ValueError: If `n` is no integer above 0.

    Example:
        >>> import inferscale as isc
        >>> result = isc.solve("How many?", isc.RepeatedSampling(8), isc.testing.ToyGenerator())  # and a majority vote
        >>> result.answer, isc.answer_weights(result.trajectories)
        ('1', {'1': 3.0, '2': 2.0, '0': 2.0, '3': 1.0})
    """

    n: int = 16

    def __post_init__(self) -> None:
        check_counts(self, "n")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The completions, in the order of sampling."""
        return expand([root], self.n, until="end")


@dataclass(frozen=True)
class MultiTemperature(SearchStrategy):
    """Samples at several temperatures, of which an easy problem needs few (Wu et al. 2025, arXiv:2510.02611).

    Different temperatures solve different hard problems, so each of T temperatures gets its share of the `n` samples.
    They are drawn in rounds of `block` a temperature. It stops early once every temperature has a leading answer with
    `agreement` of its samples, and all of them the same one. Vote over all with `MajorityVote`.

    Differs from the paper: its text was at hand in part only; the exit is written from its description (a vote within
    each temperature, then one across them).

    Attributes:
        n: Most samples, over all temperatures.
        temperatures: Sampling temperatures, in place of the generator's own.
        block: Samples at each temperature in a round.
        agreement: Share of a temperature's samples that its leading answer needs for the exit; ``None`` never stops.

    Raises:
        ValueError: If a count is below 1, a temperature is not above 0 or given twice, or `agreement` not in (0.5, 1].

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import MultiTemperature
        >>> from inferscale.testing import ToyGenerator
        >>> result = isc.solve("How many?", MultiTemperature(16, temperatures=(0.5, 1.0), block=4), ToyGenerator())
        >>> result.answer, len(result.trajectories)
        ('1', 16)
    """

    n: int = 32
    temperatures: tuple[float, ...] = (0.4, 0.7, 1.0, 1.3)
    block: int = 2
    agreement: float | None = 0.9

    def __post_init__(self) -> None:
        check_counts(self, "n", "block")
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        if not self.temperatures or not all(0 < t < math.inf for t in self.temperatures):
            raise ValueError(f"MultiTemperature(temperatures={self.temperatures!r}): give finite numbers above 0")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"MultiTemperature(temperatures={self.temperatures!r}): give each one once")
        if self.agreement is not None and not 0.5 < self.agreement <= 1:
            raise ValueError(f"MultiTemperature(agreement={self.agreement!r}): give a share in (0.5, 1], or None")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All samples drawn, round by round."""
        leaves, left = list[Node](), self.n
        votes = {temperature: list[str | None]() for temperature in self.temperatures}
        while left and not self._settled(list(votes.values())):
            shares = [min(self.block, (left + i) // len(votes)) for i in reversed(range(len(votes)))]
            left -= sum(shares)
            drawn = yield from gather(
                expand([root], share, until="end", temperature=temperature)
                for temperature, share in zip(votes, shares, strict=True)
                if share
            )
            asked = [temperature for temperature, share in zip(votes, shares, strict=True) if share]
            for temperature, nodes in zip(asked, drawn, strict=True):
                leaves += nodes
                votes[temperature] += yield from answer(nodes)
        return leaves or root.leaves()

    def _settled(self, votes: Sequence[Sequence[str | None]]) -> bool:
        """True if every temperature's leader is the same answer, and has its share."""
        if self.agreement is None or not all(votes):
            return False
        leaders = [Counter(answers).most_common(1)[0] for answers in votes]
        return leaders[0][0] is not None and all(
            leader == leaders[0][0] and count >= self.agreement * len(answers)
            for (leader, count), answers in zip(leaders, votes, strict=True)
        )


_RIVALS = 4  # answers that the Dirichlet rule compares the leader with


@dataclass(frozen=True)
class AdaptiveConsistency(SearchStrategy):
    """Sampling until the leading answer is surely the majority (Aggarwal et al. 2023, arXiv:2305.11860).

    With v1 >= v2 votes for the two leading answers it stops when ``P(p1 > p2)``, see `beta_probability`, reaches
    `threshold`: 4 to 0, 6 to 1, 8 to 2, ... at 0.95. Vote with `MajorityVote`. A sample without an answer is a sample
    and not a vote.

    Differs from the paper: the Dirichlet rule always has five answers, unseen ones with no vote (the authors' package
    takes the leading answers that it has seen). The rule is tested after every sample, also inside a block, and all
    samples of the block that were paid for come back.

    Attributes:
        n: Most samples.
        threshold: The probability that must be reached.
        rule: ``"beta"`` compares the two leading answers, ``"dirichlet"`` the leader with the next four.
        num_parallel: Samples drawn at a time; 1 is the paper's, more saves model calls.

    Raises:
        ValueError: If a count is below 1, `threshold` not in (0.5, 1), or `rule` unknown.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import AdaptiveConsistency
        >>> from inferscale.testing import ToyGenerator
        >>> easy, hard = ToyGenerator(num_answers=1), ToyGenerator(num_answers=4)
        >>> [len(isc.solve("How many?", AdaptiveConsistency(40), generator).trajectories) for generator in (easy, hard)]
        [4, 40]
    """

    n: int = 40
    threshold: float = 0.95
    rule: Literal["beta", "dirichlet"] = "beta"
    num_parallel: int = 1

    def __post_init__(self) -> None:
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
            for found in (yield from answer(new)):
                if found is not None:
                    votes[found] += 1
                decided = decided or self.decides(list(votes.values()))
        return leaves or root.leaves()

    def decides(self, votes: Sequence[int]) -> bool:
        """True if the rule stops at these numbers of votes."""
        leader, *others = sorted([*votes, *[0] * (_RIVALS + 1)], reverse=True)
        if self.rule == "beta":
            return beta_probability(leader, others[0]) >= self.threshold
        return dirichlet_probability((leader, *others[:_RIVALS])) >= self.threshold

    def expected_samples(self, probabilities: Sequence[float]) -> float:
        """Mean samples of a problem whose answers have these probabilities; what is missing to 1 abstains."""
        return expected_stop(probabilities, self.n, self.num_parallel, self.decides)


@lru_cache(maxsize=4096)
def beta_probability(first: int, second: int) -> float:
    """``P(p1 > p2)`` for the two leading answers with so many votes, under a uniform prior.

    ``p1 / (p1 + p2) ~ Beta(v1 + 1, v2 + 1)``, so this is ``1 - I_half(v1 + 1, v2 + 1)``, which is
    ``sum_{j <= v1} C(n, j) / 2^n`` with ``n = v1 + v2 + 1``: the stop of Aggarwal et al. 2023 (arXiv:2305.11860).
    """
    n = first + second + 1
    return float(sum(math.comb(n, j) for j in range(first + 1)) / (1 << n))


@lru_cache(maxsize=4096)
def dirichlet_probability(counts: tuple[int, ...]) -> float:
    """``P(p1 > all others)`` for votes `counts`, the leader's first, under ``p ~ Dirichlet(counts + 1)``.

    A Dirichlet vector is gamma variables over their sum, so this is ``E[prod_i F_i(X)]`` with X ~ Gamma(v1 + 1) and
    F_i the distribution function of Gamma(v_i + 1); Simpson's rule, error below 1e-9 for up to a few hundred votes.
    With two answers it is `beta_probability`.
    """
    leader, points = counts[0], 4001
    # The density beyond 12 standard deviations of the leader's gamma variable is nothing in float64.
    x = np.linspace(0.0, leader + 1 + 12 * math.sqrt(leader + 1) + 30, points)
    log_x = np.log(np.maximum(x, 1e-300))
    integrand = np.exp(leader * log_x - x - math.lgamma(leader + 1)) if leader else np.exp(-x)
    for count in counts[1:]:
        # For whole v, Gamma(v + 1) is a sum of v + 1 waiting times: F(x) = 1 - exp(-x) sum_{k <= v} x^k / k!.
        below: NDArray[np.float64] = np.exp(-x)
        if x[-1] < 700:  # exp(700) is just within float64
            term = total = np.ones_like(x)
            for k in range(1, count + 1):
                term = term * x / k
                total = total + term
            below = below * total
        else:  # the terms and their sum are beyond float64, their products with exp(-x) are not
            for k in range(1, count + 1):
                below = below + np.exp(k * log_x - x - math.lgamma(k + 1))
        integrand = integrand * (1 - below)
    simpson = np.ones(points)
    simpson[1:-1:2], simpson[2:-1:2] = 4.0, 2.0
    return float((integrand * simpson).sum() * (x[1] - x[0]) / 3)


@dataclass(frozen=True)
class EarlyStoppingConsistency(SearchStrategy):
    """Sampling in windows until one is unanimous (ESC; Li et al. 2024, arXiv:2401.10480).

    Whole windows only. A window all of whose samples have one and the same answer decides: its samples come back, so
    that every vote gives its answer; the earlier ones stay in the tree. Without such a window all samples come back.

    Attributes:
        window: Samples in a window (the paper: 8 on MATH, 5 elsewhere).
        n: Most samples; what does not fill a window is not drawn.

    Raises:
        ValueError: If a count is below 1, or `n` less than a window.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import EarlyStoppingConsistency
        >>> from inferscale.testing import ToyGenerator
        >>> easy, hard = ToyGenerator(num_answers=1), ToyGenerator(num_answers=4)
        >>> strategy = EarlyStoppingConsistency(window=5, n=40)
        >>> [len(isc.solve("How many?", strategy, generator).trajectories) for generator in (easy, hard)]
        [5, 40]
    """

    window: int = 5
    n: int = 40

    def __post_init__(self) -> None:
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
            answers = yield from answer(new)
            if len(new) == self.window and answers[0] is not None and len(set(answers)) == 1:
                return new
            leaves += new
        return leaves or root.leaves()

    def expected_samples(self, probabilities: Sequence[float]) -> float:
        """Mean samples of a problem whose answers have these probabilities; what is missing to 1 abstains.

        ``w (1 - (1 - Q)^M) / Q`` with ``Q = sum_a p_a^w`` the chance that a window is unanimous and
        ``M = floor(n / w)`` windows: the expectation of the paper in closed form.
        """
        unanimous = math.fsum(p**self.window for p in checked_probabilities(probabilities))
        if unanimous >= 1:
            return float(self.window)
        # 1 - (1 - Q)^M without cancellation, however small Q is
        return self.window * -math.expm1(self.n // self.window * math.log1p(-unanimous)) / unanimous


def checked_probabilities(probabilities: Sequence[float]) -> list[float]:
    """The probabilities greater than 0.

    Raises:
        ValueError: If one is negative, all are 0, or they sum to more than 1.
    """
    if any(p < 0 for p in probabilities) or not 0 < math.fsum(probabilities) <= 1 + 1e-9:
        raise ValueError(f"probabilities={list(probabilities)!r}: give chances of answers, at most 1 together")
    return [p for p in probabilities if p > 0]


def expected_stop(
    probabilities: Sequence[float], n: int, num_parallel: int, stops: Callable[[tuple[int, ...]], bool]
) -> float:
    """Expected number of samples paid for by a search that stops once `stops` holds for the votes.

    Exact over all vote counts where there are at most 20,000 of them, else the mean over 1,000 simulated runs of a
    fixed seed.

    Args:
        probabilities: Chance of each answer; what is missing to 1 abstains.
        n: Most samples.
        num_parallel: Samples are paid for in blocks of so many; the rule is tested after each sample.
        stops: Called with the votes of each answer.
    """
    chances = checked_probabilities(probabilities)
    abstains = max(0.0, 1 - math.fsum(chances))
    stopped: defaultdict[int, float] = defaultdict(float)  # probability of stopping after so many samples
    if math.comb(n + len(chances), len(chances)) <= 20_000:
        going = {(0,) * len(chances): 1.0}  # probability of each vote that has not stopped yet
        for time in range(1, n + 1):
            after: defaultdict[tuple[int, ...], float] = defaultdict(float)
            for votes, mass in going.items():
                after[votes] += mass * abstains
                for i, chance in enumerate(chances):
                    after[(*votes[:i], votes[i] + 1, *votes[i + 1 :])] += mass * chance
            going = {votes: mass for votes, mass in after.items() if time < n and not stops(votes)}
            stopped[time] = math.fsum(after.values()) - math.fsum(going.values())
    else:
        rng, runs, cumulative = random.Random(0), 1000, list(accumulate([*chances, abstains]))
        for _ in range(runs):
            counts = [0] * len(cumulative)
            for time, answer in enumerate(rng.choices(range(len(cumulative)), cum_weights=cumulative, k=n), 1):
                counts[answer] += 1
                if time == n or stops(tuple(counts[:-1])):
                    stopped[time] += 1 / runs
                    break
    return math.fsum(mass * min(n, math.ceil(time / num_parallel) * num_parallel) for time, mass in stopped.items())


@dataclass(frozen=True)
class SamplingPlan:
    """The cost of an adaptive strategy, estimated before it runs.

    Attributes:
        expected_samples: Mean samples of a problem.
        n: Samples of a problem without a stop.

    Example:
        >>> from inferscale.strategies import AdaptiveConsistency, plan_sampling
        >>> plan = plan_sampling(AdaptiveConsistency(n=40), [["4", "4", "4", "7"], ["9", "9", "9", "9"]])
        >>> round(plan.expected_samples, 1), f"{plan.saving:.0%} of {plan.n} samples saved"
        (7.7, '81% of 40 samples saved')
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

    The pilot's frequencies stand for the chances, so a short pilot makes problems look easier than they are: with k
    answers no chance below 1/k is seen.

    Args:
        strategy: The strategy to plan.
        pilot: For each pilot problem the answers sampled, ``None`` where there was none.

    Raises:
        ValueError: If a pilot problem has no sample.

    Example:
        >>> from inferscale.strategies import AdaptiveConsistency, EarlyStoppingConsistency, plan_sampling
        >>> pilot = [["4", "4", "7", "4"], ["9", "9", "9", "9"], ["2", "2", None, "3"]]
        >>> for strategy in (AdaptiveConsistency(n=40), EarlyStoppingConsistency(window=5, n=40)):
        ...     print(type(strategy).__name__, round(plan_sampling(strategy, pilot).expected_samples, 1))
        AdaptiveConsistency 12.3
        EarlyStoppingConsistency 19.8
    """
    if not pilot or not all(pilot):
        raise ValueError("plan_sampling needs at least one sample of each pilot problem")
    total = 0.0
    for answers in pilot:
        chances = [len(group) / len(answers) for group in group_answers(answers)]
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
        n: Most traces in all.
        keep: Share of the warm-up traces above the threshold (0.9, or 0.1 for the paper's aggressive variant).
        window: Tokens in a group (2,048 in the paper, whose traces are long).
        consensus: Share of the votes at which it stops; ``None`` samples all.
        num_parallel: Traces sampled at a time after the warm-up.
        max_depth: Most steps in a path.

    Raises:
        ValueError: If a count is below 1, `keep` not in (0, 1] or `consensus` not in (0.5, 1]; in a search, if the
            generator reports no confidence.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import DeepConf
        >>> from inferscale.testing import ToyGenerator
        >>> strategy = DeepConf(num_warmup=4, n=16, keep=0.5, window=8, consensus=None)
        >>> result = isc.solve("How many?", strategy, ToyGenerator(), thinking=False)
        >>> len(result.trajectories), len(result.root.children)  # the others were abandoned on their way
        (9, 16)
    """

    num_warmup: int = 16
    n: int = 64
    keep: float = 0.9
    window: int = 2048
    consensus: float | None = 0.95
    num_parallel: int = 16
    max_depth: int = 40

    def __post_init__(self) -> None:
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
        threshold = (
            float(np.quantile(lowest, 1 - self.keep)) if lowest else -math.inf
        )  # s: the percentile that `keep` reach
        while drawn < self.n and not (yield from self._agreed(done)):
            block = min(self.num_parallel, self.n - drawn)
            drawn += block
            done += yield from self._trace(root, block, threshold)
        return done or root.leaves()

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

    def _agreed(self, leaves: Sequence[Node]) -> Flow[bool]:
        if self.consensus is None:
            return False
        votes = Counter(found for found in (yield from answer(leaves)) if found is not None)
        return max(votes.values(), default=0) >= self.consensus * votes.total() > 0


@dataclass(frozen=True)
class SpeculativeRejection(SearchStrategy):
    """Best-of-n that stops candidates whose beginnings score low (Sun et al. 2024, arXiv:2410.20290, algorithm 1).

    `n` completions begin side by side, more than there is memory for until all end. Whenever those still open hold
    more than `max_live_tokens` together, their beginnings are scored and the best share `keep` goes on; a completion
    that has ended makes room and stays a candidate. With ``keep=0.5`` the length doubles from one look to the next.
    Report by `BestOfN`.

    Differs from the paper: `n` and the memory, in tokens, are given (there both follow from the accelerator);
    completions are looked at after every step; those that go on are counted, ``ceil(keep * open)``, where the paper
    cuts at a quantile of the scores; one goes on in any case.

    Attributes:
        n: Completions that begin.
        keep: Share of the open ones that goes on (1 - alpha in the paper).
        max_live_tokens: Sampled tokens that the open ones may hold together.
        max_depth: Most steps in a path.

    Raises:
        ValueError: If a count is below 1, or `keep` not in (0, 1).

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import SpeculativeRejection
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> strategy = SpeculativeRejection(n=16, max_live_tokens=64)
        >>> result = isc.Solver(strategy, ToyGenerator(), ToyProcessReward(), isc.BestOfN()).solve("How many?")
        >>> len(result.root.children), len(result.trajectories)  # begun, and run to their ends
        (16, 4)
    """

    n: int = 64
    keep: float = 0.5
    max_live_tokens: int = 1024
    max_depth: int = 40
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_counts(self, "n", "max_live_tokens", "max_depth")
        if not 0 < self.keep < 1:
            raise ValueError(f"SpeculativeRejection(keep={self.keep!r}): give a share in (0, 1)")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The completions that ran to their ends, or the open ones if none did."""
        done, frontier, counts = list[Node](), [root], [self.n]
        tokens = {root: 0}  # sampled along each path
        for _ in range(self.max_depth):
            nodes = yield from expand(frontier, counts)
            for node in nodes:
                if node.step is not None and node.parent is not None:
                    tokens[node] = tokens[node.parent] + node.step.generated_tokens
            done += [node for node in nodes if node.is_finished]
            frontier = [node for node in nodes if not node.is_finished]
            while len(frontier) > 1 and sum(tokens[node] for node in frontier) > self.max_live_tokens:
                yield from score(frontier)
                survivors = min(len(frontier) - 1, math.ceil(self.keep * len(frontier)))
                frontier = sorted(frontier, key=lambda node: -node.score)[:survivors]
            counts = [1] * len(frontier)
            if not frontier:
                break
        return done or frontier or root.leaves()
