"""Runs cells and writes one record for each; a record that is there is not made again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from inferscale.aggregators import BestOfN, MajorityVote
from inferscale.answers import normalize_answer, same_answer
from inferscale.base import Aggregator
from inferscale.engine import SearchResult, solve_batch
from inferscale.flops import forward_flops, model_spec
from inferscale.functional import Reduction, reduce_steps
from inferscale.strategies import RepeatedSampling
from inferscale.tree import Problem

from .cells import Cell, generator, reward_model

REDUCTIONS: tuple[Reduction, ...] = ("last", "min", "prod", "mean")
VOTES: dict[str, Aggregator] = {
    "majority": MajorityVote(),
    **{f"weighted {r}": MajorityVote(weighted=True, reduction=r) for r in REDUCTIONS},
    **{f"best-of-n {r}": BestOfN(reduction=r, drop_abstentions=True) for r in REDUCTIONS},
}


def run_all(cells: Iterable[Cell], problems: Sequence[Problem], path: Path, progress: bool) -> None:
    """Runs what is not in the file yet; a record is flushed as soon as it is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {record["key"] for record in read(path) if record["problems"] == len(problems)}
    for cell in cells:
        if cell.key in done:
            continue
        record = measure(cell, problems, progress)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{record['seconds']:7.1f} s  {cell.key}", flush=True)


def read(path: Path, key: str = "") -> list[dict[str, Any]]:
    """The records whose key starts with `key`; a torn last line is left out."""
    if not path.exists():
        return []
    wanted = '{"key": "' + key
    return [_padded(json.loads(line)) for line in _lines(path) if line.startswith(wanted)]


def pack(paths: Iterable[Path], problems: int, target: Path) -> int:
    """Writes the records of several files into one, each key once, compressed; how many there are."""
    lines: dict[str, str] = {}
    for path in paths:
        for line in _lines(path):
            record = json.loads(line)
            if record["problems"] == problems:
                lines.setdefault(record["key"], line)
    text = "".join(lines[key] + "\n" for key in sorted(lines))
    target.write_bytes(gzip.compress(text.encode(), mtime=0))
    return len(lines)


def _lines(path: Path) -> list[str]:
    """Complete lines of a file of records."""
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    return text[: text.rfind("\n") + 1].splitlines()


def _padded(record: dict[str, Any]) -> dict[str, Any]:
    """The record with an abstention for each sample that failed: an empty completion is no leaf."""
    for sample in record.get("samples", ()):
        failed = record["n"] - len(sample["answers"])
        sample["answers"] += [None] * failed
        sample["right"] += [0] * failed
        for scores in sample["scores"].values():
            scores += [0.0] * failed
    return record


def measure(cell: Cell, problems: Sequence[Problem], progress: bool) -> dict[str, Any]:
    """One record: costs of each problem, and either its samples or how each vote did."""
    results = solve_batch(
        problems,
        cell.strategy,
        generator(cell.policy),
        reward_model=reward_model(cell.reward),
        seed=cell.seed,
        batch_size=64,
        progress=progress,
    )
    record: dict[str, Any] = {
        "key": cell.key,
        "policy": cell.policy,
        "reward": cell.reward,
        "strategy": type(cell.strategy).__name__,
        "softmax_temperature": getattr(cell.strategy, "softmax_temperature", None),
        "n": cell.n,
        "seed": cell.seed,
        "problems": len(problems),
        "tokens": [r.cost.tokens for r in results],
        "policy_flops": [r.cost.generator_flops for r in results],
        "reward_flops": [r.cost.reward_flops for r in results],
        "policy_prompt_flops": _prompt_flops(generator(cell.policy), results),
        "reward_prompt_flops": _prompt_flops(reward_model(cell.reward), results),
        "seconds": sum(r.cost.seconds for r in results),
    }
    if isinstance(cell.strategy, RepeatedSampling):
        record["samples"] = [_samples(r) for r in results]
    record["votes"] = {name: [int(_right(r.reaggregate(vote))) for r in results] for name, vote in VOTES.items()}
    return record


def _prompt_flops(part: object, results: Sequence[SearchResult]) -> float:
    """Mean FLOPs of reading the prompts once, which no sample pays again; 0 for a part without a model."""
    model = getattr(part, "model", None)
    if model is None:
        return 0.0
    spec = model_spec(model.config)
    return sum(forward_flops(spec, new=r.cost.prompt_tokens, logits=1).causal for r in results) / len(results)


def _right(result: SearchResult) -> bool:
    return result.answer is not None and same_answer(result.answer, str(result.problem.answer))


def _samples(result: SearchResult) -> dict[str, Any]:
    """Answers (``None`` abstains), which are right, and each reduction's score."""
    answers = [None if t.answer is None else normalize_answer(t.answer) for t in result.trajectories]
    gold = str(result.problem.answer)
    right = [int(answer is not None and same_answer(answer, gold)) for answer in answers]
    step_scores = [t.step_scores or (0.0,) for t in result.trajectories]
    scores = {r: [round(float(reduce_steps(s, r)), 6) for s in step_scores] for r in REDUCTIONS}
    return {"answers": answers, "right": right, "scores": scores}
