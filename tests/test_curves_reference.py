"""Every figure of the recorded samples that curves, graders and fits can give, through their public functions."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from inferscale import Oracle, SearchResult
from inferscale.cost import Cost
from inferscale.evaluate import MathGrader
from inferscale.functional import pass_at_k
from inferscale.scaling import curve_of_results, fit_coverage
from inferscale.tree import Node, Problem, Step, Trajectory


@pytest.fixture(scope="module")
def reference(shared_data):
    return json.loads((shared_data / "REFERENCE.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows(shared_data):
    def read(name):
        lines = (shared_data / "samples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    return read


def as_result(row):
    """Recorded answers as the result of independent samples."""
    problem = Problem(row["id"], row.get("gold", "24"), row["id"])
    root = Node(problem)
    root.children = [Node(problem, Step(str(a), finish_reason="eos"), root) for a in row["answers"]]
    trajectories = tuple(
        Trajectory(problem, leaf.steps, answer=answer)
        for leaf, answer in zip(root.children, row["answers"], strict=True)
    )
    return SearchResult(problem, trajectories[0], trajectories, tuple(root.children), root, Cost())


def check(by_k, rows, correct=None, abs_error=5e-7):
    ks = [int(k) for k in by_k]
    known = None if correct is None else [correct]
    exact = lambda first, second: first == second  # noqa: E731  (the recorded labels compare texts)
    points = curve_of_results(
        [[as_result(r) for r in rows]], "RepeatedSampling", sizes=ks, correct=known, same_answer=exact
    )
    names = {"coverage": "pass_at_k", "majority": "maj_expected"}
    for p in points:
        if names[p.vote] in by_k[str(p.n)]:
            assert p.accuracy == pytest.approx(by_k[str(p.n)][names[p.vote]], abs=abs_error), (p.vote, p.n)
    return points


def test_curves_of_eleven_models(reference, rows):
    models = reference["samples/otis_aime_k16"]
    samples = rows("otis_aime_k16")
    checked = 0
    for name, figures in models.items():
        if isinstance(figures, dict) and "by_k" in figures:
            check(figures["by_k"], [row for row in samples if row["model"] == name])
            checked += 1
    assert checked == 11


def test_curves_of_date_understanding(reference, rows):
    samples = rows("date_chatgpt_k10")
    correct = [[bool(c) for c in row["correct"]] for row in samples]
    check(reference["samples/date_chatgpt_k10"]["by_k"], samples, correct, abs_error=1e-12)


@pytest.mark.parametrize("game", ["game24_gpt4_cot_k100", "game24_gpt4_io_k100"])
def test_curves_and_power_law_of_the_game_of_24(reference, rows, game):
    samples, figures = rows(game), reference[f"samples/{game}"]
    correct = [[bool(c) for c in row["correct"]] for row in samples]
    ks = sorted({round(10 ** (i / 20)) for i in range(41)})
    sizes = sorted({*ks, *map(int, figures["pass_at_k"])})
    results = [as_result(row) for row in samples]
    points = curve_of_results([results], "RepeatedSampling", sizes=sizes, votes=["coverage"], correct=[correct])
    coverage = {p.n: p.accuracy for p in points}
    for k, value in figures["pass_at_k"].items():
        assert coverage[int(k)] == pytest.approx(value, abs=1e-12)
    fit = fit_coverage(ks, [coverage[k] for k in ks])
    law = figures["power_law"]
    assert fit.a == pytest.approx(law["a"], abs=5e-5)
    assert fit.b == pytest.approx(law["b"], abs=5e-5)
    assert fit.mean_absolute_error == pytest.approx(law["mean_abs_err"], abs=5e-6)
    assert fit.max_absolute_error == pytest.approx(law["max_abs_err"], abs=5e-5)


def test_what_the_recorded_tree_of_thoughts_solved(reference, rows):
    trace, figures = rows("game24_gpt4_tot_bfs_trace"), reference["samples/game24_gpt4_tot_bfs_trace"]
    final = np.asarray([row["final_correct"] for row in trace])
    assert final.shape == (figures["puzzles"], 5)
    assert pass_at_k(final, 5).sum() == figures["solved_any_of_5"]
    assert pass_at_k(final, 1).mean() == pytest.approx(figures["mean_final_correct"])
    assert final[:, 0].sum() == figures["first_final_correct"]
    oracle = Oracle(same_answer=lambda answer, gold: answer == gold)
    solved = 0
    for row in trace:
        result = as_result({"id": row["id"], "answers": ["24" if right else "x" for right in row["final_correct"]]})
        solved += result.reaggregate(oracle).answer == "24"
    assert solved == figures["solved_any_of_5"]
    candidates = [sum(len(step["candidates"]) for step in row["steps"]) for row in trace]
    assert np.mean(candidates) == pytest.approx(figures["mean_candidates_per_puzzle"])
    assert sum(len(row["steps"]) for row in trace) == figures["steps"]


@pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed (extra math)")
def test_the_math_grader_agrees_with_every_label_of_four_models(reference, rows):
    figures, samples = reference["samples/gsm8k_openai_4models"], rows("gsm8k_openai_4models")
    counts = [0, 0, 0, 0]
    mismatches = 0
    with MathGrader(timeout=20) as grader:
        for row in samples:
            for index, (answer, label) in enumerate(zip(row["answers"], row["correct"], strict=True)):
                right = answer is not None and grader(answer, row["gold"])
                counts[index] += right
                mismatches += right != bool(label)
    assert mismatches == figures["grader_mismatches"] == 0
    assert counts == [figures["correct"][name] for name in figures["order"]]


CHECKED = {
    "test_reference_votes.py": {
        "rows", "gold_with_comma", "gold_negative", "pairs", "grader_mismatches", "order", "correct", "coverage",
        "majority_of_4", "pass_at_k", "maj_first_100", "by_k", "majority_against_recorded",
    },
    "test_curves_reference.py": {
        "power_law", "puzzles", "steps", "solved_any_of_5", "first_final_correct", "mean_final_correct",
        "mean_candidates_per_puzzle",
    },
    "test_strategies_adaptive.py": {"adaptive"},
    "test_strategies_greedy.py": {"selection_matches", "rule"},
}  # fmt: skip
"""The file that checks each part of a section of the reference; the rule is a sentence that the check follows."""


def test_no_figure_of_the_reference_is_left_out(reference):
    parts = set()
    for section, figures in reference.items():
        nested = section in ("problems/gsm8k", "samples/otis_aime_k16")  # by split, by model
        if section != "definitions":
            parts |= {key for group in (figures.values() if nested else [figures]) for key in group}
    assert parts == set().union(*CHECKED.values())
    for file, keys in CHECKED.items():
        text = (Path(__file__).parent / file).read_text(encoding="utf-8")
        assert [key for key in keys - {"rule"} if f'"{key}"' not in text] == [], file
