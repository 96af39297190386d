"""The study of arXiv:2412.16260 on any models: thoughts, reward-balanced search, and both."""

from .released import PRESETS, Rules
from .study import ABLATIONS, StudyRow, ThoughtStudy

__all__ = ["ABLATIONS", "PRESETS", "Rules", "StudyRow", "ThoughtStudy"]
