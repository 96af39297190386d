"""Shared rows against rounds: many searches whose steps and answers are of unequal length, on one model.

Run with ``python -m benchmarks.rows``. In rounds each call of `generate` is waited for as a whole, as by a generator
that has no session of its own; in the session a search goes on as soon as its own samples are there, and its requests
take rows that others have left. Both ways run in turn in one process, and must give the same trees and bills. Seconds
are CPU seconds of this process, so that other work on the machine counts little; those to a result are of the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

import torch

from inferscale import BeamSearch, HFGenerator, HFProcessRewardModel, RepeatedSampling, Solver, zoo
from inferscale.base import Rounds, Sampling, SearchStrategy
from inferscale.engine import SearchResult
from inferscale.flow import GenerateRequest
from inferscale.strategies import REBASE
from inferscale.tree import Step


class Session(HFGenerator):
    """The generator, which notes how many rows decode in each step."""

    rows: list[int]

    def _watched(self) -> Any:
        sampling = self._runner.open()
        sampling.on_tokens = self.rows.append
        return sampling

    def open(self) -> Sampling:
        """Its own session."""
        sampling: Sampling = self._watched()
        return sampling

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """All samples of a round."""
        with self._watched() as sampling:
            tickets = [sampling.submit(request) for request in requests]
            steps = {(ticket, index): step for ticket, index, step in sampling.collect_all()}
        return [[steps[ticket, index] for index in range(ticket.request.n)] for ticket in tickets]


class InRounds(Session):
    """The same generator, asked in rounds."""

    def open(self) -> Sampling:
        """One `generate` for all that is asked for since the last one."""
        return Rounds(self)


@dataclass
class Figures:
    """Measured in the runs of one way."""

    rows: list[float] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    middle: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)

    def line(self) -> list[float]:
        """The median of each."""
        return [median(values) for values in (self.rows, self.speed, self.cpu, self.first, self.middle, self.last)]


def run(solver: Solver, problems: Sequence[Any], figures: Figures) -> list[SearchResult]:
    """The results, in the order of the problems."""
    generator: Any = solver.generator
    generator.rows = []
    decoded, cpu, started = generator.stats.decoded_tokens, time.process_time(), time.perf_counter()
    times: list[float] = []
    results: dict[str, SearchResult] = {}
    for result in solver.stream(problems):
        times.append(time.perf_counter() - started)
        results[result.problem.prompt] = result
    seconds = time.process_time() - cpu
    figures.rows.append(mean(generator.rows))
    figures.speed.append((generator.stats.decoded_tokens - decoded) / seconds)
    figures.cpu.append(seconds)
    figures.first.append(times[0])
    figures.middle.append(median(times))
    figures.last.append(times[-1])
    return [results[problem.prompt] for problem in problems]


def content(results: Sequence[SearchResult]) -> list[Any]:
    """Texts, scores and bills, which must not differ."""
    return [
        (
            [(node.key, node.text, node.is_scored and round(node.score, 3)) for node in result.root.walk()],
            replace(result.cost.without_seconds(), reward_flops=0, reward_bytes=0, cache_bytes=0),
        )
        for result in results
    ]


def table(make: Callable[[type[Session]], Session], given: argparse.Namespace, judge: Any) -> Iterator[str]:
    """The lines of the table."""
    problems = zoo.problems("test")[: given.problems]
    strategies: list[SearchStrategy] = [REBASE(8), BeamSearch(2, 4), RepeatedSampling(16)]
    yield f"{'strategy':<18}{'way':<9}{'rows':>7}{'tokens/s':>10}{'CPU s':>8}{'first s':>9}{'median s':>10}{'all s':>8}"
    for strategy in strategies:
        figures = {"rounds": Figures(), "session": Figures()}
        solvers = {
            name: Solver(strategy, make(cls), judge) for name, cls in (("rounds", InRounds), ("session", Session))
        }
        for _ in range(given.repeats):
            found = {name: content(run(solver, problems, figures[name])) for name, solver in solvers.items()}
            if found["rounds"] != found["session"]:
                raise AssertionError(f"{strategy!r}: rounds and the session give different trees")
        lines = {name: of_way.line() for name, of_way in figures.items()}
        for name, line in lines.items():
            yield f"{type(strategy).__name__:<18}{name:<9}" + "".join(
                f"{value:>{width}.{digits}f}"
                for value, width, digits in zip(line, (7, 10, 8, 9, 10, 8), (1, 0, 2, 2, 2, 2), strict=True)
            )
        ratios = [a / b for a, b in zip(lines["session"], lines["rounds"], strict=True)]
        yield f"{'':<18}{'ratio':<9}" + "".join(
            f"{ratio:>{width}.2f}" for ratio, width in zip(ratios, (7, 10, 8, 9, 10, 8), strict=True)
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64, help="most rows that decode at a time")
    parser.add_argument("--policy", default="policy-m", help="an embedded model")
    parser.add_argument("--judge", default="prm-s", help="an embedded process reward model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, tokenizer = zoo.load(given.policy)
    judge = HFProcessRewardModel(*zoo.load(given.judge), good_token="<good>", bad_token="<bad>", reduction="min")

    def make(cls: type[Session]) -> Session:
        return cls(model, tokenizer, micro_batch=given.rows, max_new_tokens=160)

    for line in table(make, given, judge):
        print(line, flush=True)


if __name__ == "__main__":
    main()
