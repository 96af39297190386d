"""Training a process reward model: a token classifier, taught at the ends of labelled steps.

From Python, or by ``python -m inferscale.rewards.training MODEL DATA --output FOLDER``, where DATA is a file of
`inferscale.rewards.save_labelled`: one JSON object a line with ``problem``, ``steps`` and ``labels`` (1 right, 0
wrong, between for shares of roll-outs, null for not judged).
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor
from torch.nn import functional

from inferscale.runtime.loading import (
    CheckpointError,
    check_load_options,
    check_vocabulary,
    load_tokenizer,
    load_weights,
    located,
    require_path,
)

from .formats import separated_by
from .labels import LabelledSolution, load_labelled
from .scorer import StepEncoder, padded


def load_for_training(
    path_or_id: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    seed: int = 0,
    gguf_file: str | None = None,
    **load_options: Any,
) -> tuple[Any, Any]:
    """A token classifier with two labels on a language model's weights, and its tokenizer.

    A model that has such a head already goes on with it; else the head starts at random, and nothing but the head may.

    Args:
        path_or_id: A local folder or GGUF file, or a hub id.
        tokenizer: Another folder or hub id, or a tokenizer; by default the one beside the model.
        seed: Of the head's first weights.
        gguf_file: Which GGUF file of the folder or repository.
        load_options: Passed on to ``from_pretrained``.

    Raises:
        TypeError: If an object is given in place of a folder or hub id, or nobody knows an option.
        CheckpointError: If other weights than the head's are missing.
    """
    from transformers import AutoModelForTokenClassification

    require_path(path_or_id)
    with located(path_or_id, gguf_file) as place, torch.random.fork_rng(devices=[]):
        check_load_options(place, load_options, load_for_training)
        torch.manual_seed(seed)
        loaded, info = load_weights(
            place, AutoModelForTokenClassification, num_labels=2, dtype="float32", **load_options
        )
    foreign = sorted(key for key in info["missing_keys"] if not key.startswith(("score.", "classifier.")))
    if foreign:
        raise CheckpointError(f"{os.fspath(path_or_id)!r} lacks weights beside the head: {', '.join(foreign[:5])}")
    named = gguf_file if tokenizer is None else None
    tokenizer = load_tokenizer(tokenizer, path_or_id, gguf_file=named)
    check_vocabulary(loaded, tokenizer)
    return loaded, tokenizer


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    r"""Options of `train_process_reward_model`.

    Attributes:
        separator: Text that ends every step; the score stands at its last token.
        epochs: Passes over the data.
        batch_size: Solutions for each update.
        learning_rate: Highest rate of AdamW, reached after `warmup` and decayed linearly to 0.
        warmup: Share of the updates in which the rate grows.
        weight_decay: Of matrices.
        clip: Largest norm of the gradient.
        max_tokens: Longer solutions are cut; steps beyond are not taught.
        lora_rank: Rank of LoRA adapters in all linear layers (needs peft); 0 trains all weights that require a
            gradient: those of adapters alone in a model that peft has made.
        precision: Of the products: ``"float32"``, or ``"bfloat16"`` by autocast (the weights stay as they are).
        seed: Of the head's first weights and of the order.

    Raises:
        ValueError: If a number is out of range, or `precision` unknown.

    Example:
        >>> from inferscale.rewards import TrainingRecipe
        >>> recipe = TrainingRecipe(learning_rate=1e-4, lora_rank=16)  # adapters, for a model of billions of weights
        >>> TrainingRecipe(precision="float16")
        Traceback (most recent call last):
            ...
        ValueError: precision='float16': choose "float32" or "bfloat16"
    """

    separator: str = "\n"
    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-5
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    max_tokens: int = 2048
    lora_rank: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot train."""
        for name in ("epochs", "batch_size", "learning_rate", "clip", "max_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")
        if self.lora_rank < 0 or not 0 <= self.warmup < 1:
            raise ValueError(f"lora_rank={self.lora_rank}, warmup={self.warmup}: a rank is 0 or more, a share below 1")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'precision={self.precision!r}: choose "float32" or "bfloat16"')


@dataclass(frozen=True, slots=True)
class Example:
    """A solution as ids with labels.

    Attributes:
        ids: Prompt and steps.
        marks: Places of labelled step ends in `ids`.
        labels: For each mark the probability that the solution is right so far.
    """

    ids: tuple[int, ...]
    marks: tuple[int, ...]
    labels: tuple[float, ...]


def make_example(item: LabelledSolution, encoder: StepEncoder, max_tokens: int) -> Example:
    """The ids that will be scored, and the labels of judged steps within `max_tokens`."""
    shared, pieces = encoder.encode(item.node())
    ids, marks, labels = list(shared), [], []
    for piece, label in zip(pieces, item.labels, strict=True):
        if len(ids) + len(piece) > max_tokens:
            break
        ids += piece
        if label is not None:
            marks.append(len(ids) - 1)
            labels.append(label)
    return Example(tuple(ids), tuple(marks), tuple(labels))


def train_process_reward_model(
    model: Any,
    tokenizer: Any,
    solutions: Sequence[LabelledSolution],
    recipe: TrainingRecipe | None = None,
    report: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int = 20,
) -> Any:
    r"""Train a process reward model at the ends of labelled steps; return it in evaluation mode.

    `HFProcessRewardModel` takes it, and ``HFProcessRewardModel.from_pretrained`` loads it once it has been saved.

    The loss is binary cross-entropy between the label and the probability of class 1, at the last token of every
    judged step (Lightman et al. 2023, arXiv:2305.20050, §2.6, with soft labels allowed).

    Args:
        model: A token classifier with two labels; it is changed.
        tokenizer: Its tokenizer.
        solutions: Labelled solutions.
        recipe: Options.
        report: Called after each update with its number, the number of updates and the loss in nats.
        checkpoint: A file that holds the state of the training, made if it is not there: the same call again goes on
            from it, to the weights of a training without a break.
        save_every: Updates between two checkpoints.

    Raises:
        ValueError: If the model has not two labels, no step is judged, or the checkpoint is of another training.
        RuntimeError: If the loss is no number any more.
        ModuleNotFoundError: If LoRA is asked for and peft is not installed.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.rewards import LabelledSolution, TrainingRecipe, train_process_reward_model
        >>> from inferscale.rewards.training import load_for_training
        >>> problem = isc.Problem("2 + 3")
        >>> right = LabelledSolution(problem, ("2 + 3 = 5",), (1.0,))
        >>> wrong = LabelledSolution(problem, ("2 + 3 = 6",), (0.0,))
        >>> model, tokenizer = load_for_training(isc.zoo.path("policy-xs"))
        >>> recipe = TrainingRecipe(epochs=8, batch_size=2, learning_rate=2e-3)
        >>> model = train_process_reward_model(model, tokenizer, [right, wrong], recipe)
        >>> reward = isc.HFProcessRewardModel(model, tokenizer, format="trl")
        >>> high, low = reward.score([right.node(), wrong.node()])
        >>> high > low
        True
    """
    recipe = recipe or TrainingRecipe()
    if getattr(model, "num_labels", None) != 2:
        raise ValueError(f"{type(model).__name__} has {getattr(model, 'num_labels', None)} labels: it must have two")
    encoder = separated_by(recipe.separator).layout.encoder(tokenizer)
    examples = [make_example(item, encoder, recipe.max_tokens) for item in solutions]
    examples = [example for example in examples if example.marks]
    if not examples:
        raise ValueError("no judged step to train on: labels are all None, or max_tokens is too small")
    trained = _with_lora(model, recipe.lora_rank) if recipe.lora_rank else model
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    # biases and norms are vectors, and are not decayed
    decayed, others = ([w for w in weights if (w.dim() > 1) is wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )
    total = recipe.epochs * math.ceil(len(examples) / recipe.batch_size)
    warm = max(1, int(recipe.warmup * total))
    # linear up to 1 at update `warm`, then linear down, to reach 0 after the last update
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (total - step) / max(1, total - warm + 1))
    )
    order, number = random.Random(recipe.seed), 0
    trained.train()
    device = trained.device
    state = (
        None if checkpoint is None else _Checkpoint(Path(checkpoint), recipe, examples, weights, optimizer, schedule)
    )
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):  # dropout
        torch.manual_seed(recipe.seed)
        done = 0 if state is None else state.restore()
        for _ in range(recipe.epochs):
            shuffled = list(examples)
            order.shuffle(shuffled)
            for start in range(0, len(shuffled), recipe.batch_size):
                number += 1
                if number <= done:
                    continue
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                    loss = step_loss(trained, shuffled[start : start + recipe.batch_size])
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise RuntimeError(
                        f"update {number}: the loss is {value}: lower learning_rate, or train in float32"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
                optimizer.step()
                schedule.step()
                if state is not None and (number % save_every == 0 or number == total):
                    state.save(number)
                report(number, total, value)
    finished = trained.merge_and_unload() if recipe.lora_rank else trained
    finished.config.step_separator = recipe.separator  # `from_pretrained` tells the format by it
    return finished.eval()


@dataclass(frozen=True)
class _Checkpoint:
    """A file with the state of a training: weights that are trained, optimiser, schedule and random numbers."""

    path: Path
    recipe: TrainingRecipe
    examples: Sequence[Example]
    weights: Sequence[Tensor]
    optimizer: Any
    schedule: Any

    def save(self, number: int) -> None:
        """Writes the state after an update; a kill leaves this one or the one before."""
        content = {
            "training": self._training(),
            "number": number,
            "weights": [weight.detach().cpu() for weight in self.weights],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.weights[0].device) if self.weights[0].is_cuda else None,
        }
        temporary = self.path.with_name(self.path.name + ".tmp")
        torch.save(content, temporary)
        os.replace(temporary, self.path)

    def restore(self) -> int:
        """Puts the saved state in place; the number of updates that it has seen, or 0."""
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        if saved["training"] != self._training():
            raise ValueError(f"{self.path} is the checkpoint of a training with another recipe or other solutions: "
                             "give another file, or delete it")  # fmt: skip
        with torch.no_grad():
            for weight, value in zip(self.weights, saved["weights"], strict=True):
                weight.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["random"])
        if saved["random_cuda"] is not None:
            torch.cuda.set_rng_state(saved["random_cuda"], self.weights[0].device)
        return int(saved["number"])

    def _training(self) -> dict[str, str]:
        """A name for everything that the weights depend on."""
        told = repr((self.recipe, self.examples)).encode()
        shapes = repr([tuple(weight.shape) for weight in self.weights])
        return {"data": hashlib.sha256(told).hexdigest(), "shapes": shapes}


def step_loss(model: Any, batch: Sequence[Example]) -> Tensor:
    """Mean binary cross-entropy in nats over all judged steps of a batch."""
    ids, mask = padded([example.ids for example in batch], 0, model.device)
    logits = model(input_ids=ids, attention_mask=mask).logits.float()  # [rows, positions, 2]
    rows = [row for row, example in enumerate(batch) for _ in example.marks]
    columns = [mark for example in batch for mark in example.marks]
    labels = torch.tensor([label for example in batch for label in example.labels], device=logits.device)
    outputs = logits[rows, columns]  # [marks, 2]
    # P(class 1) of a softmax over two outputs is the sigmoid of their difference: the cross-entropy with a soft label y
    # is -y log p - (1 - y) log(1 - p)
    return functional.binary_cross_entropy_with_logits(outputs[:, 1] - outputs[:, 0], labels)


def _with_lora(model: Any, rank: int) -> Any:
    """The model with LoRA adapters of this rank in all linear layers; they and the head are trained."""
    try:
        from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "lora_rank needs peft: pip install peft, or lora_rank=0 to train all weights"
        ) from error
    config = LoraConfig(
        task_type="TOKEN_CLS",
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        modules_to_save=["score"],
    )
    return get_peft_model(model, config)


app = typer.Typer(add_completion=False)


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
    precision: Annotated[str, typer.Option(help="of the products: float32 or bfloat16 (autocast)")] = "float32",
    checkpoint: Annotated[
        Path | None, typer.Option(help="file to go on from: a broken-off training is resumed")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the head, the order and the held-out problems")] = 0,
    device: Annotated[str, typer.Option(help="where to run")] = "cpu",
    every: Annotated[int, typer.Option(min=1, help="updates between reports")] = 20,
) -> None:
    """Trains a token classifier at step ends, measures it on held-out problems, and writes it."""
    from .calibration import diagnose
    from .huggingface import HFProcessRewardModel

    solutions = [item for path in data for item in load_labelled(path)]
    prompts = sorted({item.problem.stream for item in solutions})
    random.Random(seed).shuffle(prompts)
    kept = set(prompts[int(held_out * len(prompts)) :])
    recipe = TrainingRecipe(
        separator=separator,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_tokens=max_tokens,
        lora_rank=lora_rank,
        precision=precision,  # type: ignore[arg-type]
        seed=seed,
    )
    classifier, tokenizer = load_for_training(model, seed=seed)
    taught = [item for item in solutions if item.problem.stream in kept]
    measured = [item for item in solutions if item.problem.stream not in kept]
    typer.echo(f"{len(taught)} solutions to train on, {len(measured)} held out")

    def report(number: int, total: int, loss: float) -> None:
        if number % every == 0 or number == total:
            typer.echo(f"update {number} of {total}  loss {loss:.4f}")

    trained = train_process_reward_model(
        classifier.to(device), tokenizer, taught, recipe, report, checkpoint=checkpoint
    )
    trained.save_pretrained(output)
    tokenizer.save_pretrained(output)
    typer.echo(f"wrote {output}")
    if measured:
        found = diagnose(HFProcessRewardModel.from_pretrained(output, device=device, check=False), measured)
        typer.echo(
            f"held out: same-step first-error AUC {found.first_error_auc}, "
            f"calibration error {found.calibration_error}, Brier {found.brier}"
        )


if __name__ == "__main__":
    app()
