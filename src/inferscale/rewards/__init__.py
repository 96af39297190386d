"""Reward models: where scores come from."""

from .functions import CheckerReward, RewardFunction
from .huggingface import HFOutcomeRewardModel, HFProcessRewardModel, LikelihoodReward

__all__ = ["CheckerReward", "HFOutcomeRewardModel", "HFProcessRewardModel", "LikelihoodReward", "RewardFunction"]
