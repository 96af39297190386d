"""What users rely on and other tests let slip: each test here fails for a small change that they let pass."""

import json
import math
import random
from dataclasses import dataclass

import pytest
import torch
from tests.strategy_fakes import drive, root

from inferscale.base import SearchStrategy
from inferscale.engine import solve
from inferscale.evaluate import MathGrader
from inferscale.flow import expand, score
from inferscale.generators.sampling import Sampler, filter_threshold, inverse_cdf
from inferscale.quiet_star.head import ThoughtMixingHead, mix
from inferscale.strategies import MCTS, BeamSearch
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyReward
from inferscale.tree import Step

# -- strategies --------------------------------------------------------------------------------------------------------


def expanded_by(strategy, values, finished=()):
    """The texts of the nodes that a search expands, in order; samples are called a, b, c ..."""
    expanded = []

    def sample(request, draw):
        if draw == 0:
            expanded.append(request.node.text)
        text = "abcdefghi"[draw]
        return Step(text, finish_reason="eos" if request.node.text + text in finished else "step")

    drive(strategy.search(root(), random.Random(0)), sample, lambda node: values.get(node.text, 0.0))
    return expanded


def test_among_equally_good_children_the_beam_keeps_the_oldest():
    values = {"a": 0.5, "b": 0.5, "c": 0.5}
    assert expanded_by(BeamSearch(2, 2, max_depth=2), values) == ["", "a", "b"]


def test_a_finished_path_keeps_its_slot_in_the_beam_against_an_equally_good_newcomer():
    values = {"a": 0.5, "b": 0.9, "ba": 0.5, "bb": 0.5}
    assert expanded_by(BeamSearch(2, 2, max_depth=3), values, finished={"a"}) == ["", "b", "ba"]


@pytest.mark.parametrize(("gap", "next_one"), [(0.07, "ab"), (0.088, "ac")])
def test_below_a_gumbel_root_a_visit_counts_as_one_of_those_so_far_and_the_one_to_come(gap, next_one):
    """Danihelka et al. 2022, equation 14: the child of the greatest pi - N / (1 + sum N).

    Visits of a, b and c are 1, 1 and 2, so that c stays ahead of b where pi(c) - pi(b) is above 1/5.
    """
    values = {"a": 0.5, "aa": 0.0, "ab": 1 - gap, "ac": 1.0, "aca": 1.0, "acb": 1.0, "acc": 1.0}
    weights = [math.exp(5.2 * values[name]) for name in ("aa", "ab", "ac")]
    lead = (weights[2] - weights[1]) / sum(weights)
    assert 1 / 6 < lead < 1 / 5 or 1 / 5 < lead < 1 / 4
    strategy = MCTS(4, root_branching=1, branching=3, selection="gumbel")
    expanded = expanded_by(strategy, values)
    assert expanded[:3] == ["", "a", "ac"]
    assert expanded[3].startswith(next_one)


# -- drawing tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top_k", "top_p", "least"),
    [(0, 0.5, 4.0), (0, 0.51, 2.0), (0, 0.75, 2.0), (0, 0.76, 1.0), (2, 0.5, 4.0), (2, 0.67, 2.0)],
)
def test_top_p_keeps_no_token_beyond_those_whose_mass_reaches_it(top_k, top_p, least):
    weights = torch.tensor([[1.0, 4.0, 1.0, 2.0]])
    assert filter_threshold(weights, top_k, top_p).tolist() == [least]


def test_half_the_mass_is_reached_by_a_token_that_has_it():
    logits = torch.tensor([[0.0, 1.0, 0.0]]) * 200  # the others underflow: the first has all of the mass
    for number in (1e-9, 0.5, 1 - 1e-9):
        draws = Sampler(top_p=0.5).draw(logits, torch.tensor([number], dtype=torch.float64))
        assert (draws.tokens.item(), draws.logprobs.item()) == (1, 0.0)


def test_no_number_draws_a_token_without_weight_however_the_sums_are_rounded():
    """The float32 sum of a block may exceed the float64 sum of its ids; behind them lie ids of weight 0."""
    weights = torch.rand(200, 64, generator=torch.Generator().manual_seed(0)) + 0.01
    rounded_up = weights.sum(dim=-1).double() > weights.double().sum(dim=-1)
    assert 20 < int(rounded_up.sum()) < 180
    followed = torch.nn.functional.pad(weights, (0, 64))
    tokens, shares = inverse_cdf(followed, torch.full((200,), 1 - 2.0**-53, dtype=torch.float64))
    assert tokens.tolist() == [63] * 200
    assert float(shares.min()) > 0


# -- Quiet-STaR --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_head_in_float32_mixes_states_of_any_dtype_in_theirs(dtype):
    states = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    head = ThoughtMixingHead(8)
    untrained = mix(states[0], states[1], head(states[0], states[1]))
    assert untrained.dtype == dtype
    assert torch.equal(untrained, states[0])
    half = mix(states[0], states[1], torch.full((5, 1), 0.5))
    assert half.dtype == dtype
    torch.testing.assert_close(half, (states[0] + states[1]) / 2)


# -- grading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("huge", ["1e999999999", "1E+9999", r"2 e -12345", r"x=3e99999"])
@pytest.mark.parametrize("other", ["x", "1", r"\sqrt{2}", "+", "2"])
def test_a_number_too_large_to_read_is_no_answers_equal_and_no_worker_reads_it(monkeypatch, huge, other):
    """Whichever of the two it is: math-verify would read 1."""
    monkeypatch.setattr("inferscale.evaluate.grading.find_spec", lambda name: object())
    monkeypatch.setattr(MathGrader, "_by_worker", lambda self, first, second: "same")
    grader = MathGrader()
    assert (grader.judge(huge, other), grader.judge(other, huge)) == ("different", "different")
    assert grader.stats.in_process == 1


# -- the journal -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rewritten(SearchStrategy):
    """A strategy whose code, not its hyperparameters, says how much it asks for."""

    def search(self, root, rng):
        nodes = yield from expand([root], asks["samples"])
        yield from score(nodes[: asks["scores"]])
        return nodes


asks = {"samples": 3, "scores": 2}


@pytest.mark.parametrize("changed", [{"samples": 2}, {"samples": 4}, {"scores": 1}, {"scores": 3}], ids=str)
def test_a_journal_with_another_count_of_answers_is_told_to_be_of_other_code(tmp_path, monkeypatch, changed):
    path = tmp_path / "journal.jsonl"
    first = solve("How many?", Rewritten(), ToyGenerator(), reward_model=ToyReward(), journal=path)
    again = solve("How many?", Rewritten(), BrokenGenerator(die_after=0), reward_model=ToyReward(), journal=path)
    assert again.trajectories == first.trajectories
    for name, count in changed.items():
        monkeypatch.setitem(asks, name, count)
    with pytest.raises(ValueError, match="does not fit this search: its code has changed since"):
        solve("How many?", Rewritten(), ToyGenerator(), reward_model=ToyReward(), journal=path)


@pytest.mark.parametrize("schedule", ["wave", "stream"])
def test_what_a_model_has_answered_is_in_the_file_before_it_is_asked_again(tmp_path, schedule):
    """A kill loses no more than what is under way."""
    path = tmp_path / "journal.jsonl"
    seen = []

    class Watching(ToyGenerator):
        concurrent = True

        def generate(self, requests):
            seen.append([json.loads(line).get("kind") for line in path.read_bytes().splitlines()])
            return super().generate(requests)

    class Judge(ToyReward):
        concurrent = True

    strategy = BeamSearch(1, 2, max_depth=3)
    solve("How many?", strategy, Watching(), reward_model=Judge(), journal=path, schedule=schedule)
    assert [kinds[1:] for kinds in seen] == [["steps", "scores"] * level for level in range(len(seen))]
    assert len(seen) > 1
