"""The likelihood of a step under a language model, as its score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch

from inferscale.functional import Reduction
from inferscale.generators.loading import load_model, tokenizer_of
from inferscale.generators.prompts import PromptFormat
from inferscale.tree import Node

from .heads import read_likelihood, read_self_certainty
from .paths import StepEncoder, predictions
from .stepwise import CacheKind, SingleReading, StepReading


class LikelihoodReward(SingleReading):
    """Scores every step by its token probabilities under a causal language model.

    A step's score is ``exp`` of the mean or the least log-probability of its tokens. Cheap to have (any stronger
    policy will do), and the baseline that a trained process reward model has to beat. With
    ``measure="self-certainty"`` it is the mean or least distance of the predictions from uniform instead, in nats
    (Kang et al. 2025, arXiv:2502.18581), which asks how sure the model is, not how likely what was written is.

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
        pooling: Literal["min", "mean"] = "mean",
        measure: Literal["likelihood", "self-certainty"] = "likelihood",
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
        """Loads the model.

        Args:
            model: A causal language model: an object, a local folder or a hub id.
            tokenizer: Its tokenizer; by default the one beside the model.
            pooling: Which value of a step counts: the ``"mean"`` or the ``"min"`` of its tokens.
            measure: What is read at every token: its ``"likelihood"``, or the ``"self-certainty"`` of the prediction.
            reduction: How step scores become one score: ``"last"``, ``"min"``, ``"prod"`` or ``"mean"``.
            step_separator: Text that ends every encoded step. ``None``: steps are encoded as they are.
            use_token_ids: Read the ids that the generator sampled; only where both have the same tokenizer.
            chat_template: Whether the prompt is a user turn of the tokenizer's chat template (``None``: if it has
                one); the steps follow it.
            system_prompt: System turn of the chat.
            device: Where to run; by default a GPU if there is one (a model object stays where it is).
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            micro_batch: Most rows read at a time (default 64); halved when memory runs out.
            cache: ``"tree"`` reads every node once; ``"none"`` reads whole texts each time.
            max_cache_bytes: Most keys and values kept between calls (default: 2 GiB on a CPU, a quarter of a GPU's
                memory); what does not fit is computed again.
            load_options: Passed on to ``from_pretrained``.

        Raises:
            ValueError: If `pooling` or `measure` is unknown.
            CheckpointError: If the checkpoint lacks weights.
        """
        from transformers import AutoModelForCausalLM

        if pooling not in ("min", "mean"):
            raise ValueError(f'pooling={pooling!r}: choose "min" or "mean"')
        if measure not in ("likelihood", "self-certainty"):
            raise ValueError(f'measure={measure!r}: choose "likelihood" or "self-certainty"')
        self.pooling, self.measure = pooling, measure
        self.reduction = reduction
        self.model = load_model(model, AutoModelForCausalLM, device=device, dtype=dtype, **load_options)
        self.tokenizer = tokenizer_of(self.model, model, tokenizer)
        prompts = PromptFormat.choose(self.tokenizer, chat_template, system_prompt)
        self._reading = StepReading(
            self.model,
            partial(predictions, encoder=StepEncoder(self.tokenizer, prompts, step_separator, use_token_ids)),
            read_likelihood if measure == "likelihood" else read_self_certainty,
            rows=micro_batch,
            cache=cache,
            max_cache_bytes=max_cache_bytes,
        )

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """For each node and step the pooled probability of its tokens, in (0, 1], or self-certainty, in nats."""
        return [[self._pooled(values) for values in steps] for steps in self._reading.values(nodes)]

    def _pooled(self, values: Sequence[float]) -> float:
        pooled = min(values) if self.pooling == "min" else math.fsum(values) / len(values)
        return math.exp(pooled) if self.measure == "likelihood" else pooled
