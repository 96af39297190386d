"""How a server behaves when there is too much to do, when something breaks, and when it is told to end."""

import http.client
import json
import signal
from threading import Thread

import pytest

from inferscale.serve import Limits, Service, make_app
from inferscale.serve.schema import Reply
from inferscale.testing import ToyGenerator
from tests.serve_tools import JSON, GatedToy, ask, call, running_app, serving, until


def background(*calls):
    """Runs calls in threads: the threads, and where their answers will be."""
    answers = {}
    threads = [
        Thread(target=lambda index=index, run=run: answers.__setitem__(index, run())) for index, run in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    return threads, answers


def waiting_server(**limits):
    toy = GatedToy()
    return toy, Service(toy, strategy="sampling:2", limits=Limits(**limits))


def gauges(server):
    lines = call(server, "/metrics")[2].decode().splitlines()
    names = ("inferscale_searches_active", "inferscale_searches_waiting")
    return tuple(int(float(line.split()[1])) for name in names for line in lines if line.startswith(name + " "))


def test_too_many_searches_are_told_to_come_back():
    toy, service = waiting_server(max_active=2, max_waiting=3)
    with serving(service) as running:
        threads, answers = background(*[lambda i=i: ask(running, f"How many are {i}?") for i in range(5)])
        until(lambda: sum(gauges(running)) == 5)
        status, headers, answer = call(running, "/v1/completions", {"prompt": "one more"})
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        assert answer["error"]["type"] == "rate_limit_error"
        toy.gate.set()
        for thread in threads:
            thread.join()
        assert len(answers) == 5
        assert all(answers[i]["choices"][0]["text"] for i in range(5))
        assert call(running, "/v1/completions", {"prompt": "one more"})[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_search(stream):
    toy, service = waiting_server(max_active=1, progress_seconds=0.01)
    with serving(service) as running:
        left = http.client.HTTPConnection("127.0.0.1", running.port)
        left.request("POST", "/v1/completions", json.dumps({"prompt": ["a", "b"], "stream": stream}), JSON)
        until(lambda: gauges(running) == (1, 1))
        threads, answers = background(lambda: ask(running))
        until(lambda: gauges(running) == (1, 2))
        if stream:
            assert left.getresponse().status == 200
        left.sock.close()
        left.close()
        until(lambda: b'status="499"' in call(running, "/metrics")[2])
        toy.gate.set()
        threads[0].join()
        assert answers[0]["choices"][0]["text"]
        assert toy.toy.calls == 2
        until(lambda: b'inferscale_searches_total{outcome="cancelled"} 2.0' in call(running, "/metrics")[2])


def test_told_to_end_the_server_lets_searches_end_and_takes_no_new_ones():
    toy, service = waiting_server(max_active=1)
    with serving(service) as running:
        threads, answers = background(*[lambda i=i: ask(running, f"How many are {i}?") for i in range(2)])
        until(lambda: gauges(running) == (1, 1))
        late = http.client.HTTPConnection("127.0.0.1", running.port, timeout=120)
        late.request("GET", "/v1/models")
        late.getresponse().read()
        late.request("POST", "/v1/completions", headers={**JSON, "Content-Length": "15"})  # its body follows
        until(lambda: len(running.server_state.tasks) == 3)
        running.handle_exit(signal.SIGTERM, None)
        late.send(b'{"prompt": "x"}')
        refused = late.getresponse()
        assert refused.status == 503
        assert refused.headers["retry-after"]
        assert json.loads(refused.read())["error"]["code"] == "shutting_down"
        toy.gate.set()
        for thread in threads:
            thread.join()
        assert all(answers[i]["choices"][0]["text"] for i in range(2))
        running.thread.join(30)
        with pytest.raises(ConnectionRefusedError):
            call(running, "/healthz")
        late.close()


def test_searches_that_do_not_end_in_time_are_ended():
    toy, service = waiting_server(max_active=1)
    with serving(service, shutdown_seconds=1) as running:
        threads, _ = background(lambda: call(running, "/v1/completions", {"prompt": "How many?"}))
        until(lambda: gauges(running) == (1, 0))
        Thread(target=lambda: (running.thread.join(1.5), toy.gate.set())).start()  # the call under way is waited for
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_whoever_waits_when_the_time_is_over_is_told_so():
    """Searches that run, that wait, and that stream; the model's call ends long after."""
    toy, service = waiting_server(max_active=1)
    with serving(service, shutdown_seconds=1) as running:
        bodies = [{"prompt": "How many?"}, {"prompt": ["a", "b"]}, {"prompt": "x", "stream": True}]
        threads, answers = background(*[lambda b=b: call(running, "/v1/completions", b) for b in bodies])
        until(lambda: gauges(running) == (1, 3))
        running.should_exit = True
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        toy.gate.set()
    for status, headers, answer in (answers[0], answers[1]):
        assert status == 503
        assert headers["retry-after"]
        assert answer["error"]["code"] == "shutting_down"
    *_, told, end = [line for line in answers[2][2].split(b"\n\n") if line]
    assert end == b"data: [DONE]"
    assert json.loads(told.removeprefix(b"data: "))["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_thought_of_is_counted(monkeypatch, stream):
    def broken(self, *found):
        raise ZeroDivisionError

    monkeypatch.setattr(Reply, "found" if stream else "whole", broken)
    with serving(Service(ToyGenerator(), strategy="sampling:2")) as running:
        if stream:
            with pytest.raises(http.client.IncompleteRead):
                call(running, "/v1/completions", {"prompt": "x", "stream": stream})
        else:
            assert call(running, "/v1/completions", {"prompt": "x"})[0] == 500
        until(lambda: b'path="/v1/completions",status="500"} 1.0' in call(running, "/metrics")[2])


def test_it_serves_where_it_is_mounted():
    applications, routing = pytest.importorskip("starlette.applications"), pytest.importorskip("starlette.routing")
    app = applications.Starlette(routes=[routing.Mount("/search", make_app(Service(ToyGenerator(), width=2)))])
    with running_app(app) as running:
        assert call(running, "/search/healthz")[0] == 200
        assert call(running, "/search/v1/completions", {"prompt": "How many?"})[0] == 200
