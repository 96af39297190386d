"""One budget for many problems: which of them gets the next sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, pvariance
from typing import ClassVar

from inferscale.identity import Identified

from .checks import check_counts, check_positive
from .sampling import dirichlet_probability

_NORMAL = NormalDist()
_LIKE_ALL = 2  # scores that a problem is taken to have like those of all


@dataclass(frozen=True)
class Drawn:
    """The state of one problem's search, as an allocation sees it.

    Attributes:
        answers: Of its finished leaves, in order; equal ones as one text, ``None`` abstains.
        scores: Of those that have a score.
        samples: Samples drawn.

    Example:
        >>> from inferscale.strategies import AdaptiveVote, Drawn
        >>> open_vote, settled = Drawn(("4", "7", None, "4"), samples=4), Drawn(("4",) * 8, samples=8)
        >>> open_vote.votes
        [2, 1]
        >>> AdaptiveVote().settled(open_vote), AdaptiveVote().settled(settled)
        (False, True)
    """

    answers: tuple[str | None, ...] = ()
    scores: tuple[float, ...] = ()
    samples: int = 0

    @property
    def votes(self) -> list[int]:
        """Votes of each answer, the leader's first."""
        return sorted(Counter(answer for answer in self.answers if answer is not None).values(), reverse=True)


@dataclass(frozen=True, kw_only=True)
class Allocation(Identified, ABC):
    """A rule for the pool of `solve_batch`: what one more sample is worth to each problem.

    Every problem first gets `min_samples`. Then, in rounds, those to which a sample is worth most get one each, until
    the pool is spent or nobody gains. Ties go to the problem with fewer samples, then to the earlier one.

    Attributes:
        min_samples: Samples that every problem gets.
        share: Share of the open problems that get a sample in one round: a small one follows the rule more closely, a
            great one makes larger batches.
        needs_scores: True if samples must be scored as they come.

    Raises:
        ValueError: If `min_samples` is below 1, or `share` not in (0, 1].

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Allocation
        >>> class MostDisagreement(Allocation):
        ...     def values(self, problems):
        ...         return [len(drawn.votes) / drawn.samples for drawn in problems]
        >>> prompts = list(isc.testing.PROMPTS)
        >>> generator, pool = isc.testing.ToyGenerator(), isc.Budget(calls=30)
        >>> results = isc.solve_batch(
        ...     prompts, isc.RepeatedSampling(16), generator, pool=pool, allocation=MostDisagreement()
        ... )
        >>> [len(result.trajectories) for result in results]
        [12, 12, 6]
    """

    min_samples: int = 2
    share: float = 0.25
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_counts(self, "min_samples")
        if not 0 < self.share <= 1:
            raise ValueError(f"{type(self).__name__}(share={self.share!r}): give a share in (0, 1]")

    @abstractmethod
    def values(self, problems: Sequence[Drawn]) -> list[float]:
        """Return what one more sample is worth to each problem, in any unit; 0 or less gets none."""

    def chosen(self, problems: Sequence[Drawn]) -> list[int]:
        """Return the places of the problems that get a sample now, the first first; ``[]`` ends it."""
        poor = [i for i, drawn in enumerate(problems) if drawn.samples < self.min_samples]
        if poor:
            return sorted(poor, key=lambda i: problems[i].samples)
        values = self.values(problems)
        gaining = [i for i, value in enumerate(values) if value > 0]
        gaining.sort(key=lambda i: (-values[i], problems[i].samples))
        return gaining[: math.ceil(self.share * len(problems))]


@dataclass(frozen=True)
class Uniform(Allocation):
    """The same number of samples for every problem of a pool; what one leaves over goes to the others.

    Attributes:
        min_samples: As in `Allocation`.
        share: As in `Allocation`.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Uniform
        >>> from inferscale.testing import ToyGenerator
        >>> solver = isc.Solver(isc.RepeatedSampling(32), ToyGenerator())
        >>> results = solver.solve_batch(list(isc.testing.PROMPTS), pool=isc.Budget(calls=30), allocation=Uniform())
        >>> [len(result.trajectories) for result in results]
        [10, 10, 10]
    """

    def values(self, problems: Sequence[Drawn]) -> list[float]:
        """Problems with fewer samples first."""
        return [1 / (1 + drawn.samples) for drawn in problems]


@dataclass(frozen=True)
class ByDifficulty(Allocation):
    """Samples in proportion to how hard a problem is, by the disagreement of its first `min_samples` answers.

    With n probes and v votes for the leader the difficulty is ``1 - v / (n + 1)``: never 0, so that no problem is left
    out for good. Proportion by the greatest quotient, ``difficulty / (samples + 1)`` (D'Hondt).

    Attributes:
        min_samples: Samples that every problem gets, and that estimate its difficulty.
        share: As in `Allocation`.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import ByDifficulty
        >>> prompts, generator = list(isc.testing.PROMPTS), isc.testing.ToyGenerator(num_answers=3)
        >>> solver = isc.Solver(isc.RepeatedSampling(32), generator)
        >>> results = solver.solve_batch(prompts, pool=isc.Budget(calls=48), allocation=ByDifficulty())
        >>> [len(result.trajectories) for result in results]
        [14, 14, 20]
    """

    min_samples: int = 4

    def values(self, problems: Sequence[Drawn]) -> list[float]:
        """The quotients."""
        probes = [Drawn(drawn.answers[: self.min_samples]) for drawn in problems]
        leaders = [(probe.votes or [0])[0] for probe in probes]
        return [
            (1 - leader / (self.min_samples + 1)) / (drawn.samples + 1)
            for leader, drawn in zip(leaders, problems, strict=True)
        ]


@dataclass(frozen=True)
class AdaptiveVote(Allocation):
    """Samples for every problem whose vote is open (Best-of-infinity; Komiyama et al. 2025, arXiv:2509.21091).

    A problem is settled when the evidence that its leading answer is the one that infinitely many samples would elect
    reaches a Bayes factor of `bayes_factor`. What it leaves over goes to those that are open, evenly.

    Differs from the paper: the posterior is that of five answers under a uniform Dirichlet prior
    (`dirichlet_probability`, unseen answers with no vote), for its prior over any number of answers; and the samples
    saved go to other problems.

    Attributes:
        bayes_factor: Posterior odds over prior odds at which a problem is settled.
        min_samples: As in `Allocation`.
        share: As in `Allocation`.

    Raises:
        ValueError: If `bayes_factor` is not above 0.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import AdaptiveVote
        >>> from inferscale.testing import ToyGenerator
        >>> solver, pool = isc.Solver(isc.RepeatedSampling(32), ToyGenerator(num_answers=2)), isc.Budget(calls=60)
        >>> results = solver.solve_batch(list(isc.testing.PROMPTS), pool=pool, allocation=AdaptiveVote())
        >>> [isc.answer_weights(result.trajectories) for result in results]
        [{'0': 12.0, '1': 15.0}, {'0': 12.0, '1': 15.0}, {'1': 6.0}]
    """

    bayes_factor: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "bayes_factor")

    def values(self, problems: Sequence[Drawn]) -> list[float]:
        """Open problems with fewer samples first; 0 for those that are settled."""
        return [0.0 if self.settled(drawn) else 1 / (1 + drawn.samples) for drawn in problems]

    def settled(self, drawn: Drawn) -> bool:
        """True if the Bayes factor is reached."""
        votes = (*drawn.votes[:5], *[0] * 5)[:5]
        posterior = dirichlet_probability(votes)
        # prior odds of any one of five answers: 1/5 to 4/5
        return 4 * posterior >= self.bayes_factor * (1 - posterior)


@dataclass(frozen=True)
class Bandit(Allocation):
    """Samples for problems that are not solved but can be (Zuo and Zhu 2025, arXiv:2506.12721).

    Problems are arms. One that has a sample with a score of `threshold` is solved and eliminated; among the others the
    arm with the greatest upper confidence bound of its mean score, ``mean + exploration sqrt(ln N / n)``, is sampled:
    what is hard gets more, and what seems hopeless less. Report the best of n.

    Differs from the paper: its text was at hand in its summary only; the bound is UCB1's.

    Attributes:
        threshold: Score of a solution that is taken for right.
        exploration: Weight of the bound's width, in units of the score.
        min_samples: As in `Allocation`.
        share: As in `Allocation`.

    Raises:
        ValueError: If `exploration` is not above 0, or infinite.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Bandit
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> solver = isc.Solver(isc.RepeatedSampling(32), ToyGenerator(), ToyProcessReward(), isc.BestOfN())
        >>> prompts, pool = list(isc.testing.PROMPTS), isc.Budget(calls=30)
        >>> results = solver.solve_batch(prompts, pool=pool, allocation=Bandit(threshold=0.8))
        >>> [(len(result.trajectories), round(result.selected.score, 2)) for result in results]
        [(4, 0.99), (14, 0.84), (2, 0.99)]
    """

    threshold: float = 0.9
    exploration: float = 0.5
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "exploration", finite=True)

    def values(self, problems: Sequence[Drawn]) -> list[float]:
        """Upper confidence bounds above the least score seen; 0 for those that are solved."""
        log_total = math.log(max(2, sum(drawn.samples for drawn in problems)))
        least = min((min(drawn.scores) for drawn in problems if drawn.scores), default=0.0)
        bounds = [
            fmean(drawn.scores or [least]) - least + self.exploration * math.sqrt(log_total / max(1, drawn.samples))
            for drawn in problems
        ]
        solved = [bool(drawn.scores) and max(drawn.scores) >= self.threshold for drawn in problems]
        return [0.0 if done else bound for done, bound in zip(solved, bounds, strict=True)]


@dataclass(frozen=True)
class Pandora(Allocation):
    """Samples where the best score can be expected to rise by more than a sample is worth (arXiv:2510.01394).

    Weitzman's rule for boxes that cost c to open: the reservation value r solves ``E[(X - r)^+] = c``, and opening ends
    once the best score seen is r or more, which is when ``E[(X - best)^+] <= c``. The box with the greatest expected
    rise is opened next. X is normal, with the mean and variance of the problem's scores and of two more that are like
    those of all problems; the mean is taken `optimism` standard errors higher, so that unlucky beginnings are mended
    (an upper confidence bound); and no score is expected above the best of all problems. Report the best of n.

    Differs from the paper: the distribution and how it is fitted; rewards are not rescaled between prompts.

    Attributes:
        cost: Price of a sample, in units of the score.
        optimism: Standard errors that the mean is raised by.
        min_samples: As in `Allocation`.
        share: As in `Allocation`.

    Raises:
        ValueError: If `cost` is not above 0, `optimism` below 0, one of them infinite, or `min_samples` below 2.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Pandora
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> solver = isc.Solver(isc.RepeatedSampling(32), ToyGenerator(), ToyProcessReward(), isc.BestOfN())
        >>> prompts, pool = list(isc.testing.PROMPTS), isc.Budget(calls=90)
        >>> results = solver.solve_batch(prompts, pool=pool, allocation=Pandora(cost=0.02))
        >>> [(len(result.trajectories), round(result.selected.score, 2)) for result in results]
        [(4, 0.99), (11, 0.54), (2, 0.99)]
    """

    cost: float = 0.01
    optimism: float = 1.0
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "min_samples", minimum=2)
        check_positive(self, "cost", finite=True)
        if not 0 <= self.optimism < math.inf:
            raise ValueError(f"Pandora(optimism={self.optimism!r}): give a finite number, 0 or more")

    def values(self, problems: Sequence[Drawn]) -> list[float]:
        """Expected rise of the best score, less the price."""
        every = [score for drawn in problems for score in drawn.scores]
        if not every:
            return [1.0] * len(problems)  # nothing is known; the order is that of the samples
        mean, variance, top = fmean(every), pvariance(every), max(every)
        return [self._rise(drawn.scores, mean, variance, top) - self.cost for drawn in problems]

    def _rise(self, scores: Sequence[float], mean: float, variance: float, top: float) -> float:
        n = len(scores) + _LIKE_ALL
        own = (math.fsum(scores) + _LIKE_ALL * mean) / n
        squares = math.fsum((score - own) ** 2 for score in scores)
        deviation = math.sqrt((squares + _LIKE_ALL * (variance + (mean - own) ** 2)) / n)
        raised = own + self.optimism * deviation / math.sqrt(n)
        # E[(min(X, top) - best)^+]
        return expected_rise(raised, deviation, max(scores, default=own)) - expected_rise(raised, deviation, top)


def expected_rise(mean: float, deviation: float, best: float) -> float:
    """``E[(X - best)^+]`` for ``X ~ N(mean, s^2)``: ``s (phi(z) + z Phi(z))`` with ``z = (mean - best) / s``."""
    if deviation == 0:
        return max(mean - best, 0.0)
    z = (mean - best) / deviation
    return deviation * (_NORMAL.pdf(z) + z * _NORMAL.cdf(z))


__all__ = ["AdaptiveVote", "Allocation", "Bandit", "ByDifficulty", "Drawn", "Pandora", "Uniform", "expected_rise"]
