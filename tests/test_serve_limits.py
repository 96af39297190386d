"""What a served search refuses."""

import http.client
import json
import sys

import pytest

import inferscale as isc
from inferscale.serve import Limits, Service, make_app, run_server
from inferscale.testing import ToyGenerator, ToyReward
from tests.serve_tools import JSON, call, events, serving

KEY = "not-a-secret"


@pytest.fixture(scope="module")
def server():
    limits = Limits(max_prompts=2, max_size=64, max_body_bytes=1000)
    with serving(Service(ToyGenerator(), name="toy", strategy="sampling:2", limits=limits)) as running:
        yield running


@pytest.fixture(scope="module")
def guarded():
    with serving(Service(ToyGenerator(), strategy="sampling:2", api_key=KEY)) as running:
        yield running


def ours(**fields):
    return {"prompt": "How many?", "inferscale": fields}


def chat(*messages, **fields):
    return {"messages": list(messages), **fields}


BAD = {
    "not an object": ([1], "not a JSON object", None),
    "another model": ({"prompt": "x", "model": "gpt"}, "there is no model 'gpt' here: 'toy' is served", "model"),
    "no prompt": ({}, "give a text or a list of texts", "prompt"),
    "empty prompt": ({"prompt": ""}, "there is nothing to answer", "prompt"),
    "no prompts": ({"prompt": []}, "0 prompts: give 1 to 2", "prompt"),
    "many prompts": ({"prompt": ["a", "b", "c"]}, "3 prompts: give 1 to 2", "prompt"),
    "token ids": ({"prompt": [[1, 2, 3]]}, "tokenized_requests=False", "prompt"),
    "half a character": ({"prompt": "\ud800"}, "lone surrogate", "prompt"),
    "likelihoods": ({"prompt": "x", "logprobs": 1, "echo": True, "max_tokens": 1}, "logprobs: not served", "logprobs"),
    "echo": ({"prompt": "x", "echo": True}, "echo: not served: an answer does not repeat its prompt", "echo"),
    "tools": ({"prompt": "x", "tools": [{}]}, "tools: not served", "tools"),
    "choice of tools": ({"prompt": "x", "tool_choice": "required"}, "tool_choice: not served", "tool_choice"),
    "frequency": ({"prompt": "x", "frequency_penalty": 0.5}, "the server's own sampler", "frequency_penalty"),
    "presence": ({"prompt": "x", "presence_penalty": -1}, "the server's own sampler", "presence_penalty"),
    "repetition": ({"prompt": "x", "repetition_penalty": 1.2}, "the server's own sampler", "repetition_penalty"),
    "speech": ({"prompt": "x", "modalities": ["text", "audio"]}, "an answer is text", "modalities"),
    "grammar": ({"prompt": "x", "guided_regex": "[0-9]+"}, "only text is served", "guided_regex"),
    "effort": ({"prompt": "x", "reasoning_effort": "low"}, "the server's own", "reasoning_effort"),
    "several answers": ({"prompt": "x", "n": 3}, 'set its samples by "inferscale": {"width"', "n"),
    "best of": ({"prompt": "x", "best_of": 3}, "a search reports one answer", "best_of"),
    "JSON": ({"prompt": "x", "response_format": {"type": "json_object"}}, "only text", "response_format"),
    "bad stop": ({"prompt": "x", "stop": [1]}, "stop: give a text or a list of texts", "stop"),
    "bad length": ({"prompt": "x", "max_tokens": 0}, "max_tokens: give a whole number, 1 or more", "max_tokens"),
    "bad seed": ({"prompt": "x", "seed": "1"}, "seed: give a whole number", "seed"),
    "bad flag": ({"prompt": "x", "stream": 1}, "stream: give true or false", "stream"),
    "ours": ({"prompt": "x", "inferscale": "rebase"}, "inferscale: give an object", "inferscale"),
    "misspelt": (ours(widht=3), "choose from aggregator, answer_kind", "inferscale.widht"),
    "no strategy": (ours(strategy="nope"), "unknown strategy 'nope': choose one of greedy", "inferscale.strategy"),
    "no text": (ours(strategy=3), "inferscale.strategy: give a text, not 3", "inferscale.strategy"),
    "code": (ours(strategy="REBASE(width=open('x'))"), "unknown strategy 'open'", "inferscale.strategy"),
    "long": (ours(strategy="R" * 301), "at most 300 characters", "inferscale.strategy"),
    "nested": (ours(strategy="(" * 150 + ")" * 150), "is not a strategy: name one", "inferscale.strategy"),
    "a helper": (ours(strategy="ComputeOptimalFit({}, [])"), "strategy", "inferscale.strategy"),
    "a strategy of nothing": (ours(strategy="Then(1, 2)"), "Then is made of strategies such as", "inferscale.strategy"),
    "a number": (ours(vote="(3)"), "is not a vote", "inferscale.aggregator"),
    "wide": (ours(strategy="sampling:65"), "n=65 of RepeatedSampling is more than", "inferscale.strategy"),
    "wide too": (ours(width=65), "n=65 of RepeatedSampling", "inferscale.strategy"),
    "wide inside": (ours(strategy="Restart(RepeatedSampling(65), 2)"), "n=65 of", "inferscale.strategy"),
    "two widths": (ours(strategy="REBASE(width=3)", width=4), "is its own: give one to a", "inferscale.strategy"),
    "scores": (ours(strategy="rebase:4"), "scores its nodes: this server has no reward model", "inferscale.strategy"),
    "scores of a vote": (ours(vote="weighted"), "reads scores: this server has no", "inferscale.aggregator"),
    "bad width": (ours(width=True), "inferscale.width: give a whole number", "inferscale.width"),
    "bad cap": (ours(budget={"tokens": 0}), "give a whole number, 1 or more", "inferscale.budget.tokens"),
    "bad time": (ours(budget={"seconds": float("nan")}), "a number greater than 0", "inferscale.budget.seconds"),
    "no end": (ours(budget={"flops": float("inf")}), "a number greater than 0, not inf", "inferscale.budget.flops"),
    "no such cap": (ours(budget={"money": 1}), "choose from bytes, calls, flops", "inferscale.budget.money"),
    "no messages": (chat(), "give a list of messages", "messages"),
    "no role": (chat({"content": "x"}), "the role 'None' is not served", "messages"),
    "a call": (
        chat({"role": "assistant", "content": "x", "tool_calls": [{}]}, {"role": "user", "content": "x"}),
        "tool_calls of a turn is not served",
        "messages",
    ),
    "a tool's": (chat({"role": "tool", "content": "x"}), "the role 'tool' is not served", "messages"),
    "not the user's": (chat({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}),
                       "the last message is the assistant's", "messages"),
    "picture": (chat({"role": "user", "content": [{"type": "image_url"}]}), "must be text", "messages"),
    "no content": (chat({"role": "user"}), "the content must be text", "messages"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_told_what_to_do(server, name):
    body, message, param = BAD[name]
    path = "/v1/chat/completions" if isinstance(body, dict) and "messages" in body else "/v1/completions"
    status, _, answer = call(server, path, body)
    assert status == (404 if name == "another model" else 400)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert message in answer["error"]["message"]
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"


def test_half_a_character_in_a_name_is_no_failure(server):
    status, _, answer = call(server, "/v1/completions", b'{"prompt": "x", "\\ud800": 1}')
    assert (status, answer["inferscale"]["ignored"]) == (200, ["?"])
    status, _, answer = call(server, "/v1/completions", b'{"prompt": "x", "inferscale": {"\\ud800": 1}}')
    assert (status, answer["error"]["param"]) == (400, "inferscale.?")
    wanted = b'"stream": true, "stream_options": {"include_usage": true}'
    status, _, stream = call(server, "/v1/completions", b'{"prompt": "x", "\\ud800": 1, %s}' % wanted)
    assert (status, events(stream)[-1]["inferscale"]["ignored"]) == (200, ["?"])


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 900, b'{"prompt": "\xff"}'])
def test_a_body_that_is_not_json(server, body):
    status, _, answer = call(server, "/v1/completions", body)
    assert status == 400
    assert answer["error"]["message"] == "the body is not JSON"


def test_other_bodies_paths_and_methods(server):
    assert call(server, "/v1/completions", b"{}", {"Content-Type": "text/plain"})[0] == 415
    assert call(server, "/v1/completions", b"{}", {})[0] == 415
    for path, method, status in (("/v1/nothing", "GET", 404), ("/v1/completions", "GET", 405)):
        found, _, answer = call(server, path, method=method)
        assert found == status
        assert answer["error"]["type"] == "invalid_request_error"


def test_oversized_bodies_are_refused_declared_or_not(server):
    body = json.dumps({"prompt": "x" * 1000}).encode()
    status, _, answer = call(server, "/v1/completions", body)
    assert status == 413
    assert answer["error"]["code"] == "request_too_large"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    pieces = (body[at : at + 100] for at in range(0, len(body), 100))
    connection.request("POST", "/v1/completions", pieces, JSON, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_only_clients_with_the_key_come_in(guarded):
    paths = ["/metrics", "/v1/models", "/v1/models/inferscale", "/v1/completions", "/v1/chat/completions"]
    wrong = [None, "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", KEY, "Bearer n\u00e4h"]
    for path in paths:
        for header in wrong:
            given = {**JSON, **({} if header is None else {"Authorization": header})}
            status, headers, answer = call(guarded, path, {} if "completions" in path else None, given)
            assert status == 401
            assert headers["www-authenticate"] == "Bearer"
            assert answer["error"]["code"] == "invalid_api_key"
            assert KEY not in json.dumps(answer)
    given = {**JSON, "Authorization": f"Bearer {KEY}", "Host": "search.example"}
    assert call(guarded, "/v1/completions", {"prompt": "x"}, given)[0] == 200
    assert call(guarded, "/healthz")[0] == 200
    assert call(guarded, "/")[0] == 200  # the page, which asks for the key
    assert {route.path for route in guarded.config.app.routes} == {
        "/", "/healthz", "/metrics", "/v1/models", "/v1/models/{model:path}", "/v1/completions", "/v1/chat/completions"
    }  # fmt: skip


def test_without_a_key_only_this_machines_names_are_served(server):
    odd = ["[", "", "evil.example:80@127.0.0.1", "127.0.0.1@evil.example", "evil.example/127.0.0.1", "evil example"]
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", *odd):
        status, _, answer = call(server, "/v1/completions", {"prompt": "x"}, {**JSON, "Host": host})
        assert status == 403
        assert "without an API key" in answer["error"]["message"]
    for host in ("localhost:8000", "LOCALHOST", "[::1]:8000", "[::1]", "127.0.0.1", "127.0.0.1:"):
        assert call(server, "/v1/models", headers={"Host": host})[0] == 200


def test_no_server_for_others_without_a_key():
    service = Service(ToyGenerator())
    for host in ("0.0.0.0", "::", "192.168.0.1", "search.example", ""):
        with pytest.raises(ValueError, match="set INFERSCALE_API_KEY"):
            run_server(service, host)
    assert KEY not in repr(Service(ToyGenerator(), api_key=KEY))


def test_services_that_could_not_serve_are_refused():
    with pytest.raises(ValueError, match=r"REBASE\(width=16.*scores its nodes"):
        Service(ToyGenerator(), strategy="rebase")
    with pytest.raises(ValueError, match=r"MajorityVote.*reads scores"):
        Service(ToyGenerator(), vote="weighted")
    with pytest.raises(ValueError, match=r"MCTS.*scores its nodes"):
        Service(ToyGenerator(), strategy="mine", presets={"mine": isc.strategies.MCTS()})
    with pytest.raises(ValueError, match="no HTTP header can carry"):
        Service(ToyGenerator(), api_key="schlüssel")
    with pytest.raises(ValueError, match=r"Limits\(max_active=0\): give a number greater than 0"):
        Limits(max_active=0)
    assert Service(ToyGenerator(), ToyReward(), strategy="rebase").make_strategy() == isc.REBASE(16)
    assert Service(ToyGenerator(), width=5000).make_strategy() == isc.RepeatedSampling(5000)


def test_the_servers_budget_is_the_most():
    capped = Limits(budget=isc.Budget(tokens=100, seconds=5)).capped(isc.Budget(tokens=200, seconds=1, calls=7))
    assert capped == isc.Budget(tokens=100, seconds=1, calls=7)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(ImportError, match=r'pip install "inferscale\[serve\]"'):
        make_app(Service(ToyGenerator()))
