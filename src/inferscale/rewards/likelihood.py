"""Likelihoods of steps as scores: of one language model, or of one against another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch

from inferscale.base import ProcessRewardModel
from inferscale.cost import Cost
from inferscale.functional import Reduction
from inferscale.runtime.loading import load_model, tokenizer_of
from inferscale.runtime.prompts import PromptFormat
from inferscale.tree import Node

from .paths import CacheKind, SingleReading, StepEncoder, StepReading, predictions, read_likelihood, read_self_certainty


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
