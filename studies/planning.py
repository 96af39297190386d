"""How good are plans? ``python -m studies.planning``: regret of `inferscale.plan` at a tenth of the full grid's cost.

The grid is every strategy and size of the scaling study for three embedded policies; what each got right is recorded,
so that a plan costs seconds here and its races are those of a real call. A plan sees the 500 development problems
(``python -m studies.scaling run --split dev --seeds 0 --records FILE`` made their records) in 20 orders, and is judged
on the 500 test problems.

Then the records of the real model (``studies/real``): what a plan on them advises, and how good plans on one half of
the problems are on the other. Tables of ``--samples`` do the same for recorded answers: which model, how many samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inferscale.cost import Budget
from inferscale.functional import best_of_k, majority_at_k, weighted_majority_at_k
from inferscale.scaling import Measured, Race, curve_of_results
from inferscale.scaling.beliefs import Floats
from inferscale.scaling.race import mean_and_error

from .real.report import BESIDE
from .real.searches import RECORDS, unpack
from .scaling.measure import read
from .scaling.page import fill

POOLS = (4, 16, 64)
BUDGETS = (3e8, 1e9, 3e9, 1e10)
REAL = (1e11, 3e11, 1e12)
REDUCTIONS = ("min", "last")
Column = tuple[Floats, dict[str, Floats]]


@dataclass(frozen=True)
class Outcomes:
    """What one run of the grid did on all problems; in a race, on the first problems of an order."""

    name: str
    columns: Mapping[str, Column]
    paid: Mapping[str, Floats]
    kin: Mapping[str, tuple[str, ...]]
    order: Any = ()

    def measure(self, problems: int) -> Measured:
        """The first problems of the order."""
        shown = self.order[:problems]
        return Measured(
            {name: values[shown] for name, (values, _) in self.columns.items()},
            {
                name: {cost: column[shown] for cost, column in costs.items()}
                for name, (_, costs) in self.columns.items()
            },
            {cost: column[shown] for cost, column in self.paid.items()},
            self.kin,
        )  # fmt: skip


def runs_of(record: Mapping[str, Any]) -> Iterator[Outcomes]:
    """The runs that a record of the scaling study stands for: a tree, or pools of 4, 16 and 64 samples."""
    policy, reward = (np.asarray(record[name], dtype=float) for name in ("policy_flops", "reward_flops"))
    label = f"{record['policy']}, {record['strategy']}"
    if "samples" not in record:
        name, paid = f"{label}({record['n']})", {"flops": policy + reward}
        columns: dict[str, Column] = {f"{name}, {vote}": (np.asarray(right, dtype=float), paid)
                                      for vote, right in record["votes"].items() if _is_shown(vote)}  # fmt: skip
        yield Outcomes(name, columns, paid, _kin(columns))
        return
    ids, right, scores = _pool(record["samples"], record["n"])
    first = record["policy_prompt_flops"], record["reward_prompt_flops"]

    def price(k: int, scored: bool) -> dict[str, Floats]:
        share = k / record["n"]
        total = first[0] + (policy - first[0]) * share
        return {"flops": total + (first[1] + (reward - first[1]) * share if scored else 0.0)}

    for pool in POOLS:
        columns = {}
        for k in (2**i for i in range(pool.bit_length())):
            name = f"{label}({k})"
            columns[f"{name}, majority"] = majority_at_k(ids[:, :pool], right[:, :pool], k), price(k, False)
            for reduction in REDUCTIONS if k > 1 else ():
                score = scores[reduction][:, :pool]
                rng = np.random.default_rng(k)
                weighted, _ = weighted_majority_at_k(
                    ids[:, :pool], right[:, :pool], k, score, score, rng=rng, max_subsets=100, num_subsets=100
                )
                chosen = best_of_k(score, right[:, :pool], k, mask=ids[:, :pool] >= 0)
                columns[f"{name}, weighted {reduction}"] = weighted, price(k, True)
                columns[f"{name}, best-of-n {reduction}"] = chosen, price(k, True)
        yield Outcomes(f"{label}, pool of {pool}", columns, price(pool, True), _kin(columns))


def _kin(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Policy, strategy and vote of each name, without the size."""
    return {name: (part[0], part[1].split("(")[0], part[2]) for name in names for part in [name.split(", ")]}


def _is_shown(vote: str) -> bool:
    return vote == "majority" or vote.rpartition(" ")[2] in REDUCTIONS


def _pool(samples: Sequence[Mapping[str, Any]], n: int) -> tuple[Any, Any, dict[str, Floats]]:
    """Answers as numbers, verdicts and scores, `[problems, n]`; a sample that failed abstains."""
    ids = np.full((len(samples), n), -1)
    right = np.zeros((len(samples), n), dtype=int)
    scores = {reduction: np.zeros((len(samples), n)) for reduction in REDUCTIONS}
    for row, sample in enumerate(samples):
        known: dict[str, int] = {}
        for column, answer in enumerate(sample["answers"]):
            ids[row, column] = -1 if answer is None else known.setdefault(answer, len(known))
        right[row, : len(sample["right"])] = sample["right"]
        for reduction in REDUCTIONS:
            scores[reduction][row, : len(sample["scores"][reduction])] = sample["scores"][reduction]
    return ids, right, scores


def grid_of(records: Iterable[Mapping[str, Any]], reward: str = "prm-s") -> list[Outcomes]:
    """The runs of the grid: sampling, REBASE, beam search and DVTS at the sizes of `POOLS`."""
    wanted = [
        r for r in records if r["reward"] == reward and r["n"] in POOLS and r["softmax_temperature"] in (None, 0.1)
    ]
    return [run for record in wanted for run in runs_of(record)]


def columns_of(runs: Iterable[Outcomes]) -> dict[str, Column]:
    """Mean values and costs of each configuration over its runs: seeds, and pools of several sizes."""
    found: dict[str, list[Column]] = {}
    for run in runs:
        for name, column in run.columns.items():
            found.setdefault(name, []).append(column)
    return {
        name: (np.mean([values for values, _ in same], axis=0),
               {cost: np.mean([costs[cost] for _, costs in same], axis=0) for cost in same[0][1]})
        for name, same in found.items()
    }  # fmt: skip


@dataclass(frozen=True)
class Regret:
    """A plan beside the full grid, on the problems that both are judged on; accuracies in points.

    Attributes:
        chosen: Accuracy of the plan's choice.
        by_grid: Accuracy of what has the greatest accuracy where the whole grid is run on all planning problems.
        best: The greatest accuracy of any configuration within the budget, known only afterwards.
        standard_error: Of `best`, over problems.
        paid: Cost of the plan's choice over the budget.
        seen: How far the best is before the choice where the whole grid is run on all planning problems, and the
            standard error of this difference over problems.
    """

    chosen: float
    by_grid: float
    best: float
    standard_error: float
    paid: float
    seen: tuple[float, float]


def regret_of(
    seed: int, plan_on: Sequence[Outcomes], judged_on: Mapping[str, Column], caps: Sequence[float], cost: str,
    share: float, planning: Any, judging: Any,
) -> tuple[list[Regret], float]:  # fmt: skip
    """A plan of one seed at each budget, and the share of the grid's cost that it took."""
    order = np.random.default_rng(seed).permutation(np.asarray(planning))
    full = sum(float(run.paid[cost][order].sum()) for run in plan_on)
    budgets = [Budget(**{cost: cap}) for cap in caps]  # type: ignore[arg-type]
    race = Race([replace(run, order=order) for run in plan_on], budgets, len(order),
                Budget(**{cost: share * full}))  # type: ignore[arg-type] # fmt: skip
    known = columns_of(plan_on)
    found = []
    for cap, winner in zip(caps, race.run(), strict=True):
        buys = [name for name, (_, costs) in judged_on.items() if costs[cost][judging].mean() <= cap]
        bought = [name for name, (_, costs) in known.items() if costs[cost][order].mean() <= cap]
        got = {name: 100 * float(judged_on[name][0][judging].mean()) for name in judged_on}
        best = max(buys, key=got.__getitem__)
        by_grid = max(bought, key=lambda name: (known[name][0][order].mean().round(9), -known[name][1][cost].mean()))
        error = 100 * float(judged_on[best][0][judging].std(ddof=1)) / len(judging) ** 0.5
        chosen = str(winner.configuration)
        paid = float(judged_on[chosen][1][cost][judging].mean()) / cap
        seen, blur = mean_and_error(known[best][0][order] - known[chosen][0][order])
        found.append(Regret(got[chosen], got[by_grid], got[best], error, paid, (100 * seen, 100 * blur)))
    return found, race.spent[cost] / full


def table(title: str, caps: Sequence[float], regrets: Sequence[Sequence[Regret]], spent: Sequence[float]) -> list[str]:
    """Regret at each budget: its distribution over seeds, and how often it is within one standard error."""
    columns = (
        *("budget", "best of the grid", "chosen, mean", "regret: mean", "quartiles", "most", "within one SE"),
        *("regret to the grid's own choice: mean", "most", "dearer than the budget"),
        "the rest: regret as the whole grid sees it",
    )
    share = f"{100 * float(np.mean(spent)):.1f} % of the grid's cost (at most {100 * max(spent):.1f} %)"
    every = sum(all(r.best - r.chosen <= r.standard_error for r in row) for row in regrets)
    lines = [
        f"{title}: {len(regrets)} seeds, {share}; within one standard error at all budgets: {every} of {len(regrets)}",
        *("", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)),
    ]
    for place, cap in enumerate(caps):
        rows = [row[place] for row in regrets]
        behind = np.asarray([r.best - r.chosen for r in rows])
        lost = np.asarray([r.by_grid - r.chosen for r in rows])
        error = np.asarray([r.standard_error for r in rows])
        quartiles = " / ".join(f"{q:+.1f}" for q in np.quantile(behind, (0.25, 0.5, 0.75)))
        dearer = [r.paid - 1 for r in rows if r.paid > 1]
        missed = [r.seen for r in rows if r.best - r.chosen > r.standard_error]
        seen = "{:+.1f} ± {:.1f}".format(*np.mean(missed, axis=0)) if missed else ""
        lines.append(
            f"| {cap:.3g} | {np.mean([r.best for r in rows]):.1f} ± {error.mean():.1f} "
            f"| {np.mean([r.chosen for r in rows]):.1f} | {behind.mean():+.1f} | {quartiles} | {behind.max():+.1f} "
            f"| {(behind <= error).sum()} of {len(rows)} | {lost.mean():+.1f} | {lost.max():+.1f} "
            f"| {len(dearer)}{f', by up to {max(dearer):.0%}' if dearer else ''} | {seen} |"
        )
    return lines


def embedded(records: Path, plan_records: Path, seeds: int, share: float) -> list[str]:
    """The table of the embedded task."""
    plan_on = grid_of(read(plan_records))
    names = {name for run in plan_on for name in run.columns}
    judged = {name: column for name, column in columns_of(grid_of(read(records))).items() if name in names}
    planning, judging = (range(len(next(iter(found))[0])) for found in (plan_on[0].columns.values(), judged.values()))
    runs = [regret_of(s, plan_on, judged, BUDGETS, "flops", share, planning, judging) for s in range(seeds)]
    return table("embedded task, FLOPs of a problem", BUDGETS, [r for r, _ in runs], [spent for _, spent in runs])


def recorded(path: Path, seeds: int, share: float, caps: Sequence[int]) -> list[str]:
    """The table of one file of real samples; each model in it is a pool, a call is a sample."""
    pools: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if "answers" not in row:
            raise SystemExit(f"{path} holds no answers: give files with rows of answers and gold, or correct")
        right = [int(a == row["gold"]) for a in row["answers"]] if "gold" in row else row["correct"]
        pools.setdefault(row.get("model", path.stem), []).append({"answers": row["answers"], "right": right})
    runs = []
    for name, samples in pools.items():
        n = len(samples[0]["answers"])
        for sample in samples:
            sample["scores"] = {reduction: [0.0] * n for reduction in REDUCTIONS}
        ids, right, _ = _pool(samples, n)
        columns = {
            f"{name}, {k} samples": (majority_at_k(ids, right, k), {"calls": np.full(len(samples), float(k))})
            for k in sorted({2**i for i in range(n.bit_length())} & set(range(n + 1)) | {n})
        }
        runs.append(
            Outcomes(name, columns, {"calls": np.full(len(samples), float(n))}, dict.fromkeys(columns, (name,)))
        )
    judged, count = columns_of(runs), min(len(samples) for samples in pools.values())
    found = []
    for seed in range(seeds):
        order = np.random.default_rng(1000 + seed).permutation(count)
        halves = order[: count // 2], order[count // 2 :]
        found.append(regret_of(seed, runs, judged, caps, "calls", share, *halves))
    return table(f"{path.stem}, samples of a problem", caps, [r for r, _ in found], [spent for _, spent in found])


def real_runs(dataset: str = "svamp") -> list[Outcomes]:
    """The recorded searches of the real model on the problems that all of them solved; costs are means."""
    records = unpack(RECORDS)
    found = []
    count = len(records[f"rebase-16-{dataset}"])
    for run in ("samples", *BESIDE):
        results = records[f"{run}-{dataset}"][:count]
        points = curve_of_results([results], "RepeatedSampling" if run == "samples" else run)
        columns: dict[str, Column] = {}
        kin = {}
        for p in points:
            if p.vote != "coverage" and (p.n > 1 or p.vote == "majority"):
                name = f"{p.n} samples, {p.vote}" if run == "samples" else f"{run}, {p.vote}"
                columns[name] = np.asarray(p.per_problem), {"flops": np.full(count, p.flops)}
                kin[name] = ("SmolLM2", run.split("-")[0], p.vote)
        whole = np.asarray([r.cost.flops for r in results], dtype=float)
        found.append(Outcomes(run, columns, {"flops": whole}, kin))
    return found


def real(seeds: int) -> list[str]:
    """What the real model's records advise, and plans on half of their problems, judged on the other half."""
    runs = real_runs()
    count = len(runs[0].paid["flops"])
    race = Race([replace(run, order=np.arange(count)) for run in runs], [Budget(flops=cap) for cap in REAL], count)
    lines = [
        f"SmolLM2-135M on {count} problems of SVAMP, FLOPs of a problem: the choices of a plan on all of them",
        *("", "| budget | choice | seen | expected | chance to be the best | rival | problems to tell |"),
        "|" + "---|" * 7,
    ]
    for cap, w in zip(REAL, race.run(), strict=True):
        seen, error = mean_and_error(race.column(str(w.configuration))[0])
        lines.append(
            f"| {cap:.3g} | {w.configuration} | {100 * seen:.1f} ± {100 * error:.1f} | {100 * w.expected:.1f} "
            f"| {w.chance:.0%} | {w.rival} | {w.problems_needed} |"
        )
    judged, found = columns_of(runs), []
    for seed in range(seeds):
        order = np.random.default_rng(1000 + seed).permutation(count)
        found.append(regret_of(seed, runs, judged, REAL, "flops", 0.5, order[: count // 2], order[count // 2 :]))
    title = "SmolLM2-135M on SVAMP, planned on one half of the problems, judged on the other"
    return [*lines, "", *table(title, REAL, [r for r, _ in found], [spent for _, spent in found])]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m studies.planning", description=__doc__)
    parser.add_argument("--records", type=Path, default=Path("studies/scaling/records.jsonl.gz"))
    parser.add_argument("--plan-records", type=Path, default=Path("studies/scaling/dev.jsonl.gz"))
    parser.add_argument("--samples", type=Path, nargs="*", default=[], help="files of recorded real samples")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.1, help="of the grid's cost, the most that a plan may take")
    parser.add_argument("--page", type=Path, help="write the tables into this page instead: docs/howto/planning.md")
    options = parser.parse_args()
    lines = embedded(options.records, options.plan_records, options.seeds, options.share)
    lines += ["", *real(options.seeds)]
    for path in options.samples:
        lines += ["", *recorded(path, options.seeds, 0.5, (1, 4, 10))]
    if options.page is None:
        print(*lines, sep="\n")
    else:
        fill(options.page, {"regret": lines})


if __name__ == "__main__":
    main()
