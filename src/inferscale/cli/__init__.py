"""The commands: searches (``solve``, ``demo``), runs (``eval``, ``sweep``, ...), plans, harnesses, a server."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from . import evaluating, planning, solving
from .options import UsageError, say

__all__ = ["UsageError", "app", "main"]

app = typer.Typer(
    name="inferscale",
    help="Inference-time scaling of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
solving.register(app)
evaluating.register(app)
planning.register(app)

# typer brings its own copy of click or uses the installed one, by version: the class is reached by inheritance
_BAD_OPTION: type[typer.BadParameter] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main() -> None:
    """Runs the command line; bad input is one line on standard error and exit code 2, Ctrl-C is 130."""
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except _BAD_OPTION as error:
        _fail(f"{error.format_message()} See inferscale --help.", 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except (UsageError, ArithmeticError, ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        _fail(str(error), 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    say(f"inferscale: {' '.join(message.split())}", err=True)
    sys.exit(code)
