"""``inferscale eval`` and ``inferscale sweep``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferscale.evaluate.parts import check_scores, make_generator, make_reward, make_strategy, make_vote

from ._parts import (
    STRATEGY_HELP,
    MaxNewTokens,
    Model,
    Progress,
    Reward,
    Seed,
    StepDelimiter,
    Temperature,
    Tokens,
    UsageError,
    Vote,
    Width,
)

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


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("eval")(evaluate)
    app.command()(sweep)


def evaluate(
    out: Annotated[Path | None, typer.Option(help="The run's folder; made from the options by default.")] = None,
    dataset: Dataset = "embedded",
    data: Data = None,
    model: Model = "policy-s",
    strategy: Annotated[str, typer.Option(help=STRATEGY_HELP)] = "sampling",
    width: Width = 16,
    vote: Vote = "majority",
    reward: Reward = None,
    seed: Seed = 0,
    split: Split = None,
    field: Fields = None,
    style: Style = None,
    shots: Shots = 0,
    shots_data: ShotsData = None,
    limit: Limit = None,
    grader: Grader = "auto",
    temperature: Temperature = 0.8,
    max_new_tokens: MaxNewTokens = 512,
    max_step_tokens: MaxStepTokens = 256,
    step_delimiter: StepDelimiter = "\\n",
    tokens: Tokens = None,
    batch_size: BatchSize = 64,
    force: Force = False,
    progress: Progress = True,
) -> None:
    """Solve and grade a data set; the same command again goes on where it ended."""
    task = _Task(
        dataset, data, split, field, style, shots, shots_data, limit, grader, tokens, batch_size, force, progress
    )
    search = make_strategy(strategy, width)
    check_scores(search, make_vote(vote), reward)
    problems = task.problems()
    generator = make_generator(model, temperature, max_new_tokens, step_delimiter, max_step_tokens=max_step_tokens)
    reward_model = None if reward is None else make_reward(reward, model)
    folder = out or Path("runs") / slug(dataset, model, search, reward, seed)
    show(task.run(problems, search, generator, reward_model, vote, seed, folder, model, reward))


def sweep(
    out: Annotated[Path, typer.Option(help="Folder that gets one run's folder for each combination.")],
    strategy: Annotated[list[str], typer.Option(help=f"Repeat it. {STRATEGY_HELP}")],
    seed: Annotated[list[int] | None, typer.Option(help="Repeat it: one run of each strategy for each seed.")] = None,
    dataset: Dataset = "embedded",
    data: Data = None,
    model: Annotated[list[str] | None, typer.Option(help="Repeat it: a path, a hub id, an embedded policy.")] = None,
    width: Width = 16,
    vote: Vote = "majority",
    reward: Reward = None,
    split: Split = None,
    field: Fields = None,
    style: Style = None,
    shots: Shots = 0,
    shots_data: ShotsData = None,
    limit: Limit = None,
    grader: Grader = "auto",
    temperature: Temperature = 0.8,
    max_new_tokens: MaxNewTokens = 512,
    max_step_tokens: MaxStepTokens = 256,
    step_delimiter: StepDelimiter = "\\n",
    tokens: Tokens = None,
    batch_size: BatchSize = 64,
    force: Force = False,
    progress: Progress = True,
) -> None:
    """Evaluate every combination of models, strategies and seeds; the same command again goes on where it ended."""
    task = _Task(
        dataset, data, split, field, style, shots, shots_data, limit, grader, tokens, batch_size, force, progress
    )
    searches = [make_strategy(text, width) for text in strategy]
    for search in searches:
        check_scores(search, make_vote(vote), reward)
    problems = task.problems()
    for name in model or ["policy-s"]:
        generator = make_generator(name, temperature, max_new_tokens, step_delimiter, max_step_tokens=max_step_tokens)
        reward_model = None if reward is None else make_reward(reward, name)
        for search in searches:
            for number in seed or [0]:
                folder = out / slug(dataset, name, search, reward, number)
                show(task.run(problems, search, generator, reward_model, vote, number, folder, name, reward))


@dataclass(frozen=True)
class _Task:
    """Options that all runs of a command share."""

    dataset: str
    data: Path | None
    split: str | None
    field: list[str] | None
    style: str | None
    shots: int
    shots_data: Path | None
    limit: int | None
    grader: str
    tokens: int | None
    batch_size: int
    force: bool
    progress: bool

    def problems(self) -> list[Problem]:
        from inferscale.evaluate import load_examples, load_problems

        if self.grader not in GRADERS:
            raise UsageError(f"unknown grader {self.grader!r}: choose one of {', '.join(GRADERS)}")
        if self.shots and self.shots_data is None:
            raise UsageError(f"--shots {self.shots} needs --shots-data FILE: examples must not come from the test data")
        fields = self._fields()
        shots = load_examples(self.dataset, self.shots_data, fields=fields, limit=self.shots) if self.shots else []
        return load_problems(
            self.dataset, self.data, split=self.split, style=self.style, shots=shots, fields=fields, limit=self.limit
        )

    def run(
        self, problems: list[Problem], search: SearchStrategy, generator: Generator, reward_model: RewardModel | None,
        vote: str, seed: int, folder: Path, model: str, reward: str | None,
    ) -> Run:  # fmt: skip
        from inferscale.cost import Budget
        from inferscale.evaluate import prompt_style, run_evaluation

        style = prompt_style(self.style or ("plain" if self.dataset == "embedded" else "cot"))
        budget = None if self.tokens is None else Budget(tokens=self.tokens)
        return run_evaluation(
            problems, search, generator, folder, reward_model=reward_model, aggregator=make_vote(vote), budget=budget,
            extract_answer=style.reader(), grade=self.grade(), seed=seed, batch_size=self.batch_size, force=self.force,
            config={"dataset": self.dataset, "model": Path(model).name, "reward": reward and Path(reward).name},
            progress=self.progress,
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

    def _fields(self) -> dict[str, str] | None:
        pairs = [text.partition("=") for text in self.field or ()]
        for name, equals, value in pairs:
            if not equals or not value:
                raise UsageError(f"--field {name}: write it as question=name_of_your_field")
        return {name: value for name, _, value in pairs} or None


def slug(dataset: str, model: str, search: SearchStrategy, reward: str | None, seed: int) -> str:
    """A folder's name: what was run, without characters that a shell or a file system minds."""
    parts: list[Any] = [dataset, Path(model).name, repr(search), Path(reward).name if reward else None, f"seed{seed}"]
    text = "-".join(str(part) for part in parts if part)
    return re.sub(r"[^A-Za-z0-9.=]+", "-", text).replace("-.", "").strip("-")[:180]


def show(run: Run) -> None:
    """Prints one line for a run."""
    graded = f"accuracy {100 * run.accuracy:.1f} ± {100 * run.standard_error:.1f} %"
    if run.accuracy != run.accuracy:
        graded = "no gold answers"
    silent = sum(record["answer"] is None for record in run.finished)
    typer.echo(f"{graded}, {len(run.finished)} problems ({silent} without an answer)  {run.directory}")
