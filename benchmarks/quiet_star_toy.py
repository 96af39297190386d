"""Thoughts that help, in two minutes of one core: the toy task of `inferscale.quiet_star.toy`, with its controls.

Run with ``python -m benchmarks.quiet_star_toy``. A tiny model is taught both forms of the task, then Quiet-STaR trains
on the direct form alone. Every row is scored on 2000 fresh problems at the answer.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from inferscale.quiet_star import Objective, QuietSTaR, Recipe
from inferscale.quiet_star.toy import PermutationTask, ToyScore, pretrain, toy_batch, toy_model, toy_quiet, toy_score
from inferscale.quiet_star.train import start, train

TASK = PermutationTask()


def recipe(steps: int, seed: int = 0, **objective: Any) -> Recipe:
    """The settings of every row: 4 thoughts for each position, unbiased REINFORCE, learning rate 3e-4."""
    settings = {"talk_length": 1, "num_thoughts": 4, "reinforce_temperature": 1.0, **objective}
    scales = {"lr": 3e-4, "head_lr_scale": 10.0, "embedding_lr_scale": 10.0, "weight_decay": 0.0}
    return Recipe(Objective(**settings), steps=steps, seed=seed, accumulation=1, warmup_steps=0, **scales)


def taught(state: dict[str, torch.Tensor], given: Recipe) -> QuietSTaR:
    """A copy of the taught model after Quiet-STaR."""
    model = toy_model(TASK)
    model.load_state_dict(state)
    quiet = toy_quiet(model, TASK).eval()
    for _ in train(start(quiet, given), lambda number: toy_batch(TASK, 64, 1000 * given.seed + number)):
        pass
    return quiet.eval()


def show(name: str, score: ToyScore) -> None:
    print(
        f"| {name} | {score.plain_nll:.3f} | {score.nll:.3f} | {score.accuracy:.3f} | {score.chain_rate:.3f} "
        f"| {score.mixing_weight:.2f} |",
        flush=True,
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrain-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    model = toy_model(TASK)
    for _ in pretrain(model, TASK, given.pretrain_steps):
        pass
    state = model.state_dict()
    print("| run | NLL, no thought | NLL, with thought | accuracy | thought = states in between | weight |")
    print("|---|---|---|---|---|---|")
    show("start", toy_score(toy_quiet(model, TASK).eval(), TASK))
    for seed in given.seeds:
        quiet = taught(state, recipe(given.steps, seed))
        show(f"Quiet-STaR, {given.steps} steps, seed {seed}", toy_score(quiet, TASK))
        show(f"the same, likeliest thoughts, seed {seed}", toy_score(quiet, TASK, temperature=0.0))
        show(f"the same, random thoughts, seed {seed}", toy_score(quiet, TASK, random=True))
    show("reinforce temperature 3", toy_score(taught(state, recipe(given.steps, reinforce_temperature=3.0)), TASK))
    show("policy weight 0", toy_score(taught(state, recipe(given.steps, policy_weight=0.0)), TASK))
    print(f"{time.process_time() - started:.0f} s of one core")


if __name__ == "__main__":
    main()
