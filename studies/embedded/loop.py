"""What each embedded model is and how it is trained: every number that a run depends on.

Muon for matrices, AdamW for the rest (Jordan 2024, https://kellerjordan.github.io/posts/muon).

The training loop: one function of a step number, so that a resumed run equals one without a break.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from inferscale.zoo.tokenizer import BOS, EOS, PAD, VOCABULARY_SIZE

from .data import Row, collate, policy_batches, position_in_pool


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's size.

    Attributes:
        hidden: Width.
        layers: Number of layers.
        heads: Attention heads.
        feed_forward: Width of the SwiGLU block.
    """

    hidden: int
    layers: int
    heads: int
    feed_forward: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a training run depends on.

    Attributes:
        shape: The model.
        steps: Optimiser steps in all.
        decay_steps: How many of the last ones lower the learning rate to 0 in a straight line.
        warmup_steps: How many of the first ones raise it.
        batch_size: Rows a step.
        matrix_lr: Learning rate of Muon.
        other_lr: Learning rate of AdamW.
        drill_steps: Until this step `early_drills` of the rows are drills, `late_drills` after.
        early_drills: Share of drills at first.
        late_drills: Share of drills later.
        exit_layer: A layer whose output is trained to predict as well, so that a process reward model can build on
            it; 0 for none.
        exit_weight: Weight of that second loss.
        seed: Of weights and data.
    """

    shape: Shape
    steps: int
    decay_steps: int
    warmup_steps: int = 50
    batch_size: int = 24
    matrix_lr: float = 0.02
    other_lr: float = 0.004
    drill_steps: int = 1000
    early_drills: float = 0.5
    late_drills: float = 0.2
    exit_layer: int = 0
    exit_weight: float = 0.3
    seed: int = 0

    def lr_factor(self, step: int) -> float:
        """Learning rate of a step as a share of its peak."""
        warmup = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        decay = (self.steps - step) / self.decay_steps if self.decay_steps else 1.0
        return max(0.0, min(1.0, warmup, decay))

    def drill_share(self, step: int) -> float:
        """Share of drills among the rows of a step."""
        return self.early_drills if step < self.drill_steps else self.late_drills


POLICIES: dict[str, Recipe] = {
    "policy-xs": Recipe(Shape(48, 3, 4, 144), steps=3100, decay_steps=600),
    "policy-s": Recipe(Shape(64, 4, 4, 192), steps=2800, decay_steps=800),
    "policy-m": Recipe(
        Shape(128, 6, 4, 320), steps=2600, decay_steps=600, matrix_lr=0.015, other_lr=0.003, exit_layer=4
    ),
}


@dataclass(frozen=True, slots=True)
class JudgeRecipe:
    """How a process reward model is trained.

    Attributes:
        parent: The policy that it is branched from.
        recipe: Schedule, batch and learning rates; shape and exit layer are the parent's.
        pairs: Share of rows that come as pairs, right and corrupted; what is neither pair nor drill is a rollout.
        token_weight: Weight of the labels of single tokens beside those of step ends.
        language_weight: Weight of the next-token loss at the exit layer.
    """

    parent: str
    recipe: Recipe
    pairs: float = 0.25
    token_weight: float = 1.0
    language_weight: float = 0.5


JUDGES: dict[str, JudgeRecipe] = {
    "prm-xs": JudgeRecipe(
        "policy-s",
        Recipe(
            POLICIES["policy-s"].shape,
            steps=9000,
            decay_steps=5000,
            matrix_lr=0.015,
            other_lr=0.003,
            drill_steps=2000,
            early_drills=0.6,
            late_drills=0.2,
            exit_layer=3,
            seed=1,
        ),
    ),
    "prm-s": JudgeRecipe(
        "policy-m",
        Recipe(
            POLICIES["policy-m"].shape,
            steps=5500,
            decay_steps=3300,
            matrix_lr=0.01,
            other_lr=0.002,
            drill_steps=1000,
            early_drills=0.6,
            late_drills=0.2,
            exit_layer=POLICIES["policy-m"].exit_layer,
            seed=1,
        ),
    ),
}


def llama_config(shape: Shape) -> LlamaConfig:
    """The transformers configuration of a shape: tied embeddings, RoPE base 1e4."""
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def new_model(shape: Shape) -> LlamaForCausalLM:
    """A Llama with random weights, from torch's random state."""
    return LlamaForCausalLM(llama_config(shape))


_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(update: Tensor, iterations: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: singular values land in about 0.7..1.2. ``[..., R, C]``."""
    a, b, c = _COEFFICIENTS
    tall = update.shape[-2] > update.shape[-1]
    x: Tensor = update.mT if tall else update
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, matrices of equal shape together.

    Args:
        params: Matrices ``[R, C]``.
        lr: Learning rate; the update is scaled by ``sqrt(max(1, R / C))``.
        momentum: Decay of the running sum of gradients (Nesterov).
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                directions = orthogonalize(torch.stack([self._nesterov(p, group["momentum"]) for p in parameters]))
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction, alpha=-group["lr"] * scale)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)


def make_optimizers(model: nn.Module, matrix_lr: float, other_lr: float) -> list[torch.optim.Optimizer]:
    """Muon over the matrices inside the layers, AdamW over embeddings, norms and heads."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in named if parameter.ndim == 2 and ".layers." in name]
    others = [parameter for name, parameter in named if not (parameter.ndim == 2 and ".layers." in name)]
    return [
        Muon(matrices, lr=matrix_lr),
        torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


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
        loss.backward()
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


def report(text: str) -> None:
    """Writes a line of progress at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


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
