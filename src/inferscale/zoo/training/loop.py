"""The training loop: one function of a step number, so that a resumed run equals one without a break."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from .data import Row, collate, policy_batches, position_in_pool
from .optimizer import make_optimizers
from .recipes import Recipe, new_model


@dataclass
class Run:
    """A training run's state: all that a checkpoint holds.

    Attributes:
        recipe: Its numbers.
        model: The model, in float32.
        optimizers: Muon and AdamW.
        step: Steps taken.
        tokens: Tokens read so far, padding left out.
    """

    recipe: Recipe
    model: LlamaForCausalLM
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    tokens: int = 0


def start(recipe: Recipe) -> Run:
    """A run at step 0, weights drawn from the recipe's seed (the global random state is left as it was)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = new_model(recipe.shape)
    return Run(recipe, model, make_optimizers(model, recipe.matrix_lr, recipe.other_lr))


def train(run: Run, until: int, loss_of: Callable[[Run], tuple[Tensor, int]] | None = None) -> Iterator[float]:
    """Takes steps up to `until`, yielding the loss (nats a token) after each."""
    loss_of = loss_of or policy_loss
    run.model.train()
    while run.step < until:
        for optimizer, peak in zip(run.optimizers, (run.recipe.matrix_lr, run.recipe.other_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * run.recipe.lr_factor(run.step)
        loss, tokens = loss_of(run)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {run.step + 1} is {loss.item()}: go on from the last checkpoint"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        run.step += 1
        run.tokens += tokens
        yield loss.item()


_pool = lru_cache(maxsize=2)(policy_batches)


def policy_loss(run: Run) -> tuple[Tensor, int]:
    """Mean loss over the trained tokens of this step's batch, and the batch's tokens."""
    recipe = run.recipe
    batches = _pool(recipe.seed, recipe.batch_size, run.step // 8 * 8, recipe.drill_share(run.step // 8 * 8))
    rows = batches[position_in_pool(run.step)]
    return token_loss(run.model, rows, recipe.exit_layer, recipe.exit_weight), sum(len(row.token_ids) for row in rows)


def token_loss(model: LlamaForCausalLM, rows: list[Row], exit_layer: int = 0, exit_weight: float = 0.0) -> Tensor:
    """Mean negative log-likelihood (nats) of the trained tokens; an early exit's is added with its weight."""
    token_ids, in_loss = collate(rows)
    output = model.model(input_ids=token_ids, use_cache=False, output_hidden_states=exit_layer > 0)
    wanted, targets = in_loss[:, 1:], token_ids[:, 1:][in_loss[:, 1:]]
    loss = functional.cross_entropy(model.lm_head(output.last_hidden_state[:, :-1][wanted]), targets)
    if exit_layer:
        early = model.model.norm(output.hidden_states[exit_layer][:, :-1][wanted])
        loss = loss + exit_weight * functional.cross_entropy(model.lm_head(early), targets)
    return loss


def save_checkpoint(run: Run, path: Path) -> None:
    """Writes the whole state; the file appears only when it is complete."""
    state = {
        "recipe": json.dumps(asdict(run.recipe)),
        "step": run.step,
        "tokens": run.tokens,
        "model": run.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(run: Run, path: Path) -> None:
    """Puts a run into a saved state.

    The recipe may differ from the saved one in its schedule only (`steps`, `decay_steps`): a run can be decayed
    from any checkpoint that was saved before its own decay began.

    Raises:
        ValueError: If the checkpoint was made by another recipe.
    """
    state: dict[str, Any] = torch.load(path, weights_only=True)
    saved, given = json.loads(state["recipe"]), asdict(run.recipe)
    changed = {key for key in given if saved.get(key) != given[key]} - {"steps", "decay_steps"}
    if changed:
        raise ValueError(f"{path} was made by another recipe, {sorted(changed)} differ: start afresh or pass that one")
    run.model.load_state_dict(state["model"])
    for optimizer, saved_optimizer in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved_optimizer)
    run.step, run.tokens = state["step"], state["tokens"]


def drive(
    run: Run,
    folder: Path,
    report: Callable[[str], None],
    checkpoint_every: int = 500,
    report_every: int = 50,
    loss_of: Callable[[Run], tuple[Tensor, int]] | None = None,
    on_checkpoint: Callable[[Run], str] | None = None,
) -> None:
    """Trains to the end of the recipe, saving and reporting on the way."""
    losses: list[float] = []
    started, first = time.monotonic(), run.step
    for loss in train(run, run.recipe.steps, loss_of):
        losses.append(loss)
        if run.step % report_every == 0 or run.step == run.recipe.steps:
            rate = (time.monotonic() - started) / (run.step - first)
            mean = sum(losses[-report_every:]) / len(losses[-report_every:])
            left = (run.recipe.steps - run.step) * rate / 60
            report(f"step {run.step}/{run.recipe.steps} loss {mean:.4f} tokens {run.tokens:,} {left:.1f} min left")
        if run.step % checkpoint_every == 0 or run.step == run.recipe.steps:
            save_checkpoint(run, folder / f"step-{run.step:06d}.pt")
            if on_checkpoint is not None:
                report(f"step {run.step} {on_checkpoint(run)}")
                run.model.train()
