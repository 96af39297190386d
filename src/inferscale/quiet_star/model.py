"""`QuietSTaR`: a causal language model that thinks before every token (Zelikman et al. 2024, arXiv:2403.09629)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from inferscale._compat import evaluating
from inferscale.runtime.loading import CheckpointError
from inferscale.runtime.sampling import Sampler

from .backbone import Backbone
from .checkpoint import ThoughtCheckpoint, base_name, fingerprint
from .head import ThoughtMixingHead, mean_of_thoughts, mix
from .parallel import ParallelCheck, Session, TextPass, check_parallel, open_session, run_text
from .thoughts import QuietSTaROutput, Talk, TextScores, Thoughts, row_keys, thought_numbers

_UNLIKELY = 200.0  # nats below the likeliest token: probability 0 in float32
_ROWS_AT_ONCE = 4096  # rows of logits kept at a time


class QuietSTaR(nn.Module):
    """A causal language model with a thought after every text token, mixed into the prediction of the next one.

    Quiet-STaR (Zelikman et al. 2024, arXiv:2403.09629) for any causal language model of transformers. The wrapped model
    is used from outside: it is neither subclassed nor patched, its vocabulary is not resized, and start- and
    end-of-thought are vectors of our own, fed through ``inputs_embeds``. Until it is trained, the wrapper predicts
    exactly what the model predicts.

    Differs from the paper: thoughts are drawn by inverse CDF from streams of uniform numbers; the start and end
    vectors are stored at their natural scale and train with their own learning rate (`Recipe.embedding_lr_scale`),
    since a factor on a gradient does nothing under Adam.

    Attributes:
        model: The language model.
        start: Start-of-thought vector, `[hidden]`.
        end: End-of-thought vector, `[hidden]`.
        head: The mixing head.
        thought_length: Sampled tokens T of a thought; with start and end it takes T + 2.
        forbidden_ids: Ids that no distribution may emit.
        positions_at_once: Positions of one masked pass; ``None`` fits them to the text.
        rows_at_once: Rows of one folded pass.

    Example:
        >>> import torch
        >>> from inferscale import zoo
        >>> from inferscale.quiet_star import QuietSTaR
        >>> model, tokenizer = zoo.load("policy-xs")
        >>> quiet = QuietSTaR(model, thought_length=3)
        >>> ids = tokenizer("7 * 6 = 42", return_tensors="pt")["input_ids"]
        >>> quiet.think(ids, num_thoughts=2).tokens.shape  # [batch, thoughts, positions, tokens of a thought]
        torch.Size([1, 2, 7, 3])
        >>> output = quiet(ids)
        >>> bool(torch.allclose(output.logits, model(ids).logits, atol=1e-4))  # until it is trained, the model's own
        True
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
        """Wrap a model; everything that can be checked is checked here.

        Args:
            model: A transformers causal language model, kept as it is (device, dtype, mode).
            thought_length: Tokens sampled for a thought, 0 or more.
            bounded: Bound the mixing weight, see `ThoughtMixingHead`.
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
            TypeError: If `model` is a name or a folder: `from_pretrained` loads.
            UnsupportedModelError: If the model's hidden states and head cannot be used from outside.
            ValueError: If an argument does not fit.
        """
        super().__init__()
        if isinstance(model, str | os.PathLike):
            raise TypeError(
                f"QuietSTaR wraps a loaded model, not {str(model)!r}: QuietSTaR.from_pretrained(...) loads one that "
                "thinks, AutoModelForCausalLM.from_pretrained(...) a plain one to wrap"
            )
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

    def identity(self) -> dict[str, Any]:
        """Return what thoughts and texts depend on: the base, what was trained, and how thoughts are drawn."""
        return {
            "model": self.model,
            "start": self.start,
            "end": self.end,
            "head": self.head,
            "bounded": self.head.bounded,
            "thought_length": self.thought_length,
            "forbidden_ids": self.forbidden_ids,
        }

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        model: Any = None,
        *,
        thought_length: int | None = None,
        forbidden_ids: Sequence[int] | None = None,
        parallel: Literal["auto", "mask", "fold"] = "auto",
        positions_at_once: int | None = None,
        rows_at_once: int = 256,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **load_options: Any,
    ) -> QuietSTaR:
        """Load what `save_pretrained` wrote, or a checkpoint of the released code (``ezelikman/quietstar-8-ahead``).

        Args:
            path_or_id: A folder, or a repository of the hub.
            model: The base model (an object, a folder, or a hub id); by default the one saved beside the thoughts or
                remembered by name.
            thought_length: Instead of the saved one. Published checkpoints do not say theirs: 5 by default, which is
                that of ``quietstar-8-ahead``.
            forbidden_ids: Instead of the saved ones.
            parallel: As for the class.
            positions_at_once: As for the class.
            rows_at_once: As for the class.
            device: Where to run a base that is loaded here; by default a GPU if there is one.
            dtype: Of a base that is loaded here; by default float32 on a CPU and the checkpoint's own elsewhere.
            load_options: Passed on to ``from_pretrained`` of the base, for example ``trust_remote_code``.

        Raises:
            TypeError: If a `model` object is given with options of loading.
            CheckpointError: If there is neither layout or one of another version, a tensor is missing, or the base is
                not the one that the thoughts were trained with.
        """
        saved = ThoughtCheckpoint.load(path_or_id)
        base = saved.load_base(model, loader=cls.from_pretrained, device=device, dtype=dtype, **load_options)
        quiet = cls(
            base,
            saved.thought_length if thought_length is None else thought_length,
            bounded=saved.bounded,
            forbidden_ids=saved.forbidden_ids if forbidden_ids is None else forbidden_ids,
            parallel=parallel,
            positions_at_once=positions_at_once,
            rows_at_once=rows_at_once,
        )
        saved.check_base(base, quiet.start.dtype)
        wanted, found = quiet._thought_state(), saved.tensors
        wrong = sorted(set(wanted) ^ set(found)) or [name for name in wanted if wanted[name].shape != found[name].shape]
        if wrong:
            raise CheckpointError(
                f"{saved.source} does not fit this model: {', '.join(wrong)} missing, too many or misshapen"
            )
        with torch.no_grad():
            for name, target in wanted.items():
                target.copy_(found[name])
        return quiet

    def save_pretrained(self, folder: str | os.PathLike[str], *, merge: bool = False) -> None:
        """Write start, end, head and settings.

        Args:
            folder: Where to; made if it is not there.
            merge: Write the base model beside them, so that the folder is complete and also loads as the plain base.
                Needed once the base itself was trained; otherwise the base is remembered by its name (of the hub or of
                `zoo`; a base from any other folder is passed to `from_pretrained` again).
        """
        base, is_local = base_name(self.model)
        ThoughtCheckpoint(
            source=Path(folder),
            tensors={name: tensor.detach().contiguous() for name, tensor in self._thought_state().items()},
            thought_length=self.thought_length,
            bounded=self.head.bounded,
            forbidden_ids=self.forbidden_ids,
            base=base,
            base_is_local=is_local,
            base_dtype=str(self.start.dtype),
            base_fingerprint=fingerprint(self.model),
        ).write(merged=merge)
        if merge:
            self.model.save_pretrained(folder)

    def _thought_state(self) -> dict[str, Tensor]:
        """Return start, end and the head's weights by name, not copied."""
        head = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        return {"start": self.start, "end": self.end, **head}

    @property
    def parallel_check(self) -> ParallelCheck:
        """Result of the self-check of parallel thoughts, which runs on first use."""
        if self._check is None:
            self._check = check_parallel(self.backbone, self._parallel)
        return self._check

    @property
    def thought_parameters(self) -> list[nn.Parameter]:
        """Parameters that this wrapper adds to the model: start, end and head."""
        return [self.start, self.end, *self.head.parameters()]

    # -- what states say -----------------------------------------------------------------------------------------------

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the model's own logits `[..., vocabulary]`, with `forbidden_ids` at probability 0."""
        logits = self.backbone.logits(hidden)
        if not self.forbidden_ids:
            return logits
        ids = self._forbidden.to(logits.device)
        # a finite floor: minus infinity times a weight of 0, or in a mean of logits, would be NaN
        floor = logits.detach().amax(dim=-1, keepdim=True) - _UNLIKELY
        return logits.index_copy(-1, ids, floor.expand(*logits.shape[:-1], len(ids)))

    def token_logprobs(self, states: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
        """Return log-probabilities of tokens under the logits of states, float32 `[...]`.

        Args:
            states: Last hidden states, `[..., hidden]`.
            tokens: Ids, broadcast against `[...]`.
            temperature: Divides the logits.
        """
        shape = states.shape[:-1]
        flat, wanted = states.reshape(-1, states.shape[-1]), tokens.expand(shape).reshape(-1)

        def piece(some: Tensor, ids: Tensor) -> Tensor:
            logits = self.logits(some)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            return (logits / temperature).log_softmax(dim=-1).gather(-1, ids[:, None])[:, 0]

        if len(flat) <= _ROWS_AT_ONCE:
            return piece(flat, wanted).reshape(shape)
        # `[rows, vocabulary]` is the largest tensor of training by far: pieces of it are made again for the gradient
        pieces = [
            checkpoint(piece, some, ids, use_reentrant=False)
            for some, ids in zip(torch.split(flat, _ROWS_AT_ONCE), torch.split(wanted, _ROWS_AT_ONCE), strict=True)
        ]
        return torch.cat(pieces).reshape(shape)

    # -- thoughts of all positions in parallel -------------------------------------------------------------------------

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
        """Sample thoughts after text tokens, all positions in parallel, without gradient.

        Args:
            input_ids: `[batch, text]`.
            attention_mask: 1 for text and 0 for padding, `[batch, text]`.
            positions: Indices of the tokens to think after, int64 `[positions]`; by default all.
            num_thoughts: Independent thoughts for each position.
            temperature: Divides the logits; 0 takes the likeliest token.
            seed: Names the streams of uniform numbers, one for each row and thought: what is thought at a position does
                not depend on where else is thought, nor on how many rows come after.

        Raises:
            ValueError: If a position is outside of the text.
        """
        positions, sampler = _checked(positions, input_ids), Sampler(temperature)
        batch, length = len(input_ids), self.thought_length
        numbers = thought_numbers(row_keys(seed, batch), num_thoughts, positions, length)
        with evaluating(self.model):
            text = self._run_text(input_ids, attention_mask).repeated(num_thoughts)
            pieces = [
                self.sample_thoughts(session, numbers[:, part], sampler)
                for part, session in self._sessions(text, positions, length + 2)
            ]
        shape = (batch, num_thoughts, len(positions), length)
        tokens, logprobs = (torch.cat(parts, dim=1).reshape(shape) for parts in zip(*pieces, strict=True))
        return Thoughts(tokens, logprobs, positions)

    def talk(self, input_ids: Tensor, attention_mask: Tensor | None, thoughts: Thoughts, talk_length: int = 1) -> Talk:
        """Run text, thoughts and `talk_length` look-aheads in one pass, with gradients.

        Since thoughts are discrete and detached, this one pass has the gradients of the passes that sampled them.

        Args:
            input_ids: `[batch, text]`.
            attention_mask: 1 for text and 0 for padding, `[batch, text]`.
            thoughts: What was thought about this text.
            talk_length: Look-aheads n; position j needs the text up to index ``j + n - 1``.

        Raises:
            ValueError: If `talk_length` is below 1, or a position has not so much text after it.
        """
        if talk_length < 1:
            raise ValueError(f"talk_length={talk_length}: give at least one")
        positions = _checked(thoughts.positions, input_ids, talk_length - 1)
        batch, num_thoughts, _, length = thoughts.tokens.shape
        text = self._run_text(input_ids, attention_mask)
        states = text.hidden
        # index of the token at position j and look-ahead k, `[positions, n]`
        index = positions[:, None] + torch.arange(talk_length, device=positions.device)
        # A thought's block: start, c_1 .. c_T, end, x_{j+1} .. x_{j+n-1}; `[batch, thoughts, positions, T + 1 + n, d]`
        start, end = (vector.expand(batch, num_thoughts, len(positions), 1, -1) for vector in (self.start, self.end))
        ahead = self.backbone.embed(input_ids[:, index[:, 1:]])[:, None].expand(-1, num_thoughts, -1, -1, -1)
        embeds = torch.cat([start, self.backbone.embed(thoughts.tokens), end, ahead], dim=3).flatten(0, 1)
        sessions = self._sessions(text.repeated(num_thoughts), positions, embeds.shape[2])
        parts = [session.feed(embeds[:, part]) for part, session in sessions]
        hidden = torch.cat(parts, dim=1).reshape(batch, num_thoughts, *embeds.shape[1:])
        # The states at start .. c_{T-1} drew c_1 .. c_T; the one at c_T predicts nothing; from end on they talk.
        base, thought = states[:, index].unsqueeze(1), hidden[..., length + 1 :, :]
        return Talk(states, base, thought, hidden[..., :length, :], self.head(base, thought))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        num_thoughts: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> QuietSTaROutput:
        """Predict next tokens, `[batch, text, vocabulary]`, after a thought at every position, with gradients.

        Arguments are those of `think`; the probabilities after several thoughts are averaged.
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
        positions: Tensor | None = None,
        num_thoughts: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        numbers: Tensor | None = None,
    ) -> TextScores:
        """Compute log-probabilities of given tokens, with and without a thought before each; without gradient.

        Args:
            input_ids: `[batch, text]`.
            attention_mask: 1 for text and 0 for padding, `[batch, text]`.
            positions: Indices of the tokens before those to score; by default all but the last.
            num_thoughts: Thoughts for each position; their probabilities are averaged.
            temperature: Of the thoughts; 0 takes the likeliest.
            seed: Names the thoughts' stream.
            numbers: Uniform numbers in (0, 1) for the thoughts, `[batch * num_thoughts, positions, T]`, float64; by
                default those that `seed` names.

        Raises:
            ValueError: If a position has no token after it.
        """
        positions, sampler = _checked(positions, input_ids, 1), Sampler(temperature)
        if numbers is None:
            numbers = thought_numbers(row_keys(seed, len(input_ids)), num_thoughts, positions, self.thought_length)
        pieces = []
        with evaluating(self.model):
            text = self._run_text(input_ids, attention_mask)
            keep, base = text.keep, text.hidden[:, None, positions]  # [batch, 1, positions, hidden]
            for part, session in self._sessions(text.repeated(num_thoughts), positions, numbers.shape[2] + 2):
                tokens, _ = self.sample_thoughts(session, numbers[:, part], sampler)
                # No state was needed at c_T so far: it is fed together with end (for T = 0, start is).
                start, end = (vector.expand(*tokens.shape[:2], 1, -1) for vector in (self.start, self.end))
                last = self.backbone.embed(tokens[:, :, -1:]) if numbers.shape[2] else start
                pieces.append(session.feed(torch.cat([last, end], dim=2))[:, :, -1])
            thought = torch.cat(pieces, dim=1).unflatten(0, (len(input_ids), -1))
            weights = self.head(base, thought)  # [batch, thoughts, positions, 1]
            wanted = input_ids[:, None, positions + 1]
            each = self.token_logprobs(mix(base, thought, weights), wanted)
            mixed = each.logsumexp(dim=1) - math.log(num_thoughts)  # log of the mean probability
            scores = (mixed, self.token_logprobs(base, wanted)[:, 0], weights[..., 0].mean(dim=1))
        if keep is None:
            return TextScores(*scores)
        known = (keep[:, positions] & keep[:, positions + 1]).to(mixed.dtype)
        return TextScores(*(score * known for score in scores))

    def sample_thoughts(self, session: Session, numbers: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Sample new thoughts token by token: ids and log-probabilities, `[rows, positions, T]`.

        The last thought token is drawn and not fed.

        Args:
            session: Of the thoughts' positions.
            numbers: Uniform numbers in (0, 1), `[rows, positions, T]`.
            sampler: Draws the tokens.
        """
        rows, positions, length = numbers.shape
        tokens = torch.empty(rows, positions, length, dtype=torch.long, device=numbers.device)
        logprobs = torch.empty(rows, positions, length, device=numbers.device)
        embeds = self.start.expand(rows, positions, 1, -1)
        for step in range(length):
            logits = self.logits(session.feed(embeds)).flatten(0, 2)  # [rows * positions, vocabulary]
            draws = sampler.draw(logits, numbers[:, :, step].reshape(-1))
            tokens[:, :, step] = draws.tokens.reshape(rows, positions)
            logprobs[:, :, step] = draws.logprobs.reshape(rows, positions)
            embeds = self.backbone.embed(tokens[:, :, step, None])
        return tokens, logprobs

    def _run_text(self, input_ids: Tensor, attention_mask: Tensor | None) -> TextPass:
        """Run the plain model over a text, ready to be thought about."""
        keep = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
        return run_text(self.backbone, self.backbone.embed(input_ids), keep, self.parallel_check.way)

    def piece_sizes(self, tokens: int, positions: int, block: int) -> list[int]:
        """Return how many positions of a text share each masked pass.

        Thoughts of different positions never meet, so fewer at a time give the same states with less attention: a piece
        holds so many that their own keys are about four times the text's.

        Args:
            tokens: Of the text.
            positions: Where is thought.
            block: Tokens that each thought will be fed in all.
        """
        size = self.positions_at_once or max(4 * tokens // block, 8)
        return [min(size, positions - first) for first in range(0, positions, size)]

    def _sessions(self, text: TextPass, positions: Tensor, block: int) -> Iterator[tuple[slice, Session]]:
        """Open sessions that take the positions piece by piece, each with its part of them.

        Args:
            text: What is thought about.
            positions: Where, `[positions]`.
            block: Tokens that each thought will be fed in all.
        """
        first = 0
        for size in self.piece_sizes(text.embeds.shape[1], len(positions), block):
            part = slice(first, first + size)
            first += size
            session = open_session(self.backbone, text, positions[part], self.parallel_check.way, self.rows_at_once)
            yield part, session
            session.close()


def _checked(positions: Tensor | None, input_ids: Tensor, ahead: int = 0) -> Tensor:
    """Return the positions, int64 `[positions]` (``None``: all that have room), checked against the text.

    Args:
        positions: Indices of the tokens to think after.
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
