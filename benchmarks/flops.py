"""Cost and agreement of FLOP counters: `FlopCounter` beside those that people use.

Run with ``python -m benchmarks.flops``. A random Llama forwards a prompt and decodes one token on its cache, without a
counter and under each; the order is shuffled in every round. Time is CPU time of the process on one thread, as the
median of the ratios to the bare forward of the same round. Counts are divided by the count of ``mode="exact"``;
libraries that count multiply-adds are doubled first. fvcore, calflops and deepspeed take part where they are
installed. ``--families`` counts a prefill of ten families instead, with torch's attention kernel and with eager
attention: what is below 1 in the first column alone is attention that a counter does not see on a CPU.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

from inferscale._compat import cache_argument
from inferscale.flops import FlopCounter, ModelSpec

SIZES: dict[str, dict[str, Any]] = {
    "0.12M": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256}
    | {"intermediate_size": 172, "num_key_value_heads": 2},
    "40M": {"hidden_size": 512, "num_hidden_layers": 10, "num_attention_heads": 8, "vocab_size": 8000}
    | {"intermediate_size": 1376},
    "134M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 32000}
    | {"intermediate_size": 2048},
}
PROMPT = 256
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256, **_ENDS}
_GATED = {**_WIDE, "num_key_value_heads": 2, "intermediate_size": 172}
_SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": {**_GATED, "head_dim": 16},
    "phi3": _GATED,
    "olmo2": _GATED,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256, **_ENDS},
    "opt": {**_WIDE, "ffn_dim": 172, "word_embed_proj_dim": 64},
    "mixtral": {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_GATED, **_SPARSE, "shared_expert_intermediate_size": 48},
}


class Forward(nn.Module):
    """One forward of fixed sizes, as a module with one tensor for its argument; the cache is put back after it."""

    def __init__(self, model: nn.Module, new: int, past: int) -> None:
        super().__init__()
        self.model = model
        self.ids = torch.arange(new)[None] % 250
        self.cache = DynamicCache()
        self.past = past
        if past:
            model(torch.arange(past)[None] % 250, **{cache_argument(model): self.cache})

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        cache = self.cache if self.past else DynamicCache()
        logits: Tensor = self.model(ids, **{cache_argument(self.model): cache}).logits
        if self.past:
            cache.crop(-ids.shape[1])
        return logits


@dataclass(frozen=True)
class Counted:
    """FLOPs of one forward by a counter, and seconds that the counted forward took."""

    flops: float
    seconds: float


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def bare(forward: Forward, repeats: int) -> Counted:
    _, seconds = timed(lambda: [forward(forward.ids) for _ in range(repeats)])
    return Counted(0.0, seconds / repeats)


def ours(mode: Any) -> Callable[[Forward, int], Counted]:
    def count(forward: Forward, repeats: int) -> Counted:
        with FlopCounter(forward.model, mode=mode) as counter:
            counted = bare(forward, repeats)
        return Counted(counter.flops_of(convention="full") / repeats, counted.seconds)

    return count


def torch_mode(forward: Forward, repeats: int) -> Counted:
    with FlopCounterMode(display=False) as counter:
        counted = bare(forward, repeats)
    return Counted(counter.get_total_flops() / repeats, counted.seconds)


def torch_profiler(forward: Forward, repeats: int) -> Counted:
    def work() -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as profiler:
            forward(forward.ids)
        return sum(event.flops or 0 for event in profiler.key_averages())

    return Counted(*timed(work))


def fvcore(forward: Forward, repeats: int) -> Counted:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    macs, seconds = timed(lambda: FlopCountAnalysis(forward, forward.ids).total())
    return Counted(2 * macs, seconds)


def calflops(forward: Forward, repeats: int) -> Counted:
    from calflops import calculate_flops

    options = {"print_results": False, "output_as_string": False, "output_precision": 15}
    (flops, _, _), seconds = timed(lambda: calculate_flops(forward, args=[forward.ids], **options))
    return Counted(flops, seconds)


def deepspeed(forward: Forward, repeats: int) -> Counted:
    from deepspeed.profiling.flops_profiler import get_model_profile

    options = {"print_profile": False, "as_string": False, "warm_up": 0}
    (flops, _, _), seconds = timed(lambda: get_model_profile(forward, args=[forward.ids], **options))
    return Counted(flops, seconds)


COUNTERS: dict[str, Callable[[Forward, int], Counted]] = {
    "no counter": bare,
    "analytic (ours)": ours("analytic"),
    "exact (ours)": ours("exact"),
    "FlopCounterMode": torch_mode,
    "torch.profiler": torch_profiler,
    "fvcore": fvcore,
    "calflops": calflops,
    "deepspeed": deepspeed,
}


def usable(counters: dict[str, Any], forward: Forward) -> dict[str, Any]:
    """The counters that are installed; says which are not."""
    found = {}
    for name, count in counters.items():
        try:
            count(forward, 1)
        except ImportError as error:
            print(f"left out: {name} ({error})")
        else:
            found[name] = count
    return found


def compare(forward: Forward, counters: dict[str, Any], rounds: int, repeats: int) -> dict[str, tuple[float, float]]:
    """For each counter its count over the exact one, and its time over the bare one."""
    ratios: dict[str, list[float]] = {name: [] for name in counters}
    flops = {}
    for _ in range(rounds):
        seen = {name: counters[name](forward, repeats) for name in random.sample(list(counters), len(counters))}
        for name, counted in seen.items():
            ratios[name].append(counted.seconds / seen["no counter"].seconds)
            flops[name] = counted.flops
    return {name: (flops[name] / flops["exact (ours)"], statistics.median(ratios[name])) for name in counters}


def families() -> None:
    """Prints what each counter sees of a prefill of each family, over what ran."""
    names = [name for name in COUNTERS if name not in ("no counter", "exact (ours)")]
    print(f"{'':12}" + "".join(f"{name:>18}" for name in names))
    print(f"{'':12}" + f"{'kernel   eager':>18}" * len(names))
    for family, sizes in FAMILIES.items():
        cells: dict[str, list[str]] = {name: [] for name in names}
        for attention in ("sdpa", "eager"):
            config = AutoConfig.for_model(family, **sizes)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
            prefill = Forward(model, PROMPT, 0)
            ran = COUNTERS["exact (ours)"](prefill, 1).flops
            for name in names:
                try:
                    cells[name].append(f"{COUNTERS[name](prefill, 1).flops / ran:.3f}")
                except ImportError:
                    cells[name].append("absent")
                except Exception as error:  # a counter that cannot read a family says so in its own ways
                    cells[name].append(type(error).__name__[:8])
        print(f"{family:12}" + "".join(f"{'   '.join(cells[name]):>18}" for name in names), flush=True)


def hook_microseconds(spec: ModelSpec) -> float:
    """CPU time that the analytic mode adds to one forward, on a model that does nothing."""

    class Nothing(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids

    model, ids = Nothing(), torch.zeros(1, 1, dtype=torch.long)

    def loop(times: int = 2000) -> float:
        return timed(lambda: [model(ids) for _ in range(times)])[1] / times

    plain = min(loop() for _ in range(7))
    with FlopCounter(model, specs={"model": spec}):
        counted = min(loop() for _ in range(7))
    return (counted - plain) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--families", action="store_true", help="what counters see of ten families")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    random.seed(0)
    if arguments.families:
        families()
        return
    for size in arguments.sizes:
        model = LlamaForCausalLM(LlamaConfig(**SIZES[size])).eval()
        decode, prefill = Forward(model, 1, PROMPT), Forward(model, PROMPT, 0)
        counters = usable(COUNTERS, decode)
        repeats = max(1, round(0.2 / bare(decode, 10).seconds))
        at_decode = compare(decode, counters, arguments.rounds, repeats)
        at_prefill = compare(prefill, counters, arguments.rounds, 1)
        step = min(bare(decode, repeats).seconds for _ in range(3)) * 1e3
        hook = hook_microseconds(FlopCounter(model).ledger.specs["model"])
        print(
            f"\n{size} Llama, a decode step of {step:.2f} ms; the hooks alone {hook:.1f} µs = {hook / step / 10:.3f} %"
        )
        print(f"{'':18}{'count / exact':>24}{'time / no counter':>24}")
        print(f"{'':18}{'prefill 256':>13}{'decode':>11}{'prefill 256':>13}{'decode':>11}")
        for name in counters:
            counts = (at_prefill[name][0], at_decode[name][0])
            times = (at_prefill[name][1], at_decode[name][1])
            shown = [f"{value:.4f}" if name != "no counter" else "-" for value in counts]
            print(f"{name:18}{shown[0]:>13}{shown[1]:>11}{times[0]:>13.2f}{times[1]:>11.2f}")


if __name__ == "__main__":
    main()
