"""Runs in the environment that has vLLM: what `VLLMGenerator` samples from a checkpoint, as JSON on the last line."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial

from inferscale.cost import Budget
from inferscale.engine import solve, solve_batch
from inferscale.flow import GenerateRequest
from inferscale.generators import VLLMGenerator
from inferscale.strategies import REBASE, Greedy, RepeatedSampling
from inferscale.testing import ToyReward
from inferscale.tree import Node, Problem, Step

ENGINE = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True, "block_size": 32, "disable_log_stats": False}
LIMITS = {"max_step_tokens": 24, "max_new_tokens": 96}
PROMPTS = ["What is 2 + 2?\n", "How many steps?\n", "How many steps are left, and why? Say it in a few words.\n"]


def told(result):
    """A result without its seconds."""
    return {**result.to_dict(), "cost": asdict(result.cost.without_seconds())}


def steps(rows):
    return [[asdict(step) for step in row] for row in rows]


def prefix_hits(llm):
    """Tokens looked up in the prefix cache, and those found there."""
    values = {metric.name: metric.value for metric in llm.get_metrics() if "prefix_cache" in metric.name}
    return [values["vllm:prefix_cache_queries"], values["vllm:prefix_cache_hits"]]


def main(folder):
    first = VLLMGenerator.from_pretrained(folder, **LIMITS, **ENGINE)
    llm = first.llm
    root = Node(Problem(PROMPTS[0]), key=12345)
    ids = tuple(first.tokenizer(" Ste\n", add_special_tokens=False)["input_ids"])
    child = Node(root.problem, Step(" Ste\n", ids), root, 7)
    before = prefix_hits(llm)
    options = {"reward_model": ToyReward()}
    together = solve_batch(PROMPTS, REBASE(8), first, **options)
    after = prefix_hits(llm)
    alone = [solve(prompt, REBASE(8), first, **options) for prompt in PROMPTS]
    capped = [solve(PROMPTS[0], RepeatedSampling(6), first, budget=Budget(calls=calls)) for calls in (6, 4)]
    warm = VLLMGenerator(llm, **LIMITS, temperature=0.7, top_k=20)
    delimited = VLLMGenerator(llm, **LIMITS, step_delimiter=" ")
    return {
        "completions": [asdict(solve(prompt, Greedy(), first).leaves[0].step) for prompt in PROMPTS],
        "greedy_steps": steps(first.generate([GenerateRequest(node, 2, greedy=True) for node in (root, child)])),
        "forced": steps(first.generate([GenerateRequest(root, 1, greedy=True, forced="Step 1: ", until="end")])),
        "whole": steps(first.generate([GenerateRequest(root, 5), GenerateRequest(child, 2, until="end")])),
        "parts": steps(first.generate([GenerateRequest(root, 2, first=3), GenerateRequest(root, 3)])),
        "warm": steps(warm.generate([GenerateRequest(root, 2), GenerateRequest(root, 1, greedy=True)])),
        "delimited": steps(delimited.generate([GenerateRequest(root, 8)])),
        "together": [told(result) for result in together],
        "alone": [told(result) for result in alone],
        "capped": [[leaf.text for leaf in result.leaves] for result in capped],
        "prefix": [after[0] - before[0], after[1] - before[1]],
        "most": [first.max_sample_tokens(GenerateRequest(root, until=until)) for until in ("step", "end")],
    }


def on_ray(folder):
    """The same searches by engines in two actors, and by one here."""
    import ray

    from inferscale.ray import solve_dataset

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    make = partial(VLLMGenerator.from_pretrained, folder, **LIMITS, **ENGINE)
    spread = solve_dataset(PROMPTS, REBASE(4), make, ToyReward, num_actors=2, batch_size=1)
    ray.shutdown()
    alone = solve_batch(PROMPTS, REBASE(4), make(), reward_model=ToyReward())
    return {"spread": [told(result) for result in spread], "alone": [told(result) for result in alone]}


if __name__ == "__main__":
    print(json.dumps({"main": main, "on_ray": on_ray}[sys.argv[2]](sys.argv[1])))
