"""The commands ``plan`` (what to run for each budget) and ``cost`` (what a search will cost)."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from inferscale.evaluate.parts import make_strategy, reward_path

from .evaluating import RunOptions, distinct_names
from .options import BUDGET_HELP, STRATEGY_HELP, Model, Seed, UsageError, read_budget, say, with_options
from .solving import models_of


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(with_options(plan))
    app.command()(cost)


def plan(
    budget: Annotated[list[str], typer.Option(help=f"Repeat it: what a problem may cost on average. {BUDGET_HELP}.")],
    most: Annotated[str | None, typer.Option(help="The most that planning may cost in all, as --budget.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Repeat it: a path, a hub id, an embedded policy.")] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help=f"Repeat it; by default what is at hand. {STRATEGY_HELP}")
    ] = None,
    size: Annotated[list[int] | None, typer.Option(help="Repeat it: sizes of default strategies; 4, 16, 64.")] = None,
    out: Annotated[Path, typer.Option(help="The plan's file.")] = Path("plan.json"),
    runs: Annotated[Path | None, typer.Option(help="Folder of its runs, to go on from; OUT-runs by default.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the plan there as HTML too.")] = None,
    seed: Seed = 0,
    *,
    options: RunOptions,
) -> None:
    """Find what to run for each budget on a data set; the same command again goes on where it ended."""
    from inferscale.evaluate import prompt_style
    from inferscale.scaling import candidates
    from inferscale.scaling import plan as make_plan
    from inferscale.scaling.race import told

    if options.tokens is not None:
        raise UsageError("plan has --budget for --tokens")
    if strategy and size:
        raise UsageError("--size is for the default strategies: say it in --strategy, as rebase:16")
    budgets, limit = [read_budget(text) for text in budget], None if most is None else read_budget(most)
    searches = [make_strategy(text, options.width) for text in strategy or ()]
    meter = options.meter(*budgets, limit)
    problems = options.problems()
    names = model or ["policy-s"]
    parts = [models_of(name, options) for name in names]
    judge = parts[0][1]
    found = make_plan(
        problems, dict(zip(distinct_names(names), (generator for generator, _ in parts), strict=True)),
        budgets=budgets, reward_model=None if judge is None else {str(options.reward): judge}, most=limit,
        strategies=searches or candidates(judge, size or (4, 16, 64)),
        directory=runs or out.with_name(f"{out.stem}-runs"), same_answer=options.same_answer(), seed=seed,
        read_answer=prompt_style(options.style or ("plain" if options.dataset == "embedded" else "cot")).reader(),
        batch_size=options.batch_size, progress=options.progress, force=options.force, energy=meter,
    )  # fmt: skip
    rewards = {} if options.reward is None else {options.reward: options.reward}
    sources = {"generators": dict(zip(distinct_names(names), names, strict=True)), "reward models": rewards}
    found = replace(found, sources=sources)  # as they were given: what commands load
    found.save(out)
    say(found.table())
    for choice in found.choices:
        if choice.tried is not None:
            say("")
            say(f"# {told(choice.budget)}")
            say(found.command(choice.budget, _given(options)))
    if html is not None:
        head = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        html.write_text(f"{head}<title>Plan</title>\n{found.to_html()}\n", encoding="utf-8")
    say(f"wrote {out}")


def cost(
    model: Model = "policy-s",
    strategy: Annotated[str, typer.Option(help=STRATEGY_HELP)] = "rebase:16",
    reward: Annotated[str | None, typer.Option(help="The reward model, as the other commands take it.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    new: Annotated[int, typer.Option(min=1, help="Tokens of a solution.")] = 256,
    step: Annotated[int, typer.Option(min=1, help="Tokens of a step.")] = 32,
    device: Annotated[str, typer.Option(help="cpu (measured now), a100, h100, h200, l4, l40s, t4, v100, ...")] = "cpu",
    bytes_per_number: Annotated[
        float | None, typer.Option(help="2 for bfloat16, 4 for float32; by default 4 on a CPU.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Problems that share each forward.")] = 1,
    input_price: Annotated[float, typer.Option(help="Of a million prompt tokens.")] = 0.0,
    output_price: Annotated[float, typer.Option(help="Of a million sampled tokens.")] = 0.0,
    hour_price: Annotated[float, typer.Option(help="Of an hour of the device.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Predict what a problem will cost, before anything is run: a roofline of the strategy's own calls."""
    import json

    from inferscale.cost import Price
    from inferscale.scaling import device as known_device
    from inferscale.scaling import predict_cost

    prices = input_price, output_price, hour_price
    search = make_strategy(strategy)
    if search.needs_scores and reward is None:
        say(f"{strategy} scores its nodes: without --reward, scores are taken to cost nothing", err=True)
    width = (4 if device.lower() == "cpu" else 2) if bytes_per_number is None else bytes_per_number
    found = predict_cost(
        _config(model), search, reward=_config_of_reward(reward, model), prompt=prompt,
        new=new, step=step, device=known_device(device), batch=batch, price=Price(*prices) if any(prices) else None,
        bytes_per_number=width,
    )  # fmt: skip
    if as_json:
        say(json.dumps(found.to_dict()))
        return
    rows = {
        "tokens sampled, scored": f"{found.tokens:,.0f}, {found.scored_tokens:,.0f}",
        "FLOPs, policy + reward": f"{found.generator_flops:.3g} + {found.reward_flops:.3g}",
        "bytes, policy + reward": f"{found.generator_bytes:.3g} + {found.reward_bytes:.3g} "
        f"({found.cache_bytes:.3g} of keys, values, states)",
        "eFLOPs": f"{found.eflops:.3g} (a byte of keys and values as {found.intensity:.0f} FLOPs)",
        "forwards in a row": f"{found.rounds:,.0f}",
        "seconds": ", ".join(f"{phase} {value:.3g}" for phase, value in found.phases.items()),
        "memory": f"{found.memory_bytes / 2**30:.3g} GiB",
        "joules": "not known: the device's power is not" if found.joules is None else f"{found.joules:.3g}",
        "money": "not known: give a price" if found.money is None else f"{found.money:.3g}",
    }
    for name, text in rows.items():
        say(f"{name:<24} {text}")


def _config(model: str) -> Any:
    """The configuration of a model that a command names."""
    from inferscale import zoo
    from inferscale.evaluate.parts import at_hand, embedded, naming

    if model in embedded():
        return zoo.load(model)[0].config
    from transformers import AutoConfig

    if (Path(model) / "quiet_star.json").is_file():
        say(f"{model} thinks: thoughts are left out, as the commands run its base model", err=True)
    with naming(model):
        return AutoConfig.from_pretrained(at_hand(model))


def _config_of_reward(reward: str | None, policy: str) -> Any:
    """The configuration of the reward model; ``None`` if none is run."""
    if reward in (None, "checker"):
        return None
    return _config(policy if reward == "likelihood" else reward_path(str(reward))[1])


def _given(options: RunOptions) -> list[str]:
    """The options that were given, as words of a command line, without those that a choice names itself."""
    words: list[str] = []
    chosen = {"reward", "vote", "width", "progress", "limit", "split", "force"}
    for field in fields(RunOptions):
        value = getattr(options, field.name)
        if field.name in chosen or value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words += [word for item in (value if isinstance(value, list) else [value]) for word in (flag, str(item))]
    return words
