"""The reading side of a counter: sums, tables and utilisation of what its ledger holds (standard library only)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from . import report
from .ledger import Label, Ledger, Tally
from .peaks import PEAK_BANDWIDTH, PEAK_FLOPS, resolve_peak
from .report import Tokens


class Readout(ABC):
    """What can be read off a ledger.

    Attributes:
        ledger: The counts, as integers that no convention has touched.
    """

    ledger: Ledger

    @property
    @abstractmethod
    def seconds(self) -> float:
        """Seconds that the counts took."""

    def total(self, convention: str = "causal", include: Sequence[str] | None = None) -> int:
        """FLOPs under a convention (a name in `CONVENTIONS`) of the models in `include`, by default of all."""
        return report.total(self.ledger, convention, include)

    def by(self, key: str, convention: str = "causal", include: Sequence[str] | None = None) -> dict[Label, int]:
        """FLOPs by ``"model"``, ``"phase"``, ``"scope"``, or a scope's label such as ``"problem"``.

        What has no such label is under ``None``.
        """
        return report.by(self.ledger, key, convention, include)

    def tally(self, include: Sequence[str] | None = None) -> Tally:
        """All integers of the models in `include`, added up."""
        sums = Tally()
        for _, tally in report.leaves(self.ledger, include):
            sums.add(tally)
        return sums

    def table(self, depth: int = 1) -> str:
        """The counts as text, by scope (to `depth` levels), model and phase."""
        return report.table(self.ledger, depth)

    @property
    def tokens(self) -> Tokens:
        """Tokens read, sampled and useful, of all models."""
        sums = self.tally()
        return Tokens(sums.tokens, sums.sampled, sums.useful)

    def mfu(self, peak: float | str | None = None, convention: str = "causal") -> float:
        """Model FLOPs utilisation: FLOPs / (seconds × peak).

        Args:
            peak: FLOP/s of the hardware, or a name in `PEAK_FLOPS`.
            convention: What counts as FLOPs.

        Raises:
            ValueError: If the peak is missing; the message names those that are known.
        """
        rate = resolve_peak(peak, PEAK_FLOPS, "peak", "FLOP/s")
        return self.total(convention) / (self.seconds * rate)

    def mbu(self, bandwidth: float | str | None = None, bytes_per_number: float = 2) -> float:
        """Model bandwidth utilisation: bytes of weights and cache that had to be read / (seconds × bandwidth).

        A forward reads the matrices that a token passes through once (of a mixture of experts: those of one token) and
        each row's cache. A calibrated form does not know the cache.

        Args:
            bandwidth: Bytes per second of the hardware, or a name in `PEAK_BANDWIDTH`.
            bytes_per_number: 2 for half precision, 4 for float32.
        """
        rate = resolve_peak(bandwidth, PEAK_BANDWIDTH, "bandwidth", "bytes/s")
        return self.tally().numbers_read * bytes_per_number / (self.seconds * rate)

    def get_total_flops(self) -> int:
        """Like ``torch.utils.flop_counter.FlopCounterMode``: FLOPs with the whole rectangle of attention."""
        return self.total("full")

    def get_flop_counts(self) -> dict[str, dict[str, int]]:
        """Like torch's: FLOPs (whole rectangle) of everything under ``"Global"``, and of each model, by kind."""
        counts = {label: _by_kind(self.tally([label])) for label in self.ledger.models}
        return {"Global": _by_kind(self.tally()), **counts}

    def get_table(self, depth: int | None = None) -> str:
        """Like torch's: the table as text."""
        return self.table(1 if depth is None else depth)


def _by_kind(tally: Tally) -> dict[str, int]:
    return {"linear": tally.linear, "head": tally.head, "attention": tally.attention_full}
