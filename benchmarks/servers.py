"""What a server keeps and counts: ``python -m benchmarks.servers http://127.0.0.1:8080/v1``.

The same searches one request at a time, twice, and then with as many as they ask for, alone and all problems together.
Seeds are the same each time: what differs is the server's own batching. Printed are the trees, and the share of their
nodes, that are those of the first run; the requests for each sample; the sampled tokens that were billed, probes
included, and those that the server's own metrics count (llama.cpp and vLLM have them); and the tokens a second. Any
server with the API of OpenAI will do.
"""

from __future__ import annotations

import argparse
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

from inferscale import REBASE, OpenAIGenerator, RepeatedSampling, SearchResult, SearchStrategy, solve, solve_batch, zoo
from inferscale.testing import ToyReward

COUNTERS = re.compile(
    r"^(?:llamacpp:tokens_predicted_total|vllm:generation_tokens_total)(?:\{[^}]*\})? (\S+)$", re.MULTILINE
)


def paths(result: SearchResult) -> list[tuple[str, ...]]:
    """The texts on the way to each node, in order."""
    return sorted(tuple(step.text for step in node.steps) for node in result.root.walk())


def equal(found: Sequence[SearchResult], first: Sequence[SearchResult]) -> str:
    """How many trees are the same, and which share of their nodes."""
    pairs = [(paths(one), paths(other)) for one, other in zip(found, first, strict=True)]
    trees = sum(one == other for one, other in pairs)
    nodes = sum(len(set(one) & set(other)) for one, other in pairs) / sum(len(set(other)) for _, other in pairs)
    return f"{trees} of {len(pairs)}, {nodes:.0%}"


def counted(url: str) -> float | None:
    """Tokens that the server has sampled in its life, where it tells."""
    try:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=30) as answer:
            found = COUNTERS.findall(answer.read().decode())
    except urllib.error.URLError:
        return None
    return sum(map(float, found)) if found else None


def main() -> None:
    """Prints a line for each strategy and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--model", help="by default the first one that the server lists")
    parser.add_argument("--problems", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64, help="most of a path")
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    model = options.model or _first_model(options.url)
    problems = zoo.word_problems()[: options.problems]

    def run(strategy: SearchStrategy, concurrency: int, together: bool) -> tuple[list[SearchResult], str]:
        generator = OpenAIGenerator(
            options.url, model, max_concurrency=concurrency, max_step_tokens=16, max_new_tokens=options.tokens
        )
        judge, before, started = ToyReward(), counted(options.url), time.perf_counter()
        if together:
            results = solve_batch(problems, strategy, generator, reward_model=judge)
        else:
            results = [solve(problem, strategy, generator, reward_model=judge) for problem in problems]
        seconds, after = time.perf_counter() - started, counted(options.url)
        tokens = sum(result.cost.generated_tokens for result in results)
        own = "" if before is None or after is None else f"{after - before:,.0f}"
        asked = generator.stats.requests / generator.stats.samples
        return results, f"{asked:>9.2f}{tokens + generator.stats.probe_tokens:>8,}{own:>9}{tokens / seconds:>10.1f}"

    print(f"{'strategy':<18}{'at a time':>9} {'problems':<9}{'equal trees':>16}{'requests':>9}"
          f"{'billed':>8}{'counted':>9}{'tokens/s':>10}")  # fmt: skip
    for strategy in (RepeatedSampling(4), REBASE(4)):
        first, told = run(strategy, 1, together=False)
        print(f"{type(strategy).__name__:<18}{1:>9} {'alone':<9}{'':>16}{told}", flush=True)
        for concurrency, way in ((1, "alone"), (options.concurrency, "alone"), (options.concurrency, "together")):
            found, told = run(strategy, concurrency, way == "together")
            same = equal(found, first)
            print(f"{type(strategy).__name__:<18}{concurrency:>9} {way:<9}{same:>16}{told}", flush=True)


def _first_model(url: str) -> str:
    import openai

    return openai.OpenAI(base_url=url, api_key="none").models.list().data[0].id


if __name__ == "__main__":
    main()
