"""Closed forms of what thoughts read and write besides computing: weights, keys, values and states.

As `inferscale.flops.traffic` has it for plain models: all rows that are asked for at once share each pass, which reads
the weights once, and the cache once for each row. A visible token after c others, with thoughts of T tokens::

    a pass             of every row: the token itself, c + 1 tokens in the cache then
    T + 1 more passes  of rows that think: start, c_1 .. c_{T-1}, and c_T with end, behind what stood there before

Where every row thinks once, the first two are one pass. A model with recurrent layers takes c_T and end apart. Each
thinking row has its own keys and values, those of a shared prompt too. The output head is read where something is drawn
or mixed, the mixing head once for all rows. Copies of keys, values and states for thoughts are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from inferscale._compat import evaluating
from inferscale.base import Traffic
from inferscale.flops.calibration import unwatched
from inferscale.runtime.charges import Charges

from .cache import CachedText
from .model import QuietSTaR


@dataclass(frozen=True, slots=True)
class ThinkingRow:
    """A sample drawn with thoughts.

    Attributes:
        past: Tokens before the newest one, where it begins.
        unread: The last of them, which no pass had before; they are read ahead of everything, in one pass for all rows.
        thinks: For each sampled token whether there is a thought before it.
    """

    past: int
    unread: int
    thinks: Sequence[bool]


class ThoughtTraffic:
    """Bytes of passes, counted one by one.

    Attributes:
        charges: The closed form of the model, and the widths of its numbers.
        quiet: The model.
    """

    def __init__(self, charges: Charges, quiet: QuietSTaR) -> None:
        self.charges = charges
        self.quiet = quiet
        self._mixing = sum(part.numel() * part.element_size() for part in quiet.head.parameters())

    @cached_property
    def _rolls_back(self) -> bool:
        """True if rows can think on their own cache; a recurrent model's tells after a forward."""
        backbone = self.quiet.backbone
        if backbone.attention_only:
            return True
        with torch.no_grad(), evaluating(backbone.model):
            return unwatched(lambda: CachedText.prefill(backbone, [[0]])).can_roll_back

    def total(self, passes: int, heads: int, mixes: int, chunks: Sequence[tuple[int, int]]) -> Traffic | None:
        """Return the bytes of passes in all; ``None`` if they are not known.

        Args:
            passes: Reads of the weights, the output head left out.
            heads: Reads of the output head.
            mixes: Reads of the mixing head.
            chunks: For each row of each pass, the tokens in its cache and those that it adds.
        """
        spec, widths = self.charges.spec, self.charges.widths
        if spec is None or widths is None or spec.states is None:
            return None
        weight, cached = widths
        weights = (passes * (spec.active_weights - spec.head // 2) + heads * (spec.head // 2)) * weight
        kept = 0
        for group in spec.attention:
            most = None if group.window is None else group.window - 1
            kept += group.kv_width * sum((past if most is None else min(past, most)) + new for past, new in chunks)
        moves = sum(1 + (past > 0) for past, _ in chunks) if any(spec.states) else 0
        states = moves * (spec.states[0] * cached + spec.states[1] * 4)
        return Traffic(round(weights + mixes * self._mixing), kept * cached + states)

    def sampling(self, rows: Sequence[ThinkingRow], length: int, num_thoughts: int) -> Traffic | None:
        """Return the bytes of sampling rows that begin together.

        Args:
            rows: The rows.
            length: Sampled tokens T of a thought.
            num_thoughts: Thoughts before a token.
        """
        is_split = not self.quiet.backbone.attention_only
        thought = [1] * (length + 2) if is_split else [*[1] * length, 2]  # tokens that each pass of a thought adds
        chunks = [(row.past - row.unread, row.unread) for row in rows if row.unread]
        passes, heads, mixes = int(bool(chunks)), 0, 0
        for place in range(max((len(row.thinks) for row in rows), default=0)):
            live = [row for row in rows if place < len(row.thinks)]
            thinking = [row for row in live if row.thinks[place]]
            on_rows = num_thoughts == 1 and len(thinking) == len(live) and self._rolls_back
            joins = on_rows and not is_split
            passes += len(thought) * bool(thinking) + (not joins)
            heads += (length + 1) * bool(thinking) + (not on_rows)  # plain logits are there before a copy thinks
            mixes += bool(thinking)
            if not joins:
                chunks += [(row.past + place, 1) for row in live]
            for row in thinking:
                before = row.past + place + (not joins)
                for number, new in enumerate(thought):
                    new += int(joins and number == 0)
                    chunks += [(before, new)] * num_thoughts
                    before += new
        return self.total(passes, heads, mixes, chunks)

    def scoring(self, texts: Sequence[tuple[int, int]], num_thoughts: int) -> Traffic | None:
        """Return the bytes of reading texts that are scored together, with thoughts at many places in parallel.

        Through a mask the thoughts of a piece of the text stand in one row behind it, which each pass reads once.
        Folded into the batch they read their texts anew in every pass, and nothing is cached.

        Args:
            texts: Tokens of each, and how many places to think at, the last ones.
            num_thoughts: Thoughts at a place.
        """
        length, is_folded = self.quiet.thought_length, self.quiet.parallel_check.way == "fold"
        chunks, pieces = [], 1
        for tokens, places in texts:
            chunks.append((0, tokens))
            sizes = self.quiet.piece_sizes(tokens, places, length + 2)
            pieces = max(pieces, len(sizes))
            for size in sizes:
                for fed in range(length + 1):
                    chunks += [(tokens + size * fed, size * (2 if fed == length else 1))] * num_thoughts
        passes, heads = 1 + pieces * (length + 1), pieces * length + 2
        return self.total(passes, heads, 1, [] if is_folded else chunks)
