"""The study of arXiv:2412.16260 on any models: thoughts, reward-balanced search, and both."""

from .ablations import ABLATIONS
from .released import PRESETS, Rules
from .row import StudyRow
from .study import ThoughtStudy

__all__ = ["ABLATIONS", "PRESETS", "Rules", "StudyRow", "ThoughtStudy"]
