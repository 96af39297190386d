"""The published formats of process reward models, one small declaration each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from .heads import Read, read_pair, read_sigmoid
from .layouts import ChatPrompt, PlainPrompt, RunningText
from .tokens import TagError, TextEncoder
from .turns import Turns

Head: TypeAlias = Literal["causal", "classifier", "value", "mlp"]
"""What the checkpoint has after its last layer: a language model's head, a token classifier's, a value head
(``v_head.summary``), or two linear layers with a ReLU between them (``score.0``, ``score.2``)."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The probability of one token against another: a softmax over the two.

    Attributes:
        good: The token whose probability is the score, written as in running text (``" +"`` after a space).
        bad: The other one.
    """

    good: str
    bad: str

    def read(self, tokenizer: Any) -> Read:
        """What reads the score.

        Raises:
            TagError: If one of them is not a single token.
        """
        text = TextEncoder(tokenizer)
        return read_pair(text.one_id(self.good), text.one_id(self.bad))


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """The probability of a class.

    Attributes:
        index: Which one.
    """

    index: int = 1

    def read(self, tokenizer: Any) -> Read:
        """What reads the score."""
        index = self.index

        def read(outputs: Tensor, targets: Tensor) -> Tensor:
            return outputs.softmax(dim=-1)[:, index]

        return read


@dataclass(frozen=True, slots=True)
class ClassDifference:
    """P(class 1) - P(class 0), in [-1, 1]; PURE's step reward (Cheng et al. 2025, arXiv:2504.15275)."""

    def read(self, tokenizer: Any) -> Read:
        """What reads the score."""

        def read(outputs: Tensor, targets: Tensor) -> Tensor:
            return torch.tanh((outputs[:, 1] - outputs[:, 0]) / 2)

        return read


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """The sigmoid of a single output."""

    def read(self, tokenizer: Any) -> Read:
        """What reads the score."""
        return read_sigmoid


@dataclass(frozen=True, slots=True)
class StepFormat:
    """How a family of process reward models reads a solution; write your own for a model that is not listed.

    Attributes:
        name: What it is called.
        layout: How problem and steps become ids; each step is read at the last id of its piece.
        score: How the outputs there become a number.
        head: What the checkpoint must have after its last layer.
        token_ids: Tags and the ids that the published checkpoint has for them, checked at load; ``()`` checks only
            that tags are single tokens.
    """

    name: str
    layout: RunningText | Turns
    score: TokenPair | ClassProbability | ClassDifference | Sigmoid
    head: Head
    token_ids: tuple[tuple[str, int], ...] = ()

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Refuses the tokenizer of another model.

        Raises:
            TagError: If a tag has another id than the published checkpoint's.
        """
        text = TextEncoder(tokenizer)
        for tag, published in self.token_ids:
            found = text.one_id(tag)
            if found != published:
                raise TagError(
                    f"{tag!r} is token {found} in this tokenizer and {published} in the published {self.name} model: "
                    "this is another model's; for your own one use dataclasses.replace(format, token_ids=())"
                )


_SHEPHERD = RunningText(PlainPrompt(), "Step {number}: {step}", separator=" ки", lead=" ", join="\n")

MATH_SHEPHERD = StepFormat(
    "math-shepherd",
    _SHEPHERD,
    TokenPair(" +", " -"),
    "causal",
    token_ids=((" ки", 12902), (" +", 648), (" -", 387)),
)
"""Math-Shepherd (Wang et al. 2024, arXiv:2312.08935) with Mistral's tokenizer, as published."""

ER_PRM = StepFormat("er-prm", _SHEPHERD, TokenPair(" +", " -"), "causal")
"""ER-PRM (Zhang et al. 2024, arXiv:2412.11006): Math-Shepherd's layout with whatever tokenizer there is."""

RLHFLOW = StepFormat("rlhflow", Turns(), TokenPair("+", "-"), "causal")
"""RLHFlow's Llama-3.1 models, of Deepseek and of Mistral data: steps are turns of a chat, answered with + or -."""

SKYWORK = StepFormat("skywork", RunningText(PlainPrompt("{problem}\n", "always"), alone=True), Sigmoid(), "value")
"""Skywork-o1-Open-PRM: a value head at the line end of each step."""

QWEN = StepFormat(
    "qwen",
    RunningText(
        ChatPrompt("Please reason step by step, and put your final answer within \\boxed{}."), separator="<extra_0>"
    ),
    ClassProbability(1),
    "mlp",
    token_ids=(("<extra_0>", 151651),),
)
"""Qwen2.5-Math-PRM (Zhang et al. 2025, arXiv:2501.07301) and Qwen2.5-Math-7B-PRM800K."""

TRL = StepFormat(
    "trl", RunningText(PlainPrompt(bos="always"), alone=True, one_id=False), ClassProbability(1), "classifier"
)
"""Token classifiers trained with TRL, and with `inferscale.rewards.train`."""

PURE = StepFormat(
    "pure", RunningText(PlainPrompt(bos="never"), alone=True, one_id=False), ClassDifference(), "classifier"
)
"""PURE-PRM-7B (Cheng et al. 2025, arXiv:2504.15275); scores are in [-1, 1]."""

PQM = StepFormat(
    "pqm",
    RunningText(
        PlainPrompt(
            "Below is an instruction that describes a task.\nWrite a response that appropriately completes the request."
            "\n\n### Instruction:\n{problem}\n\n### Response: Let's think step by step",
            "never",
        ),
        "Step {number}: {step} ",
        separator="[PRM]",
        lead="\n",
        join="\n",
    ),
    Sigmoid(),
    "value",
)
"""PQM (Li and Li 2024, arXiv:2410.11287).

Differs from the paper: the published value has no bound; its sigmoid keeps the order and can be multiplied.
"""

FORMATS: dict[str, StepFormat] = {
    item.name: item for item in (ER_PRM, MATH_SHEPHERD, PQM, PURE, QWEN, RLHFLOW, SKYWORK, TRL)
}
"""Formats by name."""
