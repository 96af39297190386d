"""Quiet-STaR: thoughts before every token, for any causal language model."""

from .backbone import UnsupportedModelError
from .head import ThoughtMixingHead, mix
from .model import QuietSTaR

__all__ = ["QuietSTaR", "ThoughtMixingHead", "UnsupportedModelError", "mix"]
