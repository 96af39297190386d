"""A server in a thread, a client without manners, and a model that waits to be let go."""

import http.client
import json
import threading
import time
from contextlib import closing, contextmanager

from inferscale.base import Generator
from inferscale.serve.app import make_server
from inferscale.testing import ToyGenerator

JSON = {"Content-Type": "application/json"}


class GatedToy(Generator):
    """The toy, whose calls wait at a gate; it counts those that have arrived."""

    def __init__(self, **options):
        self.toy, self.gate, self.arrived = ToyGenerator(**options), threading.Event(), 0

    def generate(self, requests):
        self.arrived += 1
        assert self.gate.wait(120)
        return self.toy.generate(requests)

    def max_sample_tokens(self, request):
        return self.toy.max_sample_tokens(request)


@contextmanager
def serving(service, shutdown_seconds=10):
    """Serves on a free port: the server, with `port` and `thread`."""
    with _started(make_server(service, "127.0.0.1", 0, shutdown_seconds)) as server:
        yield server


@contextmanager
def running_app(app):
    """Runs another application on a free port."""
    import uvicorn

    with _started(uvicorn.Server(uvicorn.Config(app, port=0))) as server:
        yield server


@contextmanager
def _started(server):
    server.thread = threading.Thread(target=server.run)
    server.thread.start()
    until(lambda: server.started)
    server.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        server.should_exit = True
        server.thread.join(30)
        assert not server.thread.is_alive()


def until(happened, seconds=120):
    """Waits for something to happen."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def call(server, path, body=None, headers=JSON, method=None):
    """Status, headers and content of an answer; JSON is read."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)) as connection:
        connection.request(method or ("GET" if data is None else "POST"), path, data, headers)
        with connection.getresponse() as answer:
            content = answer.read()
    told = dict(answer.getheaders())
    return answer.status, told, json.loads(content) if told.get("content-type") == "application/json" else content


def ask(server, prompt="How many?", **fields):
    """The answer to a prompt."""
    status, _, answer = call(server, "/v1/completions", {"prompt": prompt, **fields})
    assert status == 200, answer
    return answer


def events(content):
    """The events of a stream; the last one must be its end."""
    lines = [line for line in content.decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
