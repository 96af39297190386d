"""Quiet-STaR: thoughts before every token, for any causal language model."""

from .backbone import UnsupportedModelError
from .generator import EveryToken, HighEntropy, Never, QuietSTaRGenerator, StepStarts, ThinkingRule, TokenContext
from .head import ThoughtMixingHead, mix
from .losses import PUBLISHED_OBJECTIVE, Objective, advantages, quiet_star_loss
from .model import QuietSTaR
from .reward import ThoughtUtility, WithThoughts
from .train import Batch, Recipe

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
    "ThoughtMixingHead",
    "ThoughtUtility",
    "TokenContext",
    "UnsupportedModelError",
    "WithThoughts",
    "advantages",
    "mix",
    "quiet_star_loss",
]
