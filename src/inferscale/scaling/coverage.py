"""How coverage (pass@k) grows with the number of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class CoverageFit:
    """The exponentiated power law ``exp(a * k**b)`` of Brown et al. 2024 (Large Language Monkeys, arXiv:2407.21787).

    Attributes:
        a: Less than 0.
        b: Less than 0.
        mean_absolute_error: Over the fitted points.
        max_absolute_error: Over the fitted points.
        left_out: Points with coverage 0 or 1, which the law cannot meet.
    """

    a: float
    b: float
    mean_absolute_error: float
    max_absolute_error: float
    left_out: int

    def __call__(self, k: ArrayLike) -> NDArray[np.float64]:
        """Coverage at `k` samples."""
        return np.asarray(np.exp(self.a * np.asarray(k, dtype=np.float64) ** self.b))


def fit_coverage(k: ArrayLike, coverage: ArrayLike, method: str = "log") -> CoverageFit:
    """The law fitted to points.

    Args:
        k: `[points]` numbers of samples.
        coverage: `[points]` pass@k.
        method: ``"log"``: least squares of log(-log c) on log k. ``"curve"``: least squares of c itself, as the
            paper does.

    Raises:
        ValueError: If a point is none, fewer than two k have a coverage strictly between 0 and 1, or the method is
            unknown.
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
    """
    from scipy.special import betaln

    n = np.asarray(k, dtype=np.float64)
    return np.asarray(-np.expm1(betaln(alpha, beta + n) - betaln(alpha, beta)))
