"""Prompts of many problems are read in one product a layer, and the step is the same whatever their number."""

import random

import pytest
import torch

from inferscale.runtime import kv
from inferscale.runtime.kv import Piece, joined, tiled
from inferscale.runtime.plain import whole_logits
from inferscale.runtime.session import Session
from tests.tiny_models import tiny_model

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
