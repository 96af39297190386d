"""The fault matrix in its small form; `python -m benchmarks.faults` is the whole one."""

import os

import pytest

from benchmarks.faults import BORNE, MATRIX, counted

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "geteuid"), reason="limits of files and users are those of Unix"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize("fault", [fault for fault, (_, _, few) in MATRIX.items() if few])
def test_nothing_is_lost_changed_in_silence_or_unclear(fault):
    found = counted(fault, small=True, seed=1)
    assert found.total() >= MATRIX[fault][2]
    assert set(found) <= {BORNE}, f"python -m benchmarks.faults --small: {fault}: {dict(found)}"
