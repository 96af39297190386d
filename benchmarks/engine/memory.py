"""How much a search holds: against the number of branches and the depth, with nodes kept for a return and without."""

from __future__ import annotations

from typing import Any

from .ways import Ours
from .work import Machine, Work, bytes_per_token, make_model

BRANCHES = (16, 64, 256)
DEPTHS = (1, 4)


def memory(size: str, prompt: int, step: int, machine: Machine) -> None:
    """Peak keys and values, all buffers included, beside what as many gathered rows hold."""
    model = make_model(size, machine)
    print(f"\n## Keys and values held at most, MB: prompt {prompt}, steps of {step} tokens\n")
    print("| branches | steps | gathered rows | held | share | nothing parked | share |\n|---|---|---|---|---|---|---|")
    for rows in BRANCHES:
        for depth in DEPTHS:
            work = Work(prompt, rows, depth * step, step)
            gathered = rows * (work.prompt + work.tokens) * bytes_per_token(model)
            held, bare = peak(model, work), peak(model, work, max_cache_bytes=0)
            print(
                f"| {rows} | {depth} | {gathered / 1e6:.1f} | {held / 1e6:.1f} | {100 * held / gathered:.1f} % "
                f"| {bare / 1e6:.1f} | {100 * bare / gathered:.1f} % |",
                flush=True,
            )


def peak(model: Any, work: Work, **options: Any) -> int:
    """The most bytes of keys and values held during the work: prompt, rows, parked nodes, memory that waits."""
    ours = Ours(model, work, **options)
    ours(check=False)
    return ours.generator.stats.peak_cache_bytes
