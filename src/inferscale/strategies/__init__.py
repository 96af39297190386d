"""Search strategies: frozen dataclasses of hyperparameters with one `search` each."""

from .beam import DVTS, BeamSearch, StepwiseGreedy
from .best_first import BestFirst, DepthFirst
from .mcts import MCTS
from .rebase import REBASE
from .sampling import Greedy, RepeatedSampling

__all__ = [
    "BeamSearch",
    "BestFirst",
    "DVTS",
    "DepthFirst",
    "Greedy",
    "MCTS",
    "REBASE",
    "RepeatedSampling",
    "StepwiseGreedy",
]
