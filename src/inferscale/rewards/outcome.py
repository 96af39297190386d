"""Outcome reward models on transformers: one number for a whole solution."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import torch

from inferscale.base import RewardModel, check_judge
from inferscale.cost import Cost
from inferscale.runtime.charges import Charges
from inferscale.runtime.loading import (
    CheckpointError,
    check_length,
    check_pair,
    context_length,
    evaluating,
    load_pair,
)
from inferscale.runtime.prompts import PromptFormat
from inferscale.tree import Judge, Node

from .scorer import Ids, checked_rows, padded, shortest_first


@dataclass(frozen=True, slots=True)
class SolutionText:
    """A prompt and its solution as one text.

    Attributes:
        ids: All ids.
        types: For each the text that it belongs to, where a tokenizer tells the two apart; zeros elsewhere.
    """

    ids: Ids
    types: Ids

    def __len__(self) -> int:
        """Number of ids."""
        return len(self.ids)


class SolutionEncoder:
    """Lays out prompt and solution for models that judge the whole of it.

    Turns of a chat where there is a template. Without one, what the model was trained on follows from its tokenizer:
    one that has a separator (of BERT, RoBERTa, DeBERTa, ModernBERT) encodes prompt and solution as a pair of texts,
    ``[CLS] prompt [SEP] solution [SEP]``; with any other the solution follows the prompt.

    Attributes:
        is_pair: True for a pair of texts.
    """

    def __init__(self, tokenizer: Any, chat_template: bool | None, system_prompt: str | None, append_eos: bool) -> None:
        self._tokenizer = tokenizer
        self._prompts = PromptFormat.choose(tokenizer, chat_template, system_prompt)
        marks = (getattr(tokenizer, name, None) for name in ("cls_token_id", "sep_token_id"))
        self.is_pair = not self._prompts.chat and None not in marks
        if append_eos and tokenizer.eos_token_id is None:
            raise ValueError("append_eos=True, but this tokenizer has no end-of-sequence token: set its eos_token")
        self._end: Ids = (int(tokenizer.eos_token_id),) if append_eos else ()

    def encode(self, node: Node) -> SolutionText:
        """The text of `node`, closed by one end of sequence if that is asked for."""
        problem, types = node.problem, list[int]()
        if self.is_pair:  # a mark that is written in a text stays text
            found = self._tokenizer(problem.question.prompt, problem.prefill + node.text, split_special_tokens=True)
            ids, types = tuple(found["input_ids"]), found.get("token_type_ids") or []
        else:
            ids = self._prompts.encode(problem, node.text)
        if self._end and ids[-1:] != self._end:
            ids += self._end
        return SolutionText(ids, (*types, *[0] * (len(ids) - len(types))))


def chosen_label(model: Any, label: str | int | None) -> int:
    """The number of the output that `label` names; of one output that one.

    Raises:
        ValueError: If the model is no classifier, or `label` is none of its labels.
    """
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise ValueError(f"{type(model).__name__} has no outcome score: give a sequence classifier")
    names = [model.config.id2label[number] for number in range(model.num_labels)]
    if label is None and len(names) == 1:
        return 0
    places: list[Any] = names if isinstance(label, str) else list(range(len(names)))
    if label not in places:
        there = ", ".join(f"{number} ({name!r})" for number, name in enumerate(names))
        told = "give the good one, label=..." if label is None else f"label={label!r} is none of them"
        raise ValueError(f"{type(model).__name__} has the labels {there}: {told}")
    return places.index(label)


class HFOutcomeRewardModel(RewardModel):
    """Scores a whole solution: the single output of a sequence classifier, in float32, or the chance of one label.

    A decoder is read at the last token; an encoder (BERT, DeBERTa, ModernBERT) where it was trained to be.

    Attributes:
        model: The model.
        tokenizer: The tokenizer.
        label: Which output is read.
        judge: The part of a solution that is judged.

    Example:
        Needs the weights of a published reward model, some 8 billion of them::

            judge = isc.HFOutcomeRewardModel.from_pretrained("Skywork/Skywork-Reward-V2-Llama-3.1-8B", dtype="bfloat16")
            solver = isc.Solver(isc.RepeatedSampling(16), generator, judge, isc.BestOfN())
    """

    no_effect = frozenset({"micro_batch"})

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        label: str | int | None = None,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        append_eos: bool = False,
        judge: Judge = "final",
        micro_batch: int | None = None,
    ) -> None:
        """Checks that head and tokenizer fit.

        Args:
            model: A sequence classifier; it stays where it is.
            tokenizer: Its tokenizer.
            label: Of a classifier with several labels the one that is good, by its name in the model's configuration or
                by its number: the score is its probability, among all labels, or by itself where the `problem_type` of
                the configuration is ``"multi_label_classification"``; an output of a ``"regression"`` as it is.
            chat_template: Whether prompt and solution are turns of the tokenizer's chat template; by default if it
                has one. Else the solution's text follows the prompt's, for encoders as the second of two texts.
            system_prompt: System turn of the chat.
            append_eos: Whether an end of sequence follows, unless the text ends with one: so train TRL, OpenRLHF and
                DeepSpeed-Chat decoders that have no chat template. No checkpoint tells.
            judge: The part of a solution that is judged, where the policy thinks: the ``"final"`` part, the
                ``"thoughts"``, or ``"all"``. A path that holds nothing of it, such as one that is still thinking, is
                judged as an empty solution.
            micro_batch: Most rows run at a time (default 32); halved when memory runs out.

        Raises:
            TypeError: If a path or hub id is given: `from_pretrained` loads.
            ValueError: If the model is no classifier, it has several labels and none is given or another one, or an
                option or the tokenizer does not fit.
        """
        self._inside = check_pair(model, tokenizer, type(self).__name__)
        self.model = model
        self.tokenizer = tokenizer
        self.label = chosen_label(self._inside, label)
        self.judge = check_judge(judge)
        self._encoder = SolutionEncoder(tokenizer, chat_template, system_prompt, append_eos)
        self._context = context_length(self._inside.config, tokenizer)
        self._takes_types = "token_type_ids" in inspect.signature(self._inside.forward).parameters
        self._mixes_lengths = not self._encoder.is_pair or self._ignores_padding()
        self._rows = checked_rows(micro_batch) or 32
        self._charges = Charges(self._inside)

    @classmethod
    def from_pretrained(  # noqa: D417 (options of the class are described there)
        cls,
        path_or_id: str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        label: str | int | None = None,
        chat_template: bool | None = None,
        system_prompt: str | None = None,
        append_eos: bool = False,
        judge: Judge = "final",
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
            ValueError: If the model has several labels and `label` is none of them, or an option or the tokenizer does
                not fit.
            CheckpointError: If the checkpoint lacks the head's weights, or has several labels and none is given.
        """
        from transformers import AutoModelForSequenceClassification

        check_judge(judge), checked_rows(micro_batch)  # told before the model is loaded
        if label is None:  # a configuration that tells nothing would stand for two
            load_options.setdefault("num_labels", 1)
        try:
            model, tokenizer = load_pair(
                path_or_id,
                AutoModelForSequenceClassification,
                tokenizer,
                loader=cls.from_pretrained,
                check=lambda tokenizer: SolutionEncoder(tokenizer, chat_template, system_prompt, append_eos),
                device=device,
                dtype=dtype,
                **load_options,
            )
        except CheckpointError as error:
            if label is not None or "mismatched" not in str(error):
                raise
            raise CheckpointError(
                f"{error}; of several labels give the good one: label=... (its name or number)"
            ) from None
        return cls(
            model,
            tokenizer,
            label=label,
            chat_template=chat_template,
            system_prompt=system_prompt,
            append_eos=append_eos,
            judge=judge,
            micro_batch=micro_batch,
        )

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The model's output for each node's prompt and text, or the probability of its `label`.

        Raises:
            ValueError: If one has more tokens than the model reads.
        """
        texts = [self._text(node) for node in nodes]
        with evaluating(self._inside), torch.inference_mode():
            scores, self._rows = shortest_first(texts, self._rows, self._run, str(self._inside.dtype))
        return scores

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The cost of scoring each node: its whole text is run."""
        # transformers applies the head at every position, and then takes the last one
        lengths = [len(self._text(node)) for node in nodes]
        return self._charges.scorings([(length, 0, length) for length in lengths], [node.root for node in nodes])

    def check_prompt(self, root: Node) -> None:
        """Refuses a prompt that is longer than the model reads."""
        self._text(root)

    def _text(self, node: Node) -> SolutionText:
        text = self._encoder.encode(node.part(self.judge))
        check_length(len(text), self._context, node, type(self._inside).__name__)
        return text

    def _run(self, rows: Sequence[SolutionText]) -> list[float]:
        if self._mixes_lengths:
            return self._outputs(rows)
        return [score for _, group in groupby(rows, len) for score in self._outputs(list(group))]

    def _outputs(self, rows: Sequence[SolutionText]) -> list[float]:
        # transformers takes a decoder's output at the last id that is not the pad id, wherever padding stands: choose,
        # for this call, a pad id that ends no row.
        lasts = {row.ids[-1] for row in rows}
        pad = next(i for i in range(len(lasts) + 1) if i not in lasts)
        ids, mask = padded([row.ids for row in rows], pad, self._inside.device)
        options: dict[str, Any] = {}
        if self._takes_types and any(any(row.types) for row in rows):
            options["token_type_ids"] = padded([row.types for row in rows], 0, self._inside.device)[0]
        config = self._inside.config.get_text_config()
        before, config.pad_token_id = config.pad_token_id, pad
        try:
            outputs = self._inside(input_ids=ids, attention_mask=mask, **options)
        finally:
            config.pad_token_id = before
        scores: list[float] = self._scores(outputs.logits)[:, self.label].tolist()
        return scores

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        kind = self._inside.config.problem_type
        if self._inside.num_labels == 1 or kind == "regression":
            return logits.float()
        logits = logits.double()  # so that probabilities near 1 stay apart
        return logits.sigmoid() if kind == "multi_label_classification" else logits.softmax(dim=-1)

    def _ignores_padding(self) -> bool:
        """True if a padded row gets the score that it has alone; an encoder may look at padding (FNet's does)."""
        short, long = (SolutionText((5,) * length, (0,) * length) for length in (3, 8))
        with evaluating(self._inside), torch.inference_mode():
            [alone], [beside, _] = self._outputs([short]), self._outputs([short, long])
        return abs(alone - beside) <= max(1e-3, 16 * torch.finfo(self._inside.dtype).eps) * max(abs(alone), 1.0)
