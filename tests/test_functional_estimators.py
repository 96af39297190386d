"""pass@k, best-of-k and maj@k against brute force over all subsets, in rational arithmetic."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from inferscale.functional import (
    best_of_k,
    best_of_k_chances,
    majority_at_k,
    majority_vote,
    optimal_n,
    pass_at_k,
    weighted_majority_at_k,
)
from inferscale.functional import estimators as _majority

KINDS = {"list": lambda x: x, "numpy": np.asarray, "torch": lambda x: torch.as_tensor(np.asarray(x))}
if torch.cuda.is_available():
    KINDS["cuda"] = lambda x: torch.as_tensor(np.asarray(x), device="cuda")


def subset_mean(total, k, value):
    """Mean of `value` over all subsets of k positions, exact."""
    subsets = list(itertools.combinations(range(total), k))
    return sum((Fraction(value(subset)) for subset in subsets), Fraction(0)) / len(subsets)


def tied_credit(ids, correct, subset, weights=None, scores=None):
    """Mean correctness of the answers that lead the vote of a subset."""
    leaders = {ids[i] for i in subset if ids[i] >= 0}
    for values in (weights or [1] * len(ids), scores or [0] * len(ids)):
        totals = {a: float(sum(Fraction(values[i]) for i in subset if ids[i] == a)) for a in leaders}
        leaders = {a for a in leaders if totals[a] == max(totals.values())}
    shares = [Fraction(sum(c for i, c in zip(ids, correct, strict=True) if i == a), ids.count(a)) for a in leaders]
    return sum(shares, Fraction(0)) / len(shares) if shares else Fraction(0)


# --- pass@k


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("total", "right", "k", "expected"),
    [(10, 3, 1, 0.3), (10, 3, 5, 11 / 12), (10, 3, 8, 1), (4, 2, 2, 5 / 6), (16, 1, 8, 0.5), (5, 0, 3, 0)],
)
def test_known_values_of_pass_at_k(total, right, k, expected, kind):
    labels = [1] * right + [0] * (total - right)
    assert float(pass_at_k(KINDS[kind](labels), k)) == pytest.approx(expected, abs=1e-15)
    together = pass_at_k(KINDS[kind]([labels, labels[::-1]]), [k, 1])
    assert together.tolist() == pytest.approx(np.array([[expected, right / total]] * 2), abs=1e-15)


@given(st.lists(st.booleans(), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(labels):
    ks = list(range(1, len(labels) + 1))
    wanted = [float(subset_mean(len(labels), k, lambda s: any(labels[i] for i in s))) for k in ks]
    assert pass_at_k(labels, ks).tolist() == wanted
    assert pass_at_k(torch.tensor(labels), ks).tolist() == wanted


def test_pass_at_k_of_many_samples_is_exact_where_products_lose_digits():
    labels = np.zeros(10_000, dtype=int)
    labels[:3] = 1
    exact = 1 - Fraction(math.comb(9_997, 1_000), math.comb(10_000, 1_000))
    assert float(pass_at_k(labels, 1_000)) == float(exact)
    assert pass_at_k(labels, 1) == 3e-4


# --- best-of-k


@pytest.mark.parametrize("kind", KINDS)
def test_known_values_of_best_of_k(kind):
    make = KINDS[kind]
    curve = best_of_k(make([0.9, 0.8, 0.7, 0.6]), make([0, 1, 1, 0]), [1, 2, 3, 4])
    assert curve.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 4, 0], abs=1e-15)
    curve = best_of_k(make([0.9, 0.9, 0.5, 0.5, 0.1]), make([1, 0, 1, 1, 0]), range(1, 6))
    assert curve.tolist() == pytest.approx([3 / 5, 13 / 20, 11 / 20, 1 / 2, 1 / 2], abs=1e-15)


samples = st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=8)


@given(samples)
@settings(max_examples=60, deadline=None)
def test_best_of_k_is_the_mean_over_subsets_with_shared_ties_and_abstentions_last(rows):
    answered = [answer >= 0 for answer, _, _ in rows]
    scores, correct = [score / 4 for _, score, _ in rows], [label for _, _, label in rows]

    def value(subset):
        voters = [i for i in subset if answered[i]]
        best = [i for i in voters if scores[i] == max(scores[j] for j in voters)]
        return Fraction(sum(correct[i] for i in best), len(best)) if best else Fraction(0)

    ks = list(range(1, len(rows) + 1))
    wanted = [float(subset_mean(len(rows), k, value)) for k in ks]
    batch = best_of_k(np.array([scores, scores]), np.array([correct, correct]), ks, np.array([answered, answered]))
    assert batch[0].tolist() == batch[1].tolist() == pytest.approx(wanted, abs=1e-12)
    tensors = best_of_k(torch.tensor(scores, dtype=torch.float64), torch.tensor(correct), ks, torch.tensor(answered))
    assert tensors.tolist() == pytest.approx(wanted, abs=1e-12)


# --- maj@k

CURVES = [
    ([0, 0, 0, 1, 1, 2], 0, "1/2 1/2 3/5 7/10 3/4 1"),
    ([0, 0, 0, 1, 1, 2], 1, "1/3 1/3 3/10 3/10 1/4 0"),
    ([0, 0, 1, 1, 2, -1, -1, -1], 0, "1/4 5/14 67/168 59/140 25/56 10/21 1/2 1/2"),
    ([0, 1, 1, 1, 1, -1], 0, "1/6 1/5 1/10 0 0 0"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ids", "gold", "curve"), CURVES)
def test_known_curves_of_majority_at_k(ids, gold, curve, kind):
    correct = [int(answer == gold) for answer in ids]
    values = majority_at_k(KINDS[kind](ids), KINDS[kind](correct), range(1, len(ids) + 1))
    assert values.tolist() == [float(Fraction(text)) for text in curve.split()]
    one = majority_at_k(KINDS[kind]([ids, ids]), KINDS[kind]([correct, correct]), 2)
    assert one.tolist() == [values.tolist()[1]] * 2


@given(samples)
@settings(max_examples=80, deadline=None)
def test_majority_at_k_is_the_mean_over_subsets(rows):
    ids, correct = [answer for answer, _, _ in rows], [label for _, _, label in rows]
    ks = list(range(1, len(rows) + 1))
    wanted = [float(subset_mean(len(rows), k, lambda s: tied_credit(ids, correct, s))) for k in ks]
    assert majority_at_k(ids, correct, ks).tolist() == pytest.approx(wanted, abs=1e-15)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30))
@settings(max_examples=40, deadline=None)
def test_majority_of_two_is_that_of_one_unless_one_abstains(ids):
    correct = [answer == 0 for answer in ids]
    one, two = majority_at_k(ids, correct, [1, 2])
    assert one == pytest.approx(float(pass_at_k(correct, 1)), abs=1e-15)
    assert two == pytest.approx(one, abs=1e-15)


def test_large_numbers_of_samples_agree_with_the_exact_integers(monkeypatch):
    rng = np.random.default_rng(0)
    ids = rng.choice(9, size=(3, 60), p=np.arange(9, 0, -1) / 45) - 1
    correct = ids == 1
    exact = majority_at_k(ids, correct, [3, 16, 59])
    monkeypatch.setattr(_majority, "_EXACT_UP_TO", 0)
    _majority.majority_expectation.cache_clear()
    thinned = majority_at_k(ids, correct, [3, 16, 59])
    _majority.majority_expectation.cache_clear()
    assert thinned == pytest.approx(exact, abs=1e-12)
    assert (thinned != exact).any()  # it was the other programme


def test_majorities_of_thousands_of_samples_are_those_of_the_hypergeometric_distribution():
    ids = np.repeat([0, 1, -1], [4_700, 4_500, 800])
    for k in (2, 40):
        votes = [(first, second, k - first - second) for first in range(k + 1) for second in range(k + 1 - first)]
        ways = [math.comb(4_700, one) * math.comb(4_500, two) * math.comb(800, none) for one, two, none in votes]
        credit = [1.0 if one > two else 0.5 if one == two > 0 else 0.0 for one, two, _ in votes]
        wanted = math.fsum(share * (way / math.comb(10_000, k)) for share, way in zip(credit, ways, strict=True))
        assert float(majority_at_k(ids, ids == 0, k)) == pytest.approx(wanted, abs=1e-11)
    two = np.repeat([0, 1], [5_050, 4_950])
    for k in (100, 5_001, 9_000):
        wins = hypergeom(10_000, 5_050, k)
        wanted = wins.sf(k // 2) + (wins.pmf(k / 2) / 2 if k % 2 == 0 else 0.0)
        assert float(majority_at_k(two, two == 0, k)) == pytest.approx(wanted, abs=1e-11)
    different = np.arange(10_000)
    assert majority_at_k(different, different == 7, [2, 3_000]) == pytest.approx([1e-4, 1e-4], abs=1e-11)


@pytest.mark.parametrize("counts", [[40, 30, 30], [1] * 100, [30] + [1] * 70, [20, 20, 20, 10, 10, 5, 5, 5, 5]])
def test_floats_agree_with_the_exact_integers_whatever_is_tied(counts, monkeypatch):
    ids = np.repeat(np.arange(len(counts)), counts)
    correct = (ids == 1) | (ids == len(counts) - 1)
    ks = [1, 2, 7, 50, 99]
    exact = majority_at_k(ids, correct, ks)
    monkeypatch.setattr(_majority, "_EXACT_UP_TO", 0)
    _majority.majority_expectation.cache_clear()
    floats = majority_at_k(ids, correct, ks)
    _majority.majority_expectation.cache_clear()
    assert floats == pytest.approx(exact, abs=1e-12)


def test_a_long_run_tends_to_the_mode():
    ids = np.repeat([0, 1, 2], [400, 350, 250])
    curve = majority_at_k(ids, ids == 0, [1, 9, 65, 257])
    assert curve[0] == 0.4
    assert (np.diff(curve) > 0).all()
    assert curve[-1] > 0.85


# --- votes with weights, or ties broken by scores


@given(samples, st.booleans(), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_weighted_majority_at_k_is_the_mean_over_subsets(rows, weighted, scored, data):
    ids, values, correct = ([row[column] for row in rows] for column in range(3))
    weights = [value / 10 for value in values] if weighted else None
    scores = [(value - 2) / 10 for value in values] if scored else None
    k = data.draw(st.integers(1, len(rows)))
    wanted = float(subset_mean(len(rows), k, lambda s: tied_credit(ids, correct, s, weights, scores)))
    mean, error = weighted_majority_at_k(ids, correct, k, weights, scores)
    assert (float(mean), float(error)) == (pytest.approx(wanted, abs=1e-12), 0.0)
    tensors = [None if v is None else torch.as_tensor(np.asarray([v])) for v in (ids, correct, weights, scores)]
    mean, _ = weighted_majority_at_k(*tensors[:2], k, *tensors[2:])
    assert mean.tolist() == [pytest.approx(wanted, abs=1e-12)]


@pytest.mark.parametrize("rng", [random.Random(0), np.random.default_rng(0)], ids=["random", "numpy"])
def test_drawn_subsets_estimate_within_their_standard_error(rng):
    ids = np.repeat([0, 1, 2, -1], [12, 10, 5, 3])
    exact = float(majority_at_k(ids, ids == 0, 9))
    with pytest.raises(ValueError, match="pass rng="):
        weighted_majority_at_k(ids, ids == 0, 9)
    mean, error = weighted_majority_at_k(ids, ids == 0, 9, rng=rng, num_subsets=4_000)
    assert 0.004 < error < 0.01
    assert abs(mean - exact) < 4 * error


def test_weights_change_the_curve():
    ids, weights = [0, 1, 1], [0.9, 0.3, 0.35]
    assert float(majority_vote(ids)) == 1
    assert float(weighted_majority_at_k(ids, [1, 0, 0], 3, weights)[0]) == 1.0
    assert float(majority_at_k(ids, [1, 0, 0], 3)) == 0.0


# --- errors


@pytest.mark.parametrize("kind", KINDS)
def test_errors_say_what_was_wrong(kind):
    make = KINDS[kind]
    for k in (0, 4, 1.5, [1, 4], math.inf, math.nan):
        with pytest.raises(ValueError, match="between 1 and the 3 samples"):
            pass_at_k(make([0, 1, 0]), k)
    with pytest.raises(ValueError, match="0 and 1 only"):
        pass_at_k(make([0.0, 0.5]), 1)
    with pytest.raises(ValueError, match="one shape"):
        best_of_k(make([0.5, 0.5]), make([1]), 1)
    with pytest.raises(ValueError, match="finite"):
        best_of_k(make([0.5, math.nan]), make([1, 0]), 1)
    with pytest.raises(ValueError, match="one shape"):
        majority_at_k(make([0, 0]), make([1]), 1)
    with pytest.raises(ValueError, match="whole numbers"):
        majority_at_k(make([0.0, 0.5]), make([1, 0]), 1)
    with pytest.raises(ValueError, match="negative"):
        weighted_majority_at_k(make([0, 0]), make([1, 1]), 1, make([0.5, -0.5]))
    with pytest.raises(ValueError, match="empty"):
        pass_at_k(make([]), 1)
    with pytest.raises(ValueError, match="num_subsets must be 1 or more"):
        weighted_majority_at_k(make([0, 0]), make([1, 1]), 1, max_subsets=0, num_subsets=0, rng=random.Random(0))
    assert float(weighted_majority_at_k(make([0, 0]), make([1, 1]), 2.0)[0]) == 1


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_chances_of_being_the_best_are_counted_over_subsets(k):
    scores = [0.3, 0.9, 0.9, 0.1, 0.5]
    counted = [Fraction(0)] * 5
    for subset in itertools.combinations(range(5), k):
        best = [i for i in subset if scores[i] == max(scores[j] for j in subset)]
        for i in best:
            counted[i] += Fraction(1, len(best) * math.comb(5, k))
    assert best_of_k_chances(scores, k).tolist() == pytest.approx([float(c) for c in counted])
    assert best_of_k_chances(torch.tensor([scores, scores]), k).sum(-1).tolist() == pytest.approx([1.0, 1.0])


def test_samples_without_an_answer_have_no_chance():
    chances = best_of_k_chances([0.3, 0.9, 0.5], 2, [1, 0, 1])
    assert chances.tolist() == pytest.approx([1 / 3, 0.0, 2 / 3])
    for scores, k in (([], 1), ([0.5], 2), ([math.nan], 1)):
        with pytest.raises(ValueError, match=r"scores is empty|k|finite"):
            best_of_k_chances(scores, k)


def test_the_best_n_by_enumeration():
    """A judge that is right about what is likely and wrong about the rarest: accuracy rises and falls."""
    correct = np.array([[0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 1, 0]])
    scores = np.array([[0.1, 0.2, 0.3, 0.6, 0.5, 0.9], [0.2, 0.1, 0.5, 0.3, 0.6, 0.9]])

    def accuracy(n):
        return np.mean([
            row_right[max(subset, key=lambda i: row[i])]
            for row, row_right in zip(scores, correct, strict=True)
            for subset in itertools.combinations(range(6), n)
        ])  # fmt: skip

    curve = [accuracy(n) for n in range(1, 7)]
    assert optimal_n(scores, correct) == 1 + int(np.argmax(curve))
    assert curve[0] < max(curve) > curve[-1] == 0
    assert optimal_n(scores, scores == scores.max(1, keepdims=True)) == 6
    assert optimal_n(-scores, scores == scores.max(1, keepdims=True)) == 1
