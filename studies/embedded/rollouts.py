"""Sampling many solutions at once from an embedded policy, for labels and for the gates.

Samples training rollouts: ``python -m studies.embedded.rollouts policy-s --output FILE``, from an embedded policy.

``python -m studies.embedded.rollouts CHECKPOINT policy-s --output FILE`` samples from a checkpoint of a run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from inferscale._compat import cache_argument
from inferscale.zoo import task
from inferscale.zoo.tokenizer import BOS, EOS, PAD, decode, encode

from .judge import Rollout
from .loop import report

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


MAX_NEW_TOKENS = 160


@torch.inference_mode()
def sample(
    model: LlamaForCausalLM,
    prompts: Sequence[str],
    n: int,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    rows: int = 512,
) -> list[list[str]]:
    """`n` sampled completions of every prompt, as text; ``temperature=0`` is greedy.

    Args:
        model: The policy.
        prompts: Prompts of the embedded task.
        n: Completions of each.
        temperature: Of sampling.
        seed: Of the random stream; it also depends on the order and the number of prompts.
        max_new_tokens: Completions longer than this are cut.
        rows: Completions sampled at once.
    """
    rng = torch.Generator().manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    per_chunk = max(1, rows // n)
    texts: list[list[str]] = [[] for _ in prompts]
    for start in range(0, len(order), per_chunk):
        chunk = order[start : start + per_chunk]
        completions = _sample_chunk(model, [prompts[index] for index in chunk], n, temperature, rng, max_new_tokens)
        for place, index in enumerate(chunk):
            texts[index] = completions[place * n : (place + 1) * n]
    return texts


def _sample_chunk(
    model: LlamaForCausalLM, prompts: list[str], n: int, temperature: float, rng: torch.Generator, max_new_tokens: int
) -> list[str]:
    token_ids, mask = pad_left([[BOS, *encode(prompt)] for prompt in prompts])
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = _next_logits(model, token_ids, mask, positions, cache)
    cache.batch_repeat_interleave(n)
    logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
    position = positions[:, -1].repeat_interleave(n, 0)
    live = torch.arange(len(logits))
    sampled = torch.full((len(logits), max_new_tokens), PAD)
    for column in range(max_new_tokens):
        chosen = _draw(logits, temperature, rng)
        sampled[live, column] = chosen
        keep = (chosen != EOS).nonzero()[:, 0]
        if not len(keep) or column + 1 == max_new_tokens:
            break
        if len(keep) < len(live):
            cache.batch_select_indices(keep)
            live, chosen, mask, position = live[keep], chosen[keep], mask[keep], position[keep]
        position = position + 1
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
        logits = _next_logits(model, chosen[:, None], mask, position[:, None], cache)
    return [decode(row) for row in sampled.tolist()]


def _next_logits(
    model: LlamaForCausalLM, token_ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
) -> Tensor:
    output = model(
        input_ids=token_ids,
        attention_mask=mask,
        position_ids=positions,
        logits_to_keep=1,
        **{cache_argument(model): cache},
    )
    return output.logits[:, -1].float()  # type: ignore[no-any-return]


def _draw(logits: Tensor, temperature: float, rng: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=rng)[:, 0]


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """``token_ids: [B, T]`` and ``mask: [B, T]``, padded on the left."""
    width = max(len(row) for row in rows)
    token_ids = torch.tensor([[PAD] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return token_ids, mask


def make_rollouts(model: LlamaForCausalLM, policy: str, problems: int, n: int, seed: int) -> list[Rollout]:
    """Distinct solutions that a policy samples (temperature 1) for fresh training problems."""
    prompts = [problem.prompt for problem in task.generate(problems, seed, split="train")]
    texts = sample(model, prompts, n, seed=seed)
    pairs = {(prompt, text) for prompt, row in zip(prompts, texts, strict=True) for text in row}
    return [Rollout(prompt, text, policy) for prompt, text in sorted(pairs)]


def write_rollouts(rollouts: Sequence[Rollout], path: Path) -> None:
    """Writes rollouts, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in rollouts), encoding="utf-8")


def read_rollouts(paths: Sequence[Path]) -> list[Rollout]:
    """Rollouts of several files, in order."""
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return [Rollout(**json.loads(line)) for line in lines]


app = typer.Typer(add_completion=False)


@app.command()
def rollouts(
    source: Annotated[str, typer.Argument(help="an embedded policy, or a checkpoint of a run")],
    output: Annotated[Path, typer.Option(help="the file to write, one JSON object a line")],
    name: Annotated[str | None, typer.Argument(help="policy-xs, policy-s or policy-m, of a checkpoint")] = None,
    problems: Annotated[int, typer.Option(help="training problems")] = 3000,
    n: Annotated[int, typer.Option(help="samples of each")] = 4,
    seed: Annotated[int, typer.Option(help="of problems and samples")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
) -> None:
    """Samples solutions of fresh training problems at temperature 1 and writes the distinct ones."""
    import torch

    torch.set_num_threads(threads)
    made = make_rollouts(_policy(source, name), name or source, problems, n, seed)
    write_rollouts(made, output)
    report(f"{len(made)} distinct rollouts of {problems} problems in {output}")


def _policy(source: str, name: str | None) -> LlamaForCausalLM:
    """The embedded policy, or the one in a checkpoint of the recipe `name`."""
    from studies.embedded import loop

    from .loop import POLICIES

    if name is None:
        from inferscale.zoo.models import load

        if source not in POLICIES:
            policies = ", ".join(POLICIES)
            raise typer.BadParameter(f"{source!r}: give one of {policies}, or a checkpoint and one of them after it")
        return load(source)[0]
    import torch

    model = loop.start(POLICIES[name]).model
    model.load_state_dict(torch.load(source, weights_only=True)["model"])
    model.train(False)
    return model


if __name__ == "__main__":
    app()
