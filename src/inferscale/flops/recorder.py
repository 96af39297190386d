"""What a counter writes into its ledger when hooks and the dispatch mode report."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from . import context
from .context import Call
from .conventions import full
from .ledger import Ledger, Scope, Tally
from .ops import OpFlops
from .reading import Reading
from .targets import target_of
from .threads import thread_mode
from .watch import Watch, watch_of

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
        call = next((call for call in reversed(context.running()) if self.watches(call.watch)), None)
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
    for counter, scope in context.active():
        if watch is not None and counter.watches(watch):
            label = counter.labels[id(watch.module)]
            counter.write(scope, label, "decode", Tally(reported=sampled, useful=useful))
