"""Reward models: functions, transformers models, servers, and what is made of others.

Example:
    >>> import inferscale as isc
    >>> def brief(completions, **columns):
    ...     return [-len(text) for text in completions]
    >>> judge = isc.RewardFunction(brief)
    >>> solver = isc.Solver(isc.RepeatedSampling(8), isc.testing.ToyGenerator(), judge, isc.BestOfN())
    >>> len(solver.solve("How many?").text)
    35
"""

from .calibration import CalibratedReward, Diagnosis, IsotonicCalibration, PlattCalibration, diagnose
from .combining import (
    CachedProcessReward,
    CachedReward,
    EnsembleProcessReward,
    EnsembleReward,
    TruncatedProcessReward,
    TruncatedReward,
    WeightedReward,
)
from .formats import FORMATS, StepFormat
from .functions import CheckerReward, RewardFunction
from .generative import GenerativeVerifier
from .huggingface import HFProcessRewardModel
from .labels import LabelledSolution, label_by_rollouts, load_labelled, save_labelled
from .likelihood import ImplicitReward, LikelihoodReward
from .outcome import HFOutcomeRewardModel
from .remote import SGLangRewardModel, VLLMOutcomeRewardModel, VLLMRewardModel
from .training import TrainingRecipe, train_process_reward_model

__all__ = [
    "FORMATS",
    "CachedProcessReward",
    "CachedReward",
    "CalibratedReward",
    "CheckerReward",
    "Diagnosis",
    "EnsembleProcessReward",
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
    "TruncatedProcessReward",
    "TruncatedReward",
    "VLLMOutcomeRewardModel",
    "VLLMRewardModel",
    "WeightedReward",
    "diagnose",
    "label_by_rollouts",
    "load_labelled",
    "save_labelled",
    "train_process_reward_model",
]
