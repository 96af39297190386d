"""Loading a published process reward model: which format a checkpoint has, and the model class that fits it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any

from inferscale.base import ProcessRewardModel
from inferscale.generators.loading import load_model, tokenizer_of
from inferscale.tree import Node, Problem, Step

from .formats import FORMATS, PQM, PURE, QWEN, SKYWORK, TRL, Head, StepFormat
from .heads import Read
from .layouts import RunningText, step_path
from .paths import Path

_NAMES = (
    (r"math-shepherd", "math-shepherd"),
    (r"(^|[-_/])er-?prm", "er-prm"),
    (r"llama-?3\.1-8b-prm|rlhflow.*prm", "rlhflow"),
    (r"skywork-o1", "skywork"),
    (r"qwen2\.5-math.*prm", "qwen"),
    (r"(^|[-_/])pqm", "pqm"),
    (r"(^|[-_/])pure", "pure"),
)
"""What is in the name of a published checkpoint, and its format."""

_PROBES = (
    ("What is 2 + 2?", ("2 + 2 = 4\n", "The answer is 4.\n")),
    ("What is 3 * 5?", ("3 * 5 = 99\n", "So bananas are blue, and the answer is -1.\n", "The answer is 7.\n")),
)


class FormatError(ValueError):
    """A checkpoint is not what its format says, or its format cannot be told."""


@dataclass(frozen=True, slots=True)
class Family:
    """A loaded checkpoint and how to read it.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        path_of: The ids and marks of a node's path.
        read: From the outputs at a mark to a score.
    """

    model: Any
    tokenizer: Any
    path_of: Callable[[Node], Path]
    read: Read


def load_family(
    model: Any, tokenizer: Any, step_format: str | StepFormat, *, device: Any, dtype: Any, **load_options: Any
) -> Family:
    """A checkpoint, loaded with the class that its format names, and checked.

    Args:
        model: A local folder, a hub id, or a model object.
        tokenizer: Its tokenizer; by default the one beside the model.
        step_format: A format, its name, or ``"auto"``.
        device: Where to run.
        dtype: Of the weights.
        load_options: Passed on to ``from_pretrained``.

    Raises:
        FormatError: If the format is unknown, cannot be told, or is that of another class of model.
        TagError: If the tokenizer does not have the format's tags.
        CheckpointError: If weights are missing or left over.
    """
    chosen = choose_format(model, step_format, load_options)
    loaded = _load(model, chosen, device, dtype, load_options)
    reads = tokenizer_of(loaded, model, tokenizer)
    chosen.check_tokenizer(reads)
    path_of = partial(step_path, encoder=chosen.layout.encoder(reads))
    return Family(loaded, reads, path_of, chosen.score.read(reads))


def choose_format(model: Any, step_format: str | StepFormat, load_options: dict[str, Any] | None = None) -> StepFormat:
    """The format that is given or named, or the one that a checkpoint shows.

    Raises:
        FormatError: If there is no such format, or a checkpoint does not show its own.
    """
    if isinstance(step_format, StepFormat):
        return step_format
    if step_format != "auto":
        if step_format not in FORMATS:
            raise FormatError(f"format={step_format!r}: choose one of auto, {', '.join(FORMATS)}, or give a StepFormat")
        return FORMATS[step_format]
    config = load_config(model, load_options)
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else str(getattr(model, "name_or_path", ""))
    return _detect(name, config, model)


def _detect(name: str, config: Any, model: Any) -> StepFormat:
    architecture = str((getattr(config, "architectures", None) or [type(model).__name__])[0])
    named = next((found for pattern, found in _NAMES if re.search(pattern, _own_name(name))), None)
    if architecture == "Qwen2ForProcessRewardModel":
        return QWEN
    if architecture.endswith("ForTokenClassification"):
        return PURE if named == "pure" else _with_separator(getattr(config, "step_separator", None))
    if architecture.endswith("ForSequenceClassification"):
        raise FormatError(f"{name!r} is a {architecture}, which scores whole solutions: use HFOutcomeRewardModel")
    if named is not None:
        return FORMATS[named]
    if any("v_head.summary" in key for key in _weight_names(name)):
        return PQM if "[PRM]" in _tokenizer_text(name) else SKYWORK
    raise FormatError(
        f"the format of {name!r}, a {architecture}, cannot be told: pass format=, one of {', '.join(FORMATS)}"
    )


def _own_name(source: str) -> str:
    """The name of a checkpoint without the folders that it lies in; in a hub's cache the id that it was fetched by."""
    if not os.path.isdir(source):
        return source.lower()
    parts = [part.lower() for part in FilePath(os.path.abspath(source)).parts]
    cached = next((part.removeprefix("models--") for part in parts if part.startswith("models--")), None)
    return parts[-1] if cached is None else cached.replace("--", "/")


def _with_separator(separator: str | None) -> StepFormat:
    """The format of TRL's token classifiers, with the separator that the checkpoint was trained with."""
    if separator is None or not isinstance(TRL.layout, RunningText):
        return TRL
    return replace(TRL, layout=replace(TRL.layout, separator=separator))


def load_config(model: Any, load_options: dict[str, Any] | None = None) -> Any:
    """The configuration of a model object, a local folder or a hub id."""
    from transformers import AutoConfig

    if not isinstance(model, str | os.PathLike):
        return model.config
    given = load_options or {}
    kept = {key: given[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in given}
    local = FilePath(model).exists()
    return AutoConfig.from_pretrained(os.fspath(model), trust_remote_code=False, local_files_only=local, **kept)


def _weight_names(name: str) -> Iterable[str]:
    """Names of the weights in a local folder; none if they cannot be seen."""
    folder = FilePath(name)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if not (folder / "model.safetensors").is_file():
        return []
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return list(file.keys())


def _tokenizer_text(name: str) -> str:
    file = FilePath(name) / "tokenizer.json"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _load(model: Any, step_format: StepFormat, device: Any, dtype: Any, load_options: dict[str, Any]) -> Any:
    import transformers

    from .native import VALUE_KEYS, Qwen2ForProcessRewardModel, ValueHeadForTokenClassification

    classes: dict[Head, tuple[Any, str]] = {
        "causal": (transformers.AutoModelForCausalLM, "ForCausalLM"),
        "classifier": (transformers.AutoModelForTokenClassification, "ForTokenClassification"),
        "value": (ValueHeadForTokenClassification, "ValueHeadForTokenClassification"),
        "mlp": (Qwen2ForProcessRewardModel, "Qwen2ForProcessRewardModel"),
    }
    auto_class, ending = classes[step_format.head]
    options = dict(load_options)
    if isinstance(model, str | os.PathLike) and step_format.head in ("value", "mlp"):
        options.setdefault("config", load_config(model, load_options))
    if isinstance(model, str | os.PathLike) and step_format.head == "value":
        options.setdefault("key_mapping", VALUE_KEYS)
    loaded = load_model(model, auto_class, device=device, dtype=dtype, **options)
    if not type(loaded).__name__.endswith((ending, "LMHeadModel") if step_format.head == "causal" else ending):
        raise FormatError(
            f"format {step_format.name!r} reads a {ending}, not a {type(loaded).__name__}: give the folder or hub id, "
            "or another format"
        )
    if step_format.head == "classifier" and loaded.num_labels != 2:
        raise FormatError(f"format {step_format.name!r} reads two labels, and this model has {loaded.num_labels}")
    return loaded


def refuse_constant_scores(reward: ProcessRewardModel, smallest_spread: float = 1e-4) -> None:
    """Raises when a process reward model gives every step the same score, or none that is a number.

    A head that was never loaded, or rotary embeddings left at zero, look like this and fail no other check.

    Args:
        reward: The model.
        smallest_spread: Least difference between its highest and lowest score on two short solutions.

    Raises:
        FormatError: If it does.
    """
    roots = [Node(Problem(prompt), key=place) for place, (prompt, _) in enumerate(_PROBES)]
    nodes = []
    for root, (_, texts) in zip(roots, _PROBES, strict=True):
        node = root
        for place, text in enumerate(texts, 1):
            node = Node(root.problem, Step(text), node, 1000 * place + root.key)
        nodes.append(node)
    scores = [score for step_scores in reward.step_scores(nodes) for score in step_scores]
    for root in roots:
        reward.release(root)
    if not all(abs(score) < float("inf") for score in scores):
        raise FormatError(f"the model scores two short solutions {scores}: its weights are broken, or its dtype is")
    if max(scores) - min(scores) < smallest_spread:
        raise FormatError(
            f"the model scores every step of two short solutions {scores[0]:.5f}: its head or its positions were not "
            "loaded, or its format is another one"
        )
