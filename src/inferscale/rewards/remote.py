"""Reward models on a server: vLLM's pooling endpoint, and the classification endpoints of vLLM and SGLang."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from itertools import compress
from typing import Any, ClassVar

from inferscale._http import JSONServer, RemoteError, RetryPolicy, finite_floats
from inferscale.base import ProcessRewardModel, RewardModel, check_judge
from inferscale.cost import Cost
from inferscale.functional import Reduction
from inferscale.runtime.charges import Charges
from inferscale.runtime.loading import check_length, context_length, load_tokenizer
from inferscale.tree import Judge, Node

from .formats import StepFormat, TokenPair
from .huggingface import choose_format, load_config, refuse_constant_scores
from .outcome import SolutionEncoder
from .scorer import EncodedPath, step_ends

ROWS = 256
"""Most texts of one request."""


class _ModelServer:
    """A server that reads rows of token ids with one model and answers with one item for each."""

    def __init__(
        self, base_url: str, model: str, api_key: str | None, retry: RetryPolicy, own_context: int | None
    ) -> None:
        """Where the server is, and the context length of the checkpoint itself."""
        self._server = JSONServer(base_url, api_key, retry)
        self._model = model
        self._own_context = own_context

    @cached_property
    def context(self) -> int | None:
        """The most tokens that the server reads: what it was started with if it tells, or what the checkpoint says."""
        answer = self._server.get("/v1/models")
        data = answer.get("data") if isinstance(answer, dict) else None
        cards = [card for card in data if isinstance(card, dict)] if isinstance(data, list) else []
        told = next((card.get("max_model_len") for card in cards if card.get("id") == self._model), None)
        return told if isinstance(told, int) and told > 0 else self._own_context

    def check(self, count: int, node: Node) -> None:
        """Raises ``ValueError`` when `count` tokens are more than the server reads."""
        check_length(count, self.context, node, f"{self._model} at {self._server.address}")

    def post(self, path: str, field: str, rows: Sequence[Sequence[int]], **more: Any) -> list[dict[str, Any]]:
        """The items that the server makes of `rows`, in their order, asked for in requests of at most `ROWS`.

        Args:
            path: The endpoint.
            field: The name of the rows in a request.
            rows: Ids of each text.
            more: Further fields of each request.

        Raises:
            RemoteError: If the server does not answer as it should, or a row is too long for it.
        """
        found: list[dict[str, Any]] = []
        for start in range(0, len(rows), ROWS):
            chunk = [list(row) for row in rows[start : start + ROWS]]
            try:
                answer = self._server.post(path, {"model": self._model, field: chunk, **more})
            except RemoteError as error:
                if error.kind != "too long":
                    raise
                longest = max(map(len, chunk))
                raise RemoteError(
                    f"{error} (the longest of these {len(chunk)} texts has {longest} tokens: start the server with a "
                    "longer context, or sample shorter solutions with max_new_tokens)",
                    "too long",
                ) from None
            found += _in_order(answer, len(chunk))
        return found


def _in_order(answer: object, count: int) -> list[dict[str, Any]]:
    """The `count` items of an answer's ``data`` (vLLM), or of the answer itself (SGLang), in the order of the inputs.

    Raises:
        RemoteError: If they are not there.
    """
    data = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(data, list) or len(data) != count or not all(isinstance(item, dict) for item in data):
        raise RemoteError(f"the server sent no list of {count} items but {str(answer)[:200]}")
    places = [item.get("index", place) for place, item in enumerate(data)]
    if set(map(str, places)) != set(map(str, range(count))):
        raise RemoteError(f"the server numbered {count} items {str(places)[:200]}")
    by_place = dict(zip(map(int, places), data, strict=True))
    return [by_place[place] for place in range(count)]


def _numbers(value: object) -> list[float]:
    """A number or a list of numbers, as a list.

    Raises:
        RemoteError: If it is something else, or one of them is not finite.
    """
    found = finite_floats(value if isinstance(value, list) else [value])
    if not found:
        raise RemoteError(f"the server sent {str(value)[:80]} where finite numbers should be")
    return found


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
        concurrent: True: each search is scored at once, in a thread.
        reduction: How step scores become one score.
        judge: The part of a solution that is judged.
        format: The layout and how scores are read.

    Example:
        Needs a server, such as ``vllm serve Qwen/Qwen2.5-Math-PRM-7B --runner pooling``::

            judge = isc.VLLMRewardModel("http://localhost:8000", "Qwen/Qwen2.5-Math-PRM-7B")
            results = isc.solve_batch(problems, isc.REBASE(16), generator, reward_model=judge)
    """

    concurrent = True

    no_effect = frozenset({"base_url", "api_key", "timeout", "deadline", "check"})

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: Any = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        format: str | StepFormat = "auto",  # noqa: A002
        reduction: Reduction = "last",
        judge: Judge = "all",
        api_key: str | None = None,
        timeout: float = 300.0,
        deadline: float = 900.0,
        check: bool = True,
    ) -> None:
        """Loads tokenizer and configuration of the checkpoint, and asks the server once.

        Args:
            base_url: Where the server is, such as ``"http://localhost:8000"``.
            model: The name that the server gives the model.
            tokenizer: The model's tokenizer; by default the one in `checkpoint`.
            checkpoint: The local folder or hub id with the model's configuration; by default `model`. Weights are not
                read.
            format: A name out of `inferscale.rewards.FORMATS`, a format of your own, or ``"auto"``.
            reduction: How step scores become one score.
            judge: The part of a solution that is read and judged; see `HFProcessRewardModel`.
            api_key: What the server wants as a bearer token; by default the environment variable ``VLLM_API_KEY``.
            timeout: Most seconds to wait for one answer.
            deadline: Most seconds for an answer and all repetitions of its request.
            check: True scores two short solutions, and refuses a model that gives all steps the same score.

        Raises:
            ValueError: If the format cannot be told, or does not fit the tokenizer.
            RemoteError: If the server does not answer as it should.
        """
        self.reduction = reduction
        self.judge = check_judge(judge)
        source = model if checkpoint is None else os.fspath(checkpoint)
        self.format = choose_format(source, format)
        loaded = load_tokenizer(tokenizer, source)
        self.format.check_tokenizer(loaded)
        self._encoder = self.format.layout.encoder(loaded)
        config = load_config(source)
        self._charges = Charges(config)
        key = api_key or os.environ.get("VLLM_API_KEY")
        retry = RetryPolicy(timeout, deadline)
        self.tokenizer = loaded
        self._server = _ModelServer(base_url, model, key, retry, context_length(config, loaded))
        if check:
            refuse_constant_scores(self)

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """For each node, one number for each of its steps."""
        parts = [node.part(self.judge) for node in nodes]
        judged = [bool(part.inner_steps()) for part in parts]
        paths = [self._path_of(part) for part in compress(parts, judged)]
        answers = self._server.post("/pooling", "input", [path.ids for path in paths], task="token_classify")
        found = (self._scores(path, answer.get("data")) for path, answer in zip(paths, answers, strict=True))
        return [next(found) if any_step else [] for any_step in judged]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The cost of scoring each node: its whole text is read."""
        parts = [node.part(self.judge) for node in nodes]
        paths = [self._path_of(part) if part.inner_steps() else None for part in parts]
        return [Cost() if path is None else self._charges.scoring(len(path), len(path.marks)) for path in paths]

    def check_prompt(self, root: Node) -> None:
        """Refuses a prompt that is longer than the server reads."""
        self._path_of(root)

    def _path_of(self, node: Node) -> EncodedPath:
        path = step_ends(node, self._encoder)
        self._server.check(len(path), node)
        return path

    def _scores(self, path: EncodedPath, data: object) -> list[float]:
        """The score of each step, out of the probabilities that the server has made of the model's outputs.

        A server with a ``step_tag_id`` sends one row for each tag, `[steps, labels]`; without one it sends a row for
        each token, `[tokens, labels]`, of which those at the marks count.
        """
        rows = data if isinstance(data, list) else []
        if len(rows) == len(path):
            rows = [rows[mark] for mark in path.marks]
        if len(rows) != len(path.marks):
            raise RemoteError(
                f"the server sent {len(rows)} scores for {len(path.marks)} steps and {len(path)} tokens: start it with "
                f"--runner pooling, and --pooler-config with the step_tag_id of format {self.format.name!r}"
            )
        kind = self.format.score
        wanted = 1 if self.format.head == "value" else 2
        scores = []
        for row in map(_numbers, rows):
            if not all(0.0 <= value <= 1.0 for value in row):
                raise RemoteError(f"the server sent {row} where probabilities should be: leave its activation on")
            if len(row) != wanted:
                raise RemoteError(
                    f"the server sent {len(row)} numbers for each step where format {self.format.name!r} needs "
                    f"{wanted}: this is another model, or it is not served as VLLMRewardModel says"
                )
            if isinstance(kind, TokenPair):  # served as a classifier of the two tokens, good first
                scores.append(row[0])
            else:
                scores.append(row[kind.index] - (0.0 if kind.minus is None else row[kind.minus]))
        return scores


class _RemoteOutcomeRewardModel(RewardModel):
    """Scores a whole solution on a server.

    Attributes:
        concurrent: True: each search is scored at once, in a thread.
    """

    concurrent = True
    _key_name: ClassVar[str]  # the environment variable that holds the key
    _rows_field: ClassVar[str]  # of a request
    _outputs_field: ClassVar[str]  # of an answer's item
    no_effect = frozenset({"base_url", "api_key", "timeout", "deadline"})

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: Any = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        append_eos: bool = False,
        judge: Judge = "final",
        label: int = 0,
        api_key: str | None = None,
        timeout: float = 300.0,
        deadline: float = 900.0,
    ) -> None:
        """Loads tokenizer and configuration of the checkpoint.

        Args:
            base_url: Where the server is, such as ``"http://localhost:8000"``.
            model: The name that the server gives the model.
            tokenizer: The model's tokenizer; by default the one in `checkpoint`.
            checkpoint: The local folder or hub id with the model's configuration; by default `model`. Weights are not
                read.
            chat_template: True makes prompt and solution turns of the tokenizer's chat template; by default if it has
                one. Else the solution's text follows the prompt's, for encoders as the second of two texts.
            system_prompt: System turn of the chat.
            append_eos: Whether an end of sequence follows, unless the text ends with one; see `HFOutcomeRewardModel`.
            judge: The part of a solution that is judged; see `HFOutcomeRewardModel`.
            label: Which of the model's outputs is the score.
            api_key: What the server wants as a bearer token; by default out of the environment.
            timeout: Most seconds to wait for one answer.
            deadline: Most seconds for an answer and all repetitions of its request.

        Raises:
            ValueError: If `label` is negative.
        """
        if label < 0:
            raise ValueError(f"label={label}: outputs are counted from 0")
        self.judge = check_judge(judge)
        source = model if checkpoint is None else os.fspath(checkpoint)
        loaded, config = load_tokenizer(tokenizer, source), load_config(source)
        self._encoder = SolutionEncoder(loaded, chat_template, system_prompt, append_eos)
        self._charges = Charges(config)
        self._label = label
        key = api_key or os.environ.get(self._key_name)
        retry = RetryPolicy(timeout, deadline)
        self.tokenizer = loaded
        self._server = _ModelServer(base_url, model, key, retry, context_length(config, loaded))

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """One number for each node's prompt and text."""
        items = self._server.post("/classify", self._rows_field, [self._ids(node) for node in nodes])
        outputs = [_numbers(item.get(self._outputs_field)) for item in items]
        fewest = min(map(len, outputs), default=self._label + 1)
        if fewest <= self._label:
            raise ValueError(f"label={self._label}, but the server's model has {fewest} outputs")
        return [values[self._label] for values in outputs]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The cost of scoring each node: its whole text is read."""
        return [self._charges.scoring(len(self._ids(node)), 1) for node in nodes]

    def check_prompt(self, root: Node) -> None:
        """Refuses a prompt that is longer than the server reads."""
        self._ids(root)

    def _ids(self, node: Node) -> tuple[int, ...]:
        ids = self._encoder.encode(node.part(self.judge)).ids
        self._server.check(len(ids), node)
        return ids


class VLLMOutcomeRewardModel(_RemoteOutcomeRewardModel):
    """Scores a whole solution with a sequence classifier that a vLLM server runs (``--runner pooling``).

    Ids are posted to ``/classify``. The server makes probabilities of the model's outputs: the score of a model with a
    single label is the sigmoid of what `HFOutcomeRewardModel` returns.

    Example:
        Needs a server, such as ``vllm serve Skywork/Skywork-Reward-V2-Llama-3.1-8B --runner pooling``::

            name = "Skywork/Skywork-Reward-V2-Llama-3.1-8B"
            judge = isc.rewards.VLLMOutcomeRewardModel("http://localhost:8000", name)
            solver = isc.Solver(isc.RepeatedSampling(16), generator, judge, isc.BestOfN())
    """

    _key_name = "VLLM_API_KEY"
    _rows_field = "input"
    _outputs_field = "probs"


class SGLangRewardModel(_RemoteOutcomeRewardModel):
    """Scores a whole solution with a reward model that an SGLang server runs (``--is-embedding``).

    Ids are posted to the native ``/classify``; the score is the model's own output.

    Example:
        Needs a server: ``python -m sglang.launch_server --is-embedding --model-path NAME``::

            name = "Skywork/Skywork-Reward-V2-Llama-3.1-8B"
            judge = isc.rewards.SGLangRewardModel("http://localhost:30000", name)
            solver = isc.Solver(isc.RepeatedSampling(16), generator, judge, isc.BestOfN())
    """

    _key_name = "SGLANG_API_KEY"
    _rows_field = "input_ids"
    _outputs_field = "embedding"
