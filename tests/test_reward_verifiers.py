"""Generative verifiers, implicit rewards, and training, with tiny models and forwards made by hand."""

import copy

import pytest
import torch

from inferscale import REBASE, solve_batch
from inferscale.flops.spec import forward_flops, model_spec
from inferscale.rewards import GenerativeVerifier, ImplicitReward
from inferscale.rewards.formats import TagError
from inferscale.rewards.generative import THINK_PRM_PROMPT
from inferscale.testing import PROMPTS, ToyGenerator
from inferscale.tree import Node, Problem
from tests.reward_checkpoints import causal, solution
from tests.tiny_models import byte_tokenizer, tiny_model

NODE = solution("What is 2 + 2?", ["Step 1: a is 4\n", "b is 12\n"])


def answering_tokenizer():
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.add_tokens([" yes", " no"])
    return tokenizer


def verifier(**options):
    tokenizer = answering_tokenizer()
    return GenerativeVerifier(causal(tokenizer), tokenizer, **{"max_new_tokens": 24, **options})


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_verifier_is_read_after_its_verification():
    reward = verifier(n=3)
    [found] = reward.verify([NODE])
    assert len({item.text for item in found}) > 1
    prompt = THINK_PRM_PROMPT.format(problem="What is 2 + 2?", solution="Step 1: a is 4\nStep 2: b is 12")
    assert reward.prompt_of(NODE) == prompt
    assert reward.score([NODE]) == pytest.approx([sum(item.probability for item in found) / 3])


def test_the_chance_is_that_of_the_ids_that_were_sampled(monkeypatch):
    reward = verifier(n=2)
    seen = []
    score = reward._scorer.score
    monkeypatch.setattr(reward._scorer, "score", lambda paths: seen.extend(paths) or score(paths))
    found = reward.verify([NODE])[0]
    tokenizer, model = reward.runner.branches.tokenizer, reward.runner.model
    yes, no = tokenizer.convert_tokens_to_ids([" yes", " no"])
    question = plain(tokenizer, "\nIs the solution correct?")
    for path, item in zip(seen, found, strict=True):
        ids = [*path.shared, *path.parts[0].ids]
        assert ids[-len(question) :] == question
        assert tokenizer.decode(ids[len(path.shared) : -len(question)], skip_special_tokens=True) == item.text
        assert path.shared == tuple(tokenizer(reward.prompt_of(NODE))["input_ids"])
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        assert item.probability == pytest.approx(logits[[yes, no]].softmax(-1)[0].item(), abs=1e-5)


def test_a_verification_is_bought_once_and_depends_on_its_node_alone(monkeypatch):
    reward = verifier(n=2)
    other = solution("b", ["a\n"])
    costs = reward.cost([NODE, other])
    asked = []
    generate = reward.runner.generate
    monkeypatch.setattr(reward.runner, "generate", lambda requests: asked.append(requests) or generate(requests))
    together = reward.score([NODE, other])
    assert costs == reward.cost([NODE, other])
    assert not asked
    reward.release(NODE.root)
    reward.release(other.root)
    assert not reward._known
    assert reward.score([other]) == pytest.approx(together[1:], abs=1e-5)
    spec = model_spec(reward.runner.model.config)
    prompt = len(reward.runner.branches.tokenizer(reward.prompt_of(NODE))["input_ids"])
    assert costs[0].scored_tokens > 3 * prompt
    assert costs[0].reward_flops > forward_flops(spec, 3 * prompt, logits=0).linear


def test_chains_are_cut_where_they_ask_themselves_and_rounds_go_on(monkeypatch):
    reward = verifier(max_new_tokens=60)
    branches, end = reward.runner.branches, byte_tokenizer().eos_token_id

    def ended(text, *last):
        """The node after a verifier that writes so much, and the number of tokens that it was let write."""
        root = Node(Problem("p"))
        [request] = reward._requests([root])
        [branch] = branches.open(request)
        ids = (*plain(branches.tokenizer, text), *last)
        taken = next(count for count, token in enumerate(ids, 1) if not branch.push(token, -1.0, -1.0))
        return reward._cut(root, 0, branch.step(lambda branch: (0, 0))), taken, ids

    cut, taken, ids = ended("Step 1 is fine.\nIs the solution correct? no")
    assert cut.text == "Step 1 is fine."
    assert list(cut.token_ids) == plain(branches.tokenizer, "Step 1 is fine.")
    assert cut.step.generated_tokens == taken < len(ids)  # nothing is sampled beyond, or paid for
    assert not cut.is_finished
    assert ended("ab</think> c")[0].text == "ab"
    whole, taken, ids = ended("b", end)
    assert (whole.text, list(whole.token_ids), taken) == ("b", plain(branches.tokenizer, "b"), len(ids))
    again = verifier(num_rounds=2)
    ends = []
    asked = again._question_path
    monkeypatch.setattr(again, "_question_path", lambda end: ends.append(end) or asked(end))
    [item] = again.verify([NODE])[0]
    assert again._known[NODE][1].scored_tokens > 0
    shown = [step.text for step in ends[0].steps]
    assert shown[1].startswith("\nWait, let me double check...\n")
    assert item.text == "".join(shown)


def test_a_verifier_in_a_search_alone_and_together():
    reward = verifier(n=1)
    together = solve_batch(PROMPTS[:2], REBASE(3), ToyGenerator(depth=2), reward_model=reward)
    alone = solve_batch(PROMPTS[:1], REBASE(3), ToyGenerator(depth=2), reward_model=reward)
    assert together[0].cost.scored_tokens == alone[0].cost.scored_tokens > 0
    assert [t.score for t in together[0].trajectories] == pytest.approx(
        [t.score for t in alone[0].trajectories], abs=1e-5
    )
    assert not reward._known


def test_verifiers_that_cannot_answer_are_refused():
    tokenizer = byte_tokenizer()
    with pytest.raises(TagError, match=r"the tag ' yes' is \d tokens"):
        GenerativeVerifier(causal(tokenizer), tokenizer)
    with pytest.raises(ValueError, match="n=0, num_rounds=1"):
        GenerativeVerifier(causal(tokenizer), tokenizer, n=0)
    with pytest.raises(ValueError, match="every verification would be cut at its start"):
        GenerativeVerifier(causal(tokenizer), tokenizer, question="\n")


@pytest.mark.parametrize("cache", ["tree", "none"])
def test_implicit_rewards_are_log_ratios(cache):
    tokenizer = byte_tokenizer()
    ours, theirs = causal(tokenizer, seed=1), causal(tokenizer, seed=2)
    steps = ["a is 4", "b", "x is 12 12"]
    node = solution("b", [text + "\n\n" for text in steps])
    ids, spans = tokenizer("b")["input_ids"], []
    for text in steps:
        piece = plain(tokenizer, text) + plain(tokenizer, "\n\n")
        spans.append((len(ids), len(ids) + len(piece)))
        ids = ids + piece
    logs = [
        model(input_ids=torch.tensor([ids])).logits[0].detach().double().log_softmax(-1) for model in (ours, theirs)
    ]
    ratio = [float(logs[0][i - 1, ids[i]] - logs[1][i - 1, ids[i]]) for i in range(1, len(ids))]
    expected = [0.05 * sum(ratio[a - 1 : b - 1]) for a, b in spans]
    reward = ImplicitReward(ours, theirs, tokenizer, beta=0.05, cache=cache)
    assert reward.step_scores([node])[0] == pytest.approx(expected, abs=1e-5)
    running = ImplicitReward(ours, theirs, tokenizer, beta=0.05, cumulative=True, cache=cache, reduction="last")
    assert running.step_scores([node])[0] == pytest.approx([sum(expected[: k + 1]) for k in range(3)], abs=1e-5)
    assert running.score([node]) == pytest.approx([sum(expected)], abs=1e-5)
    same = ImplicitReward(ours, ours, tokenizer)
    assert same.step_scores([node])[0] == [0, 0, 0]
    assert reward.cost([node])[0].scored_tokens >= 2 * (len(ids) - 1) - (0 if cache == "none" else 10**6)
    with pytest.raises(ValueError, match="beta=0"):
        ImplicitReward(ours, theirs, tokenizer, beta=0)
    with pytest.raises(ValueError, match="embeddings"):
        ImplicitReward(ours, tiny_model(vocab_size=200), tokenizer)
