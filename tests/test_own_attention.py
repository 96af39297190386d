"""Families whose attention layers go their own way share prefixes too: BLOOM, MPT, Falcon, GPT-Neo."""

import math

import pytest
import torch

from benchmarks import families
from inferscale.engine import solve_batch
from inferscale.generators import HFGenerator
from inferscale.runtime.own_attention import alibi_slopes, own_attention, with_alibi
from inferscale.runtime.session import Session, check_session

OPTIONS = {"max_step_tokens": 7, "max_new_tokens": 21}
FALCON = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320, "hidden_size": 32, "bias": True}


def falcon(**changes):
    config = families.CONFIG_MAPPING["falcon"](**{**FALCON, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = families.transformers.AutoModelForCausalLM.from_config(config).float().eval()
        for weights in (p.data for p in model.parameters() if p.dim() > 1):
            weights *= 0.2 / weights.std()
    return model


MODELS = {
    "bloom": lambda: families.small_model("bloom"),
    "mpt": lambda: families.small_model("mpt"),
    "gpt_neo": lambda: families.small_model("gpt_neo"),
    "falcon, one head of keys": lambda: falcon(new_decoder_architecture=False, multi_query=True),
    "falcon, heads of its own": lambda: falcon(new_decoder_architecture=False, multi_query=False),
    "falcon, groups": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "falcon, ALiBi": lambda: falcon(new_decoder_architecture=False, multi_query=False, alibi=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_prefixes_are_shared_and_change_nothing(name):
    model = MODELS[name]()
    tree = HFGenerator(model, families.tokenizer(), **OPTIONS)
    plain = HFGenerator(model, families.tokenizer(), cache="none", **OPTIONS)
    assert tree.shares_prefixes
    found = [solve_batch(families.PROMPTS[1:3], families.Wander(1), way) for way in (tree, plain)]
    assert families.equals(model, *found)
    assert all("forward" not in vars(layer) for layer in model.modules())


def test_positions_beyond_what_bfloat16_holds_are_not_lost():
    """Falcon rounds its ALiBi to bfloat16, and so positions beyond 256; BLOOM does not."""
    for name in ("bloom", "falcon, ALiBi"):
        with torch.inference_mode():
            session = Session(MODELS[name]())
            check_session(session, 300)


def test_falcon_with_slopes_that_are_no_powers_of_2_is_run_plainly():
    changes = {"new_decoder_architecture": False, "multi_query": False, "alibi": True, "hidden_size": 48}
    assert any(math.log2(slope) % 1 for slope in alibi_slopes(12))
    with pytest.warns(UserWarning, match="rounds its ALiBi"):
        odd = HFGenerator(falcon(num_attention_heads=12, **changes), families.tokenizer(), **OPTIONS)
    assert not odd.shares_prefixes


@pytest.mark.parametrize("heads", [4, 6, 12, 16])
def test_slopes_are_those_of_the_paper_and_of_bloom(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 3), heads, torch.float32)  # [heads, 1, 3]
    assert alibi_slopes(heads) == pytest.approx((theirs[:, 0, 2] - theirs[:, 0, 1]).tolist(), rel=1e-5)


def test_two_dimensions_add_the_slope_times_the_position():
    query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8)
    slopes, positions = torch.tensor([0.5, 0.25, 0.125, 2.0]), torch.tensor([[0, 1, 700], [5, 6, 7]])
    q, k = with_alibi(query, key, slopes, positions)
    more = (q @ k.repeat_interleave(2, dim=1).mT) - query @ key.repeat_interleave(2, dim=1).mT
    expected = slopes[None, :, None, None] * positions[:, None, None, :]
    torch.testing.assert_close(more, expected.expand(2, 4, 3, 3), atol=1e-3, rtol=1e-5)


def test_a_forward_that_was_there_is_put_back(monkeypatch):
    """accelerate hangs its hooks into the forward of single layers."""
    model = MODELS["bloom"]()
    layer, _ = own_attention(model)[0]
    hung = layer.forward
    layer.forward = hung
    monkeypatch.setattr(model.lm_head, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.inference_mode():
        Session(model).prefill([[5, 6]])
    assert vars(layer)["forward"] is hung
