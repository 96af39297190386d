"""Step-wise greedy, best-first and depth-first search; the recorded tree of thoughts; beams that die out."""

import json
from dataclasses import replace

import pytest

from inferscale.flow import GenerateRequest, Score
from inferscale.strategies import DVTS, REBASE, BeamSearch, BestFirst, DepthFirst, StepwiseGreedy
from inferscale.testing import BrokenGenerator
from inferscale.tree import Step
from inferscale.viz import render_tree
from tests.strategy_fakes import PathReward, TextReward, TreeGenerator, attached, drive, random_tree, root, search

RNG = None


@pytest.mark.parametrize("k", [1, 2, 5])
def test_stepwise_greedy_is_a_beam_of_one(k):
    first, second = search(StepwiseGreedy(k)), search(BeamSearch(1, k))
    assert render_tree(first.root) == render_tree(second.root)
    assert [leaf.text for leaf in first.leaves] == [leaf.text for leaf in second.leaves]


def dies_under_the_best(step, node):
    """All samples from depth 1 on are empty."""
    return step if node.depth == 0 else replace(step, text=" ", finish_reason="empty")


@pytest.mark.parametrize("strategy", [BeamSearch(1, 3), REBASE(3, 1e-6), DVTS(2, 2), StepwiseGreedy(3)], ids=repr)
def test_a_search_that_dies_out_returns_what_is_left(strategy):
    result = search(strategy, BrokenGenerator(dies_under_the_best))
    assert result.leaves
    assert all(leaf.depth == 1 and not leaf.is_failed for leaf in result.leaves)
    assert all(child.is_failed for leaf in result.leaves for child in leaf.children)


def test_a_dead_subtree_does_not_return_nodes_of_the_others():
    def one_dies(step, node):
        first = bool(node.path) and node.path[0] is node.root.children[0]
        return replace(step, text=" ", finish_reason="empty") if first else step

    result = search(DVTS(2, 1, max_depth=2), BrokenGenerator(one_dies))
    assert [leaf.depth for leaf in result.leaves] == [2]


def test_best_first_expands_the_best_open_node_and_the_older_on_ties():
    table = {"a": 0.5, "b": 0.9, "ba": 0.2, "bb": 0.5, "aa": 0.1, "ab": 0.1, "bba": 0.1, "bbb": 0.1}
    order = []

    def sample(request, draw):
        order.append(request.node.text)
        return Step("ab"[draw], finish_reason="step")

    drive(BestFirst(4, 2).search(root(), RNG), sample, lambda node: table[node.text])
    assert order[::2] == ["", "b", "a", "bb"]


def test_best_first_finds_the_optimum_once_the_tree_is_spent():
    reward, best = random_tree(0)
    result = search(BestFirst(40, 3), TreeGenerator(), reward)
    assert len(result.leaves) == 81
    assert max(result.trajectories, key=lambda t: t.score).text == best


def test_best_first_in_waves_takes_fewer_calls():
    reward, _ = random_tree(0)
    alone, waves = TreeGenerator(), TreeGenerator()
    search(BestFirst(40, 3), alone, reward)
    result = search(BestFirst(40, 3, num_parallel=4), waves, reward)
    assert (len(alone.levels), len(waves.levels)) == (40, 11)
    assert len(result.leaves) == 81


def test_best_first_can_stop_at_finished_leaves():
    reward, _ = random_tree(0)
    result = search(BestFirst(40, 3, max_finished=1), TreeGenerator(), reward)
    assert sum(leaf.is_finished for leaf in result.leaves) == 3
    assert result.cost.num_generated < 40


def test_depth_first_backtracks_out_of_a_dead_end():
    table = {"0/": 0.9, "1/": 0.5, "0/0/": 0.1, "0/1/": 0.2, "1/0/": 0.3, "1/1/": 0.6}
    result = search(DepthFirst(9, 2, threshold=0.25), TreeGenerator(2, 2), TextReward(table))
    # 0/ is visited first; both its leaves are pruned, so it goes back to 1/ and visits 1/1/.
    assert result.cost.num_generated == 6
    assert {leaf.text for leaf in result.leaves} == {"0/0/", "0/1/", "1/0/", "1/1/"}
    first = search(DepthFirst(9, 2), TreeGenerator(2, 2), TextReward(table))
    assert first.cost.num_generated == 4
    at_the_edge = search(DepthFirst(9, 2, threshold=0.9), TreeGenerator(2, 2), TextReward(table))
    assert at_the_edge.cost.num_generated == 4  # the threshold itself is not below it


def test_depth_first_visits_children_by_score_and_stops_after_its_expansions():
    order = []

    def sample(request, draw):
        order.append(request.node.text)
        return Step("abc"[draw])

    values = {"a": 0.1, "b": 0.3, "c": 0.2}
    drive(DepthFirst(4, 3, max_depth=2).search(root(), RNG), sample, lambda node: values[node.step.text])
    assert order[::3] == ["", "b", "c", "a"]


def test_depth_first_without_bound_visits_everything():
    reward = PathReward(lambda path: 0.5)
    result = search(DepthFirst(1000, 3, max_finished=None), TreeGenerator(), reward)
    assert result.cost.num_generated == 3 + 9 + 27 + 81


def test_depth_limits_hold_below_a_given_node():
    start = root()
    for strategy in (BestFirst(50, 2, max_depth=3), DepthFirst(50, 2, max_finished=None, max_depth=3)):
        drive(strategy.search(start, RNG), lambda request, draw: Step("x"), lambda node: 0.5)
        assert max(node.depth for node in start.walk()) == 3
        deeper = next(node for node in start.walk() if node.depth == 3)
        drive(strategy.search(deeper, RNG), lambda request, draw: Step("x"), lambda node: 0.5)
        assert max(node.depth for node in start.walk()) == 6
        start = root()


@pytest.mark.parametrize("bad", [{"num_expansions": 0}, {"branching": 0}, {"max_finished": 0}, {"max_depth": 0}])
@pytest.mark.parametrize("kind", [BestFirst, DepthFirst])
def test_bad_hyperparameters_are_refused(kind, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        kind(**bad)


def replay(record):
    """Selections that `BeamSearch(5, ...)` makes in a recorded search, as positions among the candidates."""
    flow = BeamSearch(5, 1, max_depth=4).search(root(record["puzzle"]), RNG)
    parents, selections = [r.node for r in next(flow).requests], []
    for step in record["steps"]:
        assert len(parents) == step["n_parents"]
        groups = [[] for _ in parents]
        for parent, text in step["candidates"]:
            groups[parent].append(attached(GenerateRequest(parents[parent]), Step(text)))
        candidates = [node for group in groups for node in group]
        assert flow.send(groups) == Score(tuple(candidates))
        for node, value in zip(candidates, step["values"], strict=True):
            node.score = value
        try:
            parents = [r.node for r in flow.send(None).requests]
        except StopIteration as stop:
            parents = stop.value
        selections.append([candidates.index(node) for node in parents])
    return selections


def test_the_recorded_tree_of_thoughts_is_reproduced(shared_data):
    path = shared_data / "samples" / "game24_gpt4_tot_bfs_trace.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [
        (made, step["selected"])
        for record in records
        for made, step in zip(replay(record), record["steps"], strict=True)
    ]
    figures = json.loads((shared_data / "REFERENCE.json").read_text())["samples/game24_gpt4_tot_bfs_trace"]
    assert sum(made == recorded for made, recorded in pairs) == figures["selection_matches"] == len(pairs)
