"""`QuietSTaR`: a causal language model that thinks before every token (Zelikman et al. 2024, arXiv:2403.09629)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from inferscale._compat import evaluating
from inferscale.runtime.sampling import Sampler

from .backbone import Backbone
from .head import ThoughtMixingHead
from .parallel import ParallelCheck, check_parallel
from .streams import row_keys, thought_numbers
from .thoughts import (
    QuietSTaROutput,
    Talk,
    TextScores,
    Thoughts,
    mean_of_thoughts,
    read,
    score_text,
    talk_about,
    think_about,
    thinking_positions,
)

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
        positions_at_once: Positions of one masked pass; ``None`` fits them to the text.
        rows_at_once: Rows of one folded pass.
    """

    _forbidden: Tensor

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
        seed: int = 0,
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
            seed: Of the head's first weights.

        Raises:
            UnsupportedModelError: If the model's hidden states and head cannot be used from outside.
            ValueError: If an argument does not fit.
        """
        super().__init__()
        if thought_length < 0:
            raise ValueError(f"thought_length={thought_length}: give 0 or more tokens")
        if parallel not in ("auto", "mask", "fold"):
            raise ValueError(f'parallel={parallel!r}: choose "auto", "mask" or "fold"')
        for name, size in (("positions_at_once", positions_at_once), ("rows_at_once", rows_at_once)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}: give a positive number")
        self.model = model
        self.thought_length = thought_length
        self.forbidden_ids = tuple(sorted(set(forbidden_ids)))
        self.backbone = Backbone(model)
        self.backbone.check_ids(self.forbidden_ids)
        forbidden = torch.tensor(self.forbidden_ids, dtype=torch.long, device=self.backbone.device)
        self.register_buffer("_forbidden", forbidden, persistent=False)
        start = self.backbone.first_mark(start_token_id)
        self.start = nn.Parameter(start)
        self.end = nn.Parameter(start.clone() if end_token_id is None else self.backbone.first_mark(end_token_id))
        self.head = ThoughtMixingHead(len(start), bounded, seed).to(self.backbone.device, self.backbone.dtype)
        self._parallel = parallel
        self.positions_at_once = positions_at_once
        self.rows_at_once = rows_at_once
        self._check: ParallelCheck | None = None

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
        ids = self._forbidden.to(logits.device)
        floor = logits.detach().amax(dim=-1, keepdim=True) - _UNLIKELY
        return logits.index_copy(-1, ids, floor.expand(*logits.shape[:-1], len(ids)))

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
            seed: Names the streams of uniform numbers, one for each row and thought: what is thought at a position does
                not depend on where else is thought, nor on how many rows come after.
        """
        positions = thinking_positions(positions, input_ids)
        with evaluating(self.model):
            text = read(self, input_ids, attention_mask)
            return think_about(self, text, positions, num_thoughts, Sampler(temperature), seed)

    def talk(self, input_ids: Tensor, attention_mask: Tensor | None, thoughts: Thoughts, talk_length: int = 1) -> Talk:
        """Hidden states of text, thoughts and `talk_length` look-aheads in one pass, with gradients.

        Args:
            input_ids: `[batch, text]`.
            attention_mask: 1 for text and 0 for padding, `[batch, text]`.
            thoughts: What was thought about this text.
            talk_length: Look-aheads n; position j needs the text up to index ``j + n - 1``.
        """
        if talk_length < 1:
            raise ValueError(f"talk_length={talk_length}: give at least one")
        thinking_positions(thoughts.positions, input_ids, talk_length - 1)
        return talk_about(self, input_ids, read(self, input_ids, attention_mask), thoughts, talk_length)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        num_thoughts: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> QuietSTaROutput:
        """Next-token predictions `[batch, text, vocabulary]` after a thought at every position, with gradients.

        Arguments are those of `think`; the probabilities after several thoughts are averaged.
        """
        thoughts = self.think(input_ids, attention_mask, num_thoughts=num_thoughts, temperature=temperature, seed=seed)
        talk = self.talk(input_ids, attention_mask, thoughts)
        logits = mean_of_thoughts(self.logits(talk.mixed[:, :, :, 0]))
        weight = talk.mixing_weight[:, :, :, 0].mean(dim=1)
        return QuietSTaROutput(logits, self.logits(talk.text), weight, thoughts)

    def score(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        num_thoughts: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> TextScores:
        """Log-probabilities of given tokens, with and without a thought before each; without gradient.

        Args:
            input_ids: `[batch, text]`.
            attention_mask: 1 for text and 0 for padding, `[batch, text]`.
            positions: Indices of the tokens before those to score; by default all but the last.
            num_thoughts: Thoughts for each position; their probabilities are averaged.
            temperature: Of the thoughts; 0 takes the likeliest.
            seed: Names the thoughts' stream.
        """
        positions = thinking_positions(positions, input_ids, 1)
        numbers = thought_numbers(row_keys(seed, len(input_ids)), num_thoughts, positions, self.thought_length)
        return score_text(self, input_ids, attention_mask, positions, numbers, Sampler(temperature))

    def save_pretrained(self, folder: str | os.PathLike[str], *, merge: bool = False) -> None:
        """Writes start, end and head; see `checkpoint.save`."""
        from . import checkpoint

        checkpoint.save(self, folder, merge=merge)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], model: Any = None, **options: Any) -> QuietSTaR:
        """A wrapper as it was saved; see `checkpoint.load`."""
        from . import checkpoint

        return checkpoint.load(folder, model, **options)
