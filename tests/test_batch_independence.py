"""With a transformers model in float32, five problems solved together equal each solved alone, node by node."""

from dataclasses import replace
from functools import cache

import pytest

from inferscale.engine import solve, solve_batch
from inferscale.generators import HFGenerator
from inferscale.strategies import REBASE
from inferscale.testing import ToyReward
from tests.test_conformance import ONE_OF_EACH
from tests.tiny_models import byte_tokenizer, tiny_model

# Sums of floats come out a little differently in batches of other shapes (about 1e-7 here), so a uniform number that
# lies this close to a boundary between two tokens would draw another one: one draw in millions. These have none.
PROMPTS = [f"Step {'1 2 ' * length}: x =" for length in (1, 9, 2, 4, 12)]


@cache  # what a search holds in it is released when it ends
def generator(family: str, **options: object) -> HFGenerator:
    options = {"max_step_tokens": 6, "max_new_tokens": 18, "temperature": 0.9, **options}
    return HFGenerator(tiny_model(family), byte_tokenizer(), **options)


def table(result) -> list[tuple[object, ...]]:
    """Every node with all that was sampled and scored; log-probabilities to eight digits."""
    rows = []
    for node in result.root.walk():
        step = node.step and replace(node.step, logprob=None, confidence=None, model_logprob=None)
        numbers = () if node.step is None else (node.step.logprob, node.step.confidence)
        rows.append((node.depth, step, node.is_scored and node.score, [pytest.approx(n, abs=1e-4) for n in numbers]))
    return rows


@pytest.mark.parametrize("strategy", ONE_OF_EACH, ids=repr)
def test_together_is_alone(strategy):
    together = solve_batch(PROMPTS, strategy, generator("llama"), reward_model=ToyReward())
    for prompt, result in list(zip(PROMPTS, together, strict=True))[::4]:
        alone = solve(prompt, strategy, generator("llama"), reward_model=ToyReward())
        assert table(result) == table(alone)
        assert result.cost.without_seconds() == alone.cost.without_seconds()
        assert result.answer == alone.answer


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gpt_neox", "mistral_window"])
def test_other_families_too(family):
    together = solve_batch(PROMPTS, REBASE(4), generator(family), reward_model=ToyReward(), seed=1)
    for prompt, result in list(zip(PROMPTS, together, strict=True))[::2]:
        alone = solve(prompt, REBASE(4), generator(family, micro_batch=3), reward_model=ToyReward(), seed=1)
        assert table(result) == table(alone)
