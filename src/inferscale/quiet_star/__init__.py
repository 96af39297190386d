"""Quiet-STaR: thoughts before every token, for any causal language model.

Example:
    >>> import inferscale as isc
    >>> from inferscale.quiet_star import QuietSTaR, QuietSTaRGenerator
    >>> model, tokenizer = isc.zoo.load("policy-xs")
    >>> generator = QuietSTaRGenerator(QuietSTaR(model, thought_length=2), tokenizer, max_new_tokens=4)
    >>> cost = isc.solve(isc.zoo.problems("dev")[0], isc.RepeatedSampling(1), generator).cost
    >>> cost.generated_tokens, cost.thought_tokens  # two hidden ones and their two marks before each
    (4, 16)
"""

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
