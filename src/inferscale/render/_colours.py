"""Scores as colours, told apart with any kind of colour vision, on white and on black."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

RAMP = ("#e66101", "#fdb863", "#d4d4d4", "#80b7dc", "#0f6cb8")
"""From the lowest score to the highest: orange over grey to blue."""
UNSCORED = "#9aa0a6"


@dataclass(frozen=True)
class Scale:
    """The range of scores that the ramp spans: 0 to 1 if no score lies outside, else lowest to highest."""

    low: float
    high: float

    @classmethod
    def of(cls, scores: Iterable[float]) -> Scale:
        """The scale of some scores."""
        known = [0.0, *scores]
        if min(known) >= 0 and max(known) <= 1:
            return cls(0.0, 1.0)
        return cls(min(known[1:]), max(known[1:]))

    def share(self, score: float) -> float:
        """Where a score lies, from 0 to 1; 0.5 where all are equal."""
        span = self.high / 2 - self.low / 2  # halves, so that no range is too great
        return min(1.0, max(0.0, (score / 2 - self.low / 2) / span)) if span > 0 else 0.5

    def written(self, score: float) -> str:
        """A score as text: three places where it lies between 0 and 1, else three digits."""
        return f"{score:.3f}" if (self.low, self.high) == (0.0, 1.0) else f"{score:.3g}"

    def colour(self, score: float | None) -> str:
        """The colour of a score as ``#rrggbb``; grey for none."""
        if score is None:
            return UNSCORED
        place = self.share(score) * (len(RAMP) - 1)
        left = min(int(place), len(RAMP) - 2)
        pairs = zip(_rgb(RAMP[left]), _rgb(RAMP[left + 1]), strict=True)
        return "#" + "".join(f"{round(a + (b - a) * (place - left)):02x}" for a, b in pairs)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
