"""What `VLLMGenerator` uses of vLLM, after its documentation, on a tiny transformers model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from tests.tiny_models import byte_tokenizer, tiny_model


@dataclass
class SamplingParams:
    """The options that are used, checked as vLLM checks them."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    detokenize: bool = True
    max_tokens: int = 16
    logprobs: int | None = None

    def __post_init__(self) -> None:
        assert self.max_tokens >= 1
        assert self.detokenize or not self.stop, "stop strings need detokenize"
        assert self.temperature > 0 or self.n == 1, "n must be 1 when using greedy sampling"
        assert self.seed is None or 0 <= self.seed < 2**63
        assert self.ignore_eos


@dataclass
class EngineArgs:
    """Names of options that an engine takes."""

    model: str = ""
    dtype: str = "auto"
    max_model_len: int = 512
    logprobs_mode: str = "raw_logprobs"
    enable_prefix_caching: bool = False


class LLM:
    """An engine; `calls` holds the prompts and options of each call."""

    def __init__(self, model: str = "tiny", **options: Any) -> None:
        self.options = options
        self.model = tiny_model("llama")
        self.tokenizer = byte_tokenizer()
        self.calls: list[tuple[list[Any], list[SamplingParams]]] = []
        self.model_config = SimpleNamespace(
            max_model_len=options.get("max_model_len", 512),
            hf_config=self.model.config,
            logprobs_mode=options.get("logprobs_mode", "raw_logprobs"),
            dtype=torch.float32,
            quantization=options.get("quantization"),
            try_get_generation_config=lambda: {"eos_token_id": [self.tokenizer.eos_token_id, 5]},
        )

        cache = SimpleNamespace(cache_dtype=options.get("kv_cache_dtype", "auto"))
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=cache))

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def generate(self, prompts: list[Any], sampling_params: list[SamplingParams], *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        self.calls.append((prompts, sampling_params))
        return [
            SimpleNamespace(outputs=[self.sample(prompt["prompt_token_ids"], params, i) for i in range(params.n)])
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    @torch.no_grad()
    def sample(self, prompt: Sequence[int], params: SamplingParams, index: int) -> Any:
        stream = torch.Generator()
        if params.seed is not None:
            stream.manual_seed(params.seed + index)
        tokens: list[int] = []
        tables: list[dict[int, Any]] = []
        reason = "length"
        while len(tokens) < params.max_tokens:
            ids = torch.tensor([[*prompt, *tokens]])
            plain = self.model(input_ids=ids).logits[0, -1]
            penalised = RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty))(ids, plain[None].clone())[0]
            drawn = penalised / (params.temperature or 1.0)
            if params.temperature:
                drawn = MinPLogitsWarper(params.min_p)(ids, drawn[None])[0]
            token = int(penalised.argmax())
            if params.temperature:
                token = int(torch.multinomial(drawn.softmax(-1), 1, generator=stream))
            kept = (plain if self.model_config.logprobs_mode == "raw_logprobs" else drawn).log_softmax(-1)
            tokens.append(token)
            tables.append({token: SimpleNamespace(logprob=float(kept[token]))})
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            if token in params.stop_token_ids or any(stop in text for stop in params.stop or ()):
                reason = "stop"
                break
        return SimpleNamespace(token_ids=tokens, logprobs=tables, finish_reason=reason)


def module() -> ModuleType:
    """What ``import vllm`` gives."""
    made = ModuleType("vllm")
    vars(made).update(LLM=LLM, SamplingParams=SamplingParams, EngineArgs=EngineArgs)
    return made


def install(monkeypatch: Any) -> None:
    """Makes ``import vllm`` give the stub."""
    monkeypatch.setitem(sys.modules, "vllm", module())
