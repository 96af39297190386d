"""Every relative link, anchor and picture of README, docs and notebooks leads somewhere; every extra is documented."""

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(path for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb") and "_build" not in path.parts),
]
LINK = re.compile(r"\]\(([^()\s]+)\)")
NAMED = re.compile(
    r"`((?:tests|examples|benchmarks|studies|docs|src)/[\w./-]+)`|python ((?:examples|docs)/[\w./-]+\.py)"
)
SUBJECTS = runpy.run_path(str(DOCS / "reference_pages.py"))["SUBJECTS"]
MODULE = re.compile(r"python -m ((?:benchmarks|studies|inferscale)[\w.]*)")


def text_of(page):
    if page.suffix != ".ipynb":
        text = page.read_text(encoding="utf-8")
        if page.name == "CHANGELOG.md":  # what was released stays as it was told, with the names of its day
            return re.match(r".*?(?=^## \[\d)", text, flags=re.DOTALL | re.MULTILINE)[0]
        return text
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def prose_of(page):
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def anchors_of(page):
    """The anchors of a page's headings, as GitHub and MyST name them."""
    titles = re.findall(r"^#{1,6} (.+)$", prose_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def name_of(page):
    return page.relative_to(REPOSITORY).as_posix()


def test_there_are_pages_and_links():
    assert len(PAGES) > 20
    assert sum(len(LINK.findall(text_of(page))) for page in PAGES) > 30


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose_of(page)):
        if not re.match(r"https?://|mailto:", link):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if target.parent == DOCS / "reference" / "api":  # written by docs/reference_pages.py
                assert path.removeprefix("api/").removesuffix(".rst") in SUBJECTS, f"{name_of(page)}: {link}"
                continue
            assert target.exists(), f"{name_of(page)}: {link}"
            assert not anchor or anchor in anchors_of(target), f"{name_of(page)}: {link} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_commands_that_are_named_exist(page):
    for found in NAMED.finditer(text_of(page)):
        name = found[1] or found[2]
        assert (REPOSITORY / name).exists(), f"{name_of(page)}: {name}"
    for module in MODULE.findall(text_of(page)):
        path = (REPOSITORY / "src" if module.startswith("inferscale") else REPOSITORY) / module.replace(".", "/")
        ways = (path.with_suffix(".py"), path / "__main__.py")
        assert any(way.is_file() for way in ways), f"{name_of(page)}: python -m {module}"


def test_every_page_is_in_the_table_of_contents():
    pages = {page.with_suffix("") for page in PAGES if DOCS in page.parents}
    listed = [
        page.parent / name
        for page in PAGES
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        for name in re.findall(r"^([\w/-]+)$", tree, flags=re.MULTILINE)
    ]
    written = {DOCS / "reference" / "api" / name for name in SUBJECTS}
    assert sorted(listed) == sorted((pages | written) - {DOCS / "index"})


def test_every_extra_is_documented():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = re.findall(r"^\| `([\w-]+)` \|", (DOCS / "install.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(table) == sorted(project["optional-dependencies"])


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:`|^)make ([\w-]+)", text_of(page), flags=re.MULTILINE))
        assert named <= targets, f"{name_of(page)}: {named - targets}"


def test_every_step_of_ci_is_a_make_target_and_the_workflow_takes_them_all():
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    steps = re.findall(r"^make (\S+)$", (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {"lint", "test", "test-slow", "docs", "demo"} <= set(steps) <= targets
    workflow = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"- run: (.+)", workflow) == [".ci/run"]
