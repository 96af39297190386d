"""The process reward model: its loss, its scores, and how it is branched from a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from inferscale.zoo.tokenizer import BAD, BOS, GOOD, encode

from .data import collate
from .judging import JudgedRow, Rollout, collate_labels, judge_batches, line_tokens, split_lines
from .loop import Run
from .optimizer import make_optimizers
from .recipes import JudgeRecipe


def branch(judge: JudgeRecipe, parent: LlamaForCausalLM) -> Run:
    """A run whose model starts as a copy of the parent."""
    model = LlamaForCausalLM(parent.config)
    model.load_state_dict(parent.state_dict())
    return Run(judge.recipe, model, make_optimizers(model, judge.recipe.matrix_lr, judge.recipe.other_lr))


def judge_loss(judge: JudgeRecipe, rollouts: Sequence[Rollout]) -> Callable[[Run], tuple[Tensor, int]]:
    """The loss of a run's step, for `loop.train`."""

    @lru_cache(maxsize=2)
    def pool(step: int) -> list[list[JudgedRow]]:
        shares = (judge.recipe.drill_share(step), judge.pairs)
        return judge_batches(judge.recipe.seed, judge.recipe.batch_size, step, rollouts, shares)

    def loss_of(run: Run) -> tuple[Tensor, int]:
        rows = pool(run.step // 8 * 8)[run.step % 8]
        return rows_loss(run.model, rows, judge), sum(len(row.token_ids) for row in rows)

    return loss_of


def rows_loss(model: LlamaForCausalLM, rows: list[JudgedRow], judge: JudgeRecipe) -> Tensor:
    """Binary cross-entropy at step ends and tokens (top layer) plus the next-token loss (exit layer), in nats."""
    token_ids, in_loss = collate(rows)
    labels, ends = collate_labels(rows)
    exit_layer = judge.recipe.exit_layer or model.config.num_hidden_layers
    output = model.model(input_ids=token_ids, use_cache=False, output_hidden_states=True)
    margin = good_margin(model, output.last_hidden_state[labels >= 0])
    targets = labels[labels >= 0].float()
    each = functional.binary_cross_entropy_with_logits(margin, targets, reduction="none")
    at_end = ends[labels >= 0]
    loss = judge.token_weight * each.sum() / max(1, len(each)) + each[at_end].sum() / max(1, int(at_end.sum()))
    wanted = in_loss[:, 1:]
    hidden = output.hidden_states[exit_layer]
    if exit_layer < model.config.num_hidden_layers:  # transformers has normed the last one already
        hidden = model.model.norm(hidden)
    language = functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), token_ids[:, 1:][wanted])
    return loss + judge.language_weight * language


def good_margin(model: LlamaForCausalLM, hidden: Tensor) -> Tensor:
    """Logit of ``<good>`` minus logit of ``<bad>``: `[..., D]` to `[...]`."""
    weight = model.lm_head.weight
    margin: Tensor = hidden @ (weight[GOOD] - weight[BAD])
    return margin


@torch.inference_mode()
def score_steps(
    model: LlamaForCausalLM, prompts: Sequence[str], completions: Sequence[str], rows: int = 128
) -> list[list[float]]:
    """The chance of being right so far, at the end of every line of every completion."""
    scores: list[list[float]] = [[] for _ in prompts]
    for chunk, _, token_ids, ends in scored_chunks(prompts, completions, rows):
        hidden = model.model(input_ids=token_ids, use_cache=False).last_hidden_state
        chances = torch.sigmoid(good_margin(model, hidden))
        for place, index in enumerate(chunk):
            scores[index] = chances[place][ends[place]].tolist()
    return scores


def scored_chunks(
    prompts: Sequence[str], completions: Sequence[str], rows: int
) -> Iterator[tuple[list[int], list[JudgedRow], Tensor, Tensor]]:
    """Solutions of like length together: their places, their rows, and the rows' ``token_ids`` and ``ends: [B, T]``."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]) + len(completions[index]))
    for start in range(0, len(order), rows):
        chunk = order[start : start + rows]
        judged = [scored_row(prompts[index], completions[index]) for index in chunk]
        yield chunk, judged, collate(judged)[0], collate_labels(judged)[1]


def scored_row(prompt: str, completion: str) -> JudgedRow:
    """A whole solution, step ends marked, without labels."""
    token_ids = [BOS, *encode(prompt)]
    ends = [False] * len(token_ids)
    lines = split_lines(completion)
    for index, line in enumerate(lines):
        ids = line_tokens(line, is_last=index == len(lines) - 1)
        token_ids += ids
        ends += [False] * (len(ids) - 1) + [True]
    blank = (False,) * len(token_ids)
    return JudgedRow(tuple(token_ids), blank, (-1,) * len(token_ids), tuple(ends))
