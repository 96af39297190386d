"""The heirs of REBASE and of best-of-n on fakes: directions, pruned trees, the verifier's granularity, rejection."""

import math
from dataclasses import replace

import numpy as np
import pytest

from inferscale.base import Embedder
from inferscale.cost import Cost
from inferscale.functional import ngram_embeddings
from inferscale.strategies import DORA, DVTS, ETS, REBASE, BeamSearch, SpeculativeRejection, StepwiseGreedy, Then
from inferscale.testing import ToyGenerator
from inferscale.tree import Step
from inferscale.viz import render_tree
from tests.strategy_fakes import PathReward, TextReward, TreeGenerator, search

LEVELS = [BeamSearch(2, 3), DVTS(2, 3), REBASE(6), DORA(6), ETS(6), StepwiseGreedy(3)]


def tree(strategy, **options):
    return render_tree(search(strategy, **options).root, max_text=99)


class Skewed(TreeGenerator):
    """Five first steps that say the same in other words (``a``), and one that does not (``b``)."""

    def sample(self, request, draw):
        ends = request.node.depth + 1 >= self.depth
        if request.node.depth == 0:
            return Step("ab"[draw == 5] * 8 + "\n", (draw,))
        return Step(f"{draw}\n", (draw,), finish_reason="eos" if ends else "step")


def children_of(result):
    """Children of first steps ``a`` together, and of ``b``."""
    counts = {"a": 0, "b": 0}
    for node in result.root.children:
        counts[node.text[0]] += len(node.children)
    return counts


def test_alike_solutions_share_the_weight_of_one():
    same = PathReward(lambda path: 0.5, depth=99)
    same.value = lambda path: 0.5
    assert children_of(search(REBASE(6), Skewed(), same)) == {"a": 5, "b": 1}
    assert children_of(search(DORA(6), Skewed(), same)) == {"a": 3, "b": 3}


def test_without_likeness_it_is_rebase():
    assert tree(DORA(6, similarity_temperature=math.inf)) == tree(REBASE(6))
    assert tree(ETS(6, cost_weight=0.0)) == tree(REBASE(6))


class Letters:
    """Texts are alike if they begin with the same letter."""

    def __init__(self):
        self.asked = []

    def embed(self, texts):
        self.asked.append(list(texts))
        return np.eye(128)[[ord(text[0]) for text in texts]]


def test_an_embedder_of_ones_own_says_what_is_alike():
    letters = Letters()
    assert isinstance(letters, Embedder)
    same = PathReward(lambda path: 0.5, depth=99)
    same.value = lambda path: 0.5
    assert children_of(search(DORA(6, embedder=letters), Skewed(), same)) == {"a": 3, "b": 3}
    assert letters.asked[0] == ["a" * 8 + "\n"] * 5 + ["b" * 8 + "\n"]  # whole solutions
    assert all("\n" in text for text in letters.asked[1])
    newest = Letters()
    search(ETS(6, embedder=newest), Skewed(), same)
    assert all(text.count("\n") == 1 for asked in newest.asked for text in asked)  # newest steps
    assert hash(DORA(6, embedder=letters)) == hash(DORA(6, embedder=letters))
    with pytest.raises(TypeError, match="object with embed"):
        DORA(6, embedder=ngram_embeddings)

    class Flat:
        def embed(self, texts):
            return [0.0] * len(texts)

    with pytest.raises(ValueError, match=r"give \[n, d\]"):
        search(DORA(6, embedder=Flat()))


class Remembering(ToyGenerator):
    """A generator that embeds, at a price."""

    def embed(self, texts):
        return np.eye(128)[[ord(text[0]) for text in texts]]

    def embedding_cost(self, texts):
        return Cost(prompt_tokens=len(texts), generator_flops=7 * len(texts))


@pytest.mark.parametrize("together", [False, True])
def test_the_policys_own_vectors_are_asked_for_and_charged(together, tmp_path):
    alone = DORA(6)
    strategy = Then(alone, alone) if together else alone
    plain = search(strategy, ToyGenerator())
    result = search(strategy, Remembering(), journal=tmp_path / "journal")
    levels = {node.depth for node in result.root.walk() if "allocated" in node.stats}
    texts = [len([n for n in result.root.walk() if n.depth == depth and "allocated" in n.stats]) for depth in levels]
    base = sum(node.step.flops for node in result.root.walk() if node.step)
    assert result.cost.generator_flops == base + 7 * sum(texts)
    by_letters = search(replace(alone, embedder=Remembering()), ToyGenerator())
    assert render_tree(result.root) == render_tree(by_letters.root) != render_tree(plain.root)
    again = search(strategy, Remembering(), journal=tmp_path / "journal")  # the vectors are no part of it
    assert again.cost.without_seconds() == result.cost.without_seconds()
    assert plain.cost.generator_flops == sum(node.step.flops for node in plain.root.walk() if node.step)


def live_tokens(root):
    """Tokens of the cache, summed over levels: of the nodes of a level and of all that they stand on."""
    nodes = list(root.walk())
    total = 0
    for depth in range(1, max(node.depth for node in nodes) + 1):
        held = {above for node in nodes if node.depth == depth for above in node.path}
        total += sum(node.step.generated_tokens for node in held)
    return total


def test_a_higher_price_keeps_fewer_nodes_alive():
    sizes = [live_tokens(search(ETS(12, 0.3, cost_weight=price, coverage_weight=0.0)).root) for price in (0, 1, 3, 9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    assert all(len(search(ETS(12, cost_weight=price)).leaves) == 12 for price in (0, 1, 9))  # the width is spent


@pytest.mark.parametrize("strategy", LEVELS, ids=repr)
def test_the_verifier_looks_every_g_steps(strategy):
    asked = []

    class Noting(TextReward):
        def score(self, nodes):
            asked.extend(node.depth for node in nodes)
            return super().score(nodes)

    reward = Noting({}, 0.5)
    result = search(replace(strategy, granularity=2), TreeGenerator(depth=5), reward)
    assert set(asked) == {2, 4, 5}
    assert all(not node.is_scored for node in result.root.walk() if node.depth % 2 and not node.is_finished)
    assert all(len(node.children) <= 1 for node in result.root.walk() if node.depth % 2)  # forks where it looked
    assert all(leaf.depth == 5 and leaf.is_scored for leaf in result.leaves)
    assert max(node.depth for node in search(replace(strategy, granularity=3, max_depth=4)).root.walk()) == 4
    whole = search(replace(strategy, granularity=99))
    assert all(len(node.children) <= 1 for node in whole.root.walk() if node.parent)  # best-of-n
    with pytest.raises(ValueError, match="granularity"):
        replace(strategy, granularity=0)


def test_the_longer_half_is_rejected_by_the_scores_of_its_beginning():
    # Four paths of one token a step: more than 8 tokens at level 3, when the worse half goes; 2 paths hold 8 at 4.
    generator = TreeGenerator(depth=6, width=4)
    reward = PathReward(lambda path: float(path[0]), depth=1, width=4)
    reward.value = lambda path: float(path[0])
    result = search(SpeculativeRejection(4, max_live_tokens=8), generator, reward)
    assert generator.levels == [4, 4, 4, 2, 2, 1]
    assert [leaf.text[0] for leaf in result.leaves] == ["3"]
    assert sorted(node.text[0] for node in result.root.leaves()) == ["3"]
    # As much room as all of them need: best-of-n.
    generator = TreeGenerator(depth=6, width=4)
    assert len(search(SpeculativeRejection(4, max_live_tokens=24), generator, reward).leaves) == 4
    assert generator.levels == [4] * 6
    # None has ended at the greatest depth: what is open comes back.
    assert len(search(SpeculativeRejection(4, max_live_tokens=24, max_depth=3), TreeGenerator(depth=6)).leaves) == 4
    for keep in (0.0, 1.0):
        with pytest.raises(ValueError, match="keep"):
            SpeculativeRejection(4, keep)


def test_what_has_ended_makes_room_and_stays_a_candidate():
    class Ragged(ToyGenerator):
        """The first draw ends at once."""

        def _sample(self, request, draw):
            if request.node.depth == 0 and draw == 0:
                return Step("done\n", tuple(range(50)), finish_reason="eos")
            return super()._sample(request, draw)

    result = search(SpeculativeRejection(3, max_live_tokens=12), Ragged())
    assert "done\n" in [leaf.text for leaf in result.leaves]
    assert len(result.leaves) == 2
