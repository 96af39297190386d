"""Options that several commands share: those of models, searches and votes, as one dataclass for all of them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from inferscale.answers import KINDS
from inferscale.evaluate.parts import VOTES
from inferscale.strategies import registry
from inferscale.tree import Judge

if TYPE_CHECKING:
    from inferscale.cost import Budget
    from inferscale.flops import EnergyMeter


class UsageError(Exception):
    """Bad input: one line that says what to do."""


_COMMANDING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with escapes for what would command a terminal, turn its lines around, or cannot be written to it."""
    return _COMMANDING.sub(lambda match: ascii(match[0])[1:-1], text)


def say(text: str, err: bool = False) -> None:
    """Prints a line, in which texts of models and of foreign files do nothing to a terminal."""
    typer.echo(printable(text), err=err)


STRATEGY_HELP = f"One of {', '.join(registry())} (with a size: rebase:16), or one in full: 'MCTS(num_simulations=64)'."

Model = Annotated[str, typer.Option(help="A local path (GGUF too), a hub id, or a name of `inferscale models`.")]
Width = Annotated[int, typer.Option(help="Samples or leaves.")]
Vote = Annotated[str, typer.Option(help=f"One of {', '.join(VOTES)}, or one in full: 'BordaVote(p=0.7)'.")]
Tokens = Annotated[int | None, typer.Option(help="Token budget of a problem.")]
BUDGET_HELP = "NAME=NUMBER, of tokens, calls, seconds, flops, bytes or joules; several caps with commas"
BudgetText = Annotated[
    str | None, typer.Option("--budget", help=f"What a problem may cost: {BUDGET_HELP}. Joules need --energy.")
]
Energy = Annotated[
    str | None,
    typer.Option(help="Measure joules: cpu (RAPL), cuda or cuda:1 (NVML). Where nothing can be read, it says why."),
]
Seed = Annotated[int, typer.Option(help="Any integer.")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]
Reward = Annotated[
    str | None, typer.Option(help="checker (embedded task), likelihood, a process reward model, or outcome@PATH.")
]
JudgedPart = Annotated[
    str | None,
    typer.Option(
        help=f"The part that the reward model judges where the policy thinks: one of {', '.join(get_args(Judge))}."
    ),
]
RewardLoad = Annotated[list[str] | None, typer.Option("--reward-load", help="As --load, for the reward model.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature.")]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of a solution.")]
MaxStepTokens = Annotated[int, typer.Option(help="Most tokens of a step.")]
StepDelimiter = Annotated[str, typer.Option(help="What ends a step.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="A text that ends the answer, such as '\\n\\nQuestion:'; may come again.")
]
TopP = Annotated[float | None, typer.Option(help="Mass of the likeliest tokens that is kept.")]
MinP = Annotated[float | None, typer.Option(help="Least probability of a token, as a share of the likeliest one's.")]
ChatTemplate = Annotated[
    bool | None,
    typer.Option(
        "--chat-template/--no-chat-template",
        help="Render prompts with the tokenizer's chat template; by default if it has one.",
    ),
]
SystemPrompt = Annotated[str | None, typer.Option(help="System turn of conversations that have none.")]
AnswerKind = Annotated[
    str | None, typer.Option(help=f"What the answer is: one of {', '.join(KINDS)}, or choice:ABCDE (its letters).")
]
ThinkingMarkers = Annotated[
    str | None,
    typer.Option("--thinking", help="Markers of thoughts: '<think> </think>', or off; by default the tokenizer's."),
]
Device = Annotated[
    str | None, typer.Option(help="Where the models run, such as cpu or cuda:1; by default a GPU if there is one.")
]
Dtype = Annotated[str | None, typer.Option(help="Of the weights: float32, bfloat16, ...; by default float32 on a CPU.")]
Load = Annotated[
    list[str] | None,
    typer.Option(
        "--load",
        help="KEY=VALUE for loading the model: attn_implementation=eager, revision=..., gguf_file=...; may come again.",
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """Options of every command that runs models."""

    width: Width = 16
    vote: Vote = "majority"
    reward: Reward = None
    judge: JudgedPart = None
    reward_load: RewardLoad = None
    temperature: Temperature = 0.8
    max_new_tokens: MaxNewTokens = 512
    max_step_tokens: MaxStepTokens = 256
    step_delimiter: StepDelimiter = "\\n"
    stop: Stop = None
    top_p: TopP = None
    min_p: MinP = None
    chat_template: ChatTemplate = None
    system_prompt: SystemPrompt = None
    answer_kind: AnswerKind = None
    thinking: ThinkingMarkers = None
    device: Device = None
    dtype: Dtype = None
    load: Load = None
    energy: Energy = None

    def meter(self, *budgets: Budget | None) -> EnergyMeter | None:
        """The meter, if one is wanted; it says on standard error why nothing can be read.

        Raises:
            UsageError: If a budget caps joules that nobody measures.
            ValueError: If there is no such kind of device.
        """
        from inferscale.flops import EnergyMeter

        meter = None if self.energy is None else EnergyMeter(self.energy)
        if meter is None or meter.read() is None:
            why = "give --energy cpu or --energy cuda" if meter is None else meter.source
            if any(budget is not None and budget.joules is not None for budget in budgets):
                raise UsageError(f"a budget of joules needs a meter that can be read: {why}")
            if meter is not None:
                say(f"joules are not known: {why}", err=True)
        return meter

    def of_generator(self) -> dict[str, Any]:
        """What `make_generator` is given by name, as far as it is no default."""
        shared = ("max_step_tokens", "stop", "top_p", "min_p", "chat_template", "system_prompt", "thinking")
        own = {field.name for field in fields(self)}
        return read_pairs("--load", self.load, taken=own) | self._given(*shared, "device", "dtype")

    def of_reward(self) -> dict[str, Any]:
        """What `make_reward` is given by name, as far as it is no default."""
        if self.reward is None and (self.judge or self.reward_load):
            option = "--judge" if self.judge else "--reward-load"
            raise UsageError(f"{option} is for a reward model, and there is none: give --reward too")
        pairs = read_pairs("--reward-load", self.reward_load, taken={"judge", "device", "dtype"})
        return pairs | self._given("judge", "device", "dtype")

    def _given(self, *names: str) -> dict[str, Any]:
        defaults = {field.name: field.default for field in fields(self)}
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value != defaults[name] and value != []}


def read_budget(text: str) -> Budget:
    """The budget that a text such as ``tokens=500,seconds=2`` names."""
    from inferscale.cost import CAPS, Budget

    known = [name for name in CAPS if name != "money"]  # which needs a price
    caps: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            caps[name] = float(number)
        except ValueError:
            raise UsageError(f"budget {text!r}: write it as tokens=500 or flops=2e9,seconds=1.5") from None
        if name not in known:
            raise UsageError(f"budget {text!r}: choose among {', '.join(known)}")
    return Budget(**caps)  # type: ignore[arg-type]


def cap_of(budget: str | None, tokens: int | None) -> Budget | None:
    """What ``--budget`` and ``--tokens`` allow; ``None`` if neither is given."""
    if budget is not None and tokens is not None:
        raise UsageError(f"--tokens {tokens} is short for --budget tokens={tokens}: give all caps to --budget")
    text = f"tokens={tokens}" if budget is None and tokens is not None else budget
    return None if text is None else read_budget(text)


def read_pairs(option: str, pairs: Sequence[str] | None, taken: set[str]) -> dict[str, Any]:
    """Keywords from texts such as ``revision=main``; numbers, ``true``, ``none`` and JSON are read as such.

    Args:
        option: The option's name, for messages.
        pairs: The texts.
        taken: Keywords that have an option of their own.

    Raises:
        UsageError: If a text is not written so, or its keyword comes twice or is taken.
    """
    found: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"{option} {pair}: write it as KEY=VALUE")
        if name in taken:
            raise UsageError(f"{option} {pair}: {name} is an option of its own, --{name.replace('_', '-')}")
        if name in found:
            raise UsageError(f"{option} {pair}: {name} is given twice")
        found[name] = _value(text)
    return found


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every field of the dataclass that its parameter ``options`` is, as an option of its own."""
    signature = inspect.signature(command, eval_str=True)
    kind = signature.parameters["options"].annotation
    hints = get_type_hints(kind, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(kind)
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        options = kind(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        command(**given, options=options)

    own = [parameter for name, parameter in signature.parameters.items() if name != "options"]
    run.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return run
