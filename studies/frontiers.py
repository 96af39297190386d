"""The two papers' frontiers by FLOPs, eFLOPs, seconds and joules: ``python -m studies.frontiers``.

What is the best that a budget buys, and does that change with what the budget is counted in? Three sets of accuracies:
the scaling study's on the embedded models (measured); tables 1 and 4 of Wu et al. (arXiv:2408.00724, MATH500) and the
results of AbdElhameed and Halim (arXiv:2412.16260, 128 problems of GSM8K), as published. Costs are predicted in one way
for all (`inferscale.scaling.predict_cost`), of policy and reward model together, from the lengths of the records or
those that the papers' FLOPs imply; the embedded models' FLOPs are measured.

eFLOPs are FLOPs + intensity x bytes of keys and values (Kinetics, arXiv:2506.05333). Seconds are a roofline: "alone"
for one problem at a time, "together" where 64 problems share each forward, as on a busy server. Joules are seconds
times the power of the board: drawn together, since alone they are the picture of seconds in another unit.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from inferscale import zoo
from inferscale.base import SearchStrategy
from inferscale.scaling import CurvePoint, Device, Prediction, device, predict_cost
from inferscale.strategies import DVTS, REBASE, BeamSearch, RepeatedSampling
from inferscale.zoo.task import solution

from .scaling.measure import read
from .scaling.page import fill
from .scaling.paper import curve_points

POLICIES, JUDGE = ("policy-xs", "policy-s", "policy-m"), "prm-s"
TOGETHER = 64
MATH_PROMPT, MATH_STEPS = 100, 8  # tokens of a prompt and steps of a solution: not published, assumed
GSM8K_PROMPT = 100
THOUGHT = 8  # tokens of a thought in AbdElhameed and Halim
_LLAMA = {"model_type": "llama", "vocab_size": 32000, "tie_word_embeddings": False}
MODELS: dict[str, dict[str, Any]] = {
    "Llemma-7B": _LLAMA | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                           "num_key_value_heads": 32, "intermediate_size": 11008},
    "Llemma-34B": _LLAMA | {"hidden_size": 8192, "num_hidden_layers": 48, "num_attention_heads": 64,
                            "num_key_value_heads": 8, "intermediate_size": 22016},
    "Mistral-7B": _LLAMA | {"model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32,
                            "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336},
}  # fmt: skip
_HEAD = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
# Policy: its size in the paper, and samples or leaves of a strategy with FLOPs / 1e12 and accuracies of each vote.
WU: dict[str, tuple[float, list[tuple[str, int, float, dict[str, float]]]]] = {
    "Mistral-7B": (7e9, [
        ("sampling", 1, 3.4, {"majority": 28.6}),
        ("sampling", 32, 109.2, {"majority": 36.1, "best of n": 40.3, "weighted": 39.7}),
        ("sampling", 256, 870.0, {"weighted": 42.8}),
        ("REBASE", 32, 136.2, {"majority": 44.1, "best of n": 45.4, "weighted": 45.0}),
    ]),
    "Llemma-7B": (7e9, [
        ("sampling", 1, 3.92, {"majority": 30.0}),
        ("sampling", 32, 125.4, {"majority": 41.0, "best of n": 41.7, "weighted": 43.5}),
        ("sampling", 256, 1000.0, {"weighted": 45.5}),
        ("REBASE", 32, 148.0, {"majority": 46.1, "best of n": 44.1, "weighted": 46.8}),
    ]),
    "Llemma-34B": (34e9, [
        ("sampling", 1, 19.0, {"majority": 33.0}),
        ("sampling", 8, 152.3, {"majority": 39.9, "best of n": 40.4, "weighted": 41.0}),
        ("sampling", 64, 1210.0, {"weighted": 46.7}),
        ("REBASE", 8, 176.8, {"majority": 43.9, "best of n": 43.6, "weighted": 42.9}),
        ("REBASE", 32, 708.0, {"weighted": 49.2}),
    ]),
}  # fmt: skip
# Tokens of a vote or leaf, votes of the released results and their accuracies.
HALIM: dict[str, tuple[float, dict[int, float]]] = {
    "Mistral-7B, majority": (244, {1: 3.9, 2: 4.7, 3: 5.5, 4: 6.3, 5: 8.6, 6: 10.16}),
    "Quiet-STaR, majority": (277, {1: 18.8, 2: 18.8, 3: 21.9, 4: 25.0, 5: 29.7, 6: 32.03}),
    "Mistral-7B, REBASE": (95, {3: 10.94, 6: 10.16, 16: 12.50}),
    "Quiet-STaR, REBASE": (92, {6: 9.38}),
}
HALIM_FLOPS = 7_650_672_640  # that they charge for a token: no thoughts, no prompt, no reward model


CPU = 1e11, 1e10, 1e-3  # one core: FLOP/s and bytes/s of float32, seconds that a forward takes at least


@dataclass(frozen=True)
class Priced:
    """A configuration, its accuracy, and what a problem costs in each way to count.

    Attributes:
        line: What it is one size of.
        name: Of the configuration.
        accuracy: Percent of the problems.
        error: Standard error of it, over problems.
        costs: By the way to count.
    """

    line: str
    name: str
    accuracy: float
    error: float
    costs: Mapping[str, float]


def frontier(points: Sequence[Priced], count: str) -> list[Priced]:
    """What budgets buy, cheapest first; a dearer one only if it is better by at least its standard error.

    Costs that agree to within some 5 % count as the same.
    """
    best: list[Priced] = []
    for point in sorted(points, key=lambda p: (round(math.log(p.costs[count]) / 0.05), -p.accuracy)):
        if not best or point.accuracy >= best[-1].accuracy + point.error:
            best.append(point)
    return best


def predictions(
    policy: Any, reward: Any, strategy: SearchStrategy, where: Device, prompt: int, new: float, step: float,
    forwards: int = 1, width: float = 2,
) -> tuple[Prediction, Prediction]:  # fmt: skip
    """The cost of a problem alone and together with others.

    Args:
        policy: Configuration of the policy.
        reward: Of the reward model; ``None`` if nothing reads scores.
        strategy: The strategy.
        where: The device.
        prompt: Tokens of the prompt.
        new: Tokens of a solution.
        step: Tokens of a step.
        forwards: Of the policy for each visible token, those of its hidden thought included.
        width: Bytes of a number.
    """
    alone, together = (
        predict_cost(policy, strategy, reward=reward, prompt=prompt, new=round(new), step=max(round(step), 1),
                     device=where, batch=batch, bytes_per_number=width, samples=2)
        for batch in (1, TOGETHER)
    )  # fmt: skip
    return _thinking(alone, forwards), _thinking(together, forwards)


def _thinking(p: Prediction, forwards: int) -> Prediction:
    slower = replace(
        p, generator_flops=p.generator_flops * forwards, generator_bytes=p.generator_bytes * forwards,
        cache_bytes=p.cache_bytes * forwards, rounds=p.rounds * forwards,
        phases={**p.phases, "decode": p.phases["decode"] * forwards},
    )  # fmt: skip
    return replace(slower, joules=(p.joules or 0) * slower.seconds / p.seconds)


def embedded(records: Path, cpu: Device) -> list[Priced]:
    """Measured accuracies and FLOPs of the embedded models; the rest predicted for an H200 and a CPU."""
    models = {name: zoo.load(name) for name in (*POLICIES, JUDGE)}
    tokenizer = models[JUDGE][1]
    problems = zoo.problems("test")
    prompt = round(mean(len(tokenizer(p.prompt)["input_ids"]) for p in problems))
    texts = [solution(p.prompt) for p in problems]
    step = mean(len(tokenizer(t)["input_ids"]) for t in texts) / mean(len(t.strip().split("\n")) for t in texts)
    h200 = device("h200")

    @cache
    def cost(model: str, strategy: SearchStrategy, scored: bool, new: int, on_cpu: bool) -> tuple[Prediction, ...]:
        reward = models[JUDGE][0].config if scored else None
        where, width = (cpu, 4.0) if on_cpu else (h200, 2.0)
        return predictions(models[model][0].config, reward, strategy, where, prompt, new, step, width=width)

    found = []
    for p in curve_points(read(records), JUDGE, "min"):
        strategy, scored = _strategy(p), p.reward_flops > 0
        # A vote over one sample is the same with any score, and every search reads them.
        if p.n == 1 and p.vote != "majority":
            continue
        alone, busy = cost(p.model, strategy, scored, round(p.tokens / p.n), False)
        here, shared = cost(p.model, strategy, scored, round(p.tokens / p.n), True)
        name = "sampling" if p.strategy == "RepeatedSampling" else p.strategy
        line = f"{p.model}, {name}"
        costs = {
            "policy's tokens": 2.0 * (p.parameters or 0) * p.tokens,
            "FLOPs": p.flops,
            "eFLOPs": p.flops + h200.intensity * alone.cache_bytes,
            "seconds alone, H200": alone.seconds,
            "seconds alone, CPU": here.seconds,
            "seconds together, CPU": shared.seconds,
            "joules together, H200": busy.joules or 0,
        }
        found.append(Priced(line, f"{line} {p.n}, {p.vote}", 100 * p.accuracy, 100 * p.standard_error, costs))
    return found


def _strategy(p: CurvePoint) -> SearchStrategy:
    match p.strategy:
        case "RepeatedSampling":
            return RepeatedSampling(p.n)
        case "REBASE":
            return REBASE(p.n)
        case "BeamSearch":
            return BeamSearch(p.n // 4, 4)
    return DVTS(p.n // 4, 4)


def wu() -> list[Priced]:
    """Wu et al., MATH500, on an H200; the reward model is the paper's, of 34B."""
    found = []
    for policy, (size, rows) in WU.items():
        for strategy, n, flops, votes in rows:
            new = 1e12 * flops / (2 * size * n)
            search: SearchStrategy = REBASE(n) if strategy == "REBASE" else RepeatedSampling(n)
            for vote, accuracy in votes.items():
                scored = strategy == "REBASE" or vote != "majority"
                reward = MODELS["Llemma-34B"] | _HEAD if scored else None
                costs = predictions(MODELS[policy], reward, search, device("h200"), MATH_PROMPT, new, new / MATH_STEPS)
                name = f"{policy}, {strategy}"
                found.append(_published(name, f"{name} {n}, {vote}", accuracy, 500, 1e12 * flops, *costs, "H200"))
    return found


def halim() -> list[Priced]:
    """AbdElhameed and Halim, 128 problems of GSM8K, on an A100 with a cache, which their code did without."""
    found = []
    for line, (tokens, results) in HALIM.items():
        # A visible token is its own forward and those of its thought, which has a token to begin it and one to end it.
        forwards = THOUGHT + 3 if line.startswith("Quiet-STaR") else 1
        searched = line.endswith("REBASE")
        reward = MODELS["Mistral-7B"] if searched else None
        for n, accuracy in results.items():
            # 93 to 99 % of their leaves are one step: any digit ended them.
            search: SearchStrategy = REBASE(n) if searched else RepeatedSampling(n)
            costs = predictions(
                MODELS["Mistral-7B"], reward, search, device("a100"), GSM8K_PROMPT, tokens, tokens, forwards
            )
            found.append(_published(line, f"{line} {n}", accuracy, 128, HALIM_FLOPS * tokens * n, *costs, "A100"))
    return found


def _published(
    line: str, name: str, accuracy: float, problems: int, charged: float, alone: Prediction, shared: Prediction,
    where: str,
) -> Priced:  # fmt: skip
    error = 100 * math.sqrt(accuracy / 100 * (1 - accuracy / 100) / problems)
    return Priced(line, name, accuracy, error, {
        "policy's tokens": charged, "FLOPs": alone.flops, "eFLOPs": alone.eflops,
        f"seconds alone, {where}": alone.seconds, f"seconds together, {where}": shared.seconds,
        f"joules together, {where}": shared.joules or 0,
    })  # fmt: skip


def table(title: str, points: Sequence[Priced]) -> Iterator[str]:
    """Everything that is on a frontier in any way to count, its costs; bold in the ways in which it is on it.

    Joules are left out: they are seconds in another unit.
    """
    counts = [count for count in points[0].costs if "joules" not in count]
    on = {count: frontier(points, count) for count in counts}
    shown = [p for p in points if any(p in best for best in on.values())]
    yield f"| {title} | accuracy | {' | '.join(counts)} |"
    yield "|" + "---|" * (2 + len(counts))
    for p in sorted(shown, key=lambda p: p.costs["FLOPs"]):
        cells = (f"**{p.costs[c]:.3g}**" if p in on[c] else f"{p.costs[c]:.3g}" for c in counts)
        yield f"| {p.name} | {p.accuracy:.1f} ± {p.error:.1f} | {' | '.join(cells)} |"


def draw(worlds: Mapping[str, Sequence[Priced]], path: Path) -> None:
    """Accuracy against four costs, a row for each set of accuracies; of each line what no cheaper one of it beats."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    from inferscale.viz import label_lines
    from inferscale.viz.plots import COLOURS

    figure = Figure(figsize=(19, 4.2 * len(worlds)), layout="constrained")
    for row, (title, points) in zip(figure.subplots(len(worlds), 4, squeeze=False), worlds.items(), strict=True):
        alone, joules = ([count for count in points[0].costs if kind in count][-1] for kind in ("alone", "joules"))
        for axis, count in zip(row, ("FLOPs", "eFLOPs", alone, joules), strict=True):
            for line, colour in zip(_lines(points), COLOURS, strict=False):
                curve = frontier([replace(p, error=0.0) for p in points if p.line == line], count)
                errors = {p.name: p.error for p in points}
                axis.errorbar(
                    [p.costs[count] for p in curve], [p.accuracy for p in curve], [errors[p.name] for p in curve],
                    color=colour, marker="o" if "REBASE" in line else "s", markersize=4, capsize=2, label=line,
                )  # fmt: skip
            axis.set_xscale("log")
            low, high = axis.get_xlim()
            if count in (alone, joules) and high < 100 * low:  # less than two decades: ticks at 1, 2 and 5
                axis.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
                axis.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
                axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axis.set_xlabel(f"{count}, of a problem" + (", predicted" if count in (alone, joules) else ""))
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"{title}: accuracy, %")
    label_lines(figure)
    figure.savefig(path, dpi=100)


def _lines(points: Iterable[Priced]) -> list[str]:
    """At most six: sampling and REBASE of three policies."""
    return [line for line in dict.fromkeys(p.line for p in points) if "Beam" not in line and "DVTS" not in line]


def main() -> None:
    """Prints the tables, and draws them."""
    parser = argparse.ArgumentParser(prog="python -m studies.frontiers", description=__doc__)
    parser.add_argument("--records", type=Path, default=Path("studies/scaling/records.jsonl.gz"))
    text = "FLOP/s, bytes/s and seconds a forward of a CPU; `python -m benchmarks.cost` prints yours"
    names = ("FLOPS", "BANDWIDTH", "LATENCY")
    parser.add_argument("--cpu", type=float, nargs=3, default=CPU, metavar=names, help=text)
    parser.add_argument("--page", type=Path, help="write the tables into this page instead: docs/project/papers.md")
    parser.add_argument("--plot", type=Path, help="write the figure: docs/images/frontiers.png")
    options = parser.parse_args()
    worlds = {
        "embedded models": embedded(options.records, Device("cpu", *options.cpu)),
        "Wu et al., MATH500": wu(),
        "AbdElhameed and Halim, GSM8K": halim(),
    }
    lines = [line for title, points in worlds.items() for line in (*table(title, points), "")]
    if options.page is None:
        print(*lines, sep="\n")
    else:
        fill(options.page, {"by cost": lines})
    if options.plot is not None:
        draw(worlds, options.plot)


if __name__ == "__main__":
    main()
