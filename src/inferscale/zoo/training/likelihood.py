"""The baseline that a trained judge has to match: how likely a policy finds each line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM

from .judge import scored_chunks


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
