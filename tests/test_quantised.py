"""Quantised models: they sample, share prefixes where their arithmetic allows it, and are billed like others."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from inferscale import HFGenerator
from inferscale.flops import FlopCounter
from inferscale.flops.calibration import closed_form
from inferscale.identity import model_identity
from inferscale.rewards import HFOutcomeRewardModel, LikelihoodReward
from tests.reward_checkpoints import solution
from tests.tiny_models import VOCABULARY, byte_tokenizer, grow, root

SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_labels": 1,
    "intermediate_size": 128, "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip


def llama(head: str = "CausalLM") -> Any:
    torch.manual_seed(0)
    return getattr(transformers, f"LlamaFor{head}")(transformers.LlamaConfig(**SHAPE)).eval()


class Packed(nn.Module):
    """A linear layer whose weights are packed: no ``nn.Linear``, and no parameter of its shape."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        scale = plain.weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("packed", (plain.weight / scale).round().to(torch.int8).view(torch.int32))
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.packed.view(torch.int8) * self.scale).T


def replaced(model: Any, make: Callable[[nn.Linear], nn.Module]) -> Any:
    for name, part in [*model.model.named_modules()]:
        if isinstance(part, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(model.model.get_submodule(parent), own, make(part))
    return model


def packed(model: Any) -> Any:
    return replaced(model, Packed)


def torchao_int8(model: Any) -> Any:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: pip install torchao")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def bitsandbytes_layer(plain: nn.Linear, bits: int) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    sizes = (plain.in_features, plain.out_features)
    if bits == 8:
        layer = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.load_state_dict(plain.state_dict())
    else:
        layer = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        weight = {"requires_grad": False, "quant_type": "nf4", "module": layer}
        layer.weight = bnb.nn.Params4bit(plain.weight.data, **weight)
    return layer.to("cpu")


def bitsandbytes_int8(model: Any) -> Any:
    return replaced(model, lambda plain: bitsandbytes_layer(plain, 8))


def bitsandbytes_nf4(model: Any) -> Any:
    return replaced(model, lambda plain: bitsandbytes_layer(plain, 4))


WAYS = pytest.mark.parametrize("quantise", [packed, torchao_int8, bitsandbytes_int8, bitsandbytes_nf4])


@WAYS
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_models_are_billed_for_the_products_that_they_stand_for(quantise):
    plain = llama()
    model = quantise(copy.deepcopy(plain))
    spec, expected = closed_form(model), closed_form(plain)
    assert (spec.linear, spec.head, spec.attention) == (expected.linear, expected.head, expected.attention)
    ids = torch.arange(5, 35)[None]
    counts = []
    for one in (plain, model):
        with torch.no_grad(), FlopCounter(one, mode="verify") as analytic, FlopCounter(one, mode="exact") as exact:
            one(input_ids=ids)
        assert not analytic.uncounted
        assert not exact.uncounted
        counts += [analytic.flops_of(convention="full"), exact.flops_of(convention="full")]
    assert len(set(counts)) == 1
    node = solution("b", [" a is 12\n"])
    costs = [LikelihoodReward(one, byte_tokenizer()).cost([node]) for one in (plain, model)]
    assert costs[0] == costs[1]
    orm = quantise(llama("SequenceClassification"))
    assert HFOutcomeRewardModel(orm, byte_tokenizer()).cost([node])[0].reward_flops > 0


@WAYS
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_models_sample_alike_with_and_without_shared_prefixes(quantise):
    model, texts = quantise(llama()), []
    for cache in ("tree", "none"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            generator = HFGenerator(model, byte_tokenizer(), max_new_tokens=10, temperature=0.0, cache=cache)
        if cache == "tree":
            # the kernels of bitsandbytes round by the size of the batch: no prefix is shared then, and that is told
            told = [warning for warning in said if "is run without shared prefixes" in str(warning.message)]
            assert len(told) == (not generator.shares_prefixes)
            assert generator.shares_prefixes or quantise in (bitsandbytes_int8, bitsandbytes_nf4)
        texts.append([node.text for node in grow(generator, root("b a"), 2, until="end")])
    assert texts[0] == texts[1]


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_quantised_while_it_is_loaded(tmp_path):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: pip install torchao")
    llama().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    config = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    generator = HFGenerator.from_pretrained(tmp_path, device="cpu", quantization_config=config, max_new_tokens=4)
    assert type(generator.model.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    assert generator.shares_prefixes
    [node] = grow(generator, root("b"))
    assert node.step.flops > 0


@WAYS
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_naming_a_quantised_model_in_a_run_changes_neither_it_nor_its_name(quantise):
    model, ids = quantise(llama()), torch.arange(5, 35)[None]
    name = model_identity(model)
    with torch.no_grad():
        before, after = model(input_ids=ids).logits, model_identity(model)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert after == name
