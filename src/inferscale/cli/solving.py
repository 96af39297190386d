"""The commands ``demo``, ``solve``, ``models``, ``serve`` and ``lm-eval``."""

from __future__ import annotations

import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferscale.answers import KINDS, reader_of
from inferscale.evaluate.parts import (
    VOTES,
    check_scores,
    embedded,
    make_generator,
    make_reward,
    make_strategy,
    make_vote,
)
from inferscale.strategies import registry

if TYPE_CHECKING:
    from inferscale.engine.result import SearchResult


STRATEGY_HELP = f"One of {', '.join(registry())} (with a size: rebase:16), or one in full: 'MCTS(num_simulations=64)'."

Model = Annotated[str, typer.Option(help="A local path (GGUF too), a hub id, or a name of `inferscale models`.")]
Reward = Annotated[
    str | None, typer.Option(help="checker (embedded task), likelihood, a process reward model, or outcome@PATH.")
]
Width = Annotated[int, typer.Option(help="Samples or leaves.")]
Vote = Annotated[str, typer.Option(help=f"One of {', '.join(VOTES)}, or one in full: 'BordaVote(p=0.7)'.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature.")]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of a solution.")]
StepDelimiter = Annotated[str, typer.Option(help="What ends a step.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="A text that ends the answer, such as '\\n\\nQuestion:'; may come again.")
]
TopP = Annotated[float | None, typer.Option(help="Mass of the likeliest tokens that is kept.")]
MinP = Annotated[float | None, typer.Option(help="Least probability of a token, as a share of the likeliest one's.")]
AnswerKind = Annotated[
    str | None, typer.Option(help=f"What the answer is: one of {', '.join(KINDS)}, or choice:ABCDE (its letters).")
]
Tokens = Annotated[int | None, typer.Option(help="Token budget of a problem.")]
ThinkingMarkers = Annotated[
    str | None,
    typer.Option("--thinking", help="Markers of thoughts: '<think> </think>', or off; by default the tokenizer's."),
]
Seed = Annotated[int, typer.Option(help="Any integer.")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value not in (None, [])}


class UsageError(Exception):
    """Bad input: one line that says what to do."""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(demo)
    app.command()(solve)
    app.command()(models)
    app.command(
        "lm-eval",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
        help="Run lm-evaluation-harness: inferscale lm-eval run --model inferscale --model_args pretrained=DIR,...",
    )(lm_eval)
    app.command()(serve)


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
    speed: Any = nullcontext()
    if real:
        given, generator, reward_model = table.real_parts(model, temperature)
        speed = table.live_speed(generator) if progress else speed
    else:
        given, generator, reward_model = zoo.problems("test"), make_generator(model, temperature), make_reward(reward)
    chosen = given[:problems]
    typer.echo(f"{model}, reward: {reward}, {len(chosen)} test problems, temperature {temperature}, seed {seed}")
    typer.echo("Tokens and MFLOPs of policy and reward model are means over problems; seconds are for all of them.")
    typer.echo(table.HEADER)
    with speed as bar:
        for row in table.rows(chosen, generator, reward_model, width, seed, progress and not real):
            if bar is not None:
                bar.clear()
            typer.echo(table.format_row(row))
    if reward == "checker":
        typer.echo("The checker is an oracle that knows every right step, and costs nothing: an upper bound.")


def solve(
    prompt: Annotated[str, typer.Argument(help="The problem.")],
    model: Model = "policy-s",
    strategy: Annotated[str, typer.Option(help=STRATEGY_HELP)] = "rebase",
    vote: Vote = "majority",
    width: Width = 16,
    reward: Reward = None,
    temperature: Temperature = 0.8,
    max_new_tokens: MaxNewTokens = 512,
    step_delimiter: StepDelimiter = "\\n",
    stop: Stop = None,
    top_p: TopP = None,
    min_p: MinP = None,
    answer_kind: AnswerKind = None,
    thinking: ThinkingMarkers = None,
    tokens: Tokens = None,
    seed: Seed = 0,
    save: Annotated[Path | None, typer.Option(help="Write the whole result there as JSON.")] = None,
    tree: Annotated[bool, typer.Option(help="Print the search tree.")] = False,
    progress: Progress = True,
) -> None:
    """Search for the answer to one problem."""
    from inferscale.cost import Budget
    from inferscale.engine.solver import solve as run
    from inferscale.tree import Problem

    search, aggregator = make_strategy(strategy, width), make_vote(vote)
    check_scores(search, aggregator, reward)
    if model in embedded() and not prompt.endswith("\n"):
        prompt += "\n"  # the embedded policies read a question as a line
    problem, budget = Problem(prompt, kind=answer_kind), None if tokens is None else Budget(tokens=tokens)
    controls = given(stop=stop, top_p=top_p, min_p=min_p, thinking=thinking)
    generator = make_generator(model, temperature, max_new_tokens, step_delimiter, **controls)
    reward_model = None if reward is None else make_reward(reward, model, generator)
    result = run(
        problem, search, generator, reward_model=reward_model, aggregator=aggregator, budget=budget, seed=seed,
        progress=progress,
    )  # fmt: skip
    _show(result, tree)
    if save is not None:
        typer.echo(f"saved to {result.save(save)}")


def models() -> None:
    """List the models at hand: the embedded ones, and real ones with what they need."""
    from inferscale import zoo

    for card in zoo.list(packaged=True):
        told = ", ".join(f"{name} {value}" for name, value in card.figures.items())
        if card.extra:
            told = f"needs {card.command}" + f"; {told}" * bool(told)
        typer.echo(f"{card.name:<22} {card.kind:<22} {card.parameters:>11,} parameters  {told}")


def _printable(text: str) -> str:
    """`text` with escapes for what would command a terminal, or cannot be written to it."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: ascii(match[0])[1:-1], text)


def _show(result: SearchResult, tree: bool) -> None:
    from inferscale.viz import render_tree

    if tree:
        typer.echo(render_tree(result.root, selected=result.selected_leaf))
    typer.echo(_printable(result.text.rstrip()))
    typer.echo(f"answer: {_printable(str(result.answer))}")
    cost = result.cost
    typer.echo(
        f"{len(result.trajectories)} trajectories, {cost.tokens:,} tokens, {cost.generator_flops:.3g} generator FLOPs, "
        f"{cost.reward_flops:.3g} reward FLOPs, {cost.seconds:.1f} s"
        + (f", stopped by {result.stopped_by}" if result.stopped_by else "")
    )
    for note in result.abstentions.notes:
        typer.echo(note, err=True)


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
    stop: Stop = None,
    top_p: TopP = None,
    min_p: MinP = None,
    answer_kind: AnswerKind = None,
    thinking: ThinkingMarkers = None,
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
    from inferscale.serve.service import check_host

    key = os.environ.get("INFERSCALE_API_KEY") or None
    check_host(host, key)
    check_scores(make_strategy(strategy, width), make_vote(vote), reward)  # before the models are loaded
    reader = None if answer_kind is None else reader_of(answer_kind)
    controls = given(stop=stop, top_p=top_p, min_p=min_p, thinking=thinking)
    generator = make_generator(model, temperature, max_new_tokens, step_delimiter, **controls)
    service = Service(
        generator,
        None if reward is None else make_reward(reward, model, generator),
        name=name or Path(model).name, strategy=strategy, width=width, vote=vote, seed=seed, api_key=key,
        read_answer=reader,
        limits=Limits(max_active, max_waiting, max_body_bytes, max_size=max_size, budget=Budget(tokens, None, seconds)),
        prompt_end="\n" if model in embedded() else "",  # the embedded policies read a question as a line
    )  # fmt: skip
    run_server(service, host, port, shutdown_seconds)


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with ``--model inferscale``; all arguments are its own."""
    from inferscale.evaluate.lm_eval import run_command_line

    sys.argv = ["lm-eval", *context.args]
    run_command_line()
