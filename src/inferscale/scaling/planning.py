"""The question itself: given a model, a reward model and what a problem may cost, which search should be run?"""

from __future__ import annotations

import ast
import html
import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from inferscale.aggregators import BestOfN, MajorityVote
from inferscale.answers import Reader, SameAnswer
from inferscale.base import (
    Aggregator,
    Generator,
    Planned,
    ProcessRewardModel,
    RewardModel,
    SearchStrategy,
    check_scores,
)
from inferscale.cost import Budget, Meter, Price
from inferscale.engine.files import write_atomically
from inferscale.engine.result import Abstentions, SearchResult, voted
from inferscale.engine.several import GeneratorGroup
from inferscale.engine.solver import Solver, as_problems
from inferscale.evaluate.parts import command_words, make_strategy, make_vote, name_of, source_of
from inferscale.evaluate.records import append, cut_torn_line, graded, read_records
from inferscale.evaluate.runs import run_evaluation
from inferscale.functional import Reduction
from inferscale.identity import compare, digest, identity_of, unknown_in, warn_of_unknown
from inferscale.strategies import DVTS, REBASE, AdaptiveConsistency, BeamSearch, Greedy, RepeatedSampling
from inferscale.thinking import Thinking
from inferscale.tree import Problem, Trajectory

from .beliefs import Floats
from .curves import (
    SIZES,
    Evidence,
    Vote,
    first_steps,
    gather_evidence,
    is_sampling,
    padded,
    powers,
    prompt_flops,
    sampling_values,
)
from .race import Costs, Measured, Race, Winner, told, wilson

Judge: TypeAlias = Callable[[Problem, str, str], float]
"""``judge(problem, first, second)``: the chance that the first text is the better one, 0 to 1."""
FORMAT, VERSION = "inferscale.Plan", 1
FEWEST_PROBLEMS = 30
_REDUCTIONS: tuple[Reduction, ...] = ("last", "min", "prod", "mean")
_BLOCKS = 8  # disjoint parts of a pool that a vote without a formula is tried on


@dataclass(frozen=True)
class Configuration:
    """A generator, a strategy, a vote, and a reward model if one of them reads scores: all that a search needs.

    Attributes:
        generator: The generator's name.
        reward: The reward model's name; ``None`` if no score is read.
        strategy: The strategy.
        aggregator: The vote.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.scaling import Configuration
        >>> chosen = Configuration("policy-m", "prm-s", isc.REBASE(16), isc.MajorityVote(weighted=True))
        >>> chosen.name
        'policy-m: REBASE(width=16), MajorityVote(weighted=True) by prm-s'
    """

    generator: str
    reward: str | None
    strategy: SearchStrategy
    aggregator: Aggregator

    @property
    def name(self) -> str:
        """All of it in a line."""
        judged = f" by {self.reward}" if self.reward else ""
        return f"{self.generator}: {written(self.strategy)}, {written(self.aggregator)}{judged}"


@dataclass(frozen=True)
class Tried:
    """A configuration and what was found of it.

    Attributes:
        configuration: The configuration.
        problems: Number of problems that it was tried on.
        accuracy: Share answered right; of a plan by a judge, the chance to be better than one sample.
        low: Lower end of its 95 % interval (Wilson's, by the variance over problems).
        high: Upper end.
        costs: Mean cost of a problem, by the names of `Budget`; what is not known is left out.
        chances: For each budget the chance that it is the best of those not shown to be behind; ``None`` if it is too
            dear.
        dropped: For each budget why it left the race, ``""`` if it did not.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator
        >>> problems = [isc.Problem(f"Question {i}?", answer="2") for i in range(30)]
        >>> made = isc.plan(
        ...     problems, ToyGenerator(depth=2), budgets=isc.Budget(tokens=25), strategies=[isc.RepeatedSampling(4)]
        ... )
        >>> for tried in made.tried:
        ...     print(tried.configuration.strategy, f"{tried.accuracy:.2f}", tried.chances)
        RepeatedSampling(n=1) 0.26 (1.0,)
        RepeatedSampling(n=2) 0.26 (1.0,)
        RepeatedSampling(n=4) 0.23 (None,)
    """

    configuration: Configuration
    problems: int
    accuracy: float
    low: float
    high: float
    costs: Mapping[str, float]
    chances: tuple[float | None, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The configuration to run at one budget.

    Attributes:
        budget: What a problem may cost on average.
        tried: The configuration, its accuracy and its costs; ``None`` if the budget can buy none of them.
        chance: That it is the best of those that were not shown to be behind, as far as is known.
        rival: The name of the one that is most likely to be the best instead, of those that differ from it.
        gap: Expected accuracy of the choice minus that of the rival.
        problems_needed: Number of problems that would tell them apart, if the gap is as expected.
        is_clear: True if the data tell that it is the best: `chance` is at least one minus the plan's `error`.
        expected: Accuracy that is expected on other problems: what was seen of all that was tried, taken together
            (`inferscale.scaling.Race`).

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator
        >>> problems = [isc.Problem(f"Question {i}?", answer="2") for i in range(30)]
        >>> budgets = [isc.Budget(tokens=12), isc.Budget(tokens=90)]
        >>> made = isc.plan(problems, ToyGenerator(depth=2), budgets=budgets, strategies=[isc.RepeatedSampling(8)])
        >>> for choice in made.choices:
        ...     print(choice.configuration.strategy, round(choice.chance, 1), choice.is_clear)
        RepeatedSampling(n=1) 1.0 True
        RepeatedSampling(n=4) 0.5 False
    """

    budget: Budget
    tried: Tried | None
    chance: float
    rival: str | None
    gap: float | None
    problems_needed: int | None
    is_clear: bool
    expected: float | None = None

    @property
    def configuration(self) -> Configuration:
        """The configuration to run.

        Raises:
            ValueError: If the budget can buy none.
        """
        if self.tried is None:
            raise ValueError(f"no configuration that was tried costs as little as {told(self.budget)}: give more")
        return self.tried.configuration

    def __str__(self) -> str:
        """The choice in a sentence, with what the data cannot tell."""
        if (t := self.tried) is None:
            return f"{told(self.budget)}: nothing that was tried costs so little"
        costs = ", ".join(f"{value:.3g} {name}" for name, value in t.costs.items())
        text = (
            f"{told(self.budget)}: {t.configuration.name}: {100 * t.accuracy:.1f} % (95 % interval "
            f"{100 * t.low:.1f} to {100 * t.high:.1f}, {t.problems} problems) for {costs}; "
            + ("" if self.expected is None else f"expect {100 * self.expected:.1f} %; ")
            + f"the best with a chance of {self.chance:.0%}"
        )
        if t.accuracy == 0:
            return f"{text}. No problem was answered right: compare gold answers with those that are read"
        if self.is_clear or self.rival is None:
            return text
        text += f". The data cannot tell it from {self.rival}"
        if self.problems_needed is None or self.gap is None:
            return text + ", which was as good on every problem"
        text += f" ({100 * self.gap:+.1f} points): "
        if self.problems_needed <= t.problems:
            return text + f"{self.problems_needed:,} problems do in four of five cases"
        return text + f"about {self.problems_needed:,} problems would"


@dataclass(frozen=True)
class Plan(Planned):
    """The configurations to run at each cost, and how they are known; `plan` makes one.

    It stands where a strategy does: ``solve_batch(problems, plan, generator, budget=Budget(flops=1e12))`` runs the
    choice of that budget. The budget is then what a problem may cost on average, and no single search is cut by it.

    Attributes:
        choices: One for each budget, in the order given.
        tried: Everything that was tried.
        problems: Number of problems at hand.
        error: Probability that a best configuration was dropped as shown to be behind, over all budgets.
        spent: What planning has cost, by the names of `Budget`.
        most: The most that it was allowed to cost.
        parts: Identities of the generators and reward models by their names; as ``"options"`` those of the reader and
            of the markers of thoughts, where they were given.
        rewards: The reward models themselves, in the process that made the plan.
        sources: What commands call the generators and reward models: a path, a hub id, an embedded model. As `parts`,
            but that what commands cannot load is left out.
        untried: Runs that were not begun, for `most` was spent before.
        judged: True if accuracies are chances to be better than one sample, by a judge.
        notes: Advice for each generator where a tenth of its trajectories or more had no answer (`Abstentions.notes`).

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator
        >>> problems = [isc.Problem(f"Question {i}?", answer="2") for i in range(30)]
        >>> toy = ToyGenerator(depth=2)
        >>> made = isc.plan(problems, toy, budgets=isc.Budget(tokens=50), strategies=[isc.RepeatedSampling(8)])
        >>> [f"{t.costs['tokens']:.0f} tokens: {t.accuracy:.0%}" for t in made.frontier()]
        ['11 tokens: 26%', '44 tokens: 28%']
        >>> isc.solve("Another question?", made, toy).answer  # a plan stands where a strategy does
        '2'
    """

    choices: tuple[Choice, ...]
    tried: tuple[Tried, ...] = field(repr=False)
    problems: int
    error: float
    spent: Mapping[str, float]
    most: Budget | None
    parts: Mapping[str, Mapping[str, Any]] = field(repr=False)
    rewards: Mapping[str, RewardModel] = field(default_factory=dict, repr=False, compare=False)
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    untried: tuple[str, ...] = ()
    judged: bool = False
    notes: tuple[str, ...] = ()

    def choose(self, budget: Budget | None = None) -> Choice:
        """The choice of a budget: of the best that was chosen for any budget and costs no more than this one.

        Args:
            budget: May be left out if the plan has only one.

        Raises:
            TypeError: If it is no budget.
            ValueError: If none is given and the plan has several, or nothing that was chosen costs so little.
        """
        if not isinstance(budget, Budget | None):
            raise TypeError(f"budget must be a Budget, not {budget!r:.80}: give Budget(tokens=...) or another cap")
        if budget is None:
            if len(self.choices) > 1:
                known = "; ".join(told(choice.budget) for choice in self.choices)
                raise ValueError(f"the plan has several budgets ({known}): say which, with budget=Budget(...)")
            return self.choices[0]
        for choice in self.choices:
            if choice.budget == budget:
                return choice
        within = [c for c in self.choices if c.tried is not None and _fits(c.tried, budget)]
        if unknown := budget.caps.keys() - {name for c in self.choices if c.tried for name in c.tried.costs}:
            raise ValueError(f"the plan does not know what its choices take of {', '.join(sorted(unknown))}: plan for "
                             f"a budget of {told(budget)}")  # fmt: skip
        if not within:
            raise ValueError(f"nothing that the plan chose costs as little as {told(budget)}: plan for that budget")
        return max(within, key=_promise)

    def parts_for(
        self, generator: Generator, reward_model: RewardModel | None, budget: Budget | None
    ) -> tuple[SearchStrategy, Generator, RewardModel | None, Aggregator]:
        """Strategy, generator, reward model and vote of a budget, for the `Solver` that is given the plan.

        Args:
            generator: The generator at hand, or several by name.
            reward_model: The reward model at hand; by default the one that the plan was made with.
            budget: As in `choose`.

        Raises:
            ValueError: If the choice needs another generator or reward model than what is given.
        """
        chosen = self.choose(budget).configuration
        if isinstance(generator, GeneratorGroup):
            if chosen.generator not in generator.generators:
                raise ValueError(f"the plan chose the generator {chosen.generator}: give it by that name")
            generator = generator.generators[chosen.generator]
        self._check("generators", chosen.generator, generator)
        if chosen.reward is None:
            return chosen.strategy, generator, None, chosen.aggregator
        given = self.rewards if reward_model is None else reward_model
        judge = given.get(chosen.reward) if isinstance(given, Mapping) else given  # several by name, as to `plan`
        if judge is None:
            raise ValueError(f"{chosen.name} reads scores: pass reward_model=... ({chosen.reward})")
        self._check("reward models", chosen.reward, judge)
        return chosen.strategy, generator, judge, chosen.aggregator

    def _check(self, kind: str, name: str, part: object) -> None:
        apart = compare({name: self.parts[kind][name]}, {name: _plain_identity(part)})
        if apart.changed:
            raise ValueError(f"the plan chose the {kind[:-1]} {name}, another one is given ({apart}): give that one")

    @property
    def cost(self) -> str:
        """The name of the cost that the first budget caps."""
        return next(iter(self.choices[0].budget.caps))

    def frontier(self, cost: str | None = None) -> list[Tried]:
        """The configurations that no other beats, cheapest first.

        Args:
            cost: One of the names of `Budget`; by default the one that the first budget caps.
        """
        name = cost or self.cost
        best: list[Tried] = []
        known = [t for t in self.tried if name in t.costs]
        for t in sorted(known, key=lambda t: (t.costs[name], -t.accuracy)):
            if not best or t.accuracy > best[-1].accuracy:
                best.append(t)
        return best

    def python(self, budget: Budget | None = None) -> str:
        """Lines of Python that run the choice of a budget.

        They use ``problems``, and ``generator``, ``reward_model``, ``read_answer`` and ``thinking`` as they were given
        to `plan`; a strategy or vote that cannot be written as a call of its options stands as ``strategy`` or
        ``aggregator``.
        """
        chosen = self.choose(budget).configuration
        strategy, imports = _call(chosen.strategy, "strategy")
        vote, more = _call(chosen.aggregator, "aggregator")
        given = ["problems", strategy, self._variable("generators", chosen.generator)]
        if chosen.reward is not None:
            given.append("reward_model=" + self._variable("reward models", chosen.reward))
        own = [f"{name}={name}" for name in self.parts.get("options", ())]
        named = f"  # generator: {chosen.generator}" + (f", reward_model: {chosen.reward}" if chosen.reward else "")
        return "\n".join([
            f"from inferscale import solve_batch{named}", *sorted({*imports, *more}), "",
            f"results = solve_batch(\n    {', '.join(given)},\n    {', '.join([f'aggregator={vote}', *own])},\n)",
        ])  # fmt: skip

    def _variable(self, kind: str, name: str) -> str:
        """A generator or reward model as an expression: one of several is given by name."""
        variable = {"generators": "generator", "reward models": "reward_model"}[kind]
        return variable if len(self.parts[kind]) == 1 else f"{variable}[{name!r}]"

    def command(self, budget: Budget | None = None, options: Sequence[str] | None = None) -> str:
        """The command line that evaluates the choice of a budget.

        What a command cannot load or be told, such as a model without a name, is said in a comment behind it.

        Args:
            budget: As in `choose`.
            options: Words that set the options of the models; by default those that the generator was made with.
        """
        chosen = self.choose(budget).configuration
        model = self.sources.get("generators", {}).get(chosen.generator)
        words = ["inferscale", "eval", "--model", model or chosen.generator, "--strategy", written(chosen.strategy)]
        words += ["--vote", written(chosen.aggregator)]
        missing = [] if model else [f"--model: where {chosen.generator} is, a folder or hub id"]
        if options is None:
            options, more = command_words(self.parts["generators"][chosen.generator])
            missing = more or missing
        if chosen.reward is not None:
            judge = self.sources.get("reward models", {}).get(chosen.reward)
            words += ["--reward", judge or chosen.reward]
            missing += [] if judge else [f"commands load {chosen.reward} with other options, or not at all"]
        for part, make in ((chosen.strategy, make_strategy), (chosen.aggregator, make_vote)):
            if not _is_made(part, make):
                missing.append(f"commands cannot make {written(part)}")
        return shlex.join([*words, *options]) + (f"  # {'; '.join(missing)}" if missing else "")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the plan as versioned JSON; return the path."""
        target = Path(path)
        data = {
            "format": FORMAT, "version": VERSION, "problems": self.problems, "error": self.error,
            "spent": dict(self.spent), "most": self.most and _caps(self.most), "parts": self.parts,
            "sources": dict(self.sources), "untried": self.untried, "judged": self.judged, "notes": self.notes,
            "tried": [{**_plain(t, "configuration"), "configuration": _texts(t.configuration)} for t in self.tried],
            "choices": [{**_plain(c, "tried", "budget"), "budget": _caps(c.budget),
                         "tried": None if c.tried is None else self.tried.index(c.tried)} for c in self.choices],
        }  # fmt: skip
        write_atomically(target, json.dumps(data, indent=1, default=str) + "\n")
        return target

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], strategies: Iterable[SearchStrategy] = (),
        aggregators: Iterable[Aggregator] = (),
    ) -> Plan:  # fmt: skip
        """Load what `save` wrote.

        Args:
            path: The file.
            strategies: Strategies of your own that the plan may name; those of the library are known.
            aggregators: Votes of your own, and those with functions among their options.

        Raises:
            ValueError: If the file is no plan, a newer version wrote it, or it names a strategy or vote that is not
                known.
        """
        try:
            data = json.loads(Path(path).read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not a saved plan: {error}") from error
        form = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        if form != FORMAT:
            raise ValueError(f"{path} is not a saved plan: format is {form!r}, expected {FORMAT!r}")
        if not isinstance(version := data.get("version"), int) or version > VERSION:
            raise ValueError(f"{path} was written by a newer inferscale (version {version}): update to read it")
        own = {written(part): part for part in (*strategies, *aggregators)}
        try:
            return cls._from_plain(data, own)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is a damaged plan ({type(error).__name__}: {error}): save it anew") from error

    @classmethod
    def _from_plain(cls, data: Mapping[str, Any], own: Mapping[str, Any]) -> Plan:
        tried = tuple(
            Tried(**{**row, "configuration": _configuration(row["configuration"], own),
                     "chances": tuple(row["chances"]), "dropped": tuple(row["dropped"])})
            for row in data["tried"]
        )  # fmt: skip
        choices = tuple(
            Choice(**{**row, "budget": _budget(row["budget"]),
                      "tried": None if row["tried"] is None else tried[row["tried"]]})
            for row in data["choices"]
        )  # fmt: skip
        most = None if data["most"] is None else _budget(data["most"])
        return cls(choices, tried, data["problems"], data["error"], data["spent"], most, data["parts"],
                   sources=data.get("sources", {}), untried=tuple(data.get("untried", ())),
                   judged=data.get("judged", False), notes=tuple(data.get("notes", ())))  # fmt: skip

    def table(self) -> str:
        """The choices, and every configuration that was tried, as text."""
        lines = [*self._told(), "", self._how(), ""]
        header = ["accuracy", "95 % interval", "problems", *self._costs()]
        names = [t.configuration.name for t in self._ranked()]
        width = max(map(len, names), default=10)
        lines.append(
            " ".join([f"{'configuration':<{width}}", *(f"{cell:>13}" for cell in header), " best at, why not"])
        )
        for t, name in zip(self._ranked(), names, strict=True):
            lines.append(
                " ".join([f"{name:<{width}}", *(f"{cell:>13}" for cell in self._cells(t)), f" {self._why(t)}"])
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        """The choices, a line for each budget."""
        return "\n".join([*self._told(), self._how()])

    def _told(self) -> list[str]:
        """The choices in words; of a budget that buys nothing what the cheapest takes."""
        lines = []
        for choice in self.choices:
            least = {name: min((t.costs[name] for t in self.tried if name in t.costs), default=None)
                     for name in choice.budget.caps}  # fmt: skip
            known = ", ".join(f"{value:.4g} {name}" for name, value in least.items() if value is not None)
            lines.append(f"{choice} (the least is {known})" if choice.tried is None and known else str(choice))
        return lines

    def to_html(self) -> str:
        """The plan as a piece of HTML: no script, nothing from outside, names escaped."""
        header = ("configuration", "accuracy", "95 % interval", "problems", *self._costs(), "best at, why not")
        rows = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
        for t in self._ranked():
            cells = (t.configuration.name, *self._cells(t), self._why(t))
            rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
        listed = "".join(f"<li>{html.escape(line)}</li>" for line in self._told())
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        text = (
            f'<div class="inferscale"><ul>{listed}</ul><p>{html.escape(self._how())}</p>'
            f'<div style="overflow-x: auto"><table>{body}</table></div></div>'
        )
        return text.encode("ascii", "xmlcharrefreplace").decode()

    def _repr_html_(self) -> str:
        """`to_html`, for notebooks."""
        return self.to_html()

    def plot(self, cost: str | None = None, ax: Any = None) -> Any:
        """Draw accuracy against cost with the frontier and the choices (extra ``plot``); return the axes.

        Args:
            cost: One of the names of `Budget`; by default the one that the first budget caps.
            ax: Where to draw; new axes by default.
        """
        from inferscale.viz import plot_plan

        return plot_plan(self, cost, ax)

    def _costs(self) -> list[str]:
        return list(dict.fromkeys(name for t in self.tried for name in t.costs))

    def _ranked(self) -> list[Tried]:
        return sorted(self.tried, key=lambda t: -t.accuracy)

    def _cells(self, t: Tried) -> list[str]:
        known = (f"{t.costs[name]:.3g}" if name in t.costs else "" for name in self._costs())
        return [f"{100 * t.accuracy:.1f} %", f"{100 * t.low:.1f} to {100 * t.high:.1f}", str(t.problems), *known]

    def _why(self, t: Tried) -> str:
        places = [told(c.budget) for c in self.choices if c.tried == t]
        reasons = dict.fromkeys(reason for reason in t.dropped if reason)
        return "; ".join([*(f"CHOSEN at {place}" for place in places), *reasons])

    def _how(self) -> str:
        spent = ", ".join(f"{value:.3g} {name}" for name, value in self.spent.items())
        allowed = f" ({told(self.most)} allowed)" if self.most else ""
        judged = " Accuracy is the chance to be better than one sample: 50 % is as good." if self.judged else ""
        rest = f" Not begun, for that was spent before: {'; '.join(self.untried)}." if self.untried else ""
        return (
            f"Planned on {self.problems} problems for {spent}{allowed}.{rest} With probability {1 - self.error:.0%} or "
            "more no best configuration was dropped as shown to be behind; what was set aside was not shown to be."
            + "".join([judged, *(f" {note}." for note in self.notes)])
        )


def candidates(reward_model: RewardModel | None = None, sizes: Sequence[int] = (4, 16, 64)) -> list[SearchStrategy]:
    """Strategies to try with what is at hand, from pools of samples to searches that read a process reward.

    Without a reward model: greedy, repeated sampling, and sampling until the answer is settled. With one that judges
    outcomes the same, for its votes read the same samples. With one that judges steps also REBASE, beam search and
    DVTS (of beams with four children, at the sizes that four divides).

    Args:
        reward_model: The reward model at hand.
        sizes: Numbers of samples, or of leaves, to try.

    Example:
        >>> from inferscale.scaling import candidates
        >>> from inferscale.testing import ToyProcessReward
        >>> [type(strategy).__name__ for strategy in candidates(sizes=[4, 16])]
        ['Greedy', 'RepeatedSampling', 'RepeatedSampling', 'AdaptiveConsistency']
        >>> [type(strategy).__name__ for strategy in candidates(ToyProcessReward(), sizes=[16])]
        ['Greedy', 'RepeatedSampling', 'AdaptiveConsistency', 'REBASE', 'BeamSearch', 'DVTS']
    """
    found: list[SearchStrategy] = [Greedy(), *map(RepeatedSampling, sizes)]
    found += [AdaptiveConsistency(n=size) for size in sizes if size >= 16]
    if isinstance(reward_model, ProcessRewardModel):
        found += map(REBASE, sizes)
        found += [kind(size // 4, 4) for size in sizes if size % 4 == 0 for kind in (BeamSearch, DVTS)]
    return found


def plan(
    problems: Sequence[Problem | str],
    generator: Generator | Mapping[str, Generator],
    *,
    budgets: Budget | Sequence[Budget],
    reward_model: RewardModel | Mapping[str, RewardModel] | None = None,
    strategies: Sequence[SearchStrategy] | None = None,
    aggregators: Sequence[Aggregator] = (),
    most: Budget | None = None,
    error: float = 0.05,
    judge: Judge | None = None,
    directory: str | os.PathLike[str] | None = None,
    force: bool = False,
    read_answer: Reader | None = None,
    thinking: Thinking | Literal[False] | None = None,
    same_answer: SameAnswer | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
    energy: Meter | None = None,
) -> Plan:
    """Choose what to run for each budget, by a race of strategies, sizes, votes and models on your problems.

    Samples are shared: a pool of samples gives every smaller number of samples and every vote (unbiased estimators
    over subsets), a tree is voted on in every way. How the race is run, and what its error probability means, is told
    at `inferscale.scaling.Race`. The choice of a budget is the configuration with the greatest expected accuracy among
    those whose mean cost is within every cap of the budget: expected after all that was seen, so that the luckiest of
    many tries is not taken for the best.

    An exception that comes on the way, an interrupt too, has an attribute ``plan``: what was known by then, if a run
    had begun. With a `directory`, the same call goes on from there.

    Args:
        problems: At least 30, such as those that will be asked later; each prompt once, with its gold answer unless
            there is a `judge`.
        generator: The model, or several by name.
        budgets: What a problem may cost on average: one `Budget` or several. Seconds are the time in the models, shared
            by the searches of a batch.
        reward_model: One, or several by name.
        strategies: What to try; by default `candidates` for each reward model. A strategy that scores nodes is tried
            with every reward model.
        aggregators: Votes to try beside majority, weighted and best-of-n with every reduction of step scores.
        most: The most that planning may cost in all, spent where it promises most; by default every problem is used by
            all that are not shown to be behind.
        error: Probability with which a best configuration may be dropped as shown to be behind.
        judge: Compares two texts where there are no gold answers; accuracy is then the chance to be better than one
            sample of the first generator, as the mean of both orders. What it costs is not counted.
        directory: A folder of runs, one for each strategy, generator and reward model, as `run_evaluation` writes them:
            the same call again goes on where this one ended. The verdicts of `judge` are kept there too.
        force: Where the folder holds runs on other problems: keep what is still valid, as `run_evaluation` does. So a
            plan goes on with more problems.
        read_answer: As in `solve`.
        thinking: As in `solve`.
        same_answer: Tells whether an answer is right; by default the equality of the problem's kind.
        seed: Of the samples, and of the order of the problems.
        batch_size: Problems searched at the same time.
        energy: Reads the energy that the models use, for budgets of joules; as in `solve`.
        progress: Print what is still in the race.

    Raises:
        TypeError: If a part is not what it should be.
        ValueError: If there are too few problems, gold answers or candidates, a prompt comes twice, or a budget caps
            what is not known of the models; the last is seen when the first problems of a run are done.
        ChangedRunError: If the folder holds runs of other parts.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> problems = [isc.Problem(f"Question {i}?", answer="2") for i in range(30)]
        >>> made = isc.plan(
        ...     problems, ToyGenerator(depth=2), budgets=isc.Budget(tokens=90), reward_model=ToyProcessReward(),
        ...     strategies=[isc.RepeatedSampling(8), isc.REBASE(8)],
        ... )
        >>> len(made.tried), made.choose().configuration.name
        (37, 'ToyGenerator: REBASE(width=8), BestOfN() by ToyProcessReward')
        >>> made.choose().is_clear  # 30 problems and toys that guess tell no difference
        False
    """
    given = _checked_problems(as_problems(problems, "plan"), judge)
    wanted = _budgets(budgets)
    if most is not None and not (isinstance(most, Budget) and most.caps):
        raise ValueError(f"most={most!r:.80}: give Budget(tokens=...) or another cap")
    limits = wanted if most is None else [*wanted, most]
    if not 0 < error < 1:
        raise ValueError(f"error={error!r}: give a probability between 0 and 1, such as 0.05")
    if len(prices := {b.price for b in limits if b.price is not None}) > 1:
        raise ValueError(f"budgets of {len(prices)} prices: give all of them one, as the same models are paid")
    strategies = None if strategies is None else _listed(strategies, SearchStrategy, "strategies", "REBASE(width=16)")
    votes = tuple(_listed(aggregators, Aggregator, "aggregators", "BestOfN()"))
    if judge is not None and not callable(judge):
        raise TypeError(f"judge must be a function of a problem and two texts, not {judge!r:.80}")
    generators = _named(generator, Generator, "generator")
    judges = _named(reward_model, RewardModel, "reward_model")
    check_scores(judges or None, *votes)
    for budget in limits:
        for model in generators.values():  # refuses what cannot be measured, and options that no search takes
            Solver(RepeatedSampling(1), model, budget=budget, energy=energy, seed=seed)
    order = [given[i] for i in np.random.default_rng(seed).permutation(len(given))]
    price = next(iter(prices), None)
    options: dict[str, Any] = {
        "read_answer": read_answer, "thinking": thinking, "seed": seed, "batch_size": batch_size, "energy": energy,
    }  # fmt: skip
    folder = None if directory is None else Path(directory)
    referee = None
    if judge is not None:
        first = next(iter(generators.values()))
        referee = Referee(judge, first, order, {**options, "seed": seed + 1}, folder, force)
    runners = [
        Pool(name, model, label, rewards, strategy, order, votes, options, folder, same_answer, referee, price,
             force=force)
        for name, model in generators.items()
        for label, rewards, strategy in _entries(strategies, judges)
    ]  # fmt: skip
    race = Race(runners, wanted, len(order), most, error, _line if progress else lambda line: None)
    read = {"read_answer": read_answer, "thinking": thinking}

    def found(winners: Sequence[Winner]) -> Plan:
        return _as_plan(
            race, winners, runners, wanted, error, most, generators, judges, read, judge is not None, len(order)
        )

    try:
        return found(race.run())
    except BaseException as stopped:
        if race.measured:
            stopped.__dict__["plan"] = found(race.winners())
        raise


def _budgets(given: Any) -> list[Budget]:
    """Budgets, each once."""
    budgets = list(given) if isinstance(given, Iterable) else [given]
    if not budgets or any(not isinstance(b, Budget) or not b.caps for b in budgets):
        raise ValueError(f"budgets={given!r:.80}: give Budget(tokens=...) or another cap, or a list of them")
    return list(dict.fromkeys(budgets))


def _listed(given: Any, kind: type[Any], what: str, example: str) -> list[Any]:
    parts = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    for part in parts:
        if not isinstance(part, kind):
            raise TypeError(f"{what} holds {part!r:.80}: give a list of instances such as {example}")
    return parts


def _checked_problems(given: list[Problem], judge: Judge | None) -> list[Problem]:
    if len(given) < FEWEST_PROBLEMS:
        raise ValueError(f"{len(given)} problems tell too little: give at least {FEWEST_PROBLEMS}")
    if len({p.stream for p in given}) < len(given):
        raise ValueError("a prompt comes more than once among the problems: give each once")
    without = next((p for p in given if p.answer is None), None)
    if judge is None and without is not None:
        raise ValueError(f"{without.prompt[:60]!r} has no gold answer: give Problem(prompt, answer=...), or judge=...")
    return given


def _named(given: Any, kind: type[Any], what: str) -> dict[str, Any]:
    """Parts by name; one alone has the name of its model."""
    if given is None:
        return {}
    parts = dict(given) if isinstance(given, Mapping) else {name_of(given): given}
    for name, part in parts.items():
        if not isinstance(part, kind):
            raise TypeError(f"{what} must be a {kind.__name__} or several by name, not {type(part).__name__} ({name})")
    if not parts:
        raise ValueError(f"{what} is empty: give at least one")
    return parts


def _entries(
    strategies: Sequence[SearchStrategy] | None, judges: Mapping[str, RewardModel]
) -> Iterator[tuple[str | None, RewardModel | None, SearchStrategy]]:
    """Which strategy is run with which reward model: samples with each, what reads no score at all without one."""
    labelled: list[tuple[str | None, RewardModel | None]] = [*judges.items()] or [(None, None)]
    seen: set[tuple[str | None, SearchStrategy]] = set()
    for label, judge in labelled:
        chosen = candidates(judge) if strategies is None else strategies
        if not chosen:
            raise ValueError("strategies is empty: give at least one, or leave it out")
        for strategy in chosen:
            check_scores(judge, strategy)
            alone = isinstance(strategy, Greedy)  # a vote over one has no use for a score
            entry = (None if alone else label, strategy)
            if entry not in seen:
                seen.add(entry)
                yield entry[0], None if alone else judge, strategy


def _line(text: str) -> None:
    import sys

    print(text, file=sys.stderr, flush=True)


class Referee:
    """Compares texts with one sample of each problem, in both orders.

    Args:
        judge: See `plan`.
        generator: Draws the samples.
        problems: The problems.
        options: Of the searches.
        folder: Where samples and verdicts are kept, so that none is paid twice.
        force: As in `plan`.
    """

    def __init__(
        self, judge: Judge, generator: Generator, problems: Sequence[Problem], options: Mapping[str, Any],
        folder: Path | None, force: bool,
    ) -> None:  # fmt: skip
        self._judge, self._generator, self._problems, self._options = judge, generator, problems, options
        self._folder, self._force = folder, force
        self._samples: list[str] = []
        self._known: dict[str, float] = {}
        self._file: Path | None = None
        self._identity = _plain_identity(judge)
        if folder is not None and unknown_in(self._identity):
            warn_of_unknown(self._identity, f"its verdicts are not kept in {folder}, where the plan")
        elif folder is not None:
            self._file = folder / "verdicts.jsonl"
            cut_torn_line(self._file)
            self._known = {row["key"]: row["value"] for row in read_records(self._file)}

    def value(self, index: int, text: str) -> float:
        """The chance that `text` is better than the sample of problem `index`."""
        if index >= len(self._samples):
            upto = min(max(index + 1, 2 * len(self._samples), 8), len(self._problems))
            self._samples += self._drawn(len(self._samples), upto)
        problem, other = self._problems[index], self._samples[index]
        if text == other:
            return 0.5
        key = digest([self._identity, problem.stream, text, other])
        if key not in self._known:
            told = self._judge(problem, text, other), self._judge(problem, other, text)
            if not all(isinstance(each, float | int | np.number | np.bool_) and 0 <= each <= 1 for each in told):
                raise ValueError(f"judge must return a chance between 0 and 1, got {told!r} for both orders")
            self._known[key] = value = (float(told[0]) + 1.0 - float(told[1])) / 2
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("ab", buffering=0) as file:
                    append(file, {"key": key, "value": value})
        return self._known[key]

    def _drawn(self, done: int, upto: int) -> list[str]:
        if self._folder is None:
            solver = Solver(RepeatedSampling(1), self._generator, **self._options)
            return [result.text for result in solver.solve_batch(self._problems[done:upto])]
        run = run_evaluation(self._problems, RepeatedSampling(1), self._generator, self._folder / "compared-with",
                             first=upto, force=self._force, **self._options)  # fmt: skip
        texts = {record["index"]: SearchResult.from_dict(record["result"]).text for record in run.finished}
        return [texts[index] for index in range(done, upto)]


class Pool:
    """One run of a strategy, and the configurations that are read out of it; a `Runner` of the race."""

    def __init__(
        self, generator_name: str, generator: Generator, reward_name: str | None, reward: RewardModel | None,
        strategy: SearchStrategy, problems: Sequence[Problem], aggregators: tuple[Aggregator, ...],
        options: Mapping[str, Any], directory: Path | None, same_answer: SameAnswer | None, referee: Referee | None,
        price: Price | None = None, force: bool = False,
    ) -> None:  # fmt: skip
        self.name = f"{generator_name}: {written(strategy)}" + (f" by {reward_name}" if reward_name else "")
        self.generator = generator_name
        self._names, self._strategy, self._problems = (generator_name, reward_name), strategy, problems
        self._parts, self._options, self._same, self._referee = (generator, reward), options, same_answer, referee
        self._price, self._force = price, force
        self._votes = [*dict.fromkeys([*usual_votes(reward), *aggregators])]
        slug = "".join(c if c.isalnum() or c in "=." else "-" for c in self.name)
        self._directory = None if directory is None else directory / slug
        self.configurations: dict[str, Configuration] = {}
        self._values: dict[str, list[Floats]] = {}
        self._costs: dict[str, list[dict[str, Floats]]] = {}
        self._paid: list[dict[str, Floats]] = []
        self._done = 0
        self.abstentions = Abstentions()

    def measure(self, problems: int) -> Measured:
        """Run the problems that are missing, and read every configuration out of them."""
        if problems > self._done:
            results, correct = self._results(problems)
            self.abstentions = sum((result.abstentions for result in results), self.abstentions)
            self._paid.append(_part_costs(results, None, True, self._price))
            self._read(results, correct)
            self._done = problems
        # A vote that became impossible on the way, such as one whose weights turned negative, is none any more.
        whole = [name for name, parts in self._values.items() if sum(map(len, parts)) == self._done]
        costs = {name: _joined(self._costs[name]) for name in whole}
        made = {name: self.configurations[name] for name in whole}
        kin = {n: (c.generator, type(c.strategy).__name__, written(c.aggregator)) for n, c in made.items()}
        values = {name: np.concatenate(self._values[name]) for name in whole}
        return Measured(values, costs, _joined(self._paid), kin)

    def _results(self, problems: int) -> tuple[list[SearchResult], list[list[bool]] | None]:
        generator, reward = self._parts
        if self._directory is None:
            solver = Solver(self._strategy, generator, reward, **self._options)
            results = solver.solve_batch(self._problems[self._done : problems])
            return results, None if self._referee else [graded(r.trajectories, self._same) or [] for r in results]
        run = run_evaluation(
            self._problems, self._strategy, generator, self._directory, reward_model=reward, same_answer=self._same,
            first=problems, force=self._force, **self._options,
        )  # fmt: skip
        records = [record for record in run.finished if self._done <= record["index"] < problems]
        results = [SearchResult.from_dict(record["result"]) for record in records]
        return results, None if self._referee else [record["correct_each"] for record in records]

    def _read(self, results: Sequence[SearchResult], correct: list[list[bool]] | None) -> None:
        sampling = is_sampling(self._strategy)
        most = getattr(self._strategy, "n", 1) if sampling else max(len(r.trajectories) for r in results)
        evidence: dict[Reduction | None, list[Evidence]] = {}
        for vote in self._votes:
            formula = None if correct is None else _formula(vote)
            if formula is not None and formula[1] not in evidence:
                found = gather_evidence(results, self._same, correct, formula[1])
                evidence[formula[1]] = [padded(item, most) for item in found] if sampling else found
            for size in powers(most) if sampling else [most]:
                if size == 1 and vote != self._votes[0]:
                    continue  # a vote over one sample is the same as any other
                values = self._vote(vote, formula, size, results, evidence, correct)
                if values is None:
                    continue
                scored = vote.needs_scores or self._strategy.needs_scores
                strategy = replace(self._strategy, n=size) if sampling else self._strategy  # type: ignore[type-var]
                made = Configuration(self._names[0], self._names[1] if scored else None, strategy, vote)
                self.configurations[made.name] = made
                # Equal votes, such as weighted and best of two, differ in their last bits, which tell nothing.
                self._values.setdefault(made.name, []).append(np.round(values, 12))
                costs = _part_costs(results, size / most if sampling else None, scored, self._price)
                self._costs.setdefault(made.name, []).append(costs)

    def _vote(
        self, vote: Aggregator, formula: tuple[Vote, Reduction | None] | None, size: int,
        results: Sequence[SearchResult], evidence: Mapping[Reduction | None, list[Evidence]],
        correct: list[list[bool]] | None,
    ) -> Floats | None:  # fmt: skip
        """`[P]`: what a vote over `size` trajectories is worth; ``None`` if they lack what it reads."""
        if formula is None:
            return np.asarray([self._tried(vote, size, i, r, correct) for i, r in enumerate(results)])
        items = evidence[formula[1]]
        if formula[0] != "majority":
            if any(item.scores is None for item in items):
                return None
            if formula[0] == "weighted" and any((item.scores < 0).any() for item in items if item.scores is not None):
                return None
        if is_sampling(self._strategy):
            return sampling_values(items, formula[0], size)
        return np.asarray([float(sampling_values([item], formula[0], item.size)[0]) for item in items])

    def _tried(
        self, vote: Aggregator, size: int, place: int, result: SearchResult, correct: list[list[bool]] | None
    ) -> float:
        """The mean over disjoint parts of a pool: of a vote without a formula, or one that a judge looks at."""
        shown = result.trajectories
        starts = range(0, max(len(shown) - size, 0) + 1, size)[:_BLOCKS] if is_sampling(self._strategy) else [0]
        values = []
        for start in starts:
            part: tuple[Trajectory, ...] = shown[start : start + size] if is_sampling(self._strategy) else shown
            picked = voted(vote, part)
            if correct is not None:
                values.append(float(correct[place][start + part.index(picked)]))
            elif self._referee is not None:
                values.append(self._referee.value(self._done + place, picked.text))
        return float(np.mean(values))


def usual_votes(reward_model: RewardModel | None) -> list[Aggregator]:
    """Majority; with a reward model also weighted votes and best-of-n, by every reduction of step scores if it has."""
    if reward_model is None:
        return [MajorityVote()]
    reductions: list[Reduction | None] = [None]
    if isinstance(reward_model, ProcessRewardModel):
        reductions += [r for r in _REDUCTIONS if r != reward_model.reduction]
    return [
        MajorityVote(),
        *(MajorityVote(weighted=True, reduction=r) for r in reductions),
        *(BestOfN(reduction=r) for r in reductions),
    ]


def _formula(vote: Aggregator) -> tuple[Vote, Reduction | None] | None:
    """The estimator of a vote and the reduction that it reads; ``None`` if there is none."""
    if not isinstance(vote, MajorityVote | BestOfN) or callable(vote.reduction):
        return None
    if isinstance(vote, BestOfN):
        return None if vote.drop_abstentions else ("best-of-n", vote.reduction)
    own_way = vote.same_answer is not None or vote.normalize is not None
    if own_way or not (vote.weighted or vote.reduction is None):
        return None
    return ("weighted" if vote.weighted else "majority"), vote.reduction


def _part_costs(
    results: Sequence[SearchResult], part: float | None, scored: bool, price: Price | None
) -> dict[str, Floats]:
    """`[P]` by name: what the searches, or a part of their samples, would have cost, with or without scores.

    What is not known is NaN.
    """
    costs = [result.cost for result in results]
    prompts = np.asarray([0.0 if part is None else prompt_flops(first_steps(result)) for result in results])
    share = 1.0 if part is None else part

    def column(values: Iterable[float]) -> Floats:
        return np.asarray(list(values), dtype=np.float64)

    # A model that samples without FLOPs, such as one on a server, tells none.
    flops = column(math.nan if c.tokens and not c.generator_flops else c.generator_flops for c in costs)
    seconds = column(cost.seconds - (0.0 if scored else cost.phases.get("score", 0.0)) for cost in costs)
    found = {
        "tokens": share * column(cost.tokens for cost in costs),
        "flops": prompts + share * (flops - prompts + (column(c.reward_flops for c in costs) if scored else 0.0)),
        "seconds": share * seconds,
        "calls": share * column(cost.num_generated for cost in costs),
    }
    generator, reward, cached, joules, judged = (
        column(math.nan if value is None else value for value in (getattr(cost, name) for cost in costs))
        for name in ("generator_bytes", "reward_bytes", "cache_bytes", "generator_joules", "reward_joules")
    )
    # Fewer samples need as many forwards, so only keys and values become fewer; most are the generator's.
    found["bytes"] = np.maximum(generator + (reward if scored else 0.0) - (1.0 - share) * cached, 0.0)
    found["joules"] = share * (joules + (judged if scored else 0.0))
    if price is not None:
        found["money"] = column(
            price.at(c.prompt_tokens + share * c.resent_tokens, share * c.tokens, share * time, share * c.cached_tokens)
            for c, time in zip(costs, seconds.tolist(), strict=True)
        )
    return found


def _joined(parts: Sequence[Mapping[str, Floats]]) -> Costs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _fits(tried: Tried, budget: Budget) -> bool:
    """True if the mean costs are known and within every cap."""
    return all(tried.costs.get(name, math.inf) <= cap for name, cap in budget.caps.items())


def _as_plan(
    race: Race, winners: Sequence[Winner], pools: Sequence[Pool], budgets: Sequence[Budget], error: float,
    most: Budget | None, generators: Mapping[str, Generator], judges: Mapping[str, RewardModel],
    read: Mapping[str, Any], judged: bool, problems: int,
) -> Plan:  # fmt: skip
    configurations = {name: c for pool in pools for name, c in pool.configurations.items()}
    standings = [{s.configuration: s for s in winner.standings} for winner in winners]
    tried: dict[str, Tried] = {}
    for name in dict.fromkeys(name for m in race.measured.values() for name in m.values):
        values, costs = race.column(name)
        means = {cost: mean for cost, column in costs.items() if (mean := float(column.mean())) > 0}  # not of NaN
        found = [standing.get(name) for standing in standings]
        tried[name] = Tried(
            configurations[name], len(values), float(values.mean()), *wilson(values), means,
            tuple(None if s is None else s.chance for s in found), tuple("" if s is None else s.dropped for s in found),
        )  # fmt: skip
    choices = tuple(
        Choice(budget, None if w.configuration is None else tried[w.configuration], w.chance, w.rival,
               None if math.isnan(w.gap) else w.gap, w.problems_needed, w.chance >= 1 - error,
               None if math.isnan(w.expected) else w.expected)
        for budget, w in zip(budgets, winners, strict=True)
    )  # fmt: skip
    named: dict[str, Mapping[str, Any]] = {"generators": generators, "reward models": judges}
    options = {name: option for name, option in read.items() if option is not None}
    told_apart = {**named, **({"options": options} if options else {})}
    plain = {kind: {name: _plain_identity(part) for name, part in these.items()} for kind, these in told_apart.items()}
    sources = {
        kind: {name: source for name, part in these.items() if (source := source_of(part))}
        for kind, these in named.items()
    }
    untried = tuple(pool.name for pool in pools if pool.name not in race.measured)
    silent: dict[str, Abstentions] = {}
    for pool in pools:
        silent[pool.generator] = silent.get(pool.generator, Abstentions()) + pool.abstentions
    notes = () if judged else tuple(f"{name}: {note}" for name, of in silent.items() for note in of.notes)
    spent = {name: value for name, value in race.spent.items() if value > 0}  # NaN, what a model does not tell, is not
    return Plan(
        choices, tuple(tried.values()), problems, error, spent, most, plain, dict(judges), sources, untried, judged,
        notes,
    )  # fmt: skip


def written(part: object) -> str:
    """A strategy or vote as the call that makes it: its size, and the options that have no default values."""
    known: Any = getattr(part, "__dataclass_fields__", None)
    if known is None:
        return repr(part)
    values = {f.name: getattr(part, f.name) for f in known.values() if f.init and (f.name in SIZES or _is_set(part, f))}
    shown = (f"{name}={getattr(value, '__qualname__', None) or repr(value)}" for name, value in values.items())
    return f"{type(part).__name__}({', '.join(shown)})"


def _is_set(part: object, option: Any) -> bool:
    """True if an option has another value than its default."""
    usual = option.default if option.default_factory is MISSING else option.default_factory()
    return bool(getattr(part, option.name) != usual)


def _call(part: SearchStrategy | Aggregator, otherwise: str) -> tuple[str, list[str]]:
    """The call that makes a part, and the lines that import what it names; a variable if it cannot be written so."""
    text, homes = written(part), {kind.__name__: _home(kind) for kind in _kinds(part)}
    try:
        names = {node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)}
    except SyntaxError:  # a function or an object among the options
        return otherwise, []
    if not names <= homes.keys():
        return otherwise, []
    return text, [f"from {homes[name]} import {name}" for name in sorted(names) if homes[name] != "__main__"]


def _kinds(part: Any) -> Iterator[type[Any]]:
    """The classes of a part and of the parts among its options."""
    if isinstance(part, list | tuple):
        for item in part:
            yield from _kinds(item)
    elif hasattr(part, "__dataclass_fields__"):
        yield type(part)
        for name in part.__dataclass_fields__:
            yield from _kinds(getattr(part, name))


def _home(kind: type[Any]) -> str:
    """The module that a class is imported from: of ours, where it is public."""
    public = ("inferscale.strategies", "inferscale.aggregators", "inferscale")
    return next((home for home in public if getattr(import_module(home), kind.__name__, None) is kind), kind.__module__)


def _is_made(part: SearchStrategy | Aggregator, make: Callable[[str], object]) -> bool:
    """True if a command makes this part of its text."""
    try:
        return make(written(part)) == part
    except ValueError:
        return False


def _promise(choice: Choice) -> float:
    """Expected accuracy; what was seen if an older version made the plan."""
    seen = 0.0 if choice.tried is None else choice.tried.accuracy
    return seen if choice.expected is None else choice.expected


def _plain_identity(part: object) -> Any:
    return json.loads(json.dumps(identity_of(part), default=str))


def _texts(configuration: Configuration) -> dict[str, Any]:
    parts = configuration.strategy, configuration.aggregator
    strategy, aggregator = (written(part) for part in parts)
    return {**_plain(configuration, "strategy", "aggregator"), "strategy": strategy, "aggregator": aggregator}


def _configuration(row: Mapping[str, Any], own: Mapping[str, Any]) -> Configuration:
    def read(kind: str, make: Callable[[str], Any]) -> Any:
        try:
            return own[row[kind]] if row[kind] in own else make(row[kind])
        except ValueError as error:
            given = {"strategy": "strategies", "aggregator": "aggregators"}[kind]
            raise ValueError(
                f"the plan names {row[kind]}, and {error}; one of yours: load it with {given}=[...]"
            ) from None

    return Configuration(
        row["generator"], row["reward"], read("strategy", make_strategy), read("aggregator", make_vote)
    )


def _caps(budget: Budget) -> dict[str, Any]:
    return {**budget.caps, **({} if budget.price is None else {"price": asdict(budget.price)})}


def _budget(row: Mapping[str, Any]) -> Budget:
    price = None if row.get("price") is None else Price(**row["price"])
    return Budget(**{**row, "price": price})


def _plain(value: Any, *left_out: str) -> dict[str, Any]:
    """The fields of a dataclass by name."""
    return {f.name: getattr(value, f.name) for f in fields(value) if f.name not in left_out}
