"""The commands ``demo``, ``solve``, ``models``, ``serve`` and ``lm-eval``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferscale.answers import reader_of
from inferscale.evaluate.parts import check_scores, embedded, make_generator, make_reward, make_strategy, make_vote

from .options import (
    STRATEGY_HELP,
    BudgetText,
    Model,
    ModelOptions,
    Progress,
    Seed,
    Tokens,
    UsageError,
    cap_of,
    say,
    with_options,
)

if TYPE_CHECKING:
    from inferscale.base import Generator, RewardModel
    from inferscale.engine.result import SearchResult


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(demo)
    app.command()(with_options(solve))
    app.command()(models)
    app.command(
        "lm-eval",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
        help="Run lm-evaluation-harness: inferscale lm-eval run --model inferscale --model_args pretrained=DIR,...",
    )(lm_eval)
    app.command()(with_options(serve))


def demo(
    problems: Annotated[
        int | None, typer.Option(min=2, help="Problems of the fixed test set: 60 of 500; 20 of 20 for a real model.")
    ] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Samples or leaves of each strategy: 16, or 4.")] = None,
    model: Annotated[
        str, typer.Option(help="An embedded policy, or a real model of `inferscale models`.")
    ] = "policy-s",
    reward: Annotated[
        str | None,
        typer.Option(help="prm-s or another embedded reward model, 'checker' (the exact oracle); likelihood."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature: 1, or 0.5.")] = None,
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Compare the strategies on an embedded or a real model: accuracy, tokens, FLOPs. No network needed."""
    from inferscale import zoo

    from . import demo as table

    real = model in {card.name for card in zoo.list(packaged=True)} - embedded()
    usual = table.REAL if real else table.EMBEDDED
    problems, width, reward = problems or usual.problems, width or usual.width, reward or usual.reward
    temperature = usual.temperature if temperature is None else temperature
    if real and reward != usual.reward:
        raise UsageError(f"--reward {reward}: the demo of {model} is judged by its own likelihood")
    generator: Any
    if real:
        given, generator, reward_model = table.real_parts(model, temperature)
    else:
        given, generator, reward_model = zoo.problems("test"), make_generator(model, temperature), make_reward(reward)
    chosen = given[:problems]
    say(f"{model}, reward: {reward}, {len(chosen)} test problems, temperature {temperature}, seed {seed}")
    say("Tokens and MFLOPs of policy and reward model are means over problems; seconds are for all of them.")
    say(table.HEADER)
    for row in table.rows(chosen, generator, reward_model, width, seed, progress):
        say(table.format_row(row))
    if reward == "checker":
        say("The checker is an oracle that knows every right step, and costs nothing: an upper bound.")


def solve(
    prompt: Annotated[str, typer.Argument(help="The problem.")],
    model: Model = "policy-s",
    strategy: Annotated[str, typer.Option(help=STRATEGY_HELP)] = "rebase",
    tokens: Tokens = None,
    budget: BudgetText = None,
    seed: Seed = 0,
    save: Annotated[Path | None, typer.Option(help="Write the whole result there as JSON.")] = None,
    tree: Annotated[bool, typer.Option(help="Print the search tree.")] = False,
    progress: Progress = True,
    *,
    options: ModelOptions,
) -> None:
    """Search for the answer to one problem."""
    from inferscale.engine.solver import solve as run
    from inferscale.tree import Problem

    search, aggregator = make_strategy(strategy, options.width), make_vote(options.vote)
    check_scores(search, aggregator, options.reward)
    if model in embedded() and not prompt.endswith("\n"):
        prompt += "\n"  # the embedded policies read a question as a line
    problem, cap = Problem(prompt, kind=options.answer_kind), cap_of(budget, tokens)
    meter = options.meter(cap)
    generator, reward_model = models_of(model, options)
    result = run(
        problem, search, generator, reward_model=reward_model, aggregator=aggregator, budget=cap, seed=seed,
        progress=progress, energy=meter,
    )  # fmt: skip
    _show(result, tree)
    if save is not None:
        say(f"saved to {result.save(save)}")


def models_of(model: str, options: ModelOptions) -> tuple[Generator, RewardModel | None]:
    """Generator and reward model; the options of both are read before the first is loaded."""
    of_generator, of_reward = options.of_generator(), options.of_reward()
    generator = make_generator(
        model, options.temperature, options.max_new_tokens, options.step_delimiter, **of_generator
    )
    return generator, None if options.reward is None else make_reward(options.reward, model, generator, **of_reward)


def models() -> None:
    """List the models at hand: the embedded ones, and real ones with what they need."""
    from inferscale import zoo

    for card in zoo.list(packaged=True):
        told = ", ".join(f"{name} {value}" for name, value in card.figures.items())
        if card.extra:
            told = f"needs {card.command}" + f"; {told}" * bool(told)
        say(f"{card.name:<22} {card.kind:<22} {card.parameters:>11,} parameters  {told}")


def _show(result: SearchResult, tree: bool) -> None:
    from inferscale.viz import render_tree

    if tree:
        say(render_tree(result.root, selected=result.selected_leaf))
    say(result.text.rstrip())
    say(f"answer: {result.answer}")
    cost = result.cost
    say(
        f"{len(result.trajectories)} trajectories, {cost.tokens:,} tokens, {cost.generator_flops:.3g} generator FLOPs, "
        f"{cost.reward_flops:.3g} reward FLOPs, {cost.seconds:.1f} s"
        + (f", {cost.joules:.3g} J" if cost.joules is not None else "")
        + (f", stopped by {result.stopped_by}" if result.stopped_by else "")
    )
    for note in result.abstentions.notes:
        say(note, err=True)


def serve(
    model: Model = "policy-s",
    strategy: Annotated[str, typer.Option(help=f"Of requests that name none. {STRATEGY_HELP}")] = "sampling",
    name: Annotated[str | None, typer.Option(help="The model's name for clients; by default that of --model.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, help="0 takes a free one.")] = 8000,
    seed: Seed = 0,
    max_active: Annotated[int, typer.Option(min=1, help="Searches that share the model's batches.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="Searches that wait; more are refused (429).")] = 256,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Size of a request; larger ones are refused (413).")] = 2
    ** 20,
    max_size: Annotated[int, typer.Option(min=1, help="Greatest number in a strategy that a request names.")] = 1024,
    tokens: Annotated[int, typer.Option(min=1, help="Most sampled tokens of a search.")] = 100_000,
    seconds: Annotated[float, typer.Option(min=0.001, help="Most seconds of a search.")] = 600,
    shutdown_seconds: Annotated[int, typer.Option(min=1, help="Time that running searches get at the end.")] = 60,
    *,
    options: ModelOptions,
) -> None:
    """Serve searches behind an OpenAI-compatible endpoint; INFERSCALE_API_KEY is what clients must present, if set."""
    from inferscale.cost import Budget
    from inferscale.serve import Limits, Service, run_server
    from inferscale.serve.service import check_host

    key = os.environ.get("INFERSCALE_API_KEY") or None
    check_host(host, key)
    check_scores(make_strategy(strategy, options.width), make_vote(options.vote), options.reward)  # before it loads
    reader, meter = None if options.answer_kind is None else reader_of(options.answer_kind), options.meter()
    generator, reward_model = models_of(model, options)
    service = Service(
        generator, reward_model, name=name or Path(model).name, strategy=strategy, width=options.width,
        vote=options.vote, seed=seed, api_key=key, read_answer=reader, energy=meter,
        limits=Limits(max_active, max_waiting, max_body_bytes, max_size=max_size, budget=Budget(tokens, None, seconds)),
        prompt_end="\n" if model in embedded() else "",  # the embedded policies read a question as a line
    )  # fmt: skip
    run_server(service, host, port, shutdown_seconds)


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with ``--model inferscale``; all arguments are its own."""
    from inferscale.evaluate.lm_eval import run_command_line

    sys.argv = ["lm-eval", *context.args]
    run_command_line()
