"""The policy: a LoRA of SmolLM2 that solves word problems in short numbered steps, and how it is trained.

A batch is a function of seed and step, so a run that was stopped and gone on with equals one without a break.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from inferscale import zoo
from inferscale._compat import require
from inferscale.evaluate.datasets import Example, load_examples
from inferscale.runtime.prompts import PromptFormat

MODEL = "smollm2-135m-instruct"
PUBLISHED = "HuggingFaceTB/SmolLM2-135M-Instruct"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True)
class PolicyRecipe:
    """Everything that the adapter depends on.

    Attributes:
        problems: Worked training problems.
        epochs: Passes over them.
        held_out: Further rows, on which the loss is watched.
        longest: Rows with more tokens (prompt and solution) are not used.
        steps_within: Fewest and most lines of a solution, without the line of the answer.
        batch_size: Rows of a step.
        rank: Of the adapter (Hu et al. 2021, arXiv:2106.09685); its scale is 2.
        first_layer: First layer with an adapter.
        lr: Peak learning rate of AdamW.
        warmup_steps: First steps that raise it; it then falls to 0 in a straight line.
        precision: Of the products: ``"bfloat16"`` (autocast; weights stay float32) or ``"float32"``.
        seed: Of the problems, their order and the adapter's first weights.
    """

    problems: int = 1500
    epochs: int = 2
    held_out: int = 32
    longest: int = 220
    steps_within: tuple[int, int] = (2, 6)
    batch_size: int = 8
    rank: int = 16
    first_layer: int = 10
    lr: float = 5e-4
    warmup_steps: int = 20
    precision: str = "bfloat16"
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.epochs * (self.problems // self.batch_size)

    def lr_factor(self, step: int) -> float:
        """Learning rate of a step as a share of its peak."""
        return min((step + 1) / self.warmup_steps, (self.steps - step) / max(1, self.steps - self.warmup_steps), 1.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One worked problem as ids.

    Attributes:
        prompt: The chat up to where the assistant begins, as `HFGenerator` renders it.
        reply: The solution with the end of the turn.
    """

    prompt: tuple[int, ...]
    reply: tuple[int, ...]

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.prompt) + len(self.reply)


def worked(example: Example) -> str:
    """The solution as the policy is to write it: numbered lines, and a last one with the answer."""
    lines = [line.strip() for line in example.solution.splitlines() if line.strip()]
    return "\n".join([*(f"{n}. {line}" for n, line in enumerate(lines, 1)), f"The answer is {example.answer}."])


def training_rows(recipe: PolicyRecipe, examples: Sequence[Example], tokenizer: Any) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows to watch, drawn by the recipe's seed from those that are short enough.

    Raises:
        ValueError: If there are too few.
    """
    chat = PromptFormat.choose(tokenizer, True, None)
    fewest, most = recipe.steps_within
    order = [e for e in examples if fewest <= len(worked(e).splitlines()) - 1 <= most]
    random.Random(f"{recipe.seed}/rows").shuffle(order)
    rows: list[Row] = []
    wanted = recipe.problems + recipe.held_out
    for example in order:
        reply = tokenizer(worked(example), add_special_tokens=False)["input_ids"]
        row = Row(chat.encode(example.question), (*reply, tokenizer.eos_token_id))
        if len(row) <= recipe.longest:
            rows.append(row)
        if len(rows) == wanted:
            return rows[: recipe.problems], rows[recipe.problems :]
    raise ValueError(f"{len(rows)} rows are short enough, and {wanted} are wanted: lower --problems")


def batch_of(recipe: PolicyRecipe, rows: Sequence[Row], step: int) -> list[Row]:
    """The rows of a step: an epoch is a permutation in which rows of like length stand together."""
    epoch, place = divmod(step, len(rows) // recipe.batch_size)
    draw = random.Random(f"{recipe.seed}/{epoch}")
    order = list(range(len(rows)))
    draw.shuffle(order)
    pool = 16 * recipe.batch_size
    near = [sorted(order[start : start + pool], key=lambda n: len(rows[n])) for start in range(0, len(order), pool)]
    order = [n for part in near for n in part]
    starts = list(range(0, len(rows) - recipe.batch_size + 1, recipe.batch_size))
    draw.shuffle(starts)
    return [rows[n] for n in order[starts[place] : starts[place] + recipe.batch_size]]


def loss_of(model: Any, rows: Sequence[Row], precision: str = "float32") -> Tensor:
    """Mean negative log-likelihood of the replies' tokens, in nats; the head is run at these places alone."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    target = torch.full((len(rows), longest), -100)  # [rows, places]: the token that is predicted at a place
    for n, row in enumerate(rows):
        ids[n, : len(row)] = torch.tensor([*row.prompt, *row.reply])
        target[n, len(row.prompt) - 1 : len(row) - 1] = torch.tensor(row.reply)
    body = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids, target = ids.to(body.device), target.to(body.device)
    with torch.autocast(body.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        # right padding under a causal mask: no place of a row sees it
        hidden = body.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = body.lm_head(hidden[target >= 0])
    return cross_entropy(logits.float(), target[target >= 0])


def with_adapter(recipe: PolicyRecipe, model: Any) -> Any:
    """The model with a new adapter on all linear maps of its upper layers."""
    peft = require("peft", "peft")
    layers = list(range(recipe.first_layer, model.config.num_hidden_layers))
    config = peft.LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=LINEAR, layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        adapted = peft.get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = PUBLISHED  # not where the copy lies on this machine
    return adapted


def untouched(recipe: PolicyRecipe, examples: Sequence[Example], tokenizer: Any) -> list[Example]:
    """The training problems that the policy was neither trained nor watched on, in their order."""
    chat = PromptFormat.choose(tokenizer, True, None)
    seen = {row.prompt for part in training_rows(recipe, examples, tokenizer) for row in part}
    return [example for example in examples if chat.encode(example.question) not in seen]


def load_policy(adapter: Path | None, device: str = "cpu", dtype: str = "float32") -> tuple[Any, Any]:
    """SmolLM2 with an adapter merged into its weights, or as it is; and its tokenizer."""
    model: Any
    model, tokenizer = zoo.load(MODEL, [] if adapter is None else [adapter])
    return model.to(device, getattr(torch, dtype)).eval(), tokenizer


def train(
    recipe: PolicyRecipe,
    data: Path,
    folder: Path,
    *,
    every: int,
    minutes: float,
    device: str,
    tell: Callable[[str], None],
) -> Path | None:
    """Trains for so many minutes, or to the end; the folder of the finished adapter, or ``None``.

    Raises:
        ValueError: If the folder holds a run of another recipe.
    """
    ends = time.monotonic() + 60 * minutes
    model: Any
    model, tokenizer = zoo.load(MODEL)
    rows, watched = training_rows(recipe, load_examples("gsm8k", data), tokenizer)
    model = with_adapter(recipe, model.to(device))
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.01)
    folder.mkdir(parents=True, exist_ok=True)
    step = _resume(recipe, folder, trained, optimizer)
    tell(f"{len(rows)} rows, {sum(map(len, rows)):,} tokens; {recipe.steps} steps, beginning with {step}")
    if step == 0:
        tell(f"loss of {len(watched)} held-out solutions: {_watch(model, watched):.4f} nats a token")
    began, tokens, losses = time.monotonic(), 0, list[float]()
    while step < recipe.steps:
        batch = batch_of(recipe, rows, step)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * recipe.lr_factor(step)
        loss = loss_of(model, batch, recipe.precision)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, tokens = step + 1, tokens + sum(map(len, batch))
        losses.append(loss.item())
        if step % every == 0 or step == recipe.steps or time.monotonic() > ends:
            _save(recipe, folder, step, trained, optimizer)
            speed = tokens / (time.monotonic() - began)
            left = sum(len(row) for later in range(step, recipe.steps) for row in batch_of(recipe, rows, later)) / speed
            tell(
                f"step {step}/{recipe.steps}: loss {sum(losses) / len(losses):.4f}, {speed:.0f} tokens a second, "
                f"{left / 60:.0f} minutes left"
            )
            losses.clear()
        if time.monotonic() > ends and step < recipe.steps:
            tell(f"stopped after {minutes:g} minutes: the same command goes on")
            return None
    tell(f"loss of {len(watched)} held-out solutions: {_watch(model, watched):.4f} nats a token")
    for weight in trained.values():  # rounded once, so that what is measured is what is saved
        weight.data = weight.data.to(torch.bfloat16)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # an empty form
    (folder / "adapter" / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")
    tell(f"wrote {folder / 'adapter'}")
    return folder / "adapter"


@torch.no_grad()
def _watch(model: Any, rows: Sequence[Row]) -> float:
    """Loss of held-out rows, each reply token with the same weight."""
    ordered = sorted(rows, key=len)
    parts = [ordered[start : start + 8] for start in range(0, len(ordered), 8)]
    counts = [sum(len(row.reply) for row in part) for part in parts]
    return sum(loss_of(model, part).item() * n for part, n in zip(parts, counts, strict=True)) / sum(counts)


def _save(recipe: PolicyRecipe, folder: Path, step: int, trained: dict[str, Any], optimizer: Any) -> None:
    content = {"recipe": asdict(recipe), "step": step, "optimizer": optimizer.state_dict(),
               "adapter": {name: weight.detach().cpu() for name, weight in trained.items()}}  # fmt: skip
    torch.save(content, folder / "checkpoint.new")
    os.replace(folder / "checkpoint.new", folder / "checkpoint.pt")  # whole, or the one before


def _resume(recipe: PolicyRecipe, folder: Path, trained: dict[str, Any], optimizer: Any) -> int:
    """Puts the last checkpoint's state in place; its step, or 0."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    changed = {key: (saved["recipe"].get(key), new) for key, new in asdict(recipe).items()}
    told = "; ".join(f"{key} was {old} and is {new}" for key, (old, new) in changed.items() if old != new)
    if told:
        raise ValueError(f"{folder} holds a training with another recipe ({told}): give another --folder")
    for name, weight in trained.items():
        weight.data.copy_(saved["adapter"][name])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])
