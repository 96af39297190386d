"""What a served search answers."""

import base64
import hashlib
import re
from dataclasses import replace
from itertools import pairwise
from threading import Thread

import pytest

import inferscale as isc
from inferscale.answers import Before, Number
from inferscale.engine import Solver
from inferscale.evaluate.parts import make_strategy, make_vote
from inferscale.serve import Limits, Service
from inferscale.serve.dispatcher import Job
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyReward
from tests.serve_tools import ask, call, events, serving
from tests.tiny_models import byte_tokenizer, tiny_model

PROMPT = "How many?"


@pytest.fixture(scope="module")
def server():
    limits = Limits(progress_seconds=0.01, max_prompts=4, max_size=64, budget=isc.Budget(tokens=300))
    presets = {"mine": isc.RepeatedSampling(3)}
    service = Service(ToyGenerator(), ToyReward(), "toy", "rebase", 4, limits=limits, presets=presets)
    with serving(service) as running:
        yield running


def alone(prompt=PROMPT, strategy="rebase:4", vote="majority", seed=0, budget=300, scored=True):
    """What the engine finds by itself."""
    reward = ToyReward() if scored else None
    return isc.solve(
        prompt, make_strategy(strategy), ToyGenerator(), reward_model=reward, aggregator=make_vote(vote),
        budget=isc.Budget(tokens=budget), seed=seed,
    )  # fmt: skip


def measured(cost):
    """A bill without its times."""
    return isc.Cost.from_dict(cost).without_seconds()


def test_text_and_chat_answer_what_the_engine_finds(server):
    result = alone()
    text = ask(server)
    status, _, chat = call(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]})
    assert status == 200
    assert text["object"] == "text_completion"
    assert chat["object"] == "chat.completion"
    assert text["choices"][0]["text"] == result.text
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": result.text}
    for answer in (text, chat):
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["inferscale"]["answer"] == result.answer
        assert choice["inferscale"]["score"] == result.selected.score
        assert choice["inferscale"]["num_trajectories"] == len(result.trajectories)
        assert measured(answer["inferscale"]["cost"]) == result.cost.without_seconds()
        assert answer["inferscale"]["cost"]["flops"] == result.cost.flops


@pytest.mark.parametrize("strategy", ["greedy", "sampling:2", "beam:2"])
def test_a_stop_text_ends_the_sampling_too(strategy):
    def model(**options):
        return isc.HFGenerator(tiny_model(), byte_tokenizer(), max_new_tokens=24, max_step_tokens=6, **options)

    with serving(Service(model(), ToyReward(), "tiny", strategy, limits=Limits(budget=isc.Budget()))) as running:
        whole = ask(running)
        word = whole["choices"][0]["text"][5:7]
        cut = ask(running, stop=[word])
        short = ask(running, stop=word, max_tokens=4)
    judge = ToyReward() if strategy == "beam:2" else None  # nobody else reads scores
    own = isc.solve(PROMPT, make_strategy(strategy), model(stop=word), reward_model=judge, read_answer=Before((word,)))
    assert cut["choices"][0]["text"] == own.text != whole["choices"][0]["text"]
    assert cut["choices"][0]["finish_reason"] == ("stop" if own.selected.steps[-1].finish_reason == "eos" else "length")
    assert cut["usage"]["completion_tokens"] == own.cost.tokens
    if strategy == "greedy":
        assert own.cost.tokens < whole["usage"]["completion_tokens"]
        assert short["usage"]["completion_tokens"] == 4


def test_usage_is_all_that_was_spent(server):
    result = alone()
    usage = ask(server)["usage"]
    shown = sum(step.generated_tokens for step in result.selected.steps)
    assert usage["prompt_tokens"] == result.cost.prompt_tokens
    assert usage["completion_tokens"] == result.cost.tokens > shown
    assert usage["total_tokens"] == result.cost.prompt_tokens + result.cost.tokens
    assert usage["completion_tokens_details"] == {"reasoning_tokens": result.cost.tokens - shown}


def test_the_best_of_n_letters_is_the_one_with_the_greatest_reward():
    texts = ("thx 4 ur letter", "Dear Ann, thank you so much for your letter.")

    def letter(step, node):
        return replace(step, text=texts[step.token_ids[-1] % 2], finish_reason="eos", inner_ends=())

    judge = isc.RewardFunction(lambda nodes: [float(len(node.text)) for node in nodes])
    with serving(Service(BrokenGenerator(letter), judge, "toy", "sampling", 8, vote="best-of-n")) as running:
        choice = ask(running)["choices"][0]
        assert (choice["text"], choice["inferscale"]["score"]) == (texts[1], 44.0)
        assert ask(running, inferscale={"vote": "medoid"})["choices"][0]["text"] in texts


@pytest.mark.parametrize("thinking", [None, False])
def test_thoughts_come_apart_from_the_answer_of_a_chat(thinking):
    text = "<think>12?\nQ: no</think>\n\nThe answer is 15.\nQ: and 16?"

    def thinks(step, node):
        return replace(step, text=text, finish_reason="eos", inner_ends=())

    with serving(Service(BrokenGenerator(thinks), None, "toy", "sampling", 2, thinking=thinking)) as running:
        status, _, told = call(
            running, "/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}], "stop": ["\nQ"]}
        )
        assert status == 200
        [choice] = told["choices"]
        [completion] = ask(running, stop=["\nQ"])["choices"]
    message = {"role": "assistant", "content": "The answer is 15.", "reasoning_content": "12?\nQ: no"}
    whole = "<think>12?\nQ: no</think>\n\nThe answer is 15."
    if thinking is False:
        message, whole = {"role": "assistant", "content": "<think>12?"}, "<think>12?"
    assert choice["message"] == message
    assert (choice["inferscale"]["answer"], choice["finish_reason"]) == ("15" if thinking is None else "12", "stop")
    assert completion["text"] == whole


def test_a_request_says_what_kind_its_answer_is(server):
    def letter(step, node):
        return replace(step, text="The answer is B, since 7 < 9.", finish_reason="eos", inner_ends=())

    with serving(Service(BrokenGenerator(letter), None, "toy", "sampling", 2, read_answer=Number())) as running:
        for fields, answer in (({}, "9"), ({"inferscale": {"answer_kind": "choice:ABCD"}}, "B")):
            told = ask(running, **fields)["choices"][0]["inferscale"]
            assert (told["answer"], told["abstentions"]["unread"]) == (answer, 0)
    status, _, told = call(server, "/v1/completions", {"prompt": PROMPT, "inferscale": {"answer_kind": "letter"}})
    assert status == 400
    assert told["error"]["param"] == "inferscale.answer_kind"
    assert "choose one of any, number, choice" in told["error"]["message"]


ASKED = [
    ({"strategy": "sampling", "width": 5}, {"strategy": "sampling:5", "scored": False}),
    ({"strategy": "sampling", "n": 5}, {"strategy": "sampling:5", "scored": False}),
    ({"strategy": "sampling:5", "vote": "best-of-n"}, {"strategy": "sampling:5", "vote": "best-of-n"}),
    ({"width": 6, "aggregator": "weighted"}, {"strategy": "rebase:6", "vote": "weighted"}),
    ({"strategy": "MCTS(num_simulations=8)", "seed": 7}, {"strategy": "MCTS(num_simulations=8)", "seed": 7}),
    ({"strategy": "mine"}, {"strategy": "RepeatedSampling(3)", "scored": False}),
    ({"budget": {"tokens": 30}}, {"budget": 30}),
    ({"budget": {"tokens": 10**9}, "strategy": "sampling:60"}, {"strategy": "sampling:60", "scored": False}),
]


@pytest.mark.parametrize(("ours", "theirs"), ASKED, ids=lambda value: str(value))
def test_a_request_names_its_own_search(server, ours, theirs):
    result, answer = alone(**theirs), ask(server, inferscale=ours)
    (choice,) = answer["choices"]
    assert choice["text"] == result.text
    assert choice["inferscale"]["answer"] == result.answer
    assert choice["inferscale"]["stopped_by"] == result.stopped_by
    assert measured(answer["inferscale"]["cost"]) == result.cost.without_seconds()
    assert answer["inferscale"]["seed"] == theirs.get("seed", 0)
    assert answer["inferscale"]["budget"]["tokens"] == theirs.get("budget", 300)


def test_searches_at_the_same_time_answer_as_if_they_were_alone(server):
    found = {}

    def run(index, ours):
        found[index] = ask(server, f"How many are {index}?", seed=index, inferscale=ours)

    kinds = [{"strategy": "rebase:4"}, {"strategy": "sampling:3"}, {"strategy": "beam:4"}, {"strategy": "greedy"}]
    threads = [Thread(target=run, args=(index, kinds[index % 4])) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(24):
        strategy = kinds[index % 4]["strategy"]
        result = alone(f"How many are {index}?", strategy, seed=index, scored=strategy in ("rebase:4", "beam:4"))
        assert found[index]["choices"][0]["text"] == result.text
        assert measured(found[index]["inferscale"]["cost"]) == result.cost.without_seconds()


def test_a_list_of_prompts_is_answered_in_order(server):
    prompts = [PROMPT, "How many more?", PROMPT]
    results = isc.solve_batch(
        prompts, isc.REBASE(4), ToyGenerator(), reward_model=ToyReward(), budget=isc.Budget(tokens=300)
    )
    answer = ask(server, prompts)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["text"] for choice in answer["choices"]] == [result.text for result in results]
    assert answer["usage"]["completion_tokens"] == sum(result.cost.tokens for result in results)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_tells_progress_then_the_whole_answer_then_the_bill(server, path):
    fields = {"messages": [{"role": "user", "content": PROMPT}]} if "chat" in path else {"prompt": PROMPT}
    _, _, whole = call(server, path, fields)
    status, headers, content = call(server, path, {**fields, "stream": True, "stream_options": {"include_usage": True}})
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    first, *middle, bill = events(content)
    assert first["choices"][0]["inferscale"]["progress"]["state"] in ("waiting", "searching")
    assert {event["id"] for event in [first, *middle, bill]} == {first["id"]}
    assert bill["choices"] == []
    assert bill["usage"] == whole["usage"]
    assert bill["inferscale"]["strategy"] == whole["inferscale"]["strategy"]
    choices = [event["choices"][0] for event in [first, *middle]]
    texts = [choice["delta"].get("content", "") if "chat" in path else choice["text"] for choice in choices]
    expected = whole["choices"][0]
    assert "".join(texts) == (expected["message"]["content"] if "chat" in path else expected["text"])
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "stop"]
    assert choices[-1]["inferscale"]["answer"] == expected["inferscale"]["answer"]


def test_a_stream_of_several_prompts(server):
    prompts = [PROMPT, "How many more?", "How many are left, and why?"]
    whole = ask(server, prompts)
    _, _, content = call(server, "/v1/completions", {"prompt": prompts, "stream": True})
    texts = {0: "", 1: "", 2: ""}
    for event in events(content):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert list(texts.values()) == [choice["text"] for choice in whole["choices"]]


def test_answers_end_at_a_stop_text_and_are_read_before_it(server):
    whole = ask(server)["choices"][0]
    cut = ask(server, stop=["\n", "never"])["choices"][0]
    assert cut["text"] == whole["text"].partition("\n")[0] != whole["text"]
    assert cut["finish_reason"] == "stop"
    assert whole["inferscale"]["answer"] is not None
    assert cut["inferscale"]["answer"] is None


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("strategy", ["sampling:4", "rebase:4", "beam:4"])
def test_no_path_is_longer_than_it_may(server, name, strategy):
    ours = {"strategy": strategy, "trajectories": True}
    answer = ask(server, **{name: 7}, inferscale=ours)
    free = ask(server, inferscale=ours)
    lengths = [len(t["text"].split()) for t in answer["choices"][0]["inferscale"]["trajectories"]]
    assert max(lengths) <= 8 < max(len(t["text"].split()) for t in free["choices"][0]["inferscale"]["trajectories"])
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["inferscale"]["strategy"] == free["inferscale"]["strategy"]


def test_trajectories_are_reported_when_they_are_asked_for(server):
    result = alone()
    told = ask(server, inferscale={"trajectories": True})["choices"][0]["inferscale"]["trajectories"]
    assert [t["text"] for t in told] == [t.text for t in result.trajectories]
    assert [t["score"] for t in told] == [t.score for t in result.trajectories]
    assert "trajectories" not in ask(server)["choices"][0]["inferscale"]


def test_what_means_nothing_here_is_named(server):
    answer = ask(server, temperature=0, top_p=0.9, user="me", presence_penalty=None, n=1, echo=False)
    assert answer["inferscale"]["ignored"] == ["temperature", "top_p", "user"]


def test_what_changes_nothing_may_be_said(server):
    answer = ask(server, frequency_penalty=0, presence_penalty=0.0, repetition_penalty=1.0, tool_choice="none", min_p=0)
    assert answer["choices"][0]["text"] == ask(server)["choices"][0]["text"]
    assert "tool_choice" not in answer["inferscale"]["ignored"]


CONVERSATIONS = {
    "system": (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}],
        "Be brief.\n\nHow many?",
    ),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]}],
              "How many?"),
    "turns": (
        [{"role": "developer", "content": "Count."}, {"role": "user", "content": "One?"},
         {"role": "assistant", "content": "1"}, {"role": "user", "content": "And two?"}],
        "Count.\n\nUser: One?\n\nAssistant: 1\n\nUser: And two?\n\nAssistant:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_becomes_one_prompt(server, name):
    messages, prompt = CONVERSATIONS[name]
    status, _, answer = call(server, "/v1/chat/completions", {"messages": messages})
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == alone(prompt).text


class Chatty(ToyGenerator):
    """Reads turns as a chat template would render them."""

    takes_messages = True

    def generate(self, requests):
        seen.extend(request.node.problem for request in requests)
        return super().generate(requests)


seen = []


def test_a_model_that_takes_messages_is_given_the_turns():
    turns = [{"role": "system", "content": "Count."}, {"role": "user", "content": "One?"}]
    begun = [*turns, {"role": "assistant", "content": "It is"}]
    with serving(Service(Chatty(), strategy="sampling:2", prompt_end="\n")) as running:
        path, say = "/v1/chat/completions", {"messages": begun, "continue_final_message": True}
        for body in ({"messages": turns}, say, {"messages": turns[1:]}):
            assert call(running, path, body)[0] == 200
        status, _, answer = call(running, path, {"messages": begun})
    assert (status, answer["error"]["param"]) == (400, "messages")
    assert "the last message is the assistant's" in answer["error"]["message"]
    assert list(dict.fromkeys(seen)) == [
        isc.Problem(messages=turns),
        isc.Problem(messages=begun),
        isc.Problem("One?\n"),
    ]


def test_prompts_are_ended_as_the_service_says():
    with serving(Service(ToyGenerator(), strategy="sampling:2", prompt_end="\n")) as running:
        bare, ended = (ask(running, prompt)["choices"][0]["text"] for prompt in ("How many?", "How many?\n"))
    assert bare == ended == alone("How many?\n", "sampling:2", scored=False).text


def test_the_models_card(server):
    _, _, listed = call(server, "/v1/models")
    _, _, card = call(server, "/v1/models/toy")
    assert listed == {"object": "list", "data": [card]}
    assert card["id"] == "toy"
    assert card["object"] == "model"
    assert call(server, "/v1/models/other")[0] == 404


def test_metrics_count_what_was_spent():
    with serving(Service(ToyGenerator(), ToyReward(), "toy", "rebase", 4)) as running:
        answers = [ask(running, f"How many are {index}?") for index in range(3)]
        call(running, "/v1/completions", {"prompt": ""})
        lines = call(running, "/metrics")[2].decode().splitlines()
    counts = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
    costs = [answer["inferscale"]["cost"] for answer in answers]
    for kind in ("prompt", "generated", "scored"):
        assert counts[f'inferscale_tokens_total{{kind="{kind}"}}'] == sum(cost[f"{kind}_tokens"] for cost in costs)
    for part in ("generator", "reward"):
        assert counts[f'inferscale_flops_total{{part="{part}"}}'] == sum(cost[f"{part}_flops"] for cost in costs)
    assert counts['inferscale_requests_total{path="/v1/completions",status="200"}'] == 3
    assert counts['inferscale_requests_total{path="/v1/completions",status="400"}'] == 1
    assert counts['inferscale_request_seconds_count{path="/v1/completions"}'] == 4
    assert counts['inferscale_searches_total{outcome="finished"}'] == 3
    assert counts["inferscale_searches_active"] == counts["inferscale_searches_waiting"] == 0
    bounds = [value for name, value in counts.items() if name.startswith("inferscale_request_seconds_bucket")]
    assert all(low <= high for low, high in pairwise(bounds))
    assert bounds[-1] == 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails_is_told_as_such(stream):
    broken = BrokenGenerator(lambda step, node: replace(step, text="no such host", finish_reason="error"))
    with serving(Service(broken, strategy="sampling:2")) as running:
        status, _, answer = call(running, "/v1/completions", {"prompt": PROMPT, "stream": stream})
    if stream:
        assert status == 200
        assert b'"code":"model_failed"' in answer
        assert b"[DONE]" not in answer
    else:
        assert status == 502
        assert answer["error"]["message"] == "the model failed: no such host"


def test_the_page_needs_nothing_from_outside_and_runs_one_script():
    for key in (None, "secret"):
        with serving(Service(ToyGenerator(), name="a <b>", strategy="sampling:2", api_key=key)) as running:
            status, headers, page = call(running, "/")
        text = page.decode()
        assert status == 200
        assert headers["content-type"].startswith("text/html")
        assert not re.search(r"(src|href|url)\s*[=(]|@import|https?://", text)
        assert "<title>a &lt;b&gt;</title>" in text
        assert ('id="key"' in text) == (key is not None)
        [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]


def test_a_tree_is_shown_while_it_grows_and_at_the_end():
    limits = Limits(progress_seconds=0.01)
    with serving(Service(ToyGenerator(), ToyReward(), strategy="rebase:4", limits=limits)) as running:
        body = {"prompt": PROMPT, "stream": True, "inferscale": {"tree": True}}
        told = events(call(running, "/v1/completions", body)[2])
        whole = ask(running, PROMPT, inferscale={"tree": True})
        plain = ask(running, PROMPT)
    result = isc.solve(PROMPT, isc.REBASE(4), ToyGenerator(), reward_model=ToyReward())
    tree = told[-1]["choices"][0]["inferscale"]["tree"]
    assert "<svg" in tree
    assert "<script" not in tree
    assert re.findall("Search tree: [^<]*", tree) == re.findall("Search tree: [^<]*", result.to_html())
    assert "Search tree" in whole["choices"][0]["inferscale"]["tree"]
    assert "tree" not in plain["choices"][0]["inferscale"]


def test_a_growing_tree_is_drawn_in_steps():
    job = Job(isc.Problem(PROMPT), Solver(isc.REBASE(4), ToyGenerator(), ToyReward()), draws=True)
    isc.solve(PROMPT, isc.REBASE(4), ToyGenerator(), reward_model=ToyReward(), on_step=job.draw)
    first = job.progress()
    assert "nodes until now" in first["tree"]
    assert "tree" not in job.progress(), "each picture is sent once"
