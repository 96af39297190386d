"""The work that is timed: random models, prompts, choices of parents, the machine, and the floor."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from inferscale import zoo
from inferscale.flops.spec import forward_flops, model_spec

SIZES: dict[str, dict[str, Any]] = {
    "s": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 688},
    "m": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376},
    "l": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
    "xl": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192},
    "xxl": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
}
REAL = "smollm2"
KV_HEADS = {"s": 8, "m": 8, "l": 12, "xl": 8, "xxl": 32, "8b": 8}
VOCABULARY = {"s": 4096, "m": 32000, "l": 32000, "xl": 128256, "xxl": 32000, "8b": 128256}


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

    def memory_rate(self) -> float:
        """Bytes per second read by a sum over 256 MiB: the best of ten."""
        ones = torch.ones(2**26, device=self.device)
        return ones.numel() * ones.element_size() / min(self.seconds(ones.sum) for _ in range(10))


@dataclass(frozen=True)
class Work:
    """Rows that grow by steps over one shared prompt, parents drawn again between the steps."""

    prompt: int
    rows: int
    tokens: int
    step: int
    problems: int = 1
    common: int = 0  # tokens that the prompts of all problems begin with

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
        common, own = random.Random("common"), random.Random(f"prompt {problem}")
        return [(common if place < self.common else own).randrange(10, 4000) for place in range(self.prompt)]


def make_model(size: str, machine: Machine, **options: Any) -> Any:
    """A random Llama, `options` change its configuration; or ``"smollm2"``, which its package brings."""
    if size == REAL:
        real: Any = zoo.load("smollm2-135m-instruct")[0]
        return real.to(machine.device, getattr(torch, machine.dtype))
    config = LlamaConfig(
        **{**SIZES[size], "num_key_value_heads": KV_HEADS[size], **options},
        vocab_size=VOCABULARY[size],
        max_position_embeddings=4096,
        tie_word_embeddings=size not in ("l", "xxl", "8b"),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    dtype, before = getattr(torch, machine.dtype), torch.get_default_dtype()
    # On a CPU in float32, so that the weights are those of earlier figures; a large model is made where it runs.
    with torch.random.fork_rng(), torch.device(machine.device):
        torch.manual_seed(0)
        torch.set_default_dtype(before if machine.device == "cpu" else dtype)
        try:
            model = LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(before)
    return model.to(dtype=dtype)


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


def floor_bytes(model: Any, work: Work) -> int:
    """What every token of the rows must read: the weights, the prompt's keys and values once, the rows' own."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if not model.config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.numel() * model.dtype.itemsize
    suffixes = work.rows * (work.tokens - 1) / 2
    return int(work.tokens * (weights + work.problems * (work.prompt + suffixes) * bytes_per_token(model)))


def bytes_per_token(model: Any) -> int:
    """Keys and values of one token."""
    config = model.config
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize)


def compare(ways: Mapping[str, Callable[[], object]], repeats: int, machine: Machine) -> dict[str, float]:
    """Median seconds of each way, the ways taking turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _ in range(repeats):
            for name, run in ways.items():
                times[name].append(machine.seconds(run))
    return {name: statistics.median(values) for name, values in times.items()}
