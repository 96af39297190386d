"""A served search under load: ``python -m benchmarks.serve``.

Starts ``inferscale serve`` with the embedded models as a process of its own, sends it all requests at once, each over a
connection of its own, and again in further rounds. Prints latencies, what the server holds in memory after each round,
and for scale the time of one `solve_batch` over the same problems in this process, whose answers must be the same.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from inferscale import REBASE, Budget, Problem, SearchResult, solve_batch, zoo
from inferscale.evaluate.parts import make_generator, make_reward

TOKENS = 16384


@contextmanager
def server(options: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The server's process and port."""
    command = [
        *(sys.executable, "-m", "inferscale", "serve", "--model", options.policy, "--reward", options.judge),
        *("--strategy", "rebase", "--width", str(options.width), "--max-active", str(options.active), "--port", "0"),
        *("--max-waiting", str(options.requests), "--tokens", str(TOKENS)),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "running on" in line)
        try:
            yield process, int(line.split("http://127.0.0.1:")[1].split()[0])
        finally:
            process.terminate()


def ask(port: int, problem: Problem) -> tuple[float, dict[str, Any]]:
    """Seconds until the answer, and the answer."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = json.dumps({"prompt": problem.prompt})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {told}")
    return time.perf_counter() - started, told


def megabytes(process: subprocess.Popen[str]) -> float:
    """What a process holds in memory (Linux)."""
    status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def in_process(options: argparse.Namespace, problems: Sequence[Problem]) -> tuple[float, list[SearchResult]]:
    """Seconds of one `solve_batch`, and its results."""
    generator, reward = make_generator(options.policy, 0.8), make_reward(options.judge)
    started = time.perf_counter()
    results = solve_batch(
        problems, REBASE(options.width), generator, reward_model=reward, batch_size=options.active,
        budget=Budget(tokens=TOKENS),
    )  # fmt: skip
    return time.perf_counter() - started, results


def main() -> None:
    """Prints the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="sent at once, at most 500")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--active", type=int, default=64, help="searches that share batches")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--policy", default="policy-s")
    parser.add_argument("--judge", default="prm-s")
    options = parser.parse_args()
    problems = zoo.problems("test")[: options.requests]
    print(f"{len(problems)} requests at once, {options.policy} and {options.judge}, REBASE {options.width}")
    texts = []
    with server(options) as (process, port), ThreadPoolExecutor(len(problems)) as clients:
        alone = [ask(port, problem)[0] for problem in problems[:5]]
        print(f"one at a time: {statistics.median(alone):.2f} s each; the server holds {megabytes(process):.0f} MB")
        for number in range(1, options.rounds + 1):
            started = time.perf_counter()
            answers = list(clients.map(partial(ask, port), problems))
            seconds = time.perf_counter() - started
            cuts = statistics.quantiles([latency for latency, _ in answers], n=100)
            texts.append([told["choices"][0]["text"] for _, told in answers])
            lost = len(problems) - len({told["id"] for _, told in answers})
            print(
                f"round {number}: {lost} lost, p50 {cuts[49]:.2f} s, p95 {cuts[94]:.2f} s, all {seconds:.1f} s "
                f"({len(problems) / seconds:.1f} a second); the server holds {megabytes(process):.0f} MB"
            )
    seconds, results = in_process(options, problems)
    same = all([result.text for result in results] == round_texts for round_texts in texts)
    print(f"one solve_batch in this process: {seconds:.1f} s; {'the same' if same else 'OTHER'} answers")


if __name__ == "__main__":
    main()
