"""Incremental scoring: equal to reading whole texts, each node read once, and paid for once."""

import random
from functools import cache

import pytest
import torch

from benchmarks import families
from inferscale.flops.spec import forward_flops, model_spec
from inferscale.generators import HFGenerator
from inferscale.rewards import HFProcessRewardModel, LikelihoodReward
from inferscale.tree import Node, Step
from tests.tiny_models import EXACT, byte_tokenizer, grow_all, root, tiny_model

PROMPTS = ["Step 1: a b a b is 12\n", "b", "ab the"]
CLASSIFIERS = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi",
    "phi3",
    "gemma",
    "gpt2",
    "gpt_neox",
    "mixtral",
    "starcoder2",
]


@cache
def rounds_of_search(seed=3, rounds=4):
    """Nodes to score in each round; some are scored late, some never, and old nodes grow again."""
    gen = HFGenerator(tiny_model("llama", seed=seed), byte_tokenizer(), max_step_tokens=6, max_new_tokens=30)
    rng = random.Random(seed)
    trees = [root(prompt, seed) for prompt in PROMPTS]
    found = []
    for turn in range(rounds):
        picked = []
        for tree in trees:
            live = [n for n in tree.walk() if not n.is_finished]
            picked += rng.sample(live, min(3, len(live)))
        until = "end" if turn == 2 else "step"
        new = [n for group in grow_all(gen, picked, 2, until=until) for n in group if n.inner_steps()]
        found.append(rng.sample(new, max(1, 2 * len(new) // 3)))
    found.append([n for tree in trees for n in tree.walk() if n.inner_steps()])
    return trees, found


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in ("llama", "gpt2", "phi3", "mixtral") else pytest.mark.slow) for f in CLASSIFIERS],
)
def test_step_scores_equal_those_of_whole_texts(family):
    model = tiny_model(family, "TokenClassification", num_labels=2)
    tree = HFProcessRewardModel(model, byte_tokenizer(), use_token_ids=True)
    plain = HFProcessRewardModel(model, byte_tokenizer(), use_token_ids=True, cache="none")
    _, found = rounds_of_search()
    for nodes in found:
        for one, other in zip(tree.step_scores(nodes), plain.step_scores(nodes), strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    assert sum(map(len, found)) > 40


@pytest.mark.parametrize("family", EXACT[::6])
def test_likelihoods_and_token_pairs_equal_those_of_whole_texts(family):
    model = tiny_model(family)
    for kind, options in ((LikelihoodReward, {}), (HFProcessRewardModel, {"good_token": 3, "bad_token": 4})):
        tree = kind(model, byte_tokenizer(), use_token_ids=True, **options)
        plain = kind(model, byte_tokenizer(), use_token_ids=True, cache="none", **options)
        for nodes in rounds_of_search()[1]:
            for one, other in zip(tree.step_scores(nodes), plain.step_scores(nodes), strict=True):
                assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("max_cache_bytes", [0, 4000])
@pytest.mark.parametrize("micro_batch", [2, 64])
def test_little_memory_changes_nothing(max_cache_bytes, micro_batch):
    model = tiny_model("llama", "TokenClassification", num_labels=2)
    options = {"max_cache_bytes": max_cache_bytes, "micro_batch": micro_batch}
    tight = HFProcessRewardModel(model, byte_tokenizer(), **options)
    plain = HFProcessRewardModel(model, byte_tokenizer(), cache="none")
    for nodes in rounds_of_search()[1]:
        for one, other in zip(tight.step_scores(nodes), plain.step_scores(nodes), strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_each_node_is_read_and_paid_for_once():
    model = tiny_model("llama", "TokenClassification", num_labels=2)
    reward = HFProcessRewardModel(model, byte_tokenizer(), use_token_ids=True, step_separator=None)
    session = reward._scorers[0]._tree.session
    trees, found = rounds_of_search()
    before, costs = session.tokens, []
    for nodes in found:
        costs += reward.cost(nodes)
        assert reward.cost(nodes) == costs[-len(nodes) :]  # asking is free
        reward.step_scores(nodes)
        assert all(cost.scored_tokens == 0 for cost in reward.cost(nodes))
    spec, tokens, flops = model_spec(model.config, head="labels"), 0, 0
    for tree in trees:
        past = {tree: len(byte_tokenizer()(tree.problem.prompt)["input_ids"])}
        tokens += past[tree]
        flops += forward_flops(spec, past[tree], logits=0).causal
        for node in tree.walk():
            parts = reward._scorers[0]._path_of(node).parts
            steps = parts[-1].marks if parts else ()
            count = len(parts[-1].ids) if parts else 0
            if node.step is not None:
                past[node] = past[node.parent] + count
                tokens += count
                flops += forward_flops(spec, count, past[node.parent], logits=len(steps)).causal
    assert session.tokens - before == tokens
    assert sum(cost.scored_tokens for cost in costs) == tokens
    assert sum(cost.reward_flops for cost in costs) == flops


def test_nodes_of_any_depth_are_read_in_one_forward(monkeypatch):
    model = tiny_model("llama", "TokenClassification", num_labels=2)
    reward, plain = (HFProcessRewardModel(model, byte_tokenizer(), cache=cache) for cache in ("tree", "none"))
    tree = root("How many?")
    shallow, deep = (
        Node(tree.problem, Step(text, finish_reason="step"), tree, place) for place, text in enumerate("ab")
    )
    middle = Node(tree.problem, Step("c d\n", finish_reason="step"), deep, 3)
    reward.score([shallow, middle])
    newest = [Node(tree.problem, Step("e f\n", finish_reason="step"), node, 4) for node in (shallow, middle)]
    newest += [Node(tree.problem, Step("and g\n", finish_reason="step"), newest[-1], 5)]
    session, forwards = reward._scorers[0]._tree.session, []
    extend = session.extend
    monkeypatch.setattr(session, "extend", lambda batch, *args: forwards.append(len(batch)) or extend(batch, *args))
    assert reward.score(newest) == pytest.approx(plain.score(newest), abs=1e-5)
    assert forwards == [2, 1], "first what stands behind held parts, at whatever depth"


def test_a_price_does_not_depend_on_the_batch():
    model = tiny_model("llama", "TokenClassification", num_labels=2)
    _, found = rounds_of_search()
    nodes = sorted(found[0], key=lambda n: PROMPTS.index(n.problem.prompt))
    together = HFProcessRewardModel(model, byte_tokenizer()).cost(nodes)
    alone = []
    for prompt in PROMPTS:
        mine = [n for n in nodes if n.problem.prompt == prompt]
        alone += HFProcessRewardModel(model, byte_tokenizer()).cost(mine)
    assert together == alone


def test_release_forgets_a_tree():
    model = tiny_model("llama", "TokenClassification", num_labels=2)
    reward = HFProcessRewardModel(model, byte_tokenizer())
    trees, found = rounds_of_search()
    first = reward.cost(found[0])
    scores = reward.step_scores(found[0])
    assert reward._scorers[0]._tree.cache.bytes > 0
    for tree in trees:
        reward.release(tree)
    assert reward._scorers[0]._tree.cache.bytes == 0
    assert reward.cost(found[0]) == first
    assert reward.step_scores(found[0]) == scores


def test_models_that_do_not_fit_read_whole_texts():
    config = families.small_config("diffllama")  # a layer attends twice
    model = families.transformers.AutoModelForTokenClassification.from_config(config).eval()
    with pytest.warns(UserWarning, match="DiffLlamaForTokenClassification is run without shared prefixes"):
        reward = HFProcessRewardModel(model, byte_tokenizer())
    _, found = rounds_of_search()
    plain = HFProcessRewardModel(model, byte_tokenizer(), cache="none")
    assert reward.step_scores(found[0]) == plain.step_scores(found[0])


def test_paths_longer_than_a_window_are_read_whole():
    model = tiny_model("mistral_window", "TokenClassification", num_labels=2)
    reward = HFProcessRewardModel(model, byte_tokenizer())
    plain = HFProcessRewardModel(model, byte_tokenizer(), cache="none")
    for nodes in rounds_of_search()[1]:
        for one, other in zip(reward.step_scores(nodes), plain.step_scores(nodes), strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_options_are_checked():
    model = tiny_model("llama", "TokenClassification", num_labels=2)
    for options, said in (
        ({"cache": "all"}, "cache='all'"),
        ({"max_cache_bytes": -1}, "max_cache_bytes=-1"),
        ({"micro_batch": 0}, "micro_batch=0"),
    ):
        with pytest.raises(ValueError, match=said):
            HFProcessRewardModel(model, byte_tokenizer(), **options)


def test_scores_are_finite_in_half_precision():
    model = tiny_model("llama", "TokenClassification", num_labels=2).bfloat16()
    scores = HFProcessRewardModel(model, byte_tokenizer()).score(rounds_of_search()[1][0])
    assert all(0 <= score <= 1 for score in scores)
    assert torch.tensor(scores).isfinite().all()


@pytest.mark.parametrize("cache", ["tree", "none"])
@pytest.mark.parametrize("kind", [HFProcessRewardModel, LikelihoodReward])
def test_a_path_without_words_has_no_scores(kind, cache):
    head = "CausalLM" if kind is LikelihoodReward else "TokenClassification"
    reward = kind(tiny_model("llama", head, num_labels=2), byte_tokenizer(), cache=cache)
    start = root("b")
    blank = Node(start.problem, Step("\n", (203,)), start)
    worded = Node(start.problem, Step(" a\n", tuple(byte_tokenizer()(" a\n")["input_ids"])), blank)
    assert reward.step_scores([blank]) == [[]]
    [[], [score]] = reward.step_scores([blank, worded])
    assert 0 < score < 1


def test_nodes_are_laid_out_once_for_their_price_and_their_scores(monkeypatch):
    reward = HFProcessRewardModel(tiny_model("llama"), byte_tokenizer(), good_token=3, bad_token=4, use_token_ids=True)
    trees, found = rounds_of_search()
    encode, encoded = reward._encoder.encode, []
    monkeypatch.setattr(reward._encoder, "encode", lambda node: encoded.append(node) or encode(node))
    for nodes in found:
        reward.cost(nodes)
        reward.step_scores(nodes)
        reward.cost(nodes)
    assert len(encoded) == sum(map(len, found)) - len(set(found[-1]) & set(found[-2]))
    reward.release(trees[0])
    assert not reward._scorers[0]._newest
