"""Recurrent and hybrid models with shared prefixes and without, in one run: ``python -m benchmarks.hybrids``.

REBASE(16) with a reward that reads nothing, on random models in float32 on one thread. Both ways sample the same tree;
they are timed by turns, in CPU seconds, the least of some rounds. Beside the seconds stand the prompt and path tokens
that each has read: without sharing, every level of the search reads every path again from its first token.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import torch
import transformers

from benchmarks import families
from inferscale.engine import solve
from inferscale.engine.result import SearchResult
from inferscale.generators import HFGenerator
from inferscale.rewards import RewardFunction
from inferscale.strategies import REBASE

_SIZES = {"hidden_size": 192, "intermediate_size": 512, "max_position_embeddings": 4096}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_next": {**_SIZES, "moe_intermediate_size": 96, "shared_expert_intermediate_size": 96, "head_dim": 32},
    "lfm2": {**_SIZES, "block_ff_dim": 512, "layer_types": ["conv", "conv", "full_attention", "conv"]},
    "mamba2": {"hidden_size": 192, "num_heads": 12, "head_dim": 32, "state_size": 32, "n_groups": 1, "expand": 2},
}
"""One model with delta rules, one with convolutions, one without keys and values; and the sizes of each."""


def prompt_of(tokens: int) -> str:
    """A prompt of so many words of the small tokenizer."""
    return " ".join(f"w{3 + (7 * i + i * i) % 250}" for i in range(tokens))


def run(generator: HFGenerator, prompt: str) -> tuple[float, int, SearchResult]:
    """CPU seconds of a search, the prompt and path tokens read, and its result."""
    read, start = generator.stats.prefill_tokens, time.process_time()
    reward = RewardFunction(lambda nodes: [sum(node.token_ids) % 97 / 97 for node in nodes])
    result = solve(prompt, REBASE(16), generator, reward_model=reward)
    return time.process_time() - start, generator.stats.prefill_tokens - read, result


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--prompts", type=int, nargs="*", default=[256, 1024], help="lengths in tokens")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    print(f"{'model':12} {'prompt':>6} {'shared':>9} {'not':>9} {'ratio':>6}   tokens read: shared, not")
    for name in options.models:
        model = families.small_model(name, **MODELS[name])
        ways = {
            kind: HFGenerator(model, families.tokenizer(), max_step_tokens=16, max_new_tokens=64, cache=kind)
            for kind in ("tree", "none")
        }
        if not ways["tree"].shares_prefixes:
            raise SystemExit(f"{name} shares no prefixes here")
        for length in options.prompts:
            seconds: dict[str, list[float]] = {kind: [] for kind in ways}
            read, results = {}, {}
            for _ in range(options.rounds):
                for kind, generator in ways.items():
                    took, read[kind], results[kind] = run(generator, prompt_of(length))
                    seconds[kind].append(took)
            if not families.equals(model, [results["tree"]], [results["none"]]):
                raise SystemExit(f"{name}: the trees of the two ways differ")
            shared, plain = (min(seconds[kind]) for kind in ("tree", "none"))
            print(
                f"{name:12} {length:6d} {shared:7.2f} s {plain:7.2f} s {plain / shared:6.1f}   "
                f"{read['tree']:,}, {read['none']:,}",
                flush=True,
            )


if __name__ == "__main__":
    main()
