"""Energy readers, on recorded counters."""

from types import SimpleNamespace

import pytest

from inferscale.flops import EnergyMeter
from inferscale.flops.energy import (
    CodeCarbonCounter,
    Energy,
    EnergyUnavailableError,
    NvmlCounter,
    RaplCounter,
    find_counter,
    joules_between,
)


class Recorded:
    """A counter that replays readings."""

    name = "recorded"

    def __init__(self, readings, wraps_at=None):
        self._readings, self.wraps_at = iter(readings), wraps_at

    def read(self):
        return next(self._readings)


@pytest.mark.parametrize(
    ("readings", "wraps_at", "joules"),
    [
        ([5.0], None, 0.0),
        ([5.0, 7.5, 9.0], None, 4.0),
        ([90.0, 100.0, 10.0, 20.0], 110.0, 40.0),
        ([100.0, 1.0, 109.0, 0.0], 110.0, 11.0 + 108.0 + 1.0),
        ([9.0, 1.0], None, None),  # reset: nothing can be said
    ],
)
def test_joules_between_readings(readings, wraps_at, joules):
    assert joules_between(readings, wraps_at) == joules


def write_zone(root, name, label, microjoules, wrap):
    zone = root / name
    zone.mkdir(exist_ok=True)
    for file, value in (("name", label), ("energy_uj", microjoules), ("max_energy_range_uj", wrap)):
        (zone / file).write_text(f"{value}\n")


def test_rapl_sums_packages_and_memory_each_with_its_own_wrap_around(tmp_path):
    wrap = 262_143_328_850
    write_zone(tmp_path, "intel-rapl:0", "package-0", wrap - 2_000_000, wrap)
    write_zone(tmp_path, "intel-rapl:0:0", "core", 5, wrap)  # a part of its package
    write_zone(tmp_path, "intel-rapl:0:1", "dram", 1_000_000, 65_000_000)
    write_zone(tmp_path, "intel-rapl:1", "package-1", 7_000_000, wrap)
    write_zone(tmp_path, "intel-rapl:2", "psys", 9_000_000, wrap)
    counter = RaplCounter(tmp_path)
    assert (counter.name, counter.read()) == ("RAPL, 3 zones", 0.0)
    write_zone(tmp_path, "intel-rapl:0", "package-0", 3_000_000, wrap)  # 2 J to the end, 3 J since
    write_zone(tmp_path, "intel-rapl:0:0", "core", 8_000_000, wrap)
    write_zone(tmp_path, "intel-rapl:0:1", "dram", 1_500_000, 65_000_000)
    write_zone(tmp_path, "intel-rapl:1", "package-1", 8_000_000, wrap)
    assert counter.read() == pytest.approx(5.0 + 0.5 + 1.0)
    write_zone(tmp_path, "intel-rapl:0", "package-0", 2_000_000, wrap)  # round once more
    assert counter.read() == pytest.approx(6.5 + wrap / 1e6 - 1.0)


def test_rapl_says_why_it_cannot_be_read(tmp_path):
    with pytest.raises(EnergyUnavailableError, match="no RAPL counters"):
        RaplCounter(tmp_path)
    write_zone(tmp_path, "intel-rapl:0", "package-0", "", 1)
    with pytest.raises(EnergyUnavailableError, match="cannot be read"):
        RaplCounter(tmp_path)


class NVMLError(Exception):
    pass


def nvml(readings, error=None):
    found = iter(readings)

    def energy(handle):
        if error:
            raise NVMLError(error)
        return next(found)

    return SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=energy, NVMLError=NVMLError,
    )  # fmt: skip


def test_nvml_counts_millijoules():
    counter = NvmlCounter(1, nvml([1000, 2500, 4000]))
    assert (counter.name, counter.read(), counter.read()) == ("NVML, GPU 1", 2.5, 4.0)
    with pytest.raises(EnergyUnavailableError, match="GPU 0: Not Supported"):
        NvmlCounter(0, nvml([], "Not Supported"))


def test_codecarbon_counts_kilowatt_hours():
    data = SimpleNamespace(energy_consumed=0.0)
    tracker = SimpleNamespace(flush=lambda: setattr(data, "energy_consumed", data.energy_consumed + 0.001))
    tracker.final_emissions_data = data
    counter = CodeCarbonCounter(tracker)
    assert counter.read() == pytest.approx(3600.0)
    assert counter.read() == pytest.approx(7200.0)


def test_a_meter_reads_before_and_after():
    with EnergyMeter(counter=Recorded([100.0, 5.0], wraps_at=110.0)) as meter:
        pass
    assert meter.energy == Energy(15.0, "recorded")
    with EnergyMeter(counter=Recorded([100.0, 5.0])) as meter:
        pass
    assert meter.energy == Energy(None, "recorded was reset meanwhile")


def test_a_meter_without_a_counter_gives_none_and_the_reason(monkeypatch, tmp_path):
    monkeypatch.setattr("inferscale.flops.energy.RaplCounter", lambda: RaplCounter(tmp_path))
    with EnergyMeter("cpu") as meter:
        pass
    assert meter.energy.joules is None
    assert "no RAPL counters" in meter.energy.source
    with pytest.raises(ValueError, match="energy is read of cpu"):
        find_counter("tpu")
