"""Evaluations for tests that kill them: a toy, and the embedded policy.

``python -m tests.evaluation_worker FOLDER BYTES KILLS SEED`` runs the embedded evaluation in child processes and kills
each (SIGKILL) at a random moment; BYTES is how much an undisturbed run writes.
"""

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

from inferscale import CheckerReward, zoo
from inferscale.base import Generator
from inferscale.evaluate import run_evaluation
from inferscale.strategies import DVTS, REBASE, BeamSearch, RepeatedSampling
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.tree import Problem

STRATEGIES = {"sampling": RepeatedSampling(4), "rebase": REBASE(4), "beam": BeamSearch(2, 2)}
PROBLEMS = [Problem(f"How many are {index % 190}?", str(index % 4), f"toy/{index}") for index in range(200)]
SIZES = (1, 2, 3, 4, 5)
SWEEP = {
    f"{name}-{size}": make(size)
    for size, (name, make) in itertools.product(
        SIZES,
        {
            "sampling": RepeatedSampling,
            "rebase": REBASE,
            "beam": lambda size: BeamSearch(1, size),
            "dvts": lambda size: DVTS(size, 2),
        }.items(),
    )
}


class SlowToy(Generator):
    """The toy, with a pause in each call, so that a kill hits it at work."""

    def __init__(self, pause: float) -> None:
        self._toy, self._pause = ToyGenerator(), pause

    def identity(self):
        return self._toy.identity()

    def generate(self, requests):
        time.sleep(self._pause)
        return self._toy.generate(requests)

    def max_sample_tokens(self, request):
        return self._toy.max_sample_tokens(request)


def evaluate(folder, pause=0.0):
    for name, strategy in STRATEGIES.items():
        run_evaluation(
            PROBLEMS, strategy, SlowToy(pause), f"{folder}/{name}", reward_model=ToyReward(), batch_size=16, seed=3
        )


def embedded_policy():
    """The smallest embedded policy; it stops after a line or so, which is enough to be killed in."""
    from inferscale import HFGenerator

    return HFGenerator(*zoo.load("policy-xs"), temperature=1.0, max_new_tokens=12, micro_batch=256)


def evaluate_embedded(folder, generator):
    """200 embedded problems, four strategies, five sizes."""
    problems = zoo.problems("test")[:200]
    for name, strategy in SWEEP.items():
        run_evaluation(
            problems, strategy, generator, f"{folder}/{name}", reward_model=CheckerReward(), batch_size=100, seed=3
        )


def bytes_written(folder):
    return sum(path.stat().st_size for path in Path(folder).glob("*/records.jsonl"))


def kill_at_random(folder, total, kills, seed):
    """How many children died by SIGKILL: each is killed a random while after a random share of all records is there."""
    rng = random.Random(seed)
    generator = embedded_policy()  # loaded once: a child is a fork, not another import of torch
    killed = 0
    for share in sorted(rng.uniform(0, 0.97) for _ in range(kills)):
        child = os.fork()
        if child == 0:
            evaluate_embedded(folder, generator)
            os._exit(0)
        while bytes_written(folder) < share * total and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        killed += os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    return killed


if __name__ == "__main__":
    folder, total, kills, seed = sys.argv[1:]
    print(kill_at_random(folder, int(total), int(kills), int(seed)))
