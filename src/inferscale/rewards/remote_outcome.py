"""Outcome reward models on a server: the classification endpoints of vLLM and SGLang."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from inferscale.base import RewardModel
from inferscale.cost import Cost
from inferscale.generators._remote_retry import Patience
from inferscale.generators.charges import Charges
from inferscale.generators.loading import load_tokenizer
from inferscale.generators.prompts import PromptFormat
from inferscale.tree import Node

from ._remote_http import ROWS, JSONServer, items, numbers
from .families import load_config


class _RemoteOutcomeRewardModel(RewardModel):
    """Scores a whole solution on a server.

    Attributes:
        concurrent: True: for ``schedule="stream"``.
    """

    concurrent = True
    _key_name: ClassVar[str]  # the environment variable that holds the key

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: Any = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        label: int = 0,
        api_key: str | None = None,
        timeout: float = 300.0,
        deadline: float = 900.0,
    ) -> None:
        """Reads tokenizer and configuration of the checkpoint.

        Args:
            base_url: Where the server is, such as ``"http://localhost:8000"``.
            model: The name that the server gives the model.
            tokenizer: The model's tokenizer; by default the one in `checkpoint`.
            checkpoint: The local folder or hub id with the model's configuration; by default `model`. Weights are not
                read.
            chat_template: Whether prompt and solution are turns of the tokenizer's chat template; by default if it
                has one. Else the solution's text follows the prompt's.
            system_prompt: System turn of the chat.
            label: Which of the model's outputs is the score.
            api_key: What the server wants as a bearer token; by default out of the environment.
            timeout: Most seconds to wait for one answer.
            deadline: Most seconds for an answer and all repetitions of its request.

        Raises:
            ValueError: If `label` is negative.
        """
        if label < 0:
            raise ValueError(f"label={label}: outputs are counted from 0")
        source = model if checkpoint is None else os.fspath(checkpoint)
        self._prompts = PromptFormat.choose(load_tokenizer(tokenizer, source), chat_template, system_prompt)
        self._charges = Charges(load_config(source))
        self._model, self._label = model, label
        self._server = JSONServer(base_url, api_key or os.environ.get(self._key_name), Patience(timeout, deadline))

    @abstractmethod
    def _outputs(self, rows: list[list[int]]) -> list[list[float]]:
        """The model's outputs for each row of ids."""

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """One number for each node's prompt and text."""
        rows = [self._ids(node) for node in nodes]
        outputs: list[list[float]] = []
        for start in range(0, len(rows), ROWS):
            outputs += self._outputs(rows[start : start + ROWS])
        fewest = min(map(len, outputs), default=self._label + 1)
        if fewest <= self._label:
            raise ValueError(f"label={self._label}, but the server's model has {fewest} outputs")
        return [values[self._label] for values in outputs]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What scoring each node costs: its whole text is read."""
        return [self._charges.scoring(len(self._ids(node)), 1) for node in nodes]

    def _ids(self, node: Node) -> list[int]:
        return list(self._prompts.encode(node.problem.prompt, node.text))


class VLLMOutcomeRewardModel(_RemoteOutcomeRewardModel):
    """Scores a whole solution with a sequence classifier that a vLLM server runs (``--runner pooling``).

    Ids are posted to ``/classify``. The server makes probabilities of the model's outputs: the score of a model with a
    single label is the sigmoid of what `HFOutcomeRewardModel` returns.
    """

    _key_name = "VLLM_API_KEY"

    def _outputs(self, rows: list[list[int]]) -> list[list[float]]:
        answer = self._server.post("/classify", {"model": self._model, "input": rows})
        return [numbers(item.get("probs")) for item in items(answer, len(rows))]


class SGLangRewardModel(_RemoteOutcomeRewardModel):
    """Scores a whole solution with a reward model that an SGLang server runs (``--is-embedding``).

    Ids are posted to the native ``/classify``; the score is the model's own output.
    """

    _key_name = "SGLANG_API_KEY"

    def _outputs(self, rows: list[list[int]]) -> list[list[float]]:
        answer = self._server.post("/classify", {"model": self._model, "input_ids": rows})
        return [numbers(item.get("embedding")) for item in items(answer, len(rows))]
