"""The process reward model: labels of sampled training solutions, and a LoRA on the policy's body that learns them."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from inferscale import HFGenerator, HFProcessRewardModel, RepeatedSampling, zoo
from inferscale._compat import require
from inferscale.evaluate import Run, run_evaluation
from inferscale.evaluate.datasets import STYLES, load_examples
from inferscale.rewards import (
    LabelledSolution,
    TrainingRecipe,
    diagnose,
    label_by_rollouts,
    load_labelled,
    save_labelled,
    train_process_reward_model,
)
from inferscale.tree import Problem

from .policy import LINEAR, MODEL, PUBLISHED, PolicyRecipe, untouched

T = TypeVar("T")

TEMPERATURE = 0.8  # of the solutions to learn from: they are to differ more than those that are searched among
ROLLOUTS = 4
TRAINING = TrainingRecipe(
    batch_size=8, learning_rate=4e-4, warmup=0.05, weight_decay=0.01, max_tokens=320, precision="bfloat16"
)
HELD_OUT = 0.2  # of the problems: nothing is learnt from them


def training_problems(data: Path, tokenizer: object, count: int) -> list[Problem]:
    """Problems to learn from, in a random order: a third of GSM8K's training part, the rest of SVAMP.

    Those of GSM8K are new to the policy, and of at most three lines: the policy solves few that are longer. SVAMP has
    no training part: its last 700 problems serve, and the study searches the first ones alone.
    """
    worked = untouched(PolicyRecipe(), load_examples("gsm8k", data / "gsm8k_train.jsonl"), tokenizer)
    short = [example for example in worked if len(example.solution.strip().splitlines()) <= 3]
    draw = random.Random("judge")
    chosen = draw.sample(short, count // 3)
    chosen += draw.sample(load_examples("svamp", data / "svamp.json")[300:], count - count // 3)
    draw.shuffle(chosen)
    return [STYLES["plain"].problem(example) for example in chosen]


def sample_solutions(problems: Sequence[Problem], n: int, generator: HFGenerator, folder: Path) -> Run:
    """`n` solutions of each problem, graded."""
    return run_evaluation(problems, RepeatedSampling(n), generator, folder, batch_size=32, progress=True)


def outcome_labels(run: Run) -> list[list[LabelledSolution]]:
    """The solutions of each problem, every step labelled by how its solution ended.

    That is a roll-out of one completion: on average it is the chance to end right from there (Wang et al. 2024,
    arXiv:2312.08935, with N = 1).
    """
    labelled = []
    for record, result in zip(run.finished, run.results(), strict=True):
        own = []
        for leaf, right in zip(result.leaves, record["correct_each"], strict=True):
            steps = tuple(text for text, _ in leaf.inner_steps())
            if steps:
                own.append(LabelledSolution(result.problem, steps, (float(right),) * len(steps), right))
        labelled.append(own)
    return labelled


def roll_out(
    run: Run, places: Sequence[int], generator: HFGenerator, folder: Path, tell: Callable[[str], None]
) -> list[LabelledSolution]:
    """Labels of the solutions of some problems by roll-outs, a file for every four problems, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    results = list(run.results())
    for start in range(0, len(places), 4):
        path = folder / f"{start:04}.jsonl"
        if path.exists():
            continue
        leaves = [leaf for place in places[start : start + 4] for leaf in results[place].leaves if leaf.inner_steps()]
        new = path.with_suffix(".new")
        save_labelled(label_by_rollouts(leaves, generator, n=ROLLOUTS), new)
        new.rename(path)
        tell(f"{min(start + 4, len(places))} of {len(places)} problems rolled out")
    return [item for path in sorted(folder.glob("*.jsonl")) for item in load_labelled(path)]


@dataclass(frozen=True, slots=True)
class JudgeRecipe:
    """Everything that the process reward model depends on, beside policy and labels.

    Attributes:
        wrong_share: Most solutions that end wrong for one that ends right; others are left out, at random.
        rank: Of the adapter; its scale is 2.
        first_layer: First layer with an adapter.
        training: Options of `train_process_reward_model`.
    """

    wrong_share: float = 2.0
    rank: int = 16
    first_layer: int = 10
    training: TrainingRecipe = TRAINING


def split(labelled: Sequence[T]) -> tuple[list[T], list[T]]:
    """Problems to learn from, and the last ones, which are held out."""
    first_held_out = len(labelled) - round(HELD_OUT * len(labelled))
    return list(labelled[:first_held_out]), list(labelled[first_held_out:])


def with_rollouts(
    labelled: Sequence[Sequence[LabelledSolution]], rolled: Sequence[LabelledSolution]
) -> list[list[LabelledSolution]]:
    """The solutions, with the labels of roll-outs where there are any."""
    better = {(item.problem.prompt, item.steps): item for item in rolled}
    return [[better.get((item.problem.prompt, item.steps), item) for item in own] for own in labelled]


def balanced(solutions: Sequence[LabelledSolution], wrong_share: float, seed: int) -> list[LabelledSolution]:
    """All solutions that end right, and at most `wrong_share` times as many that do not, in a random order."""
    draw = random.Random(f"{seed}/balance")
    right = [item for item in solutions if item.correct]
    wrong = [item for item in solutions if not item.correct]
    chosen = right + draw.sample(wrong, min(len(wrong), round(wrong_share * len(right))))
    draw.shuffle(chosen)
    return chosen


def classifier(policy: Any) -> Any:
    """A token classifier on the policy's body, with a new head of two labels."""
    from transformers import AutoModelForTokenClassification

    config = copy.deepcopy(policy.config)
    config.num_labels = 2
    config.architectures = ["LlamaForTokenClassification"]
    config.step_separator = TrainingRecipe().separator
    config._name_or_path = ""  # not where the copy lies on this machine
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    model.model.load_state_dict(policy.model.state_dict())
    return model.to(policy.device)


def learn(
    recipe: JudgeRecipe,
    policy: Any,
    tokenizer: Any,
    solutions: Sequence[LabelledSolution],
    held_out: Sequence[LabelledSolution],
    rolled_out: Sequence[LabelledSolution],
    folder: Path,
    tell: Callable[[str], None],
) -> tuple[Path, str]:
    """Trains an adapter and a head; the folder of both, and how good they are on held-out problems.

    Every quarter of the way they are measured, too: one pass over the labels is a learning curve.

    Args:
        recipe: Options.
        policy: The policy; its body is copied.
        tokenizer: Its tokenizer.
        solutions: To learn from.
        held_out: Of other problems, labelled by outcomes.
        rolled_out: Those of them that are labelled by roll-outs.
        folder: Where checkpoint and adapter go.
        tell: Takes lines of progress.
    """
    peft = require("peft", "peft")
    model = classifier(policy)
    layers = list(range(recipe.first_layer, model.config.num_hidden_layers))
    config = peft.LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=LINEAR, layers_to_transform=layers,
        modules_to_save=["score"], task_type="TOKEN_CLS",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        model = peft.get_peft_model(model, config)
    model.peft_config["default"].base_model_name_or_path = PUBLISHED
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def report(number: int, updates: int, loss: float) -> None:
        if number % 10 == 0:
            tell(f"update {number}/{updates}: loss {loss:.4f}, {time.monotonic() - began:.0f} s")
        if number % max(1, updates // 4) == 0:
            seen = min(len(solutions), number * recipe.training.batch_size)
            model.eval()
            tell(f"after {seen} solutions: {measured(model.get_base_model(), tokenizer, held_out)}")
            model.train()

    train_process_reward_model(
        model, tokenizer, solutions, recipe.training, report, checkpoint=folder / "checkpoint.pt", save_every=10
    )
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in learnt:  # rounded once, so that what is measured is what is saved
        weight.data = weight.data.to(torch.bfloat16).float()
    found = measured(model.get_base_model(), tokenizer, held_out, rolled_out)
    for weight in learnt:
        weight.data = weight.data.to(torch.bfloat16)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # an empty form
    config = json.dumps(model.config.to_diff_dict(), indent=1)  # the class and its head, for `zoo.load`
    (folder / "adapter" / "config.json").write_text(config + "\n", encoding="utf-8")
    about = json.dumps({**asdict(recipe), "solutions": len(solutions)}, indent=1)
    (folder / "adapter" / "recipe.json").write_text(about + "\n", encoding="utf-8")
    return folder / "adapter", found


def load_judge(adapter: Path, policy: Path, device: str, dtype: str) -> HFProcessRewardModel:
    """The process reward model: adapter and head on the policy's body."""
    model: Any
    model, tokenizer = zoo.load(MODEL, [policy, adapter])
    return HFProcessRewardModel(model.to(device, getattr(torch, dtype)), tokenizer)


def measured(
    model: Any, tokenizer: Any, solutions: Sequence[LabelledSolution], rolled_out: Sequence[LabelledSolution] = ()
) -> str:
    """How well right solutions are told from wrong ones by the score of their last step, and first errors found."""
    judge = HFProcessRewardModel(model, tokenizer, format="auto")
    told = f"pass/fail AUC {diagnose(judge, solutions).outcome_auc:.3f} on {len(solutions)} held-out solutions"
    if rolled_out:
        auc = diagnose(judge, rolled_out).first_error_auc
        told += f", same-step first-error AUC {auc:.3f} on {len(rolled_out)} labelled by roll-outs"
    return told
