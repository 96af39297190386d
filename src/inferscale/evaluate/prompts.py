"""How a question becomes a prompt: chain of thought, direct answer, numbered steps, and worked examples before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from inferscale.answers import extract_answer
from inferscale.tree import Problem


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set.

    Attributes:
        question: The question alone.
        answer: The gold answer, without markup.
        solution: A worked solution, for few-shot prompts; ``""`` if there is none.
        id: A name for tables and files.
        group: What results may be split by (a level, a type); ``""`` if there is nothing.
        domain: The field that the question is from (a subject, a kind of operation); ``""`` if it is not known.
    """

    question: str
    answer: str
    solution: str = ""
    id: str = ""
    group: str = ""
    domain: str = ""


@dataclass(frozen=True)
class AnswerReader:
    """Reads the answer out of a completion, up to where the model went on with another question.

    Attributes:
        stop: The text that begins another question; ``""`` reads the whole completion.
    """

    stop: str = ""

    def __call__(self, text: str) -> str | None:
        """The answer, or ``None`` if there is none."""
        return extract_answer(text.split(self.stop, 1)[0] if self.stop else text)


@dataclass(frozen=True)
class PromptStyle:
    r"""A prompt format.

    Attributes:
        template: The prompt of one question, with ``{question}`` once; what the model writes follows it.
        shown: What is shown as the completion of a worked example, with ``{solution}`` and ``{answer}``.
        instruction: Put before everything.
        separator: Between worked examples, and before the question.
        stop: What a base model writes when it goes on with a question of its own; answers are read before it.
        shots: Worked examples.
    """

    template: str
    shown: str = "{solution}\nThe answer is {answer}."
    instruction: str = ""
    separator: str = "\n\n"
    stop: str = "\nQuestion:"
    shots: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        """Refuses a template without the question."""
        if self.template.count("{question}") != 1:
            raise ValueError(f"template={self.template!r} must hold {{question}} once: it is where the question goes")

    def with_shots(self, shots: Sequence[Example]) -> PromptStyle:
        """This style with worked examples.

        Raises:
            ValueError: If the style shows solutions and an example has none.
        """
        bare = [shot for shot in shots if not shot.solution] if "{solution}" in self.shown else []
        if bare:
            raise ValueError(f"the example {bare[0].id or bare[0].question[:60]!r} has no solution to show: choose "
                             "others, or style 'direct'")  # fmt: skip
        return replace(self, shots=tuple(shots))

    def prompt(self, question: str) -> str:
        """The whole prompt of a question."""
        parts = [self.instruction] if self.instruction else []
        parts += [self._filled(shot.question) + self._shown(shot) for shot in self.shots]
        return self.separator.join([*parts, self._filled(question)])

    def problem(self, example: Example) -> Problem:
        """The problem of a row."""
        return Problem(self.prompt(example.question), example.answer, example.id or None)

    def reader(self) -> AnswerReader:
        """What to pass as `extract_answer` with prompts of this style."""
        return AnswerReader(self.stop)

    def _filled(self, question: str) -> str:
        # replaced, not formatted: a question may hold braces
        return self.template.replace("{question}", question)

    def _shown(self, shot: Example) -> str:
        head, _, tail = self.shown.partition("{solution}")
        whole = head.replace("{answer}", shot.answer)
        if "{solution}" in self.shown:
            whole += shot.solution + tail.replace("{answer}", shot.answer)
        return whole


STYLES: dict[str, PromptStyle] = {
    "cot": PromptStyle("Question: {question}\nAnswer: Let's think step by step.\n"),
    "direct": PromptStyle("Question: {question}\nAnswer:", shown=" {answer}"),
    "steps": PromptStyle(
        "Question: {question}\nSolution:\n",
        shown="{solution}\nThe answer is: {answer}",
        instruction='Solve the problem. Write one step per line, then a last line "The answer is: " and the answer.',
    ),
    "boxed": PromptStyle(
        "Problem: {question}\nSolution:",
        shown=" {solution}",
        instruction=r"Solve the problem step by step and put the final answer in \boxed{}.",
        stop="\nProblem:",
    ),
    "plain": PromptStyle("{question}", shown="{solution}", stop=""),
}
"""Styles by name: ``"cot"`` (zero-shot chain of thought, Kojima et al. 2022, arXiv:2205.11916), ``"direct"`` (the
answer alone), ``"steps"`` (one step per line, for searches over steps), ``"boxed"`` (as MATH's solutions) and
``"plain"`` (the question as it is, for chat models and the embedded task)."""


def prompt_style(style: str | PromptStyle) -> PromptStyle:
    """The style of that name; a style is returned as it is.

    Raises:
        ValueError: If there is no such style.
    """
    if isinstance(style, PromptStyle):
        return style
    if style not in STYLES:
        raise ValueError(f"unknown prompt style {style!r}: choose one of {', '.join(STYLES)}, or give a PromptStyle")
    return STYLES[style]
