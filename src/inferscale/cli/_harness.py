"""``inferscale lm-eval``: the command line of lm-evaluation-harness with our model registered."""

from __future__ import annotations

import sys

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "lm-eval",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
        help="Run lm-evaluation-harness: inferscale lm-eval run --model inferscale --model_args pretrained=DIR,...",
    )(lm_eval)


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with ``--model inferscale``; all arguments are its own."""
    from inferscale.evaluate.lm_eval import run_command_line

    sys.argv = ["lm-eval", *context.args]
    run_command_line()
