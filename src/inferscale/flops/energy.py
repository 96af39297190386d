"""Joules that were really used: of NVIDIA GPUs (NVML), of Intel's and AMD's CPUs (RAPL), or by CodeCarbon.

`EnergyMeter` reads a counter before and after what runs inside it. Where there is none that may be read, its joules
are ``None``, with the reason; nothing is estimated.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from inferscale._compat import require

RAPL = Path("/sys/class/powercap")


class EnergyUnavailableError(RuntimeError):
    """There is no counter of this kind that can be read."""


class EnergyCounter(Protocol):
    """A counter of joules.

    Attributes:
        name: What it counts.
        wraps_at: Joules after which it begins again from 0; ``None`` if it does not.
    """

    name: str
    wraps_at: float | None

    def read(self) -> float:
        """The joules by now."""


def joules_between(readings: Sequence[float], wraps_at: float | None) -> float | None:
    """Joules between the first and the last of several readings, over wrap-arounds.

    A reading below the one before has begun again from 0; a counter that does not wrap was reset, and nothing can be
    said then. Readings must follow one another faster than the counter goes round.

    Example:
        >>> from inferscale.flops.energy import joules_between
        >>> joules_between([90.0, 100.0, 10.0, 20.0], wraps_at=110.0)
        40.0
    """
    total = 0.0
    for before, after in pairwise(readings):
        if after < before and wraps_at is None:
            return None
        total += after - before + (wraps_at if after < before and wraps_at is not None else 0.0)
    return total


class RaplCounter:
    """The packages of this machine's processors, by the Linux kernel's powercap files.

    Memory is counted where it is a domain of its own; cores and graphics are parts of a package.

    Args:
        root: The folder of the powercap files.

    Raises:
        EnergyUnavailableError: If there are none, or they may not be read (they are root's since 2020).
    """

    def __init__(self, root: Path = RAPL) -> None:
        self._zones = [zone for zone in sorted(root.glob("*-rapl:*")) if _counts(zone)]
        if not self._zones:
            raise EnergyUnavailableError(f"no RAPL counters in {root}")
        self._wraps = [_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = [_number(zone / "energy_uj") for zone in self._zones]
        self._total = 0.0
        self.name = f"RAPL, {len(self._zones)} zones"
        self.wraps_at: float | None = None  # each zone wraps by itself, and is unwound here

    def read(self) -> float:
        """Joules since the counter was made."""
        now = [_number(zone / "energy_uj") for zone in self._zones]
        for before, after, wrap in zip(self._last, now, self._wraps, strict=True):
            self._total += joules_between([before, after], wrap) or 0.0
        self._last = now
        return self._total


def _counts(zone: Path) -> bool:
    """True for a package, and for memory; the whole system ("psys") holds packages, a package its cores."""
    name = (zone / "name").read_text().strip() if (zone / "name").exists() else ""
    return name.startswith("package") or name == "dram"


def _number(file: Path) -> float:
    """The number in a file, from microjoules to joules."""
    try:
        return int(file.read_text()) / 1e6
    except (OSError, ValueError) as error:
        raise EnergyUnavailableError(f"{file} cannot be read ({error}): allow it, for example by chmod a+r") from None


class NvmlCounter:
    """One NVIDIA GPU (Volta or later), by its driver; needs ``nvidia-ml-py``.

    Args:
        index: Which GPU, in the driver's order.
        nvml: The module ``pynvml``, or what stands for it.

    Raises:
        EnergyUnavailableError: If there is no driver, no such GPU, or one without a counter.
        ImportError: If the package is missing.
    """

    wraps_at: float | None = None

    def __init__(self, index: int = 0, nvml: Any = None) -> None:
        self._nvml = nvml or require("pynvml", "energy")
        try:
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            self.read()
        except self._nvml.NVMLError as error:
            raise EnergyUnavailableError(f"NVML has no energy counter of GPU {index}: {error}") from None
        self.name = f"NVML, GPU {index}"

    def read(self) -> float:
        """Joules since the driver was loaded."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3  # millijoules


class CodeCarbonCounter:
    """The energy of this machine as CodeCarbon measures it, or by its own account estimates; needs ``codecarbon``.

    Args:
        tracker: A tracker that has been started, by default an `OfflineEmissionsTracker` that writes no file.

    Raises:
        ImportError: If the package is missing.
    """

    wraps_at: float | None = None
    name = "CodeCarbon"

    def __init__(self, tracker: Any = None) -> None:
        if tracker is None:
            options = {"country_iso_code": "FRA", "save_to_file": False, "log_level": "error"}
            tracker = require("codecarbon", "energy").OfflineEmissionsTracker(**options)
            tracker.start()
        self._tracker = tracker

    def read(self) -> float:
        """Joules since the tracker was started."""
        self._tracker.flush()
        return float(self._tracker.final_emissions_data.energy_consumed) * 3.6e6  # kilowatt-hours


@dataclass(frozen=True)
class Energy:
    """The reading of a meter.

    Attributes:
        joules: Joules; ``None`` if they are not known.
        source: The counter, or why there is none.

    Example:
        >>> from inferscale.flops import Energy
        >>> measured, unknown = Energy(84.0, "NVML, GPU 0"), Energy(None, "no RAPL counters in /sys/class/powercap")
        >>> for energy in (measured, unknown):
        ...     print("not known" if energy.joules is None else f"{energy.joules} J", "-", energy.source)
        84.0 J - NVML, GPU 0
        not known - no RAPL counters in /sys/class/powercap
    """

    joules: float | None
    source: str


class EnergyMeter:
    """Joules of what runs inside it: all that the counted hardware does meanwhile, other programs' work too.

    ::

        with EnergyMeter("cpu") as meter:
            results = solve_batch(problems, strategy, generator)
        print(meter.energy)  # of all problems; divide by their number

    Given to `solve` (``energy=EnergyMeter("cuda")``), it is read before and after every call of a model, and each
    problem's share stands in its cost.

    Args:
        device: ``"cpu"`` or ``"cuda"``, with a number for one of several GPUs.
        counter: The counter, instead of the first that can be read: NVML for a GPU, RAPL for a CPU.
        interval: Seconds between readings while something runs, for counters that wrap within minutes.

    Raises:
        ValueError: If there is no such kind of device.

    Example:
        >>> from inferscale import RepeatedSampling, solve
        >>> from inferscale.flops import EnergyMeter
        >>> from inferscale.testing import ToyGenerator
        >>> class Socket:  # a counter of your own, such as a meter in the wall
        ...     name, wraps_at, joules = "socket", None, 100.0
        ...     def read(self):
        ...         self.joules += 5.0
        ...         return self.joules
        >>> with EnergyMeter(counter=Socket(), interval=60) as meter:
        ...     result = solve("How many?", RepeatedSampling(4), ToyGenerator())
        >>> meter.energy
        Energy(joules=5.0, source='socket')
    """

    def __init__(self, device: str = "cpu", counter: EnergyCounter | None = None, interval: float = 10.0) -> None:
        self._counter, self._reason = (counter, "") if counter is not None else find_counter(device)
        self._interval = interval
        self._lock = threading.Lock()
        self._last: float | None = None
        self._total: float | None = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.energy = Energy(None, self._reason or "the meter has not run")

    @property
    def source(self) -> str:
        """The counter, or why there is none."""
        return self._reason if self._counter is None else self._counter.name

    def read(self) -> float | None:
        """Joules since it was read first; ``None`` if there is no counter, or it was reset meanwhile."""
        if self._counter is None:
            return None
        with self._lock:
            now = self._counter.read()
            joules = 0.0 if self._last is None else joules_between([self._last, now], self._counter.wraps_at)
            self._total = None if self._total is None or joules is None else self._total + joules
            self._last = now
            return self._total

    def __enter__(self) -> Self:
        """Begin to read."""
        if self._counter is not None:
            self._last, self._total = None, 0.0
            self.read()
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, name="inferscale-energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read for the last time."""
        if self._counter is None or self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        joules = self.read()
        was_reset = f"{self._counter.name} was reset meanwhile"
        self.energy = Energy(joules, self._counter.name if joules is not None else was_reset)

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            self.read()


def find_counter(device: str) -> tuple[EnergyCounter | None, str]:
    """The counter of a device, or ``None`` and why there is none.

    Raises:
        ValueError: If there is no such kind of device.
    """
    kind, _, number = device.partition(":")
    makers: dict[str, Callable[[], EnergyCounter]] = {"cpu": RaplCounter, "cuda": lambda: NvmlCounter(int(number or 0))}
    if kind not in makers:
        raise ValueError(f"device={device!r}: energy is read of cpu, cuda or cuda:1")
    try:
        return makers[kind](), ""
    except (EnergyUnavailableError, ImportError) as error:
        return None, str(error)
