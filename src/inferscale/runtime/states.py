"""Recurrent and convolution states: what layers that hold no keys and values remember of a row.

A state belongs to a row's newest token. It is small, it is written over by every further token, and nothing but the
tokens themselves brings an earlier one back. So states are parked where a row ends, copied at forks, and a row that
must go on from a token whose state is not held is read again from the last one that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

StateKey: TypeAlias = tuple[str, int, int]
"""The kind of a state (``"conv"`` or ``"recurrent"``), its layer, and its number within the layer."""

RowStates: TypeAlias = tuple[Tensor, ...]
"""All states of one row: of each stack of `States` what belongs to the row. Empty for a model without states."""


class States:
    """States of rows. States of one kind, shape and device lie in one stack, so that a fork is a copy or two.

    Attributes:
        places: For each state the number of its stack, and its place there.
        stacks: Tensors `[states, rows, ...]`; none for a model whose layers all hold keys and values.
    """

    def __init__(self, places: Mapping[StateKey, tuple[int, int]], stacks: Sequence[Tensor]) -> None:
        self.places = places
        self.stacks = list(stacks)

    @classmethod
    def stacked(cls, found: Mapping[StateKey, Tensor]) -> States:
        """States out of single ones, each `[rows, ...]`."""
        groups: dict[Any, list[StateKey]] = {}
        for key in sorted(found):
            groups.setdefault((key[0], found[key].shape, found[key].dtype, found[key].device), []).append(key)
        places = {key: (n, place) for n, keys in enumerate(groups.values()) for place, key in enumerate(keys)}
        return cls(places, [torch.stack([found[key] for key in keys]) for keys in groups.values()])

    def __bool__(self) -> bool:
        """True if the model has states."""
        return bool(self.stacks)

    @property
    def bytes(self) -> int:
        """Size of all states."""
        return states_bytes(self.stacks)

    def __getitem__(self, key: StateKey) -> Tensor:
        """One state of all rows, `[rows, ...]`; what is written into it stays."""
        stack, place = self.places[key]
        return self.stacks[stack][place]

    def of_row(self, row: int) -> RowStates:
        """A copy of the states of a row."""
        return tuple(stack[:, row].clone() for stack in self.stacks)

    def fill(self, row: int, states: RowStates) -> None:
        """Makes `states` those of a row."""
        for stack, own in zip(self.stacks, states, strict=True):
            stack[:, row] = own

    def of_rows(self, rows: Sequence[RowStates]) -> States:
        """States of new rows; those of an empty row are zero, as before its first token."""
        stacks = []
        for number, stack in enumerate(self.stacks):
            zero = torch.zeros_like(stack[:, 0])
            stacks.append(torch.stack([states[number] if states else zero for states in rows], dim=1))
        return States(self.places, stacks)

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> States:
        """A copy of the states of `rows`, in this order, with repeats."""
        return States(self.places, [stack.index_select(1, _index(rows, stack)) for stack in self.stacks])

    def put(self, rows: Sequence[int] | NDArray[np.int64], states: States) -> None:
        """Writes `states` over those of `rows`."""
        for stack, new in zip(self.stacks, states.stacks, strict=True):
            stack.index_copy_(1, _index(rows, stack), new)

    @staticmethod
    def joined(parts: Sequence[States]) -> States:
        """The rows of several, one after the other."""
        if len(parts) == 1:
            return parts[0]
        stacks = [torch.cat(stacks, dim=1) for stacks in zip(*(part.stacks for part in parts), strict=True)]
        return States(parts[0].places, stacks)


def states_bytes(states: Sequence[Tensor]) -> int:
    """Size of states."""
    return sum(state.numel() * state.element_size() for state in states)


def _index(rows: Sequence[int] | NDArray[np.int64], like: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(rows, dtype=np.int64), device=like.device)


class StateHolder:
    """The part of transformers' `Cache` by which layers read and write their states.

    Attributes:
        states: States of the rows that run, written in place; ``None`` if the rows begin here, with none.
    """

    states: States | None

    def __init__(self) -> None:
        self.states = None
        self._found: dict[StateKey, Tensor] = {}  # the first states of rows that begin here

    def states_after(self) -> States:
        """The states of the rows after the forward."""
        return States.stacked(self._found) if self.states is None else self.states

    def _read(self, key: StateKey) -> Tensor | None:
        return None if self.states is None or key not in self.states.places else self.states[key]

    def _write(self, key: StateKey, value: Tensor) -> Tensor:
        if self.states is None:
            self._found[key] = value.clone()  # not a view, which would keep all of a prompt's convolution inputs
            return self._found[key]
        return self.states[key].copy_(value)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The newest inputs of a convolution, `[rows, channels, width]`; ``None`` if the rows begin here."""
        return self._read(("conv", layer_idx, state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """A recurrent state `[rows, ...]`; ``None`` if the rows begin here."""
        return self._read(("recurrent", layer_idx, state_idx))

    def update_conv_state(
        self,
        conv_states: Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The inputs of a convolution `[rows, channels, tokens]` behind those before; the newest are kept."""
        key = ("conv", layer_idx, state_idx)
        before = self._read(key)
        if before is None:
            width = conv_kernel_size or conv_states.shape[-1]
            whole = torch.nn.functional.pad(conv_states, (max(width - conv_states.shape[-1], 0), 0))
        else:
            width = before.shape[-1]
            whole = torch.cat([before, conv_states], dim=-1)
        self._write(key, whole[..., whole.shape[-1] - width :])
        return whole

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Keeps a recurrent state."""
        return self._write(("recurrent", layer_idx, state_idx), recurrent_states)

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """True if the rows do not begin here."""
        return self.states is not None

    def is_recording_past(self, layer_idx: int) -> bool:
        """False: nothing is taken back."""
        return False
