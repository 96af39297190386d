"""Tiny models for the Quiet-STaR tests, a trained-looking wrapper, and thinking in the plainest way there is."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from inferscale.quiet_star import QuietSTaR
from tests.tiny_models import FAMILIES, tiny_model

_GQA = FAMILIES["llama"][1]
_KINDS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
_SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral_window": ("Mistral", {**_GQA, "sliding_window": 6}),
    "gemma2": ("Gemma2", {**_GQA, **_KINDS, "head_dim": 8}),
    "gemma3": ("Gemma3Text", {**_GQA, **_KINDS, "head_dim": 8}),
    "gpt_oss": ("GptOss", {**_GQA, **_KINDS, "head_dim": 8, "num_local_experts": 4}),
    "falcon_alibi": ("Falcon", {**FAMILIES["falcon"][1], "alibi": True}),
    "mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 320, "max_seq_len": 512}),
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 320, "state_size": 4}),
    "lfm2": ("Lfm2", {**_GQA, "layer_types": ["conv", "full_attention"]}),
    "qwen3_next": ("Qwen3Next", {**_GQA, **_LINEAR, "head_dim": 8}),
}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def model_of(family: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny random model, the special families of this file included."""
    if family not in _SPECIAL:
        return tiny_model(family, seed=seed, **changes)
    prefix, arguments = _SPECIAL[family]
    config = getattr(transformers, f"{prefix}Config")(**{**_ENDS, **arguments, "initializer_range": 0.3, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config).float().eval()


def wrapped(family: str = "llama", thought_length: int = 3, seed: int = 0, trained: bool = True, **options: Any) -> Any:
    """A wrapper; a "trained" one has weights of about 1/2 that differ from place to place."""
    changes = options.pop("changes", {})
    quiet = QuietSTaR(model_of(family, seed, **changes), thought_length, start_token_id=3, end_token_id=4, **options)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        if trained:
            for parameter in quiet.head.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            quiet.end.add_(torch.randn_like(quiet.end) * 0.1)
    return quiet.eval()


def one_thought(quiet: QuietSTaR, ids: list[int], thought: list[int], ahead: list[int] = ()) -> torch.Tensor:
    """Hidden states of one row: a prefix without padding, start, thought, end and true tokens; `[tokens, hidden]`."""
    embed = quiet.backbone.embed
    text = embed(torch.tensor([ids]))
    parts = [text, quiet.start[None, None], embed(torch.tensor([thought], dtype=torch.long)), quiet.end[None, None]]
    parts.append(embed(torch.tensor([list(ahead)], dtype=torch.long)))
    return quiet.backbone.decoder(inputs_embeds=torch.cat(parts, dim=1), use_cache=False).last_hidden_state[0]
