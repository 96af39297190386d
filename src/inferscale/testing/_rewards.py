"""Whether a reward model keeps its promises."""

from __future__ import annotations

import math
from collections.abc import Sequence

from inferscale.base import ProcessRewardModel, RewardModel
from inferscale.cost import Cost
from inferscale.flow import GenerateRequest
from inferscale.functional import reduce_steps
from inferscale.tree import Node, Problem, branch_key

from ._toys import PROMPTS, ToyGenerator


def check_reward_model(
    reward_model: RewardModel, prompts: Sequence[str] = PROMPTS, nodes: Sequence[Node] | None = None
) -> None:
    """Runs a reward model on toy solutions and raises an `AssertionError` that says which promise it breaks.

    The promises: one finite number for each node, in order; the same again, alone and in any batch and order, before
    and after `release`; one cost for each node, never negative; a process reward model gives one number for each
    inner step, and its score is their reduction.

    Args:
        reward_model: The model.
        prompts: Problems to score solutions of.
        nodes: Solutions of your own instead, for a model that cannot read the toy's text.
    """
    given = _solutions(prompts) if nodes is None else list(nodes)
    name = type(reward_model).__name__
    costs = reward_model.cost(given)
    assert len(costs) == len(given), f"{name}.cost() gave {len(costs)} costs for {len(given)} nodes"
    for cost in costs:
        assert isinstance(cost, Cost), f"{name}.cost() gave {cost!r}: give Cost objects"
        assert min(cost.scored_tokens, cost.reward_flops) >= 0, f"{name}.cost() gave the negative {cost!r}"
    scores = _scores(reward_model, given)
    assert _scores(reward_model, []) == [], f"{name} scores no nodes as something"
    _same(name, "scored twice", scores, _scores(reward_model, given))
    _same(name, "in reversed order", scores, _scores(reward_model, given[::-1])[::-1])
    _same(name, "alone", scores, [_scores(reward_model, [node])[0] for node in given])
    for root in dict.fromkeys(node.root for node in given):
        reward_model.release(root)
    _same(name, "after release", scores, _scores(reward_model, given))
    if isinstance(reward_model, ProcessRewardModel):
        _check_steps(reward_model, given, scores)


def _solutions(prompts: Sequence[str]) -> list[Node]:
    """For each prompt two paths of one to four steps, and a completion in one piece."""
    generator, nodes = ToyGenerator(), []
    for place, prompt in enumerate(prompts):
        root = Node(Problem(prompt), key=place + 1)
        for draw in range(2):
            node = root
            while not node.is_finished:
                step = generator.generate([GenerateRequest(node, first=draw)])[0][0]
                node = Node(root.problem, step, node, branch_key(node.key, draw))
                nodes.append(node)
        whole = generator.generate([GenerateRequest(root, until="end", first=2)])[0][0]
        nodes.append(Node(root.problem, whole, root, branch_key(root.key, 2)))
    return nodes


def _scores(model: RewardModel, nodes: Sequence[Node]) -> list[float]:
    name = type(model).__name__
    scores = list(model.score(nodes))
    assert len(scores) == len(nodes), f"{name} gave {len(scores)} scores for {len(nodes)} nodes"
    for node, score in zip(nodes, scores, strict=True):
        finite = isinstance(score, int | float) and math.isfinite(score)
        assert finite, f"{name} scored {node!r} as {score!r}: a score is a finite number"
    return scores


def _same(name: str, when: str, expected: Sequence[float], found: Sequence[float]) -> None:
    for first, other in zip(expected, found, strict=True):
        close = math.isclose(first, other, rel_tol=1e-4, abs_tol=1e-5)
        assert close, f"{name} gives another score {when}: {first!r} and {other!r}"


def _check_steps(model: ProcessRewardModel, nodes: Sequence[Node], scores: Sequence[float]) -> None:
    name = type(model).__name__
    for node, score, values in zip(nodes, scores, model.step_scores(nodes), strict=True):
        steps = len(node.inner_steps())
        assert len(values) == steps, f"{name} gave {len(values)} step scores for the {steps} steps of {node!r}"
        reduced = float(reduce_steps(values, model.reduction))
        assert math.isclose(score, reduced, rel_tol=1e-4, abs_tol=1e-5), (
            f"{name} scores {node!r} {score!r}, but its step scores {values!r} reduce to {reduced!r}"
        )
