"""Inference scaling laws: the theory of voting, coverage, and curves of accuracy against compute."""

from .coverage import CoverageFit, beta_coverage, fit_coverage
from .theory import (
    cramer_rate,
    error_bound,
    estimate_voting_limit,
    majority_accuracy,
    optimal_calls,
    two_class_accuracy,
    voting_limit,
    weighted_accuracy,
)

__all__ = [
    "CoverageFit",
    "beta_coverage",
    "cramer_rate",
    "error_bound",
    "estimate_voting_limit",
    "fit_coverage",
    "majority_accuracy",
    "optimal_calls",
    "two_class_accuracy",
    "voting_limit",
    "weighted_accuracy",
]
