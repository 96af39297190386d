"""A race of configurations over shared problems: who is the best that each budget can buy, at how little cost.

Nothing here runs a model: a `Runner` says what its configurations got right on the first n problems, and what it cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from inferscale.cost import Budget

from .beliefs import Beliefs, Floats, believe

Costs = Mapping[str, Floats]
"""`[n]` by the name of a cap of `Budget`; NaN where it is not known."""

STAKES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of the wealth that the test against a rival bets at once; their mean is a mixture."""
PILOT = 4  # problems that every run is tried on
_KEPT_BACK = 0.02  # of the limit
_RIVALS = 5  # that may drop a configuration at a look
_HOPEFUL = 40  # configurations of a budget that may become the best


@dataclass(frozen=True)
class Measured:
    """Outcomes of the configurations of one run on the first n problems.

    Attributes:
        values: `[n]` by configuration: correctness, 0 to 1.
        costs: By configuration: what it would have cost alone.
        paid: What the run has cost, which all its configurations share.
        kin: By configuration: labels that it shares with others, from coarse to fine, such as its generator, its
            strategy and its vote; accuracies of kin are believed to be alike at like costs.

    Example:
        >>> import numpy as np
        >>> from inferscale.scaling import Measured
        >>> tokens = {"tokens": np.array([90.0, 110.0, 100.0])}
        >>> run = Measured({"one sample": np.array([1.0, 0.0, 1.0])}, costs={"one sample": tokens}, paid=tokens)
        >>> run.problems, float(run.paid["tokens"].sum())
        (3, 300.0)
    """

    values: Mapping[str, Floats]
    costs: Mapping[str, Costs]
    paid: Costs
    kin: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def problems(self) -> int:
        """Number n of problems."""
        return max((len(values) for values in self.values.values()), default=0)


class Runner(Protocol):
    """One run of a model, out of which many configurations are read: every vote, and every part of a pool.

    Example:
        >>> import numpy as np
        >>> from inferscale.scaling import Measured, Runner
        >>> class Recorded:  # a run of long ago
        ...     name = "recorded"
        ...     def __init__(self, right, tokens):
        ...         self.right, self.tokens = np.asarray(right, dtype=float), np.asarray(tokens, dtype=float)
        ...     def measure(self, problems):
        ...         cost = {"tokens": self.tokens[:problems]}
        ...         return Measured({self.name: self.right[:problems]}, {self.name: cost}, cost)
        >>> runner: Runner = Recorded([True, False, True], [90, 110, 100])
        >>> runner.measure(2).problems
        2
    """

    @property
    def name(self) -> str:
        """A name for people."""

    def measure(self, problems: int) -> Measured:
        """The outcomes on the first `problems` problems; earlier ones are included, and not paid again."""


@dataclass(frozen=True)
class Standing:
    """The standing of a configuration at one budget.

    Attributes:
        configuration: Its name.
        dropped: ``""`` for one that stayed to the end, else why it left.
        chance: That it is the best of those that were not shown to be behind, as far as is known (see `Race`).

    Example:
        >>> import numpy as np
        >>> from types import SimpleNamespace
        >>> from inferscale import Budget
        >>> from inferscale.scaling import Measured, Race
        >>> outcomes = {"never right": np.zeros(64), "mostly right": np.arange(64) % 8 > 0}
        >>> def measure(problems):
        ...     values = {name: right[:problems].astype(float) for name, right in outcomes.items()}
        ...     cost = {"tokens": np.full(problems, 100.0)}
        ...     return Measured(values, dict.fromkeys(values, cost), cost)
        >>> race = Race([SimpleNamespace(name="recorded", measure=measure)], [Budget(tokens=200)], problems=64)
        >>> for standing in race.run()[0].standings:
        ...     print(f"{standing.configuration}: {standing.chance:.0%}", standing.dropped)
        mostly right: 100%
        never right: 0% shown to be behind mostly right on 16 problems
    """

    configuration: str
    dropped: str
    chance: float


@dataclass(frozen=True)
class Winner:
    """The outcome at one budget.

    Attributes:
        configuration: The name of the best; ``None`` if the budget can buy none that was tried.
        chance: That it is the best of those that were not shown to be behind.
        rival: Of those that differ from it, the one that is the best with the greatest chance; ``None`` without one.
        gap: Expected accuracy of the winner minus that of the rival.
        problems_needed: Problems that would tell the two apart, if the gap is as expected; ``None`` without a rival or
            a gap.
        expected: The accuracy that is expected on other problems.
        standings: Every configuration that the budget can buy, or may.

    Example:
        >>> import numpy as np
        >>> from types import SimpleNamespace
        >>> from inferscale import Budget
        >>> from inferscale.scaling import Measured, Race
        >>> outcomes = {"6 of 8": np.arange(32) % 8 < 6, "7 of 8": np.arange(32) % 8 < 7}
        >>> def measure(problems):
        ...     values = {name: right[:problems].astype(float) for name, right in outcomes.items()}
        ...     cost = {"tokens": np.full(problems, 100.0)}
        ...     return Measured(values, dict.fromkeys(values, cost), cost)
        >>> race = Race([SimpleNamespace(name="recorded", measure=measure)], [Budget(tokens=200)], problems=32)
        >>> winner = race.run()[0]
        >>> winner.configuration, winner.rival, round(winner.expected, 1)
        ('7 of 8', '6 of 8', 0.9)
        >>> winner.problems_needed > 32  # it takes more to tell the two apart
        True
    """

    configuration: str | None
    chance: float
    rival: str | None
    gap: float
    problems_needed: int | None
    expected: float
    standings: tuple[Standing, ...] = field(repr=False)


class Race:
    """A race of runs over ever more problems, in which fewer and fewer stay, for all budgets at once.

    All runs begin with four problems. Without a limit, all that are still in the race go on together, to twice as many
    each time. With one, the run goes on that promises most for its price: by how much the best that each budget can buy
    is expected to be better once more is known of the run's configurations, in all budgets together, over what that
    costs (the knowledge gradient of Frazier, Powell and Dayanik 2009). The winner of a budget is the configuration with
    the greatest expected accuracy, which is not always the one that did best so far: accuracies are Gaussian
    beforehand, more alike the more two configurations share and the closer their costs are, and on one problem all
    votes over the same samples share their noise.

    In every round a configuration is dropped for good where it is *shown* to be behind: against each of its rivals a
    bettor stakes on every problem that it does worse, and where their mean wealth reaches ``budgets / error`` (Ville's
    inequality; Waudby-Smith and Ramdas, arXiv:2010.09686), it is no more in the race for that budget. The best
    configuration of any budget is dropped so with probability at most `error`, over all budgets and rounds, whatever
    the distribution; that others are set aside, because problems of theirs promise little, has no such bound, and is
    told apart by the reason.

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

    Example:
        >>> import numpy as np
        >>> from inferscale import Budget
        >>> from inferscale.scaling import Measured, Race
        >>> class Coin:
        ...     def __init__(self, name, share):
        ...         self.name, self.share = name, share
        ...     def measure(self, problems):
        ...         tokens = {"tokens": np.full(problems, 100.0)}
        ...         right = np.random.default_rng(0).random(problems) < self.share
        ...         return Measured({self.name: right.astype(float)}, {self.name: tokens}, tokens)
        >>> race = Race([Coin("half", 0.5), Coin("most", 0.9)], [Budget(tokens=200)], problems=64)
        >>> race.run()[0].configuration, race.spent
        ('most', {'tokens': 8000.0})
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
        # What was worked out of `measured`, by configuration, until its run goes on.
        self._columns: dict[str, tuple[Floats, dict[str, Floats]]] = {}
        self._prices: dict[str, dict[str, tuple[float, float]]] = {}

    def run(self) -> list[Winner]:
        """The winner of each budget, in the order of the budgets."""
        self._watch(f"{len(self._runners)} runs begin with {min(PILOT, self._problems)} problems")
        self._go_on(self._runners, min(PILOT, self._problems))
        self._check_known()
        while self._double() if self._most is None else self._follow_promise():
            pass
        return self.winners()

    def winners(self) -> list[Winner]:
        """The winner of each budget by what is known now."""
        for index in range(len(self._budgets)):
            self._drop(index, self.measured)
        beliefs = self._believe()
        return [self._winner(index, *beliefs) for index in range(len(self._budgets))]

    def _check_known(self) -> None:
        """Refuse a cap on what none of the runs tells."""
        paid = [column for measured in self.measured.values() for column in measured.paid.items()]
        known = {name for name, column in paid if np.isfinite(column).all() and column.any()}
        for budget in self._budgets:
            if unknown := [name for name in budget.caps if name not in known]:
                raise ValueError(
                    f"budgets={told(budget)}: the models do not tell their {unknown[0]}: cap one of "
                    + ", ".join(sorted(known))
                )

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
        """The cost of the race by now, by the name of the cost."""
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
                for configuration in measured.values:
                    self._columns.pop(configuration, None)
                    self._prices.pop(configuration, None)
                if self._most is not None and not math.isfinite(self._left()):
                    raise ValueError(
                        f"most={told(self._most)}: {name} does not tell what it costs of that: cap another"
                    )

    def _double(self) -> bool:
        """Has all runs that are in the race done for twice as many problems; false if none is left to go on."""
        alive = {run for index in range(len(self._budgets)) for run in self._alive_runs(index)}
        done = min((self.measured[name].problems for name in alive), default=self._problems)
        if done >= self._problems:
            return False
        target = min(2 * done, self._problems)
        self._watch(f"{len(alive)} runs go to {target} problems")
        self._go_on(alive, target)
        for index in range(len(self._budgets)):
            self._drop(index, alive)
        return True

    def _follow_promise(self) -> bool:
        """Has the run go on that promises most for its price; false if the limit allows none."""
        beliefs, rows = self._believe()
        deviation = np.sqrt(np.diagonal(beliefs.covariance))
        done = {name: len(self.column(name)[0]) for name in rows}
        promise: dict[tuple[str, int], float] = {}
        for index in range(len(self._budgets)):
            alive = set(self._in_race(index))
            # The best can only become one of those that may be it: the strongest at three deviations above their means.
            hopeful = sorted({rows[n] for n in alive}, key=lambda row: -beliefs.mean[row] - 3 * deviation[row])
            trials = [
                (run, target, name)
                for run, measured in self.measured.items()
                for target in self._targets(run)
                for name in measured.values
                if name in alive and target > done[name]
            ]
            if not trials:
                continue
            added = [target - done[name] for _, target, name in trials]
            gains = beliefs.gains(hopeful[:_HOPEFUL], [rows[name] for _, _, name in trials], added)
            best: dict[tuple[str, int], float] = {}
            for (run, target, _), gain in zip(trials, gains.tolist(), strict=True):
                best[run, target] = max(best.get((run, target), 0.0), gain)
            promise = {key: promise.get(key, 0.0) + best.get(key, 0.0) for key in promise.keys() | best.keys()}
        price = {(run, target): self._share(run) * (target - self.measured[run].problems) for run, target in promise}
        left = self._left()
        allowed = sorted(key for key in promise if price[key] <= left)
        if not allowed:
            return False
        run, target = max(allowed, key=lambda key: promise[key] / max(price[key], 1e-12))
        self._watch(f"{run} goes to {target} problems")
        self._go_on([run], target)
        for index in range(len(self._budgets)):
            self._drop(index, [run])
        return True

    def _targets(self, run: str) -> list[int]:
        """Numbers of problems that a run may go on to next."""
        found: list[int] = []
        done = self.measured[run].problems
        while done < self._problems and len(found) < 3:
            done = min(max(done + PILOT, done + done // 2), self._problems)
            found.append(done)
        return found

    def _believe(self) -> tuple[Beliefs, dict[str, int]]:
        """What is believed of all configurations, and the row of each; equal votes over one run have one row."""
        columns: dict[str, Floats] = {}
        costs: dict[str, float] = {}
        runs: dict[str, str] = {}
        kin: dict[str, tuple[str, ...]] = {}
        known: dict[tuple[str, bytes], int] = {}
        rows: dict[str, int] = {}
        # Costs tell who is like whom: those of the first cap that all of them know.
        paid = {name: self.column(name)[1] for measured in self.measured.values() for name in measured.values}
        caps = [cap for budget in self._budgets for cap in budget.caps]
        cap = next((cap for cap in caps if all(np.isfinite(costs[cap]).all() for costs in paid.values())), None)
        for run, measured in sorted(self.measured.items(), key=lambda item: -len(item[1].values)):
            for name in measured.values:
                if name in rows:
                    continue
                values, _ = self.column(name)
                row = known.setdefault((run, values.tobytes()), len(columns))
                rows[name] = row
                if row == len(columns):
                    columns[name], runs[name], kin[name] = values, run, measured.kin.get(name, ())
                    costs[name] = float(paid[name][cap].mean()) if cap else 1.0
        return believe(columns, costs, runs, kin), rows

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
        """True unless a bound of the mean cost is known to be within the budget."""
        price = self._price(name)
        return not all(bound(*price[cost]) <= cap for cost, cap in self._budgets[index].caps.items())

    def _cost(self, index: int, name: str) -> float:
        """The mean cost as a share of the budget."""
        price = self._price(name)
        return max(price[cost][0] / cap for cost, cap in self._budgets[index].caps.items())

    def _price(self, name: str) -> dict[str, tuple[float, float]]:
        """Mean and standard error of each cost of a configuration."""
        if name not in self._prices:
            self._prices[name] = {cost: mean_and_error(column) for cost, column in self.column(name)[1].items()}
        return self._prices[name]

    def _drop(self, index: int, runs: Iterable[str]) -> None:
        """Drops what is shown to be behind of these runs, each on the problems that it has done."""
        names = self._in_race(index)
        columns = {name: self.column(name)[0] for name in names}
        sure = [name for name in names if not self._over(index, name, lambda mean, error: mean + 2 * error)]
        judged = [name for name in names if any(name in self.measured[run].values for run in runs)]
        for count in sorted({len(columns[name]) for name in judged}):
            here = [name for name in judged if len(columns[name]) == count]
            means = {name: float(columns[name][:count].mean()) for name in sure if len(columns[name]) >= count}
            rivals = sorted(means, key=lambda name: -means[name])[:_RIVALS]
            values = np.stack([columns[name] for name in here])
            # Of the mean wealth over all rivals only that of the few strongest is counted, which can only delay a drop.
            wealth = sum((wealth_against(values - columns[rival][:count]) for rival in rivals), np.zeros(len(here)))
            for name, value in zip(here, wealth / max(len(names) - 1, 1), strict=True):
                if value >= len(self._budgets) / self._error:
                    self._dropped[index][name] = f"shown to be behind {rivals[0]} on {count} problems"

    def _winner(self, index: int, beliefs: Beliefs, rows: Mapping[str, int]) -> Winner:
        names = [name for name in rows if not self._over(index, name, lambda mean, error: mean)]
        if not names:
            return Winner(None, 0.0, None, math.nan, None, math.nan, ())
        dropped = self._dropped[index]
        columns = {name: self.column(name)[0] for name in names}
        last = [name for name in names if name not in dropped] or names
        price = {name: self._cost(index, name) for name in last}
        best = min(last, key=lambda name: (-round(float(beliefs.mean[rows[name]]), 9), price[name]))
        known = beliefs.chances(list(dict.fromkeys(rows[name] for name in last)))
        chances = {name: known[rows[name]] if name in last else 0.0 for name in names}
        others = [n for n in last if not np.array_equal(columns[n], columns[best])]
        rival = max(others, key=chances.__getitem__, default=None)
        gap, needed = math.nan, None
        if rival is not None:
            both = min(len(columns[best]), len(columns[rival]))
            gap = float(beliefs.mean[rows[best]] - beliefs.mean[rows[rival]])
            difference = columns[best][:both] - columns[rival][:both]
            needed = problems_to_tell(gap, float(difference.std(ddof=1)) if both > 1 else math.nan)
        for name in last:
            if len(columns[name]) < len(columns[best]):
                reason = f"set aside after {len(columns[name])} problems, for the rest of planning's budget"
                dropped.setdefault(name, reason)
        standings = (Standing(name, dropped.get(name, ""), chances[name]) for name in names)
        ranked = tuple(sorted(standings, key=lambda s: (-s.chance, -float(beliefs.mean[rows[s.configuration]]))))
        return Winner(best, chances[best], rival, gap, needed, float(beliefs.mean[rows[best]]), ranked)


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


def problems_to_tell(gap: float, spread: float) -> int | None:
    """Problems on which a difference is told from 0 in four of five cases, two-sided at 5 %; ``None`` if it is 0.

    ``((1.96 + 0.84) * spread / gap) ** 2`` for a standard deviation `spread` of the difference over problems.
    """
    if not math.isfinite(spread) or gap == 0:
        return None
    return max(math.ceil((2.8 * spread / gap) ** 2), 2)


def wilson(values: Floats) -> tuple[float, float]:
    """Wilson's 95 % interval of a mean of values in 0..1, of as many yes-or-no problems as have its variance.

    A few problems tell a variance badly, least of all if they came out alike: two more that are yes-or-no are added to
    it, so that the interval covers for few problems too.
    """
    mean, count = float(values.mean()), float(len(values))
    middle = (count * mean + 1) / (count + 2)
    seen = float(values.var(ddof=1)) if count > 1 else middle * (1 - middle)
    variance = (count * seen + 2 * middle * (1 - middle)) / (count + 2)
    count *= max(mean * (1 - mean) / variance, 1.0)
    z = 1.959964
    middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)
