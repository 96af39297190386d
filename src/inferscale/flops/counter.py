"""`FlopCounter`: the FLOPs of live models, counted by forward hooks and, in exact mode, by a dispatch mode.

Three things are known for each asyncio task and thread (context variables): the open blocks of counters, with their
scopes; the forwards that are running; and, for each thread, the dispatch mode. Hooks belong to a model, and are shared
by all counters that watch it.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import itertools
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, Self, TypeAlias, TypeVar, get_args
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from inferscale._compat import CACHE_NAMES
from inferscale.base import Generator, RewardModel

from .calibration import (
    closed_form,
    configured_form,
    is_calibrating,
    is_transformers_model,
    language_model,
    unwrapped,
)
from .ledger import (
    ForwardShape,
    Label,
    LeafKey,
    Ledger,
    Phase,
    Report,
    Scope,
    Tally,
    full,
    sampling_tallies,
)
from .ops import ExactMode, OpFlops
from .spec import ModelSpec, model_spec

Mode: TypeAlias = Literal["analytic", "exact", "verify"]
P = ParamSpec("P")
R = TypeVar("R")

_TOLERANCE = 0.001


class FlopsWarning(UserWarning):
    """Warning that something ran which a counter did not count.

    Example:
        >>> import warnings
        >>> import torch
        >>> from inferscale import zoo
        >>> from inferscale.flops import FlopCounter, FlopsWarning
        >>> policy, judge = zoo.load("policy-xs")[0], zoo.load("prm-xs")[0]
        >>> with warnings.catch_warnings(record=True) as caught, FlopCounter(policy) as counter:
        ...     warnings.simplefilter("always", FlopsWarning)
        ...     output = judge(torch.tensor([[1, 2, 3]]))
        >>> str(caught[0].message).split("; ")[0]
        "not in this counter's FLOPs: LlamaForCausalLM (not watched)"
        >>> counter.flops, counter.uncounted
        (0, {'LlamaForCausalLM (not watched)': 1})
    """


class VerificationError(AssertionError):
    """Disagreement between the closed form of a model and the operators that ran, of more than 0.1 %.

    Example:
        >>> import dataclasses
        >>> import torch
        >>> from inferscale import zoo
        >>> from inferscale.flops import FlopCounter, closed_form
        >>> model = zoo.load("policy-xs")[0]
        >>> wrong = dataclasses.replace(closed_form(model), head=0)  # as if logits cost nothing
        >>> with FlopCounter(model, mode="verify", specs={"model": wrong}):
        ...     output = model(torch.tensor([[1, 2, 3]]))
        Traceback (most recent call last):
            ...
        inferscale.flops.counter.VerificationError: 'model' (LlamaForCausalLM, prefill): the closed form says ...
    """


# What is known in each task and thread.


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A ``with`` block of a counter, or of one of its scopes."""

    counter: FlopCounter
    scope: Scope
    is_scope: bool


@dataclass(slots=True, eq=False)
class Call:
    """A forward that is running.

    Attributes:
        hooks: The hooks of the model; ``None`` for a model that no counter watches.
        module: What was called: the model, its body, its last matrix, or a layer beside it.
        phase: The phase.
        in_head: True while the last matrix runs.
        verified: For each counter that verifies, FLOPs by the closed form and FLOPs of the operators seen so far.
        has_mode: True if the dispatch mode was pushed for this call alone, its thread having none.
    """

    hooks: ModelHooks | None
    module: nn.Module
    phase: Phase
    in_head: bool = False
    verified: dict[FlopCounter, list[int]] | None = None
    has_mode: bool = False


# Tuples, never changed in place: a task that is started inside of a block inherits its parent's, and goes its own way.
_blocks: ContextVar[tuple[Block, ...]] = ContextVar("inferscale_flops_blocks", default=())
_calls: ContextVar[tuple[Call, ...]] = ContextVar("inferscale_flops_calls", default=())


def active() -> dict[FlopCounter, Scope]:
    """The counters that count here, each with its innermost scope."""
    return {block.counter: block.scope for block in _blocks.get()}


class ThreadMode(threading.local):
    """At most one `ExactMode` for each thread, however many counters want it.

    One mode for each counter would be popped out of order by interleaved asyncio tasks, and stay on the stack.
    """

    def __init__(self) -> None:
        self.mode = ExactMode(_on_operator)
        self.users = 0

    def push(self) -> None:
        """Start counting in this thread, or add one more user."""
        if self.users == 0:
            self.mode.__enter__()  # type: ignore[no-untyped-call]
        self.users += 1

    def pop(self) -> None:
        """Take one user away, and stop counting when it was the last one."""
        if self.users == 0:
            raise RuntimeError("an exact FlopCounter must be left in the thread in which it was entered: use bind()")
        self.users -= 1
        if self.users == 0:
            self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def _on_operator(operator: Any, flops: OpFlops | None) -> None:
    """Hand what a thread's dispatch mode sees to the counters that are active there."""
    for counter, scope in active().items():
        if counter.mode != "analytic":
            counter._on_operator(scope, operator, flops)


_thread_mode = ThreadMode()


# Hooks on models.


class Signature:
    """The parameters of a ``forward``, and the sizes that its arguments tell.

    Only Python integers are looked at, so that a GPU is never waited for. One exception: a `StaticCache` holds its
    length on the device. It is fetched once for each forward of several tokens and counted on from there.
    """

    def __init__(self, module: nn.Module) -> None:
        names = list(inspect.signature(module.forward).parameters)
        self._position = {name: index for index, name in enumerate(names)}
        self._keeps_logits = "logits_to_keep" in names or "num_logits_to_keep" in names
        config = getattr(module, "config", None)
        text = getattr(config, "text_config", None) or config
        self._has_window = getattr(text, "sliding_window", None) is not None
        self._static: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def shape(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ForwardShape | None:
        """The sizes of a call, or ``None`` if it has neither ``input_ids`` nor ``inputs_embeds``."""
        tokens = self._argument("input_ids", args, kwargs)
        if tokens is None:
            tokens = self._argument("inputs_embeds", args, kwargs)
        if tokens is None or tokens.dim() < 2:
            return None
        batch, new = tokens.shape[:2]  # `[B, S]` ids or `[B, S, d]` embeddings
        kept = self._argument("logits_to_keep", args, kwargs) if self._keeps_logits else None
        if isinstance(kept, torch.Tensor):
            logits: int | None = kept.numel()
        else:
            logits = min(int(kept), new) if kept else None  # 0 means all, as in transformers
        for name in CACHE_NAMES:
            cache = self._argument(name, args, kwargs)
            if cache is not None:
                break
        else:
            return ForwardShape(new, 0, batch, logits)
        packed = getattr(cache, "packed_rows", None)
        if packed is not None:
            return ForwardShape(batch * new, logits=None if logits is None else batch * logits, packed=packed)
        # A cache of transformers holds, or will hold, keys and values in layers of its own.
        if not getattr(cache, "layers", None) and getattr(cache, "layer_class_to_replicate", None) is None:
            return ForwardShape(new, 0, batch, logits, is_opaque=True)
        past = cache.get_seq_length()  # tokens seen, also where a window has dropped some of them
        if isinstance(past, torch.Tensor):
            known = self._static.get(cache)
            past = int(past) if known is None or new > 1 else known
            self._static[cache] = past + new
        return ForwardShape(new, int(past), batch, logits, self._has_window and not any(cache.is_sliding))

    def _argument(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if name in kwargs:
            return kwargs[name]
        position = self._position.get(name, len(args))
        return args[position] if position < len(args) else None


class ModelHooks:
    """The hooks of one model, shared by all open counters that watch it.

    The model may be called as a whole, or its body and its last matrix on their own; a part that runs inside of the
    whole is not counted again. The hook on the whole is kept out of compiled graphs, where those on the parts do
    nothing.

    Attributes:
        module: The model.
        parts: Ids of the modules inside, itself included.
    """

    def __init__(self, module: nn.Module, beside: Sequence[nn.Linear]) -> None:
        self.module = module
        self.parts = frozenset(map(id, module.modules()))
        self._handles: list[Any] = []
        # Called from compiled code and never traced.
        self._hook(module, torch.compiler.disable(self._before), torch.compiler.disable(self._after))
        # OPT and models with other towers hold their decoder in a part of their body, and either may be called.
        body = getattr(module, str(getattr(module, "base_model_prefix", "") or "-"), None)
        find_decoder = getattr(module, "get_decoder", None)
        bodies = {body, find_decoder() if callable(find_decoder) else None} - {module}
        self._signatures = {module: Signature(unwrapped(module))}
        for part in bodies:
            if isinstance(part, nn.Module):
                self._signatures[part] = Signature(part)
                self._hook(part, self._before_body, self._after)
        names = ("lm_head", "embed_out", "score", "classifier", "v_head") if is_transformers_model(module) else ()
        heads = [part for name in names if isinstance(part := getattr(module, name, None), nn.Module)]
        for head in heads[:1]:
            self._hook(head, self._before_head, self._after_head)
        for layer in beside:
            self._hook(layer, self._before_layer, self._after)

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, module: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> None:
        self._handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, always_call=True),
        ]

    def _running(self) -> Call | None:
        """The innermost forward of this model that is running here."""
        return next((call for call in reversed(_calls.get()) if call.hooks is self), None)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._forward(module, self._signatures[module].shape(args, kwargs))

    def _before_body(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.compiler.is_compiling() and self._running() is None:
            shape = self._signatures[module].shape(args, kwargs)
            self._forward(module, shape and shape._replace(logits=0))  # the head is called apart, or not at all

    def _before_head(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        call = self._running()
        if call is not None:  # inside of the whole, which is counted already: only operators need to know
            call.in_head = True
            return
        states = _input(args, kwargs)
        positions = states.numel() // states.shape[-1]
        call = Call(self, module, "head", in_head=True)
        self._begin(call, lambda spec: Tally(head=0 if spec is None else positions * spec.head))

    def _before_layer(self, module: nn.Linear, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.compiler.is_compiling() and self._running() is None:
            flops = 2 * _input(args, kwargs).numel() * module.out_features
            self._begin(Call(self, module, "head"), lambda spec: Tally(linear=flops))

    def _forward(self, module: nn.Module, shape: ForwardShape | None) -> None:
        if shape is None:
            self._begin(Call(self, module, "chunk"), None)
        else:
            self._begin(Call(self, module, shape.phase), shape.tally, shape.is_opaque)

    def _begin(self, call: Call, tally: Callable[[ModelSpec | None], Tally] | None, is_opaque: bool = False) -> None:
        """Tell the counters that count here of a forward, and those that do not of what they miss.

        Args:
            call: The forward.
            tally: What it amounts to under a closed form; ``None`` if its arguments do not tell.
            is_opaque: True if its attention is not known.
        """
        outer = _calls.get()
        _calls.set((*outer, call))
        is_heard = False
        for counter, scope in active().items():
            label = counter._labels.get(id(self.module))
            if label is None:  # another counter watches the model, and this one should if nothing runs around it
                if not outer:
                    counter._on_stranger(self.module)
                continue
            is_heard = True
            if tally is None and counter.mode == "exact":  # a module of the user's own: its operators tell all
                counter._on_forward(call, scope, label, Tally())
                continue
            if tally is None:
                counter._miss(
                    f"{type(call.module).__name__} called with neither input_ids nor inputs_embeds", 'use mode="exact"'
                )
                continue
            if is_opaque and counter.mode != "exact":
                counter._miss(
                    f"attention of {label!r} over a cache without layers of its own",
                    "the cache must tell its `packed_rows`, see inferscale.flops.PackedRows",
                )
            counter._on_forward(call, scope, label, tally(counter.ledger.specs.get(label)))
        if not is_heard and not is_calibrating.get():
            for counter in tuple(_open):
                if id(self.module) in counter._labels:
                    counter._miss(
                        f"{type(self.module).__name__} in a thread or task where its counter is not active",
                        "give the thread counter.bind(function), or open `with counter.scope(...)` there",
                    )

    def _after(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        """End the innermost forward of this model if it was a call of `module`, and what was left open inside.

        An interrupted forward (``KeyboardInterrupt``) runs no hooks: its call is taken back with the one around it, or
        when the next counter opens.
        """
        if torch.compiler.is_compiling():
            return
        call = self._running()
        if call is None or call.module is not module:
            return
        calls = _calls.get()
        _calls.set(calls[: calls.index(call)])  # what was interrupted inside goes too
        if call.has_mode:
            _thread_mode.pop()
        if call.verified and result is not None:
            for counter in call.verified:
                counter._compare(call)

    def _after_head(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        call = None if torch.compiler.is_compiling() else self._running()
        if call is not None and call.module is not module:
            call.in_head = False
        else:
            self._after(module, args, result)


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The one tensor that a linear layer is called with."""
    states: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
    return states


# Shared by all counters of the process, and changed under the lock. A hook that is running in another thread meanwhile
# is safe: it looks at its own `ModelHooks` and at its own context, and a count goes to whoever is active there.
_lock = threading.RLock()
_open: set[FlopCounter] = set()
_hooks: dict[int, ModelHooks] = {}  # by the id of the model
_known: WeakSet[nn.Module] | None = None  # the models of transformers that exist
_strangers: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()  # hooks on those that no counter watches


def _sync_hooks() -> None:
    """Keep hooks on the models that open counters watch and on strangers (models that none watches); drop all others.

    torch has hooks on all modules at once, but these run for every layer (a decoding step of a small model takes 10 %
    longer), and compiled models complain of them. So transformers models that nobody watches are found: those that
    exist when the first counter opens are known to the garbage collector, and later ones are seen when they are built.
    """
    global _known
    models = {id(module): (module, beside) for counter in _open for module, beside in counter._models.values()}
    for key in set(_hooks) - set(models):
        _hooks.pop(key).remove()
    for key in set(models) - set(_hooks):
        _hooks[key] = ModelHooks(*models[key])
    if _known is None:
        library = sys.modules.get("transformers.modeling_utils")
        objects = [] if library is None else gc.get_objects()
        _known = WeakSet(found for found in objects if issubclass(type(found), library.PreTrainedModel))  # type: ignore[union-attr]
    # A model inside of a watched one is counted with it. Among the others are bodies as well as wholes: either may be
    # called.
    watched = set().union(*(hooks.parts for hooks in _hooks.values()))
    strangers = {model for model in _known if _open and id(model) not in watched}
    for model in set(_strangers) - strangers:
        for handle in _strangers.pop(model):
            handle.remove()
    for model in strangers - set(_strangers):
        _strangers[model] = [
            model.register_forward_pre_hook(_before_stranger),
            model.register_forward_hook(_after_stranger, always_call=True),
        ]


def _on_construction(module: nn.Module, name: str, part: nn.Module | None) -> None:
    """Register a model of transformers, a part of which has been built; hook it up if a counter is open."""
    if torch.compiler.is_compiling():  # compiled code must not be guarded by the state of counters
        return
    if _known is not None and hasattr(type(module), "base_model_prefix") and module not in _known:
        with _lock:
            _known.add(module)
            if _open:
                _sync_hooks()


# With this module, once: compiled code is guarded by the number of these hooks, and is compiled again when it changes.
register_module_module_registration_hook(_on_construction)


def _before_stranger(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Tell the counters that count here of a model that they do not watch; its parts are not named again."""
    if not torch.compiler.is_compiling() and not _calls.get():
        counters = active()
        for counter in counters:
            counter._on_stranger(module)
        if counters:
            _calls.set((Call(None, module, "other"),))


def _after_stranger(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
    if not torch.compiler.is_compiling():
        calls = _calls.get()
        if calls and calls[0].hooks is None and calls[0].module is module:
            _calls.set(())


# The counter.


class Clock:
    """Wall-clock seconds between `start` and `stop`; overlapping blocks count once.

    On a GPU the kernels of a block may still run when it ends. A pair of events on the current stream tells how long
    they took; they are waited for when `seconds` is asked for, not before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._seconds = 0.0
        self._started = 0.0
        self._event: Any = None
        self._unread: list[tuple[float, Any, Any]] = []  # seconds on the CPU, and the events around them

    def start(self) -> None:
        """Begin a block."""
        with self._lock:
            self._open += 1
            if self._open == 1:
                self._started, self._event = time.perf_counter(), _event()

    def stop(self) -> None:
        """End a block."""
        with self._lock:
            self._open -= 1
            if self._open == 0:
                elapsed = time.perf_counter() - self._started
                if self._event is None:
                    self._seconds += elapsed
                else:
                    self._unread.append((elapsed, self._event, _event()))

    @property
    def seconds(self) -> float:
        """Seconds so far, those of a block that is still open included."""
        with self._lock:
            for elapsed, begin, end in self._unread:
                end.synchronize()
                self._seconds += max(elapsed, begin.elapsed_time(end) / 1000)
            self._unread.clear()
            return self._seconds + (time.perf_counter() - self._started if self._open else 0.0)

    def reset(self, seconds: float = 0.0) -> None:
        """Start again from `seconds`, an open block from now."""
        with self._lock:
            self._seconds = seconds
            self._unread.clear()
            self._started, self._event = time.perf_counter(), _event() if self._open else None


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())


def _event() -> Any:
    """A recorded CUDA event, where CUDA is in use."""
    if not _uses_cuda():
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def report_tokens(model: Any, *, sampled: int = 0, useful: int = 0) -> None:
    """Tell the active counters of tokens that a generator knows and a forward does not show.

    Args:
        model: The model, or what holds it as ``.model``.
        sampled: Tokens drawn from its logits (several can come from one forward).
        useful: Tokens forwarded that are neither padding nor past the end of a sequence.

    Example:
        >>> import torch
        >>> from inferscale import zoo
        >>> from inferscale.flops import FlopCounter, report_tokens
        >>> model = zoo.load("policy-xs")[0]
        >>> with FlopCounter(model) as counter:
        ...     output = model(torch.tensor([[1, 2, 3, 0]]))  # one token is padding
        ...     report_tokens(model, sampled=2, useful=3)  # two drafted tokens were accepted
        >>> counter.tokens
        Tokens(forwarded=4, sampled=2, useful=3)
    """
    counters = active()
    module = language_model(model)[0] if counters else None
    for counter, scope in counters.items():
        label = counter._labels.get(id(module))
        if label is not None:
            counter._write(scope, label, "decode", Tally(reported=sampled, useful=useful))


class FlopCounter(Report):
    """A counter of FLOPs of the watched models, by scope, model and phase, as exact integers.

    Enter it with ``with``, as often as wanted and inside of one another; counts add up until `reset`. It follows
    asyncio tasks by itself and threads through `bind`. One multiply-add is 2 FLOPs, and only matrix products count.

    Modes:
        * ``"analytic"``: hooks on each model add the closed form of every forward; no tensor is looked at.
        * ``"exact"``: a dispatch mode counts every matrix product that runs, those outside of the models too (under
          ``"other"``). It slows small models down. Attention is halved only where ``is_causal=True`` is seen.
        * ``"verify"``: counts by closed forms and compares every forward with what ran; a difference over 0.1 % is a
          `VerificationError`.

    Attributes:
        mode: How it counts.
        ledger: The counts, as integers that no convention has touched.

    Example:
        >>> from inferscale import HFGenerator, RepeatedSampling, solve, zoo
        >>> from inferscale.flops import FlopCounter
        >>> policy = HFGenerator(*zoo.load("policy-xs"), max_new_tokens=8)
        >>> with FlopCounter(policy) as counter:
        ...     result = solve(zoo.problems()[0], RepeatedSampling(2), policy)
        >>> print(counter.table())
        scope  model      phase    forwards  tokens  sampled  causal    full  of all
        all    generator  prefill         1      44        0  8.499M  9.044M   72.4%
        all    generator  decode          8      15       16  3.439M  3.439M   27.6%
        total                             9      59       16  11.94M  12.48M  100.0%
        >>> counter.flops_by("phase")
        {'prefill': 8499072, 'decode': 3439296}
    """

    def __init__(
        self,
        *models: Any,
        mode: Mode = "analytic",
        specs: Mapping[str, ModelSpec] | None = None,
        nominal_parameters: Mapping[str, float] | None = None,
        display: bool = False,
        **labelled: Any,
    ) -> None:
        """Find the models' closed forms; nothing is counted yet.

        Args:
            models: Models without a label; they are called ``"model"``, ``"generator"`` or ``"reward"``.
            mode: How to count.
            specs: Closed forms by label, in the place of those that the counter finds itself.
            nominal_parameters: Sizes in the models' names by label (7e9), for the convention ``"2N_nominal"``.
            display: True to write the table to standard output when the counter is left.
            labelled: Models by label: ``FlopCounter(generator=model, reward=prm)``. A model is a torch module, or a
                generator or reward model that holds one as ``.model``.

        Raises:
            TypeError: If something is not a model.
            UnknownArchitectureError: If a model has no closed form and cannot be calibrated.
            ValueError: If an option is unknown, or a model is watched twice.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode={mode!r}: choose one of {', '.join(get_args(Mode))}")
        self.mode = mode
        self.ledger = Ledger()
        self._models = _by_label(models, labelled)
        self._labels = {id(module): label for label, (module, _) in self._models.items()}
        for option, values in (("specs", specs), ("nominal_parameters", nominal_parameters)):
            unknown = set(values or ()) - set(self._models)
            if unknown:
                raise ValueError(f"{option} names {sorted(unknown)}, and the watched models are {sorted(self._models)}")
        for label, (module, _) in self._models.items():
            spec = (specs or {}).get(label)
            if spec is None:  # exact mode does without
                spec = configured_form(unwrapped(module)) if mode == "exact" else closed_form(module)
            if spec is not None and nominal_parameters and label in nominal_parameters:
                spec = dataclasses.replace(spec, nominal_parameters=int(nominal_parameters[label]))
            self.ledger.add_model(label, spec)
        self._display = display
        self._clock = Clock()
        self._peak: int | None = None
        # Guards what hooks of several threads change: leaves, notes, and the number of open blocks. Reports take no
        # lock: they copy the list of leaves in one step, and may miss a forward that is being added.
        self._lock = threading.Lock()
        self._uncounted: Counter[str] = Counter()
        self._open_blocks = 0

    def __enter__(self) -> Self:
        """The counter, counting."""
        with self._lock:
            self._open_blocks += 1
            if self._open_blocks == 1:
                with _lock:
                    _open.add(self)
                    if len(_open) == 1 and _uses_cuda():  # the allocator keeps a single peak, for all counters
                        torch.cuda.reset_peak_memory_stats()
                    _sync_hooks()
        if self.mode != "analytic":
            _thread_mode.push()
        self._enter_block(active().get(self, ()), is_scope=False)
        self._clock.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop counting, unless an outer block of this counter goes on."""
        self._clock.stop()
        own = [block for block in _blocks.get() if block.counter is self and not block.is_scope]
        _leave_block(own[-1] if own else None)
        with self._lock:
            closes = self._open_blocks == 1
            if closes:
                self._peak = self.peak_memory
                with _lock:
                    _open.remove(self)
                    _sync_hooks()
            self._open_blocks -= 1
        if self.mode != "analytic":
            _thread_mode.pop()  # raises in a foreign thread: by then nothing else is left behind
        if closes and self._display:
            sys.stdout.write(self.table() + "\n")

    @contextmanager
    def scope(self, name: str | None = None, **labels: Label) -> Iterator[None]:
        """A ``with`` block whose work is counted under labels, as in ``scope(problem=3)`` or ``scope("warm-up")``.

        Scopes nest. Opened in a thread or task that the counter does not follow, it makes the counter count there.

        Raises:
            RuntimeError: If the counter is not open.
            ValueError: If there is no label.
        """
        if not self._open_blocks:
            raise RuntimeError("scope() outside of the counter: open it in a `with FlopCounter(...)` block")
        pairs = (*((("name", name),) if name is not None else ()), *labels.items())
        if not pairs:
            raise ValueError('scope() needs a name or a label, as in scope("warm-up") or scope(problem=3)')
        block = self._enter_block((*active().get(self, ()), *pairs), is_scope=True)
        try:
            with self._operators():
                yield
        finally:
            _leave_block(block)

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, counted in whatever thread it runs, under the scope in which `bind` was called.

        Raises:
            RuntimeError: If the counter is not counting here, or has closed by the time the function runs.
        """
        if self not in active():
            raise RuntimeError("bind() where the counter is not counting: call it inside of `with FlopCounter(...)`")
        captured = copy_context()

        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            if not self._open_blocks:
                raise RuntimeError(f"{function!r} was bound to a counter that has closed: keep its block open longer")
            with self._operators():
                return function(*args, **kwargs)

        @functools.wraps(function)
        def anywhere(*args: P.args, **kwargs: P.kwargs) -> R:
            return captured.copy().run(counted, *args, **kwargs)  # a context runs in one thread at a time

        return anywhere

    def add(
        self, config: Any, *, prompt: int, new: int, n: int = 1, shared_prefix: bool = True, model: str = "server"
    ) -> None:
        """Add the work of a served model by its closed form; allowed inside and outside of the ``with`` block.

        Args:
            config: The served model's configuration, its dictionary, or a `ModelSpec`.
            prompt: Tokens of the prompt.
            new: Tokens of each completion.
            n: Completions.
            shared_prefix: True if the server forwarded the prompt once for all of them.
            model: The model's label.
        """
        spec = model_spec(config)
        prefill, decode = sampling_tallies(spec, prompt, new, n, shared_prefix)
        self.ledger.add_model(model, spec)
        scope = active().get(self, ())
        self._write(scope, model, "prefill", prefill)
        self._write(scope, model, "decode", decode)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds inside of the counter's blocks; on a GPU until the kernels had ended."""
        return self._clock.seconds

    @property
    def peak_memory(self) -> int | None:
        """Most bytes allocated on the current GPU while the outermost open counter was open; ``None`` on a CPU."""
        now = int(torch.cuda.max_memory_allocated()) if self._open_blocks and _uses_cuda() else None
        return max(filter(None, (self._peak, now)), default=None)

    @property
    def uncounted(self) -> dict[str, int]:
        """Names of what ran inside of the counter and is not in its FLOPs, with how often; ``{}`` if all is counted."""
        return dict(self._uncounted)

    def reset(self) -> None:
        """Set all counts, times and notes back to zero; in an open block the allocator goes on with its peak."""
        self.ledger.leaves.clear()
        self._uncounted.clear()
        self._clock.reset()
        self._peak = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that was counted, in JSON types, as `merge` takes it."""
        return {
            "version": 1,
            **self.ledger.state_dict(),
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
            "uncounted": self.uncounted,
        }

    @classmethod
    def merge(cls, *counters: FlopCounter | Mapping[str, Any]) -> FlopCounter:
        """A counter that watches nothing and holds the sum of `counters` (or of their `state_dict`).

        Seconds add up (device seconds), peak memory is the largest. Of tensor-parallel ranks, which all see the whole
        model, merge one.

        Raises:
            ValueError: If one label stands for two models, or a state has an unknown version.
        """
        merged = cls()
        for counter in counters:
            state = counter.state_dict() if isinstance(counter, FlopCounter) else counter
            version = state.get("version")
            if version != 1:
                raise ValueError(f"a FlopCounter state of version {version!r}; this inferscale takes version 1")
            merged.ledger.merge(Ledger.from_state_dict(state))
            merged._uncounted.update(state["uncounted"])
            merged._clock.reset(merged.seconds + state["seconds"])
            merged._peak = max(filter(None, (merged._peak, state["peak_memory"])), default=None)
        return merged

    def _enter_block(self, scope: Scope, is_scope: bool) -> Block:
        blocks = _blocks.get()
        if not blocks:
            _calls.set(())  # a forward that was interrupted may have left its own
        block = Block(self, scope, is_scope)
        _blocks.set((*blocks, block))
        return block

    @contextmanager
    def _operators(self) -> Iterator[None]:
        """A block in which this thread's operators are seen, if the mode needs them."""
        if self.mode == "analytic":
            yield
            return
        _thread_mode.push()
        try:
            yield
        finally:
            _thread_mode.pop()

    def _write(self, scope: Scope, label: str, phase: Phase, tally: Tally) -> None:
        with self._lock:
            self.ledger.add(LeafKey(scope, label, phase), tally)

    def _miss(self, what: str, advice: str) -> None:
        """Note something that is not counted, and warn the first time."""
        with self._lock:
            self._uncounted[what] += 1
            is_first = self._uncounted[what] == 1
        if is_first:
            warnings.warn(f"not in this counter's FLOPs: {what}; {advice}", FlopsWarning, stacklevel=2)

    def _on_stranger(self, module: nn.Module) -> None:
        """Note a transformers model that is not watched; exact mode without any model counts it all the same."""
        watched = (hooks for key, hooks in tuple(_hooks.items()) if key in self._labels)
        is_part = any(id(module) in hooks.parts for hooks in watched)
        if is_transformers_model(module) and not is_part and (self._labels or self.mode == "analytic"):
            self._miss(
                f"{type(module).__name__} (not watched)",
                "pass every model that runs, as in FlopCounter(generator=model, reward=prm)",
            )

    def _on_forward(self, call: Call, scope: Scope, label: str, tally: Tally) -> None:
        """Count a forward by its closed form, or in exact mode only its tokens: the operators are about to come."""
        if self.mode != "analytic":
            if not _thread_mode.users:  # the context came to this thread without bind(), as asyncio.to_thread does it
                _thread_mode.push()
                call.has_mode = True
            if self.mode == "verify":
                call.verified = {**(call.verified or {}), self: [full(tally), 0]}
            else:
                tally.linear = tally.head = tally.attention_full = tally.attention_causal = 0
        self._write(scope, label, call.phase, tally)

    def _on_operator(self, scope: Scope, operator: Any, flops: OpFlops | None) -> None:
        """Count an operator under the innermost watched model that is running (exact), or keep it for `_compare`."""
        if flops is None:
            self._miss(str(operator), "give it a formula with inferscale.flops.register_flop_formula")
            return
        calls = reversed(_calls.get())
        call = next((call for call in calls if call.hooks and id(call.hooks.module) in self._labels), None)
        if self.mode == "verify":
            if call is None:
                self._miss("matrix products outside of the watched models", "they are in no closed form")
            elif call.verified and self in call.verified:
                call.verified[self][1] += flops.full
            return
        if flops.is_attention:
            tally = Tally(attention_full=flops.full, attention_causal=flops.causal)
        else:
            tally = Tally(head=flops.full) if call is not None and call.in_head else Tally(linear=flops.full)
        if call is None or call.hooks is None:
            self._write(scope, "other", "other", tally)
        else:
            self._write(scope, self._labels[id(call.hooks.module)], call.phase, tally)

    def _compare(self, call: Call) -> None:
        """Compare the two counts of a forward that has run to its end."""
        assert call.hooks is not None
        assert call.verified is not None
        expected, executed = call.verified[self]
        if abs(expected - executed) > _TOLERANCE * executed:
            raise VerificationError(
                f"{self._labels[id(call.hooks.module)]!r} ({type(call.module).__name__}, {call.phase}): the closed "
                f"form says {expected:,} FLOPs and {executed:,} ran (ratio {expected / max(executed, 1):.4f}). Use "
                'mode="exact", or pass specs={label: inferscale.flops.calibrate(model)}. A static cache runs its whole '
                "buffer, and fused or replayed kernels are not seen: there the two differ by design"
            )


def _leave_block(block: Block | None) -> None:
    """Remove a block, whether or not blocks that were opened after it are still open."""
    _blocks.set(tuple(other for other in _blocks.get() if other is not block))


def _by_label(models: Sequence[Any], labelled: Mapping[str, Any]) -> dict[str, tuple[nn.Module, tuple[nn.Linear, ...]]]:
    """Language models by label, with the layers beside them; those without a label are called after what they are.

    Raises:
        ValueError: If a model is given twice, or is a part of another one.
    """
    named: dict[str, Any] = dict(labelled)
    for model in models:
        base = "generator" if isinstance(model, Generator) else "reward" if isinstance(model, RewardModel) else "model"
        labels = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
        named[next(label for label in labels if label not in named)] = model
    found = {label: language_model(model) for label, model in named.items()}
    for (label, (module, _)), (other, (part, _)) in itertools.permutations(found.items(), 2):
        if any(part is inner for inner in module.modules()):
            raise ValueError(f"{other!r} is {label!r} itself or a part of it: watch one of the two")
    return found
