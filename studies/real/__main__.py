r"""Command line of the study.

``train-policy`` makes the adapter of the policy, ``evaluate-policy`` measures the model without and with it::

    nice -n 19 python -m studies.real train-policy --data ../shared/data/problems --folder runs/real/policy
    nice -n 19 python -m studies.real evaluate-policy --data ../shared/data/problems --folder runs/real/greedy \
        --adapter runs/real/policy/adapter
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from .evaluation import greedy_table
from .policy import PolicyRecipe, train

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

Data = Annotated[Path, typer.Option(help="folder with gsm8k_train.jsonl, gsm8k_test.jsonl and svamp.json")]
Folder = Annotated[Path, typer.Option(help="where the work lies; what is there is gone on with")]
Threads = Annotated[int, typer.Option(help="CPU threads")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Minutes = Annotated[float, typer.Option(help="stop after so long; the same command goes on")]


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
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Measures greedy accuracy on SVAMP and GSM8K, without and with the adapter, and the paired difference."""
    torch.set_num_threads(threads)
    sizes = {"svamp": svamp, "gsm8k": gsm8k}
    for line in greedy_table(data, folder, adapter, sizes, max_new_tokens, device):
        _tell(line)


def _tell(line: str) -> None:
    typer.echo(line)


if __name__ == "__main__":
    app()
