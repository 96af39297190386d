"""Prompts of many problems are read in one product a layer, and the step is the same whatever their number."""

import json
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks import gpu
from inferscale.flops import FlopCounter
from inferscale.generators import HFGenerator
from inferscale.runtime import kv, sampling
from inferscale.runtime.decoding import TokenBuffer
from inferscale.runtime.kv import Piece, joined, tiled
from inferscale.runtime.plain import whole_logits
from inferscale.runtime.session import Session, check_recorded, checked_session
from inferscale.runtime.step import StepPlan
from tests.tiny_models import byte_tokenizer, grow_all, root, tiny_model

LENGTHS = (7, 0, 1, 3, 30, 9)


@pytest.fixture(params=[False, True], ids=["cpu", "fixed shapes"])
def fixed(request, monkeypatch):
    """The step of a CPU, and that of a GPU, run here."""
    if request.param:
        monkeypatch.setattr(kv, "fixed_shapes", lambda device: True)
        monkeypatch.setattr(kv, "_CPU_FLASH", None)
    return request.param


def random_ids(rng, count):
    return [rng.randrange(5, 280) for _ in range(count)]


@pytest.mark.parametrize("options", [{}, {"sliding_window": 6}], ids=["all", "window"])
@pytest.mark.parametrize("rows_of_prompt", [(1, 2, 1, 1, 5, 1), (2, 2, 2, 2, 2, 2)], ids=["uneven", "even"])
def test_rows_of_many_prompts_equal_whole_forwards(fixed, rows_of_prompt, options):
    model, rng = tiny_model("mistral_window" if options else "qwen3", **options), random.Random(3)
    with torch.inference_mode():
        session = Session(model)
        prompts = [random_ids(rng, n) for n in LENGTHS]
        pieces = session.prefill(prompts)
        owners = [place for place, count in enumerate(rows_of_prompt) for _ in range(count)]
        rows = [[*prompts[p], *random_ids(rng, 1 + i % 3)] for i, p in enumerate(owners)]
        batch = session.open([pieces[p] for p in owners], 9)
        session.extend(batch, [row[len(prompts[p]) :] for row, p in zip(rows, owners, strict=True)])
        for live in (range(len(rows)), range(len(rows)), [0, 3, 4, 8, 9]):
            new = random_ids(rng, len(live))
            logits = session.step(batch, live, torch.tensor(new))
            for found, row, token in zip(logits, live, new, strict=True):
                rows[row] = [*rows[row], token]
                torch.testing.assert_close(found, whole_logits(model, rows[row]), atol=1e-4, rtol=1e-4)


def runs(*sizes):
    """Runs of (rows, prompt tokens)."""
    found, start = [], 0
    for rows, tokens in sizes:
        found.append((Piece(tuple(range(tokens))), start, start + rows))
        start += rows
    return found


def test_small_prompts_stand_side_by_side_and_large_or_unlike_ones_apart():
    assert [len(group) for group in joined(runs(*[(4, 50)] * 30), 64)] == [30]
    assert [len(group) for group in joined(runs(*[(16, 2000)] * 3), 512)] == [1, 1, 1]
    assert [len(group) for group in joined(runs((1, 9), (200, 4000), (1, 9)), 512)] == [1, 1, 1]
    assert [len(group) for group in joined(runs((2, 9), (2, 0), (2, 0)), 64)] == [1, 2]


def test_slots_are_as_many_as_cost_least():
    assert [stop - start for _, start, stop in tiled(runs((64, 9)))] == [64]
    assert [stop - start for _, start, stop in tiled(runs(*[(4, 9)] * 16))] == [4] * 16
    slots = tiled(runs((200, 9), *[(1, 9)] * 56))
    assert [stop - start for _, start, stop in slots] == [8] * 25 + [1] * 56
    assert [start for _, start, _ in slots] == [*range(0, 200, 8), *range(200, 256)]


# -- the step of a GPU, run on a CPU -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_takes_at_most_64_operators_whatever_the_number_of_problems(dtype):
    two, three = gpu.tiny(2, dtype), gpu.tiny(3, dtype)
    with gpu.gpu_step():
        for problems in (1, 4, 64):
            outer, inner = gpu.count_step(two, problems), gpu.count_step(three, problems)
            assert inner.total - outer.total <= 64
            assert 3 * outer.total - 2 * inner.total <= 40  # of a step, besides its layers
            assert not outer.waits


@pytest.fixture
def fixed_step(monkeypatch):
    """Six problems under way on fixed shapes: session, batch, model and texts of the rows."""
    monkeypatch.setattr(kv, "fixed_shapes", lambda device: True)
    model, rng = tiny_model("qwen3"), random.Random(4)
    with torch.inference_mode():
        session = Session(model)
        prompts = [random_ids(rng, n) for n in LENGTHS]
        batch = session.open([piece for piece in session.prefill(prompts) for _ in range(2)], 90)
        session.extend(batch, [[5] * (1 + row % 3) for row in range(12)])
        yield session, batch, model, [[*prompts[row // 2], *[5] * (1 + row % 3)] for row in range(12)]


def pointers(plan):
    found = [value for value in vars(plan).values() if isinstance(value, torch.Tensor)]
    found += [plan.batch.kv, plan._shares[0].slots.kv, plan._shares[0].slots.bias]
    found += [part for both in plan._shares[0]._index.values() for parts in both for part in parts]
    return [tensor.data_ptr() for tensor in found if tensor is not plan._bias and tensor is not plan._hidden]


def test_what_a_step_reads_stays_in_place_and_nothing_waits_for_the_device(fixed_step):
    session, batch, _, _ = fixed_step
    tokens, rows = torch.arange(12) + 7, np.arange(12)
    session.step(batch, rows, tokens)
    plan, before = batch.plan, pointers(batch.plan)
    counted = gpu.Operators()
    with counted:
        for _ in range(64):
            session.step(batch, rows, tokens)
    assert batch.plan is plan
    assert pointers(plan) == before
    assert not counted.waits
    assert batch.lengths.tolist() == [66 + row % 3 for row in range(12)] == plan.lengths[:12].tolist()


def test_a_traced_step_goes_on_as_the_step_does(fixed_step):
    """Nothing of a step depends on what the host knows: the operators of one step make the next ones."""
    session, batch, model, texts = fixed_step
    traces = []

    def record(forward):
        graph = make_fx(lambda tokens: forward())(batch.plan.tokens)
        traces.append(graph)
        return lambda: graph(batch.plan.tokens)

    session.stepper.record = record
    rng, live = random.Random(5), list(range(12))
    for turn in range(6):
        if turn == 4:
            live = [0, 2, 3, 9]
        new = random_ids(rng, len(live))
        logits = session.step(batch, live, torch.tensor(new))
        for row, token in zip(live, new, strict=True):
            texts[row] = [*texts[row], token]
        for found, row in zip(logits, live, strict=True):
            torch.testing.assert_close(found, whole_logits(model, texts[row]), atol=1e-4, rtol=1e-4)
    assert len(traces) == 1


def test_a_recorded_step_serves_the_batches_that_follow_in_its_memory(fixed_step):
    session, batch, model, texts = fixed_step
    made = []
    session.stepper.record = lambda forward: made.append(forward) or forward
    rng = random.Random(6)
    for turn in range(8):
        if turn and turn % 2 == 0:  # a wave ends: other rows go on, of prompts of the same kind
            order = sorted(rng.sample(range(12), 12))
            batch, texts = batch.select(order), [list(texts[row]) for row in order]
        new = random_ids(rng, 12)
        logits = session.step(batch, range(12), torch.tensor(new))
        texts = [[*text, token] for text, token in zip(texts, new, strict=True)]
        for found, text in zip(logits, texts, strict=True):
            torch.testing.assert_close(found, whole_logits(model, text), atol=1e-4, rtol=1e-4)
    assert len(made) <= 2 < turn


def test_nothing_is_made_on_the_host_between_two_looks(monkeypatch):
    made, looks, waits, operators = Counter(), [], [], gpu.Operators()
    for name in ("from_numpy", "tensor", "as_tensor"):
        honest = getattr(torch, name)

        def counted(*args, name=name, honest=honest, **options):
            made[name] += 1
            return honest(*args, **options)

        monkeypatch.setattr(torch, name, counted)
    record = TokenBuffer.record

    def seen(*args, **options):
        looks.append(made.total())
        waits.append(operators.names["aten._local_scalar_dense.default"])
        record(*args, **options)

    monkeypatch.setattr(TokenBuffer, "record", seen)
    monkeypatch.setattr(kv, "fixed_shapes", lambda device: True)
    monkeypatch.setattr(sampling, "_nucleus_edge", sampling._edge_by_digits)
    options = {"max_step_tokens": 64, "step_delimiter": "\0", "check_every": 4, "repetition_penalty": 1.1, "top_p": 0.9}
    gen = HFGenerator(tiny_model(), byte_tokenizer(), eos_token_id=0, **options)
    with operators:
        grow_all(gen, [root(prompt) for prompt in ("ab", "12 = 12", "ab the")], 3)
    assert len(looks) > 8
    assert waits[0] == waits[-1]  # nothing waits for a number, top_p included
    ended = [b - a for a, b in pairwise(looks)]
    assert min(ended) == 0  # between looks at which no row has ended
    assert sum(count > 0 for count in ended) <= 9  # at most once for each row that has


def test_trees_are_those_of_a_cpu_on_fixed_shapes(monkeypatch):
    def sampled():
        gen = HFGenerator(tiny_model().double(), byte_tokenizer(), max_step_tokens=6, max_new_tokens=26)
        level = trees = [root(prompt) for prompt in ("ab", "Step 1: a b a b is 12\n", "b", "ab the")]
        with FlopCounter(generator=gen, mode="verify") as counter:
            for _ in range(3):
                level = [n for group in grow_all(gen, level, 3) for n in group if not n.is_finished]
        return [n.step.token_ids for tree in trees for n in tree.walk() if n.step], counter.flops

    expected, flops = sampled()
    monkeypatch.setattr(kv, "fixed_shapes", lambda device: True)
    found, more = sampled()
    assert found == expected
    assert more >= flops  # rows that have ended are run on


def test_a_recorded_step_that_differs_is_not_used():
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv, "fixed_shapes", lambda device: True)
        session = Session(tiny_model())
        session.stepper.record = lambda forward: forward
        check_recorded(session)
        assert session.stepper.record is not None
        session.stepper.record = lambda forward: lambda: 2 * forward()
        with pytest.warns(UserWarning, match="run without a recorded graph, slower: their logits differ"):
            check_recorded(session)
        assert session.stepper.record is None


def test_where_fixed_shapes_fail_steps_follow_the_lengths(monkeypatch):
    def broken(*args):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(kv, "fixed_shapes", lambda device: True)
    monkeypatch.setattr(StepPlan, "begin", broken)
    with pytest.warns(UserWarning, match=r"follow the rows' lengths, slower: a probe failed: .*no such kernel"):
        session = checked_session(tiny_model())
    assert session is not None


def test_a_model_that_is_watched_or_changed_is_not_replayed(fixed_step):
    session, batch, model, _ = fixed_step
    runs = Counter()

    def record(forward):
        runs["recorded"] += 1
        return lambda: runs.update(["replayed"]) or forward()

    session.stepper.record = record
    tokens = torch.arange(12) + 7
    for _ in range(4):
        session.step(batch, range(12), tokens)
    assert runs == {"recorded": 1, "replayed": 2}
    with FlopCounter(model) as counter:
        session.step(batch, range(12), tokens)
    assert counter.flops > 0
    assert runs["replayed"] == 2
    session.step(batch, range(12), tokens)
    assert runs["replayed"] == 3
    model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
    batch = batch.select(range(12))
    for _ in range(4):
        session.step(batch, range(12), tokens)
    assert runs["recorded"] == 2
    handle = model.model.layers[0].register_forward_hook(lambda *args: None)
    batch = batch.select(range(12))
    for _ in range(4):
        session.step(batch, range(12), tokens)
    handle.remove()
    assert runs == {"recorded": 2, "replayed": 5}


# -- the benchmark -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmark_runs_small_on_a_cpu(tmp_path):
    said = gpu.main(["--small", "--repeats", "1", "--json", str(tmp_path / "gpu.json")])
    assert json.loads((tmp_path / "gpu.json").read_text()) == json.loads(json.dumps(said))
    assert said["correctness"]["right"]
    assert not said["left_out"]
    for part in ("rows 4, problems 1", "rows 4, problems 2"):
        assert said[part]["tokens_per_second"] > 0
        assert said[part]["mbu"] > 0
    assert said["other engines"]["generate"] > 0
    assert said["flop counter"] > 0


def test_the_benchmark_names_what_it_had_no_time_for(capsys):
    said = gpu.main(["--small", "--seconds", "-1"])
    assert said["left_out"] == [
        "correctness",
        "rows 4, problems 1",
        "rows 4, problems 2",
        "other engines",
        "flop counter",
    ]


def test_the_benchmark_wants_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no GPU is here: --count and --small run on a CPU" in capsys.readouterr().err
