"""Small parts that searches and studies wait for: filters, beliefs, votes, and what a stream keeps.

Run with ``python -m benchmarks.small``; with ``--before PATH``, the root of an older checkout (``git worktree add``),
that one's figures stand beside, measured in the same run. CPU milliseconds, the best of some, on one thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.core import InstantGenerator, InstantReward
from inferscale.engine import solve, stream
from inferscale.functional import majority_at_k
from inferscale.generators import Sampler
from inferscale.scaling import majority_accuracy
from inferscale.strategies import ABMCTS, RepeatedSampling

VOCABULARY = 150_000


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """CPU time of the quickest of some calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def bytes_kept(prompts: int = 200) -> float:
    """Bytes that a stream of searches of 4 kB prompts holds for each that is done."""
    given, held = (f"{index:8d}" * 512 for index in range(prompts + 50)), []
    tracemalloc.start()
    for done, _ in enumerate(stream(given, RepeatedSampling(1), InstantGenerator(1), batch_size=4), start=1):
        if done in (50, prompts + 50):
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    return (held[1] - held[0]) / prompts


def measure() -> dict[str, float]:
    """Figures of this checkout by name."""
    torch.set_num_threads(1)
    figures = {}
    numbers = torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for spread in (1.0, 3.0):
        logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(1)) * spread
        Sampler(top_p=0.9).draw(logits, numbers)  # the first large tensors of a process take memory from the system
        for sampler in (Sampler(), Sampler(0.7), Sampler(top_p=0.9), Sampler(top_p=0.95, min_p=0.01)):
            name = f"a row of {VOCABULARY} logits of deviation {spread:.0f}, {sampler!r}"
            figures[name] = milliseconds(lambda s=sampler, x=logits: s.draw(x, numbers), 40) / 4  # type: ignore[misc]
    for n in (250, 500, 1000, 2000):
        search = ABMCTS(n)
        figures[f"ABMCTS({n})"] = milliseconds(
            lambda s=search: solve("problem", s, InstantGenerator(8), reward_model=InstantReward()),  # type: ignore[misc]
            1,
        )
    figures["majority_accuracy of 2 answers, n = 300"] = milliseconds(lambda: majority_accuracy((0.4, 0.35), 0, 300), 1)
    ids = np.minimum(np.random.default_rng(0).zipf(1.5, 400), 50)
    figures["majority_at_k, N = 400, k = 200"] = milliseconds(lambda: majority_at_k(ids, ids == 1, 200), 1)
    figures["bytes a stream keeps of a prompt of 4096"] = bytes_kept()
    return figures


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="root of an older checkout")
    parser.add_argument("--json", action="store_true", help="this checkout's figures alone")
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measure()))
        return
    before: dict[str, float] = {}
    if options.before is not None:
        root = Path(__file__).parents[1]
        paths = os.pathsep.join([str(options.before.resolve() / "src"), str(root)])
        command = [sys.executable, "-m", "benchmarks.small", "--json"]
        env = {**os.environ, "PYTHONPATH": paths}
        before = json.loads(subprocess.run(command, env=env, cwd=root, stdout=subprocess.PIPE, check=True).stdout)
    for name, figure in measure().items():
        beside = f"{before[name]:11.2f} before, {before[name] / figure:8.1f} times as much" if name in before else ""
        print(f"{figure:11.2f} {beside}  {name}")
    ids = np.minimum(np.random.default_rng(0).zipf(1.5, 10_000), 5000)
    for name, call in {
        "majority_accuracy of 10 answers, n = 10,000": lambda: majority_accuracy(np.arange(10, 0, -1) / 55, 0, 10_000),
        "majority_at_k, N = 10,000, k = 5,000": lambda: majority_at_k(ids, ids == 1, 5_000),
    }.items():
        print(f"{milliseconds(call, 1):11.2f}  {name}")


if __name__ == "__main__":
    main()
