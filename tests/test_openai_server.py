"""`OpenAIGenerator` against a real server, ``transformers serve`` with an embedded model."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from inferscale import REBASE, HFGenerator, OpenAIGenerator, RepeatedSampling, solve_batch, zoo
from inferscale.strategies import Greedy, StepwiseGreedy
from inferscale.testing import ToyReward, check_generator

MISSING = [name for name in ("openai", "fastapi", "uvicorn", "accelerate") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}: pip install 'transformers[serving]' openai"),
]
PROMPTS = [problem.prompt for problem in zoo.problems()[:3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy saved as any checkpoint is; `transformers serve` samples only if its generation config says so."""
    place = tmp_path_factory.mktemp("served")
    model, tokenizer = zoo.load("policy-xs")
    model.generation_config.do_sample = True
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    (home / "hub").mkdir()
    serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command = [*serve, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    log = home / "log.txt"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "HF_HOME": str(home)})
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def _wait(server, url, log, seconds=150):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"transformers serve did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def generator(address, folder):
    return OpenAIGenerator(address, str(folder), max_step_tokens=48, max_new_tokens=160, max_concurrency=4)


def in_process(folder, **options):
    return HFGenerator.from_pretrained(str(folder), max_step_tokens=48, max_new_tokens=160, temperature=0, **options)


@pytest.mark.parametrize("strategy", [Greedy(), StepwiseGreedy(n=1)], ids=["whole", "by steps"])
def test_greedy_text_and_price_equal_the_in_process_generators(address, folder, strategy):
    local = in_process(folder, chat_template=False)
    remote = OpenAIGenerator(
        address, str(folder), max_step_tokens=48, max_new_tokens=160, temperature=0, config=local.model.config
    )
    expected = solve_batch(PROMPTS, strategy, local, reward_model=ToyReward())
    found = solve_batch(PROMPTS, strategy, remote, reward_model=ToyReward())
    for ours, theirs in zip(expected, found, strict=True):
        assert [leaf.text for leaf in theirs.leaves] == [leaf.text for leaf in ours.leaves]
        assert [step.finish_reason for step in theirs.selected.steps] == [s.finish_reason for s in ours.selected.steps]
        assert theirs.answer == ours.answer is not None
        assert theirs.cost.generated_tokens == ours.cost.generated_tokens
        assert theirs.cost.prompt_tokens == ours.cost.prompt_tokens
        assert theirs.cost.generator_flops == ours.cost.generator_flops


@pytest.mark.parametrize("strategy", [RepeatedSampling(4), REBASE(4)], ids=["voting", "REBASE"])
def test_searches_run_end_to_end(generator, strategy):
    results = solve_batch(PROMPTS, strategy, generator, reward_model=ToyReward())
    for result in results:
        assert result.answer is not None
        assert len(result.leaves) == 4
        assert all(leaf.is_finished and not leaf.is_failed for leaf in result.leaves)
        assert result.cost.generated_tokens > 0
    assert any(len({node.text for node in result.root.children}) > 1 for result in results)
    assert generator.stats.failed_samples == 0


def test_it_keeps_the_promises_of_generators_that_take_no_seed(generator):
    check_generator(generator, PROMPTS[:2], reproducible=False)


def test_chat_answers_whole_and_refuses_to_go_on(address, folder):
    chat = OpenAIGenerator(address, str(folder), endpoint="chat", max_new_tokens=160, temperature=0)
    found = solve_batch(PROMPTS[:1], Greedy(), chat)
    expected = solve_batch(PROMPTS[:1], Greedy(), in_process(folder, chat_template=True))
    assert found[0].text == expected[0].text != ""
    with pytest.raises(ValueError, match="cannot go on"):
        solve_batch(PROMPTS[:1], REBASE(2), chat, reward_model=ToyReward())
