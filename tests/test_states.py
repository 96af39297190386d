"""Recurrent and convolution states: parked at ends, copied at forks, and never those of other tokens."""

import random

import pytest
import torch

from benchmarks import families
from inferscale.cost import Budget
from inferscale.engine import solve, solve_batch
from inferscale.flops import FlopCounter, closed_form
from inferscale.flow import GenerateRequest
from inferscale.generators import HFGenerator
from inferscale.rewards import LikelihoodReward
from inferscale.runtime.kv import Piece
from inferscale.runtime.prefix_cache import KeyedPath, PrefixCache, chain_key
from inferscale.runtime.session import checked_session
from inferscale.runtime.states import StateHolder, States
from inferscale.scaling import Device, predict_cost
from inferscale.strategies import REBASE, RepeatedSampling
from inferscale.testing import ToyReward
from inferscale.tree import Node, Problem, Step, root_key
from tests.tiny_models import byte_tokenizer

WORDS = families.PROMPTS


def generator(model, **options):
    return HFGenerator(model, families.tokenizer(), **{"max_step_tokens": 7, "max_new_tokens": 21, **options})


@pytest.fixture(scope="module")
def hybrid():
    """Three layers with delta rules and convolutions, and one with keys and values."""
    return families.small_model("qwen3_next")


@pytest.mark.parametrize(
    "family",
    [
        "qwen3_next",
        "mamba2",  # without keys and values
        pytest.param("falcon_h1", marks=pytest.mark.slow),  # states, keys and values in one layer
        "jamba",  # reads one token at a time behind a state
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("qwen3_5_text", "lfm2_moe", "lfm3", "zamba2", "zaya")
        ),
    ],
)
def test_a_search_is_the_same_with_shared_prefixes_and_alone(family):
    model, lengths = families.small_model(family), {"max_step_tokens": 5, "max_new_tokens": 12}
    gen = generator(model, **lengths)
    assert gen.shares_prefixes
    together = solve_batch(WORDS[1:3], families.Wander(1), gen)
    plain = solve_batch(WORDS[1:3], families.Wander(1), generator(model, cache="none", **lengths))
    alone = [solve(prompt, families.Wander(1), gen) for prompt in WORDS[1:3]]
    assert families.equals(model, together, plain)
    assert families.equals(model, together, alone)


def grown(gen, trees, rounds=4, **options):
    """Every node ever reached may grow again; the number of nodes that grew, each time."""
    rng, grew = random.Random(3), []
    for _ in range(rounds):
        picked = [n for tree in trees for n in rng.sample([n for n in tree.walk() if not n.is_finished], 1)]
        grew.append(len(picked))
        requests = [GenerateRequest(node, n=2, **options) for node in picked]
        for request, steps in zip(requests, gen.generate(requests), strict=True):
            request.node.children += [Node(request.node.problem, step, request.node) for step in steps]
    return grew


def roots():
    return [Node(Problem(prompt), key=root_key(prompt)) for prompt in WORDS[1:3]]


@pytest.mark.parametrize("forced", ["", "ab the"])
def test_every_token_of_prompts_and_nodes_is_read_once(hybrid, forced):
    words = byte_tokenizer()
    gen = HFGenerator(hybrid, words, max_step_tokens=3, max_new_tokens=30)
    trees = [Node(Problem(prompt), key=root_key(prompt)) for prompt in ("12 = 12", "a b a")]
    grew = grown(gen, trees, forced=forced)
    # A node that grows has one token that was not read before: its last one. Forced text is read each time.
    prompts = sum(len(words(tree.problem.prompt)["input_ids"]) - 1 for tree in trees)
    assert gen.stats.prefill_tokens == prompts + sum(grew) * (1 + len(words(forced)["input_ids"]))
    assert gen.stats.wasted_tokens == 0


def test_looks_that_come_late_park_no_wrong_state(hybrid):
    """Rows that have drawn beyond a step's end have states that belong to no node: these are read again."""
    late, trees = generator(hybrid, check_every=5, max_step_tokens=3), roots()
    grown(late, trees)
    early, others = generator(hybrid, max_step_tokens=3), roots()
    grown(early, others)
    for one, other in zip(trees, others, strict=True):
        assert [n.token_ids for n in one.walk()] == [n.token_ids for n in other.walk()]
    assert late.stats.prefill_tokens > early.stats.prefill_tokens or not late.stats.wasted_tokens


def test_what_was_dropped_for_room_is_read_again(hybrid):
    trees, others = roots(), roots()
    grown(generator(hybrid, max_step_tokens=3, max_cache_bytes=0), trees)
    grown(generator(hybrid, max_step_tokens=3), others)
    for one, other in zip(trees, others, strict=True):
        assert [n.token_ids for n in one.walk()] == [n.token_ids for n in other.walk()]


@pytest.mark.parametrize("family", ["qwen3_next", pytest.param("mamba", marks=pytest.mark.slow)])
def test_scores_equal_those_of_whole_texts(family):
    model, problem = families.small_model(family), Problem(WORDS[2])
    nodes, node = [], Node(problem)
    for text in (" w5 w6 w7", " w8", " w9 w10"):
        node = Node(problem, Step(text, tuple(families.tokenizer()(text)["input_ids"])), node)
        nodes.append(node)
    nodes.append(Node(problem, Step(" w11 w12", (11, 12)), nodes[0]))  # a fork
    shared, whole = (LikelihoodReward(model, families.tokenizer(), cache=kind) for kind in ("tree", "none"))
    assert shared.score(nodes[:2]) + shared.score(nodes[2:]) == pytest.approx(whole.score(nodes), abs=1e-4)


@pytest.mark.parametrize("family", ["qwen3_next", "mamba2"])
def test_what_runs_is_what_is_charged(family):
    gen = generator(families.small_model(family), max_step_tokens=3)
    trees = roots()
    with FlopCounter(generator=gen, mode="verify") as counter:
        grown(gen, trees, 3)
    charged = sum(n.step.flops for tree in trees for n in tree.walk() if n.step)
    spec = closed_form(gen.model)
    assert charged <= counter.flops <= charged + len(trees) * spec.head


def test_states_have_their_bytes(hybrid):
    spec, session = closed_form(hybrid), checked_session(hybrid)
    with torch.inference_mode():
        batch = session.open(session.prefill([[5, 6, 7]]), 1)
    assert batch.states.bytes == 4 * sum(spec.states) > 0
    strategy, gen = RepeatedSampling(3), generator(hybrid, eos_token_id=300, max_new_tokens=6)
    cost = solve(WORDS[1], strategy, gen).cost
    (keys,), prompt, steps = spec.attention, cost.prompt_tokens, 5
    # the prompt writes states and keys; each step of a row reads and writes its own, the prompt's keys once for all
    tokens = prompt + steps * prompt + 3 * (steps * (steps - 1) // 2 + steps)
    assert cost.cache_bytes == 4 * (sum(spec.states) * (1 + 3 * 2 * steps) + keys.kv_width * tokens)
    assert cost.bytes == cost.cache_bytes + 4 * spec.active_weights * (1 + steps)
    found = predict_cost(
        spec, strategy, prompt=prompt, new=6, step=6, bytes_per_number=4, samples=1, device=Device("slow", 1e9, 1e6)
    )
    assert (found.generator_bytes, found.cache_bytes) == (cost.bytes, cost.cache_bytes)
    together = solve_batch(WORDS[1:3], strategy, gen)[0]
    assert together.cost.without_seconds() == cost.without_seconds()
    cut = solve(WORDS[1], REBASE(2), generator(hybrid), reward_model=ToyReward(), budget=Budget(bytes=cost.bytes // 2))
    assert cut.stopped_by == "bytes"


def test_a_row_that_a_failed_forward_has_touched_has_no_state(hybrid, monkeypatch):
    session = checked_session(hybrid)
    with torch.inference_mode():
        batch = session.open(session.prefill([[5, 6, 7]]), 4)
        session.extend(batch, [[8, 9]])
        assert batch.states_at(0, 2) is not None
        assert batch.states_at(0, 1) is None  # a state of the past is not held
        with pytest.raises(ValueError, match="cannot be taken back"):
            batch.rollback([1])
        monkeypatch.setattr(hybrid.lm_head, "forward", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.step(batch, [0], torch.tensor([4]))
        assert batch.states_at(0, 2) is None


def test_a_row_goes_on_from_the_last_piece_with_a_state():
    def held(ids, states=()):
        return Piece(ids, torch.zeros(1, 2, 1, len(ids), 1), states=states)

    first, second, third = (names := [chain_key(i, ()) for i in range(3)])
    path = KeyedPath(1, (), ((first, (1,)), (second, (2, 3)), (third, (4,))))
    state = (torch.ones(1, 2),)
    cache = PrefixCache(10_000)
    cache.park(path, lambda start, stop: torch.zeros(1, 2, 1, stop - start, 1), state)
    assert [piece.states is not None for piece in cache.find(path)] == [False, False, True]
    assert cache.find(path, 3) == []
    # Another row ends where the second piece does; its state joins the keys and values that are held.
    before = cache.bytes
    cache.park(KeyedPath(1, (), path.pieces[:2]), lambda start, stop: pytest.fail("they are held"), state)
    assert (len(cache.find(path, 3)), cache.bytes) == (2, before + 8)
    assert len(names) == len(cache)


def test_states_of_rows_are_selected_joined_and_written():
    found = {
        ("conv", 1, 0): torch.arange(6.0).view(2, 3),
        ("conv", 0, 0): torch.arange(6.0).view(2, 3) + 10,
        ("recurrent", 0, 0): torch.arange(4).view(2, 2),
    }
    states = States.stacked(found)
    assert [tuple(stack.shape) for stack in states.stacks] == [(2, 2, 3), (1, 2, 2)]
    assert all(torch.equal(states[key], value) for key, value in found.items())
    forked = states.select([1, 1, 0])
    assert forked["conv", 1, 0].tolist() == [[3, 4, 5], [3, 4, 5], [0, 1, 2]]
    joined = States.joined([states, forked])
    assert joined["recurrent", 0, 0].tolist() == [[0, 1], [2, 3], [2, 3], [2, 3], [0, 1]]
    states.put([0], forked.select([0]))
    assert states["conv", 0, 0].tolist() == [[13, 14, 15]] * 2
    opened = states.of_rows([(), joined.of_row(0)])
    assert opened["conv", 0, 0].tolist() == [[0, 0, 0], [10, 11, 12]]
    assert states.bytes == 12 * 4 + 4 * 8
    assert not States({}, [])
    assert States({}, []).of_rows([(), ()]).of_row(1) == ()


def test_convolutions_keep_their_newest_inputs():
    holder = StateHolder()
    assert holder.get_conv_state(0) is None
    assert holder.update_conv_state(torch.tensor([[[1.0, 2]]]), 0, conv_kernel_size=3).tolist() == [[[0, 1, 2]]]
    holder.states = holder.states_after()
    assert holder.update_conv_state(torch.tensor([[[3.0, 4]]]), 0).tolist() == [[[0, 1, 2, 3, 4]]]
    assert holder.get_conv_state(0).tolist() == [[[2, 3, 4]]]
    assert holder.has_previous_state()
