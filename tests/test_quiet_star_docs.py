"""The example of the study runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", [["--preset", "published"], [], ["--ablation", "when"], ["--ablation", "reward"]])
def test_the_study_runs(options):
    script = REPOSITORY / "examples" / "03_quiet_star_vs_rebase.py"
    few = ["--problems", "2", "--train-steps", "1", "--widths", "3", "--max-new-tokens", "60"]
    found = subprocess.run([sys.executable, script, *few, *options], capture_output=True, text=True, cwd=REPOSITORY)
    assert found.returncode == 0, found.stderr
    rows = [line for line in found.stdout.splitlines() if "depth 1:" in line]
    assert len(rows) >= 3
    if "published" in options:  # a digit in the last sentences ends a path: trees of depth 1
        assert all(re.search(r"depth 1: (\d+)/\1$", line) for line in rows if line.startswith("REBASE"))
