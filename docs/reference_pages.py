"""Writes the pages of the reference: one for each subject, and one for each public object.

An object stands under its shortest public name, once, with the subject of the module that exports it. Below its
docstring, which ends with an example, come the pages whose code, which the tests run, uses it.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from textwrap import indent
from types import GenericAlias
from typing import Any, NamedTuple

import inferscale

DOCS = Path(__file__).parent
FOLDER = DOCS / "reference" / "api"
BLOCK = re.compile(r"^(?<!-->\n)```+(?:python|\{code-cell\})[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""Code that the tests run: what is not run, or not everywhere, has a comment above it."""


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
    "own": Subject(
        "Parts of your own",
        ("base", "flow", "testing"),
        ("base.Sampling", "base.Ticket", "base.ContextLengthError", "flow.Race"),
    ),
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
    return inspect.isclass(item) and not isinstance(item, GenericAlias) and item is not Any  # which an alias may be


def text_of(name: str, item: Any) -> str:
    """The docstring of an object; that of a constant stands below its assignment, in the module that holds it."""
    if is_class(item) or inspect.isroutine(item):
        return inspect.getdoc(item) or ""
    short = name.rpartition(".")[2]
    modules = sorted(module for module in sys.modules if module.startswith("inferscale"))
    texts = (constants(module).get(short, "") for module in modules if vars(sys.modules[module]).get(short) is item)
    return next(filter(None, texts), "")


@cache
def constants(module: str) -> dict[str, str]:
    """The texts below the assignments of a module."""
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    found = dict[str, str]()
    for node, after in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found |= {ast.unparse(target): inspect.cleandoc(after.value.value) for target in targets}
    return found


@cache
def with_pages() -> frozenset[int]:
    """What has a page."""
    return frozenset(id(item) for subject in index().values() for item in subject.values())


def inherited(item: Any) -> str:
    """The option that shows members of bases of ours without a page, up to the first base that has one or is not."""
    for above, base in enumerate(item.__mro__[1:]):
        is_ours = base.__module__.startswith("inferscale.") and base.__name__ != "Identified"
        if not is_ours or id(base) in with_pages():
            return f"   :inherited-members: {base.__name__}\n" if above else ""
    return ""


def directive_of(name: str, item: Any) -> str:
    """What makes the page of an object."""
    if is_class(item):
        kind = "autoexception" if issubclass(item, Exception) else "autoclass"
        # the options of a class that is no dataclass are told where it takes them
        both = "   :class-doc-from: both\n" if "Args:" in (inspect.getdoc(item.__init__) or "") else ""
        return f".. {kind}:: {name}\n   :members:\n   :exclude-members: search\n{both}{inherited(item)}"
    if inspect.isroutine(item):
        return f".. autofunction:: {name}\n"
    from sphinx.ext.napoleon import GoogleDocstring  # which autodoc calls for the others

    return f".. py:data:: {name.rpartition('.')[2]}\n\n{indent(str(GoogleDocstring(text_of(name, item))), '   ')}\n"


def write() -> None:
    """A page for each subject, and one for each of its objects, which only that page links to."""
    FOLDER.mkdir(exist_ok=True)
    pages, used = dict[str, str](), uses(index())
    for key, names in index().items():
        title, lines = SUBJECTS[key].title, list[str]()
        for name, item in sorted(names.items(), key=lambda pair: pair[0].rpartition(".")[2].lower()):
            module, _, short = name.rpartition(".")
            first = " ".join(text_of(name, item).strip().split("\n\n")[0].split())
            same = sum(other.lower() == name.lower() for other in names)  # on some file systems one file
            file = f"{name}_function" if same > 1 and name.islower() else name
            lines.append(f":py:obj:`{short} <{name}>`\n   {first}\n")
            where = ", ".join(f":doc:`/{page}`" for page in list(used.get(name, ()))[:4])
            runs = f"Used in {where}. " if where else ""
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


def uses(objects: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """For the name of each object the pages whose code uses it, in the order of the shelves, then notebooks."""
    names = {
        (name.rpartition(".")[2], id(item)): name for subject in objects.values() for name, item in subject.items()
    }
    found = dict[str, list[str]]()
    for page, codes in blocks_of_pages().items():
        imported = dict[str, str]()  # what each name of the page is, as the page goes on
        used = dict[str, None]()
        for code in codes:
            tree = ast.parse(code)
            imported |= imports(tree)
            used |= dict.fromkeys(chain for node in ast.walk(tree) if (chain := chain_of(node, imported)))
        passed = (names.get((short, id(item))) for chain in used for short, item in along(chain))
        for name in dict.fromkeys(filter(None, passed)):
            found.setdefault(name, []).append(page)
    return found


def blocks_of_pages() -> dict[str, list[str]]:
    """The code of each page, block by block."""
    pages = [
        page for shelf in ("howto", "tutorials", "reference", "project") for page in sorted((DOCS / shelf).glob("*.md"))
    ]
    found = {
        page.relative_to(DOCS).with_suffix("").as_posix(): BLOCK.findall(page.read_text(encoding="utf-8"))
        for page in pages
    }
    for notebook in sorted((DOCS / "tutorials").glob("*.ipynb")):
        script = (DOCS.parent / "examples" / f"{notebook.stem}.py").read_text(encoding="utf-8")
        cells = script.split("# %%")
        found[f"tutorials/{notebook.stem}"] = [cell for cell in cells if not cell.startswith(" [markdown]")]
    return found


def imports(tree: ast.AST) -> dict[str, str]:
    """What the imports of a block name: ``{"isc": "inferscale"}``."""
    found = dict[str, str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.asname or name.name.partition(".")[0]: name.name for name in node.names if name.asname}
            found |= {name.name.partition(".")[0]: name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return found


def chain_of(node: ast.AST, imported: dict[str, str]) -> str:
    """The dotted name that a name or an attribute stands for, if it is one of inferscale."""
    parts = list[str]()
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    known = imported.get(node.id, "") if isinstance(node, ast.Name) else ""
    return ".".join([known, *reversed(parts)]) if known.partition(".")[0] == "inferscale" else ""


def along(chain: str) -> Iterator[tuple[str, Any]]:
    """The names and objects that a dotted name passes."""
    found: Any = inferscale
    for part in chain.split(".")[1:]:
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = import_module(f"{found.__name__}.{part}")
            except (AttributeError, ImportError):
                return
        yield part, found
