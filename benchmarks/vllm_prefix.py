"""How much of the trees that searches send to a vLLM server is in its prefix cache.

Run with ``INFERSCALE_VLLM_PYTHON=/path/to/python python -m benchmarks.vllm_prefix``, the python of an environment that
has vLLM. The embedded policy-m is served and embedded problems are searched through `OpenAIGenerator`, other problems
with each strategy, so that nothing is there from the one before. The server's counters tell how many of the tokens that
it looked up in its cache were there. The last column is the time for a token beside that of `HFGenerator` with the same
weights in this process, for the same searches, one after the other.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.vllm_server import prefix_counts, vllm_server
from inferscale import zoo
from inferscale.base import Generator, SearchStrategy
from inferscale.engine import SearchResult, solve_batch
from inferscale.generators import HFGenerator, OpenAIGenerator
from inferscale.rewards import HFProcessRewardModel
from inferscale.strategies import MCTS, REBASE, BeamSearch, RepeatedSampling
from inferscale.tree import Problem

STRATEGIES = (RepeatedSampling(16), BeamSearch(4, 4), REBASE(16), MCTS(32))


def measure(url: str, strategy: SearchStrategy, problems: Sequence[Problem]) -> str:
    """A row of the table."""
    model, tokenizer = zoo.load("policy-m")
    lengths: dict[str, Any] = {"max_step_tokens": 64, "max_new_tokens": 256}

    def search(generator: Generator) -> tuple[list[SearchResult], float]:
        judge = HFProcessRewardModel(*zoo.load("prm-s"), good_token="<good>", bad_token="<bad>", reduction="min")
        started = time.perf_counter()
        results = solve_batch(problems, strategy, generator, reward_model=judge)
        return results, (time.perf_counter() - started) / sum(result.cost.tokens for result in results)

    before = prefix_counts(url)
    results, each = search(OpenAIGenerator(f"{url}/v1", "tiny", tokenizer=tokenizer, **lengths))
    _, each_here = search(HFGenerator(model, tokenizer, **lengths))
    looked_up, hits = (now - then for now, then in zip(prefix_counts(url), before, strict=True))
    steps = sum(result.cost.num_generated for result in results)
    sampled = sum(result.cost.tokens for result in results)
    return (
        f"{type(strategy).__name__:<18}{steps:>7}{sampled / steps:>10.1f}"
        f"{looked_up:>11,.0f}{hits:>10,.0f}{hits / looked_up:>8.1%}{each / each_here:>10.1f}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--block-size", type=int, default=32)
    chosen = parser.parse_args()
    model, tokenizer = zoo.load("policy-m")
    print(f"{'strategy':<18}{'steps':>7}{'of tokens':>10}{'looked up':>11}{'there':>10}{'share':>8}{'time / HF':>10}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "policy-m"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with vllm_server(folder, block_size=chosen.block_size) as url:
            for number, strategy in enumerate(STRATEGIES):
                first = number * chosen.problems
                print(measure(url, strategy, zoo.problems("test")[first : first + chosen.problems]), flush=True)


if __name__ == "__main__":
    main()
