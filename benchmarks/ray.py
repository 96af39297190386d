"""What a second actor is worth: ``python -m benchmarks.ray``; what a problem costs without a model: ``--fake 100000``.

The same problems with the embedded models: one `solve_batch` in this process, then `inferscale.ray.solve_dataset` with
one actor and with more. Starting Ray and the actors is timed apart, by a dataset of one problem for each. The results
must be the same each time. One thread for each process.

With ``--fake`` a model that costs nothing answers so many problems, four samples each: what is left is the price of
searching, of records, and of Ray. It prints microseconds a problem (all time, and this process's CPU time), the memory
of this process on the way, and bytes of results and journals. The results are read one by one and dropped.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from inferscale import REBASE, Generator, Problem, RepeatedSampling, RewardModel, SearchResult, solve_batch, stream, zoo
from inferscale.evaluate.parts import make_generator, make_reward
from inferscale.flow import GenerateRequest
from inferscale.ray import solve_dataset, stream_dataset
from inferscale.tree import Step

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


TOKENS = 256
SAMPLES = 4


class Fake(Generator):
    """Solutions of `TOKENS` tokens that cost nothing."""

    def identity(self) -> dict[str, Any]:
        """There is no choice."""
        return {}

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """The same text for everybody, and another answer for each problem."""
        ids = tuple(range(1000, 1000 + TOKENS))
        return [
            [Step(f"{' word' * (TOKENS - 5)}\nThe answer is {r.node.key % 9}", ids, -80.0, -0.3, "eos")] * r.n
            for r in requests
        ]


def memory() -> float:
    """Megabytes of this process, its shares of others' pages included."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def start_ray(actors: int) -> None:
    """Starts Ray on this machine."""
    import ray

    ray.init(num_cpus=actors, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def fake(number: int, actors: Sequence[int], batch_size: int) -> None:
    """Prints what is left when the model costs nothing."""
    problems = [Problem(f"How many are in box {i}?", str(i % 9), f"box/{i}") for i in range(number)]
    few, strategy = problems[: min(number, 2000)], RepeatedSampling(SAMPLES)
    print(f"{number:,} problems, {strategy!r}, {TOKENS} tokens a sample, batches of {batch_size}")
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal"
        size = 0
        for result in stream(few, strategy, Fake(), batch_size=batch_size, journal=journal):
            size += len(json.dumps(result.to_dict()))
        tokens = SAMPLES * TOKENS * len(few)
        print(f"a result: {size / len(few):,.0f} bytes, {size / tokens:.1f} a token; "
              f"a journal: {journal.stat().st_size / tokens:.1f} a token")  # fmt: skip
    started, cpu = time.perf_counter(), time.process_time()
    for _ in stream(few, strategy, Fake(), batch_size=batch_size):
        pass
    alone = (time.perf_counter() - started) / len(few)
    print(f"one process: {1e6 * alone:.0f} us a problem, CPU {1e6 * (time.process_time() - cpu) / len(few):.0f} us")
    start_ray(max(actors))
    for count in actors:
        seen = []
        started, cpu = time.perf_counter(), 0.0
        for place, _ in enumerate(stream_dataset(problems, strategy, Fake, num_actors=count, batch_size=batch_size)):
            if not place:  # Ray and the actors have started
                begun, cpu = time.perf_counter(), time.process_time()
            if place % max(number // 10, 1) == 0:
                seen.append(f"{memory():.0f}")
        each = (time.perf_counter() - begun) / number
        print(
            f"{count} actors: {1e6 * each:.0f} us a problem, {alone / each:.2f} x one process; CPU of the driver "
            f"{1e6 * (time.process_time() - cpu) / number:.0f} us; {begun - started:.1f} s to start\n"
            f"    the driver's memory at each tenth, MB: {' '.join(seen)}",
            flush=True,
        )


def real(number: int, counts: Sequence[int], batch_size: int, width: int) -> None:
    """Prints a line for each number of actors."""
    problems, strategy = zoo.problems("test")[:number], REBASE(width)
    generator, reward_model = policy(), judge()
    seconds, straight = timed(
        lambda: solve_batch(problems, strategy, generator, reward_model=reward_model, batch_size=batch_size)
    )
    print(f"{len(problems)} problems, {strategy!r}, batches of {batch_size}, {os.cpu_count()} cores")
    print(f"one process: {seconds:.1f} s")
    start_ray(max(counts))

    def solve(chosen: Sequence[Problem], actors: int, batch_size: int) -> list[SearchResult]:
        return solve_dataset(chosen, strategy, policy, judge, num_actors=actors, batch_size=batch_size)

    first = None
    for actors in counts:
        start, _ = timed(partial(solve, problems[:actors], actors, 1))
        whole, results = timed(partial(solve, problems, actors, batch_size))
        first = first or whole - start
        same = [r.text for r in results] == [r.text for r in straight]
        print(
            f"{actors} actors: {whole:.1f} s, of which {start:.1f} s to start; without it "
            f"{first / (whole - start):.2f} x the speed of {counts[0]}; "
            f"{'the same' if same else 'OTHER'} results"
        )


def main() -> None:
    """Prints lines of one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200, help="at most 500")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--fake", type=int, help="so many problems, and a model that costs nothing")
    options = parser.parse_args()
    if options.fake:
        fake(options.fake, options.actors, options.batch_size)
    else:
        real(options.problems, options.actors, options.batch_size, options.width)


if __name__ == "__main__":
    main()
