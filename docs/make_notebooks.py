"""Makes the tutorials of the scripts in examples, executed in a real kernel.

python docs/make_notebooks.py [NAME ...]
"""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

SCRIPTS = Path(__file__).parent.parent / "examples"
NOTEBOOKS = Path(__file__).parent / "tutorials"
ALONE = {"05_ray"}
"""Scripts without a notebook: it would start a cluster in a kernel."""
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def executed(script: Path) -> nbformat.NotebookNode:
    """The notebook of `script` with its outputs, without what differs from run to run."""
    notebook = jupytext.read(script)
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False).execute()
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        if cell.cell_type == "code":  # progress bars of loading and the like
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})]
    return notebook


if __name__ == "__main__":
    names = sys.argv[1:] or sorted({path.stem for path in SCRIPTS.glob("*.py")} - ALONE)
    for name in names:
        print(name)
        nbformat.write(executed(SCRIPTS / f"{name}.py"), NOTEBOOKS / f"{name}.ipynb")
