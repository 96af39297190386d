"""Closed forms measured on live models of architectures that no closed form is known for."""

import math
import random

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from inferscale._compat import cache_argument
from inferscale.flops import (
    CalibrationError,
    FlopCounter,
    UnknownArchitectureError,
    calibrate,
    calibration,
    estimate_flops,
    forward_flops,
    model_spec,
)
from inferscale.flops.calibration import closed_form
from inferscale.flops.spec import encoder_pairs, interpolated
from inferscale.rewards import HFOutcomeRewardModel
from tests.flops_models import ENDS, HAND, SHAPE, build, hand_model, random_config
from tests.reward_checkpoints import pair_tokenizer, solution
from tests.tiny_models import cache_of, cached

PLAIN = {key: SHAPE[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")}
OLD = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 320}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_group": 2, "topk_group": 1}
FOREIGN = {
    "OPT": {**PLAIN, "ffn_dim": 176, "word_embed_proj_dim": 64},
    "Bloom": {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 320},
    "Falcon": PLAIN,
    "Phi": {**PLAIN, "intermediate_size": 176},
    "GPTJ": {**OLD, "rotary_dim": 8},
    "Olmoe": {**SHAPE, "num_experts": 4, "num_experts_per_tok": 2},
    "Cohere": SHAPE,
    "StableLm": SHAPE,
    "SmolLM3": SHAPE,
    "DeepseekV3": {**SHAPE, "num_key_value_heads": 4, **LATENT, **ROUTED},
}


def foreign_model(name):
    return build(getattr(transformers, f"{name}Config")(**{**FOREIGN[name], **ENDS}))


def tokens(rows, length):
    return torch.arange(rows * length).reshape(rows, length) % 300


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_architectures_are_counted_exactly(name):
    model = foreign_model(name)
    with pytest.raises(UnknownArchitectureError):
        model_spec(model.config)
    with torch.no_grad(), FlopCounter(model, mode="verify") as analytic, FlopCounter(model, mode="exact") as exact:
        cache = cache_of(model, model(tokens(2, 20), use_cache=True, logits_to_keep=1))
        cache = cache_of(model, model(tokens(2, 1), **cached(model, cache)))
        model(tokens(2, 7), **cached(model, cache))
    assert analytic.flops_of(convention="full") == exact.flops_of(convention="full") > 0
    assert analytic.flops < exact.flops_of(convention="full")
    assert (
        analytic.flops_of(convention="2N") == 2 * sum(p.numel() for p in model.parameters()) * analytic.tokens.forwarded
    )


def test_a_decoder_inside_of_the_body_is_counted_when_it_runs_on_its_own():
    model = foreign_model("OPT")
    totals = []
    for part in (model.model, model.model.decoder):
        with torch.no_grad(), FlopCounter(model, mode="verify") as counter:
            part(tokens(2, 20))
        totals.append(counter.flops)
    assert totals[0] == totals[1] > 0


@pytest.mark.parametrize("family", HAND)
def test_calibration_finds_the_closed_forms_that_are_known(family):
    model = build(random_config(family, random.Random(7))) if family not in ("mistral", "phi3") else hand_model(family)
    found, known = calibrate(model), model_spec(model.config)
    assert (found.linear, found.head, found.cached) == (known.linear, known.head, 0)
    assert {(g.window, g.per_pair) for g in found.attention} == {(g.window, g.per_pair) for g in known.attention}


def test_calibration_on_the_meta_device_needs_no_weights():
    config = transformers.OPTConfig(**FOREIGN["OPT"], **ENDS)
    assert calibrate(config) == calibrate(build(config))


def test_a_calibrated_form_estimates():
    spec = calibrate(foreign_model("OPT"))
    assert estimate_flops(spec, prompt=9, new=1) == forward_flops(spec, 9, logits=1).causal
    with pytest.raises(ValueError, match="calibrated closed form has none"):
        estimate_flops(spec, prompt=9, new=1, convention="kaplan")


def test_calibration_leaves_the_model_and_the_random_numbers_alone():
    model = foreign_model("OPT").train()
    model.model.decoder.layers[0].eval()
    before = [part.training for part in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with FlopCounter(model) as counter:
        calibrate(model)
    assert torch.equal(torch.rand(3), expected)
    assert [part.training for part in model.modules()] == before
    assert (counter.flops, counter.uncounted) == (0, {})


def state_space():
    return build(transformers.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=50, state_size=4))


def linear_attention():
    config = transformers.Qwen3NextConfig(
        **{**SHAPE, "num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    return build(config)


RECURRENT = {
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 4}),
    "mamba2": (
        "Mamba2",
        {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 4}
        | {"n_groups": 2, "chunk_size": 8},
    ),
    "rwkv": ("Rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "attention_hidden_size": 32}),
}


# What torch's counter does not know: a solve with a triangular matrix [..., n, n] is n (n + 1) / 2 multiply-adds a
# column, of a product by groups, [m, k] with [g, k, n], every row takes part in one, and attention on a CPU.
UNKNOWN = {
    torch.ops.aten.linalg_solve_triangular: lambda a, b, *_, **__: math.prod(b) * a[-1],
    torch.ops.aten._grouped_mm: lambda a, b, *_, **__: 2 * math.prod(a) * b[-1],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])
    ),
}


def recurrent_model(family):
    if family == "qwen3_next":
        return linear_attention()
    kind, sizes = RECURRENT[family]
    return build(getattr(transformers, f"{kind}Config")(**sizes, **ENDS))


@pytest.mark.parametrize(
    "family", ["mamba2", "rwkv", *(pytest.param(family, marks=pytest.mark.slow) for family in ("mamba", "qwen3_next"))]
)
def test_recurrent_layers_are_counted_exactly(family):
    model = recurrent_model(family)
    spec = closed_form(model)
    name = "state" if family == "rwkv" else cache_argument(model)
    with torch.no_grad():
        for length in (2, 16, 40):
            kept = {"logits_to_keep": 1}
            with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as prompt:
                cache = getattr(model(tokens(1, length), use_cache=True, **kept), name)
            with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as step:
                model(tokens(1, 1), use_cache=True, **{name: cache}, **kept)
            assert forward_flops(spec, length, logits=1).full == pytest.approx(prompt.get_total_flops(), rel=2e-3)
            assert forward_flops(spec, 1, length, logits=1).full == step.get_total_flops()


def test_a_state_space_layer_by_hand():
    """Of two projections, a convolution and a scan; torch computes one number of the convolution twice."""
    model = state_space()
    width, inner, rank, state, taps = 32, 64, 2, 4, 4
    step = 2 * (width * 2 * inner + inner * (rank + 2 * state) + rank * inner + inner * width)
    step += 2 * (2 * inner * taps) + 2 * inner * state
    spec = closed_form(model)
    assert (spec.linear, spec.head, spec.attention) == (step, 2 * width * 50, ())
    assert spec.states == (inner * taps, inner * state)  # the convolution's inputs; the state, in float32
    assert forward_flops(spec, 7, 3).causal == 7 * (step + 2 * width * 50)  # however it is cut into steps
    assert forward_flops(spec, 7).full != forward_flops(spec, 7).causal == forward_flops(spec, 7, 9).causal


def test_windows_that_differ_in_more_than_length_are_told_apart():
    config = transformers.Gemma3TextConfig(**{**SHAPE, "head_dim": 32, "sliding_window": 12}, **ENDS)
    known, model = model_spec(config), build(config)
    assert set(calibrate(model).attention) == set(known.attention)


def test_values_between_measured_lengths_follow_lines_and_parabolas():
    for function in (lambda n: 4 * n + 1, lambda n: 3 * n * n - 7 * n + 5):
        points = [(n, function(n)) for n in (2, 3, 4, 8, 16, 32)]
        assert [interpolated(points, n) for n in range(2, 33)] == [function(n) for n in range(2, 33)]
    assert interpolated([(2, 9), (4, 13), (8, 21)], 100) == 205


def test_a_form_is_found_once_for_a_configuration(monkeypatch):
    monkeypatch.setattr(calibration, "_forms", {})
    calls = []
    honest = calibration._stepwise
    monkeypatch.setattr(calibration, "_stepwise", lambda *given: calls.append(1) or honest(*given))
    assert calibrate(state_space()) == calibrate(state_space())
    assert len(calls) == 1


def test_keys_and_values_are_those_of_the_cache():
    config = transformers.LlamaConfig(**SHAPE, **ENDS)
    found = calibrate(build(config))
    assert (found.attention, found.states) == (model_spec(config).attention, (0, 0))
    kept = [calibration._Kept(None, 7 * tokens + tokens // 5, 0) for tokens in (4, 8)]  # no width a token
    assert calibration._keeping(found, 4, kept[:1], 8, kept[1:]).states is None
    beside = [calibration._Kept(6, 7 * min(tokens, 5) + tokens // 4, 0) for tokens in (4, 8)]  # a window, and more
    assert calibration._keeping(found, 4, beside[:1], 8, beside[1:]).states is None
    nothing = [calibration._Kept(None, 0, 0)]
    assert calibration._keeping(found, 4, nothing, 8, nothing).states is None


class Quadratic(torch.nn.Module):
    """A model whose cost grows with the length of the cache in its own way."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(8))

    def forward(self, input_ids, past_key_values=None, use_cache=True):
        length = input_ids.shape[1] + (0 if past_key_values is None else past_key_values)
        for _ in range(length**2):
            torch.ones(input_ids.shape[1], 8) @ self.weight
        return type("Output", (), {"past_key_values": length})()


def test_the_check_point_refuses_what_does_not_fit():
    with pytest.raises(CalibrationError, match="5 tokens on a cache of 3 should be"):
        calibrate(Quadratic())


# Encoders.

_BERT = {**PLAIN, "intermediate_size": 176, "num_labels": 1, "max_position_embeddings": 130, "pad_token_id": 0}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
ENCODERS = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "albert": {"embedding_size": 16},
    "electra": {"embedding_size": 16},
    "distilbert": {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 176},
    "mpnet": {"pad_token_id": 1},
    "deberta": _RELATIVE,
    "deberta-v2": {**_RELATIVE, "position_buckets": 16, "share_att_key": True, "position_biased_input": False},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2}
    | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4},
}


def encoder(family, head="SequenceClassification"):
    """A random encoder whose attention torch's own counter knows too."""
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[family](**{**_BERT, **ENCODERS[family]})
    auto_class = getattr(transformers, f"AutoModelFor{head}")
    return auto_class.from_config(config, attn_implementation="eager").eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("family", "head"),
    [(family, "SequenceClassification") for family in ENCODERS]
    + [(family, "TokenClassification") for family in ("bert", "deberta-v2", "modernbert")],
)
def test_encoders_are_counted_exactly(family, head):
    model = encoder(family, head)
    spec = closed_form(model)
    for rows, length in ((1, 40), (3, 57)):
        mask = torch.ones(rows, length, dtype=torch.long)
        mask[0, length // 2 :] = 0  # padding is run
        inputs = {"input_ids": tokens(rows, length), "attention_mask": mask}
        with FlopCounterMode(display=False) as theirs:
            model(**inputs)
        with FlopCounter(model, mode="verify") as analytic, FlopCounter(model, mode="exact") as exact:
            model(**inputs)
        assert not analytic.uncounted
        assert (
            forward_flops(spec, length, batch=rows).full
            == theirs.get_total_flops()
            == analytic.flops_of(convention="full")
            == exact.flops_of(convention="full")
        )
        # every token sees every other, but for windows
        assert (analytic.flops == theirs.get_total_flops()) == (family != "modernbert")


def test_an_encoder_by_hand():
    spec, width, length = closed_form(encoder("bert")), 64, 40
    layer = 4 * 2 * width * width + 2 * 2 * width * 176  # queries, keys, values, output; up and down
    assert (spec.linear, spec.head) == (PLAIN["num_hidden_layers"] * layer, 0)
    assert spec.per_row == 2 * width * width + 2 * width  # the pooler and the label, at the first token
    pairs = PLAIN["num_hidden_layers"] * 4 * width * length * length
    assert forward_flops(spec, length).causal == length * spec.linear + pairs + spec.per_row
    assert spec.parameters == sum(p.numel() for p in encoder("bert").parameters())


def test_what_the_relative_positions_of_deberta_cost():
    spec, width = closed_form(encoder("deberta-v2")), 64
    # keys and queries of 2 * 16 relative positions are projected once for each layer and forward
    assert spec.per_forward == PLAIN["num_hidden_layers"] * 2 * (2 * 16) * width * width * 2
    first = closed_form(encoder("deberta"))
    assert (first.per_forward, first.per_position > 0) == (0, True)  # the first version takes as many as the text has


def test_the_pairs_of_an_encoders_window():
    mask = (torch.arange(40)[:, None] - torch.arange(40)).abs() <= 8  # local_attention=16: 8 on either side
    [window] = [group for group in closed_form(encoder("modernbert")).attention if group.window]
    assert (window.window, window.is_causal) == (17, False)
    assert encoder_pairs(40, 17) == int(mask.sum())
    assert [encoder_pairs(n, 17) for n in (1, 9, 10)] == [1, 81, 98]


def test_encoders_with_another_cost_are_refused():
    config = transformers.BigBirdConfig(**{**_BERT, "max_position_embeddings": 1024})
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with pytest.raises(CalibrationError, match="attends to blocks of long texts"):
        closed_form(model)
    model = transformers.AutoModelForSequenceClassification.from_config(transformers.FNetConfig(**_BERT)).eval()
    with pytest.raises(CalibrationError, match=r"_fft_c2c\.default, which has no formula"):
        closed_form(model)


def test_outcome_rewards_of_encoders_are_billed():
    model = encoder("deberta-v2")
    reward = HFOutcomeRewardModel(model, pair_tokenizer())
    nodes = [solution("b a", [" a is 12" * n]) for n in (1, 4)]
    for node, cost in zip(nodes, reward.cost(nodes), strict=True):
        pair = pair_tokenizer()(node.problem.prompt, node.text, return_tensors="pt")
        with FlopCounterMode(display=False) as theirs:
            model(**pair)
        assert cost.scored_tokens == pair["input_ids"].numel()
        assert cost.reward_flops == theirs.get_total_flops()
