"""`OpenAIGenerator` on a server that fails in every way: no lost problem, no wrong cost, clear errors."""

import json
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from inferscale import REBASE, Budget, OpenAIGenerator, RemoteError, RepeatedSampling, _http, solve, solve_batch
from inferscale._http import RetryPolicy, error_of_status, retry_after_seconds
from inferscale.flow import GenerateRequest
from inferscale.generators import openai_server
from inferscale.generators.openai_server import parse_reply
from inferscale.testing import PROMPTS, ToyReward, unit_hash
from inferscale.tree import Node, Problem
from inferscale.viz import render_tree
from tests.openai_stub import Hang, LetterTokenizer, Raw, Reset, Stub, serving
from tests.serve_tools import until

KEY = "sk-not-for-the-record"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(_http, "FIRST_PAUSE", 0.002)
    monkeypatch.setattr(openai_server, "FIRST_CONTACT", 0.5)


def results_of(stub, strategy=None, prompts=PROMPTS, journal=None, reward_model=None, **options):
    with serving(stub) as address:
        generator = OpenAIGenerator(address, "toy", **{"max_step_tokens": 40, **options})
        results = solve_batch(
            list(prompts), strategy or REBASE(4), generator, reward_model=reward_model or ToyReward(), journal=journal
        )
    return results, generator


def record(results):
    """Trees and costs, but for the seconds."""
    return [(render_tree(r.root, max_text=999), r.cost.tokens, r.cost.prompt_tokens, r.answer) for r in results]


EXPECTED = []


@pytest.fixture
def expected():
    """What a server that behaves leads to."""
    if not EXPECTED:
        EXPECTED.append(record(results_of(Stub())[0]))
    return EXPECTED[0]


def is_sample(body):
    return body["max_tokens"] > 16


def changed(change):
    """A misbehaviour that changes the answer."""

    def wrong(answer):
        change(answer)
        return answer

    return wrong


PASSING = {
    "429 with Retry-After": Raw(429, headers={"retry-after": "0.01"}),
    "503": Raw(503),
    "500": Raw(500, "<html>oops</html>", {"content-type": "text/html"}),
    "connection reset": Reset(),
    "reset in the middle": Reset(0.5),
    "half a JSON": lambda answer: json.dumps(answer)[:40],
    "not JSON": lambda answer: "[DONE]",
    "an error in a 200": lambda answer: {"error": {"message": "engine died"}},
    "no choices": changed(lambda answer: answer.update(choices=[])),
    "no usage": changed(lambda answer: answer.update(usage=None)),
    "a bad usage": changed(lambda answer: answer.update(usage={"prompt_tokens": -1, "completion_tokens": "many"})),
    "no text": changed(lambda answer: [choice.pop("text") for choice in answer["choices"]]),
    "given up": changed(lambda answer: [choice.update(finish_reason="abort") for choice in answer["choices"]]),
}


@pytest.mark.parametrize("name", PASSING)
def test_failures_that_pass_leave_no_trace(name, expected):
    def misbehave(body, before):
        spoiled = is_sample(body) and unit_hash(json.dumps(body, sort_keys=True)) < 0.7
        return PASSING[name] if spoiled and before < 2 else None

    results, generator = results_of(Stub(misbehave=misbehave))
    assert record(results) == expected
    assert generator.stats.retries > 3
    assert generator.stats.failed_samples == 0
    assert generator.stats.last_error is not None


def test_a_silent_server_is_asked_again(expected):
    def misbehave(body, before):
        return Hang() if is_sample(body) and before == 0 and body["seed"] % 3 == 0 else None

    results, generator = results_of(Stub(misbehave=misbehave), timeout=0.4)
    assert record(results) == expected
    assert generator.stats.retries >= 1
    assert "silent for 0.4 s" in generator.stats.last_error


def test_fewer_choices_than_asked_for_are_made_up_for(expected):
    def misbehave(body, before):
        if body.get("n", 1) < 3 or not is_sample(body):
            return None

        def fewer(answer):
            answer["choices"] = sorted(answer["choices"], key=lambda choice: choice["index"])[:2]
            answer["usage"]["completion_tokens"] = sum(len(c["logprobs"]["tokens"]) for c in answer["choices"])

        return changed(fewer)

    results, _ = results_of(Stub(misbehave=misbehave))
    assert record(results) == expected


@pytest.mark.parametrize("tokenizer", [None, LetterTokenizer()], ids=["text", "ids"])
def test_more_choices_than_asked_for_are_left_and_paid_for(tokenizer, expected):
    def misbehave(body, before):
        def more(answer):
            answer["choices"].append({**answer["choices"][-1], "index": 99, "text": "beyond", "token_ids": [65] * 5})
            answer["usage"]["completion_tokens"] += 5

        return changed(more) if is_sample(body) else None

    stub = Stub(misbehave=misbehave)
    results, _ = results_of(stub, tokenizer=tokenizer)
    assert [tree for tree, *_ in record(results)] == [tree for tree, *_ in expected]
    extra = 5 * sum(map(is_sample, stub.requests))
    assert sum(r.cost.tokens for r in results) == sum(tokens for _, tokens, *_ in expected) + extra


def test_what_fails_for_good_is_a_failed_leaf_and_the_search_goes_on():
    def misbehave(body, before):
        return Raw(400, '{"error": {"message": "bad luck"}}') if is_sample(body) and body["seed"] % 3 == 0 else None

    results, generator = results_of(Stub(n="ignored", misbehave=misbehave), RepeatedSampling(9))
    failed = [node for result in results for node in result.root.children if node.is_failed]
    assert 0 < generator.stats.failed_samples == len(failed) < 27
    assert {node.step.text for node in failed} == {"status 400: bad luck"}
    for result in results:
        assert result.answer is not None
        assert result.cost.num_generated == 9
        assert result.cost.prompt_tokens == len(result.problem.prompt)


@pytest.mark.parametrize("wrong", [Raw(400), Raw(500), Raw(503), Reset()], ids=["400", "500", "503", "reset"])
def test_one_problem_that_always_fails_does_not_harm_the_others(wrong, expected):
    def misbehave(body, before):
        return wrong if is_sample(body) and body["prompt"].startswith("Bad") else None

    results, _ = results_of(Stub(misbehave=misbehave), prompts=[*PROMPTS, "Bad?"], deadline=0.5)
    assert record(results[:-1]) == expected
    assert results[-1].answer is None
    assert all(leaf.step.finish_reason == "error" for leaf in results[-1].leaves)


@pytest.mark.parametrize("wrong", [Raw(503), Raw(500), Reset(), Raw(401)], ids=["503", "500", "reset", "401"])
def test_a_server_that_dies_is_a_clear_error_and_the_search_goes_on_later(wrong, expected, tmp_path):
    stub, dead = Stub(), []
    stub.misbehave = lambda body, before: wrong if dead else None

    class Dying(ToyReward):
        def identity(self):
            return ToyReward().identity()

        def score(self, nodes):
            dead.append(True)
            return super().score(nodes)

    with pytest.raises(RemoteError) as caught:
        results_of(stub, deadline=0.3, journal=tmp_path / "journal.jsonl", reward_model=Dying())
    assert len(caught.value.partial) == 3
    assert any(result.root.children for result in caught.value.partial)
    resumed = Stub()
    results, _ = results_of(resumed, journal=tmp_path / "journal.jsonl")
    assert record(results) == expected
    assert "error" not in (tmp_path / "journal.jsonl").read_text()


def test_a_request_that_the_server_never_takes_is_a_clear_error():
    stub = Stub(
        misbehave=lambda body, before: Raw(400, '{"error": {"message": "no stop"}}') if "stop" in body else None
    )
    with pytest.raises(RemoteError, match=r"all 12 samples of OpenAIGenerator\('http.*failed: status 400: no stop"):
        results_of(stub)


def test_an_address_without_a_server_is_a_clear_error_soon():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(RemoteError, match="no connection to the server"):
        OpenAIGenerator(f"http://127.0.0.1:{port}/v1", "toy").generate([GenerateRequest(Node(Problem("x")))])
    assert time.monotonic() - started < 100


def test_a_wrong_page_is_a_clear_error_at_once():
    stub = Stub()
    with serving(stub) as address:
        generator = OpenAIGenerator(address + "/v2", "toy")
        with pytest.raises(RemoteError, match=r"404: no such page \(check base_url and the model's name\)"):
            generator.generate([GenerateRequest(Node(Problem("x")))])
    assert len(stub.requests) == 1


def test_the_deadline_holds():
    stub = Stub(misbehave=lambda body, before: Raw(429, headers={"retry-after": "3600"}) if is_sample(body) else None)
    started = time.monotonic()
    with pytest.raises(RemoteError, match="status 429"):
        results_of(stub, deadline=5)
    assert time.monotonic() - started < 100  # not the hour that the server asks for


@pytest.mark.parametrize("end", ["seconds", "cancel"])
def test_requests_that_nobody_waits_for_are_called_off(end):
    def hang(body, before):
        return Hang() if is_sample(body) and body["prompt"] == "How many?" else None

    cancel = threading.Event()
    stub = Stub(n="ignored", misbehave=hang)
    with serving(stub) as address:
        generator = OpenAIGenerator(address, "toy", max_step_tokens=40, max_concurrency=3)
        generator.generate([GenerateRequest(Node(Problem("How are you")), 2)])  # what the server can do is found out
        asked = len(stub.requests)
        options = {"budget": Budget(seconds=0.4)} if end == "seconds" else {"cancel": cancel}
        waits = threading.Thread(target=lambda: (until(lambda: stub.busy == 3), cancel.set()))
        if end == "cancel":
            waits.start()
        (result,) = solve_batch(["How many?"], RepeatedSampling(5), generator, **options)
        until(lambda: stub.busy == 0)
        assert len(stub.requests) == asked + stub.hung_up  # the other two were not sent
        assert stub.hung_up == 3 or end == "seconds"
    assert (result.stopped_by, result.cost.num_generated, result.cost.tokens) == (end, 0, 0)


def test_samples_that_came_are_kept_when_the_others_are_called_off():
    def hang_now_and_then(body, before):
        return Hang() if is_sample(body) and body["prompt"] == "How many?" and body["seed"] % 2 else None

    stub = Stub(n="ignored", misbehave=hang_now_and_then)
    with serving(stub) as address:
        generator = OpenAIGenerator(address, "toy", max_step_tokens=40)
        generator.generate([GenerateRequest(Node(Problem("x")), 2, greedy=True)])
        cancel = threading.Event()

        def on_time():
            until(lambda: generator.stats.samples == 5 and stub.busy == 3)
            cancel.set()

        threading.Thread(target=on_time).start()
        result = solve("How many?", RepeatedSampling(6), generator, cancel=cancel)
    assert result.stopped_by == "cancel"
    came = [node.step for node in result.root.children]
    assert len(came) == 3
    assert result.cost.tokens == sum(step.num_tokens for step in came) > 0
    assert sum(step.prompt_tokens > 0 for step in came) == 1


def test_a_broken_answer_is_asked_for_a_few_times_only():
    stub = Stub(misbehave=lambda body, before: Raw(500) if is_sample(body) else None)
    with pytest.raises(RemoteError, match="after 4 attempts"):
        results_of(stub, RepeatedSampling(1), prompts=PROMPTS[:1])
    assert sum(map(is_sample, stub.requests)) == 4


def test_without_usage_and_tokenizer_nothing_can_be_counted():
    with pytest.raises(RemoteError, match=r"does not say how many tokens it used: pass tokenizer="):
        results_of(Stub(usage=False))


def test_a_server_that_is_busy_when_it_is_tried_is_tried_again():
    busy = [True]
    stub = Stub(misbehave=lambda body, before: Raw(503) if busy and "seed" in body else None)
    node = Node(Problem("How many?"), key=5)
    with serving(stub) as address:
        generator = OpenAIGenerator(address, "toy", deadline=0.5)
        with pytest.raises(RemoteError, match="all 1 samples"):
            generator.generate([GenerateRequest(node)])
        busy.clear()
        generator.generate([GenerateRequest(node)])
    assert [body["seed"] for body in stub.requests if is_sample(body)] == [5]


def test_a_filtered_sample_fails():
    def misbehave(body, before):
        def filtered(answer):
            answer["choices"][0]["finish_reason"] = "content_filter"

        return changed(filtered) if is_sample(body) else None

    (result,), _ = results_of(Stub(misbehave=misbehave), RepeatedSampling(3), PROMPTS[:1])
    reasons = sorted(node.step.finish_reason for node in result.root.children)
    assert reasons == ["eos", "eos", "error"]
    assert "content filter" in next(node.step.text for node in result.root.children if node.is_failed)


def test_keys_are_sent_and_never_shown(tmp_path, monkeypatch):
    stub = Stub(key=KEY)
    results, generator = results_of(stub, api_key=KEY, journal=tmp_path / "journal.jsonl")
    assert results[0].answer is not None
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    _, by_environment = results_of(stub)
    wrong = Stub(key="another")
    with pytest.raises(RemoteError, match=r"Incorrect API key provided: Bearer \*\*\* \(check api_key") as caught:
        results_of(wrong)
    assert len(wrong.requests) == 1
    shown = [
        *map(repr, (generator, by_environment, generator.stats, caught.value, caught.value.__cause__)),
        (tmp_path / "journal.jsonl").read_text(),
        repr(OpenAIGenerator(f"http://me:{KEY}@localhost/v1?key={KEY}", "toy")),
    ]
    assert KEY not in "".join(shown)
    assert caught.value.__suppress_context__


def test_a_tokenizer_of_another_model_is_a_clear_error():
    class Shifted(LetterTokenizer):
        def decode(self, ids, **options):
            return "".join(chr(i + 1) for i in ids)

    with (
        pytest.warns(UserWarning, match="cannot write step_delimiter"),
        pytest.raises(ValueError, match=r"reads '\w+.*' where the server wrote '\w+': pass the model's own"),
    ):
        results_of(Stub(), tokenizer=Shifted())


@pytest.mark.parametrize(
    ("status", "message", "code", "kind"),
    [
        (429, "slow down", "rate_limit_exceeded", "busy"),
        (429, "pay", "insufficient_quota", "denied"),
        (400, "maximum context length is 8192 tokens", None, "too long"),
        (400, "too much", "context_length_exceeded", "too long"),
        (400, "temperature must be positive", None, "refused"),
        (413, "large", None, "too long"),
        (501, "never", None, "refused"),
        (500, "oops", None, "broken"),
        (504, "late", None, "busy"),
        (408, "late", None, "busy"),
        (403, "no", None, "denied"),
    ],
)
def test_what_a_status_means(status, message, code, kind):
    error = error_of_status(status, message, {}, code)
    assert error.kind == kind
    assert f"status {status}: {message}" in str(error)


class Pauses(threading.Event):
    """Never waits, and keeps how long it should have."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def wait(self, timeout=None):
        self.seconds.append(timeout)
        return self.is_set()


def failing(*errors):
    """Raises these errors one after the other, then answers with the seconds that its last attempt was given."""
    left = list(errors)

    def send(seconds):
        if left:
            raise left.pop(0)
        return seconds

    return send


def test_pauses_double_and_the_server_may_ask_for_longer_ones():
    busy, asked = RemoteError("later", "busy"), RemoteError("later", "busy", retry_after=7.0)
    pauses, seen = Pauses(), []
    send = failing(*[busy] * 20, asked)
    assert RetryPolicy(timeout=3.0).run(send, pauses, seen.append) == 3.0
    assert seen == [*[busy] * 20, asked]
    for attempt, pause in enumerate(pauses.seconds[:-1]):
        longest = min(_http.FIRST_PAUSE * 2**attempt, _http.LONGEST_PAUSE)
        assert longest / 2 <= pause <= longest
    assert pauses.seconds[-1] >= 7.0


@pytest.mark.parametrize(
    ("kind", "retry_after", "attempts"),
    [("broken", None, 4), ("refused", None, 1), ("denied", None, 1), ("too long", None, 1), ("busy", 11.0, 1)],
)
def test_when_a_request_is_given_up(kind, retry_after, attempts):
    pauses = Pauses()
    with pytest.raises(RemoteError, match="no") as caught:
        RetryPolicy(deadline=10.0).run(failing(*[RemoteError("no", kind, retry_after)] * 9), pauses)
    assert len(pauses.seconds) == attempts - 1
    assert (caught.value.kind, caught.value.retry_after) == (kind, retry_after)
    assert str(caught.value) == ("no" if attempts == 1 else f"no (after {attempts} attempts)")


def test_a_request_that_nobody_waits_for_is_not_made_again():
    pauses = Pauses()
    pauses.set()
    with pytest.raises(RemoteError, match="later"):
        RetryPolicy().run(failing(RemoteError("later", "busy")), pauses)
    assert pauses.seconds == []


def test_retry_after_is_a_number_or_a_date():
    assert retry_after_seconds("1.5") == 1.5
    assert retry_after_seconds("-3") == 0
    assert retry_after_seconds(format_datetime(datetime.now(UTC) + timedelta(seconds=60))) == pytest.approx(60, abs=5)
    assert retry_after_seconds(format_datetime(datetime.now(UTC) - timedelta(seconds=60))) == 0
    for nonsense in (None, "soon", "nan", "inf"):
        assert retry_after_seconds(nonsense) is None


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "null", '"much"', "1" * 400])
def test_logprobs_that_are_no_numbers_are_none(number):
    body = '{"choices": [{"text": "a", "logprobs": {"token_logprobs": [-1.0, %s]}}]}'
    assert parse_reply(body % number).choices[0].logprobs is None
    assert parse_reply(body % "-2").choices[0].logprobs == (-1.0, -2.0)


def test_a_thousand_brackets_are_a_broken_answer():
    with pytest.raises(RemoteError, match="not JSON") as caught:
        parse_reply("[" * 100_000)
    assert caught.value.kind == "broken"
