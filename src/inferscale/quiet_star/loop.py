"""The training loop: a plain loop over any batches, with checkpoints and resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .losses import LossTerms, quiet_star_loss
from .model import QuietSTaR
from .recipe import Batch, Recipe


@dataclass(frozen=True, slots=True)
class StepReport:
    """Figures of one step, means over its batches.

    Attributes:
        step: Steps taken, this one included.
        loss: The weighted sum.
        base: Plain negative log-likelihood, nats a token.
        talk: The same after thoughts.
        policy: REINFORCE term, unweighted.
        reward: Mean reward (nats).
        mixing_weight: Mean weight of thoughts.
        base_norm: Gradient norm of the base before clipping.
        thought_norm: Gradient norm of head, start and end before clipping.
        seconds: Wall clock.
    """

    step: int
    loss: float
    base: float
    talk: float
    policy: float
    reward: float
    mixing_weight: float
    base_norm: float
    thought_norm: float
    seconds: float


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
    own = {id(parameter) for parameter in quiet.thought_parameters}
    base = [p for p in quiet.parameters() if id(p) not in own and p.requires_grad]
    groups = [
        (base, recipe.lr, recipe.weight_decay),
        (list(quiet.head.parameters()), recipe.lr * recipe.head_lr_scale, recipe.weight_decay),
        ([quiet.start, quiet.end], recipe.lr * recipe.embedding_lr_scale, 0.0),
    ]
    return [{"params": params, "lr": lr, "peak": lr, "weight_decay": decay} for params, lr, decay in groups if params]


def start(quiet: QuietSTaR, recipe: Recipe | None = None) -> Run:
    """A run at step 0.

    Raises:
        ValueError: If the weights are not in float32: in half precision, steps of the published size change almost no
            weight. Or if the attention in use has no gradients here.
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


def train(run: Run, batch_of: Callable[[int], Batch], until: int | None = None) -> Iterator[StepReport]:
    """Takes steps and yields a report after each; a function of the step number, so a resumed run is the same run.

    Args:
        run: The state, changed in place.
        batch_of: The batch of a number; a step takes ``recipe.accumulation`` of them.
        until: Stop after this many steps in all; by default ``recipe.steps``.
    """
    run.quiet.train()
    until = run.recipe.steps if until is None else until
    while run.step < until:
        started = time.perf_counter()
        for group in run.optimizer.param_groups:
            group["lr"] = group["peak"] * run.recipe.lr_factor(run.step)
        run.optimizer.zero_grad(set_to_none=True)
        terms = []
        for number in range(run.step * run.recipe.accumulation, (run.step + 1) * run.recipe.accumulation):
            found = batch_loss(run.quiet, batch_of(number), run.recipe, number)
            (found.total / run.recipe.accumulation).backward()  # type: ignore[no-untyped-call]
            terms.append(found)
        norms = _clip(run)
        run.optimizer.step()
        run.step += 1
        yield _report(run.step, terms, norms, time.perf_counter() - started)


def batch_loss(quiet: QuietSTaR, batch: Batch, recipe: Recipe, number: int = 0) -> LossTerms:
    """Thinks about a batch, without gradients, then the loss of it, with them.

    Args:
        quiet: The model.
        batch: Texts.
        recipe: Hyperparameters.
        number: Number of the batch; with the recipe's seed it names the stream of thoughts.
    """
    objective = recipe.objective
    batch = batch.to(quiet.start.device)
    length = batch.input_ids.shape[1] - objective.talk_length
    positions = batch.positions
    if positions is None:
        positions = torch.arange(max(length, 0), device=batch.input_ids.device)
    with torch.autocast(quiet.start.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        thoughts = quiet.think(
            batch.input_ids,
            batch.attention_mask,
            positions=positions,
            num_thoughts=objective.num_thoughts,
            temperature=objective.thought_temperature,
            seed=(recipe.seed << 32) + number,
        )
        return quiet_star_loss(
            quiet,
            batch.input_ids,
            thoughts,
            objective,
            attention_mask=batch.attention_mask,
            in_loss=batch.in_loss,
        )


def term_norms(quiet: QuietSTaR, terms: LossTerms) -> dict[str, float]:
    """Gradient norm of each unweighted term over all parameters; call it before the backward pass."""
    parameters = [p for p in quiet.parameters() if p.requires_grad]
    norms = {}
    for name in ("base", "talk", "policy"):
        term: Tensor = getattr(terms, name)
        found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        norms[name] = float(torch.stack([g.norm() for g in found if g is not None]).norm())
    return norms


def _clip(run: Run) -> tuple[float, float]:
    own = {id(parameter) for parameter in run.quiet.thought_parameters}
    base = [p for p in run.quiet.parameters() if id(p) not in own]
    norms = [
        torch.nn.utils.clip_grad_norm_(params, run.recipe.max_grad_norm)
        for params in (base, run.quiet.thought_parameters)
    ]
    return float(norms[0]), float(norms[1])


def _report(step: int, terms: list[LossTerms], norms: tuple[float, float], seconds: float) -> StepReport:
    def mean(read: Callable[[LossTerms], Tensor]) -> float:
        return sum(float(read(found).detach()) for found in terms) / len(terms)

    return StepReport(
        step=step,
        loss=mean(lambda found: found.total),
        base=mean(lambda found: found.base),
        talk=mean(lambda found: found.talk),
        policy=mean(lambda found: found.policy),
        reward=mean(lambda found: found.rewards.mean()),
        mixing_weight=mean(lambda found: found.mixing_weight),
        base_norm=norms[0],
        thought_norm=norms[1],
        seconds=seconds,
    )


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
