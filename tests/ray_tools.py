"""Generators that leave traces, for actors and drivers that import them."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from inferscale.base import Generator
from inferscale.generators import VLLMGenerator
from inferscale.ray import solve_dataset
from inferscale.strategies import REBASE
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.tree import Problem, Step
from tests import vllm_stub

PROBLEMS = [Problem(f"How many are {index % 190}?", str(index % 4), f"toy/{index}") for index in range(200)]


class Traces:
    """What one actor has sampled: a file with a line for each call of its model.

    It dies once if it is `deadly`. Where the folder has a file "most", actors wait once they have made so many calls.
    """

    def __init__(self, folder, deadly=False):
        self.folder, self.deadly, self.calls = Path(folder), deadly, 0
        self.path = self.folder / f"diary-{os.getpid()}-{time.time_ns()}"
        self.path.touch()

    def begin(self):
        """Called before a model is."""
        self.calls += 1
        if self.deadly and self.calls == 10:
            try:
                (self.folder / "killed").touch(exist_ok=False)
            except FileExistsError:
                self.deadly = False
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        most = self.folder / "most"
        while most.exists() and len(calls(self.folder)) >= int(most.read_text() or 0):
            time.sleep(0.02)

    def end(self, samples):
        """Called after it, with names of what was sampled."""
        with self.path.open("a") as file:
            file.write(" ".join(samples) + "\n")


def calls(folder):
    """The samples of every call of a model, over all actors."""
    return [line.split() for path in Path(folder).glob("diary-*") for line in path.read_text().splitlines()]


class Diary(Generator):
    """The toy, which writes down what it sampled."""

    def __init__(self, folder, deadly=False, pause=0.01):
        self._toy, self._traces, self._pause = ToyGenerator(), Traces(folder, deadly), pause

    def generate(self, requests):
        self._traces.begin()
        time.sleep(self._pause)
        steps = self._toy.generate(requests)
        self._traces.end(f"{request.node.key}:{request.first}" for request in requests)
        return steps

    def max_sample_tokens(self, request):
        return self._toy.max_sample_tokens(request)


class Wordy(Generator):
    """Long solutions at no cost."""

    def generate(self, requests):
        return [[Step(" word" * 500 + "\nThe answer is 7", finish_reason="eos")] * request.n for request in requests]


class DiaryLLM(vllm_stub.LLM):
    """An engine of vLLM's interface, which writes down the seeds that it was given."""

    def __init__(self, folder, deadly=False):
        super().__init__()
        self.traces = Traces(folder, deadly)

    def generate(self, prompts, sampling_params, *, use_tqdm):
        self.traces.begin()
        outputs = super().generate(prompts, sampling_params, use_tqdm=use_tqdm)
        self.calls.clear()
        self.traces.end(f"{params.seed}:{params.n}" for params in sampling_params)
        return outputs


VLLM_LIMITS = {"max_step_tokens": 6, "max_new_tokens": 18}


def make_vllm(folder, deadly=False):
    """A `VLLMGenerator` on such an engine, in an actor."""
    sys.modules["vllm"] = vllm_stub.module()
    return VLLMGenerator(DiaryLLM(folder, deadly), **VLLM_LIMITS)


def drive(folder):
    """A whole job, in a process of its own with a cluster of its own, which ends with it."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    solve_dataset(
        PROBLEMS, REBASE(4), partial(Diary, folder, pause=0.05), ToyReward, seed=3, num_actors=2, batch_size=10,
        storage=Path(folder) / "journals",
    )  # fmt: skip
