"""A race of configurations over shared problems: who is the best that each budget can buy, at how little cost.

Nothing here runs a model: a `Runner` says what its configurations got right on the first n problems, and what it cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inferscale.cost import Budget

Floats = NDArray[np.float64]
Costs = Mapping[str, Floats]
"""`[n]` by the name of a cap of `Budget`; NaN where it is not known."""

STAKES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of the wealth that the test against a rival bets at once; their mean is a mixture."""
PILOT = 8  # problems that every run is tried on
_KEPT_BACK = 0.02  # of the limit
_RIVALS = 5  # that may drop a configuration at a look


@dataclass(frozen=True)
class Measured:
    """What the configurations of one run did on the first n problems.

    Attributes:
        values: `[n]` by configuration: correctness, 0 to 1.
        costs: By configuration: what it would have cost alone.
        paid: What the run has cost, which all its configurations share.
    """

    values: Mapping[str, Floats]
    costs: Mapping[str, Costs]
    paid: Costs

    @property
    def problems(self) -> int:
        """Number n of problems."""
        return max((len(values) for values in self.values.values()), default=0)


class Runner(Protocol):
    """One run of a model, out of which many configurations are read: every vote, and every part of a pool."""

    @property
    def name(self) -> str:
        """A name for people."""

    def measure(self, problems: int) -> Measured:
        """What is known once the first `problems` problems are done, earlier ones included and not paid again."""


@dataclass(frozen=True)
class Standing:
    """How a configuration stands at one budget.

    Attributes:
        configuration: Its name.
        dropped: ``""`` for one that stayed to the end, else why it left.
        chance: That none of those that stayed is better, by a Bayesian bootstrap over problems.
    """

    configuration: str
    dropped: str
    chance: float


@dataclass(frozen=True)
class Winner:
    """The outcome at one budget.

    Attributes:
        configuration: The name of the best; ``None`` if the budget can buy none that was tried.
        chance: That none of those that stayed is better.
        rival: Of those that differ from it, the one that is the best with the greatest chance; ``None`` without one.
        gap: Accuracy of the winner minus that of the rival, on the problems that both were tried on.
        problems_needed: So many would tell them apart, if the gap is as it looks; ``None`` without a rival or a gap.
        standings: Every configuration that the budget can buy, or may.
    """

    configuration: str | None
    chance: float
    rival: str | None
    gap: float
    problems_needed: int | None
    standings: tuple[Standing, ...] = field(repr=False)


class Race:
    """Runs on ever more problems, of which ever fewer are left, for every budget from the cheapest on.

    All runs begin with `PILOT` problems. Then each budget gets an equal share of what is left to spend, and the runs
    that have a configuration for it go on in rounds (sequential halving, Karnin et al. 2013): each round has an equal
    part of the share, and the half of the runs that is behind is set aside after it. What a run has done for one
    budget counts for all. Without a limit nothing is halved.

    In every round a configuration is dropped for good where it is *shown* to be behind: against each of its rivals a
    bettor stakes on every problem that it does worse, and where their mean wealth reaches ``budgets / error`` (Ville's
    inequality; Waudby-Smith and Ramdas, arXiv:2010.09686), it is no more in the race for that budget. The best
    configuration of any budget is dropped so with probability at most `error`, over all budgets and rounds, whatever
    the distribution; that halving sets it aside has no such bound, and is told apart by the reason.

    Args:
        runners: The runs.
        budgets: What a problem may cost on average.
        problems: Number of problems at hand.
        most: The most that the race may cost in all; ``None`` for no limit. It is looked at before each run goes on, by
            the mean cost of its problems so far.
        error: See above.
        watch: Told each round in a line.

    Attributes:
        measured: What is known of each run, by its name.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        budgets: Sequence[Budget],
        problems: int,
        most: Budget | None = None,
        error: float = 0.05,
        watch: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.measured: dict[str, Measured] = {}
        self._runners = {runner.name: runner for runner in runners}
        self._budgets, self._problems, self._most, self._error = list(budgets), problems, most, error
        self._watch = watch
        self._dropped: list[dict[str, str]] = [{} for _ in self._budgets]
        self._columns: dict[str, tuple[Floats, dict[str, Floats]]] = {}

    def run(self) -> list[Winner]:
        """The winner of each budget, in the order of the budgets."""
        self._watch(f"{len(self._runners)} runs begin with {min(PILOT, self._problems)} problems")
        self._go_on(self._runners, min(PILOT, self._problems))
        ranks = sorted(range(len(self._budgets)), key=lambda i: _price(self._budgets[i]))
        for place, index in enumerate(ranks):
            prices = [self._bracket_price(i) for i in ranks[place:]]
            self._bracket(index, self._left() * prices[0] / (sum(prices) or 1.0) if self._most else math.inf)
        return [self._winner(index) for index in range(len(self._budgets))]

    def column(self, configuration: str) -> tuple[Floats, dict[str, Floats]]:
        """Values `[n]` and costs of a configuration, each problem from the largest pool that it was sampled in."""
        if configuration in self._columns:
            return self._columns[configuration]
        pools = sorted(
            (m for m in self.measured.values() if configuration in m.values),
            key=lambda m: (-len(m.values), m.problems),
        )
        values: list[Floats] = []
        costs: dict[str, list[Floats]] = {}
        known = 0
        for pool in pools:
            if pool.problems > known:
                values.append(pool.values[configuration][known:])
                for name, column in pool.costs[configuration].items():
                    costs.setdefault(name, []).append(column[known:])
                known = pool.problems
        joined = np.concatenate(values), {name: np.concatenate(parts) for name, parts in costs.items()}
        self._columns[configuration] = joined
        return joined

    @property
    def spent(self) -> dict[str, float]:
        """What the race has cost by now, by the name of the cost."""
        total: dict[str, float] = {}
        for measured in self.measured.values():
            for name, column in measured.paid.items():
                total[name] = total.get(name, 0.0) + float(column.sum())
        return total

    def _left(self) -> float:
        """The share of the limit that is left; a little is kept back for problems that cost more than their mean."""
        if self._most is None:
            return math.inf
        return 1.0 - _KEPT_BACK - max(self.spent.get(name, 0.0) / cap for name, cap in self._most.caps.items())

    def _share(self, name: str) -> float:
        """The share of the limit that one more problem of a run takes; 0 without a limit."""
        if self._most is None:
            return 0.0
        paid = self.measured[name].paid
        return max(float(paid[cost].mean()) / cap for cost, cap in self._most.caps.items())

    def _go_on(self, names: Iterable[str], problems: int) -> None:
        """Has these runs done for the first `problems` problems, cheapest first, as far as the limit allows."""
        known = {name: self._share(name) for name in names if name in self.measured}
        for name in sorted(names, key=lambda name: known.get(name, 0.0)):
            done = self.measured[name].problems if name in self.measured else 0
            expected = known.get(name, 0.0) * (problems - done)
            if done < problems and self._left() > 0 and expected <= self._left():
                self.measured[name] = measured = self._runners[name].measure(problems)
                self._columns = {n: c for n, c in self._columns.items() if n not in measured.values}

    def _bracket_price(self, index: int) -> float:
        """The share of the limit that one more problem takes of all runs in the race for a budget."""
        return sum(self._share(name) for name in self._alive_runs(index)) if self._most else 1.0

    def _bracket(self, index: int, share: float) -> None:
        alive = self._alive_runs(index)
        rounds = max(math.ceil(math.log2(max(len(alive), 1))), 1)
        for number in range(rounds) if self._most is not None else range(self._problems):
            done = min((self.measured[name].problems for name in alive), default=0)
            if not alive or (done >= self._problems and self._most is None):
                return
            target = 2 * done if self._most is None else self._affordable(alive, share / (rounds - number))
            target = max(min(target, self._problems), done)
            before = self._left()
            self._watch(f"budget {told(self._budgets[index])}: {len(alive)} runs go to {target} problems")
            self._go_on(alive, target)
            share -= 0.0 if self._most is None else before - self._left()
            self._drop(index, alive)
            alive = self._alive_runs(index)
            if self._most is not None and number < rounds - 1:
                alive = self._halve(index, alive)

    def _affordable(self, names: Sequence[str], share: float) -> int:
        """The number of problems that these runs can all be done for with `share` of the limit."""
        prices = [(self.measured[name].problems, self._share(name)) for name in names]
        target = min(done for done, _ in prices)
        while target < self._problems and sum(p * max(target + 1 - done, 0) for done, p in prices) <= share:
            target += 1
        return target

    def _alive_runs(self, index: int) -> list[str]:
        """Runs that are needed for the race for a budget: a configuration of several pools goes with the smallest."""
        alive = set(self._in_race(index))
        needed = []
        for name, measured in sorted(self.measured.items(), key=lambda item: len(item[1].values)):
            if alive & measured.values.keys():
                needed.append(name)
                alive -= measured.values.keys()
        return needed

    def _in_race(self, index: int) -> list[str]:
        """Configurations that a budget can buy, or may when more is known of their cost, and that were not dropped."""
        names = dict.fromkeys(name for m in self.measured.values() for name in m.values)
        return [
            name
            for name in names
            if name not in self._dropped[index] and not self._over(index, name, lambda mean, error: mean - 2 * error)
        ]

    def _over(self, index: int, name: str, bound: Callable[[float, float], float]) -> bool:
        """True if a bound of the mean cost is over the budget."""
        _, costs = self.column(name)
        return any(bound(*mean_and_error(costs[cost])) > cap for cost, cap in self._budgets[index].caps.items())

    def _cost(self, index: int, name: str) -> float:
        """The mean cost as a share of the budget."""
        _, costs = self.column(name)
        return max(float(costs[cost].mean()) / cap for cost, cap in self._budgets[index].caps.items())

    def _drop(self, index: int, runs: Sequence[str]) -> None:
        """Drops what is shown to be behind on the problems that all of `runs` have done."""
        names = [n for n in self._in_race(index) if any(n in self.measured[run].values for run in runs)]
        if len(names) < 2:
            return  # nobody to be behind
        columns = [self.column(name)[0] for name in names]
        common = min(map(len, columns))
        values = np.stack([column[:common] for column in columns])
        sure = [not self._over(index, name, lambda mean, error: mean + 2 * error) for name in names]
        order = np.argsort(-np.where(sure, values.mean(axis=1), -1.0), kind="stable")
        rivals = [int(i) for i in order[:_RIVALS] if sure[i]]
        # Of the mean wealth over all rivals only that of the few strongest is counted, which can only delay a drop.
        wealth = sum((wealth_against(values - values[rival]) for rival in rivals), np.zeros(len(names)))
        wealth /= len(names) - 1
        for name, value in zip(names, wealth, strict=True):
            if value >= len(self._budgets) / self._error:
                self._dropped[index][name] = f"shown to be behind {names[rivals[0]]} on {common} problems"

    def _halve(self, index: int, runs: Sequence[str]) -> list[str]:
        """Sets the half of the runs aside whose best configuration for the budget is behind."""
        names = self._in_race(index)
        common = min(self.measured[run].problems for run in runs) if runs else 0
        best = {run: max((float(self.measured[run].values[n][:common].mean()) for n in names
                          if n in self.measured[run].values), default=-1.0) for run in runs}  # fmt: skip
        kept = sorted(runs, key=lambda run: -best[run])[: math.ceil(len(runs) / 2)]
        staying = {n for run in kept for n in self.measured[run].values}
        for name in names:
            if name not in staying:
                self._dropped[index][name] = f"set aside after {common} problems, for the rest of planning's budget"
        return kept

    def _winner(self, index: int) -> Winner:
        names = [
            name
            for name in dict.fromkeys(name for m in self.measured.values() for name in m.values)
            if not self._over(index, name, lambda mean, error: mean)
        ]
        if not names:
            return Winner(None, 0.0, None, math.nan, None, ())
        columns = {name: self.column(name)[0] for name in names}
        last = [name for name in names if name not in self._dropped[index]] or names
        common = min(len(columns[name]) for name in last)
        price = {name: self._cost(index, name) for name in last}
        best = min(last, key=lambda name: (-round(float(columns[name][:common].mean()), 12), price[name]))
        chances = dict.fromkeys(names, 0.0) | chances_of_best({name: columns[name] for name in last}, best)
        others = [n for n in last if not np.array_equal(columns[n], columns[best])]
        rival = max(others, key=chances.__getitem__, default=None)
        gap, needed = math.nan, None
        if rival is not None:
            both = min(len(columns[best]), len(columns[rival]))
            difference = columns[best][:both] - columns[rival][:both]
            gap = float(difference.mean())
            needed = problems_to_tell(gap, float(difference.std(ddof=1)) if both > 1 else math.nan)
        dropped = self._dropped[index]
        standings = (Standing(name, dropped.get(name, ""), chances[name]) for name in names)
        ranked = tuple(sorted(standings, key=lambda s: (-s.chance, -float(columns[s.configuration].mean()))))
        return Winner(best, chances[best], rival, gap, needed, ranked)


def _price(budget: Budget) -> tuple[float, ...]:
    return tuple(budget.caps.values())


def told(budget: Budget) -> str:
    """A budget in words."""
    return ", ".join(f"{value:.4g} {name}" for name, value in budget.caps.items())


def mean_and_error(values: Floats) -> tuple[float, float]:
    """Mean and its standard error; infinite for a single value."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return float(values.mean()), error


def wealth_against(differences: Floats) -> Floats:
    """`[C]`: wealth of a bettor, who begins with 1, against the claim that a mean difference is 0 or more.

    With stake s on each problem the wealth is ``prod_j (1 - s d_j)``, a supermartingale under the claim as d is in
    [-1, 1]; the mean over `STAKES` is one too, and reaches 1 / a with probability at most a, at whatever time it is
    looked at.

    Args:
        differences: `[C, n]`, what the configuration got minus what its rival got.
    """
    logs = np.stack([np.log1p(-stake * differences).sum(axis=-1) for stake in STAKES])
    return np.asarray(np.exp(np.minimum(logs, 600.0)).mean(axis=0))


def chances_of_best(columns: Mapping[str, Floats], best: str, draws: int = 2000) -> dict[str, float]:
    """For each configuration the chance that none has a greater mean, by the Bayesian bootstrap (Rubin 1981).

    One weight for each problem serves all configurations, so that what they share cancels. A configuration that was
    tried on fewer problems is compared with `best` on these.

    Args:
        columns: Values `[n]`, each on a beginning of the same problems.
        best: The one that the others are compared with.
        draws: Number of bootstrap samples.
    """
    names = list(columns)
    most = max(map(len, columns.values()))
    weights = np.random.default_rng(0).exponential(size=(draws, most))
    gains = np.zeros((len(names), draws))
    for row, name in enumerate(names):
        both = min(len(columns[name]), len(columns[best]))
        part = weights[:, :both]
        gains[row] = part @ (columns[name][:both] - columns[best][:both]) / part.sum(axis=1)
    chance = (gains >= gains.max(axis=0) - 1e-12).mean(axis=1)
    return dict(zip(names, chance.tolist(), strict=True))


def problems_to_tell(gap: float, spread: float) -> int | None:
    """Problems on which a difference is told from 0 in four of five cases, two-sided at 5 %; ``None`` if it is 0.

    ``((1.96 + 0.84) * spread / gap) ** 2`` for a standard deviation `spread` of the difference over problems.
    """
    if not math.isfinite(spread) or gap == 0:
        return None
    return max(math.ceil((2.8 * spread / gap) ** 2), 2)


def wilson(values: Floats) -> tuple[float, float]:
    """Wilson's 95 % interval of a mean of values in 0..1, of as many yes-or-no problems as have its variance."""
    mean, count = float(values.mean()), float(len(values))
    variance = float(values.var(ddof=1)) if count > 1 else 0.0
    if variance > 0:
        count *= max(mean * (1 - mean) / variance, 1.0)
    z = 1.959964
    middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)
