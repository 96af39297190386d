"""The closed form, the exact count and torch's counter on live random models: equal as integers."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, StaticCache

from inferscale.flops import FlopCounter, FlopsWarning, VerificationError, forward_flops, model_spec
from inferscale.flops.calibration import closed_form
from tests.flops_models import HAND, build, hand_config, hand_model, random_config
from tests.tiny_models import cached

RANDOM_FAMILIES = [*HAND, "gemma", "olmo2", "granite"]
MIXTURES = {"mixtral", "qwen2_moe", "qwen3_moe"}


def tokens(model, rows, length):
    return torch.arange(rows * length).reshape(rows, length) % model.config.vocab_size


def both_counts(model, work):
    """What `work` costs by the closed form and op by op; every forward is compared on the way, too."""
    with torch.no_grad(), FlopCounter(model, mode="verify") as analytic:
        work()
    with torch.no_grad(), FlopCounter(model, mode="exact") as exact:
        work()
    assert not analytic.uncounted
    assert not exact.uncounted
    return analytic, exact


@pytest.mark.parametrize("family", HAND)
def test_hand_models(family):
    model = hand_model(family)
    ids = tokens(model, 2, 64)
    analytic, exact = both_counts(model, lambda: model(ids))
    assert (
        analytic.flops_of(convention="full")
        == exact.flops_of(convention="full")
        == forward_flops(model_spec(model.config), 64, batch=2).full
    )
    new = 24 if family == "llama" else 5
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    analytic, exact = both_counts(model, lambda: model.generate(ids, **options))
    assert analytic.flops_of(convention="full") == exact.flops_of(convention="full")
    assert analytic.tokens == exact.tokens == (2 * 64 + 2 * (new - 1), 2 * new, 0)
    if family == "llama":
        assert analytic.flops_of(convention="full") == 78_077_952


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_to_run_experts_is_counted(experts):
    model = hand_model("mixtral")
    model.set_experts_implementation(experts)
    analytic, exact = both_counts(model, lambda: model(tokens(model, 2, 64)))
    assert (exact.flops_of(convention="full"), analytic.flops) == (95_944_704, 91_815_936)


@pytest.mark.parametrize(
    ("task", "labels", "full", "causal"),
    [("SequenceClassification", 1, 55_590_912, 51_462_144), ("TokenClassification", 2, 55_607_296, 51_478_528)],
)
def test_reward_heads_run_at_every_position(task, labels, full, causal):
    model = hand_model("llama", task, num_labels=labels)
    analytic, exact = both_counts(model, lambda: model(tokens(model, 2, 64)))
    assert (analytic.flops_of(convention="full"), exact.flops_of(convention="full"), analytic.flops) == (
        full,
        full,
        causal,
    )


@pytest.mark.parametrize(
    ("name", "labels", "head"),
    [("Qwen2ForProcessRewardModel", 2, 64 * 64 + 64 * 2), ("ValueHeadForTokenClassification", 1, 64)],
)
def test_heads_of_published_process_reward_models(name, labels, head):
    from inferscale.rewards import huggingface as native

    model = getattr(native, name)(hand_config("qwen2", num_labels=labels)).eval()
    analytic, exact = both_counts(model, lambda: model(input_ids=tokens(model, 2, 64)))
    assert analytic.tally().head == exact.tally().head == 2 * 64 * 2 * head
    assert analytic.flops_of(convention="full") == exact.flops_of(convention="full")
    assert closed_form(model).num_layers == 4  # read off the configuration, not calibrated
    kept = torch.tensor([3, 9])
    analytic, _ = both_counts(model, lambda: model(input_ids=tokens(model, 2, 64), logits_to_keep=kept))
    assert analytic.tally().head == 2 * 2 * 2 * head


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
@pytest.mark.parametrize("family", RANDOM_FAMILIES)
def test_random_models(family, seed):
    rng = random.Random(f"{family}/{seed}")
    config = random_config(family, rng)
    model = build(config, attention=rng.choice(["sdpa", "eager"]))
    batch, first, second = rng.randint(1, 3), rng.randint(1, 24), rng.randint(1, 12)
    keep = rng.choice([0, 1, 2, first])

    def work():
        cache = DynamicCache(config=config)
        model(tokens(model, batch, first), **cached(model, cache), logits_to_keep=keep)
        model(tokens(model, batch, second), **cached(model, cache))
        model(tokens(model, batch, 1), **cached(model, cache))
        model(inputs_embeds=torch.zeros(batch, second, config.hidden_size))

    analytic, exact = both_counts(model, work)
    assert analytic.flops_of(convention="full") == exact.flops_of(convention="full")
    spec, kept = model_spec(config), min(keep, first) or first
    by_hand = (
        forward_flops(spec, first, batch=batch, logits=kept)
        + forward_flops(spec, second, first, batch)
        + forward_flops(spec, 1, first + second, batch)
        + forward_flops(spec, second, batch=batch)
    )
    assert (analytic.flops, analytic.flops_of(convention="full")) == (by_hand.causal, by_hand.full)
    assert spec.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.1)
    if family not in MIXTURES:  # torch's counter is blind to grouped products
        eager = build(config, attention="eager")
        with torch.no_grad(), FlopCounterMode(display=False) as theirs:
            eager(tokens(model, batch, first))
        assert theirs.get_total_flops() == forward_flops(spec, first, batch=batch).full


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_computed_and_counted(side):
    model = hand_model("llama")
    ids = tokens(model, 2, 64)
    mask = torch.ones_like(ids)
    mask[0, slice(0, 20) if side == "left" else slice(44, 64)] = 0
    analytic, exact = both_counts(model, lambda: model(ids, attention_mask=mask))
    assert analytic.flops_of(convention="full") == exact.flops_of(convention="full") == 60_817_408


def test_a_body_and_a_head_called_on_their_own_are_the_whole():
    model = hand_model("llama")
    ids = tokens(model, 2, 64)
    whole, _ = both_counts(model, lambda: model(ids, logits_to_keep=3))
    parts, _ = both_counts(model, lambda: model.lm_head(model.model(ids).last_hidden_state[:, -3:]))
    assert parts.flops == whole.flops
    assert parts.flops_of(convention="full") == whole.flops_of(convention="full")
    assert set(parts.flops_by("phase")) == {"prefill", "head"}


def test_a_static_cache_runs_its_whole_buffer():
    model = hand_model("llama")

    def work():
        cache = StaticCache(config=model.config, max_cache_len=48)
        model(tokens(model, 1, 16), **cached(model, cache))
        for _ in range(3):
            model(tokens(model, 1, 1), **cached(model, cache))

    with torch.no_grad(), FlopCounter(model) as analytic, FlopCounter(model, mode="exact") as exact:
        work()
    spec = model_spec(model.config)
    real = forward_flops(spec, 16) + sum(
        (forward_flops(spec, 1, 16 + i) for i in range(1, 3)), forward_flops(spec, 1, 16)
    )
    assert analytic.flops_of(convention="full") == real.full
    assert (
        0.95 * exact.flops_of(convention="full")
        < analytic.flops_of(convention="full")
        < exact.flops_of(convention="full")
    )


def test_verify_catches_a_lie():
    model = hand_model("llama")
    lie = model_spec({**model.config.to_dict(), "intermediate_size": 175})
    with pytest.raises(VerificationError, match=r"'generator'.*closed form says .* and 60,817,408 ran"):
        _forward(FlopCounter(generator=model, specs={"generator": lie}, mode="verify"), model)
    honest = FlopCounter(generator=model, mode="verify")
    _forward(honest, model)
    assert honest.flops_of(convention="full") == 60_817_408


def test_verify_accepts_a_difference_below_a_thousandth():
    model = hand_model("llama")
    almost = model_spec({**model.config.to_dict(), "vocab_size": 319})
    _forward(FlopCounter(generator=model, specs={"generator": almost}, mode="verify"), model)


def test_verify_names_products_outside_of_the_models():
    model = hand_model("llama")
    with pytest.warns(FlopsWarning, match="outside of the watched models"):
        _forward(FlopCounter(model, mode="verify"), lambda ids: torch.ones(3, 3) @ torch.ones(3, 3))


def _forward(counter, work):
    with torch.no_grad(), counter:
        work(torch.arange(128).reshape(2, 64))


def test_a_model_with_other_matrices_than_its_family_is_calibrated():
    plain = hand_model("llama")
    adapted = hand_model("llama")
    adapted.model.layers[1].mlp.down_proj = torch.nn.Sequential(
        torch.nn.Linear(176, 5, bias=False), torch.nn.Linear(5, 64, bias=False)
    )
    assert closed_form(plain).num_layers == 4
    spec = closed_form(adapted)
    assert spec.num_layers == 0
    assert spec.linear == closed_form(plain).linear - 2 * 176 * 64 + 2 * 5 * (176 + 64)
    both_counts(adapted, lambda: adapted(tokens(adapted, 2, 64)))


def test_parameters_of_a_live_model_are_exact():
    model = hand_model("gpt2")
    assert closed_form(model).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("given", ["gpt2", None, 7])
def test_what_is_no_configuration_is_told(given):
    with pytest.raises(TypeError, match=r"is no configuration: give model\.config"):
        model_spec(given)
