"""How likely given tokens are, with a thought before each and without."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inferscale.generators.sampling import Sampler

from .blocks import each_session, sample_thoughts, token_logprobs
from .head import mix
from .parallel import TextPass
from .streams import thought_numbers
from .thoughts import TextScores

if TYPE_CHECKING:
    from .model import QuietSTaR


def score_text(
    quiet: QuietSTaR,
    input_ids: Tensor,
    text: TextPass,
    positions: Tensor,
    num_thoughts: int,
    sampler: Sampler,
    seed: int,
) -> TextScores:
    """Scores of the tokens after `positions`; each column is about one of them.

    Args:
        quiet: The model.
        input_ids: `[batch, text]`.
        text: What the model has read of them; it is used up.
        positions: Indices of the tokens before those to score, `[positions]`.
        num_thoughts: Thoughts for each position; their probabilities are averaged.
        sampler: Draws the thoughts.
        seed: Names their streams.
    """
    before, keep = text.hidden[:, None, positions], text.keep
    after = _states_after_thoughts(quiet, text, positions, num_thoughts, sampler, seed)
    weights = quiet.head(before, after)  # [batch, thoughts, positions, 1]
    wanted = input_ids[:, None, positions + 1]
    each = token_logprobs(quiet, mix(before, after, weights), wanted)
    mixed = each.logsumexp(dim=1) - math.log(num_thoughts)  # the mean of the probabilities
    base = token_logprobs(quiet, before, wanted)[:, 0]
    weight = weights[..., 0].mean(dim=1)
    if keep is None:
        return TextScores(mixed, base, weight)
    known = (keep[:, positions] & keep[:, positions + 1]).to(mixed.dtype)
    return TextScores(mixed * known, base * known, weight * known)


def _states_after_thoughts(
    quiet: QuietSTaR, text: TextPass, positions: Tensor, num_thoughts: int, sampler: Sampler, seed: int
) -> Tensor:
    """Last hidden states at end-of-thought, `[batch, thoughts, positions, hidden]`; thought tokens are read once."""
    batch, length = len(text.embeds), quiet.thought_length
    numbers = thought_numbers(seed, batch, num_thoughts, positions, length)
    pieces = []
    for part, session in each_session(quiet, text.repeated(num_thoughts), positions, length + 2):
        tokens, _ = sample_thoughts(quiet, session, numbers[:, part], sampler)  # its last token has not been read
        start, end = (vector.expand(*tokens.shape[:2], 1, -1) for vector in (quiet.start, quiet.end))
        last = quiet.backbone.embed(tokens[:, :, -1:]) if length else start
        pieces.append(session.feed(torch.cat([last, end], dim=2))[:, :, -1])
    return torch.cat(pieces, dim=1).reshape(batch, num_thoughts, len(positions), -1)
