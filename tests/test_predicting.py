"""Costs before anything is run, against closed forms by hand; prices, and budgets of money."""

import json
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest

import inferscale as isc
from inferscale.cli import app
from inferscale.flops import forward_flops, model_spec
from inferscale.scaling import DEVICES, Device, device, predict_cost
from inferscale.testing import ToyGenerator, ToyProcessReward
from tests.tiny_models import tiny_config

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
SPEC = model_spec(CONFIG)
SLOW = Device("slow", flops=1e9, bandwidth=1e6)
CACHED = 4 * sum(group.kv_width for group in SPEC.attention)  # bytes of a token's keys and values in float32


def predicted(strategy, config=CONFIG, **options):
    given = {"prompt": 10, "new": 5, "step": 2, "device": SLOW, "bytes_per_number": 4, "samples": 1, **options}
    return predict_cost(config, strategy, **given)


def test_samples_cost_their_closed_form():
    found = predicted(isc.RepeatedSampling(3))
    prompt, sample = forward_flops(SPEC, 10, logits=1).causal, forward_flops(SPEC, 4, 10, logits=4).causal
    assert found.generator_flops == prompt + 3 * sample
    assert (found.tokens, found.scored_tokens, found.reward_flops) == (15, 0, 0)
    assert found.rounds == 1 + 4  # the prompt, and each token but the last
    weights = 4 * SPEC.active_weights
    # The prompt is written once; four forwards read it once for all rows, and what each row has read before, and write.
    cache = CACHED * (10 + 4 * 10 + 3 * (0 + 1 + 2 + 3) + 3 * 4)
    assert found.cache_bytes == cache
    assert found.generator_bytes == (1 + 4) * weights + cache
    assert found.memory_bytes == 4 * SPEC.parameters + CACHED * (10 + 15)
    assert found.eflops == found.flops + 1000 * cache


def test_seconds_are_the_greater_of_compute_and_memory_and_the_launches():
    found = predicted(isc.RepeatedSampling(3))
    prompt = forward_flops(SPEC, 10, logits=1).causal
    assert found.phases["prefill"] == pytest.approx(max(prompt / 1e9, (4 * SPEC.active_weights + CACHED * 10) / 1e6))
    assert found.phases["decode"] == pytest.approx(
        (found.generator_bytes - 4 * SPEC.active_weights - CACHED * 10) / 1e6
    )
    late = predicted(isc.RepeatedSampling(3), device=Device("late", 1e9, 1e6, latency=1.0))
    assert late.seconds == pytest.approx(found.seconds + 5)
    shared = predicted(isc.RepeatedSampling(3), device=Device("late", 1e9, 1e6, latency=1.0), batch=5)
    assert shared.flops == found.flops
    assert shared.seconds < late.seconds - 4


def test_what_the_prediction_says_is_what_a_search_draws():
    for strategy in (isc.REBASE(4), isc.BeamSearch(1, 4), isc.DVTS(1, 4), isc.RepeatedSampling(4)):
        found = predicted(strategy, reward=CONFIG)
        assert 4 * 5 - 4 <= found.tokens <= 4 * 5
        assert found.reward_flops > 0
        assert found.rounds > predicted(isc.RepeatedSampling(4)).rounds
    assert predicted(isc.REBASE(4), reward=CONFIG).phases["score"] > 0


def test_what_is_not_known_is_none():
    found = predicted(isc.RepeatedSampling(2))
    assert (found.joules, found.money) == (None, None)
    known = predicted(isc.RepeatedSampling(2), device=Device("warm", 1e9, 1e6, watts=10.0), price=isc.Price(hour=3600))
    assert known.joules == pytest.approx(10 * known.seconds)
    assert known.money == pytest.approx(known.seconds)
    row = json.loads(json.dumps(known.to_dict()))
    assert (row["format"], row["version"], row["eflops"]) == ("inferscale.Prediction", 2, known.eflops)


def test_bad_input_is_refused():
    for number in (0, -2, float("nan")):
        with pytest.raises(ValueError, match="give 2 for bfloat16"):
            predicted(isc.RepeatedSampling(2), bytes_per_number=number)
    for options in ({"prompt": 0}, {"new": 1.5}, {"batch": 0}):
        with pytest.raises(ValueError, match="whole number of 1 or more"):
            predicted(isc.RepeatedSampling(2), **options)
    with pytest.raises(ValueError, match="choose cpu or one of"):
        device("h300")
    with pytest.raises(ValueError, match="greater than 0"):
        Device("none", 0, 1)
    with pytest.raises(ValueError, match="watts must be greater than 0"):
        Device("cold", 1, 1, watts=-5)
    assert device("H200") is device("h200") is DEVICES["h200"]


def test_prices_by_hand():
    cost = isc.Cost(prompt_tokens=1000, generated_tokens=500, thought_tokens=500, seconds=36.0)
    assert isc.Price(input=2, output=10, hour=100).of(cost) == pytest.approx(0.002 + 0.01 + 1.0)
    for prices in ({}, {"input": -1}, {"hour": float("inf")}):
        with pytest.raises(ValueError, match="prices of 0 or more"):
            isc.Price(**prices)


def test_money_ends_a_search_as_flops_do():
    budget = isc.Budget(money=20e-6, price=isc.Price(output=1.0))  # about twenty tokens
    result = isc.solve("How many?", isc.REBASE(16), ToyGenerator(), reward_model=ToyProcessReward(), budget=budget)
    assert result.stopped_by == "money"
    assert result.cost.tokens >= 20
    with pytest.raises(ValueError, match="belong together"):
        isc.Budget(money=1.0)
    with pytest.raises(ValueError, match="belong together"):
        isc.Budget(tokens=1, price=isc.Price(hour=1))


def test_a_budget_without_money_has_the_identity_that_older_runs_recorded():
    from inferscale.identity import identity_of

    found = identity_of(isc.Budget(tokens=5))
    assert found == {"class": "inferscale.cost.Budget", "tokens": 5, "flops": None, "seconds": None, "calls": None}
    assert identity_of(isc.Budget(money=1, price=isc.Price(hour=1)))["money"] == 1


def test_a_plan_by_money(tmp_path):
    price = isc.Price(input=1.0, output=2.0)
    problems = [isc.Problem(f"Problem {i}?", answer=str(i % 4)) for i in range(30)]
    plan = isc.plan(problems, ToyGenerator(), budgets=isc.Budget(money=1e-3, price=price),
                    strategies=[isc.RepeatedSampling(2)])  # fmt: skip
    (choice,) = plan.choices
    assert choice.tried.costs["money"] == pytest.approx((2 * 1 + choice.tried.costs["tokens"] * 2) / 1e6)
    assert isc.Plan.load(plan.save(tmp_path / "plan.json")) == plan


def test_a_plan_by_joules():
    meter = SimpleNamespace(source="steady", read=count().__next__)  # a joule between two readings
    problems = [isc.Problem(f"Problem {i}?", answer=str(i % 4)) for i in range(30)]
    plan = isc.plan(problems, ToyGenerator(), budgets=isc.Budget(joules=1), strategies=[isc.RepeatedSampling(2)],
                    batch_size=1, energy=meter)  # fmt: skip
    # One call draws both samples of a problem; of one of them half is told.
    assert {tried.configuration.strategy.n: tried.costs["joules"] for tried in plan.tried} == {1: 0.5, 2: 1.0}


def test_the_command_line_predicts(capsys):
    words = "cost --model policy-xs --strategy rebase:4 --reward prm-xs --device h200 --prompt 64 --new 64"
    app(words.split(), standalone_mode=False)
    text = capsys.readouterr().out
    assert "forwards in a row" in text
    assert "not known: give a price" in text
    app(["cost", "--model", "policy-xs", "--device", "h200", "--hour-price", "3", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["money"] > 0


def printed(capsys, *words):
    app(["cost", "--device", "h200", "--json", *map(str, words)], standalone_mode=False)
    told = capsys.readouterr()
    return json.loads(told.out), told.err


def test_the_command_prices_families_without_a_closed_form(capsys, tmp_path):
    tiny_config("opt").save_pretrained(tmp_path)  # a family without a closed form
    row, said = printed(capsys, "--model", tmp_path, "--strategy", "sampling:2")
    assert row["cache_bytes"] > 0
    assert said == ""
    (tmp_path / "quiet_star.json").write_text("{}")
    assert "thoughts are left out" in printed(capsys, "--model", tmp_path, "--strategy", "greedy")[1]


def test_recurrent_states_are_predicted_as_they_are_measured():
    recurrent = replace(SPEC, attention=(), states=(30, 7))
    found = predicted(isc.RepeatedSampling(2), config=recurrent, bytes_per_number=2)
    assert found.cache_bytes == (1 + 2 * 2 * 4) * (2 * 30 + 4 * 7)  # one prompt; of two rows four steps
    assert found.memory_bytes == 2 * SPEC.parameters + 2 * (2 * 30 + 4 * 7)
