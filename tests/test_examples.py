"""The examples are short, and each runs on the embedded models, without a network or a warning."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def test_they_are_numbered_without_a_gap():
    assert [path.name[:3] for path in EXAMPLES] == [f"{number:02}_" for number in range(1, len(EXAMPLES) + 1)]
    assert len(EXAMPLES) == 6


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_runs(path, tmp_path):
    command = [sys.executable, "-W", "error", path]
    environment = {**os.environ, "RAY_worker_niceness": "0"}  # by default Ray's workers yield to all other tests
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=590, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
