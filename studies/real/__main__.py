r"""Command line of the study, in the order in which its commands are run.

::

    python -m studies.real train-policy --data ../shared/data/problems
    python -m studies.real evaluate-policy --data ../shared/data/problems --adapter studies/real/adapters/policy
    python -m studies.real sample-train --data ../shared/data/problems
    python -m studies.real train-judge --data ../shared/data/problems
    python -m studies.real search samples --data ../shared/data/problems
    python -m studies.real score-samples
    python -m studies.real search rebase-16 beam-16 --data ../shared/data/problems
    python -m studies.real pack
    python -m studies.real table
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from inferscale.base import Generator
from inferscale.evaluate import load_run
from inferscale.rewards import load_labelled
from studies.scaling.page import fill

from .evaluation import greedy_table
from .judge import (
    ROLLOUTS,
    JudgeRecipe,
    balanced,
    learn,
    load_judge,
    outcome_labels,
    roll_out,
    sample_solutions,
    split,
    training_problems,
    with_rollouts,
)
from .judge import TEMPERATURE as LABELS_TEMPERATURE
from .judging import chosen_by_model
from .plots import plot_all
from .policy import PolicyRecipe, load_policy, train
from .report import all_claims, all_tables
from .searches import (
    RECORDS,
    RUNS,
    SAMPLES,
    TEMPERATURE,
    pack_all,
    policy_generator,
    problems_of,
    recorded,
    run_search,
    score_run,
    unpack,
)
from .thinking import RECIPE, thinking_generator
from .thinking import train_thoughts as learn_thoughts

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

ADAPTERS = Path(__file__).with_name("adapters")
Data = Annotated[Path, typer.Option(help="folder with gsm8k_train.jsonl, gsm8k_test.jsonl and svamp.json")]
Folder = Annotated[Path, typer.Option(help="where the work lies; what is there is gone on with")]
Policy = Annotated[Path, typer.Option(help="the policy's adapter")]
Judge = Annotated[Path, typer.Option(help="the process reward model's adapter")]
Threads = Annotated[int, typer.Option(help="CPU threads")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Precision = Annotated[str, typer.Option(help="of the weights: bfloat16 or float32")]
Minutes = Annotated[float, typer.Option(help="stop after so long; the same command goes on")]


@contextmanager
def within(minutes: float) -> Iterator[None]:
    """Breaks off what has not ended in time, as Ctrl-C does; records and checkpoints keep what was done."""
    # a command that was put into the background ignores Ctrl-C, and with it the timer
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(60 * minutes, _thread.interrupt_main)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        _tell("stopped: the same command goes on")
        raise typer.Exit(3) from None
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


@app.command()
def train_policy(
    data: Data,
    folder: Folder = Path("runs/real/policy"),
    problems: Annotated[int, typer.Option(help="worked training problems")] = 1500,
    epochs: Annotated[int, typer.Option(help="passes over them")] = 2,
    first_layer: Annotated[int, typer.Option(help="layers below keep their weights, and cost no backward pass")] = 10,
    seed: Annotated[int, typer.Option(help="of the problems, their order and the adapter's first weights")] = 0,
    every: Annotated[int, typer.Option(help="steps between checkpoints")] = 10,
    minutes: Minutes = 55,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Trains a LoRA of SmolLM2 on GSM8K's training problems, worked in short numbered steps."""
    torch.set_num_threads(threads)
    recipe = PolicyRecipe(problems=problems, epochs=epochs, first_layer=first_layer, seed=seed)
    train(recipe, data / "gsm8k_train.jsonl", folder, every=every, minutes=minutes, device=device, tell=_tell)


@app.command()
def evaluate_policy(
    data: Data,
    folder: Folder = Path("runs/real/greedy"),
    adapter: Annotated[Path | None, typer.Option(help="the adapter; without it the model alone is measured")] = None,
    svamp: Annotated[int, typer.Option(help="problems of SVAMP")] = 200,
    gsm8k: Annotated[int, typer.Option(help="test problems of GSM8K")] = 200,
    max_new_tokens: Annotated[int, typer.Option(help="longest solution; longer ones are cut, and abstain")] = 200,
    minutes: Minutes = 55,
    precision: Precision = "bfloat16",
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Measures greedy accuracy on SVAMP and GSM8K, without and with the adapter, and the paired difference."""
    torch.set_num_threads(threads)
    sizes = {"svamp": svamp, "gsm8k": gsm8k}
    with within(minutes):
        for line in greedy_table(data, folder, adapter, sizes, max_new_tokens, device, precision):
            _tell(line)


@app.command()
def sample_train(
    data: Data,
    folder: Folder = Path("runs/real/labels"),
    policy: Policy = ADAPTERS / "policy",
    problems: Annotated[int, typer.Option(help="problems that the policy has not seen, a third of GSM8K's")] = 450,
    samples: Annotated[int, typer.Option(help="solutions of each")] = 8,
    rolled_out: Annotated[
        int, typer.Option(help="problems whose steps are labelled by roll-outs, half of them held out")
    ] = 24,
    minutes: Minutes = 55,
    precision: Precision = "bfloat16",
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Samples solutions of training problems, and labels their steps by outcomes and, in part, by roll-outs."""
    torch.set_num_threads(threads)
    with within(minutes):
        generator = policy_generator(policy, device, precision, temperature=LABELS_TEMPERATURE)
        given = training_problems(data, generator.tokenizer, problems)
        run = sample_solutions(given, samples, generator, folder / "samples")
        solutions = [item for own in outcome_labels(run) for item in own]
        right = sum(bool(item.correct) for item in solutions)
        _tell(f"{len(solutions)} solutions of {problems} problems, {right / len(solutions):.1%} right")
        to_learn, held_out = split(range(problems))
        places = [*to_learn[: rolled_out // 2], *held_out[: rolled_out - rolled_out // 2]]
        rolled = roll_out(run, places, generator, folder / "rollouts", _tell)
        _tell(f"{len(rolled)} solutions labelled by {ROLLOUTS} roll-outs after every step")


@app.command()
def train_judge(
    folder: Folder = Path("runs/real/labels"),
    output: Annotated[Path, typer.Option(help="where the adapter goes")] = Path("runs/real/judge"),
    policy: Policy = ADAPTERS / "policy",
    epochs: Annotated[int, typer.Option(help="passes over the labels")] = 1,
    minutes: Minutes = 55,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Trains the process reward model on what sample-train labelled, and measures it on held-out problems."""
    torch.set_num_threads(threads)
    recipe = JudgeRecipe()
    recipe = replace(recipe, training=replace(recipe.training, epochs=epochs))
    with within(minutes):
        labelled = outcome_labels(load_run(folder / "samples"))
        rolled = [item for path in sorted((folder / "rollouts").glob("*.jsonl")) for item in load_labelled(path)]
        to_learn, held_out = split(labelled)
        known = [item for own in with_rollouts(to_learn, rolled) for item in own]
        solutions = balanced(known, recipe.wrong_share, recipe.training.seed)
        of_held_out = {item.problem.prompt for own in held_out for item in own}
        judge, found = learn(
            recipe,
            *load_policy(policy, device),
            solutions,
            balanced([item for own in held_out for item in own], 3.0, recipe.training.seed),
            [item for item in rolled if item.problem.prompt in of_held_out],
            output,
            _tell,
        )
        _tell(f"wrote {judge}; {found}")


@app.command()
def search(
    names: Annotated[list[str], typer.Argument(help=f"which runs: {', '.join(RUNS)}")],
    data: Data,
    folder: Folder = Path("runs/real/searches"),
    policy: Policy = ADAPTERS / "policy",
    judge: Judge = ADAPTERS / "judge",
    thoughts: Annotated[Path, typer.Option(help="the policy's thoughts")] = Path("runs/real/thoughts"),
    svamp: Annotated[int, typer.Option(help="problems of SVAMP")] = 200,
    gsm8k: Annotated[int, typer.Option(help="test problems of GSM8K")] = 100,
    minutes: Minutes = 55,
    precision: Precision = "bfloat16",
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Runs searches over the problems; independent samples are not scored (score-samples does that)."""
    torch.set_num_threads(threads)
    if unknown := set(names) - set(RUNS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: choose among {', '.join(RUNS)}")
    with within(minutes):
        scorer = (
            load_judge(judge, policy, device, precision)
            if any(RUNS[name].strategy.needs_scores for name in names)
            else None
        )
        for name in names:
            length = RUNS[name].max_new_tokens
            generator: Generator
            if RUNS[name].thinks:
                generator = thinking_generator(
                    thoughts, policy, device, precision, temperature=TEMPERATURE, max_new_tokens=length
                )
            else:
                generator = policy_generator(policy, device, precision, length)
            for dataset, count in (("svamp", svamp), ("gsm8k", gsm8k)):
                if not count:
                    continue
                problems = problems_of(dataset, data, count)
                reward = scorer if RUNS[name].strategy.needs_scores else None
                run = run_search(name, dataset, problems, folder, generator, reward)
                _tell(f"{name}, {dataset}: {100 * run.accuracy:.1f} ± {100 * run.standard_error:.1f} % by majority")


@app.command()
def train_thoughts(
    data: Data,
    folder: Folder = Path("runs/real/thoughts"),
    policy: Policy = ADAPTERS / "policy",
    steps: Annotated[int, typer.Option(help="of training")] = 200,
    batch_size: Annotated[int, typer.Option(help="worked problems of a step")] = 4,
    minutes: Minutes = 55,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Teaches the policy to think before every token of a solution (Quiet-STaR)."""
    torch.set_num_threads(threads)
    with within(minutes):
        learn_thoughts(replace(RECIPE, steps=steps), data, policy, folder, batch_size, device, _tell)


@app.command()
def score_samples(
    folder: Folder = Path("runs/real/searches"),
    policy: Policy = ADAPTERS / "policy",
    judge: Judge = ADAPTERS / "judge",
    minutes: Minutes = 55,
    precision: Precision = "bfloat16",
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Scores the samples by the process reward model."""
    torch.set_num_threads(threads)
    with within(minutes):
        scorer = load_judge(judge, policy, device, precision)
        for name, run in recorded(folder, [SAMPLES]):
            score_run(run, scorer, folder / f"{name}.scored.jsonl")
            _tell(f"{name}: scored")


@app.command()
def ask_model(
    problems: Annotated[int, typer.Option(help="problems of SVAMP with right and wrong samples")] = 60,
    pairs: Annotated[int, typer.Option(help="pairs of each")] = 4,
    candidates: Annotated[int, typer.Option(help="solutions that are shown side by side")] = 4,
    minutes: Minutes = 55,
    precision: Precision = "bfloat16",
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Asks the model as it is which of the policy's recorded samples are right: by pairs, and side by side."""
    torch.set_num_threads(threads)
    with within(minutes):
        generator = policy_generator(None, device, precision)
        samples = unpack(RECORDS)[f"{SAMPLES}-svamp"]
        for line in chosen_by_model(samples, generator, problems, pairs, candidates):
            _tell(line)


@app.command()
def pack(
    folder: Folder = Path("runs/real/searches"),
    greedy: Annotated[Path, typer.Option(help="the folder of evaluate-policy")] = Path("runs/real/greedy"),
) -> None:
    """Writes the records of all searches into one small file, which is kept with the code."""
    _tell(f"{pack_all(folder, greedy, RECORDS)} searches in {RECORDS}")


@app.command()
def table() -> None:
    """Prints the tables and claims of the page from the records; no model is run."""
    runs = unpack(RECORDS)
    for line in (*all_tables(runs), *all_claims(runs)):
        _tell(line)


@app.command()
def pages(
    page: Annotated[Path, typer.Option(help="the page whose tables are written anew")] = Path(
        "docs/project/real_model.md"
    ),
    images: Annotated[Path, typer.Option(help="where pictures go")] = Path("docs/images"),
) -> None:
    """Writes tables, claims and pictures of the page from the records; no model is run."""
    runs = unpack(RECORDS)
    fill(page, {"tables": all_tables(runs), "claims": all_claims(runs)})
    plot_all(runs, images)


def _tell(line: str) -> None:
    typer.echo(line)


if __name__ == "__main__":
    app()
