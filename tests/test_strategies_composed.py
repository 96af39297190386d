"""Combinators, and the strategy that is chosen by difficulty."""

import random
from collections import Counter

import numpy as np
import pytest

from inferscale.cost import Budget
from inferscale.engine import solve, solve_batch
from inferscale.strategies import (
    MCTS,
    REBASE,
    BeamSearch,
    BestFirst,
    ComputeOptimal,
    Fallback,
    Greedy,
    Limited,
    ParticleFilter,
    RepeatedSampling,
    Restart,
    StepwiseGreedy,
    Then,
    difficulty,
    fit_compute_optimal,
)
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.viz import render_tree
from tests.strategy_fakes import TextReward, TreeGenerator, search

# -- combinators -------------------------------------------------------------------------------------------------------


def test_then_goes_on_from_open_leaves():
    generator = TreeGenerator(depth=4)
    result = search(Then(REBASE(4, max_depth=2), RepeatedSampling(3)), generator)
    assert generator.levels == [4, 4, 12]
    assert [leaf.depth for leaf in result.leaves] == [3] * 12
    assert all(leaf.is_finished for leaf in result.leaves)


def test_then_keeps_what_the_first_has_finished():
    result = search(Then(BeamSearch(2, 2), RepeatedSampling(3)))
    assert render_tree(result.root) == render_tree(search(BeamSearch(2, 2)).root)


def test_then_continues_each_copy_of_a_particle():
    table = {"0/": 1.0, "1/": 0.0, "2/": 0.0}
    result = search(
        Then(ParticleFilter(3, max_depth=1), RepeatedSampling(2)), TreeGenerator(depth=3), TextReward(table, 0.5)
    )
    assert len(result.leaves) == len(set(result.leaves)) == 6


@pytest.mark.parametrize("second", [MCTS(9), BestFirst(5), REBASE(4), ParticleFilter(3), StepwiseGreedy(2)], ids=repr)
def test_any_strategy_can_come_second(second):
    result = search(Then(BeamSearch(2, 2, max_depth=1), second), ToyGenerator(depth=5))
    assert result.leaves
    assert all(leaf.depth >= 2 for leaf in result.leaves)


def test_fallback_runs_the_second_only_if_needed():
    first, second = BeamSearch(1, 2, max_depth=2), BeamSearch(1, 3)
    short = search(Fallback(first, second), ToyGenerator(depth=3))
    assert any(leaf.is_finished for leaf in short.leaves)
    assert len(short.root.children) == 2 + 3
    enough = search(Fallback(first, second), ToyGenerator(depth=1))
    assert len(enough.root.children) == 2
    never = search(Fallback(first, second, accept=lambda leaves: False), ToyGenerator(depth=1))
    assert len(never.root.children) == 5


def test_restart_runs_until_it_is_satisfied():
    seen = []

    def third_time(leaves):
        seen.append(len(leaves))
        return len(seen) == 3

    result = search(Restart(RepeatedSampling(2), 5, accept=third_time))
    assert (seen, len(result.leaves)) == ([2, 2, 2], 6)
    assert len(search(Restart(RepeatedSampling(2), 5)).leaves) == 2
    assert len({leaf.text for leaf in result.leaves}) == 6


def test_a_leaf_counts_once_when_the_second_search_returns_the_whole_tree():
    result = search(Restart(BestFirst(3, 2), 3, accept=lambda leaves: False), ToyGenerator(depth=1))
    assert len(result.leaves) == len(set(result.leaves))
    assert Counter(node.depth for node in result.root.walk())[1] == 6


def test_particles_keep_their_copies():
    table = {"0/": 1.0, "1/": 0.0, "2/": 0.0}
    strategy = Restart(ParticleFilter(3), 2, accept=lambda leaves: False)
    result = search(strategy, TreeGenerator(depth=1), TextReward(table))
    assert [leaf.text for leaf in result.leaves] == ["0/"] * 6


def test_composition_does_not_change_a_members_draws():
    alone = search(Restart(ParticleFilter(4, 1.0, "multinomial"), 1))
    within = search(Fallback(ParticleFilter(4, 1.0, "multinomial"), Greedy()))
    assert render_tree(alone.root) == render_tree(within.root)


def test_limited_stops_before_its_samples_are_passed():
    result = search(Limited(MCTS(32), 11))
    assert result.cost.num_generated == 10
    assert result.stopped_by is None
    assert len(search(Limited(RepeatedSampling(4), 4)).leaves) == 4


def test_a_composition_needs_a_reward_if_a_member_does():
    for strategy in (Then(Greedy(), REBASE(2)), Fallback(REBASE(2), Greedy()), Restart(REBASE(2)), Limited(MCTS(), 9)):
        with pytest.raises(ValueError, match="pass reward_model"):
            solve("x", strategy, ToyGenerator())
    for strategy in (Then(Greedy(), Greedy()), Restart(Greedy()), Limited(Greedy(), 9)):
        assert solve("x", strategy, ToyGenerator()).answer is not None


def test_a_budget_ends_a_composition():
    strategy = Then(REBASE(4, max_depth=2), Restart(MCTS(8), 3))
    result = search(strategy, budget=Budget(tokens=50))
    assert result.cost.tokens == 50
    assert result.leaves


# -- compute-optimal ---------------------------------------------------------------------------------------------------


def test_difficulty():
    assert difficulty([0.9, 0.7]) == pytest.approx(0.2)
    assert difficulty(answers=["1", "1.0", "2", None], measure="agreement") == 0.5
    assert difficulty(answers=[None, None], measure="agreement") == 1.0
    with pytest.raises(ValueError, match="at least one sample"):
        difficulty([])


def test_the_bin_decides_the_strategy():
    strategy = ComputeOptimal((RepeatedSampling(1), RepeatedSampling(5), RepeatedSampling(9)), (0.3, 0.6), 2)
    for value, bin_, leaves in ((0.9, 0, 3), (0.71, 0, 3), (0.5, 1, 7), (0.4, 1, 7), (0.1, 2, 11)):
        result = search(strategy, ToyGenerator(), TextReward({}, default=value))
        assert result.root.stats["difficulty_bin"] == bin_
        assert len(result.leaves) == leaves
        # The probes are charged and are candidates.
        assert result.cost.num_generated == leaves


def test_agreement_needs_no_reward_model():
    strategy = ComputeOptimal((RepeatedSampling(1), RepeatedSampling(8)), (0.4,), 5, measure="agreement")
    easy = solve("x", strategy, ToyGenerator(num_answers=1))
    hard = solve("x", strategy, ToyGenerator(num_answers=10))
    assert (len(easy.leaves), len(hard.leaves)) == (6, 13)
    assert not strategy.needs_scores
    with pytest.raises(ValueError, match="pass reward_model"):
        solve("x", ComputeOptimal((REBASE(2), Greedy()), (0.4,), measure="agreement"), ToyGenerator())


def test_it_is_checked_where_it_is_written():
    with pytest.raises(ValueError, match="one threshold between"):
        ComputeOptimal((Greedy(),), (0.5,))
    with pytest.raises(ValueError, match="ascending"):
        ComputeOptimal((Greedy(), Greedy(), Greedy()), (0.5, 0.1))


A, B = RepeatedSampling(1), RepeatedSampling(2)


def test_fit_finds_what_is_best_in_each_bin():
    hardness = [i / 40 for i in range(40)]
    outcomes = {A: [1.0 if h < 0.5 else 0.0 for h in hardness], B: [0.5] * 40}
    fit = fit_compute_optimal(hardness, outcomes, num_bins=4)
    assert fit.strategy.strategies == (A, A, B, B)
    assert fit.table == ((1, 0.5), (1, 0.5), (0, 0.5), (0, 0.5))
    assert (fit.accuracy, fit.bin_accuracy, fit.bin_sizes) == (0.75, (1, 1, 0.5, 0.5), (10, 10, 10, 10))
    assert fit.candidates == (A, B)
    # Each problem is put into the bin that it was counted in.
    assert [fit.strategy.thresholds[0] >= h for h in hardness] == [i < 10 for i in range(40)]


def test_cross_validation_is_not_fooled_by_noise():
    rng = random.Random(0)
    hardness = [rng.random() for _ in range(400)]
    candidates = [RepeatedSampling(n) for n in range(1, 21)]
    outcomes = {candidate: [float(rng.random() < 0.5) for _ in hardness] for candidate in candidates}
    fit = fit_compute_optimal(hardness, outcomes, num_bins=5)
    in_sample = sum(max(row) for row in fit.table) / 5
    assert in_sample > 0.58
    assert fit.accuracy == pytest.approx(0.5, abs=0.06)


def test_ties_go_to_the_first_candidate():
    fit = fit_compute_optimal([0.1, 0.2, 0.3, 0.4], {B: [1, 1, 1, 1], A: [1, 1, 1, 1]}, num_bins=2)
    assert fit.strategy.strategies == (B, B)


def test_fit_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="3 outcomes for 4 problems"):
        fit_compute_optimal([0.1, 0.2, 0.3, 0.4], {A: [1, 1, 1]})
    with pytest.raises(ValueError, match="every one needs two"):
        fit_compute_optimal([0.1, 0.2, 0.3, 0.4], {A: [1, 1, 1, 1]}, num_bins=3)
    with pytest.raises(ValueError, match="at least one candidate"):
        fit_compute_optimal([0.1, 0.2], {}, num_bins=1)


def test_from_results_to_a_fitted_strategy():
    prompts = [f"How many {i}?" for i in range(12)]
    probes = solve_batch(prompts, RepeatedSampling(3), ToyGenerator(), reward_model=ToyReward())
    hardness = [difficulty([t.score for t in result.trajectories]) for result in probes]
    outcomes = {}
    for candidate in (RepeatedSampling(4), BeamSearch(1, 4)):
        results = solve_batch(prompts, candidate, ToyGenerator(), reward_model=ToyReward())
        outcomes[candidate] = [float(result.answer == "1") for result in results]
    fit = fit_compute_optimal(hardness, outcomes, num_bins=3, num_probes=3)
    again = solve_batch(prompts, fit.strategy, ToyGenerator(), reward_model=ToyReward())
    assert len(again) == 12
    # At answer time the same samples give the same difficulty, and so the same bin.
    bins = [result.root.stats["difficulty_bin"] for result in again]
    assert Counter(bins) == dict(enumerate(fit.bin_sizes))


def test_strategies_are_values_whatever_they_were_given():
    thresholds = [np.float32(0.5)]
    strategy = ComputeOptimal([RepeatedSampling(1), RepeatedSampling(2)], thresholds)
    thresholds[0] = np.float32(2.0)
    same = ComputeOptimal((RepeatedSampling(1), RepeatedSampling(2)), (0.5,))
    assert (strategy, hash(strategy), repr(strategy)) == (same, hash(same), repr(same))
    numpys = BeamSearch(np.int64(2), np.int32(3), filter_duplicates=np.True_)
    assert repr(numpys) == repr(BeamSearch(2, 3, filter_duplicates=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Then(BeamSearch, Greedy()),
        lambda: Fallback(Greedy(), Greedy),
        lambda: Restart(Greedy),
        lambda: Limited(Greedy, 3),
        lambda: ComputeOptimal((Greedy(), Greedy), (0.5,)),
    ],
)
def test_members_must_be_strategies(make):
    with pytest.raises(TypeError, match=r"made of strategies such as .*, not of the class"):
        make()


def test_numbers_that_are_none_are_no_basis_for_a_choice():
    outcomes = {RepeatedSampling(1): [1, 0, 1, 1], RepeatedSampling(2): [1, 1, 1, 1]}
    with pytest.raises(ValueError, match="a difficulty is no finite number"):
        fit_compute_optimal([0.1, 0.2, float("nan"), 0.4], outcomes, num_bins=2)
    outcomes[RepeatedSampling(2)][0] = float("nan")
    with pytest.raises(ValueError, match=r"n=2\) has an outcome that is no finite number"):
        fit_compute_optimal([0.1, 0.2, 0.3, 0.4], outcomes, num_bins=2)
    outcomes[RepeatedSampling(2)][0] = None
    with pytest.raises(ValueError, match=r"n=2\) has an outcome that is no finite number"):
        fit_compute_optimal([0.1, 0.2, 0.3, 0.4], outcomes, num_bins=2)
    with pytest.raises(ValueError, match="a sample has no score; pass reward_model"):
        difficulty([0.5, None])
    with pytest.raises(ValueError, match='choose "score" or "agreement"'):
        difficulty([0.5], ["1"], measure="votes")
