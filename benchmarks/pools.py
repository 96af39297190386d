"""Accuracy against total tokens when many problems share one budget, beside uniform shares.

Run with ``python -m benchmarks.pools``. The embedded test problems are solved with `RepeatedSampling` under pools that
hold so many samples for each problem on average. Votes read answers alone; best-of-n reads the trained judge, whose
tokens are not counted. Differences to uniform shares are paired by problem, over all seeds.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence

from inferscale import zoo
from inferscale.aggregators import BestOfN, MajorityVote
from inferscale.base import Aggregator, RewardModel
from inferscale.cost import Budget
from inferscale.engine import solve_batch
from inferscale.generators import HFGenerator
from inferscale.rewards import HFProcessRewardModel
from inferscale.strategies import AdaptiveVote, Allocation, Bandit, ByDifficulty, Pandora, RepeatedSampling, Uniform


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of the values."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1) / len(values))


def main() -> None:
    """Prints the table, row by row as they are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200, help="test problems, at most 500")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 8, 16], help="mean samples of a problem")
    parser.add_argument("--policy", default="policy-s")
    parser.add_argument("--judge", default="prm-s", help="the name of an embedded reward model; empty leaves it out")
    options = parser.parse_args()
    started = time.perf_counter()
    generator = HFGenerator(*zoo.load(options.policy), max_new_tokens=160)
    problems = random.Random(0).sample(zoo.problems("test"), options.problems)
    probe = solve_batch(problems[:40], RepeatedSampling(4), generator)
    each = sum(result.cost.tokens for result in probe) / sum(result.cost.num_generated for result in probe)
    print(f"{len(problems)} test problems, {options.seeds} seeds, {options.policy}; {each:.0f} tokens a sample")
    print("accuracy in % (difference to uniform shares \u00b1 its standard error, paired; tokens a problem)")
    print(f"{'':34}" + "".join(f"{f'{samples} samples':>30}" for samples in options.samples))
    votes: list[tuple[str, Aggregator, RewardModel | None, list[Allocation]]] = [
        ("majority", MajorityVote(), None, [Uniform(), ByDifficulty(), AdaptiveVote(20), AdaptiveVote(100)])
    ]
    if options.judge:
        judge = HFProcessRewardModel(*zoo.load(options.judge), good_token="<good>", bad_token="<bad>", reduction="min")
        votes.append(("best of n", BestOfN(), judge, [Uniform(), Bandit(), Pandora(0.01)]))
    for vote, aggregator, reward, rules in votes:
        base: dict[int, list[float]] = {}
        for rule in rules:
            name = type(rule).__name__ + (f"({rule.bayes_factor:g})" if isinstance(rule, AdaptiveVote) else "")
            cells = ""
            for samples in options.samples:
                pool = Budget(tokens=round(samples * each * len(problems)))
                runs = [
                    solve_batch(
                        problems, RepeatedSampling(16 * samples), generator, reward_model=reward,
                        aggregator=aggregator, seed=seed, pool=pool, allocation=rule,
                    )
                    for seed in range(options.seeds)
                ]  # fmt: skip
                right = [sum(bool(run[i].is_correct) for run in runs) / len(runs) for i in range(len(problems))]
                tokens = sum(result.cost.tokens for run in runs for result in run) / len(runs) / len(problems)
                gains = [a - b for a, b in zip(right, base.setdefault(samples, right), strict=True)]
                gain = f"{100 * sum(gains) / len(gains):+.1f} \u00b1 {100 * standard_error(gains):.1f}"
                accuracy = 100 * sum(right) / len(right)
                cells += f"{f'{accuracy:.1f} ({gain}; {tokens:.0f})':>30}"
            print(f"{vote + ', ' + name:34}" + cells, flush=True)
    print(f"{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
