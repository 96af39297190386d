"""Batches never change a result, whatever the family: every causal architecture of transformers, and the probes."""

import dataclasses

import pytest
import torch

from benchmarks import families
from inferscale.engine import solve, solve_batch
from inferscale.generators import HFGenerator
from inferscale.rewards import LikelihoodReward
from inferscale.runtime import plain
from inferscale.runtime.plain import PlainRows, Way, difference, perturbed, plain_way, ranges, whole_logits
from inferscale.strategies import RepeatedSampling
from inferscale.tree import Node, Problem, Step
from tests.tiny_models import byte_tokenizer, tiny_config, tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is run without shared prefixes"),
    pytest.mark.filterwarnings("ignore:FLOPs of this model will be reported as 0"),
]

IDS = [3 + 7 * i for i in range(30)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [f for f in families.FAMILIES if f not in families.EXCEPTIONS])
def test_every_family_is_the_same_alone_batched_and_with_shared_prefixes(family):
    verdict = families.judge(family, generate=False)
    assert verdict.forward is not None, verdict.note
    known = families.DIFFERENCES.get(family)
    assert dataclasses.asdict(verdict)["batch"], families.row(verdict)
    assert verdict.tree is not False, families.row(verdict)
    assert verdict.forward or known, families.row(verdict)
    assert verdict.flops == pytest.approx(1, abs=0.1 if family in families.ESTIMATED else 0.01) or family == "dory", (
        families.row(verdict)
    )
    assert families.closed_form(families.small_model(family)).linear > 0


def same(one, other):
    return [t.steps for t in one.trajectories] == [t.steps for t in other.trajectories]


ROPES = {
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 3.0, 7.0, 9.0],
        "original_max_position_embeddings": 14,
        "rope_theta": 1e4,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 14},
}


def changing_model(kind):
    if kind == "dynamic":
        return tiny_model("llama", rope_parameters=ROPES[kind], max_position_embeddings=14)
    return tiny_model("phi3", rope_parameters=ROPES[kind], original_max_position_embeddings=14)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rotary_angles_follow_the_length_of_the_own_row(kind):
    """The factor of Phi-3-128k follows the longest row of a batch, and a cache keeps the angles of before."""
    model = changing_model(kind)
    gen = HFGenerator(model, byte_tokenizer(), max_step_tokens=12, max_new_tokens=20)
    prompts = ["a", "Step 1: a b a b is 12 x", "ab the ab the"]
    together = solve_batch(prompts, RepeatedSampling(2), gen)
    alone = [solve(prompt, RepeatedSampling(2), gen) for prompt in prompts]
    assert all(same(*pair) for pair in zip(together, alone, strict=True))
    for prompt, result in zip(prompts, together, strict=True):
        for trajectory in result.trajectories:
            ids, total = byte_tokenizer()(prompt)["input_ids"], 0.0
            for token in trajectory.steps[0].token_ids:
                plain.forget_longer_rows(model.modules())
                with torch.no_grad():
                    total += float(whole_logits(model, ids).log_softmax(-1)[token])
                ids = [*ids, token]
            assert trajectory.steps[0].logprob == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize(
    ("family", "within", "beyond"),
    [
        ("llama", Way(True, True), Way(True, True)),
        ("falcon_h1", Way(True, True), Way(True, True)),  # recurrent states and keys in one layer
        ("bart", Way(False, True), Way(False, True)),  # no positions of its own
        ("deepseek_v32", Way(True, True), Way(False, True)),  # chooses among keys by their place
        ("rwkv", Way(False, True), Way(False, True)),  # a state that runs over the padding
    ],
)
def test_the_way_of_a_batch_is_found_by_trying(family, within, beyond):
    model = families.small_model(family)
    passed = max(ranges(model.config), default=0)
    assert (plain_way(model), plain_way(model, passed)) == (within, beyond)


def test_rows_of_unequal_length_that_end_at_other_times_equal_rows_alone():
    model = families.small_model("falcon_h1")
    with torch.no_grad():
        run = PlainRows(model, plain_way(model))
        rows = [IDS[:9], IDS[2:5], IDS[:4]]
        logits = run.start(rows)
        for kept in ([0, 1, 2], [1, 2], [1]):
            run.keep(kept)
            rows = [[*rows[i], 50] for i in kept]
            logits = run.step(torch.full((len(kept),), 50))
            for row, found in zip(rows, logits, strict=True):
                assert difference(found, whole_logits(model, row), model) < 1


def test_keys_that_are_equally_strong_are_chosen_alike_in_every_batch():
    """With two index heads the scores of many keys are zero; with padding other ones of them would be chosen."""
    gen = HFGenerator(families.small_model("deepseek_v32", index_n_heads=2), families.tokenizer(), max_new_tokens=9)
    together = solve_batch(families.PROMPTS, RepeatedSampling(2), gen)
    alone = [solve(prompt, RepeatedSampling(2), gen) for prompt in families.PROMPTS]
    assert all(same(*pair) for pair in zip(together, alone, strict=True))


def test_a_probe_finds_the_way_of_a_kind_once(monkeypatch):
    calls = []
    honest = plain._find_way
    monkeypatch.setattr(plain, "_known", {})
    monkeypatch.setattr(plain, "_find_way", lambda *given: calls.append(given) or honest(*given))
    for _ in range(2):
        plain_way(tiny_model("llama"))
    assert len(calls) == 1
    plain_way(tiny_model("qwen2"))
    assert len(calls) == 2


def test_probes_see_what_is_zero_in_a_model_that_was_not_trained():
    """Doge adds a mask to the scores that is zero at first, which shared prefixes would leave out."""
    config = families.small_config("doge")
    with torch.random.fork_rng():
        model = families.transformers.AutoModelForCausalLM.from_config(config).eval()
    assert float(model.model.layers[0].self_attn.A.detach().abs().max()) == 0
    assert not HFGenerator(model, families.tokenizer()).shares_prefixes
    assert float(model.model.layers[0].self_attn.A.detach().abs().max()) == 0


def test_perturbed_weights_are_put_back_whatever_happens():
    model = tiny_model("opt")
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def stop():
        with perturbed(model):
            assert float(model.model.decoder.layers[0].self_attn.k_proj.bias.detach().abs().max()) > 0
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_probe_leaves_a_backward_pass_that_waits_alone():
    model = tiny_model("llama")
    loss = model(input_ids=torch.tensor([IDS])).logits.square().mean()
    plain._known.clear()
    plain_way(model)
    loss.backward()
    assert model.lm_head.weight.grad is not None


def test_ranges_are_windows_chunks_selections_and_changing_ropes():
    assert ranges(tiny_config("llama")) == ()
    assert ranges(tiny_config("mistral_window")) == (12,)
    assert ranges(changing_model("longrope").config) == (14,)
    assert ranges(families.small_config("deepseek_v32")) == (10,)
    static = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    static["original_max_position_embeddings"] = 64
    assert ranges(tiny_config("llama", rope_parameters=static)) == ()


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_scores_do_not_depend_on_longer_texts_in_the_batch(kind):
    reward = LikelihoodReward(changing_model(kind), byte_tokenizer(), cache="none")
    nodes = []
    for prompt, text in (("a", " b"), ("Step 1: a b", " the ab is 12 x 12 = 12 x 12 a b"), ("b", " a b a b a")):
        start = Node(Problem(prompt))
        nodes.append(Node(start.problem, Step(text, tuple(byte_tokenizer()(text)["input_ids"])), start))
    assert reward.score(nodes) == pytest.approx([reward.score([node])[0] for node in nodes], abs=1e-5)
    assert max(len(byte_tokenizer()(n.problem.prompt + n.text)["input_ids"]) for n in nodes) > 14
