"""The token loop: logits from a decoder, tokens from a sampler, until every branch has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .branch import Branch
from .decoder import Decoder, GeneratorStats
from .drafts import Drafts
from .sampling import Draws, Sampler, uniforms


def sample_branches(
    branches: Sequence[Branch], rows: int, decoder: Decoder, sampler: Sampler, stats: GeneratorStats, check_every: int
) -> None:
    """Samples all of `branches` that have not ended to their ends; can be called again when it was interrupted.

    Args:
        branches: Those of a problem, and of a node, stand together.
        rows: Most branches that decode at a time. When half of them have ended others take their places, if the
            decoder can do that, or else when all have ended.
        decoder: Gives logits.
        sampler: Draws tokens.
        stats: Counts tokens.
        check_every: Tokens drawn between two looks at which branches have ended. A look waits for the device; what was
            drawn beyond an end is wasted.
    """
    waiting = deque(branch for branch in branches if branch.finish is None)
    for branch in waiting:
        branch.restart()
    drafts = Drafts()
    logits: Tensor | None = None
    try:
        while waiting or drafts.branches:
            live = len(drafts.branches)
            if waiting and (not live or (decoder.refills and 2 * live <= rows)):
                new = [waiting.popleft() for _ in range(min(rows - live, len(waiting)))]
                first = decoder.start(new)
                logits = first if logits is None else torch.cat([logits, first])
                drafts.add(new)
            assert logits is not None
            ahead = 1 if decoder.follows_branches else drafts.most_ahead(check_every)
            draws = _draw_ahead(drafts, logits, decoder, sampler, ahead)
            drafts.record(_to_host(draws, logits.dtype), tell_all=decoder.follows_branches)
            logits = _go_on(drafts, draws[-1].tokens.to(logits.device), decoder, stats)
    finally:
        if drafts.branches:  # interrupted
            stats.wasted_tokens += int(drafts.counts.sum())
            decoder.keep([])


def _draw_ahead(drafts: Drafts, logits: Tensor, decoder: Decoder, sampler: Sampler, count: int) -> list[Draws]:
    """The next `count` tokens of every row, drawn without a look at them."""
    home = torch.device("cpu") if logits.device.type == "mps" else logits.device  # mps has no float64
    positions = drafts.counts[:, None] + np.arange(count)
    numbers = torch.from_numpy(uniforms(drafts.keys[:, None], positions.astype(np.uint64))).to(home)
    greedy = torch.from_numpy(drafts.greedy).to(home) if drafts.greedy.any() else None
    draws: list[Draws] = []
    for place in range(count):
        if draws:
            logits = decoder.step(draws[-1].tokens.to(logits.device))
        draws.append(sampler.draw(logits.to(home), numbers[:, place], greedy))
    return draws


def _to_host(draws: Sequence[Draws], dtype: torch.dtype) -> NDArray[np.float64]:
    """Ids, log-probabilities and confidences, `[3, rows, draws]`: one copy from the device."""
    columns = [torch.stack([d.tokens.double(), d.logprobs.double(), d.confidences.double()]) for d in draws]
    drawn: NDArray[np.float64] = torch.stack(columns, dim=2).cpu().numpy()
    if np.isnan(drawn[1]).any():
        raise FloatingPointError(f"the model's logits hold NaN or infinity ({dtype}): load it in bfloat16 or float32")
    return drawn


def _go_on(drafts: Drafts, tokens: Tensor, decoder: Decoder, stats: GeneratorStats) -> Tensor | None:
    """Takes the branches that have ended out; logits after the newest token of the others, if there are any."""
    ended, rows = drafts.rows(going_on=False), drafts.rows(going_on=True)
    if len(ended):
        decoded = sum(len(drafts.branches[row].tokens) for row in ended)
        stats.decoded_tokens += decoded
        stats.wasted_tokens += int(drafts.counts[ended].sum()) - decoded
        decoder.keep(rows.tolist())
        drafts.keep(rows)
        tokens = tokens[torch.from_numpy(rows).to(tokens.device)]
    return decoder.step(tokens) if len(rows) else None
