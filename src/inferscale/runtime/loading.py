"""Models and tokenizers, given as objects, local folders or hub ids, checked before anything runs."""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import transformers

from inferscale._compat import evaluating as evaluating  # the rooms of models take it from here
from inferscale._compat import require, unknown_option, without_wrapper
from inferscale.base import ContextLengthError
from inferscale.tree import Node

from .gguf import choose_gguf, gguf_files, whole_gguf


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
    """A checkpoint does not hold the weights that its class needs.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.generators import CheckpointError
        >>> try:  # a language model has no head that gives one number
        ...     isc.HFOutcomeRewardModel.from_pretrained(isc.zoo.path("policy-xs"))
        ... except CheckpointError as error:
        ...     print(str(error).partition("(")[2])
        missing: score.weight): it would run on random weights; load it with the class that it was saved from
    """


class Located(NamedTuple):
    """Where a checkpoint lies, as ``from_pretrained`` takes it.

    Attributes:
        source: A local folder or a hub id.
        options: ``local_files_only`` (true for a folder) and, for GGUF, ``gguf_file``.
        name: What it was named by, which finds it again.
    """

    source: str
    options: dict[str, Any]
    name: str


@contextmanager
def located(name: str | os.PathLike[str] | Located, gguf_file: str | None = None) -> Iterator[Located]:
    """Yields where a checkpoint lies; a GGUF file in parts is whole inside.

    Args:
        name: A local folder, a GGUF file (one part of it is enough) or a hub id. A folder without ``config.json`` in
            which one GGUF file lies stands for that file. What is located already is yielded as it is.
        gguf_file: Which GGUF file of a folder or of a repository of the hub.

    Raises:
        ValueError: If a path does not exist, is no model, or it is not clear which of several GGUF files is meant.
        ImportError: If a GGUF file is given and ``gguf`` is not installed.
    """
    if isinstance(name, Located):
        yield name
        return
    text = os.fspath(name)
    path = Path(text).expanduser()
    parts: list[Path] = []
    if path.is_dir():
        if gguf_file is not None or (not (path / "config.json").exists() and gguf_files(path)):
            parts = choose_gguf(path, gguf_file)
    elif ".gguf" in path.name.lower() and path.parent.is_dir():
        parts = choose_gguf(path.parent, path.name)
    elif path.exists():
        raise ValueError(f"{text!r} is a file: give the model's folder, or a GGUF file")
    elif isinstance(name, os.PathLike) or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text:
        raise ValueError(f"there is no folder {text!r}: give an existing model folder, or a hub id such as 'org/name'")
    if parts:
        with whole_gguf(parts) as file:
            yield Located(str(file.parent), {"local_files_only": True, "gguf_file": file.name}, text)
    else:
        hub = {} if gguf_file is None else {"gguf_file": gguf_file}
        yield Located(str(path) if path.exists() else text, {"local_files_only": path.exists(), **hub}, text)


def load_model(
    path_or_id: str | os.PathLike[str] | Located,
    auto_class: Any,
    *,
    loader: Callable[..., Any] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    gguf_file: str | None = None,
    **load_options: Any,
) -> Any:
    """A model in evaluation mode, on its device.

    Args:
        path_or_id: A local folder or GGUF file (never touches the network), or a hub id.
        auto_class: The transformers class to load with, for example ``AutoModelForCausalLM``.
        loader: The public function whose options these are.
        device: Where to run; by default a GPU if there is one.
        dtype: By default float32 on a CPU, the checkpoint's own elsewhere.
        gguf_file: Which GGUF file of the folder or repository. Its weights are unpacked, unless a
            ``quantization_config`` says otherwise.
        load_options: Passed on to ``from_pretrained``, for example ``trust_remote_code`` or ``revision``.

    Raises:
        TypeError: If an object is given where a folder or hub id belongs, or nobody knows an option.
        CheckpointError: If weights are missing, unexpected, or of another shape.
        ValueError: If a path does not exist, or it is not clear which GGUF file is meant.
        ImportError: If a GGUF file is given and ``gguf`` is not installed.
    """
    require_path(path_or_id)
    target = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    if dtype is None:
        dtype = "float32" if target.type == "cpu" else "auto"
    with located(path_or_id, gguf_file) as place:
        check_load_options(place, load_options, loader)
        load_options.setdefault("ignore_mismatched_sizes", True)  # they are told below, with all else that is wrong
        model, info = load_weights(place, auto_class, dtype=dtype, **load_options)
    wrong = {
        kind: sorted(map(_told, info.get(f"{kind}_keys") or ())) for kind in ("missing", "unexpected", "mismatched")
    }
    if any(wrong.values()):
        told = "; ".join(
            f"{kind}: {', '.join(keys[:5])}{' …' * (len(keys) > 5)}" for kind, keys in wrong.items() if keys
        )
        raise CheckpointError(
            f"the checkpoint {place.name!r} does not fit {type(model).__name__} ({told}): it would run on random "
            "weights; load it with the class that it was saved from"
        )
    return model.to(target).eval()


def _told(key: str | tuple[str, Iterable[int], Iterable[int]]) -> str:
    return key if isinstance(key, str) else f"{key[0]} is {[*key[1]]} there and {[*key[2]]} here"


def load_weights(place: Located, auto_class: Any, **load_options: Any) -> tuple[Any, dict[str, Any]]:
    """A model as `auto_class` loads it from `place`, and which weights were missing or left over.

    What comes out of a GGUF file is an ordinary model of plain numbers, which can be trained and saved, unless a
    ``quantization_config`` is given; its name loads it again. An adapter is put into its model: what it holds
    itself (the head of a classifier) is not missing, and the model may have another head.
    """
    base = adapted(place)
    if base is not None:
        model, info = load_weights(base, auto_class, **load_options)
        model.load_adapter(place.source)
        held = tuple(f"{name}." for name, part in model.named_modules() if hasattr(part, "modules_to_save"))
        missing = {key for key in info["missing_keys"] if not key.startswith(held)}
        return model, {**info, "missing_keys": missing, "unexpected_keys": ()}
    unpacked = "gguf_file" in place.options and "quantization_config" not in load_options
    if unpacked:
        load_options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model, info = auto_class.from_pretrained(place.source, output_loading_info=True, **place.options, **load_options)
    if unpacked:
        model.name_or_path = model.config._name_or_path = place.name
        quantizer = getattr(model, "hf_quantizer", None)
        if quantizer is not None:
            quantizer.remove_quantization_config(model)
    return model, info


def adapted(place: Located) -> Located | None:
    """Where the model lies that an adapter's folder belongs to; ``None`` for any other place.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If the adapter does not say it, or the model is not there any more.
    """
    about = Path(place.source) / "adapter_config.json"
    if not about.is_file():
        return None
    require("peft", "peft")
    base = json.loads(about.read_text("utf-8")).get("base_model_name_or_path")
    apart = f"peft.PeftModel.from_pretrained(model, {place.name!r}) and its tokenizer are taken as objects, too"
    if not base:
        raise ValueError(f"the adapter in {place.name!r} does not say which model it belongs to: {apart}")
    try:
        with located(base) as found:
            return found
    except ValueError as error:
        raise ValueError(f"the adapter in {place.name!r} belongs to {base!r}: {error}; {apart}") from None


def load_tokenizer(
    tokenizer: Any, path_or_id: str | os.PathLike[str] | Located, *, gguf_file: str | None = None, **load_options: Any
) -> Any:
    """The tokenizer that is given, or of the folder or hub id that is given; by default the one at `path_or_id`.

    An adapter's folder without one has that of its model.
    """
    if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike):
        return tokenizer
    with located(path_or_id if tokenizer is None else tokenizer, gguf_file) as place:
        base = adapted(place)
        if base is not None and not any(Path(place.source).glob("tokenizer*")):
            place = base
        return transformers.AutoTokenizer.from_pretrained(place.source, **place.options, **load_options)


def load_pair(
    path_or_id: str | os.PathLike[str],
    auto_class: Any,
    tokenizer: Any = None,
    *,
    loader: Callable[..., Any] | None = None,
    check: Callable[[Any], object] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    gguf_file: str | None = None,
    **load_options: Any,
) -> tuple[Any, Any]:
    """A model, see `load_model`, and its tokenizer.

    Args:
        path_or_id: A local folder or GGUF file, or a hub id.
        auto_class: The transformers class to load with.
        tokenizer: Another folder, GGUF file or hub id, or a tokenizer; by default the one beside the model.
        loader: The public function whose options these are.
        check: Given the tokenizer before the model is loaded, to refuse options that do not fit it.
        device: Where to run.
        dtype: Of the weights.
        gguf_file: Which GGUF file of the folder or repository; its own tokenizer is in it.
        load_options: Passed on to ``from_pretrained`` (``revision`` not to that of a tokenizer named apart).

    Raises:
        TypeError: If an object is given where a folder or hub id belongs, or nobody knows an option.
        CheckpointError: If weights are missing, unexpected, or of another shape.
        ValueError: If a path does not exist, it is not clear which GGUF file is meant, or the tokenizer is another
            model's.
        ImportError: If a GGUF file is given and ``gguf`` is not installed.
    """
    require_path(path_or_id)
    own = tokenizer is None or tokenizer is path_or_id or (isinstance(tokenizer, str) and tokenizer == path_or_id)
    shared = {"trust_remote_code", "token"} | ({"revision"} if own else set())
    passed_on = {key: value for key, value in load_options.items() if key in shared}
    with located(path_or_id, gguf_file) as place:
        check_load_options(place, load_options, loader)  # and not first when the tokenizer has been read
        tokenizer = load_tokenizer(None if own else tokenizer, place, **passed_on)
        if check is not None:
            check(tokenizer)
        model = load_model(place, auto_class, loader=loader, device=device, dtype=dtype, **load_options)
    check_vocabulary(model, tokenizer)
    return model, tokenizer


def check_load_options(
    place: Located, load_options: Mapping[str, Any], loader: Callable[..., Any] | None = None
) -> None:
    """Checks that somebody knows the options: transformers, the model's configuration, or the repository's own code.

    Args:
        place: Where the checkpoint lies, whose configuration is read if transformers does not know an option.
        load_options: Options for ``from_pretrained``.
        loader: The public function whose options these are, for the message.

    Raises:
        TypeError: If nobody does; the message names the nearest option.
    """
    known = _transformers_options()
    unknown = [name for name in load_options if name not in known]
    if load_options.get("trust_remote_code"):  # a repository's own code may have options of its own
        own = [] if loader is None else list(inspect.signature(loader).parameters)
        unknown = [name for name in unknown if difflib.get_close_matches(name, own, 1, 0.85)]
    if not unknown or not known:
        return
    config = load_options.get("config")
    if config is None:
        try:
            config = read_config(place, load_options)
        except OSError:  # no configuration: loading it will tell
            return
    # from_pretrained overrides whatever the configuration has
    refuse_unknown([name for name in unknown if not hasattr(config, name)], known, loader)


def refuse_unknown(unknown: Iterable[str], known: Iterable[str], loader: Callable[..., Any] | None = None) -> None:
    """Raises a ``TypeError`` for the first unknown option of `loader`, which names the nearest one."""
    own = {} if loader is None else inspect.signature(loader).parameters
    called = "" if loader is None else f"{loader.__qualname__}() "
    for name in unknown:
        raise unknown_option(called, name, [*own, *sorted(known)])


@cache
def _transformers_options() -> frozenset[str]:
    """Options of ``from_pretrained``, which takes most of them out of its keyword arguments; empty if it hides them."""
    loaders = (transformers.PreTrainedModel.from_pretrained, transformers.AutoModel.from_pretrained)
    names = set(inspect.signature(loaders[0]).parameters)
    for function in loaders:
        try:
            lines = inspect.getsource(function).splitlines()
        except OSError:
            return frozenset()
        for line in lines:
            if "kwargs" in line or "for name in" in line:
                names.update(re.findall(r'"(\w+)"', line))
    return frozenset(names)


def read_config(place: Located, load_options: Mapping[str, Any]) -> Any:
    """The configuration of the model at `place`, or of the one that the adapter there belongs to."""
    names = {"cache_dir", "revision", "subfolder", "token", "trust_remote_code"} & load_options.keys()
    found = adapted(place) or place
    given = {name: load_options[name] for name in names}
    return transformers.AutoConfig.from_pretrained(found.source, **found.options, **given)


def require_path(path_or_id: Any) -> None:
    """Raises a `TypeError` for objects, which `from_pretrained` does not take."""
    if not isinstance(path_or_id, str | os.PathLike | Located):
        raise TypeError(
            f"from_pretrained takes a folder or a hub id, not {type(path_or_id).__name__}: give objects to "
            "the class itself"
        )


def check_pair(model: TransformersModel, tokenizer: TransformersTokenizer, owner: str) -> Any:
    """Checks that `owner` was given a model and its tokenizer as objects; returns the model to run.

    Of peft's wrapper that is the model inside, whose layers hold the adapter.

    Raises:
        TypeError: If one is a path or hub id, or the model is no torch module.
        ValueError: If the tokenizer is another model's, the adapter is no part of the layers, or the model has no
            device that takes tokens.
    """
    for given in (model, tokenizer):
        if isinstance(given, str | os.PathLike):
            where = "model folder or hub id" if given is tokenizer else os.fspath(given)
            raise TypeError(f"{owner}(model, tokenizer) takes objects: {owner}.from_pretrained({where!r}) loads them")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"{owner}(model, tokenizer): the model must be a transformers model, not {type(model).__name__}"
        )
    adapter: Any = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise ValueError(
            f"{owner}(model, tokenizer): {adapter.peft_type.value} adds virtual tokens to every forward, and prefixes "
            "are read once here: give a model whose adapter is in its layers (LoRA and its kin)"
        )
    inside = without_wrapper(model)
    check_vocabulary(inside, tokenizer)
    if inside.get_input_embeddings().weight.device == torch.device("meta"):
        raise ValueError(
            f"{owner}(model, tokenizer): the model's input embeddings are not on a device (offloaded, or never "
            "loaded): give them one in device_map; layers may be on the disk"
        )
    return inside


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
    """Raises ``ContextLengthError`` when a path of `count` tokens is longer than what the model `reader` reads."""
    if context is None or count <= context:
        return
    prompt = f"the prompt {node.problem.prompt[:80]!r}"
    what = prompt if node.step is None else f"a solution ({node!r}) with {prompt}"
    fix = "sample shorter ones with max_new_tokens, have what fits judged (TruncatedReward, TruncatedProcessReward)"
    fix = "shorten it" if node.step is None else fix
    raise ContextLengthError(
        f"{what} has {count} tokens and {reader} reads {context}: {fix}, or take a model of a longer context "
        "(what counts is max_position_embeddings, and the tokenizer's model_max_length)"
    )
