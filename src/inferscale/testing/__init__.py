"""Fakes without weights, and conformance checks to run on your own parts."""

from ._aggregators import check_aggregator
from ._generators import check_generator
from ._rewards import check_reward_model
from ._strategies import check_strategy
from ._toys import PROMPTS, BrokenGenerator, ToyGenerator, ToyProcessReward, ToyReward, unit_hash

__all__ = [
    "PROMPTS",
    "BrokenGenerator",
    "ToyGenerator",
    "ToyProcessReward",
    "ToyReward",
    "check_aggregator",
    "check_generator",
    "check_reward_model",
    "check_strategy",
    "unit_hash",
]
