"""Process reward models on a server: vLLM's pooling endpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from inferscale.base import ProcessRewardModel
from inferscale.cost import Cost
from inferscale.functional import Reduction
from inferscale.generators._remote_retry import Patience, RemoteError
from inferscale.generators.charges import Charges
from inferscale.generators.loading import load_tokenizer
from inferscale.tree import Node

from ._remote_http import ROWS, JSONServer, items, numbers
from .families import choose_format, load_config, refuse_constant_scores
from .formats import ClassDifference, ClassProbability, Sigmoid, StepFormat, TokenPair
from .layouts import step_path
from .paths import Path


class VLLMRewardModel(ProcessRewardModel):
    """Scores every step with a process reward model that a vLLM server runs, as `HFProcessRewardModel` reads it.

    Problem and steps become token ids here, in the layout that the checkpoint was trained with, and are posted to
    ``/pooling`` with the task ``token_classify``. Start the server with ``--runner pooling``. Where steps end with a
    tag, ``--pooler-config '{"step_tag_id": ID}'`` keeps it from sending the scores of all other tokens. A language
    model that says good and bad with tokens must be served as a classifier of the two, good first: with
    ``--convert classify --pooler-config '{"task": "token_classify"}' --hf-overrides '{"architectures":
    ["LlamaForSequenceClassification"], "classifier_from_token": ["+", "-"], "method": "no_post_processing"}'``.

    The endpoint does not read the prefix cache: every call reads, and is charged with, whole solutions.

    Attributes:
        concurrent: True: for ``schedule="stream"``.
        reduction: How step scores become one score.
        format: The layout and how scores are read.
    """

    concurrent = True

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: Any = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        format: str | StepFormat = "auto",  # noqa: A002
        reduction: Reduction = "last",
        api_key: str | None = None,
        timeout: float = 300.0,
        deadline: float = 900.0,
        check: bool = True,
    ) -> None:
        """Reads tokenizer and configuration of the checkpoint, and asks the server once.

        Args:
            base_url: Where the server is, such as ``"http://localhost:8000"``.
            model: The name that the server gives the model.
            tokenizer: The model's tokenizer; by default the one in `checkpoint`.
            checkpoint: The local folder or hub id with the model's configuration; by default `model`. Weights are not
                read.
            format: A name out of `inferscale.rewards.FORMATS`, a format of your own, or ``"auto"``.
            reduction: How step scores become one score.
            api_key: What the server wants as a bearer token; by default the environment variable ``VLLM_API_KEY``.
            timeout: Most seconds to wait for one answer.
            deadline: Most seconds for an answer and all repetitions of its request.
            check: Whether to score two short solutions, and refuse a model that gives all steps the same score.

        Raises:
            ValueError: If the format cannot be told, or does not fit the tokenizer.
            RemoteError: If the server does not answer as it should.
        """
        self.reduction = reduction
        source = model if checkpoint is None else os.fspath(checkpoint)
        self.format = choose_format(source, format)
        reads = load_tokenizer(tokenizer, source)
        self.format.check_tokenizer(reads)
        self._path_of = partial(step_path, encoder=self.format.layout.encoder(reads))
        self._charges = Charges(load_config(source))
        self._model = model
        self._server = JSONServer(base_url, api_key or os.environ.get("VLLM_API_KEY"), Patience(timeout, deadline))
        if check:
            refuse_constant_scores(self)

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """For each node, one number for each of its steps."""
        paths = [self._path_of(node) for node in nodes]
        scores: list[list[float]] = []
        for start in range(0, len(paths), ROWS):
            chunk = paths[start : start + ROWS]
            body = {"model": self._model, "task": "token_classify", "input": [list(path.ids) for path in chunk]}
            answers = items(self._server.post("/pooling", body), len(chunk))
            scores += [self._read(path, answer.get("data")) for path, answer in zip(chunk, answers, strict=True)]
        return scores

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What scoring each node costs: its whole text is read."""
        paths = [self._path_of(node) for node in nodes]
        return [self._charges.scoring(len(path), len(path.marks)) for path in paths]

    def _read(self, path: Path, data: object) -> list[float]:
        marks = path.marks
        rows = data if isinstance(data, list) else []
        if len(rows) == len(path):
            rows = [rows[mark] for mark in marks]
        if len(rows) != len(marks):
            raise RemoteError(
                f"the server sent {len(rows)} scores for {len(marks)} steps and {len(path)} tokens: start it with "
                f"--runner pooling, and --pooler-config with the step_tag_id of format {self.format.name!r}"
            )
        return [_score(self.format, numbers(row)) for row in rows]


def _score(step_format: StepFormat, row: list[float]) -> float:
    """The step's score out of the probabilities that the server has made of the model's outputs."""
    if not all(0.0 <= value <= 1.0 for value in row):
        raise RemoteError(f"the server sent {row} where probabilities should be: leave its activation on")
    kind = step_format.score
    wanted = 1 if isinstance(kind, Sigmoid) else 2
    if len(row) != wanted:
        raise RemoteError(
            f"the server sent {len(row)} numbers for each step where format {step_format.name!r} needs {wanted}: this "
            "is another model, or it is not served as VLLMRewardModel says"
        )
    match kind:
        case TokenPair() | Sigmoid():
            return row[0]
        case ClassProbability(index):
            return row[index]
        case ClassDifference():
            return row[1] - row[0]
