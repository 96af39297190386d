"""Frozen records: the problem, a sampled step, and a leaf's path (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["step", "eos", "length", "empty", "budget", "error"]
"""Why a step ended.

``"step"``: at the step delimiter or at ``max_step_tokens``; the path can go on. ``"eos"``: the model ended its
answer. ``"length"``: the path reached ``max_new_tokens``. ``"budget"``: the caller's budget ended it. ``"empty"``:
nothing but white space was sampled. ``"error"``: the sample failed (a remote server); the text says why.
"""


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt to answer.

    Attributes:
        prompt: What the model reads, without special tokens or chat template.
        answer: The gold answer; evaluation and oracle rewards read it, strategies never do.
        id: A name for tables and files.
    """

    prompt: str
    answer: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        """Refuses an empty prompt, and an answer that is no text."""
        if not isinstance(self.prompt, str) or not self.prompt:
            raise ValueError(f"a problem needs a prompt, a string that is not empty; got {self.prompt!r}")
        if self.answer is not None and not isinstance(self.answer, str):
            raise TypeError(f"a problem's answer is a text or None, not {self.answer!r:.80}: write str(answer)")


@dataclass(frozen=True, slots=True)
class Step:
    """One sampled continuation: an edge of the search tree, as a `Generator` returns it.

    Attributes:
        text: The sampled text, its delimiter included, after the forced text if there is any; end-of-sequence tokens
            are left out.
        token_ids: The ids of forced text and the sampled ones, end of sequence included; ``()`` when the generator
            cannot tell.
        logprob: Sum of the log-probabilities (nats) of the sampled tokens under the distribution they were drawn
            from; ``None`` when the generator cannot tell.
        confidence: Token-level confidence of the step, higher is surer; ``None`` when the generator cannot tell.
        finish_reason: Why sampling stopped, see `FinishReason`.
        inner_ends: Where the inner steps of a completion end, as ``(end in text, end in token_ids)`` pairs in
            order, the last one at the end; ``()`` means that the whole step is one.
        flops: FLOPs of sampling this step (a multiply-add is 2), prompt included where it was charged to this step.
        prompt_tokens: Prompt and forced tokens charged to this step; a shared prompt is charged once.
        thought_tokens: Hidden thought tokens sampled for this step; they are not in `token_ids`.
        num_tokens: Sampled tokens where `token_ids` is not known or holds forced ids; ``None`` means
            ``len(token_ids)``.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprob: float | None = None
    confidence: float | None = None
    finish_reason: FinishReason = "step"
    inner_ends: tuple[tuple[int, int], ...] = ()
    flops: int = 0
    prompt_tokens: int = 0
    thought_tokens: int = 0
    num_tokens: int | None = None

    @property
    def generated_tokens(self) -> int:
        """Number of sampled tokens, end of sequence included."""
        return len(self.token_ids) if self.num_tokens is None else self.num_tokens

    def inner_steps(self) -> list[tuple[str, tuple[int, ...]]]:
        """Text and ids of each inner step, in order; steps of white space alone are joined to the next one."""
        pieces, text_start, id_start = [], 0, 0
        for text_end, id_end in self.inner_ends or ((len(self.text), len(self.token_ids)),):
            piece = self.text[text_start:text_end]
            if piece.strip():
                pieces.append((piece, self.token_ids[id_start:id_end]))
                text_start, id_start = text_end, id_end
        return pieces


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One leaf's path as a frozen record.

    Attributes:
        problem: The problem.
        steps: Steps of the path, first to last.
        step_scores: A process reward model's score of each step (one each for inner steps), or ``None``.
        answer: The answer read out of the text; ``None`` abstains. An unfinished path always abstains.
        score: The reward model's score of the whole, or ``None``.
    """

    problem: Problem
    steps: tuple[Step, ...]
    step_scores: tuple[float, ...] | None = None
    answer: str | None = None
    score: float | None = None

    @property
    def text(self) -> str:
        """The solution, without the prompt."""
        return "".join(step.text for step in self.steps)

    @property
    def is_finished(self) -> bool:
        """Whether the path had ended."""
        return bool(self.steps) and self.steps[-1].finish_reason != "step"

    @property
    def logprob(self) -> float | None:
        """Sum of the steps' log-probabilities, or ``None`` if one is not known."""
        values = [step.logprob for step in self.steps]
        return None if any(value is None for value in values) else float(sum(v for v in values if v is not None))
