"""The models and problems of a study, by names."""

from __future__ import annotations

import random
from os import PathLike
from pathlib import Path
from typing import Any

from inferscale import zoo
from inferscale.base import RewardModel
from inferscale.evaluate.datasets import load_problems
from inferscale.evaluate.experiments import SimulatedReward
from inferscale.evaluate.parts import embedded, make_reward
from inferscale.generators import HFGenerator
from inferscale.quiet_star import Objective, QuietSTaR, Recipe
from inferscale.quiet_star.data import task_batches
from inferscale.quiet_star.published import overwrite_marks
from inferscale.quiet_star.train import start, train
from inferscale.tree import Problem

from .released import PROMPTS

_SHUFFLE_SEED = 42  # of the released code


def load_models(
    model: str, quiet: str | PathLike[str] | None, thought_length: int, train_steps: int, overwrite: bool
) -> tuple[Any, Any, QuietSTaR]:
    """The base model, its tokenizer, and the model that thinks; see `ThoughtStudy.load`."""
    source = zoo.path(model) if model in embedded() else model
    plain = HFGenerator(source, cache="none")
    if quiet is not None:
        thinking = QuietSTaR.from_pretrained(quiet)
    elif isinstance(source, Path):
        thinking = _taught(source, plain.tokenizer, thought_length, train_steps)
    else:
        raise ValueError(
            f"quiet=None: {model} has no trained thoughts, and an untrained wrapper is the model itself: give the "
            "folder of a trained one (python -m inferscale.quiet_star.train), or a published checkpoint"
        )
    if overwrite:
        overwrite_marks(thinking, plain.tokenizer("---", add_special_tokens=False)["input_ids"][0])
    return plain.model, plain.tokenizer, thinking.eval()


def _taught(source: Path, tokenizer: Any, thought_length: int, steps: int) -> QuietSTaR:
    """An embedded policy with thoughts that were trained for a few steps."""
    first = tokenizer("---", add_special_tokens=False)["input_ids"][0]
    quiet = QuietSTaR(HFGenerator(source, cache="none").model, thought_length, start_token_id=first)
    objective = Objective(talk_length=1, num_thoughts=2, reinforce_temperature=1.0)
    recipe = Recipe(
        objective, lr=3e-4, head_lr_scale=10.0, embedding_lr_scale=10.0, steps=steps, accumulation=1, warmup_steps=0
    )
    for _ in train(start(quiet, recipe), task_batches(4, talk_length=1, level=1)):
        pass
    return quiet


def load_reward(name: str, policy: str, embedded_task: bool) -> RewardModel:
    """The reward model of that name; the simulated one and the checker only know the embedded task."""
    if name in ("simulated", "checker") and not embedded_task:
        raise ValueError(f"reward={name!r} only judges the embedded task: give a process reward model for this data")
    return SimulatedReward(auc=0.85) if name == "simulated" else make_reward(name, policy)


def study_problems(data: str | PathLike[str] | None, count: int) -> list[Problem]:
    """The first problems of the embedded task's development set, or of a shuffled GSM8K file.

    Raises:
        ValueError: If `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"problems={count}: take at least 1")
    if data is None:
        return zoo.problems("dev")[:count]
    problems = load_problems("gsm8k", data, style=PROMPTS)
    random.Random(_SHUFFLE_SEED).shuffle(problems)
    return problems[:count]
