"""Search with the embedded models at measured FLOPs: ``python -m studies.embedded.search --problems 200``.

Every row is one method on the same problems of the development set (``--split test`` for final figures): the share
solved with its standard error over problems, and the mean FLOPs of generator and reward model a problem. Samples that
several votes share are drawn once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from inferscale import (
    REBASE,
    Aggregator,
    BestOfN,
    HFGenerator,
    HFProcessRewardModel,
    LikelihoodReward,
    MajorityVote,
    RepeatedSampling,
    RewardModel,
    SearchResult,
    SearchStrategy,
    solve_batch,
    zoo,
)

VOTES: dict[str, Aggregator] = {
    "majority": MajorityVote(),
    "weighted": MajorityVote(weighted=True),
    "best-of-n": BestOfN(drop_abstentions=True),
}


def reward_of(name: str) -> RewardModel:
    """A reward model by name: an embedded one, or the likelihood under policy-m; steps are reduced by their minimum.

    The likelihood reads steps as they were sampled: a separator put after the answer, which no policy writes there,
    would decide every vote.
    """
    if name == "likelihood":
        return LikelihoodReward(
            *zoo.load("policy-m"), token_reduction="min", reduction="min", use_token_ids=True, step_separator=None
        )
    return HFProcessRewardModel(*zoo.load(name), good_token="<good>", bad_token="<bad>", reduction="min")


def rows(policy: str, reward: str, strategy: SearchStrategy, results: Sequence[SearchResult]) -> Iterable[str]:
    """A line of the table for each vote."""
    generator = mean(result.cost.generator_flops for result in results) / 1e6
    judge = mean(result.cost.reward_flops for result in results) / 1e6
    for vote, aggregator in VOTES.items():
        solved = [aggregator.select(r.trajectories).answer == r.problem.answer for r in results]
        error = stdev(map(float, solved)) / len(solved) ** 0.5
        name = type(strategy).__name__
        yield (
            f"| {policy} | {name} {width_of(strategy)} | {reward} | {vote} | {mean(solved):.3f} ± {error:.3f} "
            f"| {generator:.0f} | {judge:.0f} |"
        )


def width_of(strategy: SearchStrategy) -> int:
    """How many solutions a strategy aims at."""
    return strategy.width if isinstance(strategy, REBASE) else getattr(strategy, "n", 1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", nargs="+", default=["policy-s"])
    parser.add_argument("--rewards", nargs="+", default=["prm-s", "likelihood"])
    parser.add_argument("--widths", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    problems = zoo.problems(options.split)[: options.problems]
    print("| policy | search | reward | vote | solved | generator MFLOPs | reward MFLOPs |\n|" + "---|" * 7)
    for policy in options.policies:
        generator = HFGenerator(*zoo.load(policy), temperature=1.0, max_new_tokens=160)
        for reward in options.rewards:
            model = reward_of(reward)
            for width in options.widths:
                for strategy in (RepeatedSampling(width), REBASE(width)):
                    results = solve_batch(problems, strategy, generator, reward_model=model, seed=options.seed)
                    print("\n".join(rows(policy, reward, strategy, results)), flush=True)


if __name__ == "__main__":
    main()
