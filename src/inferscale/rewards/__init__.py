"""Reward models: where scores come from."""

from .formats import FORMATS, StepFormat
from .functions import CheckerReward, RewardFunction
from .huggingface import HFProcessRewardModel
from .likelihood import LikelihoodReward
from .outcome import HFOutcomeRewardModel

__all__ = [
    "FORMATS",
    "CheckerReward",
    "HFOutcomeRewardModel",
    "HFProcessRewardModel",
    "LikelihoodReward",
    "RewardFunction",
    "StepFormat",
]
