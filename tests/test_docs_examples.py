"""The examples of every docstring of the package run, each in a namespace of its own: what they need they import.

Texts of modules, classes, functions, constants and fields are found alike, in the source. What cannot run here, for it
needs a server, a GPU or weights, stands in a literal block below a sentence that begins with "Needs" and ends in "::".
"""

import ast
import doctest
import re
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "inferscale"
NEEDS = {"serve/__init__.py": "starlette", "viz/plots.py": "matplotlib", "evaluate/grading.py": "math_verify"}
"""Optional packages of the examples of a file."""
NOT_RUN = re.compile(r"^( *)Needs\b(?:.|\n(?!\n))*?::\n\n((?:\1 +[^\n]*\n|\s*\n)+)", re.MULTILINE)


def texts_of(path: Path) -> list[tuple[int, str]]:
    """The line and the text of each string that stands alone: a docstring, or what is below an assignment."""
    statements = (node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Expr))
    return [(node.lineno - 1, node.value) for node in statements if is_text(node)]


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def holding(mark: str) -> list[str]:
    return [name for name, path in SOURCES.items() if mark in path.read_text("utf-8")]


@pytest.mark.parametrize("name", holding(">>> "))
def test_examples_say_what_they_print(name, tmp_path, monkeypatch, pytestconfig):
    if (needed := NEEDS.get(name)) and find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)  # files that an example writes
    flags = sum(doctest.OPTIONFLAGS_BY_NAME[flag] for flag in pytestconfig.getini("doctest_optionflags"))
    runner, said = doctest.DocTestRunner(optionflags=flags), list[str]()
    where = str(SOURCES[name])
    for line, text in texts_of(SOURCES[name]):
        runner.run(
            doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, where, where, line), out=said.append
        )
    assert not said, "".join(said)


def test_examples_that_cannot_run_are_code():
    texts = [text for name in holding("Example:") for _, text in texts_of(SOURCES[name])]
    for _, block in (found for text in texts for found in NOT_RUN.findall(text)):
        ast.parse(dedent(block))
    for text in (text for text in texts if re.search(r"^ *Example:\n", text, re.MULTILINE)):
        assert ">>> " in text or NOT_RUN.search(text), f"an example that is neither run nor says what it needs:\n{text}"
