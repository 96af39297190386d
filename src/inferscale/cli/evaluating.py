"""The commands ``eval``, ``sweep``, ``report`` and ``plot``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferscale.cost import Cost
from inferscale.evaluate.parts import check_scores, make_strategy, make_vote
from inferscale.identity import digest

from .options import (
    STRATEGY_HELP,
    BudgetText,
    Model,
    ModelOptions,
    Progress,
    Seed,
    Tokens,
    UsageError,
    cap_of,
    printable,
    say,
    with_options,
)
from .solving import models_of

if TYPE_CHECKING:
    from inferscale.answers import SameAnswer
    from inferscale.base import Generator, RewardModel, SearchStrategy
    from inferscale.cost import Budget
    from inferscale.evaluate import Run
    from inferscale.flops import EnergyMeter
    from inferscale.scaling import CurvePoint
    from inferscale.tree import Problem


GRADERS = ("auto", "numeric", "math")

Dataset = Annotated[str, typer.Option(help="gsm8k, math, svamp, embedded, jsonl (your own rows), or a file of them.")]
Data = Annotated[Path | None, typer.Option(help="A .jsonl, .json or .csv file; without it the hub is asked.")]
Split = Annotated[str | None, typer.Option(help="Split of the hub's data set, or test or dev of the embedded task.")]
Fields = Annotated[list[str] | None, typer.Option("--field", help="Your own fields: question=body, answer=gold.")]
Style = Annotated[str | None, typer.Option(help="Prompt: cot, direct, steps, boxed, plain, chat.")]
Shots = Annotated[int, typer.Option(min=0, help="Worked examples before each question.")]
ShotsData = Annotated[Path | None, typer.Option(help="File that the worked examples are taken from, not --data.")]
Limit = Annotated[int | None, typer.Option(help="Take the first so many problems.")]
Grader = Annotated[
    str, typer.Option(help="numeric (the equality of the kind), math (math-verify in a killable process), or auto.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Problems searched at the same time.")]
Force = Annotated[bool, typer.Option(help="Go on in a folder of another configuration with what is still valid.")]


@dataclass(frozen=True)
class RunOptions(ModelOptions):
    """Options that all runs of a command share."""

    dataset: Dataset = "embedded"
    data: Data = None
    split: Split = None
    field: Fields = None
    style: Style = None
    shots: Shots = 0
    shots_data: ShotsData = None
    limit: Limit = None
    grader: Grader = "auto"
    tokens: Tokens = None
    batch_size: BatchSize = 64
    force: Force = False
    progress: Progress = True

    def problems(self) -> list[Problem]:
        """The problems, worked examples in their prompts."""
        from inferscale.evaluate import load_examples, load_problems

        if self.grader not in GRADERS:
            raise UsageError(f"unknown grader {self.grader!r}: choose one of {', '.join(GRADERS)}")
        if self.shots and self.shots_data is None:
            raise UsageError(f"--shots {self.shots} needs --shots-data FILE: examples must not come from the test data")
        if self.grader == "math" and self.answer_kind and self.answer_kind not in ("any", "number", "expression"):
            raise UsageError(
                f"--grader math compares expressions, and --answer-kind {self.answer_kind} is none: leave it out"
            )
        named = self._named_fields()
        shots = load_examples(self.dataset, self.shots_data, fields=named, limit=self.shots) if self.shots else []
        if len(shots) < self.shots:
            raise UsageError(f"--shots {self.shots}: {self.shots_data} holds {len(shots)}")
        return load_problems(
            self.dataset, self.data, split=self.split, style=self.style, shots=shots, fields=named,
            kind=self.answer_kind, limit=self.limit,
        )  # fmt: skip

    def run(
        self, problems: list[Problem], search: SearchStrategy, generator: Generator, reward_model: RewardModel | None,
        seed: int, folder: Path, model: str, budget: Budget | None, meter: EnergyMeter | None,
    ) -> Run:  # fmt: skip
        """The run in `folder`, begun or gone on with."""
        from inferscale.evaluate import prompt_style, run_evaluation

        style = prompt_style(self.style or ("plain" if self.dataset == "embedded" else "cot"))
        about = {"dataset": self.dataset, "model": model, "reward": self.reward and Path(self.reward).name}
        return run_evaluation(
            problems, search, generator, folder, reward_model=reward_model, aggregator=make_vote(self.vote),
            budget=budget, read_answer=style.reader(), same_answer=self.same_answer(), seed=seed,
            batch_size=self.batch_size, config=about, force=self.force, progress=self.progress, energy=meter,
        )  # fmt: skip

    def same_answer(self) -> SameAnswer | None:
        """Math-verify where answers are expressions and it is installed, else the equality of their kind."""
        from importlib.util import find_spec

        from inferscale.evaluate import MathGrader

        kind = self.answer_kind or ("expression" if self.dataset == "math" else "any")
        if self.grader == "math" or (self.grader == "auto" and kind == "expression" and find_spec("math_verify")):
            return MathGrader()
        return None

    def _named_fields(self) -> dict[str, str] | None:
        pairs = [text.partition("=") for text in self.field or ()]
        for name, equals, value in pairs:
            if not equals or not value:
                raise UsageError(f"--field {name}: write it as question=name_of_your_field")
        return {name: value for name, _, value in pairs} or None


_NO_SETTING = ("seed", "strategy", "aggregator")
"""Things that one group of points has several of: seeds are averaged, sizes are one curve, votes are read again."""


def read_points(folders: Iterable[Path]) -> list[CurvePoint]:
    """Points of all complete runs in and below the folders; runs that differ in their seed alone are averaged.

    Runs of one model and strategy under different settings (temperature, data set, ...) have these in their names.
    """
    from inferscale.scaling import curve_of_results

    groups: dict[str, list[Run]] = {}
    for run in _usable_runs(folders):
        groups.setdefault(_without(run.about["identity"], "seed", "aggregator"), []).append(run)
    if not groups:
        raise UsageError("no complete run to report")
    members = [_one_for_each_seed(runs) for runs in groups.values()]
    points: list[CurvePoint] = []
    for runs, model in zip(members, _models([runs[0].about for runs in members]), strict=True):
        points += curve_of_results(
            [list(run.results()) for run in runs], _strategy(runs[0].about),
            correct=[[record["correct_each"] for record in run.finished] for run in runs],
            memory_bytes=max(run.peak_memory_bytes or 0 for run in runs) or None, model=model,
            parameters=runs[0].about.get("parameters"),
        )  # fmt: skip
    return points


def _usable_runs(folders: Iterable[Path]) -> Iterator[Run]:
    from inferscale.evaluate import load_run

    given = list(folders)
    files = [file for folder in given for file in sorted(folder.rglob("run.json"))]
    if not files:
        raise UsageError(f"no runs in {', '.join(map(str, given))}: give folders that `inferscale eval` wrote")
    for file in {file.resolve(): file for file in files}.values():  # once, though folders may hold each other
        run = load_run(file.parent)
        if not run.is_complete:
            say(f"{run.directory} is not complete and is left out: run its command again", err=True)
        elif any(record["correct_each"] is None for record in run.finished):
            say(f"{run.directory} has problems without a gold answer and is left out", err=True)
        else:
            yield run


def _without(identity: Mapping[str, Any], *names: str) -> str:
    return str({name: value for name, value in identity.items() if name not in names})


def _one_for_each_seed(runs: Sequence[Run]) -> list[Run]:
    """Runs of one seed that differ in their vote have the same samples."""
    return list({run.about["identity"]["seed"]: run for run in runs}.values())


def _strategy(about: Mapping[str, Any]) -> Any:
    """The strategy of a run, or how it is written when it is not one of ours."""
    written = str(about.get("strategy", about["identity"]["strategy"]))  # the latter: of an older version
    try:
        return make_strategy(written) if "(" in written else written
    except ValueError:
        return written


def _models(abouts: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each group of runs the name of its model, with what tells it from others of that model and strategy."""
    names = [str(about["identity"]["config"].get("model", "")) for about in abouts]
    curves: dict[tuple[str, str], list[int]] = {}
    for place, about in enumerate(abouts):
        curves.setdefault((names[place], _curve(about)), []).append(place)
    for (name, _), places in curves.items():
        settings = [dict(_settings(_settings_of(abouts[place]["identity"]), "")) for place in places]
        keys = _telling(settings)
        for place, own in zip(places, settings, strict=True):
            told = ", ".join(f"{key.rpartition('.')[2]}={own[key]}" for key in keys if key in own)
            names[place] = f"{name} ({told})" if told else name
    return names


def _curve(about: Mapping[str, Any]) -> str:
    from inferscale.scaling import short_name

    strategy = _strategy(about)
    return strategy if isinstance(strategy, str) else short_name(strategy)


def _telling(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of a few settings that tell these apart as well as all of them would; plain ones before digests."""
    names = {name for own in settings for name in own}
    chosen: list[str] = []
    apart = 1
    for name in sorted(names, key=lambda name: (not name.startswith(".config."), name.endswith("sha256"), name)):
        parts = len({tuple(own.get(key) for key in (*chosen, name)) for own in settings})
        if parts > apart:
            chosen, apart = [*chosen, name], parts
    return chosen


def _settings_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in _NO_SETTING}


def _settings(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """The single settings in a description, by dotted name; those in ``Sampler(temperature=0.8)`` too."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _settings(item, f"{name}.{key}")
    elif pieces := re.findall(r"(\w+)=([^,()]+)", str(value)):
        yield from ((f"{name}.{key}", text) for key, text in pieces)
    else:
        yield name, str(value)


COSTS = ("flops", "generator_flops", "reward_flops", "tokens", "seconds")
Folders = Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold them.")]
COLUMNS = ("n", "accuracy", "tokens", "policy FLOPs", "reward FLOPs", "seconds", "problems", "abstain")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("eval")(with_options(evaluate))
    app.command()(with_options(sweep))
    app.command()(report)
    app.command()(repair)
    app.command()(plot)


def report(
    folders: Folders,
    curve: Annotated[bool, typer.Option(help="Every number of samples, not only the greatest.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write the points there too.")] = None,
) -> None:
    """Accuracy and cost of runs, every vote read from the same samples; costs are means over problems."""
    points = read_points(folders)
    shown = points if curve else _greatest(points)
    width = max(len(p.name) for p in shown)
    say(f"{'model, strategy, vote':<{width}} {COLUMNS[0]:>4} {COLUMNS[1]:>14} " + _cells(COLUMNS[2:]))
    for p in shown:
        accuracy = _accuracy(p.accuracy, p.standard_error, p.problems)
        costs = f"{p.tokens:.0f}", f"{p.generator_flops:.3g}", f"{p.reward_flops:.3g}", f"{p.seconds:.2f}"
        silent = f"{p.abstentions.abstaining / max(p.abstentions.trajectories, 1):.1%}"
        say(f"{p.name:<{width}} {p.n:>4} {accuracy:>14} " + _cells([*costs, p.problems, silent]))
    for method, silent_of in {p.method: p.abstentions for p in shown}.items():
        for note in silent_of.notes:
            say(f"{method}: {note}", err=True)
    note = "± one standard error over problems, or Wilson's 95 % interval where all are right or all wrong; "
    say(f"{note}coverage is an upper bound (any sample is right), not a method.")
    if csv is not None:
        _write_csv(points, csv)


def repair(
    paths: Annotated[list[Path], typer.Argument(help="Folders of runs, journals, or saved results.")],
) -> None:
    """Keep what is whole in damaged files; what is not goes to NAME.damaged, and the same call does it again."""
    from inferscale.engine import SearchResult
    from inferscale.engine.journal import repair_journal
    from inferscale.evaluate.records import RECORDS, read_about, repair_run

    for path in paths:
        if (path / "run.json").exists() or (path / RECORDS).exists():
            done = repair_run(path)
            read_about(path)
        elif not path.is_file():
            raise UsageError(f"{path} is no folder of a run and no file: give what `inferscale eval` or solve() wrote")
        elif b'"inferscale.SearchResult"' in path.read_bytes()[:200]:
            SearchResult.load(path)  # one object: nothing of it is whole if it is not
            done = [(path, 1, 0)]
        else:
            done = [(path, *repair_journal(path))]
        for file, stayed, taken in done:
            rest = f", {taken} damaged or of no use without those, now in {file.name}.damaged" if taken else ""
            say(f"{file}: {stayed} lines are whole{rest}")


def plot(
    folders: Folders,
    out: Annotated[Path, typer.Option(help="The figure's file: .png, .pdf or .svg.")] = Path("scaling.png"),
    x: Annotated[str, typer.Option(help=f"One of {', '.join(COSTS)}.")] = "flops",
    y: Annotated[str, typer.Option(help="accuracy or error.")] = "accuracy",
    vote: Annotated[list[str] | None, typer.Option(help="Repeat it: only these votes.")] = None,
) -> None:
    """Draw accuracy against cost: one panel for each vote, a line for each model and strategy."""
    from inferscale.scaling import VOTES
    from inferscale.viz import plot_votes

    if x not in COSTS:
        raise UsageError(f"--x {x}: choose one of {', '.join(COSTS)}")
    if y not in ("accuracy", "error"):
        raise UsageError(f"--y {y}: choose accuracy or error")
    unknown = [name for name in vote or () if name not in VOTES]
    if unknown:
        raise UsageError(f"--vote {unknown[0]}: choose among {', '.join(VOTES)}")
    points = [p for p in read_points(folders) if not vote or p.vote in vote]
    if not points:
        raise UsageError(f"no run has scores, which --vote {', '.join(vote or ())} needs")
    plot_votes(points, x, y).savefig(out)  # type: ignore[arg-type]
    say(f"wrote {out}")


def _greatest(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """The points without those of fewer samples of the same run."""
    most: dict[str, int] = {}
    for p in points:
        most[p.name] = max(p.n, most.get(p.name, 0))
    return [p for p in points if p.strategy != "RepeatedSampling" or p.n == most[p.name]]


def _cells(values: Iterable[Any]) -> str:
    return " ".join(f"{value!s:>12}" for value in values)


def _write_csv(points: Sequence[CurvePoint], path: Path) -> None:
    import csv

    rows = [p.row() for p in points]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({name: printable(v) if isinstance(v, str) else v for name, v in row.items()} for row in rows)
    say(f"wrote {path}")


def evaluate(
    out: Annotated[Path | None, typer.Option(help="The run's folder; made from the options by default.")] = None,
    model: Model = "policy-s",
    strategy: Annotated[str, typer.Option(help=STRATEGY_HELP)] = "sampling",
    seed: Seed = 0,
    budget: BudgetText = None,
    *,
    options: RunOptions,
) -> None:
    """Solve and grade a data set; the same command again goes on where it ended."""
    search = make_strategy(strategy, options.width)
    check_scores(search, make_vote(options.vote), options.reward)
    cap = cap_of(budget, options.tokens)
    meter = options.meter(cap)
    problems = options.problems()
    generator, reward_model = models_of(model, options)
    name, folder = Path(model).name, out
    if folder is None:
        name, folder = own_folder(Path("runs"), options, model, name, search, generator, reward_model, seed)
    show(options.run(problems, search, generator, reward_model, seed, folder, name, cap, meter), meter)


def sweep(
    out: Annotated[Path, typer.Option(help="Folder that gets one run's folder for each combination.")],
    strategy: Annotated[list[str], typer.Option(help=f"Repeat it. {STRATEGY_HELP}")],
    seed: Annotated[list[int] | None, typer.Option(help="Repeat it: one run of each strategy for each seed.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Repeat it: a path, a hub id, an embedded policy.")] = None,
    budget: BudgetText = None,
    *,
    options: RunOptions,
) -> None:
    """Evaluate every combination of models, strategies and seeds; the same command again goes on where it ended."""
    searches = [make_strategy(text, options.width) for text in strategy]
    for search in searches:
        check_scores(search, make_vote(options.vote), options.reward)
    cap = cap_of(budget, options.tokens)
    meter = options.meter(cap)
    problems = options.problems()
    models = model or ["policy-s"]
    for path, known_as in zip(models, distinct_names(models), strict=True):
        generator, reward_model = models_of(path, options)
        for search in searches:
            for number in seed or [0]:
                name, folder = own_folder(out, options, path, known_as, search, generator, reward_model, number)
                run = options.run(problems, search, generator, reward_model, number, folder, name, cap, meter)
                show(run, meter)


def own_folder(
    root: Path, options: RunOptions, model: str, name: str, search: SearchStrategy, generator: Generator,
    reward_model: RewardModel | None, seed: int,
) -> tuple[str, Path]:  # fmt: skip
    """The model's name and the run's folder, made of the options: the first that holds no run of other models.

    Paths that end alike, of the model or the reward model, are told apart by as much of them as it takes.
    """
    from inferscale.evaluate.records import read_about
    from inferscale.identity import compare, identity_of

    own = {"generator": generator, "reward_model": reward_model}
    ours = json.loads(json.dumps({key: _weights(identity_of(part)) for key, part in own.items()}))
    paths = [Path(model).parts, Path(options.reward).parts if options.reward else ()]
    longest = max(map(len, paths))
    for length in range(1, longest + 1):
        model_name = max(name, "/".join(paths[0][-length:]), key=len)
        folder = root / slug(options.dataset, model_name, search, "/".join(paths[1][-length:]), seed)
        about = read_about(folder)
        if about is None or length == longest:
            break
        theirs = {key: _weights(about["identity"].get(key)) for key in own}
        if not compare(theirs, ours).changed:
            break
    return model_name, folder


def _weights(identity: Any) -> Any:
    """The models in the identity of a part: what tells a folder's run from that of another path."""
    if not isinstance(identity, Mapping):
        return None
    return {key: identity[key] for key in ("class", "model", "reference", "models") if key in identity}


def slug(dataset: str, model: str, search: SearchStrategy, reward: str | None, seed: int) -> str:
    """A folder's name: what was run, without characters that a shell or a file system minds."""
    parts: list[Any] = [dataset, model, repr(search), reward, f"seed{seed}"]
    text = "-".join(str(part) for part in parts if part)
    name = re.sub(r"[^A-Za-z0-9.=]+", "-", text).replace("-.", "").strip("-")
    return name if len(name) <= 180 else f"{name[:171]}-{digest(text)[:8]}"


def _accuracy(accuracy: float, standard_error: float, count: int) -> str:
    """An accuracy with its standard error; where all are right or all wrong, which has none, with Wilson's interval."""
    if accuracy not in (0.0, 1.0) or not count:
        return f"{100 * accuracy:.1f} ± {100 * standard_error:.1f} %"
    from scipy.stats import binomtest

    low, high = binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
    return f"{100 * accuracy:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def distinct_names(models: Sequence[str]) -> list[str]:
    """Names of models: the last part of each path, and as many before it as tell them apart."""
    parts = [Path(model).parts for model in models]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(models)):
            return names
    return list(models)


def show(run: Run, meter: EnergyMeter | None = None) -> None:
    """Prints one line for a run, and one for its joules, where they were measured."""
    count = sum(record["correct"] is not None for record in run.finished)
    graded = f"accuracy {_accuracy(run.accuracy, run.standard_error, count)}"
    if run.accuracy != run.accuracy:
        graded = "no gold answers"
    silent = sum(record["answer"] is None for record in run.finished)
    say(f"{graded}, {len(run.finished)} problems ({silent} without an answer)  {run.directory}")
    if meter is not None:
        costs = [result.cost for result in run.results()]
        total = sum(costs, Cost())
        policy, judge = total.generator_joules, total.reward_joules
        if costs and policy is not None and judge is not None:
            each = f"{policy / len(costs):.3g} + {judge / len(costs):.3g} J"
            say(f"{each} for a problem, policy + reward model ({meter.source})")
    for note in run.abstentions.notes:
        say(f"{run.directory}: {note}", err=True)
