"""Reward models: where scores come from."""

from .cached import CachedReward
from .calibration import CalibratedReward, IsotonicCalibration, PlattCalibration
from .combining import EnsembleReward, WeightedReward
from .diagnosis import Diagnosis, diagnose
from .formats import FORMATS, StepFormat
from .functions import CheckerReward, RewardFunction
from .generative import GenerativeVerifier
from .huggingface import HFProcessRewardModel
from .implicit import ImplicitReward
from .labels import LabelledSolution, read_labelled, write_labelled
from .likelihood import LikelihoodReward
from .outcome import HFOutcomeRewardModel
from .remote import VLLMRewardModel
from .remote_outcome import SGLangRewardModel, VLLMOutcomeRewardModel
from .rollouts import label_by_rollouts
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
