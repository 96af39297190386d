"""What decoding costs on a GPU, in one command of at most five minutes: ``python -m benchmarks.gpu --json gpu.json``.

Correctness first, in float32 on a small model: shared prefixes equal whole forwards, batched equals alone, recorded
steps equal those that are run, and how often bfloat16 draws the same tokens. Then tokens a second of a random Llama of
8 billion parameters in bfloat16, beside the floor (the bytes that must be read over the measured bandwidth),
``generate``, transformers' continuous batching, and vLLM where ``INFERSCALE_VLLM_PYTHON`` names a Python that has it.
What does not fit into ``--seconds`` is left out and named. ``--small`` does all of it with a tiny model on a CPU.

``--count`` needs no GPU: it runs the GPU's decode step on a CPU and prints the operators that a layer and a step take,
views included, whatever the number of problems. The fused attention of a CPU then stands for that of a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from inferscale._compat import cache_argument
from inferscale.flops import FlopCounter
from inferscale.runtime import kv
from inferscale.runtime.plain import difference, whole_logits
from inferscale.runtime.session import Session

from .engine import beside, ways
from .engine.work import Machine, Work, compare, floor_bytes, floor_flops, make_model

HOST = ("_local_scalar_dense", "aten.item", "is_nonzero", "aten.equal", "aten.nonzero", "aten._to_copy", "aten.lift")
"""Operators that wait for a device, or bring what was made on the host to it."""


class Operators(TorchDispatchMode):
    """Counts operators, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts one operator and runs it."""
        self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Number of operators."""
        return sum(self.names.values())

    @property
    def waits(self) -> dict[str, int]:
        """Those that wait for the device, or copy from the host."""
        return {name: count for name, count in self.names.items() if any(part in name for part in HOST)}


@contextmanager
def gpu_step(fused: bool = True) -> Iterator[None]:
    """Steps have a GPU's fixed shapes inside; with `fused`, the fused attention of a CPU stands for that of a GPU."""
    before, flash = kv.fixed_shapes, kv._CPU_FLASH
    kv.fixed_shapes = lambda device: True
    kv._CPU_FLASH = flash if fused else None
    try:
        yield
    finally:
        kv.fixed_shapes, kv._CPU_FLASH = before, flash


def opened(session: Session, problems: int, rows: int, prompt: int = 9) -> kv.RowBatch:
    """Ragged rows of some problems, of prompts of several lengths."""
    prompts = session.prefill([[5 + i] * (prompt + i % 3) for i in range(problems)])
    batch = session.open([prompts[row * problems // rows] for row in range(rows)], 48)
    session.extend(batch, [[7] * (1 + row % 3) for row in range(rows)])
    return batch


def count_step(model: Any, problems: int, rows: int = 64) -> Operators:
    """The operators of one decode step."""
    with torch.inference_mode():
        session = Session(model)
        batch, tokens, live = opened(session, problems, rows), torch.arange(rows) + 3, range(rows)
        for _ in range(2):  # what is made once
            session.step(batch, live, tokens)
        counted = Operators()
        with counted:
            session.step(batch, live, tokens)
    return counted


def count_plain(model: Any, rows: int = 64) -> Operators:
    """The operators of one decode step of transformers' own."""
    with torch.inference_mode():
        cache, ids = DynamicCache(), torch.ones(rows, 9, dtype=torch.long)
        model(input_ids=ids, **{cache_argument(model): cache})
        counted = Operators()
        with counted:
            model(input_ids=ids[:, :1], **{cache_argument(model): cache})
    return counted


def tiny(layers: int, dtype: str = "float32") -> Any:
    """A Llama with grouped heads and so many layers."""
    return make_model("s", Machine(dtype=dtype), num_hidden_layers=layers, num_key_value_heads=2)


def per_layer(count: Callable[[Any], Operators], dtype: str = "float32") -> tuple[int, int]:
    """Operators of one layer, and of a step outside of its layers."""
    two, three = count(tiny(2, dtype)).total, count(tiny(3, dtype)).total
    return three - two, 3 * two - 2 * three


def count(problems: Sequence[int] = (1, 4, 16, 64)) -> dict[str, Any]:
    """Prints and returns operators a layer for numbers of problems."""
    found: dict[str, Any] = {"transformers": per_layer(count_plain)[0]}
    print("| problems | operators a layer | of a step besides | with portable attention |\n|---|---|---|---|")
    for number in problems:
        with gpu_step():
            layer, rest = per_layer(lambda model, number=number: count_step(model, number))  # type: ignore[misc]
        with gpu_step(fused=False):
            portable, _ = per_layer(lambda model, number=number: count_step(model, number))  # type: ignore[misc]
        found[str(number)] = {"layer": layer, "step": rest, "portable": portable}
        print(f"| {number} | {layer} | {rest} | {portable} |", flush=True)
    print(f"\ntransformers' own step: {found['transformers']} operators a layer")
    return found


def correctness(machine: Machine, rows: int = 16) -> dict[str, Any]:
    """Shared, batched and recorded steps against whole forwards; differences are over what rounding may make."""
    model = make_model("s", Machine(machine.device, "float32"), num_key_value_heads=2)
    rng, worst, apart = random.Random(0), 0.0, 0.0
    with torch.inference_mode():
        session, alone = Session(model), Session(model)
        prompts = [[rng.randrange(10, 4000) for _ in range(20 + 7 * i)] for i in range(4)]
        texts = [list(prompts[row * 4 // rows]) + [9] * (1 + row % 3) for row in range(rows)]
        pieces = session.prefill(prompts)
        batch = session.open([pieces[row * 4 // rows] for row in range(rows)], 48)
        session.extend(batch, [[9] * (1 + row % 3) for row in range(rows)])
        single = alone.open(alone.prefill([prompts[-1]]), 48)
        alone.extend(single, [[9] * (1 + (rows - 1) % 3)])
        for _ in range(8):  # some of them recorded, on a GPU
            new = [rng.randrange(10, 4000) for _ in range(rows)]
            texts = [[*text, token] for text, token in zip(texts, new, strict=True)]
            logits = session.step(batch, range(rows), torch.tensor(new, device=model.device))
            own = alone.step(single, [0], torch.tensor(new[-1:], device=model.device))[0]
            apart = max(apart, difference(own, logits[-1], model))
        for row in (0, rows // 2, rows - 1):
            worst = max(worst, difference(logits[row], whole_logits(model, texts[row]), model))
    plan = batch.plan
    result: dict[str, Any] = {
        "shared_against_whole": worst,
        "alone_against_batched": apart,
        "recorded": getattr(plan, "replay", None) is not None,
        "right": worst <= 1 and apart <= 1,
    }
    result["bfloat16_agreement"] = _agreement(machine)
    return result


def _agreement(machine: Machine) -> float:
    """Share of positions at which bfloat16 has the likeliest token of float32."""
    exact, half = (make_model("s", Machine(machine.device, dtype)) for dtype in ("float32", "bfloat16"))
    ids = torch.randint(10, 4000, (4, 64), generator=torch.Generator().manual_seed(0)).to(exact.device)
    with torch.inference_mode():
        best = [model(input_ids=ids).logits.argmax(dim=-1) for model in (exact, half)]
    return float((best[0] == best[1]).float().mean())


def speed(model: Any, machine: Machine, work: Work, rates: tuple[float, float], repeats: int) -> dict[str, Any]:
    """Tokens a second of one work, beside its floor."""
    ours = ways.Ours(model, work)
    ours(check=False)
    seconds = compare({"ours": lambda: ours(check=False)}, repeats, machine)["ours"]
    tokens = work.problems * work.rows * work.tokens
    flops, read = floor_flops(model, work), floor_bytes(model, work)
    return {
        "rows": work.problems * work.rows, "problems": work.problems, "prompt": work.prompt, "common": work.common,
        "seconds": seconds, "tokens_per_second": tokens / seconds, "mfu": flops / rates[0] / seconds,
        "mbu": read / rates[1] / seconds, "times_floor": seconds / max(flops / rates[0], read / rates[1]),
    }  # fmt: skip


def others(model: Any, machine: Machine, work: Work, repeats: int) -> dict[str, Any]:
    """Tokens a second of the same work in other ways; ``None`` and a reason where one does not run."""
    found: dict[str, Any] = {}
    tokens = work.rows * work.tokens
    for name, way in (("generate", ways.kept_cache), ("continuous_batching", ways.continuous)):
        try:
            way(model, work)
            found[name] = tokens / compare({name: lambda way=way: way(model, work)}, repeats, machine)[name]  # type: ignore[misc]
        except Exception as error:  # another library's: the figures of the others are not lost with it
            found[name] = None
            found[f"{name}_failed"] = f"{type(error).__name__}: {error}"[:300]
        _free()
    try:
        found["vllm"] = tokens / beside.seconds("vllm", model, work)
    except SystemExit as missing:
        found["vllm"], found["vllm_failed"] = None, str(missing)[:300]
    return found


def overhead(model: Any, machine: Machine, work: Work, repeats: int) -> float:
    """Seconds with a `FlopCounter` over those without."""
    ours = ways.Ours(model, work)

    def counted() -> None:
        with FlopCounter(generator=ours.generator):
            ours(check=False)

    ours(check=False)
    times = compare({"bare": lambda: ours(check=False), "counted": counted}, repeats, machine)
    return times["counted"] / times["bare"]


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def report(device: str, small: bool, limit: float, repeats: int) -> dict[str, Any]:
    """All figures, those first that matter most; what is not reached within `limit` seconds is named."""
    start, dtype = time.perf_counter(), "float32" if small else "bfloat16"
    machine = Machine(device, dtype)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    said: dict[str, Any] = {"device": name, "torch": torch.__version__, "dtype": dtype, "left_out": []}

    def part(key: str, make: Callable[[], Any]) -> None:
        if time.perf_counter() - start > limit:
            said["left_out"].append(key)
            return
        try:
            said[key] = make()
        except Exception as error:  # one part's failure must not cost the figures of the others
            said[key] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        _free()
        print(f"{key}: {json.dumps(said[key])}", flush=True)

    part("correctness", lambda: correctness(machine))
    rates = machine.gemm_rate(), machine.memory_rate()
    said["gemm_flops"], said["bytes_per_second"] = rates
    model = make_model("s" if small else "8b", machine)
    prompt, tokens, step = (24, 4, 2) if small else (1024, 128, 32)
    sizes = (4,) if small else (64, 128, 256)
    for problems in (1, 2) if small else (1, 16, 64):
        for rows in sizes:
            work = Work(prompt, max(rows // problems, 1), tokens, step, problems, prompt // 2)
            part(f"rows {rows}, problems {problems}", lambda work=work: speed(model, machine, work, rates, repeats))  # type: ignore[misc]
    flat = Work(prompt, sizes[0], tokens, step)
    part("other engines", lambda: others(model, machine, flat, 1))
    part("flop counter", lambda: overhead(model, machine, flat, repeats))
    said["seconds"] = time.perf_counter() - start
    return said


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the command; returns what was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="operators of the decode step; needs no GPU")
    parser.add_argument("--small", action="store_true", help="a tiny model on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=270.0, help="after which no further part is begun")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="a file to write")
    options = parser.parse_args(arguments)
    if options.count:
        said = count()
    else:
        device = "cpu" if options.small else options.device
        if device == "cpu" and not options.small:
            parser.error("no GPU is here: --count and --small run on a CPU")
        said = report(device, options.small, options.seconds, options.repeats)
    if options.json is not None:
        options.json.write_text(json.dumps(said, indent=1) + "\n")
    return said


if __name__ == "__main__":
    main()
