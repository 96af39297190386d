"""Accuracy against compute: points and curves of strategies, and what is best at each budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inferscale.aggregators import answer_groups, completeness
from inferscale.answers import Reader, SameAnswer
from inferscale.base import Generator, RewardModel, SearchStrategy
from inferscale.cost import Budget
from inferscale.engine.result import Abstentions, SearchResult
from inferscale.engine.solver import solve_batch
from inferscale.functional import (
    Reduction,
    best_of_k,
    majority_at_k,
    pass_at_k,
    reduce_steps,
    weighted_majority_at_k,
)
from inferscale.thinking import Thinking
from inferscale.tree import Problem, Step, Trajectory

SIZES = frozenset({"n", "width", "beam_width", "num_subtrees", "num_particles", "num_simulations", "num_expansions"})


def is_sampling(strategy: SearchStrategy | str) -> bool:
    """True if a strategy draws independent samples, so that a part of them is a smaller run."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    return name.split("(")[0] == "RepeatedSampling"


def short_name(strategy: SearchStrategy) -> str:
    """The name of a strategy's curve: without its number of samples and options that have their default values.

    ``REBASE(width=16)`` and ``REBASE(width=4)`` are points of one curve, ``REBASE``;
    ``REBASE(softmax_temperature=0.2)`` is another one.

    Example:
        >>> from inferscale import REBASE
        >>> from inferscale.scaling import short_name
        >>> short_name(REBASE(8)), short_name(REBASE(16, softmax_temperature=0.2))
        ('REBASE', 'REBASE(softmax_temperature=0.2)')
    """
    options = [
        f"{option.name}={getattr(strategy, option.name)!r}"
        for option in fields(strategy)  # type: ignore[arg-type]
        if option.init and option.name not in SIZES and getattr(strategy, option.name) != option.default
    ]
    return type(strategy).__name__ + (f"({', '.join(options)})" if options else "")


Floats: TypeAlias = NDArray[np.float64]
Vote: TypeAlias = Literal["majority", "weighted", "best-of-n", "coverage"]
"""Names of the votes of a curve; `"coverage"` is what a perfect judge would choose.

Example:
    >>> from inferscale.scaling import CurvePoint, Vote
    >>> def points_of(points: list[CurvePoint], vote: Vote) -> list[CurvePoint]:
    ...     return [point for point in points if point.vote == vote]
    >>> points = [
    ...     CurvePoint("RepeatedSampling", "majority", 8, 0.55, 0.02, 500, 900.0, 2e8, 0.0, 0.3),
    ...     CurvePoint("RepeatedSampling", "coverage", 8, 0.80, 0.02, 500, 900.0, 2e8, 0.0, 0.3),
    ... ]
    >>> [point.accuracy for point in points_of(points, "coverage")]
    [0.8]
"""
VOTES: tuple[Vote, ...] = ("majority", "weighted", "best-of-n", "coverage")
"""All votes of a curve, of which `"weighted"` and `"best-of-n"` need scores.

Example:
    >>> from inferscale import Problem, RepeatedSampling
    >>> from inferscale.scaling import VOTES, scaling_curve
    >>> from inferscale.testing import ToyGenerator, ToyReward
    >>> problems = [Problem(f"Question {i}?", answer="2") for i in range(20)]
    >>> options = {"reward_model": ToyReward(), "votes": VOTES, "sizes": [8]}
    >>> points = scaling_curve(problems, [RepeatedSampling(8)], ToyGenerator(depth=2), **options)
    >>> {point.vote: round(point.accuracy, 2) for point in points}
    {'majority': 0.23, 'weighted': 0.3, 'best-of-n': 0.25, 'coverage': 0.8}
"""
SCORED_VOTES = ("weighted", "best-of-n")


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy and cost of one strategy, with one vote, at one number of samples; costs are means over problems.

    Attributes:
        strategy: The strategy, without its number of samples.
        vote: ``"majority"`` (tied answers share the credit), ``"weighted"``, ``"best-of-n"``, or ``"coverage"``
            (any sample is right: an upper bound, not a method).
        n: Samples, or leaves of the search.
        accuracy: Share of problems answered right.
        standard_error: Of the accuracy, over problems.
        problems: Number of problems.
        tokens: Sampled tokens of a problem, pruned branches included.
        generator_flops: FLOPs of the policy, prompt included once.
        reward_flops: FLOPs of the reward model; 0 for a vote over samples that reads no score.
        seconds: Time in the models.
        memory_bytes: Most memory of the run, if it was measured.
        model: Name of the policy.
        parameters: Its size, for fits of the optimal size.
        per_problem: Expected correctness of each problem, in their order; for paired comparisons.
        abstentions: Of the run that the point is from, all its samples counted.

    Example:
        >>> from inferscale.scaling import CurvePoint
        >>> point = CurvePoint(
        ...     "REBASE", "weighted", 8, accuracy=0.71, standard_error=0.02, problems=500, tokens=640.0,
        ...     generator_flops=1.5e8, reward_flops=1.4e8, seconds=0.4, model="policy-m",
        ... )
        >>> print(point.name, f"{point.flops:.1e}")
        policy-m, REBASE, weighted 2.9e+08
    """

    strategy: str
    vote: Vote
    n: int
    accuracy: float
    standard_error: float
    problems: int
    tokens: float
    generator_flops: float
    reward_flops: float
    seconds: float
    memory_bytes: int | None = None
    model: str = ""
    parameters: int | None = None
    per_problem: tuple[float, ...] = field(default=(), repr=False)
    abstentions: Abstentions = field(default=Abstentions(), repr=False)

    @property
    def flops(self) -> float:
        """FLOPs of policy and reward model together."""
        return self.generator_flops + self.reward_flops

    @property
    def error(self) -> float:
        """Share of problems answered wrong."""
        return 1.0 - self.accuracy

    @property
    def method(self) -> str:
        """Model and strategy."""
        return ", ".join(part for part in (self.model, self.strategy) if part)

    @property
    def name(self) -> str:
        """Model, strategy and vote: points of one name are one curve."""
        return f"{self.method}, {self.vote}"

    def row(self) -> dict[str, Any]:
        """Plain data for tables, without the numbers of single problems."""
        kept = (f.name for f in fields(self) if f.name not in ("per_problem", "abstentions"))
        silent = self.abstentions
        counts = {"trajectories": silent.trajectories, "cut": silent.cut, "unread": silent.unread}
        return {
            **{name: getattr(self, name) for name in kept}, "flops": self.flops, **counts,
            "abstaining": silent.abstaining,
        }  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """Answers, verdicts, scores and costs of one search.

    Attributes:
        ids: `[N]`, answers as numbers, -1 for an abstention.
        correct: `[N]`, 0 or 1.
        scores: `[N]`, or ``None`` if a trajectory with an answer has none.
        merits: `[N]`, in the order in which `BestOfN` would choose: the better, the greater; equal ones are equal.
        shared: Cost paid once, whatever the number of samples: tokens 0, generator FLOPs of the prompt.
        each: Cost of one sample on average: tokens, generator FLOPs, reward FLOPs, seconds.
    """

    ids: NDArray[np.int64]
    correct: NDArray[np.int64]
    scores: Floats | None
    merits: Floats
    shared: Floats
    each: Floats

    @property
    def size(self) -> int:
        """Number of samples N."""
        return len(self.ids)


def gather_evidence(
    results: Sequence[SearchResult],
    same_answer: SameAnswer | None = None,
    correct: Sequence[Sequence[bool]] | None = None,
    reduction: Reduction | None = None,
) -> list[Evidence]:
    """The evidence of each result.

    Args:
        results: Searches of problems with gold answers.
        same_answer: Tells whether two answers are the same; joins the answers of a vote too. By default the equality of
            their kind.
        correct: Whether each trajectory is right, if that is known (as in the records of a run).
        reduction: Scores trajectories anew from their step scores; by default they have the scores of the search.

    Raises:
        ValueError: If a problem has no gold answer.
    """
    return [
        _evidence(result, same_answer, None if correct is None else correct[index], reduction)
        for index, result in enumerate(results)
    ]


def point(values: Floats, cost: Floats, strategy: str, vote: Vote, n: int, charged: bool, **about: Any) -> CurvePoint:
    """The point of per-problem values `[P]` and costs `[P, 4]` (tokens, generator and reward FLOPs, seconds)."""
    tokens, generator, reward, seconds = cost.mean(axis=0).tolist()
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return CurvePoint(
        strategy, vote, n, float(values.mean()), error, len(values), tokens, generator, reward if charged else 0.0,
        seconds, per_problem=tuple(values.tolist()), **about,
    )  # fmt: skip


def _evidence(
    result: SearchResult, same_answer: SameAnswer | None, known: Sequence[bool] | None, reduction: Reduction | None
) -> Evidence:
    answers = [trajectory.answer for trajectory in result.trajectories]
    gold = result.problem.answer
    if gold is None:
        raise ValueError(f"{result.problem.id or result.problem.prompt[:60]!r} has no gold answer to grade with")
    ids = np.full(len(answers), -1, dtype=np.int64)
    for number, group in enumerate(answer_groups(result.trajectories, range(len(answers)), (same_answer, None))):
        ids[group] = number
    if known is None:
        agree = same_answer or result.selected.equality.same
        verdicts = {answer: agree(answer, gold) for answer in dict.fromkeys(answers) if answer is not None}
        known = [answer is not None and verdicts[answer] for answer in answers]
    if len(known) != len(answers):
        raise ValueError(f"{len(known)} verdicts for {len(answers)} trajectories of {result.problem.prompt[:60]!r}")
    given = [t.score if reduction is None else _reduced(t, reduction) for t in result.trajectories]
    voters = [score for score, answer in zip(given, answers, strict=True) if answer is not None]
    missing = None in (voters or given)
    scores = None if missing else np.asarray([0.0 if score is None else score for score in given])
    # A whole text comes before one that was cut, and what a reward model has judged before what it has not.
    keys = [
        (score is not None, completeness(t), score or 0.0) for t, score in zip(result.trajectories, given, strict=True)
    ]
    _, merits = np.unique(np.asarray(keys, dtype=np.float64), axis=0, return_inverse=True)
    shared, each = _costs(result)
    return Evidence(ids, np.asarray(known, dtype=np.int64), scores, merits.reshape(-1).astype(np.float64), shared, each)


def _reduced(trajectory: Trajectory, reduction: Reduction) -> float | None:
    """A score out of step scores, 0 where nothing was judged; ``None`` where nobody was asked."""
    steps = trajectory.step_scores
    return None if steps is None else float(reduce_steps(steps, reduction)) if steps else 0.0


def _costs(result: SearchResult) -> tuple[Floats, Floats]:
    cost, count = result.cost, max(len(result.trajectories), 1)
    prompt = prompt_flops(first_steps(result))
    shared = np.asarray([0.0, prompt, 0.0, 0.0])
    total = np.asarray([cost.tokens, cost.generator_flops, cost.reward_flops, cost.seconds], dtype=np.float64)
    return shared, (total - shared) / count


def first_steps(result: SearchResult) -> list[Step]:
    """The samples that were drawn for the prompt."""
    return [child.step for child in result.root.children if child.step is not None]


def prompt_flops(samples: Sequence[Step]) -> float:
    """FLOPs of reading the prompt: what the samples that were charged with it cost beyond the others, by token."""
    free = [step for step in samples if not step.prompt_tokens and step.generated_tokens]
    if not free:
        return 0.0
    per_token = sum(step.flops for step in free) / sum(step.generated_tokens for step in free)
    paid = [step for step in samples if step.prompt_tokens]
    return max(0.0, float(sum(step.flops - per_token * step.generated_tokens for step in paid)))


CostName: TypeAlias = Literal["flops", "generator_flops", "reward_flops", "tokens", "seconds"]
"""Names of the costs of a curve, means over problems; `"flops"` is generator and reward model together.

Example:
    >>> from inferscale.scaling import CostName, CurvePoint, compute_optimal
    >>> def best(points: list[CurvePoint], budget: float, cost: CostName) -> str:
    ...     found = compute_optimal(points, budget, cost)
    ...     return "nothing" if found is None else found.strategy
    >>> points = [
    ...     CurvePoint("RepeatedSampling", "majority", 8, 0.55, 0.02, 500, 900.0, 2e8, 0.0, 0.3),
    ...     CurvePoint("REBASE", "weighted", 4, 0.65, 0.02, 500, 500.0, 1e8, 2e8, 0.5),
    ... ]
    >>> best(points, 2.5e8, "flops"), best(points, 2.5e8, "generator_flops"), best(points, 100, "tokens")
    ('RepeatedSampling', 'REBASE', 'nothing')
"""


def pareto_frontier(points: Iterable[CurvePoint], cost: CostName = "flops") -> list[CurvePoint]:
    """Points that no other point beats (as accurate and cheaper, or better and no dearer), cheapest first.

    Coverage is no method and is left out. Of equal points the first one counts.

    Args:
        points: Points of any strategies and models on the same problems.
        cost: What counts as cost. ``"generator_flops"`` leaves the reward model out, as the figures of Wu et al. 2024
            (arXiv:2408.00724) do: a search that scores its steps then looks cheaper than it is.

    Example:
        >>> from inferscale.scaling import CurvePoint, pareto_frontier
        >>> points = [
        ...     CurvePoint("RepeatedSampling", "majority", 4, 0.50, 0.02, 500, 450.0, 1e8, 0.0, 0.2),
        ...     CurvePoint("RepeatedSampling", "majority", 64, 0.60, 0.02, 500, 7200.0, 1.6e9, 0.0, 2.4),
        ...     CurvePoint("REBASE", "weighted", 4, 0.65, 0.02, 500, 500.0, 1e8, 2e8, 0.5),
        ... ]
        >>> [(point.strategy, point.n) for point in pareto_frontier(points)]  # 64 samples are dearer, and worse
        [('RepeatedSampling', 4), ('REBASE', 4)]
    """
    methods = [p for p in points if p.vote != "coverage"]
    frontier: list[CurvePoint] = []
    for candidate in sorted(methods, key=lambda p: (getattr(p, cost), -p.accuracy)):
        if not frontier or candidate.accuracy > frontier[-1].accuracy:
            frontier.append(candidate)
    return frontier


def compute_optimal(points: Iterable[CurvePoint], budget: float, cost: CostName = "flops") -> CurvePoint | None:
    """The most accurate method whose cost is at most `budget`, the cheapest of equals; ``None`` if all cost more.

    Args:
        points: Points of any strategies and models on the same problems; coverage is left out.
        budget: The most that a problem may cost on average, in the unit of `cost`.
        cost: What counts as cost.

    Example:
        >>> from inferscale.scaling import CurvePoint, compute_optimal
        >>> points = [
        ...     CurvePoint("RepeatedSampling", "majority", 4, 0.50, 0.02, 500, 450.0, 1e8, 0.0, 0.2),
        ...     CurvePoint("REBASE", "weighted", 4, 0.65, 0.02, 500, 500.0, 1e8, 2e8, 0.5),
        ... ]
        >>> [found and found.strategy for found in (compute_optimal(points, budget) for budget in (5e7, 2e8, 1e9))]
        [None, 'RepeatedSampling', 'REBASE']
    """
    affordable = [p for p in pareto_frontier(points, cost) if getattr(p, cost) <= budget]
    return affordable[-1] if affordable else None


@dataclass(frozen=True)
class SizeFit:
    """``log10 C = a * log10 N + b``: the compute C from which on a model of N parameters is the best one.

    Wu et al. 2024 (arXiv:2408.00724) give a = 1.19 and b = 2.03 for Pythia on GSM8K.

    Attributes:
        a: Slope.
        b: Intercept.
        points: Number of fitted points.
        sizes: Number of different sizes among them.

    Example:
        >>> from inferscale.scaling import SizeFit
        >>> pythia = SizeFit(a=1.19, b=2.03, points=10, sizes=5)  # of Wu et al.
        >>> f"{float(pythia.compute(7e9)):.1e} FLOPs, {float(pythia.size(1e12)):.1e} parameters"
        '5.6e+13 FLOPs, 2.4e+08 parameters'
    """

    a: float
    b: float
    points: int
    sizes: int

    def compute(self, parameters: ArrayLike) -> NDArray[np.float64]:
        """FLOPs of a problem at which models of these sizes are optimal."""
        return np.asarray(10 ** (self.a * np.log10(np.asarray(parameters, dtype=np.float64)) + self.b))

    def size(self, flops: ArrayLike) -> NDArray[np.float64]:
        """Optimal number of parameters at a budget of FLOPs."""
        return np.asarray(10 ** ((np.log10(np.asarray(flops, dtype=np.float64)) - self.b) / self.a))


def fit_optimal_size(points: Iterable[CurvePoint], cost: CostName = "flops") -> SizeFit:
    """Least squares over the points of the Pareto frontier: log10 of their cost on log10 of their model's size.

    The optimal size of a model at a budget, as Wu et al. 2024 (arXiv:2408.00724) fit it.

    Args:
        points: Points with `parameters`, of models of one family.
        cost: What counts as cost.

    Raises:
        ValueError: If a point does not say its size, or fewer than two sizes reach the frontier.

    Example:
        >>> from inferscale.scaling import CurvePoint, fit_optimal_size
        >>> def point(size, flops, accuracy):
        ...     measured = (4, accuracy, 0.02, 500, 400.0, flops, 0.0, 1.0)
        ...     return CurvePoint("RepeatedSampling", "majority", *measured, parameters=size)
        >>> fit = fit_optimal_size([point(10**5, 4e7, 0.3), point(10**6, 5e8, 0.5), point(10**7, 6e9, 0.7)])
        >>> f"{float(fit.size(1e9)):.1e} parameters are best for 1e9 FLOPs"
        '1.9e+06 parameters are best for 1e9 FLOPs'
    """
    frontier = pareto_frontier(points, cost)
    missing = [p.name for p in frontier if p.parameters is None]
    if missing:
        raise ValueError(f"the point {missing[0]!r} does not say its model's size: give parameters=...")
    sizes = np.asarray([float(p.parameters or 0) for p in frontier])
    return fit_size(sizes, [getattr(p, cost) for p in frontier])


def fit_size(parameters: ArrayLike, flops: ArrayLike) -> SizeFit:
    """The line through pairs of model size and the compute at which that size is best.

    Args:
        parameters: `[points]` sizes, in parameters.
        flops: `[points]` compute of a problem, in FLOPs.

    Raises:
        ValueError: If there are fewer than two different sizes, or a size or cost is not above 0.

    Example:
        >>> from inferscale.scaling import fit_size
        >>> fit = fit_size([1e8, 1e9, 1e10], [1e11, 1e12, 2e13])  # each size is best from so many FLOPs on
        >>> print(f"log10 C = {fit.a:.2f} log10 N {fit.b:+.2f}")
        log10 C = 1.15 log10 N +1.75
    """
    sizes, compute = np.asarray(parameters, dtype=np.float64), np.asarray(flops, dtype=np.float64)
    if not ((sizes > 0).all() and (compute > 0).all()):
        raise ValueError("a fit needs sizes and costs above 0: what ran on a server has no FLOPs, choose another cost")
    different = len(set(sizes.tolist()))
    if different < 2:
        raise ValueError(f"a fit needs at least two model sizes on the frontier, got {different}: measure more budgets")
    a, b = np.polyfit(np.log10(sizes), np.log10(compute), 1)
    return SizeFit(float(a), float(b), len(sizes), different)


def cost_ratio(
    points: Sequence[CurvePoint],
    better: Callable[[CurvePoint], bool],
    baseline: Callable[[CurvePoint], bool],
    cost: CostName = "flops",
) -> float | None:
    """Factor by which `better` is cheaper where it is as accurate as `baseline` ever gets; ``None`` if it never is.

    This is the figure of table 1 of Wu et al. 2024 (arXiv:2408.00724): the cheapest point of the one at or above the
    best of the other.

    Args:
        points: Points of both methods, and perhaps of others.
        better: True for the points of the method that may be cheaper.
        baseline: True for the points of the method that it is compared with.
        cost: What counts as cost.

    Raises:
        ValueError: If the points hold no baseline, or one that reaches it costs nothing.

    Example:
        >>> from inferscale.scaling import CurvePoint, cost_ratio
        >>> points = [
        ...     CurvePoint("RepeatedSampling", "majority", 64, 0.60, 0.02, 500, 7200.0, 1.6e9, 0.0, 2.4),
        ...     CurvePoint("REBASE", "weighted", 4, 0.65, 0.02, 500, 500.0, 1e8, 2e8, 0.5),
        ... ]
        >>> cost_ratio(points, lambda p: p.strategy == "REBASE", lambda p: p.vote == "majority")
        5.333333333333333
    """
    known = [p for p in points if baseline(p)]
    if not known:
        raise ValueError("no point belongs to the baseline")
    target = min(known, key=lambda p: (-p.accuracy, getattr(p, cost)))
    reached = [getattr(p, cost) for p in points if better(p) and p.accuracy >= target.accuracy]
    if not reached:
        return None
    if min(reached) <= 0:
        raise ValueError(f"a point has a {cost} of 0: what ran on a server has no FLOPs, choose another cost")
    return float(getattr(target, cost) / min(reached))


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
    read_answer: Reader | None = None,
    thinking: Thinking | Literal[False] | None = None,
    same_answer: SameAnswer | None = None,
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
        read_answer: As in `solve`.
        thinking: As in `solve`.
        same_answer: Tells whether two answers are the same, such as a `MathGrader`; by default the equality of the
            problem's kind.
        batch_size: Problems searched at the same time.
        model: Name of the policy, for the points.
        parameters: Its size, for the points.
        progress: Show progress bars.

    Raises:
        ValueError: If a problem has no gold answer, or a vote needs scores and there are none.

    Example:
        >>> from inferscale import Problem, RepeatedSampling
        >>> from inferscale.scaling import scaling_curve
        >>> from inferscale.testing import ToyGenerator
        >>> problems = [Problem(f"Question {i}?", answer="2") for i in range(20)]
        >>> points = scaling_curve(problems, [RepeatedSampling(8)], ToyGenerator(depth=2), votes=["coverage"])
        >>> [(point.n, round(point.accuracy, 2)) for point in points]  # one run gives all smaller numbers
        [(1, 0.25), (2, 0.43), (4, 0.65), (8, 0.8)]
    """
    points = []
    for strategy in strategies:
        runs = [
            solve_batch(
                problems, strategy, generator, reward_model=reward_model, read_answer=read_answer,
                thinking=thinking, budget=budget, seed=seed, batch_size=batch_size, progress=progress,
            )
            for seed in seeds
        ]  # fmt: skip
        points += curve_of_results(
            runs, strategy, votes=votes, sizes=sizes, same_answer=same_answer, model=model, parameters=parameters
        )
    return points


def curve_of_results(
    runs: Sequence[Sequence[SearchResult]],
    strategy: SearchStrategy | str,
    *,
    votes: Sequence[Vote] | None = None,
    sizes: Sequence[int] | None = None,
    same_answer: SameAnswer | None = None,
    correct: Sequence[Sequence[Sequence[bool]]] | None = None,
    **about: Any,
) -> list[CurvePoint]:
    """Points of searches that have been run.

    Args:
        runs: For each seed the results, problems in one order.
        strategy: What was run, or a name for it; a name that is ``"RepeatedSampling"`` means independent samples.
        votes: As in `scaling_curve`.
        sizes: As in `scaling_curve`.
        same_answer: As in `scaling_curve`.
        correct: For each run and problem, whether each trajectory is right, if that is known.
        **about: `memory_bytes`, `model` and `parameters` of the points.

    Raises:
        ValueError: If there are no results, runs differ in their problems, a problem has no gold answer, or a vote
            needs scores and there are none.

    Example:
        >>> from inferscale import Problem, RepeatedSampling, solve_batch
        >>> from inferscale.scaling import curve_of_results
        >>> from inferscale.testing import ToyGenerator
        >>> problems = [Problem(f"Question {i}?", answer="2") for i in range(20)]
        >>> runs = [solve_batch(problems, RepeatedSampling(8), ToyGenerator(depth=2), seed=seed) for seed in (0, 1)]
        >>> for point in curve_of_results(runs, RepeatedSampling(8), votes=["coverage"]):
        ...     print(point.n, f"{point.accuracy:.2f} for {point.tokens:.0f} tokens")
        1 0.28 for 11 tokens
        2 0.46 for 22 tokens
        4 0.68 for 44 tokens
        8 0.85 for 89 tokens
    """
    if not runs or not runs[0] or any(_prompts(results) != _prompts(runs[0]) for results in runs[1:]):
        raise ValueError("a curve needs at least one run with results, and the same problems in each")
    evidence = [
        gather_evidence(results, same_answer, None if correct is None else correct[index])
        for index, results in enumerate(runs)
    ]
    chosen = _checked_votes(votes, evidence)
    about["abstentions"] = sum((result.abstentions for results in runs for result in results), Abstentions())
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
    wanted = powers(most) if sizes is None else list(sizes)
    whole = [[padded(item, most) for item in run] for run in evidence]
    points = []
    for vote in votes:
        for k in wanted:
            values = np.mean([sampling_values(run, vote, k) for run in whole], axis=0)
            cost = np.mean([[item.shared + k * item.each for item in run] for run in whole], axis=0)
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
        values = np.mean([[sampling_values([item], vote, item.size)[0] for item in run] for run in evidence], axis=0)
        points.append(point(values, cost, strategy, vote, most, True, **about))
    return points


def sampling_values(items: Sequence[Evidence], vote: Vote, k: int) -> Floats:
    """`[P]`: expected correctness of the vote over k of the samples of each problem."""
    ids = np.stack([item.ids for item in items])
    correct = np.stack([item.correct for item in items])
    if vote == "coverage":
        return np.asarray(pass_at_k(correct, k))
    if vote == "majority":
        return np.asarray(majority_at_k(ids, correct, k))
    if vote == "best-of-n":
        return np.asarray(best_of_k(np.stack([item.merits for item in items]), correct, k))
    scores = np.stack([item.scores for item in items if item.scores is not None])
    rng = np.random.default_rng(k)  # which subsets are drawn depends on k alone
    expected, _ = weighted_majority_at_k(
        ids, correct, k, scores, scores, rng=rng, max_subsets=_SUBSETS, num_subsets=_SUBSETS
    )
    return np.asarray(expected)


def padded(item: Evidence, size: int) -> Evidence:
    """The evidence with samples that failed as abstentions."""
    extra = size - item.size
    if not extra:
        return item
    scores = None if item.scores is None else np.pad(item.scores, (0, extra))
    each = item.each * item.size / size  # what was paid is spread over all samples that were asked for
    return Evidence(
        np.pad(item.ids, (0, extra), constant_values=-1), np.pad(item.correct, (0, extra)), scores,
        np.pad(item.merits, (0, extra), constant_values=-1), item.shared, each,
    )  # fmt: skip


def _prompts(results: Sequence[SearchResult]) -> list[str]:
    return [result.problem.stream for result in results]


def powers(most: int) -> list[int]:
    """The powers of two up to `most`, and `most`."""
    return sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})
