"""One budget for many problems: exact caps, the same results again, rules by hand, what adaptive ones gain."""

import asyncio
import random
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from inferscale import Budget, MajorityVote, Problem, RepeatedSampling, Solver, solve_batch
from inferscale.aggregators import BestOfN
from inferscale.base import Generator
from inferscale.strategies import BeamSearch, Greedy
from inferscale.strategies.pooling import (
    AdaptiveVote,
    Allocation,
    Bandit,
    ByDifficulty,
    Drawn,
    Pandora,
    Uniform,
    expected_rise,
)
from inferscale.testing import PROMPTS, BrokenGenerator, ToyGenerator, ToyReward, unit_hash
from inferscale.tree import Step, branch_key
from inferscale.viz import render_tree
from studies.scaling.pools import RecordedJudge, outcome

ALLOCATIONS = [Uniform(), ByDifficulty(), AdaptiveVote(), Bandit(), Pandora()]
MANY = [f"How many {things}?" for things in ("a", "b", "c", "d", "e", "f")]


class Chances(Generator):
    """Answers 1 with the chance that the prompt ends with, else one of eight others; one token a sample."""

    def generate(self, requests):
        return [[self.sample(request, request.first + i) for i in range(request.n)] for request in requests]

    def sample(self, request, draw):
        chance = float(request.node.problem.prompt.split()[-1])
        luck = unit_hash(f"{branch_key(request.node.key, draw)}")
        answer = 1 if luck < chance else 2 + int((luck - chance) / (1 - chance) * 8)
        return Step(f"The answer is {answer}", (1,), -1.0, finish_reason="eos")

    def max_sample_tokens(self, request):
        return 1


class Judge(ToyReward):
    """0.95 for a right answer, and something in [0.2, 0.5] for a wrong one."""

    def score(self, nodes):
        return [0.95 if node.text.endswith("is 1") else 0.2 + 0.3 * unit_hash(node.text) for node in nodes]


def pooled(prompts=MANY, strategy=None, generator=None, **options):
    return solve_batch(
        list(prompts),
        strategy or RepeatedSampling(16),
        generator or ToyGenerator(),
        reward_model=ToyReward(),
        **options,
    )


def pictures(results):
    return [render_tree(result.root, max_text=999) for result in results]


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=repr)
@pytest.mark.parametrize("pool", [Budget(tokens=200), Budget(calls=20), Budget(flops=3e5)], ids=str)
def test_a_pool_is_spent_exactly_and_in_the_same_way_again(allocation, pool):
    results = pooled(pool=pool, allocation=allocation)
    assert pictures(results) == pictures(pooled(pool=pool, allocation=allocation))
    assert sum(result.cost.tokens for result in results) <= (pool.tokens or 10**9)
    assert sum(result.cost.num_generated for result in results) <= (pool.calls or 10**9)
    assert all(result.trajectories for result in results)
    assert {result.stopped_by for result in results} <= {"pool", "tokens", None}
    assert "pool" in {result.stopped_by for result in results}


def test_tokens_are_spent_to_the_last():
    results = pooled(pool=Budget(tokens=233), allocation=Uniform())
    assert sum(result.cost.tokens for result in results) == 233


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=repr)
def test_what_a_pool_draws_are_the_first_samples_of_each_problem(allocation):
    plain = solve_batch(MANY, RepeatedSampling(16), ToyGenerator())
    for result, whole in zip(pooled(pool=Budget(calls=40), allocation=allocation), plain, strict=True):
        drawn = [child.text for child in result.root.children]
        assert drawn == [child.text for child in whole.root.children[: len(drawn)]]


def test_a_pool_that_is_never_spent_changes_nothing():
    plain, given = pooled(), pooled(pool=Budget(calls=10_000), allocation=Uniform())
    assert pictures(given) == pictures(plain)
    assert {result.stopped_by for result in given} == {None}


@pytest.mark.parametrize("strategy", [BeamSearch(2, 2), Greedy()], ids=repr)
def test_other_strategies_share_a_pool_too(strategy):
    results = pooled(PROMPTS, strategy, pool=Budget(tokens=40), allocation=Uniform())
    assert sum(result.cost.tokens for result in results) <= 40
    assert all(result.trajectories for result in results)


def test_uniform_shares_are_equal():
    results = pooled(pool=Budget(calls=26), allocation=Uniform())
    assert Counter(result.cost.num_generated for result in results) == {4: 4, 5: 2}


def test_shares_by_difficulty_are_in_proportion():
    rule = ByDifficulty(min_samples=3, share=0.01)
    answers = [("1", "1", "1"), ("1", "1", "2"), ("1", "2", "3")]  # difficulties 1/4, 2/4, 3/4
    samples = [3, 3, 3]
    for _ in range(591):
        (chosen,) = rule.chosen([Drawn(a, (), n) for a, n in zip(answers, samples, strict=True)])
        samples[chosen] += 1
    assert samples == [100, 200, 300]


def test_settled_votes_leave_their_samples_to_the_others():
    rule = AdaptiveVote(bayes_factor=20)
    assert rule.settled(Drawn(("1",) * 6))
    assert not rule.settled(Drawn(("1", "1", "2", "2")))
    assert not rule.settled(Drawn((None, None)))
    prompts = [f"How many? {number} {0.97 if number < 4 else 0.4}" for number in range(8)]
    results = solve_batch(prompts, RepeatedSampling(64), Chances(), pool=Budget(calls=80), allocation=rule)
    drawn = [result.cost.num_generated for result in results]
    assert max(drawn[:4]) < min(drawn[4:])


def test_solved_problems_get_no_more_and_hopeless_ones_less():
    rule = Bandit(threshold=0.9, exploration=0.1, min_samples=1)
    values = rule.values([Drawn(scores=(0.1, 0.95), samples=2), Drawn(scores=(0.6, 0.7), samples=2),
                          Drawn(scores=(0.1, 0.2), samples=2)])  # fmt: skip
    assert values[0] == 0 < values[2] < values[1]
    assert rule.chosen([Drawn(scores=(0.95,), samples=1)] * 3) == []


@pytest.mark.parametrize(("mean", "deviation", "best"), [(0.3, 0.2, 0.6), (0.5, 0.1, 0.4), (0.5, 0.0, 0.4)])
def test_the_expected_rise_against_simulation(mean, deviation, best):
    draws = np.random.default_rng(0).normal(mean, deviation, 200_000)
    assert expected_rise(mean, deviation, best) == pytest.approx(np.maximum(draws - best, 0).mean(), abs=1e-3)


def test_pandora_stops_at_the_reservation_value():
    """With all problems alike X is what they show: it ends when the best is the r whose expected rise is the price."""
    rng = random.Random(0)
    scores = tuple(rng.gauss(0.5, 0.1) for _ in range(40))
    mean, deviation, best = float(np.mean(scores)), float(np.std(scores)), max(scores)
    other = Drawn(scores=(best + 1.0,), samples=1)  # so that the best of all is out of reach
    rise = expected_rise(mean, deviation, best)
    problems = [Drawn(scores=scores, samples=40)] * 50
    for price, goes_on in ((0.8 * rise, True), (1.25 * rise, False)):
        rule = Pandora(cost=price, optimism=0.0)
        assert rule.values(problems)[0] < 0  # nothing above the best of all is expected
        assert (rule.values([*problems, other])[0] > 0) == goes_on
    assert Pandora().chosen(problems) == []


def accuracy(allocation, aggregator, calls, seeds=6, **options):
    right = trials = 0
    for seed in range(seeds):
        problems = [Problem(f"How many? {i} {0.9 if i % 2 else 0.35}", "1") for i in range(30)]
        results = solve_batch(problems, RepeatedSampling(64), Chances(), aggregator=aggregator, seed=seed,
                              pool=Budget(calls=calls), allocation=allocation, **options)  # fmt: skip
        right += sum(bool(result.is_correct) for result in results)
        trials += len(results)
    return right / trials


def test_an_adaptive_vote_is_right_more_often_at_the_same_price():
    uniform, adaptive = (accuracy(rule, MajorityVote(), 300) for rule in (Uniform(), AdaptiveVote(20)))
    assert adaptive > uniform + 0.02


@pytest.mark.parametrize("rule", [Bandit(), Pandora(0.005)], ids=repr)
def test_rules_that_read_scores_find_more(rule):
    uniform = accuracy(Uniform(), BestOfN(), 75, reward_model=Judge())
    assert accuracy(rule, BestOfN(), 75, reward_model=Judge()) > uniform + 0.02


def test_a_pool_can_be_cancelled():
    cancel = threading.Event()
    results = pooled(pool=Budget(calls=40), cancel=cancel, on_step=lambda update: cancel.set())
    assert {result.stopped_by for result in results} == {"cancel"}


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=repr)
@pytest.mark.parametrize("pool", [Budget(tokens=200), Budget(calls=20)], ids=str)
def test_a_pool_that_was_killed_goes_on_from_its_journal(allocation, pool, tmp_path):
    straight = pooled(pool=pool, allocation=allocation)
    whole = ToyGenerator()
    pooled(pool=pool, allocation=allocation, generator=whole, journal=tmp_path / "whole.jsonl")
    for calls in range(1, whole.calls):
        path, resumed = tmp_path / f"{calls}.jsonl", ToyGenerator()
        with pytest.raises(KeyboardInterrupt):
            pooled(pool=pool, allocation=allocation, generator=BrokenGenerator(die_after=calls), journal=path)
        again = pooled(pool=pool, allocation=allocation, generator=resumed, journal=path)
        assert pictures(again) == pictures(straight)
        assert [replace(r.cost, seconds=0) for r in again] == [replace(r.cost, seconds=0) for r in straight]
        assert [r.stopped_by for r in again] == [r.stopped_by for r in straight]
        assert resumed.calls == whole.calls - calls, "what the journal holds is not drawn again"
    silent = ToyGenerator()
    assert pictures(
        pooled(pool=pool, allocation=allocation, generator=silent, journal=tmp_path / "whole.jsonl")
    ) == pictures(straight)
    assert silent.calls == 0


def test_a_cancelled_pool_goes_on_from_its_journal(tmp_path):
    cancel, options = threading.Event(), {"pool": Budget(calls=40), "journal": tmp_path / "journal.jsonl"}
    cut = pooled(cancel=cancel, on_step=lambda update: cancel.set(), **options)
    assert {result.stopped_by for result in cut} == {"cancel"}
    assert pictures(pooled(**options)) == pictures(pooled(pool=Budget(calls=40)))


def test_the_end_of_a_pools_time_is_recorded(tmp_path):
    options = {"pool": Budget(seconds=0.02), "journal": tmp_path / "journal.jsonl"}

    class Slow(ToyGenerator):
        def identity(self):
            return ToyGenerator().identity()

        def generate(self, requests):
            time.sleep(0.01)
            return super().generate(requests)

    cut = pooled(generator=Slow(depth=None), **options)
    assert {result.stopped_by for result in cut} == {"pool"}
    resumed = ToyGenerator()
    again = pooled(generator=resumed, **options)
    assert (pictures(again), resumed.calls) == (pictures(cut), 0)
    assert {result.stopped_by for result in again} == {"pool"}


def test_a_pools_journal_is_of_one_pool_one_rule_and_one_reader(tmp_path):
    path = tmp_path / "journal.jsonl"
    pooled(pool=Budget(calls=20), journal=path)
    for other in (
        {"pool": Budget(calls=21)},
        {"pool": Budget(calls=20), "allocation": Uniform()},
        {"pool": Budget(calls=20), "read_answer": lambda text: None},
        {},
    ):
        with pytest.raises(ValueError, match="another call"):
            pooled(journal=path, **other)


def test_a_pool_in_an_event_loop():
    solver = Solver(RepeatedSampling(16), ToyGenerator(), ToyReward())
    results = asyncio.run(solver.asolve_batch(MANY, pool=Budget(calls=20), allocation=Uniform()))
    expected = solver.solve_batch(MANY, pool=Budget(calls=20), allocation=Uniform())
    assert pictures(results) == pictures(expected)
    with pytest.raises(ValueError, match="give pool="):
        asyncio.run(solver.asolve_batch(MANY, allocation=Uniform()))


def test_a_failing_search_leaves_what_there_is():
    class Failing(ToyGenerator):
        def generate(self, requests):
            if self.calls > 3:
                raise RuntimeError("gone")
            return super().generate(requests)

    with pytest.raises(RuntimeError, match="gone") as caught:
        pooled(generator=Failing(), pool=Budget(calls=40))
    assert len(caught.value.partial) == len(MANY)


def test_a_rule_of_ones_own():
    class First(Allocation):
        def values(self, problems):
            return [float(place == 0) for place in range(len(problems))]

    results = pooled(pool=Budget(calls=20), allocation=First())
    assert [result.cost.num_generated for result in results] == [10, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allocation": Uniform()}, "give pool="),
        ({"pool": 100}, "Budget"),
        ({"pool": Budget(calls=9), "allocation": "uniform"}, "Allocation"),
        ({"pool": Budget(calls=9), "batch_size": 2}, "batch_size"),
        ({"pool": Budget(calls=9), "prompts": []}, "no problems"),
    ],
)
def test_bad_pools_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pooled(**options)


def test_scores_are_asked_for_only_where_there_are_some():
    with pytest.raises(ValueError, match="reward_model"):
        solve_batch(MANY, RepeatedSampling(4), ToyGenerator(), pool=Budget(calls=20), allocation=Bandit())
    for make in (lambda: Uniform(share=0.0), lambda: Pandora(min_samples=1), lambda: Pandora(cost=0.0),
                 lambda: AdaptiveVote(bayes_factor=0), lambda: Pandora(optimism=-1)):  # fmt: skip
        with pytest.raises(ValueError, match="="):
            make()


def test_recorded_samples_are_solved_under_a_pool_as_if_they_were_drawn():
    """The study's replay: all samples of a record and no others, in their order, at their price."""
    answers = [["3", "4", "3", None], ["5", "6", "7", "8"]]
    samples = [
        {"answers": texts, "right": [int(t in ("3", "8")) for t in texts], "scores": {"min": [0.1, 0.2, 0.3, 0.9]}}
        for texts in answers
    ]
    record = {"samples": samples, "tokens": [4 * 64, 8 * 64]}
    record["samples"] = [
        {k: v * 16 if k != "scores" else {"min": v["min"] * 16} for k, v in s.items()} for s in samples
    ]
    right, tokens = outcome(record, Uniform(), MajorityVote(), None, 4)
    assert right.tolist() == [1.0, 0.0]
    assert tokens == (4 * 4 + 4 * 8) / 2
    right, _ = outcome(record, Uniform(), BestOfN(drop_abstentions=True), RecordedJudge(record, "min"), 4)
    assert right.tolist() == [1.0, 1.0]
