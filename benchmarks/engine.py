"""What sharing prefixes is worth: ``python -m benchmarks.engine --help``.

Every way of doing a work is timed in the same run, interleaved, on one thread: process CPU seconds on a CPU, seconds on
a GPU. The median of the repeats is printed, and its ratio to the floor: the closed-form FLOPs of the work with every
prefix read once, over the rate of a square matrix product measured in the same run. Models are random Llamas: the work
does not depend on what the weights hold.

For the CPU figures of the documentation: ``--size s``, ``--size s --prompt 1024``, ``--size m``. The allocator is left
as it is; the baselines that grow their caches by concatenation gain from one that keeps large pages (tcmalloc,
``MALLOC_MMAP_THRESHOLD_``). ``--size s --repeats 1`` takes about half a minute of CPU.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from inferscale._caches import cache_argument
from inferscale.flops.formulas import forward_flops, model_spec
from inferscale.flow import GenerateRequest
from inferscale.generators import HFGenerator
from inferscale.generators.sampling import Sampler
from inferscale.tree import Node, Problem, branch_key, root_key

SIZES = {
    "s": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 688},
    "m": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376},
    "l": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
    "xl": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192},
}
KV_HEADS = {"s": 8, "m": 8, "l": 12, "xl": 8}
VOCABULARY = {"s": 4096, "m": 32000, "l": 32000, "xl": 128256}


@dataclass(frozen=True)
class Machine:
    """Where the work runs, and how it is timed."""

    device: str = "cpu"
    dtype: str = "float32"

    def seconds(self, run: Callable[[], object]) -> float:
        """CPU seconds of the process; on a GPU, which works on its own, seconds until it has finished."""
        clock = time.process_time if self.device == "cpu" else time.perf_counter
        self._wait()
        start = clock()
        run()
        self._wait()
        return clock() - start

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def gemm_rate(self) -> float:
        """FLOPs per second of a square matrix product: the best of ten."""
        size = 1024 if self.device == "cpu" else 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=getattr(torch, self.dtype)) for _ in range(2))
        return 2 * size**3 / min(self.seconds(lambda: a @ b) for _ in range(10))


@dataclass(frozen=True)
class Work:
    """Rows that grow by steps over one shared prompt, parents drawn again between the steps."""

    prompt: int
    rows: int
    tokens: int
    step: int
    problems: int = 1

    @property
    def steps(self) -> int:
        """Steps of each row."""
        return self.tokens // self.step

    def parents(self, turn: int) -> list[int]:
        """Which row each row of the next step continues, sorted."""
        rng = random.Random(turn)
        return sorted(rng.choices(range(self.rows), k=self.rows))

    def prompt_ids(self, problem: int = 0) -> list[int]:
        """The prompt of a problem."""
        rng = random.Random(f"prompt {problem}")
        return [rng.randrange(10, 4000) for _ in range(self.prompt)]


def make_model(size: str, machine: Machine) -> Any:
    config = LlamaConfig(
        **SIZES[size],
        num_key_value_heads=KV_HEADS[size],
        vocab_size=VOCABULARY[size],
        max_position_embeddings=4096,
        tie_word_embeddings=size != "l",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    return model.to(device=machine.device, dtype=getattr(torch, machine.dtype))


def make_tokenizer(vocabulary: int) -> Any:
    """One word for each id: decoding costs what it costs with a real tokenizer of this size."""
    vocab = {f"w{i}": i for i in range(vocabulary)}
    core = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    core.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w2", pad_token="w0")


def floor_flops(model: Any, work: Work) -> int:
    """Closed form with the prompt read once and every sampled token but the last of a path read once."""
    spec = model_spec(model.config)
    total = forward_flops(spec, work.prompt, logits=1).causal
    for past in range(work.prompt, work.prompt + work.tokens - 1):
        total += work.rows * forward_flops(spec, 1, past, logits=1).causal
    return work.problems * total


# -- ways of growing the rows ------------------------------------------------------------------------------------------


def _generate(model: Any, ids: torch.Tensor, count: int, cache: Any = None) -> Any:
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        **({} if cache is None else {cache_argument(model): cache}),
        do_sample=True,
        top_k=0,
        temperature=1.0,
        max_new_tokens=count,
        min_new_tokens=count,
        return_dict_in_generate=True,
    )


def naive(model: Any, work: Work) -> None:
    """``generate`` from scratch for every step of every row."""
    ids = torch.tensor([work.prompt_ids()] * work.rows, device=model.device)
    for turn in range(work.steps):
        ids = _generate(model, ids, work.step).sequences[work.parents(turn)]


def kept_cache(model: Any, work: Work) -> None:
    """``generate`` continued on a `DynamicCache`, prompt read once and repeated, rows gathered between the steps."""
    ids = torch.tensor([work.prompt_ids()], device=model.device)
    cache = DynamicCache()
    model(input_ids=ids[:, :-1], **{cache_argument(model): cache}, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(work.rows)
    ids = ids.repeat(work.rows, 1)
    for turn in range(work.steps):
        output = _generate(model, ids, work.step, cache)
        parents = torch.tensor(work.parents(turn), device=model.device)
        ids, cache = output.sequences[parents], getattr(output, cache_argument(model))
        cache.batch_select_indices(parents)


def gathered(model: Any, work: Work) -> None:
    """An own token loop on a `DynamicCache`, prompt read once and repeated, rows gathered between the steps."""
    ids = torch.tensor([work.prompt_ids()], device=model.device)
    cache = DynamicCache()
    logits = model(input_ids=ids, **{cache_argument(model): cache}, use_cache=True, logits_to_keep=1).logits[:, -1]
    cache.batch_repeat_interleave(work.rows)
    logits = logits.repeat(work.rows, 1)
    numbers, sampler = torch.rand(work.rows, dtype=torch.float64, device=model.device), Sampler()
    for turn in range(work.steps):
        for _ in range(work.step):
            tokens = sampler.draw(logits, numbers).tokens
            logits = model(input_ids=tokens[:, None], **{cache_argument(model): cache}, use_cache=True).logits[:, -1]
        parents = torch.tensor(work.parents(turn), device=model.device)
        logits = logits[parents]
        cache.batch_select_indices(parents)


class Ours:
    """`HFGenerator`, asked as a search asks: children of the parents drawn, one request for each."""

    def __init__(self, model: Any, work: Work) -> None:
        self.work = work
        tokenizer = make_tokenizer(model.config.vocab_size)
        self.generator = HFGenerator(
            model, tokenizer, max_step_tokens=work.step, max_new_tokens=work.tokens + 1, eos_token_id=3
        )
        prompts = [" ".join(f"w{i}" for i in work.prompt_ids(p)) for p in range(work.problems)]
        ids = {text: tuple(work.prompt_ids(p)) for p, text in enumerate(prompts)}
        self.generator._encode_prompt = ids.__getitem__  # the tokenizer has no way to split words
        self.prompts = prompts

    def __call__(self, together: bool = True, check: bool = True) -> None:
        """Does the work once, with all problems in one call or one after the other."""
        stats = self.generator.stats
        before = stats.decoded_tokens
        roots = [Node(Problem(text), key=root_key(text)) for text in self.prompts]
        for batch in [roots] if together else [[root] for root in roots]:
            self._grow(batch)
        expected = self.work.problems * self.work.rows * self.work.tokens
        if check and stats.decoded_tokens - before != expected:
            raise RuntimeError(f"{stats.decoded_tokens - before} tokens instead of {expected}: an end was sampled")
        for root in roots:
            self.generator.release(root)

    def _grow(self, roots: Sequence[Node]) -> None:
        levels = {id(root): [root] * self.work.rows for root in roots}
        for turn in range(self.work.steps):
            asked = [(root, node) for root in roots for node in dict.fromkeys(levels[id(root)])]
            requests = [GenerateRequest(node, levels[id(root)].count(node)) for root, node in asked]
            children: dict[int, list[Node]] = {id(root): [] for root in roots}
            for (root, node), steps in zip(asked, self.generator.generate(requests), strict=True):
                for draw, step in enumerate(steps):
                    children[id(root)].append(Node(root.problem, step, node, branch_key(node.key, draw)))
            parents = self.work.parents(turn)
            levels = {id(root): [children[id(root)][i] for i in parents] for root in roots}


# -- reports -----------------------------------------------------------------------------------------------------------


def compare(ways: dict[str, Callable[[], object]], repeats: int, machine: Machine) -> dict[str, float]:
    """Median seconds of each way, the ways taking turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _ in range(repeats):
            for name, run in ways.items():
                times[name].append(machine.seconds(run))
    return {name: statistics.median(values) for name, values in times.items()}


def search(size: str, work: Work, repeats: int, ways: Sequence[str], machine: Machine) -> None:
    model = make_model(size, machine)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"\n## {work.rows} rows x {work.tokens} tokens in steps of {work.step}, prompt {work.prompt}, "
        f"{parameters / 1e6:.1f}M parameters"
    )
    ours = Ours(model, work)
    ours()
    every: dict[str, Callable[[], object]] = {
        "naive generate per step": lambda: naive(model, work),
        "generate on a kept cache": lambda: kept_cache(model, work),
        "own loop, gathered cache": lambda: gathered(model, work),
        "inferscale": ours,
    }
    chosen = {name: run for name, run in every.items() if name == "inferscale" or any(w in name for w in ways)}
    rate = machine.gemm_rate()
    times = compare(chosen, repeats, machine)
    rate = max(rate, machine.gemm_rate())
    floor = floor_flops(model, work) / rate
    print(f"GEMM {rate / 1e9:.0f} GFLOP/s, floor {floor:.2f} s")
    print("| way | s | x floor | inferscale is faster by |\n|---|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.2f} | {seconds / floor:.1f} | {seconds / times['inferscale']:.1f}x |")


def problems(size: str, work: Work, repeats: int, machine: Machine) -> None:
    model = make_model(size, machine)
    ours = Ours(model, work)
    ours(check=False)
    times = compare(
        {"one at a time": lambda: ours(False, False), "together": lambda: ours(True, False)}, repeats, machine
    )
    print(f"\n## {work.problems} problems x {work.rows} rows x {work.tokens} tokens, prompt {work.prompt}, size {size}")
    print("| problems | s | together is faster by |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.2f} | {seconds / times['together']:.1f}x |")


def sampler(size: str, work: Work, repeats: int, machine: Machine) -> None:
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
        Sampler.draw = draw  # type: ignore[assignment,method-assign]
    print(f"\n## Sampler: {spent / repeats:.3f} of {total:.3f} s, {100 * spent / repeats / total:.1f} % (size {size})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="s")
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="sampled tokens of each row")
    parser.add_argument("--step", type=int, default=16, help="tokens of a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=["naive", "kept", "gathered"], help="baselines of the search")
    parser.add_argument("--work", nargs="*", default=["search", "problems", "sampler"])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = Machine(options.device, options.dtype)
    work = Work(options.prompt, options.rows, options.tokens, options.step)
    several = Work(options.prompt, 4, options.tokens, options.step, problems=16)
    if "search" in options.work:
        search(options.size, work, options.repeats, options.ways, machine)
    if "problems" in options.work:
        problems(options.size, several, options.repeats, machine)
    if "sampler" in options.work:
        sampler(options.size, work, options.repeats, machine)


if __name__ == "__main__":
    main()
