"""Several devices on a machine with one: tensors that say where they are, and refuse those of another place.

Inside ``with FakeDevices():`` tensors can be made on, and moved to, the devices of `FAKE`. They are computed on the
CPU, and an operator that is given tensors of two devices raises, as on real ones; only copies go from one to another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
FAKE = [torch.device("meta", number) for number in range(3)]

_MOVES = ("aten::to", "aten::_to_copy", "aten::copy_")
_INDEXED = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


def _leaves(tree: Any) -> Iterator[Any]:
    """What lists, tuples and dictionaries hold. torch's own trees know more, and are ten times slower."""
    if isinstance(tree, list | tuple | dict):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(part)
    else:
        yield tree


def _mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with every leaf changed."""
    if isinstance(tree, dict):
        return {name: _mapped(change, part) for name, part in tree.items()}
    return type(tree)(_mapped(change, part) for part in tree) if isinstance(tree, list | tuple) else change(tree)


class Placed(Tensor):
    """A tensor of the CPU that says that it is elsewhere."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Self:
        """The tensor at a device."""
        self = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=device,
        )  # fmt: skip
        self.inner = inner
        return self

    def tolist(self) -> Any:
        """The numbers."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operator, if its tensors are on one device."""
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func.name().split(".")[0]
    if name == "aten::_has_compatible_shallow_copy_type":
        return False
    leaves = list(_leaves((args, kwargs)))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    asked = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    places = {tensor.device for tensor in tensors if tensor.dim() or tensor.device != CPU}  # numbers go with all
    own = tensors[0].device if tensors else CPU
    if len(places) > 1 and name not in _MOVES:
        if not (name in _INDEXED and places <= {CPU, own}):  # so may indices of the host
            raise RuntimeError(f"{func} was given tensors on {sorted(map(str, places))}")
        places = {own}
    place = asked or (own if name in _MOVES else next(iter(places), own))

    def inside(leaf: Any) -> Any:
        return leaf.inner if isinstance(leaf, Placed) else CPU if isinstance(leaf, torch.device) else leaf

    known = {id(inside(tensor)): tensor for tensor in tensors}

    def outside(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        same = known.get(id(leaf))
        if same is not None and same.device == place:
            return same
        leaf = leaf if same is None else leaf.clone()
        return leaf if place == CPU else Placed(leaf, place)

    return _mapped(outside, func(*_mapped(inside, args), **_mapped(inside, kwargs)))


class FakeDevices(TorchDispatchMode):
    """Has operators know the devices of `FAKE`."""

    def __enter__(self) -> Any:
        """Lists become tensors on the CPU before they are moved."""
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        """As before."""
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operator, if its tensors are on one device."""
        return _run(func, args, kwargs or {})


def placed(module: nn.Module, device: torch.device) -> None:
    """Moves the weights of a module to a device, and what it is given before each forward, as accelerate's hooks do."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(weight.detach().to(device), requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)

    def moved(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tuple(_mapped(moved, part) for part in args), _mapped(moved, kwargs)

    module.register_forward_pre_hook(before, with_kwargs=True)


def spread(model: nn.Module, layers: nn.ModuleList, devices: Sequence[torch.device], last: torch.device) -> None:
    """Puts the layers of a model on `devices` in turn, what follows them on `last`, the rest on the first device."""
    for layer, device in zip(layers, cycle(devices), strict=False):
        placed(layer, device)
    inside, behind = {id(part) for layer in layers for part in layer.modules()}, False
    for part in model.modules():
        behind |= part is layers[-1]
        if id(part) not in inside and (part._parameters or part._buffers):
            placed(part, last if behind and part._parameters else devices[0])
