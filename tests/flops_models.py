"""Configurations and tiny random models for the FLOPs tests: small numbers that differ from one another."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 176,
    "vocab_size": 320,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# The shapes of the hand numbers, by family: transformers' prefix and arguments.
HAND: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SHAPE),
    "qwen2": ("Qwen2", SHAPE),
    "phi3": ("Phi3", SHAPE),
    "mistral": ("Mistral", {**SHAPE, "sliding_window": 32}),
    "qwen3": ("Qwen3", {**SHAPE, "head_dim": 32}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 320}),
    "gpt_neox": (
        "GPTNeoX",
        {k: v for k, v in SHAPE.items() if k != "num_key_value_heads"},
    ),
    "gemma2": ("Gemma2", {**SHAPE, "head_dim": 32, "sliding_window": 32}),
    "gemma3_text": ("Gemma3Text", {**SHAPE, "head_dim": 32, "sliding_window": 32}),
    "mixtral": ("Mixtral", {**SHAPE, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2Moe", {**SHAPE, **EXPERTS, "shared_expert_intermediate_size": 96}),
    "qwen3_moe": ("Qwen3Moe", {**SHAPE, **EXPERTS, "head_dim": 32}),
}


def hand_config(family: str, **changes: Any) -> Any:
    """The configuration of a hand number."""
    prefix, arguments = HAND[family]
    return getattr(transformers, f"{prefix}Config")(**{**ENDS, **arguments, **changes})


def build(config: Any, task: str = "CausalLM", attention: str | None = None) -> Any:
    """A random model of a configuration, in evaluation mode."""
    auto_class = getattr(transformers, f"AutoModelFor{task}")
    if config.model_type == "gemma2":  # its soft-capped scores leave no choice
        attention = None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {} if attention is None else {"attn_implementation": attention}
        return auto_class.from_config(config, **options).float().eval()


def hand_model(family: str, task: str = "CausalLM", attention: str | None = None, **changes: Any) -> Any:
    """The random model of a hand number."""
    return build(hand_config(family, **changes), task, attention)


def random_config(family: str, rng: random.Random) -> Any:
    """A random configuration of a family, with every option that its closed form reads."""
    kv_heads = rng.choice([1, 2, 3])
    heads = kv_heads * rng.choice([1, 2])
    head_dim = rng.choice([8, 16])
    layers, vocabulary = rng.choice([1, 2, 3, 4]), rng.choice([40, 61])
    if family == "gpt2":
        return transformers.GPT2Config(
            n_embd=heads * head_dim,
            n_head=heads,
            n_layer=layers,
            n_inner=rng.choice([None, 36]),
            vocab_size=vocabulary,
            n_positions=256,
            **ENDS,
        )
    shape: dict[str, Any] = {
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "intermediate_size": rng.choice([20, 44]),
        "vocab_size": vocabulary,
        **ENDS,
    }
    shape |= _options(family, rng, head_dim, layers)
    if family == "gpt_neox":
        del shape["num_key_value_heads"]
    return getattr(transformers, f"{HAND.get(family, (family.capitalize(),))[0]}Config")(**shape)


def _options(family: str, rng: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    """What only some families have."""
    options: dict[str, Any] = {}
    if family in ("mistral", "mixtral", "phi3", "gemma2", "gemma3_text"):
        options["sliding_window"] = rng.choice([5, 16, 200] if family.startswith("gemma") else [None, 5, 16])
    if family in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"):
        options |= {"use_sliding_window": rng.random() < 0.7, "sliding_window": rng.choice([6, 11])}
    if family in ("qwen2", "qwen3", "qwen2_moe"):
        options["max_window_layers"] = rng.randrange(layers + 1)
    if family in ("qwen3", "gemma", "gemma2", "gemma3_text", "qwen3_moe", "mistral", "llama"):
        options["head_dim"] = rng.choice([head_dim, 12])
    if family == "mixtral":
        options |= {"num_local_experts": rng.choice([2, 5]), "num_experts_per_tok": rng.choice([1, 2])}
    if family in ("qwen2_moe", "qwen3_moe"):
        options |= {"num_experts": rng.choice([3, 6]), "num_experts_per_tok": rng.choice([1, 2])}
        options |= {"moe_intermediate_size": 12, "decoder_sparse_step": rng.choice([1, 2])}
        options["mlp_only_layers"] = rng.sample(range(layers), rng.randrange(layers + 1))
    if family == "qwen2_moe":
        options["shared_expert_intermediate_size"] = 28
    return options
