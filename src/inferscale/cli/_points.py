"""The points of the runs in some folders, for ``report`` and ``plot``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from inferscale.evaluate.parts import make_strategy

from ._parts import UsageError

if TYPE_CHECKING:
    from inferscale.evaluate import Run
    from inferscale.scaling import CurvePoint

_NO_SETTING = ("seed", "strategy", "aggregator")
"""What one group of points has several of: seeds are averaged, sizes are one curve, votes are read again."""


def read_points(folders: Iterable[Path]) -> list[CurvePoint]:
    """Points of all complete runs in and below the folders; runs that differ in their seed alone are averaged.

    Runs of one model and strategy under different settings (temperature, data set, ...) have these in their names.
    """
    from inferscale.scaling import curve_of_results

    groups: dict[str, list[Run]] = {}
    for run in _usable_runs(folders):
        groups.setdefault(_without(run.about["identity"], "seed", "aggregator"), []).append(run)
    if not groups:
        raise UsageError("no complete run to report")
    members = [_one_for_each_seed(runs) for runs in groups.values()]
    points: list[CurvePoint] = []
    for runs, model in zip(members, _models([runs[0].about["identity"] for runs in members]), strict=True):
        points += curve_of_results(
            [list(run.results()) for run in runs], _strategy(runs[0].about["identity"]["strategy"]),
            correct=[[record["correct_each"] for record in run.finished] for run in runs],
            memory_bytes=max(run.peak_memory_bytes or 0 for run in runs) or None, model=model,
        )  # fmt: skip
    return points


def _usable_runs(folders: Iterable[Path]) -> Iterator[Run]:
    from inferscale.evaluate import load_run

    given = list(folders)
    files = [file for folder in given for file in sorted(folder.rglob("run.json"))]
    if not files:
        raise UsageError(f"no runs in {', '.join(map(str, given))}: give folders that `inferscale eval` wrote")
    for file in {file.resolve(): file for file in files}.values():  # once, though folders may hold each other
        run = load_run(file.parent)
        if not run.is_complete:
            typer.echo(f"{run.directory} is not complete and is left out: run its command again", err=True)
        elif any(record["correct_each"] is None for record in run.finished):
            typer.echo(f"{run.directory} has problems without a gold answer and is left out", err=True)
        else:
            yield run


def _without(identity: Mapping[str, Any], *names: str) -> str:
    return str({name: value for name, value in identity.items() if name not in names})


def _one_for_each_seed(runs: Sequence[Run]) -> list[Run]:
    """Runs of one seed that differ in their vote have the same samples."""
    return list({run.about["identity"]["seed"]: run for run in runs}.values())


def _strategy(described: Any) -> Any:
    """The strategy of a run, or its name when it is not one of ours."""
    if not isinstance(described, str):
        return str(described["class"]).rpartition(".")[2]
    try:
        return make_strategy(described) if "(" in described else described
    except ValueError:
        return described


def _models(identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each group of runs the name of its model, with what tells it from others of that model and strategy."""
    names = [str(identity["config"].get("model", "")) for identity in identities]
    curves: dict[tuple[str, str], list[int]] = {}
    for place, identity in enumerate(identities):
        curves.setdefault((names[place], _curve(identity)), []).append(place)
    for (name, _), places in curves.items():
        settings = [dict(_settings(_settings_of(identities[place]), "")) for place in places]
        keys = _telling(settings)
        for place, own in zip(places, settings, strict=True):
            told = ", ".join(f"{key.rpartition('.')[2]}={own[key]}" for key in keys if key in own)
            names[place] = f"{name} ({told})" if told else name
    return names


def _curve(identity: Mapping[str, Any]) -> str:
    from inferscale.scaling import short_name

    strategy = _strategy(identity["strategy"])
    return strategy if isinstance(strategy, str) else short_name(strategy)


def _telling(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of a few settings that tell these apart as well as all of them would; plain ones before digests."""
    names = {name for own in settings for name in own}
    chosen: list[str] = []
    apart = 1
    for name in sorted(names, key=lambda name: (not name.startswith(".config."), name.endswith("sha256"), name)):
        parts = len({tuple(own.get(key) for key in (*chosen, name)) for own in settings})
        if parts > apart:
            chosen, apart = [*chosen, name], parts
    return chosen


def _settings_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in _NO_SETTING}


def _settings(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """The single settings in a description, by dotted name; those in ``Sampler(temperature=0.8)`` too."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _settings(item, f"{name}.{key}")
    elif pieces := re.findall(r"(\w+)=([^,()]+)", str(value)):
        yield from ((f"{name}.{key}", text) for key, text in pieces)
    else:
        yield name, str(value)
