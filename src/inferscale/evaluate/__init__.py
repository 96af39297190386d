"""From a data set to figures that can be trusted: problems and prompts, grading, and runs that survive a kill."""

from .datasets import load_examples, load_problems
from .grading import GradingStats, MathGrader, Verdict
from .prompts import STYLES, Example, PromptStyle, prompt_style

__all__ = [
    "STYLES",
    "Example",
    "GradingStats",
    "MathGrader",
    "PromptStyle",
    "Verdict",
    "load_examples",
    "load_problems",
    "prompt_style",
]
