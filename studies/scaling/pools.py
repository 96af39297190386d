"""One budget for many problems, on the recorded samples: accuracy against total tokens, beside uniform shares.

The engine runs as it would with the models: a generator hands out the recorded samples in their order, which are those
that the model would draw, and a judge their recorded scores. A sample has the mean tokens of its problem's samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from inferscale import zoo
from inferscale.aggregators import BestOfN, MajorityVote
from inferscale.base import Aggregator, Generator, RewardModel
from inferscale.cost import Budget
from inferscale.engine import solve_batch
from inferscale.flow import GenerateRequest
from inferscale.strategies import AdaptiveVote, Allocation, Bandit, ByDifficulty, Pandora, RepeatedSampling, Uniform
from inferscale.tree import Node, Problem, Step

from .report import Floats, Records, mean_and_error, pick, shown

SAMPLES = (4, 8, 16)


class Recorded(Generator):
    """The samples of a record; a step's only id is its place among those of its problem."""

    def __init__(self, record: dict[str, Any]) -> None:
        self._samples, self._tokens = record["samples"], record["tokens"]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """The next samples of each problem."""
        return [[self._step(int(r.node.problem.id or 0), r.first + i) for i in range(r.n)] for r in requests]

    def _step(self, problem: int, place: int) -> Step:
        answer = self._samples[problem]["answers"][place]
        return Step(str(answer or "?"), (place,), finish_reason="eos", num_tokens=self._mean(problem))

    def _mean(self, problem: int) -> int:
        mean: float = self._tokens[problem] / len(self._samples[problem]["answers"])
        return round(mean)

    def max_sample_tokens(self, request: GenerateRequest) -> int:
        """Those that it has."""
        return self._mean(int(request.node.problem.id or 0))


class RecordedJudge(RewardModel):
    """The scores of a record."""

    def __init__(self, record: dict[str, Any], reduction: str) -> None:
        self._samples, self._reduction = record["samples"], reduction

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """One for each node."""
        places = [(int(node.problem.id or 0), node.token_ids[0]) for node in nodes]
        return [self._samples[problem]["scores"][self._reduction][place] for problem, place in places]


def problems_of(record: dict[str, Any]) -> list[Problem]:
    """The test problems, with an answer that the record holds to be right."""
    found = []
    for place, (problem, s) in enumerate(zip(zoo.problems("test"), record["samples"], strict=False)):
        right = next((a for a, flag in zip(s["answers"], s["right"], strict=True) if flag), "none is right")
        found.append(Problem(problem.prompt, right, str(place)))
    return found


def outcome(
    record: dict[str, Any], rule: Allocation, aggregator: Aggregator, judge: RewardModel | None, samples: int
) -> tuple[Floats, float]:
    """Whether each problem is answered rightly by a pool of so many samples each, and the mean tokens of a problem."""
    problems = problems_of(record)
    each = sum(record["tokens"]) / len(problems) / 64
    results = solve_batch(
        problems, RepeatedSampling(64), Recorded(record), reward_model=judge, aggregator=aggregator,
        read_answer=lambda text: None if text == "?" else text,
        pool=Budget(tokens=round(samples * each * len(problems))), allocation=rule,
    )  # fmt: skip
    right = np.array([float(bool(result.is_correct)) for result in results])
    return right, sum(result.cost.tokens for result in results) / len(results)


def pools(
    records: Records, policy: str, reward: str, reduction: str, seeds: Sequence[int] = (0, 1, 2)
) -> Iterable[str]:
    """A table of rules for votes and for best-of-n, with their differences to uniform shares."""
    runs = pick(records, policy=policy, reward=reward, strategy="RepeatedSampling", n=64)
    runs = [run for run in runs if run["seed"] in seeds]
    yield f"{policy}, {reward}, {reduction}; seeds {', '.join(str(run['seed']) for run in runs)}"
    yield "accuracy in % (difference to uniform shares, paired by problem; tokens a problem)"
    yield "| rule | " + " | ".join(f"{samples} samples" for samples in SAMPLES) + " |"
    yield "|---" * (1 + len(SAMPLES)) + "|"
    rules: list[tuple[str, Aggregator, Sequence[Allocation]]] = [
        ("majority", MajorityVote(), [Uniform(), ByDifficulty(), AdaptiveVote(20), AdaptiveVote(100)]),
        ("best of n", BestOfN(drop_abstentions=True), [Uniform(), Bandit(), Pandora(0.02)]),
    ]
    for vote, aggregator, of_vote in rules:
        base: dict[int, Floats] = {}
        for rule in of_vote:
            name = type(rule).__name__ + (f"({rule.bayes_factor:g})" if isinstance(rule, AdaptiveVote) else "")
            cells = []
            for samples in SAMPLES:
                judges = [None if vote == "majority" else RecordedJudge(run, reduction) for run in runs]
                found = [
                    outcome(run, rule, aggregator, judge, samples) for run, judge in zip(runs, judges, strict=True)
                ]
                right = np.array([each for each, _ in found])
                gain, error = mean_and_error(right - base.setdefault(samples, right))
                tokens = sum(tokens for _, tokens in found) / len(found)
                cells.append(f"{shown(right)} ({100 * gain:+.1f} ± {100 * error:.1f}; {tokens:.0f})")
            yield f"| {vote}, {name} | " + " | ".join(cells) + " |"
