"""Search strategies: frozen dataclasses of hyperparameters with one `search` each."""

from .beam import DVTS, BeamSearch
from .rebase import REBASE
from .sampling import Greedy, RepeatedSampling

__all__ = ["DVTS", "REBASE", "BeamSearch", "Greedy", "RepeatedSampling"]
