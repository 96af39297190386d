"""Process reward models on transformers: one number for every step."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import TokenClassifierOutput

from inferscale._compat import cache_argument
from inferscale.base import ProcessRewardModel
from inferscale.functional import Reduction
from inferscale.runtime.loading import check_pair, load_pair, located, read_config, require_path
from inferscale.tree import Judge, Node, Problem, Step

from .formats import FORMATS, PQM, PURE, QWEN, SKYWORK, TRL, ClassProbability, Head, StepFormat, separated_by
from .scorer import (
    CacheKind,
    Ids,
    LocalProcessReward,
    StepEncoder,
    TextStepEncoder,
    TokenScore,
    pair_probability,
    step_ends,
)


class HFProcessRewardModel(LocalProcessReward):
    """Scores every step of a path by the model's outputs at the step's last token, in float32.

    Three kinds of model need no format: a token classifier with two labels (softmax, class 1), one with a single label
    (sigmoid), and a causal language model with a token for "good" and one for "bad" (softmax over the two). Published
    models are scored as their authors do, by a format out of `inferscale.rewards.FORMATS`.

    Attributes:
        model: The model.
        tokenizer: The tokenizer.
        reduction: How step scores become one score.
        judge: The part of a solution that is judged.
        format: How problem and steps are laid out, and outputs become a score; ``None`` for prompt, steps, separators.

    Example:
        >>> import inferscale as isc
        >>> from inferscale import zoo
        >>> generator = isc.HFGenerator(*zoo.load("policy-xs"), max_new_tokens=16)
        >>> prm = isc.HFProcessRewardModel(*zoo.load("prm-xs"), good_token="<good>", bad_token="<bad>", reduction="min")
        >>> result = isc.solve(zoo.problems("dev")[0], isc.REBASE(2), generator, reward_model=prm)
        >>> result.cost.scored_tokens > 0, result.selected.score == min(result.selected.step_scores)
        (True, True)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        format: str | StepFormat | None = None,  # noqa: A002
        good_token: str | int | None = None,
        bad_token: str | int | None = None,
        reduction: Reduction = "last",
        judge: Judge = "all",
        step_separator: str | None = "\n",
        use_token_ids: bool = False,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        micro_batch: int | None = None,
        cache: CacheKind = "tree",
        max_cache_bytes: int | None = None,
    ) -> None:
        """Checks that head, tokenizer and options fit.

        Args:
            model: A token classifier or a causal language model; it stays where it is.
            tokenizer: Its tokenizer.
            format: A name out of `inferscale.rewards.FORMATS`, ``"auto"`` (told by the model), or a format of your own.
                A format has its own tokens, separator and prompt: no `good_token`, `bad_token`, `step_separator`,
                `use_token_ids`, `chat_template` and `system_prompt` then.
            good_token: The token (or id) whose probability is the score, for causal language models.
            bad_token: The token (or id) that it is weighed against.
            reduction: How step scores become one score: ``"last"``, ``"min"``, ``"prod"`` or ``"mean"``.
            judge: The part of a solution that is read and judged, where the policy thinks: ``"all"`` steps, those of
                thoughts too (a search that scores steps meets most of them there), the ``"final"`` part, or
                ``"thoughts"``.
            step_separator: Text that ends every step as the model was trained on it; the score stands at its last
                token. ``None``: at the step's own last token.
            use_token_ids: Use the ids that the generator sampled; only where both have the same tokenizer.
            chat_template: Whether the prompt is a user turn of the tokenizer's chat template, which the steps follow;
                by default if it has one.
            system_prompt: System turn of the chat.
            micro_batch: Most rows run at a time (default 64, with ``cache="none"`` 32); halved when memory runs out.
            cache: ``"tree"`` runs every node once; ``"none"`` runs whole texts each time.
            max_cache_bytes: Most keys and values kept between calls (default: 2 GiB on a CPU, a quarter of a GPU's
                memory); what does not fit is computed again. Those of the rows that run come on top: `micro_batch`.

        Raises:
            TypeError: If a path or hub id is given: `from_pretrained` loads.
            ValueError: If tokens, number of labels, format or tokenizer do not fit.
        """
        inside = check_pair(model, tokenizer, type(self).__name__)
        if use_token_ids and judge != "all":
            raise ValueError(f"judge={judge!r} reads parts of steps, which have no ids: leave use_token_ids out")
        if (good_token is None) != (bad_token is None):
            raise ValueError("give both good_token and bad_token (a causal language model), or neither (a classifier)")
        self.model = model
        self.format = None if format is None else choose_format(inside, format)
        if self.format is None:
            encoder: StepEncoder = TextStepEncoder(
                tokenizer, step_separator, use_token_ids, chat_template, system_prompt
            )
            token_score = _score_without_format(inside, tokenizer, good_token, bad_token)
        else:
            own = {"good_token and bad_token": good_token is not None, "step_separator": step_separator != "\n"}
            own |= {"use_token_ids": use_token_ids, "chat_template": chat_template is not None}
            own |= {"system_prompt": system_prompt is not None}
            if any(own.values()):
                given = ", ".join(name for name, is_given in own.items() if is_given)
                raise ValueError(f"{given}: a format has its own: leave it out, or use format=None")
            _check_head(inside, self.format)
            self.format.check_tokenizer(tokenizer)
            encoder = self.format.layout.encoder(tokenizer)
            token_score = self.format.score.token_score(tokenizer)
        super().__init__(
            [inside],
            tokenizer,
            encoder,
            step_ends,
            token_score,
            reduction=reduction,
            judge=judge,
            micro_batch=micro_batch,
            cache=cache,
            max_cache_bytes=max_cache_bytes,
        )

    @classmethod
    def from_pretrained(  # noqa: D417 (options of the class are described there)
        cls,
        path_or_id: str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        format: str | StepFormat | None = "auto",  # noqa: A002
        good_token: str | int | None = None,
        bad_token: str | int | None = None,
        reduction: Reduction = "last",
        judge: Judge = "all",
        step_separator: str | None = "\n",
        use_token_ids: bool = False,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        micro_batch: int | None = None,
        cache: CacheKind = "tree",
        max_cache_bytes: int | None = None,
        check: bool = True,
        **load_options: Any,
    ) -> Self:
        """A published process reward model, or one of your own, loaded; options not named here are those of the class.

        Args:
            path_or_id: A local folder (never touches the network) or a hub id.
            tokenizer: Another folder or hub id, or a tokenizer; by default the one beside the model.
            format: ``"auto"``: told by the checkpoint's architecture, weights and name, unless `good_token` is given.
                ``None``: a model that needs no format.
            device: Where to run; by default a GPU if there is one.
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            check: Whether to run `self_check`.
            load_options: Passed on to transformers' ``from_pretrained``.

        Raises:
            TypeError: If an object is given in place of a folder or hub id.
            ValueError: If the format cannot be told, does not fit the checkpoint or its tokenizer, or all scores are
                the same.
            CheckpointError: If the checkpoint lacks weights or has some left over.
        """
        require_path(path_or_id)
        if format == "auto" and good_token is not None:
            format = None  # noqa: A001
        kind: Head = "classifier" if good_token is None else "causal"
        if format is not None:
            format = choose_format(path_or_id, format, load_options)  # noqa: A001
            kind = format.head
        if kind in ("value", "mlp"):  # native classes: AutoConfig tells the backbone's type
            load_options.setdefault("config", load_config(path_or_id, load_options))
        if kind == "value":
            load_options.setdefault("key_mapping", VALUE_KEYS)

        def check_tokenizer(tokenizer: Any) -> None:
            if format is not None:
                format.check_tokenizer(tokenizer)
                return
            TextStepEncoder(tokenizer, step_separator, use_token_ids, chat_template, system_prompt)
            for token in (good_token, bad_token):
                if token is not None:
                    _token_id(tokenizer, token)

        model, tokenizer = load_pair(
            path_or_id,
            _HEADS[kind][0],
            tokenizer,
            loader=cls.from_pretrained,
            check=check_tokenizer,
            device=device,
            dtype=dtype,
            **load_options,
        )
        reward = cls(
            model,
            tokenizer,
            format=format,
            good_token=good_token,
            bad_token=bad_token,
            reduction=reduction,
            judge=judge,
            step_separator=step_separator,
            use_token_ids=use_token_ids,
            chat_template=chat_template,
            system_prompt=system_prompt,
            micro_batch=micro_batch,
            cache=cache,
            max_cache_bytes=max_cache_bytes,
        )
        if check:
            reward.self_check()
        return reward

    def self_check(self) -> None:
        """Raises ``ValueError`` if every step of two short solutions gets the same score, or none that is a number."""
        refuse_constant_scores(self, lambda text: tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]))


def _score_without_format(model: Any, tokenizer: Any, good: str | int | None, bad: str | int | None) -> TokenScore:
    """The score of a model without a format.

    Raises:
        ValueError: If the head gives none, or a token is none.
    """
    if good is not None and bad is not None:
        return pair_probability(_token_id(tokenizer, good), _token_id(tokenizer, bad))
    labels = getattr(model, "num_labels", None)
    if not type(model).__name__.endswith("ForTokenClassification") or labels not in (1, 2):
        raise ValueError(
            f"{type(model).__name__} with {labels} labels has no step score: give a token classifier with 1 or 2 "
            "labels, a causal language model with good_token=... and bad_token=..., or a format"
        )
    return ClassProbability(labels - 1).token_score(tokenizer)


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
"""Patterns of the names of published checkpoints, and their formats."""

_LEAST_SPREAD = 1e-4  # between the highest and the lowest score of the probes
_PROBES = (
    ("What is 2 + 2?", ("2 + 2 = 4\n", "The answer is 4.\n")),
    ("What is 3 * 5?", ("3 * 5 = 99\n", "So bananas are blue, and the answer is -1.\n", "The answer is 7.\n")),
)


class FormatError(ValueError):
    """A checkpoint is not what its format says, or its format cannot be told."""


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
    architecture = str((getattr(config, "architectures", None) or [type(model).__name__])[0])
    named = next((found for pattern, found in _NAMES if re.search(pattern, _own_name(name))), None)
    if architecture == "Qwen2ForProcessRewardModel":
        return QWEN
    if architecture.endswith("ForTokenClassification"):
        if named == "pure":
            return PURE
        separator = getattr(config, "step_separator", None)  # `inferscale.rewards.training` notes it there
        return TRL if separator is None else separated_by(separator)
    if architecture.endswith("ForSequenceClassification"):
        raise FormatError(f"{name!r} is a {architecture}, which scores whole solutions: use HFOutcomeRewardModel")
    if named is not None:
        return FORMATS[named]
    if any("v_head.summary" in key for key in _weight_names(Path(name))):
        tokenizer = Path(name) / "tokenizer.json"
        return PQM if tokenizer.is_file() and "[PRM]" in tokenizer.read_text(encoding="utf-8") else SKYWORK
    raise FormatError(
        f"the format of {name!r}, a {architecture}, cannot be told: pass format=, one of {', '.join(FORMATS)}, or "
        "good_token=... and bad_token=..."
    )


def _own_name(source: str) -> str:
    """The name of a checkpoint without the folders that it lies in; in a hub's cache the id that it was fetched by."""
    if not os.path.exists(source):
        return source.lower()
    parts = [part.lower() for part in Path(os.path.abspath(source)).parts]
    cached = next((part.removeprefix("models--") for part in parts if part.startswith("models--")), None)
    return parts[-1] if cached is None else cached.replace("--", "/")


def load_config(model: Any, load_options: dict[str, Any] | None = None) -> Any:
    """The configuration of a model object, a local folder or a hub id."""
    if not isinstance(model, str | os.PathLike):
        return model.config
    given = {**(load_options or {}), "trust_remote_code": False}
    with located(model, given.get("gguf_file")) as place:
        return read_config(place, given)


def _weight_names(folder: Path) -> list[str]:
    """Names of the weights in a local folder; none if they cannot be seen."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if not (folder / "model.safetensors").is_file():
        return []
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return list(file.keys())


def _check_head(model: Any, step_format: StepFormat) -> None:
    """Refuses a model whose head is not the format's."""
    ending = _HEADS[step_format.head][1]
    if not type(model).__name__.endswith(ending):
        raise FormatError(
            f"format {step_format.name!r} reads a {ending[0]}, not a {type(model).__name__}: load it with "
            "HFProcessRewardModel.from_pretrained(folder or hub id), or choose another format"
        )
    if step_format.head == "classifier" and model.num_labels != 2:
        raise FormatError(
            f"format {step_format.name!r} reads two labels, and this model has {model.num_labels}: use format=None"
        )


def refuse_constant_scores(reward: ProcessRewardModel, encode: Callable[[str], Ids] = lambda text: ()) -> None:
    """Raises when a process reward model gives every step the same score, or none that is a number.

    A head that was never loaded, or rotary embeddings left at zero, look like this and fail no other check.

    Args:
        reward: The model.
        encode: Ids of a step, for models that use those that a generator sampled.

    Raises:
        FormatError: If it does.
    """
    roots = [Node(Problem(prompt), key=place) for place, (prompt, _) in enumerate(_PROBES)]
    nodes = []
    for root, (_, texts) in zip(roots, _PROBES, strict=True):
        node = root
        for place, text in enumerate(texts, 1):
            node = Node(root.problem, Step(text, encode(text)), node, 1000 * place + root.key)
        nodes.append(node)
    scores = [score for step_scores in reward.step_scores(nodes) for score in step_scores]
    for root in roots:
        reward.release(root)
    if not all(abs(score) < float("inf") for score in scores):
        raise FormatError(f"the model scores two short solutions {scores}: its weights are broken, or its dtype is")
    if max(scores) - min(scores) < _LEAST_SPREAD:
        raise FormatError(
            f"the model scores every step of two short solutions {scores[0]:.5f}: its head or its positions were not "
            "loaded, or its format is another one"
        )


class _HeadedModel(PreTrainedModel):
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
        self.model = AutoModel.from_config(config)
        self._add_head(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def _add_head(self, config: Any) -> None:
        raise NotImplementedError

    def _outputs(self, hidden: Tensor) -> Tensor:
        """From hidden states `[batch, positions, width]` to outputs `[batch, positions, outputs]`."""
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


class Qwen2ForProcessRewardModel(_HeadedModel):
    """Qwen2.5-Math-PRM: a Qwen2 backbone and ``score``, two linear layers with a ReLU between them.

    The published remote code leaves the rotary embeddings at zero under transformers 5, and then scores every step
    0.5; it is not needed here.
    """

    # the checkpoint keeps the language model's head, which no score comes from
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
        outputs: Tensor = self.summary(hidden.to(self.summary.weight.dtype))  # value heads may stay in float32
        return outputs


class ValueHeadForTokenClassification(_HeadedModel):
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

_HEADS: dict[Head, tuple[Any, tuple[str, ...]]] = {
    "causal": (AutoModelForCausalLM, ("ForCausalLM", "LMHeadModel")),
    "classifier": (AutoModelForTokenClassification, ("ForTokenClassification",)),
    "value": (ValueHeadForTokenClassification, ("ValueHeadForTokenClassification",)),
    "mlp": (Qwen2ForProcessRewardModel, ("Qwen2ForProcessRewardModel",)),
}
"""For each head the class that loads it, and how the names of models that have it end."""
