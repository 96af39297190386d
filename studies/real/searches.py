"""The searches of the study: which are run, how the policy samples, and their records, which print without a model."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from inferscale import DVTS, MCTS, REBASE, BeamSearch, HFGenerator, RepeatedSampling
from inferscale.base import Generator, ProcessRewardModel, RewardModel, SearchStrategy
from inferscale.cost import Cost
from inferscale.engine.result import SearchResult, step_to_dict
from inferscale.evaluate import Run, load_problems, load_run, run_evaluation
from inferscale.tree import Problem, Step

from .policy import load_policy

FILES = {"svamp": "svamp.json", "gsm8k": "gsm8k_test.jsonl"}
TEMPERATURE = 0.6
MAX_NEW_TOKENS = 200
CUT = 24  # tokens: about a third of a solution, as where the published searches were cut (96 of 277)
RECORDS = Path(__file__).with_name("records.jsonl.gz")
GREEDY = ("as-it-is", "with-adapter")  # the runs of evaluate-policy
SAMPLES = "samples"  # the run from which every vote over 1 to 32 samples is computed


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is.

    Attributes:
        strategy: The strategy.
        thinks: Whether the policy thinks before every token.
        max_new_tokens: Longest solution.
    """

    strategy: SearchStrategy
    thinks: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS


RUNS: dict[str, Plan] = {
    SAMPLES: Plan(RepeatedSampling(32)),
    "rebase-4": Plan(REBASE(4)),
    "rebase-16": Plan(REBASE(16)),
    "rebase-32": Plan(REBASE(32)),
    "beam-16": Plan(BeamSearch(4, 4)),
    "dvts-16": Plan(DVTS(4, 4)),
    "mcts": Plan(MCTS()),
    "rebase-16-0.05": Plan(REBASE(16, softmax_temperature=0.05)),
    "rebase-16-0.2": Plan(REBASE(16, softmax_temperature=0.2)),
    "rebase-16-0.5": Plan(REBASE(16, softmax_temperature=0.5)),
    "rebase-3": Plan(REBASE(3)),
    "rebase-6": Plan(REBASE(6)),
    "rebase-6-cut": Plan(REBASE(6), max_new_tokens=CUT),
    "thoughts": Plan(RepeatedSampling(6), thinks=True),
    "thoughts-rebase-6": Plan(REBASE(6), thinks=True),
    "thoughts-rebase-6-cut": Plan(REBASE(6), thinks=True, max_new_tokens=CUT),
}
"""Runs by name. MCTS is that of Wu et al. 2024 (arXiv:2408.00724), appendix C; those of the last group are those of
AbdElhameed and Halim 2024 (arXiv:2412.16260)."""


def problems_of(dataset: str, data: Path, count: int) -> list[Problem]:
    """The first problems of a data set, the question as the user's turn."""
    return load_problems(dataset, data / FILES[dataset], style="plain", limit=count)


def policy_generator(
    adapter: Path | None,
    device: str,
    dtype: str,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = TEMPERATURE,
) -> HFGenerator:
    """The policy as it samples in the study; steps tell their self-certainty."""
    return HFGenerator(
        *load_policy(adapter, device, dtype),
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        confidence="self_certainty",
        micro_batch=128,
    )


def run_search(
    name: str,
    dataset: str,
    problems: list[Problem],
    folder: Path,
    generator: Generator,
    reward_model: RewardModel | None,
) -> Run:
    """One of `RUNS` over the problems of a data set, gone on with where it was stopped."""
    place, strategy = folder / f"{name}-{dataset}", RUNS[name].strategy
    # 4 problems of 32 samples fill the rows; searches go from step to step, and need more problems for that
    batch_size = 8 if name == SAMPLES else 32
    return run_evaluation(
        problems, strategy, generator, place, reward_model=reward_model, batch_size=batch_size, progress=True
    )


_PLAIN = step_to_dict(Step(""))


def compact(result: SearchResult) -> dict[str, Any]:
    """The result as plain data without token ids, keys and what nobody reads again."""
    data = result.to_dict()
    for row in data["nodes"]:
        del row["key"]
        row.pop("stats", None)
        if "step" in row:
            step = row["step"]
            step["num_tokens"] = len(step["token_ids"]) if step["num_tokens"] is None else step["num_tokens"]
            step["token_ids"], step["inner_ends"] = (), tuple((end, 0) for end, _ in step["inner_ends"])
            row["step"] = {key: _rounded(value) for key, value in step.items() if value != _PLAIN[key]}
    return {key: _rounded(value) for key, value in data.items()}


def expanded(data: Mapping[str, Any]) -> SearchResult:
    """The result that `compact` wrote."""
    nodes = [
        {**row, "key": 0, **({"step": {**_PLAIN, **row["step"]}} if "step" in row else {})} for row in data["nodes"]
    ]
    return SearchResult.from_dict({**data, "nodes": nodes})


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def scored(result: SearchResult, judge: ProcessRewardModel) -> SearchResult:
    """The result with the scores of a process reward model on every trajectory, and what they cost."""
    began = time.perf_counter()
    price = sum(judge.cost(result.leaves), Cost())
    lists = judge.step_scores(result.leaves)
    judge.release(result.root)
    taken = Cost(seconds=time.perf_counter() - began)
    trajectories = tuple(
        replace(t, step_scores=tuple(steps), score=judge.reduced(steps))
        for t, steps in zip(result.trajectories, lists, strict=True)
    )
    selected = trajectories[result.trajectories.index(result.selected)]
    return replace(result, trajectories=trajectories, selected=selected, cost=result.cost + price + taken)


def score_run(run: Run, judge: ProcessRewardModel, path: Path) -> None:
    """Scores what a run sampled, a line for each problem; those that are there are not scored again."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    with path.open("wb") as file:
        file.writelines(line + b"\n" for line in lines)
        for result in islice(run.results(), len(lines), None):
            file.write((json.dumps(compact(scored(result, judge))) + "\n").encode())
            file.flush()


def pack_all(folder: Path, greedy: Path, path: Path) -> int:
    """Writes the results of all runs into one file; how many there are."""
    count = 0
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        for name, run in [*recorded(greedy, GREEDY), *recorded(folder, RUNS)]:
            judged = folder / f"{name}.scored.jsonl"
            if judged.exists():
                rows = [json.loads(line) for line in judged.read_text(encoding="utf-8").splitlines()]
            else:
                rows = [compact(result) for result in run.results()]
            for row in rows:
                file.write((json.dumps({"run": name, **row}) + "\n").encode())
                count += 1
    return count


def unpack(path: Path) -> dict[str, list[SearchResult]]:
    """The results of each run, by name."""
    runs: dict[str, list[SearchResult]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            data = json.loads(line)
            runs.setdefault(data.pop("run"), []).append(expanded(data))
    return runs


def recorded(folder: Path, names: Iterable[str]) -> list[tuple[str, Run]]:
    """The runs of these names in a folder that have ended, over both data sets."""
    wanted = [f"{name}-{dataset}" for dataset in FILES for name in names]
    runs = [(name, load_run(folder / name)) for name in wanted if (folder / name / "run.json").exists()]
    return [(name, run) for name, run in runs if run.is_complete]
