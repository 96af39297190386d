"""Selection and aggregation by a model: a scripted judge of known skill, the bound of a knockout, prompts, replies."""

import math
import random
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

from inferscale.aggregators import MajorityVote
from inferscale.base import Generator, SearchStrategy
from inferscale.engine import SearchResult, solve, solve_batch
from inferscale.flow import expand
from inferscale.strategies import (
    ABMCTS,
    REBASE,
    Compare,
    GenSelect,
    MultiTemperature,
    Recorded,
    RecursiveAggregation,
    RepeatedSampling,
    Tournament,
    knockout_failure,
)
from inferscale.strategies.abmcts import mixed_draws
from inferscale.strategies.selecting import filled, picked_letter, picked_number
from inferscale.testing import ToyGenerator, ToyReward, unit_hash
from inferscale.tree import Problem, Step, branch_key

RIGHT = "The answer is 1"


@dataclass
class Judging(Generator):
    """Solves with a chance, and judges and merges with others; what it says depends on the draw alone.

    Wrong answers are 2 to 9. A pair, or a list, is judged as the right solution in it with the chance `skill`; a merge
    is right if one of its solutions is, with the same chance.
    """

    chance: float = 0.5
    skill: float = 0.8
    position: float = 0.0  # chance that a judge takes what stands first, whatever it is
    takes_temperature = True

    def generate(self, requests):
        return [[self.sample(request, request.first + i) for i in range(request.n)] for request in requests]

    def sample(self, request, draw):
        name = f"{branch_key(request.node.key, draw)}"
        prompt, luck = request.node.problem.prompt, unit_hash(name)
        shown = re.findall(r"The answer is (\d)", prompt)
        right = [place for place, answer in enumerate(shown) if answer == "1"]
        if request.greedy:  # sure of what is right by so much
            luck = 0.0
        first = unit_hash(name + "first") < self.position
        place = 0 if first else right[0] if right and luck < self.skill else len(shown) - 1
        if right and luck >= self.skill and not first:
            place = next((place for place in range(len(shown)) if place not in right), place)
        if "Best:" in prompt:
            text = f"Best: {place + 1}"
        elif "A or B" in prompt:
            text = "AB"[place]
        else:
            good = bool(right) and luck < self.skill if shown else luck < self.chance
            text = RIGHT if good else f"The answer is {2 + int(unit_hash(name + 'wrong') * 8)}"
        logprob = math.log(self.skill) if request.greedy else -1.0
        return Step(text, (1, 2), logprob, finish_reason="eos")


def accuracy(strategy, generator, trials=250, **options):
    problems = [Problem(f"How many? {number}", "1") for number in range(trials)]
    results = solve_batch(problems, strategy, generator, **options)
    return sum(bool(result.is_correct) for result in results) / trials


@pytest.mark.parametrize("votes", [1, 4])
def test_a_knockout_fails_no_more_often_than_the_bound_says(votes):
    n, generator = 8, Judging(0.4, 0.85)
    failed = 1 - accuracy(Tournament(RepeatedSampling(n), votes=votes), generator)
    bound = knockout_failure(0.4, 0.85, n, votes)
    assert failed <= bound + 3 * math.sqrt(0.25 / 250)
    assert votes == 1 or failed < 1 - accuracy(RepeatedSampling(n), generator)


def test_the_bound_by_hand():
    assert knockout_failure(0.5, 1.0, 4, 8) == pytest.approx(0.5**4 + 2 * math.exp(-4))
    assert knockout_failure(0.5, 0.9, 1, 3) == 0.5
    assert knockout_failure(0.1, 0.51, 64, 1) == 1.0
    with pytest.raises(ValueError, match=r"p_judge=0\.5"):
        knockout_failure(0.5, 0.5, 4, 4)


def test_more_judgements_are_better_and_a_league_is_no_worse():
    generator = Judging(0.3, 0.75)
    few, many = (accuracy(Tournament(RepeatedSampling(4), votes=k), generator) for k in (1, 5))
    league = accuracy(Tournament(RepeatedSampling(4), "league", 5), generator)
    assert few < many <= league + 0.05


def test_half_of_the_judgements_are_made_in_either_order():
    """A judge that always takes the first says nothing, so the earlier of each pair goes on; one order would lie."""
    result = solve("How many? 0", Tournament(RepeatedSampling(4), votes=2), Judging(0.5, 0.9, position=1.0))
    assert len(result.root.side_notes) in (2, 4, 6)  # pairs with one answer are not judged
    for first, second in zip(result.root.side_notes[::2], result.root.side_notes[1::2], strict=True):
        found = [re.findall(r"Solution ([AB]):\n(.*)", note.problem.prompt) for note in (first, second)]
        assert [text for _, text in found[0]] == [text for _, text in found[1]][::-1]
        assert [note.children[0].text for note in (first, second)] == ["A", "A"]


def test_expected_results_come_from_log_probabilities():
    strategy = Tournament(RepeatedSampling(6), judge="likelihood")
    generator = Judging(0.4, 0.9)
    reachable = accuracy(Tournament(RepeatedSampling(6), votes=5), Judging(0.4, 0.999))
    assert accuracy(strategy, generator) == pytest.approx(reachable, abs=0.02)
    result = solve("How many? 1", strategy, generator)
    assert all(len(note.children) == 1 for note in result.root.side_notes)

    class Silent(Judging):
        def sample(self, request, draw):
            return replace(super().sample(request, draw), logprob=None)

    with pytest.raises(ValueError, match="log-probabilities"):
        solve("How many? 1", strategy, Silent(0.4))


def test_a_knockout_of_scores_is_best_of_n():
    knockout = solve(
        "How many?", Tournament(RepeatedSampling(7), judge="score"), ToyGenerator(), reward_model=ToyReward()
    )
    plain = solve("How many?", RepeatedSampling(7), ToyGenerator(), reward_model=ToyReward())
    assert knockout.text == max(plain.trajectories, key=lambda t: t.score).text
    with pytest.raises(ValueError, match="reward_model"):
        solve("How many?", Tournament(judge="score"), ToyGenerator())


@pytest.mark.parametrize("strategy", [GenSelect(RepeatedSampling(6)), GenSelect(RepeatedSampling(6), 2, 3)])
def test_the_model_picks_better_than_the_majority(strategy):
    generator = Judging(0.35, 0.95)
    assert accuracy(strategy, generator) > accuracy(RepeatedSampling(6), generator) + 0.1


def test_shuffled_orders_make_a_judge_of_positions_harmless():
    told = [accuracy(GenSelect(RepeatedSampling(4), votes=v), Judging(0.4, 0.95, position=0.5)) for v in (1, 9)]
    assert told[1] > told[0] + 0.05


def test_candidates_that_agree_are_not_judged():
    for strategy in (GenSelect(), Compare(), Tournament()):
        result = solve("How many?", strategy, Judging(1.0))
        assert result.root.side_notes == []
        assert len(result.leaves) == 8


def test_replies_without_a_verdict_abstain():
    class Dumb(Judging):
        def sample(self, request, draw):
            step = super().sample(request, draw)
            return replace(step, text="No idea.") if "Solution" in request.node.problem.prompt else step

    for strategy in (GenSelect(RepeatedSampling(5), votes=2), Tournament(RepeatedSampling(5))):
        result = solve("How many? 7", strategy, Dumb(0.4))
        assert len(result.leaves) == 1


def test_merged_solutions_are_leaves_that_vote():
    generator = Judging(0.2, 0.95)
    result = solve("How many? 3", Compare(RepeatedSampling(6), 3), generator)
    assert len(result.leaves) == 3
    assert all(leaf.parent is result.root for leaf in result.leaves)
    assert len(result.root.children) == 9
    assert accuracy(Compare(RepeatedSampling(6), 3), generator) > accuracy(RepeatedSampling(6), generator) + 0.2


def test_rounds_of_aggregation_spread_what_is_right():
    generator = Judging(0.25, 0.9)
    shares = [
        accuracy(RecursiveAggregation(6, 3, rounds), generator, 200, aggregator=MajorityVote()) for rounds in (1, 2, 4)
    ]
    assert shares[0] < shares[1] < shares[2]


def test_populations_by_hand():
    result = solve("How many?", RecursiveAggregation(4, 2, 3), ToyGenerator())
    assert [len(note.children) for note in result.root.side_notes] == [1] * 8
    assert len(result.root.children) == 12
    assert result.leaves == tuple(result.root.children[8:])
    for note in result.root.side_notes[4:]:
        shown = re.findall(r"Solution \d:\n(.*?)(?=\n\nSolution|\n\nReview)", note.problem.prompt, re.DOTALL)
        earlier = [node.text.strip() for node in result.root.children[4:8]]
        assert len(shown) == 2
        assert set(shown) <= set(earlier)
    one = solve("How many?", RecursiveAggregation(4, 2, 1), ToyGenerator())
    plain = solve("How many?", RepeatedSampling(4), ToyGenerator())
    assert [leaf.text for leaf in one.leaves] == [leaf.text for leaf in plain.leaves]


def test_templates_are_filled_once():
    assert (
        filled("{problem}|{solutions}|{n}", "{n} {solutions}", ["{problem}", "b"]) == "{n} {solutions}|{problem}\n\nb|2"
    )


@pytest.mark.parametrize(
    ("reply", "number"),
    [("Best: 2", 2), ("2 is wrong.\nBest: **3**", 3), ("Best: 9", None), ("", None), ("1.5", None), ("of 5, 1.", 1)],
)
def test_picked_numbers(reply, number):
    assert picked_number(reply, 3) == number


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("A", "A"), ("A is wrong, so (B).", "B"), ("**B**", "B"), ("Answer", None), ("AB", None), ("", None)],
)
def test_picked_letters(reply, letter):
    assert picked_letter(reply) == letter


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GenSelect(group=1), "group must be an integer >= 2"),
        (lambda: GenSelect(votes=0), "votes"),
        (lambda: GenSelect(RepeatedSampling), "strategies such as"),
        (lambda: Compare(template="{problem}"), "no place {solutions}"),
        (lambda: Tournament(kind="swiss"), "choose one of 'knockout', 'league'"),
        (lambda: Tournament(judge="dice"), "choose one of"),
        (lambda: RecursiveAggregation(2, 3), "a group is drawn from the population"),
        (lambda: MultiTemperature(temperatures=()), "finite numbers above 0"),
        (lambda: MultiTemperature(temperatures=(1.0, 1.0)), "each one once"),
        (lambda: MultiTemperature(agreement=0.5), "share in"),
        (lambda: ABMCTS(until="step", generators=("a",)), "whole answers"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        make()


def test_a_judge_may_be_another_generator():
    models = {"small": Judging(0.4, 0.5), "large": Judging(0.4, 0.99)}
    result = solve("How many? 2", Tournament(RepeatedSampling(4), generator="large"), models)
    assert result.cost.shares["large"] == result.cost.shares["ask"]
    assert result.cost.shares["small"].num_generated == 4


# -- temperatures and several models -----------------------------------------------------------------------------------


def test_an_easy_problem_ends_after_a_round_and_a_hard_one_gets_all():
    easy = solve("How many?", MultiTemperature(24, (0.5, 1.0, 1.5), 2), Judging(1.0))
    assert len(easy.leaves) == 6
    hard = solve("How many?", MultiTemperature(23, (0.5, 1.0, 1.5), 2), Judging(0.3))
    assert len(hard.leaves) == 23


def test_samples_are_shared_out_evenly_over_temperatures():
    seen = []

    class Spy(ToyGenerator):
        def generate(self, requests):
            seen.extend((request.temperature, request.n) for request in requests)
            return super().generate(requests)

    solve("How many?", MultiTemperature(7, (0.5, 1.5), 2, None), Spy())
    totals = {t: sum(n for temperature, n in seen if temperature == t) for t in (0.5, 1.5)}
    assert sorted(totals.values()) == [3, 4]


def test_the_mixed_model_against_importance_sampling():
    """Means of the draws, and how often each arm wins, against weighted draws from the priors."""
    scores = [[0.2, 0.3, 0.25], [0.8], [0.6, 0.7]]
    groups = [(len(g), float(np.mean(g)), float(np.sum((np.array(g) - np.mean(g)) ** 2))) for g in scores]
    rng, size = np.random.default_rng(0), 400_000
    mu, s_alpha, s_y = rng.normal(0.5, 0.2, size), abs(rng.normal(0, 0.2, size)), abs(rng.normal(0, 0.3, size))
    log_weights, alphas = np.zeros(size), []
    for values in map(np.array, scores):
        # scores of a group are N(mu, s_y^2 I + s_alpha^2 11'): its eigenvalues are s_y^2, n - 1 times, and the one of 1
        n, one = len(values), s_y**2 + len(values) * s_alpha**2
        along = (values.sum() - n * mu) ** 2 / n
        around = ((values[:, None] - mu) ** 2).sum(0) - along
        log_weights -= 0.5 * ((n - 1) * np.log(s_y**2) + np.log(one) + around / s_y**2 + along / one)
        precision = 1 / s_alpha**2 + n / s_y**2
        centre = (mu / s_alpha**2 + values.sum() / s_y**2) / precision
        alphas.append(centre + rng.standard_normal(size) / np.sqrt(precision))
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    arms = np.stack([*alphas, mu + s_alpha * rng.standard_normal(size)], axis=1)
    drawn = np.array([[*known, new] for known, new in (mixed_draws(groups, rng) for _ in range(6000))])
    assert drawn.mean(0) == pytest.approx(weights @ arms, abs=0.02)
    arms += s_y[:, None] * rng.standard_normal((size, 4))
    wins = np.bincount(arms.argmax(1), weights=weights, minlength=4)
    assert np.bincount(drawn.argmax(1), minlength=4) / len(drawn) == pytest.approx(wins, abs=0.03)


@pytest.mark.parametrize("posterior", ["normal", "beta", "mixed"])
def test_the_better_model_is_asked_more_often(posterior):
    class Reward(ToyReward):
        def score(self, nodes):
            return [0.9 if node.text.endswith(RIGHT) else 0.1 for node in nodes]

    models = {"small": Judging(0.1), "large": Judging(0.9)}
    strategy = ABMCTS(40, posterior, generators=("small", "large"))
    result = solve("How many?", strategy, models, reward_model=Reward())
    assert result.cost.shares["large"].num_generated > 2 * result.cost.shares["small"].num_generated
    assert {leaf.step.generator for leaf in result.leaves} == {"small", "large"}


def test_variant_m_finds_the_better_subtree():
    rng = random.Random(0)
    entered = [0, 0]
    for _ in range(300):
        known, new = mixed_draws([(8, 0.2, 0.05), (8, 0.8, 0.05)], np.random.default_rng(rng.getrandbits(64)))
        if new < known.max():
            entered[int(known.argmax())] += 1
    assert entered[1] > 5 * entered[0]
    assert sum(entered) < 300


PROBLEMS = ["How many?", "How few?", "How many?"]


def stored(results):
    return [SearchResult.from_dict(result.to_dict()) for result in results]


def test_stored_solutions_are_scored_by_another_reward_model_as_if_it_had_been_there():
    generator, reward = ToyGenerator(depth=3), ToyReward()
    results = stored(solve_batch(PROBLEMS, RepeatedSampling(6), generator, seed=3))
    again = solve_batch(PROBLEMS, Recorded(results), generator, reward_model=reward, seed=3)
    whole = solve_batch(PROBLEMS, RepeatedSampling(6), generator, reward_model=reward, seed=3)
    for new, old in zip(again, whole, strict=True):
        assert [(t.text, t.score) for t in new.trajectories] == [(t.text, t.score) for t in old.trajectories]
        assert new.selected.text == old.selected.text
        assert (new.cost.tokens, new.cost.num_generated) == (0, 0)
        assert new.cost.scored_tokens == old.cost.scored_tokens


def test_a_model_chooses_among_stored_solutions_and_is_all_that_is_paid():
    generator = Judging(skill=1.0, chance=0.4)
    results = stored(solve_batch(["How many?", "How few?"], RepeatedSampling(8), generator))
    again = solve_batch(["How few?", "How many?"], GenSelect(Recorded(results)), generator)
    whole = solve_batch(["How few?", "How many?"], GenSelect(RepeatedSampling(8)), generator)
    for new, sampled, old in zip(again, results[::-1], whole, strict=True):
        assert new.answer == "1"
        assert new.cost.tokens == new.cost.shares["ask"].tokens
        assert new.cost.tokens + sampled.cost.tokens == old.cost.tokens


class More(SearchStrategy):
    """Stored solutions, and as many new ones as are missing."""

    def __init__(self, results, n):
        self.recorded, self.n = Recorded(results), n

    def search(self, root, rng):
        leaves = yield from self.recorded.search(root, rng)
        return leaves + (yield from expand([root], self.n - len(leaves), until="end"))


def test_samples_are_added_to_stored_ones_and_none_is_drawn_twice():
    generator = ToyGenerator(depth=3)
    results = solve_batch(PROBLEMS, RepeatedSampling(3), generator, seed=1)
    more = solve_batch(PROBLEMS, More(results, 5), generator, seed=1)
    whole = solve_batch(PROBLEMS, RepeatedSampling(5), generator, seed=1)
    assert [[leaf.key for leaf in r.leaves] for r in more] == [[leaf.key for leaf in r.leaves] for r in whole]
    assert [[leaf.text for leaf in r.leaves] for r in more] == [[leaf.text for leaf in r.leaves] for r in whole]


def test_a_tree_keeps_its_shared_prefixes_and_leaves_that_were_voted_for_twice():
    result = solve("2 3", REBASE(4), ToyGenerator(depth=3), reward_model=ToyReward())
    doubled = replace(result, leaves=(*result.leaves, result.leaves[0]))
    again = solve("2 3", Recorded([doubled]), ToyGenerator())
    assert [leaf.key for leaf in again.leaves] == [leaf.key for leaf in doubled.leaves]
    on_paths = {node.key for leaf in result.leaves for node in leaf.path}
    assert sorted(node.key for node in again.root.walk() if node.parent) == sorted(on_paths)
    assert not any(node.is_scored for node in again.root.walk())


def test_problems_without_a_result_of_their_own_are_refused():
    generator = ToyGenerator()
    results = solve_batch(PROBLEMS, RepeatedSampling(2), generator, seed=1)
    with pytest.raises(ValueError, match="no result: 'How so"):
        solve("How so?", Recorded(results), generator)
    with pytest.raises(ValueError, match="two results of one prompt"):
        solve("How many?", Recorded(results), generator, seed=2)
    assert solve("How few?", Recorded(results), generator, seed=2).trajectories == results[1].trajectories
    other = solve_batch(PROBLEMS, RepeatedSampling(2), generator, seed=2)
    assert Recorded(results).identity() != Recorded(other).identity()
    assert Recorded(results).identity() == Recorded(stored(results)).identity()
