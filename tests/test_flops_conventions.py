"""The papers' ways of counting, against the papers' numbers."""

from dataclasses import replace

import pytest

from inferscale.flops import CONVENTIONS, estimate_flops, forward_flops, model_spec
from inferscale.flops.ledger import ForwardShape, Tally, count
from tests.test_flops_formulas import LLAMA_134M, MISTRAL_7B, SMALL

GPT2_SMALL = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}


def sampled(tokens):
    return Tally(sampled=tokens)


@pytest.mark.parametrize(
    ("size", "tokens", "samples", "printed"),
    [(7e9, 280, 32, 125.4), (34e9, 280, 8, 152.3), (7e9, 304, 32, 136.2), (8e9, 240, 32, 122.9)],
)
def test_the_axis_of_inference_scaling_laws(size, tokens, samples, printed):
    flops = estimate_flops(
        MISTRAL_7B, prompt=100, new=tokens, n=samples, convention="2N_nominal", nominal_parameters=size
    )
    assert flops == 2 * size * tokens * samples
    assert round(flops / 1e12, 1) == pytest.approx(printed, abs=0.06)


def test_the_largest_sampling_run_of_inference_scaling_laws():
    spec = model_spec(MISTRAL_7B, nominal_parameters=7e9)
    flops = count("2N_nominal", sampled(62_400), spec)  # 256 samples of 243.75 tokens; printed as 8.70e14
    assert flops == 873_600_000_000_000


def test_nominal_sizes_are_never_guessed():
    with pytest.raises(ValueError, match="nominal_parameters=7e9"):
        estimate_flops(MISTRAL_7B, prompt=1, new=1, convention="2N_nominal")


def test_the_charged_column_of_quiet_star_and_rebase():
    spec = model_spec(MISTRAL_7B)
    assert count("abdelhameed2024", sampled(1), spec) == 7_650_672_640
    assert count("abdelhameed2024", sampled(187_756), spec) / 128 == 11_222_341_345_280
    assert count("abdelhameed2024", sampled(212_950), spec) / 128 == 12_728_208_896_000
    assert count("abdelhameed2024", sampled(409 * 96), spec) / 128 == 2_346_843_832_320
    assert spec.linear + spec.head == 14_220_787_712
    assert (spec.linear + spec.head) / 7_650_672_640 == pytest.approx(1.859, abs=5e-4)
    assert 2 * spec.parameters / 7_650_672_640 == pytest.approx(1.893, abs=5e-4)


def test_kaplan_is_the_causal_average_up_to_one_token():
    spec = model_spec(GPT2_SMALL)
    context = count("kaplan", ForwardShape(1024).tally(spec), spec) - 2 * 84_934_656 * 1024
    assert context == 18_874_368 * 1024
    assert forward_flops(spec, 1024).attention_causal == 18_892_800 * 1024


@pytest.mark.parametrize(
    ("convention", "new", "past", "ratio"),
    [
        ("2N", 256, 0, 1.174),
        ("2N", 1, 256, 1.174),
        ("chinchilla", 256, 0, 1.050),
        ("chinchilla", 1, 256, 1.050),
        ("kaplan", 1, 256, 0.599),
    ],
)
def test_conventions_beside_the_exact_count_of_a_134m_llama(convention, new, past, ratio):
    spec = model_spec(LLAMA_134M)
    flops = count(convention, ForwardShape(new, past).tally(spec), spec)
    assert flops / forward_flops(spec, new, past).full == pytest.approx(ratio, abs=6e-4)


def test_two_n_of_a_mixture_counts_every_expert():
    spec = model_spec(SMALL | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2})
    assert count("2N", ForwardShape(64, batch=2).tally(spec), spec) / 91_815_936 == pytest.approx(3.3, abs=0.1)


def test_a_convention_without_its_facts_says_so():
    with pytest.raises(ValueError, match="needs the shape of 'prm'"):
        count("kaplan", Tally(), None, "prm")
    calibrated = replace(model_spec(SMALL), num_layers=0)
    with pytest.raises(ValueError, match="calibrated closed form has none"):
        count("chinchilla", Tally(), calibrated)
    assert set(CONVENTIONS) == {"causal", "full", "2N", "2N_nominal", "kaplan", "chinchilla", "abdelhameed2024"}
