"""``inferscale serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from inferscale.evaluate.parts import check_scores, embedded, make_generator, make_reward, make_strategy, make_vote

from ._parts import STRATEGY_HELP, MaxNewTokens, Model, Reward, Seed, StepDelimiter, Temperature, Vote, Width


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(serve)


def serve(
    model: Model = "policy-s",
    strategy: Annotated[str, typer.Option(help=f"Of requests that name none. {STRATEGY_HELP}")] = "sampling",
    width: Width = 16,
    vote: Vote = "majority",
    reward: Reward = None,
    name: Annotated[str | None, typer.Option(help="The model's name for clients; by default that of --model.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, help="0 takes a free one.")] = 8000,
    seed: Seed = 0,
    temperature: Temperature = 0.8,
    max_new_tokens: MaxNewTokens = 512,
    step_delimiter: StepDelimiter = "\\n",
    max_active: Annotated[int, typer.Option(min=1, help="Searches that share the model's batches.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="Searches that wait; more are refused (429).")] = 256,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Size of a request; larger ones are refused (413).")] = 2
    ** 20,
    max_size: Annotated[int, typer.Option(min=1, help="Greatest number in a strategy that a request names.")] = 1024,
    tokens: Annotated[int, typer.Option(min=1, help="Most sampled tokens of a search.")] = 100_000,
    seconds: Annotated[float, typer.Option(min=0.001, help="Most seconds of a search.")] = 600,
    shutdown_seconds: Annotated[int, typer.Option(min=1, help="Time that running searches get at the end.")] = 60,
) -> None:
    """Serve searches behind an OpenAI-compatible endpoint; INFERSCALE_API_KEY is what clients must present, if set."""
    from inferscale.cost import Budget
    from inferscale.serve import Limits, Service, run_server
    from inferscale.serve.server import check_host

    key = os.environ.get("INFERSCALE_API_KEY") or None
    check_host(host, key)
    check_scores(make_strategy(strategy, width), make_vote(vote), reward)  # before the models are loaded
    service = Service(
        make_generator(model, temperature, max_new_tokens, step_delimiter),
        None if reward is None else make_reward(reward, model),
        name=name or Path(model).name, strategy=strategy, width=width, vote=vote, seed=seed, api_key=key,
        limits=Limits(max_active, max_waiting, max_body_bytes, max_size=max_size, budget=Budget(tokens, None, seconds)),
        prompt_end="\n" if model in embedded() else "",  # the embedded policies read a question as a line
    )  # fmt: skip
    run_server(service, host, port, shutdown_seconds)
