"""Allocations: the table of roundings, rational arithmetic, sums over random cases; directions; whole subsets."""

import itertools
import math
import random
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale.functional import dora_allocation, ets_selection, rebase_allocation, softmax

KINDS = {"list": list, "numpy": np.asarray, "torch": lambda x: torch.tensor(x, dtype=torch.float64)}
if torch.cuda.is_available():
    KINDS["cuda"] = lambda x: torch.tensor(x, dtype=torch.float64, device="cuda")

TABLE = [  # scores, budget, temperature, exact, paper, released
    ([0.9, 0.1], 16, 0.2, [16, 0], [16, 0], [16, 0]),
    ([0.9, 0.8, 0.7, 0.1], 16, 0.2, [9, 5, 2, 0], [8, 5, 3, 0], [9, 5, 2, 0]),
    ([0.1, 0.7, 0.8, 0.9], 16, 0.2, [0, 2, 5, 9], [0, 3, 5, 8], [0, 2, 5, 9]),
    ([0.9, 0.8, 0.7, 0.1], 16, 0.1, [11, 4, 1, 0], [11, 4, 1, 0], [11, 4, 1, 0]),
    ([0.9, 0.8, 0.7, 0.1], 3, 0.2, [2, 1, 0, 0], [2, 1, 1, 0], [2, 1, 0, 0]),
    ([0.5] * 3, 16, 0.2, [6, 5, 5], [5, 5, 5], [5, 6, 6]),
    ([0.5] * 3, 8, 0.2, [3, 3, 2], [3, 3, 3], [3, 3, 3]),
    ([0.5] * 5, 7, 0.1, [2, 2, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 2, 2]),
    ([0.5] * 12, 6, 0.1, [1] * 6 + [0] * 6, [1] * 12, [0] * 6 + [1] * 6),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{len(row[0])}-{row[1]}-{row[2]}")
@pytest.mark.parametrize("rounding", ["exact", "paper", "released"])
def test_roundings_give_the_known_table_alone_and_in_a_batch(row, rounding, kind):
    scores, budget, temperature, *expected = row
    wanted = expected[["exact", "paper", "released"].index(rounding)]
    alone = rebase_allocation(KINDS[kind](scores), budget, temperature, rounding)
    batch = rebase_allocation(KINDS[kind]([scores, scores[::-1], scores]), budget, temperature, rounding)
    assert alone.tolist() == batch[0].tolist() == batch[2].tolist() == wanted
    assert "int64" in str(alone.dtype)
    assert isinstance(alone, torch.Tensor if kind in ("torch", "cuda") else np.ndarray)


def rational_allocation(scores: list[float], budget: int, temperature: float) -> list[int]:
    """The definition, with the float weights taken as exact numbers."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    weights = [Fraction(math.exp((scores[i] - max(scores)) / temperature)) for i in order]
    counts, left = [0] * len(scores), budget
    for position, i in enumerate(order):
        share = left * weights[position] / sum(weights[position:]) if left else Fraction(0)
        counts[i] = min(left, math.ceil(share - Fraction(1, 10**9)))
        left -= counts[i]
    counts[order[-1]] += left
    return counts


unit_scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.9]) | st.floats(0, 1), min_size=1, max_size=24)
temperatures = st.sampled_from([0.05, 0.1, 0.2, 1.0]) | st.floats(1e-3, 1e3)


@given(unit_scores, st.integers(0, 64), temperatures)
@settings(max_examples=150, deadline=None)
def test_allocation_is_that_of_rational_arithmetic(scores, budget, temperature):
    counts = rebase_allocation(scores, budget, temperature).tolist()
    assert counts == rational_allocation(scores, budget, temperature)
    assert sum(counts) == budget
    assert min(counts) >= 0


@given(unit_scores, st.integers(0, 64), temperatures)
@settings(max_examples=100, deadline=None)
def test_allocation_never_favours_a_worse_node_and_gives_the_best_their_share(scores, budget, temperature):
    counts = rebase_allocation(scores, budget, temperature).tolist()
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    ranked = [counts[i] for i in order]
    assert ranked == sorted(ranked, reverse=True)
    shares = softmax(scores, temperature)
    for j in range(1, len(order) + 1):
        assert sum(ranked[:j]) >= budget * math.fsum(shares[i] for i in order[:j]) - 1e-6


@given(st.lists(st.integers(0, 200), min_size=1, max_size=12, unique=True), st.integers(0, 40), st.randoms())
@settings(max_examples=60, deadline=None)
def test_allocation_follows_a_permutation_and_ignores_a_constant(quarters, budget, random):
    scores = [quarter / 256 for quarter in quarters]  # sums with whole numbers are exact
    counts = dict(zip(scores, rebase_allocation(scores, budget, 0.25).tolist(), strict=True))
    shuffled = random.sample(scores, len(scores))
    assert rebase_allocation(shuffled, budget, 0.25).tolist() == [counts[score] for score in shuffled]
    assert rebase_allocation([s + 7 for s in scores], budget, 0.25).tolist() == [counts[s] for s in scores]


@given(unit_scores, st.integers(0, 64), temperatures, st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_all_kinds_and_a_padded_batch_agree_with_the_plain_list(scores, budget, temperature, seed):
    expected = rebase_allocation(scores, budget, temperature).tolist()
    places = np.sort(np.random.default_rng(seed).permutation(len(scores) + 5)[: len(scores)])
    mask = np.zeros(len(scores) + 5, dtype=bool)
    mask[places] = True
    padded = np.full(len(mask), np.nan)
    padded[places] = scores
    for kind in ("numpy", "torch"):
        assert rebase_allocation(KINDS[kind]([scores] * 2), budget, temperature).tolist() == [expected] * 2
        counts = rebase_allocation(KINDS[kind](padded), budget, temperature, mask=mask)
        assert counts[mask].tolist() == expected
        assert counts[~mask].sum() == 0


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "list"])
def test_a_hundred_thousand_random_cases_sum_to_the_budget(kind):
    rng = np.random.default_rng(0)
    for temperature in (0.05, 0.1, 0.2, 1.0):
        scores = rng.random((25_000, 32))
        tied = rng.random(25_000) < 0.3
        scores[tied] = np.round(scores[tied], 1)
        mask = np.arange(32) < rng.integers(1, 33, size=(25_000, 1))
        budget = rng.integers(0, 65, size=25_000)
        counts = rebase_allocation(KINDS[kind](scores), budget, temperature, mask=mask)
        counts = counts.cpu().numpy() if kind != "numpy" else counts
        assert (counts.sum(-1) == budget).all()
        assert (counts >= 0).all()
        assert (counts[~mask] == 0).all()
        ranked = np.take_along_axis(counts, np.argsort(-np.where(mask, scores, -1), kind="stable"), -1)
        assert (np.diff(ranked) <= 0).all()
        for i in range(0, 25_000, 2_500):
            assert counts[i][mask[i]].tolist() == rebase_allocation(scores[i][mask[i]], budget[i], temperature).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_limits(kind):
    make = KINDS[kind]
    assert rebase_allocation(make([0.1, 0.9, 0.9, 0.2]), 7, 1e-300).tolist() == [0, 4, 3, 0]
    assert rebase_allocation(make([0.1, 0.9, 0.3]), 7, math.inf).tolist() == [2, 3, 2]
    assert rebase_allocation(make([-1e308, 1e308, 0.0]), 5, 1.0).tolist() == [0, 5, 0]
    assert rebase_allocation(make([900.0, 899.0]), 10, 1.0).tolist() == [8, 2]  # no overflow
    assert rebase_allocation(make([-0.4, -0.2, 0.3]), 6, 0.5).tolist() == [0, 2, 4]  # 3.7, then 1.2 of 2
    assert rebase_allocation(make([0.0, -0.0, 0.0]), 4, 0.1).tolist() == [2, 1, 1]
    assert rebase_allocation(make([0.5]), 3, 0.1).tolist() == [3]
    assert rebase_allocation(make([0.5, 0.6]), 0, 0.1).tolist() == [0, 0]


def test_the_recorded_leaks_of_the_other_roundings_and_none_of_exact():
    """Scores uniform in (0, 1), 2 to 32 nodes, budgets 1 to 64, T = 0.2: about 60 % under, 9 % over, 3 % over."""
    rng = np.random.default_rng(1)
    scores, budget = rng.random((4_000, 32)), rng.integers(1, 65, size=4_000)
    mask = np.arange(32) < rng.integers(2, 33, size=(4_000, 1))
    spent = {r: rebase_allocation(scores, budget, 0.2, r, mask).sum(-1) for r in ("exact", "paper", "released")}
    assert (spent["exact"] == budget).all()
    assert 0.55 < (spent["paper"] < budget).mean() < 0.65
    assert 0.07 < (spent["paper"] > budget).mean() < 0.12
    assert 0.015 < (spent["released"] > budget).mean() < 0.045
    assert (spent["released"] >= budget).all()


@pytest.mark.parametrize("kind", KINDS)
def test_truncation_keeps_the_best_share_of_the_nodes(kind):
    scores = KINDS[kind]([0.1, 0.5, 0.5, 0.5, 0.9])
    assert rebase_allocation(scores, 9, math.inf, truncate_ratio=0.5).tolist() == [0, 3, 3, 0, 3]  # ceil(2.5) = 3
    assert rebase_allocation(scores, 9, math.inf, truncate_ratio=0.6).tolist() == [0, 3, 3, 0, 3]  # 0.6 * 5 is 3
    assert rebase_allocation(scores, 9, math.inf, truncate_ratio=0.01).tolist() == [0, 0, 0, 0, 9]
    assert rebase_allocation(scores, 5, 1.0, truncate_ratio=1.0).tolist() == rebase_allocation(scores, 5, 1.0).tolist()
    mask = [True, True, False, True, False]
    assert rebase_allocation(scores, 4, 1.0, mask=mask, truncate_ratio=0.5).tolist() == [0, 2, 0, 2, 0]


def test_budgets_by_row_and_rows_without_nodes():
    mask = np.array([[True, True], [False, False]])
    assert rebase_allocation([[0.5, 0.5], [0.1, 0.2]], [3, 0], 0.1, mask=mask).tolist() == [[2, 1], [0, 0]]
    assert rebase_allocation([[0.5, 0.5], [0.1, 0.2]], [3, 0], 0.1, "paper", mask).tolist() == [[2, 2], [0, 0]]
    assert rebase_allocation([[0.5, 0.5], [0.1, 0.2]], [3, 0], 0.1, "released", mask).tolist() == [[1, 2], [0, 0]]
    with pytest.raises(ValueError, match="no node"):
        rebase_allocation([[0.5, 0.5], [0.1, 0.2]], 3, 0.1, mask=mask)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_holds_beyond_what_a_float_can_count(kind):
    for budget in (2**53 + 1, 2**60 + 1):
        counts = rebase_allocation(KINDS[kind]([0.5, 0.5, 0.1]), budget, 0.3)
        assert sum(counts.tolist()) == budget
        assert rebase_allocation(KINDS[kind]([[0.5], [0.1]]), budget, 0.3).tolist() == [[budget]] * 2


BAD = [
    (([], 4, 0.1), "empty"),
    (([0.1, math.nan], 4, 0.1), "finite"),
    (([0.1, math.inf], 4, 0.1), "finite"),
    (([0.1, None], 4, 0.1), "finite"),
    (([[0.1, math.nan], [1, 2]], 4, 0.1), "finite"),
    (([0.1], 4, 0.0), "temperature must be above 0"),
    (([0.1], 4, -1.0), "temperature must be above 0"),
    (([0.1], 4, math.nan), "temperature must be above 0"),
    (([0.1], -1, 0.1), "budget"),
    (([0.1], 1.5, 0.1), "budget"),
    (([0.1], math.inf, 0.1), "budget"),
    (([0.1], math.nan, 0.1), "budget"),
    (([[0.1]], [-1], 0.1), "budget"),
    (([[0.1]], [1.5], 0.1), "whole"),
    (([0.1], 4, 0.1, "floor"), "rounding"),
    (([900.0, 0.0], 4, 1.0, "released"), "published code"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: str(value)[:30])
def test_errors_say_what_was_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        rebase_allocation(*arguments)
    with pytest.raises(ValueError, match="truncate_ratio"):
        rebase_allocation([0.1], 1, 1.0, truncate_ratio=0.0)


def test_the_calls_in_python_grow_no_faster_than_the_row():
    def calls(size):
        scores, seen = np.random.default_rng(0).random(size).tolist(), []
        sys.setprofile(lambda frame, event, value: seen.append(event) if event in ("call", "c_call") else None)
        try:
            rebase_allocation(scores, size, 0.1)
        finally:
            sys.setprofile(None)
        return len(seen)

    assert calls(64) <= 400
    assert calls(2048) <= 40 * calls(64)


# Directions (DORA) ---------------------------------------------------------------------------------------------------


def directions(sizes):
    """Similarities of nodes in directions of these sizes: 1 within, 0 between."""
    which = [k for k, size in enumerate(sizes) for _ in range(size)]
    return [[float(a == b) for b in which] for a in which], which


@pytest.mark.parametrize("kind", KINDS)
def test_a_direction_gets_what_one_solution_of_its_score_would_get(kind):
    # Theorem of the paper: summed over a direction, counts are those of REBASE over one solution each.
    similarities, which = directions([5, 1, 2])
    scores, shares = [0.6, 0.5, 0.7], rebase_allocation([0.6, 0.5, 0.7], 4000, 0.1)
    counts = dora_allocation(KINDS[kind]([scores[k] for k in which]), similarities, 4000, 0.1, 0.01)
    assert counts.sum() == 4000
    for k, share in enumerate(shares.tolist()):
        got = sum(count for count, own in zip(counts.tolist(), which, strict=True) if own == k)
        assert abs(got - share) <= len(which)
    batch = dora_allocation(KINDS[kind]([[scores[k] for k in which]] * 2), [similarities] * 2, 4000, 0.1, 0.01)
    assert batch.tolist() == [counts.tolist()] * 2


def test_directions_against_the_equations_by_hand():
    similarities = [[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]
    gamma = [math.exp(1 / 0.1) / sum(math.exp(s / 0.1) for s in row) for row in similarities]  # equation 11
    weights = [math.exp(score / 0.2) * g for score, g in zip([0.7, 0.6, 0.4], gamma, strict=True)]
    expected = rebase_allocation([math.log(w) for w in weights], 100, 1.0)
    assert dora_allocation([0.7, 0.6, 0.4], similarities, 100, 0.2, 0.1).tolist() == expected.tolist()
    assert (
        dora_allocation([0.7, 0.6, 0.4], similarities, 100, 0.2, math.inf).tolist()
        == rebase_allocation([0.7, 0.6, 0.4], 100, 0.2).tolist()
    )
    with pytest.raises(ValueError, match=r"\[..., N, N\]"):
        dora_allocation([0.7, 0.6], similarities, 100, 0.2, 0.1)


# Subsets that share their paths (ETS) --------------------------------------------------------------------------------


def best_subset(weights, needed, clusters, cost_weight, coverage_weight):
    """The greatest value of the objective over all subsets but the empty one."""
    n, m, k = len(weights), len(needed[0]), len(set(clusters))

    def value(subset):
        inner = sum(any(needed[i][j] for i in subset) for j in range(m))
        covered = len({clusters[i] for i in subset})
        cost = cost_weight * (len(subset) + inner) / (n + m)
        return sum(weights[i] for i in subset) - cost + coverage_weight * covered / k

    subsets = [s for size in range(1, n + 1) for s in itertools.combinations(range(n), size)]
    return max(map(value, subsets)), value


@pytest.mark.parametrize("trial", range(12))
def test_the_subset_is_the_best_of_all(trial):
    rng = random.Random(trial)
    n, m = rng.randint(1, 7), rng.randint(1, 5)
    weights = [rng.random() / n for _ in range(n)]
    needed = [[rng.random() < 0.4 for _ in range(m)] for _ in range(n)]
    clusters = [rng.randrange(3) for _ in range(n)]
    prices = rng.choice([0.0, 0.5, 1.0, 3.0, 50.0]), rng.choice([0.0, 0.5, 1.0])
    kept = ets_selection(weights, needed, clusters, *prices)
    best, value = best_subset(weights, needed, clusters, *prices)
    assert kept.any()
    assert value(tuple(np.flatnonzero(kept).tolist())) == pytest.approx(best, abs=1e-6)


def test_leaves_that_share_a_path_are_kept_together_and_coverage_keeps_the_odd_one():
    weights, needed, alone = [0.4, 0.35, 0.25], [[1, 0, 0], [1, 0, 0], [0, 1, 1]], [0, 0, 1]
    assert ets_selection(weights, needed, alone, 0.0, 0.0).tolist() == [True, True, True]
    assert ets_selection(weights, needed, alone, 1.2, 0.0).tolist() == [True, True, False]  # 0.25 < 1.2 * 3 / 6
    assert ets_selection(weights, needed, alone, 1.2, 1.0).tolist() == [True, True, True]
    assert ets_selection(weights, needed, alone, 100.0, 0.0).tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"\[N, M\]"):
        ets_selection(weights, [1, 0, 0], alone, 1.0, 1.0)
