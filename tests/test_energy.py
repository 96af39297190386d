"""Energy readers, on recorded counters."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

import inferscale as isc
from inferscale.cli import UsageError, app
from inferscale.evaluate import load_run
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
from inferscale.serve import Service
from inferscale.serve.schema import APIError, CompletionRequest
from inferscale.testing import ToyGenerator, ToyReward
from tests.serve_tools import ask, serving


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


class Ticking:
    """A counter by which a joule passes between two readings."""

    name, wraps_at = "ticking", None

    def __init__(self):
        self._joules = 0.0

    def read(self):
        self._joules += 1
        return self._joules


SILENT = "no RAPL counters here"


@pytest.fixture(params=[True, False], ids=["measured", "silent"])
def measured(request, monkeypatch):
    """Whether this machine has a counter."""
    counter = (Ticking(), "") if request.param else (None, SILENT)
    monkeypatch.setattr("inferscale.flops.energy.find_counter", lambda device: counter)
    toys = ToyGenerator(), ToyReward()
    for module in ("solving", "evaluating", "planning"):
        monkeypatch.setattr(f"inferscale.cli.{module}.models_of", lambda *given: toys)
    return request.param


QUIET = ["--strategy", "sampling:4", "--no-progress", "--energy", "cpu"]


def test_commands_tell_joules_or_why_there_are_none(measured, capsys, tmp_path):
    app(["solve", "How many?", "--save", str(tmp_path / "x.json"), *QUIET], standalone_mode=False)
    app(["eval", "--out", str(tmp_path / "run"), "--limit", "2", *QUIET], standalone_mode=False)
    told, complaint = capsys.readouterr()
    saved = isc.SearchResult.load(tmp_path / "x.json").cost
    (record, _) = load_run(tmp_path / "run").results()
    if measured:
        assert saved.joules > 0
        assert f", {saved.joules:.3g} J\n" in told
        assert record.cost.joules > 0
        assert "J for a problem, policy + reward model (ticking)\n" in told
        assert complaint == ""
    else:
        assert (saved.joules, record.cost.joules) == (None, None)
        assert complaint == f"joules are not known: {SILENT}\n" * 2
        assert " J" not in told


@pytest.mark.parametrize("command", [["solve", "x"], ["eval"], ["sweep", "--out", "x"], ["plan"]])
@pytest.mark.parametrize("energy", [[], ["--energy", "cpu"]])
def test_a_budget_of_joules_needs_a_counter_before_anything_is_loaded(command, energy, monkeypatch):
    monkeypatch.setattr("inferscale.flops.energy.find_counter", lambda device: (None, SILENT))
    words = [*command, "--strategy", "sampling:2", "--no-progress", "--budget", "joules=5", *energy]
    with pytest.raises(UsageError, match="joules needs a meter.*" + (SILENT if energy else "give --energy cpu")):
        app([*words, "--model", "/nowhere"], standalone_mode=False)


def test_a_budget_of_joules_ends_a_search(measured, capsys):
    words = ["solve", "How many?", "--strategy", "rebase:4", "--reward", "x", *QUIET[2:], "--budget", "joules=1"]
    if measured:
        app(words, standalone_mode=False)
        assert "stopped by joules" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--tokens 5 is short for --budget tokens=5"):
        app([*words, "--tokens", "5"], standalone_mode=False)


def test_a_server_tells_joules_or_why_there_are_none(measured):
    service = Service(ToyGenerator(), strategy="sampling:2", energy=EnergyMeter("cpu"))
    for served, source in ((service, "ticking" if measured else SILENT), (replace(service, energy=None), "--energy")):
        cap = {"inferscale": {"budget": {"joules": 100}}}
        if served.energy is not None and measured:
            CompletionRequest.parse({"prompt": "x", **cap}, "text", served)
        else:
            with pytest.raises(APIError, match=f"measures no joules .*{source}"):
                CompletionRequest.parse({"prompt": "x", **cap}, "text", served)
        with serving(served) as server:
            bill = ask(server, "How many?")["inferscale"]
        assert source in bill["energy"]
        assert (bill["cost"]["joules"] is not None) == (served.energy is not None and measured)


def test_an_unknown_meter_is_refused():
    with pytest.raises(ValueError, match="energy is read of cpu, cuda or cuda:1"):
        app(["solve", "x", "--strategy", "greedy", "--energy", "tpu"], standalone_mode=False)
