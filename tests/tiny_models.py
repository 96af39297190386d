"""Tiny random models of many families and two tiny tokenizers, built offline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inferscale._compat import cache_argument
from inferscale.base import Generator
from inferscale.flow import GenerateRequest
from inferscale.tree import Node, Problem, branch_key, root_key

VOCABULARY = 320

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
_GQA = {**_SMALL, "num_key_value_heads": 2, "intermediate_size": 48}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 512}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GQA),
    "llama_mha": ("Llama", {**_GQA, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {**_GQA, "sliding_window": None}),
    "qwen2": ("Qwen2", _GQA),
    "qwen3": ("Qwen3", {**_GQA, "head_dim": 16}),
    "phi": ("Phi", {**_SMALL, "intermediate_size": 48}),
    "phi3": ("Phi3", {**_GQA, "sliding_window": None}),
    "gemma": ("Gemma", {**_GQA, "head_dim": 8}),
    "olmo2": ("Olmo2", _GQA),
    "smollm3": ("SmolLM3", _GQA),
    "granite": ("Granite", _GQA),
    "cohere": ("Cohere", _GQA),
    "starcoder2": ("Starcoder2", {**_GQA, "sliding_window": None}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "vocab_size": VOCABULARY}),
    "gpt_neox": ("GPTNeoX", {**_SMALL, "intermediate_size": 48}),
    "opt": ("OPT", {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "mixtral": ("Mixtral", {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2_moe": ("Qwen2Moe", {**_GQA, **_EXPERTS, "shared_expert_intermediate_size": 24}),
    "mistral_window": ("Mistral", {**_GQA, "sliding_window": 12}),
    "gemma2": ("Gemma2", {**_GQA, "head_dim": 8, "sliding_window": 12}),
    "stablelm": ("StableLm", _GQA),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY}),
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": VOCABULARY}),
    "jamba": ("Jamba", {**_GQA, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_dt_rank": 4}),
    "falcon": ("Falcon", {**_SMALL, "new_decoder_architecture": False, "multi_query": True}),
}
"""Family name to transformers' prefix and the configuration's arguments."""

EXACT = [name for name in FAMILIES if name not in ("mistral_window", "gemma2", "stablelm", "mamba", "jamba")]
"""Families with plain full attention or ALiBi, which the shared-prefix decoder must serve."""


def tiny_config(family: str, **changes: Any) -> Any:
    prefix, arguments = FAMILIES[family]
    return getattr(transformers, f"{prefix}Config")(**{**_ENDS, **arguments, **changes})


def tiny_model(family: str = "llama", head: str = "CausalLM", seed: int = 0, **changes: Any) -> Any:
    """A random model in float32, whose distributions are far from uniform."""
    auto_class = getattr(transformers, f"AutoModelFor{head}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return auto_class.from_config(tiny_config(family, initializer_range=0.3, **changes)).float().eval()


shared_model = cache(tiny_model)
"""The same model for all tests that leave it as it is: it is made, and probed, once."""


def grow(generator: Generator, node: Node, n: int = 1, **options: Any) -> list[Node]:
    """Samples from one node and attaches them, as the engine does."""
    return grow_all(generator, [node], n, **options)[0]


def grow_all(generator: Generator, nodes: Sequence[Node], n: int = 1, **options: Any) -> list[list[Node]]:
    """The same for several nodes in one call."""
    answers = generator.generate([GenerateRequest(node, n, first=node.num_draws, **options) for node in nodes])
    groups = []
    for node, steps in zip(nodes, answers, strict=True):
        draws = range(node.num_draws, node.num_draws + n)
        new = [Node(node.problem, s, node, branch_key(node.key, d)) for d, s in zip(draws, steps, strict=True)]
        node.num_draws += n
        node.children += new
        groups.append(new)
    return groups


def root(prompt: str, seed: int = 0) -> Node:
    """A fresh tree, named as the engine names it."""
    return Node(Problem(prompt), key=root_key(f"{seed}/{prompt}"))


_WORDS = ["\n", "\n\n", ".\n", "\nStep", " a", " b", "ab", " the", "Step", " 1", " 2", ":", " =", "12", " x", " is"]


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges for what it does not know; several tokens hold a line end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    encoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab: dict[str, int] = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<good>", "<bad>"])}
    merges: list[tuple[str, str]] = []
    for piece in alphabet:
        vocab[piece] = len(vocab)
    for word in _WORDS:
        pieces = encoder.pre_tokenize_str(word)[0][0]
        for end in range(2, len(pieces) + 1):
            if pieces[:end] not in vocab:
                vocab[pieces[:end]] = len(vocab)
                merges.append((pieces[: end - 1], pieces[end - 1]))
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s?[^\s]+|\s"), "isolated"), encoder])
    core.decoder = decoders.ByteLevel()
    return _fast(core)


@cache
def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """In the manner of sentencepiece: spaces as a letter, unknown characters as bytes, a leading space stripped."""
    vocab: dict[str, int] = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<good>", "<bad>"])}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for letter in "▁abcdefghijSt12:=.?":
        vocab[letter] = len(vocab)
    merges = [("▁", "a"), ("▁", "b"), ("S", "t"), ("▁", "1"), ("▁", "2")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token=None))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(core)


def _fast(core: Tokenizer) -> PreTrainedTokenizerFast:
    core.add_special_tokens([AddedToken(token, special=True) for token in ("<pad>", "<s>", "</s>", "<good>", "<bad>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


def cached(model, cache):
    """Keyword argument of a forward that hands it a cache, whatever this release of transformers calls it."""
    return {cache_argument(model): cache}


def cache_of(model, output):
    """The cache that a forward returned."""
    return getattr(output, cache_argument(model))
