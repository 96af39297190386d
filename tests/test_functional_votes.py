"""`majority_vote`: vectors, a brute-force counter, exact ties."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale.functional import majority_vote

KINDS = {
    "list": lambda x: x,
    "numpy": np.asarray,
    "batch": lambda x: np.asarray([x, x]),
    "torch": lambda x: torch.as_tensor(np.asarray(x)),
    "torch batch": lambda x: torch.as_tensor(np.asarray([x, x])),
}
if torch.cuda.is_available():
    KINDS["cuda"] = lambda x: torch.as_tensor(np.asarray(x), device="cuda")


def votes(kind, ids, weights=None, scores=None):
    """The winners by kind, which must be one number."""
    make = KINDS[kind]
    given = [None if values is None else make(values) for values in (weights, scores)]
    winner = majority_vote(make(ids), *given)
    assert "int64" in str(winner.dtype)
    winners = set(np.ravel(winner.tolist()).tolist())
    assert len(winners) == 1
    return winners.pop()


@pytest.mark.parametrize("kind", KINDS)
def test_known_votes(kind):
    assert votes(kind, [0, 1, 1, 0, -1, -1, -1]) == 0  # a tie of 2, the earliest wins, abstentions lose
    assert votes(kind, [-1, -1, -1, 5, 5]) == 5
    assert votes(kind, [-1, -1]) == -1
    assert votes(kind, [7]) == 7
    assert votes(kind, [0, 1, 1], [0.6, 0.3, 0.35]) == 1
    assert votes(kind, [0, 1, 1], [0.7, 0.3, 0.35]) == 0
    assert votes(kind, [3, 2, 2, 3], scores=[0.1, 0.2, 0.3, 0.1]) == 2  # a tie goes to the greater sum of scores
    assert votes(kind, [3, 2, 2, 3], scores=[-0.1, -0.2, -0.3, -0.1]) == 3
    assert votes(kind, [-1, 2], [9.0, 0.0]) == 2  # no weight is still a vote
    assert votes(kind, [4, 9], [0.0, 0.0]) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_totals_are_exact_so_ties_do_not_depend_on_the_order(kind):
    assert votes(kind, [0, 1, 1, 1], [0.6, 0.1, 0.2, 0.3]) == 0  # 0.1 + 0.2 + 0.3 is 0.6 rounded once
    assert votes(kind, [1, 1, 1, 0], [0.3, 0.2, 0.1, 0.6]) == 1
    assert votes(kind, [1, 1, 1, 0], [0.1, 0.2, 0.3, 0.6]) == 1
    tiny = 2.0**-60
    assert votes(kind, [0, 1, 1, 1], [1.0, 1.0, tiny, tiny]) == 0  # equal once rounded
    assert votes(kind, [0, 1, *[1] * 256], [1.0, 1.0, *[tiny] * 256]) == 1  # a naive sum would lose every addend


rows = st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 8), st.integers(-4, 4)), min_size=1, max_size=12)


def expected_winner(ids, weights, scores):
    """The rule, counted in fractions."""
    answers = [answer for answer in dict.fromkeys(ids) if answer >= 0]

    def total(values, answer):
        return float(sum(Fraction(value) for i, value in zip(ids, values, strict=True) if i == answer))

    return max(answers, key=lambda answer: (total(weights, answer), total(scores, answer)), default=-1)


@given(rows, st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_votes_are_those_of_a_counter_in_fractions(row, weighted, scored):
    ids = [answer for answer, _, _ in row]
    weights = [weight / 10 for _, weight, _ in row]
    scores = [score / 10 for _, _, score in row]
    wanted = expected_winner(ids, weights if weighted else [1] * len(row), scores if scored else [0] * len(row))
    for kind in KINDS:
        assert votes(kind, ids, weights if weighted else None, scores if scored else None) == wanted


@given(rows, st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_shuffle_changes_the_winner_only_among_equals(row, random):
    ids = [answer for answer, _, _ in row]
    counts = {answer: ids.count(answer) for answer in ids if answer >= 0}
    winner = majority_vote(random.sample(ids, len(ids)))
    assert winner == -1 if not counts else counts[int(winner)] == max(counts.values())


def test_a_large_batch_is_the_rows_one_by_one():
    rng = np.random.default_rng(0)
    ids = rng.integers(-1, 6, size=(7, 11, 20))
    weights = rng.integers(0, 4, size=ids.shape) / 8
    together = majority_vote(ids, weights)
    assert together.shape == (7, 11)
    for place in np.ndindex(7, 11):
        assert together[place] == majority_vote(ids[place], weights[place])
    assert majority_vote(torch.tensor(ids), torch.tensor(weights)).tolist() == together.tolist()
    assert majority_vote(np.zeros((0, 3), dtype=int)).shape == (0,)


def test_errors_say_what_was_wrong():
    with pytest.raises(ValueError, match="empty"):
        majority_vote(np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="whole numbers"):
        majority_vote([0.5, 1.0])
    with pytest.raises(ValueError, match="whole numbers"):
        majority_vote(["a", "b"])
    with pytest.raises(ValueError, match="weights must have the shape"):
        majority_vote([0, 1], [1.0])
    with pytest.raises(ValueError, match="negative"):
        majority_vote([0, 1], [1.0, -0.4])
    with pytest.raises(ValueError, match="weights must be finite"):
        majority_vote([0, 1], [1.0, math.nan])
    with pytest.raises(ValueError, match="scores must be finite"):
        majority_vote([0, 1], scores=[1.0, math.inf])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_sums_beyond_float64_are_refused(kind):
    for ids, values in (([0, 1, 1], [1e308] * 3), ([[0, 1, 1]], [[1e308] * 3])):
        for arguments in ({"scores": KINDS[kind](values)}, {"weights": KINDS[kind](values)}):
            with pytest.raises(ValueError, match="more than float64 holds"):
                majority_vote(KINDS[kind](ids), **arguments)


def test_unsigned_ids_that_would_become_abstentions_are_refused():
    ids = np.asarray([2**63 - 1, 2**63 - 1, 4], dtype=np.uint64)
    assert int(majority_vote(ids)) == 2**63 - 1
    with pytest.raises(ValueError, match="at most 2\\*\\*63 - 1"):
        majority_vote(ids + np.uint64(1))
