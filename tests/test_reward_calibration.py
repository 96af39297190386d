"""Labelled steps, calibration, and the diagnosis of a reward model."""

import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale.base import ProcessRewardModel, RewardModel
from inferscale.rewards import (
    CalibratedReward,
    IsotonicCalibration,
    LabelledSolution,
    PlattCalibration,
    diagnose,
    load_labelled,
    save_labelled,
)
from inferscale.rewards.calibration import calibration_error
from inferscale.rewards.labels import load_big_bench_mistake, load_prmbench, load_rollout_trees
from inferscale.testing import ToyReward
from inferscale.tree import Problem
from inferscale.zoo.models import simulated_score


def solution(labels, correct=None, prompt="p", texts=None):
    texts = texts or tuple(f"{prompt} step {k} of {labels}" for k in range(len(labels)))
    return LabelledSolution(Problem(prompt), tuple(texts), tuple(labels), correct)


class Table(ProcessRewardModel):
    """Step scores by step text."""

    def __init__(self, table, reduction="last"):
        self.table, self.reduction, self.released = table, reduction, 0

    def step_scores(self, nodes):
        return [[self.table[text.strip()] for text, _ in node.inner_steps()] for node in nodes]

    def release(self, root):
        self.released += 1


class Simulated(ProcessRewardModel):
    """A judge of a chosen quality that knows the labels."""

    def __init__(self, solutions, auc):
        self.auc = auc
        self.truth = {item.node().text: item for item in solutions}

    def step_scores(self, nodes):
        return [self._scores(node) for node in nodes]

    def _scores(self, node):
        item = self.truth[node.text]
        right = [item.first_error is None or place < item.first_error for place in range(len(item.steps))]
        return [
            simulated_score(f"{node.problem.prompt}/{node.text}/{place}", ok, self.auc)
            for place, ok in enumerate(right)
        ]


def test_a_labelled_solution_is_a_finished_path():
    item = solution([1, 0.5, 0, None])
    node = item.node()
    assert item.first_error == 2
    assert solution([1, 0.5]).first_error is None
    assert node.is_finished
    assert [text.strip() for text, _ in node.inner_steps()] == list(item.steps)
    assert node.text == "\n".join(item.steps)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 labels for 2 steps"):
        LabelledSolution(Problem("p"), ("a", "b"), (1.0,))
    with pytest.raises(ValueError, match=r"between 0 .wrong. and 1 .right. or None, got \[-1\]"):
        LabelledSolution(Problem("p"), ("a",), (-1,))
    with pytest.raises(ValueError, match="nothing but white space"):
        LabelledSolution(Problem("p"), ("a", " \n"), (1, 1))


def test_files_come_back_as_they_were(tmp_path):
    items = [solution([1, 0.25, None], True), solution([0], prompt="ü\n?")]
    save_labelled(items, tmp_path / "labels.jsonl")
    named = LabelledSolution(Problem("p", "4", "one"), ("a\ud800",), (1.0,), False)
    lettered = LabelledSolution(Problem("p", "B", kind="choice:ABC", columns={"level": 3}), ("b",), (1.0,), True)
    items += [named, lettered]  # gold answers, ids and kinds come back too, and what is no valid text
    save_labelled(items, tmp_path / "labels.jsonl")
    assert load_labelled(tmp_path / "labels.jsonl") == items
    (tmp_path / "labels.jsonl").write_text('\n{"problem": "p", "steps": ["a"]}\n')
    with pytest.raises(ValueError, match=r"labels\.jsonl:2: .*KeyError: 'labels'"):
        load_labelled(tmp_path / "labels.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        '{"problem": "p", "st',
        '{"problem": "p", "steps": [1], "labels": [1]}',
        '{"problem": "p", "steps": "ab", "labels": [1, 1]}',
        '{"problem": "p", "steps": [null], "labels": [1]}',
        "[1]",
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line):
    (tmp_path / "labels.jsonl").write_text('{"problem": "p", "steps": ["a"], "labels": [1]}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"labels\.jsonl:2: "):
        load_labelled(tmp_path / "labels.jsonl")


@pytest.mark.parametrize("load", [load_big_bench_mistake, load_prmbench, load_rollout_trees])
def test_a_line_of_another_data_set_is_named_by_its_number(tmp_path, load):
    (tmp_path / "labels.jsonl").write_text('\n{"problem": "p", "steps": ["a"], "labels": [1]}\n')
    with pytest.raises(ValueError, match=r"labels\.jsonl:2: a line is an object with (input|id|question), .*KeyError"):
        load(tmp_path / "labels.jsonl")


def test_platt_recovers_the_curve_that_labels_were_drawn_from():
    rng = random.Random(0)
    scores = [rng.uniform(-3, 5) for _ in range(20_000)]
    labels = [float(rng.random() < 1 / (1 + math.exp(-(1.5 * s - 1)))) for s in scores]
    found = PlattCalibration.fit(scores, labels)
    assert found.slope == pytest.approx(1.5, abs=0.08)
    assert found.intercept == pytest.approx(-1, abs=0.08)
    assert found(1e9) == 1.0
    assert found(-1e9) == 0.0
    assert PlattCalibration.fit([1, 2, 3, 4], [1, 1, 0, 0]).slope == 0  # never turned around


def test_platt_of_separable_labels_stays_finite():
    found = PlattCalibration.fit([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert 0 < found(0.1) < 0.4 < 0.6 < found(0.9) < 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 12).map(lambda i: i / 4), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=9
    )
)
def test_isotonic_is_the_best_growing_function(pairs):
    scores, labels = [s for s, _ in pairs], [y for _, y in pairs]
    if len(set(labels)) < 2:
        return
    found = IsotonicCalibration.fit(scores, labels)
    assert list(found.probabilities) == sorted(found.probabilities)
    assert [found(s) for s in found.scores] == pytest.approx(found.probabilities)
    assert found(-9) == found.probabilities[0]
    # max-min formula of isotonic regression, by brute force over blocks of knots
    knots = sorted(set(scores))
    groups = [[y for s, y in pairs if s == knot] for knot in knots]
    for i, chance in enumerate(found.probabilities):
        best = max(
            min(float(np.mean(list(itertools.chain(*groups[a : b + 1])))) for b in range(i, len(knots)))
            for a in range(i + 1)
        )
        assert chance == pytest.approx(best, abs=1e-9)


def test_calibration_needs_both_kinds_of_labels():
    for method in (PlattCalibration, IsotonicCalibration):
        with pytest.raises(ValueError, match="right and wrong steps"):
            method.fit([0.1, 0.2], [1, 1])
        with pytest.raises(ValueError, match="2 scores and 1 labels"):
            method.fit([0.1, 0.2], [1])
        with pytest.raises(ValueError, match="finite numbers"):
            method.fit([0.1, math.nan], [1, 0])
    with pytest.raises(TypeError, match="ToyReward does not give"):
        CalibratedReward(ToyReward(), PlattCalibration(1, 0))


def test_a_calibrated_model_means_what_it_says():
    rng = random.Random(1)
    table, items = {}, []
    for i in range(400):
        labels = [float(rng.random() < 0.7) for _ in range(3)]
        items.append(solution(labels, prompt=f"p{i}"))
        table |= {text: 10 * label + rng.gauss(0, 6) for text, label in zip(items[-1].steps, labels, strict=True)}
    model = Table(table, "mean")
    for method in (PlattCalibration, IsotonicCalibration):
        reward = CalibratedReward.fit(model, items[:200], method, reduction="prod")
        assert diagnose(model, items[200:]).calibration_error is None
        found = diagnose(reward, items[200:])
        assert found.calibration_error < 0.08
        assert found.brier < 0.2
        scores = reward.step_scores([items[300].node()])[0]
        assert reward.score([items[300].node()]) == pytest.approx([scores[0] * scores[1] * scores[2]])
    assert CalibratedReward(model, PlattCalibration(1, 0)).reduction == "mean"
    assert model.released >= 600


def test_the_calibration_error_by_hand():
    # bins [0, .1), ..., [.9, 1]: two in the first (mean .05 against .5), one in the last (1 against 1)
    assert calibration_error([0.02, 0.08, 1.0], [0, 1, 1]) == pytest.approx((2 * 0.45 + 0) / 3)
    assert calibration_error([0.5, 0.5], [0.5, 0.5]) == 0


def test_first_errors_are_compared_at_the_same_step():
    items = [
        solution([1, 1, 1], prompt="a"),
        solution([1, 0, None], prompt="b"),
        solution([1, 0, 1], prompt="c"),
        solution([0], prompt="d"),
    ]
    table = {}
    for item, scores in zip(items, [(0.9, 0.6, 0.2), (0.8, 0.5, 0.9), (0.3, 0.6, 0.9), (0.4,)], strict=True):
        table |= dict(zip(item.steps, scores, strict=True))
    found = diagnose(Table(table), items)
    # step 0: right .9 .8 .3 against wrong .4; step 1: right .6 against wrong .5 and .6 (a tie)
    assert [(s.step, s.right, s.wrong) for s in found.auc_by_step] == [(0, 3, 1), (1, 1, 2)]
    assert [s.auc for s in found.auc_by_step] == pytest.approx([2 / 3, 0.75])
    assert found.first_error_auc == pytest.approx((2 / 3 + 2 * 0.75) / 3)
    assert found.over_optimisation is None


def test_right_solutions_are_told_from_wrong_ones_whatever_their_problems():
    items = [
        solution([1], correct=right, prompt=p) for p, right in [("a", True), ("b", False), ("c", True), ("d", None)]
    ]
    table = {item.steps[0]: score for item, score in zip(items, [0.9, 0.4, 0.4, 0.1], strict=True)}
    # right .9 and .4 against wrong .4: one pair is won, one tied; what is not known counts for nothing
    assert diagnose(Table(table), items).outcome_auc == pytest.approx(0.75)
    assert diagnose(Table(table), items[2:]).outcome_auc is None


def test_best_of_n_against_the_oracle_and_over_optimisation():
    # the reward likes the one wrong candidate of each problem best: more candidates make it worse
    groups, table = [], {}
    for p in range(6):
        group = [solution([1], correct=k > 0, prompt=f"p{p}", texts=(f"p{p} c{k}",)) for k in range(4)]
        table |= {f"p{p} c{k}": 1.0 - k / 10 for k in range(4)}
        groups.append(group)
    found = diagnose(Table(table), candidates=groups)
    assert [s.n for s in found.selection] == [1, 2, 4]
    assert [s.best_of_n for s in found.selection] == pytest.approx([0.75, 0.5, 0.0])
    assert [s.oracle for s in found.selection] == pytest.approx([0.75, 1, 1])
    assert found.over_optimisation == pytest.approx(0.75)
    assert found.first_error_auc is None
    perfect = Table({text: -score for text, score in table.items()})
    assert diagnose(perfect, candidates=groups).over_optimisation == 0


def test_what_cannot_be_diagnosed_is_refused():
    class Outcome(RewardModel):
        def score(self, nodes):
            return [float(len(node.text)) for node in nodes]

    known = [solution([1], correct=True), solution([0], correct=False)]
    assert len(diagnose(Outcome(), candidates=[known]).selection) == 2
    with pytest.raises(TypeError, match="Outcome gives no step scores"):
        diagnose(Outcome(), known)
    with pytest.raises(ValueError, match="give solutions with step labels, or candidates"):
        diagnose(Outcome())
    with pytest.raises(ValueError, match="candidate of 'p': every problem needs candidates"):
        diagnose(Outcome(), candidates=[[solution([1])]])

    class Short(Table):
        def step_scores(self, nodes):
            return [[0.5] for _ in nodes]

    with pytest.raises(ValueError, match="Short gave 1 scores for 2 steps of 'p'"):
        diagnose(Short({}), [solution([1, 0])])


@pytest.mark.parametrize(
    ("name", "wrong"), [("bbmistake_multistep_arithmetic", 238), ("bbmistake_tracking_shuffled_objects", 260)]
)
def test_on_recorded_mistakes_a_judge_of_known_quality_gets_its_auc(shared_data, name, wrong):
    items = load_big_bench_mistake(shared_data / "steps" / f"{name}.jsonl")
    assert len(items) == 300
    assert sum(item.first_error is not None for item in items) == wrong
    with_mistake = [item for item in items if item.first_error is not None]
    right_despite = sum(bool(item.correct) for item in with_mistake)
    assert right_despite == {"bbmistake_multistep_arithmetic": 1, "bbmistake_tracking_shuffled_objects": 11}[name]
    found = diagnose(Simulated(items, 0.9), items)
    assert found.first_error_auc == pytest.approx(0.9, abs=0.05)
    assert sum(step.wrong for step in found.auc_by_step) <= wrong
    assert diagnose(Simulated(items, 0.999), items).first_error_auc > 0.99


def test_on_recorded_injected_errors(shared_data):
    items = load_prmbench(shared_data / "steps" / "prmbench_sample.jsonl")
    assert len(items) == 160
    clean = [item for item in items if item.first_error is None]
    assert len(clean) >= 80
    assert diagnose(Simulated(items, 0.8), items).first_error_auc == pytest.approx(0.8, abs=0.08)


def test_recorded_rollout_trees_are_paths_with_shares(shared_data):
    path = shared_data / "steps" / "openr_omegaprm_tree.jsonl"
    items = load_rollout_trees(path)
    shares = {label for item in items for label in item.labels}
    assert all(float(share * 32).is_integer() for share in shares)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {item.problem.answer for item in items} == {row["gold"] for row in rows}
    assert max(len(item.steps) for item in items) <= 5

    def leaves(tree):
        return 1 if not tree["c"] else sum(leaves(child) for child in tree["c"])

    assert len(items) == sum(leaves(row["tree"]) for row in rows)
