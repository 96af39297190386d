"""`FlopCounter`: counts the FLOPs of the models that it watches."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ParamSpec, Self, TypeVar, get_args

from . import context, sentinel, watch
from .binding import forms_of, label_models
from .clock import Clock, MemoryPeak
from .estimate import sampling_tallies
from .families import model_spec
from .ledger import Label, Ledger
from .readout import Readout
from .recorder import Mode, Recorder
from .spec import ModelSpec
from .threads import carried
from .watch import Watch

P = ParamSpec("P")
R = TypeVar("R")


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
                self._watches = [watch.acquire(target, self._recorder) for target in self._targets.values()]
                sentinel.start()
                self._memory.start()
        self._recorder.enter_thread()
        context.enter(self._recorder, context.scope_of(self._recorder) or ())
        self._clock.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stops counting, unless an outer block of this counter goes on."""
        self._clock.stop()
        frame = context.innermost_block(self._recorder)
        if frame is not None:
            context.leave(frame)
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
            watch.release(hooks, self._recorder)
        self._watches = []
        sentinel.stop()
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
        frame = context.enter(self._recorder, (*(context.scope_of(self._recorder) or ()), *pairs), is_scope=True)
        try:
            with self._recorder.in_thread():
                yield
        finally:
            context.leave(frame)

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, counted in whatever thread it runs, under the scope in which `bind` was called.

        Raises:
            RuntimeError: If the counter is not counting here, or has closed by the time the function runs.
        """
        if context.scope_of(self._recorder) is None:
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
        scope = context.scope_of(self._recorder) or ()
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
