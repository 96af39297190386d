"""Figures of the embedded models, against hand numbers."""

import math

import pytest

from inferscale.rewards.calibration import first_error_auc
from inferscale.zoo import task
from studies.embedded import figures

PROBLEM = task.generate(1, seed=0, level=1)[0]
RIGHT = task.solution(PROBLEM.prompt)
WRONG = RIGHT.rsplit(" ", 1)[0] + " 7777"


def test_first_error_auc_by_hand():
    chains = [([0.9, 0.8], None), ([0.9, 0.3], 1), ([0.4], 0), ([0.9, 0.9, 0.1], 2), ([0.7, 0.8], 1)]
    # line 0: right 0.9 0.9 0.9 0.7, wrong 0.4. line 1: right 0.8 0.9 against wrong 0.3 0.8, one tie
    assert first_error_auc(chains, 0) == (1.0, 4, 1)
    assert first_error_auc(chains, 1) == (3.5 / 4, 2, 2)
    auc, right, wrong = first_error_auc(chains, 2)
    assert math.isnan(auc)
    assert (right, wrong) == (0, 1)


def test_policy_figures_by_hand():
    samples = figures.Samples([PROBLEM, PROBLEM], [[RIGHT, WRONG, RIGHT, "nothing"], [WRONG, WRONG, RIGHT, WRONG]])
    measured = figures.policy_figures(samples)
    assert measured["pass@1"] == pytest.approx(3 / 8)
    assert measured["pass@4"] == 1
    assert measured["majority@4"] == 0.5
    assert measured["pass@1 se"] == pytest.approx(1 / 8, abs=1e-4)
    assert measured["pass@1 level 1"] == pytest.approx(3 / 8)
    assert samples.answer_ids.tolist()[0][1:] == [7777, int(PROBLEM.answer), -1]


def test_judge_figures_reward_a_perfect_judge():
    rows = [[WRONG] * 3 + [RIGHT], [WRONG] * 4]
    samples = figures.Samples([PROBLEM] * 2, rows)
    prompts, texts = samples.flat()
    scores = [[float(label) for label in task.step_labels(p, t)] for p, t in zip(prompts, texts, strict=True)]
    measured = figures.judge_figures(samples, scores, k=4)
    assert measured["best-of-4 last"] == measured["best-of-4 min"] == measured["weighted@4 last"] == 0.5
    assert measured["majority@4"] == 0
    many = figures.Samples([PROBLEM] * 30, [[RIGHT, WRONG]] * 30)
    prompts, texts = many.flat()
    scores = [[float(label) for label in task.step_labels(p, t)] for p, t in zip(prompts, texts, strict=True)]
    assert figures.judge_figures(many, scores, k=2)["auc mean"] == 1.0
    assert figures.judge_figures(many, [[1 - s for s in row] for row in scores], k=2)["auc mean"] == 0.0


def test_paired_wins_count_ties_half():
    assert figures.paired_wins([0.9, 0.5, 0.1, 0.4], [0.1, 0.5, 0.9, 0.3]) == (2 + 0.5) / 4
