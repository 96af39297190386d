"""Costs beside FLOPs: bytes and rounds by closed forms, seconds by phase, and what is not known."""

import asyncio
import json
from dataclasses import replace

import pytest

import inferscale as isc
from inferscale.cost import Cost
from inferscale.flops import closed_form, model_spec
from inferscale.flops.traffic import RowGroup, count_traffic
from inferscale.generators import HFGenerator
from inferscale.rewards import GenerativeVerifier, HFProcessRewardModel
from inferscale.scaling import Device, predict_cost
from inferscale.testing import ToyGenerator, ToyReward
from tests.test_reward_verifiers import answering_tokenizer, causal
from tests.tiny_models import byte_tokenizer, tiny_model

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
SPEC = model_spec(CONFIG)
WIDTH = sum(group.kv_width for group in SPEC.attention)


def endless(**options):
    """A generator whose completions all have eight tokens."""
    tokenizer = byte_tokenizer()
    given = {"eos_token_id": len(tokenizer) - 1, "max_new_tokens": 8, "max_step_tokens": 4, "step_delimiter": "\x00"}
    return HFGenerator(tiny_model(), tokenizer, **{**given, **options})


def by_loop(batch):
    """Forwards, cached tokens read and written, and states read and written, forward by forward."""
    read = written = moves = 0
    rounds = max(group.forwards for group in batch)
    for forward in range(rounds):
        prompts = {}
        for group in batch:
            first = forward == 0 and group.unread > 0
            late = forward - (group.unread > 0)  # the step of decoding that this forward is
            rows = [group.past - group.unread] if first else [group.past + late for n in group.sampled if late < n - 1]
            written += (group.unread if first else 1) * len(rows)
            for seen in rows:
                shared = min(group.shared, seen)
                prompts[group.prompt] = max(prompts.get(group.prompt, 0), shared)
                read += seen - shared
                moves += 1 + (seen > 0)
        read += sum(prompts.values())
    return rounds, read, written, moves


@pytest.mark.parametrize(
    "batch",
    [
        [RowGroup(10, 10, (5, 5, 5), "p", 10)],
        [RowGroup(10, 0, (3,), "p", 10)],
        [RowGroup(14, 1, (4, 2), "p", 10), RowGroup(17, 1, (6,), "p", 10), RowGroup(6, 1, (3,), "q", 4)],
        [RowGroup(14, 4, (), "p", 10), RowGroup(19, 5, (), "p", 10)],
        [RowGroup(9, 0, (0,), "p", 9)],
    ],
)
def test_traffic_is_what_the_forwards_read_and_write(batch):
    rounds, read, written, moves = by_loop(batch)
    assert count_traffic(SPEC, batch) == (rounds * SPEC.active_weights, WIDTH * (read + written))
    recurrent = replace(SPEC, states=(30, 7))  # of a model in bfloat16
    cache = 2 * WIDTH * (read + written) + moves * (2 * 30 + 4 * 7)
    assert count_traffic(recurrent, batch, 2, 2, 4) == (2 * rounds * SPEC.active_weights, cache)


def test_a_window_is_all_that_its_layers_read():
    narrow = replace(SPEC, attention=tuple(replace(group, window=5) for group in SPEC.attention))
    # a row of 20 tokens and 3 steps: four cached tokens a step, and its own written
    assert count_traffic(narrow, [RowGroup(20, 0, (4,), "p", 0)]).cache == WIDTH * (3 * 4 + 3)
    # of many rows behind a short prompt, reading that once is less
    many = [RowGroup(4, 0, (2,) * 10, "p", 4)]
    assert count_traffic(narrow, many) == count_traffic(SPEC, many)


def test_measured_is_predicted():
    generator = endless()
    for strategy in (isc.RepeatedSampling(3), isc.RepeatedSampling(1)):
        cost = isc.solve("Step 1 2:", strategy, generator).cost
        found = predict_cost(
            generator.model.config, strategy, prompt=cost.prompt_tokens, new=8, step=8, bytes_per_number=4, samples=1,
            device=Device("slow", 1e9, 1e6),
        )  # fmt: skip
        for name in ("tokens", "generator_flops", "generator_bytes", "cache_bytes", "rounds", "flops", "bytes"):
            assert getattr(cost, name) == getattr(found, name), name
        assert cost.eflops(1000) == found.eflops


def test_a_level_search_pays_for_every_round():
    reader = tiny_model("llama", "TokenClassification", num_labels=2)
    judge, generator, levels = HFProcessRewardModel(reader, byte_tokenizer()), endless(), {}
    result = isc.solve("Step 1 2:", isc.REBASE(3), generator, reward_model=judge)
    for node in list(result.root.walk())[1:]:
        levels[node.depth] = max(levels.get(node.depth, 0), node.step.generated_tokens)
    assert len(levels) > 1
    assert result.cost.rounds == sum(levels.values()) + len(levels)  # the longest step of each level, and its scoring
    policy, reads = (closed_form(model).active_weights for model in (generator.model, reader))
    weights = 4 * (policy * sum(levels.values()) + reads * len(levels))
    assert result.cost.bytes == weights + result.cost.cache_bytes
    assert result.cost.reward_bytes > 4 * reads * len(levels)


def test_rounds_are_the_forwards_that_a_search_alone_makes():
    for strategy in (isc.RepeatedSampling(3), isc.REBASE(3)):
        generator, made = endless(), []
        generator.model.register_forward_hook(lambda *call: made.append(1))  # noqa: B023
        cost = isc.solve("Step 1 2:", strategy, generator, reward_model=ToyReward()).cost
        scored = cost.rounds - sum(made) + 1  # the prompt is read in a forward of its own, but for its last token
        assert scored == (1 if isinstance(strategy, isc.RepeatedSampling) else cost.num_scored // 3)


def test_an_awaited_search_costs_the_same():
    straight = isc.solve("Step 1 2:", isc.REBASE(3), endless(), reward_model=ToyReward(), energy=Steady())
    awaited = asyncio.run(isc.asolve("Step 1 2:", isc.REBASE(3), endless(), reward_model=ToyReward(), energy=Steady()))
    assert awaited.cost.without_seconds() == straight.cost.without_seconds()
    assert awaited.cost.joules == straight.cost.joules > 0


def test_bytes_and_rounds_do_not_depend_on_the_batch():
    prompts = [f"Step {'1 ' * n}:" for n in (1, 5, 3)]
    parts = endless(), HFProcessRewardModel(tiny_model("llama", "TokenClassification", num_labels=2), byte_tokenizer())
    together = isc.solve_batch(prompts, isc.REBASE(3), parts[0], reward_model=parts[1])
    for prompt, result in zip(prompts, together, strict=True):
        alone = isc.solve(prompt, isc.REBASE(3), endless(cache="none", micro_batch=2), reward_model=parts[1])
        assert result.cost.without_seconds() == alone.cost.without_seconds()
        assert alone.cost.bytes > alone.cost.cache_bytes > 0


def test_seconds_by_phase_add_up():
    result = isc.solve("Step 1 2:", isc.REBASE(3), endless(), reward_model=ToyReward())
    assert set(result.cost.phases) == {"prefill", "decode", "score", "python"}
    assert sum(result.cost.phases.values()) == pytest.approx(result.cost.seconds + result.cost.phases["python"])
    assert min(result.cost.phases.values()) > 0
    assert result.cost.first_answer > 0
    toy = isc.solve("How many?", isc.RepeatedSampling(2), ToyGenerator()).cost
    assert set(toy.phases) == {"generate", "python"}


def test_the_first_answer_is_a_finished_solution():
    class Clock(ToyGenerator):
        def generate(self, requests):
            told.append(None if not searches else searches[-1].cost.first_answer)
            return super().generate(requests)

    told, searches = [], []
    strategy = isc.BeamSearch(2, 2, lookahead=9)  # whole solutions are looked ahead to, and are none
    result = isc.solve("How many?", strategy, Clock(), reward_model=ToyReward(), on_step=searches.append)
    finished = [node.depth for node in result.root.walk() if node.is_finished]
    assert told[: min(finished)] == [None] * min(finished)
    assert result.cost.first_answer > 0
    endless = isc.solve("How many?", isc.RepeatedSampling(2), ToyGenerator(), budget=isc.Budget(tokens=1)).cost
    assert endless.first_answer is None


def test_what_is_not_known_is_none():
    cost = isc.solve("How many?", isc.RepeatedSampling(2), ToyGenerator()).cost
    assert (cost.generator_bytes, cost.cache_bytes, cost.bytes, cost.joules) == (None, None, None, None)
    assert cost.eflops(10) is None
    assert (cost + Cost(generator_bytes=5)).generator_bytes is None
    assert isc.solve("How many?", isc.RepeatedSampling(2), ToyGenerator(), budget=isc.Budget(calls=1)).cost.rounds > 0

    class Judge(ToyReward):
        def cost(self, nodes):
            return [Cost(reward_flops=7)] * len(nodes)

    function = isc.RewardFunction(lambda nodes: [0.0] * len(nodes))
    for judge, known in ((Judge(), None), (function, 0)):
        cost = isc.solve("How many?", isc.RepeatedSampling(2), ToyGenerator(), reward_model=judge).cost
        assert cost.reward_bytes == known


def test_each_of_several_generators_has_its_own_bytes():
    pair = {"small": endless(), "large": endless()}
    cost = isc.solve("Step 1 2:", isc.RepeatedSampling(3), pair).cost
    assert cost.shares["small"].generator_bytes == cost.generator_bytes > 0
    assert cost.shares["small"].rounds == cost.rounds


def test_a_resumed_search_costs_what_an_undisturbed_one_does(tmp_path):
    options = {"reward_model": ToyReward(), "journal": tmp_path / "journal"}
    first = isc.solve("Step 1 2:", isc.REBASE(3), endless(), **options)
    again = isc.solve("Step 1 2:", isc.REBASE(3), endless(), **options)
    assert again.cost.without_seconds() == first.cost.without_seconds()
    for phase in ("prefill", "decode", "score"):
        assert again.cost.phases[phase] == pytest.approx(first.cost.phases[phase])


def test_costs_are_written_and_read_in_one_form():
    cost = isc.solve("Step 1 2:", isc.REBASE(3), endless(), reward_model=ToyReward()).cost
    row = json.loads(json.dumps(cost.to_dict()))
    assert Cost.from_dict(row) == cost
    assert (row["format"], row["version"], row["convention"]) == ("inferscale.Cost", 1, "causal")
    assert (row["flops"], row["bytes"], row["tokens"]) == (cost.flops, cost.bytes, cost.tokens)
    old = {"prompt_tokens": 3, "generated_tokens": 4, "seconds": 0.5, "shares": {"ask": {"generated_tokens": 1}}}
    read = Cost.from_dict(old)
    assert (read.tokens, read.bytes, read.rounds, read.joules, read.first_answer) == (4, None, None, None, None)
    assert read.shares["ask"].generator_bytes is None
    with pytest.raises(ValueError, match="newer inferscale"):
        Cost.from_dict({**row, "version": 2})


def test_a_cost_without_seconds_is_deterministic():
    measured = Cost(seconds=1.0, phases={"score": 1.0}, first_answer=0.5, generator_joules=3.0, reward_joules=1.0)
    whole = replace(measured, shares={"ask": measured})
    assert whole.without_seconds() == replace(Cost(shares={"ask": Cost().without_seconds()}).without_seconds())


class Steady:
    """A meter by which every reading is one joule after the last one."""

    source = "steady"

    def __init__(self):
        self.readings = -1

    def read(self):
        self.readings += 1
        return float(self.readings)


class Blind:
    source = "no counters in /sys"

    def read(self):
        return None


def test_joules_are_apart_and_shared_by_what_was_waited_for():
    meter, prompts = Steady(), ["How many?", "How many more?"]
    results = isc.solve_batch(prompts, isc.REBASE(4), ToyGenerator(), reward_model=ToyReward(), energy=meter)
    cost = sum(result.cost for result in results)
    assert cost.joules == pytest.approx(cost.generator_joules + cost.reward_joules)
    assert min(result.cost.generator_joules for result in results) > 0
    assert min(result.cost.reward_joules for result in results) > 0
    assert 2 * cost.joules == pytest.approx(meter.readings + 1)  # every call stands between two readings
    blind = isc.solve("How many?", isc.REBASE(4), ToyGenerator(), reward_model=ToyReward(), energy=Blind())
    assert blind.cost.joules is None


def test_joules_come_back_out_of_a_journal(tmp_path):
    options = {"reward_model": ToyReward(), "journal": tmp_path / "journal"}
    first = isc.solve("How many?", isc.REBASE(4), ToyGenerator(), energy=Steady(), **options)
    again = isc.solve("How many?", isc.REBASE(4), ToyGenerator(), **options)
    assert again.cost == first.cost
    assert again.cost.joules > 0


def test_bytes_and_joules_end_a_search_as_flops_do():
    whole = isc.solve("Step 1 2:", isc.REBASE(3), endless(), reward_model=ToyReward()).cost
    half = isc.solve("Step 1 2:", isc.REBASE(3), endless(), reward_model=ToyReward(), budget=isc.Budget(bytes=1000))
    assert half.stopped_by == "bytes"
    assert 1000 <= half.cost.bytes < whole.bytes
    options = {"reward_model": ToyReward(), "energy": Steady()}
    result = isc.solve("How many?", isc.REBASE(4), ToyGenerator(), budget=isc.Budget(joules=0.5), **options)
    assert (result.stopped_by, result.cost.joules) == ("joules", 2.0)  # one call, and the leaves are scored


def test_a_budget_of_what_is_not_measured_is_refused_before_anything_is_run():
    class Dead(ToyGenerator):
        def generate(self, requests):
            raise AssertionError("it was run")

    for budget, options, why in (
        (isc.Budget(joules=1), {}, "pass energy=EnergyMeter"),
        (isc.Budget(joules=1), {"energy": Blind()}, "no counters in /sys"),
        (isc.Budget(bytes=1), {}, "Dead cannot tell its bytes"),
    ):
        with pytest.raises(ValueError, match=why):
            isc.solve("How many?", isc.RepeatedSampling(2), Dead(), budget=budget, **options)
        with pytest.raises(ValueError, match=why):
            isc.solve_batch(["How many?"], isc.RepeatedSampling(2), Dead(), pool=budget, **options)

    class Judge(ToyReward):
        def cost(self, nodes):
            return [Cost(reward_flops=7)] * len(nodes)

    with pytest.raises(ValueError, match=r"Budget\(bytes=1e\+09\) cannot be kept"):
        isc.solve("Step 1 2:", isc.REBASE(2), endless(), reward_model=Judge(), budget=isc.Budget(bytes=1e9))


def test_a_meter_of_this_machine_is_not_given_to_models_elsewhere():
    class Remote(ToyGenerator):
        concurrent = True

    with pytest.raises(ValueError, match="asked from threads"):
        isc.solve("How many?", isc.RepeatedSampling(2), Remote(), energy=Steady())
    with pytest.raises(TypeError, match="give EnergyMeter"):
        isc.solve("How many?", isc.RepeatedSampling(2), ToyGenerator(), energy="cuda")


def test_cached_tokens_have_a_price_of_their_own():
    price = isc.Price(input=2, output=10, cached=0.5)
    cost = Cost(prompt_tokens=1000, resent_tokens=3000, cached_tokens=2500, generated_tokens=100)
    assert price.of(cost) == pytest.approx((1500 * 2 + 2500 * 0.5 + 100 * 10) / 1e6)
    assert isc.Price(input=2).of(cost) == pytest.approx(4000 * 2 / 1e6)
    assert isc.Price(cached=1).of(cost) == pytest.approx(2500 / 1e6)


def test_a_verifier_that_writes_tells_its_bytes():
    model = causal(answering_tokenizer())

    def judged(prompts):
        judge = GenerativeVerifier(model, answering_tokenizer(), max_new_tokens=6, n=2)
        return isc.solve_batch(prompts, isc.RepeatedSampling(2), endless(), reward_model=judge)

    prompts, weights = ["Step 1:", "Step 1 2 1 2:"], 4 * closed_form(model).active_weights
    for result, prompt in zip(judged(prompts), prompts, strict=True):
        assert result.cost.without_seconds() == judged([prompt])[0].cost.without_seconds()
        # forwards of the longest verification of all, and the question, with what they keep of the paths
        assert 2 * weights < result.cost.reward_bytes < (6 + 1) * weights + result.cost.cache_bytes
