"""Search strategies: frozen dataclasses of hyperparameters with one `search` each."""

from .beam import DVTS, BeamSearch, StepwiseGreedy
from .best_first import BestFirst, DepthFirst
from .gibbs import ParticleGibbs
from .mcts import MCTS
from .particle import ParticleFilter
from .rebase import REBASE
from .sampling import Greedy, RepeatedSampling

__all__ = [
    "BeamSearch",
    "BestFirst",
    "DVTS",
    "DepthFirst",
    "Greedy",
    "MCTS",
    "ParticleFilter",
    "ParticleGibbs",
    "REBASE",
    "RepeatedSampling",
    "StepwiseGreedy",
]
