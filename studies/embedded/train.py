r"""Trains the embedded models: ``python -m studies.embedded.train policy-s --folder runs/policy-s``.

A run reports its loss, saves checkpoints, resumes from the last one, and at its end writes the model to
``FOLDER/NAME`` (16-bit weights, configuration, tokenizer, card), ready to be copied into the package. A process
reward model is branched from a policy, a checkpoint or (without ``--parent``) the embedded one::

    python -m studies.embedded.train policy-m --folder runs/policy-m
    python -m studies.embedded.rollouts runs/policy-m/step-003000.pt policy-m --output runs/rollouts-m.jsonl
    python -m studies.embedded.train prm-s --folder runs/prm-s --parent runs/policy-m/step-003000.pt \
        --rollouts runs/rollouts-m.jsonl --rollouts runs/rollouts-s.jsonl
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .loop import JudgeRecipe, Recipe, Run

WATCHED = 2000  # rollouts that the process reward model is watched on instead of trained on

app = typer.Typer(add_completion=False, help="Train the embedded models; every run resumes from its last checkpoint.")


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="policy-xs, policy-s, policy-m, prm-xs or prm-s")],
    folder: Annotated[Path, typer.Option(help="where checkpoints go; a run that is there is resumed")],
    steps: Annotated[int | None, typer.Option(help="steps in all, instead of the recipe's")] = None,
    decay_steps: Annotated[int | None, typer.Option(help="steps of the last decay, instead of the recipe's")] = None,
    start_from: Annotated[Path | None, typer.Option(help="checkpoint to go on from, instead of the last one")] = None,
    parent: Annotated[
        Path | None, typer.Option(help="of a judge: checkpoint of its policy, else the embedded one")
    ] = None,
    rollouts: Annotated[list[Path] | None, typer.Option(help="of a judge: files of rollouts, can be repeated")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="steps between checkpoints")] = 500,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
) -> None:
    """Trains a model to the end of its recipe and exports it."""
    import torch

    from .loop import JUDGES, POLICIES

    torch.set_num_threads(threads)
    if name in POLICIES:
        _train_policy(name, _scheduled(POLICIES[name], steps, decay_steps), folder, start_from, checkpoint_every)
    elif name in JUDGES and rollouts:
        judge = JUDGES[name]
        judge = replace(judge, recipe=_scheduled(judge.recipe, steps, decay_steps))
        _train_judge(name, judge, folder, start_from, parent, rollouts, checkpoint_every)
    elif name in JUDGES:
        raise typer.BadParameter(
            f"{name} learns from solutions of the policies: make some with zoo.rollouts, pass --rollouts FILE"
        )
    else:
        raise typer.BadParameter(f"{name!r}: choose one of {', '.join([*POLICIES, *JUDGES])}")


def _scheduled(recipe: Recipe, steps: int | None, decay_steps: int | None) -> Recipe:
    return replace(
        recipe,
        steps=recipe.steps if steps is None else steps,
        decay_steps=recipe.decay_steps if decay_steps is None else decay_steps,
    )


def _train_policy(name: str, recipe: Recipe, folder: Path, start_from: Path | None, every: int) -> None:
    from studies.embedded import loop

    run = loop.start(recipe)
    _resume(run, folder, start_from)
    loop.drive(run, folder, loop.report, every)
    _export(run, folder / name, "policy", run.tokens)


def _train_judge(
    name: str,
    judge: JudgeRecipe,
    folder: Path,
    start_from: Path | None,
    parent: Path | None,
    files: list[Path],
    every: int,
) -> None:
    from studies.embedded import judge as judging
    from studies.embedded import loop

    from .judge import judge_monitor
    from .rollouts import read_rollouts

    policy = _parent(judge.parent, parent)
    run = judging.branch(judge, policy.model)
    _resume(run, folder, start_from)
    data = read_rollouts(files)
    random.Random(judge.recipe.seed).shuffle(data)
    watched, data = data[:WATCHED], data[WATCHED:]
    loop.report(f"branched from step {policy.step}; {len(data)} rollouts to train on, {len(watched)} to watch")
    loss_of, watch = judging.judge_loss(judge, data), judge_monitor(watched)
    loop.drive(run, folder, loop.report, every, loss_of=loss_of, on_checkpoint=watch)
    _export(run, folder / name, "process reward model", policy.tokens + run.tokens)


def _parent(name: str, checkpoint: Path | None) -> Run:
    """The run of the policy that a judge is branched from; of the embedded one only weights and tokens are known."""
    from inferscale.zoo.models import card, load
    from studies.embedded import loop

    from .loop import POLICIES

    policy = loop.start(POLICIES[name])
    if checkpoint is not None:
        loop.load_checkpoint(policy, checkpoint)
        return policy
    policy.model.load_state_dict(load(name)[0].state_dict())
    policy.step, policy.tokens = policy.recipe.steps, card(name).training_tokens
    return policy


def _resume(run: Run, folder: Path, start_from: Path | None) -> None:
    from studies.embedded import loop

    last = start_from or max(folder.glob("step-*.pt"), default=None)
    if last is not None:
        loop.load_checkpoint(run, last)
        loop.report(f"resumed at step {run.step} from {last}")


def _export(run: Run, folder: Path, kind: str, tokens: int) -> None:
    from inferscale.zoo.models import export

    command = " ".join(["python -m studies.embedded.train", *sys.argv[1:]])
    card = export(run.model, folder, kind=kind, training_tokens=tokens, command=command)
    print(f"wrote {card.parameters:,} parameters, {card.size_bytes:,} bytes, to {folder}", flush=True)


if __name__ == "__main__":
    app()
