"""From a data set to figures that can be trusted: problems and prompts, grading, and runs that survive a kill."""

from .datasets import load_examples, load_problems
from .grading import GradingStats, MathGrader, Verdict
from .preparing import ChangedRunError
from .prompts import STYLES, AnswerReader, Example, PromptStyle, prompt_style
from .records import RunLockedError
from .run import Run, load_run
from .runs import run_evaluation

__all__ = [
    "STYLES",
    "AnswerReader",
    "ChangedRunError",
    "Example",
    "GradingStats",
    "MathGrader",
    "PromptStyle",
    "Run",
    "RunLockedError",
    "Verdict",
    "load_examples",
    "load_problems",
    "load_run",
    "prompt_style",
    "run_evaluation",
]
