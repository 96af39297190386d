"""Keys and values parked between calls: nothing is read twice, and nothing changes."""

import pytest
import torch

from inferscale import REBASE, RewardFunction, solve_batch
from inferscale.quiet_star import QuietSTaRGenerator, StepStarts
from tests.quiet_star_tools import wrapped
from tests.tiny_models import byte_tokenizer, cached, grow, grow_all, root

OPTIONS = {"max_step_tokens": 4, "max_new_tokens": 16, "eos_token_id": 319}


def generator(quiet, **options):
    return QuietSTaRGenerator(quiet, byte_tokenizer(), **{**OPTIONS, **options})


def prompt_length(text):
    return len(byte_tokenizer()(text)["input_ids"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "phi"])
@pytest.mark.filterwarnings("ignore:FLOPs of this model will be reported as 0")
def test_a_search_is_the_same_with_and_without_parked_keys(family):
    quiet = wrapped(family, 2)
    reward = RewardFunction(lambda prompts, completions: [float(len(set(text))) for text in completions])
    trees = []
    for options in ({}, {"cache": "none"}, {"max_cache_bytes": 30_000}, {"when": StepStarts(2)}):
        gen = generator(quiet, **options)
        results = solve_batch(["a b", "Step 12: the"], REBASE(6, 1.0), gen, reward_model=reward)
        trees.append([[node.token_ids for node in result.root.walk()] for result in results])
    assert trees[0] == trees[1] == trees[2]
    assert trees[0] != trees[3]


def test_prompts_and_steps_are_read_once():
    gen = generator(wrapped("llama", 2))
    tops = [root("a b"), root("Step 12: the")]
    children = [child for group in grow_all(gen, tops, 3) for child in group if not child.is_finished]
    first = sum(prompt_length(top.problem.prompt) - 1 for top in tops)
    newest = 6
    assert gen.stats.prefill_tokens == first + newest
    grandchildren = [node for group in grow_all(gen, children, 2) for node in group]
    assert gen.stats.prefill_tokens == first + newest + len(grandchildren)
    assert gen.stats.reused_tokens > 0
    gen.release(tops[0])
    gen.release(tops[1])
    assert gen.stats.cache_bytes == 0


def test_what_was_dropped_is_read_again():
    quiet = wrapped("llama", 2)
    gen, plain = generator(quiet), generator(quiet, cache="none")
    for each in (gen, plain):
        child = next(child for child in grow(each, root("a b"), 3) if not child.is_finished)
        each._decoder.make_room()
        assert each.stats.cache_bytes == 0
        found = grow(each, child, 2)
        assert [node.token_ids for node in found] == [node.token_ids for node in grow(each, _again(child), 2)]


def _again(node):
    node.num_draws = 0
    return node


def test_forced_text_and_ragged_paths_line_up():
    quiet = wrapped("llama", 2)
    found = []
    for options in ({}, {"cache": "none"}):
        gen = generator(quiet, **options)
        one, other = root("a b"), root("Step 12: the is")
        child = next(child for child in grow(gen, one, 4) if not child.is_finished)
        groups = grow_all(gen, [child, other], 2, forced=" ab the")
        deeper = [node for group in groups for node in group if not node.is_finished]
        last = grow_all(gen, deeper, 1)
        found.append([node.token_ids for group in (*groups, *last) for node in group])
    assert found[0] == found[1]


def test_windows_and_recurrent_layers_park_nothing():
    for family in ("mistral_window", "gemma3"):
        gen = generator(wrapped(family, 2))
        assert gen._decoder._prefixes is None


def test_parked_keys_are_those_of_the_plain_model():
    quiet = wrapped("llama", 3)
    gen = generator(quiet)
    child = next(child for child in grow(gen, root("a b"), 4) if not child.is_finished)
    store = gen._decoder._prefixes
    ids = [*byte_tokenizer()("a b")["input_ids"], *child.token_ids]
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.no_grad():
        quiet.model(input_ids=torch.tensor([ids]), **cached(quiet.model, cache))
    start = prompt_length("a b") - 1
    [body] = [p for p in store._entries.values() if p.ids == child.token_ids[:-1]]
    [tail] = [p for p in store._entries.values() if p.ids == (ids[start],)]
    wanted = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
    found = torch.cat([tail.kv, body.kv], dim=3)
    torch.testing.assert_close(found, wanted[:, :, :, start:-1], rtol=1e-4, atol=1e-4)
