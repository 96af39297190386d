"""Sessions of a server: samples come as it gives them, and a failure is no result while it may be the server's end."""

import json
import threading

import pytest

from inferscale import REBASE, OpenAIGenerator, RemoteError, RepeatedSampling, Solver, _http, solve_batch
from inferscale.flow import GenerateRequest
from inferscale.generators import openai_server
from inferscale.testing import PROMPTS, ToyReward
from inferscale.tree import Node, Problem, root_key
from tests.openai_stub import Raw, Stub, serving

LONG = 120.0
"""Seconds after which a test that hangs fails."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(_http, "FIRST_PAUSE", 0.002)
    monkeypatch.setattr(openai_server, "FIRST_CONTACT", 0.5)


def generator_of(address, **options):
    return OpenAIGenerator(address, "toy", **{"max_step_tokens": 40, "deadline": 0.3, **options})


def is_sample(body):
    return body["max_tokens"] > 16


def node(prompt):
    return Node(Problem(prompt), key=root_key(prompt))


def last(body, top, count):
    """True for the last of so many samples of a node."""
    return is_sample(body) and body["seed"] & 0x3FFFFFFF == (top.key & 0x3FFFFFFF) + count - 1


def test_samples_come_without_waiting_for_the_slowest_and_the_first_pays_for_the_prompt():
    top, gate = node(PROMPTS[0]), threading.Event()
    request = GenerateRequest(top, 4, until="end")

    def wait(body, before):
        assert not last(body, top, 4) or gate.wait(LONG)

    with serving(Stub(n="ignored", misbehave=wait)) as address, generator_of(address, deadline=LONG).open() as sampling:
        sampling.submit(request)
        came = {}
        while len(came) < 3:
            came |= {place: step for _, place, step in sampling.collect()}
        assert set(came) == {0, 1, 2}
        late = sampling.submit(GenerateRequest(node(PROMPTS[1])))
        assert [ticket for ticket, _, _ in sampling.collect()] == [late], "it joins the others"
        gate.set()
        came |= {place: step for _, place, step in sampling.collect()}
        assert sampling.collect() == []
    with serving(Stub(n="ignored")) as address:
        assert [came[place] for place in range(4)] == generator_of(address).generate([request])[0]
    assert [step.prompt_tokens > 0 for _, step in sorted(came.items())] == [True, False, False, False]


def test_a_kill_loses_what_was_being_sampled_and_no_more(tmp_path):
    path, rows = tmp_path / "journal.jsonl", []

    def die(body, before):
        if last(body, root, 4):
            for _ in range(400):
                rows[:] = [json.loads(line) for line in path.read_text().splitlines()]
                if sum(row.get("kind") == "sample" for row in rows) == 3:
                    break
                threading.Event().wait(0.01)

    root = Node(Problem(PROMPTS[0]), key=root_key(f"0/{PROMPTS[0]}"))
    with serving(Stub(n="ignored", misbehave=die)) as address:
        generator = generator_of(address, deadline=LONG)
        (result,) = solve_batch([PROMPTS[0]], RepeatedSampling(4), generator, journal=path)
    assert [row["kind"] for row in rows[1:]] == ["sample"] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # as the kill left it
    stub = Stub(n="ignored")
    with serving(stub) as address:
        (again,) = solve_batch([PROMPTS[0]], RepeatedSampling(4), generator_of(address), journal=path)
    assert sum(map(is_sample, stub.requests)) == 1
    assert [leaf.step for leaf in again.leaves] == [leaf.step for leaf in result.leaves]


def test_a_failure_is_a_result_once_another_sample_has_come():
    bad, good, gate = node("Bad?"), node(PROMPTS[0]), threading.Event()

    def misbehave(body, before):
        if is_sample(body) and body["prompt"].startswith("Bad"):
            return Raw(500)
        assert not is_sample(body) or gate.wait(LONG)
        return None

    with serving(Stub(misbehave=misbehave)) as address:
        generator = generator_of(address, deadline=LONG)
        with generator.open() as sampling:
            tickets = [sampling.submit(GenerateRequest(top)) for top in (bad, good)]
            threading.Thread(target=lambda: (_until(lambda: generator.stats.retries >= 3), gate.set())).start()
            ended = {ticket: step for _ in range(2) for ticket, _, step in sampling.collect()}
    assert [ended[ticket].finish_reason for ticket in tickets] == ["error", "step"]


def _until(true):
    for _ in range(2000):
        if true():
            return
        threading.Event().wait(0.01)


@pytest.mark.parametrize("answers", [True, False], ids=["alive", "dead"])
def test_when_all_that_is_left_fails_the_server_is_asked_whether_it_is_alive(answers):
    bad, good, came = node("Bad?"), node(PROMPTS[0]), threading.Event()

    def misbehave(body, before):
        if is_sample(body) and body["prompt"].startswith("Bad"):
            assert came.wait(LONG)
            return Raw(500)
        return Raw(500) if came.is_set() and not answers else None

    with serving(Stub(misbehave=misbehave)) as address, generator_of(address).open() as sampling:
        first = sampling.submit(GenerateRequest(bad, 2))
        second = sampling.submit(GenerateRequest(good))
        assert [ticket for ticket, _, _ in sampling.collect()] == [second]
        came.set()
        if answers:
            ended = sampling.collect()
            assert [(ticket, step.finish_reason) for ticket, _, step in ended] == [(first, "error")] * 2
            assert sampling.collect() == []
        else:
            for _ in range(2):  # it is asked again, and is as dead as before
                with pytest.raises(RemoteError, match=r"all 2 samples of .* failed"):
                    sampling.collect()


def test_searches_go_on_at_their_own_pace():
    gate = threading.Event()

    def wait(body, before):
        assert not (is_sample(body) and body["prompt"].startswith(PROMPTS[0])) or gate.wait(LONG)

    with serving(Stub(misbehave=wait)) as address:
        generator = generator_of(address, deadline=LONG)
        results = Solver(REBASE(4), generator, ToyReward()).stream(PROMPTS)
        early = [next(results).problem.prompt for _ in range(2)]
        gate.set()
        assert sorted(early) == sorted(PROMPTS[1:])
        assert next(results).problem.prompt == PROMPTS[0]
