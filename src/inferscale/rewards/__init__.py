"""Reward models: where scores come from."""

from .calibration import CalibratedReward, Diagnosis, IsotonicCalibration, PlattCalibration, diagnose
from .combining import CachedReward, EnsembleReward, WeightedReward
from .formats import FORMATS, StepFormat
from .functions import CheckerReward, RewardFunction
from .generative import GenerativeVerifier
from .huggingface import HFProcessRewardModel
from .labels import LabelledSolution, label_by_rollouts, read_labelled, write_labelled
from .likelihood import ImplicitReward, LikelihoodReward
from .outcome import HFOutcomeRewardModel
from .remote import SGLangRewardModel, VLLMOutcomeRewardModel, VLLMRewardModel
from .training import TrainingRecipe, train_process_reward_model

__all__ = [
    "FORMATS",
    "CachedReward",
    "CalibratedReward",
    "CheckerReward",
    "Diagnosis",
    "EnsembleReward",
    "GenerativeVerifier",
    "HFOutcomeRewardModel",
    "HFProcessRewardModel",
    "ImplicitReward",
    "IsotonicCalibration",
    "LabelledSolution",
    "LikelihoodReward",
    "PlattCalibration",
    "RewardFunction",
    "SGLangRewardModel",
    "StepFormat",
    "TrainingRecipe",
    "VLLMOutcomeRewardModel",
    "VLLMRewardModel",
    "WeightedReward",
    "diagnose",
    "label_by_rollouts",
    "read_labelled",
    "train_process_reward_model",
    "write_labelled",
]
