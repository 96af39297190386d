"""From a data set to figures that can be trusted: problems and prompts, grading, and runs that survive a kill.

Example:
    >>> import inferscale as isc
    >>> from inferscale.evaluate import load_problems
    >>> problems = load_problems("embedded", limit=4)
    >>> results = isc.solve_batch(problems, isc.RepeatedSampling(4), isc.testing.ToyGenerator())  # which cannot count
    >>> f"{sum(result.is_correct for result in results)} of {len(results)} right"
    '0 of 4 right'
"""

from .datasets import STYLES, Example, PromptStyle, load_examples, load_problems, prompt_style
from .grading import GradingStats, MathGrader, Verdict
from .records import Run, RunLockedError, load_run
from .runs import ChangedRunError, run_evaluation

__all__ = [
    "STYLES",
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
