"""`HFGenerator` on tiny random models: batches, texts, costs, errors."""

import random

import numpy as np
import pytest
import torch

from inferscale.base import Embedder
from inferscale.engine import solve
from inferscale.flops.spec import forward_cost, forward_flops, model_spec
from inferscale.flow import GenerateRequest
from inferscale.generators import HFGenerator, SearchMemoryError
from inferscale.rewards import LikelihoodReward
from inferscale.runtime import decoding, loading
from inferscale.runtime.sampling import uniforms
from inferscale.strategies import Greedy
from inferscale.tree import Node, Problem, Step, branch_key
from tests.tiny_models import (
    EXACT,
    FAMILIES,
    byte_tokenizer,
    grow,
    grow_all,
    metaspace_tokenizer,
    root,
    shared_model,
    tiny_model,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is run without shared prefixes"),
    pytest.mark.filterwarnings("ignore:FLOPs of this model will be reported as 0"),
]

PROMPTS = ["Step 1: a", "b", "Step 2: the ab is 12\n", "a b a b a b a b x", "12 = 12", "\nStep", "x", "é ü 2"]


def generator(family="llama", tokenizer=None, model=None, **options):
    options = {"max_step_tokens": 9, "max_new_tokens": 24, **options}
    return HFGenerator(model or shared_model(family), tokenizer or byte_tokenizer(), **options)


def picture(steps):
    return [(step.text, step.token_ids, step.finish_reason, step.inner_ends, step.flops) for step in steps]


SLOW = set(FAMILIES) - {"llama", "gpt2", "qwen3", "mistral_window", "bloom", "mixtral"}


@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow if f in SLOW else []) for f in FAMILIES])
def test_alone_equals_batched(family):
    gen = generator(family)
    together = grow_all(gen, [root(prompt) for prompt in PROMPTS], 3)
    for prompt, batch in zip(PROMPTS, together, strict=True):
        alone = grow(gen, root(prompt), 3)
        assert picture(n.step for n in alone) == picture(n.step for n in batch)
        for one, other in zip(alone, batch, strict=True):
            assert one.step.logprob == pytest.approx(other.step.logprob, abs=1e-3)
            assert one.step.confidence == pytest.approx(other.step.confidence, abs=1e-4)


def test_a_sample_does_not_depend_on_how_many_are_drawn():
    gen = generator()
    four = grow(gen, root("Step"), 4)
    node = root("Step")
    ones = [grow(gen, node, 1)[0] for _ in range(4)]
    assert [n.step.token_ids for n in four] == [n.step.token_ids for n in ones]
    assert len({n.step.token_ids for n in four}) == 4


def naive_sample(model, prefix, key, count, temperature):
    """Tokens drawn from whole forwards and a full cumulative sum, one at a time."""
    ids, logprob, own = list(prefix), 0.0, 0.0
    for position in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        p = (logits / temperature).softmax(-1)
        token = int(np.searchsorted(p.cumsum(-1).numpy(), uniforms([key], position)[0], side="right"))
        logprob += float(p[token].log())
        own += float(logits.log_softmax(-1)[token])
        ids.append(token)
    return ids[len(prefix) :], logprob, own


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mamba"])
def test_tokens_and_logprobs_equal_a_naive_loop(family):
    gen = generator(family, temperature=0.8)
    node = root("Step 1: a b")
    child = grow(gen, node, 3)[2]
    leaf = grow(gen, child, 2)[1] if not child.is_finished else child
    prompt = byte_tokenizer()("Step 1: a b")["input_ids"]
    for current in leaf.path:
        ids, logprob, own = naive_sample(gen.model, prompt, current.key, len(current.step.token_ids), 0.8)
        assert tuple(ids) == current.step.token_ids
        assert current.step.logprob == pytest.approx(logprob, abs=1e-3)
        assert current.step.model_logprob == pytest.approx(own, abs=1e-3)
        prompt = prompt + ids


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "bloom"])
def test_greedy_equals_generate(family):
    gen = generator(family, max_step_tokens=24)
    [step] = gen.generate([GenerateRequest(root("ab the"), greedy=True, until="end")])[0]
    ids = torch.tensor([byte_tokenizer()("ab the")["input_ids"]])
    expected = gen.model.generate(ids, attention_mask=ids * 0 + 1, do_sample=False, max_new_tokens=24)
    assert list(step.token_ids) == expected[0, ids.shape[1] :].tolist()
    cold = generator(model=gen.model, temperature=0.0, max_step_tokens=24)
    assert cold.generate([GenerateRequest(root("ab the"), until="end")])[0][0].token_ids == step.token_ids


def biased_model(tokenizer, wanted):
    """A model that samples only ids with the decoded texts `wanted`, and here and there half a letter."""
    model = tiny_model("phi")
    keep = [i for i in range(len(tokenizer)) if tokenizer.decode([i]) in wanted]
    keep += tokenizer("é", add_special_tokens=False)["input_ids"][-2:] if tokenizer is byte_tokenizer() else []
    with torch.no_grad():
        model.lm_head.bias += -1e4
        model.lm_head.bias[keep] += 1e4
    return model


@pytest.mark.parametrize("make", [byte_tokenizer, metaspace_tokenizer])
def test_texts_along_a_path_are_the_decoded_ids(make):
    model = biased_model(make(), ["a", " a", " b", "b", "\n", ".", "1", ".\n", "\nStep", " "])
    gen = generator(tokenizer=make(), model=model, max_step_tokens=5, max_new_tokens=40)
    ends = 0
    for seed in range(7):
        node = root("a b", seed)
        while not node.is_finished:
            node = grow(gen, node)[0]
            decoded = make().decode(list(node.token_ids), skip_special_tokens=True)
            assert node.text == (decoded if node.is_finished else decoded.rstrip("\ufffd"))
            ends += node.step.text.endswith("\n")
    assert ends > 3


def branches(gen, request):
    return gen._runner.branches.open(request)


def boundaries(gen, prompt, ids):
    """Where stepwise sampling would have ended its steps, had it drawn `ids`."""
    node, rest, found = root(prompt), list(ids), []
    while rest:
        branch = branches(gen, GenerateRequest(node))[0]
        while rest and branch.push(rest.pop(0), 0.0, 0.0):
            pass
        branch.finish = branch.finish or "budget"
        step = branch.step(lambda b: (0, 0))
        node = Node(node.problem, step, node)
        found.append((len(node.text), len(node.token_ids)))
        if node.is_finished:
            break
    assert not rest
    return found


@pytest.mark.parametrize("delimiter", ["\n", "\n\n", " a"])
def test_a_completion_has_the_step_ends_of_stepwise_sampling(delimiter):
    gen = generator(max_new_tokens=60, step_delimiter=delimiter)
    seen = 0
    for seed in range(4):
        [step] = gen.generate([GenerateRequest(root("a", seed), until="end")])[0]
        expected = boundaries(gen, "a", step.token_ids)
        assert list(step.inner_ends or [(len(step.text), len(step.token_ids))]) == expected
        assert "".join(piece for piece, _ in step.inner_steps()).rstrip() == step.text.rstrip()
        seen += len(expected)
    assert seen > 8


def push_all(gen, ids, node=None, **request):
    """A branch that is given `ids` by hand."""
    branch = branches(gen, GenerateRequest(node or root("a"), **request))[0]
    for count, token in enumerate(ids, 1):
        if not branch.push(token, -1.0, -2.0):
            return count, branch.step(lambda b: (0, 0))
    return None


def ids_of(text):
    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


EOS = 2


@pytest.mark.parametrize(
    ("ids", "taken", "text", "reason"),
    [
        (ids_of(" a b\nab"), 3, " a b\n", "step"),
        (ids_of("\n\n\n a\n"), 5, "\n\n\n a\n", "step"),  # blank lines do not end a step
        ([*ids_of("x"), byte_tokenizer().convert_tokens_to_ids("ĊStep")], 2, "x\nStep", "step"),  # inside a token
        (ids_of("a.\n"), 3, "a.\n", "step"),
        ([*ids_of(" a"), EOS], 2, " a", "eos"),
        ([EOS], 1, "", "eos"),
        ([*ids_of("\n"), EOS], 2, "\n", "eos"),
        (ids_of(" a b a b a b a b a b"), 9, " a b a b a b a b a", "step"),  # max_step_tokens
        ([203] * 20, 9, "\n" * 9, "step"),  # white space can go on
        (ids_of("é")[:1] + ids_of(" a\n"), 3, "\ufffd a\n", "step"),
    ],
)
def test_where_a_step_ends(ids, taken, text, reason):
    count, step = push_all(generator(), ids)
    assert (count, step.text, step.finish_reason) == (taken, text, reason)
    assert step.token_ids == tuple(ids[:taken])
    assert step.logprob == -taken
    assert step.confidence == -2.0
    assert step.generated_tokens == taken


@pytest.mark.parametrize("most", [1, 2, 9])
def test_white_space_is_no_dead_end(most):
    """However a path is cut into steps, it goes on: tokens, text and what a likelihood reads of them are the same."""
    script = [*ids_of(" \n a b\n  ab"), EOS]
    start = len(ids_of("x"))

    def scripted(input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, script[min(input_ids.shape[1] - start, len(script) - 1)]] = 0.0
        return forced

    gen = generator(max_step_tokens=most, logits_processor=[scripted])
    result = solve("x", Greedy(), gen, reward_model=LikelihoodReward.from_generator(gen, use_token_ids=True))
    assert [*result.leaves[0].token_ids] == script
    assert result.text == " \n a b\n  ab"
    pieces = result.leaves[0].inner_steps()
    assert "".join(text for text, _ in pieces) == result.text
    assert [i for _, ids in pieces for i in ids if i != EOS] == script[:-1]
    assert all(text.strip() for text, _ in pieces)


def test_a_longer_delimiter_may_be_made_of_several_tokens():
    newline = ids_of("x\n")[1]
    gen = generator(step_delimiter="\n\n")
    assert push_all(gen, [*ids_of("x"), newline, newline])[1].text == "x\n\n"
    assert push_all(gen, [*ids_of("x"), newline, *ids_of("x"), newline]) is None


def test_a_character_cut_by_a_step_end_goes_to_the_next_step():
    gen = generator(max_step_tokens=2)
    first, second = ids_of("é")
    _, step = push_all(gen, [*ids_of("x"), first])
    assert (step.text, step.finish_reason) == ("x", "step")
    start = root("a")
    node = Node(start.problem, step, start)
    _, following = push_all(gen, [second, *ids_of("x")], node)
    assert following.text == "éx"


def test_limits_of_paths_budgets_and_contexts():
    gen = generator(max_new_tokens=4)
    assert push_all(gen, ids_of(" a b a b a"))[1].finish_reason == "length"
    assert push_all(gen, ids_of(" a b a\n"))[1].finish_reason == "length"  # no room to go on after this step
    assert push_all(generator(), ids_of(" a b a"), max_tokens=2)[1].finish_reason == "budget"
    assert push_all(generator(), ids_of(" a\n"), max_tokens=2)[1].finish_reason == "step"
    assert push_all(generator(), [*ids_of(" a"), EOS], max_tokens=2)[1].finish_reason == "eos"
    small = generator(model=tiny_model("gpt2", max_position_embeddings=12), max_new_tokens=100, max_step_tokens=50)
    prompt = "a" * 8
    [node] = grow(small, root(prompt))
    assert len(ids_of(prompt)) + len(node.token_ids) <= 12
    assert small.max_sample_tokens(GenerateRequest(root(prompt))) == 12 - len(ids_of(prompt))
    with pytest.raises(ValueError, match="no room for an answer"):
        grow(small, root("a" * 12))


def test_paths_end_at_max_new_tokens():
    gen = generator(max_step_tokens=7, max_new_tokens=17)
    node = root("b")
    while not node.is_finished:
        assert gen.max_sample_tokens(GenerateRequest(node)) == min(7, 17 - len(node.token_ids))
        node = grow(gen, node)[0]
    assert len(node.token_ids) == 17 or node.step.finish_reason in ("eos", "empty")
    assert gen.max_sample_tokens(GenerateRequest(root("b"), until="end")) == 17


def test_forced_text_is_the_head_of_the_step_and_is_not_sampled():
    gen = generator()
    start = grow(gen, root("Step 1: a"))[0]
    forced = " the ab is"
    [one, two] = gen.generate([GenerateRequest(start, 2, forced=forced)])[0]
    ids = tuple(ids_of(forced))
    for step in (one, two):
        assert step.text.startswith(forced)
        assert step.token_ids[: len(ids)] == ids
        assert step.generated_tokens == len(step.token_ids) - len(ids)
    assert (one.prompt_tokens, two.prompt_tokens) == (len(ids), 0)
    longer = root("Step 1: a")
    text = Step(start.step.text + forced, start.step.token_ids + ids)
    by_hand = Node(longer.problem, text, longer, start.key)
    assert gen.generate([GenerateRequest(by_hand)])[0][0].token_ids == one.token_ids[len(ids) :]


def test_a_forced_line_end_does_not_end_the_step():
    gen = generator()
    count, step = push_all(gen, ids_of("ab\n"), forced="Step 1:\n")
    assert (count, step.text) == (2, "Step 1:\nab\n")
    tight = generator(max_new_tokens=3)
    [step] = tight.generate([GenerateRequest(root("a"), forced="a b a b a")])[0]
    assert (step.text, step.finish_reason, step.generated_tokens, step.flops) == ("a b a b a", "length", 0, 0)


def test_costs_of_a_tree_add_up_to_one_pass_with_the_prompt_once():
    gen = generator("qwen2")
    start = root("Step 1: a b a b")
    level = grow(gen, start, 3)
    for _ in range(2):
        level = [c for group in grow_all(gen, [n for n in level if not n.is_finished], 2) for c in group]
    spec, prompt = model_spec(gen.model.config), len(ids_of("Step 1: a b a b"))
    expected = forward_flops(spec, prompt, logits=1).causal
    for node in start.walk():
        past = prompt + len(node.token_ids)
        if node.step is not None:
            count = len(node.step.token_ids) - 1
            expected += sum(forward_flops(spec, 1, past - 1 - back, logits=1).causal for back in range(1, count + 1))
            if node.children:
                expected += forward_flops(spec, 1, past - 1, logits=1).causal
    steps = [node.step for node in start.walk() if node.step]
    assert sum(step.flops for step in steps) == expected
    assert sum(step.prompt_tokens for step in steps) == prompt


DECODERS = {"tree": "TreeDecoder", "none": "StatelessDecoder"}


@pytest.mark.parametrize("cache", ["tree", "none"])
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("most", [1, 5])
def test_out_of_memory_halves_the_batch_and_changes_nothing(monkeypatch, cache, kind, most):
    class Tight(getattr(decoding, DECODERS[cache])):
        def step(self, tokens):
            if len(tokens) > most:
                raise kind("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            return super().step(tokens)

    nodes = [root(prompt) for prompt in PROMPTS]
    expected = grow_all(generator(cache=cache), nodes, 2)
    monkeypatch.setattr(decoding, DECODERS[cache], Tight)
    gen = generator(cache=cache)
    found = grow_all(gen, [root(prompt) for prompt in PROMPTS], 2)
    assert [picture(n.step for n in g) for g in found] == [picture(n.step for n in g) for g in expected]
    assert gen.stats.wasted_tokens > 0
    assert gen.stats.decoded_tokens == sum(len(n.token_ids) for g in found for n in g)


@pytest.mark.parametrize("cache", ["tree", "none"])
def test_one_row_that_does_not_fit_is_named_and_other_errors_pass(monkeypatch, cache):
    class Full(getattr(decoding, DECODERS[cache])):
        error: Exception = torch.OutOfMemoryError("CUDA out of memory")

        def step(self, tokens):
            raise self.error

    monkeypatch.setattr(decoding, DECODERS[cache], Full)
    with pytest.raises(SearchMemoryError, match=r"a single row: 4 tokens read and up to 9 to sample, torch\.float32"):
        grow(generator(cache=cache), root("Step 1: a"), 4)
    monkeypatch.setattr(Full, "error", RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        grow(generator(cache=cache), root("Step 1: a"), 4)


@pytest.mark.parametrize("rows", [1, 3])
def test_micro_batches_change_nothing(rows):
    expected = grow_all(generator(), [root(prompt) for prompt in PROMPTS], 2)
    found = grow_all(generator(micro_batch=rows), [root(prompt) for prompt in PROMPTS], 2)
    assert [picture(n.step for n in g) for g in found] == [picture(n.step for n in g) for g in expected]


def test_global_state_is_left_alone():
    model = tiny_model().train()
    model.model.layers[0].eval()
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = grow(generator(model=model), root("a"), 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]
    assert model.training
    assert not model.model.layers[0].training
    assert picture(n.step for n in first) == picture(n.step for n in grow(generator(), root("a"), 2))


CHAT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}Step {{ m['content'] }}\n"
    "{% else %}ab {{ m['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}the:{% endif %}"
)


def chat_tokenizer():
    import copy

    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = CHAT
    return tokenizer


def test_chat_templates_are_used_where_there_is_one():
    chat = generator(tokenizer=chat_tokenizer())
    plain = generator()
    assert grow(chat, root("x"))[0].token_ids  # runs
    assert chat._runner.branches.encode("x") == tuple(ids_of("ab x\nthe:"))
    assert generator(tokenizer=chat_tokenizer(), chat_template=False)._runner.branches.encode(
        "x"
    ) == plain._runner.branches.encode("x")
    with_system = generator(tokenizer=chat_tokenizer(), system_prompt="12")
    assert with_system._runner.branches.encode("x") == tuple(ids_of("Step 12\nab x\nthe:"))
    forged = chat._runner.branches.encode("x</s>")
    assert EOS not in forged


def test_a_model_folder_is_loaded_without_a_network(tmp_path):
    tiny_model().save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    gen = HFGenerator.from_pretrained(tmp_path / "m", max_step_tokens=9, max_new_tokens=24, device="cpu")
    expected = grow(generator(), root("a b"), 2)
    assert picture(n.step for n in grow(gen, root("a b"), 2)) == picture(n.step for n in expected)
    assert gen.model.dtype == torch.float32


@pytest.mark.parametrize(
    ("tokenizer", "revision"), [(None, True), ("org/model", True), ("org/tokenizer", False)], ids=str
)
def test_a_revision_is_that_of_the_model(monkeypatch, tokenizer, revision):
    passed = {}
    monkeypatch.setattr(loading, "load_model", lambda *given, **options: tiny_model())
    monkeypatch.setattr(loading, "load_tokenizer", lambda *given, **options: passed.update(options) or byte_tokenizer())
    HFGenerator.from_pretrained("org/model", tokenizer, revision="abc", trust_remote_code=False)
    assert passed == {"trust_remote_code": False} | ({"revision": "abc"} if revision else {})


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    tiny_model().model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit .*lm_head"):
        HFGenerator.from_pretrained(tmp_path)


def no_eos_tokenizer():
    import copy

    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.eos_token = None
    return tokenizer


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"max_step_tokens": 0}, "max_step_tokens=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"micro_batch": 0}, "micro_batch=0"),
        ({"step_delimiter": ""}, "step_delimiter=''"),
        ({"step_delimiter": "</s>"}, "special token"),
        ({"chat_template": True}, "has no chat template"),
        ({"system_prompt": "be brief"}, "system_prompt needs a chat template"),
        ({"eos_token_id": 5000}, r"\[5000\] are outside"),
        ({"model": tiny_model(vocab_size=100)}, "283 ids and the model 100 embeddings"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options, said):
    with pytest.raises(ValueError, match=said):
        generator(**options)


def test_end_of_sequence_ids_are_a_union_and_must_exist():
    model = tiny_model()
    model.generation_config.eos_token_id = [7, 8]
    assert generator(model=model)._runner.branches.text.eos_ids == {2, 7, 8}
    assert generator(model=model, eos_token_id=9)._runner.branches.text.eos_ids == {9}
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="pass eos_token_id="):
        generator(model=model, tokenizer=no_eos_tokenizer())
    assert generator(model=model, tokenizer=no_eos_tokenizer(), eos_token_id=[4, 5])._runner.branches.text.eos_ids == {
        4,
        5,
    }


def test_wrong_kinds_of_model_are_named():
    with pytest.raises(TypeError, match="not int"):
        HFGenerator(3, byte_tokenizer())
    with pytest.raises(TypeError, match=r"takes objects: HFGenerator.from_pretrained\('org/model'\) loads them"):
        HFGenerator("org/model")
    with pytest.raises(TypeError, match=r"takes objects: HFGenerator.from_pretrained\('org/model'\) loads them"):
        HFGenerator("org/model", byte_tokenizer())
    with pytest.raises(TypeError, match="takes objects"):
        HFGenerator(tiny_model(), "org/model")
    with pytest.raises(TypeError, match="'revision'"):
        HFGenerator(tiny_model(), byte_tokenizer(), revision="main")
    with pytest.raises(TypeError, match="takes a folder or a hub id, not LlamaForCausalLM"):
        HFGenerator.from_pretrained(tiny_model())
    with pytest.raises(ValueError, match=r"no folder './no/such/folder'"):
        HFGenerator.from_pretrained("./no/such/folder")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"cache": "x"}, "cache"),
    ],
)
def test_bad_options_are_told_before_a_model_is_loaded(options, said):
    with pytest.raises(ValueError, match=said):
        HFGenerator.from_pretrained("./no/such/folder", **options)


def test_a_node_of_another_generator_is_refused():
    start = root("a")
    foreign = Node(start.problem, Step("some text"), start)
    with pytest.raises(ValueError, match="text without token ids"):
        grow(generator(), foreign)


def test_exact_families_are_many():
    assert len(EXACT) >= 10


def test_keys_of_samples_follow_the_draw():
    gen = generator()
    node = root("ab")
    grow(gen, node, 2)
    third = gen.generate([GenerateRequest(node, 1, first=2)])[0][0]
    again = root("ab")
    assert third.token_ids == grow(gen, again, 3)[2].token_ids
    assert branch_key(node.key, 2) == again.children[2].key
    assert Problem("ab") == again.problem


def test_logits_that_are_not_numbers_are_an_error():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(FloatingPointError, match=r"logits hold NaN or infinity \(torch\.float32\)"):
        grow(generator(model=model, cache="none"), root("a"))


@pytest.mark.parametrize("name", ["max_new_tokens", "max_step_tokens"])
@pytest.mark.parametrize("length", [0, 2.5, "5", None])
def test_lengths_are_positive_whole_numbers(name, length):
    with pytest.raises(ValueError, match=f"{name}=.*: give a positive whole number"):
        generator(**{name: length})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_texts_are_embedded_by_the_mean_of_the_last_hidden_states(family):
    gen = generator(family)
    texts = ["a b", "", "a b", "12"]
    vectors = gen.embed(texts)
    for text, vector in zip(texts, vectors, strict=True):
        ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
        expected = np.zeros(vectors.shape[1])
        if ids:
            with torch.no_grad():
                read = torch.tensor([ids])
                output = gen.model(input_ids=read, attention_mask=torch.ones_like(read), output_hidden_states=True)
            expected = output.hidden_states[-1][0].mean(0).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert isinstance(gen, Embedder)
    cost = gen.embedding_cost(texts)
    lengths = [len(byte_tokenizer()(text, add_special_tokens=False)["input_ids"]) for text in ("a b", "12")]
    assert cost.prompt_tokens == sum(lengths)  # equal texts are read once
    assert cost.generator_flops == sum(forward_cost(model_spec(gen.model.config), n, 0, logits=0) for n in lengths)
