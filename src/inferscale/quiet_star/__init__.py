"""Quiet-STaR: thoughts before every token, for any causal language model."""

from .backbone import UnsupportedModelError
from .head import ThoughtMixingHead, mix
from .losses import PUBLISHED_OBJECTIVE, Objective, advantages, quiet_star_loss
from .model import QuietSTaR
from .recipe import Batch, Recipe

__all__ = [
    "PUBLISHED_OBJECTIVE",
    "Batch",
    "Objective",
    "QuietSTaR",
    "Recipe",
    "ThoughtMixingHead",
    "UnsupportedModelError",
    "advantages",
    "mix",
    "quiet_star_loss",
]
