"""Utilities of thoughts as rewards, and scores against stepwise decoding."""

import pytest
import torch

from inferscale import REBASE, Problem, RewardFunction, solve_batch
from inferscale.flops import FlopCounter, model_spec
from inferscale.flow import GenerateRequest
from inferscale.quiet_star import QuietSTaRGenerator, ThoughtUtility, WithThoughts
from inferscale.tree import Node, Step
from tests.quiet_star_tools import wrapped
from tests.tiny_models import byte_tokenizer, grow, grow_all, root

OPTIONS = {"max_step_tokens": 5, "max_new_tokens": 12, "eos_token_id": 319}


def test_scoring_is_stepwise_decoding_with_greedy_thoughts():
    """The parallel pass over a text and the cached loop that sampled it give it the same probability."""
    for family in ("llama", "gpt2", "gemma3"):
        quiet = wrapped(family, 3)
        gen = QuietSTaRGenerator(quiet, byte_tokenizer(), thought_temperature=0.0, **OPTIONS)
        prompt = byte_tokenizer()("ab the 12")["input_ids"]
        step = gen.generate([GenerateRequest(root("ab the 12"))])[0][0]
        ids = torch.tensor([[*prompt, *step.token_ids]])
        positions = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        assert float(quiet.score(ids, positions=positions).mixed.sum()) == pytest.approx(step.logprob, rel=1e-4)


def tree(quiet):
    gen = QuietSTaRGenerator(quiet, byte_tokenizer(), **OPTIONS)
    tops = [root("a b"), root("Step 12: the")]
    children = [child for group in grow_all(gen, tops, 2) for child in group if not child.is_finished]
    return [grandchild for group in grow_all(gen, children, 1) for grandchild in group]


def test_the_utility_of_a_step_is_its_mean_gain():
    quiet = wrapped("llama", 2)
    reward = ThoughtUtility(quiet, byte_tokenizer())
    leaves = tree(quiet)
    scores = reward.step_scores(leaves)
    for leaf, found in zip(leaves, scores, strict=True):
        prompt = byte_tokenizer()(leaf.problem.prompt)["input_ids"]
        ids = torch.tensor([[*prompt, *leaf.token_ids]])
        gains = quiet.score(ids).utility[0, len(prompt) - 1 :].tolist()
        first = len(leaf.path[0].step.token_ids)
        wanted = [sum(gains[:first]) / first, sum(gains[first:]) / (len(gains) - first)]
        assert found == pytest.approx(wanted, abs=1e-4)
    assert reward.score(leaves) == pytest.approx([sum(s) / len(s) for s in scores])


def test_sampled_thoughts_score_a_node_alone_as_in_any_batch():
    quiet = wrapped("llama", 2)
    leaves = tree(quiet)
    together = ThoughtUtility(quiet, byte_tokenizer(), temperature=1.0, num_thoughts=2).score(leaves)
    alone = [ThoughtUtility(quiet, byte_tokenizer(), temperature=1.0, num_thoughts=2).score([leaf]) for leaf in leaves]
    assert [score for scores in alone for score in scores] == pytest.approx(together, abs=1e-4)
    assert together != pytest.approx(ThoughtUtility(quiet, byte_tokenizer()).score(leaves), abs=1e-4)


def test_every_step_is_scored_once_and_paid_once(monkeypatch):
    quiet = wrapped("llama", 2)
    reward = ThoughtUtility(quiet, byte_tokenizer(), rows_at_once=2)
    leaves = tree(quiet)
    rows = []
    score = quiet.score
    monkeypatch.setattr(quiet, "score", lambda ids, mask, **kwargs: rows.append(len(ids)) or score(ids, mask, **kwargs))
    bill = sum(reward.cost(leaves))
    reward.score(leaves)
    parts = {part.key for leaf in leaves for part in leaf.path}
    assert sum(rows) == len(parts)
    assert bill.scored_tokens > sum(len(leaf.token_ids) for leaf in leaves) * 4
    assert bill.reward_flops > 0
    assert sum(reward.cost(leaves)).scored_tokens == 0
    reward.release(leaves[0].root)
    assert sum(reward.cost(leaves)).scored_tokens > 0


def test_an_untrained_wrapper_has_no_utility():
    quiet = wrapped("llama", 2, trained=False)
    assert all(abs(s) < 1e-6 for s in ThoughtUtility(quiet, byte_tokenizer()).score(tree(quiet)))


def test_a_reward_with_thoughts_is_the_weighted_sum():
    quiet = wrapped("llama", 2)
    plain, utility = RewardFunction(lambda prompts, completions: [float(len(c)) for c in completions]), None
    utility = ThoughtUtility(quiet, byte_tokenizer())
    leaves = tree(quiet)
    one, other = plain.score(leaves), utility.score(leaves)
    assert WithThoughts(plain, utility, 0.0).score(leaves) == one
    both = WithThoughts(plain, utility, 2.0)
    assert both.score(leaves) == pytest.approx([a + 2 * b for a, b in zip(one, other, strict=True)])
    assert sum(WithThoughts(plain, utility, 0.0).cost(leaves)).reward_flops == 0
    both.release(leaves[0].root)
    assert sum(both.cost(leaves)).reward_flops > 0


def test_rebase_prunes_by_utility():
    quiet = wrapped("llama", 2)
    gen = QuietSTaRGenerator(quiet, byte_tokenizer(), **OPTIONS)
    reward = WithThoughts(
        RewardFunction(lambda prompts, completions: [0.0] * len(completions)),
        ThoughtUtility(quiet, byte_tokenizer()),
        1.0,
    )
    result = solve_batch(["a b"], REBASE(width=4), gen, reward_model=reward)[0]
    assert result.cost.reward_flops > 0
    assert len({round(t.score, 6) for t in result.trajectories}) > 1


@pytest.mark.parametrize(("length", "thoughts"), [(0, 1), (2, 1), (2, 3)])
def test_a_flop_counter_sees_the_matrices_that_a_utility_is_charged_with(length, thoughts):
    """Text and thoughts are run once each; attention runs as a rectangle, where the bill counts what is seen."""
    quiet = wrapped("llama", length)
    leaf = tree(quiet)[0].path[0]
    reward = ThoughtUtility(quiet, byte_tokenizer(), num_thoughts=thoughts)
    bill = reward.cost([leaf])[0]
    reward.score(leaf.path)
    reward.release(leaf.root)
    with FlopCounter(reward=reward) as counter:
        reward.score([leaf])
    found = sum((tally.linear + tally.head for _, tally in counter.ledger.view()), 0)
    prompt, own = len(byte_tokenizer()("a b")["input_ids"]), len(leaf.step.token_ids)
    spec = model_spec(quiet.model.config)
    read, heads = prompt + own + own * thoughts * (length + 2), own * (1 + thoughts * (length + 1))
    assert found == read * spec.linear + heads * spec.head + own * thoughts * quiet.head.flops
    attention = bill.reward_flops - found
    assert 0 < attention < sum(tally.attention_full for _, tally in counter.ledger.view())
    assert bill.scored_tokens == read


def test_text_without_ids_is_refused():
    reward = ThoughtUtility(wrapped("llama", 2), byte_tokenizer())
    top = Node(Problem("a b"))
    with pytest.raises(ValueError, match="has text and no token ids"):
        reward.score([Node(top.problem, Step("x"), top, 3)])


def test_empty_steps_have_no_score():
    reward = ThoughtUtility(wrapped("llama", 2), byte_tokenizer())
    gen = QuietSTaRGenerator(wrapped("llama", 2), byte_tokenizer(), **OPTIONS)
    child = grow(gen, root("a b"))[0]
    last = Node(child.problem, Step("", (), finish_reason="eos"), child, 3)
    assert len(reward.step_scores([last])[0]) == len(last.inner_steps())


def test_scoring_with_an_architecture_without_a_known_form_is_paid_too():
    quiet = wrapped("opt", 2)
    leaf = tree(quiet)[0]
    assert ThoughtUtility(quiet, byte_tokenizer()).cost([leaf])[0].reward_flops > 0


def test_numbers_that_score_nothing_are_told():
    for option in ("num_thoughts", "rows_at_once"):
        with pytest.raises(ValueError, match=f"{option}=0: give a positive number"):
            ThoughtUtility(wrapped("llama", 2), byte_tokenizer(), **{option: 0})
