"""Other engines, each in an environment of its own that a variable names: ``--beside vllm``.

``INFERSCALE_VLLM_PYTHON`` names the Python of an environment in which ``vllm`` is installed. The same random weights,
prompts and parents are used.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from .work import Work

RUNNERS = {"vllm": ("INFERSCALE_VLLM_PYTHON", "run_vllm.py")}


def seconds(name: str, model: Any, work: Work) -> float:
    """CPU seconds of the work in another engine, its start left out; the work is done once before."""
    variable, script = RUNNERS[name]
    python = os.environ.get(variable)
    if not python:
        raise SystemExit(f"--beside {name}: set {variable} to the Python of an environment that has it")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        task = {
            "model": folder,
            "prompt": work.prompt_ids(),
            "rows": work.rows,
            "step": work.step,
            "parents": [work.parents(turn) for turn in range(work.steps)],
        }
        run = subprocess.run(
            [python, str(Path(__file__).with_name(script))],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode:
        raise SystemExit(f"{name} failed:\n{run.stderr[-2000:]}")
    return float(json.loads(run.stdout.splitlines()[-1])["seconds"])
