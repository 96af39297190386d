"""The wheel: what is in it, and that it works where nothing but the wheel is installed."""

import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import inferscale

REPOSITORY = Path(__file__).parent.parent.parent
MEGABYTE = 2**20


def run(*command, cwd=None):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_version_everywhere():
    """`inferscale.__version__` rules: the build reads it, and what people read agrees with it."""
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert pyproject["project"]["dynamic"] == ["version"]
    assert pyproject["tool"]["hatch"]["version"]["path"] == "src/inferscale/__init__.py"
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.M)[1] == inferscale.__version__
    date = re.search(r'^date-released: "(.+)"$', citation, re.M)[1]
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{inferscale.__version__}] - {date}\n" in changelog
    assert changelog.index("## [Unreleased]") < changelog.index(f"## [{inferscale.__version__}]")
    pages = [page.read_text("utf-8") for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"))]
    wheels = {name for page in pages for name in re.findall(r"inferscale-([\d.]+)-py3", page)}
    assert wheels == {inferscale.__version__}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Source distribution, and the wheel built from it."""
    pytest.importorskip("build", reason="building a release needs the extra: dev")
    pytest.importorskip("hatchling", reason="building without a network needs hatchling: it comes with the extra dev")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    [path] = dist.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_is_small_and_whole(wheel):
    assert wheel.stat().st_size < 15 * MEGABYTE
    names = set(zipfile.ZipFile(wheel).namelist())
    package = REPOSITORY / "src"
    files = [path for path in (package / "inferscale").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(package).as_posix() for path in files} <= names
    assert "inferscale/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"inferscale", f"inferscale-{inferscale.__version__}.dist-info"}


@pytest.mark.slow
def test_the_source_distribution_holds_what_a_fork_needs(dist):
    [path] = dist.glob("*.tar.gz")
    assert path.stat().st_size < 15 * MEGABYTE
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "constraints.txt"}
    assert wanted <= names
    assert {"tests/conftest.py", "docs/index.md", "examples/01_quickstart.py", "benchmarks/core.py"} <= names


@pytest.mark.slow
def test_the_metadata_is_what_an_index_accepts(dist):
    pytest.importorskip("twine", reason="checking a release needs the extra: dev")
    assert "FAILED" not in run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(wheel, tmp_path):
    """Its dependencies are those of this environment, by a path file; inferscale itself is the wheel's."""
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", wheel)
    where = run(python, "-c", "import inferscale; print(inferscale.__version__, inferscale.__file__)", cwd=tmp_path)
    assert where.split() == [inferscale.__version__, str(site / "inferscale" / "__init__.py")]
    solve = (
        "import inferscale as isc; p = isc.zoo.problems('test')[0]; "
        "g = isc.HFGenerator(*isc.zoo.load('policy-s'), max_new_tokens=100); "
        "print(isc.solve(p, isc.REBASE(4), g, reward_model=isc.CheckerReward()).answer == p.answer)"
    )
    assert run(python, "-W", "error", "-c", solve, cwd=tmp_path).strip() in ("True", "False")
    command = site.parents[2] / "bin" / "inferscale"
    assert "REBASE width=4" in run(command, "demo", "--problems", "2", "--width", "4", cwd=tmp_path)
    assert "policy-s" in run(command, "models", cwd=tmp_path)
