"""The experiments of Wu et al. 2024 (arXiv:2408.00724) and the questions behind them, for any models.

Each function measures and returns points (`inferscale.scaling.CurvePoint`); `inferscale.viz` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inferscale.base import Generator, ProcessRewardModel, RewardModel, SearchStrategy
from inferscale.evaluate.datasets import Example, PromptStyle
from inferscale.functional import Reduction
from inferscale.scaling import CostName, CurvePoint, compute_optimal, cost_ratio, scaling_curve, split_by
from inferscale.strategies import MCTS, REBASE, Greedy, RepeatedSampling
from inferscale.tree import Node, Problem
from inferscale.zoo import simulated_score
from inferscale.zoo.task import step_labels


class SimulatedReward(ProcessRewardModel):
    """The exact checker of the embedded task plus noise of a chosen quality; not a trained model, and it costs nothing.

    Attributes:
        auc: Chance that a right prefix outscores a wrong one, between 0.5 and 1.
        reduction: How step scores become one score.
    """

    def __init__(self, auc: float, reduction: Reduction = "last") -> None:
        simulated_score("", True, auc)  # refuses a quality out of range
        self.auc = auc
        self.reduction = reduction

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """For each node, one score for each of its steps; the same prefix always gets the same one."""
        return [self._scores(node) for node in nodes]

    def _scores(self, node: Node) -> list[float]:
        scores, text = [], ""
        for piece, _ in node.inner_steps():
            text += piece
            right = all(step_labels(node.problem.prompt, text))
            scores.append(simulated_score(node.problem.prompt + text, right, self.auc))
        return scores


def compare_strategies(
    problems: Sequence[Problem],
    generator: Generator,
    reward_model: RewardModel,
    sizes: Sequence[int] = (4, 16, 64),
    mcts: bool = True,
    **options: Any,
) -> list[CurvePoint]:
    """Greedy, sampling, REBASE and Monte Carlo tree search, every vote: the comparison of strategies at one model.

    Args:
        problems: Problems with gold answers.
        generator: The policy.
        reward_model: Scores steps.
        sizes: Widths of REBASE and simulations of MCTS; sampling is run once at the greatest, which gives the others.
        mcts: Whether MCTS is run (one expansion at a time: many small model calls). It has 4 children at the root
            and 2 elsewhere, as the smallest setting of the paper.
        **options: As in `scaling_curve`.
    """
    strategies: list[SearchStrategy] = [Greedy(), RepeatedSampling(max(sizes)), *map(REBASE, sizes)]
    if mcts:
        strategies += [MCTS(size, c_uct=1.0, root_branching=4, branching=2) for size in sizes]
    options.setdefault("sizes", sorted({1, *sizes}))
    return scaling_curve(problems, strategies, generator, reward_model=reward_model, **options)


def temperature_sweep(
    problems: Sequence[Problem],
    generator: Generator,
    reward_model: RewardModel,
    width: int = 16,
    temperatures: Sequence[float] = (0.05, 0.1, 0.2, 0.5, 1.0),
    **options: Any,
) -> dict[float, list[CurvePoint]]:
    """REBASE at several softmax temperatures T_b: the lower, the more of the width goes to the best prefixes."""
    return {
        t: scaling_curve(
            problems, [REBASE(width, softmax_temperature=t)], generator, reward_model=reward_model, **options
        )
        for t in temperatures
    }


def reward_quality_sweep(
    problems: Sequence[Problem],
    generator: Generator,
    aucs: Sequence[float] = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
    width: int = 16,
    reduction: Reduction = "last",
    **options: Any,
) -> dict[float, list[CurvePoint]]:
    """Sampling and REBASE with a simulated reward model of rising quality (embedded task): where search begins to pay.

    Args:
        problems: Problems of the embedded task.
        generator: The policy.
        aucs: Qualities of `SimulatedReward`.
        width: Samples, and leaves of REBASE.
        reduction: How step scores become one score.
        **options: As in `scaling_curve`.
    """
    options.setdefault("sizes", [width])
    judged = {str(auc): SimulatedReward(auc, reduction) for auc in aucs}
    points = compare_rewards(problems, judged, [RepeatedSampling(width), REBASE(width)], generator, **options)
    return {auc: points[str(auc)] for auc in aucs}


def curves_by_group(
    problems: Sequence[Problem], groups: Sequence[str], strategies: Sequence[SearchStrategy], generator: Generator,
    **options: Any,
) -> dict[str, list[CurvePoint]]:  # fmt: skip
    """Points of each group of problems apart, for example by level: where a strategy gains and where it does not."""
    return {
        name: scaling_curve(members, strategies, generator, **options)
        for name, members in split_by(problems, groups).items()
    }


def easy_or_hard(group: str) -> str:
    """The half of MATH's five levels that ``"level N"`` belongs to, as Wu et al. split them: easy 1-2, hard 3-5.

    Raises:
        ValueError: If the group is no level.
    """
    name, _, level = group.partition(" ")
    if name != "level" or level not in {"1", "2", "3", "4", "5"}:
        raise ValueError(f"group {group!r} is no level: split MATH or the embedded task, or use curves_by_group")
    return "easy (levels 1-2)" if level in {"1", "2"} else "hard (levels 3-5)"


def compare_styles(
    examples: Sequence[Example], styles: Mapping[str, PromptStyle], strategies: Sequence[SearchStrategy],
    generator: Generator, **options: Any,
) -> dict[str, list[CurvePoint]]:  # fmt: skip
    """Points of each prompt style over the same rows: what a chain of thought is worth against a direct answer.

    Args:
        examples: Rows with gold answers, for example from `load_examples`.
        styles: Styles by name; each reads answers in its own way.
        strategies: What is run with every style.
        generator: The policy.
        **options: As in `scaling_curve`.
    """
    return {
        name: scaling_curve(
            [style.problem(example) for example in examples], strategies, generator,
            **{"read_answer": style.reader(), **options},
        )
        for name, style in styles.items()
    }  # fmt: skip


def compare_rewards(
    problems: Sequence[Problem], rewards: Mapping[str, RewardModel], strategies: Sequence[SearchStrategy],
    generator: Generator, **options: Any,
) -> dict[str, list[CurvePoint]]:  # fmt: skip
    """Points of the same strategies judged by each reward model."""
    return {
        name: scaling_curve(problems, strategies, generator, reward_model=reward, **options)
        for name, reward in rewards.items()
    }


def table_of_savings(points: Sequence[CurvePoint], cost: CostName = "flops") -> list[dict[str, Any]]:
    """For each model, what REBASE needs to match the best that weighted sampling reaches (table 1 of the paper).

    Args:
        points: Points of sampling and REBASE with the vote ``"weighted"``.
        cost: ``"generator_flops"`` is the paper's, which leaves the reward model out; ``"flops"`` is the whole bill.

    Returns:
        A row for each model: accuracies and costs of the best sampling point and of REBASE's best within that
        cost, and ``saving``: how many times less REBASE needs to be as good, ``None`` where it never is.

    Raises:
        ValueError: If a model has no point of sampling, or one of REBASE costs nothing.
    """
    weighted = [p for p in points if p.vote == "weighted"]
    models = dict.fromkeys(p.model for p in weighted)
    return [_saving([p for p in weighted if p.model == model], cost) for model in models]


def _saving(points: Sequence[CurvePoint], cost: CostName) -> dict[str, Any]:
    sampling = [p for p in points if p.strategy == "RepeatedSampling"]
    rebase = [p for p in points if p.strategy.startswith("REBASE")]
    if not sampling:
        raise ValueError(f"model {points[0].model!r} has no point of weighted sampling to compare REBASE with")
    best = min(sampling, key=lambda p: (-p.accuracy, getattr(p, cost)))
    within = compute_optimal(rebase, getattr(best, cost), cost)
    return {
        "model": best.model,
        "sampling": best.accuracy,
        "sampling_n": best.n,
        "sampling_cost": getattr(best, cost),
        "rebase": None if within is None else within.accuracy,
        "rebase_n": None if within is None else within.n,
        "rebase_cost": None if within is None else getattr(within, cost),
        "saving": cost_ratio(points, lambda p: p in rebase, lambda p: p in sampling, cost),
    }
