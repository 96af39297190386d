"""Stop strings, step delimiters, filters and logits processors: against transformers, and the same in any batch."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inferscale import rewards
from inferscale.flow import GenerateRequest
from inferscale.generators import Draws, HFGenerator, Sampler, TokenSampler, inverse_cdf
from inferscale.quiet_star import QuietSTaR, QuietSTaRGenerator
from inferscale.rewards.training import load_for_training
from inferscale.runtime import decoding
from inferscale.runtime.loading import Located, check_load_options
from inferscale.runtime.sampling import choose_sampler, uniforms
from inferscale.runtime.text import step_end, stop_place
from inferscale.testing import check_generator
from inferscale.tree import Node
from tests.tiny_models import byte_tokenizer, grow, grow_all, metaspace_tokenizer, root, shared_model, tiny_model

PROMPTS = ["Step 1: a", "b", "Step 2: the ab is 12\n", "a b a b a b a b x", "12 = 12", "é ü 2"]


def generator(tokenizer=None, model=None, **options):
    options = {"max_step_tokens": 9, "max_new_tokens": 24, **options}
    return HFGenerator(model or shared_model(), tokenizer or byte_tokenizer(), **options)


def picture(steps):
    return [(step.text, step.token_ids, step.finish_reason, step.inner_ends, step.flops) for step in steps]


def same_alone_and_batched(gen, again, n=2, until="end"):
    """The samples, drawn together, which must be those drawn alone by `again`."""
    prompts = PROMPTS[:4]
    together = grow_all(gen, [root(prompt) for prompt in prompts], n, until=until)
    for prompt, batch in zip(prompts, together, strict=True):
        node = root(prompt)
        alone = [grow(again, node, until=until)[0] for _ in range(n)]
        assert picture(node.step for node in alone) == picture(node.step for node in batch)
        for one, other in zip(alone, batch, strict=True):
            assert one.step.logprob == pytest.approx(other.step.logprob, abs=1e-3)
            assert one.step.confidence == pytest.approx(other.step.confidence, abs=1e-3)
    return [node.step for batch in together for node in batch]


# -- stop strings ------------------------------------------------------------------------------------------------------


def drawn(gen, ids, node=None, **request):
    """The step of a branch that is given `ids` by hand, and how many it took; ``None`` if it goes on."""
    branch = gen._runner.branches.open(GenerateRequest(node or root("a"), **request))[0]
    for count, token in enumerate(ids, 1):
        if not branch.push(token, -1.0, -2.0):
            return count, branch.step(lambda b: (0, 0))
    return None


def ids_of(text, tokenizer=None):
    return (tokenizer or byte_tokenizer())(text, add_special_tokens=False)["input_ids"]


STOPS = [
    ("42\n\nQuestion: x", "\n\nQuestion:", "42"),
    ("42.\nStep 12", "\nStep", "42."),  # begins and ends inside one token
    ("a é b", "é", "a "),
    ("a 日本 b", "日本", "a "),
    ("a 日本 b", "本 b", "a 日"),
    ("ax b", "x ", "a"),
    ("the the", "e t", "th"),
    ("xab", "xab", ""),
    ("aab", "ab", "a"),  # after a false start
]


@pytest.mark.parametrize(("text", "stop", "kept"), STOPS)
@pytest.mark.parametrize("make", [byte_tokenizer, metaspace_tokenizer])
@pytest.mark.parametrize("until", ["step", "end"])
def test_a_stop_string_is_left_out_wherever_tokens_begin_and_end(make, text, stop, kept, until):
    tokenizer = make()
    gen = generator(tokenizer, stop=[stop, "never"], step_delimiter="#", max_new_tokens=50, max_step_tokens=50)
    ids = [*ids_of("a", tokenizer), *ids_of(text, tokenizer)]  # a metaspace tokenizer opens with a space
    head = tokenizer.decode(ids).removesuffix(text)
    least = next(k for k in range(len(ids) + 1) if stop in tokenizer.decode(ids[:k]))
    count, step = drawn(gen, ids, until=until)
    assert (count, step.text, step.finish_reason) == (least, head + kept, "eos")
    assert step.token_ids == tuple(ids[:least])
    assert step.generated_tokens == least
    assert step.logprob == -least
    pieces = step.inner_steps()
    assert "".join(piece for piece, _ in pieces) == step.text
    judged = [i for _, ids in pieces for i in ids]
    assert tokenizer.decode(judged).startswith(step.text)
    assert not tokenizer.decode(judged[:-1]).startswith(step.text)


def test_the_first_stop_string_to_be_complete_counts_and_of_those_the_longest():
    assert stop_place("xabcd", ["bcd", "abc"], 0) == 1
    assert stop_place("xabcd", ["c", "abc"], 0) == 1
    assert stop_place("xabcd", ["abcd", "b"], 0) == 2
    assert stop_place("xabcd", ["ab"], 3) == -1
    assert stop_place("xabcd", ["ab"], 2) == 1


def test_a_stop_string_crosses_steps_but_not_into_what_stood_before():
    gen = generator(stop="\n\nab")
    start = root("a")
    _, first = drawn(gen, ids_of("x\n"))
    node = Node(start.problem, first, start)
    count, second = drawn(gen, [*ids_of("\n"), *ids_of("ab x")], node)
    assert (first.text, count, second.text, second.finish_reason) == ("x\n", 2, "", "eos")
    assert second.inner_steps() == []
    assert second.generated_tokens == 2
    # Forced whole it does not count; that which ends in a sampled token does, and the forced text stays.
    assert drawn(gen, ids_of(" x"), forced="x\n\nab") is None
    count, step = drawn(gen, ids_of("ab x"), forced="x\n\n")
    assert (count, step.text, step.generated_tokens) == (1, "x\n\n", 1)
    assert step.token_ids == (*ids_of("x\n\n"), *ids_of("ab"))
    count, step = drawn(gen, [*ids_of("x\n"), *ids_of("\nab")], forced="x", until="end")
    assert (step.text, step.finish_reason) == ("xx", "eos")


def test_inner_steps_end_before_the_stop_string():
    gen = generator(stop="\n\nab", max_new_tokens=40, max_step_tokens=40)
    ids = [*ids_of("x\n"), *ids_of("12"), *ids_of("\n\n"), *ids_of("ab")]
    _, step = drawn(gen, ids, until="end")
    assert step.text == "x\n12"
    assert step.inner_steps() == [("x\n", tuple(ids_of("x\n"))), ("12", tuple(ids_of("12")))]
    gen = generator(stop="ab", max_new_tokens=40)
    _, step = drawn(gen, [*ids_of("x\n"), *ids_of("ab")], until="end")
    assert step.inner_ends == ((2, 2),)
    assert step.inner_steps() == [("x\n", tuple(ids_of("x\n")))]


def test_a_special_token_stops_by_its_id():
    gen = generator(stop=["<good>"])
    good = byte_tokenizer().convert_tokens_to_ids("<good>")
    assert drawn(gen, [*ids_of("x"), good])[1].text == "x"
    assert gen.stop == ("<good>",)
    with pytest.raises(ValueError, match=r"stop='<good>\\n' holds '<good>', a special token.*give it alone"):
        generator(stop=["<good>\n"])


@pytest.mark.parametrize("stop", ["", [""], ["a", None], [3]])
def test_a_stop_string_is_a_text(stop):
    with pytest.raises(ValueError, match=r"stop=.*: give texts that end the answer"):
        generator(stop=stop)


@pytest.mark.parametrize("until", ["step", "end"])
def test_stops_are_the_same_in_any_batch_and_however_often_one_looks(until):
    stop = [" a", "b", "1", "\ufffd", "="]
    seldom = generator(stop=stop, check_every=7)
    steps = same_alone_and_batched(seldom, generator(stop=stop, cache="none"), 4, until)
    ended = [step for step in steps if step.token_ids[-1] not in (0, 1, 2) and step.finish_reason == "eos"]
    assert len(ended) > 8
    assert seldom.stats.wasted_tokens > 0
    for step in steps:
        assert not any(text in step.text for text in stop[:3])
    check_generator(generator(stop=stop), ["Step 1: a", "b"])


@pytest.mark.parametrize("until", ["step", "end"])
def test_a_request_may_have_stop_strings_of_its_own(until):
    own, plain = generator(stop=["b", "12"]), generator(stop=["b"])
    asked = [("12",), (), ("a", "x"), ("12",)]
    prompts = ["Step 1: a", "b", "12 = 12", "Step 1: a"]
    together = plain.generate(
        [GenerateRequest(root(prompt, seed), 3, until, stop=stop)
         for seed, (prompt, stop) in enumerate(zip(prompts, asked, strict=True))]
    )  # fmt: skip
    for seed, (prompt, stop) in enumerate(zip(prompts, asked, strict=True)):
        gen = own if stop == ("12",) else generator(stop=["b", *stop])
        assert picture(together[seed]) == picture(gen.generate([GenerateRequest(root(prompt, seed), 3, until)])[0])
    whole = generator().generate([GenerateRequest(root("Step 1: a", 0), 3, until)])[0]
    assert picture(whole) != picture(together[0])


def test_stop_strings_of_a_request_may_be_special_tokens():
    tokenizer = byte_tokenizer()
    gen, end = generator(tokenizer, eos_token_id=0), tokenizer.eos_token
    place = tokenizer.eos_token_id
    assert drawn(gen, [*ids_of("a"), place, *ids_of("b")]) is None
    count, step = drawn(gen, [*ids_of("a"), place, *ids_of("b")], stop=(end, f"a{end}"))
    assert (count, step.text, step.finish_reason) == (2, "a", "eos")
    for stop in ("a", ["a"], ("",), (1,)):
        with pytest.raises(ValueError, match="give a tuple of texts"):
            GenerateRequest(root("a"), stop=stop)


def test_what_is_drawn_before_a_stop_string_is_what_is_drawn_without_one():
    free, stopped = generator(max_new_tokens=40), generator(max_new_tokens=40, stop=["b", "1"])
    for prompt in PROMPTS[:3]:
        pairs = zip(grow(free, root(prompt), 3, until="end"), grow(stopped, root(prompt), 3, until="end"), strict=True)
        for whole, cut in pairs:
            assert whole.step.token_ids[: len(cut.step.token_ids)] == cut.step.token_ids
            assert whole.text.startswith(cut.text)
            places = [place for text in ("b", "1") if (place := whole.text.find(text)) >= 0]
            assert cut.text == whole.text[: min(places)] if places else whole.text == cut.text


# -- step delimiters ---------------------------------------------------------------------------------------------------


def sentence_end(text):
    """A function of text: the end of the first sentence."""
    return next((place + 1 for place, letter in enumerate(text) if letter in ".:="), None)


@pytest.mark.parametrize(
    ("text", "delimiter", "start", "end"),
    [
        ("a\nb", "\n", 0, 2),
        ("\n a\nb", "\n", 0, 4),
        ("a\nb", re.compile(r"\n"), 0, 2),
        ("\n a\nb", re.compile(r"\n"), 0, 4),
        ("a\nb\nc", re.compile(r"\n"), 2, 4),
        ("x. Step 2", re.compile(r"(?=Step \d)"), 0, 3),
        ("One. Two", re.compile(r"(?<=[.!?])\s"), 0, 5),
        ("a b c", re.compile(r"\d"), 0, -1),
        ("a\nb", lambda text: text.find("\n") + 1, 0, 2),
        ("\n a\nb", lambda text: text.find("\n") + 1, 0, 4),
        ("a\nb\nc", lambda text: text.find("\n") + 1, 2, 4),
        ("a b", lambda text: None, 0, -1),
        ("a b", lambda text: -1, 0, -1),
        ("  ", lambda text: text.find(" "), 0, -1),
    ],
)
def test_where_the_first_step_of_a_text_ends(text, delimiter, start, end):
    assert step_end(text, delimiter, start) == end


@pytest.mark.parametrize("answer", [7, -2, 1.0, True, "1"])
def test_a_function_answers_with_a_place(answer):
    with pytest.raises(ValueError, match=rf"step_delimiter returned {answer!r} for a text of 3 characters"):
        step_end("a b", lambda text: answer)


@pytest.mark.parametrize("delimiter", ["", 3, None, re.compile(""), re.compile(r"\s*"), re.compile(rb"a"), str])
def test_what_delimits_nothing_is_refused(delimiter):
    with pytest.raises(ValueError, match="step_delimiter="):
        generator(step_delimiter=delimiter)


@pytest.mark.parametrize("make", [byte_tokenizer, metaspace_tokenizer])
@pytest.mark.parametrize("text", [" a", "\n", "="])
def test_a_regular_expression_and_a_function_end_the_steps_that_a_text_ends(make, text):
    def found(given):
        place = given.find(text, 1)
        return place + len(text) if place >= 0 else None

    expected = None
    for delimiter in (text, re.compile(re.escape(text)), found):
        gen = generator(step_delimiter=delimiter, max_new_tokens=20, tokenizer=make())
        nodes = [*grow(gen, root("a b"), 4), *grow(gen, root("a b"), 4, until="end")]
        expected = expected or picture(node.step for node in nodes)
        assert picture(node.step for node in nodes) == expected
    assert any(node.step.inner_ends for node in nodes)


@pytest.mark.parametrize("delimiter", [re.compile(r"[ab1]\s|="), sentence_end])
def test_inner_steps_of_a_completion_are_the_steps_of_a_path(delimiter):
    gen = generator(step_delimiter=delimiter, max_new_tokens=40, check_every=5)
    whole = [grow(gen, root(prompt), until="end")[0].step for prompt in PROMPTS]
    for prompt, step in zip(PROMPTS, whole, strict=True):
        node, rest, ends = root(prompt), list(step.token_ids), []
        while rest:
            done = drawn(gen, rest, node)
            if done is None:
                break
            node = Node(node.problem, done[1], node)
            rest = rest[done[0] :]
            ends.append((len(node.text), len(node.token_ids)))
        assert list(step.inner_ends or [(len(step.text), len(step.token_ids))])[: len(ends)] == ends
    assert sum(len(step.inner_ends) > 1 for step in whole) > 2


def test_only_tokens_that_may_complete_something_are_decoded(monkeypatch):
    for given, share in (({"stop": ["xyz"]}, 0.7), ({"step_delimiter": re.compile("xyz")}, 1.0)):
        gen = generator(max_new_tokens=40, max_step_tokens=40, **given)
        text, decoded = gen._runner.branches.text, []
        own = text.decode

        def decode(ids, *given, own=own, decoded=decoded, **options):
            decoded.append(len(ids))
            return own(ids, *given, **options)

        monkeypatch.setattr(text, "decode", decode)
        steps = [node.step for node in grow(gen, root("a"), 6, until="end")]
        ids = np.array([i for step in steps for i in step.token_ids])
        paths = sum(length > 2 for length in decoded)  # the others are tokens that are seen for the first time
        may = text.may_end(ids)
        assert paths <= may.sum() + len(steps)
        assert may.mean() <= share
        assert {i for i in ids[may].tolist() if i != 2} == {
            i for i in set(ids.tolist()) - {2} if share == 1.0 or set(byte_tokenizer().decode([i])) & set("z\n\ufffd")
        }


# -- filters and processors --------------------------------------------------------------------------------------------


class Favour(LogitsProcessor):
    """Lifts the token after the newest one (by number), a different one for every row; keeps no state."""

    def __call__(self, input_ids, scores):
        assert input_ids.shape[0] == scores.shape[0] == 1
        lifted = scores.clone()
        lifted[0, (input_ids[0, -1] + 1) % scores.shape[1]] += 2.0
        return lifted


class Counting(LogitsProcessor):
    """Keeps state, as matchers of grammars do: it counts its calls, and sees every token once."""

    def __init__(self, start=0):
        self.calls = start
        self.seen = []

    def __call__(self, input_ids, scores):
        if self.seen:
            assert self.seen == input_ids[0, :-1].tolist(), "called once for each token of the path"
        self.seen = input_ids[0].tolist()
        self.calls += 1
        scores[0, 10 + self.calls % 7] += 9.0
        return scores


class Matcher(Counting):
    """Cannot be copied, as objects of a foreign library."""

    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle 'Matcher' object")


def allow(batch_id, input_ids):
    assert batch_id == 0
    assert input_ids.dim() == 1
    return [2, *range(20, 60), 100 + len(input_ids) % 50]


def penalise_newest(input_ids, scores):
    return scores.index_fill(1, input_ids[0, -1:], -5.0)


CONTROLS = {
    "penalty": {"repetition_penalty": 1.4},
    "reward": {"repetition_penalty": 0.8},
    "allowed": {"prefix_allowed_tokens_fn": allow},
    "ngrams": {"logits_processor": [NoRepeatNGramLogitsProcessor(2)]},
    "own": {"logits_processor": [Favour(), SuppressTokensLogitsProcessor([3, 4, 5], device="cpu")]},
    "all": {
        "repetition_penalty": 1.2,
        "prefix_allowed_tokens_fn": allow,
        "logits_processor": LogitsProcessorList([Favour(), NoRepeatNGramLogitsProcessor(3)]),
    },
}


@pytest.mark.parametrize("name", CONTROLS)
def test_greedy_answers_equal_those_of_generate(name):
    gen = generator(max_step_tokens=24, **CONTROLS[name])
    for prompt in PROMPTS[:3]:
        ids = torch.tensor([byte_tokenizer()(prompt)["input_ids"]])
        given = dict(CONTROLS[name])
        given["logits_processor"] = LogitsProcessorList(given.get("logits_processor", ()))
        expected = gen.model.generate(ids, attention_mask=ids * 0 + 1, do_sample=False, max_new_tokens=24, **given)
        [step] = gen.generate([GenerateRequest(root(prompt), greedy=True, until="end")])[0]
        assert list(step.token_ids) == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("cache", ["tree", "none"])
def test_tokens_and_logprobs_are_those_of_transformers_own_processors_in_their_order(cache):
    filters = {"temperature": 0.8, "top_k": 60, "top_p": 0.9, "min_p": 0.05}
    gen = generator(cache=cache, check_every=3, max_step_tokens=12, **filters, **CONTROLS["all"])
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            PrefixConstrainedLogitsProcessor(allow, 1),
            Favour(),
            NoRepeatNGramLogitsProcessor(3),
            TemperatureLogitsWarper(0.8),
            TopKLogitsWarper(60),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.05),
        ]
    )
    children = grow(gen, root("Step 1: a b"), 4)
    path = [*children, *grow(gen, next(node for node in children if not node.is_finished), 2, forced=" ab")]
    for node in path:
        step, forced = node.step, len(node.step.token_ids) - node.step.generated_tokens
        parent = node.parent.token_ids if node.parent.step else ()
        ids = [*byte_tokenizer()("Step 1: a b")["input_ids"], *parent, *step.token_ids[:forced]]
        total, plain = 0.0, []
        for position, token in enumerate(step.token_ids[forced:]):
            given = torch.tensor([ids])
            with torch.no_grad():
                logits = gen.model(input_ids=given).logits[:, -1]
            p = processors(given, logits).softmax(-1)[0].double()
            assert token == int(np.searchsorted(p.cumsum(-1).numpy(), uniforms([node.key], position)[0], side="right"))
            total += float(p[token].log())
            plain.append(float(logits.log_softmax(-1)[0, token]))
            ids.append(token)
        assert step.logprob == pytest.approx(total, abs=1e-3)
        assert step.confidence == pytest.approx(np.mean(plain), abs=1e-4)  # the model's own, whatever is drawn from


@pytest.mark.parametrize(
    "name",
    [name if name in ("penalty", "own", "all") else pytest.param(name, marks=pytest.mark.slow) for name in CONTROLS],
)
def test_controls_are_the_same_in_any_batch(name):
    gen = generator(check_every=4, **CONTROLS[name])
    same_alone_and_batched(gen, generator(cache="none", micro_batch=2, **CONTROLS[name]))
    if name == "penalty":
        check_generator(gen, ["Step 1: a", "b"])


@pytest.mark.parametrize("confidence", ["logprob", "self_certainty", "deepconf"])
def test_confidences_are_the_models_own_where_most_tokens_are_forbidden(confidence):
    gen = generator(confidence=confidence, prefix_allowed_tokens_fn=lambda batch_id, ids: [40])
    [node] = grow(gen, root("a"))
    alone = Sampler(confidence=confidence)
    values = []
    for count in range(len(node.token_ids)):
        ids = torch.tensor([[*byte_tokenizer()("a")["input_ids"], *node.token_ids[:count]]])
        with torch.no_grad():
            logits = gen.model(input_ids=ids).logits[:, -1]
        values.append(alone.confidences(logits, torch.tensor([40])).item())
    assert set(node.token_ids) == {40}
    assert node.step.logprob == pytest.approx(0.0, abs=1e-6)
    assert node.step.confidence == pytest.approx(np.mean(values), abs=1e-4)


@pytest.mark.parametrize("given", [Counting(3), lambda: Matcher(3)], ids=["copied", "made"])
def test_a_processor_with_state_is_told_of_every_token_of_its_path(given):
    """Steps, forced text and siblings: what a path draws is what one completion with the processor's state would."""
    gen = generator(temperature=0.0, logits_processor=[given], max_step_tokens=5, max_new_tokens=15, check_every=4)
    node = root("a b")
    while not node.is_finished:
        node = grow(gen, node, 2)[1]
    ids = byte_tokenizer()("a b")["input_ids"]
    reference = Counting(3)
    whole = torch.tensor([ids])
    expected = gen.model.generate(
        whole, attention_mask=whole * 0 + 1, do_sample=False, max_new_tokens=15, logits_processor=[reference]
    )[0, len(ids) :].tolist()
    assert list(node.token_ids) == expected
    assert [expected[0]] != expected[:1] or reference.calls > 3
    start = root("a b")
    [forced] = grow(gen, start, forced=byte_tokenizer().decode(expected[:3]))
    if ids_of(byte_tokenizer().decode(expected[:3])) == expected[:3]:
        assert list(forced.token_ids) == expected[:8]
    if isinstance(given, Counting):
        assert (given.calls, given.seen) == (3, []), "the object that was given is left alone"


def test_rows_that_begin_anew_when_memory_runs_out_have_fresh_processors(monkeypatch):
    class Tight(decoding.TreeDecoder):
        steps = 0

        def step(self, tokens):
            self.steps += 1
            if len(tokens) > 2 and self.steps > 2:  # in the middle of the paths
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().step(tokens)

    controls = {"logits_processor": [Counting(3)], "repetition_penalty": 1.2, "stop": ["a"]}
    expected = grow(generator(**controls), root("a b"), 5)
    monkeypatch.setattr(decoding, "TreeDecoder", Tight)
    gen = generator(**controls)
    assert picture(n.step for n in grow(gen, root("a b"), 5)) == picture(n.step for n in expected)
    assert gen.stats.wasted_tokens > 0


def test_a_processor_that_cannot_be_copied_is_made_by_a_function():
    with pytest.raises(TypeError, match=r"needs a Matcher of its own.*logits_processor=\[lambda: Matcher\(\.\.\.\)\]"):
        generator(logits_processor=[Matcher()])


def test_models_and_tokenizers_of_a_processor_are_not_copied():
    class Judge(LogitsProcessor):
        def __init__(self, model, tokenizer):
            self.model, self.tokenizer, self.notes = model, tokenizer, []

        def __call__(self, input_ids, scores):
            self.notes.append(0)
            met.append(self)
            return scores

    met: list[Judge] = []
    judge = Judge(tiny_model("gpt2"), copy.copy(byte_tokenizer()))
    grow(generator(logits_processor=[judge]), root("a"), 2)
    assert len({id(each) for each in met}) == 2
    assert all(each is not judge for each in met)
    assert all(each.model is judge.model and each.tokenizer is judge.tokenizer for each in met)


def test_a_path_without_a_token_that_may_come_next_is_an_error():
    def nothing(input_ids, scores):
        return torch.full_like(scores, -torch.inf)

    with pytest.raises(ValueError, match=r"leave no token that may come next, after the prompt 'Step'"):
        grow(generator(logits_processor=[nothing]), root("Step"))


def test_nothing_is_processed_where_nothing_is_asked_for():
    assert generator().processing.rows() is None
    assert generator(repetition_penalty=1.0, logits_processor=[]).processing.rows() is None
    assert not generator(repetition_penalty=1.1).processing.rows().needs_looks


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty=0.0"),
        ({"repetition_penalty": -1}, ValueError, "repetition_penalty=-1"),
        ({"min_p": 1.5}, ValueError, "min_p=1.5"),
        ({"min_p": -0.1}, ValueError, "min_p=-0.1"),
        ({"logits_processor": Favour()}, TypeError, "give a list of processors"),
        ({"logits_processor": ["x"]}, TypeError, "logits_processor holds 'x'"),
        ({"logits_processor": [lambda ids: ids]}, TypeError, "logits_processor holds"),
        ({"prefix_allowed_tokens_fn": [1]}, TypeError, "prefix_allowed_tokens_fn="),
    ],
)
def test_controls_that_control_nothing_are_refused_before_a_model_is_loaded(options, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        generator(**options)
    with pytest.raises(kind, match=re.escape(said)):
        HFGenerator.from_pretrained("./no/such/folder", **options)


MIN_P = [(1.0, 0, 1.0, 0.1), (0.7, 0, 1.0, 0.3), (1.5, 20, 1.0, 0.05), (1.0, 0, 0.7, 0.02), (1.0, 0, 1.0, 1.0)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), MIN_P)
def test_min_p_keeps_what_transformers_keeps(temperature, top_k, top_p, min_p):
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(7)) * 2
    ids = torch.zeros(1, 1, dtype=torch.long)
    scores = logits / temperature
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    log_p = MinPLogitsWarper(min_p)(ids, scores).log_softmax(-1)[0]
    numbers = torch.from_numpy((np.arange(2000) + 0.5) / 2000)
    draws = Sampler(temperature, top_k, top_p, min_p=min_p).draw(logits.expand(2000, -1), numbers)
    torch.testing.assert_close(draws.logprobs, log_p[draws.tokens], atol=2e-4, rtol=1e-4)
    shares = torch.bincount(draws.tokens, minlength=300) / 2000
    assert (shares - log_p.exp()).abs().max() < 2e-3
    assert choose_sampler(None, temperature, top_p, top_k, "logprob", min_p) == Sampler(
        temperature, top_k, top_p, min_p=min_p
    )


# -- options that nobody knows -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    QuietSTaR(tiny_model(), 2).save_pretrained(path / "quiet", merge=True)
    return path


LOADERS = {
    "generator": (HFGenerator.from_pretrained, {}),
    "process": (rewards.HFProcessRewardModel.from_pretrained, {"good_token": "<good>"}),
    "outcome": (rewards.HFOutcomeRewardModel.from_pretrained, {}),
    "likelihood": (rewards.LikelihoodReward.from_pretrained, {}),
    "implicit": (rewards.ImplicitReward.from_pretrained, {"reference": "."}),
    "verifier": (rewards.GenerativeVerifier.from_pretrained, {}),
    "training": (load_for_training, {}),
    "thoughts": (QuietSTaR.from_pretrained, {}),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(
    ("option", "near"),
    [("atn_implementation", "did you mean attn_implementation?"), ("qqqqq", "no option is like it")],
)
def test_an_option_that_nobody_knows_is_refused_by_its_name(folder, name, option, near):
    loader, given = LOADERS[name]
    given = {key: str(folder) if value == "." else value for key, value in given.items()}
    said = re.escape(f"{loader.__qualname__}() got an unknown option {option!r}: {near}")
    with pytest.raises(TypeError, match=said):
        loader(folder / "quiet" if name == "thoughts" else folder, **given, **{option: 1})


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("min_pp", "min_p"),
        ("repetition_penality", "repetition_penalty"),
        ("stops", "stop"),
        ("maxnewtokens", "max_new_tokens"),
    ],
)
def test_the_nearest_option_of_the_class_is_named(folder, option, near):
    with pytest.raises(TypeError, match=rf"unknown option '{option}': did you mean {near}\?"):
        HFGenerator.from_pretrained(folder, **{option: 1})


def test_what_transformers_or_the_configuration_knows_passes(folder):
    options = {"attn_implementation": "eager", "low_cpu_mem_usage": True, "rms_norm_eps": 1e-3, "use_cache": True}
    gen = HFGenerator.from_pretrained(folder, device="cpu", **options)
    assert gen.model.config.rms_norm_eps == 1e-3
    assert gen.model.config._attn_implementation == "eager"


def test_code_of_a_repository_may_have_options_of_its_own(folder):
    place = Located(str(folder), {"local_files_only": True}, "tiny")
    check_load_options(place, {"trust_remote_code": True, "num_of_its_experts": 2}, HFGenerator.from_pretrained)
    with pytest.raises(TypeError, match=r"'min_pp': did you mean min_p\?"):
        check_load_options(place, {"trust_remote_code": True, "min_pp": 2}, HFGenerator.from_pretrained)


# -- what else runs on the same token loop -----------------------------------------------------------------------------


def test_thoughts_that_change_nothing_leave_every_control_as_it_is():
    controls = {"stop": ["b", "\ufffd"], "min_p": 0.02, "step_delimiter": re.compile("[a1]"), **CONTROLS["all"]}
    plain = generator(**controls)
    quiet = QuietSTaRGenerator(
        QuietSTaR(tiny_model(), 2), byte_tokenizer(), max_step_tokens=9, max_new_tokens=24, **controls
    )
    for until in ("step", "end"):
        pairs = [[grow(gen, root(prompt), 2, until=until) for prompt in PROMPTS[:3]] for gen in (plain, quiet)]
        for left, right in zip(*pairs, strict=True):
            assert [n.step.token_ids for n in left] == [n.step.token_ids for n in right]
            assert [n.text for n in left] == [n.text for n in right]


def test_reward_models_judge_what_stands_before_a_stop_string():
    gen = generator(stop=["\nab"])
    ids = [*ids_of("x 1\n"), *ids_of("12"), *ids_of("\nab")]
    _, cut = drawn(gen, ids, until="end")
    whole = replace(cut, token_ids=cut.token_ids[: cut.inner_ends[-1][1]])
    assert (cut.text, len(whole.token_ids)) == ("x 1\n12", len(ids) - 2)
    start = root("a")
    nodes = [Node(start.problem, step, start) for step in (cut, whole)]
    for own in (True, False):
        reward = rewards.LikelihoodReward(tiny_model(), byte_tokenizer(), use_token_ids=own, step_separator=None)
        assert reward.step_scores(nodes[:1]) == reward.step_scores(nodes[1:])
        assert len(reward.step_scores(nodes)[0]) == 2


def test_a_sampler_of_ones_own_keeps_its_confidences():
    class Sure(TokenSampler):
        def draw(self, logits, numbers):
            tokens, shares = inverse_cdf(logits.softmax(-1), numbers)
            return Draws(tokens, shares.log().float(), torch.full_like(numbers, 7.0).float())

    [node] = grow(generator(sampler=Sure(), repetition_penalty=1.3), root("a"))
    assert node.step.confidence == 7.0
