"""Self-certainty of steps, by hand."""

import math

import pytest
import torch

from inferscale.rewards import LikelihoodReward
from inferscale.rewards.scorer import self_certainty
from tests.reward_checkpoints import causal, solution
from tests.tiny_models import byte_tokenizer


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
