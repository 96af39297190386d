"""Two configurations never share a folder: every option of every generator and reward model is in its identity."""

import importlib
import inspect
import pkgutil
from functools import cache
from types import SimpleNamespace

import pytest
import torch

import inferscale
from inferscale import HFGenerator, OpenAIGenerator, VLLMGenerator
from inferscale import rewards as r
from inferscale.base import Generator, RewardModel
from inferscale.engine.several import GeneratorGroup
from inferscale.identity import compare, identity_of, unknown_in
from inferscale.quiet_star import QuietSTaR, QuietSTaRGenerator, ThoughtUtility, WithThoughts
from inferscale.quiet_star.generator import Never
from inferscale.rewards.formats import separated_by
from inferscale.rewards.scorer import LocalProcessReward
from inferscale.runtime.sampling import Sampler
from inferscale.strategies import REBASE
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyProcessReward, ToyReward
from inferscale.thinking import Thinking
from tests import reward_checkpoints as checkpoints
from tests.test_prompts import THINKS, chat_tokenizer
from tests.tiny_models import byte_tokenizer, tiny_model

TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}


def pick(ids, scores):
    return scores


@cache
def model(seed=0, head="CausalLM", labels=1):
    return tiny_model(head=head, seed=seed, vocab_size=len(chat_tokenizer(THINKS)), num_labels=labels)


@cache
def two_labels():
    return checkpoints.classifier(chat_tokenizer(THINKS))


@cache
def thinker(**options):
    return QuietSTaR(model(), thought_length=3, **options)


def engine(limit=512):
    return SimpleNamespace(
        model_config=SimpleNamespace(
            logprobs_mode="raw_logprobs", max_model_len=limit, model="m", hf_config=model().config,
            try_get_generation_config=dict,
        ),
        get_tokenizer=lambda: chat_tokenizer(THINKS),
    )  # fmt: skip


LENGTHS = {"max_step_tokens": 7, "max_new_tokens": 9}
STEPS = {"step_delimiter": "\n\n", "stop": ["x"], **LENGTHS}
PROMPTS = {"chat_template": False, "system_prompt": "Be brief."}
CHAT = {**PROMPTS, "chat_template_kwargs": {"enable_thinking": False}, "tools": [TOOL], "control_tokens": "keep"}
FILTERS = {"temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2}
CONTROLS = {
    **FILTERS, "sampler": Sampler(0.3), "logits_processor": [pick], "prefix_allowed_tokens_fn": lambda batch, ids: [1],
    "confidence": "deepconf", "eos_token_id": 9,
}  # fmt: skip
MEMORY = {"micro_batch": 3, "cache": "none", "max_cache_bytes": 1000}
PAIR = {"model": model(1), "tokenizer": chat_tokenizer()}
SCORES = {"reduction": "prod", "judge": "final", "step_separator": "#", "use_token_ids": True, **PROMPTS, **MEMORY}
SERVER = {"base_url": "http://there", "model": "other", "api_key": "secret", "timeout": 7.0, "deadline": 9.0}

# for each class the options that it is made with, and another value for each of its options
CASES = {
    HFGenerator: (
        {"model": model(), "tokenizer": chat_tokenizer(THINKS)},
        {**PAIR, **STEPS, **CHAT, **CONTROLS, **MEMORY, "check_every": 3},
    ),
    QuietSTaRGenerator: (
        {"quiet": thinker(), "tokenizer": chat_tokenizer(THINKS)},
        {
            "quiet": thinker(bounded=True), "tokenizer": chat_tokenizer(), "thought_length": 2, "num_thoughts": 2,
            "thought_temperature": 0.5, "when": Never(), "record_thoughts": True, **STEPS, **CHAT, **CONTROLS, **MEMORY,
        },
    ),
    VLLMGenerator: (
        {"llm": engine()},
        {
            "llm": engine(300), "tokenizer": chat_tokenizer(), **STEPS, **CHAT, **FILTERS, "seeds": False,
            "eos_token_id": 9,
        },
    ),
    OpenAIGenerator: (
        {"base_url": "http://here", "model": "m", "tokenizer": chat_tokenizer(THINKS)},
        {
            **SERVER, "endpoint": "chat", "tokenizer": chat_tokenizer(), **STEPS, **CHAT, "temperature": 0.5,
            "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.2, "logprobs": False, "seeds": False,
            "config": model().config, "max_concurrency": 3, "extra_body": {"top_k": 3},
        },
    ),
    r.LikelihoodReward: (
        {"model": model(), "tokenizer": chat_tokenizer(THINKS)},
        {**PAIR, "token_reduction": "min", "measure": "self-certainty", **SCORES, **CHAT},
    ),
    r.ImplicitReward: (
        {"model": model(), "reference": model(2), "tokenizer": chat_tokenizer(THINKS)},
        {**PAIR, "reference": model(3), "beta": 0.1, "cumulative": True, **SCORES},
    ),
    r.HFProcessRewardModel: (
        {"model": model(), "tokenizer": chat_tokenizer(THINKS), "good_token": "a", "bad_token": "b"},
        {
            "model": model(1), "tokenizer": chat_tokenizer(), "good_token": "c", "bad_token": "d", **SCORES,
            "format": {"format": separated_by("\n"), "model": two_labels(), "good_token": None,
                       "bad_token": None},
        },
    ),
    r.HFOutcomeRewardModel: (
        {"model": model(0, "SequenceClassification", 2), "tokenizer": chat_tokenizer(THINKS), "label": 0},
        {
            "model": model(1, "SequenceClassification", 2), "tokenizer": chat_tokenizer(), **PROMPTS,
            "append_eos": True, "judge": "all", "micro_batch": 3, "label": 1,
        },
    ),
    r.GenerativeVerifier: (
        {"model": model(), "tokenizer": chat_tokenizer(THINKS), "yes": "a", "no": "b"},
        {
            **PAIR, **PROMPTS, "n": 2, "num_rounds": 2, "temperature": 0.3, "max_new_tokens": 9, "prompt": "{problem}",
            "step": "{step}", "question": "Right?", "again": "Wait", "yes": "c", "no": "d", "judge": "final",
            "micro_batch": 3,
        },
    ),
    ThoughtUtility: (
        {"quiet": thinker(), "tokenizer": chat_tokenizer(THINKS)},
        {
            "quiet": thinker(bounded=True), "tokenizer": chat_tokenizer(), "reduction": "last", "num_thoughts": 2,
            "temperature": 0.5, "rows_at_once": 3, **PROMPTS,
        },
    ),
    WithThoughts: (
        {"reward": ToyReward(), "utility": ThoughtUtility(thinker(), byte_tokenizer())},
        {
            "reward": ToyProcessReward(), "utility": ThoughtUtility(thinker(), byte_tokenizer(), num_thoughts=2),
            "weight": 0.5,
        },
    ),
    r.RewardFunction: (
        {"function": lambda nodes: [1.0]},
        {"function": lambda nodes: [2.0], "conversational": True, "columns": {"a": 1}, "judge": "final"},
    ),
    r.CheckerReward: ({}, {"reduction": "min"}),
    r.CachedReward: ({"model": ToyReward()}, {"model": r.RewardFunction(len), "max_entries": 3}),
    r.CachedProcessReward: (
        {"model": ToyProcessReward()},
        {"model": ToyProcessReward("min"), "max_entries": 3},
    ),
    r.TruncatedReward: ({"model": ToyReward()}, {"model": r.RewardFunction(len)}),
    r.TruncatedProcessReward: ({"model": ToyProcessReward()}, {"model": ToyProcessReward("min")}),
    r.CalibratedReward: (
        {"model": ToyProcessReward(), "calibration": r.PlattCalibration(1.0, 0.0)},
        {"model": r.CheckerReward(), "calibration": r.PlattCalibration(2.0, 0.0), "reduction": "prod"},
    ),
    r.EnsembleReward: (
        {"models": [ToyReward()]},
        {"models": [ToyReward(), ToyReward()], "member_reduction": "min", "weights": [2]},
    ),
    r.EnsembleProcessReward: (
        {"models": [ToyProcessReward()]},
        {
            "models": [ToyProcessReward("min")], "member_reduction": "min", "weights": [2], "reduction": "prod",
        },
    ),
    r.WeightedReward: ({"parts": [ToyReward()], "weights": [1]}, {"parts": [r.RewardFunction(len)], "weights": [2]}),
    ToyGenerator: ({}, {"depth": 2, "num_answers": 3, "calls": 9, "ragged": True}),
    BrokenGenerator: ({}, {"change": lambda step, node: step, "die_after": 3, "toy": ToyGenerator(2)}),
    ToyReward: ({}, {"calls": 9}),
    ToyProcessReward: ({}, {"reduction": "min"}),
}  # fmt: skip


def all_parts(kind):
    return {kind, *(part for below in kind.__subclasses__() for part in all_parts(below))}


def remote(kind, folder, **options):
    made = {"base_url": "http://here", "model": "judge", "checkpoint": folder, **options}
    if kind is r.VLLMRewardModel:
        made = {"format": "trl", "check": False, **made}
    return kind(**made)


REMOTE = (r.VLLMRewardModel, r.VLLMOutcomeRewardModel, r.SGLangRewardModel)


def test_no_generator_and_no_reward_model_is_left_out():
    for module in pkgutil.walk_packages(inferscale.__path__, "inferscale."):
        if not module.name.startswith(("inferscale.__main__", "inferscale.evaluate.inspect_entry")):
            importlib.import_module(module.name)
    parts = {part for kind in (Generator, RewardModel) for part in all_parts(kind)}
    ours = {part for part in parts if part.__module__.startswith("inferscale.") and not inspect.isabstract(part)}
    bases = {part for part in ours if part.__name__.startswith("_") or part is LocalProcessReward}
    assert ours - bases == {*CASES, *REMOTE, GeneratorGroup}  # a group is what is in it: tests/test_ask.py


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_every_option_changes_the_identity_or_is_declared_to_have_no_effect(kind):
    base, others = CASES[kind]
    assert {*inspect.signature(kind).parameters} == {*base, *others}, "an option without a test"
    before = identity_of(kind(**base))
    assert compare(before, identity_of(kind(**base))).changed == {}
    assert not unknown_in(before)
    for name, value in others.items():
        options = value if name == "format" else {name: value}
        changed = compare(before, identity_of(kind(**{**base, **options}))).changed
        assert bool(changed) != (name in kind.no_effect), f"{kind.__name__}({name}=...)"


@pytest.mark.parametrize("kind", REMOTE, ids=lambda kind: kind.__name__)
def test_every_option_of_a_reward_model_on_a_server_too(kind, tmp_path):
    folder, other = (checkpoints.save(tmp_path / name, two_labels(), chat_tokenizer(THINKS)) for name in "ab")
    values = {
        **SERVER, "tokenizer": chat_tokenizer(), "checkpoint": other, "format": separated_by("#"), "check": True,
        "reduction": "min", "judge": "thoughts", **PROMPTS, "append_eos": True, "label": 1,
    }  # fmt: skip
    before = identity_of(remote(kind, folder))
    assert "secret" not in str(identity_of(remote(kind, folder, api_key="secret", base_url="http://me:secret@here")))
    for name in inspect.signature(kind).parameters:
        if kind is r.VLLMRewardModel and name in ("tokenizer", "check"):
            continue  # the format knows its tokenizer, and the check asks the server
        found = identity_of(remote(kind, folder, **{name: values[name]}))
        assert bool(compare(before, found).changed) != (name in kind.no_effect), name


def test_the_setting_for_thoughts_is_part_of_a_generator():
    one, other = (HFGenerator(model(), byte_tokenizer()) for _ in range(2))
    other.thinking = Thinking("<think>", "</think>")
    assert compare(one.identity(), other.identity()).changed


def test_a_model_is_known_by_its_weights_and_not_by_its_folder(tmp_path):
    here, there = tiny_model(), tiny_model()
    there.config._name_or_path = "elsewhere"
    about = identity_of(here)
    assert about == identity_of(there)
    with torch.no_grad():
        there.get_input_embeddings().weight[0, 0] += 1
    assert {*compare(about, identity_of(there)).changed} == {"weights"}
    assert {*compare(about, identity_of(tiny_model().bfloat16())).changed} >= {"dtype"}
    here.generation_config.eos_token_id = [2, 7]
    assert {*compare(about, identity_of(here)).changed} == {"eos_token_id"}


def test_a_tokenizer_is_known_by_what_it_does():
    about = identity_of(chat_tokenizer())
    chat_tokenizer()(["a", "a b"], padding=True, truncation=True, max_length=3)
    assert identity_of(chat_tokenizer()) == about, "what the last call cut and filled is not what it is"
    assert {*compare(about, identity_of(chat_tokenizer(THINKS))).changed} == {"chat_template"}
    assert "vocabulary" in compare(about, identity_of(byte_tokenizer())).changed


def test_use_does_not_change_a_part():
    generator = HFGenerator(tiny_model(), byte_tokenizer(), max_new_tokens=6)
    reward = r.CachedProcessReward(r.LikelihoodReward(tiny_model(), byte_tokenizer()))
    before = identity_of(generator), identity_of(reward)
    inferscale.solve_batch(["a b", "b"], REBASE(2), generator, reward_model=reward)
    assert (identity_of(generator), identity_of(reward)) == before


def test_a_model_is_known_by_the_adapter_in_use_and_by_the_parts_of_quantised_weights():
    from torch.testing._internal.two_tensor import TwoTensor  # a weight made of several tensors, as torchao's are

    class Adapted(torch.nn.Linear):
        disable_adapters = False
        active_adapters = ("default",)

    assert "adapters" not in identity_of(tiny_model()), "transformers' method of that name is no sign of peft's"
    layer = Adapted(2, 2)
    known = identity_of(layer)
    layer.disable_adapters = True
    assert identity_of(layer) != known
    layer.disable_adapters, layer.active_adapters = False, ("other",)
    assert identity_of(layer) != known
    found = []
    for scale in (1.0, 1.0, 2.0):
        layer = torch.nn.Linear(2, 2)
        layer.weight = torch.nn.Parameter(TwoTensor(torch.ones(2, 2), torch.full((2, 2), scale)))
        layer.bias.data.zero_()
        found.append(identity_of(layer))
    assert found[0] == found[1] != found[2]


def test_the_state_of_4_bit_weights_is_not_asked_for():
    class Packed(torch.nn.Module):
        def __init__(self, values, shape):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(values, dtype=torch.uint8).view(shape), requires_grad=False)
            self.weight.quant_state = torch.empty(2, 4)
            self.norm = torch.nn.Parameter(torch.ones(2))

        def _save_to_state_dict(self, *args):
            raise AssertionError("bitsandbytes loses the scales here")

    known = identity_of(Packed([0x12, 0x34, 0x56, 0x78], (4, 1)))
    assert identity_of(Packed([0x81, 0x32, 0x47, 0x65], (2, 2))) == known, "turned about by its first forward"
    assert identity_of(Packed([0x12, 0x34, 0x56, 0x77], (4, 1))) != known
