"""Parts of a run as plain data: equal where the parts are, and different where they are not."""

import copy
import re
from functools import partial
from pathlib import Path

import pytest

from inferscale import Budget
from inferscale.evaluate import records as fingerprints
from inferscale.evaluate.records import describe, git_state, model_fingerprint
from inferscale.rewards import CachedProcessReward, CheckerReward, EnsembleReward, RewardFunction, WeightedReward
from inferscale.strategies import REBASE
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyProcessReward, ToyReward
from studies.thoughts.released import ReleasedPaths


def brief(nodes):
    return [-float(len(node.text)) for node in nodes]


def test_parts_are_described_by_what_they_do():
    assert describe(REBASE(4)) == repr(REBASE(4))
    assert describe(None) is None
    assert "0x" not in str(describe(BrokenGenerator()))
    assert describe(CheckerReward()) != describe(CheckerReward("min"))
    assert describe(RewardFunction(brief))["name"] == "brief"
    assert describe(len) == "builtins.len"
    assert describe(partial(int, base=2)) == describe(partial(int, base=2)) != describe(partial(int, base=3))


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (WeightedReward([ToyReward()], [1]), WeightedReward([ToyReward()], [2])),
        (EnsembleReward([CheckerReward()]), EnsembleReward([ToyProcessReward()])),
        (CachedProcessReward(CheckerReward()), CachedProcessReward(CheckerReward("min"))),
        (ReleasedPaths(ToyGenerator(), True), ReleasedPaths(ToyGenerator(depth=2), True)),
    ],
    ids=lambda part: type(part).__name__,
)
def test_parts_of_parts_are_described(first, other):
    assert describe(first) == describe(copy.deepcopy(first)) != describe(other)


def test_where_git_cannot_tell_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(fingerprints, "_git", lambda folder, command, *rest: "abc" if command == "rev-parse" else None)
    assert git_state(Path("/")) == {"commit": "abc", "changed": None}


def test_outside_of_a_checkout_there_is_no_state():
    assert git_state(Path("/")) is None


def test_a_model_is_known_by_its_weights():
    torch = pytest.importorskip("torch")
    from inferscale import HFGenerator, LikelihoodReward, solve_batch
    from inferscale.rewards import ImplicitReward
    from tests.tiny_models import byte_tokenizer, tiny_model

    model, twin, other = tiny_model(seed=0), tiny_model(seed=0), tiny_model(seed=1)
    assert model_fingerprint(model) == model_fingerprint(twin) != model_fingerprint(other)
    about = [describe(HFGenerator(m, byte_tokenizer(), temperature=t)) for m, t in ((model, 1.0), (twin, 1.0))]
    assert about[0] == about[1]
    for changed in (
        HFGenerator(other, byte_tokenizer()),
        HFGenerator(model, byte_tokenizer(), temperature=0.5),
        HFGenerator(model, byte_tokenizer(), step_delimiter="\n\n"),
        HFGenerator(model, byte_tokenizer(), max_new_tokens=7),
        HFGenerator(model, byte_tokenizer(), stop=["a"]),
        HFGenerator(model, byte_tokenizer(), step_delimiter=re.compile(r"\n")),
        HFGenerator(model, byte_tokenizer(), step_delimiter=brief),
        HFGenerator(model, byte_tokenizer(), min_p=0.1),
        HFGenerator(model, byte_tokenizer(), repetition_penalty=1.1),
        HFGenerator(model, byte_tokenizer(), logits_processor=[lambda input_ids, scores: scores]),
    ):
        assert describe(changed) != about[0]
    used = HFGenerator(model, byte_tokenizer(), temperature=1.0)
    reward = LikelihoodReward(model, byte_tokenizer())
    before = describe(reward)
    solve_batch(["a b", "b"], REBASE(2), used, reward_model=reward, budget=Budget(tokens=20))
    assert describe(used) == about[0], "what counts and caches does not describe"
    assert describe(reward) == before != describe(LikelihoodReward(other, byte_tokenizer()))
    for option in ({"step_separator": "\n\n"}, {"step_separator": None}, {"use_token_ids": True}):
        assert describe(LikelihoodReward(model, byte_tokenizer(), **option)) != before, option
        ratio = [describe(ImplicitReward(model, other, byte_tokenizer(), **own)) for own in ({}, option)]
        assert ratio[0] != ratio[1] or option == {"step_separator": "\n\n"}, "that is its default"
    with torch.no_grad():
        twin.get_input_embeddings().weight[0, 0] += 1
    assert model_fingerprint(twin) != model_fingerprint(model)


def test_a_model_is_known_by_the_adapter_in_use_and_by_the_parts_of_quantised_weights():
    torch = pytest.importorskip("torch")
    from torch.testing._internal.two_tensor import TwoTensor  # a weight made of several tensors, as torchao's are

    class Adapted(torch.nn.Linear):
        disable_adapters = False
        active_adapters = ("default",)

    layer = Adapted(2, 2)
    known = model_fingerprint(layer)
    layer.disable_adapters = True
    assert model_fingerprint(layer) != known
    layer.disable_adapters, layer.active_adapters = False, ("other",)
    assert model_fingerprint(layer) != known
    found = []
    for scale in (1.0, 1.0, 2.0):
        layer = torch.nn.Linear(2, 2)
        layer.weight = torch.nn.Parameter(TwoTensor(torch.ones(2, 2), torch.full((2, 2), scale)))
        layer.bias.data.zero_()
        found.append(model_fingerprint(layer))
    assert found[0] == found[1] != found[2]


def test_the_state_of_4_bit_weights_is_not_asked_for():
    torch = pytest.importorskip("torch")

    class Packed(torch.nn.Module):
        def __init__(self, values, shape):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(values, dtype=torch.uint8).view(shape), requires_grad=False)
            self.weight.quant_state = torch.empty(2, 4)
            self.norm = torch.nn.Parameter(torch.ones(2))

        def _save_to_state_dict(self, *args):
            raise AssertionError("bitsandbytes loses the scales here")

    known = model_fingerprint(Packed([0x12, 0x34, 0x56, 0x78], (4, 1)))
    assert model_fingerprint(Packed([0x81, 0x32, 0x47, 0x65], (2, 2))) == known, "turned about by its first forward"
    assert model_fingerprint(Packed([0x12, 0x34, 0x56, 0x77], (4, 1))) != known
