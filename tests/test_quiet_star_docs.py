"""The page's snippets run, and the example of the study does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "quiet_star.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_snippets_run(capsys):
    assert BLOCKS
    names = {"__name__": "quiet_star_page"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"quiet_star.md block {number}", "exec"), names)
    assert "torch.Size([5, 1])" in capsys.readouterr().out


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
