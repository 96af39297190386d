"""`QuietSTaR`: a causal language model that thinks before every token (Zelikman et al. 2024, arXiv:2403.09629)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from inferscale.generators.sampling import Sampler, uniforms

from .backbone import Backbone, evaluating
from .head import ThoughtMixingHead
from .parallel import ParallelCheck, TextPass, check_parallel, open_session, read_text
from .thoughts import QuietSTaROutput, Talk, TextScores, Thoughts

_UNLIKELY = 200.0  # nats below the likeliest token: probability 0 in float32


class QuietSTaR(nn.Module):
    """A causal language model with a thought after every text token, mixed into the prediction of the next one.

    The wrapped model is used from outside: it is neither subclassed nor patched, its vocabulary is not resized, and
    start- and end-of-thought are vectors of our own, fed through ``inputs_embeds``. Until it is trained, the wrapper
    predicts exactly what the model predicts.

    Differs from the paper: thoughts are drawn by inverse CDF from streams of uniform numbers; the start and end
    vectors are stored at their natural scale and train with their own learning rate (`train.param_groups`), since a
    factor on a gradient does nothing under Adam.

    Attributes:
        model: The language model.
        start: Start-of-thought vector, `[hidden]`.
        end: End-of-thought vector, `[hidden]`.
        head: The mixing head.
        thought_length: Sampled tokens T of a thought; with start and end it takes T + 2.
        forbidden_ids: Ids that no distribution may emit.
    """

    def __init__(
        self,
        model: Any,
        thought_length: int = 8,
        *,
        bounded: bool = False,
        start_token_id: int | None = None,
        end_token_id: int | None = None,
        forbidden_ids: Sequence[int] = (),
        parallel: Literal["auto", "mask", "fold"] = "auto",
        positions_at_once: int | None = None,
        rows_at_once: int = 256,
    ) -> None:
        """Wraps a model; everything that can be checked is checked here.

        Args:
            model: A transformers causal language model, kept as it is (device, dtype, mode).
            thought_length: Tokens sampled for a thought, 0 or more.
            bounded: Whether the mixing weight is bounded, see `ThoughtMixingHead`.
            start_token_id: Token whose embedding the start vector starts from (published: the first of ``"---"``);
                by default the mean embedding.
            end_token_id: The same for the end vector; by default `start_token_id`.
            forbidden_ids: Ids never to be sampled, in thoughts or text, such as reserved special tokens.
            parallel: ``"mask"``, ``"fold"``, or whichever the self-check at the first parallel pass finds right.
            positions_at_once: Positions that share one masked pass; by default as many as keep the mask smaller than
                about four times the text. Fewer cost less attention and memory, and more passes.
            rows_at_once: Rows of one pass where thoughts are folded into the batch.

        Raises:
            UnsupportedModelError: If the model's hidden states and head cannot be used from outside.
            ValueError: If an argument does not fit.
        """
        super().__init__()
        if thought_length < 0:
            raise ValueError(f"thought_length={thought_length}: give 0 or more tokens")
        if parallel not in ("auto", "mask", "fold"):
            raise ValueError(f'parallel={parallel!r}: choose "auto", "mask" or "fold"')
        self.model = model
        self.thought_length = thought_length
        self.forbidden_ids = tuple(sorted(set(forbidden_ids)))
        self.backbone = Backbone(model)
        weight = model.get_input_embeddings().weight
        self.start = nn.Parameter(self._first_embedding(start_token_id))
        self.end = nn.Parameter(self._first_embedding(start_token_id if end_token_id is None else end_token_id))
        self.head = ThoughtMixingHead(len(self.start), bounded).to(device=weight.device, dtype=weight.dtype)
        self._parallel = parallel
        self._positions_at_once = positions_at_once
        self._rows_at_once = rows_at_once
        self._check: ParallelCheck | None = None

    def _first_embedding(self, token_id: int | None) -> Tensor:
        weight = self.model.get_input_embeddings().weight
        if token_id is not None and not 0 <= token_id < len(weight):
            raise ValueError(f"token id {token_id} is outside the model's vocabulary of {len(weight)}")
        with torch.no_grad():
            ids = torch.arange(len(weight), device=weight.device) if token_id is None else token_id
            vectors = self.backbone.embed(torch.as_tensor(ids, device=weight.device))
            return vectors.mean(dim=0) if token_id is None else vectors.clone()

    @property
    def parallel_check(self) -> ParallelCheck:
        """How parallel thoughts run, and what the self-check found; checked on first use."""
        if self._check is None:
            self._check = check_parallel(self.backbone, self._parallel)
        return self._check

    @property
    def thought_parameters(self) -> list[nn.Parameter]:
        """What this wrapper adds to the model: start, end and head."""
        return [self.start, self.end, *self.head.parameters()]

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own logits `[..., vocabulary]`, with `forbidden_ids` at probability 0."""
        logits = self.backbone.logits(hidden)
        if not self.forbidden_ids:
            return logits
        ids = torch.tensor(self.forbidden_ids, device=logits.device)
        floor = logits.detach().amax(dim=-1, keepdim=True) - _UNLIKELY
        return logits.index_copy(-1, ids, floor.expand(*logits.shape[:-1], len(ids)))

    # -- parallel thoughts ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def think(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        num_thoughts: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Thoughts:
        """Thoughts after text tokens, all positions in parallel, without gradient.

        Args:
            input_ids: `[batch, text]`.
            attention_mask: 1 for text and 0 for padding, `[batch, text]`.
            positions: Indices of the tokens to think after, int64 `[positions]`; by default all.
            num_thoughts: Independent thoughts for each position.
            temperature: Divides the logits; 0 takes the likeliest token.
            seed: Names the stream of uniform numbers; the same seed gives the same thoughts.
        """
        positions = self._checked(input_ids, positions, 0)
        shape = (len(input_ids), num_thoughts, len(positions), self.thought_length)
        numbers = torch.from_numpy(uniforms([seed], np.arange(int(np.prod(shape)), dtype=np.uint64)))
        numbers = numbers.to(input_ids.device).reshape(shape).flatten(0, 1)
        sampler = Sampler(temperature)
        with evaluating(self.model):
            text = self._read(input_ids, attention_mask).repeated(num_thoughts)
            pieces = [
                self._think_at(text, at, numbers[:, first : first + len(at)], sampler)
                for first, at in _pieces(positions, self._chunk(text, 1))
            ]
        tokens, logprobs = (torch.cat(parts, dim=1).reshape(shape) for parts in zip(*pieces, strict=True))
        return Thoughts(tokens, logprobs, positions)

    def _think_at(self, text: TextPass, at: Tensor, numbers: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
        rows, positions, length = numbers.shape
        session = open_session(self.backbone, text, at, self.parallel_check.way, self._rows_at_once)
        tokens = torch.empty(rows, positions, length, dtype=torch.long, device=numbers.device)
        logprobs = torch.empty(rows, positions, length, device=numbers.device)
        embeds = self.start.expand(rows, positions, 1, -1)
        for step in range(length):
            logits = self.logits(session.feed(embeds)).flatten(0, 2)
            draws = sampler.draw(logits, numbers[:, :, step].reshape(-1))
            tokens[:, :, step] = draws.tokens.reshape(rows, positions)
            logprobs[:, :, step] = draws.logprobs.reshape(rows, positions)
            embeds = self.backbone.embed(tokens[:, :, step, None])
        session.close()
        return tokens, logprobs

    def talk(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        thoughts: Thoughts,
        talk_length: int = 1,
    ) -> Talk:
        """Hidden states of text, thoughts and `talk_length` look-aheads in one pass, with gradients.

        Args:
            input_ids: `[batch, text]`.
            attention_mask: 1 for text and 0 for padding, `[batch, text]`.
            thoughts: What was thought about this text.
            talk_length: Look-aheads n; position j needs the text up to index ``j + n - 1``.
        """
        positions = self._checked(input_ids, thoughts.positions, talk_length - 1)
        batch, num_thoughts, _, length = thoughts.tokens.shape
        text = self._read(input_ids, attention_mask)
        states = text.hidden
        # index of the token at position j and look-ahead k, `[positions, n]`
        index = positions[:, None] + torch.arange(talk_length, device=positions.device)
        ahead = self.backbone.embed(input_ids[:, index[:, 1:]])  # [batch, positions, n - 1, hidden]
        embeds = self._blocks(thoughts.tokens, ahead).flatten(0, 1)
        text = text.repeated(num_thoughts)
        parts = []
        for first, at in _pieces(positions, self._chunk(text, embeds.shape[2])):
            session = open_session(self.backbone, text, at, self.parallel_check.way, self._rows_at_once)
            parts.append(session.feed(embeds[:, first : first + len(at)]))
            session.close()
        hidden = torch.cat(parts, dim=1).reshape(batch, num_thoughts, *embeds.shape[1:])
        base, thought = states[:, index].unsqueeze(1), hidden[..., length + 1 :, :]
        return Talk(states, base, thought, hidden[..., :length, :], self.head(base, thought))

    def _blocks(self, tokens: Tensor, ahead: Tensor) -> Tensor:
        """Embeddings of start, thought, end and look-ahead, `[batch, thoughts, positions, T + 1 + n, hidden]`."""
        shape = (*tokens.shape[:3], 1, len(self.start))
        return torch.cat(
            [
                self.start.expand(shape),
                self.backbone.embed(tokens),
                self.end.expand(shape),
                ahead[:, None].expand(-1, tokens.shape[1], -1, -1, -1),
            ],
            dim=3,
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        num_thoughts: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> QuietSTaROutput:
        """Next-token predictions `[batch, text, vocabulary]` after a thought at every position.

        Args:
            input_ids: `[batch, text]`.
            attention_mask: 1 for text and 0 for padding, `[batch, text]`.
            num_thoughts: Thoughts for each position; their probabilities are averaged.
            temperature: Of the thoughts; 0 takes the likeliest.
            seed: Names the thoughts' stream.
        """
        thoughts = self.think(input_ids, attention_mask, num_thoughts=num_thoughts, temperature=temperature, seed=seed)
        talk = self.talk(input_ids, attention_mask, thoughts)
        logits = mean_of_thoughts(self.logits(talk.mixed[:, :, :, 0]))
        weight = talk.mixing_weight[:, :, :, 0].mean(dim=1)
        return QuietSTaROutput(logits, self.logits(talk.text), weight, thoughts)

    @torch.no_grad()
    def score(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        num_thoughts: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> TextScores:
        """Log-probability of every token but the first, with and without a thought before it.

        Args:
            input_ids: `[batch, text]`.
            attention_mask: 1 for text and 0 for padding, `[batch, text]`.
            num_thoughts: Thoughts for each position; their probabilities are averaged.
            temperature: Of the thoughts; 0 takes the likeliest.
            seed: Names the thoughts' stream.
        """
        with evaluating(self.model):
            output = self(input_ids, attention_mask, num_thoughts=num_thoughts, temperature=temperature, seed=seed)
        wanted = input_ids[:, 1:, None]
        mixed, base = (
            logits[:, :-1].float().log_softmax(dim=-1).gather(-1, wanted)[..., 0]
            for logits in (output.logits, output.base_logits)
        )
        weight = output.mixing_weight[:, :-1, 0]
        if attention_mask is None:
            return TextScores(mixed, base, weight)
        known = (attention_mask[:, 1:] * attention_mask[:, :-1]).to(mixed.dtype)
        return TextScores(mixed * known, base * known, weight * known)

    def _read(self, input_ids: Tensor, attention_mask: Tensor | None) -> TextPass:
        keep = None
        if attention_mask is not None and not bool(attention_mask.all()):
            keep = attention_mask.bool()
        return read_text(self.backbone, self.backbone.embed(input_ids), keep, self.parallel_check.way)

    def _chunk(self, text: TextPass, block: int) -> int:
        """Positions of one masked pass: so many that their own keys are about four times the text's."""
        if self._positions_at_once is not None:
            return self._positions_at_once
        return max(4 * text.embeds.shape[1] // (block if block > 1 else self.thought_length + 2), 8)

    def _checked(self, input_ids: Tensor, positions: Tensor | None, ahead: int) -> Tensor:
        """Positions to think at, checked against the text."""
        length = input_ids.shape[1]
        if positions is None:
            positions = torch.arange(length - ahead, device=input_ids.device)
        if not len(positions) or int(positions.min()) < 0 or int(positions.max()) + ahead >= length:
            raise ValueError(
                f"positions {positions.tolist()[:8]} with {ahead} tokens after each do not fit a text of {length}"
            )
        return positions

    # -- saving --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str], *, merge: bool = False) -> None:
        """Writes start, end and head; see `checkpoint.save`."""
        from . import checkpoint

        checkpoint.save(self, folder, merge=merge)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], model: Any = None, **options: Any) -> QuietSTaR:
        """A wrapper as it was saved; see `checkpoint.load`."""
        from . import checkpoint

        return checkpoint.load(folder, model, **options)


def mean_of_thoughts(logits: Tensor) -> Tensor:
    """Logarithms of the mean probabilities over dimension 1; the logits themselves if there is one thought."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits.float().log_softmax(dim=-1).logsumexp(dim=1) - float(np.log(logits.shape[1]))


def _pieces(positions: Tensor, size: int) -> list[tuple[int, Tensor]]:
    return [(first, positions[first : first + size]) for first in range(0, len(positions), size)]
