"""Character n-grams and cosines against counting by hand."""

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale.functional import cosine_similarities, likeness_clusters, ngram_embeddings


def counted(first, second, max_length=4):
    """The cosine of n-gram counts, averaged over the lengths that either text has (geometrically, if they differ)."""
    texts = [" ".join(text.casefold().split()) for text in (first, second)]
    total, known = 0.0, [0, 0]
    for n in range(1, max_length + 1):
        one, two = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in texts)
        known = [k + bool(grams) for k, grams in zip(known, (one, two), strict=True)]
        if one and two:
            norm = math.sqrt(sum(c * c for c in one.values()) * sum(c * c for c in two.values()))
            total += sum(count * two[gram] for gram, count in one.items()) / norm
    return total / math.sqrt(known[0] * known[1]) if all(known) else 0.0


def likeness(*texts, **options):
    return cosine_similarities(ngram_embeddings(texts, **options))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("the cat sat", "the cat sat"), ("the cat sat", "a cat sat down"), ("abab", "baba"), ("a", "abcd"),
        ("ab", "cd"),
        ("Grüße aus Köln", "Gruß aus Bonn"), ("日本語の文", "日本の文"), ("", "a"), ("  ", "\n"), ("\ud800a", "a"),
    ],
)  # fmt: skip
def test_cosines_are_those_of_counted_ngrams(first, second):
    assert likeness(first, second, bits=18)[0, 1] == pytest.approx(counted(first, second), abs=1e-11)


def test_by_hand():
    # "aab" has a twice and b once, aa and ab; "ab" has a and b, ab: (3 / sqrt(5 * 2) + 1 / sqrt(2)) / 2
    assert likeness("aab", "ab", max_length=2)[0, 1] == pytest.approx((3 / 10**0.5 + 1 / 2**0.5) / 2)
    assert likeness("Two  words\n", "two words")[0, 1] == 1.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_cosines_are_symmetric_and_one_with_themselves(texts):
    alike = likeness(*texts)
    assert (alike == alike.T).all()
    assert ((alike >= 0) & (alike <= 1)).all()
    for row, text in enumerate(texts):
        assert alike[row, row] == (1.0 if text.split() else 0.0)


def test_vectors_are_the_same_in_another_process():
    code = "from inferscale.functional import ngram_embeddings as e; print(e(['The cat.']).nonzero()[1].tolist())"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.strip() == str(ngram_embeddings(["The cat."]).nonzero()[1].tolist())


def test_cosines_of_any_kind_of_array():
    rows = [[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0], [0.0, 0.0]]
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    for given_as in (rows, np.asarray(rows, dtype=np.float32), torch.tensor(rows), torch.tensor(rows).bfloat16()):
        found = cosine_similarities(given_as)
        assert found.tolist() == expected
        assert type(found) is (torch.Tensor if isinstance(given_as, torch.Tensor) else np.ndarray)
    assert cosine_similarities(np.asarray([rows, rows])).shape == (2, 4, 4)
    assert cosine_similarities([[1e-300, 0.0], [1e300, 1e300]])[0, 1] == pytest.approx(0.5**0.5)


def test_vectors_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="finite"):
        cosine_similarities([[math.inf]])
    with pytest.raises(ValueError, match=r"\[\.\.\., N, D\]"):
        cosine_similarities([1.0])


def test_clusters_join_by_the_mean_distance_and_are_numbered_as_they_come():
    # 0 and 2 are at distance 0.1, 3 is at 0.2 and 0.4 of them: 0.3 on average.
    cosines = np.eye(4)
    for first, second, value in [(0, 2, 0.9), (0, 3, 0.8), (2, 3, 0.6)]:
        cosines[first, second] = cosines[second, first] = value
    assert likeness_clusters(cosines, 0.05).tolist() == [0, 1, 2, 3]
    assert likeness_clusters(cosines, 0.1 + 1e-9).tolist() == [0, 1, 0, 2]
    assert likeness_clusters(cosines, 0.29).tolist() == [0, 1, 0, 2]
    assert likeness_clusters(cosines, 0.31).tolist() == [0, 1, 0, 0]
    assert likeness_clusters(cosines, 1.0).tolist() == [0, 0, 0, 0]
    assert likeness_clusters(np.ones((3, 3)), 0.0).tolist() == [0, 0, 0]
    assert likeness_clusters([[1.0]], 0.1).tolist() == [0]
    with pytest.raises(ValueError, match=r"shape \[N, N\]"):
        likeness_clusters([0.5, 0.5], 0.1)
