"""A training run: its state, how it starts, how it is kept and goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .model import QuietSTaR
from .recipe import Recipe


@dataclass
class Run:
    """A training run's state: all that a checkpoint holds.

    Attributes:
        quiet: The model, in float32.
        recipe: Its numbers.
        optimizer: AdamW.
        step: Steps taken.
    """

    quiet: QuietSTaR
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    step: int = 0


def param_groups(quiet: QuietSTaR, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: base, head, start and end, each with its learning rate as ``peak``.

    A factor on the gradient of start and end would do nothing under Adam: they get a learning rate of their own.
    """
    base = [parameter for parameter in quiet.model.parameters() if parameter.requires_grad]
    groups = [
        (base, recipe.lr, recipe.weight_decay),
        (list(quiet.head.parameters()), recipe.lr * recipe.head_lr_scale, recipe.weight_decay),
        ([quiet.start, quiet.end], recipe.lr * recipe.embedding_lr_scale, 0.0),
    ]
    return [{"params": params, "lr": lr, "peak": lr, "weight_decay": decay} for params, lr, decay in groups if params]


def start(quiet: QuietSTaR, recipe: Recipe | None = None) -> Run:
    """A run at step 0.

    Raises:
        ValueError: If the weights are not in float32 (in half precision, steps of the published size change almost no
            weight), or the attention in use has no gradients here.
    """
    recipe = Recipe() if recipe is None else recipe
    wrong = {str(p.dtype) for p in quiet.parameters()} - {"torch.float32", "torch.float64"}
    if wrong:
        raise ValueError(
            f"weights in {', '.join(wrong)} cannot be trained: call quiet.float(), set precision='bfloat16'"
        )
    if quiet.backbone.attention == "flex_attention" and quiet.start.device.type == "cpu":
        raise ValueError("FlexAttention has no gradients on a CPU: load the model with attn_implementation='sdpa'")
    if recipe.freeze_base:
        quiet.model.requires_grad_(False)
    return Run(quiet, recipe, torch.optim.AdamW(param_groups(quiet, recipe), lr=recipe.lr))


def save_checkpoint(run: Run, path: Path) -> None:
    """Writes the whole state; the file appears only when it is complete."""
    state = {
        "recipe": json.dumps(asdict(run.recipe)),
        "step": run.step,
        "quiet": run.quiet.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(run: Run, path: Path) -> None:
    """Puts a run into a saved state.

    Raises:
        ValueError: If the checkpoint was made by another recipe (more `steps` are allowed).
    """
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location=run.quiet.start.device)
    saved, given = json.loads(state["recipe"]), asdict(run.recipe)
    changed = {key for key in given if saved.get(key) != given[key]} - {"steps"}
    if changed:
        raise ValueError(f"{path} was made by another recipe, {sorted(changed)} differ: start afresh or pass that one")
    run.quiet.load_state_dict(state["quiet"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step = state["step"]
