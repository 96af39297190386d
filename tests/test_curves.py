import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscale import BestOfN, MajorityVote, RepeatedSampling, SearchResult, solve_batch
from inferscale.cost import Cost
from inferscale.scaling import (
    VOTES,
    CurvePoint,
    compute_optimal,
    cost_ratio,
    curve_of_results,
    difficulty_bins,
    fit_optimal_size,
    fit_size,
    mcnemar_p_value,
    paired_difference,
    pareto_frontier,
    scaling_curve,
    short_name,
    split_by,
)
from inferscale.strategies import REBASE, BeamSearch
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.tree import Node, Problem, Step, Trajectory

PROBLEMS = [Problem(f"How many are {index}?", str(index % 4), f"toy/{index}") for index in range(24)]
MAKE = {
    "majority": MajorityVote(),
    "weighted": MajorityVote(weighted=True),
    "best-of-n": BestOfN(),
}


def made_up(answers, scores=None, gold="a", prompt_flops=70, prompt_tokens=7):
    """A result of independent samples with these answers: 10 FLOPs a token, 3 tokens each."""
    problem = Problem("q", gold)
    root = Node(problem)
    leaves = []
    for index in range(len(answers)):
        first = index == 0
        step = Step(f"{index}", (1, 2, 3), finish_reason="eos", flops=30 + prompt_flops * first,
                    prompt_tokens=prompt_tokens * first)  # fmt: skip
        leaves.append(Node(problem, step, root))
    root.children = leaves
    trajectories = tuple(
        Trajectory(problem, leaf.steps, None, answer, None if scores is None else scores[index])
        for index, (leaf, answer) in enumerate(zip(leaves, answers, strict=True))
    )
    n = len(answers)
    cost = Cost(prompt_tokens, 3 * n, 0, 5 * n, 30 * n + prompt_flops, 0 if scores is None else 100 * n, 0.5 * n, n, n)
    return SearchResult(problem, trajectories[0], trajectories, tuple(leaves), root, cost)


def values(points, vote):
    return {p.n: p.accuracy for p in points if p.vote == vote}


def test_one_run_gives_every_smaller_number_with_hand_computed_values():
    points = curve_of_results([[made_up(["a", "a", "a", "b", "b", "c"])]], "RepeatedSampling", sizes=range(1, 7))
    assert [p.accuracy for p in points if p.vote == "majority"] == pytest.approx(
        [1 / 2, 1 / 2, 3 / 5, 7 / 10, 3 / 4, 1]
    )
    assert [p.accuracy for p in points if p.vote == "coverage"] == pytest.approx([0.5, 0.8, 0.95, 1, 1, 1])
    assert {p.vote for p in points} == {"majority", "coverage"}, "without scores there is no other vote"
    scored = made_up(["x", "a", "a", "y"], scores=[0.9, 0.8, 0.7, 0.6])
    points = curve_of_results([[scored]], "RepeatedSampling", sizes=range(1, 5))
    assert [p.accuracy for p in points if p.vote == "best-of-n"] == pytest.approx([1 / 2, 1 / 2, 1 / 4, 0])
    assert [p.accuracy for p in points if p.vote == "weighted"][-1] == 1.0


def test_the_prompt_is_paid_once_and_a_vote_without_scores_pays_for_none():
    points = curve_of_results([[made_up(["a", "b", "b", "c"], scores=[1.0, 1.0, 1.0, 1.0])]], "RepeatedSampling")
    for p in points:
        assert p.tokens == 3 * p.n
        assert p.generator_flops == pytest.approx(70 + 30 * p.n)
        assert p.reward_flops == (100 * p.n if p.vote in ("weighted", "best-of-n") else 0)
        assert p.seconds == pytest.approx(0.5 * p.n)
        assert p.flops == p.generator_flops + p.reward_flops
        assert p.error == 1 - p.accuracy
    assert sorted({p.n for p in points}) == [1, 2, 4]
    alone = curve_of_results([[made_up(["a"])]], "RepeatedSampling")
    assert alone[0].generator_flops == 100
    assert math.isnan(alone[0].standard_error)


@pytest.mark.parametrize("vote", MAKE)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_smaller_numbers_are_the_mean_over_all_smaller_runs(vote, k):
    problems = [replace(p, answer=gold) for p, gold in zip(PROBLEMS[:6], "012301", strict=True)]
    results = solve_batch(problems, RepeatedSampling(5), ToyGenerator(num_answers=3), reward_model=ToyReward())
    expected = []
    for result in results:
        given = result.trajectories
        if vote == "majority":  # with scores, the ties of a majority vote would follow them
            given = [replace(trajectory, score=None) for trajectory in given]
        # over orders: "the earliest wins" then shares the ties
        chosen = [MAKE[vote].select([given[i] for i in order]) for order in itertools.permutations(range(5), k)]
        expected.append(np.mean([t.answer == result.problem.answer for t in chosen]))
    points = curve_of_results([results], RepeatedSampling(5), votes=[vote], sizes=[k])
    assert points[0].per_problem == pytest.approx(expected)
    assert points[0].accuracy == pytest.approx(np.mean(expected))
    assert points[0].standard_error == pytest.approx(np.std(expected, ddof=1) / 6**0.5)


def test_a_search_is_one_point_for_each_vote_with_the_whole_bill():
    results = solve_batch(PROBLEMS, REBASE(4), ToyGenerator(), reward_model=ToyReward(), seed=2)
    points = curve_of_results([results], REBASE(4), memory_bytes=9, model="toy", parameters=5)
    assert [p.vote for p in points] == list(VOTES)
    cost = sum((r.cost for r in results), Cost())
    for p in points:
        assert (p.n, p.problems, p.model, p.parameters, p.memory_bytes) == (4, 24, "toy", 5, 9)
        assert p.tokens == pytest.approx(cost.tokens / 24)
        assert p.generator_flops == pytest.approx(cost.generator_flops / 24)
        assert p.reward_flops == pytest.approx(cost.reward_flops / 24)
    best = [r.reaggregate(BestOfN()).answer == r.problem.answer for r in results]
    assert next(p for p in points if p.vote == "best-of-n").accuracy == np.mean(best)
    coverage = [any(t.answer == r.problem.answer for t in r.trajectories) for r in results]
    assert next(p for p in points if p.vote == "coverage").accuracy == np.mean(coverage)
    assert points[0].name == "toy, REBASE, majority"
    assert "per_problem" not in points[0].row()
    assert points[0].row()["flops"] == points[0].flops


def test_scaling_curve_runs_everything_and_averages_seeds():
    generator = ToyGenerator()
    points = scaling_curve(
        PROBLEMS[:8], [RepeatedSampling(4), BeamSearch(2, 2)], generator, reward_model=ToyReward(), seeds=(0, 1)
    )
    assert [(p.strategy, p.n) for p in points if p.vote == "majority"] == [
        ("RepeatedSampling", 1),
        ("RepeatedSampling", 2),
        ("RepeatedSampling", 4),
        ("BeamSearch(branching=2)", 4),
    ]
    each = [
        scaling_curve(PROBLEMS[:8], [RepeatedSampling(4)], ToyGenerator(), votes=["majority"], seeds=(seed,))
        for seed in (0, 1)
    ]
    both = [p for p in points if p.vote == "majority" and p.strategy == "RepeatedSampling"]
    for p, first, second in zip(both, *each, strict=True):
        assert p.accuracy == pytest.approx((first.accuracy + second.accuracy) / 2)
        assert p.tokens == pytest.approx((first.tokens + second.tokens) / 2)
        assert len(p.per_problem) == 8


def test_failed_samples_are_abstentions_of_a_smaller_run():
    short, full = made_up(["a", "a"]), made_up(["a", "b", "b", "b"])
    points = curve_of_results([[short, full]], "RepeatedSampling", votes=["coverage"], sizes=[1, 4])
    assert points[0].per_problem == pytest.approx((0.5, 0.25))
    assert points[1].per_problem == (1.0, 1.0)
    assert points[1].tokens == pytest.approx((6 + 12) / 2)


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(ValueError, match="no gold answer"):
        curve_of_results([[made_up(["a"], gold=None)]], "x")
    with pytest.raises(ValueError, match="unknown vote 'plurality'"):
        curve_of_results([[made_up(["a"])]], "x", votes=["plurality"])
    with pytest.raises(ValueError, match="'weighted' needs scores"):
        curve_of_results([[made_up(["a"])]], "x", votes=["majority", "weighted"])
    with pytest.raises(ValueError, match="at least one run"):
        curve_of_results([], "x")
    negative = curve_of_results([[made_up(["a"], scores=[-1.0])]], "x")
    assert {p.vote for p in negative} == {"majority", "best-of-n", "coverage"}


def test_a_grader_joins_answers_and_grades():
    result = made_up(["A", "b", "á", "b"], gold="a")

    def loose(first, second):
        return first.casefold().replace("á", "a") == second.casefold().replace("á", "a")

    points = curve_of_results([[result]], "RepeatedSampling", same_answer=loose, sizes=[4])
    assert values(points, "majority") == {4: 0.5}
    assert values(points, "coverage") == {4: 1.0}
    known = curve_of_results([[result]], "RepeatedSampling", correct=[[[False] * 4]], sizes=[4])
    assert values(known, "coverage") == {4: 0.0}


def test_names_leave_out_sizes_and_defaults():
    assert short_name(REBASE(4)) == short_name(REBASE(64)) == "REBASE"
    assert short_name(REBASE(4, softmax_temperature=0.2)) == "REBASE(softmax_temperature=0.2)"
    assert short_name(BeamSearch(4, 2)) == "BeamSearch(branching=2)"


def test_a_paired_difference_by_hand():
    first, second = [1, 1, 1, 0, 1, 0], [1, 0, 0, 0, 1, 1]
    found = paired_difference(first, second, np.random.default_rng(0))
    assert found.difference == pytest.approx(1 / 6)
    assert (found.only_first, found.only_second, found.both, found.neither) == (2, 1, 2, 1)
    assert found.p_value == 1.0
    assert not found.is_significant
    gap = np.array([0, 1, 1, 0, 0, -1])
    assert found.standard_error == pytest.approx(gap.std(ddof=1) / 6**0.5)
    draws = [np.mean(pick) for pick in itertools.product(gap, repeat=6)]  # the whole bootstrap distribution
    assert found.low == pytest.approx(np.quantile(draws, 0.025), abs=0.1)
    assert found.high == pytest.approx(np.quantile(draws, 0.975), abs=0.1)
    clear = paired_difference([1] * 30 + [0] * 10, [0] * 40, np.random.default_rng(0))
    assert clear.is_significant
    assert clear.p_value == pytest.approx(2 * 0.5**30)
    with pytest.raises(ValueError, match="the same problems in both, at least two; got 2 and 3"):
        paired_difference([1, 0], [1, 0, 1], np.random.default_rng(0))


def test_mcnemar_is_a_sign_test():
    assert mcnemar_p_value(0, 0) == 1.0
    assert mcnemar_p_value(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)


def test_the_bootstrap_interval_covers_the_truth():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(200):
        a, b = rng.random(100) < 0.6, rng.random(100) < 0.5
        found = paired_difference(a, b, rng, resamples=400)
        covered += found.low <= 0.1 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def at(accuracy, flops, vote="majority", reward=0.0, **about):
    return CurvePoint("S", vote, 1, accuracy, 0.01, 10, flops, flops, reward, flops, **about)


def test_the_frontier_by_hand():
    points = [at(0.5, 10), at(0.4, 20), at(0.6, 30), at(0.6, 40), at(0.9, 5, vote="coverage"), at(0.5, 10)]
    assert pareto_frontier(points) == [points[0], points[2]]
    assert compute_optimal(points, 9) is None
    assert compute_optimal(points, 29) is points[0]
    assert compute_optimal(points, 1e9) is points[2]
    dear = [at(0.5, 10), at(0.6, 12, reward=100.0)]
    assert pareto_frontier(dear) == dear
    assert compute_optimal(dear, 20) is dear[0]
    assert compute_optimal(dear, 20, cost="generator_flops") is dear[1]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=1, max_size=12))
def test_the_frontier_holds_exactly_what_nothing_beats(pairs):
    points = [at(accuracy / 8, float(flops)) for accuracy, flops in pairs]
    frontier = pareto_frontier(points)

    def beaten(p):
        return any(
            q.accuracy >= p.accuracy and q.flops <= p.flops and (q.accuracy > p.accuracy or q.flops < p.flops)
            for q in points
        )

    assert {(p.accuracy, p.flops) for p in frontier} == {(p.accuracy, p.flops) for p in points if not beaten(p)}
    assert len({(p.accuracy, p.flops) for p in frontier}) == len(frontier)


def test_the_fit_of_the_optimal_size_recovers_its_law():
    sizes = np.array([410e6, 1.4e9, 2.8e9, 6.9e9, 12e9])
    compute = 10 ** (1.19 * np.log10(sizes) + 2.03)
    fit = fit_size(sizes, compute)
    assert (fit.a, fit.b, fit.points, fit.sizes) == (pytest.approx(1.19), pytest.approx(2.03), 5, 5)
    assert fit.compute(2.8e9) == pytest.approx(compute[2])
    assert fit.size(compute[3]) == pytest.approx(6.9e9)
    points = [at(0.3 + 0.1 * i, c, parameters=int(n)) for i, (n, c) in enumerate(zip(sizes, compute, strict=True))]
    points.append(at(0.2, 1e30, parameters=10**12))
    assert fit_optimal_size(points).a == pytest.approx(1.19)
    with pytest.raises(ValueError, match="two model sizes"):
        fit_optimal_size(points[:1])
    with pytest.raises(ValueError, match="does not say its model's size"):
        fit_optimal_size([at(0.5, 10)])


def test_how_many_times_cheaper():
    points = [at(0.5, 100.0, model="a"), at(0.45, 50.0, model="a"), at(0.55, 20.0, model="b"), at(0.4, 5.0, model="b")]
    ratio = cost_ratio(points, lambda p: p.model == "b", lambda p: p.model == "a")
    assert ratio == 5
    assert cost_ratio(points, lambda p: p.model == "a", lambda p: p.model == "b") is None
    with pytest.raises(ValueError, match="baseline"):
        cost_ratio(points, lambda p: True, lambda p: False)


def test_the_published_ratios_of_table_1():
    table = {"Mistral-7B": (8.70, 42.8, 1.36, 45.0, 6.40), "Llemma-7B": (10.0, 45.5, 1.48, 46.8, 6.76),
             "Llemma-34B": (12.1, 46.7, 7.08, 49.2, 1.71)}  # fmt: skip
    for sampling, low, rebase, high, ratio in table.values():
        points = [at(low / 100, sampling * 1e14, model="sampling"), at(high / 100, rebase * 1e14, model="rebase")]
        found = cost_ratio(points, lambda p: p.model == "rebase", lambda p: p.model == "sampling")
        assert found == pytest.approx(ratio, abs=0.005)


def test_difficulty_bins_are_even_and_easy_first():
    rates = [0.1, 0.9, 0.5, 0.7, 0.3, 0.2, 0.8, 0.0, 0.4, 0.6]
    assert difficulty_bins(rates) == [5, 1, 3, 2, 4, 4, 1, 5, 3, 2]
    assert difficulty_bins([0.0] * 4, bins=2) == [1, 1, 2, 2]
    assert split_by("abc", ["y", "x", "y"]) == {"x": ["b"], "y": ["a", "c"]}
    with pytest.raises(ValueError, match="bins=5"):
        difficulty_bins([0.5] * 4)
    with pytest.raises(ValueError, match="3 items and 1 groups"):
        split_by("abc", ["x"])


def test_curves_do_not_depend_on_global_randomness():
    results = solve_batch(PROBLEMS[:4], RepeatedSampling(12), ToyGenerator(), reward_model=ToyReward())
    first = curve_of_results([results], "RepeatedSampling", votes=["weighted"])
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert curve_of_results([results], "RepeatedSampling", votes=["weighted"]) == first


def test_comparisons_and_fits_refuse_what_they_cannot_use():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        paired_difference([1, math.nan], [0, 1], rng)
    with pytest.raises(ValueError, match="confidence_level=95"):
        paired_difference([1, 0], [0, 1], rng, confidence_level=95)
    with pytest.raises(ValueError, match="a pass rate is NaN"):
        difficulty_bins([0.5, math.nan], 2)
    with pytest.raises(ValueError, match="sizes and costs above 0"):
        fit_size([1e6, 1e7], [0, 1e9])
    free = [at(0.5, 0.0, model="one"), at(0.4, 0.0, model="other")]
    with pytest.raises(ValueError, match="a flops of 0"):
        cost_ratio(free, lambda p: p.model == "one", lambda p: p.model == "other")


def test_runs_of_other_problems_are_no_second_seed():
    one, other = (
        solve_batch(problems, RepeatedSampling(2), ToyGenerator()) for problems in (PROBLEMS[:2], PROBLEMS[2:4])
    )
    with pytest.raises(ValueError, match="the same problems in each"):
        curve_of_results([one, other], "RepeatedSampling")
    with pytest.raises(ValueError, match="1 verdicts for 2 trajectories"):
        curve_of_results([one], "RepeatedSampling", correct=[[[True], [True]]])
