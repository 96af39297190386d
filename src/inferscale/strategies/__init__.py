"""Search strategies: frozen dataclasses of hyperparameters with one `search` each.

Example:
    >>> import inferscale as isc
    >>> from inferscale.testing import ToyGenerator, ToyProcessReward
    >>> for strategy in (isc.RepeatedSampling(8), isc.BeamSearch(2, 4), isc.REBASE(8)):
    ...     result = isc.solve("How many?", strategy, ToyGenerator(), reward_model=ToyProcessReward())
    ...     print(type(strategy).__name__, result.answer, result.cost.tokens)
    RepeatedSampling 1 126
    BeamSearch 3 128
    REBASE 3 121
"""

from .abmcts import ABMCTS
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
from .levels import DORA, DVTS, ETS, REBASE, BeamSearch, BestFirst, DepthFirst, StepwiseGreedy
from .mcts import MCTS
from .particles import ParticleFilter, ParticleGibbs
from .pooling import AdaptiveVote, Allocation, Bandit, ByDifficulty, Drawn, Pandora, Uniform
from .registry import Registered, registry
from .revising import BudgetForcing, ParallelSequential, SelfRefine
from .sampling import (
    AdaptiveConsistency,
    DeepConf,
    EarlyStoppingConsistency,
    Greedy,
    MultiTemperature,
    RepeatedSampling,
    SamplingPlan,
    SpeculativeRejection,
    plan_sampling,
)
from .selecting import Compare, GenSelect, Recorded, RecursiveAggregation, Tournament, knockout_failure
from .sharpening import PowerMH, PowerSMC
from .thinking import DEER, Dynasor, NoThinking, ShortMofK

__all__ = [
    "ABMCTS",
    "AdaptiveConsistency",
    "AdaptiveVote",
    "Allocation",
    "Bandit",
    "BeamSearch",
    "BestFirst",
    "BudgetForcing",
    "ByDifficulty",
    "Compare",
    "ComputeOptimal",
    "ComputeOptimalFit",
    "DEER",
    "DORA",
    "DVTS",
    "DeepConf",
    "DepthFirst",
    "Drawn",
    "Dynasor",
    "ETS",
    "EarlyStoppingConsistency",
    "Fallback",
    "GenSelect",
    "Greedy",
    "Limited",
    "MCTS",
    "MultiTemperature",
    "NoThinking",
    "Pandora",
    "ParallelSequential",
    "ParticleFilter",
    "ParticleGibbs",
    "PowerMH",
    "PowerSMC",
    "REBASE",
    "Recorded",
    "RecursiveAggregation",
    "Registered",
    "RepeatedSampling",
    "Restart",
    "SamplingPlan",
    "SelfRefine",
    "ShortMofK",
    "SpeculativeRejection",
    "StepwiseGreedy",
    "Then",
    "Tournament",
    "Uniform",
    "difficulty",
    "fit_compute_optimal",
    "knockout_failure",
    "plan_sampling",
    "registry",
]
