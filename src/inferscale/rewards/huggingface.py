"""Process reward models on transformers: one number for every step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch

from inferscale.functional import Reduction
from inferscale.generators.loading import load_model, tokenizer_of
from inferscale.generators.prompts import PromptFormat
from inferscale.tree import Node

from .heads import Read, read_pair, read_sigmoid
from .paths import StepEncoder, step_ends
from .stepwise import CacheKind, SingleReading, StepReading

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
        from .families import load_family

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
        from .families import refuse_constant_scores

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
