"""`softmax`, `logsumexp` and `reduce_steps`."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from inferscale.functional import logsumexp, reduce_steps, softmax

KINDS = {"list": list, "numpy": np.asarray, "torch": lambda x: torch.tensor(x, dtype=torch.float64)}
if torch.cuda.is_available():
    KINDS["cuda"] = lambda x: torch.tensor(x, dtype=torch.float64, device="cuda")


def test_importing_and_using_functional_on_arrays_does_not_import_torch():
    code = (
        "import sys, numpy, inferscale.functional as f; f.rebase_allocation([.5, .2], 4, .1); "
        "f.majority_vote(numpy.array([[1, 1, 2]])); f.resample([.5, .5], 4, uniforms=[.5]); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("reduction", "expected"), [("last", 0.8), ("min", 0.5), ("prod", 0.36), ("mean", 2.2 / 3)])
def test_reductions_of_a_known_vector_with_padding_and_in_a_batch(reduction, expected, kind):
    make = KINDS[kind]
    assert float(reduce_steps(make([0.9, 0.5, 0.8]), reduction)) == pytest.approx(expected, abs=1e-15)
    padded = make([[0.9, 0.5, 0.8, 7.0], [0.25, 7.0, 7.0, 7.0], [7.0, 0.9, 0.5, 0.8]])
    mask = [[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 1]]
    assert reduce_steps(padded, reduction, mask).tolist() == pytest.approx([expected, 0.25, expected], abs=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_reductions_refuse_what_they_cannot_reduce(kind):
    make = KINDS[kind]
    with pytest.raises(ValueError, match="empty"):
        reduce_steps(make([]), "last")
    with pytest.raises(ValueError, match="no step"):
        reduce_steps(make([[0.5, 0.5], [0.5, 0.5]]), "mean", [[True, True], [False, False]])
    with pytest.raises(ValueError, match="finite"):
        reduce_steps(make([0.5, math.nan]), "mean")
    with pytest.raises(ValueError, match="reduction must be"):
        reduce_steps(make([0.5]), "max")
    for reduction, value in (("prod", 2.0), ("min", -0.5)):
        with pytest.raises(ValueError, match="check_range=False"):
            reduce_steps(make([0.5, value]), reduction)
    assert float(reduce_steps(make([0.5, 2.0]), "prod", check_range=False)) == 1.0
    assert float(reduce_steps(make([0.5, -0.5]), "min", check_range=False)) == -0.5
    assert float(reduce_steps(make([5.0, -0.5]), "mean")) == 2.25


def test_a_product_in_half_precision_does_not_vanish():
    steps = torch.full((60,), 0.7, dtype=torch.float16)
    assert float(reduce_steps(steps, "prod")) == pytest.approx(float(steps[0]) ** 60, rel=1e-12)


finite_rows = st.lists(st.floats(-50, 50), min_size=1, max_size=10)


@given(finite_rows, st.floats(0.05, 20))
@settings(max_examples=60, deadline=None)
def test_softmax_and_logsumexp_are_those_of_scipy_and_sum_to_one(scores, temperature):
    for make in KINDS.values():
        weights = softmax(make(scores), temperature)
        assert weights.tolist() == pytest.approx(special.softmax(np.asarray(scores) / temperature).tolist(), abs=1e-12)
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
        assert softmax(make([s + 1000 for s in scores]), temperature).tolist() == pytest.approx(
            weights.tolist(), abs=1e-8
        )
        assert float(logsumexp(make(scores))) == pytest.approx(special.logsumexp(scores), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_softmax_at_its_limits(kind):
    make = KINDS[kind]
    assert softmax(make([0.0, 1e308, -1e308]), 1e-3).tolist() == [0, 1, 0]
    assert softmax(make([0.0, 1.0]), math.inf).tolist() == [0.5, 0.5]
    assert softmax(make([-math.inf, 0.0]), math.inf).tolist() == [0, 1]
    assert softmax(make([[5.0, 1.0, 1.0], [1.0, 1.0, 5.0]]), mask=[[0, 1, 1], [1, 1, 0]]).tolist() == [
        [0, 0.5, 0.5],
        [0.5, 0.5, 0],
    ]
    for scores in ([math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]):
        with pytest.raises(ValueError, match="finite score"):
            softmax(make(scores))
    with pytest.raises(ValueError, match="finite score"):
        softmax(make([1.0, 2.0]), mask=[False, False])
    with pytest.raises(ValueError, match="temperature"):
        softmax(make([1.0, 2.0]), 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_logsumexp_at_its_limits(kind):
    make = KINDS[kind]
    assert logsumexp(make([[1000.0, 1000.0], [-math.inf, -math.inf], [-1000.0, -math.inf]])).tolist() == [
        1000.0 + math.log(2.0),
        -math.inf,
        -1000.0,
    ]
    with pytest.raises(ValueError, match="empty"):
        logsumexp(make([]))


def test_kind_and_precision_of_what_comes_back():
    weights = softmax(torch.tensor([0.5, 0.25], dtype=torch.bfloat16))
    assert weights.dtype == torch.float64
    assert isinstance(softmax([0.5, 0.25]), np.ndarray)
    assert isinstance(softmax([0.5, 0.25], mask=torch.tensor([True, True])), torch.Tensor)
    assert softmax(np.float32([0.5, 0.25])).dtype == np.float64


def test_softmax_of_scores_as_far_apart_as_can_be():
    assert softmax([-1e308, 1e308], math.inf).tolist() == [0.5, 0.5]
    assert softmax([-1e308, 1e308], 1.0).tolist() == [0.0, 1.0]
    assert softmax([-math.inf, 1.0, 2.0], math.inf).tolist() == [0.0, 0.5, 0.5]
