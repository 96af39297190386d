"""Measures the embedded models: ``python -m studies.embedded.evaluate policy policy-s`` and ``... judge prm-s``.

Everything runs on the 500 development problems unless ``--split test`` is given. A model is the name of an embedded
one or a folder that `studies.embedded.train` wrote. The first line of the output repeats what was asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from inferscale.zoo.task import problems

from .figures import Samples, judge_figures, paired_wins, policy_figures

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Scorer = Callable[[Sequence[str], Sequence[str]], list[list[float]]]
Split = Literal["dev", "test"]

app = typer.Typer(add_completion=False, help="Measure the embedded models.")

_SPLIT = Annotated[str, typer.Option(help="dev or test")]
_COUNT = Annotated[int, typer.Option(help="how many of the 500 problems, from the first")]
_TEMPERATURE = Annotated[float, typer.Option(help="sampling temperature, 0 is greedy")]
_SEED = Annotated[int, typer.Option(help="of the samples")]


def _write(title: str, figures: dict[str, float]) -> None:
    sys.stdout.write(json.dumps({"of": title, **figures}, indent=1) + "\n")
    sys.stdout.flush()


def _model(name: str) -> LlamaForCausalLM:
    from inferscale.zoo.models import load, load_model

    return load_model(Path(name)) if Path(name).is_dir() else load(name)[0]


def _split(name: str) -> Split:
    if name == "dev":
        return "dev"
    if name == "test":
        return "test"
    raise typer.BadParameter(f"{name!r}: choose dev or test")


def draw(model: LlamaForCausalLM, split: Split, count: int, n: int, temperature: float, seed: int) -> Samples:
    """Samples of the first `count` fixed problems of a split."""
    from .rollouts import sample

    chosen = problems(split)[:count]
    prompts = [problem.prompt for problem in chosen]
    return Samples(chosen, sample(model, prompts, n, temperature=temperature, seed=seed))


@app.command()
def policy(
    name: Annotated[str, typer.Argument(help="an embedded policy, or a folder")],
    n: Annotated[int, typer.Option(help="samples of each problem")] = 32,
    temperature: _TEMPERATURE = 1.0,
    split: _SPLIT = "dev",
    count: _COUNT = 500,
    seed: _SEED = 0,
) -> None:
    """Solved shares of a policy: pass@1, pass@n, majority, by level; greedy beside them."""
    model = _model(name)
    sampled = draw(model, _split(split), count, n, temperature, seed)
    greedy = draw(model, _split(split), count, 1, 0.0, seed)
    title = f"{name} {split} problems={count} n={n} temperature={temperature} seed={seed}"
    _write(title, {"greedy": round(float(greedy.correct.mean()), 4), **policy_figures(sampled)})


@app.command()
def judge(
    name: Annotated[str, typer.Argument(help="the process reward model, or a folder")],
    policies: Annotated[str, typer.Option(help="whose samples are judged, separated by commas")] = "policy-s,policy-m",
    likelihood: Annotated[str, typer.Option(help="the policy whose likelihood is the baseline")] = "policy-m",
    n: Annotated[int, typer.Option(help="samples of each problem")] = 16,
    temperature: _TEMPERATURE = 1.0,
    split: _SPLIT = "dev",
    count: _COUNT = 500,
    seed: _SEED = 0,
) -> None:
    """First-error AUC, pairs won, best-of-n and votes of a judge, and of the likelihood baseline."""
    from .judge import score_lines, score_steps

    judge_model, baseline = _model(name), _model(likelihood)
    scorers: dict[str, Scorer] = {
        name: lambda prompts, texts: score_steps(judge_model, prompts, texts),
        f"likelihood of {likelihood}": lambda prompts, texts: score_lines(baseline, prompts, texts),
    }
    where = f"{split} problems={count} n={n} temperature={temperature} seed={seed}"
    for title, scorer in scorers.items():
        _write(f"{title} on pairs, {split} seed={seed}", {"pairs won": _wins(scorer, split, seed)})
    for source in policies.split(","):
        samples = draw(_model(source), _split(split), count, n, temperature, seed)
        for title, scorer in scorers.items():
            _write(f"{title} on {source} {where}", judge_figures(samples, scorer(*samples.flat()), n))


def _wins(scorer: Scorer, split: str, seed: int, count: int = 1000) -> float:
    from .judge import corrupted_pairs, pair_scores

    right, wrong = pair_scores(scorer, corrupted_pairs(count, seed, _split(split)))
    return round(paired_wins(right, wrong), 4)


if __name__ == "__main__":
    app()
