"""Closed forms against numbers worked out by hand and by brute force; nothing here runs a model."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferscale.flops import UnknownArchitectureError, estimate_flops, forward_flops, model_spec
from inferscale.flops.spec import Flops, causal_pairs, full_pairs

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 172,
    "vocab_size": 256,
}
LLAMA_134M = LLAMA | {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "intermediate_size": 2048,
    "vocab_size": 32000,
}
SMALL = LLAMA | {"num_hidden_layers": 4, "intermediate_size": 176, "vocab_size": 320}
MISTRAL_7B = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "sliding_window": None,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

counts = st.integers(0, 60)
windows = st.one_of(st.none(), st.integers(1, 20))


@pytest.mark.parametrize(
    ("config", "call", "full", "causal"),
    [
        (LLAMA, {"new": 256}, 88_342_528, 71_630_848),
        (LLAMA, {"new": 256, "logits": 1}, 79_986_688, 63_275_008),
        (LLAMA, {"new": 256, "batch": 4}, 353_370_112, 286_523_392),
        (LLAMA, {"new": 1, "past": 256}, 345_600, 345_600),
        (LLAMA_134M, {"new": 256}, 58_485_374_976, 57_282_134_016),
        (LLAMA_134M, {"new": 256, "logits": 1}, 45_951_614_976, 44_748_374_016),
        (LLAMA_134M, {"new": 1, "past": 256}, 228_495_360, 228_495_360),
        (SMALL, {"new": 64, "batch": 2}, 60_817_408, 56_688_640),
        (SMALL, {"new": 64, "batch": 2, "logits": 1}, 55_656_448, 51_527_680),
        (SMALL, {"new": 1, "past": 64, "batch": 2}, 952_320, 952_320),
        (SMALL | {"model_type": "qwen2"}, {"new": 64, "batch": 2}, 60_817_408, 56_688_640),
        (SMALL | {"model_type": "phi3"}, {"new": 64, "batch": 2}, 60_817_408, 56_688_640),
        (SMALL | {"model_type": "mistral", "sliding_window": 32}, {"new": 64, "batch": 2}, 60_817_408, 55_607_296),
        (SMALL | {"model_type": "qwen3", "head_dim": 32}, {"new": 64, "batch": 2}, 81_788_928, 73_531_392),
        (SMALL | {"model_type": "gpt_neox"}, {"new": 64, "batch": 2}, 53_477_376, 49_348_608),
        (
            {"model_type": "gpt2", "n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 320},
            {"new": 64, "batch": 2},
            63_963_136,
            59_834_368,
        ),
        (
            SMALL | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
            {"new": 64, "batch": 2},
            95_944_704,
            91_815_936,
        ),
        (
            SMALL | EXPERTS | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 96},
            {"new": 64, "batch": 2},
            64_552_960,
            60_424_192,
        ),
        (
            SMALL | EXPERTS | {"model_type": "qwen3_moe", "head_dim": 32},
            {"new": 64, "batch": 2},
            66_584_576,
            58_327_040,
        ),
        (
            SMALL | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1},
            {"new": 64, "batch": 2},
            55_590_912,
            51_462_144,
        ),
        (
            SMALL | {"architectures": ["LlamaForTokenClassification"], "num_labels": 2},
            {"new": 64, "batch": 2},
            55_607_296,
            51_478_528,
        ),
    ],
)
def test_hand_numbers(config, call, full, causal):
    flops = forward_flops(model_spec(config), **call)
    assert (flops.full, flops.causal) == (full, causal)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_gemma_slides_in_some_layers_only(family):
    spec = model_spec(SMALL | {"model_type": family, "head_dim": 32, "sliding_window": 32, "num_hidden_layers": 6})
    sliding, total = (3, 6) if family == "gemma2" else (5, 6)
    by_window = {group.window: group.per_pair for group in spec.attention}
    assert by_window == {32: 4 * 4 * 32 * sliding, None: 4 * 4 * 32 * (total - sliding)}
    assert forward_flops(model_spec(SMALL | {"model_type": family, "head_dim": 32}), 64, batch=2).full == 81_788_928


def test_generating_is_a_prefill_and_one_decode_less_than_tokens():
    spec = model_spec(SMALL)
    steps = [forward_flops(spec, 64, batch=2, logits=1)]
    steps += [forward_flops(spec, 1, past, batch=2) for past in range(64, 87)]
    total = sum(steps, Flops())
    assert total.full == 78_077_952
    assert estimate_flops(SMALL, prompt=64, new=24, n=2, shared_prefix=False, convention="full") == 78_077_952
    assert estimate_flops(SMALL, prompt=64, new=24, n=2, shared_prefix=False) == total.causal


@given(counts, counts, windows)
def test_pairs_are_what_a_mask_lets_through(new, past, window):
    queries = range(past, past + new)
    seen = sum(1 for q in queries for k in range(past + new) if k <= q and (window is None or k > q - window))
    assert causal_pairs(new, past, window) == seen
    kept = past if window is None else min(past, window - 1)  # a sliding cache keeps window - 1 tokens
    assert full_pairs(new, past, window) == new * (kept + new)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 5), windows.filter(lambda w: w != 1))
def test_identities(first, second, batch, window):
    config = SMALL | {"model_type": "mistral", "sliding_window": window}
    spec = model_spec(config)
    assert forward_flops(spec, first, batch=batch) == batch * forward_flops(spec, first)
    whole = forward_flops(spec, first + second)
    pieces = forward_flops(spec, first) + forward_flops(spec, second, past=first)
    assert whole.causal == pieces.causal
    decodes = sum((forward_flops(spec, 1, first + i) for i in range(second)), Flops())
    assert decodes.full == decodes.causal == forward_flops(spec, second, past=first).causal


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 6), windows)
def test_estimates_are_sums_of_forwards(prompt, new, n, window):
    config = SMALL | {"model_type": "mistral", "sliding_window": window}
    spec = model_spec(config)
    decodes = sum((forward_flops(spec, 1, prompt + i, batch=n) for i in range(new - 1)), Flops())
    for convention in ("causal", "full"):
        for shared, rows in ((True, 1), (False, n)):
            expected = forward_flops(spec, prompt, batch=rows, logits=1) + decodes
            got = estimate_flops(config, prompt=prompt, new=new, n=n, shared_prefix=shared, convention=convention)
            assert got == getattr(expected, convention)


def test_half_filled_configurations_take_the_defaults_of_their_class():
    qwen = SMALL | {"model_type": "qwen2", "sliding_window": 16, "max_window_layers": 1}
    assert [group.window for group in model_spec(qwen).attention] == [None]  # use_sliding_window is off
    switched = model_spec(qwen | {"use_sliding_window": True})
    assert {group.window: group.per_pair for group in switched.attention} == {None: 256, 16: 3 * 256}
    assert model_spec(SMALL | {"model_type": "qwen3"}).head_dim == 128
    assert model_spec(SMALL | {"model_type": "gemma2"}).head_dim == 256
    no_gqa = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    assert model_spec(no_gqa) == model_spec(no_gqa | {"num_key_value_heads": 4})
    assert (
        model_spec({"model_type": "gemma3", "text_config": SMALL | {"model_type": "gemma3_text"}}).family
        == "gemma3_text"
    )


def test_errors_say_what_to_do():
    with pytest.raises(UnknownArchitectureError, match=r"model_type 'mamba'.*calibrate\(model\)"):
        model_spec({"model_type": "mamba"})
    with pytest.raises(ValueError, match="has no 'hidden_size'"):
        model_spec({"model_type": "llama"})
    with pytest.raises(UnknownArchitectureError, match="not a causal decoder"):
        model_spec(SMALL | {"model_type": "gpt2", "add_cross_attention": True})
    with pytest.raises(UnknownArchitectureError, match="head of LlamaForQuestionAnswering"):
        model_spec(SMALL | {"architectures": ["LlamaForQuestionAnswering"]})
    with pytest.raises(ValueError, match="prompt=0"):
        estimate_flops(SMALL, prompt=0, new=3)
    with pytest.raises(ValueError, match="unknown convention 'macs'"):
        estimate_flops(SMALL, prompt=1, new=3, convention="macs")


def test_closed_forms_need_no_torch():
    code = (
        "import sys; from inferscale.flops import estimate_flops, forward_flops, model_spec\n"
        f"assert estimate_flops({LLAMA!r}, prompt=8, new=4) > 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
