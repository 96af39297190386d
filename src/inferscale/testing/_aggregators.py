"""Whether an aggregator keeps its promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from inferscale.base import Aggregator
from inferscale.tree import Problem, Step, Trajectory

from ._toys import unit_hash

_ANSWERS = ("4", None, "7", "4", None, "9", "7", "4")


def check_aggregator(aggregator: Aggregator) -> None:
    """Lets an aggregator choose among toy trajectories and raises an `AssertionError` that says what it breaks.

    The promises: one of the given trajectories, the same again for the same ones; one that abstains (its answer is
    ``None``) only if all abstain; an answer that all agree on; scores are read only if `needs_scores` says so; nothing
    to choose from is a `ValueError`.
    """
    name = repr(aggregator)
    mixed = [_trajectory(place, answer) for place, answer in enumerate(_ANSWERS)]
    for count in range(1, len(mixed) + 1):
        for given in (mixed[:count], mixed[-count:], mixed[:count][::-1]):
            chosen = _selected(aggregator, given)
            assert chosen is _selected(aggregator, given), f"{name}: another choice the second time"
            abstains = chosen.answer is None and any(each.answer is not None for each in given)
            assert not abstains, f"{name}: chose a trajectory without an answer though others have one"
    agreed = [replace(each, answer="4") for each in mixed]
    assert _selected(aggregator, agreed).answer == "4", f"{name}: all agree on 4, and it says something else"
    silent = [replace(each, answer=None) for each in mixed]
    assert _selected(aggregator, silent).answer is None, f"{name}: an answer where there is none"
    if not aggregator.needs_scores:
        _selected(aggregator, [replace(each, score=None, step_scores=None) for each in mixed])
    try:
        aggregator.select([])
    except ValueError:
        return
    raise AssertionError(f"{name}: no trajectories to choose from are a ValueError")


def _trajectory(place: int, answer: str | None) -> Trajectory:
    scores = (unit_hash(f"{place}/0"), unit_hash(f"{place}/1"))
    steps = (
        Step("a step\n", (1, 2), -1.0, unit_hash(f"{place}/sure"), "step"),
        Step(f"The answer is {answer or 'open'}", (3, 4), -1.0, unit_hash(f"{place}/surer"), "eos"),
    )
    return Trajectory(Problem("How many?", "7"), steps, scores, answer, scores[-1])


def _selected(aggregator: Aggregator, given: Sequence[Trajectory]) -> Trajectory:
    chosen = aggregator.select(given)
    known = any(chosen is each for each in given)
    assert known, f"{aggregator!r} returned {chosen!r}, which is none of the trajectories that it was given"
    return chosen
