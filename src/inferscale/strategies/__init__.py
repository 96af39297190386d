"""Search strategies: frozen dataclasses of hyperparameters with one `search` each."""

from .abmcts import ABMCTS
from .adaptive import AdaptiveConsistency, EarlyStoppingConsistency, SamplingPlan, plan_sampling
from .beam import DVTS, BeamSearch, StepwiseGreedy
from .best_first import BestFirst, DepthFirst
from .combinators import Fallback, Limited, Restart, Then
from .compute_optimal import ComputeOptimal, ComputeOptimalFit, difficulty, fit_compute_optimal
from .confidence import DeepConf
from .forcing import BudgetForcing
from .gibbs import ParticleGibbs
from .mcts import MCTS
from .particle import ParticleFilter
from .rebase import REBASE
from .refine import ParallelSequential, SelfRefine
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
