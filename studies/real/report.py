"""The tables of the page: votes over samples, searches beside them, and paired tests of what the papers claim."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeAlias, cast

import numpy as np
from scipy.stats import mannwhitneyu

from inferscale.engine.result import SearchResult
from inferscale.scaling import (
    CurvePoint,
    Vote,
    curve_of_results,
    estimate_voting_limit,
    paired_difference,
)
from inferscale.scaling.curves import gather_evidence
from inferscale.tree import Trajectory

from .searches import FILES, GREEDY, RUNS, SAMPLES

Results: TypeAlias = Sequence[SearchResult]
Runs: TypeAlias = Mapping[str, Results]
SIZES = (1, 2, 4, 8, 16, 32)
SAMPLING = "RepeatedSampling"
BESIDE = {"rebase-4": 4, "rebase-16": 16, "rebase-32": 32, "beam-16": 16, "dvts-16": 16, "mcts": 16}
"""Searches, and the numbers of samples that they are compared with."""
TEMPERATURES = ("rebase-16-0.05", "rebase-16-0.2", "rebase-16-0.5")
JUDGES: dict[str, Callable[[Trajectory], float | None]] = {
    "PRM": lambda t: t.score,
    "likelihood": lambda t: None if t.logprob is None else t.logprob / sum(s.generated_tokens for s in t.steps),
    "self-certainty": lambda t: t.steps[-1].confidence,
}
"""What a sample is chosen by: the trained model, or numbers that sampling gives for nothing."""


def judged(results: Results, judge: str) -> list[SearchResult]:
    """The results with the scores of a judge."""
    score = JUDGES[judge]
    return [replace(r, trajectories=tuple(replace(t, score=score(t)) for t in r.trajectories)) for r in results]


def sampling_points(
    results: Results, votes: Sequence[Vote], judge: str = "PRM", sizes: Sequence[int] = SIZES
) -> dict[tuple[str, int], CurvePoint]:
    """Points by vote and number of samples: the mean over all subsets of the samples that were drawn."""
    sizes = [size for size in sizes if size <= max(len(r.trajectories) for r in results)]
    points = curve_of_results([judged(results, judge)], SAMPLING, votes=votes, sizes=sizes)
    return {(point.vote, point.n): point for point in points}


def search_points(name: str, results: Results, votes: Sequence[Vote]) -> dict[str, CurvePoint]:
    """Points of a search by vote."""
    return {point.vote: point for point in curve_of_results([results], name, votes=votes)}


def all_tables(runs: Runs) -> Iterator[str]:
    """Lines of all tables, those of one data set after the other."""
    for dataset in FILES:
        if f"{SAMPLES}-{dataset}" in runs:
            yield from votes_table(dataset, runs)
            yield from searches_table(dataset, runs)
    yield from thoughts_table(runs)


def votes_table(dataset: str, runs: Runs) -> Iterator[str]:
    """Accuracy of each vote over 1 to 32 samples."""
    results = runs[f"{SAMPLES}-{dataset}"]
    scored = is_scored(results)
    points = sampling_points(results, _votes(scored))
    columns = {"majority": points}
    if scored:
        columns |= {"weighted": points, "best-of-n": points}
    free = {judge: sampling_points(results, ["best-of-n"], judge) for judge in ("likelihood", "self-certainty")}
    yield f"### {TITLES[dataset]}: votes over samples"
    yield ""
    yield from greedy_lines(dataset, runs)
    heads = ["samples", *columns, *(f"best by {judge}" for judge in free), "coverage", "tokens", "GFLOPs", "with PRM"]
    yield from _head(heads)
    for size in SIZES:
        cells = [str(size), *(_share(points[vote, size]) for vote in columns)]
        cells += [_share(found["best-of-n", size]) for found in free.values()]
        dearest = points["best-of-n" if scored else "majority", size]
        costs = [f"{dearest.tokens:.0f}", f"{dearest.generator_flops / 1e9:.0f}", f"{dearest.flops / 1e9:.0f}"]
        yield _row([*cells, _share(points["coverage", size]), *costs])
    yield ""
    yield from separation_lines(results, scored)
    limit = f", the weighted vote on {voting_limit(results, weighted=True)}" if scored else ""
    yield (
        f"{len(results)} problems. As the number of samples grows without end, the majority is right on "
        f"{voting_limit(results, weighted=False)}{limit}."
    )
    yield ""


TITLES = {"svamp": "SVAMP", "gsm8k": "GSM8K"}


def separation_lines(results: Results, scored: bool) -> Iterator[str]:
    """How well each judge tells right samples from wrong ones: over all problems, and among those of one problem."""
    told = []
    for judge in JUDGES if scored else list(JUDGES)[1:]:
        right, wrong, within = list[float](), list[float](), list[float]()
        for result in judged(results, judge):
            # a sample that was cut has no answer, and is wrong
            both = [
                [t.score or 0.0 for t in result.trajectories if bool(t.is_correct) is kind] for kind in (True, False)
            ]
            right, wrong = right + both[0], wrong + both[1]
            if all(both):
                within.append(area(*both))
        if within:
            error = float(np.std(within, ddof=1)) / len(within) ** 0.5 if len(within) > 1 else float("nan")
            inside = f"{np.mean(within):.3f} ± {error:.3f} among those of one ({len(within)} problems)"
            told.append(f"{judge} {area(right, wrong):.3f} over all problems, {inside}")
    if told:
        yield f"Chance that a right sample outscores a wrong one: {'; '.join(told)}."
        yield ""


def area(right: Sequence[float], wrong: Sequence[float]) -> float:
    """The share of pairs in which the right one is higher, ties by half (area under the ROC curve)."""
    return float(mannwhitneyu(right, wrong).statistic) / (len(right) * len(wrong))


def greedy_lines(dataset: str, runs: Runs) -> Iterator[str]:
    """What the likeliest solution of the model as it is and of the policy is worth on these problems."""
    told = []
    for name, of in zip(GREEDY, ("the model as it is", "the policy"), strict=True):
        results = runs.get(f"{name}-{dataset}", ())[: len(runs[f"{SAMPLES}-{dataset}"])]
        if results:
            point = search_points("greedy", results, ["majority"])["majority"]
            told.append(f"{of} {_share(point)} % with {point.tokens:.0f} tokens")
    if told:
        yield f"Greedy: {'; '.join(told)}."
        yield ""


def searches_table(dataset: str, runs: Runs) -> Iterator[str]:
    """Each search beside votes over samples of the same problems."""
    found = {name: runs[f"{name}-{dataset}"] for name in (*BESIDE, *TEMPERATURES) if f"{name}-{dataset}" in runs}
    if not found:
        return
    count = min(map(len, found.values()))
    yield f"### {TITLES[dataset]}: searches, the first {count} problems"
    yield ""
    votes = _votes(scored=True)
    yield from _head(["search", *votes, "tokens", "policy GFLOPs", "all GFLOPs", "seconds"])
    points = sampling_points(runs[f"{SAMPLES}-{dataset}"][:count], votes)
    for size in (4, 16, 32):
        yield _row([f"{size} samples", *_cells([points[vote, size] for vote in votes])])
    for name, results in found.items():
        of = search_points(name, results[:count], votes)
        yield _row([f"`{written(name)}`", *_cells([of[vote] for vote in votes])])
    yield ""


def _cells(points: Sequence[CurvePoint]) -> list[str]:
    dearest = max(points, key=lambda p: p.flops)
    return [
        *map(_share, points),
        f"{dearest.tokens:.0f}",
        f"{dearest.generator_flops / 1e9:.0f}",
        f"{dearest.flops / 1e9:.0f}",
        f"{dearest.seconds:.1f}",
    ]


PUBLISHED = {
    "baseline": (10.16, 11.22, 52.47),
    "thoughts": (32.03, 12.73, 554.66),
    "REBASE, width 3": (10.94, 2.35, 8.47),
    "REBASE, width 6": (10.16, 4.96, 17.82),
    "REBASE, width 16": (12.50, 13.57, 46.90),
    "thoughts and REBASE, width 6": (9.38, 4.25, 143.66),
}
"""Accuracy (%), FLOPs (10^12) and seconds of a problem: AbdElhameed and Halim 2024 (arXiv:2412.16260), Mistral-7B."""
MEASURED = {
    "baseline": (SAMPLES, "majority"),
    "thoughts": ("thoughts", "majority"),
    "REBASE, width 3": ("rebase-3", "best-of-n"),
    "REBASE, width 6": ("rebase-6", "best-of-n"),
    "REBASE, width 16": ("rebase-16", "best-of-n"),
    "thoughts and REBASE, width 6": ("thoughts-rebase-6", "best-of-n"),
    "REBASE, width 6, cut": ("rebase-6-cut", "best-of-n"),
    "thoughts and REBASE, width 6, cut": ("thoughts-rebase-6-cut", "best-of-n"),
}
"""Their rows as run here: votes of 6 samples, and the answer of the best leaf; then what a cut does."""


def thoughts_table(runs: Runs) -> Iterator[str]:
    """The second paper's table, published and measured, on the problems that all of its runs have."""
    known = {row: (f"{name}-svamp", vote) for row, (name, vote) in MEASURED.items() if f"{name}-svamp" in runs}
    if not any(name.startswith("thoughts") for name, _ in known.values()):
        return
    count = min(len(runs[name]) for name, _ in known.values())
    yield f"### SVAMP: thoughts and REBASE, the first {count} problems"
    yield ""
    yield from _head(["run", "published, %", "10^12 FLOPs", "seconds", "here, %", "10^12 FLOPs", "seconds", "tokens"])
    for row, (name, vote) in known.items():
        if name.startswith(SAMPLES):
            point = sampling_points(runs[name][:count], ["majority"], sizes=[6])["majority", 6]
        else:
            point = search_points(row, runs[name][:count], [cast(Vote, vote)])[vote]
        told = [f"{value:.2f}" for value in PUBLISHED.get(row, ())] or ["", "", ""]
        cells = [row, *told, _share(point), f"{point.flops / 1e12:.2f}", f"{point.seconds:.1f}", f"{point.tokens:.0f}"]
        yield _row(cells)
    yield ""


def all_claims(runs: Runs) -> Iterator[str]:
    """What the papers claim, tested on the same problems: list items."""
    for dataset in FILES:
        if is_scored(runs.get(f"{SAMPLES}-{dataset}", ())):
            yield from claims_of_votes(dataset, runs)
            yield from claims_of_searches(dataset, runs)


def claims_of_votes(dataset: str, runs: Runs) -> Iterator[str]:
    """Votes over 16 samples against the majority, each sample's chance first."""
    samples = runs[f"{SAMPLES}-{dataset}"]
    points = sampling_points(samples, ["majority", "weighted", "best-of-n"])
    majority = points["majority", 16]
    told = {"best of 16 by the PRM": points["best-of-n", 16], "weighted vote of 16": points["weighted", 16]}
    for judge in ("likelihood", "self-certainty"):
        told[f"best of 16 by {judge}"] = sampling_points(samples, ["best-of-n"], judge)["best-of-n", 16]
    yield compare(f"{TITLES[dataset]}: majority of 16 against one sample", majority, points["majority", 1])
    for name, point in told.items():
        yield compare(f"{TITLES[dataset]}: {name} against the majority of 16", point, majority)


def claims_of_searches(dataset: str, runs: Runs) -> Iterator[str]:
    """Searches against as many samples, and REBASE against MCTS and other temperatures, all by weighted votes."""
    for name, size in BESIDE.items():
        results = runs.get(f"{name}-{dataset}")
        if results:
            found = search_points(name, results, ["weighted"])["weighted"]
            same = sampling_points(runs[f"{SAMPLES}-{dataset}"][: len(results)], ["weighted"])["weighted", size]
            dearer = f"{found.flops / same.flops:.2f} times the FLOPs"
            yield compare(f"{TITLES[dataset]}: `{written(name)}` at {dearer} against {size} samples", found, same)
    for name in ("mcts", *TEMPERATURES):
        pair = [runs.get(f"{one}-{dataset}") for one in ("rebase-16", name)]
        if all(pair):
            count = min(len(results or ()) for results in pair)
            one, other = (
                search_points("search", (results or ())[:count], ["weighted"])["weighted"] for results in pair
            )
            yield compare(f"{TITLES[dataset]}: `{written('rebase-16')}` against `{written(name)}`", one, other)


def written(name: str) -> str:
    """The strategy of a run as code, without options that have their default values and are no sizes."""
    strategy: Any = RUNS[name].strategy
    sizes = ("width", "beam_width", "branching", "num_subtrees", "num_simulations")
    given = {option.name: getattr(strategy, option.name) for option in fields(strategy) if option.init}
    default = {option.name: option.default for option in fields(strategy)}
    told = [f"{key}={value}" for key, value in given.items() if key in sizes or value != default[key]]
    return f"{type(strategy).__name__}({', '.join(told)})"


def compare(name: str, first: CurvePoint, second: CurvePoint) -> str:
    """The paired difference of two points as a list item."""
    found = paired_difference(first, second, np.random.default_rng(0))
    accuracies = f"{100 * first.accuracy:.1f} % against {100 * second.accuracy:.1f} %"
    interval = f"95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}"
    change = f"{100 * found.difference:+.1f} ± {100 * found.standard_error:.1f} points ({interval})"
    return f"* {name}: {accuracies}, {change} on {first.problems} problems."


def voting_limit(results: Results, weighted: bool) -> str:
    """Share of problems that a vote over endlessly many samples gets right, estimated from those that were drawn."""
    evidence = gather_evidence(results)
    ids = [item.ids.tolist() for item in evidence]
    gold = [int(item.ids[item.correct == 1][0]) if item.correct.any() else -2 for item in evidence]
    scores = [[t.score or 0.0 for t in result.trajectories] for result in results] if weighted else None
    share, low, high = estimate_voting_limit(ids, gold, np.random.default_rng(0), scores, resamples=300)
    return f"{100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def is_scored(results: Iterable[SearchResult]) -> bool:
    """True if every trajectory has a score, and there is one."""
    scores = [t.score for r in results for t in r.trajectories]
    return bool(scores) and None not in scores


def _votes(scored: bool) -> list[Vote]:
    return ["majority", "weighted", "best-of-n", "coverage"] if scored else ["majority", "coverage"]


def _share(point: CurvePoint) -> str:
    return f"{100 * point.accuracy:.1f} ± {100 * point.standard_error:.1f}"


def _head(cells: Sequence[str]) -> Iterator[str]:
    yield _row(cells)
    yield "|" + "---|" * len(cells)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
