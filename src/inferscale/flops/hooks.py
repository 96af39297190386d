"""From what the user passed to forward hooks that tell a counter what each forward was asked to do."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn

from inferscale._compat import CACHE_NAMES
from inferscale.base import Generator, RewardModel

from .calibration import calibrate
from .ledger import Phase, Scope, Tally, forward_sizes, forward_tally, packed_tally, phase_of
from .ops import Call, active, begin_call, end_call, is_quiet, running_call
from .spec import SPARSE, HeadKind, ModelSpec, PackedRows, UnknownArchitectureError, head_of_class, model_spec


@dataclass(frozen=True)
class Target:
    """What to watch.

    Attributes:
        module: The language model.
        extras: Linear layers that a wrapper of ours or the user's runs beside it.
    """

    module: nn.Module
    extras: tuple[nn.Linear, ...] = ()


def target_of(model: Any) -> Target:
    """What to watch of `model`: itself, or what its ``model`` attribute holds (generators, reward models, wrappers).

    Raises:
        TypeError: If there is no torch module.
    """
    found = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(found, nn.Module):
        raise TypeError(
            f"FlopCounter watches torch modules, and generators and reward models that hold one as `.model`; got "
            f"{type(model).__name__}. For a served model, count with counter.add(config, prompt=..., new=...)"
        )
    module: nn.Module = getattr(found, "_orig_mod", found)  # torch.compile's wrapper runs the hooks of what it wraps
    inner = getattr(module, "model", None)
    if _is_language_model(module) or not (isinstance(inner, nn.Module) and _is_language_model(inner)):
        return Target(module)
    inside = set(map(id, inner.modules()))
    beside = [part for part in module.modules() if isinstance(part, nn.Linear) and id(part) not in inside]
    return Target(inner, tuple(beside))


def _is_language_model(module: nn.Module) -> bool:
    """Whether `module` is a whole model of transformers."""
    return hasattr(module, "base_model_prefix") and hasattr(module, "get_output_embeddings")


def unwrap(module: nn.Module) -> nn.Module:
    """What a data-parallel wrapper holds, or the module itself."""
    is_wrapper = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner = module.module if is_wrapper else module
    assert isinstance(inner, nn.Module)
    return inner


def bodies_of(module: nn.Module) -> list[nn.Module]:
    """The parts of a transformers model that hold all layers and not the last matrix: mostly one.

    OPT and models with other towers hold their decoder in a part of that part, and either may be called.
    """
    body = getattr(module, str(getattr(module, "base_model_prefix", "") or "-"), None)
    find = getattr(module, "get_decoder", None)
    found = [part for part in (body, find() if callable(find) else None) if isinstance(part, nn.Module)]
    return [part for part in dict.fromkeys(found) if part is not module]


def head_of(module: nn.Module) -> nn.Module | None:
    """The last matrix (or the small network in its place) of a transformers model."""
    if not hasattr(module, "base_model_prefix"):
        return None
    names = ("lm_head", "embed_out", "score", "classifier", "v_head")
    heads = [part for name in names if isinstance(part := getattr(module, name, None), nn.Module)]
    return heads[0] if heads else None


def label_models(models: Sequence[Any], labelled: Mapping[str, Any]) -> dict[str, Target]:
    """What to watch by label; models without one are called after what they are.

    Raises:
        TypeError: If something is not a model.
        ValueError: If a model is given twice, or is a part of another one.
    """
    named: dict[str, Any] = dict(labelled)
    for model in models:
        base = _default_label(model)
        labels = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
        named[next(label for label in labels if label not in named)] = model
    targets = {label: target_of(model) for label, model in named.items()}
    for label, target in targets.items():
        for other, part in targets.items():
            if label != other and any(part.module is inner for inner in target.module.modules()):
                raise ValueError(f"{other!r} is {label!r} itself or a part of it: watch one of the two")
    return targets


def _default_label(model: Any) -> str:
    if isinstance(model, Generator):
        return "generator"
    return "reward" if isinstance(model, RewardModel) else "model"


def forms_of(
    targets: Mapping[str, Target],
    exact: bool,
    specs: Mapping[str, ModelSpec] | None,
    nominal_parameters: Mapping[str, float] | None,
) -> dict[str, ModelSpec | None]:
    """The closed form of each watched model, by label.

    Args:
        targets: What is watched.
        exact: Whether a model may do without: it is counted op by op.
        specs: Closed forms in the place of those found here.
        nominal_parameters: Sizes in the models' names.

    Raises:
        UnknownArchitectureError: If a model has no closed form, and calibration failed.
        ValueError: If an option is for a model that is not watched.
    """
    given, nominal = dict(specs or {}), dict(nominal_parameters or {})
    for name, option in (("specs", given), ("nominal_parameters", nominal)):
        unknown = set(option) - set(targets)
        if unknown:
            raise ValueError(f"{name} names {sorted(unknown)}, and the watched models are {sorted(targets)}")
    find = known_form if exact else closed_form
    forms = {label: given.get(label) or find(target.module) for label, target in targets.items()}
    for label, size in nominal.items():
        spec = forms[label]
        if spec is not None:
            forms[label] = dataclasses.replace(spec, nominal_parameters=int(size))
    return forms


def closed_form(model: Any) -> ModelSpec:
    """The closed form of a live model: from its configuration, or calibrated if there is none or it does not fit.

    A configuration does not fit where the model has other matrices than its family: adapters, added layers, heads.

    Args:
        model: A torch module, or what holds one as ``.model``.

    Raises:
        UnknownArchitectureError: If there is none, and calibration failed.
    """
    module = target_of(model).module
    return known_form(module) or calibrate(unwrap(module))


def known_form(module: nn.Module) -> ModelSpec | None:
    """The closed form of a live model's configuration, if there is one and it has the model's matrices."""
    inner = unwrap(module)
    config = getattr(inner, "config", None)
    if config is None:
        return None
    try:
        spec = model_spec(config, head=_head_kind(inner))
    except UnknownArchitectureError:
        return None
    # The matrices of other towers, and of stacked experts, cannot be told apart so easily.
    is_simple = getattr(config, "text_config", None) is None and spec.family not in SPARSE
    if is_simple and _matrix_flops(inner) != spec.linear + spec.head:
        return None
    if getattr(config, "quantization_config", None) is not None:
        return spec  # packed weights: their number of elements is not the number of parameters
    return dataclasses.replace(spec, parameters=sum(parameter.numel() for parameter in inner.parameters()))


def _head_kind(module: nn.Module) -> HeadKind:
    """The head of a live model, by the first of its classes whose name tells."""
    names = [kind.__name__ for kind in type(module).__mro__]
    for name in names:
        if "For" in name or name.endswith("LMHeadModel"):
            return head_of_class(name)
    return head_of_class(next((name for name in names if name.endswith("Model")), names[0]))


def _matrix_flops(module: nn.Module) -> int:
    """FLOPs of one position in all linear layers."""
    total = 0
    for part in module.modules():
        if isinstance(part, nn.Linear):
            total += 2 * part.in_features * part.out_features
        elif type(part).__name__ == "Conv1D":  # GPT-2's linear layer
            total += 2 * int(part.nx) * int(part.nf)  # type: ignore[arg-type]
    return total


class Reading(NamedTuple):
    """The sizes of one forward.

    Attributes:
        new: New tokens in each row.
        past: Cached tokens of each row.
        batch: Rows.
        logits: Positions of each row that the head runs for; ``None`` for all.
        keeps_all: Whether the cache keeps what has left the model's window.
        packed: The rows that one sequence stands for, if the cache packs rows.
        opaque: Whether the cache holds its keys and values elsewhere, and does not tell what attention does.
    """

    new: int
    past: int
    batch: int
    logits: int | None = None
    keeps_all: bool = False
    packed: PackedRows | None = None
    opaque: bool = False

    @property
    def phase(self) -> Phase:
        """The phase of the forward."""
        if self.packed is not None:
            return phase_of(self.new // self.packed.rows, self.packed.read_tokens)
        return phase_of(self.new, self.past)

    def tally(self, spec: ModelSpec | None) -> Tally:
        """The tally of the forward; without a closed form, only its sizes."""
        if self.packed is not None:
            return packed_tally(spec, self.new, self.new if self.logits is None else self.logits, self.packed)
        if spec is None:
            return forward_sizes(self.new, self.past, self.batch, self.logits)
        return forward_tally(spec, self.new, self.past, self.batch, self.logits, self.keeps_all)


def _has_layers(cache: Any) -> bool:
    """Whether a cache is transformers', and holds (or will hold) its keys and values in layers of its own."""
    layers = getattr(cache, "layers", None)
    return layers is not None and bool(layers or getattr(cache, "layer_class_to_replicate", None) is not None)


class Reader:
    """Reads the arguments of one model's ``forward``; only Python integers, so a GPU is never waited for.

    One exception: a `StaticCache` holds its length on the device. It is read once for each forward of several tokens
    and counted on from there.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        names = list(inspect.signature(module.forward).parameters)
        self._position = {name: index for index, name in enumerate(names)}
        self._keeps_logits = "logits_to_keep" in names or "num_logits_to_keep" in names
        config = getattr(module, "config", None)
        text = getattr(config, "text_config", None) or config
        self._has_window = getattr(text, "sliding_window", None) is not None
        self._static: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Reading | None:
        """The sizes of the call, or ``None`` if it has neither ``input_ids`` nor ``inputs_embeds``."""
        tokens = self._argument("input_ids", args, kwargs)
        if tokens is None:
            tokens = self._argument("inputs_embeds", args, kwargs)
        if tokens is None or tokens.dim() < 2:
            return None
        batch, new = tokens.shape[:2]
        cache = next((c for n in CACHE_NAMES if (c := self._argument(n, args, kwargs)) is not None), None)
        kept = self._kept(args, kwargs, new)
        if cache is None:
            return Reading(new, 0, batch, kept)
        packed = getattr(cache, "packed_rows", None)
        if packed is not None:
            return Reading(new, 0, batch, kept, packed=packed)
        if not _has_layers(cache):
            return Reading(new, 0, batch, kept, opaque=True)
        keeps_all = self._has_window and not any(cache.is_sliding)
        return Reading(new, self._past(cache, new), batch, kept, keeps_all)

    def _argument(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if name in kwargs:
            return kwargs[name]
        position = self._position.get(name, len(args))
        return args[position] if position < len(args) else None

    def _kept(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], new: int) -> int | None:
        """Positions that the head runs for; 0 means all, as in transformers."""
        if not self._keeps_logits:
            return None
        kept = self._argument("logits_to_keep", args, kwargs)
        if isinstance(kept, torch.Tensor):
            return kept.numel()
        return min(int(kept), new) if kept else None

    def _past(self, cache: Any, new: int) -> int:
        """Tokens that the cache holds."""
        length = cache.get_seq_length()
        if not isinstance(length, torch.Tensor):
            return int(length)
        known = self._static.get(cache)
        if known is None or new > 1:
            known = int(length)
        self._static[cache] = known + new
        return known


class Listener(Protocol):
    """A counter, as hooks see it."""

    def watches(self, watch: Watch) -> bool:
        """Whether the counter counts this model."""

    def on_forward(self, call: Call, scope: Scope, reading: Reading) -> None:
        """A forward begins."""

    def on_head(self, call: Call, scope: Scope, positions: int) -> None:
        """The last matrix begins to run on its own, for `positions`."""

    def on_extra(self, call: Call, scope: Scope, flops: int) -> None:
        """A linear layer beside the model begins to run."""

    def on_end(self, call: Call, completed: bool) -> None:
        """A forward has ended, with a result or with an exception."""

    def on_missed(self, what: str, advice: str) -> None:
        """Something ran that the counter does not count."""


class Watch:
    """The hooks of one model, shared by all open counters that watch it.

    The model may be called as a whole, or its body and its last matrix on their own; a part that runs inside of the
    whole is not counted again. The hook on the whole is kept out of compiled graphs, where those on the parts do
    nothing.

    Attributes:
        module: The model.
        listeners: The open counters that watch it.
        parts: Ids of the modules inside, itself included.
    """

    def __init__(self, target: Target) -> None:
        module = self.module = target.module
        self.listeners: list[Listener] = []
        self.parts = frozenset(map(id, module.modules()))
        self._reader = Reader(unwrap(module))
        self._handles: list[Any] = []
        self._hook(module, _disable(self._before), _disable(self._after))
        self._body_readers = {body: Reader(body) for body in bodies_of(module)}
        for body in self._body_readers:
            self._hook(body, self._before_body, self._after)
        head = head_of(module)
        if head is not None:
            self._hook(head, self._before_head, self._after_head)
        for extra in target.extras:
            self._hook(extra, self._before_extra, self._after)

    def remove(self) -> None:
        """Takes the hooks away again."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, module: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> None:
        self._handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, always_call=True),
        ]

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._begin(module, self._reader.read(args, kwargs))

    def _before_body(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.compiler.is_compiling() and running_call(self) is None:
            reading = self._body_readers[module].read(args, kwargs)
            self._begin(module, reading and reading._replace(logits=0))

    def _begin(self, module: nn.Module, reading: Reading | None) -> None:
        """Tells the counters that count here of a forward."""
        call = Call(self, module, "chunk" if reading is None else reading.phase)
        begin_call(call)
        for counter, scope in self._counting():
            if reading is None:
                counter.on_missed(
                    f"{type(module).__name__} called with neither input_ids nor inputs_embeds", 'use mode="exact"'
                )
            else:
                counter.on_forward(call, scope, reading)

    def _before_head(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        call = running_call(self)
        if call is not None:
            call.in_head = True
            return
        call, states = Call(self, module, "head", in_head=True), _input(args, kwargs)
        begin_call(call)
        for counter, scope in self._counting():
            counter.on_head(call, scope, states.numel() // states.shape[-1])

    def _before_extra(self, module: nn.Linear, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.compiler.is_compiling() and running_call(self) is None:
            call = Call(self, module, "head")
            begin_call(call)
            for counter, scope in self._counting():
                counter.on_extra(call, scope, 2 * _input(args, kwargs).numel() * module.out_features)

    def _counting(self) -> list[tuple[Listener, Scope]]:
        """The counters that watch this model and count here; its listeners hear of it if there is none."""
        counting = [(counter, scope) for counter, scope in active() if counter.watches(self)]
        if not counting and not is_quiet():
            for listener in self.listeners:
                listener.on_missed(
                    f"{type(self.module).__name__} in a thread or task where its counter is not active",
                    "give the thread counter.bind(function), or open `with counter.scope(...)` there",
                )
        return counting

    def _after(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if torch.compiler.is_compiling():
            return
        call = end_call(self, module)
        if call is not None:
            for counter, _ in active():
                if counter.watches(self):
                    counter.on_end(call, completed=result is not None)

    def _after_head(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        call = None if torch.compiler.is_compiling() else running_call(self)
        if call is not None and call.module is not module:
            call.in_head = False
        else:
            self._after(module, args, result)


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The one tensor that a linear layer is called with."""
    states: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
    return states


def _disable(hook: Callable[..., None]) -> Callable[..., None]:
    """`hook`, called from compiled code and never traced."""
    disabled: Callable[..., None] = torch.compiler.disable(hook)
    return disabled


_watches: dict[int, Watch] = {}
_lock = threading.Lock()


def acquire(target: Target, listener: Listener) -> Watch:
    """The hooks of a model, installed if no open counter watched it yet."""
    with _lock:
        watch = _watches.get(id(target.module))
        if watch is None:
            watch = _watches[id(target.module)] = Watch(target)
        watch.listeners.append(listener)
        return watch


def release(watch: Watch, listener: Listener) -> None:
    """Takes the hooks away if no other open counter watches the model."""
    with _lock:
        watch.listeners.remove(listener)
        if not watch.listeners:
            watch.remove()
            del _watches[id(watch.module)]


def is_watched(module: nn.Module, listener: Listener) -> bool:
    """Whether `module` is, or is a part of, a model that `listener` counts."""
    whole = _watches.get(id(module))
    if whole is not None and listener.watches(whole):
        return True
    return any(id(module) in watch.parts and listener.watches(watch) for watch in tuple(_watches.values()))


def watch_of(module: nn.Module) -> Watch | None:
    """The hooks of `module`, if an open counter watches it."""
    return _watches.get(id(module))
