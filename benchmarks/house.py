"""Figures of the code's structure: sizes, names, imports, and the files that five calls walk through.

Run with ``python -m benchmarks.house``. ``--source`` names the ``src/inferscale`` of another checkout; given more than
once, the checkouts stand side by side. Each walk is one call, profiled once it is warm, in a process of its checkout: a
file is entered when a function of it is called (or a generator resumed), and a move is a call into another file than
the call before. ``--walk NAME --files`` lists the files of a walk in the order of first entry, with their calls.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
import threading
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, TypeAlias

import inferscale as isc

SOURCE = Path(__file__).resolve().parents[1] / "src" / "inferscale"
Figures: TypeAlias = dict[str, int | float | str]
When: TypeAlias = Literal["import", "typing", "lazy"]
Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
DIRECTIVE = re.compile(r"#\s*(noqa|type:|fmt:|pragma|ruff:|mypy:)")


class Arrow(NamedTuple):
    """An imported module, or a name out of one: with its importer, for type checkers alone, or inside of a function."""

    importer: str
    target: str
    name: str
    when: When

    @property
    def is_intrusion(self) -> bool:
        """True for a private name or file of another room, the first component below the package."""
        rooms = {[*module.split("."), ""][1] for module in (self.importer, self.target)}
        return len(rooms) == 2 and any(is_private(part) for part in (*self.target.split("."), self.name))


class Module:
    """A source file, parsed; its name is dotted, that of the package for an ``__init__``."""

    def __init__(self, source: Path, path: Path) -> None:
        self.path, self.text = path, path.read_text(encoding="utf-8")
        parts = (source.name, *path.relative_to(source).with_suffix("").parts)
        self.is_package = path.stem == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.tree = ast.parse(self.text)
        self.nodes = list(_walk(self.tree, "import"))
        names = [node for node, _ in self.nodes if isinstance(node, ast.Name | ast.Attribute)]
        read = [node for node in names if isinstance(node.ctx, ast.Load)]
        self.loads = Counter(node.id if isinstance(node, ast.Name) else node.attr for node in read)
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        self.comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}

    @property
    def definitions(self) -> list[Definition]:
        """Functions, methods and classes that are not inside of a function."""
        return [node for node, when in self.nodes if isinstance(node, Definition) and when != "lazy"]

    @property
    def code_lines(self) -> int:
        """Number of lines that are neither blank, nor comment, nor docstring."""
        rows = enumerate(self.text.splitlines(), 1)
        code = {row for row, line in rows if line.strip() and not (row in self.comments and line.lstrip()[0] == "#")}
        bare = [node for node, _ in self.nodes if isinstance(node, ast.Expr)]
        texts = [node for node in bare if isinstance(getattr(node.value, "value", None), str)]
        return len(code.difference(*(range(node.lineno, _last(node) + 1) for node in texts)))

    @property
    def docstrings(self) -> list[str]:
        """Docstrings of the module and of all in it that have a public name."""
        owners: list[Definition | ast.Module] = [node for node in self.definitions if not node.name.startswith("_")]
        texts = map(ast.get_docstring, owners if is_private(self.path.stem) else [self.tree, *owners])
        return [text for text in texts if text]

    def arrows(self, modules: Mapping[str, Module]) -> Iterator[Arrow]:
        """Imports of the package's own modules, at any level."""
        package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        for node, when in self.nodes:
            found: list[tuple[str, str]] = []
            if isinstance(node, ast.Import):
                found = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                names = [alias.name for alias in node.names]
                found = [(f"{base}.{name}", "") if f"{base}.{name}" in modules else (base, name) for name in names]
            yield from (Arrow(self.name, t, name, when) for t, name in found if t in modules and t != self.name)


def _walk(owner: ast.AST, when: When) -> Iterator[tuple[ast.AST, When]]:
    """All nodes, and whether they run with the module, for type checkers alone, or in a function."""
    yield owner, when
    guarded = owner.body if isinstance(owner, ast.If) and ast.unparse(owner.test).endswith("TYPE_CHECKING") else []
    for node in ast.iter_child_nodes(owner):
        yield from _walk(node, "typing" if node in guarded else "lazy" if isinstance(owner, FUNCTION) else when)


def _last(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def is_private(name: str) -> bool:
    """True for a leading underscore, but for names such as ``__init__``."""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def sizes(modules: Sequence[Module]) -> Figures:
    """Files, lines, comments and functions."""
    lines = [len(module.text.splitlines()) for module in modules]
    comments = [text for module in modules for text in module.comments.values()]
    code = sum(module.code_lines for module in modules)
    functions = [node for module in modules for node, _ in module.nodes if isinstance(node, FUNCTION)]
    lengths = sorted(_last(function) - function.lineno + 1 for function in functions)
    return {
        "files": len(modules),
        "lines": sum(lines),
        "code lines": code,
        "lines with a comment": len(comments),
        "of them directives to tools": sum(bool(DIRECTIVE.match(text)) for text in comments),
        "comments per 100 code lines": round(100 * len(comments) / code, 2),
        "median file length": statistics.median(lines),
        "functions": len(lengths),
        "median function length": statistics.median(lengths),
        "p90 function length": lengths[math.ceil(0.9 * len(lengths)) - 1],
    }


def names(modules: Sequence[Module]) -> Figures:
    """Private functions, base names and docstrings.

    A use of a private name belongs to the definitions in its own file, or to all of that name where the file has none.
    A name that a file defines more than once is used once where its uses are no more than its definitions.
    """
    functions = [[node.name for node in module.definitions if isinstance(node, FUNCTION)] for module in modules]
    defined = [Counter(filter(is_private, found)) for found in functions]
    once = 0
    for module, own in zip(modules, defined, strict=True):
        for name, times in own.items():
            strangers = sum(m.loads[name] for m, theirs in zip(modules, defined, strict=True) if name not in theirs)
            once += times if 1 <= module.loads[name] + strangers <= times else 0
    stems = Counter(module.path.stem.lstrip("_") for module in modules if not module.path.stem.startswith("__"))
    docstrings = [text for module in modules for text in module.docstrings]
    return {
        "private functions": sum(own.total() for own in defined),
        "of them used once": once,
        "base names that recur": _listed(sorted(f"{stem} ×{count}" for stem, count in stems.items() if count > 1)),
        "public docstrings": len(docstrings),
        "of them opening with What/Whether/How": sum(bool(re.match(r"(What|Whether|How)\b", t)) for t in docstrings),
    }


def imports(modules: Mapping[str, Module]) -> Figures:
    """Arrows, circles, single importers, and what reaches into another room's privacy."""
    arrows = [arrow for module in modules.values() for arrow in module.arrows(modules)]
    pairs = {when: {arrow[:2] for arrow in arrows if arrow.when == when} for when in ("import", "typing", "lazy")}
    every = {arrow[:2] for arrow in arrows}
    times = Counter(target for _, target in every)
    single = [(importer, target) for importer, target in every if times[target] == 1]
    intrusions = [arrow for arrow in arrows if arrow.is_intrusion]
    return {
        "import arrows": len(every),
        "of them lazy alone": len(pairs["lazy"] - pairs["import"] - pairs["typing"]),
        "of them for type checkers alone": len(pairs["typing"] - pairs["import"] - pairs["lazy"]),
        "circles of modules": _listed(circles(pairs["import"])),
        "circles with lazy imports": _listed(circles(pairs["import"] | pairs["lazy"])),
        "modules with a single importer": len(single),
        "of them not by their package": sum(target.rpartition(".")[0] != importer for importer, target in single),
        "private imports across rooms": len(intrusions),
        "of them files at the root": sum(a.target.count(".") == 1 and not is_private(a.name) for a in intrusions),
    }


def circles(pairs: set[tuple[str, str]]) -> list[str]:
    """Groups of modules that all reach one another."""
    after = {importer: {target for other, target in pairs if other == importer} for importer, _ in pairs}
    reached: dict[str, set[str]] = {}
    for start in after:
        found, fresh = set[str](), {start}
        while fresh:
            fresh = set[str]().union(*(after.get(name, ()) for name in fresh)) - found
            found |= fresh
        reached[start] = found
    groups = {frozenset(other for other in reached[name] if name in reached.get(other, ())) for name in after}
    return sorted(" ".join(sorted(group)) for group in groups if group)


def _listed(items: Sequence[str]) -> str:
    return f"{len(items)}: {', '.join(items)}" if items else "0"


def walk_search() -> dict[str, Any]:
    """A search of two problems with toys."""
    generator, reward = isc.testing.ToyGenerator(depth=1), isc.testing.ToyReward()
    strategy, prompts = isc.REBASE(2), ["How many?", "How many more?"]
    return profiled([lambda: isc.solve_batch(prompts, strategy, generator, reward_model=reward)])


def walk_generate() -> dict[str, Any]:
    """Two steps of the embedded policy, and the release of its cache."""
    generator, root = isc.HFGenerator(*isc.zoo.load("policy-xs")), _root()
    request = isc.GenerateRequest(root, 2)
    return profiled([lambda: generator.generate([request]), lambda: generator.release(root)])


def walk_score() -> dict[str, Any]:
    """The cost and score of a solution by the embedded process reward model, and the release of its cache."""
    reward = isc.HFProcessRewardModel(*isc.zoo.load("prm-xs"), good_token="<good>", bad_token="<bad>", reduction="min")
    root = _root()
    text = isc.zoo.task.solution(root.problem.prompt)
    ends = tuple((place.end(), 0) for place in re.finditer(r"\n|$", text))
    node = isc.Node(root.problem, isc.Step(text, finish_reason="eos", inner_ends=ends), root, key=2)
    return profiled([lambda: reward.cost([node]), lambda: reward.score([node]), lambda: reward.release(root)])


def walk_quiet_star() -> dict[str, Any]:
    """One step of the embedded policy with a thought before every token, and the release of its cache."""
    model, tokenizer = isc.zoo.load("policy-xs")
    generator = isc.quiet_star.QuietSTaRGenerator(isc.quiet_star.QuietSTaR(model, 3), tokenizer)
    request = isc.GenerateRequest(root := _root())
    return profiled([lambda: generator.generate([request]), lambda: generator.release(root)])


def walk_flops() -> dict[str, Any]:
    """The first counter of a model, around one step after a prompt that was read before, and its table."""
    generator, request = isc.HFGenerator(*isc.zoo.load("policy-xs")), isc.GenerateRequest(_root())
    counter_of = isc.FlopCounter
    generator.generate([request])

    def counted() -> None:
        with counter_of(generator=generator) as counter:
            generator.generate([request])
        counter.table()

    return profiled([counted], warm=False)


def _root() -> isc.Node:
    return isc.Node(isc.zoo.problems("dev")[0], key=1)


def profiled(calls: Sequence[Callable[[], object]], warm: bool = True) -> dict[str, Any]:
    """Moves of calls, made once before if `warm`, and the calls of each file in the order of first entry."""
    package = f"{Path(isc.__file__).parent}{os.sep}"
    entered: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            entered.append(frame.f_code.co_filename.removeprefix(package))

    for call in calls if warm else ():
        call()
    threading.setprofile(note)
    sys.setprofile(note)
    for call in calls:
        call()
    sys.setprofile(None)
    threading.setprofile(None)
    return {"moves": sum(a != b for a, b in pairwise(entered)), "files": Counter(entered)}


def figures(source: Path, walk: str | None, files: bool) -> Figures:
    """All figures of a source, or those of one walk."""
    modules = {module.name: module for module in (Module(source, path) for path in sorted(source.rglob("*.py")))}
    every = list(modules.values())
    column: Figures = {} if walk else {**sizes(every), **names(every), **imports(modules)}
    for name in [walk] if walk else WALKS:
        command = [sys.executable, "-P", __file__, "--source", str(source), "--walk", name, "--here"]
        environment = {**os.environ, "PYTHONPATH": str(source.parent)}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        column[f"{name}: files / moves"] = f"{len(found['files'])} / {found['moves']}"
        column |= {f"{name}: {file}": calls for file, calls in found["files"].items() if files}
    return column


_WALKS = (walk_search, walk_generate, walk_score, walk_quiet_star, walk_flops)
WALKS = {walk.__name__.removeprefix("walk_"): walk for walk in _WALKS}


def main() -> None:
    """Prints the figures as a Markdown table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, action="append", help="src/inferscale of another checkout; repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON, by source")
    parser.add_argument("--walk", choices=WALKS, help="print this walk alone")
    parser.add_argument("--files", action="store_true", help="list the files that the walks enter")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in a walk's own process
    options = parser.parse_args()
    sources = [path.resolve() for path in options.source or [SOURCE]]
    if options.here:
        assert Path(isc.__file__).parent == sources[0], f"{isc.__file__} is not in {sources[0]}"
        print(json.dumps(WALKS[options.walk]()))
        return
    columns = {str(source): figures(source, options.walk, options.files) for source in sources}
    if options.json:
        print(json.dumps(columns, indent=1, ensure_ascii=False))
        return
    print(f"| figure | {' | '.join(columns) if len(columns) > 1 else 'value'} |\n|---{'|---' * len(columns)}|")
    for figure in dict.fromkeys(name for column in columns.values() for name in column):
        print(f"| {figure} | {' | '.join(str(column.get(figure, '')) for column in columns.values())} |")


if __name__ == "__main__":
    main()
