"""Pure Python cost of the core per generated step: searches over a fake model that costs next to nothing.

Run with ``python -m benchmarks.core``. The fake returns one ready-made step each time, so what is measured is the
engine, the strategy and the tree, in CPU time, so that other work on the machine does not count. The time inside the
fake is measured too and taken off. Where ``treequest`` is installed, its adaptive branching search is timed beside,
over as many nodes of one tree.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Sequence
from typing import Any

from inferscale.base import Generator, RewardModel, SearchStrategy
from inferscale.engine import solve_batch
from inferscale.flow import GenerateRequest
from inferscale.strategies import ABMCTS, MCTS, AdaptiveConsistency, DeepConf, ParticleFilter, SelfRefine, registry
from inferscale.tree import Node, Step

OPEN = Step("3 + 4 = 7\n", (3, 4, 7, 1), -1.0, -0.3, flops=1000)
DONE = Step("The answer is 7", (5, 7, 2), -0.5, -0.2, "eos", flops=1000)


class InstantGenerator(Generator):
    """Ready-made steps; a path ends after `depth` of them."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.seconds = 0.0

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """The same step for every sample of a level."""
        start = time.process_time()
        answer = [[DONE if r.until == "end" or r.node.depth + 1 >= self.depth else OPEN] * r.n for r in requests]
        self.seconds += time.process_time() - start
        return answer


class InstantReward(RewardModel):
    """Scores spread by position."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """Numbers in (0, 1)."""
        start = time.process_time()
        answer = [(index * 0.618034) % 1 for index in range(len(nodes))]
        self.seconds += time.process_time() - start
        return answer


def strategies(width: int) -> list[SearchStrategy]:
    """Every strategy at about `width` samples or expansions, and those whose options change what is computed."""
    quarter = max(1, width // 4)
    return [
        *(entry.make(width) for entry in registry().values()),
        MCTS(width, selection="puct", prior="logprob"),
        MCTS(width, selection="gumbel"),
        MCTS(width, evaluate="rollout"),
        MCTS(width, widening=0.5),
        MCTS(width, num_parallel=8),
        ABMCTS(width, posterior="beta"),
        ABMCTS(width, until="step"),
        ParticleFilter(width, 1.0, "residual", tempering="entropy"),
        AdaptiveConsistency(width, rule="dirichlet"),
        DeepConf(quarter, width, consensus=None),
        SelfRefine(4, n=quarter, stop=""),
    ]


def microseconds_per_step(strategy: SearchStrategy, problems: int, depth: int) -> tuple[float, int]:
    """Core time per generated step, and the number of steps."""
    generator, reward = InstantGenerator(depth), InstantReward()
    prompts = [f"problem {index}" for index in range(problems)]
    start = time.process_time()
    results = solve_batch(prompts, strategy, generator, reward_model=reward)
    seconds = time.process_time() - start - generator.seconds - reward.seconds
    steps = sum(result.cost.num_generated for result in results)
    return seconds / steps * 1e6, steps


def treequest_microseconds_per_node(nodes: int) -> float:
    """Cost of treequest per node for one tree of its standard MCTS on an instant action."""
    treequest: Any = importlib.import_module("treequest")
    algorithm = treequest.StandardMCTS(samples_per_action=2)
    state = algorithm.init_tree()
    start = time.process_time()
    for index in range(nodes):
        state = algorithm.step(state, {"go": lambda _, index=index: ("text", (index * 0.618034) % 1)})
    return (time.process_time() - start) / nodes * 1e6


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.problems} problems, depth {options.depth}, best of {options.repeats}")
    for strategy in strategies(options.width):
        runs = [microseconds_per_step(strategy, options.problems, options.depth) for _ in range(options.repeats)]
        best, steps = min(runs)
        print(f"{best:7.1f} us per generated step  {steps:7d} steps  {strategy}")
    if importlib.util.find_spec("treequest") is None:
        print("treequest is not installed: no peer to compare with (pip install treequest)")
        return
    for nodes in (200, 800):
        print(f"{treequest_microseconds_per_node(nodes):7.1f} us per node  treequest StandardMCTS, {nodes} nodes")


if __name__ == "__main__":
    main()
