"""The training loop: a plain loop over any batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from inferscale.tree import branch_key

from .losses import LossTerms, quiet_star_loss
from .model import QuietSTaR
from .recipe import Batch, Recipe
from .run import Run


@dataclass(frozen=True, slots=True)
class StepReport:
    """Figures of one step, means over its batches.

    Attributes:
        step: Steps taken, this one included.
        loss: The weighted sum.
        base: Plain negative log-likelihood, nats a token.
        talk: The same after thoughts.
        policy: REINFORCE term, unweighted.
        reward: Mean reward (nats) of thoughts at places that count.
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


def train(run: Run, batch_of: Callable[[int], Batch], until: int | None = None) -> Iterator[StepReport]:
    """Takes steps and yields a report after each; a function of the step number, so a resumed run is the same run.

    Args:
        run: The state, changed in place.
        batch_of: The batch of a number; a step takes ``recipe.accumulation`` of them.
        until: Stop after this many steps in all; by default ``recipe.steps``.

    Raises:
        FloatingPointError: If a gradient is not finite; the weights are those before the step.
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
        if not all(map(math.isfinite, norms)):
            raise FloatingPointError(
                f"the gradients of step {run.step + 1} are not finite (norms {norms[0]} of the base, {norms[1]} of the "
                "thoughts): go on from the last checkpoint with a smaller learning rate"
            )
        run.optimizer.step()
        run.step += 1
        yield _report(run.step, terms, norms, time.perf_counter() - started)


def batch_loss(quiet: QuietSTaR, batch: Batch, recipe: Recipe, number: int = 0) -> LossTerms:
    """Thinks about a batch, without gradients, then the loss of it, with them.

    Args:
        quiet: The model.
        batch: Texts.
        recipe: Hyperparameters.
        number: Number of the batch; with the recipe's seed it names the streams of thoughts and of dropout.
    """
    objective, device = recipe.objective, quiet.start.device
    batch = batch.to(device)
    positions = batch.positions
    if positions is None:
        positions = torch.arange(max(batch.input_ids.shape[1] - objective.talk_length, 0), device=device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
    with _seeded(device, branch_key(recipe.seed, number)), half:
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


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout inside draws from a stream named by `seed`; the global random state is as before afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(range(torch.cuda.device_count()) if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed_all(seed)
        yield


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
    """Clips the gradients of the base and of what thoughts add, each by its own norm; the norms before that."""
    norms = [
        torch.nn.utils.clip_grad_norm_(params, run.recipe.max_grad_norm)
        for params in (list(run.quiet.model.parameters()), run.quiet.thought_parameters)
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
        reward=mean(lambda found: found.reward),
        mixing_weight=mean(lambda found: found.mixing_weight),
        base_norm=norms[0],
        thought_norm=norms[1],
        seconds=seconds,
    )
