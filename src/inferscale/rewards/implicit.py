"""The process reward that is implicit in two language models: how much likelier one finds a step than the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from inferscale.base import ProcessRewardModel
from inferscale.cost import Cost
from inferscale.functional import Reduction
from inferscale.generators.loading import load_model, tokenizer_of
from inferscale.generators.prompts import PromptFormat
from inferscale.tree import Node

from .heads import read_likelihood
from .paths import StepEncoder, predictions
from .stepwise import CacheKind, StepReading


class ImplicitReward(ProcessRewardModel):
    """A step's score is ``beta * sum(log p_model(token) - log p_reference(token))`` over its tokens.

    Free process rewards (Yuan et al. 2024, arXiv:2412.01981), for models trained on outcomes by DPO or
    cross-entropy, such as EurusPRM. Scores are in nats times `beta` and often negative: reduce them with ``"last"`` or
    ``"mean"``.

    Differs from the paper: the end of the assistant's turn belongs to no step.

    Attributes:
        model: The trained model.
        reference: What it was trained from.
        tokenizer: The tokenizer of both.
        beta: Scale of the scores.
        cumulative: Whether a step's score is that of the whole solution up to it.
        reduction: How step scores become one score.
    """

    def __init__(
        self,
        model: Any,
        reference: Any,
        tokenizer: Any = None,
        *,
        beta: float = 0.001,
        cumulative: bool = False,
        reduction: Reduction = "mean",
        step_separator: str | None = "\n\n",
        use_token_ids: bool = False,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        micro_batch: int | None = None,
        cache: CacheKind = "tree",
        max_cache_bytes: int | None = None,
        **load_options: Any,
    ) -> None:
        """Loads both models.

        Args:
            model: A causal language model: an object, a local folder or a hub id.
            reference: The other one, with the same tokenizer.
            tokenizer: Their tokenizer; by default the one beside the model.
            beta: Scale; 0.001 is EurusPRM's.
            cumulative: Whether a step's score is the sum up to it (Q) instead of its own part.
            reduction: How step scores become one score.
            step_separator: Text that ends every encoded step. ``None``: steps are encoded as they are.
            use_token_ids: Read the ids that the generator sampled; only where all have the same tokenizer.
            chat_template: Whether the prompt is a user's turn; by default if the tokenizer has a template.
            system_prompt: System turn of the chat.
            device: Where to run; by default a GPU if there is one (a model object stays where it is).
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            micro_batch: Most rows read at a time (default 64); halved when memory runs out.
            cache: ``"tree"`` reads every node once; ``"none"`` reads whole texts each time.
            max_cache_bytes: Most keys and values kept between calls, for each of the two models.
            load_options: Passed on to ``from_pretrained``.

        Raises:
            ValueError: If `beta` is not positive, or the vocabularies differ.
            CheckpointError: If a checkpoint lacks weights.
        """
        from transformers import AutoModelForCausalLM

        if not (math.isfinite(beta) and beta > 0):
            raise ValueError(f"beta={beta}: give a positive number")
        self.beta, self.cumulative, self.reduction = beta, cumulative, reduction
        self.model, self.reference = (
            load_model(one, AutoModelForCausalLM, device=device, dtype=dtype, **load_options)
            for one in (model, reference)
        )
        self.tokenizer = tokenizer_of(self.model, model, tokenizer)
        tokenizer_of(self.reference, reference, self.tokenizer)
        prompts = PromptFormat.choose(self.tokenizer, chat_template, system_prompt)
        encoder = StepEncoder(self.tokenizer, prompts, step_separator, use_token_ids)
        self._readings = [
            StepReading(
                one,
                partial(predictions, encoder=encoder),
                read_likelihood,
                rows=micro_batch,
                cache=cache,
                max_cache_bytes=max_cache_bytes,
            )
            for one in (self.model, self.reference)
        ]

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """For each node, the scaled log-ratio of each of its steps, or their running sums."""
        ours, theirs = (reading.values(nodes) for reading in self._readings)
        return [self._ratios(one, other) for one, other in zip(ours, theirs, strict=True)]

    def _ratios(self, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> list[float]:
        ratios = [
            self.beta * math.fsum([*one, *(-value for value in other)]) for one, other in zip(ours, theirs, strict=True)
        ]
        return [math.fsum(ratios[: end + 1]) for end in range(len(ratios))] if self.cumulative else ratios

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What scoring each node costs: both models read it."""
        first, second = (reading.cost(nodes) for reading in self._readings)
        return [one + other for one, other in zip(first, second, strict=True)]

    def release(self, root: Node) -> None:
        """Lets go of what was kept for a search that has ended."""
        for reading in self._readings:
            reading.release(root)
