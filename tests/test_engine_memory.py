"""What the engine holds, what it lets go, and what it does when memory runs out."""

import random

import pytest
import torch

from inferscale.engine import solve_batch
from inferscale.flow import GenerateRequest
from inferscale.generators import HFGenerator, SearchMemoryError
from inferscale.runtime import decoding as module
from inferscale.runtime.kv import RowBatch
from inferscale.runtime.session import Session, run_halving, run_in_pieces
from inferscale.strategies import BeamSearch
from inferscale.testing import ToyReward
from tests.tiny_models import byte_tokenizer, grow, grow_all, root, tiny_model

PER_TOKEN = 2 * 2 * 2 * 8 * 4  # layers, keys and values, kv heads, head_dim, float32
PROMPTS = ["Step 1: a b a b is 12\n", "b", "ab the"]


def generator(model=None, **options):
    options = {"max_step_tokens": 6, "max_new_tokens": 26, **options}
    return HFGenerator(model or tiny_model(), byte_tokenizer(), **options)


@pytest.fixture
def session():
    with torch.inference_mode():
        yield Session(tiny_model())


def random_ids(count, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(5, 280) for _ in range(count)]


def live_bytes(batch):
    """Size of what the rows hold: their private tokens, and every prompt once."""
    shared = {id(prompt.kv): prompt.bytes for prompt in batch.prompts}
    per_token = batch.bytes // (len(batch) * batch.kv.shape[4])
    return int(batch.lengths.sum()) * per_token + sum(shared.values())


def test_rows_hold_their_prompt_once_and_their_own_suffixes(session):
    segments = session.prefill([random_ids(40), random_ids(7)])
    batch = session.open(segments, 1)
    session.extend(batch, [[9] * 5, [9] * 2])
    assert live_bytes(batch) == (40 + 7 + 5 + 2) * PER_TOKEN
    batch = batch.select([0] * 6 + [1] * 3)  # fork
    assert live_bytes(batch) == (40 + 7 + 6 * 5 + 3 * 2) * PER_TOKEN
    session.step(batch, [0, 1, 2, 7], torch.tensor([5, 6, 7, 8]))
    assert live_bytes(batch) == (40 + 7 + 6 * 5 + 3 * 2 + 4) * PER_TOKEN
    batch = batch.select([0, 5])  # prune
    assert live_bytes(batch) == (40 + 6 + 5) * PER_TOKEN
    batch.rollback([6, 0])
    assert live_bytes(batch) == (40 + 0 + 5) * PER_TOKEN
    assert batch.bytes <= 2 * (6 + 32) * PER_TOKEN


def test_gathered_rows_of_several_batches_go_on_as_before(session):
    model, rows = session.model, [random_ids(n, n) for n in (9, 4, 12)]
    one = session.open(session.prefill(rows[:2]), 1)
    other = session.open(session.prefill(rows[2:]), 1)
    session.extend(one, [[7, 8, 9], [7]])
    session.extend(other, [[5]])
    batch = RowBatch.gathered([(one, [1, 0]), (other, [0, 0])])
    texts = [[*rows[1], 7], [*rows[0], 7, 8, 9], [*rows[2], 5], [*rows[2], 5]]
    logits = session.step(batch, range(4), torch.tensor([11, 12, 13, 14]))
    for row, (text, new) in enumerate(zip(texts, [11, 12, 13, 14], strict=True)):
        expected = model(input_ids=torch.tensor([[*text, new]])).logits[0, -1]
        torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-4)


def test_tokens_that_were_rolled_back_leave_no_trace(session):
    prompts = [random_ids(8), random_ids(3, 1)]
    batch = session.open(session.prefill(prompts), 1)
    session.extend(batch, [[5, 6, 7], [8, 9]])
    batch.rollback([2, 0])
    logits = session.extend(batch, [[21], [22, 23]])
    for row, text in enumerate(([*prompts[0], 5, 21], [*prompts[1], 8, 9, 22, 23])):
        expected = session.model(input_ids=torch.tensor([text])).logits[0, -1]
        torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-4)
    for counts in ([3, 0], [0, -1]):
        with pytest.raises(ValueError, match=r"the rows have \[2, 4\] private tokens"):
            batch.rollback(counts)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_all_prompts_begin_with_is_read_once(family):
    session, common = Session(tiny_model(family)), random_ids(50)
    prompts = [common + random_ids(n, n) for n in (9, 1, 30)] + [common]
    with torch.inference_mode():
        together = session.prefill(prompts)
        assert session.tokens == 50 + 9 + 1 + 30
        alone = [session.prefill([ids])[0] for ids in prompts]
        for one, other, ids in zip(together, alone, prompts, strict=True):
            assert len(one) == len(other) == len(ids)
            torch.testing.assert_close(one.kv, other.kv, atol=1e-5, rtol=1e-5)
        before = session.tokens
        session.prefill([ids[30:] for ids in prompts])  # a short common beginning is not worth a forward
        assert session.tokens - before == sum(len(ids) - 30 for ids in prompts)


def test_256_branches_hold_a_tenth_of_what_gathered_rows_hold():
    model = tiny_model(max_position_embeddings=2048)
    gen = generator(model, max_new_tokens=64, max_step_tokens=64)
    gen._runner.branches.encode = lambda prompt: tuple(random_ids(1024))
    [steps] = gen.generate([GenerateRequest(root("x"), 256, until="end", greedy=True)])
    assert {len(step.token_ids) for step in steps} == {64}
    assert gen.stats.peak_cache_bytes <= 256 * (1024 + 64) * PER_TOKEN / 10
    assert gen.stats.cache_bytes == 1024 * PER_TOKEN


def held_tokens(trees):
    """The prompts, and of each node that was or can be grown what has been read of it."""
    total = sum(len(byte_tokenizer()(tree.problem.prompt)["input_ids"]) for tree in trees)
    ends = ("step", "empty")  # a blank step is known as such when it is read as text
    nodes = [node for tree in trees for node in tree.walk() if node.step and node.step.finish_reason in ends]
    return total + sum(len(node.step.token_ids) - (not node.children) for node in nodes)


def test_parked_nodes_are_counted_and_evicted_under_the_budget():
    trees = [root(prompt) for prompt in PROMPTS]
    gen, small = generator(), generator(max_cache_bytes=30 * PER_TOKEN)
    level = trees
    for _ in range(3):
        level = [node for group in grow_all(gen, level, 2) for node in group if not node.is_finished]
        assert gen.stats.cache_bytes == gen._runner._tree.cache.bytes == held_tokens(trees) * PER_TOKEN
    again = [root(prompt) for prompt in PROMPTS]
    level = again
    for _ in range(3):
        level = [node for group in grow_all(small, level, 2) for node in group if not node.is_finished]
        assert small.stats.cache_bytes <= 30 * PER_TOKEN
    assert small.stats.evictions > 0
    assert [n.token_ids for t in again for n in t.walk()] == [n.token_ids for t in trees for n in t.walk()]
    for tree in trees:
        gen.release(tree)
    assert gen.stats.cache_bytes == 0
    assert gen._runner._tree.session.buffers.bytes == 0


def tight(monkeypatch, most):
    """Decoders whose memory runs out once `most` rows decode."""

    class Tight(module.TreeDecoder):
        rows = most

        def step(self, tokens):
            if len(tokens) > self.rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
            return super().step(tokens)

    monkeypatch.setattr(module, "TreeDecoder", Tight)
    return Tight


def test_running_out_in_the_middle_of_a_search_changes_nothing(monkeypatch):
    strategy, reward = BeamSearch(3, 4, max_depth=4), ToyReward()
    expected = solve_batch(PROMPTS, strategy, generator(), reward_model=reward)
    tight(monkeypatch, 5)
    gen = generator()
    found = solve_batch(PROMPTS, strategy, gen, reward_model=reward)
    assert gen._runner.rows <= 5
    for one, other in zip(expected, found, strict=True):
        assert [n.token_ids for n in one.root.walk()] == [n.token_ids for n in other.root.walk()]
    tokens = sum(len(n.step.token_ids) for result in found for n in result.root.walk() if n.step)
    assert gen.stats.decoded_tokens == tokens
    assert gen.stats.wasted_tokens > 0


def test_when_not_even_one_branch_fits_the_error_says_what_and_the_tree_is_kept(monkeypatch):
    decoder, gen = tight(monkeypatch, 100), generator()
    strategy = BeamSearch(2, 3, max_depth=5)
    expected = solve_batch(PROMPTS, strategy, generator(), reward_model=ToyReward())
    waves = []

    class Full(ToyReward):
        def score(self, nodes):
            waves.append(len(nodes))
            decoder.rows = 100 if len(waves) < 2 else 0
            return super().score(nodes)

    said = r"a single row: \d+ tokens read and up to [56] to sample, torch\.float32; .*; \d+ to go"
    with pytest.raises(SearchMemoryError, match=said) as caught:
        solve_batch(PROMPTS, strategy, gen, reward_model=Full())
    for whole, partial in zip(expected, caught.value.partial, strict=True):
        kept = [node.token_ids for node in partial.root.walk() if node.step]
        assert kept == [node.token_ids for node in whole.root.walk() if node.step and node.depth <= 2]
        assert partial.stopped_by == "error"
    decoder.rows = 100
    assert grow(gen, root(PROMPTS[0]), 2)


def test_memory_that_others_hold_is_made_free_before_giving_up():
    held, tries = ["parked"], []

    def run(rows):
        tries.append(rows)
        if held:
            raise MemoryError

    assert run_halving(run, 1, lambda: [1, 2], str, held.clear) == 1
    assert tries == [1, 1]


def test_pieces_are_halved_and_none_is_left_out():
    done = []

    def run(piece):
        if len(piece) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        done.extend(piece)

    assert run_in_pieces(range(20), 16, run, str) == 2
    assert done == list(range(20))
    with pytest.raises(RuntimeError, match="shapes"):
        run_in_pieces([1], 16, lambda piece: (_ for _ in ()).throw(RuntimeError("shapes")), str)
