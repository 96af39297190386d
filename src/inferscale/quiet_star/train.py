"""Training of thoughts, from Python or from the command line.

``python -m inferscale.quiet_star.train policy-s --folder runs/thoughts --steps 200``
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from torch import Tensor

from inferscale.runtime.sampling import uniforms
from inferscale.tree import branch_key

from .checkpoint import base_name, fingerprint
from .losses import LossTerms, Objective, quiet_star_loss
from .model import QuietSTaR


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of training; each default is the published one unless said.

    Attributes:
        objective: Those of the loss.
        lr: Peak learning rate of the base (published: 1e-6).
        head_lr_scale: Times `lr` for the mixing head (published: 1).
        embedding_lr_scale: Times `lr` for start and end (published: 100, by storing them divided by 100).
        weight_decay: Of AdamW (published: 0.001); start and end have none.
        warmup_steps: Steps of linear warm-up (published: 20).
        decay_steps: Steps over which the rate then falls to 0 (published: 100,000).
        steps: Steps taken (published: 100).
        accumulation: Batches of one step (published: 2, of 4 sequences with 2 thoughts each).
        max_grad_norm: Clips the gradient of the base and that of head, start and end, each by its own norm
            (published: 1, of all together).
        freeze_base: Train head, start and end alone.
        precision: ``"bfloat16"`` runs the model in half precision; the weights stay in float32 either way.
        seed: Names the streams of thoughts.

    Raises:
        ValueError: If a number trains nothing, or not as it says.

    Example:
        >>> from inferscale.quiet_star import Recipe
        >>> recipe = Recipe(lr=1e-4, warmup_steps=10, decay_steps=90, steps=100, freeze_base=True)
        >>> [round(recipe.lr_factor(step), 2) for step in (0, 9, 55, 99)]  # of the peak learning rate
        [0.1, 1.0, 0.5, 0.01]
    """

    objective: Objective = field(default_factory=Objective)
    lr: float = 1e-6
    head_lr_scale: float = 1.0
    embedding_lr_scale: float = 100.0
    weight_decay: float = 1e-3
    warmup_steps: int = 20
    decay_steps: int = 100_000
    steps: int = 100
    accumulation: int = 2
    max_grad_norm: float = 1.0
    freeze_base: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that train nothing, or not as they say."""
        for name, value, least in (
            ("accumulation", self.accumulation, 1),
            ("decay_steps", self.decay_steps, 1),
            ("warmup_steps", self.warmup_steps, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value}: give at least {least}")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm}: give a positive number")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'precision={self.precision!r}: choose "float32" or "bfloat16"')

    def lr_factor(self, step: int) -> float:
        """Return the factor on the peak learning rate at a step, counted from 0."""
        warm = min((step + 1) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return warm * max(1.0 - max(step - self.warmup_steps, 0) / self.decay_steps, 0.0)


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts to think about.

    Attributes:
        input_ids: `[batch, text]`.
        attention_mask: 1 for text and 0 for padding, `[batch, text]`; ``None`` for no padding.
        in_loss: Which tokens count as targets, bool `[batch, text]`; ``None`` for all.
        positions: Indices of the tokens to think after, `[positions]`; ``None`` for all that have room.

    Example:
        >>> import torch
        >>> from inferscale import zoo
        >>> from inferscale.quiet_star import Batch
        >>> tokenizer = zoo.load("policy-xs")[1]
        >>> rows = tokenizer(["7 * 6 = 42", "42 - 2 = 40"], return_tensors="pt", padding=True)
        >>> batch = Batch(rows["input_ids"], rows["attention_mask"])
        >>> batch.input_ids.shape == batch.attention_mask.shape, batch.positions  # None: thoughts where there is room
        (True, None)
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None
    in_loss: Tensor | None = None
    positions: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the same on another device."""
        given = (self.input_ids, self.attention_mask, self.in_loss, self.positions)
        ids, *rest = (None if item is None else item.to(device) for item in given)
        assert ids is not None
        return Batch(ids, *rest)


def task_batches(batch_size: int, talk_length: int, seed: int = 0, level: int | None = None) -> Callable[[int], Batch]:
    """Make batches of fresh problems of the embedded task with their reference solutions; only solutions count.

    Args:
        batch_size: Problems in a batch.
        talk_length: Look-ahead of the loss, for the positions to think at.
        seed: Names the stream of problems.
        level: Of the task, 1 to 5; by default all of them in turn.

    Example:
        >>> from inferscale.quiet_star.train import task_batches
        >>> batch_of = task_batches(2, talk_length=4, level=1)
        >>> batch = batch_of(0)
        >>> batch.input_ids.shape == batch.in_loss.shape, bool(batch.in_loss[:, 0].any())  # prompts are no targets
        (True, False)
    """
    from inferscale.zoo import task
    from inferscale.zoo.tokenizer import BOS, EOS, encode

    def batch_of(number: int) -> Batch:
        problems = task.generate(batch_size, seed=(seed << 24) + number, level=level, split="train")
        prompts = [problem.prompt for problem in problems]
        rows = [([BOS, *encode(prompt)], [*encode(task.solution(prompt)), EOS]) for prompt in prompts]
        return aligned_batch(rows, talk_length)

    return batch_of


def aligned_batch(rows: Sequence[tuple[list[int], list[int]]], talk_length: int) -> Batch:
    """Pad prompts on the left and solutions on the right, so that all rows think at the same columns.

    Args:
        rows: Ids of prompts and of their solutions; only the latter count as targets.
        talk_length: Look-ahead of the loss: thoughts begin where so many tokens follow.

    Example:
        >>> from inferscale.quiet_star.train import aligned_batch
        >>> rows = [([1, 5], [6, 7, 8]), ([1, 5, 6, 7], [9, 2])]  # ids of prompts, and of their solutions
        >>> batch = aligned_batch(rows, talk_length=1)
        >>> batch.input_ids
        tensor([[0, 0, 1, 5, 6, 7, 8],
                [1, 5, 6, 7, 9, 2, 0]])
        >>> batch.positions  # from the last token of the prompts on
        tensor([3, 4, 5])
    """
    before, after = max(len(p) for p, _ in rows), max(len(s) for _, s in rows)
    ids, mask, target = (torch.zeros(len(rows), before + after, dtype=torch.long) for _ in range(3))
    for row, (prompt, solution) in enumerate(rows):
        first, last = before - len(prompt), before + len(solution)
        ids[row, first:last] = torch.tensor(prompt + solution)
        mask[row, first:last] = 1
        target[row, before:last] = 1
    positions = torch.arange(before - 1, before + after - talk_length)
    return Batch(ids, mask, target.bool(), positions)


def load_texts(path: Path) -> list[str]:
    """Load the texts of a file: the ``"text"`` of each line of a ``.jsonl``, or the paragraphs of anything else.

    Raises:
        ValueError: If there are none, or a line of a ``.jsonl`` has none.
    """
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        texts = [part.strip() for part in content.split("\n\n") if part.strip()]
    else:
        texts = []
        for line in filter(str.strip, content.splitlines()):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} has a line that is no JSON, {line[:40]!r}: {error}") from None
            text = record.get("text") if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise ValueError(f"{path} has a line without a 'text', {line[:40]!r}: every line needs one")
            texts.append(text)
    if not texts:
        raise ValueError(f"{path} holds no texts: give a .jsonl file with a 'text' in each line, or paragraphs")
    return texts


def span_batches(
    texts: Sequence[str], tokenizer: Any, batch_size: int = 4, span: int = 256, seed: int = 0
) -> Callable[[int], Batch]:
    """Make batches of random spans of texts, as in the released script: 4 spans of 256 tokens.

    Args:
        texts: Documents; those shorter than a span are left out.
        tokenizer: Gives the ids.
        batch_size: Spans in a batch.
        span: Tokens of a span.
        seed: Names the stream of spans.

    Raises:
        ValueError: If no text is long enough.

    Example:
        >>> from inferscale import zoo
        >>> from inferscale.quiet_star.train import span_batches
        >>> tokenizer = zoo.load("policy-xs")[1]
        >>> texts = ["7 * 6 = 42 " * 10, "42 - 20 = 22 " * 10]
        >>> batch_of = span_batches(texts, tokenizer, batch_size=2, span=16)
        >>> batch_of(0).input_ids.shape, bool((batch_of(3).input_ids == batch_of(3).input_ids).all())
        (torch.Size([2, 16]), True)
    """
    encoded = [ids for ids in (tokenizer(text)["input_ids"] for text in texts) if len(ids) >= span]
    if not encoded:
        raise ValueError(f"none of the {len(texts)} texts has {span} tokens: lower the span")

    def batch_of(number: int) -> Batch:
        draws = uniforms([((seed << 32) + number) % 2**64], np.arange(2 * batch_size, dtype=np.uint64))
        rows = []
        for which, where in draws.reshape(batch_size, 2).tolist():
            ids = encoded[int(which * len(encoded))]
            first = int(where * (len(ids) - span + 1))
            rows.append(ids[first : first + span])
        return Batch(torch.tensor(rows))

    return batch_of


@dataclass
class Run:
    """State of a training run: all that a checkpoint holds.

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
    """Return groups for an optimizer: base, head, start and end, each with its learning rate as ``peak``.

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
    """Begin a run at step 0.

    Args:
        quiet: The model, which is trained in place; its base is frozen if the recipe says so.
        recipe: Hyperparameters, by default those of `Recipe`.

    Raises:
        ValueError: If the weights are not in float32 (in half precision, steps of the published size change almost no
            weight), or the attention in use has no gradients here.

    Example:
        >>> from inferscale import zoo
        >>> from inferscale.quiet_star import QuietSTaR, Recipe
        >>> from inferscale.quiet_star.train import start
        >>> run = start(QuietSTaR(zoo.load("policy-xs")[0], thought_length=2), Recipe(lr=1e-5))
        >>> [(len(group["params"]), group["lr"]) for group in run.optimizer.param_groups]  # base, head, start and end
        [(29, 1e-05), (5, 1e-05), (2, 0.001)]
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
    """Write what was trained and where training stands; the file appears only when it is complete.

    Of a base that is frozen, its name and a fingerprint are kept.
    """
    state = {
        "recipe": json.dumps(asdict(run.recipe)),
        "step": run.step,
        "quiet": {name: weight.detach() for name, weight in _trained(run.quiet).items()},
        "base": {"name": base_name(run.quiet.model)[0], "fingerprint": fingerprint(run.quiet.model, frozen=True)},
        "optimizer": run.optimizer.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _trained(quiet: QuietSTaR) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in quiet.named_parameters() if weight.requires_grad}


def load_checkpoint(run: Run, path: Path) -> None:
    """Put a run into a saved state.

    Raises:
        ValueError: If the checkpoint was made by another recipe (more `steps` are allowed), or from another base.
    """
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location=run.quiet.start.device)
    saved, given = json.loads(state["recipe"]), asdict(run.recipe)
    changed = {key for key in given if saved.get(key) != given[key]} - {"steps"}
    if changed:
        raise ValueError(f"{path} was made by another recipe, {sorted(changed)} differ: start afresh or pass that one")
    base, trained = state.get("base"), _trained(run.quiet)  # the first checkpoints held the whole base
    if base is not None and base["fingerprint"] != fingerprint(run.quiet.model, frozen=True):
        raise ValueError(f"{path} was made from the base {base['name']!r}, and this is another: load that one")
    unfit = [name for name, weight in trained.items() if getattr(state["quiet"].get(name), "shape", 0) != weight.shape]
    if unfit:
        raise ValueError(f"{path} does not fit this model: {', '.join(unfit[:5])} missing or misshapen")
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(state["quiet"][name])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step = state["step"]


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
    """Take steps and yield a report after each; a function of the step number, so a resumed run is the same run.

    Args:
        run: The state, changed in place.
        batch_of: The batch of a number; a step takes ``recipe.accumulation`` of them.
        until: Stop after this many steps in all; by default ``recipe.steps``.

    Raises:
        FloatingPointError: If a gradient is not finite; the weights are those before the step.

    Example:
        >>> from inferscale import zoo
        >>> from inferscale.quiet_star import Objective, QuietSTaR, Recipe
        >>> from inferscale.quiet_star.train import start, task_batches, train
        >>> recipe = Recipe(Objective(talk_length=1), lr=1e-4, steps=2, accumulation=1, freeze_base=True)
        >>> run = start(QuietSTaR(zoo.load("policy-xs")[0], thought_length=1), recipe)
        >>> for report in train(run, task_batches(1, talk_length=1, level=1)):
        ...     print(report.step, 0.0 < report.base < 5.0)
        1 True
        2 True
    """
    quiet, recipe = run.quiet, run.recipe
    quiet.train()
    until = recipe.steps if until is None else until
    while run.step < until:
        started = time.perf_counter()
        for group in run.optimizer.param_groups:
            group["lr"] = group["peak"] * recipe.lr_factor(run.step)
        run.optimizer.zero_grad(set_to_none=True)
        terms = []
        # Batches are numbered through the whole run: data, thoughts and dropout depend on the number alone.
        for number in range(run.step * recipe.accumulation, (run.step + 1) * recipe.accumulation):
            found = batch_loss(quiet, batch_of(number), recipe, number)
            (found.total / recipe.accumulation).backward()
            terms.append(found)
        # Apart, so that neither the base nor the thoughts set the other's clip factor.
        base_norm, thought_norm = (
            float(torch.nn.utils.clip_grad_norm_(params, recipe.max_grad_norm))
            for params in (list(quiet.model.parameters()), quiet.thought_parameters)
        )
        if not (math.isfinite(base_norm) and math.isfinite(thought_norm)):
            raise FloatingPointError(
                f"the gradients of step {run.step + 1} are not finite (norms {base_norm} of the base, {thought_norm} "
                "of the thoughts): go on from the last checkpoint with a smaller learning rate"
            )
        run.optimizer.step()
        run.step += 1
        loss, base, talk, policy, reward, weight = (
            sum(float(getattr(found, name).detach()) for found in terms) / len(terms)
            for name in ("total", "base", "talk", "policy", "reward", "mixing_weight")
        )
        seconds = time.perf_counter() - started
        yield StepReport(run.step, loss, base, talk, policy, reward, weight, base_norm, thought_norm, seconds)


def batch_loss(quiet: QuietSTaR, batch: Batch, recipe: Recipe, number: int = 0) -> LossTerms:
    """Think about a batch, without gradients, then compute its loss, with them.

    Args:
        quiet: The model.
        batch: Texts.
        recipe: Hyperparameters.
        number: Number of the batch; with the recipe's seed it names the streams of thoughts and of dropout.
    """
    objective, device = recipe.objective, quiet.start.device
    batch = batch.to(device)
    ids, mask, positions = batch.input_ids, batch.attention_mask, batch.positions
    if positions is None:
        positions = torch.arange(max(ids.shape[1] - objective.talk_length, 0), device=device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else []
    # Dropout draws from the global random state: it gets a stream of the batch, and is put back afterwards.
    with torch.random.fork_rng(devices), half:
        stream = branch_key(recipe.seed, number)
        torch.default_generator.manual_seed(stream)
        if devices:
            torch.cuda.manual_seed_all(stream)
        thoughts = quiet.think(
            ids,
            mask,
            positions=positions,
            num_thoughts=objective.num_thoughts,
            temperature=objective.thought_temperature,
            seed=(recipe.seed << 32) + number,
        )
        return quiet_star_loss(quiet, ids, thoughts, objective, attention_mask=mask, in_loss=batch.in_loss)


def term_norms(quiet: QuietSTaR, terms: LossTerms) -> dict[str, float]:
    """Compute the gradient norm of each unweighted term over all parameters; call it before the backward pass."""
    parameters = [p for p in quiet.parameters() if p.requires_grad]
    norms = {}
    for name, term in (("base", terms.base), ("talk", terms.talk), ("policy", terms.policy)):
        found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        norms[name] = float(torch.stack([g.norm() for g in found if g is not None]).norm())
    return norms


def drive(
    run: Run,
    batch_of: Callable[[int], Batch],
    folder: Path,
    report: Callable[[str], None],
    checkpoint_every: int = 50,
) -> None:
    """Train to the end of the recipe: a line for every step, checkpoints on the way, the model at the end.

    A run whose folder holds a checkpoint goes on from there; the log forgets the steps after it, which come again.

    Args:
        run: The state at step 0.
        batch_of: The batch of a number.
        folder: Where checkpoints, the log (``steps.jsonl``) and the model go.
        report: Called with a line for each step.
        checkpoint_every: Steps between two checkpoints.

    Raises:
        ValueError: If `checkpoint_every` is below 1, or the folder's checkpoint is of another recipe or base.
        FloatingPointError: As `train`.

    Example:
        >>> from pathlib import Path
        >>> from inferscale import zoo
        >>> from inferscale.quiet_star import Objective, QuietSTaR, Recipe
        >>> from inferscale.quiet_star.train import drive, start, task_batches
        >>> recipe = Recipe(Objective(talk_length=1), lr=1e-4, steps=2, accumulation=1, freeze_base=True)
        >>> run = start(QuietSTaR(zoo.load("policy-xs")[0], thought_length=1), recipe)
        >>> lines = []
        >>> drive(run, task_batches(1, talk_length=1, level=1), Path("thinker"), lines.append)
        >>> [line.split(" plain")[0] for line in lines], sorted(path.name for path in Path("thinker").iterdir())
        (['step 1/2', 'step 2/2'], ['checkpoint.pt', 'quiet_star.json', 'quiet_star.safetensors', 'steps.jsonl'])
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every}: give a positive number of steps")
    checkpoint, log = folder / "checkpoint.pt", folder / "steps.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.is_file():
        load_checkpoint(run, checkpoint)
        report(f"going on from step {run.step}")
    if log.is_file():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        log.write_text("".join(lines[: run.step]), encoding="utf-8")
    for found in train(run, batch_of):
        with log.open("a", encoding="utf-8") as lines_so_far:
            lines_so_far.write(json.dumps(asdict(found)) + "\n")
        report(
            f"step {found.step}/{run.recipe.steps} plain {found.base:.4f} thinking {found.talk:.4f} "
            f"reward {found.reward:.4f} w {found.mixing_weight:.3f} {found.seconds:.1f} s"
        )
        if found.step % checkpoint_every == 0 or found.step == run.recipe.steps:
            save_checkpoint(run, checkpoint)
    run.quiet.save_pretrained(folder, merge=not run.recipe.freeze_base)


def main(
    model: Annotated[str, typer.Argument(help="An embedded policy, a model folder, or a hub id.")],
    folder: Annotated[Path, typer.Option(help="Where to write checkpoints and the result.")],
    data: Annotated[Path | None, typer.Option(help="Texts (.jsonl or plain); by default the embedded task.")] = None,
    steps: Annotated[int, typer.Option(help="Steps to take.")] = 100,
    thought_length: Annotated[int, typer.Option(help="Sampled tokens of a thought.")] = 9,
    talk_length: Annotated[int, typer.Option(help="Look-ahead tokens after a thought.")] = 4,
    num_thoughts: Annotated[int, typer.Option(help="Thoughts for each position.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.")] = 4,
    span: Annotated[int, typer.Option(help="Tokens of a text taken from a file.")] = 256,
    accumulation: Annotated[int, typer.Option(help="Batches of a step.")] = 2,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the base.")] = 1e-6,
    head_lr_scale: Annotated[float, typer.Option(help="Times the rate, for the mixing head.")] = 1.0,
    embedding_lr_scale: Annotated[float, typer.Option(help="Times the rate, for start and end.")] = 100.0,
    policy_weight: Annotated[float, typer.Option(help="Weight of REINFORCE (published: 1e6).")] = 1.0,
    reinforce_temperature: Annotated[float, typer.Option(help="Divides the logits in REINFORCE.")] = 3.0,
    freeze_base: Annotated[bool, typer.Option(help="Train head, start and end alone.")] = False,
    bfloat16: Annotated[bool, typer.Option(help="Run in half precision; weights stay in float32.")] = False,
    seed: Annotated[int, typer.Option(help="Any integer.")] = 0,
) -> None:
    """Teach a model to think before every token."""
    objective = Objective(
        talk_length, num_thoughts, reinforce_temperature=reinforce_temperature, policy_weight=policy_weight
    )
    recipe = Recipe(
        objective,
        lr=lr,
        head_lr_scale=head_lr_scale,
        embedding_lr_scale=embedding_lr_scale,
        steps=steps,
        accumulation=accumulation,
        freeze_base=freeze_base,
        precision="bfloat16" if bfloat16 else "float32",
        seed=seed,
    )
    from transformers import AutoModelForCausalLM

    from inferscale import zoo
    from inferscale.runtime.loading import load_model, load_tokenizer

    source = zoo.path(model) if model in {card.name for card in zoo.list(packaged=True)} else model
    tokenizer = load_tokenizer(None, source)
    quiet = QuietSTaR(
        load_model(source, AutoModelForCausalLM, dtype=torch.float32),
        thought_length,
        start_token_id=tokenizer("---", add_special_tokens=False)["input_ids"][0],  # published
        # special tokens other than the end of sequence: nobody should think or say them
        forbidden_ids=[i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id],
    )
    if data is None:
        batch_of = task_batches(batch_size, talk_length, seed)
    else:
        batch_of = span_batches(load_texts(data), tokenizer, batch_size, span, seed)
    drive(start(quiet, recipe), batch_of, folder, typer.echo)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    typer.run(main)
