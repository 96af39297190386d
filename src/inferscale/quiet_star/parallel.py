"""Thoughts from many positions at once: through one mask, or folded into the batch; a self-check decides which.

Text sees text before it. A thought of position j sees the text up to j and its own earlier tokens, nothing else: text
never sees a thought, and thoughts of different positions never see each other.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from inferscale._compat import evaluating

from .backbone import FULL_PRECISION, Backbone, UnsupportedModelError, positions_of, rollback, select_rows

_TEXT = -1


@dataclass(frozen=True, slots=True)
class Slots:
    """Tokens in one long row, text or thought.

    Attributes:
        owner: Number of the thought that a token belongs to, -1 for text; int64 `[n]`.
        anchor: Index in the text: its own for text, that of the thinking position for a thought; int64 `[n]`.
        step: Place in the thought, from 0; 0 for text; int64 `[n]`.
    """

    owner: Tensor
    anchor: Tensor
    step: Tensor

    @classmethod
    def text(cls, length: int, device: torch.device) -> Slots:
        """Make the slots of a text of `length` tokens."""
        index = torch.arange(length, device=device)
        return cls(torch.full_like(index, _TEXT), index, torch.zeros_like(index))

    @classmethod
    def thoughts(cls, positions: Tensor, first: int, steps: int) -> Slots:
        """Make tokens `first` to ``first + steps - 1`` of a thought at each of `positions`, thought after thought.

        Thoughts lie side by side, not tokens of one step: the blocks that anybody sees are then dense and few.
        """
        owner = torch.arange(len(positions), device=positions.device)
        step = torch.arange(first, first + steps, device=positions.device)
        return cls(owner.repeat_interleave(steps), positions.repeat_interleave(steps), step.repeat(len(positions)))

    def __add__(self, other: Slots) -> Slots:
        """Return these tokens, then the others."""
        return Slots(
            torch.cat([self.owner, other.owner]),
            torch.cat([self.anchor, other.anchor]),
            torch.cat([self.step, other.step]),
        )

    @property
    def place(self) -> Tensor:
        """Number of tokens before each one if only its own thought were in the row, `[n]`."""
        return self.anchor + (self.owner >= 0) * (1 + self.step)


def sees(
    query: Slots, key: Slots, q: Tensor, k: Tensor, keep: Tensor | None, row: Tensor | None, window: int | None
) -> Tensor:
    """Return True where query number `q` sees key number `k` in text number `row` (broadcast).

    Args:
        query: The new tokens.
        key: All tokens in the order of the cache: the text, then thoughts, the new ones last.
        q: Numbers of queries.
        k: Numbers of keys.
        keep: Which text tokens are not padding, bool `[rows, text]`; ``None`` for all.
        row: Numbers of texts, if there is padding.
        window: Positions that a query sees, itself included; ``None`` for all.
    """
    text = (key.owner[k] == _TEXT) & (key.anchor[k] <= query.anchor[q])
    own = (key.owner[k] == query.owner[q]) & (query.owner[q] >= 0) & (key.step[k] <= query.step[q])
    visible = text | own
    if window is not None:
        visible = visible & (query.place[q] - key.place[k] < window)
    if keep is None:
        return visible
    last = keep.shape[1] - 1
    kept = (k > last) | keep[row, k.clamp(max=last)]
    # A padded text token still sees itself, so that no row is empty: a NaN would survive a weight of 0.
    return (visible & kept) | ((key.owner[k] == query.owner[q]) & (key.place[k] == query.place[q]))


def thought_mask(query: Slots, key: Slots, keep: Tensor | None = None, window: int | None = None) -> Tensor:
    """Build the mask as one tensor of bools, `[rows or 1, 1, queries, keys]`; arguments are those of `sees`."""
    device = query.owner.device
    q, k = torch.arange(len(query.owner), device=device)[:, None], torch.arange(len(key.owner), device=device)
    rows = torch.arange(1 if keep is None else len(keep), device=device)[:, None, None, None]
    return sees(query, key, q, k, keep, rows, window).expand(len(rows), 1, -1, -1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask into numbers to add to attention scores: 0 where visible, the least finite number elsewhere.

    Eager attention adds whatever it is given: a mask of bools would be silently wrong there.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def block_mask(query: Slots, key: Slots, keep: Tensor | None = None, window: int | None = None) -> Any:
    """Build the same visibility for FlexAttention, a ``BlockMask``: blocks that nobody sees are never computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(row: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sees(query, key, q, k, keep, row, window)

    rows = None if keep is None else len(keep)
    return create_block_mask(visible, rows, None, len(query.owner), len(key.owner), device=query.owner.device)


Way: TypeAlias = Literal["mask", "mask_by_kind", "fold"]
"""Ways to run thoughts in parallel: one 4D mask, one for each kind of layer, or every thought as a row of the batch."""


@dataclass
class TextPass:
    """Result of a pass of the model over a text.

    Attributes:
        embeds: Input embeddings, `[rows, text, hidden]`.
        keep: Which tokens are not padding, bool `[rows, text]`; ``None`` for all.
        hidden: Last hidden states, those of the plain model, `[rows, text, hidden]`.
        cache: Its keys and values; ``None`` if none are kept.
    """

    embeds: Tensor
    keep: Tensor | None
    hidden: Tensor
    cache: Any = None

    def repeated(self, times: int) -> TextPass:
        """Repeat every row `times` times in a row. The cache is extended in place: do not use this pass any more."""
        if times == 1:
            return self
        rows = torch.arange(len(self.embeds), device=self.embeds.device).repeat_interleave(times)
        if self.cache is not None:
            select_rows(self.cache, rows)
        keep = None if self.keep is None else self.keep[rows]
        return TextPass(self.embeds[rows], keep, self.hidden[rows], self.cache)


def run_text(backbone: Backbone, embeds: Tensor, keep: Tensor | None, way: Way) -> TextPass:
    """Run the model's own forward over a text, without any mask of ours: its states are those of the plain model."""
    cached = way != "fold" and not backbone.recomputes
    cache = backbone.new_cache() if cached else None
    positions = positions_of(keep, embeds.shape[1], embeds.device)
    hidden = backbone.states(embeds, None if keep is None else keep.long(), positions, cache)
    return TextPass(embeds, keep, hidden, cache)


class Session(Protocol):
    """Thoughts of one text that grow token by token."""

    def feed(self, embeds: Tensor) -> Tensor:
        """Return hidden states of the next tokens of every thought, `[rows, positions, new, hidden]`.

        Args:
            embeds: Their embeddings, the same shape.
        """

    def close(self) -> None:
        """Leave the text as it was."""


class MaskedSession:
    """All thoughts in one row, kept apart by the mask; keys and values are kept from one call to the next.

    Under gradient checkpointing there is no cache: text and thoughts are run again in every call.
    """

    def __init__(self, backbone: Backbone, text: TextPass, positions: Tensor, way: Way) -> None:
        self._backbone, self._text, self._positions = backbone, text, positions
        self._by_kind = way == "mask_by_kind"
        self._keys = Slots.text(text.embeds.shape[1], text.embeds.device)
        self._text_positions = positions_of(text.keep, text.embeds.shape[1], text.embeds.device)
        self._length = 0  # tokens of each thought so far
        self._fed = text.embeds  # text and thoughts, `[rows, keys, hidden]`; grows only without a cache

    def feed(self, embeds: Tensor) -> Tensor:
        """Return hidden states of the next tokens of every thought, `[rows, positions, new, hidden]`."""
        rows, positions, new, width = embeds.shape
        query = Slots.thoughts(self._positions, self._length, new)
        fed = embeds.reshape(rows, positions * new, width)
        self._length += new
        self._keys = self._keys + query
        if self._text.cache is None:
            self._fed = fed = torch.cat([self._fed, fed], dim=1)
            query = self._keys
        # Position ids, `[rows or 1, queries]`: a thought goes on where its text stops, whatever lies between.
        places = self._text_positions[:, query.anchor] + (query.place - query.anchor)
        hidden = self._backbone.states(fed, self._mask(query), places, self._text.cache)
        return hidden[:, -positions * new :].reshape(rows, positions, new, width)

    def close(self) -> None:
        """Take the thoughts out of the text's cache."""
        if self._text.cache is not None:
            rollback(self._text.cache, self._length * len(self._positions))

    def _mask(self, query: Slots) -> Any:
        """Build what the model takes as ``attention_mask``: a mask for its attention, or one for each kind of layer."""
        backbone, keep = self._backbone, self._text.keep

        def mask(window: int | None) -> Any:
            if backbone.attention == "flex_attention":
                return block_mask(query, self._keys, keep, window)
            visible = thought_mask(query, self._keys, keep, window).expand(len(self._text.embeds), -1, -1, -1)
            return visible if backbone.attention == "sdpa" else additive(visible, self._text.embeds.dtype)

        if not self._by_kind:
            return mask(backbone.window)
        return {kind: mask(backbone.window if kind == "sliding_attention" else None) for kind in backbone.kinds}


class FoldedSession:
    """Every thought as a row of its own, with its text padded on the left: slow, and right for any architecture."""

    def __init__(self, backbone: Backbone, text: TextPass, positions: Tensor, max_rows: int) -> None:
        self._backbone, self._text, self._max_rows = backbone, text, max_rows
        length = text.embeds.shape[1]
        # A row's text is shifted to the right until its thinking position stands last, `[positions, text]`.
        index = torch.arange(length, device=positions.device)[None] - (length - 1 - positions[:, None])
        self._index = index.clamp(min=0)
        kept = (index >= 0).expand(len(text.embeds), -1, -1)
        self._keep = kept if text.keep is None else kept & text.keep[:, self._index]  # [rows, positions, text]
        # A padded position has no text at all: let it see itself.
        self._keep = self._keep | ((index == positions[:, None]) & ~self._keep.any(dim=-1, keepdim=True))
        self._fed: list[Tensor] = []

    def feed(self, embeds: Tensor) -> Tensor:
        """Return hidden states of the next tokens of every thought, `[rows, positions, new, hidden]`."""
        rows, positions, new, width = embeds.shape
        self._fed.append(embeds)
        thoughts = torch.cat(self._fed, dim=2).flatten(0, 1)  # [rows * positions, tokens, hidden]
        keep = torch.nn.functional.pad(self._keep.flatten(0, 1), (0, thoughts.shape[1]), value=True)
        parts = []
        for chosen in torch.split(torch.arange(rows * positions, device=embeds.device), self._max_rows):
            text = self._text.embeds[(chosen // positions)[:, None], self._index[chosen % positions]]
            kept = keep[chosen]
            first = int(kept.int().argmax(dim=1).min())  # columns before it are padding in every row
            kept, whole = kept[:, first:], torch.cat([text, thoughts[chosen]], dim=1)[:, first:]
            mask = None if bool(kept.all()) else kept.long()
            places = positions_of(kept, kept.shape[1], kept.device)
            parts.append(self._backbone.states(whole, mask, places)[:, -new:])
        return torch.cat(parts).reshape(rows, positions, new, width)

    def close(self) -> None:
        """Nothing to put back."""


def open_session(backbone: Backbone, text: TextPass, positions: Tensor, way: Way, max_rows: int) -> Session:
    """Open thoughts that begin at `positions` (indices into the text, `[m]`)."""
    if way == "fold":
        return FoldedSession(backbone, text, positions, max_rows)
    return MaskedSession(backbone, text, positions, way)


_PROBE_ERRORS = (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)


@dataclass(frozen=True)
class ParallelCheck:
    """Result of the self-check of parallel thoughts.

    Attributes:
        way: The way that is used.
        errors: For each way that was tried, the greatest error of a hidden state against thinking at one position at
            a time, in standard deviations; or what it raised.
    """

    way: Way
    errors: dict[str, float | str] = field(default_factory=dict)


@torch.no_grad()
def check_parallel(backbone: Backbone, wanted: Literal["auto", "mask", "fold"] = "auto") -> ParallelCheck:
    """Find the first way that agrees with thinking at one position at a time, tried on this very model.

    A mask that a model does not understand is mostly ignored in silence, so that no list of families can be trusted.
    Windows longer than the handful of tokens that are tried are taken from the configuration.

    Where FlexAttention does not compile or is wrong, the model is switched to SDPA, with a warning. Seen with torch
    2.13 on a CPU: a block mask does not compile for shapes that change; and without AVX-512 the compiled kernel is
    wrong even for plain text with heads of 8 or 16 numbers, where the last block has 8, 24, 40 ... keys: its matrix
    product fills columns up to the next multiple of 16, which run into the row maxima.

    Args:
        backbone: The model.
        wanted: ``"mask"`` or ``"fold"`` allow that way alone.

    Raises:
        UnsupportedModelError: If no allowed way agrees.
    """
    name = type(backbone.model).__name__
    with evaluating(backbone.model), torch.autocast(backbone.device.type, enabled=False):
        way, errors = _first_right(backbone, wanted)
        if way is None and backbone.attention == "flex_attention":
            backbone.model.set_attn_implementation("sdpa")
            warnings.warn(
                f"{name} under 'flex_attention' cannot be trusted with parallel thoughts here "
                f"({_listed(errors) or 'a fold on a CPU'}): from now on this model runs under 'sdpa' attention. "
                "Load it with attn_implementation='sdpa' to say that you know",
                UserWarning,
                stacklevel=3,
            )
            way, errors = _first_right(backbone, wanted)
    if way is None:
        raise UnsupportedModelError(
            f"parallel thoughts disagree with single ones for {name} under {backbone.attention!r} attention "
            f"({errors}): load it with attn_implementation='sdpa' or 'eager'"
            + (", or allow parallel='auto'" if wanted != "auto" else "")
        )
    if way == "fold" and wanted == "auto":
        found = _listed({other: error for other, error in errors.items() if other != "fold"})
        warnings.warn(
            f"{name} under {backbone.attention!r} attention cannot run parallel thoughts through a mask "
            f"({found or 'not pure attention with explicit positions'}): every thought becomes a row of the batch, "
            "which reads its text again. Pass parallel='fold' to say that you know",
            UserWarning,
            stacklevel=3,
        )
    return ParallelCheck(way, errors)


def _listed(errors: dict[str, float | str]) -> str:
    return "; ".join(f"{way}: {error}" for way, error in errors.items())


def _first_right(backbone: Backbone, wanted: str) -> tuple[Way | None, dict[str, float | str]]:
    """Return the first way that is right, ``None`` if none is, and the error of each that was tried.

    Tried on two texts of five tokens, with thoughts of three tokens at every position, fed in two calls.
    """
    ways: list[Way] = []
    if wanted != "fold" and backbone.attention_only and backbone.takes_positions:
        ways = ["mask_by_kind", "mask"] if len(backbone.kinds) > 1 else ["mask", "mask_by_kind"]
        ways = ways if backbone.kinds else ["mask"]
    # SDPA with a mask comes before a fold under FlexAttention. On a CPU that is never tried: what the kernel reads
    # beyond short texts may or may not show.
    flex = backbone.attention == "flex_attention" and (bool(ways) or backbone.device.type == "cpu")
    if wanted != "mask" and not flex:
        ways.append("fold")
    size, device = backbone.vocabulary, backbone.device
    ids = (torch.arange(10, device=device).reshape(2, 5) * 13 + 3) % size
    thought_ids = (torch.arange(30, device=device).reshape(2, 5, 3) * 29 + 11) % size

    def one_by_one() -> Tensor:
        columns = []
        for position in range(5):
            row = torch.cat([ids[:, : position + 1], thought_ids[:, position]], dim=1)
            columns.append(backbone.states(backbone.embed(row))[:, -3:])
        return torch.stack(columns, dim=1).double()

    def together(way: Way) -> Tensor:
        text = run_text(backbone, backbone.embed(ids), None, way)
        session = open_session(backbone, text, torch.arange(5, device=device), way, max_rows=10)
        embeds = backbone.embed(thought_ids)
        states = torch.cat([session.feed(embeds[:, :, :1]), session.feed(embeds[:, :, 1:])], dim=2)
        session.close()
        return states.double()

    truth: Tensor | None = None
    errors: dict[str, float | str] = {}
    for way in ways:
        try:
            truth = one_by_one() if truth is None else truth
            worst = float((together(way) - truth).abs().max() / truth.std())
        except _PROBE_ERRORS as error:
            errors[way] = f"{type(error).__name__}: {error}"[:200]
            continue
        errors[way] = worst if math.isfinite(worst) else "not finite"
        if worst < (1e-3 if backbone.dtype in FULL_PRECISION else 0.25):  # False for NaN
            return way, errors
    return None, errors
