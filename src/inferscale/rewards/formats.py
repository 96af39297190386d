"""The published formats of process reward models: small declarations, and what encodes texts by them.

Every layout puts the place where a step is scored at the last id of that step's piece, and a piece never changes when
more steps follow: so whole texts and growing trees are read alike.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from inferscale.runtime.prefix_cache import chain_key
from inferscale.tree import Node

from .paths import Part, Path, Read, read_pair, read_sigmoid

Ids = tuple[int, ...]


class TagError(ValueError):
    """A tokenizer does not have a tag as the format says."""


class TextEncoder:
    """Encodes pieces of text so that control tokens and step tags written in them stay text.

    Whoever writes ``</s>`` or a step tag into a solution gets letters, not the token.

    Attributes:
        tokenizer: The tokenizer.
        bos: The id that the tokenizer names as the beginning of sequence, or ``None``.
        specials: Ids of control tokens.
    """

    def __init__(self, tokenizer: Any, tags: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id
        self.specials = frozenset(tokenizer.all_special_ids)
        visible = [tag.strip() for tag in tags if tag.strip()]
        self._guarded = self.specials | {self.one_id(tag) for tag in tags if tag.strip()}
        self._tags = _pattern(visible)
        self._words = _pattern([*tokenizer.all_special_tokens, *visible])
        self.plain = lru_cache(maxsize=65536)(self._plain)
        self.continued = lru_cache(maxsize=65536)(self._continued)

    def _plain(self, text: str) -> Ids:
        """Ids of a text that is tokenised alone."""
        ids = self._raw(text)
        return ids if self._guarded.isdisjoint(ids) else self._as_letters(text)

    def _continued(self, text: str, after: str | None = None) -> Ids:
        """Ids that `text` has where it follows `after` in a text that is tokenised as a whole.

        Args:
            text: The text.
            after: What stands before it; by default something that merges with no text of its kind.

        Raises:
            ValueError: If the tokenizer merges the two.
        """
        if not text:
            return ()
        whole = self._after(text, [after] if after is not None else _NEUTRAL[text[0].isspace()])
        if whole is None and after is not None:
            raise ValueError(f"this tokenizer merges {after!r} with the start of {text[:40]!r}: strip the text")
        tail = self._raw(text) if whole is None else whole
        return tail if self._guarded.isdisjoint(tail) else self._as_letters(text)

    def _after(self, text: str, before: Sequence[str]) -> Ids | None:
        """Ids of `text` after the first of `before` that does not merge with it."""
        for head in before:
            start, whole = self._raw(head), self._raw(head + text)
            if whole[: len(start)] == start:
                return whole[len(start) :]
        return None

    def one_id(self, text: str) -> int:
        """The id of `text`, written as it stands in running text (``" +"`` where a space is before it).

        Raises:
            TagError: If the tokenizer splits it.
        """
        ids = self._after(text, _NEUTRAL[text[0].isspace()]) or self._raw(text)
        if len(ids) != 1:
            raise TagError(f"the tag {text!r} is {len(ids)} tokens in this tokenizer, {list(ids)}, and must be one")
        return ids[0]

    def specials_before(self) -> Ids:
        """Ids that the tokenizer puts before a text by itself."""
        plain, whole = self._raw("a"), tuple(self.tokenizer("a")["input_ids"])
        starts = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
        return whole[: starts[0]] if starts else ()

    def chat(self, messages: Sequence[Mapping[str, str]], answer_follows: bool) -> Ids:
        """Ids of a chat, up to where the assistant's turn begins if `answer_follows`.

        Raises:
            ValueError: If the tokenizer has no chat template.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError("this format is a chat, but the tokenizer has no chat template: it is another model's")
        options: dict[str, Any] = {}
        forbidden = self._tags  # an added token need not be one that transformers calls a control token
        if "sanitize_control_tokens" in inspect.signature(self.tokenizer.apply_chat_template).parameters:
            options["sanitize_control_tokens"] = True
        else:
            forbidden = self._words
        turns = [{**turn, "content": " ".join(_cut(forbidden, turn["content"]))} for turn in messages]
        encoded = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=answer_follows, tokenize=True, return_dict=True, **options
        )
        return tuple(encoded["input_ids"])

    def _raw(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def _as_letters(self, text: str) -> Ids:
        """Ids of `text` with every guarded word cut after its first letter."""
        return tuple(i for piece in _cut(self._words, text) for i in self._raw(piece))


_NEUTRAL = (("\n", "a", "."), ("a", "."))
"""Texts that tokenizers do not merge with what follows them, for what starts without and with white space."""


def _pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(set(words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _cut(pattern: re.Pattern[str] | None, text: str) -> list[str]:
    """Pieces of `text`, cut after the first letter of every match."""
    places = [] if pattern is None else [match.start() + 1 for match in pattern.finditer(text)]
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


_NUMBERED = re.compile(r"Step \d+:")


class PieceEncoder(Protocol):
    """Gives the ids of a problem and of its steps."""

    def shared(self, problem: str, texts: Sequence[str]) -> Ids:
        """Ids before the first step's piece."""
        ...

    def pieces(self, problem: str, texts: Sequence[str]) -> list[Ids]:
        """Ids of each step; the last one is where its score is read."""
        ...


@dataclass(frozen=True, slots=True)
class PlainPrompt:
    """The problem as text.

    Attributes:
        template: Text with ``{problem}``.
        bos: Which ids come first: those that the ``"tokenizer"`` adds by itself, the beginning of sequence if there
            is one (``"always"``), or none (``"never"``).
    """

    template: str = "{problem}"
    bos: Literal["tokenizer", "always", "never"] = "tokenizer"

    def ids(self, problem: str, text: TextEncoder) -> Ids:
        """Ids of the prompt."""
        before: Ids = text.specials_before() if self.bos == "tokenizer" else ()
        if self.bos == "always" and text.bos is not None:
            before = (text.bos,)
        return before + text.plain(self.template.replace("{problem}", problem))


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """The problem as the user's turn of the tokenizer's chat template; the steps are the assistant's turn.

    Attributes:
        system: The system's turn.
    """

    system: str | None = None

    def ids(self, problem: str, text: TextEncoder) -> Ids:
        """Ids up to where the assistant's turn begins."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        return text.chat([*messages, {"role": "user", "content": problem}], answer_follows=True)


@dataclass(frozen=True, slots=True)
class RunningText:
    """Steps as a text after the prompt, each ended by a separator at whose last id it is scored.

    Attributes:
        prompt: What comes before.
        step: Text of a step, with ``{step}`` and perhaps ``{number}`` (from 1); the solution's own "Step 3:" stays.
        separator: Text after every step, the last one included.
        lead: Text between the prompt and the first step.
        join: Text between a separator and the next step.
        alone: Whether step and separator are each tokenised alone; else they have the ids of one running text.
        one_id: Whether the separator must be one token.
    """

    prompt: PlainPrompt | ChatPrompt = PlainPrompt()
    step: str = "{step}"
    separator: str = "\n"
    lead: str = ""
    join: str = ""
    alone: bool = False
    one_id: bool = True

    @property
    def tags(self) -> tuple[str, ...]:
        """Texts that a solution must not be able to write."""
        return (self.separator,) if self.one_id else ()

    def encoder(self, tokenizer: Any) -> PieceEncoder:
        """What encodes by this layout.

        Raises:
            TagError: If the separator must be one token and is not.
        """
        return _RunningTextEncoder(self, TextEncoder(tokenizer, self.tags))


class _RunningTextEncoder:
    def __init__(self, layout: RunningText, text: TextEncoder) -> None:
        self._layout = layout
        self._text = text
        self._separator: Ids = (text.one_id(layout.separator),) if layout.one_id else text.plain(layout.separator)
        self._prompt = lru_cache(maxsize=4096)(lambda problem: layout.prompt.ids(problem, text))

    def shared(self, problem: str, texts: Sequence[str]) -> Ids:
        return self._prompt(problem)

    def pieces(self, problem: str, texts: Sequence[str]) -> list[Ids]:
        return [self._piece(number, text.strip()) for number, text in enumerate(texts, 1)]

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


def step_path(node: Node, encoder: PieceEncoder) -> Path:
    """The path of `node` as the encoder lays it out, read at the last id of each step's piece."""
    problem = node.problem.prompt
    texts = [text for text, _ in node.inner_steps()]
    pieces, parts = iter(encoder.pieces(problem, texts)), []
    shared = encoder.shared(problem, texts)
    key = chain_key(0, shared)
    for place in node.path:
        own = [next(pieces) for _ in place.step.inner_steps()] if place.step is not None else []
        ends = tuple(end - 1 for end in accumulate(map(len, own)))
        ids = tuple(i for piece in own for i in piece)
        key = chain_key(chain_key(key, ids), ends, kind=place.is_finished)
        parts.append(Part(key, ids, ends, (), (1,) * len(own), place.is_finished))
    return Path(node.root.key, shared, tuple(parts))


@dataclass(frozen=True, slots=True)
class Turns:
    """Every step a user's turn of a chat, every verdict the assistant's answer, scored where it is about to answer.

    Attributes:
        first: The first turn, with ``{problem}`` and ``{step}``; later turns are the bare step.
        answer: What the assistant has answered to each earlier step.
    """

    first: str = "{problem} {step}"
    answer: str = "+"

    @property
    def tags(self) -> tuple[str, ...]:
        """Texts that a solution must not be able to write: the chat template guards them."""
        return ()

    def encoder(self, tokenizer: Any) -> PieceEncoder:
        """What encodes by this layout.

        Raises:
            ValueError: If there is no chat template, or it does not put the answer where it will be predicted.
        """
        encoder = _TurnsEncoder(self, TextEncoder(tokenizer))
        encoder.check()
        return encoder


class _TurnsEncoder:
    def __init__(self, layout: Turns, text: TextEncoder) -> None:
        self._layout = layout
        self._text = text
        self._up_to = lru_cache(maxsize=4096)(self._render)

    def shared(self, problem: str, texts: Sequence[str]) -> Ids:
        if not texts:
            return ()
        ids, common = self._up_to(problem, (texts[0].strip(),)), self._common(problem)
        return common if ids[: len(common)] == common else ()

    def pieces(self, problem: str, texts: Sequence[str]) -> list[Ids]:
        steps = tuple(text.strip() for text in texts)
        before, pieces = self.shared(problem, texts), []
        for count in range(1, len(steps) + 1):
            ids = self._up_to(problem, steps[:count])
            if ids[: len(before)] != before:
                raise ValueError("this chat template rewrites earlier turns: its scores cannot be read step by step")
            pieces.append(ids[len(before) :])
            before = ids
        return pieces

    def check(self) -> None:
        """Refuses a tokenizer whose template does not answer at the place that is read."""
        answer = self._text.one_id(self._layout.answer)
        first, second = self._up_to("a", ("b",)), self._up_to("a", ("b", "c"))
        if second[: len(first)] != first or second[len(first) : len(first) + 1] != (answer,):
            raise ValueError(
                f"this chat template does not put {self._layout.answer!r} where the assistant's turn begins: "
                "its model does not read steps as turns"
            )

    def _common(self, problem: str) -> Ids:
        """Ids that all first turns of a problem start with."""
        one, other = self._up_to(problem, ("a",)), self._up_to(problem, ("1",))
        same = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), len(one))
        return one[:same]

    def _render(self, problem: str, steps: tuple[str, ...]) -> Ids:
        messages = []
        for number, step in enumerate(steps):
            # the step comes last: nothing written in it is taken for a field
            turn = self._layout.first.replace("{problem}", problem, 1) if number == 0 else "{step}"
            head, _, tail = turn.rpartition("{step}")
            messages.append({"role": "user", "content": head + step + tail})
            messages.append({"role": "assistant", "content": self._layout.answer})
        return self._text.chat(messages[:-1], answer_follows=True)


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
"""Token classifiers trained with TRL, and with `inferscale.rewards.training`."""

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
