"""Outcome reward models on transformers: one number for a whole solution."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import torch

from inferscale.base import RewardModel
from inferscale.cost import Cost
from inferscale.runtime.charges import Charges
from inferscale.runtime.loading import check_pair, evaluating, load_pair
from inferscale.runtime.text import PromptFormat
from inferscale.tree import Node

from .scorer import Ids, checked_rows, padded, shortest_first


class HFOutcomeRewardModel(RewardModel):
    """Scores a whole solution: the single output of a sequence classifier at the last token, in float32.

    Attributes:
        model: The model.
        tokenizer: The tokenizer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        micro_batch: int | None = None,
    ) -> None:
        """Checks that head and tokenizer fit.

        Args:
            model: A sequence classifier with one label; it stays where it is.
            tokenizer: Its tokenizer.
            chat_template: Whether prompt and solution are turns of the tokenizer's chat template; by default if it
                has one. Else the solution's text follows the prompt's.
            system_prompt: System turn of the chat.
            micro_batch: Most rows run at a time (default 32); halved when memory runs out.

        Raises:
            TypeError: If a path or hub id is given: `from_pretrained` loads.
            ValueError: If the model has not exactly one label, or an option or the tokenizer does not fit.
        """
        check_pair(model, tokenizer, type(self).__name__)
        labels = getattr(model, "num_labels", None)
        if not type(model).__name__.endswith("ForSequenceClassification") or labels != 1:
            raise ValueError(
                f"{type(model).__name__} with {labels} labels has no outcome score: "
                "give a sequence classifier with one label"
            )
        self.model = model
        self.tokenizer = tokenizer
        self._prompts = PromptFormat.choose(tokenizer, chat_template, system_prompt)
        self._rows = checked_rows(micro_batch) or 32
        self._charges = Charges(model)

    @classmethod
    def from_pretrained(  # noqa: D417 (options of the class are described there)
        cls,
        path_or_id: str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        micro_batch: int | None = None,
        **load_options: Any,
    ) -> Self:
        """An outcome reward model that is loaded; the options that are not named here are those of the class.

        Args:
            path_or_id: A local folder (never touches the network) or a hub id.
            tokenizer: Another folder or hub id, or a tokenizer; by default the one beside the model.
            device: Where to run; by default a GPU if there is one.
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            load_options: Passed on to transformers' ``from_pretrained``.

        Raises:
            TypeError: If an object is given in place of a folder or hub id.
            ValueError: If the model has not exactly one label, or an option or the tokenizer does not fit.
            CheckpointError: If the checkpoint lacks the head's weights.
        """
        from transformers import AutoModelForSequenceClassification

        load_options.setdefault("num_labels", 1)
        model, tokenizer = load_pair(
            path_or_id, AutoModelForSequenceClassification, tokenizer, device=device, dtype=dtype, **load_options
        )
        return cls(model, tokenizer, chat_template=chat_template, system_prompt=system_prompt, micro_batch=micro_batch)

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The model's output for each node's prompt and text."""
        with evaluating(self.model), torch.inference_mode():
            scores, self._rows = shortest_first(
                [self._ids(node) for node in nodes], self._rows, self._run, str(self.model.dtype)
            )
        return scores

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The cost of scoring each node: its whole text is run."""
        # transformers applies the head at every position, and then takes the last one
        lengths = [len(self._ids(node)) for node in nodes]
        return [self._charges.scoring(length, length) for length in lengths]

    def _ids(self, node: Node) -> Ids:
        return self._prompts.encode(node.problem.prompt, node.text)

    def _run(self, rows: Sequence[Ids]) -> list[float]:
        # transformers takes the output at the last id that is not the pad id, wherever padding stands: choose, for this
        # call, a pad id that ends no row.
        lasts = {row[-1] for row in rows}
        pad = next(i for i in range(len(lasts) + 1) if i not in lasts)
        ids, mask = padded(rows, pad, self.model.device)
        config = self.model.config.get_text_config()
        before, config.pad_token_id = config.pad_token_id, pad
        try:
            scores: list[float] = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        finally:
            config.pad_token_id = before
        return scores
