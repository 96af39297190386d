"""An evaluation on the toy models, for tests that kill it."""

import time

from inferscale.base import Generator
from inferscale.evaluate import run_evaluation
from inferscale.strategies import REBASE, BeamSearch, RepeatedSampling
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.tree import Problem

STRATEGIES = {"sampling": RepeatedSampling(4), "rebase": REBASE(4), "beam": BeamSearch(2, 2)}
PROBLEMS = [Problem(f"How many are {index % 190}?", str(index % 4), f"toy/{index}") for index in range(200)]


class SlowToy(Generator):
    """The toy, with a pause in each call, so that a kill hits it at work."""

    def __init__(self, pause: float) -> None:
        self._toy, self._pause = ToyGenerator(), pause

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
