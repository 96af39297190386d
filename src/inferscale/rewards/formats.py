"""The published formats of process reward models: small declarations, and encoders of texts by them.

Every layout puts the place where a step is scored at the last id of that step's piece, and a piece never changes when
more steps follow: so whole texts and growing trees are scored alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from torch import Tensor

from inferscale.runtime.prompts import TagError, TextEncoder
from inferscale.tree import Node, Problem

from .scorer import Ids, StepEncoder, TokenScore, pair_probability


@dataclass(frozen=True, slots=True)
class PlainPrompt:
    """The problem as text, a conversation as `Problem.prompt` tells it.

    Attributes:
        template: Text with ``{problem}``.
        bos: Which ids come first: those that the ``"tokenizer"`` adds by itself, the beginning of sequence if there
            is one (``"always"``), or none (``"never"``).
    """

    template: str = "{problem}"
    bos: Literal["tokenizer", "always", "never"] = "tokenizer"

    def ids(self, problem: Problem, text: TextEncoder) -> Ids:
        """Ids of the prompt."""
        before: Ids = text.added()[0] if self.bos == "tokenizer" else ()
        if self.bos == "always" and text.tokenizer.bos_token_id is not None:
            before = (text.tokenizer.bos_token_id,)
        asked = problem.question.prompt
        bos = getattr(text.tokenizer, "bos_token", None)
        if bos and before[:1] == (text.tokenizer.bos_token_id,):
            asked = asked.removeprefix(bos)  # a prompt that is rendered already begins with it
        return before + text.plain(self.template.replace("{problem}", asked))


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The problem as turns of the tokenizer's chat template; the steps are the assistant's turn.

    Attributes:
        system: The system's turn where the conversation has none of its own.
    """

    system: str | None = None

    def ids(self, problem: Problem, text: TextEncoder) -> Ids:
        """Ids up to where the assistant's turn begins."""
        return text.template(self.system).ids(problem.question.turns)


def _steps(node: Node) -> tuple[str, ...]:
    """Text of each step; what the assistant had begun before is the head of the first."""
    texts = [text for text, _ in node.inner_steps()]
    return tuple(text.strip() for text in (node.problem.prefill + "".join(texts[:1]), *texts[1:])) if texts else ()


_NUMBERED = re.compile(r"Step \d+:")


@dataclass(frozen=True, slots=True)
class RunningText:
    """Steps as a text after the prompt, each ended by a separator at whose last id it is scored.

    ::

        prompt | lead + step 1 + separator | join + step 2 + separator | ...
                                         ^ score 1                    ^ score 2

    Attributes:
        prompt: What comes before.
        step: Text of a step, with ``{step}`` and perhaps ``{number}`` (from 1); the solution's own "Step 3:" stays.
        separator: Text after every step, the last one included.
        lead: Text between the prompt and the first step.
        join: Text between a separator and the next step.
        alone: True if step and separator are each tokenised alone; else they have the ids of one running text.
        one_id: True if the separator must be one token.
    """

    prompt: PlainPrompt | ChatPrompt = PlainPrompt()
    step: str = "{step}"
    separator: str = "\n"
    lead: str = ""
    join: str = ""
    alone: bool = False
    one_id: bool = True

    def encoder(self, tokenizer: Any) -> StepEncoder:
        """The encoder of this layout.

        Raises:
            TagError: If the separator must be one token and is not.
        """
        return _RunningTextEncoder(self, tokenizer)


class _RunningTextEncoder:
    def __init__(self, layout: RunningText, tokenizer: Any) -> None:
        # a separator of one token is a tag: no solution may write it
        self._text = text = TextEncoder(tokenizer, (layout.separator,) if layout.one_id else ())
        self._layout = layout
        self._separator: Ids = (text.one_id(layout.separator),) if layout.one_id else text.raw(layout.separator)
        self._prompt = lru_cache(maxsize=4096)(lambda problem: layout.prompt.ids(problem, text))

    def encode(self, node: Node) -> tuple[Ids, list[Ids]]:
        return self._prompt(node.problem), [self._piece(number, step) for number, step in enumerate(_steps(node), 1)]

    def _piece(self, number: int, step: str) -> Ids:
        layout = self._layout
        template = "{step}" if _NUMBERED.match(step) and "{number}" in layout.step else layout.step
        # the step comes last: nothing written in it is taken for a field
        body = template.replace("{number}", str(number)).replace("{step}", step)
        body = (layout.lead if number == 1 else layout.join) + body
        if layout.alone:
            return self._text.plain(body) + self._separator
        after = None if number == 1 else layout.separator
        return self._text.continued(body, after) + self._separator


@dataclass(frozen=True, slots=True)
class Turns:
    """Every step a user's turn of a chat, every verdict the assistant's answer, scored where it is about to answer.

    ::

        user: problem step 1 | assistant: + | user: step 2 | assistant: + ...
                             ^ score 1                     ^ score 2

    Whatever the steps deserve, the answers before the one that is predicted are good: so the models were trained.

    Attributes:
        first: The first turn, with ``{problem}`` and ``{step}``; later turns are the bare step.
        answer: What the assistant has answered to each earlier step.
    """

    first: str = "{problem} {step}"
    answer: str = "+"

    def encoder(self, tokenizer: Any) -> StepEncoder:
        """The encoder of this layout.

        Raises:
            ValueError: If there is no chat template, or it does not put the answer where it will be predicted.
        """
        return _TurnsEncoder(self, tokenizer)


class _TurnsEncoder:
    def __init__(self, layout: Turns, tokenizer: Any) -> None:
        self._layout = layout
        self._text = TextEncoder(tokenizer)  # the chat template guards its own tags
        self._up_to = lru_cache(maxsize=4096)(self._render)
        answer = self._text.one_id(layout.answer)
        probe = Problem("a")
        first, second = self._up_to(probe, ("b",)), self._up_to(probe, ("b", "c"))
        if second[: len(first)] != first or second[len(first) : len(first) + 1] != (answer,):
            raise ValueError(
                f"this chat template does not put {layout.answer!r} where the assistant's turn begins: "
                "its model was not trained on steps as turns"
            )

    def encode(self, node: Node) -> tuple[Ids, list[Ids]]:
        problem, steps = node.problem.question, _steps(node)
        # the problem is inside of the first turn: its branches share what two different first steps have in common
        one, other = self._up_to(problem, ("a",)), self._up_to(problem, ("1",))
        same = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), len(one))
        shared = one[:same] if not steps or self._up_to(problem, steps[:1])[:same] == one[:same] else ()
        before, pieces = shared, []
        for count in range(1, len(steps) + 1):
            ids = self._up_to(problem, steps[:count])
            if ids[: len(before)] != before:
                raise ValueError("this chat template rewrites earlier turns: it cannot be scored step by step")
            pieces.append(ids[len(before) :])
            before = ids
        return shared, pieces

    def _render(self, problem: Problem, steps: tuple[str, ...]) -> Ids:
        # the last turn of the user is the problem; turns before it stay turns
        *messages, last = problem.turns
        if last["role"] != "user":
            messages, last = [*messages, last], {"content": ""}
        for number, step in enumerate(steps):
            # the step comes last: nothing written in it is taken for a field
            turn = self._layout.first.replace("{problem}", last["content"], 1) if number == 0 else "{step}"
            head, _, tail = turn.rpartition("{step}")
            messages.append({"role": "user", "content": head + step + tail})
            messages.append({"role": "assistant", "content": self._layout.answer})
        return self._text.template(None).ids(messages[:-1])


Head: TypeAlias = Literal["causal", "classifier", "value", "mlp"]
"""The part of a checkpoint after its last layer: a language model's head, a token classifier's, a value head
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

    def token_score(self, tokenizer: Any) -> TokenScore:
        """The score out of the outputs.

        Raises:
            TagError: If one of them is not a single token.
        """
        text = TextEncoder(tokenizer)
        return pair_probability(text.one_id(self.good), text.one_id(self.bad))


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """The probability of a class: out of a softmax over all outputs, or of the sigmoid of a single one.

    Attributes:
        index: The class.
        minus: A class whose probability is taken off; the score is then in [-1, 1].
    """

    index: int = 1
    minus: int | None = None

    def token_score(self, tokenizer: Any) -> TokenScore:
        """The score out of the outputs."""

        def score(outputs: Tensor, targets: Tensor) -> Tensor:
            p = outputs.sigmoid() if outputs.shape[-1] == 1 else outputs.softmax(dim=-1)
            return p[:, self.index] if self.minus is None else p[:, self.index] - p[:, self.minus]

        return score


@dataclass(frozen=True, slots=True)
class StepFormat:
    """Layout and score of a family of process reward models; write your own for a model that is not listed.

    Attributes:
        name: Its name in `FORMATS` and in errors.
        layout: How problem and steps become ids; each step is scored at the last id of its piece.
        score: How the outputs there become a number.
        head: What the checkpoint must have after its last layer.
        token_ids: Tags and the ids that the published checkpoint has for them, checked at load; ``()`` checks only
            that tags are single tokens.

    Example:
        >>> from dataclasses import replace
        >>> from inferscale.rewards import FORMATS
        >>> shepherd = FORMATS["math-shepherd"]  # a model of your own, trained on another tag and other words
        >>> own = replace(shepherd, name="own", layout=replace(shepherd.layout, separator="<step>"), token_ids=())
        >>> own.layout.step, own.layout.separator, own.head
        ('Step {number}: {step}', '<step>', 'causal')
    """

    name: str
    layout: RunningText | Turns
    score: TokenPair | ClassProbability
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

SKYWORK = StepFormat(
    "skywork", RunningText(PlainPrompt("{problem}\n", "always"), alone=True), ClassProbability(0), "value"
)
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
"""Token classifiers trained with TRL, and with `inferscale.rewards.training`."""

PURE = StepFormat(
    "pure", RunningText(PlainPrompt(bos="never"), alone=True, one_id=False), ClassProbability(1, minus=0), "classifier"
)
"""PURE-PRM-7B (Cheng et al. 2025, arXiv:2504.15275): the step reward is P(class 1) - P(class 0)."""

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
    ClassProbability(0),
    "value",
)
"""PQM (Li and Li 2024, arXiv:2410.11287).

Differs from the paper: the published value has no bound; its sigmoid keeps the order and can be multiplied.
"""


def separated_by(separator: str) -> StepFormat:
    """The format `TRL` with another separator."""
    assert isinstance(TRL.layout, RunningText)
    return replace(TRL, layout=replace(TRL.layout, separator=separator))


FORMATS: dict[str, StepFormat] = {
    item.name: item for item in (ER_PRM, MATH_SHEPHERD, PQM, PURE, QWEN, RLHFLOW, SKYWORK, TRL)
}
"""The published formats of process reward models by name, for ``format=`` of `HFProcessRewardModel`.

Example:
    >>> from inferscale.rewards import FORMATS
    >>> sorted(FORMATS)
    ['er-prm', 'math-shepherd', 'pqm', 'pure', 'qwen', 'rlhflow', 'skywork', 'trl']
    >>> FORMATS["math-shepherd"].score
    TokenPair(good=' +', bad=' -')
"""
