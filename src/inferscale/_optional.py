"""Packages that not everybody has."""

from __future__ import annotations

from importlib import import_module
from typing import Any


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
