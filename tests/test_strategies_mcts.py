"""Monte Carlo tree search: the paper's walk-through, known optima, closed subtrees, roll-outs, variants by hand."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale.base import RewardModel
from inferscale.cost import Budget
from inferscale.strategies import MCTS
from inferscale.strategies.mcts import Gumbel, MCTSTree, logprob_priors, scaled_values, sequential_halving
from inferscale.testing import BrokenGenerator, ToyGenerator
from inferscale.tree import Node, Step
from inferscale.viz import render_tree
from tests.strategy_fakes import PathReward, TextReward, TreeGenerator, drive, random_tree, root, search

VARIANTS = {
    "uct": {},
    "uct_c.1": {"c_uct": 0.1},
    "puct": {"selection": "puct"},
    "puct_logprob": {"selection": "puct", "prior": "logprob", "noise": 0.25},
    "gumbel": {"selection": "gumbel"},
    "rollout": {"evaluate": "rollout"},
    "mix": {"evaluate": "mix"},
    "parallel": {"num_parallel": 4},
    "gumbel_parallel": {"selection": "gumbel", "num_parallel": 3},
}


def mcts(simulations, **options):
    return MCTS(simulations, **{"root_branching": 3, "branching": 3, **options})


def test_the_walk_through_of_the_papers_rule():
    values = {"a": 0.9, "b": 0.5, "c": 0.1, "aa": 0.2, "ab": 0.4, "ba": 0.0, "bb": 0.0}
    expanded = []

    def sample(request, draw):
        expanded.append(request.node.text)
        return Step("abc"[draw])

    start = root()
    drive(MCTS(3, root_branching=3, branching=2).search(start, random.Random(0)), sample, lambda n: values[n.text])
    assert [expanded[0], expanded[3], expanded[5]] == ["", "a", "b"]
    first, second, third = start.children
    assert (first.stats["visits"], second.stats["visits"], third.stats["visits"]) == (3, 3, 1)
    assert first.stats["value"] == pytest.approx(0.5)
    assert second.stats["value"] == pytest.approx(0.5 / 3)
    assert (start.stats["visits"], start.stats["value"]) == (7, pytest.approx(0.3))


def test_the_papers_settings():
    assert [MCTS.paper(n) for n in (32, 64, 128)] == [
        MCTS(32, 1.0, root_branching=4, branching=2),
        MCTS(64, 1.0, root_branching=8, branching=2),
        MCTS(128, 1.0, root_branching=16, branching=2),
    ]
    with pytest.raises(ValueError, match="32, 64 and 128"):
        MCTS.paper(16)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_finds_the_optimum_once_all_inner_nodes_are_expanded(name):
    for trial in range(3):
        reward, best = random_tree(trial)
        generator = TreeGenerator()
        result = search(mcts(200, **VARIANTS[name]), generator, reward)
        assert max(result.trajectories, key=lambda t: t.score).text == best
        # 40 inner nodes, and then the root is closed: simulations beyond cost nothing.
        rollouts = 0 if "evaluate" not in VARIANTS[name] else 3 + 9 + 27
        assert result.cost.num_generated == 120 + rollouts
        assert {leaf.text for leaf in result.leaves if leaf.depth == 4} == set(reward_paths())


def reward_paths():
    return [f"{a}/{b}/{c}/{d}/" for a in range(3) for b in range(3) for c in range(3) for d in range(3)]


def share_found(trials, simulations, **options):
    """Share of trees whose best leaf was found, and the mean number of finished leaves."""
    hits, finished = 0, 0
    for trial in range(trials):
        reward, best = random_tree(trial)
        result = search(mcts(simulations, **options), TreeGenerator(), reward)
        texts = {leaf.text for leaf in result.leaves if leaf.is_finished}
        hits += best in texts
        finished += len(texts)
    return hits / trials, finished / trials


TABLE = [
    (8, {}, 0.00, 0.0),
    (16, {}, 0.31, 9.5),
    (20, {}, 0.56, 21.1),
    (30, {}, 0.92, 51.0),
    (8, {"c_uct": 0.3}, 0.05, 1.2),
    (16, {"c_uct": 0.3}, 0.35, 15.0),
    (20, {"c_uct": 0.3}, 0.49, 24.2),
    (8, {"c_uct": 0.1}, 0.20, 7.7),
    (16, {"c_uct": 0.1}, 0.44, 24.1),
    (30, {"c_uct": 0.1}, 0.84, 54.0),
    (16, {"selection": "puct"}, 0.32, 10.6),
    (20, {"selection": "puct"}, 0.50, 21.4),
    (30, {"selection": "puct"}, 0.92, 51.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("simulations", "options", "found", "finished"), TABLE)
def test_five_hundred_trees(simulations, options, found, finished):
    share, leaves = share_found(500, simulations, **options)
    assert share == pytest.approx(found, abs=0.00501)
    assert leaves == pytest.approx(finished, abs=0.0501)


def test_a_wide_exploration_constant_finishes_nothing_in_eight_simulations():
    assert share_found(20, 8) == (0.0, 0.0)
    assert share_found(20, 8, c_uct=0.1)[1] > 3


def test_no_simulation_is_spent_on_a_leaf_that_has_finished():
    reward = TextReward({}, default=0.5)
    result = search(mcts(50), TreeGenerator(depth=1), reward)
    assert result.cost.num_generated == 3
    result = search(mcts(50, max_depth=2), TreeGenerator(depth=99), reward)
    assert result.cost.num_generated == 3 + 9
    assert [leaf.is_finished for leaf in result.leaves] == [False] * 9


def test_a_node_whose_samples_all_fail_is_closed():
    def fails_below(step, node):
        return replace(step, text=" ", finish_reason="empty") if node.depth == 1 else step

    generator = BrokenGenerator(fails_below)
    result = search(MCTS(50, root_branching=3, branching=2), generator)
    assert result.cost.num_generated == 3 + 6
    assert [leaf.depth for leaf in result.leaves] == [1, 1, 1]


def test_the_depth_limit_counts_from_where_the_search_starts():
    start = Node(root().problem, Step("x"), root())
    drive(
        MCTS(99, root_branching=2, max_depth=2).search(start, random.Random(0)), lambda r, d: Step("y"), lambda n: 0.5
    )
    assert max(node.depth for node in start.walk()) == 3
    assert sum(1 for _ in start.walk()) == 1 + 2 + 4


def test_rollouts_are_kept_as_leaves_and_give_the_values():
    table = {"0/": 0.9, "1/": 0.1, "0/0/0/": 0.2, "1/0/0/": 0.8}

    result = search(MCTS(1, root_branching=2, evaluate="rollout"), TreeGenerator(3, 2), TextReward(table))
    assert [leaf.text for leaf in result.leaves] == ["0/0/0/", "1/0/0/"]
    first, second = result.root.children
    assert not first.is_scored
    assert (first.stats["value"], second.stats["value"]) == (0.2, 0.8)
    mixed = search(
        MCTS(1, root_branching=2, evaluate="mix", rollout_weight=0.25), TreeGenerator(3, 2), TextReward(table)
    )
    assert mixed.root.children[0].stats["value"] == pytest.approx(0.75 * 0.9 + 0.25 * 0.2)


def test_a_rollout_that_fails_leaves_the_childs_own_score():
    def no_rollouts(step, node):
        return replace(step, text=" ", finish_reason="empty") if node.depth == 1 else step

    result = search(MCTS(1, root_branching=2, evaluate="rollout"), BrokenGenerator(no_rollouts))
    for child in result.root.children:
        assert child.stats["value"] == child.score


def test_puct_by_hand():
    values = {"a": 0.9, "b": 0.5, "c": 0.1}
    expanded = []

    def sample(request, draw):
        expanded.append(request.node.text)
        return Step("abc"[draw])

    strategy = MCTS(2, root_branching=3, branching=2, selection="puct", c_puct=3.0)
    start = root()
    flow = strategy.search(start, random.Random(0))
    drive(flow, sample, lambda node: values.get(node.text, 0.0))
    assert [expanded[0], expanded[3]] == ["", "a"]
    # After it: Q(a) = .3, N(a) = 3, N = 5; b has .5 + c/3 sqrt(5)/2 and a .3 + c/3 sqrt(5)/4, c the first has .1.
    expanded.clear()
    start = root()
    drive(replace(strategy, num_simulations=3).search(start, random.Random(0)), sample, lambda n: values.get(n.text, 0))
    assert expanded[5] == "b"
    c = 3.0 + math.log((5 + 19653) / 19652)
    assert 0.5 + c / 3 * math.sqrt(5) / 2 > max(0.3 + c / 3 * math.sqrt(5) / 4, 0.1 + c / 3 * math.sqrt(5) / 2)


def kid(text, logprob, tokens=1):
    return Node(root().problem, Step(text, tuple(range(tokens)), logprob), root())


def test_priors_are_shared_among_equal_texts():
    priors = logprob_priors([kid("a", -1.0), kid("b", -4.0, 2), kid("a", -1.0)])
    assert sum(priors) == pytest.approx(1)
    assert priors[0] == priors[2] == pytest.approx(0.5 / (1 + math.exp(-1)))
    assert priors[1] == pytest.approx(math.exp(-1) / (1 + math.exp(-1)))


def test_priors_need_log_probabilities():
    def without(step, node):
        return replace(step, logprob=None)

    with pytest.raises(ValueError, match='use prior="uniform"'):
        search(MCTS(4, selection="puct", prior="logprob"), BrokenGenerator(without))


def test_root_noise_changes_the_tree_with_the_seed_alone():
    reward = PathReward(lambda path: 0.5)
    plain = mcts(12, selection="puct")
    noisy = replace(plain, noise=1.0, noise_alpha=0.05)
    trees = {render_tree(search(noisy, TreeGenerator(), reward, seed=seed).root) for seed in range(6)}
    assert len(trees) > 1
    assert len({render_tree(search(plain, TreeGenerator(), reward, seed=seed).root) for seed in range(6)}) == 1


def test_the_schedule_of_sequential_halving():
    assert sequential_halving(4, 8) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert sequential_halving(8, 16) == [0] * 8 + [1] * 4 + [2, 2, 3, 3]
    assert sequential_halving(3, 6) == [0, 0, 0, 1, 1, 2]
    assert sequential_halving(1, 3) == [0, 1, 2]
    for m in range(2, 17):
        for n in range(60):
            schedule = sequential_halving(m, n)
            assert len(schedule) == n
            assert schedule[:m] == [0] * min(m, n)


def test_scaled_values():
    assert scaled_values([0.2, 0.4, 0.3], 10) == pytest.approx([0.0, 6.0, 3.0])
    assert scaled_values([0.5, 0.5], 10) == [0.0, 0.0]


class FirstBranchReward(RewardModel):
    def score(self, nodes):
        return [0.9 if node.text.startswith("1/") else 0.1 for node in nodes]


def test_the_gumbel_root_halves_its_candidates():
    # 4 candidates, 9 simulations: after the root's, the schedule of (4, 12) without its zeros is 1,1,1,1 2,2,2... .
    strategy = MCTS(9, root_branching=4, branching=1, selection="gumbel")
    result = search(strategy, TreeGenerator(depth=99, width=4), FirstBranchReward())
    sizes = [sum(1 for _ in child.walk()) for child in result.root.children]
    assert sequential_halving(4, 12) == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert sum(sizes) == 4 + 8
    assert sorted(sizes) == [1, 1, 5, 5]
    assert sizes[1] == 5
    assert result.root.stats["choice"] == 1


def test_at_most_sixteen_candidates_take_part():
    rule = Gumbel(40, random.Random(0))
    kids = [kid(str(i), -1.0) for i in range(20)]
    rule._draw(kids)
    assert len(rule._turns) == 16
    assert min(rule._gumbels[k] for k in rule._turns) > max(rule._gumbels[k] for k in kids if k not in rule._turns)


def test_widening_adds_children_as_visits_grow():
    result = search(MCTS(60, widening=0.5), TreeGenerator(depth=99, width=99), TextReward({}, default=0.5))
    assert result.cost.num_generated == 60
    for node in result.root.walk():
        if node.children:
            allowed = math.ceil((node.stats["visits"]) ** 0.5 - 1e-9)
            assert len(node.children) <= max(allowed, 1)
    assert len(result.root.children) == math.ceil(59**0.5)


def test_widening_goes_on_when_every_child_is_closed():
    result = search(MCTS(10, widening=0.5), TreeGenerator(depth=1), TextReward({}, default=0.5))
    assert len(result.root.children) == 10


@pytest.mark.parametrize("options", [{}, {"selection": "gumbel"}, {"selection": "puct"}], ids=str)
def test_virtual_losses_fill_a_wave(options):
    reward, _ = random_tree(1)
    generator = TreeGenerator()
    result = search(mcts(40, num_parallel=9, **options), generator, reward)
    # 1 (the root), 3 (its children), then full waves.
    assert generator.levels == [3, 9, 27, 27, 27, 27]
    assert result.cost.num_generated == 120


def test_a_virtual_loss_counts_as_a_visit_of_value_0():
    tree = MCTSTree(top := root())
    tree.kids[top], kid = [], Node(top.problem, Step("a"), top)
    tree.add([top], kid, 0.8, is_closed=False)
    for losses, value in ((0, 0.8), (1, 0.4), (3, 0.2)):
        for _ in range(losses):
            tree.begin([top, kid])
        assert tree.value_now(kid) == pytest.approx(value)
        assert tree.visits_now(kid) == 1 + losses
        for _ in range(losses):
            tree.end([top, kid])


def test_virtual_losses_are_taken_off():
    reward, _ = random_tree(1)
    result = search(mcts(9, num_parallel=4), TreeGenerator(), reward)
    values = [node.score for node in result.root.walk() if node.depth]
    assert result.root.stats["visits"] == len(values)
    assert result.root.stats["value"] == pytest.approx(sum(values) / len(values))


def test_widening_in_waves_takes_at_most_what_is_allowed():
    generator = TreeGenerator(depth=99, width=99)
    result = search(MCTS(60, widening=0.5, num_parallel=5), generator, TextReward({}, default=0.5))
    assert result.cost.num_generated == 60
    assert generator.levels[0] == 1
    assert max(generator.levels) == 5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6),
    st.sampled_from([{}, {"selection": "puct"}, {"selection": "gumbel"}, {"c_uct": 0.01}]), st.integers(0, 99),
)  # fmt: skip
def test_what_every_tree_has_in_common(simulations, depth, root_branching, branching, parallel, options, trial):
    strategy = MCTS(simulations, root_branching=root_branching, branching=branching, num_parallel=parallel, **options)
    reward, _ = random_tree(trial, depth, 3)
    result = search(strategy, TreeGenerator(depth, 3), reward)
    below = [node for node in result.root.walk() if node.depth]
    expanded = [node for node in result.root.walk() if node.children]
    inner = 1 + sum(root_branching * branching**level for level in range(depth - 1))
    assert len(expanded) == min(simulations, inner)  # none twice, none on a finished leaf, none left out
    assert {len(node.children) for node in expanded if node.depth} <= {branching}
    assert len(result.root.children) == root_branching
    assert result.root.stats["visits"] == len(below)
    for node in below:
        subtree = [n.score for n in node.walk()]
        assert node.stats["visits"] == len(subtree)
        assert node.stats["value"] == pytest.approx(sum(subtree) / len(subtree))


def test_visits_and_values_survive_a_budget():
    result = search(MCTS(20), budget=Budget(calls=9))
    assert result.stopped_by == "calls"
    assert result.root.stats["visits"] == 8


@pytest.mark.parametrize(
    "options",
    [
        {"c_uct": 0},
        {"selection": "best"},
        {"noise": 1.5},
        {"noise": 0.1},
        {"prior": "logprob"},
        {"prior": "x"},
        {"rollout_weight": -1},
        {"widening": 2.0},
        {"widening": 0.5, "selection": "gumbel"},
        {"evaluate": "x"},
    ],
    ids=str,
)
def test_bad_hyperparameters_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MCTS(**options)


def test_it_runs_on_the_toy_models():
    assert search(MCTS.paper(32), ToyGenerator()).answer is not None
