"""What a process reward model gives to the steps of labelled solutions."""

from __future__ import annotations

from collections.abc import Sequence

from inferscale.base import ProcessRewardModel

from .labels import LabelledSolution


def labelled_scores(
    model: ProcessRewardModel, solutions: Sequence[LabelledSolution]
) -> list[list[tuple[float, float]]]:
    """For each solution, score and label of its judged steps.

    Raises:
        ValueError: If the model gives another number of scores than there are steps.
    """
    rows = []
    for item, scores in zip(solutions, solution_scores(model, solutions), strict=True):
        rows.append([(score, label) for score, label in zip(scores, item.labels, strict=True) if label is not None])
    return rows


def solution_scores(model: ProcessRewardModel, solutions: Sequence[LabelledSolution]) -> list[list[float]]:
    """The step scores of each solution.

    Raises:
        ValueError: If the model gives another number of scores than there are steps.
    """
    nodes = [item.node() for item in solutions]
    lists = model.step_scores(nodes)
    for node in {node.root.key: node.root for node in nodes}.values():
        model.release(node)
    if len(lists) != len(solutions):
        raise ValueError(f"{type(model).__name__} scored {len(lists)} of {len(solutions)} solutions")
    for item, scores in zip(solutions, lists, strict=True):
        if len(scores) != len(item.steps):
            name = type(model).__name__
            raise ValueError(
                f"{name} gave {len(scores)} scores for {len(item.steps)} steps of {item.problem.prompt!r:.80}"
            )
    return lists
