"""Tiny random checkpoints of process reward models, in the layouts and with the token ids of the published ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from inferscale.rewards.huggingface import Qwen2ForProcessRewardModel, ValueHeadForTokenClassification
from inferscale.tree import Node, Problem, Step
from tests.tiny_models import byte_tokenizer, tiny_config, tiny_model

QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@cache
def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """In the manner of sentencepiece, 32,000 ids, the step tag and both marks where Mistral's has them."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    places = {"▁ки": 12902, "▁+": 648, "▁-": 387}
    letters = ["▁", "к", "и", "▁к", "+", "-", *"abcdefghijklmnopqrstuvwxyzSTWH0123456789=.:?*"]
    free = iter(i for i in range(300, 32000) if i not in places.values())
    vocab |= {letter: next(free) for letter in letters} | places
    pairs = [("S", "t"), ("St", "e"), ("Ste", "p"), ("▁", "Step"), ("▁", "a"), ("▁", "1"), ("i", "s")]
    vocab |= {left + right: next(free) for left, right in pairs}
    vocab |= {f"<unused-{i}>": i for i in set(range(32000)) - set(vocab.values())}
    merges = [("▁", "к"), ("▁к", "и"), ("▁", "+"), ("▁", "-"), *pairs]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with chat marks and ``<extra_0>`` at 151651 as an added token that is not called special."""
    state = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab |= {f"<unused-{i}>": i for i in range(len(vocab), 151643)}
    core = Tokenizer.from_str(json.dumps(state))
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<mark-{i}>" for i in range(5))]
    core.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    core.add_tokens([AddedToken("<extra_0>", special=False, normalized=False)])
    assert core.token_to_id("<extra_0>") == 151651
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


def with_marks(*marks: str, template: str | None = None, bos: str | None = "<s>") -> Any:
    """A byte-level tokenizer with further special tokens and a chat template."""
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.add_special_tokens({"extra_special_tokens": list(marks)} if marks else {})
    tokenizer.chat_template = template
    tokenizer.bos_token = bos
    return tokenizer


@cache
def pair_tokenizer() -> PreTrainedTokenizerFast:
    """In the manner of BERT: ``[CLS] text [SEP]``, and ``[CLS] text [SEP] other [SEP]`` with two types."""
    core = Tokenizer.from_str(byte_tokenizer().backend_tokenizer.to_str())
    core.post_processor = processors.TemplateProcessing(
        single="<good> $A <bad>", pair="<good> $A <bad> $B:1 <bad>:1", special_tokens=[("<good>", 3), ("<bad>", 4)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, cls_token="<good>", sep_token="<bad>", pad_token="<pad>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def llama_tokenizer() -> Any:
    """With Llama 3's turns."""
    return with_marks("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", template=LLAMA_TEMPLATE)


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Model and tokenizer as a checkpoint."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows_of(tokenizer: Any) -> int:
    """Embeddings for a tokenizer, with a few to spare."""
    return len(tokenizer) + 8


def causal(tokenizer: Any, family: str = "llama", **changes: Any) -> Any:
    """A causal language model for a tokenizer."""
    return tiny_model(family, vocab_size=rows_of(tokenizer), **changes)


def classifier(tokenizer: Any, family: str = "qwen2") -> Any:
    """A token classifier with two labels."""
    return tiny_model(family, "TokenClassification", vocab_size=rows_of(tokenizer), num_labels=2)


def own_class(kind: type, tokenizer: Any, family: str = "qwen2", **changes: Any) -> Any:
    """One of the classes that transformers does not have."""
    config = tiny_config(family, initializer_range=0.3, vocab_size=rows_of(tokenizer), **changes)
    config.architectures = [kind.__name__]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).float().eval()
        for parameter in model.parameters():
            if parameter.dim() == 2 and parameter.shape[0] < 64:
                torch.nn.init.normal_(parameter, std=0.5)
    return model


def qwen_prm() -> Any:
    """Qwen2.5-Math-PRM's layout."""
    return own_class(Qwen2ForProcessRewardModel, qwen_tokenizer(), hidden_size=16, num_attention_heads=2)


def save_value_checkpoint(folder: Path, tokenizer: Any, family: str, prefix: str = "") -> Any:
    """A causal language model with ``v_head.summary``, language model head included, as those were saved."""
    from safetensors.torch import save_file

    model = own_class(ValueHeadForTokenClassification, tokenizer, family)
    save(folder, causal(tokenizer, family), tokenizer)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["lm_head.weight"] = torch.zeros(rows_of(tokenizer), model.config.hidden_size)
    named = {name if name.startswith("v_head") else prefix + name: tensor for name, tensor in weights.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def solution(problem: str, texts: Sequence[str], finish: str = "step") -> Node:
    """A path with one node for each text."""
    node = Node(Problem(problem), key=7)
    for place, text in enumerate(texts):
        last = place + 1 == len(texts)
        node = Node(node.problem, Step(text, finish_reason=finish if last else "step"), node, node.key + 1)
    return node
