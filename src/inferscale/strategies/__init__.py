"""Search strategies: frozen dataclasses of hyperparameters with one `search` each."""

from .adaptive import AdaptiveConsistency, EarlyStoppingConsistency, SamplingPlan, plan_sampling
from .beam import DVTS, BeamSearch, StepwiseGreedy
from .best_first import BestFirst, DepthFirst
from .confidence import DeepConf
from .gibbs import ParticleGibbs
from .mcts import MCTS
from .particle import ParticleFilter
from .rebase import REBASE
from .sampling import Greedy, RepeatedSampling

__all__ = [
    "AdaptiveConsistency",
    "BeamSearch",
    "BestFirst",
    "DVTS",
    "DeepConf",
    "DepthFirst",
    "EarlyStoppingConsistency",
    "Greedy",
    "MCTS",
    "ParticleFilter",
    "ParticleGibbs",
    "REBASE",
    "RepeatedSampling",
    "SamplingPlan",
    "StepwiseGreedy",
    "plan_sampling",
]
