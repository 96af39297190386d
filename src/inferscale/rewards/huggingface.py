"""Process reward models on transformers: one number for every step."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from inferscale._compat import cache_argument
from inferscale.base import ProcessRewardModel
from inferscale.functional import Reduction
from inferscale.runtime.loading import load_model, tokenizer_of
from inferscale.runtime.prompts import PromptFormat
from inferscale.tree import Node, Problem, Step

from .formats import FORMATS, PQM, PURE, QWEN, SKYWORK, TRL, Head, RunningText, StepFormat, step_path
from .paths import CacheKind, Path, Read, SingleReading, StepEncoder, StepReading, read_pair, read_sigmoid, step_ends

if TYPE_CHECKING:
    from .formats import StepFormat


class HFProcessRewardModel(SingleReading):
    """Scores every step of a path by reading a model at the step's last token, in float32.

    Three kinds of model are read: a token classifier with two labels (softmax, class 1), one with a single label
    (sigmoid), and a causal language model with a token for "good" and one for "bad" (softmax over the two).

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        reduction: How step scores become one score.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        good_token: str | int | None = None,
        bad_token: str | int | None = None,
        reduction: Reduction = "last",
        step_separator: str | None = "\n",
        use_token_ids: bool = False,
        chat_template: bool | None = False,
        system_prompt: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        micro_batch: int | None = None,
        cache: CacheKind = "tree",
        max_cache_bytes: int | None = None,
        **load_options: Any,
    ) -> None:
        """Loads the model and checks its head.

        Args:
            model: A token classifier or a causal language model: an object, a local folder or a hub id.
            tokenizer: Its tokenizer; by default the one beside the model.
            good_token: The token (or id) whose probability is the score; makes the model a causal language model.
            bad_token: The token (or id) that it is weighed against.
            reduction: How step scores become one score: ``"last"``, ``"min"``, ``"prod"`` or ``"mean"``.
            step_separator: Text that ends every step as the model was trained on it; the score is read at its last
                token. ``None``: steps are read at their own last token.
            use_token_ids: Read the ids that the generator sampled; only where both have the same tokenizer.
            chat_template: Whether the prompt is a user turn of the tokenizer's chat template (``None``: if it has
                one); the steps follow it.
            system_prompt: System turn of the chat.
            device: Where to run; by default a GPU if there is one (a model object stays where it is).
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            micro_batch: Most rows read at a time (default 64, with ``cache="none"`` 32); halved when memory runs out.
            cache: ``"tree"`` reads every node once; ``"none"`` reads whole texts each time.
            max_cache_bytes: Most keys and values kept between calls (default: 2 GiB on a CPU, a quarter of a GPU's
                memory); what does not fit is computed again.
            load_options: Passed on to ``from_pretrained``.

        Raises:
            ValueError: If the tokens or the number of labels do not fit.
            CheckpointError: If the checkpoint lacks the head's weights.
        """
        import transformers

        if (good_token is None) != (bad_token is None):
            raise ValueError("give both good_token and bad_token (a causal language model), or neither (a classifier)")
        causal = good_token is not None
        auto_class = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForTokenClassification
        self.reduction = reduction
        self.model = load_model(model, auto_class, device=device, dtype=dtype, **load_options)
        self.tokenizer = tokenizer_of(self.model, model, tokenizer)
        prompts = PromptFormat.choose(self.tokenizer, chat_template, system_prompt)
        self._reading = StepReading(
            self.model,
            partial(step_ends, encoder=StepEncoder(self.tokenizer, prompts, step_separator, use_token_ids)),
            self._choose_read(good_token, bad_token),
            rows=micro_batch,
            cache=cache,
            max_cache_bytes=max_cache_bytes,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        tokenizer: Any = None,
        *,
        format: str | StepFormat = "auto",  # noqa: A002
        reduction: Reduction = "last",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        micro_batch: int | None = None,
        cache: CacheKind = "tree",
        max_cache_bytes: int | None = None,
        check: bool = True,
        **load_options: Any,
    ) -> Self:
        """A published process reward model, read as its authors read it.

        Args:
            model: A local folder, a hub id, or a model object.
            tokenizer: Its tokenizer; by default the one beside the model.
            format: A name out of `inferscale.rewards.FORMATS`, a format of your own, or ``"auto"``.
            reduction: How step scores become one score.
            device: As for the class.
            dtype: As for the class.
            micro_batch: As for the class.
            cache: As for the class.
            max_cache_bytes: As for the class.
            check: Whether to run `self_check`.
            load_options: Passed on to transformers' ``from_pretrained``.

        Raises:
            ValueError: If the format cannot be told, does not fit the checkpoint or its tokenizer, or all scores are
                the same.
            CheckpointError: If the checkpoint lacks weights or has some left over.
        """
        family = load_family(model, tokenizer, format, device=device, dtype=dtype, **load_options)
        reward = cls.__new__(cls)
        reward.reduction, reward.model, reward.tokenizer = reduction, family.model, family.tokenizer
        reward._reading = StepReading(
            family.model,
            family.path_of,
            family.read,
            rows=micro_batch,
            cache=cache,
            max_cache_bytes=max_cache_bytes,
        )
        if check:
            reward.self_check()
        return reward

    def self_check(self) -> None:
        """Raises ``ValueError`` if every step of two short solutions gets the same score, or none that is a number."""
        refuse_constant_scores(self)

    def _choose_read(self, good: str | int | None, bad: str | int | None) -> Read:
        if good is not None and bad is not None:
            return read_pair(_token_id(self.tokenizer, good), _token_id(self.tokenizer, bad))
        labels = getattr(self.model, "num_labels", None)
        if not type(self.model).__name__.endswith("ForTokenClassification") or labels not in (1, 2):
            raise ValueError(
                f"{type(self.model).__name__} with {labels} labels has no step score: give a token classifier with 1 "
                "or 2 labels, or a causal language model with good_token=... and bad_token=..."
            )
        return read_sigmoid if labels == 1 else read_pair(1, 0)

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """For each node, the score of each of its steps: the probability that it is good, in most formats."""
        return [[values[0] for values in steps] for steps in self._reading.values(nodes)]


def _token_id(tokenizer: Any, token: str | int) -> int:
    """The id of `token`, which must be one token of the vocabulary."""
    if isinstance(token, int):
        if not 0 <= token < len(tokenizer):
            raise ValueError(f"token id {token} is outside the tokenizer's vocabulary of {len(tokenizer)}")
        return token
    if token in tokenizer.get_vocab():
        return int(tokenizer.get_vocab()[token])
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"{token!r} is not one token of this tokenizer but {ids}: give a token, or its id")
    return int(ids[0])


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


class _StepModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A backbone called ``model`` and a head that gives outputs for every position."""

    base_model_prefix = "model"
    config_class = PretrainedConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        self._add_head(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def _add_head(self, config: Any) -> None:
        raise NotImplementedError

    def _outputs(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's."""
        embeddings: nn.Module = self.model.get_input_embeddings()
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: Tensor | int = 0,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Outputs of the head, `[batch, positions, outputs]`, at the positions that are kept."""
        hidden = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{cache_argument(self.model): past_key_values},
            **kwargs,
        ).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return TokenClassifierOutput(logits=self._outputs(hidden[:, kept, :]))


class Qwen2ForProcessRewardModel(_StepModel):  # type: ignore[no-untyped-call]
    """Qwen2.5-Math-PRM: a Qwen2 backbone and ``score``, two linear layers with a ReLU between them.

    The published remote code leaves the rotary embeddings at zero under transformers 5, and then scores every step
    0.5; it is not needed here.
    """

    _keys_to_ignore_on_load_unexpected: list[str] | set[str] | None = [r"^lm_head\."]  # noqa: RUF012

    def _add_head(self, config: Any) -> None:
        width = config.hidden_size
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.num_labels))

    def _outputs(self, hidden: Tensor) -> Tensor:
        outputs: Tensor = self.score(hidden)
        return outputs


class _ValueHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.summary = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        outputs: Tensor = self.summary(hidden.to(self.summary.weight.dtype))
        return outputs


class ValueHeadForTokenClassification(_StepModel):  # type: ignore[no-untyped-call]
    """A backbone and ``v_head.summary``, one linear output: Skywork-o1-Open-PRM and PQM.

    The checkpoint's language model head is not loaded.
    """

    _keys_to_ignore_on_load_unexpected: list[str] | set[str] | None = [r"^lm_head\.", r"^pretrained_model\.lm_head\."]  # noqa: RUF012

    def _add_head(self, config: Any) -> None:
        config.num_labels = 1
        self.v_head = _ValueHead(config.hidden_size)

    def _outputs(self, hidden: Tensor) -> Tensor:
        outputs: Tensor = self.v_head(hidden)
        return outputs


VALUE_KEYS = {r"^pretrained_model\.model\.": "model."}
"""Names in value-head checkpoints that were saved with their wrapper's prefix, and what they are called here."""
