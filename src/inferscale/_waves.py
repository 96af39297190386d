"""One shared generate call and one shared score call for all searches that are under way."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from ._search import Search
from .base import Generator, ProcessRewardModel, RewardModel
from .cost import Cost
from .flow import GenerateRequest
from .functional import reduce_steps
from .journal import Journal
from .tree import Node, Step


def generate_wave(active: Sequence[Search], generator: Generator, journal: Journal) -> None:
    """Draws what the searches ask for, in one call of the generator."""
    wave: list[tuple[Search, list[GenerateRequest]]] = []
    for search in active:
        portion = search.portion(generator)
        while portion and (recorded := journal.recorded_steps(search.root, portion)) is not None:
            search.attach(portion, recorded.steps, recorded.seconds)
            portion = search.portion(generator)
            if not portion:
                break
        if portion:
            wave.append((search, portion))
    requests = [request for _, portion in wave for request in portion]
    if not requests:
        return
    started = time.perf_counter()
    answers = _checked_steps(requests, generator.generate(requests), generator)
    seconds = (time.perf_counter() - started) / sum(request.n for request in requests)
    position = 0
    for search, portion in wave:
        share = seconds * sum(request.n for request in portion)
        steps = answers[position : position + len(portion)]
        position += len(portion)
        journal.record_steps(search.root, portion, steps, share)
        search.attach(portion, steps, share)
    journal.flush()


def _checked_steps(
    requests: Sequence[GenerateRequest], answers: Sequence[Sequence[Step]], generator: Generator
) -> Sequence[Sequence[Step]]:
    name = type(generator).__name__
    if len(answers) != len(requests):
        raise ValueError(
            f"{name}.generate() answered {len(answers)} of {len(requests)} requests: answer each, in order"
        )
    for request, steps in zip(requests, answers, strict=True):
        if len(steps) != request.n:
            raise ValueError(f"{name}.generate() returned {len(steps)} steps where {request.n} were asked for")
        if not all(isinstance(step, Step) for step in steps):
            raise TypeError(f"{name}.generate() must return Step objects, not {type(steps[0]).__name__}")
    return answers


def score_wave(active: Sequence[Search], reward_model: RewardModel | None, journal: Journal) -> None:
    """Scores what the searches ask for, in one call of the reward model."""
    wave: list[tuple[Search, tuple[Node, ...]]] = []
    for search in active:
        nodes = search.to_score()
        if nodes and reward_model is None:
            raise ValueError(f"{search.strategy!r} scores its nodes: pass reward_model=...")
        if nodes and (recorded := journal.recorded_scores(search.root, nodes)) is not None:
            recorded.give(nodes)
            search.scored(recorded.cost)
        elif nodes:
            wave.append((search, nodes))
    if not wave or reward_model is None:
        return
    everything = [node for _, nodes in wave for node in nodes]
    started = time.perf_counter()
    costs = reward_model.cost(everything)
    _give_scores(everything, reward_model)
    seconds = (time.perf_counter() - started) / len(everything)
    position = 0
    for search, nodes in wave:
        bill = _sum_costs(costs[position : position + len(nodes)], seconds)
        position += len(nodes)
        journal.record_scores(search.root, nodes, bill)
        search.scored(bill)
    journal.flush()


def _sum_costs(costs: Sequence[Cost], seconds_each: float) -> Cost:
    scored = sum(cost.scored_tokens for cost in costs)
    flops = sum(cost.reward_flops for cost in costs)
    return Cost(scored_tokens=scored, reward_flops=flops, seconds=seconds_each * len(costs), num_scored=len(costs))


def _give_scores(nodes: Sequence[Node], reward_model: RewardModel) -> None:
    name = type(reward_model).__name__
    if isinstance(reward_model, ProcessRewardModel):
        lists = reward_model.step_scores(nodes)
        _check_count(lists, nodes, name)
        for node, step_scores in zip(nodes, lists, strict=True):
            node.step_scores = tuple(_checked_score(value, node, name) for value in step_scores)
            if not node.step_scores:
                raise ValueError(f"{name} gave no step score to {node!r}: give one for each step of the path")
            node.score = float(reduce_steps(node.step_scores, reward_model.reduction))
        return
    scores = reward_model.score(nodes)
    _check_count(scores, nodes, name)
    for node, value in zip(nodes, scores, strict=True):
        node.score = _checked_score(value, node, name)


def _check_count(scores: Sequence[object], nodes: Sequence[Node], name: str) -> None:
    if len(scores) != len(nodes):
        raise ValueError(f"{name} returned {len(scores)} scores for {len(nodes)} nodes: return one for each, in order")


def _checked_score(value: object, node: Node, name: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} scored {node!r} as {value!r}: a score must be a finite number")
    return number
