"""Models in adapters' wrappers: they share prefixes and are billed for what runs, as peft wraps them and with peft."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForSequenceClassification

from inferscale import HFGenerator, RepeatedSampling, solve
from inferscale.flops import FlopCounter, forward_flops
from inferscale.flops.calibration import closed_form
from inferscale.rewards import HFOutcomeRewardModel, HFProcessRewardModel, LikelihoodReward
from inferscale.runtime import loading
from inferscale.runtime.loading import CheckpointError
from tests.reward_checkpoints import solution
from tests.tiny_models import byte_tokenizer, grow, root, tiny_model

RANK = 3


class LowRank(nn.Module):
    """A linear layer and the product of two thin ones beside it, as peft's LoRA layers are made."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.merged = base_layer, False
        self.lora_A = nn.Linear(base_layer.in_features, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, base_layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) if self.merged else self.base_layer(x) + self.lora_B(self.lora_A(x))

    def merge(self) -> None:
        with torch.no_grad():
            self.base_layer.weight += self.lora_B.weight @ self.lora_A.weight
        self.merged = True


class Wrapped(nn.Module):
    """Wraps a model as peft does: its forward hides the model's arguments, its attributes are the model's."""

    def __init__(self, model: nn.Module, targets: tuple[str, ...]) -> None:
        super().__init__()
        for name, part in [*model.named_modules()]:
            parent, _, own = name.rpartition(".")
            if own in targets:
                setattr(model.get_submodule(parent), own, LowRank(part))
        self.base_model = nn.Module()
        self.base_model.model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model").model, name)

    def get_base_model(self) -> nn.Module:
        return self.base_model.model

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return self.base_model.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def merge_adapter(self) -> None:
        for part in [part for part in self.modules() if isinstance(part, LowRank)]:
            part.merge()


def by_hand(model: nn.Module, targets: tuple[str, ...], task: str) -> Any:
    torch.manual_seed(1)
    return Wrapped(model, targets).eval()


def by_peft(model: nn.Module, targets: tuple[str, ...], task: str) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    torch.manual_seed(1)
    task = None if "score" in targets else task  # a head with an adapter is not trained as a whole, too
    options = {"task_type": task, "r": RANK, "target_modules": list(targets), "init_lora_weights": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks transformers for names that are about to change
        return peft.get_peft_model(model, peft.LoraConfig(**options)).eval()


WAYS = pytest.mark.parametrize("wrap", [by_hand, by_peft])
ATTENTION = ("q_proj", "v_proj")


def eager(head: str, family: str = "llama", **options: Any) -> Any:
    model = tiny_model(family, head, **options)
    model.set_attn_implementation("eager")  # torch's counter does not know the fused kernel of CPUs
    return model


def torch_flops(model: Any, **inputs: Any) -> int:
    model.requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return int(counter.get_total_flops())


@WAYS
@pytest.mark.parametrize("is_merged", [False, True])
def test_a_generator_shares_prefixes_and_bills_what_torch_counts(wrap, is_merged):
    plain = eager("CausalLM")
    model = wrap(copy.deepcopy(plain), ATTENTION, "CAUSAL_LM")
    if is_merged:
        model.merge_adapter()
    generator = HFGenerator(model, byte_tokenizer(), max_new_tokens=12, max_step_tokens=6)
    assert generator.model is model
    assert generator.shares_prefixes
    ids = torch.arange(5, 45)[None]
    spec = closed_form(model)
    assert forward_flops(spec, 40).full == torch_flops(model, input_ids=ids)
    # two layers; q: 32 -> 32, v: 32 -> 16 (two of four heads)
    adapter = 0 if is_merged else 2 * 2 * RANK * ((32 + 32) + (32 + 16))
    assert spec.linear == closed_form(plain).linear + adapter
    [one] = grow(generator, root("b a"), 1, until="end")
    prompt = len(byte_tokenizer()("b a")["input_ids"])
    assert one.step.flops == forward_flops(spec, prompt, logits=1).causal + sum(
        forward_flops(spec, 1, prompt + done).causal for done in range(one.step.generated_tokens - 1)
    )


@WAYS
def test_what_is_sampled_and_scored_is_the_adapted_model(wrap):
    model = wrap(tiny_model(), ATTENTION, "CAUSAL_LM")
    merged = copy.deepcopy(model)
    merged.merge_adapter()
    tokenizer, options = byte_tokenizer(), {"max_new_tokens": 8, "temperature": 0.0}
    texts = {
        solve("b a", RepeatedSampling(1), HFGenerator(m, tokenizer, cache=cache, **options)).trajectories[0].text
        for m, cache in ((model, "tree"), (model, "none"), (merged.get_base_model(), "tree"))
    }
    assert len(texts) == 1
    node = solution("b", [" a is 12\n"])
    expected = LikelihoodReward(merged.get_base_model(), tokenizer).score([node])[0]
    assert LikelihoodReward(model, tokenizer).score([node])[0] == pytest.approx(expected, rel=1e-3)
    assert LikelihoodReward(tiny_model(), tokenizer).score([node])[0] != pytest.approx(expected, rel=1e-2)


@WAYS
@pytest.mark.parametrize("targets", [ATTENTION, (*ATTENTION, "score")], ids=["body", "body and head"])
def test_classifiers_are_billed_with_their_adapters(wrap, targets):
    node, tokenizer = solution("b", [" a is 12\n", " b is 12\n"]), byte_tokenizer()
    prm = wrap(eager("TokenClassification", num_labels=2), targets, "TOKEN_CLS")
    orm = wrap(eager("SequenceClassification", num_labels=1), targets, "SEQ_CLS")
    # peft keeps the head of a task beside a copy that is trained; the copy alone runs
    for model, reward in (
        (prm, HFProcessRewardModel(prm, tokenizer, cache="none")),
        (orm, HFOutcomeRewardModel(orm, tokenizer)),
    ):
        ids = torch.arange(5, 35)[None]
        with torch.no_grad(), FlopCounter(reward, mode="verify") as counter:
            model(input_ids=ids)
        assert counter.flops_of(convention="full") == torch_flops(model, input_ids=ids)
        assert not counter.uncounted
        [cost] = reward.cost([node])
        marks = 2 if reward.model is prm else cost.scored_tokens
        assert cost.reward_flops == forward_flops(closed_form(model), cost.scored_tokens, logits=marks).causal > 0
    tree = HFProcessRewardModel(prm, tokenizer)
    assert tree._scorers[0]._tree is not None  # prefixes are shared
    plain = HFProcessRewardModel(prm, tokenizer, cache="none")
    assert tree.step_scores([node])[0] == pytest.approx(plain.step_scores([node])[0], abs=1e-5)


@WAYS
def test_an_encoder_with_an_adapter_is_billed(wrap):
    import transformers

    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=320, num_labels=1
    )
    bert = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    model = wrap(bert.eval(), ("query", "value"), "SEQ_CLS")
    spec = closed_form(model)
    for length in (9, 33):
        assert forward_flops(spec, length).full == torch_flops(model, input_ids=torch.arange(length)[None])


@WAYS
def test_counters_watch_a_wrapped_model_however_it_is_called(wrap):
    model = wrap(eager("CausalLM"), ATTENTION, "CAUSAL_LM")
    ids = torch.arange(5, 25)[None]
    counts = set()
    for call in (model, model.get_base_model()):
        with torch.no_grad(), FlopCounter(model, mode="verify") as counter:
            call(input_ids=ids, logits_to_keep=1)
        assert not counter.uncounted
        counts.add(counter.flops)
    assert len(counts) == 1


def test_virtual_tokens_are_refused():
    class Virtual(Wrapped):
        class active_peft_config:  # noqa: N801
            is_prompt_learning = True

            class peft_type:  # noqa: N801
                value = "PROMPT_TUNING"

    with pytest.raises(ValueError, match="PROMPT_TUNING adds virtual tokens to every forward"):
        HFGenerator(Virtual(tiny_model(), ()), byte_tokenizer())


def test_peft_prompt_tuning_is_refused_and_an_adapter_folder_is_loaded(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        model = peft.get_peft_model(tiny_model(), config)
        with pytest.raises(ValueError, match="PROMPT_TUNING adds virtual tokens"):
            HFGenerator(model, byte_tokenizer())
        base, folder = tmp_path / "base", tmp_path / "adapter"
        tiny_model().save_pretrained(base)
        byte_tokenizer().save_pretrained(base)
        adapted = by_peft(tiny_model(), ATTENTION, "CAUSAL_LM")
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(folder)
        loaded = HFGenerator.from_pretrained(folder, base, device="cpu", max_new_tokens=6, temperature=0.0)
    given = HFGenerator(adapted, byte_tokenizer(), max_new_tokens=6, temperature=0.0)
    assert grow(loaded, root("b"))[0].text == grow(given, root("b"))[0].text
    assert loaded.shares_prefixes


def adapter_folder(folder: Path, model: Any, base: Path, task: str) -> Any:
    """An adapter's folder as peft writes it, for the model in `base`; the model with the adapter."""
    adapted = by_peft(model, ATTENTION, task)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_without_a_tokenizer_has_that_of_its_model_and_a_head_is_not_made_up(tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    base, policy, judge = tmp_path / "base", tmp_path / "policy", tmp_path / "judge"
    tiny_model().save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    adapter_folder(policy, tiny_model(), base, "CAUSAL_LM")
    assert len(HFGenerator.from_pretrained(policy, device="cpu").tokenizer) == len(byte_tokenizer())
    # with a head that was trained, and kept in the adapter
    classifier = LlamaForSequenceClassification.from_pretrained(base, num_labels=1)
    adapted = adapter_folder(judge, classifier, base, "SEQ_CLS")
    node = solution("b", [" a is 12\n"])
    loaded = HFOutcomeRewardModel.from_pretrained(judge, device="cpu")
    assert loaded.score([node]) == pytest.approx(HFOutcomeRewardModel(adapted, byte_tokenizer()).score([node]))
    with pytest.raises(CheckpointError, match=r"missing: score\.weight"):
        HFOutcomeRewardModel.from_pretrained(policy, device="cpu")


def test_an_adapter_whose_model_is_not_there_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "require", lambda package, extra: None)
    about = tmp_path / "adapter_config.json"
    about.write_text('{"base_model_name_or_path": null}')
    with pytest.raises(ValueError, match=r"does not say which model it belongs to: peft\.PeftModel\.from_pretrained"):
        HFGenerator.from_pretrained(tmp_path)
    about.write_text('{"base_model_name_or_path": "/gone/llama"}')
    with pytest.raises(ValueError, match=r"belongs to '/gone/llama': there is no folder '/gone/llama'"):
        HFGenerator.from_pretrained(tmp_path)


def test_an_adapter_needs_peft(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    with pytest.raises(ImportError, match=r"inferscale\[peft\]"):
        HFGenerator.from_pretrained(tmp_path)
