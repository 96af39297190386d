"""Generators: where samples come from."""

from .decoder import GeneratorStats
from .huggingface import HFGenerator
from .loading import CheckpointError
from .memory import SearchMemoryError
from .sampling import Sampler

__all__ = ["CheckpointError", "GeneratorStats", "HFGenerator", "Sampler", "SearchMemoryError"]
