"""Tables of the study from its records: means over problems and seeds, standard errors over problems."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferscale.functional import best_of_k, majority_at_k, pass_at_k, weighted_majority_at_k
from inferscale.scaling import estimate_voting_limit

SIZES = (1, 2, 4, 8, 16, 32, 64)
CURVES = ("coverage", "majority", "weighted", "best-of-n")
Records = Sequence[dict[str, Any]]
Floats = NDArray[np.float64]


def pick(records: Records, **wanted: Any) -> list[dict[str, Any]]:
    """Records whose fields have the wanted values."""
    return [r for r in records if all(r[name] == value for name, value in wanted.items())]


def mean_and_error(values: Floats) -> tuple[float, float]:
    """Mean over problems of each problem's mean over seeds, and its standard error over problems.

    Args:
        values: `[seeds, problems]`.
    """
    by_problem = values.mean(axis=0)
    return float(by_problem.mean()), float(by_problem.std(ddof=1) / math.sqrt(len(by_problem)))


def shown(values: Floats) -> str:
    """Percent with standard error."""
    mean, error = mean_and_error(values)
    return f"{100 * mean:.1f} ± {100 * error:.1f}"


_KNOWN: dict[tuple[Any, ...], dict[str, dict[int, Floats]]] = {}


def sample_curves(
    record: dict[str, Any], reduction: str, names: Sequence[str] = CURVES, sizes: Sequence[int] = SIZES
) -> dict[str, dict[int, Floats]]:
    """Expected correctness of each problem at each size, from the record's samples (unbiased estimators)."""
    key = record["key"], reduction, tuple(names), tuple(sizes)
    if key not in _KNOWN:
        _KNOWN[key] = _curves(record, reduction, names, sizes)
    return _KNOWN[key]


def _curves(
    record: dict[str, Any], reduction: str, names: Sequence[str], sizes: Sequence[int]
) -> dict[str, dict[int, Floats]]:
    samples = record["samples"]
    answers = np.array([answer_ids(s["answers"]) for s in samples])
    right = np.array([s["right"] for s in samples])
    scores = np.array([s["scores"][reduction] for s in samples])
    masked = np.where(answers >= 0, scores, scores.min() - 1.0)
    rng = np.random.default_rng(0)
    estimate: dict[str, Callable[[int], Any]] = {
        "coverage": lambda k: pass_at_k(right, k),
        "majority": lambda k: majority_at_k(answers, right, k),
        "weighted": lambda k: weighted_majority_at_k(answers, right, k, weights=scores, rng=rng)[0],
        "best-of-n": lambda k: best_of_k(masked, right, k),
    }
    usable = [k for k in sizes if k <= answers.shape[1]]
    return {name: {k: np.asarray(estimate[name](k)) for k in usable} for name in names}


def costs(records: Records, k: int | None = None) -> tuple[float, float, float]:
    """Mean tokens, policy MFLOPs and reward MFLOPs of a problem; for `k` of n samples the prompt still counts once."""
    share = 1.0 if k is None else k / records[0]["n"]
    tokens = float(np.mean([r["tokens"] for r in records])) * share
    flops = []
    for part in ("policy", "reward"):
        whole = float(np.mean([r[f"{part}_flops"] for r in records]))
        prompt = float(np.mean([r[f"{part}_prompt_flops"] for r in records]))
        flops.append((prompt + (whole - prompt) * share) / 1e6)
    return tokens, flops[0], flops[1]


def sampling_table(records: Records, policy: str, reward: str, reduction: str) -> list[str]:
    """Markdown rows: votes over n samples."""
    runs = pick(records, policy=policy, reward=reward, strategy="RepeatedSampling", n=64)
    if not runs:
        return []
    curves = [sample_curves(r, reduction) for r in runs]
    lines = [
        "| n | tokens | policy MFLOPs | + reward | coverage | majority | weighted | best of n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for k in SIZES:
        tokens, base, extra = costs(runs, k)
        cells = [
            shown(np.array([c[name][k] for c in curves])) for name in ("coverage", "majority", "weighted", "best-of-n")
        ]
        lines.append(f"| {k} | {tokens:,.0f} | {base:.1f} | {base + extra:.1f} | " + " | ".join(cells) + " |")
    return lines


def search_table(records: Records, policy: str, reward: str, reduction: str) -> list[str]:
    """Markdown rows: beam search, DVTS and REBASE at each width."""
    lines = [
        "| strategy | n | seeds | tokens | policy MFLOPs | + reward | majority | weighted | best of n |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for strategy in ("BeamSearch", "DVTS", "REBASE"):
        found = pick(records, policy=policy, reward=reward, strategy=strategy)
        found = [r for r in found if r["softmax_temperature"] in (None, 0.1)]
        for n in sorted({r["n"] for r in found}):
            runs = pick(found, n=n)
            tokens, base, extra = costs(runs)
            names = ("majority", f"weighted {reduction}", f"best-of-n {reduction}")
            cells = [shown(np.array([r["votes"][name] for r in runs], dtype=float)) for name in names]
            row = [strategy, n, len(runs), f"{tokens:,.0f}", f"{base:.1f}", f"{base + extra:.1f}", *cells]
            lines.append("| " + " | ".join(map(str, row)) + " |")
    return lines if len(lines) > 2 else []


def answer_ids(answers: Sequence[str | None]) -> list[int]:
    """Answers as numbers in order of appearance, -1 for an abstention."""
    names: dict[str, int] = {}
    return [-1 if answer is None else names.setdefault(answer, len(names)) for answer in answers]


@dataclass(frozen=True)
class Pooled:
    """Samples of all runs, a list for each problem: answers as numbers, the right one (-2: none), scores."""

    ids: list[list[int]]
    golds: list[int]
    scores: list[list[float]]


def pooled(runs: Records, reduction: str) -> Pooled:
    """The samples of several seeds as one set."""
    problems = range(runs[0]["problems"])
    joined = [[run["samples"][i] for run in runs] for i in problems]
    ids = [answer_ids([answer for part in parts for answer in part["answers"]]) for parts in joined]
    right = [[flag for part in parts for flag in part["right"]] for parts in joined]
    golds = [next((n for n, flag in zip(a, r, strict=True) if flag), -2) for a, r in zip(ids, right, strict=True)]
    return Pooled(ids, golds, [[score for part in parts for score in part["scores"][reduction]] for parts in joined])


def saturation(records: Records, policy: str, reward: str, reduction: str) -> list[str]:
    """The measured majority vote beside the limit read from the answers of all seeds together (Theorem 1)."""
    runs = pick(records, policy=policy, reward=reward, strategy="RepeatedSampling", n=64)
    if not runs:
        return []
    whole = pooled(runs, reduction)
    limit, low, high = estimate_voting_limit(whole.ids, whole.golds, np.random.default_rng(0), resamples=200)
    at_64 = np.array([sample_curves(r, reduction)["majority"][64] for r in runs])
    return [
        f"Majority vote at n = 64: {shown(at_64)} %; limit of Theorem 1 from {64 * len(runs)} samples: "
        f"{100 * limit:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})."
    ]


def grouped(records: Records, key: Callable[[dict[str, Any]], Any]) -> dict[Any, list[dict[str, Any]]]:
    """Records by key, in order of appearance."""
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return dict(groups)


def sensitivity_tables(records: Records, policy: str, reward: str, reduction: str) -> list[str]:
    """REBASE against T_b, and against the checker with noise."""
    lines: list[str] = []
    sweep = pick(records, policy=policy, reward=reward, strategy="REBASE", n=16)
    if len({r["softmax_temperature"] for r in sweep}) > 1:
        lines += [f"| T_b | seeds | REBASE 16, majority | weighted ({reduction}) |", "|---|---|---|---|"]
        for temperature, runs in sorted(grouped(sweep, lambda r: r["softmax_temperature"]).items()):
            cells = _vote(runs, "majority"), _vote(runs, f"weighted {reduction}")
            lines.append(f"| {temperature} | {len(runs)} | {cells[0]} | {cells[1]} |")
    noisy = [r for r in records if r["policy"] == policy and r["reward"].startswith("simulated-")]
    if noisy:
        lines += ["", "| AUC | sampling 16, majority | weighted (prod) | REBASE 16, weighted (last) |",
                  "|---|---|---|---|"]  # fmt: skip
        for auc, runs in sorted(grouped(noisy, lambda r: r["reward"]).items()):
            sampling = pick(runs, strategy="RepeatedSampling")
            search = pick(runs, strategy="REBASE")
            if sampling and search:
                lines.append(
                    f"| {auc.removeprefix('simulated-')} | {_vote(sampling, 'majority')} | "
                    f"{_vote(sampling, 'weighted prod')} | {_vote(search, 'weighted last')} |"
                )
    return lines


def _vote(runs: Records, name: str) -> str:
    return shown(np.array([r["votes"][name] for r in runs], dtype=float))


def report(records: Records, reduction: str) -> Iterable[str]:
    """The tables of each policy and judge, as markdown."""
    pairs = dict.fromkeys((r["policy"], r["reward"]) for r in records if not r["reward"].startswith("simulated-"))
    for policy, reward in pairs:
        runs = pick(records, policy=policy, reward=reward)
        seeds = sorted({r["seed"] for r in runs})
        yield f"\n### {policy}, judged by {reward} ({runs[0]['problems']} problems, seeds {seeds})\n"
        yield from sampling_table(records, policy, reward, reduction)
        yield ""
        yield from search_table(records, policy, reward, reduction)
        yield ""
        yield from saturation(records, policy, reward, reduction)
