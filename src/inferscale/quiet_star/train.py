"""Training thoughts, from Python or from the command line.

python -m inferscale.quiet_star.train policy-s --folder runs/thoughts --steps 200
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .data import read_texts, span_batches, task_batches
from .loop import StepReport, batch_loss, term_norms, train
from .losses import PUBLISHED_OBJECTIVE, Objective
from .model import QuietSTaR
from .recipe import Batch, Recipe
from .run import Run, load_checkpoint, param_groups, save_checkpoint, start

__all__ = [
    "PUBLISHED_OBJECTIVE",
    "Batch",
    "Objective",
    "Recipe",
    "Run",
    "StepReport",
    "batch_loss",
    "drive",
    "load_checkpoint",
    "param_groups",
    "save_checkpoint",
    "start",
    "term_norms",
    "train",
]

_CHECKPOINT = "checkpoint.pt"
_LOG = "steps.jsonl"


def drive(
    run: Run,
    batch_of: Callable[[int], Batch],
    folder: Path,
    report: Callable[[str], None],
    checkpoint_every: int = 50,
) -> None:
    """Trains to the end of the recipe: a line for every step, checkpoints on the way, the model at the end.

    A run whose folder holds a checkpoint goes on from there; the log forgets the steps after it, which come again.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every}: give a positive number of steps")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / _CHECKPOINT).is_file():
        load_checkpoint(run, folder / _CHECKPOINT)
        report(f"going on from step {run.step}")
    _shorten(folder / _LOG, run.step)
    for found in train(run, batch_of):
        with (folder / _LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(found)) + "\n")
        report(
            f"step {found.step}/{run.recipe.steps} plain {found.base:.4f} thinking {found.talk:.4f} "
            f"reward {found.reward:.4f} w {found.mixing_weight:.3f} {found.seconds:.1f} s"
        )
        if found.step % checkpoint_every == 0 or found.step == run.recipe.steps:
            save_checkpoint(run, folder / _CHECKPOINT)
    run.quiet.save_pretrained(folder, merge=not run.recipe.freeze_base)


def _shorten(log: Path, steps: int) -> None:
    """Keeps the lines of the first steps alone."""
    if log.is_file():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        log.write_text("".join(lines[:steps]), encoding="utf-8")


def main(
    model: Annotated[str, typer.Argument(help="An embedded policy, a model folder, or a hub id.")],
    folder: Annotated[Path, typer.Option(help="Where to write checkpoints and the result.")],
    data: Annotated[Path | None, typer.Option(help="Texts (.jsonl or plain); by default the embedded task.")] = None,
    steps: Annotated[int, typer.Option(help="Steps to take.")] = 100,
    thought_length: Annotated[int, typer.Option(help="Sampled tokens of a thought.")] = 9,
    talk_length: Annotated[int, typer.Option(help="Look-ahead tokens after a thought.")] = 4,
    num_thoughts: Annotated[int, typer.Option(help="Thoughts for each position.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.")] = 4,
    span: Annotated[int, typer.Option(help="Tokens of a text taken from a file.")] = 256,
    accumulation: Annotated[int, typer.Option(help="Batches of a step.")] = 2,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the base.")] = 1e-6,
    head_lr_scale: Annotated[float, typer.Option(help="Times the rate, for the mixing head.")] = 1.0,
    embedding_lr_scale: Annotated[float, typer.Option(help="Times the rate, for start and end.")] = 100.0,
    policy_weight: Annotated[float, typer.Option(help="Weight of REINFORCE (published: 1e6).")] = 1.0,
    reinforce_temperature: Annotated[float, typer.Option(help="Divides the logits in REINFORCE.")] = 3.0,
    freeze_base: Annotated[bool, typer.Option(help="Train head, start and end alone.")] = False,
    bfloat16: Annotated[bool, typer.Option(help="Run in half precision; weights stay in float32.")] = False,
    seed: Annotated[int, typer.Option(help="Any integer.")] = 0,
) -> None:
    """Teaches a model to think before every token."""
    objective = Objective(
        talk_length, num_thoughts, reinforce_temperature=reinforce_temperature, policy_weight=policy_weight
    )
    recipe = Recipe(
        objective,
        lr=lr,
        head_lr_scale=head_lr_scale,
        embedding_lr_scale=embedding_lr_scale,
        steps=steps,
        accumulation=accumulation,
        freeze_base=freeze_base,
        precision="bfloat16" if bfloat16 else "float32",
        seed=seed,
    )
    base, tokenizer = _load(model)
    quiet = QuietSTaR(base, thought_length, start_token_id=_first_id(tokenizer), forbidden_ids=_reserved(tokenizer))
    if data is None:
        batch_of = task_batches(batch_size, talk_length, seed)
    else:
        batch_of = span_batches(read_texts(data), tokenizer, batch_size, span, seed)
    drive(start(quiet, recipe), batch_of, folder, typer.echo)
    tokenizer.save_pretrained(folder)


def _load(name: str) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer."""
    from transformers import AutoModelForCausalLM

    from inferscale import zoo
    from inferscale.generators.loading import load_model, load_tokenizer

    source = zoo.path(name) if name in {card.name for card in zoo.list()} else name
    base = load_model(source, AutoModelForCausalLM, dtype=torch.float32)
    return base, load_tokenizer(None, source)


def _first_id(tokenizer: Any) -> int:
    """The first token of ``"---"``, from which start and end begin (published)."""
    first: int = tokenizer("---", add_special_tokens=False)["input_ids"][0]
    return first


def _reserved(tokenizer: Any) -> list[int]:
    """Ids of special tokens other than the ends of sequence: nobody should think or say them."""
    ends = {tokenizer.eos_token_id}
    return [i for i in tokenizer.all_special_ids if i not in ends]


if __name__ == "__main__":
    typer.run(main)
