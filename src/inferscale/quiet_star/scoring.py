"""How likely given tokens are, with a thought before each and without."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inferscale._evaluating import evaluating
from inferscale.generators.sampling import Sampler

from .blocks import each_session, read, sample_thoughts, token_logprobs
from .head import mix
from .parallel import TextPass
from .thoughts import TextScores

if TYPE_CHECKING:
    from .model import QuietSTaR


@torch.no_grad()
def score_text(
    quiet: QuietSTaR,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    positions: Tensor,
    numbers: Tensor,
    sampler: Sampler,
) -> TextScores:
    """Scores of the tokens after `positions`; each column is about one of them.

    Args:
        quiet: The model.
        input_ids: `[batch, text]`.
        attention_mask: 1 for text and 0 for padding, `[batch, text]`.
        positions: Indices of the tokens before those to score, `[positions]`.
        numbers: Uniform numbers in (0, 1) that the thoughts are drawn with, `[batch * thoughts, positions, T]`; the
            probabilities after the thoughts of a position are averaged.
        sampler: Draws the thoughts.
    """
    with evaluating(quiet.model):
        text = read(quiet, input_ids, attention_mask)
        before, keep = text.hidden[:, None, positions], text.keep
        after = _states_after_thoughts(quiet, text, positions, numbers, sampler)
        weights = quiet.head(before, after)  # [batch, thoughts, positions, 1]
        wanted = input_ids[:, None, positions + 1]
        each = token_logprobs(quiet, mix(before, after, weights), wanted)
        mixed = each.logsumexp(dim=1) - math.log(each.shape[1])  # the mean of the probabilities
        base = token_logprobs(quiet, before, wanted)[:, 0]
    weight = weights[..., 0].mean(dim=1)
    if keep is None:
        return TextScores(mixed, base, weight)
    known = (keep[:, positions] & keep[:, positions + 1]).to(mixed.dtype)
    return TextScores(mixed * known, base * known, weight * known)


def _states_after_thoughts(
    quiet: QuietSTaR, text: TextPass, positions: Tensor, numbers: Tensor, sampler: Sampler
) -> Tensor:
    """Last hidden states at end-of-thought, `[batch, thoughts, positions, hidden]`; thought tokens are read once."""
    batch, length = len(text.embeds), numbers.shape[2]
    pieces = []
    for part, session in each_session(quiet, text.repeated(len(numbers) // batch), positions, length + 2):
        tokens, _ = sample_thoughts(quiet, session, numbers[:, part], sampler)  # its last token has not been read
        start, end = (vector.expand(*tokens.shape[:2], 1, -1) for vector in (quiet.start, quiet.end))
        last = quiet.backbone.embed(tokens[:, :, -1:]) if length else start
        pieces.append(session.feed(torch.cat([last, end], dim=2))[:, :, -1])
    states = torch.cat(pieces, dim=1)
    return states.reshape(batch, -1, *states.shape[1:])
