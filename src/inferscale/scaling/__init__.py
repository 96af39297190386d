"""Inference scaling laws: the theory of voting, coverage, and curves of accuracy against compute."""

from .calls import optimal_calls, two_class_accuracy
from .comparing import PairedDifference, mcnemar_p_value, paired_difference
from .coverage import CoverageFit, beta_coverage, fit_coverage
from .curves import curve_of_results, scaling_curve
from .limits import estimate_voting_limit
from .names import short_name
from .pareto import CostName, SizeFit, compute_optimal, cost_ratio, fit_optimal_size, fit_size, pareto_frontier
from .points import VOTES, CurvePoint, Vote
from .splitting import difficulty_bins, split_by
from .theory import cramer_rate, error_bound, majority_accuracy, voting_limit, weighted_accuracy

__all__ = [
    "VOTES",
    "CostName",
    "CoverageFit",
    "CurvePoint",
    "PairedDifference",
    "SizeFit",
    "Vote",
    "beta_coverage",
    "compute_optimal",
    "cost_ratio",
    "cramer_rate",
    "curve_of_results",
    "difficulty_bins",
    "error_bound",
    "estimate_voting_limit",
    "fit_coverage",
    "fit_optimal_size",
    "fit_size",
    "majority_accuracy",
    "mcnemar_p_value",
    "optimal_calls",
    "paired_difference",
    "pareto_frontier",
    "scaling_curve",
    "short_name",
    "split_by",
    "two_class_accuracy",
    "voting_limit",
    "weighted_accuracy",
]
