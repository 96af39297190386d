"""Cached thinking against recomputing everything, and what a search sees of it."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import DynamicCache, StaticCache

from inferscale import REBASE, BeamSearch, Budget, MajorityVote, RepeatedSampling, RewardFunction, solve_batch
from inferscale.flops import FlopCounter
from inferscale.flops.spec import model_spec
from inferscale.generators import HFGenerator
from inferscale.quiet_star import (
    EveryToken,
    HighEntropy,
    Never,
    QuietSTaRGenerator,
    StepStarts,
    ThinkingRule,
    TokenContext,
    UnsupportedModelError,
    mix,
)
from inferscale.quiet_star.backbone import RollbackError, fork, is_croppable, rollback
from inferscale.quiet_star.cache import CachedText, check_cached, think_once
from inferscale.quiet_star.head import mean_of_thoughts
from inferscale.runtime.sampling import Sampler, uniforms
from inferscale.strategies import MCTS
from inferscale.tree import branch_key
from tests.quiet_star_tools import one_thought, wrapped
from tests.tiny_models import byte_tokenizer, cached, grow, grow_all, root

CACHED = ["llama", "gpt2", "qwen3", "mistral_window", "gemma2", "gemma3", "gpt_oss", "phi", "falcon"]
COPIED = ["mamba", "qwen3_next"]
ENTROPY = 4.45  # nats, within what the tiny model's predictions have
OPTIONS = {"max_step_tokens": 6, "max_new_tokens": 12, "eos_token_id": 319}


def generator(quiet=None, **options):
    return QuietSTaRGenerator(quiet or wrapped("llama", 3), byte_tokenizer(), **{**OPTIONS, **options})


def recomputed(quiet, prefix, key, count, length, num_thoughts=1, temperature=1.0):
    """Visible tokens of a branch, everything read again for every token, one row, no padding."""
    tokens, logprobs = [], 0.0
    for t in range(count):
        logits = []
        base = quiet.backbone.states(quiet.backbone.embed(torch.tensor([prefix + tokens])))[0, -1]
        for k in range(num_thoughts):
            thought = []
            for s in range(length):
                state = one_thought(quiet, prefix + tokens, thought)[len(prefix) + len(tokens) + s]
                number = uniforms([branch_key(key, -1 - k)], np.array([(t << 16) + s], dtype=np.uint64))
                draws = Sampler(temperature).draw(quiet.logits(state)[None], torch.from_numpy(number))
                thought.append(int(draws.tokens[0]))
            after = one_thought(quiet, prefix + tokens, thought)[-1]
            logits.append(quiet.logits(mix(base, after, quiet.head(base, after))))
        number = torch.from_numpy(uniforms([key], np.array([t], dtype=np.uint64)))
        draws = Sampler().draw(mean_of_thoughts(torch.stack(logits)[None]), number)
        tokens.append(int(draws.tokens[0]))
        logprobs += float(draws.logprobs[0])
    return tokens, logprobs


@torch.no_grad()
@pytest.mark.parametrize("length", [0, 1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_cached_thinking_is_recomputing_token_by_token_in_a_padded_batch(family, length):
    quiet = wrapped(family, length)
    gen = generator(quiet, max_step_tokens=12)
    nodes = [root("Step 12: a b\n"), root("x"), root("ab the is ab the x 12")]
    groups = gen.generate([_request(node, n=2) for node in nodes])
    for node, steps in zip(nodes, groups, strict=True):
        prefix = byte_tokenizer()(node.problem.prompt)["input_ids"]
        for draw, step in enumerate(steps):
            tokens, logprob = recomputed(quiet, prefix, branch_key(node.key, draw), len(step.token_ids), length)
            assert list(step.token_ids) == tokens
            assert step.logprob == pytest.approx(logprob, rel=1e-3, abs=1e-3)
    assert sum(len(step.token_ids) for steps in groups for step in steps) >= 30


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:FLOPs of this model will be reported as 0")
@pytest.mark.parametrize("family", [*CACHED, pytest.param("mamba", marks=pytest.mark.slow), "qwen3_next", "lfm2"])
def test_every_kind_of_cache_gives_the_states_of_a_plain_pass(family):
    options = {"parallel": "fold"} if family in (*COPIED, "lfm2") else {}
    quiet = wrapped(family, 2, **options)
    gen = generator(quiet, max_step_tokens=6)
    node, other = root("ab the is ab the x 12"), root("x")
    first, second = (steps[0] for steps in gen.generate([_request(node), _request(other)]))
    for sampled, which in ((first, node), (second, other)):
        prefix = byte_tokenizer()(which.problem.prompt)["input_ids"]
        tokens, logprob = recomputed(quiet, prefix, branch_key(which.key, 0), len(sampled.token_ids), 2)
        assert list(sampled.token_ids) == tokens
        assert sampled.logprob == pytest.approx(logprob, rel=1e-2, abs=1e-2)
    assert gen._decoder._checked


def _request(node, n=1, **options):
    from inferscale.flow import GenerateRequest

    return GenerateRequest(node, n, **options)


@torch.no_grad()
def test_several_thoughts_are_several_runs_averaged():
    quiet = wrapped("llama", 2)
    step = generator(quiet, num_thoughts=3).generate([_request(root("a b"))])[0][0]
    prefix = byte_tokenizer()("a b")["input_ids"]
    key = branch_key(root("a b").key, 0)
    assert list(step.token_ids) == recomputed(quiet, prefix, key, len(step.token_ids), 2, num_thoughts=3)[0]
    assert step.thought_tokens == len(step.token_ids) * 3 * 4


@torch.no_grad()
def test_greedy_thoughts_need_no_stream():
    quiet = wrapped("llama", 3)
    greedy = generator(quiet, thought_temperature=0.0).generate([_request(root("a b"))])[0][0]
    prefix = byte_tokenizer()("a b")["input_ids"]
    key = branch_key(root("a b").key, 0)
    assert list(greedy.token_ids) == recomputed(quiet, prefix, key, len(greedy.token_ids), 3, temperature=0.0)[0]
    one, other = (generator(quiet).generate([_request(root("a b", seed), greedy=True)])[0][0] for seed in (0, 1))
    assert one.token_ids == other.token_ids


@torch.no_grad()
def test_forbidden_ids_are_neither_said_nor_thought():
    request = [_request(root("a b"), n=20)]
    free = generator(wrapped("llama", 2)).generate(request)[0]
    often = max(range(320), key=[token for step in free for token in step.token_ids].count)
    gen = generator(wrapped("llama", 2, forbidden_ids=[often]), record_thoughts=True)
    top = root("a b")
    said = [child.step.token_ids for child in grow(gen, top, 20)]
    thought = [record.token_ids for child in top.children for place in gen.thoughts_of(child) for record in place]
    assert len(thought) > 20
    assert all(often not in ids for ids in said + thought)


def test_an_untrained_wrapper_gives_the_plain_tree():
    quiet = wrapped("llama", 3, trained=False)
    plain = HFGenerator(quiet.model, byte_tokenizer(), **OPTIONS)
    reward = RewardFunction(lambda prompts, completions: [float(len(set(text))) for text in completions])
    strategies = [REBASE(width=6, softmax_temperature=1.0), BeamSearch(2, 2), RepeatedSampling(3)]
    for strategy in strategies:
        trees = []
        for gen in (plain, generator(quiet), generator(quiet, thought_length=0)):
            results = solve_batch(["a b", "Step 12"], strategy, gen, reward_model=reward, aggregator=MajorityVote())
            trees.append([[node.token_ids for node in result.root.walk()] for result in results])
        assert trees[0] == trees[1] == trees[2]


@pytest.mark.parametrize("strategy", [REBASE(width=4), MCTS(num_simulations=5), BeamSearch(2, 2), RepeatedSampling(3)])
def test_searches_are_alone_what_they_are_together(strategy):
    gen = generator()
    reward = RewardFunction(lambda prompts, completions: [float(len(set(text))) for text in completions])
    options = {"reward_model": reward, "seed": 3}
    together = solve_batch(["a b", "Step 12", "ab"], strategy, gen, **options)
    for prompt, result in zip(["a b", "Step 12", "ab"], together, strict=True):
        alone = solve_batch([prompt], strategy, gen, **options)[0]
        assert [n.token_ids for n in alone.root.walk()] == [n.token_ids for n in result.root.walk()]
        assert alone.cost.generator_flops == result.cost.generator_flops
        assert alone.cost.thought_tokens == result.cost.generated_tokens * 5


def test_nodes_hold_visible_text_alone_and_thoughts_are_recorded_on_request():
    quiet = wrapped("llama", 3)
    gen = generator(quiet, record_thoughts=True)
    child = grow(gen, root("a b"))[0]
    thoughts = gen.thoughts_of(child)
    assert len(thoughts) == len(child.step.token_ids)
    assert all(len(records) == 1 and len(records[0].token_ids) == 3 for records in thoughts)
    prefix = byte_tokenizer()("a b")["input_ids"]
    with torch.no_grad():
        second = [*prefix, child.step.token_ids[0]]
        base = one_thought(quiet, second, [])[len(second) - 1]
        after = one_thought(quiet, second, list(thoughts[1][0].token_ids))[-1]
        assert thoughts[1][0].mixing_weight == pytest.approx(float(quiet.head(base, after)), rel=1e-3)
    assert thoughts[0][0].logprob < 0
    gen.forget_thoughts()
    assert gen.thoughts_of(child) == ()
    with pytest.raises(ValueError, match="record_thoughts=True"):
        generator(quiet).thoughts_of(child)


# -- when to think -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_thinking_at_step_starts_costs_a_thought_a_step():
    quiet = wrapped("llama", 3)
    gen = generator(quiet, when=StepStarts(), record_thoughts=True, max_new_tokens=20)
    nodes = [root("a b"), root("x")]
    steps = [steps[0] for steps in gen.generate([_request(node, until="end") for node in nodes])]
    for node, step in zip(nodes, steps, strict=True):
        ends = [end for _, end in step.inner_ends] or [len(step.token_ids)]
        records = gen.thoughts_of(type(node)(node.problem, step, node, branch_key(node.key, 0)))
        starts = [0, *ends[:-1]]
        assert [place for place, found in enumerate(records) if found] == starts
        assert step.thought_tokens == 5 * len(starts)
    assert len(steps[0].inner_ends) > 1


@torch.no_grad()
def test_never_thinking_is_the_plain_model_and_high_entropy_is_in_between():
    quiet = wrapped("llama", 3)
    plain = HFGenerator(quiet.model, byte_tokenizer(), **OPTIONS)
    wanted = plain.generate([_request(root("a b"), 3)])[0]
    silent = generator(quiet, when=Never()).generate([_request(root("a b"), 3)])[0]
    assert [step.token_ids for step in silent] == [step.token_ids for step in wanted]
    assert [step.flops for step in silent] == [step.flops for step in wanted]
    assert [step.thought_tokens for step in silent] == [0, 0, 0]
    everything = generator(quiet, when=EveryToken()).generate([_request(root("a b"), 3)])[0]
    unsure = generator(quiet, when=HighEntropy(0.0)).generate([_request(root("a b"), 3)])[0]
    assert [step.token_ids for step in unsure] == [step.token_ids for step in everything]
    assert [step.flops for step in unsure] == [step.flops for step in everything]
    some = generator(quiet, when=HighEntropy(ENTROPY)).generate([_request(root("a b"), 8)])[0]
    thought = sum(step.thought_tokens for step in some)
    assert 0 < thought < 5 * sum(step.generated_tokens for step in some)


@torch.no_grad()
def test_a_rule_of_ones_own_sees_where_the_next_token_stands():
    @dataclass(frozen=True)
    class SecondTokens(ThinkingRule):
        seen: list[TokenContext]

        def thinks(self, context):
            self.seen.append(context)
            return context.step_tokens == 1

    rule = SecondTokens([])
    gen = generator(when=rule, record_thoughts=True)
    child = grow(gen, root("a b"))[0]
    count = len(child.step.token_ids)
    assert rule.seen == [TokenContext(number, number) for number in range(count)]
    assert [len(records) for records in gen.thoughts_of(child)] == [int(number == 1) for number in range(count)]
    assert child.step.thought_tokens == 5


def test_a_sampler_draws_the_visible_tokens_and_not_the_thoughts():
    quiet = wrapped("llama", 3)
    one, other = generator(quiet, sampler=Sampler(0.0)), generator(quiet, temperature=0.0)
    requests = [_request(root("a b")), _request(root("x"))]
    assert [s.token_ids for (s,) in one.generate(requests)] == [s.token_ids for (s,) in other.generate(requests)]


# -- the bill ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 5])
def test_flops_per_visible_token_are_the_closed_form(length):
    quiet = wrapped("llama", length)
    spec = model_spec(quiet.model.config)
    gen = generator(quiet)
    step = gen.generate([_request(root("a b"))])[0][0]
    prompt = len(byte_tokenizer()("a b")["input_ids"])
    d, vocabulary = 32, 320
    body, per_pair = spec.linear, sum(group.per_pair for group in spec.attention)
    expected = (prompt - 1) * body + per_pair * (prompt - 1) * prompt // 2
    for token in range(len(step.token_ids)):
        context = prompt - 1 + token
        expected += (length + 3) * body + per_pair * sum(context + i + 1 for i in range(length + 3))
        expected += (length + 1) * 2 * d * vocabulary + 6 * d * d + 2 * d
    assert step.flops == expected
    assert step.prompt_tokens == prompt
    assert step.thought_tokens == (length + 2) * len(step.token_ids)


def test_architectures_without_a_known_form_are_charged_what_ran():
    """OPT's closed form is measured; no zero passes for a cost."""
    gen = generator(wrapped("opt", 2))
    gen.generate([_request(root("x"))])
    with FlopCounter(generator=gen) as counter:
        step = gen.generate([_request(root("a b"))])[0][0]
    assert counter.flops == step.flops > 0


def test_the_bill_of_a_tree_reads_every_visible_token_once():
    quiet = wrapped("llama", 2)
    spec = model_spec(quiet.model.config)
    per_pair = sum(group.per_pair for group in spec.attention)
    gen = generator(quiet, max_step_tokens=3)
    top = root("a b")
    children = grow(gen, top, 3)
    grow_all(gen, [child for child in children if not child.is_finished], 2)
    prompt = len(byte_tokenizer()("a b")["input_ids"])
    nodes = [node for node in top.walk() if node.step is not None]
    visible = sum(len(node.step.token_ids) for node in nodes)
    # tokens read: the prompt, and every sampled token that something was sampled after
    inner = sum(len(node.step.token_ids) - (not node.children) for node in nodes)
    total = sum(node.step.flops for node in nodes)
    linear = (prompt + inner + visible * 4) * spec.linear
    heads = visible * (3 * 2 * 32 * 320 + 6 * 32 * 32 + 2 * 32)
    assert (total - linear - heads) % per_pair == 0
    assert 0 < (total - linear - heads) // per_pair < visible * 6 * 40
    assert sum(node.step.thought_tokens for node in nodes) == 4 * visible


@pytest.mark.parametrize("length", [0, 3])
def test_a_flop_counter_sees_what_the_step_is_charged_with(length):
    """Heads and thoughts included: the ledger of what ran and the closed form are one number."""
    gen = generator(wrapped("llama", length))
    gen.generate([_request(root("x"))])
    with FlopCounter(generator=gen) as counter:
        step = gen.generate([_request(root("a b"))])[0][0]
    assert counter.flops == step.flops
    assert not counter.uncounted


def test_a_thought_takes_t_plus_one_passes():
    for length in (0, 1, 4):
        gen = generator(wrapped("llama", length), max_step_tokens=5, step_delimiter="#")
        step = gen.generate([_request(root("a b"))])[0][0]
        assert gen.passes == len(step.token_ids) * max(length + 1, 1)


def test_budgets_hold_with_thoughts_on_the_bill():
    gen = generator(max_new_tokens=30)
    for cap in (1, 3, 5, 6, 7, 12, 40):
        result = solve_batch(["a b"], RepeatedSampling(4), gen, budget=Budget(tokens=cap))[0]
        assert result.cost.tokens <= cap
        assert result.cost.tokens > cap - 6
        assert result.stopped_by in ("tokens", None)
    few = solve_batch(["a b"], RepeatedSampling(4), gen, budget=Budget(tokens=3))[0]
    assert few.cost.thought_tokens == 0


def test_a_budget_goes_into_visible_tokens_alone_where_nothing_is_ever_thought():
    quiet = wrapped("llama", 3)
    plain, silent = HFGenerator(quiet.model, byte_tokenizer(), **OPTIONS), generator(quiet, when=Never())
    for cap in (4, 9, 20):
        asked = [_request(root("a b"), max_tokens=cap)]
        assert silent.generate(asked)[0][0].token_ids == plain.generate(asked)[0][0].token_ids
        assert silent.max_sample_tokens(asked[0]) == plain.max_sample_tokens(asked[0])


def test_the_context_has_room_for_thoughts():
    quiet = wrapped("gpt2", 5, changes={"n_positions": 16, "max_position_embeddings": 16})
    gen = generator(quiet, max_new_tokens=100, max_step_tokens=100, step_delimiter="#")
    step = gen.generate([_request(root("a b"))])[0][0]
    prompt = len(byte_tokenizer()("a b")["input_ids"])
    assert prompt + len(step.token_ids) <= 16 - 7
    with pytest.raises(ValueError, match="lower thought_length"):
        generator(quiet, thought_length=14)


def test_bad_options_are_told():
    with pytest.raises(
        TypeError, match=r"takes a QuietSTaR, not LlamaForCausalLM: wrap a model with QuietSTaR\(model\)"
    ):
        generator(wrapped("llama", 3).model)
    with pytest.raises(ValueError, match="put temperature and filters into the sampler"):
        generator(sampler=Sampler(0.5), temperature=0.7)
    with pytest.raises(ValueError, match="num_thoughts=0"):
        generator(num_thoughts=0)
    with pytest.raises(ValueError, match="thought_length=-1"):
        generator(thought_length=-1)


# -- caches ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_after_a_rollback_nothing_of_a_thought_is_left():
    quiet = wrapped("llama", 4)
    text = CachedText.prefill(quiet.backbone, [[5, 6, 7], [9]])
    before = [(layer.keys.clone(), layer.values.clone()) for layer in text.cache.layers]
    newest = quiet.backbone.embed(torch.tensor([[8], [10]]))
    numbers = torch.rand(2, 4, dtype=torch.float64)
    thought = think_once(quiet, text, newest, numbers, Sampler())
    text.rollback(6)
    plain = CachedText.prefill(quiet.backbone, [[5, 6, 7], [9]])
    wanted = plain.feed(newest)[:, 0]
    torch.testing.assert_close(thought.before, wanted, rtol=1e-5, atol=1e-5)
    for (keys, values), layer, other in zip(before, text.cache.layers, plain.cache.layers, strict=True):
        assert torch.equal(layer.keys[:, :, :3], keys)
        assert torch.equal(layer.values[:, :, :3], values)
        torch.testing.assert_close(layer.keys, other.keys, rtol=1e-5, atol=1e-5)
    assert text.keep.tolist() == plain.keep.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral_window", "gemma3"])
def test_rollback_of_every_cache_is_exact_or_raises(family):
    model = wrapped(family, 1).model
    decoder, ids = model.get_decoder(), torch.tensor([[5, 17, 101, 8, 44, 250, 3, 9]])
    recording = DynamicCache(config=model.config)
    recording.activate_past_recording()
    kinds = [DynamicCache(), DynamicCache(config=model.config), recording, StaticCache(model.config, max_cache_len=32)]
    exact = 0
    for cache in kinds:
        decoder(input_ids=ids, **cached(decoder, cache), use_cache=True)
        saved = copy.deepcopy(cache)
        decoder(input_ids=torch.tensor([[7, 7, 7]]), **cached(decoder, cache), use_cache=True)
        try:
            rollback(cache, 3)
        except RollbackError:
            assert not is_croppable(cache)
            continue
        after = [decoder(input_ids=ids[:, :1], **cached(decoder, c), use_cache=True) for c in (cache, saved)]
        torch.testing.assert_close(after[0].last_hidden_state, after[1].last_hidden_state, rtol=1e-4, atol=1e-4)
        exact += 1
    assert exact >= 2
    if family == "llama":
        assert exact == 4
    rollback(kinds[0], 0)
    with pytest.raises(ValueError, match="give the number of tokens"):
        rollback(kinds[0], -1)


@torch.no_grad()
def test_recurrent_states_are_forked_and_never_cropped():
    quiet = wrapped("mamba", 2, parallel="fold")
    text = CachedText.prefill(quiet.backbone, [[5, 6, 7]])
    assert not text.can_roll_back
    with pytest.raises(RollbackError, match="think on a fork"):
        text.rollback(1)
    other = fork(text.cache, torch.tensor([0, 0]))
    state = text.cache.layers[0].recurrent_states[0].clone()
    CachedText(quiet.backbone, text.keep[[0, 0]], other).feed(quiet.backbone.embed(torch.tensor([[3], [4]])))
    assert torch.equal(text.cache.layers[0].recurrent_states[0], state)


def test_a_cache_that_lies_is_found_out(monkeypatch):
    quiet = wrapped("llama", 2)
    monkeypatch.setattr(CachedText, "rollback", lambda self, tokens: None)
    with pytest.raises(UnsupportedModelError, match="thinks differently on a cache"):
        check_cached(quiet)
