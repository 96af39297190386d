"""Adaptive branching: posteriors by hand, selection, known optima, revisions."""

import math
import random
import statistics
from collections import Counter

import numpy as np
import pytest
from scipy.stats import ks_2samp

from inferscale.strategies import ABMCTS, abmcts
from inferscale.strategies.abmcts import BetaPosterior, NormalPosterior
from inferscale.testing import ToyGenerator
from inferscale.tree import Step
from tests.strategy_fakes import TextReward, TreeGenerator, drive, random_tree, root, search


def parameters(belief):
    return belief.m, belief.kappa, belief.nu, belief.tau2


def test_the_normal_posterior_by_hand():
    belief = NormalPosterior()
    assert parameters(belief) == (0.0, 1.0, 1.0, 0.1)
    belief.observe(0.5)
    belief.observe(0.7)
    # kappa' = nu' = 3; m' = 1.2 / 3; tau^2' = (.1 + .02 + 2 * .36 / 3) / 3.
    assert parameters(belief) == pytest.approx((0.4, 3.0, 3.0, 0.12))


def test_the_normal_posterior_draws_from_its_student_distribution():
    belief, rng = NormalPosterior(), random.Random(0)
    for value in (0.5, 0.7, 0.9, 0.4, 0.5, 0.6):
        belief.observe(value)
    mean, kappa, nu, tau2 = parameters(belief)
    draws = [belief.draw(rng) for _ in range(20_000)]
    assert statistics.fmean(draws) == pytest.approx(mean, abs=0.01)
    assert statistics.pstdev(draws) == pytest.approx(math.sqrt(tau2 / kappa * nu / (nu - 2)), rel=0.05)


def test_the_beta_posterior():
    belief, rng = BetaPosterior(), random.Random(0)
    belief.observe(1.0)
    belief.observe(0.25)
    assert (belief.a, belief.b) == (1.75, 1.25)
    assert statistics.fmean(belief.draw(rng) for _ in range(20_000)) == pytest.approx(1.75 / 3, abs=0.01)


@pytest.mark.parametrize("kind", [NormalPosterior, BetaPosterior])
def test_beliefs_that_are_drawn_from_together_have_the_distribution_of_one(kind):
    beliefs = [kind() for _ in range(3)]
    for belief, values in zip(beliefs, [(0.5,), (0.9, 0.7, 0.8), (0.1,) * 30], strict=True):
        for value in values:
            belief.observe(value)
    count, rng, numbers = 4_000, random.Random(0), np.random.default_rng(0)
    parameters = np.asarray([belief.parameters for belief in beliefs])
    together = kind.draw_each(np.repeat(parameters, count, axis=0), numbers).reshape(3, count)
    for belief, draws in zip(beliefs, together, strict=True):
        assert ks_2samp(draws, [belief.draw(rng) for _ in range(count)]).pvalue > 1e-3


def test_many_children_are_chosen_among_as_few_are(monkeypatch):
    """How often each child is entered, by beliefs that are up to date, in whichever way they are drawn from."""
    place = abmcts._Place(root(), None, NormalPosterior, "")
    monkeypatch.setattr(place, "_table", np.zeros((1, 3)))  # it grows twice
    for value in (0.2, 0.9, 0.5, 0.8):
        place.add(abmcts._Place(root(), place, NormalPosterior, ""), value)
    for _ in range(9):
        place.kids[1].learn(0.1)  # what looked best leads to nothing
    rng, shares = random.Random(0), []
    for few in (0, 10):
        monkeypatch.setattr(abmcts, "_FEW", few)
        entered = Counter(place.kids.index(place.best_kid(rng)) for _ in range(2_000))
        shares.append([entered[kid] / 2_000 for kid in range(4)])
    assert shares[0] == pytest.approx(shares[1], abs=0.05)
    assert min(shares[0]) == shares[0][1]


def test_draws_for_many_children_come_from_the_seed():
    def tree(seed):
        start = root()
        drive(ABMCTS(150, until="step").search(start, random.Random(seed)), lambda r, d: Step("x"), lambda node: 0.5)
        return [len(node.children) for node in start.walk()]

    assert tree(3) == tree(3) != tree(4)
    assert max(tree(3)) > abmcts._FEW


@pytest.mark.parametrize("posterior", ["normal", "beta"])
def test_it_makes_its_samples_and_finds_good_leaves(posterior):
    found = 0
    for trial in range(30):
        reward, best = random_tree(trial, depth=2)
        result = search(ABMCTS(150, posterior, "step"), TreeGenerator(depth=2), reward)
        assert result.cost.num_generated == 150
        assert all(not node.children for node in result.root.walk() if node.is_finished)
        found += max(result.trajectories, key=lambda t: t.score).text == best
    # Exploring is not exhausting: it finds the best of nine leaves in about three of four trees.
    assert found >= 18


def test_it_prefers_the_better_branch():
    reward = TextReward({"0/": 0.9, "1/": 0.1, "2/": 0.1}, default=0.5)
    result = search(ABMCTS(60, until="step"), TreeGenerator(depth=9), reward)
    below = [sum(1 for _ in child.walk()) for child in result.root.children if child.text == "0/"]
    others = [sum(1 for _ in child.walk()) for child in result.root.children if child.text != "0/"]
    assert sum(below) / len(below) > sum(others) / len(others)


def test_it_goes_deep_when_deeper_is_better_and_wide_when_it_is_worse():
    def shape(value):
        starts = [root() for _ in range(8)]
        for seed, start in enumerate(starts):
            drive(ABMCTS(60, until="step").search(start, random.Random(seed)), lambda r, d: Step("x"), value)
        widths = [len(start.children) for start in starts]
        return statistics.fmean(widths), statistics.fmean(max(n.depth for n in start.walk()) for start in starts)

    deep = shape(lambda node: 1 - 0.8**node.depth)
    wide = shape(lambda node: 0.5**node.depth)
    assert deep[0] < wide[0]
    assert deep[1] > wide[1]


def test_parallel_samples_share_calls():
    alone, waves = ToyGenerator(), ToyGenerator()
    search(ABMCTS(24, until="step"), alone)
    search(ABMCTS(24, until="step", num_parallel=8), waves)
    assert (alone.calls, waves.calls) == (24, 3)


def test_the_depth_limit():
    start = root()
    drive(
        ABMCTS(80, until="step", max_depth=2).search(start, random.Random(0)), lambda r, d: Step("x"), lambda node: 0.5
    )
    assert max(node.depth for node in start.walk()) == 2


def test_revisions_see_the_answer_that_they_revise():
    forced = []

    def sample(request, draw):
        forced.append(request.forced)
        return Step(f"{request.forced}[{len(forced)}]", finish_reason="eos")

    start = root()
    leaves = drive(ABMCTS(40, instruction=" again: ").search(start, random.Random(0)), sample, lambda node: 0.5)
    assert len(leaves) == len(start.children) == 40
    revised = [text for text in forced if text]
    assert 0 < len(revised) < 40
    # One earlier answer, without what was forced before it.
    assert all(text.count("[") == 1 and text.endswith(" again: ") for text in revised)


def test_scores_outside_of_zero_to_one_are_refused():
    with pytest.raises(ValueError, match=r"needs scores in \[0, 1\]"):
        search(ABMCTS(4, until="step"), TreeGenerator(), TextReward({}, default=1.5))
    with pytest.raises(ValueError, match="posterior"):
        ABMCTS(posterior="gamma")
    with pytest.raises(ValueError, match="until"):
        ABMCTS(until="answer")
