"""Embedded models and the task that they were trained on, and a real model from its package; no network is needed.

Example:
    >>> from inferscale import zoo
    >>> problem = zoo.task.generate(1, seed=7, level=2)[0]
    >>> zoo.task.is_correct(problem.prompt, zoo.task.solution(problem.prompt))
    True
"""

from . import task
from .models import ModelCard, card, load, name_of, path, simulated_score
from .models import list_models as list  # noqa: A004
from .packaged import word_problems
from .task import problems

__all__ = [
    "ModelCard",
    "card",
    "list",
    "load",
    "name_of",
    "path",
    "problems",
    "simulated_score",
    "task",
    "word_problems",
]
