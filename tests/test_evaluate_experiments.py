import runpy
import sys
from pathlib import Path

import pytest

from inferscale import RepeatedSampling, zoo
from inferscale.evaluate import STYLES, Example, PromptStyle
from inferscale.rewards import RewardFunction
from inferscale.scaling import CurvePoint, scaling_curve
from inferscale.strategies import REBASE
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.tree import Node, Problem, Step
from studies.experiments import (
    SimulatedReward,
    compare_rewards,
    compare_strategies,
    compare_styles,
    curves_by_group,
    easy_or_hard,
    reward_quality_sweep,
    table_of_savings,
    temperature_sweep,
)

SCRIPT = Path(__file__).parent.parent / "studies" / "wu2024.py"
PROBLEMS = [Problem(f"How many are {index}?", str(index % 4), f"toy/{index}") for index in range(6)]


def test_strategies_are_compared_at_every_size():
    points = compare_strategies(PROBLEMS, ToyGenerator(), ToyReward(), sizes=(2, 4), model="toy")
    found = {(p.strategy, p.n) for p in points if p.vote == "weighted"}
    assert {
        ("Greedy", 1),
        ("RepeatedSampling", 1),
        ("RepeatedSampling", 2),
        ("RepeatedSampling", 4),
        ("REBASE", 2),
    } <= found
    assert any(strategy.startswith("MCTS") for strategy, _ in found)
    assert {p.model for p in points} == {"toy"}
    plain = compare_strategies(PROBLEMS, ToyGenerator(), ToyReward(), sizes=(2, 4), mcts=False, model="toy")
    others = [p for p in points if not p.strategy.startswith("MCTS")]
    assert [(p.name, p.n, p.per_problem) for p in plain] == [(p.name, p.n, p.per_problem) for p in others]


def test_a_temperature_sweep_is_rebase_at_each():
    sweep = temperature_sweep(PROBLEMS, ToyGenerator(), ToyReward(), width=3, temperatures=(0.1, 2.0))
    assert list(sweep) == [0.1, 2.0]
    direct = scaling_curve(PROBLEMS, [REBASE(3, softmax_temperature=2.0)], ToyGenerator(), reward_model=ToyReward())
    assert [p.per_problem for p in sweep[2.0]] == [p.per_problem for p in direct]
    assert sweep[2.0][0].strategy == "REBASE(softmax_temperature=2.0)"


def test_groups_are_measured_as_if_alone_and_add_up():
    groups = ["a", "b", "a", "b", "b", "a"]
    strategies = [RepeatedSampling(4)]
    split = curves_by_group(PROBLEMS, groups, strategies, ToyGenerator(), votes=["majority"])
    whole = scaling_curve(PROBLEMS, strategies, ToyGenerator(), votes=["majority"])
    assert list(split) == ["a", "b"]
    for index, p in enumerate(whole):
        assert p.accuracy == pytest.approx(sum(points[index].accuracy * 3 for points in split.values()) / 6)


def test_levels_are_easy_or_hard():
    assert [easy_or_hard(f"level {level}")[:4] for level in range(1, 6)] == ["easy", "easy", "hard", "hard", "hard"]
    for group in ("Subtraction", "level 6", ""):
        with pytest.raises(ValueError, match="is no level"):
            easy_or_hard(group)


def test_styles_ask_the_same_rows_and_read_each_in_its_way():
    rows = [Example(problem.prompt, str(problem.answer)) for problem in PROBLEMS]
    styles = {"plain": STYLES["plain"], "cut": PromptStyle("{question}", stop="answer is")}
    curves = compare_styles(rows, styles, [RepeatedSampling(3)], ToyGenerator(), votes=["majority"])
    alone = scaling_curve(PROBLEMS, [RepeatedSampling(3)], ToyGenerator(), votes=["majority"])
    assert [p.per_problem for p in curves["plain"]] == [p.per_problem for p in alone]
    assert {p.accuracy for p in curves["cut"]} == {0.0}, "its reader stops before the answer"


def test_rewards_judge_the_same_samples():
    judges = {"toy": ToyReward(), "blind": RewardFunction(lambda nodes: [0.5] * len(nodes))}
    curves = compare_rewards(PROBLEMS, judges, [RepeatedSampling(4)], ToyGenerator(), sizes=[4])
    by_vote = {name: {p.vote: p.accuracy for p in points} for name, points in curves.items()}
    assert by_vote["toy"]["coverage"] == by_vote["blind"]["coverage"]
    assert by_vote["blind"]["weighted"] == pytest.approx(by_vote["blind"]["majority"])


def test_a_simulated_reward_is_right_as_often_as_it_says():
    problems = zoo.task.generate(150, seed=3, level=1)
    pairs = []
    for problem in problems:
        lines = zoo.task.solution(problem.prompt).splitlines(keepends=True)
        right = Node(problem, Step(lines[0]), Node(problem))
        wrong = Node(problem, Step(lines[0].replace("=", "= 9")), Node(problem))
        pairs.append(SimulatedReward(0.8).score([right, wrong]))
    assert all(0 <= value <= 1 for pair in pairs for value in pair)
    rights, wrongs = zip(*pairs, strict=True)
    auc = sum(r > w for r in rights for w in wrongs) / len(rights) ** 2
    assert auc == pytest.approx(0.8, abs=0.06)
    with pytest.raises(ValueError, match=r"between 0\.5 and 1"):
        SimulatedReward(0.5)


def test_reward_quality_needs_no_reward_model():
    problems = zoo.task.generate(3, seed=1, level=1)
    sweep = reward_quality_sweep(problems, ToyGenerator(), (0.6, 0.9), width=2, votes=["weighted"])
    assert [[(p.strategy, p.n) for p in points] for points in sweep.values()] == [
        [("RepeatedSampling", 2), ("REBASE", 2)]
    ] * 2


def at(strategy, accuracy, flops, model="m", reward=0.0):
    return CurvePoint(strategy, "weighted", 8, accuracy, 0.01, 10, 1, flops, reward, 1, model=model)


def test_the_table_of_savings_by_hand():
    points = [
        at("RepeatedSampling", 0.4, 10), at("RepeatedSampling", 0.5, 40), at("REBASE", 0.52, 20, reward=100.0),
        at("REBASE", 0.3, 5), at("RepeatedSampling", 0.9, 1, "n"), at("REBASE", 0.8, 0.5, "n"),
    ]  # fmt: skip
    policy_alone = table_of_savings(points, cost="generator_flops")
    assert [(row["model"], row["saving"]) for row in policy_alone] == [("m", 2.0), ("n", None)]
    assert policy_alone[0]["rebase"] == 0.52
    whole = table_of_savings(points)
    assert whole[0]["saving"] == pytest.approx(40 / 120), "with the reward model on the bill it costs more"
    assert (whole[0]["rebase"], whole[0]["rebase_cost"]) == (0.3, 5)


def test_without_sampling_there_is_nothing_to_save():
    alone = CurvePoint("REBASE", "weighted", 4, 0.5, 0.1, 10, 1, 1, 0, 0, model="toy")
    with pytest.raises(ValueError, match="model 'toy' has no point of weighted sampling"):
        table_of_savings([alone])


@pytest.mark.slow
def test_the_example_runs(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ["--models", "policy-s", "--problems", "5", "--sizes", "1", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    shown = capsys.readouterr().out
    for part in (
        "Every strategy", "Greedy", "hard (levels 3-5)", "domains: with division", "T_b = 1.0", "direct answer",
        "reward: checker", "AUC 0.99", "REBASE for the best of weighted sampling",
    ):  # fmt: skip
        assert part in shown
    assert (tmp_path / "strategies.png").exists()
