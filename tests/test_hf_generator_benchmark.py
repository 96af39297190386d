"""The engine benchmark: its floor is what the steps are charged, every way does all of the work."""

import runpy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import demo
from benchmarks.engine import beside, memory, ways
from benchmarks.engine.work import Machine, Work, bytes_per_token, floor_bytes, floor_flops, make_model

WORK = Work(prompt=9, rows=3, tokens=4, step=4)


@pytest.fixture(scope="module")
def model():
    return make_model("s", Machine())


def test_the_floor_is_the_closed_form_of_the_work(model):
    ours = ways.Ours(model, WORK)
    steps = []
    generate = ours.generator.generate
    ours.generator.generate = lambda requests: [steps.extend(group) or group for group in generate(requests)]
    ours()
    assert sum(step.flops for step in steps) == floor_flops(model, WORK)
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert floor_bytes(model, WORK) == 4 * (weights + (9 + 3 * 1.5) * bytes_per_token(model))


def test_bytes_of_a_token_are_those_of_the_engine(model):
    ours = ways.Ours(model, WORK)
    [segment] = ours.generator._runner._tree.session.prefill([[5, 6, 7]])
    assert segment.bytes == 3 * bytes_per_token(model)


def test_every_way_samples_all_tokens(model):
    work = Work(prompt=9, rows=3, tokens=4, step=2)
    with torch.inference_mode():
        for way in (ways.naive, ways.kept_cache, ways.gathered):
            way(model, work)
        ways.Ours(model, work)()


def test_prompts_begin_alike_where_asked():
    work = Work(prompt=9, rows=1, tokens=1, step=1, problems=2, common=6)
    one, other = work.prompt_ids(0), work.prompt_ids(1)
    assert one[:6] == other[:6]
    assert one[6:] != other[6:]


def test_the_products_are_those_of_the_linear_layers(model):
    with FlopCounterMode(display=False) as counter:
        ways.products(model, WORK)
    config = model.config
    inside = config.num_hidden_layers * (4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size)
    head = config.hidden_size * config.vocab_size
    assert counter.get_total_flops() == 2 * ((9 + 3 * 3) * inside + (1 + 3 * 3) * head)


def test_the_parts_of_the_demo_are_counted_without_those_that_they_call(monkeypatch):
    class Work:
        def outer(self):
            return self.inner() + self.inner()

        def inner(self):
            now.append(now[-1] + 1.0)
            return 1

    now, clock = [0.0], demo.Clock()
    monkeypatch.setattr(demo.time, "process_time", lambda: now[-1])
    clock.watch(Work, "outer", "out")
    clock.watch(Work, "inner", "in")
    assert Work().outer() == 2
    assert (clock.seconds, clock.calls) == ({"out": 0.0, "in": 2.0}, {"out": 1, "in": 2})


@pytest.mark.slow
def test_continuous_batching_samples_all_tokens(model, monkeypatch):
    seen, batch = [], model.generate_batch

    def counted(*args, **options):
        outputs = batch(*args, **options)
        seen.extend(len(output.generated_tokens) for output in outputs.values())
        return outputs

    monkeypatch.setattr(model, "generate_batch", counted, raising=False)
    with torch.inference_mode():
        ways.continuous(model, Work(prompt=40, rows=3, tokens=4, step=2))
    assert seen == [2] * 6


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["engine", "--prompt", "40", "--tokens", "4", "--step", "2", *arguments])
    runpy.run_module("benchmarks.engine", run_name="__main__")


@pytest.mark.slow
def test_the_report_names_every_way(capsys, monkeypatch):
    command(monkeypatch, "--rows", "3", "--repeats", "1", "--work", "search", "sampler")
    said = capsys.readouterr().out
    for name in ("naive generate per step", "generate on a kept cache", "own loop, gathered cache", "| inferscale |"):
        assert name in said
    assert "The sampler" in said


@pytest.mark.slow
def test_every_other_report_is_made(capsys, monkeypatch):
    monkeypatch.setattr(memory, "BRANCHES", (2,))
    works = ["problems", "rebase", "completions", "fewshot", "memory"]
    command(monkeypatch, "--rows", "3", "--repeats", "1", "--problems", "2", "--work", *works)
    said = capsys.readouterr().out
    for title in ("16 problems x 4 rows", "REBASE(3), 2 problems", "completions of up to", "in common", "| 2 | 4 |"):
        assert title in said


def test_another_engine_without_its_environment_says_what_to_set(model, monkeypatch):
    monkeypatch.delenv("INFERSCALE_VLLM_PYTHON", raising=False)
    with pytest.raises(SystemExit, match="set INFERSCALE_VLLM_PYTHON"):
        beside.seconds("vllm", model, WORK)
