"""What a result does with odd votes, odd files and deep trees."""

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from inferscale.aggregators import BestOfN
from inferscale.base import Aggregator, SearchStrategy
from inferscale.engine import Abstentions, SearchResult, solve
from inferscale.flow import expand, score
from inferscale.strategies import REBASE, BeamSearch, Greedy, RepeatedSampling
from inferscale.testing import ToyGenerator, ToyProcessReward, ToyReward
from inferscale.tree import Problem, Step, Trajectory


class Picky(Aggregator):
    """Returns what it is told to."""

    def __init__(self, pick, needs_scores=False):
        self.pick, self.needs = pick, needs_scores

    @property
    def needs_scores(self):
        return self.needs

    def select(self, trajectories):
        return self.pick(trajectories)


@pytest.mark.parametrize(
    "pick", [lambda given: None, lambda given: given[0].answer, lambda given: Trajectory(given[0].problem, ())]
)
def test_a_vote_for_something_else_is_refused(pick):
    result = solve("How many?", RepeatedSampling(3), ToyGenerator())
    with pytest.raises(ValueError, match="must return one of the trajectories"):
        solve("How many?", RepeatedSampling(3), ToyGenerator(), aggregator=Picky(pick))
    with pytest.raises(ValueError, match="must return one of the trajectories"):
        result.reaggregate(Picky(pick))


class Half(SearchStrategy):
    """Two leaves, of which the engine scores one: the other has failed."""

    def search(self, root, rng):
        yield from expand([root], 2, until="end")
        return list(root.children)


def test_a_vote_that_needs_scores_sees_the_scored_ones_whenever_it_is_taken():
    class OneFails(ToyGenerator):
        def generate(self, requests):
            (steps,) = super().generate(requests)
            return [[replace(steps[0], finish_reason="error"), steps[1]]]

    best = Picky(lambda given: max(given, key=lambda t: t.score), needs_scores=True)
    result = solve("How many?", Half(), OneFails(), reward_model=ToyReward(), aggregator=best)
    assert [t.score is None for t in result.trajectories] == [True, False]
    assert result.reaggregate(best).selected is result.selected is result.trajectories[1]
    unscored = solve("How many?", RepeatedSampling(2), ToyGenerator())
    with pytest.raises(ValueError, match="needs trajectories with scores"):
        unscored.reaggregate(BestOfN())


@pytest.mark.parametrize("text", ["[]", "hello", "3", "\udcff"])
def test_a_file_of_something_else_is_no_result(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="not a saved search result"):
        SearchResult.load(path)


class Deep(SearchStrategy):
    """One long path."""

    def search(self, root, rng):
        node = root
        for _ in range(2000):
            (node,) = yield from expand([node])
        return [node]


def test_deep_trees_can_be_pickled():
    result = solve("How many?", Deep(), ToyGenerator(depth=None))
    again = pickle.loads(pickle.dumps(result))  # noqa: S301
    assert again.to_dict() == result.to_dict()
    assert again.leaves[0].depth == 2000


def test_draws_that_were_not_attached_are_remembered():
    result = solve("How many?", BeamSearch(1, 2, lookahead=1), ToyGenerator(), reward_model=ToyReward())
    again = SearchResult.from_dict(json.loads(json.dumps(result.to_dict())))
    draws = [node.num_draws for node in result.root.walk()]
    assert draws != [len(node.children) for node in result.root.walk()]
    assert [node.num_draws for node in again.root.walk()] == draws


class Elsewhere(SearchStrategy):
    """Returns nodes of another tree, or of none."""

    def __init__(self, leaves):
        self.leaves = leaves

    def search(self, root, rng):
        ahead = yield from expand([root], 2, until="end", attach=False)
        kids = yield from expand([root], 1)
        beyond = yield from expand(kids, 1, attach=False)
        yield from score(kids)
        return self.leaves(ahead, beyond)


@pytest.mark.parametrize("leaves", [lambda ahead, beyond: ahead, lambda ahead, beyond: beyond])
def test_look_ahead_cannot_be_returned(leaves):
    with pytest.raises(ValueError, match=r"is not in this search's tree.*attach=False"):
        solve("How many?", Elsewhere(leaves), ToyGenerator(), reward_model=ToyReward())


def test_nodes_of_another_search_cannot_be_returned():
    other = solve("How many?", RepeatedSampling(2), ToyGenerator())
    with pytest.raises(ValueError, match="not nodes of another search"):
        solve("How many?", Elsewhere(lambda *_: list(other.leaves)), ToyGenerator(), reward_model=ToyReward())


def test_a_result_survives_the_disk(tmp_path):
    result = solve(Problem("How many?", answer="2", id="a"), REBASE(6), ToyGenerator(), reward_model=ToyProcessReward())
    loaded = SearchResult.load(result.save(tmp_path / "result.json"))
    assert loaded.to_dict() == result.to_dict()
    assert (loaded.answer, loaded.cost, loaded.selected) == (result.answer, result.cost, result.selected)
    assert [leaf.path[-1] is leaf for leaf in loaded.leaves] == [True] * len(result.leaves)
    assert loaded.reaggregate(BestOfN()).selected == result.reaggregate(BestOfN()).selected


def test_a_file_that_is_no_result_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a saved search result"):
        SearchResult.load(path)
    result = solve("How many?", Greedy(), ToyGenerator())
    path.write_text(json.dumps({**result.to_dict(), "version": 99}))
    with pytest.raises(ValueError, match="newer inferscale"):
        SearchResult.load(path)


def test_numbers_that_json_does_not_have_are_saved_as_not_known(tmp_path):
    class Odd(ToyGenerator):
        def generate(self, requests):
            answers = super().generate(requests)
            return [[replace(step, logprob=-math.inf, confidence=math.nan) for step in steps] for steps in answers]

    result = solve("How many?", RepeatedSampling(2), Odd(), journal=tmp_path / "journal.jsonl")
    result.root.children[0].stats.update(value=math.nan, visits=3)
    again = SearchResult.load(result.save(tmp_path / "result.json"))
    step = again.root.children[0].step
    assert (step.logprob, step.confidence, again.root.children[0].stats) == (None, None, {"value": None, "visits": 3})
    replayed = solve("How many?", RepeatedSampling(2), Odd(), journal=tmp_path / "journal.jsonl")
    assert replayed.text == result.text


# -- abstentions -------------------------------------------------------------------------------------------------------


def ended(texts, reasons, **options):
    """Of independent samples with these texts, each ended for its reason."""
    generator = ToyGenerator()
    generator.generate = lambda requests: [
        [Step(texts[i % len(texts)], (i,), finish_reason=reasons[i % len(reasons)]) for i in range(r.n)]
        for r in requests
    ]
    return solve("How many?", RepeatedSampling(max(len(texts), len(reasons))), generator, **options)


def test_abstentions_are_counted_by_their_reason():
    texts = ("The answer is 4.", "so", "so", "The answer is 5. And", "no idea")
    result = ended(texts, ("eos", "length", "budget", "length", "eos"))
    silent = result.abstentions
    assert silent == Abstentions(5, by_length=1, by_budget=1, unread=1)
    assert (silent.cut, silent.abstaining) == (2, 3)
    assert ended((" ", "gone"), ("empty", "error")).abstentions == Abstentions(2, failed=2)
    assert silent + Abstentions(2, failed=2) == Abstentions(7, 1, 1, 0, 2, 1)
    assert SearchResult.from_dict(result.to_dict()).abstentions == silent
    left = solve("How many?", REBASE(4, max_depth=1), ToyGenerator(), reward_model=ToyReward())
    assert left.abstentions == Abstentions(4, unfinished=4)


def test_many_abstentions_are_told_with_what_to_do():
    assert Abstentions(160, by_length=37).notes == [
        "37 of 160 trajectories were cut by length and abstain: raise max_new_tokens"
    ]
    assert Abstentions(160, by_length=15, unread=15).notes == []
    assert Abstentions(2000, unread=1500, failed=200).notes == [
        "200 of 2,000 trajectories failed and abstain: their texts tell the error",
        "1,500 of 2,000 trajectories ended without an answer that was found: say what it is by kind=... or "
        "read_answer=...",
    ]
    assert Abstentions().notes == []


def test_a_notebook_shows_what_abstains():
    shown = ended(("The answer is 4.", "so", "well"), ("eos", "length", "eos"))._repr_html_()
    assert "<dd>3, 2 abstained (1 cut, 1 unread)</dd>" in shown
    assert "1 of 3 trajectories were cut by length and abstain: raise max_new_tokens" in shown
    assert "abstain:" not in ended(("The answer is 4.",), ("eos",) * 3)._repr_html_()


def test_a_result_saved_by_version_0_1_loads_and_what_was_not_counted_then_is_not_known():
    loaded = SearchResult.load(Path(__file__).parent / "golden" / "result_0.1.json")
    again = solve("2 3", REBASE(4), ToyGenerator(depth=3), reward_model=ToyReward())
    assert [(t.text, t.answer, t.score) for t in loaded.trajectories] == [
        (t.text, t.answer, t.score) for t in again.trajectories
    ]
    assert (loaded.answer, loaded.cost.tokens, loaded.cost.flops) == (again.answer, again.cost.tokens, again.cost.flops)
    assert loaded.reaggregate(BestOfN()).text == again.reaggregate(BestOfN()).text
    assert loaded.cost.bytes is None
    assert loaded.cost.rounds is None
