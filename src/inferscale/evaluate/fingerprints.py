"""What a run was made with: its parts as plain data, so that a changed one is noticed."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from inferscale.base import Aggregator, Generator, RewardModel, SearchStrategy
from inferscale.tree import Problem

_PARTS = (Generator, RewardModel, Aggregator, SearchStrategy, partial)
_DEPTH = 3
_ENDS = 8  # values read at each end of a tensor


def digest(data: object) -> str:
    """The first 32 hex digits of the SHA-256 of plain data."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def describe(part: object) -> Any:
    """A part of a run as plain data that is equal in another process when the part is.

    A frozen dataclass is its ``repr``, a function or class its name, a `functools.partial` its function and what that
    is given. Any other object is its class, its public attributes that are plain, frozen dataclasses, other parts, or
    tuples of these, the public texts and flags of parts of inferscale that it holds (a step delimiter, say), and a
    fingerprint of the weights of a public model. What is private is left out, and so are counts, which are private.
    """
    if _is_plain(part):
        return part
    if _is_frozen(part):
        return _plain_repr(part)
    if isinstance(part, list | tuple):
        return [describe(item) for item in part]
    if isinstance(part, dict):
        return {str(name): describe(value) for name, value in part.items()}
    if isinstance(part, partial):
        return {"function": describe(part.func), "given": describe([*part.args, part.keywords])}
    if (name := getattr(part, "__qualname__", None)) is not None:
        return f"{getattr(part, '__module__', None) or 'builtins'}.{name}"
    about: dict[str, Any] = {"class": f"{type(part).__module__}.{type(part).__qualname__}"}
    for name, value in sorted(getattr(part, "__dict__", {}).items()):
        if name.startswith("_"):
            about |= _texts_and_flags(value, name)
        elif _describes(value):
            about[name] = describe(value)
        elif callable(getattr(value, "state_dict", None)):
            about[name] = model_fingerprint(value)
    return about


def model_fingerprint(model: Any) -> str:
    """A digest of a torch model's configuration, shapes and a few values of every tensor."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", dict)
    parts: list[Any] = [type(model).__name__, str(to_dict())]
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        values = [*flat[:_ENDS].tolist(), *flat[-_ENDS:].tolist()]
        parts.append([name, list(tensor.shape), str(tensor.dtype), [str(value) for value in values]])
    return digest(parts)


def problem_keys(problems: Sequence[Problem], configuration: str) -> list[str]:
    """A name for each problem under one configuration; a prompt that comes again gets another one each time."""
    seen: Counter[str] = Counter()
    keys = []
    for problem in problems:
        keys.append(digest([configuration, problem.prompt, problem.answer, seen[problem.prompt]]))
        seen[problem.prompt] += 1
    return keys


def versions(
    packages: Iterable[str] = ("inferscale", "torch", "transformers", "numpy", "math-verify"),
) -> dict[str, str]:
    """Versions of Python and of those packages that are installed; none is imported."""
    found = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> Mapping[str, Any] | None:
    """Commit and whether tracked files differ from it (``None``: git cannot tell); ``None`` outside of a checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if status is None else bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def _is_plain(part: object) -> bool:
    return part is None or isinstance(part, str | bool | int | float)


def _describes(value: object) -> bool:
    """Whether a public attribute says what a part is; a list that holds no part may be one that grows."""
    if isinstance(value, list):
        return any(isinstance(item, _PARTS) for item in value)
    if isinstance(value, tuple):
        return all(map(_describes, value))
    return _is_plain(value) or _is_frozen(value) or isinstance(value, _PARTS)


def _is_frozen(part: object) -> bool:
    parameters = getattr(type(part), "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


def _texts_and_flags(part: object, path: str, depth: int = _DEPTH) -> dict[str, str | bool]:
    """Public texts and flags of a part of inferscale, of parts within it and of bound ones, by dotted name."""
    inside = part.keywords if isinstance(part, partial) else getattr(part, "__dict__", {})
    if not depth or not (isinstance(part, partial) or type(part).__module__.startswith("inferscale.")):
        return {}
    found: dict[str, str | bool] = {}
    for name, value in inside.items():
        if isinstance(value, str | bool) and not name.startswith("_"):
            found[f"{path}.{name}"] = value
        else:
            found |= _texts_and_flags(value, f"{path}.{name}", depth - 1)
    return found


def _plain_repr(part: object) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(part))
