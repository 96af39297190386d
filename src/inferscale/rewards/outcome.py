"""Outcome reward models on transformers: one number for a whole solution."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from inferscale.base import RewardModel
from inferscale.cost import Cost
from inferscale.runtime.charges import Charges
from inferscale.runtime.loading import evaluating, load_model, tokenizer_of
from inferscale.runtime.memory import run_in_pieces
from inferscale.runtime.prompts import PromptFormat
from inferscale.tree import Node

from .paths import padded

_ROWS = 32


class HFOutcomeRewardModel(RewardModel):
    """Scores a whole solution: the single output of a sequence classifier at the last token, in float32.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        micro_batch: int | None = None,
        **load_options: Any,
    ) -> None:
        """Loads the model and checks its head.

        Args:
            model: A sequence classifier with one label: an object, a local folder or a hub id.
            tokenizer: Its tokenizer; by default the one beside the model.
            chat_template: Whether prompt and solution are turns of the tokenizer's chat template; by default if it
                has one. Else the solution's text follows the prompt's.
            system_prompt: System turn of the chat.
            device: Where to run; by default a GPU if there is one (a model object stays where it is).
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            micro_batch: Most rows read at a time (default 32); halved when memory runs out.
            load_options: Passed on to ``from_pretrained``.

        Raises:
            ValueError: If the model has not exactly one label.
            CheckpointError: If the checkpoint lacks the head's weights.
        """
        from transformers import AutoModelForSequenceClassification

        if isinstance(model, str | os.PathLike):
            load_options.setdefault("num_labels", 1)
        self.model = load_model(model, AutoModelForSequenceClassification, device=device, dtype=dtype, **load_options)
        labels = getattr(self.model, "num_labels", None)
        if not type(self.model).__name__.endswith("ForSequenceClassification") or labels != 1:
            raise ValueError(
                f"{type(self.model).__name__} with {labels} labels has no outcome score: "
                "give a sequence classifier with one label"
            )
        self.tokenizer = tokenizer_of(self.model, model, tokenizer)
        self._prompts = PromptFormat.choose(self.tokenizer, chat_template, system_prompt)
        self._rows = micro_batch or _ROWS
        self._charges = Charges(self.model)

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The model's output for each node's prompt and text."""
        rows = [self._ids(node) for node in nodes]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found: dict[int, float] = {}

        def run(piece: Sequence[int]) -> None:
            found.update(zip(piece, self._run([rows[i] for i in piece]), strict=True))

        with evaluating(self.model), torch.inference_mode():
            self._rows = run_in_pieces(order, self._rows, run, lambda i: f"{len(rows[i])} tokens")
        return [found[i] for i in range(len(rows))]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What scoring each node costs: its whole text is read."""
        lengths = [len(self._ids(node)) for node in nodes]
        return [self._charges.scoring(length, length) for length in lengths]

    def _ids(self, node: Node) -> tuple[int, ...]:
        return self._prompts.encode(node.problem.prompt, node.text)

    def _run(self, rows: Sequence[Sequence[int]]) -> list[float]:
        # transformers reads the last id that is not the pad id: take one that ends no row.
        lasts = {row[-1] for row in rows}
        pad = next(i for i in range(len(lasts) + 1) if i not in lasts)
        ids, mask = padded(rows, pad, self.model.device)
        with _pad_token(self.model.config, pad):
            scores: list[float] = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return scores


@contextmanager
def _pad_token(config: Any, pad: int) -> Iterator[None]:
    text_config = config.get_text_config()
    before, text_config.pad_token_id = text_config.pad_token_id, pad
    try:
        yield
    finally:
        text_config.pad_token_id = before
