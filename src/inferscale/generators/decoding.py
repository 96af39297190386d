"""The token loop: logits from a decoder, tokens from a sampler, until every branch has ended."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .branch import Branch
from .decoder import Decoder, GeneratorStats
from .sampling import Sampler, uniforms


def sample_branches(branches: Sequence[Branch], decoder: Decoder, sampler: Sampler, stats: GeneratorStats) -> None:
    """Samples all of `branches` to their ends, in one batch; can be called again when it was interrupted."""
    for branch in branches:
        stats.wasted_tokens += len(branch.tokens)
        branch.restart()
    live = list(branches)
    logits = decoder.start(live)
    while True:
        tokens = _draw(live, logits, sampler)
        rows = [row for row, branch in enumerate(live) if branch.finish is None]
        if len(rows) < len(live):
            decoder.keep(rows)
            if not rows:
                break
            live = [live[row] for row in rows]
            tokens = tokens[torch.tensor(rows, device=tokens.device)]
        logits = decoder.step(tokens)
    stats.decoded_tokens += sum(len(branch.tokens) for branch in branches)


def _draw(live: Sequence[Branch], logits: Tensor, sampler: Sampler) -> Tensor:
    """Draws one token for each branch and hands it over; the ids, `[rows]`."""
    device = logits.device
    if device.type == "mps":  # has no float64
        logits = logits.cpu()
    keys = np.array([branch.key for branch in live], dtype=np.uint64)
    counters = np.array([len(branch.tokens) for branch in live], dtype=np.uint64)
    numbers = torch.from_numpy(uniforms(keys, counters)).to(logits.device)
    wanted = [branch.request.greedy for branch in live]
    greedy = torch.tensor(wanted, device=logits.device) if any(wanted) else None
    draws = sampler.draw(logits, numbers, greedy)
    logprobs = draws.logprobs.tolist()
    if any(map(math.isnan, logprobs)):
        raise FloatingPointError(
            f"the model's logits hold NaN or infinity ({logits.dtype}): load it in bfloat16 or float32"
        )
    columns = zip(draws.tokens.tolist(), logprobs, draws.confidences.tolist(), strict=True)
    for branch, (token, logprob, confidence) in zip(live, columns, strict=True):
        branch.push(token, logprob, confidence)
    return draws.tokens.to(device)
