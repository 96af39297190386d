"""The engine benchmark: its floor is what the steps are charged, and every way does the whole work."""

import pytest
import torch
from benchmarks import engine

WORK = engine.Work(prompt=9, rows=3, tokens=4, step=4)


@pytest.fixture(scope="module")
def model():
    return engine.make_model("s", engine.Machine())


def test_the_floor_is_the_closed_form_of_the_work(model):
    ours = engine.Ours(model, WORK)
    steps = []
    generate = ours.generator.generate
    ours.generator.generate = lambda requests: [steps.extend(group) or group for group in generate(requests)]
    ours()
    assert sum(step.flops for step in steps) == engine.floor_flops(model, WORK)


def test_every_way_samples_all_tokens(model):
    work = engine.Work(prompt=9, rows=3, tokens=4, step=2)
    with torch.inference_mode():
        for way in (engine.naive, engine.kept_cache, engine.gathered):
            way(model, work)
        engine.Ours(model, work)()


def test_the_report_names_every_way(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["engine", "--prompt", "9", "--rows", "3", "--tokens", "4", "--step", "2"])
    monkeypatch.setattr(engine, "problems", lambda *args: None)
    engine.main()
    said = capsys.readouterr().out
    for name in ("naive generate per step", "generate on a kept cache", "own loop, gathered cache", "| inferscale |"):
        assert name in said
    assert "Sampler: " in said
