"""Quiet-STaR on the policy: thoughts that are trained on worked solutions; the policy's own weights stay."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from inferscale.evaluate.datasets import load_examples
from inferscale.quiet_star import QuietSTaR, QuietSTaRGenerator
from inferscale.quiet_star.losses import Objective
from inferscale.quiet_star.train import Batch, Recipe, aligned_batch, drive, start

from .policy import PolicyRecipe, Row, load_policy, training_rows

THOUGHT_LENGTH = 4
RECIPE = Recipe(
    Objective(talk_length=1, num_thoughts=2, reinforce_temperature=1.0),
    lr=1e-4,
    head_lr_scale=10.0,
    embedding_lr_scale=10.0,
    warmup_steps=5,
    accumulation=1,
    freeze_base=True,
    precision="bfloat16",
)
"""The published one but for the look-ahead (1 as in the second paper), the rates, which are higher since steps are few,
and the base, which is not trained: what changes is the thoughts' work alone."""


def batches(rows: Sequence[Row], batch_size: int, seed: int) -> Callable[[int], Batch]:
    """Batches of worked problems by number; thoughts begin in the solutions alone."""

    def batch_of(number: int) -> Batch:
        chosen = random.Random(f"{seed}/{number}").sample(list(rows), batch_size)
        return aligned_batch([(list(row.prompt), list(row.reply)) for row in chosen], RECIPE.objective.talk_length)

    return batch_of


def train_thoughts(
    recipe: Recipe, data: Path, policy: Path, folder: Path, batch_size: int, device: str, tell: Callable[[str], None]
) -> None:
    """Trains start, end and mixing head on the problems that the policy was trained on; the folder holds them."""
    model, tokenizer = load_policy(policy, device)
    rows, watched = training_rows(PolicyRecipe(), load_examples("gsm8k", data / "gsm8k_train.jsonl"), tokenizer)
    run = start(_wrapped(model, tokenizer), recipe)
    drive(run, batches(rows, batch_size, recipe.seed), folder, tell, checkpoint_every=5)
    tell(gain(run.quiet.eval(), watched))


@torch.no_grad()
def gain(quiet: QuietSTaR, rows: Sequence[Row]) -> str:
    """What thoughts do to the likelihood of solutions that nothing was trained on."""
    plain, thinking = [], []
    for place, row in enumerate(rows):
        batch = aligned_batch([(list(row.prompt), list(row.reply))], RECIPE.objective.talk_length)
        found = quiet.score(batch.input_ids, positions=batch.positions, temperature=1.0, seed=place)
        plain.append(-found.base.flatten())
        thinking.append(-found.mixed.flatten())
    without, with_thoughts = torch.cat(plain), torch.cat(thinking)
    change = without - with_thoughts
    return (
        f"{len(change)} held-out tokens: {float(without.mean()):.4f} nats without thoughts, "
        f"{float(with_thoughts.mean()):.4f} with, gain {float(change.mean()):+.4f} ± "
        f"{float(change.std()) / len(change) ** 0.5:.4f}"
    )


def thinking_generator(
    folder: Path, policy: Path, device: str, dtype: str, *, temperature: float, max_new_tokens: int
) -> QuietSTaRGenerator:
    """The policy with its thoughts."""
    model, tokenizer = load_policy(policy, device)
    quiet = QuietSTaR.from_pretrained(folder, model).to(getattr(torch, dtype)).eval()
    return QuietSTaRGenerator(quiet, tokenizer, temperature=temperature, max_new_tokens=max_new_tokens)


def _wrapped(model: Any, tokenizer: Any) -> QuietSTaR:
    """The published first weights: both marks begin as the first token of ``---``."""
    ids = tokenizer("---", add_special_tokens=False)["input_ids"]
    forbidden = [i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]
    return QuietSTaR(model, THOUGHT_LENGTH, start_token_id=ids[0], forbidden_ids=forbidden)
