"""How often a server gives the same tree again: ``python -m benchmarks.repeat http://127.0.0.1:8080/v1``.

The same searches twice with one request at a time, then with as many as they ask for, alone and all problems together.
Seeds are the same each time: what differs is the server's own batching. It prints how many trees, and how many of their
samples, are those of the first run. Any server with the API of OpenAI will do (llama.cpp, vLLM, SGLang).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

from inferscale import REBASE, OpenAIGenerator, RepeatedSampling, SearchResult, SearchStrategy, solve, solve_batch, zoo
from inferscale.testing import ToyReward


def samples(result: SearchResult) -> list[tuple[str, ...]]:
    """The path of texts to each node, in order."""
    return sorted(tuple(step.text for step in node.steps) for node in result.root.walk())


def shares(found: Sequence[SearchResult], first: Sequence[SearchResult]) -> tuple[int, float]:
    """Number of equal trees, and the share of equal nodes."""
    pairs = [(samples(one), samples(other)) for one, other in zip(found, first, strict=True)]
    same = sum(len(set(one) & set(other)) for one, other in pairs)
    return sum(one == other for one, other in pairs), same / sum(len(set(other)) for _, other in pairs)


def main() -> None:
    """Prints a line for each strategy and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--model", help="by default the first one that the server lists")
    parser.add_argument("--problems", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=32, help="most of a path")
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    model = options.model or _first_model(options.url)
    problems = zoo.word_problems()[: options.problems]

    def run(strategy: SearchStrategy, concurrency: int, together: bool) -> list[SearchResult]:
        generator = OpenAIGenerator(
            options.url, model, max_concurrency=concurrency, max_step_tokens=16, max_new_tokens=options.tokens
        )
        judge = ToyReward()
        if together:
            return solve_batch(problems, strategy, generator, reward_model=judge)
        return [solve(problem, strategy, generator, reward_model=judge) for problem in problems]

    for strategy in (RepeatedSampling(4), REBASE(4)):
        first = run(strategy, 1, together=False)
        for concurrency, together in itertools.product((1, options.concurrency), (False, True)):
            trees, nodes = shares(run(strategy, concurrency, together), first)
            way = "together" if together else "alone"
            print(
                f"{type(strategy).__name__:<17} {concurrency:>3} requests at a time, {way:<8}  "
                f"{trees} of {len(problems)} trees, {nodes:.0%} of the nodes",
                flush=True,
            )


def _first_model(url: str) -> str:
    import openai

    return openai.OpenAI(base_url=url, api_key="none").models.list().data[0].id


if __name__ == "__main__":
    main()
