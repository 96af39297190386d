"""The baseline that a trained judge has to match: how likely a policy finds each line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM

from .data import collate
from .judge import scored_row
from .judging import collate_labels


@torch.inference_mode()
def score_lines(
    model: LlamaForCausalLM, prompts: Sequence[str], completions: Sequence[str], rows: int = 128
) -> list[list[float]]:
    """The smallest probability that the policy gives to any token of a line, for every line of every completion."""
    scores: list[list[float]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]) + len(completions[index]))
    for start in range(0, len(order), rows):
        chunk = order[start : start + rows]
        judged = [scored_row(prompts[index], completions[index]) for index in chunk]
        token_ids, ends = collate(judged)[0], collate_labels(judged)[1]
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
