"""A counter around a search knows how many tokens were sampled, whatever the decoder forwards."""

import pytest

from inferscale.engine import solve_batch
from inferscale.flops import FlopCounter, model_spec
from inferscale.flops.spec import sample_flops
from inferscale.flow import GenerateRequest
from inferscale.generators import HFGenerator
from inferscale.strategies import REBASE, RepeatedSampling
from inferscale.testing import ToyReward
from tests.tiny_models import byte_tokenizer, root, tiny_model


@pytest.mark.parametrize("cache", ["tree", "none"])
@pytest.mark.parametrize("strategy", [RepeatedSampling(5), REBASE(4)], ids=repr)
def test_sampled_tokens_are_those_of_the_results(cache, strategy):
    generator = HFGenerator(tiny_model(), byte_tokenizer(), max_step_tokens=5, max_new_tokens=15, cache=cache)
    with FlopCounter(generator=generator) as counter:
        results = solve_batch(["Step 1: x =", "Step 2"], strategy, generator, reward_model=ToyReward())
    assert counter.tokens.sampled == sum(result.cost.generated_tokens for result in results)


def test_what_ran_with_shared_prefixes_is_what_was_charged_but_for_a_head_or_two():
    generator = HFGenerator(tiny_model(), byte_tokenizer(), max_step_tokens=5, max_new_tokens=15, cache="tree")
    with FlopCounter(generator=generator) as counter:
        results = solve_batch(["Step 1: x =", "Step 2"], REBASE(4), generator, reward_model=ToyReward())
    config = generator.model.config
    head = 2 * config.hidden_size * config.vocab_size
    surplus = counter.flops - sum(result.cost.generator_flops for result in results)
    # Prompts are read together; transformers computes the logits of one position even where none is asked for.
    assert surplus == head


def test_forced_text_is_paid_for_by_the_first_sample_alone():
    generator = HFGenerator(tiny_model(), byte_tokenizer(), max_step_tokens=5, max_new_tokens=15)
    [steps] = generator.generate([GenerateRequest(root("Step 1: x ="), 3, forced=" the ab is")])
    prefix = sum(len(byte_tokenizer()(text)["input_ids"]) for text in ("Step 1: x =", " the ab is"))
    spec = model_spec(generator.model.config)
    for step, read in zip(steps, (prefix, 0, 0), strict=True):
        assert step.prompt_tokens == read
        assert step.flops == sample_flops(spec, prefix, read, step.generated_tokens)
