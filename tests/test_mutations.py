"""What users rely on and other tests let slip: each test here fails for a small change that they let pass."""

import json
import math
import random
from dataclasses import dataclass

import pytest
import torch

from inferscale.base import SearchStrategy
from inferscale.engine import solve
from inferscale.evaluate import MathGrader
from inferscale.flow import expand, score
from inferscale.functional import (
    effective_sample_size,
    majority_at_k,
    majority_vote,
    rebase_allocation,
    resample,
    softmax,
    weighted_majority_at_k,
)
from inferscale.quiet_star import Objective, quiet_star_loss
from inferscale.quiet_star.head import ThoughtMixingHead, mix
from inferscale.runtime.kv import Buffers
from inferscale.runtime.sampling import Sampler, filter_threshold, inverse_cdf
from inferscale.strategies import MCTS, AdaptiveConsistency, BeamSearch, ParticleFilter
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyReward
from inferscale.tree import Step
from tests.quiet_star_tools import wrapped
from tests.strategy_fakes import TextReward, TreeGenerator, drive, root, search

# -- strategies --------------------------------------------------------------------------------------------------------


class GivenGumbels(random.Random):
    """A source of randomness from which a Gumbel root draws these numbers."""

    def __init__(self, gumbels):
        super().__init__(0)
        self.gumbels = list(gumbels)

    def getrandbits(self, k):
        return round(math.exp(-math.exp(-self.gumbels.pop(0))) * 2**k - 0.5)


def expanded_by(strategy, values, finished=(), rng=None, start=None):
    """The texts of the nodes that a search expands, in order; samples are called a, b, c ...

    A node that is not in `values` is as good as the one it continues.
    """
    expanded = []

    def sample(request, draw):
        if draw == 0:
            expanded.append(request.node.text)
        text = chr(ord("a") + draw)
        return Step(text, finish_reason="eos" if request.node.text + text in finished else "step")

    def value(node):
        return values.get(node.text, node.parent.score if node.depth > 1 else 0.0)

    drive(strategy.search(start or root(), rng or random.Random(0)), sample, value)
    return expanded


def test_among_equally_good_children_the_beam_keeps_the_oldest():
    values = {"a": 0.5, "b": 0.5, "c": 0.5}
    assert expanded_by(BeamSearch(2, 2, max_depth=2), values) == ["", "a", "b"]


def test_a_finished_path_keeps_its_slot_in_the_beam_against_an_equally_good_newcomer():
    values = {"a": 0.5, "b": 0.9, "ba": 0.5, "bb": 0.5}
    assert expanded_by(BeamSearch(2, 2, max_depth=3), values, finished={"a"}) == ["", "b", "ba"]


@pytest.mark.parametrize(("gap", "next_one"), [(0.07, "ab"), (0.077, "ab"), (0.088, "ac")])
def test_below_a_gumbel_root_a_visit_counts_as_one_of_those_so_far_and_the_one_to_come(gap, next_one):
    """Danihelka et al. 2022, equations 8 and 14: the child of the greatest pi - N / (1 + sum N).

    Visits of a, b and c are 1, 1 and 2, so that c stays ahead of b where pi(c) - pi(b) is above 1/5; pi is the softmax
    of the values in [0, 1] times (50 + the most visits) / 10.
    """
    values = {"a": 0.5, "aa": 0.0, "ab": 1 - gap, "ac": 1.0}
    weights = [math.exp(5.2 * values[name]) for name in ("aa", "ab", "ac")]
    lead = (weights[2] - weights[1]) / sum(weights)
    assert 1 / 6 < lead < 1 / 4
    assert (lead > 1 / 5) == (next_one == "ac")
    strategy = MCTS(4, root_branching=1, branching=3, selection="gumbel")
    expanded = expanded_by(strategy, values)
    assert expanded[:3] == ["", "a", "ac"]
    assert expanded[3].startswith(next_one)


@pytest.mark.parametrize(("luck", "choice"), [(5.4, 1), (5.6, 0)])
def test_a_gumbel_root_decides_by_luck_and_fifty_and_the_most_visits_of_a_child(luck, choice):
    """Danihelka et al. 2022, equation 8: values in [0, 1] times (50 + max N) / 10, and N is 5 for both."""
    start = root()
    strategy = MCTS(9, root_branching=2, branching=1, selection="gumbel")
    expanded = expanded_by(strategy, {"a": 0.0, "b": 1.0}, rng=GivenGumbels([luck, 0.0]), start=start)
    assert [sum(text.startswith(kid) for text in expanded) for kid in "ab"] == [4, 4]
    assert start.stats["choice"] == choice


def test_a_child_of_a_gumbel_root_that_is_no_candidate_gets_no_visit_while_a_candidate_is_open():
    """The first candidate closes at its first visit, and hands its other ones to candidates, not to what looks best."""
    gumbels = [4.0, *(i / 5 for i in range(1, 16)), -0.1, -0.1]
    strategy = MCTS(30, root_branching=18, branching=1, selection="gumbel")
    expanded = expanded_by(strategy, {"q": 1.0, "r": 1.0}, finished={"aa"}, rng=GivenGumbels(gumbels))
    assert len(expanded) == 30
    assert expanded.count("a") == 1
    assert not {"q", "r"} & {text[:1] for text in expanded}


@pytest.mark.parametrize(("c_uct", "value"), [(1e-3, 0.7), (1.0, 0.5693)])
def test_a_simulation_under_way_counts_as_a_visit_of_value_zero(c_uct, value):
    """With aa under way, a has 4 visits of mean 0.9 * 3/4 and the root one more than 6: b is ahead, not ab."""
    values = {"a": 0.9, "b": value}
    strategy = MCTS(5, c_uct, root_branching=2, branching=2, num_parallel=2)
    assert expanded_by(strategy, values) == ["", "a", "b", "aa", "ba"]
    alone = 0.9 + c_uct * math.sqrt(math.log(6) / 3)
    assert alone > value + c_uct * math.sqrt(math.log(6) / 3)


@pytest.mark.parametrize(("exponent", "visits", "children"), [(0.8, 32, 16), (0.4, 243, 9)])
def test_widening_is_not_a_child_ahead_where_the_power_is_whole(exponent, visits, children):
    assert visits**exponent > children  # by rounding
    result = search(MCTS(visits + 1, widening=exponent), TreeGenerator(99, 99), TextReward({}, default=0.5))
    assert len(result.root.children) == children


def test_a_particle_filter_does_not_resample_at_its_threshold_only_below():
    asked = []

    def sample(request, draw):
        asked.append(request.node.text)
        return Step("abcd"[draw])

    values = {"a": 0.5, "b": 0.5}  # an effective size of 2 of 4
    flow = ParticleFilter(4, ess_threshold=0.5, max_depth=2).search(root(), random.Random(0))
    drive(flow, sample, lambda node: values.get(node.text[:1], 0.0))
    assert asked == ["", "", "", "", "a", "b"]


@pytest.mark.parametrize("tempering", ["ess", "entropy", "linear"])
def test_tempering_is_off_from_half_of_the_particles_on(tempering):
    strategy = ParticleFilter(8, tempering=tempering)
    weights = [0.7, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0]
    assert strategy._temperature(weights, 4.0, 1) == 1.0
    assert strategy._temperature(weights, 3.999, 1) > 1.0


def test_particles_drawn_from_flatter_weights_carry_what_was_taken_off():
    scores = {"a": 0.9, "b": 0.02, "c": 0.02, "d": 0.02}
    flow = ParticleFilter(4, ess_threshold=1.0, tempering="linear", max_depth=10).weighted(root(), random.Random(0))
    ends = drive(flow, lambda request, draw: Step("abcd"[draw], finish_reason="eos"), lambda node: scores[node.text])
    flat = softmax([math.log(score) for score in scores.values()], 2 - 1 / 10)
    drawn_with = dict(zip(scores, flat.tolist(), strict=True))
    assert len({node.text for node in ends[0]}) > 1
    for node, log_weight in zip(*ends, strict=True):
        assert math.exp(log_weight) == pytest.approx(scores[node.text] / drawn_with[node.text] / 4)


def test_odds_of_a_certain_score_are_great_and_finite():
    """The published weights ``score / (1 - score)``."""
    scores = {"a": 1.0, "b": 0.999, "c": 0.5, "d": 0.5}
    flow = ParticleFilter(4, weighting="its_hub").search(root(), random.Random(0))
    drawn = drive(flow, lambda request, draw: Step("abcd"[draw], finish_reason="eos"), lambda node: scores[node.text])
    assert [node.text for node in drawn] == ["a"] * 4


def test_adaptive_consistency_stops_at_its_confidence_not_above_it():
    assert AdaptiveConsistency(threshold=1 - 2**-5).decides([4, 0])  # P(p1 > p2) is 31/32
    assert not AdaptiveConsistency(threshold=1 - 2**-5).decides([3, 0])


# -- arithmetic on arrays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [[6, 4], [9, 8], [6, 5]], ids=str)
def test_whole_shares_of_a_batch_are_not_rounded_up(parts):
    scores = [math.log(part) for part in parts]
    assert rebase_allocation(scores, sum(parts), 1.0).tolist() == parts
    assert rebase_allocation([scores, scores], sum(parts), 1.0).tolist() == [parts, parts]


def test_a_whole_number_of_nodes_is_kept_by_a_ratio_that_is_not_exact():
    assert 0.07 * 100 > 7  # by rounding
    counts = rebase_allocation([float(i) for i in range(100)], 1000, math.inf, truncate_ratio=0.07)
    assert (counts > 0).sum() == 7


@pytest.mark.parametrize(
    ("scores", "budget", "temperature", "expected"),
    [
        ([0.57] * 4, 64, 0.3, [16, 17, 16, 16]),
        ([0.91] * 4, 32, 0.1, [8, 9, 8, 8]),
        ([0.63, 0.19, 0.45], 16, 0.2, [11, 1, 4]),
        ([0.35, 0.92], 64, 0.3, [9, 56]),
    ],
)
def test_the_released_rounding_has_the_rounding_errors_of_float32(scores, budget, temperature, expected):
    """The published code: scores, exponentials and remainders are float32 tensors, and ties come in reverse."""
    weights, left, counts = torch.exp(torch.tensor(scores) / temperature), budget, [0] * len(scores)
    order = sorted(range(len(scores)), key=scores.__getitem__)[::-1]
    remaining = sum((weights[i] for i in order), torch.zeros(()))
    for i in order:
        counts[i] = math.ceil(left * weights[i] / remaining)
        left, remaining = left - counts[i], remaining - weights[i]
    assert counts == expected
    assert rebase_allocation(scores, budget, temperature, "released").tolist() == expected


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial", "residual"])
@pytest.mark.parametrize("weight", [1e308, 5e-324])
def test_weights_of_any_size_can_be_resampled(scheme, weight):
    uniforms = {"systematic": [0.5], "multinomial": [0.1, 0.4, 0.6, 0.9]}.get(scheme, [0.5] * 4)
    assert effective_sample_size([weight] * 4) == 4
    assert resample([weight] * 4, 4, scheme, uniforms=uniforms).tolist() == [0, 1, 2, 3]


def test_a_row_of_a_batch_in_which_all_abstain_is_minus_one():
    assert majority_vote([[-7, -3], [-7, 5]]).tolist() == [-1, 5]


def test_the_majority_of_all_samples_is_that_of_the_whole_set_however_many_there_are():
    ids = [0] * 60 + [1] * 50 + [2] * 40
    for right, expected in ((0, 1.0), (1, 0.0)):
        assert majority_at_k(ids, [answer == right for answer in ids], len(ids)) == expected


def test_the_standard_error_over_drawn_subsets_is_that_of_a_sample():
    ids = [0, 1] * 10
    seen = set()
    for seed in range(20):
        rng = random.Random(seed)
        mean, error = weighted_majority_at_k(ids, [1, 0] * 10, 1, rng=rng, max_subsets=1, num_subsets=2)
        seen.add((float(mean), float(error)))
    assert seen == {(0.0, 0.0), (0.5, 0.5), (1.0, 0.0)}  # sqrt(1/2 / 2) where the two differ


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


def test_greedy_rows_have_their_plain_log_probability_whatever_is_filtered():
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    numbers, greedy = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([True, False])
    draws = Sampler(0.5, top_k=1).draw_mixed(logits, numbers, greedy)
    assert draws.tokens.tolist() == [2, 2]
    assert draws.logprobs[0].item() == pytest.approx(float(logits[0].log_softmax(-1)[2]), abs=1e-6)
    assert draws.logprobs[1].item() == pytest.approx(0.0, abs=1e-6)


def test_a_vocabulary_may_be_smaller_than_what_a_sampler_looks_at():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    numbers = torch.tensor([0.1], dtype=torch.float64)
    wide, plain = Sampler(top_k=50, confidence="deepconf").draw(logits, numbers), Sampler().draw(logits, numbers)
    assert torch.equal(wide.tokens, plain.tokens)
    assert torch.equal(wide.logprobs, plain.logprobs)
    assert wide.confidences.item() == pytest.approx(-float(logits.log_softmax(-1).mean()), abs=1e-6)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(top_p=0.5), Sampler(0.5, 3, 0.5), Sampler(0.0)], ids=repr)
def test_a_model_gone_wrong_draws_ids_of_its_vocabulary_and_says_nan(sampler):
    logits = torch.full((2, 70), math.nan)
    draws = sampler.draw(logits, torch.tensor([0.3, 0.999], dtype=torch.float64))
    assert all(0 <= token < 70 for token in draws.tokens.tolist())
    assert bool(draws.logprobs.isnan().all())


# -- keys and values ---------------------------------------------------------------------------------------------------


def test_memory_of_one_kind_is_not_handed_out_for_another():
    buffers, kind = Buffers(), (1, 2, 1, 1, 4, 2)
    buffers.give(torch.zeros(kind))
    assert buffers.take(torch.zeros(kind, dtype=torch.float64), 1, 4).dtype == torch.float64
    assert buffers.bytes > 0
    assert buffers.take(torch.zeros(kind), 1, 4).dtype == torch.float32
    assert buffers.bytes == 0


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


def test_a_loss_leaves_the_callers_masks_as_they_are():
    quiet = wrapped("llama")
    ids = torch.tensor([[5, 17, 101, 8, 44, 250]])
    mask, in_loss = torch.tensor([[False, True, True, True, True, True]]), torch.ones(1, 6, dtype=torch.bool)
    thoughts = quiet.think(ids, mask, positions=torch.tensor([1, 2]), seed=1)
    quiet_star_loss(quiet, ids, thoughts, Objective(2, 1), attention_mask=mask, in_loss=in_loss)
    assert in_loss.tolist() == [[True] * 6]
    assert mask.tolist() == [[False] + [True] * 5]


# -- grading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("huge", ["1e999999999", "1E+9999", r"2 e -12345", r"x=3e99999"])
@pytest.mark.parametrize("other", ["x", "1", r"\sqrt{2}", "+", "2"])
def test_a_number_too_large_to_read_is_no_answers_equal_and_no_worker_reads_it(monkeypatch, huge, other):
    """Whichever of the two it is: math-verify would read 1."""
    monkeypatch.setattr("inferscale.evaluate.grading.find_spec", lambda name: object())
    monkeypatch.setattr(MathGrader, "_by_worker", lambda self, first, second: "same")
    grader = MathGrader()
    assert (grader.judge(huge, other), grader.judge(other, huge)) == ("different", "different")
    assert grader.stats.in_process == 2


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


@pytest.mark.parametrize("concurrent", [False, True])
def test_what_a_model_has_answered_is_in_the_file_before_it_is_asked_again(tmp_path, concurrent):
    """A kill loses no more than what is under way."""
    path = tmp_path / "journal.jsonl"
    seen = []

    class Watching(ToyGenerator):
        def generate(self, requests):
            seen.append([json.loads(line).get("kind") for line in path.read_bytes().splitlines()])
            return super().generate(requests)

    watching, judge = Watching(), ToyReward()
    watching.concurrent = judge.concurrent = concurrent
    solve("How many?", BeamSearch(1, 2, max_depth=3), watching, reward_model=judge, journal=path)
    assert [kinds[1:] for kinds in seen] == [["steps", "scores"] * level for level in range(len(seen))]
    assert len(seen) > 1
