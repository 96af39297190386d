"""Search strategies: frozen dataclasses of hyperparameters with one `search` each."""

from .abmcts import ABMCTS
from .adaptive import AdaptiveConsistency, DeepConf, EarlyStoppingConsistency, SamplingPlan, plan_sampling
from .combinators import (
    ComputeOptimal,
    ComputeOptimalFit,
    Fallback,
    Limited,
    Restart,
    Then,
    difficulty,
    fit_compute_optimal,
)
from .levels import DVTS, REBASE, BeamSearch, BestFirst, DepthFirst, StepwiseGreedy
from .mcts import MCTS
from .particles import ParticleFilter, ParticleGibbs
from .revising import BudgetForcing, ParallelSequential, SelfRefine
from .sampling import Greedy, RepeatedSampling

__all__ = [
    "ABMCTS",
    "AdaptiveConsistency",
    "BeamSearch",
    "BestFirst",
    "BudgetForcing",
    "ComputeOptimal",
    "ComputeOptimalFit",
    "DVTS",
    "DeepConf",
    "DepthFirst",
    "EarlyStoppingConsistency",
    "Fallback",
    "Greedy",
    "Limited",
    "MCTS",
    "ParallelSequential",
    "ParticleFilter",
    "ParticleGibbs",
    "REBASE",
    "RepeatedSampling",
    "Restart",
    "SamplingPlan",
    "SelfRefine",
    "StepwiseGreedy",
    "Then",
    "difficulty",
    "fit_compute_optimal",
    "plan_sampling",
]
