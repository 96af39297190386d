"""Writes the pages of the reference: one for each subject, and one for each public object.

An object stands under its shortest public name, once, with the subject of the module that exports it; below its
docstring come the pages whose code, which the tests run, uses it.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from textwrap import indent
from types import GenericAlias
from typing import Any, NamedTuple

import inferscale

DOCS = Path(__file__).parent
FOLDER = DOCS / "reference" / "api"
BLOCK = re.compile(r"^(?<!-->\n)```+(?:python|\{code-cell\})[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""Code that the tests run: what is not run, or not everywhere, has a comment above it."""

HOMES = (
    "isc|inferscale|answers|engine|evaluate|flops|functional|quiet_star|rewards|scaling|strategies|task|testing|viz|zoo"
)
NAME = re.compile(rf"(?<!def )(?<![\w.])(?:(?:{HOMES}|thinking)\.)*([A-Za-z_]\w*)(\(?)")


class Subject(NamedTuple):
    title: str
    modules: tuple[str, ...]
    more: tuple[str, ...] = ()
    """Names that no `__all__` has."""


SUBJECTS = {
    "solving": Subject("Solving", ("engine",)),
    "data": Subject("Problems, trees, costs", ("tree", "cost")),
    "strategies": Subject("Strategies", ("strategies",)),
    "votes": Subject("Votes", ("aggregators",)),
    "answers": Subject("Answers", ("answers", "thinking")),
    "generators": Subject("Generators", ("generators",)),
    "rewards": Subject(
        "Reward models",
        ("rewards",),
        tuple(f"rewards.labels.load_{name}" for name in ("big_bench_mistake", "prmbench", "rollout_trees")),
    ),
    "own": Subject("Parts of your own", ("base", "flow", "testing")),
    "evaluate": Subject("Evaluation", ("evaluate",), ("evaluate.inspect_ai.model_of", "evaluate.lm_eval.model_class")),
    "scaling": Subject("Scaling and planning", ("scaling",)),
    "functional": Subject("Arithmetic", ("functional",)),
    "flops": Subject("Counting FLOPs", ("flops",)),
    "quiet_star": Subject(
        "Quiet-STaR",
        ("quiet_star",),
        tuple(
            f"quiet_star.train.{name}"
            for name in ("start", "train", "drive", "task_batches", "aligned_batch", "span_batches")
        ),
    ),
    "viz": Subject("Pictures", ("viz",)),
    "zoo": Subject("Embedded models", ("zoo", "zoo.task")),
    "serve": Subject("Serving, and many machines", ("serve", "ray")),
}


def public_names(module: str) -> list[str]:
    """Names that `module`, below inferscale, exports: its `__all__`, or what inferscale takes from it."""
    found = import_module(f"inferscale.{module}")
    names = getattr(found, "__all__", None)
    return (
        list(names) if names is not None else [name for name, home in inferscale._HOME.items() if home == f".{module}"]
    )


def objects(subject: Subject) -> Iterator[tuple[str, Any]]:
    """The shortest public name of each object of a subject, and the object."""
    for module in subject.modules:
        for name in public_names(module):
            item = getattr(import_module(f"inferscale.{module}"), name)
            if not inspect.ismodule(item):
                top = name in inferscale.__all__ and getattr(inferscale, name) is item
                yield f"inferscale.{name}" if top else f"inferscale.{module}.{name}", item
    for full in subject.more:
        module, _, name = full.rpartition(".")
        yield f"inferscale.{full}", getattr(import_module(f"inferscale.{module}"), name)


def index() -> dict[str, dict[str, Any]]:
    """The objects of each subject by their names, every object once."""
    seen, found = set[int](), dict[str, dict[str, Any]]()
    for key, subject in SUBJECTS.items():
        found[key] = {}
        for name, item in objects(subject):
            if not callable(item) or id(item) not in seen:  # small values may be the same under two names
                seen.add(id(item))
                found[key][name] = item
    return found


def is_class(item: Any) -> bool:
    return inspect.isclass(item) and not isinstance(item, GenericAlias)


def text_of(name: str, item: Any) -> str:
    """The docstring of an object; that of a constant stands below its assignment, in the module that holds it."""
    if is_class(item) or inspect.isroutine(item):
        return inspect.getdoc(item) or ""
    from sphinx.pycode import ModuleAnalyzer

    short, found = name.rpartition(".")[2], ""
    for module in sorted(module for module in sys.modules if module.startswith("inferscale")):
        if short in vars(sys.modules[module]):
            found = found or "\n".join(ModuleAnalyzer.for_module(module).find_attr_docs().get(("", short), []))
    return found


def directive_of(name: str, item: Any) -> str:
    """What makes the page of an object."""
    if is_class(item):
        kind = "autoexception" if issubclass(item, Exception) else "autoclass"
        return f".. {kind}:: {name}\n   :members:\n   :exclude-members: search\n"
    if inspect.isroutine(item):
        return f".. autofunction:: {name}\n"
    return f".. py:data:: {name.rpartition('.')[2]}\n\n{indent(text_of(name, item), '   ')}\n"


def write() -> None:
    """A page for each subject, and one for each of its objects, which only that page links to."""
    FOLDER.mkdir(exist_ok=True)
    pages, used = dict[str, str](), uses()
    for key, names in index().items():
        title, lines = SUBJECTS[key].title, list[str]()
        for name, item in sorted(names.items(), key=lambda pair: pair[0].rpartition(".")[2].lower()):
            module, _, short = name.rpartition(".")
            first = " ".join(text_of(name, item).strip().split("\n\n")[0].split())
            same = sum(other.lower() == name.lower() for other in names)  # on some file systems one file
            file = f"{name}_function" if same > 1 and name.islower() else name
            lines.append(f":py:obj:`{short} <{name}>`\n   {first}\n")
            runs = example(used[short]) if short in used else ""
            head = f":orphan:\n\n{short}\n{'=' * len(short)}\n\n.. currentmodule:: {module}\n\n"
            pages[file] = f"{head}{directive_of(name, item)}\n{runs}All of this subject: :doc:`{key}`.\n"
        pages[key] = f"{title}\n{'=' * len(title)}\n\n" + "\n".join(lines)
    for file in FOLDER.glob("*.rst"):
        if file.stem not in pages:
            file.unlink()
    for name, text in pages.items():
        page = FOLDER / f"{name}.rst"
        if not page.exists() or page.read_text(encoding="utf-8") != text:  # pages that stay are not built again
            page.write_text(text, encoding="utf-8")


def example(blocks: list["Use"]) -> str:
    """The shortest block that uses an object, and the pages that run it and others."""
    shown = min(blocks, key=lambda use: len(use.code))
    pages = list(dict.fromkeys([shown.page, *(use.page for use in blocks)]))[:4]
    code = f".. code-block:: python\n\n{indent(shown.code, '   ')}\n\n"
    return f"For example\n\n{code}out of " + ", ".join(f":doc:`/{page}`" for page in pages) + ". "


class Use(NamedTuple):
    page: str
    code: str


def uses() -> dict[str, list[Use]]:
    """For each name as code writes it, the blocks that use it: pages in the order of the shelves, then notebooks."""
    found = dict[str, list[Use]]()
    pages = [
        page for shelf in ("howto", "tutorials", "reference", "project") for page in sorted((DOCS / shelf).glob("*.md"))
    ]
    blocks = {
        page.relative_to(DOCS).with_suffix("").as_posix(): BLOCK.findall(page.read_text(encoding="utf-8"))
        for page in pages
    }
    for notebook in sorted((DOCS / "tutorials").glob("*.ipynb")):
        script = (DOCS.parent / "examples" / f"{notebook.stem}.py").read_text(encoding="utf-8")
        cells = script.split("# %%")
        blocks[f"tutorials/{notebook.stem}"] = [cell for cell in cells if not cell.startswith(" [markdown]")]
    for page, codes in blocks.items():
        for code in codes:
            for name, called in set(NAME.findall(re.sub(r"#.*", "", code))):
                if called or name[0].isupper():  # a variable may be called like a function
                    found.setdefault(name, []).append(Use(page, code.strip()))
    return found
