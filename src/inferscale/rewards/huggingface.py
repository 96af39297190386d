"""Process and outcome reward models on transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from inferscale.base import ProcessRewardModel, RewardModel
from inferscale.cost import Cost
from inferscale.functional import Reduction
from inferscale.generators.charges import Charges
from inferscale.generators.loading import check_vocabulary, load_model, load_tokenizer
from inferscale.generators.memory import run_in_pieces
from inferscale.generators.prompts import PromptFormat
from inferscale.tree import Node

from .encoding import Ends, StepEncoder
from .scoring import BatchReader, Marked, Read, padded, read_likelihood, read_pair, read_sigmoid

_ROWS = 32


class HFProcessRewardModel(ProcessRewardModel):
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
            micro_batch: Most rows read at a time (default 32); halved when memory runs out.
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
        self.tokenizer = _tokenizer_of(self.model, model, tokenizer)
        prompts = PromptFormat.choose(self.tokenizer, chat_template, system_prompt)
        self._encoder = StepEncoder(self.tokenizer, prompts, step_separator, use_token_ids)
        read = self._choose_read(good_token, bad_token)
        self._reader = BatchReader(self.model.eval(), read, micro_batch or _ROWS)
        self._charges = Charges(self.model, head="lm" if causal else "labels")

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
        """For each node, the probability that each of its steps is good."""
        paths = [Ends.of(node, self._encoder) for node in nodes]
        return self._reader([Marked(path.ids, tuple(end - 1 for end in path.ends)) for path in paths])

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What scoring each node costs: its whole text is read."""
        paths = [Ends.of(node, self._encoder) for node in nodes]
        return [self._charges.scoring(len(path.ids), len(path.ends)) for path in paths]


class LikelihoodReward(ProcessRewardModel):
    """Scores every step by its token probabilities under a causal language model.

    A step's score is ``exp`` of the mean or the least log-probability of its tokens. Cheap to have (any stronger
    policy will do), and the baseline that a trained process reward model has to beat.

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
        reduction: Reduction = "last",
        step_separator: str | None = "\n",
        use_token_ids: bool = False,
        chat_template: bool | None = False,
        system_prompt: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        micro_batch: int | None = None,
        **load_options: Any,
    ) -> None:
        """Loads the model.

        Args:
            model: A causal language model: an object, a local folder or a hub id.
            tokenizer: Its tokenizer; by default the one beside the model.
            pooling: Which log-probability of a step counts: the ``"mean"`` or the ``"min"`` of its tokens.
            reduction: How step scores become one score: ``"last"``, ``"min"``, ``"prod"`` or ``"mean"``.
            step_separator: Text that ends every encoded step. ``None``: steps are encoded as they are.
            use_token_ids: Read the ids that the generator sampled; only where both have the same tokenizer.
            chat_template: Whether the prompt is a user turn of the tokenizer's chat template (``None``: if it has
                one); the steps follow it.
            system_prompt: System turn of the chat.
            device: Where to run; by default a GPU if there is one (a model object stays where it is).
            dtype: By default float32 on a CPU and the checkpoint's own elsewhere.
            micro_batch: Most rows read at a time (default 32); halved when memory runs out.
            load_options: Passed on to ``from_pretrained``.

        Raises:
            ValueError: If `pooling` is unknown.
            CheckpointError: If the checkpoint lacks weights.
        """
        from transformers import AutoModelForCausalLM

        if pooling not in ("min", "mean"):
            raise ValueError(f'pooling={pooling!r}: choose "min" or "mean"')
        self.pooling = pooling
        self.reduction = reduction
        self.model = load_model(model, AutoModelForCausalLM, device=device, dtype=dtype, **load_options)
        self.tokenizer = _tokenizer_of(self.model, model, tokenizer)
        prompts = PromptFormat.choose(self.tokenizer, chat_template, system_prompt)
        self._encoder = StepEncoder(self.tokenizer, prompts, step_separator, use_token_ids)
        self._reader = BatchReader(self.model.eval(), read_likelihood, micro_batch or _ROWS)
        self._charges = Charges(self.model, head="lm")

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """For each node, the pooled probability of the tokens of each of its steps, in (0, 1]."""
        paths = [Ends.of(node, self._encoder) for node in nodes]
        marked = [
            Marked(path.ids[:-1], tuple(range(path.prompt - 1, len(path.ids) - 1)), path.ids[path.prompt :])
            for path in paths
        ]
        return [self._pooled(path, values) for path, values in zip(paths, self._reader(marked), strict=True)]

    def _pooled(self, path: Ends, logprobs: Sequence[float]) -> list[float]:
        starts = (path.prompt, *path.ends)
        pieces = [logprobs[a - path.prompt : b - path.prompt] for a, b in zip(starts, path.ends, strict=False)]
        pool = torch.Tensor.amin if self.pooling == "min" else torch.Tensor.mean
        return [float(pool(torch.tensor(piece, dtype=torch.float64)).exp()) for piece in pieces]

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """What scoring each node costs: its whole text is read."""
        paths = [Ends.of(node, self._encoder) for node in nodes]
        return [self._charges.scoring(len(path.ids) - 1, len(path.ids) - path.prompt) for path in paths]


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
        self.tokenizer = _tokenizer_of(self.model, model, tokenizer)
        self._prompts = PromptFormat.choose(self.tokenizer, chat_template, system_prompt)
        self._rows = micro_batch or _ROWS
        self._charges = Charges(self.model, head="labels")
        self.model.eval()

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The model's output for each node's prompt and text."""
        rows = [self._ids(node) for node in nodes]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found: dict[int, float] = {}

        def run(piece: Sequence[int]) -> None:
            found.update(zip(piece, self._run([rows[i] for i in piece]), strict=True))

        with torch.inference_mode():
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


def _tokenizer_of(model: Any, given: Any, tokenizer: Any) -> Any:
    loaded = load_tokenizer(tokenizer, given if isinstance(given, str | os.PathLike) else model)
    check_vocabulary(model, loaded)
    return loaded


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
