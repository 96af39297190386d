"""`plan`: what to run for each budget, out of a race on shared samples."""

import json
import shlex
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.stats import norm

import inferscale as isc
from inferscale.base import Traffic
from inferscale.cost import Cost, Price
from inferscale.evaluate import load_run, run_evaluation
from inferscale.evaluate.parts import command_words, name_of, source_of
from inferscale.identity import identity_of
from inferscale.scaling import Measured, Race, candidates
from inferscale.scaling.beliefs import believe
from inferscale.scaling.planning import Pool, usual_votes
from inferscale.scaling.race import problems_to_tell, wealth_against, wilson
from inferscale.testing import ToyGenerator, ToyProcessReward, ToyReward
from tests.tiny_models import byte_tokenizer, tiny_model

PROBLEMS = [isc.Problem(f"Problem {i}?", answer=str(i % 4)) for i in range(40)]


class Recorded:
    """A run whose outcomes are known beforehand."""

    def __init__(self, name, values, cost=1.0):
        self.name, self.values, self.cost, self.asked = name, np.asarray(values, dtype=float), cost, []

    def measure(self, problems):
        self.asked.append(problems)
        cost = {"tokens": np.full(problems, self.cost)}
        return Measured({self.name: self.values[:problems]}, {self.name: cost}, cost)


def coins(chance, count=200, seed=0):
    return np.random.default_rng(seed).random(count) < chance


def toy_plan(**options):
    given = {"budgets": [isc.Budget(tokens=40), isc.Budget(tokens=400)], "reward_model": ToyProcessReward()}
    given |= {"strategies": [isc.RepeatedSampling(8), isc.REBASE(4)], **options}
    return isc.plan(PROBLEMS, given.pop("generator", ToyGenerator()), **given)


def test_a_bettor_wins_what_the_stakes_say():
    lost = np.array([[-1.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
    by_hand = np.mean([(1 + s) * (1 + s) * (1 - s / 2) for s in (0.05, 0.1, 0.2, 0.4, 0.8)])
    assert wealth_against(lost) == pytest.approx([by_hand, 1.0])


def test_equal_configurations_are_rarely_shown_to_be_behind():
    """Ville: the wealth of a fair bet reaches 20 at any time in at most one of twenty cases."""
    rng = np.random.default_rng(1)
    ruined = 0
    for _ in range(200):
        differences = rng.choice([-1.0, 0.0, 1.0], size=100)
        ruined += any(wealth_against(differences[None, :n])[0] >= 20 for n in range(5, 101, 5))
    assert ruined / 200 <= 0.05


def test_the_race_keeps_the_best_and_drops_what_is_far_behind_early():
    runs = [Recorded("good", coins(0.9)), Recorded("bad", coins(0.2, seed=1)), Recorded("fair", coins(0.8, seed=2))]
    (winner,) = Race(runs, [isc.Budget(tokens=1)], 200).run()
    assert winner.configuration == "good"
    told = {standing.configuration: standing.dropped for standing in winner.standings}
    assert told["good"] == ""
    assert "shown to be behind" in told["bad"]
    assert max(runs[1].asked) < 200 == max(runs[0].asked)


def test_a_limit_is_kept_and_what_it_sets_aside_is_told_apart():
    runs = [Recorded(f"run {i}", coins(0.5 + 0.04 * i, seed=i)) for i in range(8)]
    race = Race(runs, [isc.Budget(tokens=1)], 200, most=isc.Budget(tokens=400))
    (winner,) = race.run()
    assert race.spent["tokens"] <= 400
    assert any("set aside" in standing.dropped for standing in winner.standings)
    assert winner.chance == max(s.chance for s in winner.standings)


def test_a_budget_buys_only_what_it_can():
    runs = [Recorded("cheap", coins(0.3), 1.0), Recorded("dear", coins(0.9, seed=1), 10.0)]
    race = Race([runs[1], runs[0]], [isc.Budget(tokens=20), isc.Budget(tokens=5)], 60)
    assert [winner.configuration for winner in race.run()] == ["dear", "cheap"]
    (none,) = Race(runs[1:], [isc.Budget(tokens=5)], 60).run()
    assert none.configuration is None


def test_numbers_of_problems_and_intervals_by_hand():
    assert [problems_to_tell(0.1, 0.5), problems_to_tell(0.0, 0.5)] == [196, None]
    assert wilson(np.ones(30)) == pytest.approx((30 / (30 + 1.959964**2), 1.0), abs=1e-6)
    assert wilson(np.array([1.0] * 15 + [0.0] * 15)) == pytest.approx((0.332, 0.668), abs=4e-3)


def one_run_each(columns, kin=None, costs=None):
    costs = costs or dict.fromkeys(columns, 1.0)
    return believe(columns, costs, {name: name for name in columns}, kin or {})


def test_what_is_believed_is_the_posterior_of_a_gaussian():
    """The posterior by conditioning all observations at once, on problems that only one of two was tried on too."""
    columns = {"a": coins(0.6, 12).astype(float), "b": coins(0.5, 30, seed=1).astype(float)}
    found = one_run_each(columns)
    prior = np.full((2, 2), 0.3**2 + 0.1**2) + np.eye(2) * (0.15**2 + 0.06**2 + 0.04**2 + 0.015**2)
    a, b = (column[:12] - column.mean() for column in columns.values())
    noise, shared = found.noise, max(float(a @ b) / 12, 0)
    seen = np.array([columns["a"].mean(), columns["b"][:12].mean(), columns["b"][12:].mean()])
    design = np.array([[1.0, 0], [0, 1], [0, 1]])
    error = np.array([[noise[0], shared, 0], [shared, noise[1], 0], [0, 0, noise[1] * 12 / 18]]) / 12
    middle = np.mean([column.mean() for column in columns.values()])
    weights = prior @ design.T @ np.linalg.inv(design @ prior @ design.T + error)
    assert found.mean == pytest.approx(middle + weights @ (seen - middle))
    assert found.covariance == pytest.approx(prior - weights @ design @ prior)


def test_what_varies_less_over_problems_does_not_drag_the_others():
    """Means over samples vary less than single runs; what they have in common tells nothing of their differences."""
    rng = np.random.default_rng(2)
    hard = rng.normal(size=(40, 1))
    pool = 1 / (1 + np.exp(2 + 1.5 * hard - 0.1 * np.arange(12)))  # votes over samples: expected values
    trees = rng.random((40, 6)) < 1 / (1 + np.exp(0.5 + 1.5 * hard))
    columns = {f"pool {i}": column for i, column in enumerate(pool.T)}
    columns |= {f"tree {i}": column * 1.0 for i, column in enumerate(trees.T)}
    runs = {name: "pool" if name.startswith("pool") else name for name in columns}
    kin = {name: ("model", name[:4], "vote") for name in columns}
    found = believe(columns, dict.fromkeys(columns, 1.0), runs, kin)
    seen = np.array([column.mean() for column in columns.values()])
    assert found.mean[:12].mean() == pytest.approx(seen[:12].mean(), abs=0.02)
    assert found.mean[12:].mean() == pytest.approx(seen[12:].mean(), abs=0.03)


def test_many_tries_of_one_thing_are_drawn_together_by_what_they_share():
    columns = {f"c{i}": coins(0.5, 30, seed=i).astype(float) for i in range(10)}
    kin = dict.fromkeys(columns, ("generator", "strategy", "vote"))
    raw = np.ptp([column.mean() for column in columns.values()])
    apart, alike = np.ptp(one_run_each(columns).mean), np.ptp(one_run_each(columns, kin).mean)
    assert alike < 0.2 * raw < 0.5 * apart < 0.5 * raw
    far = {name: 16.0**i for i, name in enumerate(columns)}
    assert alike < np.ptp(one_run_each(columns, kin, far).mean)  # what costs 16 times as much is less alike


def test_what_is_seen_on_easy_problems_is_set_beside_others_on_the_same():
    hard = np.random.default_rng(0).random(200)
    hard[:30] *= 0.6  # an easy beginning
    columns = {"all": (hard < 0.5).astype(float), "first": (hard[:30] < 0.45).astype(float)}
    found = one_run_each(columns)
    assert columns["first"].mean() > columns["all"].mean() + 0.15
    assert found.mean[1] < columns["first"].mean() - 0.1


def test_chances_and_gains_follow_the_normal_distribution():
    columns = {"a": coins(0.7, 100).astype(float), "b": coins(0.6, 100, seed=1).astype(float)}
    found = one_run_each(columns)
    gap = found.mean[0] - found.mean[1]
    spread = (np.array([1, -1]) @ found.covariance @ np.array([1, -1])) ** 0.5
    assert found.chances([0, 1])[0] == pytest.approx(norm.cdf(gap / spread), abs=0.03)
    (gain,) = found.gains([0, 1], [1], [50])
    move = (found.covariance[1, 1] - found.covariance[0, 1]) / (found.covariance[1, 1] + found.noise[1] / 50) ** 0.5
    expected = move * norm.pdf(gap / move) - gap * norm.cdf(-gap / move)
    assert gain == pytest.approx(expected, rel=0.25)  # E max(gap + move Z, 0) - gap, by 15 nodes
    assert found.gains([0], [1], [50]) == pytest.approx(0.0, abs=1e-9)  # a single one is the best, whatever is found


def test_chances_are_those_of_being_the_best():
    """Accuracies as they are believed to be beforehand, outcomes of coins: the chosen is the best as often as told."""
    rng = np.random.default_rng(0)
    told, found = [], []
    for _ in range(300):
        accuracies = np.clip(0.5 + rng.normal(0, 0.05) + rng.normal(0, 0.17, 4), 0.02, 0.98)
        columns = {f"c{i}": (rng.random(40) < p).astype(float) for i, p in enumerate(accuracies)}
        beliefs = one_run_each(columns)
        best = int(beliefs.mean.argmax())
        told.append(beliefs.chances(range(4), draws=400)[best])
        found.append(best == accuracies.argmax())
    told, found = np.array(told), np.array(found)
    assert told.mean() == pytest.approx(found.mean(), abs=3 * 0.5 / 300**0.5)
    sure = told > 0.9
    assert found[sure].mean() > 0.9 > 0.7 > found[told < 0.5].mean()


def test_the_best_is_shown_to_be_behind_no_more_often_than_the_error_allows():
    """Whole races of coins with hardly a difference, where a wrong verdict is easiest; with looks at every doubling."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(100):
        accuracies = 0.5 + 0.02 * np.arange(5)
        runs = [Recorded(f"c{i}", rng.random(160) < p) for i, p in enumerate(accuracies)]
        (winner,) = Race(runs, [isc.Budget(tokens=1)], 160, error=0.2).run()
        wrong += any(s.configuration == "c4" and "shown" in s.dropped for s in winner.standings)
    assert wrong / 100 <= 0.2


def test_intervals_cover_and_problems_that_would_tell_do():
    rng = np.random.default_rng(2)
    hard = rng.beta(1, 1.5, size=(2000, 40))  # means over samples of problems that are unlike
    pools = rng.binomial(4, hard) / 4
    covered = [low <= 0.4 <= high for low, high in map(wilson, pools)]
    assert 0.93 <= np.mean(covered) <= 1.0
    for a, b in [(1, 1.5), (0.05, 2), (1.5, 0.1)]:  # few problems, and most of them alike
        for count in (4, 20):
            pools = rng.binomial(64, rng.beta(a, b, size=(500, count))) / 64
            covered = [low <= a / (a + b) <= high for low, high in map(wilson, pools)]
            assert np.mean(covered) >= 0.93, (a, b, count)
    gap, spread = 0.1, (0.4 - 0.1**2) ** 0.5  # of differences that are 1, -1 or 0 with 0.25, 0.15 and 0.6
    needed = problems_to_tell(gap, spread)
    drawn = rng.choice([1.0, -1.0, 0.0], p=[0.25, 0.15, 0.6], size=(4000, needed))
    told = drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / needed**0.5) > 1.96
    assert np.mean(told) == pytest.approx(0.8, abs=0.02)


def test_under_a_limit_problems_go_where_the_choice_is_open():
    """One run is far ahead of the first budget, two are close at the second: these get the problems."""
    runs = [Recorded("poor", coins(0.1), 1.0), Recorded("cheap", coins(0.6, seed=1), 1.0),
            Recorded("dear", coins(0.80, seed=2), 10.0), Recorded("dearer", coins(0.84, seed=3), 10.0)]  # fmt: skip
    race = Race(runs, [isc.Budget(tokens=2), isc.Budget(tokens=20)], 200, most=isc.Budget(tokens=2000))
    cheap, dear = race.run()
    assert (cheap.configuration, dear.configuration in ("dear", "dearer")) == ("cheap", True)
    assert max(runs[0].asked) < 80 < min(max(runs[2].asked), max(runs[3].asked))
    assert race.spent["tokens"] <= 2000


def test_a_plan_has_a_choice_for_every_budget_within_its_cost():
    plan = toy_plan()
    for choice in plan.choices:
        assert choice.tried.costs["tokens"] <= choice.budget.tokens
        assert choice.tried.low <= choice.tried.accuracy <= choice.tried.high
        assert choice.is_clear == (choice.chance >= 0.95)
        assert choice.is_clear or "cannot tell" in str(choice)
    names = {t.configuration.name for t in plan.tried}
    assert "ToyGenerator: RepeatedSampling(n=4), MajorityVote(weighted=False)"[:40] in " ".join(names)
    sizes = {
        t.configuration.strategy.n for t in plan.tried if isinstance(t.configuration.strategy, isc.RepeatedSampling)
    }
    assert sizes == {1, 2, 4, 8}
    assert {t.configuration.aggregator for t in plan.tried} == set(usual_votes(ToyProcessReward()))


def test_accuracies_are_those_of_the_searches():
    plan = toy_plan(strategies=[isc.REBASE(4)], budgets=isc.Budget(tokens=1000))
    for tried in plan.tried:
        results = isc.solve_batch(PROBLEMS, isc.REBASE(4), ToyGenerator(), reward_model=ToyProcessReward(),
                                  aggregator=tried.configuration.aggregator)  # fmt: skip
        got = np.mean([result.is_correct for result in results])
        tokens = np.mean([result.cost.tokens for result in results])
        assert tried.accuracy == pytest.approx(got, abs=0.13)  # tied answers share the credit
        assert tried.costs["tokens"] == pytest.approx(tokens)


def test_votes_that_read_no_score_do_not_pay_for_any():
    plan = toy_plan(strategies=[isc.RepeatedSampling(4)], budgets=isc.Budget(tokens=1000))
    for tried in plan.tried:
        assert (tried.configuration.reward is None) == (tried.configuration.aggregator == isc.MajorityVote())


def test_votes_that_read_no_score_do_not_wait_for_any():
    class Slow(ToyReward):
        def score(self, nodes):
            time.sleep(0.02)
            return super().score(nodes)

    plan = toy_plan(strategies=[isc.RepeatedSampling(4)], budgets=isc.Budget(tokens=1000), reward_model=Slow(),
                    most=isc.Budget(seconds=100))  # fmt: skip
    seconds = {t.configuration.aggregator: t.costs["seconds"] for t in plan.tried if t.configuration.strategy.n == 4}
    majority = seconds.pop(isc.MajorityVote())
    assert all(scored - majority >= 0.02 / len(PROBLEMS) for scored in seconds.values())


class Counter:
    """A meter that goes up by a joule whenever it is read."""

    source = "a counter"

    def __init__(self):
        self.joules = 0.0

    def read(self):
        self.joules += 1.0
        return self.joules


def test_budgets_of_bytes_and_joules_need_models_that_tell_them():
    class Told(ToyGenerator):
        def traffic(self, requests, answers):
            return Traffic(100, 10 * sum(map(len, answers)))

    plan = toy_plan(budgets=isc.Budget(bytes=10_000), strategies=[isc.RepeatedSampling(4)], reward_model=None,
                    generator=Told())  # fmt: skip
    moved = {t.configuration.strategy.n: t.costs["bytes"] for t in plan.tried}
    # All samples of a problem share the forwards that read the weights; each has its own keys and values.
    assert moved == {1: 110.0, 2: 120.0, 4: 140.0}
    meter = Counter()
    plan = toy_plan(budgets=isc.Budget(joules=1e9), strategies=[isc.RepeatedSampling(4)], energy=meter)
    assert all(t.costs["joules"] > 0 for t in plan.tried)
    silent = ToyGenerator()
    for budget, message in [(isc.Budget(bytes=9), "cannot tell its bytes"), (isc.Budget(joules=9), "needs a meter")]:
        with pytest.raises(ValueError, match=message):
            toy_plan(budgets=budget, generator=silent)
        with pytest.raises(ValueError, match=message):
            toy_plan(most=budget, generator=silent)
    assert silent.calls == 0


def test_a_budget_buys_nothing_whose_cost_is_not_known():
    """A reward model of one's own that reads tokens and tells no bytes; unknown is no zero, and is not shown as one."""

    class Told(ToyGenerator):
        def traffic(self, requests, answers):
            return Traffic(100, 10 * sum(map(len, answers)))

    class Silent(ToyProcessReward):
        def cost(self, nodes):
            return [Cost(scored_tokens=5) for _ in nodes]

    given = {"generator": Told(), "reward_model": {"silent": Silent(), "toy": ToyProcessReward()}}
    plan = toy_plan(budgets=isc.Budget(bytes=10_000), **given)
    assert plan.choices[0].configuration.reward != "silent"
    of = {t.configuration.reward: t for t in plan.tried}
    assert of["toy"].costs["bytes"] > 0
    assert of["silent"].chances == (None,)
    assert not {"bytes"} & {*of["silent"].costs, *plan.spent}
    with pytest.raises(ValueError, match="do not tell their bytes"):
        toy_plan(budgets=isc.Budget(bytes=10_000), generator=Told(), reward_model=Silent())
    with pytest.raises(ValueError, match=r"most=1e\+04 bytes: Told: .* by silent does not"):
        toy_plan(budgets=isc.Budget(tokens=100), most=isc.Budget(bytes=10_000), **given)


def test_a_plan_stands_where_a_strategy_does(tmp_path):
    plan = toy_plan()
    for choice in plan.choices:
        chosen = choice.configuration
        judge = None if chosen.reward is None else ToyProcessReward()
        direct = isc.solve_batch(
            PROBLEMS[:5], chosen.strategy, ToyGenerator(), reward_model=judge, aggregator=chosen.aggregator
        )
        by_plan = isc.solve_batch(PROBLEMS[:5], plan, ToyGenerator(), budget=choice.budget)
        assert [r.text for r in by_plan] == [r.text for r in direct]
        assert [r.stopped_by for r in by_plan] == [None] * 5
    chosen = plan.choices[1].configuration
    run = run_evaluation(PROBLEMS[:5], plan, ToyGenerator(), tmp_path, budget=plan.choices[1].budget)
    assert [r["answer"] for r in run.finished] == [r.answer for r in by_plan]
    assert load_run(tmp_path).about["strategy"] == repr(chosen.strategy)
    with pytest.raises(ValueError, match="several budgets"):
        isc.solve_batch(PROBLEMS[:1], plan, ToyGenerator())
    with pytest.raises(ValueError, match="costs as little as 1 tokens"):
        isc.solve(PROBLEMS[0], plan, ToyGenerator(), budget=isc.Budget(tokens=1))
    with pytest.raises(ValueError, match="a plan chooses the vote"):
        isc.solve(PROBLEMS[0], plan, ToyGenerator(), aggregator=isc.BestOfN(), budget=plan.choices[0].budget)

    class Other(ToyGenerator):
        depth = 5

        def identity(self):
            return {"depth": 5}

    with pytest.raises(ValueError, match="another one is given"):
        isc.solve(PROBLEMS[0], plan, Other(), budget=plan.choices[0].budget)


def test_a_saved_plan_is_the_same_plan(tmp_path):
    plan = toy_plan()
    loaded = isc.Plan.load(plan.save(tmp_path / "plan.json"))
    assert loaded == plan
    strict = isc.MajorityVote(normalize=str.strip)
    own = toy_plan(aggregators=[strict], strategies=[isc.RepeatedSampling(2)])
    assert isc.MajorityVote() in {t.configuration.aggregator for t in own.tried if t.configuration.strategy.n == 2}
    own.save(tmp_path / "own.json")
    assert isc.Plan.load(tmp_path / "own.json", aggregators=[strict]) == own
    with pytest.raises(ValueError, match=r"load it with aggregators"):
        isc.Plan.load(tmp_path / "own.json")
    assert (loaded.table(), loaded.to_html()) == (plan.table(), plan.to_html())
    results = isc.solve_batch(PROBLEMS[:2], loaded, ToyGenerator(), reward_model=ToyProcessReward(),
                              budget=isc.Budget(tokens=400))  # fmt: skip
    assert len(results) == 2
    scored = [c for c in loaded.choices if c.configuration.reward]
    if scored:
        with pytest.raises(ValueError, match="pass reward_model"):
            isc.solve(PROBLEMS[0], loaded, ToyGenerator(), budget=scored[0].budget)
    (tmp_path / "other.json").write_text(json.dumps({"format": "x"}))
    with pytest.raises(ValueError, match="not a saved plan"):
        isc.Plan.load(tmp_path / "other.json")


def test_a_plan_resumes_from_its_runs_without_sampling_again(tmp_path):
    first, second = ToyGenerator(), ToyGenerator()
    options = {"budgets": isc.Budget(tokens=400), "directory": tmp_path, "strategies": [isc.RepeatedSampling(4)]}
    plan = isc.plan(PROBLEMS, first, **options)
    again = isc.plan(PROBLEMS, second, **options)
    assert first.calls > second.calls == 0
    assert [t.accuracy for t in again.tried] == [t.accuracy for t in plan.tried]
    in_memory = isc.plan(PROBLEMS, ToyGenerator(), **{**options, "directory": None})
    assert [t.accuracy for t in in_memory.tried] == [t.accuracy for t in plan.tried]


def test_the_lines_that_run_a_choice_are_those_of_the_plan():
    plan = toy_plan()
    for choice in plan.choices:
        names = {"problems": PROBLEMS[:3], "generator": ToyGenerator(), "reward_model": ToyProcessReward()}
        exec(plan.python(choice.budget), names)
        by_plan = isc.solve_batch(PROBLEMS[:3], plan, ToyGenerator(), budget=choice.budget)
        assert [r.text for r in names["results"]] == [r.text for r in by_plan]
        assert "--strategy" in plan.command(choice.budget)


def test_without_gold_answers_a_judge_compares():
    def longer(problem, first, second):
        return 0.5 if len(first) == len(second) else float(len(first) > len(second))

    prompts = [p.prompt for p in PROBLEMS]
    plan = isc.plan(prompts, ToyGenerator(), budgets=isc.Budget(tokens=1000), judge=longer,
                    most=isc.Budget(tokens=10_000),
                    reward_model=isc.RewardFunction(lambda nodes: [float(len(node.text)) for node in nodes]),
                    strategies=[isc.RepeatedSampling(8)])  # fmt: skip
    assert plan.choices[0].configuration.aggregator == isc.BestOfN()
    assert plan.choices[0].tried.accuracy > 0.8
    assert "better than one sample: 50 % is as good" in str(plan)


def test_several_generators_and_rewards_race_by_name():
    class Poor(ToyGenerator):
        num_answers = 9

        def identity(self):
            return {"answers": 9}

    plan = isc.plan(PROBLEMS, {"rich": ToyGenerator(), "poor": Poor()}, budgets=isc.Budget(tokens=1000),
                    reward_model={"toy": ToyReward()}, strategies=[isc.RepeatedSampling(4)])  # fmt: skip
    assert {t.configuration.generator for t in plan.tried} == {"rich", "poor"}
    assert {t.configuration.reward for t in plan.tried} == {None, "toy"}
    chosen = {"rich": ToyGenerator(), "poor": Poor()}[plan.choices[0].configuration.generator]
    by_name = isc.solve_batch(PROBLEMS[:3], plan, {"rich": ToyGenerator(), "poor": Poor()})
    assert [r.text for r in by_name] == [r.text for r in isc.solve_batch(PROBLEMS[:3], plan, chosen)]
    scored = next(t for t in plan.tried if t.configuration.reward)
    made = replace(plan, choices=(replace(plan.choices[0], tried=scored),), rewards={})  # as it is when it is loaded
    generator = {"rich": ToyGenerator(), "poor": Poor()}
    assert isc.solve_batch(
        PROBLEMS[:2], made, generator, reward_model={"other": ToyProcessReward(), "toy": ToyReward()}
    )
    with pytest.raises(ValueError, match=r"pass reward_model=... \(toy\)"):
        isc.solve_batch(PROBLEMS[:2], made, generator, reward_model={"other": ToyReward()})
    with pytest.raises(ValueError, match="give it by that name"):
        isc.solve(PROBLEMS[0], plan, {"other": chosen})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": []}, "give Budget"),
        ({"budgets": isc.Budget()}, "give Budget"),
        ({"error": 2}, "error=2"),
        ({"strategies": []}, "strategies is empty"),
        ({"strategies": [isc.REBASE(4)], "reward_model": None}, "scores its nodes"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        toy_plan(**change)


def test_bad_problems_are_refused():
    for problems, message in [
        (PROBLEMS[:10], "at least 30"), ([p.prompt for p in PROBLEMS], "no gold answer"),
        ([*PROBLEMS, PROBLEMS[0]], "more than once"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            isc.plan(problems, ToyGenerator(), budgets=isc.Budget(tokens=10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": None}, "budgets=None"),
        ({"budgets": [5]}, "give Budget"),
        ({"most": 5}, "give Budget"),
        ({"strategies": ["rebase:4"]}, "strategies holds 'rebase:4'"),
        ({"strategies": [isc.REBASE]}, "instances such as REBASE"),
        ({"aggregators": isc.BestOfN}, "instances such as BestOfN"),
        ({"aggregators": [isc.BestOfN()], "reward_model": None}, "reads scores: pass reward_model"),
        ({"judge": 3}, "judge must be a function"),
        ({"seed": 1.5}, "seed must be an integer"),
        (
            {"budgets": [isc.Budget(money=1, price=Price(input=1)), isc.Budget(money=1, price=Price(input=2))]},
            "2 prices",
        ),
    ],
)
def test_bad_parts_are_refused_before_anything_is_sampled(change, message):
    generator = ToyGenerator()
    with pytest.raises((TypeError, ValueError), match=message):
        toy_plan(generator=generator, **change)
    assert generator.calls == 0


def test_what_one_of_the_models_does_not_tell_is_no_gift():
    """A model that tells no FLOPs would be within every budget of them."""

    class Served(ToyGenerator):
        def generate(self, requests):
            return [[replace(step, flops=0) for step in steps] for steps in super().generate(requests)]

    given = {"strategies": [isc.RepeatedSampling(4)], "reward_model": None}
    plan = toy_plan(generator={"served": Served(), "here": ToyGenerator()}, budgets=isc.Budget(flops=1e9), **given)
    assert plan.choices[0].configuration.generator == "here"
    assert {t.chances for t in plan.tried if t.configuration.generator == "served"} == {(None,)}
    for limits in ({"budgets": isc.Budget(flops=1e9)}, {"most": isc.Budget(flops=1e9)}):
        served = Served()
        with pytest.raises(ValueError, match="not tell"):
            toy_plan(generator=served, **given, **limits)
        assert served.calls == 1  # the first problems


def test_each_budget_is_raced_for_once():
    budgets = [isc.Budget(tokens=400), isc.Budget(tokens=40), isc.Budget(tokens=400)]
    plan = toy_plan(budgets=budgets, strategies=[isc.RepeatedSampling(2)], reward_model=None)
    assert [c.budget for c in plan.choices] == budgets[:2]


def test_a_budget_that_buys_nothing_is_told_what_would():
    plan = toy_plan(budgets=[isc.Budget(calls=1, tokens=5), isc.Budget(tokens=400)], strategies=[isc.REBASE(2)])
    least = min(t.costs["tokens"] for t in plan.tried)
    assert f"5 tokens, 1 calls: nothing that was tried costs so little (the least is {least:.4g} tokens, 8 " in str(
        plan
    )
    with pytest.raises(ValueError, match="no configuration that was tried costs as little as 5 tokens, 1 calls"):
        isc.solve(PROBLEMS[0], plan, ToyGenerator(), budget=isc.Budget(calls=1, tokens=5))


def test_votes_that_are_equal_up_to_rounding_are_one():
    """Weighted and best of two pick the same; their formulas differ in the last bits."""
    plan = toy_plan(strategies=[isc.RepeatedSampling(2)], budgets=isc.Budget(tokens=400))
    of = {t.configuration.aggregator: t for t in plan.tried if t.configuration.strategy.n == 2}
    weighted, best = of[isc.MajorityVote(weighted=True, reduction="prod")], of[isc.BestOfN(reduction="prod")]
    assert (weighted.accuracy, weighted.chances) == (best.accuracy, best.chances)
    assert plan.choices[0].problems_needed is None or plan.choices[0].problems_needed > 10
    told = replace(plan.choices[0], chance=0.6, is_clear=False, rival="another", gap=0.2, problems_needed=30)
    assert str(told).endswith("from another (+20.0 points): 30 problems do in four of five cases")


def test_a_choice_says_when_nothing_was_right():
    plan = isc.plan([replace(p, answer="seven") for p in PROBLEMS], ToyGenerator(), budgets=isc.Budget(tokens=400),
                    strategies=[isc.RepeatedSampling(2)])  # fmt: skip
    assert "No problem was answered right: compare gold answers" in str(plan)
    assert plan.notes == ()
    plan = toy_plan(read_answer=lambda text: None, strategies=[isc.RepeatedSampling(2)], reward_model=None)
    (note,) = plan.notes
    assert note.startswith("ToyGenerator: 80 of 80 trajectories ended without an answer")
    assert note in str(plan)


def test_runs_that_the_limit_left_no_room_for_are_told(tmp_path):
    plan = toy_plan(most=isc.Budget(tokens=3))
    assert plan.untried == ("ToyGenerator: REBASE(width=4) by ToyProcessReward",)
    assert "Not begun, for that was spent before: ToyGenerator: REBASE" in str(plan)
    assert isc.Plan.load(plan.save(tmp_path / "plan.json")) == plan


def test_what_was_known_before_an_interrupt_is_kept(tmp_path):
    class Stops(ToyGenerator):
        left = 10**6

        def identity(self):
            return {}

        def generate(self, requests):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().generate(requests)

    given = {"strategies": [isc.RepeatedSampling(2)], "reward_model": None, "batch_size": 4}
    stops, whole = Stops(), Stops()
    stops.left = 3
    with pytest.raises(KeyboardInterrupt) as stopped:
        toy_plan(generator=stops, directory=tmp_path, **given)
    known = stopped.value.plan
    assert known.problems == 40 > max(t.problems for t in known.tried) >= 4
    stops.left, calls = 10**6, stops.calls
    found = [[(t.problems, t.accuracy) for t in toy_plan(generator=generator, **given, **kept).tried]
             for generator, kept in ((stops, {"directory": tmp_path}), (whole, {}))]  # fmt: skip
    assert found[0] == found[1]
    assert stops.calls - calls < whole.calls


def test_a_plan_goes_on_with_more_problems(tmp_path):
    options = {"budgets": isc.Budget(tokens=400), "directory": tmp_path, "strategies": [isc.RepeatedSampling(4)]}

    class Noted(ToyGenerator):
        def identity(self):
            return {}

        def generate(self, requests):
            self.__dict__.setdefault("asked", []).extend(request.node.problem.prompt for request in requests)
            return super().generate(requests)

    first, more, anew = Noted(), Noted(), Noted()
    isc.plan(PROBLEMS[:30], first, **options)
    with pytest.raises(ValueError, match=r"problems.count was 30 and is 40.*force=True"):
        isc.plan(PROBLEMS, more, **options)
    plan = isc.plan(PROBLEMS, more, **options, force=True)
    whole = isc.plan(PROBLEMS, anew, **{**options, "directory": None})
    assert [t.accuracy for t in plan.tried] == [t.accuracy for t in whole.tried]
    assert plan.problems == 40
    assert len(more.asked) == 10 < len(anew.asked)


VERDICTS = []


def longer_answers(problem, first, second):
    VERDICTS.append((problem.prompt, first, second))
    if len(VERDICTS) == 21:
        raise ConnectionError("no answer")
    return 0.5 if len(first) == len(second) else float(len(first) > len(second))


def test_a_judge_is_paid_once(tmp_path, monkeypatch):
    """Verdicts are kept in the folder; one that breaks down has lost none of them."""
    asked = []
    monkeypatch.setitem(globals(), "VERDICTS", asked)
    options = {
        "judge": longer_answers,
        "directory": tmp_path,
        "reward_model": None,
        "strategies": [isc.RepeatedSampling(4)],
    }
    with pytest.raises(ConnectionError):
        toy_plan(**options)
    plan = toy_plan(**options)
    assert len(set(asked)) == len(asked) - 1  # the one that had no answer
    paid = len(asked)
    again = ToyGenerator()
    assert toy_plan(**options, generator=again).tried == plan.tried
    assert (len(asked), again.calls) == (paid, 0)
    client = object()
    with pytest.warns(UserWarning, match="verdicts are not kept"):
        toy_plan(**{**options, "judge": lambda problem, first, second: 0.5 if client else 0.0})


@pytest.mark.parametrize("verdict", [2.0, float("nan"), None, "first", -0.1])
def test_a_verdict_that_is_no_chance_is_refused(verdict):
    with pytest.raises(ValueError, match="judge must return a chance between 0 and 1"):
        toy_plan(judge=lambda problem, first, second: verdict)


def test_lines_of_several_models_name_the_one_that_was_chosen():
    class Sharp(ToyGenerator):
        def identity(self):
            return {"num_answers": 1}

        def generate(self, requests):
            return [[replace(step, flops=step.flops + 1) for step in steps] for steps in super().generate(requests)]

    generator = {"first": ToyGenerator(), "second": Sharp()}
    reward_model = {"one": ToyReward(), "two": ToyProcessReward()}
    plan = isc.plan(PROBLEMS, generator, budgets=[isc.Budget(tokens=n) for n in (20, 60, 400)],
                    reward_model=reward_model, strategies=[isc.RepeatedSampling(4)],
                    read_answer=isc.answers.read_answer)  # fmt: skip
    for choice in plan.choices:
        names = {"problems": PROBLEMS[:3], "generator": generator, "reward_model": reward_model,
                 "read_answer": isc.answers.read_answer}  # fmt: skip
        exec(plan.python(choice.budget), names)
        by_plan = isc.solve_batch(PROBLEMS[:3], plan, generator, budget=choice.budget)
        assert [r.text for r in names["results"]] == [r.text for r in by_plan]
        assert f"generator[{choice.configuration.generator!r}]" in plan.python(choice.budget)
        assert "read_answer=read_answer" in plan.python(choice.budget)


@dataclass(frozen=True)
class Wrapped(isc.SearchStrategy):
    """A strategy of one's own around another."""

    inner: isc.SearchStrategy

    def search(self, root, rng):
        return (yield from self.inner.search(root, rng))


def test_lines_import_all_that_they_name():
    for strategy, aggregator in [
        (Wrapped(isc.RepeatedSampling(3)), isc.MajorityVote()),
        (isc.RepeatedSampling(3), isc.MajorityVote(normalize=str.strip)),  # no text makes this one
    ]:
        plan = toy_plan(strategies=[strategy], aggregators=[aggregator], budgets=isc.Budget(tokens=400))
        choice = next(t for t in plan.tried if t.configuration.aggregator == aggregator)
        plan = replace(plan, choices=(replace(plan.choices[0], tried=choice),))
        names = {"problems": PROBLEMS[:3], "generator": ToyGenerator(), "reward_model": ToyProcessReward(),
                 "aggregator": aggregator}  # fmt: skip
        exec(plan.python(), names)
        assert [r.text for r in names["results"]] == [
            r.text for r in isc.solve_batch(PROBLEMS[:3], plan, ToyGenerator())
        ]


def test_a_command_line_runs_what_was_planned(tmp_path, capsys, monkeypatch):
    """Of models that commands can load it is whole; of others it says what is missing, behind the line."""
    from inferscale.cli import app

    policy = isc.HFGenerator(*isc.zoo.load("policy-xs"), temperature=0.7, max_new_tokens=5, stop="\n\n")
    judge = isc.HFProcessRewardModel(*isc.zoo.load("prm-xs"), good_token="<good>", bad_token="<bad>", reduction="min")
    plan = isc.plan(isc.zoo.problems("dev")[:30], policy, budgets=isc.Budget(tokens=1000), reward_model=judge,
                    strategies=[isc.RepeatedSampling(2)])  # fmt: skip
    assert {t.configuration.generator for t in plan.tried} == {"policy-xs"}
    plan = replace(
        plan, choices=(replace(plan.choices[0], tried=next(t for t in plan.tried if t.configuration.reward)),)
    )
    words = shlex.split(plan.command())
    assert "#" not in words
    monkeypatch.chdir(tmp_path)
    app([*words[1:], "--limit", "2", "--out", "run", "--no-progress"], standalone_mode=False)
    capsys.readouterr()
    ran = [record["result"] for record in load_run("run").finished]
    ours = isc.solve_batch(isc.zoo.problems("test")[:2], plan, policy)
    assert [isc.SearchResult.from_dict(r).text for r in ran] == [r.text for r in ours]
    odd = isc.HFProcessRewardModel(*isc.zoo.load("prm-xs"), good_token="<good>", bad_token="<bad>", reduction="prod")
    assert (source_of(judge), source_of(odd)) == ("prm-xs", None)
    likely = isc.LikelihoodReward(*isc.zoo.load("policy-xs"))  # by the policy's model, and no model of its own
    unnamed = isc.HFGenerator(tiny_model(), byte_tokenizer())
    assert [name_of(part) for part in (judge, likely, unnamed)] == ["prm-xs", "LikelihoodReward", "HFGenerator"]
    assert [source_of(part) for part in (likely, unnamed, isc.CheckerReward())] == [None, None, "checker"]
    told = toy_plan().command(isc.Budget(tokens=400))
    assert "  # commands load no ToyGenerator" in told
    sharper = isc.HFGenerator(*isc.zoo.load("policy-xs"), top_k=3)
    assert command_words(identity_of(sharper))[1] == ["commands have no option for top_k"]


def test_files_that_are_no_plan_are_refused(tmp_path):
    whole = json.loads(toy_plan().save(tmp_path / "plan.json").read_text())
    for change, message in [({"version": 99}, "newer inferscale"), ({"version": None}, "newer"),
                            ({"tried": [{}]}, "damaged plan"), ({"choices": None}, "damaged plan")]:  # fmt: skip
        (tmp_path / "bad.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match=message):
            isc.Plan.load(tmp_path / "bad.json")


def test_budgets_that_were_not_planned_choose_what_they_can_buy():
    plan = toy_plan()
    large = plan.choose(isc.Budget(tokens=10_000))
    assert large == max(plan.choices, key=lambda choice: choice.expected)
    with pytest.raises(ValueError, match="does not know what its choices take of joules"):
        plan.choose(isc.Budget(joules=5))
    with pytest.raises(TypeError, match="must be a Budget, not 400"):
        plan.choose(400)


def test_candidates_are_what_is_at_hand():
    kinds = {type(s).__name__ for s in candidates()}
    assert (
        kinds
        == {"Greedy", "RepeatedSampling", "AdaptiveConsistency"}
        == {type(s).__name__ for s in candidates(ToyReward())}
    )
    assert {type(s).__name__ for s in candidates(ToyProcessReward())} - kinds == {"REBASE", "BeamSearch", "DVTS"}


def test_a_plan_is_drawn():
    pytest.importorskip("matplotlib")
    axes = toy_plan().plot()
    assert axes.get_xlabel() == "sampled tokens per problem"
    with pytest.raises(ValueError, match="the plan knows"):
        toy_plan().plot("joules")


def test_pools_read_their_names():
    pool = Pool("g", ToyGenerator(), "r", ToyReward(), isc.REBASE(4), PROBLEMS, (), {}, None, None, None)
    assert pool.name == "g: REBASE(width=4) by r"


def test_the_command_line_plans_and_prints_the_lines_to_run(tmp_path, capsys, monkeypatch):
    from inferscale.cli import app

    monkeypatch.chdir(tmp_path)
    words = "plan --budget tokens=100,calls=5 --model policy-xs --strategy sampling:2 --split dev --limit 30"
    app([*words.split(), "--max-new-tokens", "4", "--no-progress", "--html", "plan.html"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "inferscale eval --model policy-xs --strategy" in out
    assert "--max-new-tokens 4" in out
    (choice,) = isc.Plan.load("plan.json").choices
    assert choice.budget == isc.Budget(tokens=100, calls=5)
    assert (tmp_path / "plan.html").read_text().isascii()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--budget tokens", "write it as"),
        ("--budget pounds=3", "choose among tokens"),
        ("--budget tokens=3 --tokens 5", "--budget for --tokens"),
        ("--budget tokens=3 --strategy greedy --size 4", "--size is for"),
        ("--budget tokens=2.5", "give a whole number"),
        ("--budget tokens=nan", "greater than 0"),
        ("--budget tokens=3 --model no/such-model", "no folder and no name of `inferscale models`"),
    ],
)
def test_the_command_line_refuses_what_it_cannot_read(words, message):
    from inferscale.cli import UsageError, app

    with pytest.raises((UsageError, ValueError, OSError), match=message):
        app(["plan", *words.split()], standalone_mode=False)


def test_the_cost_of_rewards_that_other_commands_take(capsys):
    from inferscale.cli import app

    def flops(words):
        app(["cost", "--device", "h200", "--json", *words.split()], standalone_mode=False)
        out, err = capsys.readouterr()
        return json.loads(out)["reward_flops"], err

    assert flops("--reward checker") == (0, "")
    own, judged = flops("--reward likelihood --model policy-xs"), flops("--reward policy-xs --model policy-xs")
    assert own == judged > (0, "")
    assert "without --reward, scores are taken to cost nothing" in flops("--strategy rebase:4")[1]
    with pytest.raises(OSError, match=r"'no/such' is no folder and no name"):
        flops("--reward outcome@no/such")
