"""`FlopCounter`: counts the FLOPs of the models that it watches."""

from __future__ import annotations

import functools
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from typing import Any, Literal, ParamSpec, Self, TypeAlias, TypeVar, get_args

import torch
from torch import nn

from .hooks import Reading, Watch, acquire, forms_of, is_watched, label_models, release, target_of, watch_of
from .ledger import Label, Ledger, Scope, Tally
from .ops import (
    Call,
    ExactMode,
    OpFlops,
    active,
    enter,
    in_unwatched_call,
    innermost_block,
    leave,
    running,
    scope_of,
    unwatched_call,
)
from .report import Readout, full, sampling_tallies
from .spec import ModelSpec, model_spec


class Clock:
    """Adds up wall-clock seconds between `start` and `stop`; overlapping blocks count once.

    On a GPU the kernels of a block may still run when it ends. A pair of events on the current stream tells how long
    they took; they are waited for when `seconds` is read, not before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._started = 0.0
        self._seconds = 0.0
        self._event: Any = None
        self._pairs: list[tuple[float, Any, Any]] = []

    def start(self) -> None:
        """Begins a block."""
        with self._lock:
            self._open += 1
            if self._open == 1:
                self._started, self._event = time.perf_counter(), _event()

    def stop(self) -> None:
        """Ends a block."""
        with self._lock:
            self._open -= 1
            if self._open == 0:
                elapsed = time.perf_counter() - self._started
                if self._event is None:
                    self._seconds += elapsed
                else:
                    self._pairs.append((elapsed, self._event, _event()))

    @property
    def seconds(self) -> float:
        """Seconds so far, those of a block that is still open included."""
        with self._lock:
            for elapsed, begin, end in self._pairs:
                end.synchronize()
                self._seconds += max(elapsed, begin.elapsed_time(end) / 1000)
            self._pairs.clear()
            return self._seconds + (time.perf_counter() - self._started if self._open else 0.0)

    def add(self, seconds: float) -> None:
        """Adds the seconds of another clock."""
        with self._lock:
            self._seconds += seconds

    def reset(self) -> None:
        """Starts again from zero, an open block from now."""
        with self._lock:
            self._seconds = 0.0
            self._pairs.clear()
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


_memory_lock = threading.Lock()
_memory_users = 0


class MemoryPeak:
    """The most bytes allocated on the current GPU between `start` and `stop`; nothing without one.

    The allocator keeps a single peak: it begins anew with the first of all counters that are open together.
    """

    def __init__(self) -> None:
        self._open = False
        self._bytes: int | None = None

    def start(self) -> None:
        """Begins to look."""
        global _memory_users
        self._open = True
        with _memory_lock:
            _memory_users += 1
            if _memory_users == 1 and _uses_cuda():
                torch.cuda.reset_peak_memory_stats()

    def stop(self) -> None:
        """Notes the peak."""
        global _memory_users
        self._bytes = self.bytes
        self._open = False
        with _memory_lock:
            _memory_users -= 1

    @property
    def bytes(self) -> int | None:
        """The peak so far; ``None`` on a CPU."""
        now = int(torch.cuda.max_memory_allocated()) if self._open and _uses_cuda() else None
        return max(filter(None, (self._bytes, now)), default=None)

    def add(self, other: int | None) -> None:
        """Takes another peak into account."""
        self._bytes = max(filter(None, (self._bytes, other)), default=None)

    def reset(self) -> None:
        """Forgets earlier blocks; in an open one the allocator goes on with its peak."""
        self._bytes = None


P = ParamSpec("P")
R = TypeVar("R")


class _Dispatcher:
    """Hands what a thread's dispatch mode sees to the counters that are active there."""

    def on_flops(self, flops: OpFlops) -> None:
        """Tells them of a counted operator."""
        for counter, scope in active():
            counter.on_flops(scope, flops)

    def on_unknown(self, name: str) -> None:
        """Tells them of an operator without a formula."""
        for counter, _ in active():
            counter.on_unknown(name)


class ThreadMode(threading.local):
    """At most one `ExactMode` for each thread, however many counters want it.

    One mode for each counter would be popped out of order by interleaved asyncio tasks, and stay on the stack.
    """

    def __init__(self) -> None:
        self.mode = ExactMode(_Dispatcher())
        self.users = 0

    def push(self) -> None:
        """Starts counting in this thread, or notes one more user."""
        if self.users == 0:
            self.mode.__enter__()  # type: ignore[no-untyped-call]
        self.users += 1

    def pop(self) -> None:
        """Notes one user less, and stops counting when it was the last one."""
        if self.users == 0:
            raise RuntimeError("an exact FlopCounter must be left in the thread in which it was entered: use bind()")
        self.users -= 1
        if self.users == 0:
            self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


thread_mode = ThreadMode()
"""The dispatch mode of this thread."""


def carried(function: Callable[P, R], block: Callable[[], AbstractContextManager[None]]) -> Callable[P, R]:
    """`function`, run inside of a `block` and with the counters that are active now, whatever thread calls it."""
    captured = copy_context()

    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with block():
            return function(*args, **kwargs)

    @functools.wraps(function)
    def anywhere(*args: P.args, **kwargs: P.kwargs) -> R:
        return captured.copy().run(inside, *args, **kwargs)

    return anywhere


_lock = threading.Lock()
_users = 0
_guarded: list[Any] = []  # the class that is looked after now, or nothing


def start() -> None:
    """Begins to watch out, or notes one more user; does not import transformers for it."""
    global _users
    with _lock:
        _users += 1
        library = sys.modules.get("transformers.modeling_utils")
        if library is not None and not _guarded:
            _guarded.append(library.PreTrainedModel)
            library.PreTrainedModel.__call__ = _call


def stop() -> None:
    """Notes one user less, and puts everything back after the last."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0 and _guarded:
            del _guarded.pop().__call__


def _call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The model's own result."""
    if torch.compiler.is_compiling() or running() or not _is_missed(self):
        return nn.Module.__call__(self, *args, **kwargs)
    with unwatched_call():  # the models inside of this one are part of the same news
        return nn.Module.__call__(self, *args, **kwargs)


def _is_missed(module: nn.Module) -> bool:
    """Whether counters that are active here do not count `module`; they are told."""
    missed = False
    if not in_unwatched_call():
        for counter, _ in active():
            if not is_watched(module, counter):
                counter.on_unwatched(type(module).__name__)
                missed = True
    return missed


Mode: TypeAlias = Literal["analytic", "exact", "verify"]

_OTHER = "other"
_TOLERANCE = 0.001


class FlopsWarning(UserWarning):
    """Something ran that a counter did not count."""


class VerificationError(AssertionError):
    """The closed form of a model does not agree with the operators that ran."""


class Recorder:
    """The part of a counter that hooks, dispatch mode and sentinel speak to.

    Attributes:
        mode: What to count by: closed forms, operators, or both.
        labels: Labels of the watched models, by the id of their module.
        ledger: The counts.
        uncounted: What ran and was not counted, and how often.
    """

    def __init__(self, mode: Mode, labels: dict[int, str], ledger: Ledger) -> None:
        self.mode = mode
        self.labels = labels
        self.ledger = ledger
        self.uncounted: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter_thread(self) -> None:
        """Begins to see the operators of this thread, if the mode needs them."""
        if self.mode != "analytic":
            thread_mode.push()

    def leave_thread(self) -> None:
        """Takes `enter_thread` back.

        Raises:
            RuntimeError: If it was called in another thread.
        """
        if self.mode != "analytic":
            thread_mode.pop()

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        """A block between the two."""
        self.enter_thread()
        try:
            yield
        finally:
            self.leave_thread()

    def watches(self, watch: Watch) -> bool:
        """Whether the counter counts this model."""
        return id(watch.module) in self.labels

    def write(self, scope: Scope, label: str, phase: Any, tally: Tally) -> None:
        """Adds `tally` to a leaf."""
        with self._lock:
            self.ledger.leaf(scope, label, phase).add(tally)

    def on_forward(self, call: Call, scope: Scope, reading: Reading) -> None:
        """Counts a forward by its closed form, or in exact mode only its tokens."""
        label = self.labels[id(call.watch.module)]
        if reading.opaque and self.mode != "exact":
            self.on_missed(
                f"attention of {label!r} over a cache without layers of its own",
                "the cache must tell its `packed_rows`, see inferscale.flops.PackedRows",
            )
        tally = reading.tally(self.ledger.specs.get(label))
        if self.mode != "analytic":
            self._expect(call, tally)
        self.write(scope, label, call.phase, tally)

    def on_head(self, call: Call, scope: Scope, positions: int) -> None:
        """Counts the last matrix, run on its own."""
        spec = self.ledger.specs.get(self.labels[id(call.watch.module)])
        self._on_part(call, scope, Tally(head=0 if spec is None else positions * spec.head))

    def on_extra(self, call: Call, scope: Scope, flops: int) -> None:
        """Counts a linear layer that stands beside the model."""
        self._on_part(call, scope, Tally(linear=flops))

    def _on_part(self, call: Call, scope: Scope, tally: Tally) -> None:
        if self.mode != "analytic":
            self._expect(call, tally)
        self.write(scope, self.labels[id(call.watch.module)], call.phase, tally)

    def _expect(self, call: Call, tally: Tally) -> None:
        """Prepares for the operators of a forward that is about to run."""
        if not thread_mode.users:  # the context came to this thread without bind()
            thread_mode.push()
            call.has_mode = True
        if self.mode == "verify":
            call.expected = {**(call.expected or {}), self: full(tally)}
            call.executed = call.executed or Counter()
        else:
            tally.linear = tally.head = tally.attention_full = tally.attention_causal = 0

    def on_end(self, call: Call, completed: bool) -> None:
        """Compares the two counts of a forward that has run to its end.

        Raises:
            VerificationError: If they differ by more than 0.1 %.
        """
        if call.has_mode:
            thread_mode.pop()
            call.has_mode = False
        if not completed or call.expected is None or call.executed is None or self not in call.expected:
            return
        expected, executed = call.expected[self], call.executed[self]
        if abs(expected - executed) > _TOLERANCE * executed:
            raise VerificationError(
                f"{self.labels[id(call.watch.module)]!r} ({type(call.module).__name__}, {call.phase}): the closed form "
                f"says {expected:,} FLOPs and {executed:,} ran (ratio {expected / max(executed, 1):.4f}). Use "
                'mode="exact", or pass specs={label: inferscale.flops.calibrate(model)}. A static cache runs its whole '
                "buffer, and fused or replayed kernels are not seen: there the two differ by design"
            )

    def on_flops(self, scope: Scope, flops: OpFlops) -> None:
        """Counts an operator (exact), or notes it for the comparison (verify)."""
        if self.mode == "analytic":
            return
        call = next((call for call in reversed(running()) if self.watches(call.watch)), None)
        if self.mode == "verify":
            if call is None:
                self.on_missed("matrix products outside of the watched models", "they are in no closed form")
            elif call.executed is not None:
                call.executed[self] += flops.full
        elif call is None:
            self.write(scope, _OTHER, "other", _op_tally(flops, in_head=False))
        else:
            self.write(scope, self.labels[id(call.watch.module)], call.phase, _op_tally(flops, call.in_head))

    def on_unknown(self, name: str) -> None:
        """Notes an operator without a formula."""
        if self.mode != "analytic":
            self.on_missed(name, "give it a formula with inferscale.flops.register_flop_formula")

    def on_unwatched(self, name: str) -> None:
        """Notes a transformers model that ran and is not watched; without any model, exact mode counts it all."""
        if self.labels or self.mode == "analytic":
            self.on_missed(
                f"{name} (not watched)", "pass every model that runs, as in FlopCounter(generator=model, reward=prm)"
            )

    def on_missed(self, what: str, advice: str) -> None:
        """Notes what was not counted, and warns the first time."""
        with self._lock:
            self.uncounted[what] += 1
            is_first = self.uncounted[what] == 1
        if is_first:
            warnings.warn(f"not in this counter's FLOPs: {what}; {advice}", FlopsWarning, stacklevel=2)


def _op_tally(flops: OpFlops, in_head: bool) -> Tally:
    """The tally of one operator."""
    if flops.is_attention:
        return Tally(attention_full=flops.full, attention_causal=flops.causal)
    return Tally(head=flops.full) if in_head else Tally(linear=flops.full)


def report_tokens(model: Any, *, sampled: int = 0, useful: int = 0) -> None:
    """Tells the active counters what a generator knows and a forward does not show.

    Args:
        model: The model, or what holds it as ``.model``.
        sampled: Tokens drawn from its logits (several can come from one forward).
        useful: Tokens read that are neither padding nor past the end of a sequence.
    """
    watch = watch_of(target_of(model).module)
    for counter, scope in active():
        if watch is not None and counter.watches(watch):
            label = counter.labels[id(watch.module)]
            counter.write(scope, label, "decode", Tally(reported=sampled, useful=useful))


class FlopCounter(Readout):
    """Counts FLOPs of the watched models, by scope, model and phase, as exact integers.

    Enter it with ``with``, as often as wanted and inside of one another; counts add up until `reset`. It follows
    asyncio tasks by itself and threads through `bind`. One multiply-add is 2 FLOPs, and only matrix products count.

    Modes:
        ``"analytic"``: one hook for each model adds the closed form of every forward; no tensor is looked at.
        ``"exact"``: a dispatch mode counts every matrix product that runs, those outside of the models too (under
        ``"other"``). It slows small models down. Attention is halved only where ``is_causal=True`` is seen.
        ``"verify"``: counts by closed forms and compares every forward with what ran; a difference over 0.1 % is a
        `VerificationError`.

    Attributes:
        mode: How it counts.
        ledger: The counts, as integers that no convention has touched.
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
        """Reads the models' closed forms; nothing is counted yet.

        Args:
            models: Models without a label; they are called ``"model"``, ``"generator"`` or ``"reward"``.
            mode: How to count.
            specs: Closed forms by label, in the place of those that the counter finds itself.
            nominal_parameters: Sizes in the models' names by label (7e9), for the convention ``"2N_nominal"``.
            display: Whether the table goes to standard output when the counter is left.
            labelled: Models by label: ``FlopCounter(generator=model, reward=prm)``. A model is a torch module, or a
                generator or reward model that holds one as ``.model``.

        Raises:
            UnknownArchitectureError: If a model has no closed form and cannot be calibrated.
            ValueError: If an option is unknown, or a model is watched twice.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode={mode!r}: choose one of {', '.join(get_args(Mode))}")
        self.mode = mode
        self.ledger = Ledger()
        self._targets = label_models(models, labelled)
        for label, spec in forms_of(self._targets, mode == "exact", specs, nominal_parameters).items():
            self.ledger.add_model(label, spec)
        labels = {id(target.module): label for label, target in self._targets.items()}
        self._recorder = Recorder(mode, labels, self.ledger)
        self._display = display
        self._clock, self._memory = Clock(), MemoryPeak()
        self._lock = threading.Lock()
        self._open = 0
        self._watches: list[Watch] = []

    def __enter__(self) -> Self:
        """The counter, counting."""
        with self._lock:
            self._open += 1
            if self._open == 1:
                self._watches = [acquire(target, self._recorder) for target in self._targets.values()]
                start()
                self._memory.start()
        self._recorder.enter_thread()
        enter(self._recorder, scope_of(self._recorder) or ())
        self._clock.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stops counting, unless an outer block of this counter goes on."""
        self._clock.stop()
        frame = innermost_block(self._recorder)
        if frame is not None:
            leave(frame)
        with self._lock:
            self._open -= 1
            closes = self._open == 0
            if closes:
                self._take_back()
        self._recorder.leave_thread()  # raises in a foreign thread: by then nothing else is left behind
        if closes and self._display:
            sys.stdout.write(self.table() + "\n")

    def _take_back(self) -> None:
        """Removes the hooks, and ends what runs while a counter is open."""
        for hooks in self._watches:
            release(hooks, self._recorder)
        self._watches = []
        stop()
        self._memory.stop()

    @contextmanager
    def scope(self, name: str | None = None, **labels: Label) -> Iterator[None]:
        """A ``with`` block whose work is counted under labels, as in ``scope(problem=3)`` or ``scope("warm-up")``.

        Scopes nest. Opened in a thread or task that the counter does not follow, it makes the counter count there.

        Raises:
            RuntimeError: If the counter is not open.
            ValueError: If there is no label.
        """
        if not self._open:
            raise RuntimeError("scope() outside of the counter: open it in a `with FlopCounter(...)` block")
        pairs = (*((("name", name),) if name is not None else ()), *labels.items())
        if not pairs:
            raise ValueError('scope() needs a name or a label, as in scope("warm-up") or scope(problem=3)')
        frame = enter(self._recorder, (*(scope_of(self._recorder) or ()), *pairs), is_scope=True)
        try:
            with self._recorder.in_thread():
                yield
        finally:
            leave(frame)

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, counted in whatever thread it runs, under the scope in which `bind` was called.

        Raises:
            RuntimeError: If the counter is not counting here, or has closed by the time the function runs.
        """
        if scope_of(self._recorder) is None:
            raise RuntimeError("bind() where the counter is not counting: call it inside of `with FlopCounter(...)`")

        def counting() -> AbstractContextManager[None]:
            if not self._open:
                raise RuntimeError(f"{function!r} was bound to a counter that has closed: keep its block open longer")
            return self._recorder.in_thread()

        return carried(function, counting)

    def add(
        self, config: Any, *, prompt: int, new: int, n: int = 1, shared_prefix: bool = True, model: str = "server"
    ) -> None:
        """Adds what a served model has done, by its closed form; works inside and outside of the ``with`` block.

        Args:
            config: The served model's configuration, its dictionary, or a `ModelSpec`.
            prompt: Tokens of the prompt.
            new: Tokens of each completion.
            n: Completions.
            shared_prefix: Whether the server read the prompt once for all of them.
            model: The model's label.
        """
        spec = model_spec(config)
        prefill, decode = sampling_tallies(spec, prompt, new, n, shared_prefix)
        self.ledger.add_model(model, spec)
        scope = scope_of(self._recorder) or ()
        self._recorder.write(scope, model, "prefill", prefill)
        self._recorder.write(scope, model, "decode", decode)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds inside of the counter's blocks; on a GPU until the kernels had ended."""
        return self._clock.seconds

    @property
    def peak_memory(self) -> int | None:
        """Most bytes allocated on the current GPU while the outermost open counter was open; ``None`` on a CPU."""
        return self._memory.bytes

    @property
    def uncounted(self) -> dict[str, int]:
        """What ran inside of the counter and is not in its FLOPs, and how often; ``{}`` is what you want to see."""
        return dict(self._recorder.uncounted)

    def reset(self) -> None:
        """Sets all counts, times and notes back to zero."""
        self.ledger.leaves.clear()
        self._recorder.uncounted.clear()
        self._clock.reset()
        self._memory.reset()

    def state_dict(self) -> dict[str, Any]:
        """Everything that was counted, in JSON types; `merge` reads it."""
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
                raise ValueError(f"a FlopCounter state of version {version!r}; this inferscale reads version 1")
            merged.ledger.merge(Ledger.from_state_dict(state))
            merged._recorder.uncounted.update(state["uncounted"])
            merged._clock.add(state["seconds"])
            merged._memory.add(state["peak_memory"])
        return merged
