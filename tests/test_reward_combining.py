"""Ensembles, weighted sums of functions, and the memory of scores."""

import asyncio
import copy
import importlib.util
import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale import REBASE, BestOfN, RepeatedSampling, solve, solve_batch
from inferscale.base import ProcessRewardModel, RewardModel
from inferscale.cost import Cost
from inferscale.rewards import (
    CachedProcessReward,
    CachedReward,
    EnsembleProcessReward,
    EnsembleReward,
    RewardFunction,
    WeightedReward,
)
from inferscale.rewards.combining import content_key
from inferscale.testing import PROMPTS, ToyGenerator, ToyProcessReward, ToyReward
from inferscale.tree import Node, Problem, Step


def node_of(*texts, prompt="p", answer=None):
    node = Node(Problem(prompt, answer))
    for text in texts:
        node = Node(node.problem, Step(text, (1, 2)), node)
    return node


class Judge(ProcessRewardModel):
    """The same step scores for all, so many as there are steps."""

    def __init__(self, *scores, reduction="last"):
        self.scores, self.reduction, self.asked, self.released = scores, reduction, [], []

    def step_scores(self, nodes):
        self.asked += list(nodes)
        return [list(self.scores[: len(node.inner_steps())]) for node in nodes]

    def cost(self, nodes):
        return [Cost(scored_tokens=10 * node.depth, reward_flops=3) for node in nodes]

    def release(self, root):
        self.released.append(root)


class Outcome(RewardModel):
    def __init__(self, score):
        self.value, self.asked = score, 0

    def score(self, nodes):
        self.asked += len(nodes)
        return [self.value] * len(nodes)


A, B = (0.9, 0.4, 0.8), (0.5, 0.6, 0.2)


def test_ensembles_of_process_models_join_step_by_step():
    node = node_of("a\n", "b\n", "c\n")
    mean = EnsembleProcessReward([Judge(*A), Judge(*B)])
    assert isinstance(mean, ProcessRewardModel)
    assert mean.step_scores([node])[0] == pytest.approx([0.7, 0.5, 0.5])
    assert mean.score([node]) == pytest.approx([0.5])
    least = EnsembleProcessReward([Judge(*A), Judge(*B)], "min", reduction="mean")
    assert least.step_scores([node])[0] == [0.5, 0.4, 0.2]
    assert least.score([node]) == pytest.approx([1.1 / 3])
    weighted = EnsembleProcessReward([Judge(*A, reduction="min"), Judge(*B)], weights=[3, 1])
    assert weighted.step_scores([node])[0] == pytest.approx([0.8, 0.45, 0.65])
    assert weighted.reduction == "min"
    assert weighted.score([node]) == pytest.approx([0.45])
    assert weighted.cost([node]) == [Cost(scored_tokens=60, reward_flops=6)]
    weighted.release(node.root)
    assert weighted.models[1].released == [node.root]


def test_ensembles_with_an_outcome_model_join_scores():
    node = node_of("a\n", "b\n")
    mixed = EnsembleReward([Judge(*A), Outcome(2.0)])
    assert not isinstance(mixed, ProcessRewardModel)
    assert mixed.score([node, node]) == pytest.approx([1.2, 1.2])
    with pytest.raises(TypeError, match="Outcome is not a process reward model: use EnsembleReward"):
        EnsembleProcessReward([Judge(*A), Outcome(2.0)], reduction="min")
    whole = EnsembleReward([Judge(*A, reduction="min"), Judge(*B, reduction="mean")])
    assert not isinstance(whole, ProcessRewardModel)
    assert whole.score([node]) == pytest.approx([(0.4 + 0.55) / 2])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=4), st.randoms())
def test_an_ensembles_mean_lies_between_its_members(values, random):
    weights = [random.random() + 0.01 for _ in values]
    [score] = EnsembleReward([Outcome(value) for value in values], weights=weights).score([node_of("a")])
    assert min(values) - 1e-9 <= score <= max(values) + 1e-9


def test_a_negative_weight_makes_a_penalty():
    assert WeightedReward([Outcome(1), Outcome(3)], [1, -2]).score([node_of("a")]) == [-5]
    with pytest.raises(ValueError, match="finite"):
        WeightedReward([Outcome(1)], [math.inf])


def test_ensembles_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least one reward model"):
        EnsembleReward([])
    with pytest.raises(TypeError, match="function is not a reward model: wrap a function"):
        EnsembleReward([lambda nodes: [1.0]])
    with pytest.raises(ValueError, match="member_reduction='max'"):
        EnsembleReward([Outcome(1)], "max")
    with pytest.raises(ValueError, match="2 weights for 1 members"):
        EnsembleReward([Outcome(1)], weights=[1, 2])
    with pytest.raises(ValueError, match="positive sum"):
        EnsembleReward([Outcome(1), Outcome(1)], weights=[1, -1])
    with pytest.raises(ValueError, match="the least score has none"):
        EnsembleReward([Outcome(1)], "min", weights=[1])

    class Short(Judge):
        def step_scores(self, nodes):
            return [scores[:1] for scores in super().step_scores(nodes)]

    with pytest.raises(ValueError, match=r"gave \[2, 1\] step scores to <Node"):
        EnsembleProcessReward([Judge(*A), Short(*B)]).step_scores([node_of("a\n", "b\n")])


def test_functions_that_abstain_are_left_out_of_the_sum():
    def long(nodes):
        return [float(len(node.text)) for node in nodes]

    def numbers(completions):
        return [10.0 if "1" in text else None for text in completions]

    reward = WeightedReward([long, numbers], [0.5, 2])
    assert reward.score([node_of("ab"), node_of("a1")]) == [1.0, 21.0]
    assert WeightedReward([long, numbers]).score([node_of("a1")]) == [12.0]


def test_a_node_that_nothing_applies_to_is_an_error_with_names():
    def never(completions):
        return [None for _ in completions]

    async def sometimes(completions):
        return [1.0 if "x" in text else None for text in completions]

    reward = WeightedReward([never, sometimes])
    assert reward.score([node_of("x")]) == [1.0]

    async def inside():
        return reward.score([node_of("x")])

    assert asyncio.run(inside()) == [1.0]
    with pytest.raises(
        ValueError, match=r"every part of the reward \(never, sometimes\) returned None for <Node .*'ab'"
    ):
        reward.score([node_of("x"), node_of("ab")])
    with pytest.raises(ValueError, match=r"every part of the reward \(never\) returned None"):
        solve(
            "How many?", RepeatedSampling(2), ToyGenerator(), reward_model=WeightedReward([never]), aggregator=BestOfN()
        )
    with pytest.raises(ValueError, match=r"RewardFunction scored <Node .* as None"):
        solve(
            "How many?", RepeatedSampling(2), ToyGenerator(), reward_model=RewardFunction(never), aggregator=BestOfN()
        )


def test_a_wrong_number_of_scores_is_named():
    def lazy(nodes):
        return [1.0]

    with pytest.raises(ValueError, match="lazy returned 1 scores for 2 nodes"):
        WeightedReward([lazy]).score([node_of("a"), node_of("b")])
    with pytest.raises(ValueError, match="RewardFunction returned 1 scores for 2 nodes"):
        solve("How many?", RepeatedSampling(2), ToyGenerator(), reward_model=RewardFunction(lazy), aggregator=BestOfN())


def test_models_and_functions_add_up_in_a_search():
    def short(nodes):
        return [-len(node.text) / 1000 for node in nodes]

    reward = WeightedReward([ToyReward(), short], [1, 1])
    plain = solve_batch(PROMPTS, REBASE(6), ToyGenerator(), reward_model=reward)
    assert all(result.trajectories for result in plain)


def test_bytes_of_a_member_that_does_not_tell_them_are_not_known():
    class Costing(ToyReward):
        def __init__(self, **cost):
            super().__init__()
            self.price = Cost(**cost)

        def cost(self, nodes):
            return [self.price] * len(nodes)

    known, silent, free = Costing(scored_tokens=3, reward_bytes=70), Costing(scored_tokens=3), Costing()
    for members, moved in [((known, free), 140), ((known, silent), None), ((free, free), 0)]:
        result = solve("Q?", RepeatedSampling(2), ToyGenerator(), reward_model=EnsembleReward(members), seed=0)
        assert result.cost.reward_bytes == moved


def test_what_is_known_is_not_asked_again_and_costs_nothing():
    model = Judge(*A)
    cached = CachedProcessReward(model)
    assert isinstance(cached, ProcessRewardModel)
    first, twin, other = node_of("a\n", "b\n"), node_of("a\n", "b\n"), node_of("a\n")
    assert cached.cost([first, twin, other]) == [
        Cost(scored_tokens=20, reward_flops=3),
        Cost(),
        Cost(scored_tokens=10, reward_flops=3),
    ]
    assert cached.step_scores([first, twin, other]) == [[0.9, 0.4], [0.9, 0.4], [0.9]]
    assert model.asked == [first, other]
    assert cached.cost([other, twin]) == [Cost(), Cost()]
    cached.step_scores([twin])[0].append(7.0)
    assert cached.score([twin]) == [0.4]
    assert (cached.hits, cached.misses) == (3, 2)
    with pytest.raises(TypeError, match=r"Judge gives step scores: CachedProcessReward\(model\) keeps them"):
        CachedReward(model)
    with pytest.raises(TypeError, match="Outcome is not a process reward model: use CachedReward"):
        CachedProcessReward(Outcome(0.3))
    plain = CachedReward(Outcome(0.3))
    assert not isinstance(plain, ProcessRewardModel)
    assert plain.score([first, twin]) == [0.3, 0.3]
    assert plain.model.asked == 1


def test_contents_that_differ_have_names_that_differ():
    nodes = [
        node_of("a\n", "b\n"),
        node_of("a\nb\n"),
        node_of("a\n", "b\n", prompt="q"),
        node_of("a\n", "b\n", answer="3"),
        node_of("a\n"),
    ]
    finished = Node(nodes[0].problem, Step("b\n", (1, 2), finish_reason="eos"), nodes[0].parent)
    other_ids = Node(nodes[0].problem, Step("b\n", (1, 3)), nodes[0].parent)
    keys = [content_key(node) for node in [*nodes, finished, other_ids]]
    assert len(set(keys)) == len(keys)
    assert content_key(node_of("a\n", "b\n")) == keys[0]
    assert len(content_key(node_of("\ud800"))) == 32


def test_the_memory_has_a_bound():
    cached = CachedReward(Outcome(0.3), max_entries=2)
    for text in "abca":
        assert cached.score([node_of(text)]) == [0.3]
    assert cached.model.asked == 4
    assert cached.score([node_of("a"), node_of("b"), node_of("c"), node_of("d")]) == [0.3] * 4
    with pytest.raises(ValueError, match="max_entries=0"):
        CachedReward(Outcome(1), max_entries=0)


def test_a_function_is_not_asked_about_nothing():
    cached = CachedReward(RewardFunction(lambda nodes: [max(len(node.text) for node in nodes)] * len(nodes)))
    node = node_of("abc")
    assert cached.score([node]) == cached.score([node]) == [3]
    assert cached.cost([node]) == [Cost()]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_what_is_made_of_models_can_be_copied_and_sent(again):
    node = node_of("a\n", "b\n")
    outcome, process = ToyReward(), ToyProcessReward()
    for made in (
        *(EnsembleReward([outcome, process]), CachedReward(outcome), WeightedReward([outcome, process])),
        *(EnsembleProcessReward([process, process]), CachedProcessReward(process)),
    ):
        other = again(made)
        assert type(other) is type(made)
        assert other.score([node]) == made.score([node])


def test_an_ensemble_names_the_member_that_abstains():
    mute = RewardFunction(lambda nodes: [None] * len(nodes))
    with pytest.raises(ValueError, match="returned None for a node: in WeightedReward it may abstain"):
        EnsembleReward([Outcome(0.5), mute]).score([node_of("a")])


def test_a_search_with_a_memory_is_the_same_search():
    plain = solve_batch(PROMPTS, REBASE(6), ToyGenerator(), reward_model=ToyProcessReward())
    cached = CachedProcessReward(ToyProcessReward())
    for _ in range(2):
        again = solve_batch(PROMPTS, REBASE(6), ToyGenerator(), reward_model=cached)
        assert [[t.step_scores for t in r.trajectories] for r in again] == [
            [t.step_scores for t in r.trajectories] for r in plain
        ]
    assert cached.hits >= cached.misses > 0


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: pip install trl")
def test_trls_own_functions_run_unmodified():
    from trl.rewards import think_format_reward

    node = node_of("<think>\nhm\n</think>\nIt is \\boxed{3}", answer="3")
    other = node_of("It is \\boxed{4}", answer="3")
    thinks = RewardFunction(think_format_reward, conversational=True)
    assert thinks.score([node, other]) == [1.0, 0.0]


@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None or importlib.util.find_spec("math_verify") is None,
    reason="trl and math-verify are not both installed: pip install trl math-verify",
)
def test_trls_accuracy_reward_runs_unmodified():
    from trl.rewards import accuracy_reward, think_format_reward

    node = node_of("<think>\nhm\n</think>\nIt is $\\boxed{3}$", answer="$3$")
    other = node_of("It is $\\boxed{4}$", answer="$3$")
    gold = {"solution": lambda node: node.problem.answer}
    right = RewardFunction(accuracy_reward, conversational=True, columns=gold)
    assert right.score([node, other]) == [1.0, 0.0]
    both = WeightedReward([right, RewardFunction(think_format_reward, conversational=True)], [1, 0.5])
    assert both.score([node, other]) == [1.5, 0.0]
