"""Beam search, DVTS and REBASE on fakes: level sizes, pruning, look-ahead, reductions, exhaustive search."""

import random

import pytest

from inferscale.base import RewardModel
from inferscale.strategies import DVTS, REBASE, BeamSearch, Greedy, RepeatedSampling
from inferscale.testing import ToyGenerator, unit_hash
from inferscale.tree import Step
from inferscale.viz import render_tree
from tests.strategy_fakes import PathReward, TreeGenerator, search


@pytest.mark.parametrize(("beams", "branching"), [(4, 4), (8, 1), (1, 8), (2, 4)])
def test_a_beam_that_never_ends_expands_as_many_at_every_level(beams, branching):
    generator = TreeGenerator(depth=99)
    search(BeamSearch(beams, branching, max_depth=5), generator)
    assert generator.levels == [beams * branching] * 5


def test_single_beams_are_one_search():
    texts = [
        search(strategy).text for strategy in (BeamSearch(1, 1), REBASE(1), DVTS(1, 1), REBASE(1, rounding="paper"))
    ]
    trees = [render_tree(search(strategy).root) for strategy in (BeamSearch(1, 1), REBASE(1), DVTS(1, 1))]
    assert len(set(texts)) == len(set(trees)) == 1


def test_a_wide_beam_without_duplicates_is_exhaustive():
    reward = PathReward(lambda path: unit_hash(path))
    paths = [f"{a}/{b}/{c}/{d}/" for a in range(3) for b in range(3) for c in range(3) for d in range(3)]
    best = max(paths, key=unit_hash)
    result = search(BeamSearch(27, 3, filter_duplicates=True), TreeGenerator(), reward)
    assert max(result.trajectories, key=lambda t: t.score).text == best
    assert {t.text for t in result.trajectories} >= {best}


def test_wider_beams_find_the_optimum_more_often():
    found = {}
    for width in (1, 3, 9):
        hits = 0
        for trial in range(40):
            reward = PathReward(lambda path, trial=trial: random.Random(f"{trial}/{path[:-1]}").random())
            paths = [f"{a}/{b}/{c}/{d}/" for a in range(3) for b in range(3) for c in range(3) for d in range(3)]
            best = max(paths, key=reward.leaf_value)
            result = search(BeamSearch(width, 3, filter_duplicates=True), TreeGenerator(), reward)
            hits += any(t.text == best for t in result.trajectories)
        found[width] = hits / 40
    # Over 500 such trees: 11 %, 33 % and 70 % for 1, 3 and 9 beams.
    assert found[1] < 0.35 < found[9]
    assert found[1] < found[3] < found[9]


def test_duplicates_are_different_samples_unless_filtered():
    plain = search(BeamSearch(2, 6, max_depth=1), TreeGenerator(), PathReward(lambda path: 0.5))
    assert [leaf.text for leaf in plain.leaves] == ["0/", "1/"]
    same = search(BeamSearch(2, 6, max_depth=1), TreeGenerator(width=1), PathReward(lambda path: 0.5, width=1))
    filtered = search(
        BeamSearch(2, 6, max_depth=1, filter_duplicates=True),
        TreeGenerator(width=1),
        PathReward(lambda p: 0.5, width=1),
    )
    assert [leaf.text for leaf in same.leaves] == ["0/", "0/"]
    assert [leaf.text for leaf in filtered.leaves] == ["0/"]
    assert len(filtered.root.children) == 12


def test_the_first_of_equal_texts_keeps_its_place_among_equal_scores():
    class Texts(TreeGenerator):
        def sample(self, request, draw):
            return Step("ABA"[draw])

    result = search(BeamSearch(1, 3, max_depth=1, filter_duplicates=True), Texts(), PathReward(lambda path: 0.5))
    assert result.leaves == (result.root.children[0],)


class HiddenReward(RewardModel):
    """Shows the good branch (1) only one step later."""

    def score(self, nodes):
        return [1.0 if node.text.startswith("1/") and node.depth >= 2 else 0.5 for node in nodes]


def test_lookahead_sees_what_comes_and_pays_for_it():
    plain = search(BeamSearch(1, 2, max_depth=2), TreeGenerator(width=2), HiddenReward())
    ahead = search(BeamSearch(1, 2, max_depth=2, lookahead=1), TreeGenerator(width=2), HiddenReward())
    assert plain.leaves[0].path[0].text == "0/"
    assert ahead.leaves[0].path[0].text == "1/"
    assert sum(1 for _ in ahead.root.walk()) == sum(1 for _ in plain.root.walk())
    # Two levels of two children, each rolled out by one greedy step of one token.
    assert ahead.cost.generated_tokens - plain.cost.generated_tokens == 4
    assert ahead.cost.num_generated - plain.cost.num_generated == 4


def test_a_finished_path_keeps_its_slot_and_is_never_lost():
    class Early(TreeGenerator):
        def sample(self, request, draw):
            step = super().sample(request, draw)
            return Step(step.text, step.token_ids, finish_reason="eos") if step.text == "2/" else step

    class Falling(RewardModel):
        def score(self, nodes):
            return [1 / (1 + node.depth) - 0.01 * (node.step.text == "2/") for node in nodes]

    result = search(BeamSearch(1, 3), Early(), Falling())
    texts = [leaf.text for leaf in result.leaves]
    assert "2/" in texts
    assert all(leaf.is_finished for leaf in result.leaves)


def test_dvts_subtrees_do_not_compete():
    class FirstBranchOnly(RewardModel):
        def score(self, nodes):
            return [0.9 if node.path[0] is node.root.children[0] else 0.1 for node in nodes]

    result = search(DVTS(3, 2), TreeGenerator(), FirstBranchOnly())
    starts = {leaf.root.children.index(leaf.path[0]) // 2 for leaf in result.leaves}
    assert starts == {0, 1, 2}


def test_dvts_members_are_narrow_beams():
    result = search(DVTS(1, 4))
    assert render_tree(result.root) == render_tree(search(BeamSearch(1, 4)).root)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("width", [1, 3, 16, 64])
def test_rebase_keeps_finished_and_open_at_its_width(width, temperature):
    class Ragged(ToyGenerator):
        def generate(self, requests):
            return [
                [Step(s.text, s.token_ids, finish_reason="eos" if unit_hash(s.text) < 0.2 else "step") for s in steps]
                for steps in super().generate(requests)
            ]

    result = search(REBASE(width, temperature, max_depth=6), Ragged(depth=None))
    assert len(result.leaves) == width
    by_level = {}
    for node in result.root.walk():
        by_level.setdefault(node.depth, []).append(node)
    finished = 0
    for depth in range(1, 7):
        level = by_level.get(depth, [])
        assert finished + len(level) in (width, finished)
        finished += sum(node.is_finished for node in level)


def test_rebase_gives_good_nodes_more_children():
    result = search(REBASE(32, 0.1))
    for parent in result.root.walk():
        allocated = [(child.score, child.stats.get("allocated", 0)) for child in parent.children if child.children]
        ordered = sorted(allocated)
        assert [count for _, count in ordered] == sorted(count for _, count in ordered)
    expanded = [node for node in result.root.walk() if node.stats.get("allocated")]
    assert all(len(node.children) == node.stats["allocated"] for node in expanded)


def test_a_cold_rebase_follows_the_best_and_a_hot_one_spreads():
    cold = search(REBASE(16, 1e-6))
    hot = search(REBASE(16, float("inf")))
    assert sum(bool(child.children) for child in cold.root.children) == 1
    assert sum(bool(child.children) for child in hot.root.children) == 16


def test_truncation_prunes_the_poorest():
    result = search(REBASE(16, float("inf"), truncate_ratio=0.25))
    assert sum(bool(child.children) for child in result.root.children) == 4


def test_greedy_is_one_sample_and_ignores_the_seed():
    first, second = search(Greedy()), search(Greedy(), seed=9)
    assert first.text == second.text
    assert first.cost.num_generated == 1


def test_repeated_sampling_returns_all_in_order():
    result = search(RepeatedSampling(5))
    assert result.leaves == tuple(result.root.children)
    assert [leaf.depth for leaf in result.leaves] == [1] * 5
