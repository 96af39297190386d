"""Shared prefixes change nothing but the work: equal to the plain decoder, and each token read once."""

import random

import numpy as np
import pytest
import torch

from benchmarks import families
from inferscale.flops import FlopCounter, closed_form
from inferscale.flow import GenerateRequest
from inferscale.generators import HFGenerator
from inferscale.runtime import kv as kv_attention
from inferscale.runtime import kv as kv_plans
from inferscale.runtime import session as runtime_session
from inferscale.runtime.kv import Piece, Scores, UnsupportedModelError
from inferscale.runtime.plain import whole_logits
from inferscale.runtime.prefix_cache import KeyedPath, PrefixCache, chain_key
from inferscale.runtime.session import Session, check_session
from tests.tiny_models import EXACT, byte_tokenizer, grow, grow_all, root, shared_model, tiny_model

PROMPTS = ["Step 1: a b a b is 12\n", "b", "ab the", "12 = 12 x 2 x"]


def generator(family="llama", model=None, **options):
    options = {"max_step_tokens": 6, "max_new_tokens": 26, **options}
    return HFGenerator(model or shared_model(family), byte_tokenizer(), **options)


def wander(gen, rounds=5, greedy=False):
    """A search that forks at every step, prunes, and comes back to old nodes; the same choices every time."""
    rng = random.Random(1)
    trees = [root(prompt) for prompt in PROMPTS]
    for turn in range(rounds):
        picked = []
        for tree in trees:
            live = [n for n in tree.walk() if not n.is_finished]
            picked += rng.sample(live, min(2, len(live)))
        options = [{}, {"until": "end"}, {"forced": " the ab\n"}][turn % 3]
        rng.shuffle(picked)
        grow_all(gen, picked, 2, greedy=greedy and turn % 2 == 0, **options)
    return trees


def picture(trees):
    return [(n.depth, n.step.token_ids, n.step.finish_reason) for t in trees for n in t.walk() if n.step]


QUICK = {"llama", "qwen3", "gpt2", "gemma", "mixtral", "opt"}
CASES = [
    pytest.param(
        family, greedy, marks=[] if family in QUICK and not (greedy and family != "qwen3") else pytest.mark.slow
    )
    for family in [*EXACT, "stablelm"]
    for greedy in (False, True)
]


@pytest.mark.parametrize(("family", "greedy"), CASES)
def test_tokens_equal_those_of_the_plain_decoder(family, greedy):
    model = tiny_model(family)
    if family not in {"mixtral", "qwen2_moe"}:  # grouped products of experts know no doubles
        model = model.double()  # in single precision a draw now and then falls on the border between two tokens
    tree, plain = generator(model=model), generator(model=model, cache="none")
    assert tree.shares_prefixes
    assert not plain.shares_prefixes
    ours, theirs = wander(tree, greedy=greedy), wander(plain, greedy=greedy)
    assert picture(ours) == picture(theirs)
    for one, other in zip(
        (n for t in ours for n in t.walk() if n.step), (n for t in theirs for n in t.walk() if n.step), strict=True
    ):
        assert one.step.logprob == pytest.approx(other.step.logprob, abs=2e-3)
        assert one.step.flops == other.step.flops
    assert tree.stats.reused_tokens > 3 * tree.stats.prefill_tokens


@pytest.mark.parametrize("max_cache_bytes", [0, 3000, 20_000])
def test_what_was_dropped_is_computed_again(max_cache_bytes):
    gen = generator(max_cache_bytes=max_cache_bytes)
    assert picture(wander(gen)) == picture(wander(generator()))
    assert gen.stats.cache_bytes <= max_cache_bytes
    assert max_cache_bytes == 0 or gen.stats.evictions > 0


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_batches_of_any_size_give_the_same_trees(rows):
    assert picture(wander(generator(micro_batch=rows), rounds=3)) == picture(wander(generator(), rounds=3))


def test_every_token_is_read_once():
    gen = generator()
    session = gen._runner._tree.session
    before = session.tokens
    trees = [root(prompt) for prompt in PROMPTS]
    level = trees
    for _ in range(3):
        level = [n for group in grow_all(gen, level, 3) for n in group if not n.is_finished]
    steps = [n for t in trees for n in t.walk() if n.step]
    prompts = sum(len(byte_tokenizer()(prompt)["input_ids"]) for prompt in PROMPTS)
    inner = sum(bool(n.children) for n in steps)  # the last token of a node is read when the node grows
    assert session.tokens - before == prompts + inner + sum(len(n.step.token_ids) - 1 for n in steps)
    assert gen.stats.prefill_tokens == prompts + inner
    assert gen.stats.decoded_tokens == sum(len(n.step.token_ids) for n in steps)


def test_a_second_visit_reads_one_token():
    gen = generator()
    tree = root(PROMPTS[0])
    child = next(n for n in grow(gen, tree, 4) if not n.is_finished)
    grow(gen, child, 2)
    before = gen.stats.prefill_tokens
    grow(gen, child, 2)
    grow(gen, tree, 2)
    assert gen.stats.prefill_tokens - before == 2


def test_memory_is_counted_and_let_go():
    gen = generator()
    per_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, kv heads, head_dim, float32
    tree, other = root(PROMPTS[0]), root(PROMPTS[1])
    level = [n for n in grow(gen, tree, 3) if n.step.finish_reason == "step"]
    prompt = len(byte_tokenizer()(PROMPTS[0])["input_ids"])
    held = prompt + sum(len(n.step.token_ids) - 1 for n in level)
    assert gen.stats.cache_bytes == held * per_token
    grow(gen, other, 1)
    assert gen.stats.peak_cache_bytes >= gen.stats.cache_bytes > held * per_token
    gen.release(tree)
    gen.release(other)
    assert gen.stats.cache_bytes == 0
    assert len(gen._runner._tree.cache) == 0
    again = root(PROMPTS[0])
    assert [n.step for n in grow(gen, again, 3)] == [n.step for n in tree.children]


def test_nodes_are_known_by_their_tokens_and_not_by_their_keys():
    gen = generator()
    first = root(PROMPTS[0])
    grow(gen, first, 2, greedy=True)
    second = root(PROMPTS[0])  # the same keys, other tokens
    for node in grow(gen, second, 2):
        if not node.is_finished:
            grow(gen, node, 2)
    clean = root(PROMPTS[0])
    for node in grow(generator(cache="none"), clean, 2):
        if not node.is_finished:
            grow(generator(cache="none"), node, 2)
    assert picture([second]) == picture([clean])


@pytest.mark.parametrize("family", ["openai-gpt", pytest.param("deepseek_v32", marks=pytest.mark.slow)])
def test_models_that_do_not_fit_are_run_plainly_and_say_so(family):
    with pytest.warns(UserWarning, match=r"is run without shared prefixes, slower and with equal results: "):
        gen = generator(model=families.small_model(family))
    assert not gen.shares_prefixes
    assert picture(wander(gen)) == picture(wander(generator(model=gen.model, cache="none")))


SHARED = [
    "mistral_window",
    "gemma2",
    pytest.param("gpt_oss", marks=pytest.mark.slow),  # sinks, which quick tests of thoughts and of long prompts have
    "gemma3_text",
    "deepseek_v3",
    "qwen2",
    "gemma4_text",  # layers of two widths
    pytest.param("gemma3n_text", marks=pytest.mark.slow),  # layers that attend to the keys of an earlier one
    pytest.param("mimo_v2_flash", marks=pytest.mark.slow),  # layers with more heads of keys than others
]


def windowed_model(family):
    """A model whose layers have windows, caps, sinks or narrow values; prompts and rows pass its windows."""
    if family in ("mistral_window", "gemma2"):
        return tiny_model(family, sliding_window=6)
    return families.small_model(family)


@pytest.mark.parametrize("family", SHARED)
@pytest.mark.parametrize("flash", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_windows_caps_sinks_and_narrow_values_share_prefixes(family, flash, monkeypatch):
    model = windowed_model(family)
    if not flash:
        monkeypatch.setattr(kv_attention, "_CPU_FLASH", None)
    tree, plain = generator(model=model), generator(model=model, cache="none")
    assert tree.shares_prefixes
    assert tree._runner._tree.session.covers(40)
    ours, theirs = wander(tree, rounds=4), wander(plain, rounds=4)
    assert picture(ours) == picture(theirs)
    for one, other in zip((n for t in ours for n in t.walk()), (n for t in theirs for n in t.walk()), strict=True):
        if one.step:
            assert one.step.logprob == pytest.approx(other.step.logprob, abs=2e-3)
    assert tree.stats.prefill_tokens < plain.stats.prefill_tokens / 3


@pytest.mark.parametrize("family", ["mistral_window", "gemma2", "gpt_oss"])
def test_a_long_common_prefix_is_seen_as_far_as_windows_reach(family):
    """Prompts that begin alike are read after their common part, which is longer than the window."""
    model, ids = windowed_model(family), [3 + 7 * i % 250 for i in range(60)]
    with torch.inference_mode():
        session = Session(model)
        pieces = session.prefill([ids[:40], [*ids[:36], 9, 8, 7]])
        logits = session.extend(session.open(pieces, 1), [[5], [5, 6]])
        for found, row in zip(logits, ([*ids[:40], 5], [*ids[:36], 9, 8, 7, 5, 6]), strict=True):
            torch.testing.assert_close(found, whole_logits(model, row), atol=1e-4, rtol=1e-4)


def test_lengths_that_are_not_covered_are_run_plainly():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    dynamic = tiny_model("llama", rope_parameters=rope, max_position_embeddings=16)
    gen = generator(model=dynamic)
    session = gen._runner._tree.session
    assert (session.covers(16), session.covers(17)) == (True, False)
    assert picture(wander(gen)) == picture(wander(generator(model=dynamic, cache="none")))
    assert session.tokens > 40
    assert Session(tiny_model("qwen2")).covers(10**6)  # its window is not in use


def test_a_wrong_window_is_seen_beyond_it(monkeypatch):
    session = Session(tiny_model("mistral_window"))
    monkeypatch.setattr(kv_plans, "Scores", lambda scale, window, *rest: Scores(scale, window and window + 1, *rest))
    with torch.inference_mode():
        check_session(session)
        with pytest.raises(UnsupportedModelError, match="logits differ"):
            check_session(session, 12)


def test_the_check_sees_a_wrong_key(monkeypatch):
    session = Session(tiny_model())
    with torch.inference_mode():
        check_session(session)
        honest = kv_plans.partial_attention

        def corrupted(query, key, value, bias, scale):
            return honest(query, key * 1.02, value, bias, scale)

        monkeypatch.setattr(kv_plans, "partial_attention", corrupted)
        with pytest.raises(UnsupportedModelError, match="logits differ"):
            check_session(session)


def test_a_model_is_probed_once_unless_its_parts_change(monkeypatch):
    probes, honest = [], runtime_session.check_session
    monkeypatch.setattr(runtime_session, "check_session", lambda session: probes.append(session) or honest(session))
    model = tiny_model()
    plain = [picture(wander(generator(model=model))) for _ in range(2)]
    assert plain[0] == plain[1]
    assert len(probes) == 1
    model.model.layers[0].register_forward_hook(lambda *given: None)
    generator(model=model)
    model.lm_head.forward = model.lm_head.forward
    generator(model=model)
    assert len(probes) == 3


def test_half_precision_passes_the_check():
    gen = generator(model=tiny_model().bfloat16())
    assert gen.shares_prefixes
    assert wander(gen)[0].children


def test_the_portable_attention_equals_the_fused_one(monkeypatch):
    fused = picture(wander(generator("qwen3")))
    monkeypatch.setattr(kv_attention, "_CPU_FLASH", None)
    assert picture(wander(generator("qwen3"))) == fused


def test_the_model_is_left_as_it_was():
    model = tiny_model("qwen2")
    before = model.config._attn_implementation
    ids = torch.tensor([[5, 6, 7]])
    expected = model(input_ids=ids).logits
    wander(generator(model=model))
    assert model.config._attn_implementation == before
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_two_requests_of_one_node_share_its_reading():
    gen = generator()
    node = root(PROMPTS[0])
    requests = [GenerateRequest(node, 1), GenerateRequest(node, 2, first=1, until="end")]
    found = [s.token_ids for steps in gen.generate(requests) for s in steps]
    plain = [s.token_ids for steps in generator(cache="none").generate(requests) for s in steps]
    assert found == plain
    assert gen.stats.prefill_tokens == len(byte_tokenizer()(PROMPTS[0])["input_ids"])


def test_a_session_equals_whole_forwards_through_forks_and_ragged_extensions():
    model = tiny_model("qwen3")
    rng = random.Random(2)
    with torch.inference_mode():
        session = Session(model)
        prompts = [[rng.randrange(5, 280) for _ in range(n)] for n in (7, 1, 3)]
        batch = session.open(session.prefill(prompts), 1)
        rows = [list(p) for p in prompts]
        for _ in range(6):
            new = [[rng.randrange(5, 280) for _ in range(rng.choice([1, 1, 2, 9]))] for _ in rows]
            marks = [sorted(rng.sample(range(len(ids)), rng.choice([0, 1]))) for ids in new]
            logits = session.extend(batch, new, marks)
            at = 0
            for row, ids, places in zip(rows, new, marks, strict=True):
                for place in places:
                    expected = model(input_ids=torch.tensor([row + ids[: place + 1]])).logits[0, -1]
                    torch.testing.assert_close(logits[at], expected, atol=1e-4, rtol=1e-4)
                    at += 1
                row += ids
            picked = sorted(rng.choices(range(len(rows)), k=4))
            batch, rows = batch.select(picked), [list(rows[i]) for i in picked]


def test_empty_prefixes_can_be_continued():
    model = tiny_model("gpt2")
    with torch.inference_mode():
        session = Session(model)
        [segment] = session.prefill([[]])
        assert (segment.kv, len(segment), segment.bytes) == (None, 0, 0)
        logits = session.extend(session.open([segment], 1), [[9, 8]])
        torch.testing.assert_close(
            logits[0], model(input_ids=torch.tensor([[9, 8]])).logits[0, -1], atol=1e-4, rtol=1e-4
        )


def piece(count, value=0.0):
    return Piece(tuple(range(count)), torch.full((1, 2, 1, count, 1), value))


def test_the_cache_drops_the_least_recently_used():
    store = PrefixCache(max_bytes=8 * 10)  # ten tokens of eight bytes
    store.put(1, 11, piece(4))
    store.put(1, 12, piece(4))
    assert store.piece(1, 11, (0, 1, 2, 3)).ids == (0, 1, 2, 3)
    store.put(2, 21, piece(5))
    assert (store.bytes, store.evictions, len(store)) == (72, 1, 2)
    assert store.piece(1, 12, range(4)) is None
    assert store.piece(1, 11, (0, 1, 9, 3)) is None
    store.put(2, 21, piece(2))
    assert store.bytes == 48
    store.put(2, 22, piece(11))  # does not fit at all
    assert store.piece(2, 22, range(11)) is None
    store.put(1, chain_key(0, (0, 1)), piece(2))
    assert len(store.prompt(KeyedPath(1, (0, 1)))) == 2
    assert store.prompt(KeyedPath(1, (0, 1, 2))) is None
    store.release(1)
    store.release(7)
    assert store.bytes == 16
    store.shrink(0)
    assert (store.bytes, len(store)) == (0, 0)


@pytest.mark.parametrize(
    ("family", "mode"), [("llama", "analytic"), ("gpt2", "verify"), ("qwen2_moe", "verify"), ("opt", "verify")]
)
def test_a_flop_counter_sees_what_the_steps_are_charged(family, mode):
    gen = generator(family)
    trees = [root(prompt) for prompt in PROMPTS]
    with FlopCounter(generator=gen, mode=mode) as counter:
        level = trees
        for _ in range(3):
            level = [n for group in grow_all(gen, level, 2) for n in group if not n.is_finished]
    charged = sum(n.step.flops for t in trees for n in t.walk() if n.step)
    spec = closed_form(gen.model)
    unread_heads = len(PROMPTS) * spec.head  # a shared prefix is read for its keys, and one position runs the head
    assert charged <= counter.flops <= charged + unread_heads


@pytest.mark.parametrize("family", ["mistral_window", "gemma3_text"])
def test_a_flop_counter_sees_windows_in_shared_prefixes(family, monkeypatch):
    monkeypatch.setattr(runtime_session, "_covered", {})  # the probe beyond the window is no work of the search
    gen = generator(model=windowed_model(family))
    trees = [root(prompt) for prompt in PROMPTS]
    with FlopCounter(generator=gen, mode="verify") as counter:
        level = trees
        for _ in range(3):
            level = [n for group in grow_all(gen, level, 2) for n in group if not n.is_finished]
    charged = sum(n.step.flops for t in trees for n in t.walk() if n.step)
    assert charged <= counter.flops <= charged + len(PROMPTS) * closed_form(gen.model).head


@pytest.mark.parametrize("most", [1, 9])
def test_blocks_hold_every_row_once_and_pad_only_where_that_costs_less_than_calls(most):
    rng = np.random.default_rng(most)
    for width in (16, 512, 2**20):
        rows = np.sort(rng.choice(120, 70, replace=False))
        counts, past = rng.integers(1, most + 1, 70), rng.integers(0, 300, 70)
        blocks = kv_plans.blocks_of(rows, counts, past + counts, width)
        held = [row for block in blocks for row in range(block.start, block.stop)]
        assert held == sorted(set(held))
        assert set(rows) <= set(held)
        for block in blocks:
            inside = (rows >= block.start) & (rows < block.stop)
            assert (block.most, block.keys) == (counts[inside].max(), (past + counts)[inside].max())
            assert {block.start, block.stop - 1} <= set(rows)  # no block begins or ends with an idle row
        needed = sum(kv_plans.Block(0, 1, int(n), int(k)).work for n, k in zip(counts, past + counts, strict=True))
        if width == 2**20 and most > 1:  # then hardly any padding is worth a call
            assert sum(block.work for block in blocks) <= needed * 1.01
        if width == 16:
            assert len(blocks) < 70 // 4
