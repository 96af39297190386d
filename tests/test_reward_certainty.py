"""Likelihood and self-certainty of steps: by hand, within bounds of memory, under a generator's prompts."""

import math

import pytest
import torch

from inferscale import HFGenerator, RepeatedSampling, solve
from inferscale.rewards import LikelihoodReward, scorer
from inferscale.rewards.scorer import self_certainty
from inferscale.testing import ToyGenerator
from tests.reward_checkpoints import causal, solution
from tests.test_prompts import THINKS, chat_tokenizer
from tests.tiny_models import byte_tokenizer, tiny_model


def test_a_uniform_prediction_has_none():
    assert self_certainty(torch.zeros(2, 7), torch.zeros(2)).tolist() == pytest.approx([0, 0], abs=1e-6)
    logits = torch.tensor([[math.log(3), 0.0]])  # p = 3/4, 1/4
    by_hand = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert self_certainty(logits, torch.zeros(1)).item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("token_reduction", ["mean", "min"])
@pytest.mark.parametrize("cache", ["tree", "none"])
def test_steps_against_one_forward(token_reduction, cache):
    tokenizer = byte_tokenizer()
    model = causal(tokenizer)
    reward = LikelihoodReward(model, tokenizer, measure="self-certainty", token_reduction=token_reduction, cache=cache)
    ids, spans = tokenizer("b 12")["input_ids"], []
    for text in ("a is 4", "x"):
        piece = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            + tokenizer("\n", add_special_tokens=False)["input_ids"]
        )
        spans.append(range(len(ids) - 1, len(ids) + len(piece) - 1))
        ids = ids + piece
    p = model(input_ids=torch.tensor([ids])).logits[0].detach().double().softmax(-1)
    uniform = torch.full_like(p, 1 / p.shape[-1])
    distance = (uniform * (uniform / p).log()).sum(-1)
    pool = min if token_reduction == "min" else lambda values: sum(values) / len(values)
    expected = [float(pool([float(distance[k]) for k in span])) for span in spans]
    [found] = reward.step_scores([solution("b 12", ["a is 4\n", "x\n"])])
    assert found == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="measure='entropy'"):
        LikelihoodReward(model, tokenizer, measure="entropy")


@pytest.mark.parametrize("cache", ["tree", "none"])
def test_no_forward_holds_more_logits_than_it_may_and_scores_stay_the_same(monkeypatch, cache):
    model = tiny_model()
    generator = HFGenerator(model, byte_tokenizer(), max_new_tokens=60)
    result = solve("a b", RepeatedSampling(16), generator, seed=3)
    nodes = list(result.leaves)
    sizes = []
    handle = model.get_output_embeddings().register_forward_hook(lambda *args: sizes.append(args[2].numel()))
    whole = LikelihoodReward.from_generator(generator, cache=cache).step_scores(nodes)
    most, vocabulary = max(sizes), model.config.vocab_size
    for limit in (most // 3, 20 * vocabulary):
        monkeypatch.setattr(scorer, "MAX_LOGITS", limit)
        sizes.clear()
        found = LikelihoodReward.from_generator(generator, cache=cache).step_scores(nodes)
        assert max(sizes) <= limit
        for row, other in zip(found, whole, strict=True):
            assert row == pytest.approx(other, rel=1e-5)
    handle.remove()


def test_the_likelihood_of_a_generator_is_that_of_its_own_prompts():
    tokenizer = chat_tokenizer(THINKS)
    model = tiny_model(vocab_size=len(tokenizer))
    options = {"system_prompt": "Be brief.", "chat_template_kwargs": {"enable_thinking": False}}
    own = {"use_token_ids": True, "step_separator": None}
    for prompts in ({}, options, {"chat_template": False}):
        generator = HFGenerator(model, tokenizer, max_new_tokens=12, **prompts)
        leaves = solve("a b", RepeatedSampling(3), generator).leaves
        reward = LikelihoodReward.from_generator(generator, **own)
        assert reward.model is model
        scores = reward.score(leaves)
        assert scores == LikelihoodReward(model, tokenizer, **own, **prompts).score(leaves)
        for leaf, score in zip(leaves, scores, strict=True):  # what it was sampled with
            ids = [i for i in leaf.token_ids if i not in tokenizer.all_special_ids]
            if len(ids) == len(leaf.token_ids) and leaf.step.inner_ends == ():
                assert score == pytest.approx(math.exp(leaf.step.logprob / len(ids)), rel=1e-4)
    with pytest.raises(TypeError, match="has no model in this process"):
        LikelihoodReward.from_generator(ToyGenerator())
