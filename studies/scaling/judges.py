"""The judges side by side: a trained one, and the likelihood that is its baseline, on the same samples."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .report import Floats, Records, costs, pick, sample_curves, shown

BASELINE = "likelihood"
COLUMNS = "| policy | judge | seeds | 16 samples | 64 samples | against likelihood, 64 | REBASE 16 | + reward |"


def judges_table(records: Records, reduction: str) -> Iterable[str]:
    """Markdown rows: weighted votes by each judge; the difference is over the seeds that both have, paired."""
    yield f"\n### The judges ({records[0]['problems']} problems, weighted votes)\n"
    yield COLUMNS
    yield "|---" * 8 + "|"
    for policy, reward in dict.fromkeys((r["policy"], r["reward"]) for r in records):
        runs = pick(records, policy=policy, reward=reward, strategy="RepeatedSampling", n=64)
        found = pick(records, policy=policy, reward=reward, strategy="REBASE", n=16)
        searches = [r for r in found if r["softmax_temperature"] == 0.1]
        if not runs or not searches:
            continue
        by_seed = _weighted(runs, reduction)
        cells = [shown(np.array([curve[n] for curve in by_seed.values()])) for n in (16, 64)]
        rebase = shown(np.array([r["votes"][f"weighted {reduction}"] for r in searches], dtype=float))
        _, base, extra = costs(searches)
        yield (
            f"| {policy} | {reward} | {len(by_seed)} | {cells[0]} | {cells[1]} | "
            f"{_against(records, policy, reward, by_seed, reduction)} | {rebase} | {base + extra:.0f} |"
        )


def _weighted(runs: Records, reduction: str) -> dict[int, dict[int, Floats]]:
    return {r["seed"]: sample_curves(r, reduction)["weighted"] for r in runs}


def _against(records: Records, policy: str, reward: str, by_seed: dict[int, dict[int, Floats]], reduction: str) -> str:
    runs = pick(records, policy=policy, reward=BASELINE, strategy="RepeatedSampling", n=64)
    common = [r for r in runs if r["seed"] in by_seed]
    if reward == BASELINE or not common:
        return ""
    baseline = _weighted(common, reduction)
    difference = np.mean([by_seed[seed][64] - baseline[seed][64] for seed in baseline], axis=0)
    error = difference.std(ddof=1) / len(difference) ** 0.5
    return f"{100 * difference.mean():+.1f} ± {100 * error:.1f}"
