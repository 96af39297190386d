"""Attention of packed rows over a shared prefix and a private suffix, for unmodified transformers models.

Keys and values lie in prompts that rows share (`Piece`) and in the rows' own suffixes (`RowBatch`). All new tokens
of all rows stand in one packed sequence ``[1, tokens]``, so that the linear layers see no padding. Each attention layer
stores the new keys and values where the plan of the forward says, and attends in two parts: the queries of all rows of
a problem against the problem's prompt, read once, and each row against its own suffix. The prompts of several problems
lie side by side, padded, and are read in one product (`Slots`). The parts are joined exactly by their log-sum-exps
(Hydragen, arXiv 2402.05099; FlashInfer's cascade)::

    out = out_private + (out_shared - out_private) * sigmoid(lse_shared - lse_private)

Windows shorten what both parts see, soft caps bend the scores, and a sink is one more score without a value.

The model calls this through transformers' ``AttentionInterface``; which plan is running is known through a context
variable, since not every model passes further arguments down to its attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeAlias
from weakref import ReferenceType, ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from inferscale.flops.spec import PackedRows, causal_pairs

from .states import RowStates, StateHolder, States, states_bytes

ROOM = 32  # private tokens that a batch starts with beyond what it holds, if more are to come


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Keys and values of a model whose layers are on several devices: those of a layer are where the layer is.

    Attributes:
        parts: Of each device the tensor of its layers, `[layers, 2, ...]`.
    """

    parts: tuple[Tensor, ...]


KV: TypeAlias = Any
"""Keys and values: a `Tensor` whose first axis are the layers, or a `Spread` of several."""


def by_device(kv: KV) -> tuple[Tensor, ...]:
    """Keys and values as one tensor for each device."""
    return kv.parts if isinstance(kv, Spread) else (kv,)


def over(function: Callable[..., Tensor], *kvs: KV) -> KV:
    """What `function` makes of the tensors of each device."""
    made = tuple(function(*parts) for parts in zip(*map(by_device, kvs), strict=True))
    return Spread(made) if isinstance(kvs[0], Spread) else made[0]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Keys and values of some tokens, wherever they stand: of a prompt that many rows share, or of a part of a path.

    Attributes:
        ids: The tokens.
        kv: `[layers, 2, kv_heads, tokens, head_dim]` of the layers that hold some, with room for the most heads and the
            widest ones; ``None`` if there are no tokens, or nothing can follow them.
        note: Numbers that belong to the tokens beside them.
        states: Recurrent and convolution states after the last token; empty if the model has none, ``None`` if they are
            not held.
    """

    ids: tuple[int, ...] = ()
    kv: KV | None = None
    note: tuple[float, ...] = ()
    states: RowStates | None = ()

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @property
    def bytes(self) -> int:
        """Size of the keys, values and states."""
        return (0 if self.kv is None else states_bytes(by_device(self.kv))) + states_bytes(self.states or ())

    def on(self, device: int) -> Piece:
        """What is on one of the model's devices, given by its number."""
        return replace(self, kv=self.kv.parts[device]) if isinstance(self.kv, Spread) else self


class Buffers:
    """Hands out memory for rows, and takes it back: fresh memory costs page faults at every step of a search.

    On a GPU it is handed out in sizes of which there are few, so that steps recorded on it are of use again.

    Tensors handed out hold zeros or old keys and values, never the NaNs that fresh memory may hold: a key that a mask
    hides is still multiplied by 0.
    """

    def __init__(self) -> None:
        self._spare: dict[torch.device, list[Tensor]] = {}

    @property
    def bytes(self) -> int:
        """Size of the memory that waits for use."""
        return sum(map(states_bytes, self._spare.values()))

    def take(self, like: KV, rows: int, capacity: int) -> KV:
        """Memory `[layers, 2, rows, kv_heads, capacity, head_dim]` of the kind of `like`, and where that is."""
        return over(lambda part: self._taken(part, rows, capacity), like)

    def _taken(self, like: Tensor, rows: int, capacity: int) -> Tensor:
        layers, two, _, heads, _, width = like.shape
        if fixed_shapes(like.device):
            rows, capacity = bucket(rows), bucket(capacity, 64)
        shape = (layers, two, rows, heads, capacity, width)
        size = layers * two * rows * heads * capacity * width
        spare = self._spare.get(like.device, [])
        for place, flat in enumerate(spare):
            if size <= flat.numel() <= 4 * size and flat.dtype == like.dtype:
                return spare.pop(place)[:size].view(shape)
        return like.new_zeros(size).view(shape)

    def give(self, kv: KV) -> None:
        """Takes memory back that nobody reads any more; the newest is kept, and the one before if it is no smaller."""
        for part in by_device(kv):
            flat = part.as_strided((part.untyped_storage().nbytes() // part.element_size(),), (1,), 0)
            before = self._spare.get(part.device, [])[-1:]
            self._spare[part.device] = [*(old for old in before if old.numel() >= flat.numel()), flat]

    def clear(self) -> None:
        """Lets go of what waits for use."""
        self._spare = {}


class RowBatch:
    """Live rows: each continues a prompt, rows of a prompt stand together.

    Attributes:
        prompts: The prompt of each row, shared by object.
        lengths: Private tokens of each row.
        bases: Tokens of each row's prompt.
        layers: Keys and values of each layer, `[rows, kv_heads, capacity, head_dim]`, views of `kv`; a row reads none
            beyond its length.
        buffers: Where the memory comes from.
        plan: What makes the steps of rows with fixed shapes, see `StepPlan`.
        states: Recurrent and convolution states after the last token of each row; ``None`` after a forward that failed.
    """

    def __init__(
        self,
        prompts: Sequence[Piece],
        kv: KV,
        lengths: Sequence[int] | NDArray[np.int64],
        buffers: Buffers,
        states: States | None,
    ) -> None:
        self.prompts = list(prompts)
        self.kv = kv
        self._parts: list[RowBatch] = []
        self.plan: Plan | None = None
        self.states = states
        self.lengths = np.array(lengths, dtype=np.int64)
        self.bases = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        self.buffers = buffers

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.prompts)

    @property
    def bytes(self) -> int:
        """Size of the private keys and values, room for more included, and of the states."""
        return states_bytes(by_device(self.kv)) + (0 if self.states is None else self.states.bytes)

    @property
    def kv(self) -> KV:
        """Keys and values, `[layers, 2, rows, kv_heads, capacity, head_dim]`, written in place."""
        return self._kv

    @kv.setter
    def kv(self, kv: KV) -> None:
        self._kv = kv
        self.layers = [] if isinstance(kv, Spread) else [tuple(layer.unbind()) for layer in kv.unbind()]

    @property
    def parts(self) -> list[RowBatch]:
        """The batch as it is on each device, with the layers that are there: itself where there is one device."""
        if not isinstance(self.kv, Spread):
            return [self]
        if not self._parts:
            self._parts = [
                RowBatch([prompt.on(device) for prompt in self.prompts], kv, self.lengths, self.buffers, None)
                for device, kv in enumerate(self.kv.parts)
            ]
        for part, kv in zip(self._parts, self.kv.parts, strict=True):
            part.lengths = self.lengths
            if part.kv is not kv:
                part.kv = kv
        return self._parts

    def fill(self, row: int, pieces: Sequence[Piece]) -> None:
        """Makes copies of `pieces`, the last of which has its states, a row's first private tokens."""
        filled = [piece for piece in pieces if piece.kv is not None]
        self.lengths[row] = sum(map(len, filled))
        if filled:
            kv = [piece.kv for piece in filled if piece.kv is not None]
            stop = self.lengths[row]
            over(lambda own, *held: torch.cat(held, dim=3, out=own[:, :, row, :, :stop]), self.kv, *kv)
            assert self.states is not None
            assert filled[-1].states is not None
            self.states.fill(row, filled[-1].states)

    def piece(self, row: int, start: int, stop: int) -> KV:
        """A copy of a row's private keys and values, `[layers, 2, kv_heads, tokens, head_dim]`."""
        return over(lambda kv: kv[:, :, row, :, start:stop].clone(), self.kv)

    def states_at(self, row: int, tokens: int) -> RowStates | None:
        """A copy of a row's states after so many private tokens; ``None`` if they are not held: they are the newest."""
        if self.states is None or (self.states and tokens != self.lengths[row]):
            return None
        return self.states.of_row(row)

    def runs(self, order: Sequence[int] | NDArray[np.int64]) -> list[tuple[Piece, int, int]]:
        """Runs of rows, taken in this order, that continue one prompt: the prompt, and the two edges of the run."""
        prompts = [self.prompts[row] for row in order]
        edges = [0, *(i for i in range(1, len(self)) if prompts[i].kv is not prompts[i - 1].kv), len(self)]
        return [(prompts[start], start, stop) for start, stop in pairwise(edges)]

    @property
    def order(self) -> NDArray[np.int64]:
        """The rows with those of a prompt together: rows that join later stand behind all others."""
        first: dict[int, int] = {}
        return np.argsort([first.setdefault(id(p.kv), i) for i, p in enumerate(self.prompts)], kind="stable")

    @cached_property
    def slots(self) -> list[Slots]:
        """The prompts as they are read: on a GPU all in one product a layer, on a CPU where that is quicker."""
        like = self.kv[:, :, :1]
        runs = self.runs(range(len(self)))
        groups = [tiled(runs)] if fixed_shapes(like.device) else joined(runs, like.shape[3] * like.shape[5])
        return [Slots.of(group, like) for group in groups]

    def select(self, rows: Sequence[int]) -> RowBatch:
        """A batch of these rows, in this order, with repeats: branch, prune, reorder and compact in one.

        The old batch must not be used again.
        """
        return RowBatch.gathered([(self, rows)])

    @staticmethod
    def gathered(parts: Sequence[tuple[RowBatch, Sequence[int]]], room: int = ROOM) -> RowBatch:
        """One batch of rows of several, see `select`, with room for `room` tokens more; the old ones are closed."""
        lengths = np.concatenate([batch.lengths[list(rows)] for batch, rows in parts])
        first = parts[0][0]
        kv = first.buffers.take(first.kv, len(lengths), int(lengths.max(initial=0)) + room)
        start = 0
        for batch, rows in parts:
            used = int(batch.lengths[list(rows)].max(initial=0))
            over(partial(_put_rows, rows=rows, start=start, used=used), kv, batch.kv)
            start += len(rows)
        prompts = [batch.prompts[row] for batch, rows in parts for row in rows]
        states = States.joined([batch.states.select(rows) for batch, rows in parts if batch.states is not None])
        for batch, _ in parts:
            batch.close()
        return RowBatch(prompts, kv, lengths, first.buffers, states)

    def rollback(self, counts: Sequence[int]) -> None:
        """Forgets the newest private tokens of each row, as many as `counts` says.

        Raises:
            ValueError: If a row has fewer, or if the model has states, which know no way back.
        """
        if self.states and any(counts):
            raise ValueError(f"rollback({list(counts)}): recurrent and convolution states cannot be taken back")
        left = self.lengths - np.array(counts, dtype=np.int64)
        if (left < 0).any() or (left > self.lengths).any():
            raise ValueError(f"rollback({list(counts)}): the rows have {self.lengths.tolist()} private tokens")
        self.lengths = left

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` private tokens in each row."""
        capacity = min(kv.shape[4] for kv in by_device(self.kv))
        if tokens > capacity:
            used = int(self.lengths.max())
            kv = self.buffers.take(self.kv, len(self), max(tokens, 2 * capacity))
            over(lambda new, old: new[..., :used, :].copy_(old[..., :used, :]), kv, self.kv)
            self.buffers.give(self.kv)
            self.kv = kv

    def close(self) -> None:
        """Gives the memory back; the batch must not be used again."""
        self.buffers.give(self.kv)
        self.prompts, self.lengths, self._parts = [], self.lengths[:0], []


def _put_rows(new: Tensor, old: Tensor, rows: Sequence[int], start: int, used: int) -> Tensor:
    """Copies `used` tokens of some rows to the rows from `start` on."""
    index = torch.tensor(rows, dtype=torch.long, device=old.device)
    there = new[:, :, start : start + len(rows), :, :used]  # without a copy in between, whose memory is fresh
    return torch.index_select(old[:, :, :, :, :used], 2, index, out=there)


@dataclass(frozen=True, slots=True)
class Scores:
    """The way from products of queries and keys to the weights of an attention layer.

    Attributes:
        scale: Factor of the products.
        window: Keys that a query sees, its own included; ``None`` for all.
        cap: Bound c of ``c * tanh(score / c)``, or ``None``.
        sinks: A score `[heads]` that takes its share of the softmax and has no value, or ``None``.
    """

    scale: float
    window: int | None = None
    cap: float | None = None
    sinks: Tensor | None = None

    def drained(self, out: Tensor, lse: Tensor) -> Tensor:
        """Outputs `[tokens, kv_heads, group, head_dim]` less what the sinks take; `lse` `[tokens, kv_heads, group]`."""
        if self.sinks is None:
            return out
        return out * torch.sigmoid(lse - self.sinks.float().view(lse.shape[1:])).to(out.dtype)[..., None]


class UnsupportedModelError(RuntimeError):
    """This model's attention is not what the shared-prefix decoder computes."""


class Plan(StateHolder, Cache, ABC):
    """Places of a forward's keys and values, and of what its queries see: the cache that the model is given.

    Attributes:
        layer: The place among the layers with keys and values of the one that is running.
        attended: The layers that have called `tree_attention`, in order.
        positions: Of the new tokens, row by row.
    """

    positions: Tensor

    def __init__(self, layers: Sequence[int]) -> None:
        StateHolder.__init__(self)
        Cache.__init__(self, layers=[])
        self.layer = -1
        self.attended: list[int] = []
        self.layer_numbers = layers
        self._newest: dict[int, ReferenceType[Tensor]] = {}  # each layer's newest keys, as the model has them
        self._places = {layer: place for place, layer in enumerate(layers)}

    @property
    @abstractmethod
    def packed_rows(self) -> PackedRows:
        """Attention of this forward, for a `FlopCounter`: one sequence stands for many rows."""

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Stores the new keys and values of `layer`; returns the outputs.

        Args:
            query: `[1, heads, tokens, head_dim]`.
            key: `[1, kv_heads, tokens, head_dim]`.
            value: `[1, kv_heads, tokens, head_dim]`.
            scores: What the layer does with them.

        Returns:
            `[tokens, kv_heads, group, head_dim]`: a group of heads shares its keys.
        """

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values alone; `attend` brings in the others."""
        self.layer = self._places[layer_idx]
        self._newest[self.layer] = ref(key_states)
        return key_states, value_states

    def turn_to(self, key: Tensor) -> None:
        """Makes `layer` the one that these keys are of: some layers attend to an earlier one's (Gemma 3n and 4)."""
        newest = self._newest.get(self.layer)
        if newest is None or newest() is not key:
            self.layer = next((place for place, known in self._newest.items() if known() is key), self.layer)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions are always given."""
        return 0


class FirstPlan(Plan):
    """One token of one row: shows which layers attend, and where.

    Attributes:
        keys: Keys `[kv_heads, 1, head_dim]` of each layer that attends.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__(layers)
        self.keys: dict[int, Tensor] = {}

    @property
    def packed_rows(self) -> PackedRows:
        """A query and its own key."""
        return PackedRows(1, 1, 1, 0, lambda window: (1, 1))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """The value, which is all that a first token sees."""
        self.keys[self.layer_numbers[self.layer]] = key[0]
        own = value[0].transpose(0, 1)[:, :, None]
        return own.expand(-1, -1, query.shape[1] // key.shape[1], -1)


class JointPlan(Plan):
    """Plans for the layers of several devices as one: what each needs beside keys and values is on its device."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        super().__init__([layer for plan in plans for layer in plan.layer_numbers])
        self._homes = [(plan, place) for plan in plans for place in range(len(plan.layer_numbers))]

    @property
    def packed_rows(self) -> PackedRows:
        """The attention of any of them."""
        return self._homes[0][0].packed_rows

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """As the plan of the device does."""
        plan, place = self._homes[self.layer]
        plan.layer = place
        return plan.attend(query, key, value, scores)


NAME = "inferscale_tree"
_running: ContextVar[Plan | None] = ContextVar("inferscale_running_plan", default=None)


@contextmanager
def attending(
    plan: Plan, configs: Sequence[Any], layers: Sequence[tuple[torch.nn.Module, Callable[..., Any]]]
) -> Iterator[None]:
    """Lets a model, whose parts have these configurations, attend by `plan`; some `layers` do by another forward."""
    before = [config._attn_implementation for config in configs]
    forwards = [vars(layer).get("forward") for layer, _ in layers]  # accelerate puts one there
    token = _running.set(plan)
    try:
        for config in configs:
            config._attn_implementation = NAME
        for layer, forward in layers:
            layer.forward = partial(forward, layer, plan)
        yield
    finally:
        _running.reset(token)
        for (layer, _), own in zip(layers, forwards, strict=True):
            vars(layer).pop("forward", None)
            if own is not None:
                layer.forward = own
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls; outputs `[1, tokens, heads, head_dim]`."""
    plan = _running.get()
    width, more = value.shape[-1], query.shape[-1] - value.shape[-1]
    if plan is None or kwargs.get("position_bias") is not None or more < 0:
        raise UnsupportedModelError("attention with a position bias or an unknown layout")
    plan.turn_to(key)
    plan.attended.append(plan.layer_numbers[plan.layer])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scale, kwargs.get("sliding_window"), kwargs.get("softcap"), kwargs.get("s_aux"))
    if more:  # latent attention has narrower values
        value = torch.nn.functional.pad(value, (0, more))
    rows, heads, tokens, _ = query.shape  # several rows if the model has states, each with as many new tokens
    if rows > 1:
        query, key, value = (x.transpose(0, 1).flatten(1, 2)[None] for x in (query, key, value))
    out = plan.attend(query, key, value, scores).reshape(rows, tokens, heads, -1)
    return out[..., :width].contiguous() if more else out, None


AttentionInterface.register(NAME, tree_attention)

_CPU_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def partial_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Softmax attention over some of the keys, and what is needed to join it with the rest.

    Args:
        query: `[batch, heads, queries, head_dim]`.
        key: `[batch, heads, keys, head_dim]`.
        value: `[batch, heads, keys, head_dim]`.
        bias: Added to the scores, `[batch, 1, queries or 1, keys]`; -inf hides a key; every query sees at least one.
        scores: Scale and cap of the scores; window and sinks are the caller's.

    Returns:
        Outputs, as `query`, and the log-sum-exps of the scores, float32 `[batch, heads, queries]`.
    """
    if query.device.type == "cpu" and _CPU_FLASH is not None and scores.cap is None:
        out, lse = _CPU_FLASH(query, key, value, attn_mask=bias, scale=scores.scale)
        return out, lse
    # The kernel reads biases in pieces of 16 bytes.
    aligned = bias is None or bias.shape[-1] % 16 == 0
    on_cuda = query.device.type == "cuda" and scores.cap is None and aligned
    if on_cuda and _has_kernel(query.device, query.dtype, query.shape[3]):
        return _cuda_attention(query, key, value, bias, scores)
    return _portable_attention(query, key, value, bias, scores)


def _cuda_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scores: Scores
) -> tuple[Tensor, Tensor]:
    """`partial_attention` by torch's memory-efficient kernel; it pads the log-sum-exps to a multiple of 32 queries."""
    if bias is not None:
        bias = bias.expand(*query.shape[:3], -1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, scale=scores.scale
    )
    return out, lse[..., : query.shape[2]]


@lru_cache
def _has_kernel(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """True if the kernel does here what it is taken for; tried once, before anything is recorded."""
    generator, scores = torch.Generator().manual_seed(0), Scores(width**-0.5)
    query, key, value = (torch.randn(2, 2, n, width, generator=generator).to(device, dtype) for n in (3, 16, 16))
    bias = hiding(torch.arange(16, device=device) > torch.tensor([[4], [9]], device=device), dtype)[:, None, None]
    try:
        found = _cuda_attention(query, key, value, bias, scores)
    except (RuntimeError, TypeError, NotImplementedError, AttributeError):
        return False
    expected = _portable_attention(query, key, value, bias, scores)
    return all(torch.allclose(a.float(), b.float(), atol=0.03) for a, b in zip(found, expected, strict=True))


def _portable_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scores: Scores
) -> tuple[Tensor, Tensor]:
    """`partial_attention` out of ordinary operators."""
    products = torch.matmul(query, key.transpose(-1, -2)).float().mul_(scores.scale)
    if scores.cap is not None:
        products = products.div_(scores.cap).tanh_().mul_(scores.cap)
    if bias is not None:
        products += bias
    lse = products.logsumexp(dim=-1)
    weights = products.sub_(lse[..., None]).exp_()
    return torch.matmul(weights.to(value.dtype), value), lse


class PromptPlan(Plan):
    """Several prompts in one packed sequence, each causal on its own, all after the same prefix (it may be empty).

    Attributes:
        kv: Keys and values of each prompt, the prefix included, `[layers, 2, kv_heads, tokens, head_dim]`.
    """

    def __init__(
        self, lengths: Sequence[int], layers: Sequence[int], prefix: Piece, most: tuple[int, int] = (1, 1)
    ) -> None:
        """Begins without keys and values; `most` is the most heads of a layer and the widest one's width."""
        super().__init__(layers)
        ends = list(accumulate(lengths))
        self._spans = list(zip([0, *ends], ends, strict=False))  # of each prompt in the packed sequence
        self._prefix, self._most = prefix, most
        self.kv: list[Tensor] = []

    def keys_and_values(self, device: torch.device) -> list[Tensor]:
        """Those of each prompt after the forward; of no layer where none attends."""
        past = len(self._prefix)
        return self.kv or [torch.zeros(0, 2, 1, past + b - a, 1, device=device) for a, b in self._spans]

    @property
    def packed_rows(self) -> PackedRows:
        """Each prompt is a square, half of which a causal mask lets through, and every query against the prefix."""
        lengths = [stop - start for start, stop in self._spans]
        shared = sum(lengths) * len(self._prefix)
        causal = sum(n * (n + 1) // 2 for n in lengths)
        executed = sum(n * n for n in lengths) + shared

        def windowed(window: int) -> tuple[int, int]:
            return sum(causal_pairs(n, len(self._prefix), window) for n in lengths), executed

        return PackedRows(len(lengths), causal + shared, executed, len(self._prefix), windowed)

    def _make_room(self, key: Tensor) -> None:
        """Room for this layer's keys `[kv_heads, tokens, head_dim]`, the first time, or where the layers differ."""
        heads, width = max(key.shape[0], self._most[0]), max(key.shape[2], self._most[1])
        if self.kv and (heads, width) == self._most:
            return
        before, past, self._most = self.kv, len(self._prefix), (heads, width)
        # Zeros, for what a narrower layer leaves is copied with the rest.
        shapes = [(len(self.layer_numbers), 2, heads, past + stop - start, width) for start, stop in self._spans]
        self.kv = [key.new_zeros(shape) for shape in shapes]
        for new, old in zip(self.kv, before, strict=False):
            new[:, :, : old.shape[2], :, : old.shape[4]] = old

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Each prompt against itself and the prefix."""
        query, key, value = query[0], key[0], value[0]
        past, (heads, _, width) = len(self._prefix), key.shape
        self._make_room(key)
        outputs = []
        for (start, stop), every in zip(self._spans, self.kv, strict=True):
            kv = every[self.layer, :, :heads, :, :width]
            kv[0, :, past:], kv[1, :, past:] = key[:, start:stop], value[:, start:stop]
            tokens, seen, mask = stop - start, kv.shape[2], None
            is_short = scores.window is None or scores.window >= seen
            if self._prefix.kv is not None:
                kv[:, :, :past] = self._prefix.kv[self.layer, :, :heads, :, :width]
            if self._prefix.kv is not None or not is_short or scores.sinks is not None or scores.cap is not None:
                mask = torch.ones(tokens, seen, dtype=torch.bool, device=key.device).tril_(past)
                if scores.window is not None:
                    mask.triu_(past - scores.window + 1)
            one, (k, v) = query[:, start:stop], kv
            if scores.sinks is None and scores.cap is None:
                options: dict[str, Any] = {"scale": scores.scale, "enable_gqa": query.shape[0] != key.shape[0]}
                attention = torch.nn.functional.scaled_dot_product_attention
                out = attention(one[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, **options)[0]
                outputs.append(out.unflatten(0, (heads, -1)).permute(2, 0, 1, 3))
            else:
                assert mask is not None
                grouped = one.reshape(heads, -1, tokens, one.shape[2])  # [kv_heads, group, tokens, head_dim]
                bias = hiding(~mask, one.dtype).repeat(grouped.shape[1], 1)[None, None]
                out, lse = partial_attention(grouped.flatten(1, 2)[None], k[None], v[None], bias, scores)
                out, lse = out.view(grouped.shape).permute(2, 0, 1, 3), lse.view(grouped.shape[:3]).permute(2, 0, 1)
                outputs.append(scores.drained(out, lse))
        return torch.cat(outputs).contiguous()


_RUN = 16  # rows that decode side by side and are looked at together
_CALL = 2**19  # multiply-adds that take a CPU as long as one more product does
_READ = 16  # queries whose products take as long as reading the keys does


def bucket(number: int, least: int = 1) -> int:
    """The next size that memory is made in: a power of two times `least`; beyond 8 of them multiples of 8."""
    parts = -(-number // least)
    return least * (1 << (parts - 1).bit_length() if parts <= 8 else -(-parts // 8) * 8)


def fixed_shapes(device: torch.device) -> bool:
    """True where shapes do not follow the lengths of rows, so that nothing waits for the host: not on a CPU."""
    return device.type != "cpu"


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Neighbouring rows whose queries meet their prompts in one product a layer: one slot for each run of rows.

    Attributes:
        starts: The first row of each slot, ascending.
        stop: The row after the last one.
        lengths: Tokens of the slots' prompts.
        kv: Keys and values of the prompts, padded to one length, `[layers, 2, slots, kv_heads, keys, head_dim]`;
            ``None`` if the prompts have no tokens.
        bias: -inf where a slot's prompt has no key, `[slots, 1, 1, keys]`; ``None`` if all have. A prompt without
            tokens sees one key of zeros, and its share is taken away afterwards.
        layers: Keys and values of each layer, views of `kv`.
    """

    starts: NDArray[np.int64]
    stop: int
    lengths: NDArray[np.int64]
    kv: Tensor | None
    bias: Tensor | None
    layers: list[tuple[Tensor, ...]] = field(init=False)

    def __post_init__(self) -> None:
        """Cuts the layers out once for all forwards."""
        layers = [] if self.kv is None else [tuple(layer.unbind()) for layer in self.kv.unbind()]
        object.__setattr__(self, "layers", layers)

    @classmethod
    def of(cls, runs: Sequence[tuple[Piece, int, int]], like: Tensor) -> Slots:
        """Slots for runs of rows, each with its prompt; `like` has the kind and the axes of the keys and values."""
        starts = np.array([start for _, start, _ in runs])
        lengths = np.array([len(prompt) for prompt, _, _ in runs])
        kv, bias, most = runs[0][0].kv, None, int(lengths.max())
        if len(runs) == 1 or not most:
            return cls(starts, runs[-1][2], lengths, None if kv is None else kv[:, :, None], None)
        layers, two, _, heads, _, width = like.shape
        kv = like.new_zeros(layers, two, len(runs), heads, most, width)
        for slot, (prompt, _, _) in enumerate(runs):
            if prompt.kv is not None:
                kv[:, :, slot, :, : len(prompt)] = prompt.kv
        if (lengths < most).any():
            seen = torch.from_numpy(np.maximum(lengths, 1)).to(like.device)
            bias = hiding(torch.arange(most, device=like.device) >= seen[:, None, None, None], like.dtype)
        return cls(starts, runs[-1][2], lengths, kv, bias)


def hiding(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores, -inf where `hidden`."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)


def tiled(runs: Sequence[tuple[Piece, int, int]]) -> list[tuple[Piece, int, int]]:
    """The runs cut so that padding them to the longest one, and reading the prompts of those that are cut, costs least.

    A slot of m rows costs as much as reading its prompt, and the products of m queries.
    """
    counts = np.array([stop - start for _, start, stop in runs])
    sizes = [1 << power for power in range(int(counts.max() - 1).bit_length() + 1)]
    size = min(sizes, key=lambda most: int((-(-counts // most)).sum()) * (most + _READ))
    return [
        (prompt, first, min(first + size, stop)) for prompt, start, stop in runs for first in range(start, stop, size)
    ]


def joined(runs: Sequence[tuple[Piece, int, int]], width: int) -> list[list[tuple[Piece, int, int]]]:
    """The runs in groups of neighbours, where the work on padding, and the copies, cost less than the calls saved.

    Args:
        runs: Rows of one prompt each.
        width: Numbers of a token's queries in one layer.
    """
    groups: list[list[tuple[Piece, int, int]]] = []
    rows = keys = work = 0  # the most of the group's runs, and the work that is not padding
    for run in runs:
        own_rows, own_keys = run[2] - run[1], len(run[0])
        most, longest = max(rows, own_rows), max(keys, own_keys)
        total = work + (own_rows - 2) * own_keys * width  # a copy of keys and values is worth two queries
        count = 1 + (len(groups[-1]) if groups else 0)
        if groups and bool(keys) == bool(own_keys) and count * most * longest * width - total <= (count - 1) * _CALL:
            groups[-1].append(run)
            rows, keys, work = most, longest, total
        else:
            groups.append([run])
            rows, keys, work = own_rows, own_keys, (own_rows - 2) * own_keys * width
    return groups


class Share:
    """Packed tokens that meet their prompts in one product a layer.

    Attributes:
        slots: The prompts.
        tokens: The first token, and the one after the last.
        most: Places m of a slot: its tokens, or padding that repeats the last of them.
    """

    def __init__(
        self,
        slots: Slots,
        edges: NDArray[np.int64],
        fixed: tuple[int, int] = (0, 0),
        order: NDArray[np.int64] | None = None,
    ) -> None:
        """Places the tokens of each slot.

        Args:
            slots: The prompts.
            edges: The first token of each slot, and the one after the last.
            fixed: If given, the number of all tokens, those included that belong to no slot, and of places in a slot.
            order: If given, the tokens that `edges` counts, in their order; those of a slot need not be neighbours.
        """
        counts = np.diff(edges)
        self.slots = slots
        self.most = fixed[1] or int(counts.max())
        self.tokens = int(edges[0]), max(int(edges[-1]), fixed[0])
        self._even = not fixed[0] and bool((counts == self.most).all())  # then no token has to be moved
        order = np.arange(*self.tokens) if order is None else np.append(order, np.arange(len(order), self.tokens[1]))
        slot = np.pad(np.repeat(np.arange(len(counts)), counts), (0, self.tokens[1] - int(edges[-1])))
        within = np.minimum(np.arange(*self.tokens) - edges[slot], self.most - 1)  # of some that belong to no slot
        places = np.clip(edges[:-1, None] + np.arange(self.most), edges[0], np.maximum(edges[1:, None] - 1, edges[0]))
        self._count, self._places = len(counts), order[places - edges[0]]
        self._slot, self._within = np.empty_like(slot), np.empty_like(slot)  # of each token
        self._slot[order - self.tokens[0]], self._within[order - self.tokens[0]] = slot, within
        self._blind = slots.kv is not None and not slots.lengths.all()
        self._device = torch.device("cpu") if slots.kv is None else slots.kv.device
        self._index: dict[tuple[int, int], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}

    def copy(self, other: Share) -> None:
        """Takes over what `other` says, of the same shapes, in the memory of this one."""
        pairs = [(self.places, other.places), (self.slot_of_token, other.slot_of_token), (self.lengths, other.lengths)]
        if self.blind is not None and other.blind is not None:
            pairs.append((self.blind, other.blind))
        if self.slots.bias is not None and other.slots.bias is not None:
            pairs.append((self.slots.bias, other.slots.bias))
        for kind, (there, back) in self._index.items():
            pairs += zip((*there, *back), (part for both in other._indices(*kind) for part in both), strict=True)
        for mine, theirs in pairs:
            mine.copy_(theirs)

    def pairs(self, lowest: int = 0) -> int:
        """Products of queries and keys from `lowest` on, padding included."""
        keys = 0 if self.slots.kv is None else self.slots.kv.shape[4]
        return self._count * self.most * max(keys - lowest, 0)

    @cached_property
    def places(self) -> Tensor:
        """The token at each place, `[slots, most]`."""
        return torch.from_numpy(self._places).to(self._device)

    @cached_property
    def slot_of_token(self) -> Tensor:
        """The slot of each token."""
        return torch.from_numpy(self._slot).to(self._device)

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of the prompt of each slot."""
        return torch.from_numpy(self.slots.lengths).to(self._device)

    @cached_property
    def blind(self) -> Tensor | None:
        """True for tokens whose prompt is empty, `[tokens, 1, 1]`; ``None`` if there are none, or no others."""
        return (self.lengths == 0)[self.slot_of_token, None, None] if self._blind else None

    def queries(self, query: Tensor, heads: int) -> Tensor:
        """Queries `[1, heads, tokens, head_dim]` by slot, `[slots, kv_heads, most * group, head_dim]`."""
        if not self._even:
            moved: Tensor = torch.ops.aten.index(query, self._indices(heads, query.shape[1] // heads)[0])
            return moved
        by_slot = query[0, :, slice(*self.tokens)].view(heads, -1, self._count, self.most, query.shape[3])
        return by_slot.permute(2, 0, 3, 1, 4).flatten(2, 3)

    def by_token(self, values: Tensor, group: int) -> Tensor:
        """Values `[slots, kv_heads, most * group, ...]` by token, `[tokens, kv_heads, group, ...]`."""
        if not self._even:
            moved: Tensor = torch.ops.aten.index(values, self._indices(values.shape[1], group)[1])
            return moved
        by_place = values.view(*values.shape[:2], self.most, group, *values.shape[3:])
        return by_place.transpose(1, 2).flatten(0, 1)

    def _indices(self, heads: int, group: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Where the queries of each slot stand among all, and where those of each token stand among the slots'."""
        if (heads, group) not in self._index:
            head, place = torch.arange(heads), torch.arange(self.most * group)
            token = self.places[:, (place // group).to(self._device)]
            there = torch.zeros(1, dtype=torch.long), head[:, None] * group + place % group
            back = head[:, None], torch.from_numpy(self._within)[:, None, None] * group + torch.arange(group)
            self._index[heads, group] = (
                (*(index.to(self._device) for index in there), token[:, None]),
                (self.slot_of_token[:, None, None], *(index.to(self._device) for index in back)),
            )
        return self._index[heads, group]


def narrowed(kv: Tensor, heads: int, width: int) -> Tensor:
    """The part of keys or values `[rows, kv_heads, tokens, head_dim]` that a layer of this shape uses."""
    return kv if kv.shape[1] == heads and kv.shape[3] == width else kv[:, :heads, :, :width]


class Block(NamedTuple):
    """Neighbouring rows whose private parts are read in one product: padded to as many queries, and keys.

    Attributes:
        start: The first row.
        stop: The row after the last one.
        most: Queries of each row.
        keys: Keys of each row.
    """

    start: int
    stop: int
    most: int
    keys: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def places(self) -> int:
        """Queries of all rows, padding included."""
        return self.rows * self.most

    @property
    def work(self) -> int:
        """Products of queries and keys, and what reading the keys takes."""
        return self.rows * self.keys * (self.most + _READ)


def blocks_of(rows: NDArray[np.int64], counts: NDArray[np.int64], keys: NDArray[np.int64], width: int) -> list[Block]:
    """Blocks of neighbours that hold `rows`, where padding and idle rows between them cost less than the calls saved.

    Args:
        rows: Rows, ascending.
        counts: Queries of each.
        keys: Keys of each.
        width: Numbers of a token's keys in one layer.
    """
    size, place = _RUN if counts.max() == 1 else 1, np.arange(len(rows))
    edges = np.flatnonzero((np.diff(rows, prepend=-2) != 1) | (place % size == 0))
    lasts = np.append(edges[1:], len(rows)) - 1
    most, longest = (np.maximum.reduceat(numbers, edges) for numbers in (counts, keys))
    blocks: list[Block] = []
    for run in map(Block, rows[edges].tolist(), (rows[lasts] + 1).tolist(), most.tolist(), longest.tolist()):
        if blocks:
            last = blocks[-1]
            both = Block(last.start, run.stop, max(last.most, run.most), max(last.keys, run.keys))
            if (both.work - last.work - run.work) * width <= _CALL:
                blocks[-1] = both
                continue
        blocks.append(run)
    return blocks


class RowPlan(Plan):
    """New tokens of some rows of a batch, in ascending order, packed row by row.

    In the shapes below `rows` are all rows of the batch, those that do not run included: their keys are not worth a
    copy. What is computed for them is thrown away; they see one key, or in a padded block all of them.

    Attributes:
        absolute: Position in the whole sequence of each new token.
    """

    def __init__(
        self, batch: RowBatch, rows: NDArray[np.int64], counts: NDArray[np.int64], layers: Sequence[int]
    ) -> None:
        super().__init__(layers)
        device = batch.kv.device
        starts, ends = batch.lengths[rows], np.cumsum(counts)
        place = np.arange(ends[-1]) - np.repeat(ends - counts, counts)  # of each token among its row's new ones
        position = np.repeat(starts, counts) + place  # and among its row's private ones
        self.absolute = position + np.repeat(batch.bases[rows], counts)
        self._batch, self._rows, self._starts, self._counts = batch, rows, starts, counts
        edges = np.concatenate([[0], ends])  # of the rows, among the packed tokens
        self._shares = [
            Share(slots, edges[np.searchsorted(rows, [*slots.starts, slots.stop])]) for slots in batch.slots
        ]
        self._shares = [share for share in self._shares if share.most]
        most, keys = self._most, self._keys = int(counts.max()), int((starts + counts).max())
        # A GPU runs all rows as one block.
        self._blocks = [Block(0, len(batch), most, keys)]
        if not fixed_shapes(device):
            self._blocks = blocks_of(rows, counts, starts + counts, batch.kv.shape[3] * batch.kv.shape[5])
        # Where tokens have to be moved: the token at each place of the blocks, and the place of each token.
        self._moves: tuple[Tensor, Tensor] | None = None
        if sum(block.places for block in self._blocks) != ends[-1]:
            held = np.concatenate([np.arange(block.start, block.stop) for block in self._blocks])
            widths = np.repeat([block.most for block in self._blocks], [block.rows for block in self._blocks])
            begins, of_row = np.cumsum(widths) - widths, np.zeros(len(batch), dtype=np.int64)
            of_row[held] = begins
            first, last = np.zeros((2, len(batch)), dtype=np.int64)  # of each row; an idle one has any
            first[rows], last[rows] = ends - counts, ends - 1
            token = np.repeat(first[held] - begins, widths) + np.arange(widths.sum())
            there, back = np.minimum(token, np.repeat(last[held], widths)), np.repeat(of_row[rows], counts) + place
            self._moves = torch.from_numpy(there).to(device), torch.from_numpy(back).to(device)
        # The usual decode step: one token for every row, and all at the same place. Then no mask is needed.
        is_step = most == 1 and len(rows) == len(batch) and bool((starts == starts[0]).all())
        self._step = int(starts[0]) if is_step else None
        self._positions = torch.from_numpy(self.absolute).to(device)
        self._biases: dict[tuple[int | None, int], list[Tensor | None]] = {}  # by the window and the group of a layer
        self._near: dict[tuple[Share, int], tuple[Tensor, Tensor]] = {}  # the same for prompts, and who sees nothing
        if self._step is None:
            self._row = torch.from_numpy(np.repeat(rows, counts)).to(device)
            self._position = torch.from_numpy(position).to(device)

    @property
    def packed_rows(self) -> PackedRows:
        """Every query against its prompt, and the private parts padded to the longest of their block."""
        private = sum(block.places * block.keys for block in self._blocks)
        prompts = {id(prompt.kv): len(prompt) for prompt in (self._batch.prompts[row] for row in self._rows)}

        def windowed(window: int) -> tuple[int, int]:
            shared = sum(share.pairs(self._lowest(share, window)) for share in self._shares)
            return int(np.minimum(self.absolute + 1, window).sum()), shared + private

        causal, shared = int(self.absolute.sum()) + len(self.absolute), sum(share.pairs() for share in self._shares)
        read = sum(prompts.values()) + int(self._starts.sum())
        return PackedRows(len(self._rows), causal, shared + private, read, windowed)

    def _lowest(self, share: Share, window: int) -> int:
        """The first key of its prompts that a share reads: a prompt of its own is read from the window on."""
        if len(share.slots.starts) > 1 or fixed_shapes(self._batch.kv.device):
            return 0
        return max(int(self.absolute[slice(*share.tokens)].min()) - window + 1, 0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Each token against its problem's prompt and its row's own tokens up to itself."""
        _, heads, _, width = key.shape
        keys, values = (narrowed(x, heads, width) for x in self._batch.layers[self.layer])
        self._store(keys, values, key, value)
        window = self._narrowing(scores.window)
        out, lse = self._private(query, keys, values, scores, window)
        parts = [self._shared(query, heads, share, scores, window) for share in self._shares]
        if parts:
            shared, shared_lse = parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts, strict=True))
            # The softmax over both sets of keys: each part weighs as the sum of its exponentials.
            share = torch.sigmoid(shared_lse - lse)
            out = torch.lerp(out, shared, (share if share.dtype == out.dtype else share.to(out.dtype))[..., None])
            lse = lse if scores.sinks is None else torch.logaddexp(shared_lse, lse)
        return scores.drained(out, lse)

    def _store(self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor) -> None:
        """Puts the new keys and values behind those of their rows."""
        if self._step is not None:
            rows = len(self._batch)  # the memory may have more
            keys[:rows, :, self._step], values[:rows, :, self._step] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        else:
            keys[self._row, :, self._position] = key[0].transpose(0, 1)
            values[self._row, :, self._position] = value[0].transpose(0, 1)

    def _narrowing(self, window: int | None) -> int | None:
        """A layer's window, if there are tokens that it hides a key of."""
        return None if window is None or int(self.absolute.max()) < window else window

    def _shared(
        self, query: Tensor, heads: int, share: Share, scores: Scores, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Some tokens against their prompts: outputs and log-sum-exps `[tokens, kv_heads, group, head_dim]`."""
        slots, group = share.slots, query.shape[1] // heads
        lowest = 0 if window is None else self._lowest(share, window)
        if slots.kv is None or lowest >= slots.kv.shape[4]:  # nobody sees a prompt
            shape = share.tokens[1] - share.tokens[0], heads, group
            out = query.new_zeros(*shape, query.shape[3])
            return out, torch.full(shape, -torch.inf, device=query.device)
        key, value = (narrowed(x, heads, query.shape[3]) for x in slots.layers[self.layer])
        if lowest:
            key, value = key[:, :, lowest:], value[:, :, lowest:]
        bias, blind = slots.bias, share.blind
        if window is not None and slots.kv is not None:
            if (share, window) not in self._near:
                self._near[share, window] = self._seen_by(share, window, lowest, group)
            bias, blind = self._near[share, window]
        out, lse = partial_attention(share.queries(query, heads), key, value, bias, scores)
        out, lse = share.by_token(out, group), share.by_token(lse, group)
        return out, lse if blind is None else lse.masked_fill(blind, -torch.inf)

    def _seen_by(self, share: Share, window: int, lowest: int, group: int) -> tuple[Tensor, Tensor]:
        """-inf where a window hides a prompt's key, `[slots, 1, most * group, keys]`; tokens for which it hides all."""
        assert share.slots.kv is not None
        first = self._positions[slice(*share.tokens)] - window + 1  # that each token sees
        key = torch.arange(lowest, share.slots.kv.shape[4], device=first.device)
        by_place, lengths = first[share.places - share.tokens[0]], share.lengths[:, None]  # [slots, most]
        # Those that see nothing here see all of it, for an attention without a key has no value.
        hidden = (key < by_place[..., None]) & (by_place < lengths)[..., None]
        hidden |= key >= lengths[..., None].clamp(min=1)
        bias = hiding(hidden.repeat_interleave(group, dim=1), share.slots.kv.dtype)[:, None]
        return bias, (first.clamp(min=0) >= share.lengths[share.slot_of_token])[:, None, None]

    def _private(
        self, query: Tensor, keys: Tensor, values: Tensor, scores: Scores, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Each row against its own tokens: outputs and log-sum-exps, `[tokens, kv_heads, group, ...]`."""
        by_place = query[0].transpose(0, 1)  # [tokens, heads, head_dim]
        if self._moves is not None:
            by_place = by_place.index_select(0, self._moves[0])
        heads, group = keys.shape[1], query.shape[1] // keys.shape[1]
        if (window, group) not in self._biases:
            self._biases[window, group] = self._block_biases(window, group)
        outputs, lses, first = list[Tensor](), list[Tensor](), 0
        for block, bias in zip(self._blocks, self._biases[window, group], strict=True):
            queries = by_place[first : first + block.places].view(block.rows, block.most, heads, group, -1)
            queries = queries.permute(0, 2, 3, 1, 4).flatten(2, 3)  # [rows, kv_heads, group * most, head_dim]
            held = slice(block.start, block.stop), slice(None), slice(block.keys)
            out, lse = partial_attention(queries, keys[held], values[held], bias, scores)
            out, lse = out.unflatten(2, (group, -1)), lse.unflatten(2, (group, -1))
            outputs.append(out.permute(0, 3, 1, 2, 4).flatten(0, 1))
            lses.append(lse.permute(0, 3, 1, 2).flatten(0, 1))
            first += block.places
        out, lse = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (outputs, lses))
        if self._moves is not None:
            out, lse = out.index_select(0, self._moves[1]), lse.index_select(0, self._moves[1])
        return out, lse

    def _block_biases(self, window: int | None, group: int) -> list[Tensor | None]:
        """What hides keys in each block, see `_masked`; of blocks of single queries it is made in one piece."""
        if self._most > 1:
            return [self._masked(block, window, group) for block in self._blocks]
        whole = self._masked(Block(0, len(self._batch), 1, self._keys), window, group)
        return [
            None if whole is None else whole[block.start : block.stop, :, :, : block.keys] for block in self._blocks
        ]

    def _masked(self, block: Block, window: int | None, group: int) -> Tensor | None:
        """-inf where a key comes after the query or before its window, `[rows, 1, group * most, keys]`.

        Padding sees what its row's last token does, an idle row one key. ``None`` if every query sees all keys.
        """
        live = slice(*np.searchsorted(self._rows, (block.start, block.stop)))
        first, last = np.zeros((2, block.rows), dtype=np.int64)  # places of each row's new tokens among its own
        row = self._rows[live] - block.start
        first[row], last[row] = self._starts[live], self._starts[live] + self._counts[live] - 1
        place = np.minimum(first[:, None] + np.arange(block.most), last[:, None])[..., None]
        key = np.arange(block.keys)
        hidden = key > place if window is None else (key > place) | (key <= place - window)
        if not hidden.any():
            return None
        bias = hiding(torch.from_numpy(hidden).to(self._positions.device), self._batch.kv.dtype)
        return bias.repeat(1, group, 1)[:, None]
