"""Trains a process reward model: ``python -m inferscale.rewards.train MODEL DATA --output FOLDER``.

DATA is a file of `inferscale.rewards.write_labelled`: one JSON object a line with ``problem``, ``steps`` and
``labels`` (1 right, 0 wrong, between for shares of roll-outs, null for not judged).
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="a language model or token classifier: a folder or a hub id")],
    data: Annotated[list[Path], typer.Argument(help="files of labelled solutions")],
    output: Annotated[Path, typer.Option(help="where the trained model goes")],
    separator: Annotated[str, typer.Option(help="text that ends every step")] = "\n",
    epochs: Annotated[int, typer.Option(help="passes over the data")] = 1,
    batch_size: Annotated[int, typer.Option(help="solutions for each update")] = 16,
    learning_rate: Annotated[float, typer.Option(help="highest rate of AdamW")] = 1e-5,
    max_tokens: Annotated[int, typer.Option(help="longer solutions are cut")] = 2048,
    lora_rank: Annotated[int, typer.Option(help="rank of LoRA adapters (needs peft); 0 trains all weights")] = 0,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.99, help="share of the problems that is measured on, not trained on")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="of the head, the order and the held-out problems")] = 0,
    device: Annotated[str, typer.Option(help="where to run")] = "cpu",
    every: Annotated[int, typer.Option(min=1, help="updates between reports")] = 20,
) -> None:
    """Trains a token classifier at step ends, measures it on held-out problems, and writes it."""
    from .diagnosis import diagnose
    from .huggingface import HFProcessRewardModel
    from .labels import read_labelled
    from .trainable import load_for_training
    from .training import TrainingRecipe, train_process_reward_model

    solutions = [item for path in data for item in read_labelled(path)]
    prompts = sorted({item.problem.prompt for item in solutions})
    random.Random(seed).shuffle(prompts)
    kept = set(prompts[int(held_out * len(prompts)) :])
    recipe = TrainingRecipe(
        separator=separator,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_tokens=max_tokens,
        lora_rank=lora_rank,
        seed=seed,
    )
    classifier, tokenizer = load_for_training(model, seed=seed)
    taught = [item for item in solutions if item.problem.prompt in kept]
    measured = [item for item in solutions if item.problem.prompt not in kept]
    _say(f"{len(taught)} solutions to train on, {len(measured)} held out")

    def report(number: int, total: int, loss: float) -> None:
        if number % every == 0 or number == total:
            _say(f"update {number} of {total}  loss {loss:.4f}")

    trained = train_process_reward_model(classifier.to(device), tokenizer, taught, recipe, report)
    trained.save_pretrained(output)
    tokenizer.save_pretrained(output)
    _say(f"wrote {output}")
    if measured:
        found = diagnose(HFProcessRewardModel.from_pretrained(output, device=device, check=False), measured)
        _say(
            f"held out: same-step first-error AUC {found.first_error_auc}, "
            f"calibration error {found.calibration_error}, Brier {found.brier}"
        )


if __name__ == "__main__":
    app()
