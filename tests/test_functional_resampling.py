"""Resampling schemes: vectors, expected counts, and what each scheme promises."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale.functional import effective_sample_size, resample

SCHEMES = ("multinomial", "stratified", "systematic", "residual")
KINDS = {"list": list, "numpy": np.asarray, "torch": lambda x: torch.tensor(x, dtype=torch.float64)}
if torch.cuda.is_available():
    KINDS["cuda"] = lambda x: torch.tensor(x, dtype=torch.float64, device="cuda")


@pytest.mark.parametrize("kind", KINDS)
def test_known_ancestors(kind):
    weights = KINDS[kind]([0.1, 0.2, 0.3, 0.4])
    assert resample(weights, 4, uniforms=[0.5]).tolist() == [1, 2, 3, 3]
    assert resample(weights, 4, uniforms=[0.05]).tolist() == [0, 1, 2, 3]
    assert resample(weights, 4, "stratified", uniforms=[0.5, 0.05, 0.5, 0.999]).tolist() == [1, 1, 3, 3]
    assert resample(weights, 4, "multinomial", uniforms=[0.99, 0.0, 0.29, 0.31]).tolist() == [3, 0, 1, 2]
    # floor(5 w) = 0, 1, 1, 2; one place is left over, for 0 and 2 at even odds
    assert resample(weights, 5, "residual", uniforms=[9e-1] * 4 + [0.4]).tolist() == [1, 2, 3, 3, 0]
    assert resample(weights, 5, "residual", uniforms=[9e-1] * 4 + [0.6]).tolist() == [1, 2, 3, 3, 2]
    assert resample(KINDS[kind]([0.5, 0.5]), 2, "multinomial", uniforms=[0.5, 0.0]).tolist() == [1, 0]
    assert resample(KINDS[kind]([0.0, 1.0]), 2, uniforms=[0.0]).tolist() == [1, 1]
    ancestors = resample(KINDS[kind]([[1.0, 3.0], [3.0, 1.0]]), 4, uniforms=[[0.5], [0.5]])
    assert ancestors.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert "int64" in str(ancestors.dtype)


weight_rows = st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0]) | st.floats(0, 10), min_size=1, max_size=10).filter(
    lambda row: sum(row) > 1e-3
)


@given(weight_rows, st.integers(1, 12), st.floats(0.001, 0.999))
@settings(max_examples=80, deadline=None)
def test_systematic_and_residual_counts_are_the_share_rounded_down_or_more(weights, n, u):
    share = np.array(weights) / sum(weights) * n
    for kind in ("numpy", "torch"):
        make = KINDS[kind]
        systematic = np.bincount(resample(make(weights), n, uniforms=[u]).tolist(), minlength=len(weights))
        assert (systematic >= np.floor(share - 1e-9)).all()
        assert (systematic <= np.floor(share + 1e-9) + 1).all()
        residual = np.bincount(
            resample(make(weights), n, "residual", uniforms=[u] * n).tolist(), minlength=len(weights)
        )
        assert (residual >= np.floor(share - 1e-9)).all()
        assert systematic.sum() == residual.sum() == n


@given(weight_rows, st.integers(1, 6), st.sampled_from(SCHEMES), st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_weight_zero_is_never_drawn_and_all_kinds_draw_alike(weights, n, scheme, seed):
    drawn = {kind: resample(make(weights), n, scheme, random.Random(seed)).tolist() for kind, make in KINDS.items()}
    assert all(ancestors == drawn["list"] for ancestors in drawn.values())
    assert all(weights[ancestor] > 0 for ancestor in drawn["list"])
    edge = [math.nextafter(1.0, 0.0)] * (1 if scheme == "systematic" else n)
    assert all(weights[ancestor] > 0 for ancestor in resample(weights, n, scheme, uniforms=edge))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_expected_counts_are_in_proportion_to_the_weights(scheme):
    weights = np.array([0.05, 0.4, 0.0, 0.25, 0.3])
    ancestors = resample(np.tile(weights, (40_000, 1)), 3, scheme, np.random.default_rng(0))
    counts = (ancestors[..., None] == np.arange(5)).sum(1)
    error = counts.std(0) / math.sqrt(len(counts))
    assert (abs(counts.mean(0) - 3 * weights) <= 4.5 * error + 1e-12).all()


def test_the_schemes_with_less_variance_have_less():
    weights = np.tile([0.05, 0.4, 0.25, 0.3], (20_000, 1))
    variance = {
        scheme: (resample(weights, 8, scheme, np.random.default_rng(0))[..., None] == np.arange(4)).sum(1).var(0).sum()
        for scheme in SCHEMES
    }
    assert variance["systematic"] <= variance["stratified"] + 0.01
    assert variance["stratified"] < variance["multinomial"]
    assert variance["residual"] < variance["multinomial"]


def test_equal_weights_keep_every_particle_under_systematic_and_residual():
    for n in (1, 3, 10, 13, 29, 100):  # 0.1 * 13 / sum is a little less than 1
        weights = [0.1] * n
        assert resample(weights, n, uniforms=[0.5]).tolist() == list(range(n))
        assert resample(weights, n, "residual", random.Random(0)).tolist() == list(range(n))


@pytest.mark.parametrize("kind", KINDS)
def test_effective_sample_size(kind):
    make = KINDS[kind]
    assert effective_sample_size(make([[1.0, 1.0, 1.0, 1.0], [5.0, 0.0, 0.0, 0.0]])).tolist() == [4.0, 1.0]
    assert float(effective_sample_size(make([3.0, 1.0]))) == pytest.approx(1.6)
    assert float(effective_sample_size(make([math.log(3.0) - 900, -900.0]), log=True)) == pytest.approx(1.6)
    assert float(effective_sample_size(make([2.0, -math.inf]), log=True)) == 1.0
    assert float(effective_sample_size(make([1e300, 1e300]))) == 2.0
    for bad, log in (
        ([0.0, 0.0], False),
        ([-math.inf, -math.inf], True),
        ([math.nan, 1.0], True),
        ([-1.0, 2.0], False),
    ):
        with pytest.raises(ValueError, match="0"):
            effective_sample_size(make(bad), log=log)


def test_errors_say_what_was_wrong():
    with pytest.raises(ValueError, match="scheme must be"):
        resample([1.0], 1, "best", random.Random(0))
    with pytest.raises(ValueError, match="n"):
        resample([1.0], 0, rng=random.Random(0))
    with pytest.raises(ValueError, match="n must be a whole number"):
        resample([1.0, 2.0], 2.5, rng=random.Random(0))
    with pytest.raises(ValueError, match="either rng"):
        resample([1.0], 1)
    with pytest.raises(ValueError, match="either rng"):
        resample([1.0], 1, rng=random.Random(0), uniforms=[0.5])
    with pytest.raises(ValueError, match="shape"):
        resample([1.0], 2, "stratified", uniforms=[0.5])
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        resample([1.0], 1, uniforms=[1.0])
    for weights in ([0.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf], []):
        with pytest.raises(ValueError, match=r"weights|nothing"):
            resample(weights, 1, rng=random.Random(0))
