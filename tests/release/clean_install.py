"""Searches with the wheel alone: in an environment of its own for each Python, outside of the checkout.

Run with ``python tests/release/clean_install.py dist/*.whl``, or `make release-check`. Each Python that is found gets
an empty environment, the wheel with what it depends on from the package index, and then the oldest transformers; in
both a program and the command line solve a problem with the embedded models.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
OLDEST = "5.0.0"
PROGRAM = """
import sys, inferscale as isc
assert not {"torch", "transformers"} & set(sys.modules), "importing inferscale imports torch"
import transformers
problem = isc.zoo.problems("test")[0]
generator = isc.HFGenerator(*isc.zoo.load("policy-s"), max_new_tokens=100)
reward = isc.HFProcessRewardModel(*isc.zoo.load("prm-xs"), good_token="<good>", bad_token="<bad>", reduction="min")
result = isc.solve(problem, isc.REBASE(8), generator, reward_model=reward)
assert result.cost.flops > 0
assert isc.SearchResult.load(result.save("result.json")).answer == result.answer
print(sys.version.split()[0], transformers.__version__, result.answer, isc.__version__, isc.__file__)
"""


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command, which must end well. Nothing of the caller's Python path gets in."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))[:200]}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def checked(wheel: Path, python: str, folder: Path) -> list[str]:
    """Rows of the table: this Python with the newest and with the oldest transformers."""
    environment = folder / Path(python).name
    if not environment.is_dir():
        run(python, "-m", "venv", environment, cwd=folder)
    own = environment / "bin" / "python"
    constraints = ["-c", REPOSITORY / "constraints.txt"]
    run(own, "-m", "pip", "install", "--quiet", *constraints, wheel, cwd=folder)
    rows = []
    for wanted in ("transformers", f"transformers=={OLDEST}"):
        run(own, "-m", "pip", "install", "--quiet", "--upgrade", *constraints, wanted, cwd=folder)
        version, transformers, answer, ours, where = run(own, "-c", PROGRAM, cwd=folder).split()
        assert Path(where).is_relative_to(environment), where
        assert ours == wheel.name.split("-")[1]
        command = environment / "bin" / "inferscale"
        assert "policy-s" in run(command, "models", cwd=folder)
        models = ("--model", "policy-xs", "--reward", "prm-xs")
        assert run(command, "solve", "2 + 3 = ?", *models, "--strategy", "rebase:4", cwd=folder).strip()
        rows.append(f"| {version} | {transformers} | {answer} |")
    return rows


def main() -> None:
    """Prints the size of the wheel and a table of what it was tried with."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", action="append", help="by default those of the classifiers that are here")
    parser.add_argument("--folder", type=Path, help="where environments are made, or are already")
    options = parser.parse_args()
    wheel, here = options.wheel.resolve(), [f"python{version}" for version in versions]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        files = zipfile.ZipFile(wheel).infolist()
        weights = sum(file.compress_size for file in files if file.filename.endswith(".safetensors"))
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {weights / 1e6:.1f} MB of them the embedded models")
        print("\n| Python | transformers | answer |\n|---|---|---|")
        for python in options.python or [name for name in here if shutil.which(name)]:
            print("\n".join(checked(wheel, python, folder.resolve())), flush=True)


if __name__ == "__main__":
    main()
