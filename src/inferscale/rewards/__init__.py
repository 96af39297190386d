"""Reward models: functions, transformers models, servers, and what is made of others.

Names load when they are first used: a function that rewards needs no torch.

Example:
    >>> import inferscale as isc
    >>> def brief(completions, **columns):
    ...     return [-len(text) for text in completions]
    >>> judge = isc.RewardFunction(brief)
    >>> solver = isc.Solver(isc.RepeatedSampling(8), isc.testing.ToyGenerator(), judge, isc.BestOfN())
    >>> len(solver.solve("How many?").text)
    35
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferscale._compat import late_names

if TYPE_CHECKING:
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

_HOME = {
    "FORMATS": "inferscale.rewards.formats",
    "CachedProcessReward": "inferscale.rewards.combining",
    "CachedReward": "inferscale.rewards.combining",
    "CalibratedReward": "inferscale.rewards.calibration",
    "CheckerReward": "inferscale.rewards.functions",
    "Diagnosis": "inferscale.rewards.calibration",
    "EnsembleProcessReward": "inferscale.rewards.combining",
    "EnsembleReward": "inferscale.rewards.combining",
    "GenerativeVerifier": "inferscale.rewards.generative",
    "HFOutcomeRewardModel": "inferscale.rewards.outcome",
    "HFProcessRewardModel": "inferscale.rewards.huggingface",
    "ImplicitReward": "inferscale.rewards.likelihood",
    "IsotonicCalibration": "inferscale.rewards.calibration",
    "LabelledSolution": "inferscale.rewards.labels",
    "LikelihoodReward": "inferscale.rewards.likelihood",
    "PlattCalibration": "inferscale.rewards.calibration",
    "RewardFunction": "inferscale.rewards.functions",
    "SGLangRewardModel": "inferscale.rewards.remote",
    "StepFormat": "inferscale.rewards.formats",
    "TrainingRecipe": "inferscale.rewards.training",
    "TruncatedProcessReward": "inferscale.rewards.combining",
    "TruncatedReward": "inferscale.rewards.combining",
    "VLLMOutcomeRewardModel": "inferscale.rewards.remote",
    "VLLMRewardModel": "inferscale.rewards.remote",
    "WeightedReward": "inferscale.rewards.combining",
    "diagnose": "inferscale.rewards.calibration",
    "label_by_rollouts": "inferscale.rewards.labels",
    "load_labelled": "inferscale.rewards.labels",
    "save_labelled": "inferscale.rewards.labels",
    "train_process_reward_model": "inferscale.rewards.training",
}

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


__getattr__ = late_names(__name__, _HOME)
