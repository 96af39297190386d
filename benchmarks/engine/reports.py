"""Whole searches: every way side by side, many problems, and the sampler's share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from inferscale.engine import solve_batch
from inferscale.runtime import session as kv_tree
from inferscale.runtime.decoding import TreeDecoder
from inferscale.runtime.sampling import Sampler
from inferscale.strategies import REBASE, RepeatedSampling
from inferscale.testing import ToyReward

from . import beside
from .ways import Ours, continuous, gathered, kept_cache, naive, products
from .work import Machine, Work, compare, floor_bytes, floor_flops, make_model

WAYS = {
    "naive": ("naive generate per step", naive),
    "kept": ("generate on a kept cache", kept_cache),
    "gathered": ("own loop, gathered cache", gathered),
    "continuous": ("continuous batching of transformers", continuous),
    "products": ("the matrix products alone", products),
}

FIGURES: dict[str, float] = {}
"""Seconds of ours in each report so far, by its title."""


def search(size: str, repeats: int, machine: Machine, work: Work, ways: list[str], others: list[str]) -> None:
    """The same search done in every way."""
    model = make_model(size, machine)
    ours = Ours(model, work)
    ours()
    chosen: dict[str, Callable[[], object]] = {}
    for name in ways:
        label, way = WAYS[name]
        chosen[label] = lambda way=way: way(model, work)  # type: ignore[misc]
    chosen["inferscale"] = ours
    rate, memory = machine.gemm_rate(), machine.memory_rate()
    times = compare(chosen, repeats, machine)
    times |= {name: beside.seconds(name, model, work) for name in others}
    rate, memory = max(rate, machine.gemm_rate()), max(memory, machine.memory_rate())
    compute, reading = floor_flops(model, work) / rate, floor_bytes(model, work) / memory
    title = f"{work.rows} rows x {work.tokens} tokens in steps of {work.step}, prompt {work.prompt}"
    _title(model, title)
    FIGURES[title] = times["inferscale"]
    print(f"GEMM {rate / 1e9:.0f} GFLOP/s: {compute:.2f} s; memory {memory / 1e9:.0f} GB/s: {reading:.2f} s")
    print("\n| way | s | x floor | inferscale is faster by |\n|---|---|---|---|")
    for name, seconds in times.items():
        floor = seconds / max(compute, reading)
        print(f"| {name} | {seconds:.2f} | {floor:.1f} | {seconds / times['inferscale']:.1f}x |", flush=True)
    if WAYS["products"][0] in times:
        print(f"\ninferscale takes {times['inferscale'] / times[WAYS['products'][0]]:.2f} times the products")


def problems(size: str, repeats: int, machine: Machine, work: Work) -> None:
    """Problems together against one after the other."""
    model = make_model(size, machine)
    ours = Ours(model, work)
    ours(check=False)
    ways = {"one at a time": lambda: ours(False, False), "together": lambda: ours(True, False)}
    _pair(model, f"{work.problems} problems x {work.rows} rows x {work.tokens} tokens", work, ways, repeats, machine)


def rebase(size: str, repeats: int, machine: Machine, work: Work) -> None:
    """REBASE over all problems in one call against a loop over the problems."""
    model = make_model(size, machine)
    ours = Ours(model, work, max_new_tokens=work.tokens)

    def solve(prompts: list[str]) -> None:
        solve_batch(prompts, REBASE(work.rows), ours.generator, reward_model=ToyReward())

    def one_by_one(prompts: list[str]) -> None:
        for prompt in prompts:
            solve([prompt])

    ways = {"one at a time": lambda: one_by_one(ours.prompts), "together": lambda: solve(ours.prompts)}
    solve(ours.prompts[:1])
    _pair(model, f"REBASE({work.rows}), {work.problems} problems", work, ways, repeats, machine)


def completions(size: str, repeats: int, machine: Machine, work: Work) -> None:
    """Completions of different lengths: places of ended ones filled again or not."""
    model = make_model(size, machine)
    ids = model.config.vocab_size
    ends = list(range(ids - 4 * ids // work.tokens, ids))  # a quarter of `tokens` on average
    ours = Ours(model, work, max_new_tokens=work.tokens, eos_token_id=ends, micro_batch=64)

    def solve(refills: bool) -> None:
        TreeDecoder.refills = refills
        solve_batch(ours.prompts, RepeatedSampling(work.rows), ours.generator)
        TreeDecoder.refills = True

    solve(True)
    title = f"{work.problems} problems x {work.rows} completions of up to {work.tokens} tokens, 64 at a time"
    ways = {"batches run empty": lambda: solve(False), "places filled again": lambda: solve(True)}
    _pair(model, title, work, ways, repeats, machine)


def fewshot(size: str, repeats: int, machine: Machine, work: Work) -> None:
    """Prompts with a common beginning: read once or for each problem."""
    model = make_model(size, machine)
    ours = Ours(model, work)
    least = kv_tree._LEAST_COMMON

    def solve(least_common: int) -> None:
        kv_tree._LEAST_COMMON = least_common
        ours(check=False)
        kv_tree._LEAST_COMMON = least

    solve(least)
    title = f"{work.problems} problems x {work.rows} rows, the first {work.common} tokens of the prompts in common"
    ways = {"read for each": lambda: solve(work.prompt + 1), "read once": lambda: solve(least)}
    _pair(model, title, work, ways, repeats, machine)


def sampler(size: str, repeats: int, machine: Machine, work: Work) -> None:
    """Share of a decode step that goes into drawing tokens."""
    model = make_model(size, machine)
    ours = Ours(model, work)
    ours()
    spent = 0.0
    draw = Sampler.draw

    def timed(self: Sampler, *args: Any) -> Any:
        nonlocal spent
        start = time.process_time()
        result = draw(self, *args)
        spent += time.process_time() - start
        return result

    Sampler.draw = timed  # type: ignore[assignment,method-assign]
    try:
        total = compare({"run": ours}, repeats, machine)["run"]
    finally:
        Sampler.draw = draw  # type: ignore[method-assign]
    _title(model, "The sampler")
    print(f"{spent / repeats:.3f} of {total:.3f} s, {100 * spent / repeats / total:.1f} %", flush=True)


def _pair(
    model: Any, title: str, work: Work, ways: Mapping[str, Callable[[], object]], repeats: int, machine: Machine
) -> None:
    """Two ways, and how much faster the second one is."""
    times = compare(ways, repeats, machine)
    slow, fast = times.values()
    _title(model, f"{title}, prompt {work.prompt}")
    FIGURES[title] = fast
    print("| way | s |\n|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.2f} |")
    print(f"\n{slow / fast:.2f}x", flush=True)


def _title(model: Any, text: str) -> None:
    print(f"\n## {text}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters\n")
