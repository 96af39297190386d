"""The study of a real model without the model: its records, tables and labels, on a toy policy and judge."""

import gzip
import json
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from inferscale import REBASE, RepeatedSampling, solve_batch
from inferscale.base import Generator
from inferscale.evaluate import run_evaluation
from inferscale.rewards import LabelledSolution
from inferscale.strategies.selecting import solution_of
from inferscale.testing import ToyGenerator, ToyProcessReward
from inferscale.tree import Problem, Step
from studies.real.__main__ import within
from studies.real.judge import balanced, outcome_labels, split, with_rollouts
from studies.real.judging import chosen_by_model
from studies.real.plots import plot_all, points_of
from studies.real.report import JUDGES, all_claims, all_tables, is_scored, judged, voting_limit
from studies.real.searches import RECORDS, compact, expanded, pack_all, score_run, scored, unpack
from studies.scaling.page import fill
from tests.drawn import caught, check_figure

PROBLEMS = [Problem(f"How many are {index}?", str(index % 4), f"toy/{index}") for index in range(12)]


def sampled(n=32):
    return solve_batch(PROBLEMS, RepeatedSampling(n), ToyGenerator())


@pytest.fixture(scope="module")
def runs():
    samples = [scored(result, ToyProcessReward()) for result in sampled()]
    found = {"samples-svamp": samples}
    for name, width in (("rebase-3", 3), ("rebase-4", 4), ("rebase-16", 16), ("thoughts-rebase-6", 6)):
        found[f"{name}-svamp"] = solve_batch(
            PROBLEMS[:8], REBASE(width), ToyGenerator(), reward_model=ToyProcessReward()
        )
    return found


def test_compact_records_keep_what_votes_and_costs_need(runs):
    for result in runs["samples-svamp"] + runs["rebase-4-svamp"]:
        data = json.loads(json.dumps(compact(result)))
        assert len(json.dumps(data)) < len(json.dumps(result.to_dict()))
        again = expanded(data)
        assert again.answer == result.answer
        assert [t.text for t in again.trajectories] == [t.text for t in result.trajectories]
        assert [t.score for t in again.trajectories] == pytest.approx([t.score for t in result.trajectories], rel=1e-4)
        assert [[s.generated_tokens for s in t.steps] for t in again.trajectories] == [
            [s.generated_tokens for s in t.steps] for t in result.trajectories
        ]
        assert (again.cost.tokens, again.cost.generator_flops) == (result.cost.tokens, result.cost.generator_flops)
    assert "token_ids" not in json.dumps(compact(runs["samples-svamp"][0]))


def test_scores_of_samples_are_those_of_a_search_that_scores(runs):
    searched = solve_batch(PROBLEMS[:3], RepeatedSampling(4), ToyGenerator(), reward_model=ToyProcessReward())
    later = [scored(result, ToyProcessReward()) for result in sampled(4)[:3]]
    for one, other in zip(searched, later, strict=True):
        assert [t.score for t in one.trajectories] == [t.score for t in other.trajectories]
        assert [t.step_scores for t in one.trajectories] == [t.step_scores for t in other.trajectories]
        assert one.cost.reward_flops == other.cost.reward_flops


def test_samples_are_scored_once_and_packed(tmp_path):
    run = run_evaluation(PROBLEMS[:4], RepeatedSampling(4), ToyGenerator(), tmp_path / "samples-svamp")
    path = tmp_path / "samples-svamp.scored.jsonl"
    score_run(run, ToyProcessReward(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\n") + 20])  # killed while the second line was written
    judge = ToyProcessReward()
    score_run(run, judge, path)
    again = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["trajectories"] for row in again] == [json.loads(line)["trajectories"] for line in whole.splitlines()]
    run_evaluation(PROBLEMS[:3], REBASE(4), ToyGenerator(), tmp_path / "rebase-4-svamp", reward_model=judge)
    assert pack_all(tmp_path, tmp_path / "nothing", tmp_path / "records.gz") == 7
    found = unpack(tmp_path / "records.gz")
    assert {name: len(results) for name, results in found.items()} == {"samples-svamp": 4, "rebase-4-svamp": 3}
    assert is_scored(found["samples-svamp"])
    first = (tmp_path / "records.gz").read_bytes()
    pack_all(tmp_path, tmp_path / "nothing", tmp_path / "records.gz")
    assert (tmp_path / "records.gz").read_bytes() == first  # no time of day in it
    assert gzip.decompress(first).count(b"\n") == 7


def test_tables_and_claims(runs):
    lines = list(all_tables(runs))
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert rows[2:8] == ["1", "2", "4", "8", "16", "32"]
    votes = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in lines[2:10] if row.startswith("|")}
    assert votes["1"][0] == votes["1"][1] == votes["1"][2] == votes["1"][5]  # one sample: every vote is the same
    assert "### SVAMP: searches, the first 8 problems" in lines
    assert "### SVAMP: thoughts and REBASE, the first 8 problems" in lines
    assert any(line.startswith("| thoughts and REBASE, width 6 | 9.38 | 4.25 | 143.66 |") for line in lines)
    claims = list(all_claims(runs))
    assert all(line.startswith("* SVAMP: ") for line in claims)
    assert sum("against the majority of 16" in line for line in claims) == 4
    assert any("`REBASE(width=4" in line and "against 4 samples" in line and "on 8 problems" in line for line in claims)


def test_the_picture_compares_the_same_problems(runs):
    points = points_of("svamp", runs)
    assert {point.problems for point in points} == {8}
    assert {point.n for point in points if point.strategy == "REBASE"} == {4, 16}


def test_the_picture_has_the_colours_of_the_house(runs, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = caught(monkeypatch)
    plot_all(runs, tmp_path)
    check_figure(*figures, panels=4)


def test_judges_that_cost_nothing_read_the_samples(runs):
    [result] = judged(runs["samples-svamp"][:1], "likelihood")
    for trajectory in result.trajectories:
        assert trajectory.score == trajectory.logprob / sum(step.generated_tokens for step in trajectory.steps)
    assert set(JUDGES) == {"PRM", "likelihood", "self-certainty"}


def test_the_limit_of_a_vote_that_is_always_right():
    results = solve_batch([Problem("How many?", "3", kind="number")] * 3, RepeatedSampling(4), ToyGenerator())
    right = [
        replace(result, trajectories=tuple(replace(t, answer="3") for t in result.trajectories)) for result in results
    ]
    assert voting_limit(right, weighted=False) == "100.0 % (100.0 to 100.0)"


def solution(prompt, label, correct):
    return LabelledSolution(Problem(prompt), ("a", "b"), (label, label), correct)


def test_labels_by_outcome_and_what_is_learnt_from(tmp_path):
    run = run_evaluation(PROBLEMS, RepeatedSampling(4), ToyGenerator(), tmp_path / "run")
    labelled = outcome_labels(run)
    for own, record in zip(labelled, run.finished, strict=True):
        assert [item.correct for item in own] == record["correct_each"]
        assert all(set(item.labels) == {float(item.correct)} for item in own)
    to_learn, held_out = split(labelled)
    assert (len(to_learn), len(held_out)) == (10, 2)
    rolled = [LabelledSolution(labelled[0][1].problem, labelled[0][1].steps, (0.5,) * len(labelled[0][1].steps), False)]
    better = with_rollouts(labelled, rolled)
    assert better[0][1].labels[0] == 0.5
    assert better[1] == labelled[1]


def test_wrong_solutions_are_left_out_at_random_and_right_ones_never():
    solutions = [solution(f"{n}", float(n < 4), n < 4) for n in range(40)]
    chosen = balanced(solutions, 2.0, seed=0)
    assert sum(bool(item.correct) for item in chosen) == 4
    assert len(chosen) == 12
    assert chosen == balanced(solutions, 2.0, seed=0)
    assert chosen != balanced(solutions, 2.0, seed=1)
    assert len(balanced(solutions[:6], 2.0, seed=0)) == 6  # all there are


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])  # in the foreground, and behind it
def test_a_command_stops_when_its_time_is_over(before):
    ours = signal.signal(signal.SIGINT, before)
    try:
        with pytest.raises(typer.Exit) as stopped, within(0.001):
            time.sleep(20)
        assert stopped.value.exit_code == 3
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, ours)
    with within(1):
        pass


@pytest.mark.slow
def test_the_page_is_what_the_records_say(tmp_path):
    page = tmp_path / "page.md"
    text = (Path(__file__).parents[1] / "docs" / "project" / "real_model.md").read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    runs = unpack(RECORDS)
    fill(page, {"tables": all_tables(runs), "claims": all_claims(runs)})
    assert page.read_text(encoding="utf-8") == text


class Knows(Generator):
    """Names the solution that is in a set: by its letter, or by its number."""

    def __init__(self, right):
        self.right = right

    def generate(self, requests):
        return [[self.reply(request.node.problem.prompt)] for request in requests]

    def reply(self, prompt):
        shown = re.findall(r"Solution (\w):\n(.*?)(?=\n\nSolution|\n\nWhich|\n\nCompare)", prompt, re.DOTALL)
        name = next(name for name, text in shown if text.strip() in self.right)
        text = name if name.isalpha() else f"Best: {name}"
        return Step(text, logprob=-0.1, num_tokens=1, finish_reason="eos")


def test_a_judge_that_knows_the_right_samples_always_chooses_them():
    samples = unpack(RECORDS)["samples-svamp"]
    right = {
        solution_of(leaf) for r in samples for leaf, t in zip(r.leaves, r.trajectories, strict=True) if t.is_correct
    }
    pairs, silent, aside = chosen_by_model(samples, Knows(right), problems=12, pairs=2, candidates=4)
    assert pairs == "pairs, by likelihood: 100.0 ± 0.0 % right, a coin 50.0 % (12 problems, 2 pairs of each)"
    assert silent == "0.0 % of 48 replies name none of the two"
    assert aside.startswith("side by side: 100.0 ± 0.0 % right, a coin 25.0 %")
