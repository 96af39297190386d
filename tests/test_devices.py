"""Models whose layers are on several devices, or whose weights are not in memory: shared prefixes all the same."""

import pytest
import torch

from inferscale import HFGenerator, HFProcessRewardModel, solve_batch
from inferscale.flow import GenerateRequest
from inferscale.rewards import LikelihoodReward
from inferscale.runtime.kv import Spread
from inferscale.strategies import REBASE
from inferscale.testing import ToyReward
from inferscale.viz import render_tree
from tests.fake_devices import CPU, FAKE, FakeDevices, spread
from tests.tiny_models import byte_tokenizer, grow_all, root, tiny_model

PROMPTS = ["How many?", "How many more are there, and why?"]
PLACES = {"two": FAKE[:2], "one of them the CPU": [FAKE[0], CPU, FAKE[1]]}


def trees(model, **options):
    generator = HFGenerator(model, byte_tokenizer(), max_new_tokens=20, max_step_tokens=14, **options)
    results = solve_batch(PROMPTS, REBASE(2), generator, reward_model=ToyReward())
    assert generator.shares_prefixes
    assert generator.stats.reused_tokens > 30
    return [render_tree(result.root, max_text=999) for result in results], generator


def layers_of(model):
    inside = model.get_decoder()
    return next(getattr(inside, name) for name in ("layers", "h", "blocks") if hasattr(inside, name))


@pytest.mark.parametrize(
    ("family", "places"),
    [
        ("llama", "two"),
        ("llama", "one of them the CPU"),
        ("gemma2", "one of them the CPU"),
        ("gpt2", "two"),
        ("bloom", "two"),
    ],
)
def test_keys_and_values_live_where_their_layer_does(family, places):
    places, changes = PLACES[places], {"n_layer": 4} if family in ("gpt2", "bloom") else {"num_hidden_layers": 4}
    model = tiny_model(family, **changes)
    expected, _ = trees(model)
    with torch.inference_mode(), FakeDevices():
        spread(model, layers_of(model), places, places[-1])
        found, generator = trees(model)
        tree = generator._runner._tree
        tree.start(generator._runner.branches.open(GenerateRequest(root(PROMPTS[0]))))
        held = tree._batch.kv
        assert isinstance(held, Spread)
        assert [part.device for part in held.parts] == list(places)
        assert [len(part) for part in held.parts] == ([2, 2] if len(places) == 2 else [2, 1, 1])
    assert found == expected


def test_states_live_where_their_layer_does():
    model = tiny_model("jamba", num_experts=1, num_experts_per_tok=1)
    expected, _ = trees(model)
    with torch.inference_mode(), FakeDevices():
        spread(model, layers_of(model), FAKE[:2], FAKE[1])
        found, generator = trees(model)
        keys, states = generator._runner._tree.session._known
    assert found == expected
    assert {stack.device for stack in states.stacks} == {FAKE[0]}
    assert keys.device == FAKE[1]


@pytest.mark.parametrize("head", ["TokenClassification", "CausalLM"])
def test_rewards_read_models_on_several_devices(head):
    options = {"num_labels": 2} if head == "TokenClassification" else {}
    model = tiny_model("llama", head, num_hidden_layers=3, **options)
    kind = HFProcessRewardModel if head == "TokenClassification" else LikelihoodReward
    writer = HFGenerator(tiny_model("llama"), byte_tokenizer(), max_step_tokens=6, max_new_tokens=30)
    nodes = [node for group in grow_all(writer, [root(prompt) for prompt in PROMPTS], 2) for node in group]
    expected = kind(model, byte_tokenizer()).step_scores(nodes)
    with torch.inference_mode(), FakeDevices():
        spread(model, model.model.layers, FAKE, FAKE[2])
        reward = kind(model, byte_tokenizer())
        assert reward._scorers[0]._tree is not None
        found = reward.step_scores(nodes)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_fake_devices_refuse_to_meet():
    with torch.inference_mode(), FakeDevices():
        one, other = torch.ones(2, device=FAKE[0]), torch.ones(2, device=FAKE[1])
        with pytest.raises(RuntimeError, match="tensors on"):
            one + other
        assert (one + other.to(FAKE[0])).device == FAKE[0]
        assert one.cpu().tolist() == [1, 1]


def test_weights_on_the_disk_come_for_their_layer(tmp_path):
    pytest.importorskip("accelerate")
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    expected, _ = trees(model)
    names = [
        "model.embed_tokens",
        *(f"model.layers.{i}" for i in range(2)),
        "model.norm",
        "model.rotary_emb",
        "lm_head",
    ]

    def offloaded(**places):
        device_map = {name: places.get(name.split(".")[-1], "cpu") for name in names}
        return type(model).from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "rest")

    found, _ = trees(offloaded(**{"1": "disk"}))
    assert found == expected
    with pytest.raises(ValueError, match="input embeddings are not on a device"):
        HFGenerator(offloaded(embed_tokens="disk"), byte_tokenizer())
