"""Inference scaling laws: the theory of voting, coverage, and curves of accuracy against compute.

Example:
    >>> from inferscale.scaling import majority_accuracy
    >>> [round(float(majority_accuracy([0.5, 0.3, 0.2], 0, n)), 2) for n in (1, 5, 25)]  # the first answer is right
    [0.5, 0.61, 0.86]
"""

from .comparing import PairedDifference, difficulty_bins, mcnemar_p_value, paired_difference, split_by
from .curves import (
    VOTES,
    CostName,
    CurvePoint,
    SizeFit,
    Vote,
    compute_optimal,
    cost_ratio,
    curve_of_results,
    fit_optimal_size,
    fit_size,
    pareto_frontier,
    scaling_curve,
    short_name,
)
from .planning import Choice, Configuration, Plan, Tried, candidates, plan
from .predicting import DEVICES, Device, Prediction, device, predict_cost
from .race import Measured, Race, Runner, Standing, Winner
from .theory import (
    CoverageFit,
    beta_coverage,
    cramer_rate,
    error_bound,
    estimate_voting_limit,
    fit_coverage,
    majority_accuracy,
    optimal_calls,
    two_class_accuracy,
    voting_limit,
    weighted_accuracy,
)

__all__ = [
    "Choice",
    "Configuration",
    "CostName",
    "CoverageFit",
    "CurvePoint",
    "DEVICES",
    "Device",
    "Measured",
    "PairedDifference",
    "Plan",
    "Prediction",
    "Race",
    "Runner",
    "SizeFit",
    "Standing",
    "Tried",
    "VOTES",
    "Vote",
    "Winner",
    "beta_coverage",
    "candidates",
    "compute_optimal",
    "cost_ratio",
    "cramer_rate",
    "curve_of_results",
    "device",
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
    "plan",
    "predict_cost",
    "scaling_curve",
    "short_name",
    "split_by",
    "two_class_accuracy",
    "voting_limit",
    "weighted_accuracy",
]
