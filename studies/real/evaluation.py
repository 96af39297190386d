"""Greedy accuracy of the policy on SVAMP and GSM8K, without and with its adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from inferscale import Greedy, HFGenerator
from inferscale.evaluate import Run, run_evaluation
from inferscale.scaling import paired_difference

from .policy import MODEL, load_policy
from .searches import problems_of

HEADER = f"{'policy':<14} {'data':<6} {'problems':>8} {'accuracy':>14} {'cut':>6} {'unread':>7} {'tokens':>7}"


def greedy_table(
    data: Path,
    folder: Path,
    adapter: Path | None,
    sizes: Mapping[str, int],
    max_new_tokens: int,
    device: str,
    dtype: str,
) -> Iterator[str]:
    """Lines of the table, as they are measured; records go to a folder for each policy and data set.

    The prompt is the question as the user's turn; a problem counts as wrong when its solution was cut or holds no
    answer. Standard errors are over problems.
    """
    yield HEADER
    right: dict[str, list[list[float]]] = {dataset: [] for dataset in sizes}
    policies: dict[str, Path | None] = {"as it is": None} | ({} if adapter is None else {"with adapter": adapter})
    for name, path in policies.items():
        model, tokenizer = load_policy(path, device, dtype)
        generator = HFGenerator(model, tokenizer, temperature=0, max_new_tokens=max_new_tokens)
        about = {"model": MODEL, "adapter": weights_of(path)}
        for dataset, count in sizes.items():
            problems = problems_of(dataset, data, count)
            place = folder / f"{name.replace(' ', '-')}-{dataset}"
            run = run_evaluation(problems, Greedy(), generator, place, batch_size=64, config=about, progress=True)
            right[dataset].append([float(record["correct"]) for record in run.finished])
            yield _line(name, dataset, run)
    for dataset in sizes if adapter is not None else ():
        before, after = right[dataset]
        change = paired_difference(after, before, np.random.default_rng(0))
        yield (
            f"{dataset}: {100 * change.difference:+.1f} ± {100 * change.standard_error:.1f} points; right with the "
            f"adapter alone {change.only_first}, without it alone {change.only_second}, p = {change.p_value:.2g}"
        )


def _line(name: str, dataset: str, run: Run) -> str:
    count = len(run.finished)
    ends = [result.trajectories[0].steps[-1].finish_reason for result in run.results()]
    cut = sum(reason in ("length", "budget") for reason in ends) / count
    unread = sum(record["answer"] is None for record in run.finished) / count
    tokens = sum(record["result"]["cost"]["generated_tokens"] for record in run.finished) / count
    accuracy = f"{100 * run.accuracy:.1f} ± {100 * run.standard_error:.1f} %"
    return f"{name:<14} {dataset:<6} {count:>8} {accuracy:>14} {cut:>6.1%} {unread:>7.1%} {tokens:>7.0f}"


def weights_of(adapter: Path | None) -> str | None:
    """A name for the adapter's weights, so that one folder never holds two adapters' records."""
    if adapter is None:
        return None
    return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
