"""Theory of voting and sampling: limits, finite samples, rates and coverage.

Theorems 1 and 2 of Wu et al. 2024 (arXiv:2408.00724): with more samples, the accuracy of a (weighted) majority vote
goes to the share of problems on which the right answer has the greatest (weighted) probability, and the distance
shrinks exponentially. They need a unique greatest answer; here ties share the credit. The sign in the paper is
loose: where the greatest answer is wrong, accuracy falls to 0 from above.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inferscale.functional.leading import Poisson, leader_credit

MAX_OUTCOMES = 200_000


def count_outcomes(answers: int, n: int) -> int:
    """Ways in which `n` samples can fall on so many answers."""
    return math.comb(n + answers - 1, n)


def compositions(answers: int, n: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `n` as an ordered sum of `answers` numbers of 0 or more."""
    if answers == 1:
        yield (n,)
        return
    for first in range(n + 1):
        for rest in compositions(answers - 1, n - first):
            yield (first, *rest)


def enumerated_vote(chances: Sequence[float], weights: Sequence[float], gold: int, n: int) -> float:
    """Probability that the answer `gold` has the greatest total weight among `n` samples; ties share the credit.

    Args:
        chances: Probability of each answer, then that of an abstention; they sum to 1.
        weights: Weight of a sample of each answer.
        gold: Index of the right answer.
        n: Samples.

    Raises:
        ValueError: If there are more than `MAX_OUTCOMES` outcomes.
    """
    if count_outcomes(len(chances), n) > MAX_OUTCOMES:
        raise ValueError(
            f"{n} samples of {len(chances) - 1} answers have {count_outcomes(len(chances), n)} outcomes, too many to "
            "try one by one: pass rng=np.random.default_rng(...) to estimate"
        )
    log_chances = [math.log(p) if p > 0 else -math.inf for p in chances]
    terms = []
    for counts in compositions(len(chances), n):
        credit = _credit(counts, weights, gold)
        if credit and all(c == 0 or log_p > -math.inf for c, log_p in zip(counts, log_chances, strict=True)):
            log_ways = math.lgamma(n + 1) - sum(math.lgamma(c + 1) for c in counts)
            log_mass = sum(c * log_p for c, log_p in zip(counts, log_chances, strict=True) if c)
            terms.append(credit * math.exp(log_ways + log_mass))
    return math.fsum(terms)


def _credit(counts: Sequence[int], weights: Sequence[float], gold: int) -> float:
    totals = [count * weight for count, weight in zip(counts, weights, strict=False)]
    top = max(totals)
    if top <= 0 or totals[gold] < top * (1 - 1e-12):
        return 0.0
    return 1 / sum(total >= top * (1 - 1e-12) for total in totals)


Floats = NDArray[np.float64]


def voting_limit(probabilities: ArrayLike, gold: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Accuracy `[...]` of a vote over ever more samples: 1, 0, or the share of the tie.

    Theorems 1 and 2 of Wu et al. 2024 (arXiv:2408.00724), which leave ties out.

    Args:
        probabilities: `[..., answers]` probability of each answer; what is missing to 1 abstains.
        gold: `[...]` index of the right answer, -1 if it never occurs.
        weights: `[..., answers]` mean score of each answer's samples, for the weighted vote (Theorem 2).

    Raises:
        ValueError: If a probability is negative or a row sums to more than 1, or weights or gold do not fit.

    Example:
        >>> from inferscale.scaling import voting_limit
        >>> chances = [[0.4, 0.35, 0.25], [0.3, 0.5, 0.2]]  # of three answers to two problems; the first is right
        >>> voting_limit(chances, [0, 0]), voting_limit(chances, [0, 0], weights=[[0.9, 0.5, 0.5], [0.9, 0.5, 0.5]])
        (array([1., 0.]), array([1., 1.]))
    """
    mass = _checked(probabilities)
    if weights is not None:
        mass = mass * _checked_weights(weights, mass)
    leaders = mass >= mass.max(axis=-1, keepdims=True) * (1 - 1e-12)
    leaders &= mass > 0
    index = np.asarray(gold, dtype=np.int64)
    if ((index < -1) | (index >= mass.shape[-1])).any():
        raise ValueError(f"gold={gold!r:.80}: each is the index of one of {mass.shape[-1]} answers, or -1")
    hit = np.take_along_axis(leaders, np.maximum(index, 0)[..., None], axis=-1)[..., 0] & (index >= 0)
    return np.asarray(hit / np.maximum(leaders.sum(axis=-1), 1), dtype=np.float64)


def majority_accuracy(probabilities: ArrayLike, gold: int, n: int) -> float:
    """Probability that a majority vote over `n` samples gives the answer `gold`; ties share the credit.

    By the multinomial distribution, right to about 1e-12 (so that a smaller probability is rounding), for thousands of
    samples too.

    Args:
        probabilities: `[answers]` probability of each answer; what is missing to 1 abstains.
        gold: Index of the right answer, -1 if it never occurs.
        n: Samples.

    Raises:
        ValueError: If `n` is less than 1, the probabilities are no distribution, or there is no answer `gold`.

    Example:
        >>> from inferscale.scaling import majority_accuracy
        >>> [round(majority_accuracy([0.4, 0.35, 0.25], gold=0, n=n), 3) for n in (1, 16, 256, 4096)]
        [0.4, 0.524, 0.822, 1.0]
    """
    p = _one_row(probabilities)
    if not _occurs(p, gold, n):
        return 0.0
    # Answers that are as likely as one another are one kind.
    rivals, repeats = np.unique(np.delete(p, gold)[np.delete(p, gold) > 0], return_counts=True)
    sizes, credit_of = [n * float(q) for q in (p[gold], *rivals)], [1.0] + [0.0] * len(rivals)
    abstain = max(0.0, 1.0 - float(p.sum()))
    return leader_credit(Poisson(), sizes, [1, *repeats.tolist()], credit_of, n * abstain, n)


def weighted_accuracy(
    probabilities: ArrayLike,
    weights: ArrayLike,
    gold: int,
    n: int,
    rng: np.random.Generator | None = None,
    trials: int = 10_000,
) -> tuple[float, float]:
    """Accuracy of a weighted vote over `n` samples, and its standard error (0 when it is exact).

    Every sample of answer `a` weighs ``weights[a]``, the mean score of its samples (Wu et al. 2024, arXiv:2408.00724,
    Theorem 2); ties share the credit.

    Args:
        probabilities: `[answers]` probability of each answer; what is missing to 1 abstains.
        weights: `[answers]`, 0 or more.
        gold: Index of the right answer, -1 if it never occurs.
        n: Samples.
        rng: Without it every outcome of the multinomial distribution is tried; with it, `trials` are drawn.
        trials: Monte Carlo draws.

    Raises:
        ValueError: If `n` is less than 1, there is no answer `gold`, the weights do not fit, there are too many
            outcomes to try, or fewer than two trials.

    Example:
        >>> from inferscale.scaling import weighted_accuracy
        >>> accuracy, error = weighted_accuracy([0.3, 0.5, 0.2], weights=[0.9, 0.4, 0.5], gold=0, n=15)
        >>> round(accuracy, 3), error
        (0.65, 0.0)
    """
    p = _one_row(probabilities)
    values = _checked_weights(weights, p)
    if not _occurs(p, gold, n):
        return 0.0, 0.0
    if trials < 2:
        raise ValueError(f"trials={trials}: a standard error takes at least two draws")
    chances = np.append(p, max(0.0, 1.0 - float(p.sum())))
    if (total := float(chances.sum())) > 1 + 1e-12:
        chances /= total  # within rounding of 1, which numpy refuses
    if rng is None:
        return enumerated_vote(chances.tolist(), values.tolist(), gold, n), 0.0
    mass = rng.multinomial(n, chances, size=trials)[:, : len(p)] * values
    leaders = (mass >= mass.max(axis=1, keepdims=True) * (1 - 1e-12)) & (mass > 0)
    credit = np.where(leaders[:, gold], 1.0 / np.maximum(leaders.sum(axis=1), 1), 0.0)
    return float(credit.mean()), float(credit.std(ddof=1) / math.sqrt(trials))


def error_bound(probabilities: ArrayLike, n: int, weights: ArrayLike | None = None) -> float:
    """Bound on ``|accuracy after n samples - limit|``: ``answers * exp(-n * gap**2 / (2 * R**2))``.

    `gap` is the distance of the two greatest (weighted) probabilities and R the greatest weight (1 without): the
    union bound and Hoeffding's inequality in the proof of Theorem 1 (Wu et al. 2024, arXiv:2408.00724). At most 1,
    which says nothing; that is its value at a tie, for any n.

    Args:
        probabilities: `[answers]` probability of each answer; what is missing to 1 abstains.
        n: Samples.
        weights: `[answers]` mean score of each answer's samples, for the weighted vote (Theorem 2).

    Raises:
        ValueError: If `n` is less than 1, the probabilities are no distribution, or the weights do not fit.

    Example:
        >>> from inferscale.scaling import error_bound
        >>> [round(error_bound([0.6, 0.3], n), 4) for n in (10, 100, 1000)]
        [1.0, 0.0222, 0.0]
    """
    mass = _one_row(probabilities)
    _check_n(n)
    scale = 1.0
    if weights is not None:
        values = _checked_weights(weights, mass)
        mass, scale = mass * values, float(values.max()) or 1.0
    ordered = np.sort(mass)[::-1]
    gap = float(ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0))
    return min(1.0, len(mass) * math.exp(-n * gap**2 / (2 * scale**2)))


def cramer_rate(first: float, second: float) -> float:
    """Factor by which the error falls with each further sample: ``1 - (sqrt(first) - sqrt(second))**2``.

    The exact exponential rate of a vote between two leading answers (Cramér), where `error_bound` is only a bound.

    Args:
        first: Probability of one answer.
        second: Probability of the other.

    Raises:
        ValueError: If the two are no probabilities of two answers.

    Example:
        >>> from inferscale.scaling import cramer_rate
        >>> rate = cramer_rate(0.6, 0.3)
        >>> round(rate, 3), round(rate**100, 6)  # the error after 100 samples, up to a factor
        (0.949, 0.00507)
    """
    _one_row([first, second])
    return 1.0 - (math.sqrt(first) - math.sqrt(second)) ** 2


def _checked(probabilities: ArrayLike) -> Floats:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim == 0 or p.shape[-1] == 0 or not ((p >= 0).all() and (p.sum(axis=-1) <= 1 + 1e-9).all()):
        raise ValueError(
            f"probabilities must be at least 0 and sum to at most 1 in each row, got {probabilities!r:.200}"
        )
    return p


def _one_row(probabilities: ArrayLike) -> Floats:
    p = _checked(probabilities)
    if p.ndim != 1:
        raise ValueError(f"probabilities of one problem are a row of numbers, got shape {p.shape}")
    return p


def _checked_weights(weights: ArrayLike, p: Floats) -> Floats:
    values = np.asarray(weights, dtype=np.float64)
    if values.shape[-1:] != p.shape[-1:] or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            f"weights must be finite and at least 0, one for each of {p.shape[-1]} answers, got {weights!r:.200}"
        )
    return values


def _check_n(n: int) -> None:
    if n < 1:
        raise ValueError(f"n={n}: a vote needs at least one sample")


def _occurs(p: Floats, gold: int, n: int) -> bool:
    """True if the right answer is among those that samples may have."""
    _check_n(n)
    if not -1 <= gold < len(p):
        raise ValueError(f"gold={gold}: give the index of one of {len(p)} answers, or -1 if the right one never occurs")
    return gold >= 0


def estimate_voting_limit(
    answer_ids: Sequence[Sequence[int]],
    gold_ids: Sequence[int],
    rng: np.random.Generator,
    scores: Sequence[Sequence[float]] | None = None,
    resamples: int = 1000,
    confidence_level: float = 0.95,
) -> tuple[float, float, float]:
    """The limit of voting over a data set, estimated from samples, with a bootstrap interval.

    Args:
        answer_ids: For each problem the answers of its samples, -1 for an abstention.
        gold_ids: For each problem the right answer.
        rng: Source of the bootstrap.
        scores: For each sample its score, for the weighted vote.
        resamples: Bootstrap draws, over problems and over each problem's samples.
        confidence_level: Of the interval.

    Returns:
        Estimate, lower and upper end. The estimate is the plain vote over all samples: biased where the leading
        answers of a problem are close, which the interval reflects only in part.

    Raises:
        ValueError: If there is no problem, one has no samples, or scores do not fit.

    Example:
        >>> import numpy as np
        >>> from inferscale.scaling import estimate_voting_limit
        >>> answers = [[4, 4, 7, 4], [3, 1, 1, -1], [5, 5, 5, 5]]  # of three problems, four samples each
        >>> estimate, low, high = estimate_voting_limit(answers, [4, 3, 5], np.random.default_rng(0))
        >>> print(f"{estimate:.2f} ({low:.2f} to {high:.2f})")
        0.67 (0.17 to 1.00)
    """
    if not len(answer_ids) or not all(map(len, answer_ids)):
        raise ValueError("the limit of voting is estimated from problems that have samples: one has none")
    ids = [np.asarray(row, dtype=np.int64) for row in answer_ids]
    weights = [np.ones(len(row)) for row in ids] if scores is None else [_weights(row) for row in scores]
    if [len(row) for row in weights] != [len(row) for row in ids]:
        raise ValueError("give one score for each sample")
    estimate = float(np.mean([_vote(a, w, g) for a, w, g in zip(ids, weights, gold_ids, strict=True)]))
    draws = []
    for _ in range(resamples):
        chosen = rng.integers(len(ids), size=len(ids))
        draws.append(np.mean([_resampled_vote(ids[i], weights[i], gold_ids[i], rng) for i in chosen]))
    low, high = np.quantile(draws, [(1 - confidence_level) / 2, (1 + confidence_level) / 2])
    return estimate, float(low), float(high)


def _weights(scores: Sequence[float]) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError("scores of a weighted vote must be finite and at least 0: rescale them")
    return values


def _vote(ids: NDArray[np.int64], weights: Floats, gold: int) -> float:
    valid = ids >= 0
    if not valid.any():
        return 0.0
    names, inverse = np.unique(ids[valid], return_inverse=True)
    mass = np.bincount(inverse, weights=weights[valid])
    leaders = names[mass >= mass.max() * (1 - 1e-12)]
    return float(gold in leaders) / len(leaders)


def _resampled_vote(ids: NDArray[np.int64], weights: Floats, gold: int, rng: np.random.Generator) -> float:
    picked = rng.integers(len(ids), size=len(ids))
    return _vote(ids[picked], weights[picked], gold)


@dataclass(frozen=True)
class CoverageFit:
    """The exponentiated power law ``exp(a * k**b)`` of Brown et al. 2024 (Large Language Monkeys, arXiv:2407.21787).

    Attributes:
        a: Less than 0; ``exp(a)`` is the coverage of one sample.
        b: Less than 0; the nearer to 0, the slower coverage rises.
        mean_absolute_error: Over the fitted points.
        max_absolute_error: Over the fitted points.
        left_out: Points with coverage 0 or 1, which the law cannot meet.

    Example:
        >>> from inferscale.scaling import CoverageFit
        >>> law = CoverageFit(a=-1.6, b=-0.5, mean_absolute_error=0.01, max_absolute_error=0.02, left_out=0)
        >>> law([1, 10, 100]).round(3)  # coverage at so many samples
        array([0.202, 0.603, 0.852])
    """

    a: float
    b: float
    mean_absolute_error: float
    max_absolute_error: float
    left_out: int

    def __call__(self, k: ArrayLike) -> NDArray[np.float64]:
        """Coverage at `k` samples."""
        return np.asarray(np.exp(self.a * np.asarray(k, dtype=np.float64) ** self.b))


def fit_coverage(k: ArrayLike, coverage: ArrayLike, method: Literal["log", "curve"] = "log") -> CoverageFit:
    """The exponentiated power law of `CoverageFit`, fitted to points of coverage.

    Args:
        k: `[points]` numbers of samples.
        coverage: `[points]` pass@k.
        method: ``"log"``: least squares of log(-log c) on log k. ``"curve"``: least squares of c itself, as the
            paper does.

    Raises:
        ValueError: If a point is none, fewer than two k have a coverage strictly between 0 and 1, or the method is
            unknown.

    Example:
        >>> from inferscale.scaling import fit_coverage
        >>> law = fit_coverage([1, 4, 16, 64], [0.22, 0.45, 0.67, 0.82])
        >>> print(f"exp({law.a:.2f} k^{law.b:.2f}): {float(law(1000)):.3f} after 1000 samples")
        exp(-1.54 k^-0.49): 0.949 after 1000 samples
    """
    if method not in ("log", "curve"):
        raise ValueError(f"method={method!r}: choose 'log' or 'curve'")
    x, y = np.asarray(k, dtype=np.float64), np.asarray(coverage, dtype=np.float64)
    if x.shape != y.shape or not ((x > 0) & (x < np.inf) & (y >= 0) & (y <= 1)).all():
        raise ValueError("fit_coverage needs for each k, a number above 0, one coverage between 0 and 1")
    inside = (y > 0) & (y < 1)
    x, y = x[inside], y[inside]
    different = len(set(x.tolist()))
    if different < 2:
        raise ValueError(f"fit_coverage needs two points strictly between 0 and 1, of different k; got {different}")
    slope, intercept = np.polyfit(np.log(x), np.log(-np.log(y)), 1)
    a, b = -float(np.exp(intercept)), float(slope)
    if method == "curve" and len(x) > 2:  # two points are met exactly already
        from scipy.optimize import curve_fit

        (a, b), _ = curve_fit(lambda n, a, b: np.exp(a * n**b), x, y, p0=(a, b))
    error = np.abs(np.exp(a * x**b) - y)
    return CoverageFit(float(a), float(b), float(error.mean()), float(error.max()), int((~inside).sum()))


def beta_coverage(alpha: float, beta: float, k: ArrayLike) -> NDArray[np.float64]:
    """pass@k where each problem's chance of success is drawn from Beta(alpha, beta).

    ``1 - B(alpha, beta + k) / B(alpha, beta)``: the failure of each problem falls exponentially, and their mean as
    the power law ``k**-alpha`` (Schaeffer et al. 2025, arXiv:2502.17578).

    Args:
        alpha: Above 0; the less, the more problems are almost never solved.
        beta: Above 0; the less, the more problems are almost always solved.
        k: `[...]` numbers of samples.

    Returns:
        `[...]` in float64.

    Raises:
        ValueError: If alpha or beta is not above 0, or a k is negative.

    Example:
        >>> from inferscale.scaling import beta_coverage
        >>> beta_coverage(0.5, 2.0, [1, 10, 100]).round(3)  # many problems are almost never solved: it rises slowly
        array([0.2  , 0.612, 0.868])
    """
    from scipy.special import betaln

    n = np.asarray(k, dtype=np.float64)
    if not (alpha > 0 and beta > 0 and (n >= 0).all()):
        raise ValueError(f"alpha={alpha}, beta={beta}: both must be above 0, and k={k!r:.80} not negative")
    return np.asarray(-np.expm1(betaln(alpha, beta + n) - betaln(alpha, beta)))


def two_class_accuracy(calls: int, easy_share: float, easy: float, hard: float) -> float:
    """Accuracy of a vote of an odd number of calls on a mix of easy and hard items with binary answers.

    ``a * V(p1, K) + (1 - a) * V(p2, K)``, V the chance that more than half of K independent calls are right. On such a
    mix more votes are not always better (Chen et al. 2024, arXiv:2403.02419).

    Args:
        calls: K, odd.
        easy_share: Share a of easy items.
        easy: Chance p1 that one call is right on an easy item.
        hard: Chance p2 that it is on a hard one.

    Raises:
        ValueError: If `calls` is even or less than 1, or the others are not between 0 and 1.

    Example:
        >>> from inferscale.scaling import two_class_accuracy
        >>> [round(two_class_accuracy(calls, 0.5, 0.9, 0.45), 3) for calls in (1, 3, 101)]  # it rises and falls
        [0.675, 0.699, 0.578]
    """
    if calls < 1 or calls % 2 == 0:
        raise ValueError(f"calls={calls}: the two-class model votes over an odd number of calls")
    if not all(0 <= value <= 1 for value in (easy_share, easy, hard)):
        raise ValueError(f"easy_share={easy_share}, easy={easy}, hard={hard}: give numbers between 0 and 1")
    from scipy.special import betainc

    half = (calls + 1) / 2
    return float(easy_share * betainc(half, half, easy) + (1 - easy_share) * betainc(half, half, hard))


def optimal_calls(easy_share: float, easy: float, hard: float) -> tuple[float, int]:
    """Number of calls at which the two-class accuracy peaks: the real-valued formula, and the best odd number of calls.

    For ``1 > easy > 1/2 > hard``, ``easy + hard > 1`` and items of both kinds (Chen et al. 2024, arXiv:2403.02419):
    ``2 ln[a (2 p1 - 1) / ((1 - a) (1 - 2 p2))] / ln[p2 (1 - p2) / (p1 (1 - p1))] - 1``.

    Args:
        easy_share: As in `two_class_accuracy`.
        easy: As in `two_class_accuracy`.
        hard: As in `two_class_accuracy`.

    Raises:
        ValueError: If there is no inner maximum.

    Example:
        >>> from inferscale.scaling import optimal_calls, two_class_accuracy
        >>> peak, best = optimal_calls(easy_share=0.5, easy=0.9, hard=0.45)
        >>> round(peak, 2), best
        (3.11, 5)
        >>> [round(two_class_accuracy(calls, 0.5, 0.9, 0.45), 4) for calls in (best - 2, best, best + 2)]
        [0.6986, 0.6992, 0.6945]
    """
    if not (1 > easy > 0.5 > hard and easy + hard > 1 and 0 < easy_share < 1):
        raise ValueError(
            f"easy_share={easy_share}, easy={easy}, hard={hard}: an inner maximum needs 1 > easy > 1/2 > hard, "
            "easy + hard > 1 and a share between 0 and 1; otherwise one call or ever more calls are best"
        )
    ratio = easy_share * (2 * easy - 1) / ((1 - easy_share) * (1 - 2 * hard))
    peak = 2 * math.log(ratio) / math.log(hard * (1 - hard) / (easy * (1 - easy))) - 1
    best = max(1, math.ceil(peak))
    return peak, best if best % 2 else best + 1
