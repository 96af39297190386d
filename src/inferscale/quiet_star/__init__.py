"""Quiet-STaR: thoughts before every token, for any causal language model."""

from .backbone import UnsupportedModelError
from .generator import QuietSTaRGenerator
from .head import ThoughtMixingHead, mix
from .losses import PUBLISHED_OBJECTIVE, Objective, advantages, quiet_star_loss
from .model import QuietSTaR
from .recipe import Batch, Recipe
from .reward import ThoughtUtility, WithThoughts
from .when import EveryToken, HighEntropy, Never, StepStarts, ThinkingRule

__all__ = [
    "PUBLISHED_OBJECTIVE",
    "Batch",
    "EveryToken",
    "HighEntropy",
    "Never",
    "Objective",
    "QuietSTaR",
    "QuietSTaRGenerator",
    "Recipe",
    "StepStarts",
    "ThinkingRule",
    "ThoughtUtility",
    "ThoughtMixingHead",
    "UnsupportedModelError",
    "WithThoughts",
    "advantages",
    "mix",
    "quiet_star_loss",
]
