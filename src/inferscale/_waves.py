"""``schedule="wave"``: one generate call and one score call for all searches that are under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from ._models import Models
from ._search import Search

Portion = TypeVar("Portion")
Answer = TypeVar("Answer")


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
        self._call(active, models.samples_for, models.sample, models.take_steps)
        self._call(active, models.nodes_for, models.judge, models.take_scores)

    def _call(
        self,
        active: Sequence[Search],
        wanted: Callable[[Search], Portion],
        run: Callable[[list[Portion]], Sequence[Answer]],
        take: Callable[[Search, Portion, Answer], None],
    ) -> None:
        """Answers what is `wanted` by one model, in one call for all searches; none is made where nothing is."""
        portions = [(search, portion) for search in active if (portion := wanted(search))]
        if not portions:
            return
        answers = run([portion for _, portion in portions])
        for (search, portion), answer in zip(portions, answers, strict=True):
            take(search, portion, answer)
        self._models.journal.flush()
