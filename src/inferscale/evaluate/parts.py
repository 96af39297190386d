"""Parts of a search from texts, as command lines and harnesses give them."""

from __future__ import annotations

import ast
import inspect
import os
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from inferscale import base
from inferscale.aggregators import BestOfN, MajorityVote, Medoid
from inferscale.base import Aggregator, Generator, RewardModel, SearchStrategy
from inferscale.flow import Flow, Generate, GenerateRequest, rewrite
from inferscale.identity import identity_of
from inferscale.strategies import registry
from inferscale.thinking import NO_THINKING, Thinking
from inferscale.tree import Node

VOTES = ("majority", "weighted", "best-of-n", "medoid")


def make_strategy(text: str, width: int = 16) -> SearchStrategy:
    """The strategy that a text names: ``"rebase"``, ``"rebase:8"`` or ``"REBASE(width=8, max_depth=20)"``.

    Beam search and DVTS share a width over beams of four, three or two children; greedy search has none.

    Raises:
        ValueError: If there is none, or its options do not fit.
    """
    if "(" in text:
        made: SearchStrategy = _made(text, SearchStrategy, "inferscale.strategies")
        return made
    name, _, size = text.partition(":")
    if size and not size.isdecimal():
        raise ValueError(f"strategy {text!r}: give a whole number after the colon, such as {name}:16")
    width = int(size) if size else width
    if width < 1:
        raise ValueError(f"width={width}: give at least 1")
    if name == "greedy" and size:
        raise ValueError(f"strategy {text!r}: greedy search is one path, and has no size")
    known = registry()
    return known[_checked(known, name, "strategy")].make(width)


@dataclass(frozen=True)
class Shortened(SearchStrategy):
    """`strategy` with paths of at most `max_tokens` sampled tokens, which end before a text of `stop`.

    A path that ends a step exactly there is given one token more, so that it ends.

    Attributes:
        strategy: The strategy.
        max_tokens: Most sampled tokens of a path; ``None`` for no bound.
        stop: Texts that end a path.
    """

    strategy: SearchStrategy
    max_tokens: int | None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a length under which there is no answer."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"answers of {self.max_tokens} tokens are asked for: give at least 1")

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """True if the strategy scores nodes."""
        return self.strategy.needs_scores

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Return what the strategy does; side prompts are left as they are."""

        def shorten(request: GenerateRequest) -> GenerateRequest:
            if request.aside:
                return request
            if self.max_tokens is None:
                return replace(request, stop=(*request.stop, *self.stop))
            left = max(1, self.max_tokens - sum(step.generated_tokens for step in request.node.steps))
            most = min(left, request.max_tokens or left)
            return replace(request, max_tokens=most, stop=(*request.stop, *self.stop))

        return rewrite(
            self.strategy.search(root, rng), lambda asked: Generate(tuple(shorten(r) for r in asked.requests))
        )


def make_vote(text: str) -> Aggregator:
    """The aggregator that a text names: ``"weighted"`` or ``"MajorityVote(weighted=True)"``.

    Raises:
        ValueError: If there is none, or its options do not fit.
    """
    if "(" in text:
        made: Aggregator = _made(text, Aggregator, "inferscale.aggregators")
        return made
    known: dict[str, Aggregator] = {
        "majority": MajorityVote(),
        "weighted": MajorityVote(weighted=True),
        "best-of-n": BestOfN(),
        "medoid": Medoid(),
    }
    return known[_checked(known, text, "vote")]


def check_scores(search: SearchStrategy, vote: Aggregator, reward: str | None) -> None:
    """Raise a ValueError when scores are needed and no reward model is named."""
    base.check_scores(reward, search, vote, advice="give a reward: checker, likelihood, or a process reward model")


def make_generator(
    model: str,
    temperature: float,
    max_new_tokens: int = 512,
    step_delimiter: str = "\\n",
    thinking: str | None = None,
    **options: Any,
) -> Generator:
    r"""An `HFGenerator` of a model of the zoo, a folder, GGUF file or hub id.

    Escapes such as ``\n`` are read in the step delimiter and in stop strings. `thinking` names the markers of thoughts,
    see `make_thinking`; by default they are those that the tokenizer shows.
    """
    from inferscale import zoo
    from inferscale.generators import HFGenerator

    markers = None if thinking is None else make_thinking(thinking)

    def read(text: str) -> str:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")

    if stop := options.get("stop"):
        options["stop"] = [read(text) for text in ([stop] if isinstance(stop, str) else stop)]
    options |= {"temperature": temperature, "max_new_tokens": max_new_tokens, "step_delimiter": read(step_delimiter)}
    if model in embedded() and options.keys() <= inspect.signature(HFGenerator).parameters.keys():
        generator = HFGenerator(*zoo.load(model), **options)
    else:
        with naming(model):
            generator = HFGenerator.from_pretrained(at_hand(model), **options)
    generator.thinking = markers or generator.thinking
    return generator


def make_thinking(text: str) -> Thinking:
    """The markers of thoughts that a text names: ``"<think> </think>"``, with a third word ``prefilled``, or ``"off"``.

    Raises:
        ValueError: If it is something else.
    """
    words = text.split()
    if words == ["off"]:
        return NO_THINKING
    if len(words) == 2 or words[2:] == ["prefilled"]:
        return Thinking(words[0], words[1], len(words) == 3)
    raise ValueError(f"thinking={text!r}: write the two markers, such as '<think> </think>', or off")


def make_reward(
    text: str, policy: str = "", generator: Generator | None = None, *, judge: str | None = None, **load: Any
) -> RewardModel:
    """The reward model that a text names.

    Args:
        text: ``"checker"`` (exact, embedded task), ``"likelihood"`` (under `policy`), an embedded reward model, the
            folder or hub id of a published process reward model, one whose format cannot be told by its name as
            ``"FORMAT@PATH"``, or an outcome reward model as ``"outcome@PATH"``.
        policy: The policy.
        generator: The policy as a generator, whose model and prompts ``"likelihood"`` shares.
        judge: The part of a solution that is judged, where the policy thinks; by default the reward model's own.
        load: `device`, `dtype` and other options of loading it, of which those without a model of their own need none.

    Raises:
        ValueError: If it is another text, or there is nothing to load.
    """
    from inferscale import zoo
    from inferscale.rewards import CheckerReward, HFOutcomeRewardModel, HFProcessRewardModel, LikelihoodReward

    judged: dict[str, Any] = {} if judge is None else {"judge": judge}
    shares = text == "likelihood" and generator is not None
    if (text == "checker" or shares) and (others := load.keys() - {"device", "dtype"}):
        raise ValueError(f"the reward {text!r} loads no model: leave out {', '.join(sorted(others))}")
    if text == "checker":
        if judge not in (None, "all"):
            raise ValueError(f"judge={judge!r}: the checker judges whole solutions")
        return CheckerReward()
    if text == "likelihood":
        # Its own judge reads the ids that it sampled; a separator that it never wrote would decide every vote.
        own: dict[str, Any] = {"token_reduction": "min", "reduction": "min", **judged}
        own |= {"use_token_ids": True, "step_separator": None}
        if shares:
            return LikelihoodReward.from_generator(generator, **own)
        if policy in embedded() and not load:
            return LikelihoodReward(*zoo.load(policy), **own)
        return LikelihoodReward.from_pretrained(at_hand(policy), **own, **load)
    if text in embedded():
        tokens: dict[str, Any] = {"good_token": "<good>", "bad_token": "<bad>", "reduction": "min", **judged}
        if not load:
            return HFProcessRewardModel(*zoo.load(text), **tokens)
        return HFProcessRewardModel.from_pretrained(at_hand(text), **tokens, **load)
    before, path = reward_path(text)
    with naming(path):
        if before == "outcome":
            return HFOutcomeRewardModel.from_pretrained(path, **judged, **load)
        return HFProcessRewardModel.from_pretrained(path, format=before or "auto", **judged, **load)


def reward_path(text: str) -> tuple[str, str]:
    """What stands before the ``@`` of a reward model's text, ``""`` if nothing does, and its folder or hub id."""
    before, at, path = text.partition("@")
    return (before, path) if at else ("", text)


@contextmanager
def naming(model: str) -> Iterator[None]:
    """Says of a model that cannot be had what was looked for."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{model!r} is no folder and no name of `inferscale models`, and from the hub it cannot be had: {error}"
        ) from error


def name_of(part: Generator | RewardModel) -> str:
    """The name of a part's model, without the way to its folder, or of its function, or else of its class."""
    from inferscale import zoo

    place = _place_of(part)
    if place and Path(place).exists():
        return zoo.name_of(place) or Path(place).name
    served = identity_of(part).get("model") if isinstance(part, Generator) and not place else None
    own = place or served or getattr(part, "name", "")
    return own if isinstance(own, str) and own and own != "<lambda>" else type(part).__name__


def _place_of(part: Generator | RewardModel) -> str:
    """The folder or hub id of the model that a part is; ``""`` if it was made as an object, or is used otherwise."""
    from inferscale.generators import HFGenerator
    from inferscale.rewards import HFOutcomeRewardModel, HFProcessRewardModel

    if not isinstance(part, HFGenerator | HFProcessRewardModel | HFOutcomeRewardModel):
        return ""
    return str(getattr(part.model, "name_or_path", "") or "")


def source_of(part: Generator | RewardModel) -> str | None:
    """What commands call the model of a generator or a reward model; ``None`` if they cannot load or make it."""
    from inferscale import zoo
    from inferscale.rewards import CheckerReward, HFOutcomeRewardModel, HFProcessRewardModel

    if type(part) is CheckerReward:
        return "checker"
    place = _place_of(part)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place) and not (place and Path(place).exists()):
        return None  # it was made as an object, or changed since it was loaded
    name = zoo.name_of(place) or place
    if isinstance(part, HFOutcomeRewardModel):
        return f"outcome@{name}"
    if isinstance(part, HFProcessRewardModel) and name in embedded():
        made = part.identity()
        alike = {"good_token": "<good>", "bad_token": "<bad>", "reduction": "min", "judge": "all"}
        return name if all(made[option] == value for option, value in alike.items()) else None
    return name


def command_words(identity: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The options of a generator as words of a command line, and what of them commands cannot be told.

    Args:
        identity: Of an `HFGenerator`; of others nothing is told.
    """
    from inferscale.generators import HFGenerator

    if identity["class"] != f"{HFGenerator.__module__}.{HFGenerator.__qualname__}":
        return [], [f"commands load no {identity['class'].rpartition('.')[2]}"]
    made = {**identity, **identity["sampler"]}
    words = ["--temperature", f"{made.get('temperature')}", "--max-new-tokens", f"{made['max_new_tokens']}"]
    flags = {"max_step_tokens": 256, "step_delimiter": "\n", "top_p": 1.0, "min_p": 0.0, "system_prompt": None}
    for name, usual in flags.items():
        if made.get(name) != usual:
            words += ["--" + name.replace("_", "-"), _escaped(made[name])]
    for text in made["stop"]:
        words += ["--stop", _escaped(text)]
    if made["takes_messages"] != bool(made["tokenizer"].get("chat_template")):
        words.append("--chat-template" if made["takes_messages"] else "--no-chat-template")
    if (dtype := made["model"]["dtype"]) != "torch.float32":
        words += ["--dtype", dtype.removeprefix("torch.")]
    others = {"top_k": 0, "confidence": "logprob", "repetition_penalty": 1.0, "logits_processor": [],
              "prefix_allowed_tokens_fn": None, "tools": None, "chat_template_kwargs": None, "control_tokens": None,
              "eos_token_id": None}  # fmt: skip
    return words, [f"commands have no option for {name}" for name, usual in others.items() if made.get(name) != usual]


def _escaped(value: Any) -> str:
    return value.encode("unicode_escape").decode() if isinstance(value, str) else str(value)


def parts_from_texts(
    model: str, options: Mapping[str, Any]
) -> tuple[Generator, SearchStrategy, RewardModel | None, Aggregator, int]:
    """Generator, strategy, reward model, aggregator and seed, as harnesses give them.

    Args:
        model: A folder, a hub id, or an embedded policy.
        options: ``strategy``, ``width`` (or ``n``), ``vote``, ``reward``, ``seed``, ``temperature``,
            ``max_new_tokens``, ``step_delimiter``, ``thinking``, ``judge``, and further options of `HFGenerator`, of
            which ``device`` and ``dtype`` are the reward model's too.

    Raises:
        ValueError: If there is no model, a name is unknown, or scores are needed and there is no reward.
    """
    if not model:
        raise ValueError("no model: give a folder, a hub id, or an embedded policy (lm-eval: pretrained=DIR)")
    given = dict(options)
    width = int(given.pop("width", given.pop("n", 16)))
    strategy, vote = (
        make_strategy(str(given.pop("strategy", "sampling")), width),
        make_vote(given.pop("vote", "majority")),
    )
    reward, seed, judge = given.pop("reward", None), int(given.pop("seed", 0)), given.pop("judge", None)
    check_scores(strategy, vote, reward)
    temperature, tokens = float(given.pop("temperature", 0.8)), int(given.pop("max_new_tokens", 512))
    generator = make_generator(model, temperature, tokens, given.pop("step_delimiter", "\\n"), **given)
    place = {name: given[name] for name in ("device", "dtype") if name in given}
    judged = None if reward is None else make_reward(reward, model, generator, judge=judge, **place)
    return generator, strategy, judged, vote, seed


def embedded() -> set[str]:
    """Names of the embedded models."""
    from inferscale import zoo

    return {card.name for card in zoo.list()}


def at_hand(model: str) -> str | os.PathLike[str]:
    """The folder of a model that `inferscale.zoo` knows by this name, or what was given: a path or a hub id."""
    from inferscale import zoo

    return zoo.path(model) if model in {card.name for card in zoo.list(packaged=True)} else model


def _checked(known: Mapping[str, object], name: str, what: str) -> str:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}: choose one of {', '.join(known)}")
    return name


def _made(text: str, kind: type[Any], home: str) -> Any:
    """The part that a call such as ``REBASE(width=8)`` would make: the syntax is read, nothing is executed."""
    what = "strategy" if kind is SearchStrategy else "vote"
    known = {name: value for name, value in vars(import_module(home)).items() if _is_part(value, kind)}

    def value(node: ast.expr) -> Any:
        if not isinstance(node, ast.Call):
            try:
                return ast.literal_eval(node)
            except (ValueError, TypeError):
                raise ValueError(f"{ast.unparse(node)!r} in the {what}: options are numbers, texts, or calls") from None
        part = known[_checked(known, ast.unparse(node.func), what)]
        arguments = [value(argument) for argument in node.args]
        options = {str(option.arg): value(option.value) for option in node.keywords}
        try:
            return part(*arguments, **options)
        except TypeError as error:
            raise ValueError(f"{what} {ast.unparse(node)}: {error}") from None

    try:
        return value(ast.parse(text, mode="eval").body)
    except (SyntaxError, MemoryError, RecursionError):  # the last two: nested thousands deep
        raise ValueError(f"{what} {text[:200]!r} is not written like REBASE(width=16)") from None


def _is_part(value: object, kind: type[Any]) -> bool:
    return isinstance(value, type) and issubclass(value, kind) and value is not kind
