"""The model itself as the judge of the policy's samples: how often it finds a right one among wrong ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from inferscale import solve_batch
from inferscale.base import Generator, SearchStrategy
from inferscale.engine import SearchResult
from inferscale.strategies import GenSelect, Recorded, Tournament
from inferscale.strategies.selecting import picked_letter


def chosen_by_model(
    samples: Sequence[SearchResult], generator: Generator, problems: int, pairs: int, candidates: int
) -> Iterator[str]:
    """Lines: the share of right choices among recorded solutions, beside that of a coin.

    Every pair is one right and one wrong solution of a problem, judged by the likelihood of a letter in both orders;
    side by side stand one right solution and wrong ones, of which the model names the best. Standard errors are over
    problems.
    """
    usable = [r for r in samples if {bool(t.is_correct) for t in r.trajectories} == {True, False}][:problems]
    duels = [_choices(usable, generator, 2, seed, partial(Tournament, judge="likelihood")) for seed in range(pairs)]
    right = np.array([[_is_right(result) for result in results] for results in duels]).mean(axis=0)
    replies = [
        reply.text for results in duels for r in results for note in r.root.side_notes for reply in note.children
    ]
    silent = sum(picked_letter(text) is None for text in replies) / max(len(replies), 1)
    yield f"pairs, by likelihood: {_told(right)} right, a coin 50.0 % ({len(usable)} problems, {pairs} pairs of each)"
    yield f"{100 * silent:.1f} % of {len(replies)} replies name none of the two"
    right = np.array([_is_right(result) for result in _choices(usable, generator, candidates, 0, GenSelect)])
    yield f"side by side: {_told(right)} right, a coin {100 / candidates:.1f} % (one right of {candidates})"


def _choices(
    results: Sequence[SearchResult],
    generator: Generator,
    size: int,
    seed: int,
    strategy: Callable[[SearchStrategy], SearchStrategy],
) -> list[SearchResult]:
    """The searches that choose among `size` of the recorded solutions of each problem."""
    shown = [_drawn(result, size, random.Random(f"{seed}/{result.problem.stream}")) for result in results]
    return solve_batch([r.problem for r in shown], strategy(Recorded(shown)), generator, seed=seed)


def _is_right(result: SearchResult) -> float:
    """Whether the first of what is left is right: candidates with one and the same wrong answer may all be left."""
    return float(bool(result.trajectories[0].is_correct))


def _drawn(result: SearchResult, size: int, rng: random.Random) -> SearchResult:
    """The result with one right and `size` - 1 wrong leaves, in random order."""
    right = [i for i, t in enumerate(result.trajectories) if t.is_correct]
    wrong = [i for i, t in enumerate(result.trajectories) if not t.is_correct and t.answer is not None]
    places = [rng.choice(right), *rng.sample(wrong, min(size - 1, len(wrong)))]
    rng.shuffle(places)
    trajectories = tuple(result.trajectories[i] for i in places)
    leaves = tuple(result.leaves[i] for i in places)
    return replace(result, trajectories=trajectories, leaves=leaves, selected=trajectories[0])


def _told(shares: NDArray[np.float64]) -> str:
    return f"{100 * shares.mean():.1f} ± {100 * shares.std(ddof=1) / len(shares) ** 0.5:.1f} %"
