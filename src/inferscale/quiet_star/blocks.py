"""Thoughts of many positions, piece by piece: sampling them and reading them again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inferscale.generators.sampling import Sampler

from .parallel import Session, TextPass, open_session
from .streams import thought_numbers

if TYPE_CHECKING:
    from .model import QuietSTaR

_ROWS_AT_ONCE = 4096  # rows of logits kept at a time


def each_session(quiet: QuietSTaR, text: TextPass, positions: Tensor, block: int) -> Iterator[tuple[slice, Session]]:
    """Open sessions that take the positions piece by piece, each with its part of them.

    Thoughts of different positions never meet, so fewer at a time give the same states with less attention: a piece
    holds so many that their own keys are about four times the text's.

    Args:
        quiet: The model.
        text: What is thought about.
        positions: Where, `[positions]`.
        block: Tokens that each thought will be fed in all.
    """
    size = quiet.positions_at_once or max(4 * text.embeds.shape[1] // block, 8)
    for first in range(0, len(positions), size):
        part = slice(first, first + size)
        session = open_session(quiet.backbone, text, positions[part], quiet.parallel_check.way, quiet.rows_at_once)
        yield part, session
        session.close()


def sample_thoughts(quiet: QuietSTaR, session: Session, numbers: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities of new thoughts, `[rows, positions, T]`, drawn token by token.

    Args:
        quiet: The model.
        session: Of the thoughts' positions.
        numbers: Uniform numbers in (0, 1), `[rows, positions, T]`.
        sampler: Draws the tokens.
    """
    rows, positions, length = numbers.shape
    tokens = torch.empty(rows, positions, length, dtype=torch.long, device=numbers.device)
    logprobs = torch.empty(rows, positions, length, device=numbers.device)
    embeds = quiet.start.expand(rows, positions, 1, -1)
    for step in range(length):
        logits = quiet.logits(session.feed(embeds)).flatten(0, 2)
        draws = sampler.draw(logits, numbers[:, :, step].reshape(-1))
        tokens[:, :, step] = draws.tokens.reshape(rows, positions)
        logprobs[:, :, step] = draws.logprobs.reshape(rows, positions)
        embeds = quiet.backbone.embed(tokens[:, :, step, None])
    return tokens, logprobs


def states_after_thoughts(
    quiet: QuietSTaR, text: TextPass, positions: Tensor, num_thoughts: int, sampler: Sampler, seed: int
) -> Tensor:
    """Last hidden states at end-of-thought, `[batch, thoughts, positions, hidden]`; every thought token is read once.

    Args:
        quiet: The model.
        text: What is thought about; it is used up.
        positions: Where, `[positions]`.
        num_thoughts: Thoughts for each position.
        sampler: Draws the thoughts.
        seed: Names their streams.
    """
    batch, length = len(text.embeds), quiet.thought_length
    numbers = thought_numbers(seed, batch, num_thoughts, positions, length)
    pieces = []
    for part, session in each_session(quiet, text.repeated(num_thoughts), positions, length + 2):
        tokens, _ = sample_thoughts(quiet, session, numbers[:, part], sampler)  # its last token has not been read
        start, end = (vector.expand(*tokens.shape[:2], 1, -1) for vector in (quiet.start, quiet.end))
        last = quiet.backbone.embed(tokens[:, :, -1:]) if length else start
        pieces.append(session.feed(torch.cat([last, end], dim=2))[:, :, -1])
    return torch.cat(pieces, dim=1).reshape(batch, num_thoughts, len(positions), -1)


def block_embeds(quiet: QuietSTaR, tokens: Tensor, ahead: Tensor) -> Tensor:
    """Embeddings of start, thought, end and look-ahead, `[batch, thoughts, positions, T + 1 + n, hidden]`.

    Args:
        quiet: The model.
        tokens: Of the thoughts, `[batch, thoughts, positions, T]`.
        ahead: Embeddings of the true tokens after each position, `[batch, positions, n - 1, hidden]`.
    """
    marks = [vector.expand(*tokens.shape[:3], 1, -1) for vector in (quiet.start, quiet.end)]
    ahead = ahead[:, None].expand(-1, tokens.shape[1], -1, -1, -1)
    return torch.cat([marks[0], quiet.backbone.embed(tokens), marks[1], ahead], dim=3)


def token_logprobs(quiet: QuietSTaR, states: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of tokens under the logits of states, float32 `[...]`; logits are kept piece by piece.

    Args:
        quiet: The model.
        states: Last hidden states, `[..., hidden]`.
        tokens: Ids, broadcast against `[...]`.
        temperature: Divides the logits.
    """
    shape = states.shape[:-1]
    flat, wanted = states.reshape(-1, states.shape[-1]), tokens.expand(shape).reshape(-1)

    def piece(some: Tensor, ids: Tensor) -> Tensor:
        logits = quiet.logits(some)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return (logits / temperature).log_softmax(dim=-1).gather(-1, ids[:, None])[:, 0]

    if len(flat) <= _ROWS_AT_ONCE:
        return piece(flat, wanted).reshape(shape)
    pieces = [
        checkpoint(piece, some, ids, use_reentrant=False)
        for some, ids in zip(torch.split(flat, _ROWS_AT_ONCE), torch.split(wanted, _ROWS_AT_ONCE), strict=True)
    ]
    return torch.cat(pieces).reshape(shape)
