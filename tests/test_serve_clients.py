"""Programs that people have, against a served search."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from inferscale import REBASE, solve, zoo
from inferscale.cli import main
from inferscale.serve import Service
from inferscale.testing import ToyGenerator, ToyReward
from tests.serve_tools import JSON, ask, call, serving

openai = pytest.importorskip("openai", reason="the openai package is not installed")


@pytest.fixture(scope="module")
def server():
    service = Service(ToyGenerator(), ToyReward(), "toy", "rebase", 4, api_key="not-a-secret")
    with serving(service) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="not-a-secret", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def result():
    return solve("How many?", REBASE(4), ToyGenerator(), reward_model=ToyReward())


def test_chat(client, result):
    answer = client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "How many?"}], temperature=0.7,
        extra_body={"inferscale": {"strategy": "rebase:4"}},
    )  # fmt: skip
    assert answer.choices[0].message.content == result.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == result.cost.tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens < result.cost.tokens
    assert answer.choices[0].inferscale["answer"] == result.answer
    assert answer.inferscale["cost"]["generator_flops"] == result.cost.generator_flops
    assert answer.inferscale["ignored"] == ["temperature"]


def test_chat_in_a_stream(client, result):
    stream = client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "How many?"}], stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == result.text
    assert chunks[0].choices[0].inferscale["progress"]["samples"] >= 0
    assert chunks[-1].usage.completion_tokens == result.cost.tokens


def test_text(client, result):
    answer = client.completions.create(model="toy", prompt="How many?", max_tokens=500)
    assert answer.choices[0].text == result.text
    streamed = client.completions.create(model="toy", prompt="How many?", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == result.text


def test_models(client):
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").id == "toy"


def test_errors_are_the_clients_own(client, server):
    with pytest.raises(openai.BadRequestError, match="logprobs: not served") as bad:
        client.completions.create(model="toy", prompt="x", logprobs=1)
    assert bad.value.param == "logprobs"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.completions.create(model="gpt", prompt="x")
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="no valid API key"),
    ):
        stranger.models.list()


def test_the_requests_of_lm_eval():
    """Its ``local-completions`` with ``tokenized_requests=False``: lists of prompts, stops, a seed, a length."""
    with serving(Service(ToyGenerator(), name="toy", strategy="sampling:4")) as running:
        answer = ask(
            running, ["How many?", "How many more?"], model="toy", max_tokens=256, temperature=0, stop=["\n\n", "Q:"],
            seed=1234,
        )  # fmt: skip
        assert {choice["index"]: bool(choice["text"]) for choice in answer["choices"]} == {0: True, 1: True}
        likelihood = {"model": "toy", "prompt": ["x"], "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
        status, _, refused = call(running, "/v1/completions", {**likelihood, "temperature": 0})
        assert status == 400
        assert "a search has no log-probabilities to report" in refused["error"]["message"]


def test_the_command_refuses_what_it_cannot_serve(monkeypatch, capsys):
    monkeypatch.delenv("INFERSCALE_API_KEY", raising=False)
    for options, message in (
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines: set INFERSCALE_API_KEY"),
        (["--strategy", "rebase"], "scores its nodes: give a reward"),
        (["--max-active", "0"], "--max-active"),
    ):
        monkeypatch.setattr(sys, "argv", ["inferscale", "serve", *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_serves_the_embedded_models_until_it_is_told_to_end():
    command = [sys.executable, "-m", "inferscale", "serve", "--model", "policy-xs", "--reward", "prm-s", "--strategy",
               "rebase", "--width", "4", "--port", "0"]  # fmt: skip
    environment = {**os.environ, "INFERSCALE_API_KEY": "not-a-secret"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) as process:
        address = next(line for line in process.stderr if b"running on" in line).decode()
        base = next(word for word in address.split() if word.startswith("http://"))
        question = zoo.problems("test")[0].prompt.strip()
        body = json.dumps({"messages": [{"role": "user", "content": question}]}).encode()
        headers = {**JSON, "Authorization": "Bearer not-a-secret"}
        with urllib.request.urlopen(urllib.request.Request(f"{base}/v1/chat/completions", body, headers)) as answer:
            told = json.load(answer)
        assert told["model"] == "policy-xs"
        assert told["inferscale"]["cost"]["reward_flops"] > 0
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read().decode()
    assert process.returncode in (0, -signal.SIGTERM)  # uvicorn ends, then raises the signal again
    assert "Application shutdown complete" in rest
    assert "not-a-secret" not in address + rest
