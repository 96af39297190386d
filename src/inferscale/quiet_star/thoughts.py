"""Thoughts of many positions: sampling them, reading them again, and how likely they make given tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inferscale._compat import evaluating
from inferscale.runtime.sampling import Sampler

from .head import mix
from .parallel import Session, TextPass, open_session, read_text
from .streams import row_keys, thought_numbers

if TYPE_CHECKING:
    from .model import QuietSTaR


@dataclass(frozen=True, slots=True)
class Thoughts:
    """Sampled thoughts; gradients never flow through them.

    Attributes:
        tokens: Ids without start and end, int64 `[batch, thoughts, positions, T]`.
        logprobs: Their log-probabilities (nats) under the distribution drawn from, the same shape.
        positions: Indices of the text tokens that the thoughts follow, int64 `[positions]`.
    """

    tokens: Tensor
    logprobs: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True)
class Talk:
    """Hidden states of one pass over text and thoughts, with gradients.

    Look-ahead k (0 to ``n - 1``) predicts the token at index ``j + k + 1`` after the thought at position j, with the
    true tokens up to ``j + k`` given.

    Attributes:
        text: Last hidden states of the text, those of the plain model, `[batch, text, hidden]`.
        base: The same at positions ``j + k``, `[batch, 1, positions, n, hidden]`.
        thought: After the thought, `[batch, thoughts, positions, n, hidden]`.
        policy: From which the thought tokens are drawn, `[batch, thoughts, positions, T, hidden]`.
        mixing_weight: `[batch, thoughts, positions, n, 1]`.
    """

    text: Tensor
    base: Tensor
    thought: Tensor
    policy: Tensor
    mixing_weight: Tensor

    @property
    def mixed(self) -> Tensor:
        """The states that the output head reads, `[batch, thoughts, positions, n, hidden]`."""
        return mix(self.base, self.thought, self.mixing_weight)


@dataclass(frozen=True, slots=True)
class TextScores:
    """How likely given tokens are, with and without thoughts; each column is about the token after a position.

    Attributes:
        mixed: Log-probability (nats) with a thought before the token, `[batch, positions]`; 0 at padding.
        base: Log-probability of the plain model, the same shape.
        mixing_weight: Mean weight of the thoughts, the same shape.
    """

    mixed: Tensor
    base: Tensor
    mixing_weight: Tensor

    @property
    def utility(self) -> Tensor:
        """What the thoughts added, in nats, `[batch, positions]`: the reward of training."""
        return self.mixed - self.base


@dataclass(frozen=True, slots=True)
class QuietSTaROutput:
    """Next-token predictions after a thought at every position.

    Attributes:
        logits: `[batch, text, vocabulary]`; with several thoughts, logarithms of the mean probabilities.
        base_logits: Of the plain model, the same shape.
        mixing_weight: Mean over the thoughts, `[batch, text, 1]`.
        thoughts: The thoughts.
    """

    logits: Tensor
    base_logits: Tensor
    mixing_weight: Tensor
    thoughts: Thoughts


def mean_of_thoughts(logits: Tensor) -> Tensor:
    """Logarithms of the mean probabilities over dimension 1; the logits themselves if there is one thought."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits.float().log_softmax(dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])


_ROWS_AT_ONCE = 4096  # rows of logits kept at a time


def thinking_positions(positions: Tensor | None, input_ids: Tensor, ahead: int = 0) -> Tensor:
    """Indices of the tokens to think after, int64 `[positions]`, checked against the text.

    Args:
        positions: Those wanted; ``None`` for all that have room.
        input_ids: The text, `[batch, text]`.
        ahead: Tokens that must come after each.

    Raises:
        ValueError: If there is none, or one does not have room.
    """
    length = input_ids.shape[1]
    if positions is None:
        positions = torch.arange(max(length - ahead, 0), device=input_ids.device)
    if not len(positions) or int(positions.min()) < 0 or int(positions.max()) + ahead >= length:
        raise ValueError(
            f"positions {positions.tolist()[:8]} with {ahead} tokens after each do not fit a text of {length}"
        )
    return positions


def read(quiet: QuietSTaR, input_ids: Tensor, attention_mask: Tensor | None) -> TextPass:
    """The text as the plain model reads it, ready to be thought about."""
    keep = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
    return read_text(quiet.backbone, quiet.backbone.embed(input_ids), keep, quiet.parallel_check.way)


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


def think_about(
    quiet: QuietSTaR, text: TextPass, positions: Tensor, num_thoughts: int, sampler: Sampler, seed: int
) -> Thoughts:
    """Thoughts at `positions` of a text.

    Args:
        quiet: The model.
        text: What is thought about; it is used up.
        positions: Where, `[positions]`.
        num_thoughts: Thoughts for each position.
        sampler: Draws the thoughts.
        seed: Names their streams.
    """
    batch, length = len(text.embeds), quiet.thought_length
    numbers = thought_numbers(row_keys(seed, batch), num_thoughts, positions, length)
    pieces = [
        sample_thoughts(quiet, session, numbers[:, part], sampler)
        for part, session in each_session(quiet, text.repeated(num_thoughts), positions, length + 2)
    ]
    shape = (batch, num_thoughts, len(positions), length)
    tokens, logprobs = (torch.cat(parts, dim=1).reshape(shape) for parts in zip(*pieces, strict=True))
    return Thoughts(tokens, logprobs, positions)


def talk_about(quiet: QuietSTaR, input_ids: Tensor, text: TextPass, thoughts: Thoughts, talk_length: int) -> Talk:
    """Hidden states after thoughts, read again with their text and `talk_length` look-aheads.

    Args:
        quiet: The model.
        input_ids: `[batch, text]`.
        text: What the model has read of them; it is used up.
        thoughts: What was thought about it.
        talk_length: Look-aheads n.
    """
    batch, num_thoughts, _, length = thoughts.tokens.shape
    positions, states = thoughts.positions, text.hidden
    # index of the token at position j and look-ahead k, `[positions, n]`
    index = positions[:, None] + torch.arange(talk_length, device=positions.device)
    ahead = quiet.backbone.embed(input_ids[:, index[:, 1:]])  # [batch, positions, n - 1, hidden]
    embeds = _block_embeds(quiet, thoughts.tokens, ahead).flatten(0, 1)
    sessions = each_session(quiet, text.repeated(num_thoughts), positions, embeds.shape[2])
    parts = [session.feed(embeds[:, part]) for part, session in sessions]
    hidden = torch.cat(parts, dim=1).reshape(batch, num_thoughts, *embeds.shape[1:])
    base, thought = states[:, index].unsqueeze(1), hidden[..., length + 1 :, :]
    return Talk(states, base, thought, hidden[..., :length, :], quiet.head(base, thought))


def _block_embeds(quiet: QuietSTaR, tokens: Tensor, ahead: Tensor) -> Tensor:
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
