"""Closed forms of what forwards read and write besides computing: weights, keys and values (standard library only).

Of a batch of rows, each the beginning of a path and what is sampled behind it::

    forwards = max over rows of (1 if tokens of the beginning are unread) + sampled - 1
    weights  = forwards * spec.active_weights
    reads    = what a query sees besides itself, the rows' shared prompt once for all of them in a forward
    writes   = the tokens that a forward reads for the first time
    cache    = (reads + writes) * kv_width, summed over the groups of layers
             + 2 * states for each forward of a row, but for one that has no token before it: that writes them alone

Of layers with a window a row reads the window, or the shared prompt is read whole, whichever is less. All rows are
taken to run in one batch, whatever they were run with: so the bytes of a search do not depend on what else was running.
Of a mixture of experts the weights are those of one token. Copies are not counted, such as those of states at a fork.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from inferscale.base import Traffic

from .spec import ModelSpec, causal_pairs


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows that begin alike.

    Attributes:
        past: Tokens before the first sampled one.
        unread: The last of them, which no forward had before; they are read once for all rows.
        sampled: Tokens sampled in each row; none for what is only read.
        prompt: Names the prompt that all begin with.
        shared: Tokens of that prompt, whose keys and values are read once for all rows of all groups with it.
    """

    past: int
    unread: int
    sampled: Sequence[int] = ()
    prompt: Hashable = None
    shared: int = 0

    @property
    def forwards(self) -> int:
        """Forwards that follow one another."""
        return int(self.unread > 0) + max(max(self.sampled, default=0) - 1, 0)


def count_traffic(
    spec: ModelSpec, batch: Collection[RowGroup], weight: float = 1, cached: float = 1, state: float = 1
) -> Traffic:
    """Return what one batch moves.

    Args:
        spec: The model's constants, whose states are known.
        batch: The rows.
        weight: Bytes of a weight; by default all are counted as numbers.
        cached: Bytes of a number in the cache.
        state: Bytes of a number in a recurrent state, which stays in float32: 4.
    """
    forwards = max((rows.forwards for rows in batch), default=0)
    # A token that is sampled last in its row has no forward.
    steps = [(rows, [count - 1 for count in rows.sampled if count > 1]) for rows in batch]
    written = sum(rows.unread + sum(counts) for rows, counts in steps)
    whole = _shared_reads(steps)
    cache: float = 0
    for group in spec.attention:
        if group.is_causal:  # an encoder keeps nothing
            reads = whole if group.window is None else min(whole, _window_reads(steps, group.window))
            cache += group.kv_width * (reads + written) * cached
    if spec.states is not None and any(spec.states):
        moves = sum(sum(counts) * 2 for _, counts in steps)
        moves += sum(1 + (rows.past > rows.unread) for rows in batch if rows.unread)
        cache += moves * (spec.states[0] * cached + spec.states[1] * state)
    return Traffic(round(forwards * spec.active_weights * weight), round(cache))


def _shared_reads(steps: Sequence[tuple[RowGroup, Sequence[int]]]) -> int:
    """Cached tokens read where every query sees all that stands before it."""
    own = 0
    first: dict[Hashable, int] = {}  # of each prompt, what the reading of unread tokens sees of it
    after: dict[Hashable, int] = {}  # and the most that the steps of a row do
    for rows, counts in steps:
        before = rows.past - rows.unread
        seen = min(rows.shared, before) if rows.unread else 0
        first[rows.prompt] = max(first.get(rows.prompt, 0), seen)
        own += before - seen if rows.unread else 0
        # forward t of a row sees the beginning and the t - 1 tokens before its own
        own += sum((rows.past - rows.shared) * count + count * (count - 1) // 2 for count in counts)
        after[rows.prompt] = max(after.get(rows.prompt, 0), rows.shared * max(counts, default=0))
    return own + sum(first.values()) + sum(after.values())


def _window_reads(steps: Sequence[tuple[RowGroup, Sequence[int]]], window: int) -> int:
    """Cached tokens read where a query sees `window` tokens, itself included, and every row reads its own."""
    reads = 0
    for rows, counts in steps:
        reads += min(rows.past - rows.unread, window - 1) if rows.unread else 0
        reads += sum(causal_pairs(count, rows.past, window) - count for count in counts)
    return reads
