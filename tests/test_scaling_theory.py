import itertools
import json
import math

import numpy as np
import pytest
from scipy.stats import binom

from inferscale.functional import pass_at_k
from inferscale.scaling import (
    beta_coverage,
    cramer_rate,
    error_bound,
    estimate_voting_limit,
    fit_coverage,
    majority_accuracy,
    optimal_calls,
    two_class_accuracy,
    voting_limit,
    weighted_accuracy,
)
from inferscale.scaling.theory import enumerated_vote

P = (0.5, 0.3, 0.2)
SIZES = (1, 2, 3, 5, 9, 17, 33, 65)
FIRST = (0.5, 0.5, 0.56, 0.6125, 0.698214, 0.797615, 0.896119, 0.965570)
SECOND = (0.3, 0.3, 0.276, 0.25758, 0.219306, 0.163475, 0.093918, 0.033609)


@pytest.mark.parametrize(("gold", "expected"), [(0, FIRST), (1, SECOND)])
def test_finite_majority_votes_have_the_known_values(gold, expected):
    for n, value in zip(SIZES, expected, strict=True):
        assert majority_accuracy(P, gold, n) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize("p", [(0.4, 0.35), (0.25, 0.25, 0.25, 0.25), (0.6, 0.1, 0.2), (0.0, 0.7, 0.3)])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_finite_majority_equals_enumeration(p, n):
    outcomes = [*range(len(p)), None]
    chance = [*p, max(0.0, 1 - sum(p))]
    for gold in range(len(p)):
        total = 0.0
        for draw in itertools.product(range(len(outcomes)), repeat=n):
            counts = [draw.count(index) for index in range(len(p))]
            if max(counts) > 0 and counts[gold] == max(counts):
                total += math.prod(chance[index] for index in draw) / counts.count(max(counts))
        assert majority_accuracy(p, gold, n) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("n", [30, 31, 80])
@pytest.mark.parametrize("p", [(0.45, 0.35, 0.2), (0.3, 0.3, 0.1), (0.02, 0.9, 0.08), (0.55, 0.45, 0.0)])
def test_votes_of_many_samples_equal_enumeration(p, n):
    for gold in range(3):
        expected = enumerated_vote([*p, max(0.0, 1 - sum(p))], (1, 1, 1), gold, n)
        assert majority_accuracy(p, gold, n) == pytest.approx(expected, abs=1e-12)


def test_votes_of_thousands_of_samples():
    for n in (3_000, 9_999, 10_000):
        wins = binom(n, 0.505)
        tie = wins.pmf(n / 2) / 2 if n % 2 == 0 else 0.0
        assert majority_accuracy((0.505, 0.495), 0, n) == pytest.approx(wins.sf(n // 2) + tie, abs=1e-11)
        assert majority_accuracy((0.05,) * 20, 3, n) == pytest.approx(1 / 20, abs=1e-11)
    for p in [(0.31, 0.3, 0.29), np.arange(8, 0, -1) / 36]:  # with abstentions and without: somebody wins
        assert sum(majority_accuracy(p, gold, 2_000) for gold in range(len(p))) == pytest.approx(1, abs=1e-11)


def test_the_limit_is_whether_the_mode_is_right():
    assert voting_limit([P, P, P], [0, 1, -1]).tolist() == [1.0, 0.0, 0.0]
    assert voting_limit([0.4, 0.4, 0.2], 1) == 0.5
    # Weights (.4, .9, .5) move the limit to the second answer: .20, .27, .10.
    assert voting_limit(P, 1, weights=(0.4, 0.9, 0.5)) == 1.0
    assert voting_limit(P, 0, weights=(0.4, 0.9, 0.5)) == 0.0


def test_a_right_answer_that_never_occurs_is_never_given():
    assert majority_accuracy(P, -1, 5) == 0
    assert type(majority_accuracy(P, 0, 5)) is float
    assert weighted_accuracy(P, (1, 1, 9), -1, 3) == (0, 0)
    assert weighted_accuracy(P, (1, 1, 9), -1, 3, np.random.default_rng(0)) == (0, 0)
    for call in (majority_accuracy, lambda p, gold, n: weighted_accuracy(p, (1, 1, 1), gold, n)):
        with pytest.raises(ValueError, match="gold=3: give the index of one of 3 answers"):
            call(P, 3, 2)
        with pytest.raises(ValueError, match="n=0"):
            call(P, 0, 0)


@pytest.mark.parametrize("gold", [0, 1])
@pytest.mark.parametrize("n", [9, 65, 129])
def test_the_distance_to_the_limit_stays_below_the_bound(gold, n):
    distance = abs(majority_accuracy(P, gold, n) - float(voting_limit(P, gold)))
    assert distance <= error_bound(P, n)
    assert error_bound(P, 65) == pytest.approx(0.8176, abs=1e-4)
    assert error_bound(P, 129) == pytest.approx(0.2273, abs=1e-4)


def test_a_wrong_mode_falls_to_zero_from_above():
    values = [majority_accuracy(P, 1, n) for n in SIZES]
    assert values[2:] == sorted(values[2:], reverse=True)


def test_the_exponential_rate():
    assert cramer_rate(0.5, 0.3) == pytest.approx(0.974597, abs=1e-6)
    errors = [1 - majority_accuracy(P, 0, n) for n in (65, 129, 257)]
    assert (errors[1] / errors[0]) ** (1 / 64) == pytest.approx(0.9703, abs=1e-4)
    assert (errors[2] / errors[1]) ** (1 / 128) == pytest.approx(0.9724, abs=1e-4)


def test_weighted_votes_by_monte_carlo():
    rng = np.random.default_rng(0)
    plain, error = weighted_accuracy(P, (1, 1, 1), 0, 33, rng, trials=20_000)
    assert abs(plain - 0.896119) < 4 * error
    moved, error = weighted_accuracy(P, (0.4, 0.9, 0.5), 1, 400, rng, trials=2_000)
    assert moved > 0.9


@pytest.mark.parametrize("n", [1, 2, 5, 9, 17])
def test_weighted_votes_exactly(n):
    for p in (P, (0.4, 0.35), (0.0, 0.7, 0.3)):
        for gold in range(len(p)):
            plain, error = weighted_accuracy(p, [1.0] * len(p), gold, n)
            assert (plain, error) == (pytest.approx(majority_accuracy(p, gold, n), abs=1e-12), 0.0)
    weights = (0.4, 0.9, 0.5)
    exact, _ = weighted_accuracy(P, weights, 1, n)
    drawn, error = weighted_accuracy(P, weights, 1, n, np.random.default_rng(0), trials=40_000)
    assert abs(exact - drawn) < 4 * error
    with pytest.raises(ValueError, match="too many to try one by one"):
        weighted_accuracy([0.1] * 10, [1.0] * 10, 0, 100)


def test_one_heavy_sample_outweighs_two_light_ones():
    # of two samples: bb, ab and ba have a sample of b, and weigh more than aa
    assert weighted_accuracy((0.6, 0.4), (0.4, 0.9), 1, 2)[0] == pytest.approx(1 - 0.36)
    assert weighted_accuracy((0.6, 0.4), (0.0, 0.0), 1, 2)[0] == 0.0


def test_the_limit_from_samples_holds_the_truth():
    rng = np.random.default_rng(1)
    table = rng.dirichlet((2.0, 1.0, 1.0), size=150)
    ids = [rng.choice(3, size=64, p=row).tolist() for row in table]
    estimate, low, high = estimate_voting_limit(ids, [0] * 150, rng, resamples=200)
    truth = float(np.mean(voting_limit(table, np.zeros(150, dtype=int))))
    assert low <= truth <= high
    assert low < estimate < high
    assert estimate_voting_limit([[-1, -1]], [0], rng, resamples=10)[0] == 0.0


@pytest.mark.parametrize(
    ("mix", "peak", "best", "value"),
    [
        ((0.4, 0.85, 0.4), 1.679, 3, 0.5869),
        ((0.5, 0.9, 0.45), 3.111, 5, 0.699157),
        ((0.6, 0.85, 0.3), 2.868, 3, 0.64995),
    ],
)
def test_more_calls_can_hurt(mix, peak, best, value):
    found, calls = optimal_calls(*mix)
    assert (found, calls) == (pytest.approx(peak, abs=1e-3), best)
    assert two_class_accuracy(best, *mix) == pytest.approx(value, abs=5e-5)
    curve = {k: two_class_accuracy(k, *mix) for k in range(1, 60, 2)}
    assert max(curve, key=curve.get) == best


def test_where_accuracy_falls_first_there_is_no_inner_maximum():
    values = [two_class_accuracy(k, 0.4, 0.7, 0.1) for k in (1, 3, 5)]
    assert values == pytest.approx([0.34, 0.3304, 0.3399], abs=5e-5)
    with pytest.raises(ValueError, match="an inner maximum needs"):
        optimal_calls(0.4, 0.7, 0.1)
    with pytest.raises(ValueError, match="odd number of calls"):
        two_class_accuracy(2, 0.4, 0.7, 0.1)


def test_bad_distributions_are_refused():
    for bad in ([-0.1, 0.5], [0.7, 0.7], []):
        with pytest.raises(ValueError, match="probabilities must be"):
            voting_limit(bad, 0)
    with pytest.raises(ValueError, match="at least one sample"):
        majority_accuracy(P, 0, 0)


def test_coverage_of_a_beta_mixture():
    expected = [0.166667, 0.490245, 0.736917, 0.867738, 0.933692]
    assert beta_coverage(0.3, 1.5, [1, 10, 100, 1000, 10_000]) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    ("file", "a", "b", "error"),
    [("game24_gpt4_cot_k100", -3.2937, -0.3316, 0.00075), ("game24_gpt4_io_k100", -2.5734, -0.1755, 0.00483)],
)
def test_the_recorded_samples_follow_a_power_law(shared_data, file, a, b, error):
    path = shared_data / "samples" / f"{file}.jsonl"
    correct = [json.loads(line)["correct"] for line in path.read_text().splitlines()]
    ks = sorted({round(10 ** (i / 20)) for i in range(41)})
    coverage = [float(np.mean(pass_at_k(correct, k))) for k in ks]
    fit = fit_coverage(ks, coverage)
    assert (fit.a, fit.b) == (pytest.approx(a, abs=5e-5), pytest.approx(b, abs=5e-5))
    assert fit.mean_absolute_error == pytest.approx(error, abs=5e-6)
    assert fit_coverage(ks, coverage, method="curve").mean_absolute_error <= fit.mean_absolute_error * 1.2


def test_a_fit_recovers_its_own_law_and_counts_what_it_leaves_out():
    ks = np.array([1, 2, 4, 8, 16])
    fit = fit_coverage([*ks, 32], [*np.exp(-1.33 * ks**-0.43), 1.0])
    assert (fit.a, fit.b, fit.left_out) == (pytest.approx(-1.33), pytest.approx(-0.43), 1)
    assert fit(4.0) == pytest.approx(math.exp(-1.33 * 4**-0.43))
    with pytest.raises(ValueError, match="two points"):
        fit_coverage([1, 2], [0.0, 0.5])
    with pytest.raises(ValueError, match="choose 'log' or 'curve'"):
        fit_coverage([1, 2], [0.1, 0.5], method="magic")


NAN = math.nan


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: voting_limit([0.5, NAN], 0), "probabilities must be"),
        (lambda: majority_accuracy([0.5, NAN], 0, 3), "probabilities must be"),
        (lambda: majority_accuracy([P, P], 0, 3), "a row of numbers"),
        (lambda: beta_coverage(0.0, 1.0, 4), "both must be above 0"),
        (lambda: beta_coverage(1.0, 1.0, [1, -1]), "not negative"),
        (lambda: voting_limit(P, 3), "gold=3"),
        (lambda: voting_limit(P, -2), "gold=-2"),
        (lambda: voting_limit(P, 0, weights=(1, 1)), "one for each of 3 answers"),
        (lambda: weighted_accuracy(P, (1, 1), 0, 3), "one for each of 3 answers"),
        (lambda: weighted_accuracy(P, (1, 1, -1), 0, 3), "at least 0"),
        (lambda: weighted_accuracy(P, (1, 1, NAN), 0, 3), "must be finite"),
        (lambda: weighted_accuracy(P, (1, 1, 1), 0, 3, np.random.default_rng(0), trials=1), "at least two draws"),
        (lambda: error_bound(P, 0), "n=0"),
        (lambda: cramer_rate(0.7, 0.6), "probabilities must be"),
        (lambda: two_class_accuracy(3, 0.5, 1.2, 0.4), "between 0 and 1"),
        (lambda: optimal_calls(0.5, 1.0, 0.4), "an inner maximum needs"),
        (lambda: optimal_calls(1, 0.9, 0.4), "an inner maximum needs"),
        (lambda: optimal_calls(0, 0.9, 0.4), "an inner maximum needs"),
        (lambda: fit_coverage([1, 2, 4], [0.2, NAN, 0.4]), "one coverage between 0 and 1"),
        (lambda: fit_coverage([0, 2, 4], [0.2, 0.3, 0.4]), "a number above 0"),
        (lambda: fit_coverage([2, 2], [0.2, 0.3]), "of different k; got 1"),
    ],
)
def test_what_is_no_probability_weight_or_point_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_where_no_weight_counts_the_bound_is_none():
    assert error_bound(P, 10, weights=(0, 0, 0)) == 1


def test_probabilities_within_rounding_of_one_can_be_drawn_from():
    p = (0.5, 0.25, 0.25 + 5e-10, 0.0)
    drawn, error = weighted_accuracy(p, [1.0] * 4, 0, 3, np.random.default_rng(0), trials=20_000)
    assert abs(drawn - majority_accuracy(p, 0, 3)) < 4 * error


def test_two_points_determine_the_power_law():
    fit = fit_coverage([1, 4], [0.2, 0.4], method="curve")
    assert fit([1, 4]) == pytest.approx([0.2, 0.4])


def test_a_limit_is_not_estimated_from_nothing_or_from_what_cannot_be_weighed():
    rng = np.random.default_rng(0)
    for ids, scores in (([], None), ([[0], []], None), ([[0, 1]], [[-1.0, -2.0]]), ([[0, 1]], [[1.0]])):
        with pytest.raises(ValueError, match=r"has none|at least 0|one score for each"):
            estimate_voting_limit(ids, [0] * len(ids), rng, scores, resamples=2)
