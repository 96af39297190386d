"""Rows that train and test the process reward model: labels of the exact checker, rollouts, and corrupted steps.

The process reward model: its loss, its scores, and how it is branched from a policy.

The baseline that a trained judge has to match: how likely a policy finds each line.

What is watched while the process reward model trains: on development problems, never on the test set.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from inferscale.rewards.calibration import first_error_auc
from inferscale.tree import Problem
from inferscale.zoo import task
from inferscale.zoo.tokenizer import BAD, BOS, EOS, GOOD, encode

from .data import Row, collate, corrupt, cut_batches, drill_line, write_line, wrong_number
from .figures import paired_wins
from .loop import JudgeRecipe, Run, make_optimizers

ANSWER_ENDS = ("", "\n")  # half of the answers end with </s>, as sampled, half with the separator of steps


@dataclass(frozen=True, slots=True)
class JudgedRow(Row):
    """A training sequence of the process reward model, cut after its first wrong line.

    Attributes:
        labels: For every token, 1 if the solution is right up to and including it, 0 if it is not, -1 for no label.
        ends: For every token, whether a step ends there.
    """

    labels: tuple[int, ...]
    ends: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    """A sampled solution.

    Attributes:
        prompt: The problem.
        completion: What the policy wrote.
        policy: Who wrote it.
    """

    prompt: str
    completion: str
    policy: str


def split_lines(completion: str) -> list[str]:
    """Lines with their end of line; lines of white space alone are left out, as the checker does."""
    return [line for line in completion.splitlines(keepends=True) if line.strip()]


def line_tokens(line: str, is_last: bool) -> list[int]:
    """Token ids of a line; the last line of a finished solution ends with ``</s>``."""
    return encode(line) + ([EOS] if is_last and not line.endswith("\n") else [])


def expected_lines(prompt: str, index: int) -> list[list[int]]:
    """Token ids of the ways to write the reference's line at a place; ``[]`` past the end."""
    lines, answer = task.reference(prompt)
    if index == len(lines):
        return [line_tokens(f"{task.ANSWER_PREFIX}{answer}", is_last=True)]
    if index > len(lines):
        return []
    line = lines[index]
    return [encode(line.text())] + ([encode(line.text(swap=True))] if line.op in "+*" else [])


def judged_row(prompt: str, completion: str) -> JudgedRow:
    """A solution with the label of every token, cut after the first wrong line.

    Within a wrong line the tokens before the first deviation from every right way to write it count as right.
    """
    head = [BOS, *encode(prompt)]
    token_ids, labels, ends = list(head), [-1] * len(head), [False] * len(head)
    in_loss = [False] * len(head)
    lines = split_lines(completion)
    for index, (line, is_right) in enumerate(zip(lines, task.check_steps(prompt, completion), strict=True)):
        ids = line_tokens(line, is_last=index == len(lines) - 1)
        right = len(ids) if is_right else _right_tokens(ids, prompt, index)
        token_ids += ids
        labels += [1] * right + [0] * (len(ids) - right)
        ends += [False] * (len(ids) - 1) + [True]
        in_loss += [is_right] * len(ids)
        if not is_right:
            break
    return JudgedRow(tuple(token_ids), tuple(in_loss), tuple(labels), tuple(ends))


def _right_tokens(ids: list[int], prompt: str, index: int) -> int:
    """How many tokens of a wrong line come before its first deviation; at most all but the last."""
    return min(len(ids) - 1, max((_common(ids, other) for other in expected_lines(prompt, index)), default=0))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


def pair_rows(rng: random.Random, problem: Problem) -> list[JudgedRow]:
    """A right solution and one with an injected error, of the same problem."""
    lines, answer = task.reference(problem.prompt)
    gold = "".join(write_line(rng, line) for line in lines) + f"{task.ANSWER_PREFIX}{answer}"
    end = rng.choice(ANSWER_ENDS)
    return [judged_row(problem.prompt, gold + end), judged_row(problem.prompt, corrupt(rng, problem.prompt)[0] + end)]


def drill_judged_row(rng: random.Random, lines: int = 10) -> JudgedRow:
    """Arithmetic lines without a story, half of them with a wrong result; each is labelled on its own.

    Ten labels of arithmetic alone in a short row: this is where comparing a result with the expected one is learned.
    """
    token_ids, in_loss, labels, ends = [BOS], [False], [-1], [False]
    for _ in range(lines):
        line = drill_line(rng)
        expected = write_line(rng, line)
        head, expected_tail = (encode(part) for part in re.split("(?<== )", expected))
        is_right = rng.random() < 0.5
        tail = expected_tail if is_right else encode(f"{wrong_number(rng, line.result)}\n")
        right = len(tail) if is_right else min(len(tail) - 1, _common(tail, expected_tail))
        token_ids += head + tail
        in_loss += [False] * len(head) + [is_right] * len(tail)
        labels += [-1] * len(head) + [1] * right + [0] * (len(tail) - right)
        ends += [False] * (len(head) + len(tail) - 1) + [True]
    return JudgedRow(tuple(token_ids), tuple(in_loss), tuple(labels), tuple(ends))


def judge_batches(
    seed: int, batch_size: int, step: int, rollouts: Sequence[Rollout], shares: tuple[float, float]
) -> list[list[JudgedRow]]:
    """Eight batches that start at `step`: drills, pairs, and rollouts; `shares` are those of drills and pairs."""
    rng = random.Random(f"inferscale.zoo/judge/{seed}/{step}")
    problems = task.problem_stream(rng.getrandbits(62), split="train")
    rows: list[JudgedRow] = []
    while len(rows) < 8 * batch_size:
        choice = rng.random()
        if choice < shares[0]:
            rows.append(drill_judged_row(rng))
        elif choice < shares[0] + shares[1] / 2 or not rollouts:  # a pair is two rows
            rows += pair_rows(rng, next(problems))
        else:
            rollout = rng.choice(rollouts)
            rows.append(judged_row(rollout.prompt, rollout.completion + rng.choice(ANSWER_ENDS)))
    batches: list[list[JudgedRow]] = cut_batches(rng, list(rows[: 8 * batch_size]), batch_size)  # type: ignore[assignment]
    return batches


def collate_labels(rows: Sequence[JudgedRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows' ``labels: [B, T]`` and ``ends: [B, T]``, padded with -1 and False."""
    width = max(len(row.token_ids) for row in rows)
    labels = torch.tensor([[*row.labels, *[-1] * (width - len(row.labels))] for row in rows])
    ends = torch.tensor([[*row.ends, *[False] * (width - len(row.ends))] for row in rows])
    return labels, ends


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


@torch.inference_mode()
def score_lines(
    model: LlamaForCausalLM, prompts: Sequence[str], completions: Sequence[str], rows: int = 128
) -> list[list[float]]:
    """The smallest probability that the policy gives to any token of a line, for every line of every completion."""
    scores: list[list[float]] = [[] for _ in prompts]
    for chunk, judged, token_ids, ends in scored_chunks(prompts, completions, rows):
        logits = model(input_ids=token_ids, use_cache=False).logits[:, :-1]
        chances = torch.softmax(logits, -1).gather(-1, token_ids[:, 1:, None])[..., 0]
        for place, index in enumerate(chunk):
            row = chances[place].tolist()
            begin = judged[place].token_ids.index(prompt_end(), 0)
            for end in ends[place].nonzero()[:, 0].tolist():
                scores[index].append(min(row[begin:end]))
                begin = end
    return scores


def prompt_end() -> int:
    """The id of the end of line: the first one in a row ends the prompt."""
    from inferscale.zoo.tokenizer import vocabulary

    return vocabulary()["\n"]


Pairs = tuple[list[str], list[str], list[str], list[int]]


def corrupted_pairs(count: int, seed: int, split: task.Split = "dev") -> Pairs:
    """Prompts, right solutions, solutions with one injected error, and the index of the wrong line, `count` of each."""
    rng = random.Random(f"inferscale.zoo/pairs/{seed}")
    prompts = [problem.prompt for problem in task.generate(count, seed, split=split)]
    right, wrong, errors = [], [], []
    for prompt in prompts:
        lines, answer = task.reference(prompt)
        right.append("".join(write_line(rng, line) for line in lines) + f"{task.ANSWER_PREFIX}{answer}")
        text, error = corrupt(rng, prompt)
        wrong.append(text)
        errors.append(error)
    return prompts, right, wrong, errors


def pair_scores(
    score: Callable[[Sequence[str], Sequence[str]], list[list[float]]], pairs: Pairs
) -> tuple[list[float], list[float]]:
    """Scores of the right and of the corrupted step of every pair, at the same line."""
    prompts, right, wrong, errors = pairs
    good, bad = score(prompts, right), score(prompts, wrong)
    return [row[at] for row, at in zip(good, errors, strict=True)], [
        row[at] for row, at in zip(bad, errors, strict=True)
    ]


def judge_monitor(rollouts: Sequence[Rollout], count: int = 300) -> Callable[[Run], str]:
    """A function that reports the paired win rate and the same-line first-error AUC of a run's model.

    The rollouts are of training problems; they tell whether the model learns at all. The gates are measured by
    `studies.embedded.evaluate` on held-out problems.
    """
    pairs = corrupted_pairs(count, seed=0)
    errors = [task.first_error(item.prompt, item.completion) for item in rollouts]

    def watch(run: Run) -> str:
        run.model.train(False)
        right, wrong = pair_scores(lambda prompts, texts: score_steps(run.model, prompts, texts), pairs)
        scores = score_steps(run.model, [item.prompt for item in rollouts], [item.completion for item in rollouts])
        chains = list(zip(scores, errors, strict=True))
        by_line = [first_error_auc(chains, line) for line in range(6)]
        text = " ".join(f"{auc:.3f}" for auc, _, _ in by_line)
        return f"pairs won {paired_wins(right, wrong):.3f} auc by line {text}"

    return watch
