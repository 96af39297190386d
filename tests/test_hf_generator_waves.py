"""How branches share a batch: looks at ends now and then, places that are filled again, prompts that begin alike."""

import pytest
import torch

from inferscale.flops import FlopCounter
from inferscale.flow import GenerateRequest
from inferscale.generators import HFGenerator
from inferscale.runtime import decoding as module
from tests.tiny_models import byte_tokenizer, grow_all, root, shared_model, tiny_model

PROMPTS = ["Step 1: a b a b is 12\n", "b", "ab the", "12 = 12 x 2 x"]


def generator(family="llama", model=None, **options):
    options = {"max_step_tokens": 9, "max_new_tokens": 26, **options}
    return HFGenerator(model or shared_model(family), byte_tokenizer(), **options)


def picture(groups):
    return [(n.step.token_ids, n.step.text, n.step.finish_reason, n.step.inner_ends) for g in groups for n in g]


def sampled(gen, n=5, **options):
    return picture(grow_all(gen, [root(prompt) for prompt in PROMPTS], n, **options))


@pytest.mark.parametrize("cache", ["tree", "none"])
@pytest.mark.parametrize("until", ["step", "end"])
@pytest.mark.parametrize("check_every", [3, 50])
def test_looking_now_and_then_changes_nothing_and_counts_the_waste(cache, until, check_every):
    often, seldom = generator(cache=cache), generator(cache=cache, check_every=check_every)
    expected = sampled(often, until=until)
    assert sampled(seldom, until=until) == expected
    tokens = sum(len(ids) for ids, *_ in expected)
    assert often.stats.wasted_tokens == 0
    assert seldom.stats.wasted_tokens > 0
    assert often.stats.decoded_tokens == seldom.stats.decoded_tokens == tokens


def test_no_token_is_drawn_beyond_the_context():
    model = tiny_model("gpt2", n_positions=30)
    options = {"max_step_tokens": 50, "max_new_tokens": 100}
    expected = sampled(generator(model=model, **options), until="end")
    assert sampled(generator(model=model, check_every=16, **options), until="end") == expected
    assert any(reason == "length" for _, _, reason, _ in expected)


def test_equal_lengths_waste_nothing():
    gen = generator(check_every=16, max_step_tokens=4, step_delimiter="never in this text", eos_token_id=300)
    assert {len(ids) for ids, *_ in sampled(gen)} == {4}
    assert gen.stats.wasted_tokens == 0


@pytest.mark.parametrize("check_every", [1, 4])
def test_places_of_ended_branches_are_filled_again(monkeypatch, check_every):
    rows = []

    class Counting(module.TreeDecoder):
        def step(self, tokens):
            rows.append(len(tokens))
            return super().step(tokens)

    options = {"max_new_tokens": 60, "eos_token_id": list(range(2, 40))}
    expected = sampled(generator(**options), 12, until="end")
    monkeypatch.setattr(module, "TreeDecoder", Counting)
    assert sampled(generator(micro_batch=8, check_every=check_every, **options), 12, until="end") == expected
    refilled, most = len(rows), max(rows)
    monkeypatch.setattr(Counting, "refills", False)
    rows.clear()
    assert sampled(generator(micro_batch=8, check_every=check_every, **options), 12, until="end") == expected
    assert refilled < 0.7 * len(rows)
    assert most == max(rows) == 8


def test_branches_of_one_node_in_two_fillings_read_it_once():
    gen = generator(micro_batch=4)
    [steps] = gen.generate([GenerateRequest(root(PROMPTS[0]), 11)])
    assert len(steps) == 11
    again = -(-11 // 4) * 2  # each filling reads the newest token of the node for its logits
    assert gen.stats.prefill_tokens <= len(byte_tokenizer()(PROMPTS[0])["input_ids"]) + again


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prompts_that_begin_alike_are_answered_as_alone(family):
    shots = "Step 1: a b is 12\nab the x = 2\n" * 4
    prompts = [shots + prompt for prompt in PROMPTS]
    gen = generator(family)
    with FlopCounter(generator=gen, mode="verify"):
        together = grow_all(gen, [root(prompt) for prompt in prompts], 3)
    alone = [grow_all(generator(family), [root(prompt)], 3)[0] for prompt in prompts]
    assert picture(together) == picture(alone)
    lengths = [len(byte_tokenizer()(prompt)["input_ids"]) for prompt in prompts]
    assert gen.stats.prefill_tokens < sum(lengths) / 2
    assert gen.stats.prefill_tokens + gen.stats.reused_tokens == 3 * sum(lengths)


def test_a_cpu_looks_at_every_token():
    assert generator()._runner._check_every == 1
    with pytest.raises(ValueError, match="check_every=0"):
        generator(check_every=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_samples_what_a_cpu_samples():
    expected = sampled(generator())
    assert sampled(generator(model=tiny_model().cuda())) == expected
