"""The loss against a loop over scalars, and REINFORCE against all thoughts there are."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale.quiet_star import Objective, advantages, quiet_star_loss
from inferscale.quiet_star import model as model_module
from inferscale.quiet_star.losses import PUBLISHED_OBJECTIVE
from inferscale.quiet_star.parallel import MaskedSession
from inferscale.quiet_star.thoughts import Thoughts
from tests.quiet_star_tools import one_thought, wrapped

IDS = torch.tensor([[5, 17, 101, 8, 44, 250, 3, 9], [77, 6, 300, 31, 4, 19, 120, 64]])
MASK = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0]])
IN_LOSS = torch.tensor([[1, 1, 1, 1, 0, 1, 1, 1], [1] * 8]).bool()


def nll(logits, token):
    return float(torch.logsumexp(logits.detach().double(), -1) - logits.detach().double()[token])


def by_hand(quiet, thoughts, objective, ids, mask, in_loss):
    """Terms of the loss from single unpadded prefixes, with loops and scalars."""
    bases, mixes, policy, rewards = [], {}, [], {}
    for row in range(len(ids)):
        kept = [i for i in range(ids.shape[1]) if mask[row, i]]
        text = {i: ids[row, kept[0] : i + 1].tolist() for i in kept}
        hidden = {i: one_thought(quiet, text[i], [])[len(text[i]) - 1] for i in kept}
        counted = {i for i in kept[1:] if in_loss[row, i]}
        base = {i: nll(quiet.logits(hidden[i - 1]), int(ids[row, i])) for i in kept[1:]}
        bases += [base[i] for i in counted]
        for place, j in enumerate(thoughts.positions.tolist()):
            targets = [(k, j + k + 1) for k in range(objective.talk_length) if j in kept and j + k + 1 in counted]
            for i in range(objective.num_thoughts):
                tokens = thoughts.tokens[row, i, place].tolist()
                reward = 0.0
                for k, target in targets:
                    ahead = ids[row, j + 1 : j + k + 1].tolist()
                    thought = one_thought(quiet, text[j], tokens, ahead)[-1]
                    w = quiet.head(hidden[j + k], thought)
                    mixed = nll(quiet.logits((1 - w) * hidden[j + k] + w * thought), int(ids[row, target]))
                    mixes.setdefault(k, []).append(mixed)
                    reward += base[target] - mixed
                if targets:
                    states = one_thought(quiet, text[j], tokens)[len(text[j]) :]
                    scaled = [quiet.logits(state) / objective.reinforce_temperature for state in states]
                    rewards[row, place, i] = reward
                    policy.append((row, place, i, [-nll(s, c) for s, c in zip(scaled, tokens, strict=False)]))
    means = {key: sum(rewards[(*key[:2], i)] for i in range(objective.num_thoughts)) for key in rewards}
    better = {key: max(0.0, rewards[key] - means[key] / objective.num_thoughts) for key in rewards}
    terms = [better[row, place, i] * sum(lps) / len(lps) for row, place, i, lps in policy]
    talk = sum(sum(v) / len(v) for v in mixes.values()) / objective.talk_length
    return sum(bases) / len(bases), talk, -sum(terms) / len(terms), rewards, better


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_that_of_a_loop_over_scalars(family):
    quiet = wrapped(family, 2)
    objective = Objective(talk_length=3, num_thoughts=2, policy_weight=0.7)
    thoughts = quiet.think(IDS, MASK, positions=torch.tensor([0, 1, 3, 4]), num_thoughts=2, seed=2)
    terms = quiet_star_loss(quiet, IDS, thoughts, objective, attention_mask=MASK, in_loss=IN_LOSS)
    base, talk, policy, rewards, better = by_hand(quiet, thoughts, objective, IDS, MASK, IN_LOSS)
    assert float(terms.base.detach()) == pytest.approx(base, rel=1e-5)
    assert float(terms.talk.detach()) == pytest.approx(talk, rel=1e-5)
    assert float(terms.policy.detach()) == pytest.approx(policy, rel=1e-4)
    assert float(terms.total.detach()) == pytest.approx(0.5 * base + 0.5 * talk + 0.7 * policy, rel=1e-4)
    for (row, place, i), reward in rewards.items():
        assert float(terms.rewards[row, i, place]) == pytest.approx(reward, abs=1e-4)
        assert float(terms.advantages[row, i, place]) == pytest.approx(better[row, place, i], abs=1e-4)
    assert terms.valid.sum() * 2 == len(rewards)


def test_pieces_of_logits_give_the_same_gradients(monkeypatch):
    found = []
    for rows in (4096, 5):
        monkeypatch.setattr(model_module, "_ROWS_AT_ONCE", rows)
        quiet = wrapped("gpt2", 2).double()
        thoughts = quiet.think(IDS, MASK, positions=torch.arange(5), num_thoughts=2, seed=2)
        quiet_star_loss(quiet, IDS, thoughts, Objective(3, 2), attention_mask=MASK).total.backward()
        found.append({name: p.grad for name, p in quiet.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_one_pass_has_the_loss_and_gradients_of_step_by_step_thinking(family, monkeypatch):
    """One pass over whole thoughts, against one token at a time on the cache, the fold, and positions in pieces."""
    whole = MaskedSession.feed

    def one_at_a_time(session, embeds):
        return torch.cat([whole(session, embeds[:, :, i : i + 1]) for i in range(embeds.shape[2])], dim=2)

    found = []
    for feed, options in [
        (whole, {}),
        (one_at_a_time, {}),
        (whole, {"parallel": "fold"}),
        (whole, {"positions_at_once": 2}),
    ]:
        monkeypatch.setattr(MaskedSession, "feed", feed)
        quiet = wrapped(family, 2, **options).double()
        thoughts = quiet.think(IDS, positions=torch.arange(6), num_thoughts=2, seed=2)
        total = quiet_star_loss(quiet, IDS, thoughts, Objective(2, 2)).total
        total.backward()
        found.append((float(total.detach()), {name: p.grad for name, p in quiet.named_parameters()}))
    exact = 1e-5 if family == "llama" else 1e-11  # its norms are computed in float32 whatever the model's precision
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=exact)
        for name, gradient in found[0][1].items():
            torch.testing.assert_close(
                gradients[name], gradient, rtol=0, atol=exact * float(gradient.abs().max()) + 1e-15
            )


# -- advantages --------------------------------------------------------------------------------------------------------


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 4.0, -2.0])[None, :, None]
    assert advantages(rewards).flatten().tolist() == [0.0, 3.0, 0.0]
    assert advantages(rewards, clip_negative=False).flatten().tolist() == [0.0, 3.0, -3.0]
    assert advantages(rewards, "leave_one_out", clip_negative=False).flatten().tolist() == [0.0, 4.5, -4.5]
    assert advantages(rewards, "base").flatten().tolist() == [1.0, 4.0, 0.0]
    pair = torch.tensor([5.0, 1.0])[None, :, None]
    assert advantages(pair).flatten().tolist() == [2.0, 0.0]
    assert advantages(pair[:, :1]).flatten().tolist() == [5.0]


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=6), st.floats(-50, 50, width=32))
def test_advantages_know_nothing_of_a_common_reward(rewards, shift):
    base = torch.tensor(rewards, dtype=torch.float64)[None, :, None]
    for baseline in ("mean", "leave_one_out"):
        one = advantages(base, baseline, clip_negative=False)
        torch.testing.assert_close(advantages(base + shift, baseline, clip_negative=False), one, rtol=0, atol=1e-9)
        assert float(one.sum()) == pytest.approx(0.0, abs=1e-9)
        assert bool((advantages(base, baseline) >= 0).all())
    assert float(advantages(torch.full_like(base, shift)).abs().max()) == pytest.approx(0.0, abs=1e-12)


def test_advantages_carry_no_gradient():
    rewards = torch.randn(2, 3, 4, requires_grad=True)
    assert not advantages(rewards).requires_grad


# -- the policy gradient -----------------------------------------------------------------------------------------------

SMALL = {"vocab_size": 5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def policy_gradient(quiet, ids, tokens, objective):
    thoughts = Thoughts(tokens, tokens.double(), torch.tensor([1]))
    for parameter in quiet.parameters():
        parameter.grad = None
    terms = quiet_star_loss(quiet, ids, thoughts, objective)
    terms.policy.backward()
    return torch.cat([p.grad.flatten() for p in quiet.model.parameters() if p.grad is not None]), terms.rewards


@pytest.mark.parametrize(("baseline", "share"), [("base", 1.0), ("leave_one_out", 1.0), ("mean", 0.5)])
def test_reinforce_is_the_exact_gradient_in_expectation(baseline, share):
    """Five tokens, thoughts of one: all 25 pairs of thoughts, weighted by their probabilities.

    The mean over the samples holds the sample itself, which scales the gradient by 1 - 1/r.
    """
    quiet = wrapped("gpt2", 1, changes=SMALL).double()
    ids = torch.tensor([[3, 1, 4]])
    objective = Objective(1, 2, reinforce_temperature=1.0, baseline=baseline, clip_negative=False)
    state = one_thought(quiet, [3, 1], [0])[2]
    log_policy = quiet.logits(state).log_softmax(-1)
    probability = log_policy.exp().detach()
    single = {}
    expected = 0.0
    for pair in itertools.product(range(5), repeat=2):
        gradient, rewards = policy_gradient(quiet, ids, torch.tensor(pair).reshape(1, 2, 1, 1), objective)
        expected = expected + probability[pair[0]] * probability[pair[1]] * gradient
        single[pair[0]] = float(rewards[0, 0, 0])
    for parameter in quiet.parameters():
        parameter.grad = None
    (-(log_policy.exp() * torch.tensor([single[c] for c in range(5)])).sum()).backward()
    exact = torch.cat([p.grad.flatten() for p in quiet.model.parameters() if p.grad is not None])
    assert float(exact.norm()) > 1e-3
    torch.testing.assert_close(expected, share * exact, rtol=1e-5, atol=1e-6)


def test_another_temperature_or_clipping_biases_it():
    quiet = wrapped("gpt2", 1, changes=SMALL).double()
    ids, pair = torch.tensor([[3, 1, 4]]), torch.tensor([2, 3]).reshape(1, 2, 1, 1)
    exact = Objective(1, 2, reinforce_temperature=1.0, baseline="base", clip_negative=False)
    flat = Objective(1, 2, reinforce_temperature=3.0, baseline="base", clip_negative=False)
    one, other = (policy_gradient(quiet, ids, pair, objective)[0] for objective in (exact, flat))
    assert float((one - other).norm() / one.norm()) > 0.05


# -- what learns at first ----------------------------------------------------------------------------------------------


def test_an_untrained_wrapper_learns_through_the_last_layer_of_its_head_first():
    quiet = wrapped("llama", 2, trained=False)
    thoughts = quiet.think(IDS, positions=torch.arange(5), num_thoughts=2, seed=2)
    terms = quiet_star_loss(quiet, IDS, thoughts, Objective(3, 2))
    assert float(terms.rewards.abs().max()) == 0.0
    assert float(terms.policy.detach()) == 0.0
    assert float(terms.talk.detach()) > 0
    assert math.isfinite(float(terms.total.detach()))
    (terms.talk + terms.policy).backward()
    moved = [name for name, p in quiet.named_parameters() if not name.startswith("model.") and p.grad is not None]
    moved = [name for name in moved if float(dict(quiet.named_parameters())[name].grad.norm()) > 0]
    assert moved == ["head.layers.4.weight"]


def test_no_gradient_flows_through_the_reward():
    quiet = wrapped("llama", 2)
    thoughts = quiet.think(IDS, positions=torch.arange(5), num_thoughts=2, seed=2)
    terms = quiet_star_loss(quiet, IDS, thoughts, Objective(3, 2))
    assert not terms.rewards.requires_grad
    terms.policy.backward()
    assert quiet.end.grad is None or float(quiet.end.grad.norm()) == 0.0  # end comes after what the policy drew
    assert all(p.grad is None or float(p.grad.norm()) == 0.0 for p in quiet.head.parameters())
    assert float(quiet.start.grad.norm()) > 0.0


def test_thoughts_of_no_length_have_no_policy():
    quiet = wrapped("llama", 0)
    thoughts = quiet.think(IDS, positions=torch.arange(5), num_thoughts=2)
    assert float(quiet_star_loss(quiet, IDS, thoughts, Objective(3, 2)).policy.detach()) == 0.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_padding_ids_never_reach_the_loss(junk):
    quiet = wrapped("llama", 1)
    ids = IDS.clone()
    ids[MASK == 0] = junk % 320
    thoughts = quiet.think(IDS, MASK, positions=torch.tensor([1, 3]), num_thoughts=2, seed=2)
    one, other = (quiet_star_loss(quiet, x, thoughts, Objective(2, 2), attention_mask=MASK) for x in (IDS, ids))
    assert float(one.total.detach()) == float(other.total.detach())


def test_bad_objectives_are_told():
    with pytest.raises(ValueError, match="talk_length and num_thoughts"):
        Objective(talk_length=0)
    with pytest.raises(ValueError, match="reinforce_temperature=0"):
        Objective(reinforce_temperature=0)
    with pytest.raises(ValueError, match="compares thoughts with each other"):
        Objective(num_thoughts=1, baseline="leave_one_out")
    with pytest.raises(ValueError, match="set num_thoughts to 2 or more"):
        advantages(torch.ones(1, 1, 3), "leave_one_out")
    with pytest.raises(ValueError, match="choose"):
        advantages(torch.ones(1, 2, 3), "median")
    with pytest.raises(ValueError, match='choose "mean"'):
        Objective(baseline="none")
    quiet = wrapped("llama", 1)
    with pytest.raises(ValueError, match="think at earlier positions"):
        quiet_star_loss(quiet, IDS, quiet.think(IDS, positions=torch.tensor([6])), Objective(2, 1))
    assert (PUBLISHED_OBJECTIVE.policy_weight, PUBLISHED_OBJECTIVE.talk_length) == (1e6, 4)
