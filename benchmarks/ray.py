"""What a second actor is worth: ``python -m benchmarks.ray``.

The same problems with the embedded models: one `solve_batch` in this process, then `inferscale.ray.solve_dataset` with
one actor and with more. Starting Ray and the actors is timed apart, by a dataset of one problem for each. The results
must be the same each time. One thread for each process.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

from inferscale import REBASE, Generator, Problem, RewardModel, SearchResult, solve_batch, zoo
from inferscale.evaluate.parts import make_generator, make_reward
from inferscale.ray import solve_dataset

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # by default its workers yield to everything else on the machine


def policy() -> Generator:
    return make_generator("policy-s", 0.8)


def judge() -> RewardModel:
    return make_reward("prm-s")


def timed(run: Callable[[], list[SearchResult]]) -> tuple[float, list[SearchResult]]:
    """Seconds, and the results."""
    started = time.perf_counter()
    results = run()
    return time.perf_counter() - started, results


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200, help="at most 500")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--width", type=int, default=8)
    options = parser.parse_args()
    problems, strategy = zoo.problems("test")[: options.problems], REBASE(options.width)
    generator, reward_model = policy(), judge()
    seconds, straight = timed(
        lambda: solve_batch(problems, strategy, generator, reward_model=reward_model, batch_size=options.batch_size)
    )
    print(f"{len(problems)} problems, {strategy!r}, batches of {options.batch_size}, {os.cpu_count()} cores")
    print(f"one process: {seconds:.1f} s")
    import ray

    ray.init(num_cpus=max(options.actors), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    def solve(chosen: Sequence[Problem], actors: int, batch_size: int) -> list[SearchResult]:
        return solve_dataset(chosen, strategy, policy, judge, num_actors=actors, batch_size=batch_size)

    first = None
    for actors in options.actors:
        start, _ = timed(partial(solve, problems[:actors], actors, 1))
        whole, results = timed(partial(solve, problems, actors, options.batch_size))
        first = first or whole - start
        same = [r.text for r in results] == [r.text for r in straight]
        print(
            f"{actors} actors: {whole:.1f} s, of which {start:.1f} s to start; without it "
            f"{first / (whole - start):.2f} x the speed of {options.actors[0]}; "
            f"{'the same' if same else 'OTHER'} results"
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
