"""Models and tokenizers, given as objects, local folders or hub ids, checked before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from inferscale._compat import evaluating as evaluating  # the rooms of models take it from here
from inferscale.tree import Node


class TransformersModel(Protocol):
    """A torch module that is run as the models of transformers are, or a wrapper around one."""

    config: Any

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        ...

    def get_input_embeddings(self) -> Any:
        """The module that embeds token ids."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One forward."""
        ...


class TransformersTokenizer(Protocol):
    """A tokenizer of transformers, or an object that behaves like one."""

    @property
    def eos_token_id(self) -> Any:
        """Id that ends a text."""
        ...

    def __call__(self, text: str, *args: Any, **kwargs: Any) -> Any:
        """Ids of a text, under the key ``input_ids``."""
        ...

    def decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Text of ids."""
        ...

    def __len__(self) -> int:
        """Number of ids."""
        ...


class CheckpointError(ValueError):
    """A checkpoint does not hold the weights that its class needs."""


def load_model(
    path_or_id: str | os.PathLike[str],
    auto_class: Any,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **load_options: Any,
) -> Any:
    """A model in evaluation mode, on its device.

    Args:
        path_or_id: A local folder (never touches the network) or a hub id.
        auto_class: The transformers class to load with, for example ``AutoModelForCausalLM``.
        device: Where to run; by default a GPU if there is one.
        dtype: By default float32 on a CPU, the checkpoint's own elsewhere.
        load_options: Passed on to ``from_pretrained``, for example ``trust_remote_code`` or ``revision``.

    Raises:
        TypeError: If an object is given where a folder or hub id belongs.
        CheckpointError: If weights are missing, unexpected, or of another shape.
        ValueError: If a path does not exist.
    """
    require_path(path_or_id)
    target = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    if dtype is None:
        dtype = "float32" if target.type == "cpu" else "auto"
    source, local = _source(path_or_id)
    model, info = auto_class.from_pretrained(
        source, dtype=dtype, output_loading_info=True, local_files_only=local, **load_options
    )
    wrong = {kind: sorted(map(str, info.get(f"{kind}_keys") or ())) for kind in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        told = "; ".join(
            f"{kind}: {', '.join(keys[:5])}{' …' * (len(keys) > 5)}" for kind, keys in wrong.items() if keys
        )
        raise CheckpointError(
            f"the checkpoint {source!r} does not fit {type(model).__name__} ({told}): it would run on random weights; "
            "load it with the class that it was saved from"
        )
    return model.to(target).eval()


def load_tokenizer(tokenizer: Any, path_or_id: str | os.PathLike[str], **load_options: Any) -> Any:
    """The tokenizer that is given, or of the folder or hub id that is given; by default the one at `path_or_id`."""
    from transformers import AutoTokenizer

    wanted = path_or_id if tokenizer is None else tokenizer
    if not isinstance(wanted, str | os.PathLike):
        return wanted
    source, local = _source(wanted)
    return AutoTokenizer.from_pretrained(source, local_files_only=local, **load_options)


def load_pair(
    path_or_id: str | os.PathLike[str],
    auto_class: Any,
    tokenizer: Any = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **load_options: Any,
) -> tuple[Any, Any]:
    """A model, see `load_model`, and its tokenizer.

    Args:
        path_or_id: A local folder or a hub id.
        auto_class: The transformers class to load with.
        tokenizer: Another folder or hub id, or a tokenizer; by default the one beside the model.
        device: Where to run.
        dtype: Of the weights.
        load_options: Passed on to ``from_pretrained`` (``revision`` not to that of a tokenizer named apart).

    Raises:
        TypeError: If an object is given where a folder or hub id belongs.
        CheckpointError: If weights are missing, unexpected, or of another shape.
        ValueError: If a path does not exist, or the tokenizer is another model's.
    """
    model = load_model(path_or_id, auto_class, device=device, dtype=dtype, **load_options)
    shared = {"trust_remote_code", "token"} | ({"revision"} if tokenizer in (None, path_or_id) else set())
    tokenizer = load_tokenizer(tokenizer, path_or_id, **{k: v for k, v in load_options.items() if k in shared})
    check_vocabulary(model, tokenizer)
    return model, tokenizer


def require_path(path_or_id: Any) -> None:
    """Raises a `TypeError` for objects, which `from_pretrained` does not take."""
    if not isinstance(path_or_id, str | os.PathLike):
        raise TypeError(
            f"from_pretrained takes a folder or a hub id, not {type(path_or_id).__name__}: give objects to "
            "the class itself"
        )


def check_pair(model: TransformersModel, tokenizer: TransformersTokenizer, owner: str) -> None:
    """Checks that `owner` was given a model and its tokenizer as objects.

    Raises:
        TypeError: If one is a path or hub id, or the model is no torch module.
        ValueError: If the tokenizer is another model's.
    """
    for given in (model, tokenizer):
        if isinstance(given, str | os.PathLike):
            where = "model folder or hub id" if given is tokenizer else os.fspath(given)
            raise TypeError(f"{owner}(model, tokenizer) takes objects: {owner}.from_pretrained({where!r}) loads them")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"{owner}(model, tokenizer): the model must be a transformers model, not {type(model).__name__}"
        )
    check_vocabulary(model, tokenizer)


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raises ``ValueError`` when the tokenizer has ids that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} ids and the model {rows} embeddings: this is another model's "
            "tokenizer, or the model needs resize_token_embeddings(len(tokenizer))"
        )


def eos_ids(model: Any, tokenizer: Any, given: int | list[int] | None) -> frozenset[int]:
    """Ids that end an answer: those given, or the union of the generation config's and the tokenizer's.

    Raises:
        ValueError: If there is none, or one is not in the vocabulary.
    """
    config = getattr(model, "generation_config", None)
    named = [getattr(config, "eos_token_id", None), tokenizer.eos_token_id]
    ids = eos_of([given] if given is not None else named)
    rows = model.get_input_embeddings().weight.shape[0]
    outside = sorted(i for i in ids if not 0 <= i < rows)
    if outside:
        raise ValueError(
            f"end-of-sequence ids {outside} are outside the model's vocabulary of {rows}: pass eos_token_id=..."
        )
    return ids


def eos_of(sources: Iterable[int | list[int] | None]) -> frozenset[int]:
    """The union of `sources`.

    Raises:
        ValueError: If there is none.
    """
    ids: set[int] = set()
    for source in sources:
        if source is not None:
            ids.update([source] if isinstance(source, int) else source)
    if not ids:
        raise ValueError(
            "neither the tokenizer nor the model's generation_config names an end-of-sequence token: "
            "pass eos_token_id=..."
        )
    return frozenset(ids)


_COUNT_FROM_PADDING = frozenset(
    {
        "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
        "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip
"""Families of RoBERTa: their first token has the position after the pad id, so that 514 positions read 512 tokens."""


def context_length(config: Any, tokenizer: Any = None) -> int | None:
    """The most tokens that the model was made to read, or ``None`` if nothing sets a bound.

    These are the positions of its configuration, whether they were learned (more is an ``IndexError``) or rotary (more
    is run without a word, and nothing that it was trained for), as far as a YaRN or dynamic scaling stretches them. A
    sliding window is no bound, and a model with ALiBi has none.

    Args:
        config: The model's configuration.
        tokenizer: The tokenizer of a model that judges whole texts, whose ``model_max_length`` bounds them too.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    lengths = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    length = next((int(found) for found in lengths if found and found > 0), None)  # XLNet says -1
    if getattr(text, "alibi", False) or getattr(text, "position_embedding_type", None) == "alibi":
        length = None
    if length is not None and getattr(text, "model_type", None) in _COUNT_FROM_PADDING:
        length -= (text.pad_token_id or 0) + 1
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if length is not None and str(rope.get("rope_type", rope.get("type", ""))) in ("dynamic", "yarn"):
        original = rope.get("original_max_position_embeddings") or length
        length = max(length, int(original * rope.get("factor", 1.0)))
    told = getattr(tokenizer, "model_max_length", None)
    if told and told < 10**9:  # transformers writes 10^30 where nothing is known
        length = int(told) if length is None else min(length, int(told))
    return length


def check_length(count: int, context: int | None, node: Node, reader: str) -> None:
    """Raises ``ValueError`` when a path of `count` tokens is longer than what the model called `reader` reads."""
    if context is None or count <= context:
        return
    prompt = f"the prompt {node.problem.prompt[:80]!r}"
    what = prompt if node.step is None else f"a solution ({node!r}) with {prompt}"
    fix = "shorten it" if node.step is None else "sample shorter ones with max_new_tokens"
    raise ValueError(
        f"{what} has {count} tokens and {reader} reads {context}: {fix}, or judge with a model of a longer context "
        "(what counts is the configuration's max_position_embeddings, and the tokenizer's model_max_length)"
    )


def _source(name: str | os.PathLike[str]) -> tuple[str, bool]:
    """The name to load, and whether it is a local folder; a path that does not exist is an error."""
    text = os.fspath(name)
    if Path(text).expanduser().exists():
        return str(Path(text).expanduser()), True
    if isinstance(name, os.PathLike) or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text:
        raise ValueError(f"there is no folder {text!r}: give an existing model folder, or a hub id such as 'org/name'")
    return text, False
