"""The decode step with fixed shapes: one more token in every row, on tensors that stay where they are.

On a GPU nothing of a step follows the rows' lengths: keys are read up to the batch's capacity behind a mask, the
prompts of all problems lie side by side, and rows that have ended are computed and forgotten until the batch is
compacted. Positions and masks are made on the device out of lengths that are kept and advanced there. So nothing waits
for the host between two looks at which rows have ended, and a step is recorded once as a CUDA graph and then replayed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inferscale.flops.spec import PackedRows

from .kv import Plan, RowBatch, RowPlan, Scores, Share, Slots, bucket, hiding, partial_attention, tiled

Forward: TypeAlias = Callable[[], Tensor]
"""Runs the model on tensors that it knows; returns the logits `[rows, outputs]`."""

_PLANS = 4  # kinds of batches whose steps are kept
_UNRECORDED = 2  # steps before one is recorded, so that what is made at first is there


class StepPlan(RowPlan):
    """One more token in every row of a batch, those included that only fill its memory up.

    The tensors of a plan serve one batch after the other, as long as they lie in the same memory and have the same
    `kind`: a recorded step then goes on to be right.

    Attributes:
        tokens: The tokens to read, `[rows]`.
        lengths: Private tokens of each row, on the device, `[rows]`.
        positions: Places of the new tokens in the whole sequences, `[rows]`.
        replay: The recorded step, if there is one.
        steps: Steps made so far.
    """

    def __init__(self, batch: RowBatch, layers: Sequence[int]) -> None:
        """Makes the tensors that a batch of this kind needs."""
        Plan.__init__(self, layers)
        kv, (slots, most, keys, _) = batch.kv, self.kind(batch)[2:]
        device, size = kv.device, kv.shape[2]
        self.tokens, self.lengths, self.positions, self._bases, self._ones = (
            torch.zeros(size, dtype=torch.long, device=device) for _ in range(5)
        )
        self._column, self._row = torch.arange(kv.shape[4], device=device), torch.arange(size, device=device)
        self._shelf: Tensor = kv.new_zeros(kv.shape[0], 2, slots, kv.shape[3], keys, kv.shape[5])
        self._slot_rows = most
        self._heads: dict[int, Tensor] = {}
        self.kv_place = kv.data_ptr()
        self.replay: Forward | None = None
        self.steps = 0
        self._shares: list[Share] = []
        self.load(batch)

    @staticmethod
    def kind(batch: RowBatch) -> tuple[Any, ...]:
        """What two batches have in common whose steps are made by one plan: their memory, and the shape of all else."""
        runs = tiled(batch.runs(batch.order))
        lengths = [len(prompt) for prompt, _, _ in runs]
        most = 1 << (max(stop - start for _, start, stop in runs) - 1).bit_length()
        return (
            batch.kv.data_ptr(), tuple(batch.kv.shape), bucket(len(runs)), most, bucket(max(*lengths, 1), 64),
            any(lengths) and not all(lengths),
        )  # fmt: skip

    def load(self, batch: RowBatch) -> None:
        """Takes another batch of the same kind."""
        self._batch, self._known = batch, np.zeros(0, dtype=np.int64)
        self._given: Sequence[int] | NDArray[np.int64] | None = None
        self._bases[: len(batch)] = torch.from_numpy(batch.bases).to(self._bases.device)
        order, slots = batch.order, self._shelf.shape[2]
        runs = tiled(batch.runs(order))
        lengths = np.ones(slots, dtype=np.int64)
        for slot, (prompt, _, _) in enumerate(runs):
            lengths[slot] = len(prompt)
            if prompt.kv is not None:
                self._shelf[:, :, slot, :, : len(prompt)] = prompt.kv
        starts = np.array([start for _, start, _ in runs] + [len(batch)] * (slots - len(runs)))
        seen = torch.from_numpy(np.maximum(lengths, 1)).to(self._shelf.device)[:, None, None, None]
        bias = hiding(torch.arange(self._shelf.shape[4], device=seen.device) >= seen, self._shelf.dtype)
        share = Share(
            Slots(starts, len(batch), lengths, self._shelf, bias), np.append(starts, len(batch)),
            (len(self.tokens), self._slot_rows), order,
        )  # fmt: skip
        if self._shares:
            self._shares[0].copy(share)
        else:
            self._shares = [share]

    def ready(self, rows: Sequence[int] | NDArray[np.int64], tokens: Tensor) -> None:
        """Places the tokens of some rows; something is copied to the device only where rows or lengths have changed."""
        batch, device = self._batch, self.tokens.device
        if self._given is None or not (rows is self._given or np.array_equal(rows, self._given)):
            self._given = rows
            self._index = torch.from_numpy(np.array(rows, dtype=np.int64)).to(device)
            self._ones.zero_()
            self._ones[self._index] = 1
        if not np.array_equal(batch.lengths, self._known):
            self._known = batch.lengths.copy()
            self.lengths[: len(batch)] = torch.from_numpy(self._known).to(device)
        self.tokens.index_copy_(0, self._index, tokens)

    def begin(self) -> None:
        """Makes positions and masks of the step, on the device."""
        torch.add(self.lengths, self._bases, out=self.positions)
        self._positions = self.positions
        self._hidden = self._column > self.lengths[:, None]  # [rows, capacity]
        self._bias = hiding(self._hidden, self._batch.kv.dtype)[:, None, None]
        self._windowed: dict[int, Tensor] = {}  # the bias of layers with a window
        self._near, self.attended = {}, []

    def end(self, logits: Tensor) -> Tensor:
        """Counts the tokens in; the logits of the rows that were asked for."""
        self.lengths += self._ones
        assert self._given is not None
        self._known[self._given] += 1
        self.steps += 1
        return logits.index_select(0, self._index)

    @property
    def shelf_bytes(self) -> int:
        """Size of the prompts that lie side by side."""
        return self._shelf.numel() * self._shelf.element_size()

    @property
    def batch(self) -> RowBatch:
        """The batch that is served."""
        return self._batch

    @property
    def absolute(self) -> NDArray[np.int64]:
        """Position in the whole sequence of each new token, on the host."""
        filled = len(self.tokens) - len(self._batch)
        return np.pad(self._batch.lengths + self._batch.bases, (0, filled))

    @property
    def packed_rows(self) -> PackedRows:
        """Every row against its prompt's slot and the whole capacity."""
        size, absolute = len(self.tokens), self.absolute
        executed = self._shares[0].pairs() + size * len(self._column)
        read = int(self._batch.lengths.sum()) + int(self._shares[0].slots.lengths.sum())

        def windowed(window: int) -> tuple[int, int]:
            return int(np.minimum(absolute + 1, window).sum()), executed

        return PackedRows(size, int(absolute.sum()) + size, executed, read, windowed)

    def _narrowing(self, window: int | None) -> int | None:
        longest = self._shelf.shape[4] + len(self._column)
        return None if window is None or longest <= window else window

    def _lowest(self, share: Share, window: int) -> int:
        return 0

    def _store(self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor) -> None:
        place = self._row, self._head(key.shape[1]), self.lengths
        torch.ops.aten.index_put_(keys, place, key)
        torch.ops.aten.index_put_(values, place, value)

    def _head(self, heads: int) -> Tensor:
        """The numbers of the heads, `[1, heads, 1]`."""
        if heads not in self._heads:
            self._heads[heads] = torch.arange(heads, device=self.tokens.device)[None, :, None]
        return self._heads[heads]

    def _private(
        self, query: Tensor, keys: Tensor, values: Tensor, scores: Scores, window: int | None
    ) -> tuple[Tensor, Tensor]:
        bias = self._bias
        if window is not None:
            if window not in self._windowed:
                hidden = self._hidden | (self._column < (self.lengths - window + 1)[:, None])
                self._windowed[window] = hiding(hidden, keys.dtype)[:, None, None]
            bias = self._windowed[window]
        _, heads, rows, width = query.shape
        group, (_, head, row, one) = heads // keys.shape[1], query.stride()
        by_row = query.as_strided((rows, keys.shape[1], group, width), (row, group * head, head, one))
        return partial_attention(by_row, keys, values, bias, scores)


def recorded(forward: Forward) -> Forward:
    """The forward as a CUDA graph: what it reads must stay in place, and the next one writes over its logits."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a first run on another stream, as torch asks for, makes what libraries keep
        forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):
        logits = forward()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


@lru_cache(maxsize=1)
def _pool() -> Any:
    """Memory that all graphs share: none is replayed before the logits of the one before have been read."""
    return torch.cuda.graph_pool_handle()


def parts_of(model: torch.nn.Module) -> tuple[Any, ...] | None:
    """What a recorded step has taken in: modules, adapters, places of weights; ``None`` if hooks watch the model.

    A replay would leave hooks out, and would not know of a module that has been put in since.
    """
    parts: list[Any] = [tensor.data_ptr() for tensor in model.parameters()]
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        adapters = (getattr(module, name, None) for name in ("_active_adapter", "_disable_adapters"))  # those of peft
        parts.append((id(module), module.training, *map(str, adapters)))
    return tuple(parts)


class Stepper:
    """Makes the steps of batches, by as few plans as their kinds allow.

    Attributes:
        record: Makes a forward that is quicker and does the same; ``None`` to run every step as it is.
    """

    def __init__(self, model: Any) -> None:
        places = {tensor.device for tensor in model.parameters()}
        on_gpu = len(places) == 1 and next(iter(places)).type == "cuda"
        self.record: Callable[[Forward], Forward] | None = recorded if on_gpu else None
        self._model = model
        self._plans: OrderedDict[tuple[Any, ...], StepPlan] = OrderedDict()
        self._parts: tuple[Any, ...] | None = None  # of the model, when the newest batch came

    def plan(self, batch: RowBatch, layers: Sequence[int]) -> StepPlan:
        """The plan for the next step of a batch."""
        plan = batch.plan
        if not isinstance(plan, StepPlan) or plan.batch is not batch or plan.kv_place != batch.kv.data_ptr():
            if self.record is not None and (parts := parts_of(self._model)) != self._parts:
                self._plans.clear()
                self._parts = parts
            kind = StepPlan.kind(batch)
            plan = self._plans.get(kind)
            if plan is None:
                plan = self._plans[kind] = StepPlan(batch, layers)
            else:
                plan.load(batch)
            self._plans.move_to_end(kind)
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
            batch.plan = plan
        return plan

    def run(self, plan: StepPlan, forward: Forward) -> Tensor:
        """The logits of a step that is ready."""
        if self.record is None or self._parts is None or self._model._forward_pre_hooks:
            return forward()
        if plan.replay is None and plan.steps >= _UNRECORDED:
            plan.replay = self.record(forward)
        return (plan.replay or forward)()

    @property
    def bytes(self) -> int:
        """Size of the prompts that lie side by side."""
        return sum(plan.shelf_bytes for plan in self._plans.values())

    def clear(self) -> None:
        """Lets go of all memory."""
        self._plans.clear()
