"""``schedule="wave"``: one generate call and one score call for all searches that are under way."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ._models import Models
from ._search import Search


class Waves:
    """Resumes all searches together, so that each model call is as large as can be."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def __enter__(self) -> Self:
        """The schedule."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is under way between waves."""

    def advance(self, active: Sequence[Search]) -> None:
        """Answers what the searches ask for: first all samples, then all scores."""
        models = self._models
        samples = [(search, portion) for search in active if (portion := models.samples_for(search))]
        if samples:
            answers = models.sample([portion for _, portion in samples])
            for (search, portion), steps in zip(samples, answers, strict=True):
                models.take_steps(search, portion, steps)
            models.journal.flush()
        unscored = [(search, nodes) for search in active if (nodes := models.nodes_for(search))]
        if unscored:
            verdicts = models.judge([nodes for _, nodes in unscored])
            for (search, nodes), scores in zip(unscored, verdicts, strict=True):
                models.take_scores(search, nodes, scores)
            models.journal.flush()
