"""Adaptive sampling: stop rules against exact numbers and recorded samples, the planner, DeepConf."""

import itertools
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscale.aggregators import BordaVote, ConfidenceVote, MajorityVote
from inferscale.base import Generator
from inferscale.engine import solve, solve_batch
from inferscale.rewards import RewardFunction
from inferscale.strategies import (
    AdaptiveConsistency,
    ComputeOptimal,
    DeepConf,
    EarlyStoppingConsistency,
    RepeatedSampling,
    plan_sampling,
)
from inferscale.strategies.sampling import beta_probability, dirichlet_probability, expected_stop
from inferscale.testing import BrokenGenerator, ToyGenerator
from inferscale.tree import Problem, Step
from tests.strategy_fakes import search


class Recorded(Generator):
    """The `i`-th sample of a problem is its `i`-th recorded answer."""

    def __init__(self, answers):
        self.answers = answers

    def generate(self, requests):
        return [[self.step(r.node.problem.prompt, r.first + i) for i in range(r.n)] for r in requests]

    def step(self, prompt, draw):
        answer = self.answers[prompt][draw]
        return Step("none" if answer is None else f"={answer}", (draw,), finish_reason="eos")


def read(text):
    return text[1:] if text.startswith("=") else None


def run(strategy, answers):
    """Samples used and answers given, problem by problem."""
    generator = Recorded({f"problem {i}": row for i, row in enumerate(answers)})
    results = solve_batch(
        list(generator.answers), strategy, generator, read_answer=read, aggregator=MajorityVote()
    )  # fmt: skip
    return [result.cost.num_generated for result in results], [result.answer for result in results]


# -- the stops ---------------------------------------------------------------------------------------------------------


def test_the_least_votes_that_stop_at_95_percent():
    least = [next(v1 for v1 in range(v2, 99) if beta_probability(v1, v2) >= 0.95) for v2 in range(12)]
    assert least == [4, 6, 8, 9, 11, 12, 14, 15, 17, 18, 19, 21]
    assert (beta_probability(3, 0), beta_probability(4, 0), beta_probability(0, 0)) == (0.9375, 0.96875, 0.5)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_beta_rule_is_the_beta_distribution(first, second):
    from scipy.special import betainc

    assert beta_probability(first, second) == pytest.approx(1 - betainc(first + 1, second + 1, 0.5), abs=1e-12)


@given(st.integers(0, 80), st.integers(0, 80))
def test_the_dirichlet_rule_with_two_answers_is_the_beta_rule(first, second):
    assert dirichlet_probability((first, second)) == pytest.approx(beta_probability(first, second), abs=1e-8)


def test_the_dirichlet_rule_is_symmetric_and_sums_to_one():
    assert dirichlet_probability((0, 0, 0, 0, 0)) == pytest.approx(0.2, abs=1e-8)
    counts = (7, 4, 3, 1)
    total = sum(dirichlet_probability((counts[i], *counts[:i], *counts[i + 1 :])) for i in range(4))
    assert total == pytest.approx(1, abs=1e-8)


def test_the_dirichlet_rule_against_simulation():
    import numpy as np

    counts = (6, 3, 2, 0, 0)
    drawn = np.random.default_rng(0).dirichlet([count + 1 for count in counts], 200_000)
    share = float((drawn[:, 0] >= drawn.max(axis=1)).mean())
    assert dirichlet_probability(counts) == pytest.approx(share, abs=0.004)


def test_the_search_stops_where_the_rule_says():
    samples, answers = run(
        AdaptiveConsistency(10),
        [
            list("aaaaaaaaaa"),
            list("abaaaaaaaa"),
            [None, "a", None, "a", "a", "a", "b", "b", "b", "b"],
            list("ababababab"),
            [None] * 10,
        ],
    )
    assert samples == [4, 7, 6, 10, 10]
    assert answers == ["a", "a", "a", "a", None]


def test_a_block_is_tested_at_every_prefix_and_paid_for_whole():
    assert run(AdaptiveConsistency(10, num_parallel=4), [list("aaaaaaaaaa")])[0] == [4]
    # The stop at 4 of "aaaabbbb" holds, although the block's end would not stop; all 8 were paid for and vote.
    assert run(AdaptiveConsistency(10, num_parallel=8), [list("aaaabbbbcc")]) == ([8], ["a"])
    assert run(AdaptiveConsistency(10, num_parallel=3), [list("aaaaaaaaaa")])[0] == [6]
    assert run(AdaptiveConsistency(10, num_parallel=6), [list("ababababab")])[0] == [10]


def test_the_dirichlet_rule_goes_on_longer():
    rows = [list("aabaaaaaaaaaaaaa")]
    assert run(AdaptiveConsistency(16), rows)[0] == [7]
    assert run(AdaptiveConsistency(16, rule="dirichlet"), rows)[0][0] > 7


def test_early_stopping_takes_whole_windows():
    samples, answers = run(
        EarlyStoppingConsistency(4, 10),
        [
            list("aaaabbbbbb"),
            list("abaabbbbcc"),
            list("abababaabb"),
            ["a", "a", "a", None, "b", "b", "b", None, "c", "c"],
        ],
    )
    assert samples == [4, 8, 8, 8]
    assert answers == ["a", "b", "a", "a"]


def test_the_answer_of_the_unanimous_window_wins_over_earlier_votes():
    samples, answers = run(EarlyStoppingConsistency(4, 12), [list("aaabaaabcccc")])
    assert (samples, answers) == ([12], ["c"])


def test_failed_samples_count_as_samples():
    def fails(step, node):
        return replace(step, text=" ", finish_reason="empty")

    for strategy in (AdaptiveConsistency(6), EarlyStoppingConsistency(3, 6), DeepConf(2, 6, num_parallel=2)):
        result = search(strategy, BrokenGenerator(fails))
        assert result.cost.num_generated == 6
        assert result.answer is None


# -- recorded samples --------------------------------------------------------------------------------------------------


def otis(shared_data):
    rows = [json.loads(line) for line in (shared_data / "samples" / "otis_aime_k16.jsonl").read_text().splitlines()]
    models = {}
    for row in rows:
        models.setdefault(row["model"], []).append(row)
    reference = json.loads((shared_data / "REFERENCE.json").read_text())["samples/otis_aime_k16"]
    return [(models[name], reference[name]["adaptive"]) for name in reference]


def measured(strategy, rows, right):
    samples, answers = run(strategy, [row["answers"] for row in rows])
    accuracy = sum(right(row, answer) for row, answer in zip(rows, answers, strict=True)) / len(rows)
    return {"acc": pytest.approx(accuracy), "samples": pytest.approx(sum(samples) / len(rows))}, answers


def test_adaptive_stops_on_the_recorded_otis_samples(shared_data):
    for rows, reference in otis(shared_data):
        full, votes = measured(RepeatedSampling(16), rows, lambda row, answer: answer == row["gold"])
        assert reference["SC"] == full
        adaptive, answers = measured(AdaptiveConsistency(16), rows, lambda row, answer: answer == row["gold"])
        assert {k: reference["AC_beta_0.95"][k] for k in ("acc", "samples")} == adaptive
        same = sum(answer == vote for answer, vote in zip(answers, votes, strict=True)) / len(rows)
        assert reference["AC_beta_0.95"]["same_answer_as_SC"] == same
        for window in (4, 5, 8):
            stopped, _ = measured(EarlyStoppingConsistency(window, 16), rows, lambda row, answer: answer == row["gold"])
            assert reference[f"ESC_w{window}"] == stopped


def test_adaptive_stops_on_the_recorded_date_samples(shared_data):
    path = shared_data / "samples" / "date_chatgpt_k10.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    reference = json.loads((shared_data / "REFERENCE.json").read_text())["samples/date_chatgpt_k10"]["adaptive"]

    def right(row, answer):
        return answer is not None and bool(row["correct"][row["answers"].index(answer)])

    assert reference["AC_beta_0.95"] == measured(AdaptiveConsistency(10), rows, right)[0]
    assert reference["ESC_w5"] == measured(EarlyStoppingConsistency(5, 10), rows, right)[0]


# -- the planner -------------------------------------------------------------------------------------------------------


def brute_force(strategy, chances, length):
    """Expected samples by running the search on every sequence of answers."""
    names = [*"abcdefg"[: len(chances)], None]
    weights = [*chances, 1 - sum(chances)]
    possible = [i for i, weight in enumerate(weights) if weight > 0]
    sequences = [list(s) for s in itertools.product(possible, repeat=length)]
    samples, _ = run(strategy, [[names[i] for i in s] for s in sequences])
    return sum(n * math.prod(weights[i] for i in s) for n, s in zip(samples, sequences, strict=True))


@pytest.mark.parametrize(
    "strategy",
    [AdaptiveConsistency(6), AdaptiveConsistency(6, num_parallel=4), EarlyStoppingConsistency(2, 6)],
    ids=repr,
)
@pytest.mark.parametrize("chances", [(0.7, 0.2), (0.5, 0.5), (1.0,)], ids=str)
def test_expected_samples_are_exact(strategy, chances):
    assert strategy.expected_samples(chances) == pytest.approx(brute_force(strategy, chances, 6))


def test_expected_windows_of_the_paper():
    windows = EarlyStoppingConsistency(5, 40)
    assert windows.expected_samples((0.7, 0.2, 0.1)) == pytest.approx(22.9001, abs=1e-4)
    assert sum(p**5 for p in (0.7, 0.2, 0.1)) == pytest.approx(0.1684, abs=1e-4)
    q = 0.3
    assert windows.expected_samples((q**0.2,)) == pytest.approx(15.7059, abs=1e-4)
    assert (windows.expected_samples((1.0,)), windows.expected_samples((1e-9,))) == (5.0, pytest.approx(40))


def test_simulation_agrees_with_exact_counting():
    chances = (0.5, 0.2, 0.1, 0.1, 0.1)
    strategy = AdaptiveConsistency(8)
    simulated = expected_stop(chances, 40, 1, lambda votes: sum(votes) >= 8 or strategy.decides(votes))
    assert simulated == pytest.approx(strategy.expected_samples(chances), abs=0.1)


def test_a_plan_from_recorded_pilots_is_near_what_happens(shared_data):
    strategy = AdaptiveConsistency(16)
    for rows, reference in otis(shared_data)[:2]:
        plan = plan_sampling(strategy, [row["answers"] for row in rows])
        assert plan.expected_samples == pytest.approx(reference["AC_beta_0.95"]["samples"], abs=1.0)
        assert plan.saving == 1 - plan.expected_samples / 16


def test_plans_by_hand():
    plan = plan_sampling(EarlyStoppingConsistency(2, 8), [["a", "a"], [None, None]])
    assert (plan.expected_samples, plan.n, plan.saving) == ((2 + 8) / 2, 8, 3 / 8)
    with pytest.raises(ValueError, match="at least one sample"):
        plan_sampling(AdaptiveConsistency(), [["a"], []])
    with pytest.raises(ValueError, match="at most 1"):
        AdaptiveConsistency().expected_samples([0.9, 0.3])


# -- DeepConf ----------------------------------------------------------------------------------------------------------


class Sure(Generator):
    """Trace `i` has the confidences ``table[i]``, one for each of its steps; its answer is its number."""

    def __init__(self, table, answer=str):
        self.table, self.answer = table, answer

    def generate(self, requests):
        return [[self.step(r.node, r.first + i) for i in range(r.n)] for r in requests]

    def step(self, node, draw):
        trace = int(node.text.split()[0]) if node.text else draw
        confidences = self.table[trace]
        last = node.depth + 1 == len(confidences)
        text = f"{trace} " if node.depth == 0 else "step "
        text += f"The answer is {self.answer(trace)}" if last else ""
        return Step(text, (0, 1), None, confidences[node.depth], "eos" if last else "step")


def test_deepconf_abandons_traces_below_the_warm_up_threshold():
    table = [(5, 4, 5), (5, 3, 5), (5, 1, 5), (5, 2, 5), (9, 2.9, 9), (9, 3.1, 9), (2, 9, 9), (9, 9, 1)]
    strategy = DeepConf(4, 8, keep=0.34, window=1, consensus=None, num_parallel=4)
    result = solve(Problem("x"), strategy, Sure(table))
    # Lowest groups of the warm-up: 4, 3, 1, 2; the quantile .66 is 2.98.
    assert [leaf.text.split()[0] for leaf in result.leaves] == ["0", "1", "2", "3", "5"]
    assert result.cost.num_generated == 4 * 3 + 2 + 3 + 1 + 3


def test_groups_are_the_last_steps_that_fill_the_window():
    table = [(4.0, 2.0, 1.0)]
    leaf = solve(Problem("x"), DeepConf(1, 1), Sure(table)).leaves[0]
    means = [DeepConf(window=window).group_confidence(leaf) for window in (1, 2, 3, 4, 5, 99)]
    assert means == pytest.approx([1, 1, 1.5, 1.5, 7 / 3, 7 / 3])


def test_deepconf_stops_when_the_traces_agree():
    sure = [(1.0, 1.0)] * 40
    agreed = solve(Problem("x"), DeepConf(4, 40, num_parallel=4), Sure(sure, answer=lambda trace: 7))
    assert agreed.cost.num_generated == 8
    everything = solve(
        Problem("x"), DeepConf(4, 40, num_parallel=4, consensus=None), Sure(sure, answer=lambda trace: 7)
    )
    assert everything.cost.num_generated == 80


def test_deepconf_votes_by_confidence():
    table = [(1.0, 1.0), (1.0, 1.0), (9.0, 9.0)]
    result = solve(
        Problem("x"), DeepConf(3, 3), Sure(table, answer=lambda trace: 1 + (trace == 2)), aggregator=ConfidenceVote()
    )
    assert (result.answer, result.reaggregate(MajorityVote()).answer) == ("2", "1")


def test_self_certainty_with_a_borda_vote():
    table = [(1.0,), (5.0,), (4.0,), (2.0,)]
    reward = RewardFunction(lambda nodes: [node.step.confidence for node in nodes])
    result = solve(
        Problem("x"), RepeatedSampling(4), Sure(table, answer=lambda trace: trace % 2),
        reward_model=reward, aggregator=BordaVote(p=0.5),
    )  # fmt: skip
    # Ranks 4, 1, 2, 3 weigh 1, 2, sqrt 3, sqrt 2: 2.73 for "0" and 3.41 for "1".
    assert result.answer == "1"


def test_deepconf_needs_confidences():
    with pytest.raises(ValueError, match="confidence="):
        search(DeepConf(2, 4), BrokenGenerator(lambda step, node: replace(step, confidence=None)))


def test_bad_hyperparameters_are_refused():
    for kind, options in [
        (AdaptiveConsistency, {"n": 0}),
        (AdaptiveConsistency, {"threshold": 1.0}),
        (AdaptiveConsistency, {"rule": "x"}),
        (EarlyStoppingConsistency, {"window": 9, "n": 8}),
        (DeepConf, {"keep": 0.0}),
        (DeepConf, {"consensus": 0.5}),
    ]:
        with pytest.raises(ValueError, match=next(iter(options))):
            kind(**options)


ONE, TWO = ("=4", "= 4", "=4.0", "=$4"), ("=5", "=6")  # texts of one answer, and of two


@pytest.mark.parametrize(
    ("strategy", "samples"),
    [
        (AdaptiveConsistency(16), 4),
        (EarlyStoppingConsistency(4, 16), 4),
        (DeepConf(4, 16, num_parallel=4), 4),
        (ComputeOptimal((RepeatedSampling(1), RepeatedSampling(16)), (0.2,), 4, "agreement"), 5),
    ],
    ids=lambda part: type(part).__name__,
)
def test_strategies_that_look_at_answers_read_as_solve_does(strategy, samples):
    """Where only `solve` knows how answers are read; equal ones are those that the vote holds to be equal."""

    def texts(*of):
        def change(step, node):
            return replace(step, text=of[step.token_ids[-1] % len(of)], finish_reason="eos", inner_ends=())

        return BrokenGenerator(change)

    agreed = solve("How many?", strategy, texts(*ONE), read_answer=read)
    assert agreed.cost.num_generated == samples
    assert solve("How many?", strategy, texts(*TWO), read_answer=read).cost.num_generated > samples
    assert solve("How many?", strategy, texts(*ONE), read_answer=lambda text: None).cost.num_generated > samples
    apart = solve("How many?", strategy, texts(*ONE), read_answer=read, aggregator=MajorityVote(normalize=str))
    assert apart.cost.num_generated > samples
    either = MajorityVote(same_answer=lambda first, second: True)
    assert solve("How many?", strategy, texts(*TWO), read_answer=read, aggregator=either).cost.num_generated == samples


def test_it_saves_samples_on_the_toy():
    easy, hard = ToyGenerator(num_answers=1), ToyGenerator(num_answers=10)
    assert search(AdaptiveConsistency(16), easy).cost.num_generated == 4
    assert search(AdaptiveConsistency(16), hard).cost.num_generated > 4
    assert Counter(t.answer for t in search(AdaptiveConsistency(16), easy).trajectories) == {"0": 4}


@pytest.mark.parametrize("counts", [(700, 600), (5000, 4000)])
def test_the_dirichlet_rule_goes_on_working_with_many_votes(counts):
    assert dirichlet_probability(counts) == pytest.approx(beta_probability(*counts), abs=1e-6)


def test_the_dirichlet_rule_decides_among_thousands_of_votes():
    assert AdaptiveConsistency(rule="dirichlet").decides((2000, 100, 3))
