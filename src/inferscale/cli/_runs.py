"""The options that ``inferscale eval`` and ``inferscale sweep`` share, and what they mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from inferscale.evaluate.parts import make_generator, make_vote

from ._parts import MaxNewTokens, Progress, Reward, StepDelimiter, Temperature, Tokens, UsageError, Vote, Width

if TYPE_CHECKING:
    from inferscale.aggregators import SameAnswer
    from inferscale.base import Generator, RewardModel, SearchStrategy
    from inferscale.evaluate import Run
    from inferscale.tree import Problem

GRADERS = ("auto", "numeric", "math")

Dataset = Annotated[str, typer.Option(help="gsm8k, math, svamp, embedded, or jsonl (your own rows).")]
Data = Annotated[Path | None, typer.Option(help="A .jsonl or .json file; without it the Hugging Face hub is asked.")]
Split = Annotated[str | None, typer.Option(help="Split of the hub's data set, or test or dev of the embedded task.")]
Fields = Annotated[list[str] | None, typer.Option("--field", help="Your own fields: question=body, answer=gold.")]
Style = Annotated[str | None, typer.Option(help="Prompt: cot, direct, steps, boxed, plain.")]
Shots = Annotated[int, typer.Option(min=0, help="Worked examples before each question.")]
ShotsData = Annotated[Path | None, typer.Option(help="File that the worked examples are taken from, not --data.")]
Limit = Annotated[int | None, typer.Option(help="Take the first so many problems.")]
Grader = Annotated[str, typer.Option(help="numeric, math (math-verify in a killable process), or auto.")]
MaxStepTokens = Annotated[int, typer.Option(help="Most tokens of a step.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Problems searched at the same time.")]
Force = Annotated[bool, typer.Option(help="Go on in a folder of another configuration with what is still valid.")]


@dataclass(frozen=True)
class RunOptions:
    """What all runs of a command have in common."""

    dataset: Dataset = "embedded"
    data: Data = None
    split: Split = None
    field: Fields = None
    style: Style = None
    shots: Shots = 0
    shots_data: ShotsData = None
    limit: Limit = None
    grader: Grader = "auto"
    width: Width = 16
    vote: Vote = "majority"
    reward: Reward = None
    temperature: Temperature = 0.8
    max_new_tokens: MaxNewTokens = 512
    max_step_tokens: MaxStepTokens = 256
    step_delimiter: StepDelimiter = "\\n"
    tokens: Tokens = None
    batch_size: BatchSize = 64
    force: Force = False
    progress: Progress = True

    def generator(self, model: str) -> Generator:
        """The model as a generator."""
        return make_generator(
            model, self.temperature, self.max_new_tokens, self.step_delimiter, max_step_tokens=self.max_step_tokens
        )

    def problems(self) -> list[Problem]:
        """The problems, worked examples in their prompts."""
        from inferscale.evaluate import load_examples, load_problems

        if self.grader not in GRADERS:
            raise UsageError(f"unknown grader {self.grader!r}: choose one of {', '.join(GRADERS)}")
        if self.shots and self.shots_data is None:
            raise UsageError(f"--shots {self.shots} needs --shots-data FILE: examples must not come from the test data")
        named = self._named_fields()
        shots = load_examples(self.dataset, self.shots_data, fields=named, limit=self.shots) if self.shots else []
        if len(shots) < self.shots:
            raise UsageError(f"--shots {self.shots}: {self.shots_data} holds {len(shots)}")
        return load_problems(
            self.dataset, self.data, split=self.split, style=self.style, shots=shots, fields=named, limit=self.limit
        )

    def run(
        self, problems: list[Problem], search: SearchStrategy, generator: Generator, reward_model: RewardModel | None,
        seed: int, folder: Path, model: str,
    ) -> Run:  # fmt: skip
        """The run in `folder`, begun or gone on with."""
        from inferscale.cost import Budget
        from inferscale.evaluate import prompt_style, run_evaluation

        style = prompt_style(self.style or ("plain" if self.dataset == "embedded" else "cot"))
        budget = None if self.tokens is None else Budget(tokens=self.tokens)
        about = {"dataset": self.dataset, "model": Path(model).name, "reward": self.reward and Path(self.reward).name}
        return run_evaluation(
            problems, search, generator, folder, reward_model=reward_model, aggregator=make_vote(self.vote),
            budget=budget, extract_answer=style.reader(), grade=self.grade(), seed=seed, batch_size=self.batch_size,
            config=about, force=self.force, progress=self.progress,
        )  # fmt: skip

    def grade(self) -> SameAnswer:
        """Math-verify where answers are expressions and it is installed, else exact normal forms."""
        from importlib.util import find_spec

        from inferscale.answers import same_answer
        from inferscale.evaluate import MathGrader

        wanted = self.grader == "math" or (self.grader == "auto" and self.dataset == "math")
        if wanted and (self.grader == "math" or find_spec("math_verify") is not None):
            return MathGrader()
        return same_answer

    def _named_fields(self) -> dict[str, str] | None:
        pairs = [text.partition("=") for text in self.field or ()]
        for name, equals, value in pairs:
            if not equals or not value:
                raise UsageError(f"--field {name}: write it as question=name_of_your_field")
        return {name: value for name, _, value in pairs} or None


def takes_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every field of `RunOptions` as an option of its own, in place of its parameter ``options``."""
    hints = get_type_hints(RunOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(RunOptions)
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        options = RunOptions(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        command(**given, options=options)

    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "options"]
    run.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return run
