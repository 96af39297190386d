"""Who may import whom, and what the public face promises."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import inferscale

PACKAGE = Path(inferscale.__file__).parent
CORE = {"tree", "thinking", "cost", "identity", "_compat"}  # and what imports nothing of ours
ROOMS: dict[str, set[str]] = {
    "_compat": set(),
    "thinking": set(),
    "answers": {"thinking"},
    "tree": {"thinking", "answers"},
    "cost": set(),
    "identity": {"_compat"},
    "functional": set(),
    "flow": CORE,
    "base": {*CORE, "flow", "functional"},
    "strategies": {*CORE, "flow", "base", "functional", "answers"},
    "aggregators": {*CORE, "flow", "base", "functional", "answers"},
    "viz": {*CORE, "answers", "aggregators"},
    "engine": {*CORE, "flow", "base", "functional", "answers", "aggregators", "strategies", "viz"},
    "testing": {*CORE, "flow", "base", "functional", "engine", "viz"},
    "scaling": {
        *CORE,
        *{"base", "functional", "answers", "aggregators", "engine", "strategies", "evaluate", "viz"},
        *{"flow", "flops"},
    },
    "plots": {*CORE, "base", "functional", "answers", "aggregators", "engine", "scaling", "viz"},
    "zoo": {*CORE, "functional", "runtime"},
    "flops": {*CORE, "base"},
    "_http": CORE,
    "runtime": {*CORE, "flow", "base", "functional", "flops"},
    "generators": {*CORE, "flow", "base", "flops", "functional", "runtime", "_http"},
    "rewards": {*CORE, "flow", "base", "flops", "functional", "zoo", "answers", "runtime", "_http"},
    "quiet_star": {*CORE, "flow", "base", "flops", "zoo", "runtime"},
    "evaluate": {
        *CORE,
        *{"flow", "base", "functional", "answers", "aggregators", "engine"},
        *{"zoo", "strategies", "generators", "rewards", "quiet_star", "flops"},
    },
    "serve": {*CORE, "flow", "base", "answers", "engine", "evaluate", "viz"},
    "ray": {*CORE, "base", "answers", "engine"},
}
FREE = {"cli", "__main__", "__init__"}
TORCH = {"flops", "generators", "rewards", "zoo", "quiet_star", "functional", "runtime"}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    if parts == ("viz", "plots.py"):  # looks at curves and results, which themselves show trees
        return "plots"
    return parts[0].removesuffix(".py")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> set[str]:
    """Rooms that a file imports at any level, and foreign top-level packages."""
    package = ["inferscale", *path.relative_to(PACKAGE).parent.parts]
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module] if module != "inferscale" else [f"inferscale.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {".".join(name.split(".")[:2]) if name.startswith("inferscale.") else name for name in names}
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if room_of(p) not in FREE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_they_may(path):
    room = room_of(path)
    assert room in ROOMS, f"{room} is a new room: say in ROOMS what it may import"
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("inferscale.")}
    assert ours - {room} <= ROOMS[room]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_model_rooms_import_torch(path):
    foreign = {name.split(".")[0] for name in imports(path)}
    if room_of(path) in CORE:
        assert foreign <= set(sys.stdlib_module_names) | {"inferscale"}
    if room_of(path) not in TORCH:
        assert not foreign & {"torch", "transformers"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_executes_model_output(path):
    nodes = ast.walk(parsed(path))
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__", "sympify", "parse_expr"}
    foreign = {name.split(".")[0] for name in imports(path)}
    assert not foreign & {"pickle", "dill", "cloudpickle", "sympy", "marshal", "shelve"}


REPOSITORY = Path(__file__).parent.parent
DRAWN = [
    path
    for room in ("studies", "benchmarks", "examples", "docs/notebooks")
    for path in REPOSITORY.glob(f"{room}/**/*.py")
]
COLOURED = {"c", "color", "colors", "ecolor", "edgecolor", "edgecolors", "facecolor", "cmap", "colormap", "palette"}


def own_colours(source):
    """What a script says of colours or legends: `viz` has the palette, and names lines at their ends."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"tab:\w+|C\d|[bgrcmy](--?|:|-\.)[.os^vDx*+]?", node.value):
                yield node.value
            if (hexes := re.fullmatch("#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", node.value)) is not None:
                levels = [int(pair, 16) for pair in hexes.groups()]
                if max(levels) - min(levels) > 8:  # greys are no colours
                    yield node.value
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("legend", "set_prop_cycle"):
                yield node.func.attr
            for keyword in node.keywords:
                if keyword.arg in COLOURED and any(
                    isinstance(part, ast.Constant) and isinstance(part.value, str) for part in ast.walk(keyword.value)
                ):
                    yield keyword.arg


def test_no_study_or_benchmark_sets_its_own_colours():
    assert len(DRAWN) > 30
    assert {str(path): found for path in DRAWN if (found := [*own_colours(path.read_text(encoding="utf-8"))])} == {}
    told = "axis.plot(x, y, 'r-')\naxis.plot(x, y, color='green')\naxis.scatter(x, y, c='#ff0000')\naxis.legend()"
    assert sorted(own_colours(told)) == ["#ff0000", "c", "color", "legend", "r-"]


def test_importing_inferscale_does_not_import_torch():
    code = "import inferscale, sys; assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_core_runs_without_torch():
    code = (
        "import sys; import inferscale as i; from inferscale.testing import ToyGenerator, ToyReward\n"
        "r = i.solve('How many?', i.REBASE(4), ToyGenerator(), reward_model=ToyReward())\n"
        "even = i.RewardFunction(lambda nodes: [0.0] * len(nodes))\n"
        "i.solve('How many?', i.REBASE(4), ToyGenerator(), reward_model=even)\n"
        "assert r.answer; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_are_sorted_and_there():
    assert list(inferscale.__all__) == sorted(inferscale.__all__)
    for name in inferscale.__all__:
        assert getattr(inferscale, name) is not None
    assert dir(inferscale) == inferscale.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = inferscale.nothing
