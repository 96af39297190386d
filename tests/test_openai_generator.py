"""`OpenAIGenerator` on a toy server: what it sends, what it makes of the answers, what it charges."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferscale import REBASE, Budget, HFGenerator, OpenAIGenerator, RepeatedSampling, solve, solve_batch
from inferscale.flops import estimate_flops
from inferscale.flow import GenerateRequest
from inferscale.generators.openai import tokens_per_choice
from inferscale.generators.openai_server import Choice, parse_reply
from inferscale.testing import PROMPTS, ToyReward, check_generator
from inferscale.thinking import Thinking
from inferscale.tree import Node, Problem, Step, branch_key
from inferscale.viz import render_tree
from tests.openai_stub import Letters, LetterTokenizer, Stub, serving
from tests.tiny_models import byte_tokenizer, root, tiny_model

PLAIN = frozenset({"seed"})
SERVERS = {
    "n by the rule": Stub,
    "n ignored": lambda: Stub(n="ignored"),
    "n with one seed": lambda: Stub(n="same"),
    "n with other seeds": lambda: Stub(n="other"),
    "stops kept": lambda: Stub(stops="kept"),
    "plain": lambda: Stub(n="ignored", fields=PLAIN),
    "usage of the first choice": lambda: Stub(usage="first", hides_stop_tokens=True),
    "usage of the first choice, nothing else": lambda: Stub(usage="first", fields=PLAIN),
    "overlooks fields": lambda: Stub(n="ignored", fields=PLAIN, strict=False),
}


class Reward(ToyReward):
    concurrent = True


def search(stub, strategy=None, prompts=PROMPTS, generator=None, **options):
    """Results of a search on `stub`, and the generator."""
    names = ("seed", "budget", "journal")
    solving = {name: options.pop(name) for name in names if name in options}
    with serving(stub) as address:
        generator = OpenAIGenerator(address, "toy", **options)
        strategy = strategy or REBASE(4)
        return solve_batch(list(prompts), strategy, generator, reward_model=Reward(), **solving), generator


def pictures(results):
    return [render_tree(result.root, max_text=999) for result in results]


def drawn(stub):
    """Requests that draw samples, and not those that find out what the server supports."""
    return [body for body in stub.requests if body["max_tokens"] > 16]


def requests_of(node, **options):
    return [GenerateRequest(node, **options)]


EXPECTED: list[list[str]] = []


@pytest.fixture
def expected():
    """The trees of the best server."""
    if not EXPECTED:
        EXPECTED.append(pictures(search(Stub())[0]))
    return EXPECTED[0]


@pytest.mark.parametrize("name", ["n by the rule", "n with other seeds", "plain"])
def test_it_keeps_the_promises_of_generators(name):
    with serving(SERVERS[name]()) as address:
        check_generator(OpenAIGenerator(address, "toy", max_new_tokens=60, max_step_tokens=20), PROMPTS[:1])


@pytest.mark.parametrize("options", [{"endpoint": "chat"}, {"tokenizer": LetterTokenizer()}], ids=["chat", "ids"])
def test_it_keeps_them_in_chats_and_with_ids(options):
    with serving(Stub()) as address:
        check_generator(OpenAIGenerator(address, "toy", max_new_tokens=60, max_step_tokens=20, **options), PROMPTS[:1])


@pytest.mark.parametrize("name", SERVERS)
def test_trees_do_not_depend_on_what_the_server_supports(name, expected):
    stub = SERVERS[name]()
    results, _ = search(stub)
    assert pictures(results) == expected
    assert all("n" not in body or name in ("n by the rule", "stops kept", "stops ignored") for body in drawn(stub))


def test_ids_give_the_same_trees_as_text(expected):
    assert pictures(search(Stub(), tokenizer=LetterTokenizer())[0]) == expected


def chain(generator, key):
    """A path sampled step by step to its end."""
    node = Node(Problem("How many?"), key=key)
    while not node.is_finished:
        (step,) = generator.generate(requests_of(node))[0]
        node = Node(node.problem, step, node, branch_key(node.key, 0))
    return node


def test_a_server_that_hides_what_ended_a_sample_gives_the_same_steps():
    with serving(Stub()) as one, serving(Stub(stops="cut")) as other:
        told, cut = OpenAIGenerator(one, "toy"), OpenAIGenerator(other, "toy")
        for key in range(8):
            expected, found = chain(told, key), chain(cut, key)
            texts = [step.text for step in found.steps]
            assert texts == [*(step.text for step in expected.steps[:-1]), expected.step.text + "\n", ""]
            assert found.step.finish_reason == "eos"


@pytest.mark.parametrize("tokenizer", [None, LetterTokenizer()], ids=["text", "ids"])
def test_what_a_server_sends_beyond_the_step_is_cut_and_paid_for(tokenizer):
    stub = Stub(stops="ignored")
    with serving(stub) as address:
        leaf = chain(OpenAIGenerator(address, "toy", tokenizer=tokenizer), 1)
    usages = [stub.answer(body, chat=False)[1]["usage"] for body in drawn(stub)]
    assert [step.generated_tokens for step in leaf.steps] == [usage["completion_tokens"] for usage in usages]
    assert [step.text.strip() + "\n" == step.text.lstrip() for step in leaf.steps] == [True] * (leaf.depth - 1) + [
        False
    ]
    assert leaf.text.rpartition("\n")[2].startswith("The answer is ")
    assert leaf.step.finish_reason == "eos"


def test_trees_do_not_depend_on_how_many_are_asked_for_at_a_time(expected):
    assert pictures(search(Stub(), max_concurrency=1)[0]) == expected


def test_another_seed_gives_other_trees(expected):
    assert pictures(search(Stub(), seed=1)[0]) != expected


def test_nothing_is_sent_that_the_server_refused_or_overlooked():
    for strict in (True, False):
        stub = Stub(fields=frozenset(), strict=strict)
        search(stub, tokenizer=LetterTokenizer())
        sent = {name for body in drawn(stub) for name in body}
        extra = {"seed"} if not strict else set()  # a seed that has no effect cannot be told from a hidden one
        assert sent <= {"model", "prompt", "max_tokens", "temperature", "top_p", "stop", "n"} | extra


def test_prompts_are_ids_that_begin_as_their_parents_do():
    stub = Stub()
    results, _ = search(stub, tokenizer=LetterTokenizer())
    prompts = {tuple(body["prompt"]) for body in drawn(stub)}
    for result in results:
        start = tuple(Letters().encode(result.problem.prompt))
        inner = [node for node in result.root.walk() if node.children]
        assert {start + node.token_ids for node in inner} <= prompts
        for node in result.root.walk():
            assert Letters().decode(list(node.token_ids)) == node.text
    assert all(body["return_token_ids"] for body in drawn(stub))


class Model:
    """A tiny transformer as a language, greedy."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.eos = model, tokenizer, tokenizer.eos_token_id

    def encode(self, text):
        return self.tokenizer(text)["input_ids"]

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @torch.no_grad()
    def next(self, ids, noise):
        return int(self.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())


@pytest.mark.parametrize("until", ["step", "end"])
def test_greedy_ids_and_prices_are_those_of_the_in_process_generator(until):
    model, tokenizer = tiny_model("llama", seed=3), byte_tokenizer()
    limits = {"max_step_tokens": 9, "max_new_tokens": 24, "temperature": 0}
    local = HFGenerator(model, tokenizer, **limits)
    with serving(Stub(language=Model(model, tokenizer))) as address:
        remote = OpenAIGenerator(address, "toy", tokenizer=tokenizer, config=model.config, **limits)
        ours, theirs = root("Step 1: a b"), root("Step 1: a b")
        for _ in range(2):
            steps = (
                local.generate(requests_of(ours, until=until))[0] + remote.generate(requests_of(theirs, until=until))[0]
            )
            pictures = [(s.text, s.token_ids, s.finish_reason, s.inner_ends, s.prompt_tokens, s.flops) for s in steps]
            assert pictures[0] == pictures[1]
            if ours.is_finished or steps[0].finish_reason != "step":
                break
            ours = Node(ours.problem, steps[0], ours, branch_key(ours.key, 0))
            theirs = Node(theirs.problem, steps[1], theirs, branch_key(theirs.key, 0))
    assert ours.depth == (2 if until == "step" else 0)


def test_costs_are_what_the_server_counted():
    stub = Stub()
    results, generator = search(stub)
    replies = [stub.answer(body, chat=False)[1]["usage"] for body in stub.requests]
    spent = sum(usage["completion_tokens"] for usage in replies)
    assert sum(result.cost.generated_tokens for result in results) == spent - generator.stats.probe_tokens > 0
    assert [result.cost.prompt_tokens for result in results] == [len(prompt) for prompt in PROMPTS]


def test_probes_are_counted_whole_where_usage_is_that_of_the_first_choice():
    stub = Stub(usage="first")
    results, generator = search(stub)
    replies = [Stub().answer(body, chat=False)[1]["usage"] for body in stub.requests]  # of all choices
    spent = sum(usage["completion_tokens"] for usage in replies)
    assert spent > sum(stub.answer(body, chat=False)[1]["usage"]["completion_tokens"] for body in stub.requests)
    assert sum(result.cost.generated_tokens for result in results) == spent - generator.stats.probe_tokens > 0


def test_what_is_sent_again_and_what_the_server_had_cached_are_counted_for_their_price():
    stub = Stub(caches=0.5)
    (result,), _ = search(stub, REBASE(3), PROMPTS[:1])
    asked = [body for body in stub.requests if body["max_tokens"] > 8]  # else a probe
    bills, cost = [stub.answer(body, chat=False)[1]["usage"] for body in asked], result.cost
    assert cost.prompt_tokens + cost.resent_tokens == sum(bill["prompt_tokens"] for bill in bills)
    assert cost.cached_tokens == sum(bill["prompt_tokens_details"]["cached_tokens"] for bill in bills) > 0
    assert cost.resent_tokens > 0


@pytest.mark.parametrize(
    ("usage", "cached"),
    [
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}, 4),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 3}, 3),
        ({"prompt_tokens": 9, "prompt_tokens_details": None}, 0),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 40}}, 9),
        ({"prompt_tokens_details": {"cached_tokens": 4}}, 0),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": "many"}}, 0),
    ],
)
def test_cached_tokens_of_servers(usage, cached):
    assert parse_reply(json.dumps({"choices": [{"text": "x"}], "usage": usage})).cached_tokens == cached


def test_flops_are_the_closed_form_with_the_prompt_read_once():
    config = tiny_model().config
    (result,), _ = search(Stub(), RepeatedSampling(3), PROMPTS[:1], config=config, max_new_tokens=20)
    sizes = [leaf.step.generated_tokens for leaf in result.leaves]
    assert sizes == [20, 20, 20]
    assert result.cost.generator_flops == estimate_flops(config, prompt=len(PROMPTS[0]), new=20, n=3)


@pytest.mark.parametrize("tokenizer", [None, LetterTokenizer()], ids=["text", "ids"])
def test_forced_text_is_charged_once(tokenizer):
    with serving(Stub()) as address:
        generator = OpenAIGenerator(address, "toy", tokenizer=tokenizer)
        steps = generator.generate(requests_of(Node(Problem("How many?"), key=5), n=3, forced="So then "))[0]
    assert [step.prompt_tokens for step in steps] == [9 + 8, 0, 0]
    assert all(step.text.startswith("So then ") for step in steps)
    assert all(step.generated_tokens == len(step.text) - 8 for step in steps)


@pytest.mark.parametrize("tokenizer", [None, LetterTokenizer()], ids=["text", "counted"])
def test_a_server_that_counts_no_prompt_makes_nothing_negative(tokenizer):
    def uncounted(answer):
        answer["usage"]["prompt_tokens"] = 0
        return answer

    with serving(Stub(fields=PLAIN, ids=False, misbehave=lambda body, before: uncounted)) as address:
        generator = OpenAIGenerator(address, "toy", tokenizer=tokenizer, config=tiny_model().config)
        start = Node(Problem("How many?"), key=5)
        node = Node(start.problem, Step("a\n", num_tokens=2), start, 7)
        steps = [generator.generate(requests_of(place, forced="So then "))[0][0] for place in (start, node)]
    assert [step.prompt_tokens for step in steps] == ([0, 0] if tokenizer is None else [9 + 8, 8])
    assert all(step.flops >= 0 for step in steps)


def test_without_usage_the_tokenizer_counts():
    results, _ = search(Stub(usage=False, fields=PLAIN), tokenizer=LetterTokenizer())
    for result in results:
        assert result.cost.prompt_tokens == len(result.problem.prompt)
        for leaf in result.leaves:
            assert leaf.step.generated_tokens == len(leaf.step.text) + 1


def test_logprobs():
    node = Node(Problem("How many?"), key=5)
    with serving(Stub()) as address:
        plain = OpenAIGenerator(address, "toy").generate(requests_of(node))[0][0]
        cool = OpenAIGenerator(address, "toy", temperature=0.5).generate(requests_of(node))[0][0]
        chat = OpenAIGenerator(address, "toy", endpoint="chat").generate(requests_of(node))[0][0]
        none = OpenAIGenerator(address, "toy", logprobs=False).generate(requests_of(node))[0][0]
        asked = OpenAIGenerator(address, "toy").generate(requests_of(node, temperature=0.5))[0][0]
    assert asked == cool != plain
    assert plain.confidence == pytest.approx(plain.logprob / plain.generated_tokens)
    assert cool.logprob is None
    assert cool.confidence == plain.confidence
    assert chat.logprob < 0
    assert none.logprob is none.confidence is None
    with serving(Stub(fields=PLAIN)) as address:
        assert OpenAIGenerator(address, "toy").generate(requests_of(node))[0][0].confidence is None
        with pytest.raises(ValueError, match="returns no log-probabilities"):
            OpenAIGenerator(address, "toy", logprobs=True).generate(requests_of(node))


def test_lengths():
    node = Node(Problem("How many?"), key=6)
    with serving(Stub()) as address:

        def reason(request_options=None, **options):
            step = OpenAIGenerator(address, "toy", **options).generate(requests_of(node, **(request_options or {})))[0][
                0
            ]
            return step.finish_reason, step.generated_tokens

        assert reason(max_step_tokens=1) == ("step", 1)
        assert reason(max_new_tokens=1) == ("length", 1)
        assert reason({"max_tokens": 1}) == ("budget", 1)
        assert reason({"until": "end"})[0] == "eos"
        full = Node(node.problem, Step("ab\n", num_tokens=3), node, 7)
        empty = OpenAIGenerator(address, "toy", max_new_tokens=3).generate(requests_of(full))[0][0]
        assert (empty.finish_reason, empty.generated_tokens) == ("empty", 0)


class Blank(Letters):
    """Nothing but ends of lines."""

    def next(self, ids, noise):
        return ord("\n")


@pytest.mark.parametrize("tokenizer", [None, LetterTokenizer()], ids=["text", "ids"])
@pytest.mark.parametrize("stops", ["told", "kept", "cut", "ignored"])
def test_a_model_that_writes_nothing_but_blank_lines_ends(stops, tokenizer):
    stub = Stub(language=Blank(), stops=stops)
    with serving(stub) as address:
        generator = OpenAIGenerator(address, "toy", tokenizer=tokenizer, max_step_tokens=20)
        capped, full = (
            generator.generate(requests_of(Node(Problem("x"), key=1), max_tokens=m))[0][0] for m in (17, None)
        )
    assert capped.generated_tokens <= 17
    assert full.generated_tokens <= 20
    assert full.finish_reason in ("empty", "eos", "step")  # of white space alone, which may go on
    assert not full.text.strip()
    assert len(stub.requests) < 60


def test_an_answer_without_tokens_cannot_be_asked_for_for_ever():
    def nothing(answer):
        for choice in answer["choices"]:
            choice |= {"text": "", "finish_reason": "stop", "stop_reason": "\n", "logprobs": None}
        answer["usage"]["completion_tokens"] = 0
        return answer

    stub = Stub(misbehave=lambda body, before: nothing if "stop" in body else None)
    with serving(stub) as address:
        step = OpenAIGenerator(address, "toy", max_step_tokens=5).generate(requests_of(Node(Problem("x"), key=1)))[0][0]
    assert (step.finish_reason, step.generated_tokens) == ("empty", 0)
    assert sum("stop" in body for body in stub.requests) == 5


def test_a_sample_that_the_server_cuts_early_has_met_the_end_of_the_context():
    def cut(answer):
        for choice in answer["choices"]:
            choice |= {"text": choice["text"][:3], "finish_reason": "length", "logprobs": None}
        answer["usage"]["completion_tokens"] = 3
        return answer

    stub = Stub(misbehave=lambda body, before: cut if body["max_tokens"] > 16 else None)
    with serving(stub) as address:
        step = OpenAIGenerator(address, "toy").generate(requests_of(Node(Problem("x"), key=1), until="end"))[0][0]
    assert (step.finish_reason, step.generated_tokens) == ("length", 3)
    assert len(drawn(stub)) == 1


@pytest.mark.parametrize("until", ["step", "end"])
def test_a_count_of_the_first_choice_alone_is_found_out(until):
    """llama.cpp's: what it sampled is billed all the same, and no low count is taken for the end of the context."""
    expected, (result, _) = [], (None, None)
    for usage in (True, "first"):
        stub = Stub(usage=usage, stops="cut", hides_stop_tokens=True)
        strategy = REBASE(4) if until == "step" else RepeatedSampling(4)
        (result,), _ = search(stub, strategy, PROMPTS[:1], max_step_tokens=20)
        leaves = [(leaf.text, leaf.step.finish_reason, leaf.step.confidence is None) for leaf in result.leaves]
        expected.append((leaves, result.cost.generated_tokens, result.cost.prompt_tokens))
        assert all("n" not in body for body in drawn(stub)) or usage is True
    assert expected[0] == expected[1]
    assert not any(unknown for _, _, unknown in expected[0][0])


@pytest.mark.parametrize("tokenizer", [None, LetterTokenizer()], ids=["text", "counted"])
def test_a_count_that_is_always_too_low_ends_nothing(tokenizer):
    """What is sampled is counted by log-probabilities, or by the tokenizer."""
    fields = Stub().fields - {"return_token_ids"}
    found = []
    for usage in (True, "few"):
        stub = Stub(usage=usage, fields=fields if tokenizer is None else PLAIN, ids=False)
        with serving(stub) as address:
            leaf = chain(OpenAIGenerator(address, "toy", tokenizer=tokenizer, max_step_tokens=12), 3)
        found.append((leaf.text, leaf.step.finish_reason, [step.generated_tokens for step in leaf.steps]))
    assert found[0] == found[1]


def test_a_count_that_is_wrong_and_cannot_be_mended_is_an_error_before_anything_is_sampled():
    stub = Stub(usage="few", fields=PLAIN)
    with pytest.raises(ValueError, match=r"counts other tokens than it samples.*pass tokenizer"):
        search(stub)
    assert not drawn(stub)


def test_ids_are_sent_to_a_server_that_returns_text():
    stub = Stub(fields=PLAIN | {"logprobs"})
    text, _ = search(Stub(fields=PLAIN))
    ids, _ = search(stub, tokenizer=LetterTokenizer())
    assert pictures(ids) == pictures(text)
    assert all(isinstance(body["prompt"], list) and "return_token_ids" not in body for body in drawn(stub))
    assert [result.cost.tokens for result in ids] == [result.cost.tokens for result in text]


def test_the_prompt_is_paid_for_by_the_first_sample_that_came_even_if_it_is_empty():
    def nothing(answer):
        for choice in answer["choices"]:
            choice |= {"text": "", "finish_reason": "stop", "logprobs": None}
        answer["usage"]["completion_tokens"] = 0
        return answer

    stub = Stub(misbehave=lambda body, before: nothing if body["max_tokens"] > 16 else None)
    (result,), _ = search(stub, RepeatedSampling(3), PROMPTS[:1])
    assert (result.cost.prompt_tokens, result.cost.generated_tokens) == (len(PROMPTS[0]), 0)


def test_a_model_that_the_server_does_not_list_is_warned_of_once():
    with pytest.warns(UserWarning, match=r"does not list the model 'toy'.*'tiny', 'other'") as caught:
        search(Stub(models=("tiny", "other")))
    assert len(caught) == 1
    search(Stub(models=()))  # a server that lists none says nothing


def test_every_request_has_a_seed_of_its_own():
    stub = Stub(n="ignored")
    results, _ = search(stub)
    seeds = [body["seed"] for body in drawn(stub)]
    assert len(seeds) > sum(result.cost.num_generated for result in results)  # blank lines are gone on with
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) <= max(seeds) < 2**31


def test_fields_that_may_be_filters_leave_no_logprob():
    with serving(Stub(fields=frozenset({"seed", "logprobs", "top_k"}))) as address:
        step = OpenAIGenerator(address, "toy", extra_body={"top_k": 3}).generate(
            requests_of(Node(Problem("How many?"), key=5))
        )[0][0]
    assert step.logprob is None
    assert step.confidence < 0


def test_a_later_draw_pays_for_forced_text_and_never_for_the_whole_prefix():
    request = GenerateRequest(Node(Problem("x"), key=5), forced="So then, step by step: ", first=1)
    few = {"prompt_tokens": 3, "completion_tokens": 4}
    with serving(Stub(misbehave=lambda body, before: lambda answer: {**answer, "usage": few})) as address:
        (step,) = OpenAIGenerator(address, "toy").generate([request])[0]
    assert step.prompt_tokens == 2


def test_inner_steps_of_a_completion():
    with serving(Stub()) as address:
        step = OpenAIGenerator(address, "toy").generate(requests_of(Node(Problem("x"), key=1), until="end"))[0][0]
    pieces = [text for text, _ in step.inner_steps()]
    assert "".join(pieces) == step.text
    assert [piece.endswith("\n") for piece in pieces] == [True] * (len(pieces) - 1) + [False]


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_token_budgets_are_never_passed(tokens):
    (result,), _ = search(Stub(), prompts=PROMPTS[:1], budget=Budget(tokens=tokens), max_step_tokens=10)
    assert 0 < result.cost.tokens <= tokens


@pytest.mark.parametrize("tokenizer", [None, LetterTokenizer()], ids=["text", "ids"])
def test_a_path_ends_where_the_context_is_full(tokenizer):
    context = len(PROMPTS[0]) + 12
    (result,), generator = search(Stub(context=context), RepeatedSampling(2), PROMPTS[:1], tokenizer=tokenizer)
    assert [leaf.step.finish_reason for leaf in result.leaves] == ["length", "length"]
    assert [leaf.step.generated_tokens for leaf in result.leaves] == [12, 12]
    assert generator.stats.failed_samples == 0


def test_a_prompt_that_is_too_long_fails_alone():
    prompts = [PROMPTS[0], "x" * 200]
    (fine, failed), _ = search(Stub(context=120), prompts=prompts)
    assert fine.answer is not None
    assert failed.answer is None
    assert "maximum context length is 120" in failed.leaves[0].text
    assert failed.leaves[0].step.finish_reason == "error"


def test_at_most_so_many_requests_at_a_time():
    stub = Stub(n="ignored", delay=0.01)
    search(stub, RepeatedSampling(12), max_concurrency=3)
    assert 1 < stub.most_busy <= 3


def test_a_server_that_does_not_sample_is_told_of_once():
    stub = Stub(samples=False)
    with pytest.warns(UserWarning, match="same text at any temperature") as warned:
        search(stub, RepeatedSampling(4))
    assert len(warned) == 1
    search(Stub(samples=False), RepeatedSampling(4), temperature=0)


def test_a_chat_that_opens_another_turn_answers_whole_and_refuses_to_go_on():
    stub = Stub(fields=PLAIN, strict=False)
    results, _ = search(stub, RepeatedSampling(3), endpoint="chat", system_prompt="Be brief.")
    assert all(result.answer is not None for result in results)
    assert {turn["role"] for body in stub.requests for turn in body["messages"]} == {"system", "user"}
    with pytest.raises(ValueError, match="cannot go on with an answer"):
        search(Stub(fields=PLAIN, strict=False), endpoint="chat")


def test_a_chat_template_needs_ids():
    class Chatty(LetterTokenizer):
        chat_template = "yes"

        def apply_chat_template(self, messages, **options):
            assert options.pop("tokenize") is False
            return "[user]" + messages[-1]["content"]

    stub = Stub()
    search(stub, tokenizer=Chatty())
    assert {"".join(map(chr, body["prompt"][:6])) for body in drawn(stub)} == {"[user]"}
    with pytest.raises(ValueError, match="takes no token ids"):
        search(Stub(ids=False), tokenizer=Chatty())
    search(Stub(ids=False), tokenizer=Chatty(), chat_template=False)


TURNS = [
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "And two?"},
]
CHAT = frozenset({*Stub().fields, "chat_template_kwargs", "tools"})


def test_a_conversation_is_sent_as_turns():
    stub = Stub()
    begun = [*TURNS, {"role": "assistant", "content": "It is"}]
    chat, goes_on = Problem(messages=TURNS), Problem(messages=begun)
    _, generator = search(stub, prompts=[chat, Problem("x")], endpoint="chat", system_prompt="Be brief.")
    assert generator.takes_messages
    sent = [body["messages"] for body in drawn(stub)]
    assert TURNS in sent
    assert [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}] in sent
    stub = Stub()
    search(stub, prompts=[goes_on], endpoint="chat")
    assert begun in [body["messages"] for body in drawn(stub)]
    for body in drawn(stub):  # the answer goes on where the problem had begun it
        assert body["continue_final_message"]
        assert body["messages"][:-1] == TURNS
        assert body["messages"][-1]["content"].startswith("It is")
    with pytest.raises(ValueError, match="is a conversation, and this server is sent text"):
        search(Stub(), prompts=[chat])
    with pytest.raises(ValueError, match="cannot go on with an answer"):
        search(Stub(fields=PLAIN, strict=False), RepeatedSampling(2), [goes_on], endpoint="chat")


def test_options_of_the_chat_template_and_tools_are_sent_to_chats():
    def add(a: int) -> int:
        """Adds one.

        Args:
            a: A number.
        """
        return a

    stub = Stub(fields=CHAT)
    options = {"endpoint": "chat", "chat_template_kwargs": {"enable_thinking": False}, "tools": [add]}
    search(stub, RepeatedSampling(2), **options)
    for body in stub.requests:
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert body["tools"][0]["function"]["name"] == "add"
    with pytest.raises(ValueError, match="extra_body holds tools, which is given as an option too"):
        search(Stub(), **options, extra_body={"tools": []})
    with pytest.raises(ValueError, match="chat_template_kwargs and tools need tokenizer"):
        search(Stub(), **{**options, "endpoint": "completions"})


def test_a_call_of_a_tool_is_the_text_of_the_answer():
    def called(answer):
        for choice in answer["choices"]:
            made = {"name": "add", "arguments": "{}"}
            choice["message"] = {"content": None, "tool_calls": [{"type": "function", "function": made}]}
        return answer

    results, _ = search(Stub(misbehave=lambda body, before: called), RepeatedSampling(1), endpoint="chat")
    assert {result.text for result in results} == {'{"name": "add", "arguments": "{}"}'}


def test_control_tokens_in_texts_that_the_server_tokenises():
    tokenizer = LetterTokenizer()
    hostile = Problem(messages=[{"role": "user", "content": "a<eos>b"}])
    spaced, kept = Stub(), Stub()
    search(spaced, RepeatedSampling(1), [hostile], endpoint="chat", tokenizer=tokenizer)
    assert {body["messages"][0]["content"] for body in drawn(spaced)} == {"a< eos>b"}
    search(kept, RepeatedSampling(1), [hostile], endpoint="chat", tokenizer=tokenizer, control_tokens="keep")
    assert {body["messages"][0]["content"] for body in drawn(kept)} == {"a<eos>b"}
    refuse = {"tokenizer": tokenizer, "control_tokens": "refuse"}

    def echoes(answer):
        for choice in answer["choices"]:
            choice["message"]["content"] = "a<eos>b\n"
        return answer

    echo = Stub(misbehave=lambda body, before: echoes)
    search(echo, REBASE(2, max_depth=2), ["x"], endpoint="chat", **refuse)  # what the model writes is not refused
    assert {turn["content"] for body in drawn(echo) for turn in body["messages"][1:]} == {"a< eos>b\n"}
    with pytest.raises(ValueError, match="the user turn spells the control token '<eos>'"):
        search(Stub(), RepeatedSampling(1), [hostile], endpoint="chat", **refuse)
    with pytest.raises(ValueError, match="the prompt spells the control token '<eos>'"):
        search(Stub(ids=False), RepeatedSampling(1), ["a<eos>b"], **refuse)
    with pytest.raises(ValueError, match=r'control_tokens="refuse" needs tokenizer=\.\.\.'):
        search(Stub(), control_tokens="refuse")


def test_a_rendered_prompt_is_sent_without_the_beginning_that_the_server_adds():
    class Beginning(LetterTokenizer):
        bos_token, bos_token_id = "<s>", 1
        all_special_tokens = ("<s>", "<eos>")

        def __call__(self, text, add_special_tokens=True):
            ids = [1 if word == "<s>" else ord(word) for word in re.split("(<s>)|(?<=.)", text) if word]
            return {"input_ids": [1] * add_special_tokens + ids}

    stub = Stub(ids=False)
    search(stub, RepeatedSampling(1), ["<s>[user]x"], tokenizer=Beginning())
    assert {body["prompt"] for body in drawn(stub)} == {"[user]x"}


def test_a_chat_that_has_another_name_for_the_most_tokens_is_asked_by_it():
    stub = Stub(length_field="max_completion_tokens", strict=False)
    results, _ = search(stub, RepeatedSampling(3), endpoint="chat")
    assert all(result.answer is not None for result in results)
    assert ["max_tokens" in body for body in stub.requests] == [True] + [False] * (len(stub.requests) - 1)


def test_where_seeds_have_no_effect_any_samples_of_one_request_will_do():
    stub = Stub(fields=frozenset(), strict=False)
    search(stub, RepeatedSampling(3))
    assert [body["n"] for body in drawn(stub)] == [3, 3, 3]


def test_a_server_that_takes_ids_for_so_many_prompts_is_sent_text():
    def misread(answer):
        answer["usage"]["prompt_tokens"] = 1
        return answer

    stub = Stub(misbehave=lambda body, before: misread if isinstance(body["prompt"], list) else None)
    search(stub, RepeatedSampling(2), tokenizer=LetterTokenizer())
    assert all(isinstance(body["prompt"], str) for body in drawn(stub))


def test_further_fields_are_sent():
    stub = Stub(fields=frozenset({"seed", "top_k"}))
    search(stub, extra_body={"top_k": 3})
    assert {body["top_k"] for body in stub.requests} == {3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "give an address such as"),
        ({"endpoint": "responses"}, 'choose "completions" or "chat"'),
        ({"step_delimiter": ""}, "the text that ends a step"),
        ({"temperature": -1}, "cannot be negative"),
        ({"temperature": float("inf")}, "cannot be negative or infinite"),
        ({"top_p": 0}, "above 0"),
        ({"extra_body": {"top_k": 3, "temperature": 0.7, "max_tokens": 9}}, "extra_body holds max_tokens, temperature"),
        ({"max_step_tokens": 0}, "positive"),
        ({"max_concurrency": 0}, "at least one request"),
        ({"timeout": 0}, "more than 0"),
        ({"system_prompt": "Be brief."}, "need tokenizer"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OpenAIGenerator(**{"base_url": "http://localhost/v1", "model": "toy", **options})


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r'pip install "inferscale\[openai\]"'):
        OpenAIGenerator("http://localhost/v1", "toy")


def test_the_first_samples_of_a_generator_can_be_asked_for_by_many_threads():
    stub = Stub()
    results, generator = search(stub, prompts=[*PROMPTS, *PROMPTS])
    assert len(results) == 6
    assert generator.concurrent
    assert sum(body["max_tokens"] == 8 and body["temperature"] == 0 for body in stub.requests) == 1


def test_generating_nothing_asks_nothing():
    stub = Stub()
    with serving(stub) as address:
        assert OpenAIGenerator(address, "toy").generate([]) == []
    assert stub.requests == []


def test_one_problem_alone():
    with serving(Stub()) as address:
        assert solve("How many?", RepeatedSampling(2), OpenAIGenerator(address, "toy")).answer is not None


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=6),
    st.integers(0, 200),
    st.integers(1, 50),
)
def test_tokens_per_choice_choices_add_up(choices, total, asked):
    parts = tokens_per_choice([Choice("x" * size, "length" if cut else "stop") for size, cut in choices], total, asked)
    assert sum(parts) == total
    assert min(parts) >= 0


# -- stop strings, step delimiters and fields beyond the protocol ------------------------------------------------------

STOPS = ["e answer", "q", "x\n"]  # across tokens; a letter; one that ends with the delimiter


def stopped_texts(generator, until, stop=()):
    """Texts and reasons of paths with stop strings, by seed; those of requests end whole completions alone."""
    found = []
    for key in (0, 1, 5):
        if until == "step":
            node = chain(generator, key)
            found.append((node.text, node.step.finish_reason))
        else:
            asked = requests_of(Node(Problem("How many?"), key=key), until="end")
            (step,) = generator.generate([replace(request, stop=stop) for request in asked])[0]
            found.append((step.text, step.finish_reason))
    return found


@pytest.mark.parametrize("until", ["step", "end"])
@pytest.mark.parametrize("stops", ["told", "cut", "kept", "ignored"])
@pytest.mark.parametrize("tokenizer", [None, LetterTokenizer()], ids=["text", "ids"])
def test_stop_strings_end_answers_on_every_server(until, stops, tokenizer):
    with serving(Stub(stops="ignored" if stops == "ignored" else "told")) as address:
        whole = [text for text, _ in stopped_texts(OpenAIGenerator(address, "toy"), until)]
    expected = []
    for text in whole:
        ends = [(place + len(stop), place) for stop in STOPS if (place := text.find(stop)) >= 0]
        place = min(ends)[1] if ends else len(text)
        expected.append(text[:place])
    with serving(Stub(stops=stops)) as address:
        found = stopped_texts(OpenAIGenerator(address, "toy", stop=STOPS, tokenizer=tokenizer), until)
        if until == "end":
            other = OpenAIGenerator(address, "toy", stop=STOPS[0], tokenizer=tokenizer)
            assert stopped_texts(other, until, (*STOPS[1:],)) == found
    assert [text for text, _ in found] == expected
    assert {reason for _, reason in found} == {"eos"}


@pytest.mark.parametrize("tokenizer", [None, LetterTokenizer()], ids=["text", "ids"])
def test_steps_that_a_server_cannot_end_are_cut_and_paid_for(tokenizer):
    with serving(Stub()) as address:
        plain = chain(OpenAIGenerator(address, "toy", tokenizer=tokenizer), 5)
        for delimiter in (re.compile(r"\n"), lambda text: text.find("\n") + 1):
            other = OpenAIGenerator(address, "toy", tokenizer=tokenizer, step_delimiter=delimiter, max_step_tokens=40)
            (step,) = other.generate(requests_of(Node(Problem("How many?"), key=5)))[0]
            assert (step.text, step.finish_reason) == (plain.steps[0].text, "step")
            assert step.generated_tokens > len(step.text)


def test_fields_beyond_the_protocol_are_sent_where_they_have_an_effect():
    taken = Stub().fields | {"min_p", "repetition_penalty"}
    root_ = Node(Problem("How many?"), key=5)
    with serving(Stub(fields=taken)) as address:
        generator = OpenAIGenerator(address, "toy", min_p=0.2, repetition_penalty=1.5)
        sampled, greedy = generator.generate([GenerateRequest(root_), GenerateRequest(root_, greedy=True)])
        assert (sampled[0].logprob, greedy[0].logprob) == (None, None)
        plain = OpenAIGenerator(address, "toy").generate(requests_of(root_))[0][0]
        assert plain.logprob is not None
    stub = Stub(fields=taken)
    with serving(stub) as address:
        OpenAIGenerator(address, "toy", min_p=0.2, repetition_penalty=1.5).generate(
            [GenerateRequest(root_), GenerateRequest(root_, greedy=True)]
        )
    fields = {(body.get("min_p"), body["repetition_penalty"]) for body in drawn(stub)}
    assert fields == {(0.2, 1.5), (None, 1.5)}


@pytest.mark.parametrize("strict", [True, False], ids=["refused", "overlooked"])
@pytest.mark.parametrize("given", [{"min_p": 0.1}, {"repetition_penalty": 1.2}])
def test_fields_without_effect_are_an_error_before_anything_is_sampled(strict, given):
    stub = Stub(strict=strict)
    with serving(stub) as address:
        generator = OpenAIGenerator(address, "toy", **given)
        with pytest.raises(ValueError, match=f"{next(iter(given))} has no effect on this server"):
            generator.generate(requests_of(Node(Problem("How many?"), key=5)))
        assert drawn(stub) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"stop": [""]}, "stop="),
        ({"step_delimiter": 3}, "step_delimiter=3"),
        ({"extra_body": {"min_p": 0.1}}, "extra_body holds min_p"),
    ],
)
def test_controls_that_control_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        OpenAIGenerator("http://127.0.0.1:1/v1", "toy", **options)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_that_a_chat_reports_apart_stand_before_the_answer(name):
    def thinks(content):
        def told(answer):
            for choice in answer["choices"]:
                choice["message"] = {"role": "assistant", "content": content, name: "Is it 12?\nNo."}
                choice["finish_reason"] = "stop" if content else "length"
            return answer

        return told

    with serving(Stub(misbehave=lambda body, before: thinks("It is 15."))) as address:
        result = solve("How many?", RepeatedSampling(2), OpenAIGenerator(address, "toy", endpoint="chat"))
        harmony = Thinking("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
        other = solve(
            "How many?", RepeatedSampling(2), OpenAIGenerator(address, "toy", endpoint="chat"), thinking=harmony
        )
    assert result.text == "<think>Is it 12?\nNo.</think>It is 15."
    assert (result.answer, result.selected.split()) == ("15", ("Is it 12?\nNo.", "It is 15."))
    assert (other.answer, other.selected.split()) == ("15", ("Is it 12?\nNo.", "It is 15."))
    with serving(Stub(misbehave=lambda body, before: thinks(None))) as address:
        generator = OpenAIGenerator(address, "toy", endpoint="chat", max_new_tokens=60)
        node = chain(generator, 1)
    assert node.text.startswith("<think>Is it 12?\nIs it 12?\n")  # still thinking, step by step
    assert node.text.count("<think>") == 1
