"""Token classifiers that can be trained: a language model with a new head, and LoRA adapters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from inferscale.generators.loading import CheckpointError, tokenizer_of


def load_for_training(
    model: str | os.PathLike[str] | Any, tokenizer: Any = None, *, seed: int = 0, **options: Any
) -> tuple[Any, Any]:
    """A token classifier with two labels on a language model's weights, and its tokenizer.

    A model that has such a head already goes on with it; else the head starts at random, and nothing but the head may.

    Args:
        model: A folder or hub id, or a token classifier, which is used as it is.
        tokenizer: Its tokenizer; by default the one beside the model.
        seed: Of the head's first weights.
        options: Passed on to ``from_pretrained``.

    Raises:
        CheckpointError: If other weights than the head's are missing.
    """
    from transformers import AutoModelForTokenClassification

    if not isinstance(model, str | os.PathLike):
        return model, tokenizer_of(model, model, tokenizer)
    local = Path(model).exists()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded, info = AutoModelForTokenClassification.from_pretrained(
            os.fspath(model), num_labels=2, dtype="float32", output_loading_info=True, local_files_only=local, **options
        )
    foreign = sorted(key for key in info["missing_keys"] if not key.startswith(("score.", "classifier.")))
    if foreign:
        raise CheckpointError(f"{os.fspath(model)!r} lacks weights beside the head: {', '.join(foreign[:5])}")
    return loaded, tokenizer_of(loaded, model, tokenizer)


def with_lora(model: Any, rank: int) -> Any:
    """The model with LoRA adapters of this rank in all linear layers; they and the head are trained."""
    try:
        from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "lora_rank needs peft: pip install peft, or lora_rank=0 to train all weights"
        ) from error
    config = LoraConfig(
        task_type="TOKEN_CLS",
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        modules_to_save=["score"],
    )
    return get_peft_model(model, config)
