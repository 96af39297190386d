"""Reward models: where scores come from."""

from .functions import CheckerReward, RewardFunction
from .huggingface import HFProcessRewardModel
from .likelihood import LikelihoodReward
from .outcome import HFOutcomeRewardModel

__all__ = ["CheckerReward", "HFOutcomeRewardModel", "HFProcessRewardModel", "LikelihoodReward", "RewardFunction"]
