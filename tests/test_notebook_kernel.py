"""Calls work in a notebook, where an event loop is running already, and results show themselves there."""

import re
from xml.etree import ElementTree

import pytest

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

SETUP = """
import asyncio
import inferscale as isc
from inferscale.testing import ToyGenerator, ToyReward

class Concurrent(ToyGenerator):
    concurrent = True

class ConcurrentReward(ToyReward):
    concurrent = True

problems = [isc.Problem(f"How many, {i}?", answer="1") for i in range(3)]
assert asyncio.get_running_loop().is_running()
"""
SEARCHES = """
results = isc.solve_batch(problems, isc.REBASE(6), ToyGenerator(), reward_model=ToyReward(), progress=True)
in_threads = isc.solve_batch(problems, isc.REBASE(6), Concurrent(), reward_model=ConcurrentReward())
one_by_one = list(isc.stream(problems, isc.REBASE(6), ToyGenerator(), reward_model=ToyReward()))
assert [r.answer for r in results] == [r.answer for r in in_threads] == [r.answer for r in one_by_one]
"""
IN_A_TASK = """
async def search():
    return isc.solve("How many?", isc.REBASE(4), ToyGenerator(), reward_model=ToyReward())

(await search()).answer == isc.solve("How many?", isc.REBASE(4), ToyGenerator(), reward_model=ToyReward()).answer
"""
MODEL = """
generator = isc.HFGenerator(*isc.zoo.load("policy-xs"), max_new_tokens=32)
isc.solve(isc.zoo.problems("dev")[0], isc.RepeatedSampling(2), generator)
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The cells of a notebook after a real kernel has run them."""
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, SEARCHES, "results[0]", IN_A_TASK, MODEL)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    return notebook.cells


def shown(cell, kind):
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


@pytest.mark.slow
def test_a_result_shows_its_page(executed):
    [page] = shown(executed[2], "text/html")
    root = ElementTree.fromstring(page)
    assert root.get("class") == "inferscale"
    assert root.find("details/summary").text.startswith("Search tree: ")
    assert re.search(r"<svg [^>]*role=\"img\"", page)
    assert "How many, 0?" in page
    assert shown(executed[2], "text/plain")[0].startswith("SearchResult(")


@pytest.mark.slow
def test_searches_run_in_a_running_loop_and_in_a_task_of_it(executed):
    assert shown(executed[3], "text/plain") == ["True"]
    assert not [output for cell in executed for output in cell.outputs if output.output_type == "error"]


@pytest.mark.slow
def test_a_model_of_transformers_runs_there_too(executed):
    [page] = shown(executed[4], "text/html")
    assert ElementTree.fromstring(page).find("p").get("class") == "answer"


@pytest.mark.slow
def test_progress_is_shown_there(executed):
    said = str([output for output in executed[1].outputs if output.output_type in ("stream", "display_data")])
    assert "3/3" in said or "application/vnd.jupyter.widget-view+json" in said
