"""Accuracy against compute: curves of strategies, from one run each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from inferscale.aggregators import SameAnswer
from inferscale.answers import extract_answer as default_extract_answer
from inferscale.answers import same_answer
from inferscale.base import Generator, RewardModel, SearchStrategy
from inferscale.cost import Budget
from inferscale.engine import solve_batch
from inferscale.functional import best_of_k, majority_at_k, pass_at_k, weighted_majority_at_k
from inferscale.result import SearchResult
from inferscale.tree import Problem

from .names import is_sampling, short_name
from .points import SCORED_VOTES, VOTES, CurvePoint, Evidence, Floats, Vote, gather_evidence, point

_SUBSETS = 200  # of the weighted vote, which has no short formula


def scaling_curve(
    problems: Sequence[Problem],
    strategies: Iterable[SearchStrategy],
    generator: Generator,
    *,
    reward_model: RewardModel | None = None,
    votes: Sequence[Vote] | None = None,
    sizes: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    budget: Budget | None = None,
    extract_answer: Callable[[str], str | None] = default_extract_answer,
    grade: SameAnswer = same_answer,
    batch_size: int | None = 64,
    model: str = "",
    parameters: int | None = None,
    progress: bool = False,
) -> list[CurvePoint]:
    """Points of every strategy and vote, measured now.

    One run of ``RepeatedSampling(N)`` gives all smaller numbers of samples too, by estimators over all subsets; any
    other strategy gives the points of its own size, so pass it at several: ``[REBASE(4), REBASE(16)]``.

    Args:
        problems: Problems with gold answers.
        strategies: What to run.
        generator: The policy.
        reward_model: For searches and votes that need scores.
        votes: Which votes; by default those that the scores allow.
        sizes: Numbers of samples of the sampling curve; by default the powers of two, and N.
        seeds: Each strategy is run once for each; a problem counts with its mean over them.
        budget: The most that each problem may cost.
        extract_answer: Reads the answer out of a completion.
        grade: `same_answer`, or a `MathGrader`.
        batch_size: Problems searched at the same time.
        model: Name of the policy, for the points.
        parameters: Its size, for the points.
        progress: Show progress bars.

    Raises:
        ValueError: If a problem has no gold answer, or a vote needs scores and there are none.
    """
    points = []
    for strategy in strategies:
        runs = [
            solve_batch(
                problems, strategy, generator, reward_model=reward_model, extract_answer=extract_answer,
                budget=budget, seed=seed, batch_size=batch_size, progress=progress,
            )
            for seed in seeds
        ]  # fmt: skip
        points += curve_of_results(
            runs, strategy, votes=votes, sizes=sizes, grade=grade, model=model, parameters=parameters
        )
    return points


def curve_of_results(
    runs: Sequence[Sequence[SearchResult]],
    strategy: SearchStrategy | str,
    *,
    votes: Sequence[Vote] | None = None,
    sizes: Sequence[int] | None = None,
    grade: SameAnswer = same_answer,
    correct: Sequence[Sequence[Sequence[bool]]] | None = None,
    **about: Any,
) -> list[CurvePoint]:
    """Points of searches that have been run.

    Args:
        runs: For each seed the results, problems in one order.
        strategy: What was run, or a name for it; a name that is ``"RepeatedSampling"`` means independent samples.
        votes: As in `scaling_curve`.
        sizes: As in `scaling_curve`.
        grade: As in `scaling_curve`.
        correct: For each run and problem, whether each trajectory is right, if that is known.
        **about: `memory_bytes`, `model` and `parameters` of the points.

    Raises:
        ValueError: If there are no results, runs differ in their problems, a problem has no gold answer, or a vote
            needs scores and there are none.
    """
    if not runs or not runs[0] or any(_prompts(results) != _prompts(runs[0]) for results in runs[1:]):
        raise ValueError("a curve needs at least one run with results, and the same problems in each")
    evidence = [
        gather_evidence(results, grade, None if correct is None else correct[index])
        for index, results in enumerate(runs)
    ]
    chosen = _checked_votes(votes, evidence)
    name = strategy if isinstance(strategy, str) else short_name(strategy)
    if not is_sampling(strategy):
        return _search_points(evidence, name, chosen, about)
    return _sampling_points(evidence, name, chosen, sizes, about)


def _checked_votes(votes: Sequence[Vote] | None, evidence: Sequence[Sequence[Evidence]]) -> list[Vote]:
    unknown = sorted(set(votes or ()) - set(VOTES))
    if unknown:
        raise ValueError(f"unknown vote {unknown[0]!r}: choose among {', '.join(VOTES)}")
    scores = [item.scores for run in evidence for item in run]
    scored = all(score is not None for score in scores)
    if votes is None:
        usable = scored and all((score >= 0).all() for score in scores if score is not None)
        return [v for v in VOTES if v not in SCORED_VOTES or (scored and (usable or v != "weighted"))]
    if not scored and set(votes) & set(SCORED_VOTES):
        raise ValueError(
            f"the vote {next(v for v in votes if v in SCORED_VOTES)!r} needs scores: pass reward_model=..."
        )
    return list(votes)


def _sampling_points(
    evidence: Sequence[Sequence[Evidence]],
    strategy: str,
    votes: Sequence[Vote],
    sizes: Sequence[int] | None,
    about: dict[str, Any],
) -> list[CurvePoint]:
    most = max(item.size for run in evidence for item in run)
    wanted = _powers(most) if sizes is None else list(sizes)
    padded = [[_padded(item, most) for item in run] for run in evidence]
    points = []
    for vote in votes:
        for k in wanted:
            values = np.mean([_sampling_values(run, vote, k) for run in padded], axis=0)
            cost = np.mean([[item.shared + k * item.each for item in run] for run in padded], axis=0)
            charged = vote in SCORED_VOTES
            points.append(point(values, cost, strategy, vote, k, charged, **about))
    return points


def _search_points(
    evidence: Sequence[Sequence[Evidence]], strategy: str, votes: Sequence[Vote], about: dict[str, Any]
) -> list[CurvePoint]:
    most = max(item.size for run in evidence for item in run)
    cost = np.mean([[item.shared + item.size * item.each for item in run] for run in evidence], axis=0)
    points = []
    for vote in votes:
        values = np.mean([[_sampling_values([item], vote, item.size)[0] for item in run] for run in evidence], axis=0)
        points.append(point(values, cost, strategy, vote, most, True, **about))
    return points


def _sampling_values(items: Sequence[Evidence], vote: Vote, k: int) -> Floats:
    """`[P]`: expected correctness of the vote over k of the samples of each problem."""
    ids = np.stack([item.ids for item in items])
    correct = np.stack([item.correct for item in items])
    if vote == "coverage":
        return np.asarray(pass_at_k(correct, k))
    if vote == "majority":
        return np.asarray(majority_at_k(ids, correct, k))
    scores = np.stack([item.scores for item in items if item.scores is not None])
    if vote == "best-of-n":
        return np.asarray(best_of_k(scores, correct, k, mask=ids >= 0))
    rng = np.random.default_rng(k)  # which subsets are drawn depends on k alone
    expected, _ = weighted_majority_at_k(
        ids, correct, k, scores, scores, rng=rng, max_subsets=_SUBSETS, num_subsets=_SUBSETS
    )
    return np.asarray(expected)


def _padded(item: Evidence, size: int) -> Evidence:
    """The evidence with samples that failed as abstentions."""
    extra = size - item.size
    if not extra:
        return item
    scores = None if item.scores is None else np.pad(item.scores, (0, extra))
    each = item.each * item.size / size  # what was paid is spread over all samples that were asked for
    return Evidence(
        np.pad(item.ids, (0, extra), constant_values=-1), np.pad(item.correct, (0, extra)), scores, item.shared, each
    )


def _prompts(results: Sequence[SearchResult]) -> list[str]:
    return [result.problem.prompt for result in results]


def _powers(most: int) -> list[int]:
    return sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})
