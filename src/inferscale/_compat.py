"""Packages that not everybody has, names that load late, and what releases of transformers name differently.

Imports nothing of ours.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def late_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562) that loads public names when they are first used.

    Args:
        package: The package's ``__name__``.
        homes: For each name the module that it comes from, relative (``".spec"``) or absolute; a module itself is given
            by a home that ends with its own name.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(homes[name], package)
        value = module if homes[name].rpartition(".")[2] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return load


def unknown_option(called: str, name: str, known: Iterable[str]) -> TypeError:
    """The error for an option that `called` does not have; it names the nearest of the `known` ones."""
    near = difflib.get_close_matches(name, list(known), 1)
    return TypeError(
        f"{called}got an unknown option {name!r}: {f'did you mean {near[0]}?' if near else 'no option is like it'}"
    )


def suggests_options(called: Callable[P, R]) -> Callable[P, R]:
    """`called`, whose error for an option that it does not have names the nearest one, as that of a part does."""
    known = inspect.signature(called).parameters

    def check(names: Iterable[str]) -> None:
        for name in names:
            if name not in known:
                raise unknown_option(f"{called.__name__}() ", name, known)

    if inspect.iscoroutinefunction(called):

        @wraps(called)
        async def wait(*args: P.args, **kwargs: P.kwargs) -> Any:
            check(kwargs)
            return await called(*args, **kwargs)

        return wait  # type: ignore[return-value]

    @wraps(called)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check(kwargs)
        return called(*args, **kwargs)

    return call


def require(package: str, extra: str) -> Any:
    """The package, imported now.

    Raises:
        ImportError: If it is not installed; the message names the extra that brings it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != package.split(".")[0]:
            raise
        raise ImportError(f'this needs {package}: pip install "inferscale[{extra}]"') from None


CACHE_NAMES = ("past_key_values", "cache")  # of caches that hold keys and values


def cache_argument(module: Any) -> str:
    """The name under which ``module.forward`` takes its cache, and its output returns it.

    ``"past_key_values"`` (or ``"cache_params"`` for state-space models) up to transformers 5.23, ``"cache"`` since; a
    model of your own may use any of them. A forward that shows none of them takes ``"past_key_values"``.
    """
    takes = inspect.signature(module.forward).parameters
    return next((name for name in (*CACHE_NAMES, "cache_params") if name in takes), CACHE_NAMES[0])


def without_wrapper(model: Any) -> Any:
    """The model inside of an adapter's wrapper (peft's ``PeftModel``), or the model itself.

    LoRA and its kin live in the layers, and the wrapper hands its arguments on: run without it, the model does the same
    and shows what it takes.
    """
    find = getattr(model, "get_base_model", None)
    return find() if callable(find) else model


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Turns dropout off inside, and back on in every module where it was on."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
