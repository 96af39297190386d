"""Particle filter and particle Gibbs on an enumerable language model, against exact numbers.

The toy: A (1/2, open, r = .8) or B (1/2, finished, r = .6); after A, A1 (1/2, r = .9) or A2 (1/2, r = .1).
"""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale.aggregators import MajorityVote
from inferscale.base import ProcessRewardModel
from inferscale.engine import solve
from inferscale.flow import GenerateRequest
from inferscale.strategies import BeamSearch, ParticleFilter, ParticleGibbs
from inferscale.strategies.particles import draw_reference
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyProcessReward, ToyReward
from inferscale.tree import Step
from inferscale.viz import render_tree
from tests.strategy_fakes import TextReward, TreeGenerator, attached, drive, root, search

LAST = {"A": 0.8, "B": 0.6, "A1": 0.9, "A2": 0.1}
PROD = {"A": 0.8, "B": 0.6, "A1": 0.72, "A2": 0.08}
TARGET = {"A1": 0.36, "A2": 0.04, "B": 0.60}


def sampler(seed):
    rng = random.Random(seed)

    def sample(request, draw):
        first = rng.random() < 0.5
        if request.node.text == "A":
            return Step("1" if first else "2", finish_reason="eos")
        return Step("A") if first else Step("B", finish_reason="eos")

    return sample


def run(strategy, table, seed):
    """Root and particles of one filter on the toy."""
    start = root()
    flow = strategy.search(start, random.Random(seed + 10**6))
    return start, drive(flow, sampler(seed), lambda node: table[node.text])


def means(strategy, table, runs):
    """Mean of exp(log_evidence), of exp(log_evidence) times the share of A1, and shares of all three."""
    evidence = product = 0.0
    shares = Counter()
    for seed in range(runs):
        start, particles = run(strategy, table, seed)
        z = math.exp(start.stats.get("log_evidence") or 0.0)
        counts = Counter(node.text for node in particles)
        evidence += z / runs
        product += z * counts["A1"] / len(particles) / runs
        for text, count in counts.items():
            shares[text] += count / len(particles) / runs
    return evidence, product, shares


@pytest.mark.parametrize(
    "strategy",
    [
        ParticleFilter(2, 1.0),
        ParticleFilter(3, 0.5, "multinomial"),
        ParticleFilter(4, 1.0, "stratified"),
        ParticleFilter(4, 0.9, "residual"),
        ParticleFilter(4, 1.0, tempering="ess", max_depth=8),
        ParticleFilter(4, 1.0, tempering="entropy", max_depth=8),
        ParticleFilter(4, 1.0, tempering="linear", max_depth=8),
        ParticleFilter(4, 1.0, twist=0.5),
        ParticleFilter(3, 1.0, "multinomial", twist=0.0),
        ParticleFilter(4, 1.0, twist=2.0),
        ParticleFilter(1),
    ],
    ids=repr,
)
def test_the_evidence_is_unbiased(strategy):
    runs = 1000
    evidence, product, _ = means(strategy, PROD, runs)
    # A single estimate has a standard deviation below .3 for N = 1 and .15 for N >= 2.
    bound = 4 * (0.3 if strategy.num_particles == 1 or strategy.twist != 1 else 0.2) / math.sqrt(runs)
    assert evidence == pytest.approx(0.5, abs=bound)
    assert product == pytest.approx(0.5 * 0.36, abs=bound)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["systematic", "stratified", "residual", "multinomial"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("table", [PROD, LAST], ids=["prod", "last"])
def test_the_evidence_is_unbiased_to_three_digits(scheme, threshold, table):
    runs = 6000
    evidence, product, _ = means(ParticleFilter(4, threshold, scheme), table, runs)
    z, a1 = (0.5, 0.36) if table is PROD else (0.55, 9 / 22)
    assert evidence == pytest.approx(z, abs=0.006)
    assert product == pytest.approx(z * a1, abs=0.006)


@pytest.mark.parametrize(
    ("weighting", "table", "expected"),
    [
        ("incremental", PROD, (0.36, 0.04, 0.60)),
        ("incremental", LAST, (0.4091, 0.0455, 0.5455)),
        ("paper", LAST, (0.3756, 0.1688, 0.4556)),
        ("its_hub", LAST, (0.8792, 0.0109, 0.1099)),
    ],
)
def test_many_particles_come_to_the_rules_own_distribution(weighting, table, expected):
    strategy = ParticleFilter(4000, weighting=weighting, resampling="multinomial", ess_threshold=1.0)
    _, particles = run(strategy, table, 0)
    counts = Counter(node.text for node in particles)
    assert [counts[text] / 4000 for text in ("A1", "A2", "B")] == pytest.approx(expected, abs=0.035)


class ToyJudge(ProcessRewardModel):
    """The toy's step scores; the reduction is the user's."""

    def __init__(self, reduction):
        self.reduction = reduction

    def step_scores(self, nodes):
        return [[LAST[node.text[: i + 1]] for i in range(len(node.text))] for node in nodes]


class ToyLanguageModel(ToyGenerator):
    """The toy behind the engine: the draw's key decides."""

    def generate(self, requests):
        return [
            [sampler(f"{r.node.key}/{r.first + i}")(r, i) for i in range(r.n)]  # one coin for each draw
            for r in requests
        ]


@pytest.mark.parametrize(
    ("reduction", "a1", "a2"), [("prod", 0.72, 0.08), ("last", 0.9, 0.1), ("min", 0.8, 0.1), ("mean", 0.85, 0.45)]
)
def test_the_reduction_of_the_reward_decides_the_target(reduction, a1, a2):
    result = solve("toy", ParticleFilter(3000), ToyLanguageModel(), reward_model=ToyJudge(reduction))
    z = 0.25 * a1 + 0.25 * a2 + 0.5 * 0.6
    assert math.exp(result.root.stats["log_evidence"]) == pytest.approx(z, abs=0.03)
    assert sum(t.text == "A1" for t in result.trajectories) / 3000 == pytest.approx(0.25 * a1 / z, abs=0.04)


def test_finished_particles_are_not_weighted_again():
    start = root()
    asked = []

    def value(node):
        asked.append(node.text)
        return LAST[node.text]

    drive(ParticleFilter(6, 0.0).search(start, random.Random(1)), sampler(3), value)
    assert len(asked) == sum(1 for node in start.walk() if node.depth)


def test_one_particle_is_one_chain():
    assert render_tree(search(ParticleFilter(1)).root) == render_tree(search(BeamSearch(1, 1)).root)


def test_a_node_held_by_many_particles_gets_as_many_children():
    table = {"0/": 1.0, "1/": 0.0, "2/": 0.0}
    generator = TreeGenerator(depth=2)
    result = search(ParticleFilter(3, 1.0), generator, TextReward(table, default=0.5))
    assert generator.levels == [3, 3]
    assert [len(child.children) for child in result.root.children] == [3, 0, 0]
    assert len(set(result.leaves)) == 3


def test_systematic_resampling_keeps_particles_of_great_weight():
    table = {"0/": 0.9, "1/": 0.05, "2/": 0.05}
    result = search(ParticleFilter(3, 1.0), TreeGenerator(depth=1), TextReward(table))
    assert Counter(leaf.text for leaf in result.leaves)["0/"] >= 2
    assert math.exp(result.root.stats["log_evidence"]) == pytest.approx(1 / 3)


def test_weight_zero_is_for_ever_but_not_for_all():
    table = {"0/": 0.0, "1/": 0.4, "2/": 0.0}
    generator = TreeGenerator(depth=2)
    result = search(ParticleFilter(3, 0.0), generator, TextReward(table, default=0.5))
    assert {leaf.path[0].text for leaf in result.leaves} == {"1/"}
    assert generator.levels == [3, 1]
    assert math.exp(result.root.stats["log_evidence"]) == pytest.approx(0.5 / 3)


def test_when_all_weights_are_zero_an_answer_is_still_returned(tmp_path):
    result = search(ParticleFilter(3), TreeGenerator(depth=2), TextReward({}, default=0.0))
    assert [leaf.is_finished for leaf in result.leaves] == [True] * 3
    assert result.root.stats["log_evidence"] is None
    result.save(tmp_path / "result.json")


def test_a_failed_sample_is_a_particle_of_weight_zero():
    def half_fails(step, node):
        return replace(step, text=" ", finish_reason="empty") if ord(step.text[0]) % 2 else step

    result = search(ParticleFilter(16, 0.0), BrokenGenerator(half_fails), ToyProcessReward())
    assert result.leaves
    assert not any(leaf.is_failed for leaf in result.leaves)


def test_negative_scores_are_refused():
    with pytest.raises(ValueError, match="must be 0 or more"):
        search(ParticleFilter(3), TreeGenerator(), TextReward({}, default=-0.5))


def test_equal_weights_draw_nothing():
    class NoRandomness(random.Random):
        def random(self):
            raise AssertionError

    flow = ParticleFilter(3, 0.5).search(start := root(), NoRandomness())
    drive(flow, lambda r, d: Step("x", finish_reason="eos"), lambda node: 0.25)
    assert start.stats["log_evidence"] == pytest.approx(math.log(0.25))
    assert start.stats["ess"] == [pytest.approx(3)]


def test_particles_vote_with_their_multiplicity():
    table = {"0/": 0.2, "1/": 0.7, "2/": 0.1}
    result = search(
        ParticleFilter(9), TreeGenerator(depth=1), TextReward(table),
        read_answer=lambda text: text, aggregator=MajorityVote(),
    )  # fmt: skip
    assert result.answer == "1/"
    assert len(result.trajectories) == 9


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.floats(0, 1), st.sampled_from(["systematic", "stratified", "residual", "multinomial"]),
    st.sampled_from([{}, {"tempering": "ess"}, {"tempering": "entropy"}, {"weighting": "its_hub"}]),
    st.integers(0, 999),
)  # fmt: skip
def test_what_every_filter_has_in_common(n, threshold, scheme, options, seed):
    generator = TreeGenerator(depth=4)
    result = search(ParticleFilter(n, threshold, scheme, **options), generator, ToyReward(), seed=seed)
    assert len(result.leaves) == n
    assert all(leaf.is_finished and leaf.depth == 4 for leaf in result.leaves)
    assert generator.levels == [n] * 4
    assert all(1 - 1e-9 <= size <= n + 1e-9 for size in result.root.stats["ess"])


@pytest.mark.parametrize("tempering", ["ess", "entropy", "linear"])
def test_tempering_flattens(tempering):
    weights = [0.9] + [0.1 / 7] * 7
    strategy = ParticleFilter(8, tempering=tempering, max_depth=40)
    size = 1 / sum(w * w for w in weights)
    early, late = strategy._temperature(weights, size, 1), strategy._temperature(weights, size, 19)
    assert early > late > 1
    assert strategy._temperature(weights, size, 20) == strategy._temperature(weights, 5.0, 1) == 1


def test_tempering_by_hand():
    weights, size = [0.5, 0.5, 0, 0, 0, 0, 0, 0], 2.0
    entropy = math.log(2) / math.log(8)
    assert ParticleFilter(8, tempering="ess")._temperature(weights, size, 4) == pytest.approx(4 * 0.9)
    assert ParticleFilter(8, tempering="linear")._temperature(weights, size, 4) == pytest.approx(1.9)
    beta = entropy + (1 - entropy) * 0.1
    assert ParticleFilter(8, tempering="entropy")._temperature(weights, size, 4) == pytest.approx(1 / beta)


def gibbs_kernel(strategy, reference_of, runs):
    """How often each path follows, over references drawn from the target."""
    counts = Counter()
    for seed in range(runs):
        start = root()
        reference = reference_of(start, seed)
        rng = random.Random(seed)
        flow = strategy.conditional(start, reference, rng)
        particles, weights = drive(flow, sampler(f"g{seed}"), lambda node: PROD[node.text])
        assert particles[0] is reference
        counts[draw_reference(particles, weights, rng).text] += 1 / runs
    return counts


def from_target(start, seed):
    text = ("A1",) * 36 + ("A2",) * 4 + ("B",) * 60
    return path_to(start, text[seed % 100])


def path_to(start, text):
    node = start
    for i, letter in enumerate(text):
        last = i == len(text) - 1
        node = attached(GenerateRequest(node), Step(letter, finish_reason="eos" if last else "step"))
        node.score = PROD[node.text]
    return node


@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize("particles", [2, 3])
def test_the_gibbs_kernel_leaves_the_target_invariant(particles, threshold):
    counts = gibbs_kernel(ParticleGibbs(particles, 2, threshold), from_target, 2500)
    for text, share in TARGET.items():
        assert counts[text] == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 2500))


@pytest.mark.slow
def test_the_gibbs_kernel_leaves_the_target_invariant_to_two_digits():
    counts = gibbs_kernel(ParticleGibbs(2, 2, 1.0), from_target, 24_000)
    for text, share in TARGET.items():
        assert counts[text] == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("start_text", ["A2", "B"])
def test_a_long_gibbs_chain_forgets_where_it_began(start_text):
    strategy, counts, steps, rng = ParticleGibbs(2, 2, 1.0), Counter(), 2500, random.Random(5)
    start = root()
    reference = path_to(start, start_text)
    sample = sampler("chain")
    for _ in range(steps):
        flow = strategy.conditional(start, reference, rng)
        particles, weights = drive(flow, sample, lambda node: PROD[node.text])
        reference = draw_reference(particles, weights, rng)
        counts[reference.text] += 1 / steps
    for text, share in TARGET.items():
        assert counts[text] == pytest.approx(share, abs=0.08)


def test_gibbs_samples_n_and_then_one_fewer_for_each_iteration():
    generator = TreeGenerator(depth=2)
    result = search(ParticleGibbs(4, 3), generator, TextReward({}, default=0.5))
    assert generator.levels == [4, 4, 3, 3, 3, 3]
    assert len(result.leaves) == 12


def test_gibbs_replays_its_reference():
    result = search(ParticleGibbs(3, 2, 0.0), TreeGenerator(depth=3), TextReward({}, default=0.5))
    assert len(set(result.leaves)) == 3 + 2
    repeated = [leaf for leaf, count in Counter(result.leaves).items() if count == 2]
    assert len(repeated) == 1


def test_bad_hyperparameters_are_refused():
    for options in ({"num_particles": 0}, {"ess_threshold": 1.5}, {"resampling": "x"}, {"weighting": "x"},
                    {"tempering": "x"}, {"softmax_temperature": 0}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(options))):
            ParticleFilter(**options)
    with pytest.raises(ValueError, match="tempering"):
        ParticleFilter(tempering="ess", weighting="paper")
    with pytest.raises(ValueError, match="num_particles"):
        ParticleGibbs(1)
    with pytest.raises(ValueError, match="ess_threshold"):
        ParticleGibbs(ess_threshold=-1)
