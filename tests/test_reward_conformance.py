"""What `inferscale.testing.check_reward_model` finds, and that every kind of reward model passes it."""

import math

import pytest

from inferscale.base import ProcessRewardModel, RewardModel
from inferscale.cost import Cost
from inferscale.rewards import (
    CachedProcessReward,
    CachedReward,
    CalibratedReward,
    EnsembleProcessReward,
    EnsembleReward,
    HFOutcomeRewardModel,
    HFProcessRewardModel,
    ImplicitReward,
    LikelihoodReward,
    PlattCalibration,
    RewardFunction,
    TruncatedProcessReward,
    TruncatedReward,
    WeightedReward,
)
from inferscale.testing import ToyProcessReward, ToyReward, check_reward_model, unit_hash
from tests.reward_checkpoints import causal, classifier, llama_tokenizer
from tests.tiny_models import byte_tokenizer, tiny_model


def length(nodes):
    return [len(node.text) / 100 for node in nodes]


MODELS = {
    "toy": ToyReward,
    "toy process": ToyProcessReward,
    "function": lambda: RewardFunction(length),
    "weighted": lambda: WeightedReward([ToyReward(), length], [1, 2]),
    "ensemble": lambda: EnsembleProcessReward([ToyProcessReward(), ToyProcessReward("mean")], "min", reduction="prod"),
    "mixed ensemble": lambda: EnsembleReward([ToyProcessReward(), ToyReward()]),
    "cached": lambda: CachedProcessReward(ToyProcessReward("min")),
    "cached outcome": lambda: CachedReward(ToyReward()),
    "truncated": lambda: TruncatedProcessReward(ToyProcessReward("min")),
    "truncated outcome": lambda: TruncatedReward(ToyReward()),
    "calibrated": lambda: CalibratedReward(ToyProcessReward(), PlattCalibration(2, -1)),
    "outcome": lambda: HFOutcomeRewardModel(
        tiny_model("llama", "SequenceClassification", num_labels=1), byte_tokenizer()
    ),
    "likelihood": lambda: LikelihoodReward(tiny_model(), byte_tokenizer()),
    "implicit": lambda: ImplicitReward(tiny_model(seed=1), tiny_model(seed=2), byte_tokenizer(), beta=0.1),
    "trl": lambda: HFProcessRewardModel(classifier(byte_tokenizer()), byte_tokenizer(), format="trl"),
    "rlhflow": lambda: HFProcessRewardModel(
        causal(llama_tokenizer()), llama_tokenizer(), format="rlhflow", reduction="mean"
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_reward_model_conforms(name):
    check_reward_model(MODELS[name]())


class Broken(RewardModel):
    def __init__(self, change):
        self.change, self.calls = change, 0

    def score(self, nodes):
        self.calls += 1
        return self.change(self, nodes, [unit_hash(node.problem.prompt + node.text) for node in nodes])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda self, nodes, scores: scores[1:], r"Broken gave \d+ scores for \d+ nodes"),
        (lambda self, nodes, scores: [None, *scores[1:]], "as None: a score is a finite number"),
        (lambda self, nodes, scores: [math.nan, *scores[1:]], "as nan"),
        (lambda self, nodes, scores: scores or [1.0], r"Broken gave 1 scores for 0 nodes"),
        (lambda self, nodes, scores: [s + self.calls for s in scores], "another score scored twice"),
        (lambda self, nodes, scores: [s + k for k, s in enumerate(scores)], "another score in reversed order"),
        (lambda self, nodes, scores: [s + len(nodes) for s in scores], "another score alone"),
    ],
)
def test_broken_promises_are_named(change, message):
    with pytest.raises(AssertionError, match=message):
        check_reward_model(Broken(change))


def test_broken_costs_releases_and_step_scores_are_named():
    class Cheap(ToyReward):
        def cost(self, nodes):
            return [Cost(scored_tokens=-1)] * len(nodes)

    with pytest.raises(AssertionError, match="negative Cost"):
        check_reward_model(Cheap())

    class Few(ToyReward):
        def cost(self, nodes):
            return []

    with pytest.raises(AssertionError, match="gave 0 costs"):
        check_reward_model(Few())

    class Forgetful(ToyReward):
        shift = 0.0

        def score(self, nodes):
            return [score + self.shift for score in super().score(nodes)]

        def release(self, root):
            self.shift = 1.0

    with pytest.raises(AssertionError, match="another score after release"):
        check_reward_model(Forgetful())

    class Sparse(ProcessRewardModel):
        def step_scores(self, nodes):
            return [[unit_hash(node.text)] for node in nodes]

    with pytest.raises(AssertionError, match="gave 1 step scores for the 2 steps"):
        check_reward_model(Sparse())

    class Other(ToyProcessReward):
        def score(self, nodes):
            return [0.5] * len(nodes)

    with pytest.raises(AssertionError, match="reduce to"):
        check_reward_model(Other())
