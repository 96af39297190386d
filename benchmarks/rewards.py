"""What reading every node once is worth to a reward model: ``python -m benchmarks.rewards --help``.

Branches grow by steps over one shared prompt, parents drawn again between the steps as a search does, and after every
step all of them are scored: by reading whole texts (``cache="none"``) or what is new (``cache="tree"``). For scale, the
final texts are also read once. All are timed in one run, interleaved, on one thread, in CPU seconds of the process;
the median of the repeats is printed. Models are random Llamas: the work does not depend on what the weights hold.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForTokenClassification, PreTrainedTokenizerFast

from inferscale.rewards import HFProcessRewardModel
from inferscale.tree import Node, Problem, Step, branch_key, root_key

SIZES: dict[str, dict[str, Any]] = {
    "s": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 688},
    "m": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376},
}
VOCABULARY = 4096


def make_model(size: str) -> Any:
    """A token classifier with two labels."""
    options = {**SIZES[size], "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "num_labels": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForTokenClassification(LlamaConfig(**options)).eval()


def make_tokenizer() -> Any:
    """One word for each id."""
    core = Tokenizer(models.WordLevel({"<s>": 0, "|": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}, unk_token="|"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")


def make_levels(prompt: int, branches: int, steps: int, tokens: int) -> list[list[Node]]:
    """The nodes that a search would score after each step."""
    rng = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{rng.randrange(2, VOCABULARY)}" for _ in range(count))

    root = Node(Problem(words(prompt)), key=root_key("benchmark"))
    level, levels = [root] * branches, []
    for _ in range(steps):
        parents = sorted((rng.choice(level) for _ in range(branches)), key=lambda node: node.key)
        level = []
        for parent in parents:
            draw, parent.num_draws = parent.num_draws, parent.num_draws + 1
            step = Step(words(tokens - 1) + " | ")
            level.append(Node(root.problem, step, parent, branch_key(parent.key, draw)))
        levels.append(level)
    return levels


def scored(reward: HFProcessRewardModel, levels: Sequence[Sequence[Node]]) -> list[list[float]]:
    """The step scores of the last level, after all levels have been scored."""
    for level in levels:
        scores = reward.step_scores(level)
    reward.release(levels[0][0].root)
    return scores


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="s")
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens")
    parser.add_argument("--branches", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a step, separator included")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = make_model(options.size), make_tokenizer()
    levels = make_levels(options.prompt, options.branches, options.steps, options.tokens)
    whole, tree = (
        HFProcessRewardModel(model, tokenizer, step_separator="|", cache=cache) for cache in ("none", "tree")
    )
    ways: dict[str, Callable[[], list[list[float]]]] = {
        "whole texts, every step": lambda: scored(whole, levels),
        "what is new, every step": lambda: scored(tree, levels),
        "whole texts, once at the end": lambda: scored(whole, levels[-1:]),
    }
    scored(tree, levels[:1])  # what torch sets up once
    found: dict[str, list[list[float]]] = {}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, run in ways.items():
            start = time.process_time()
            found[name] = run()
            times[name].append(time.process_time() - start)
    worst = max(
        abs(x - y)
        for a, b in zip(found["whole texts, every step"], found["what is new, every step"], strict=True)
        for x, y in zip(a, b, strict=True)
    )
    texts = sum(cost.scored_tokens for level in levels for cost in whole.cost(level))
    new = sum(cost.scored_tokens for cost in tree.cost([node for level in levels for node in level]))
    baseline = statistics.median(times["whole texts, every step"])
    print(
        f"size {options.size}, prompt {options.prompt}, {options.branches} branches x {options.steps} steps x "
        f"{options.tokens} tokens; {texts:,} tokens of whole texts, {new:,} new ones"
    )
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:30}  {median:7.2f} s  {baseline / median:6.2f} x")
    print(f"largest difference of a step score: {worst:.1e}")


if __name__ == "__main__":
    main()
