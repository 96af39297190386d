"""What branches that decode together have drawn, in arrays: a branch is told where it may end, not token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .branch import Branch

_ROOM = 64  # tokens of a row that the arrays start with


class Drafts:
    """Rows of drawn tokens, each with its branch.

    Attributes:
        branches: The branch of each row.
        keys: Keys of their random streams.
        counts: Tokens drawn in each row, those included that its branch has not heard of.
        greedy: Which rows take the likeliest tokens.
    """

    def __init__(self) -> None:
        self.branches: list[Branch] = []
        self.keys = np.zeros(0, dtype=np.uint64)
        self.counts = np.zeros(0, dtype=np.int64)
        self.greedy = np.zeros(0, dtype=bool)
        self._goes_on = np.zeros(0, dtype=bool)
        self._due = np.zeros(0, dtype=np.int64)  # counts at which a length ends a step
        self._room = np.zeros(0, dtype=np.int64)  # counts that a path's length and the context allow
        self._drawn = np.zeros((3, 0, _ROOM))  # ids, log-probabilities, confidences
        self._may_end = np.zeros((0, _ROOM), dtype=bool)

    def add(self, branches: Sequence[Branch]) -> None:
        """Adds rows for branches that have no tokens yet."""
        self.branches = [*self.branches, *branches]
        count, room = len(branches), self._drawn.shape[2]
        self.keys = np.append(self.keys, np.array([branch.key for branch in branches], dtype=np.uint64))
        self.counts = np.append(self.counts, np.zeros(count, dtype=np.int64))
        self.greedy = np.append(self.greedy, [branch.request.greedy for branch in branches])
        self._goes_on = np.append(self._goes_on, np.ones(count, dtype=bool))
        self._due = np.append(self._due, [branch.due for branch in branches])
        self._room = np.append(self._room, [branch.room for branch in branches])
        self._drawn = np.concatenate([self._drawn, np.zeros((3, count, room))], axis=1)
        self._may_end = np.concatenate([self._may_end, np.zeros((count, room), dtype=bool)])

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drops all rows but these."""
        self.branches = [self.branches[row] for row in rows]
        self.keys, self.counts = self.keys[rows], self.counts[rows]
        self.greedy, self._goes_on = self.greedy[rows], self._goes_on[rows]
        self._due, self._room = self._due[rows], self._room[rows]
        self._drawn, self._may_end = self._drawn[:, rows], self._may_end[rows]

    def rows(self, going_on: bool) -> NDArray[np.int64]:
        """Rows whose branch goes on, or those whose branch has ended."""
        return np.flatnonzero(self._goes_on == going_on)

    def most_ahead(self, wanted: int) -> int:
        """How many of `wanted` tokens can be drawn without a look: no row leaves its room, some row needs them all."""
        return int(min(wanted, (self._room - self.counts).min(), (self._due - self.counts).max()))

    def record(self, drawn: NDArray[np.float64], tell_all: bool) -> None:
        """Takes the next tokens of every row; branches that may have ended, or all of them, are told.

        Args:
            drawn: Ids, log-probabilities and confidences, `[3, rows, tokens]`.
            tell_all: Whether every branch hears of every token.
        """
        count = drawn.shape[2]
        self._reserve(int(self.counts.max()) + count)
        rows = np.arange(len(self.branches))[:, None]
        places = self.counts[:, None] + np.arange(count)
        flags = self.branches[0].text.may_end(drawn[0].astype(np.int64))
        self._drawn[:, rows, places] = drawn
        self._may_end[rows, places] = flags
        self.counts += count
        told = flags.any(axis=1) | (self.counts >= self._due)
        for row in range(len(rows)) if tell_all else np.flatnonzero(told).tolist():
            self._tell(row, tell_all)

    def _tell(self, row: int, everything: bool) -> None:
        """Hands a branch its new tokens up to each place where it, or a step, may end."""
        branch, count = self.branches[row], int(self.counts[row])
        while branch.finish is None:
            start = len(branch.tokens)
            flagged = np.flatnonzero(self._may_end[row, start:count])
            stop = min(start + int(flagged[0]) + 1, branch.due) if len(flagged) else branch.due
            if stop > count:
                if not everything or start == count:
                    break
                stop = count
            ids, logprobs, confidences = self._drawn[:, row, start:stop].tolist()
            branch.take([int(i) for i in ids], logprobs, confidences)
        self._due[row], self._goes_on[row] = branch.due, branch.finish is None

    def _reserve(self, tokens: int) -> None:
        room = self._drawn.shape[2]
        if tokens > room:
            more = max(tokens - room, room)
            self._drawn = np.pad(self._drawn, ((0, 0), (0, 0), (0, more)))
            self._may_end = np.pad(self._may_end, ((0, 0), (0, more)))
