"""Searches on Ray: whatever happens to its actors, the results are those of one process."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from inferscale import REBASE, Budget, MajorityVote, RepeatedSampling, solve_batch
from inferscale.generators import VLLMGenerator
from inferscale.ray import Journals, make_batches, results_of, row_of, solve_dataset, stream_dataset
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.tree import Problem
from tests import vllm_stub
from tests.ray_tools import PROBLEMS, VLLM_LIMITS, Diary, Wordy, calls, make_vllm
from tests.serve_tools import until


def diaries(folder):
    """How often each sample was drawn, over all actors."""
    return Counter(sample for samples in calls(folder) for sample in samples)


def last_call(diary):
    """What the last call of an actor sampled: a kill may come before it is in a journal."""
    return (diary.read_text().splitlines() or [""])[-1].split()


def actors(folder):
    """Processes of actors that have a model and live."""
    found = []
    for path in sorted(Path(folder).glob("diary-*")):
        number = int(path.name.split("-")[1])
        with suppress(OSError):
            if Path(f"/proc/{number}/cmdline").read_bytes().startswith(b"ray::"):
                found.append(number)
    return found


def content(results):
    """Everything but the times."""
    told = [result.to_dict() for result in results]
    for row, result in zip(told, results, strict=True):
        row["cost"] = result.cost.without_seconds()
    return told


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "inferscale[ray]"')
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  by default its workers yield to everything else on the machine
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def straight():
    """The results of one process."""
    return solve_batch(PROBLEMS, REBASE(4), ToyGenerator(), reward_model=ToyReward(), seed=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_an_actor_that_is_killed_loses_and_doubles_nothing(cluster, straight, tmp_path):
    results = solve_dataset(
        PROBLEMS, REBASE(4), partial(Diary, tmp_path, deadly=True), ToyReward, seed=3, num_actors=2, batch_size=10,
        storage=tmp_path / "journals",
    )  # fmt: skip
    assert (tmp_path / "killed").exists()
    assert len(results) == 200
    assert content(results) == content(straight)
    drawn = diaries(tmp_path)
    assert set(drawn.values()) == {1}, "an answer that was in a journal was sampled again"
    assert len(list(tmp_path.glob("diary-*"))) == 3  # two actors, and the one that took the dead one's place


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_the_same_call_again_asks_the_models_for_nothing(cluster, straight, tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        results = solve_dataset(
            PROBLEMS, REBASE(4), partial(Diary, tmp_path / folder, deadly=False), ToyReward, seed=3, num_actors=2,
            batch_size=50, storage=tmp_path / "journals",
        )  # fmt: skip
        assert content(results) == content(straight)
    assert diaries(tmp_path / "first")
    assert not diaries(tmp_path / "second")
    assert len(list((tmp_path / "journals").iterdir())) == len(make_batches(PROBLEMS, 50))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_results_come_as_they_finish_without_storage_too(cluster, straight, tmp_path):
    stream = stream_dataset(
        PROBLEMS[:20], REBASE(4), partial(Diary, tmp_path, deadly=True), ToyReward, seed=3, batch_size=4
    )
    found = dict(stream)
    assert (tmp_path / "killed").exists()
    assert content([found[index] for index in range(20)]) == content(straight[:20])
    assert max(diaries(tmp_path).values()) == 2  # without a journal the batch began anew


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_errors_and_options_reach_their_place(cluster, tmp_path):
    def no_model():
        raise OSError("there is no such model")

    with pytest.raises(Exception, match="there is no such model"):
        solve_dataset(["How many?"], RepeatedSampling(2), no_model)
    options = {"aggregator": MajorityVote(), "budget": Budget(tokens=30), "seed": 5}
    (one,) = solve_dataset(["How many?"], RepeatedSampling(8), ToyGenerator, **options)
    (other,) = solve_batch(["How many?"], RepeatedSampling(8), ToyGenerator(), **options)
    assert content([one]) == content([other])
    assert one.stopped_by == "tokens"
    solve_dataset(["How many?"], RepeatedSampling(2), ToyGenerator, storage=tmp_path)
    with pytest.raises(Exception, match="was written by another call"):
        solve_dataset(["How many?"], RepeatedSampling(3), ToyGenerator, storage=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_actors_do_not_run_away_from_a_slow_reader(cluster, tmp_path):
    stream = stream_dataset(
        PROBLEMS, RepeatedSampling(2), partial(Diary, tmp_path), num_actors=2, batch_size=2, storage=tmp_path / "j"
    )
    for _ in range(8):
        next(stream)
    begun = 4 - 1 + 4  # the batch whose last result was read last is let go by the next look

    def journals():
        return len(list((tmp_path / "j").iterdir()))

    until(lambda: journals() >= begun, seconds=300)
    time.sleep(1)  # of 100 batches, most would be begun by now
    assert journals() == begun
    assert len(dict(stream)) == 200 - 8


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_a_stream_that_is_left_ends_its_actors(cluster, tmp_path):
    for _ in stream_dataset(PROBLEMS, RepeatedSampling(2), partial(Diary, tmp_path), num_actors=2, batch_size=2):
        break
    until(lambda: not actors(tmp_path), seconds=120)
    assert len(diaries(tmp_path)) < 200


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_what_the_driver_holds_does_not_grow_with_the_results(cluster):
    problems = [Problem(f"How many are in box {number}?") for number in range(2000)]
    sizes, held = 0, []
    tracemalloc.start()
    for place, (_, result) in enumerate(stream_dataset(problems, RepeatedSampling(4), Wordy, batch_size=50)):
        sizes += len(result.text) * 4
        if place % 200 == 199:
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(held[2:]) - held[1] < sizes / 20, (held, sizes)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_engines_of_vllm_in_actors_one_of_which_dies(cluster, monkeypatch, tmp_path):
    results = solve_dataset(
        PROBLEMS[:24], REBASE(4), partial(make_vllm, tmp_path, deadly=True), ToyReward, num_actors=2, batch_size=4,
        storage=tmp_path / "journals",
    )  # fmt: skip
    assert (tmp_path / "killed").exists()
    assert set(diaries(tmp_path).values()) == {1}
    vllm_stub.install(monkeypatch)
    alone = VLLMGenerator(vllm_stub.LLM(), **VLLM_LIMITS)
    assert content(results) == content(solve_batch(PROBLEMS[:24], REBASE(4), alone, reward_model=ToyReward()))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_a_driver_that_is_killed_goes_on_where_it_was(cluster, straight, tmp_path):
    command = [sys.executable, "-c", f"from tests.ray_tools import drive; drive({str(tmp_path)!r})"]
    driver = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stderr=subprocess.DEVNULL)
    wanted = sum(result.cost.num_generated for result in straight) // 3
    until(lambda: driver.poll() is not None or diaries(tmp_path).total() > wanted, seconds=300)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL, "it had ended before it was killed"
    until(lambda: not actors(tmp_path), seconds=60)
    lost = {sample for diary in tmp_path.glob("diary-*") for sample in last_call(diary)}
    results = solve_dataset(
        PROBLEMS, REBASE(4), partial(Diary, tmp_path), ToyReward, seed=3, num_actors=2, batch_size=10,
        storage=tmp_path / "journals",
    )  # fmt: skip
    assert content(results) == content(straight)
    drawn = diaries(tmp_path)
    assert {sample for sample, times in drawn.items() if times > 1} <= lost, "an answer that was kept was paid twice"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_two_of_three_actors_killed_five_times(cluster, straight, tmp_path):
    rng, lost, killed, most = random.Random(0), set(), [], tmp_path / "most"
    most.write_text("10")
    with ThreadPoolExecutor(1) as pool:
        solving = pool.submit(
            solve_dataset, PROBLEMS, REBASE(4), partial(Diary, tmp_path), ToyReward, seed=3, num_actors=3, num_cpus=0.5,
            batch_size=10, storage=tmp_path / "journals",
        )  # fmt: skip

        def is_time(number):
            return solving.done() or (len(calls(tmp_path)) >= number and len(actors(tmp_path)) == 3)

        for number in range(10, 60, 10):
            until(lambda: is_time(number - rng.randrange(5)), seconds=300)  # noqa: B023
            assert not solving.done()
            for actor in rng.sample(actors(tmp_path), 2):
                os.kill(actor, signal.SIGKILL)
                killed.append(actor)
                (diary,) = tmp_path.glob(f"diary-{actor}-*")
                until(lambda: actor not in actors(tmp_path))  # noqa: B023
                lost.update(last_call(diary))
            most.write_text(str(number + 10))
        most.write_text("1000000")
        results = solving.result()
    assert len(set(killed)) == 10
    assert content(results) == content(straight)
    assert {sample for sample, times in diaries(tmp_path).items() if times > 1} <= lost


def test_equal_prompts_stay_together_in_order():
    prompts = ["a", "b", "a", "c", "b", "a", "d"]
    batches = make_batches([Problem(prompt) for prompt in prompts], 3)
    assert batches == [[0, 2, 5], [1, 4, 3], [6]]
    assert make_batches([Problem("a")] * 5, 2) == [[0, 1, 2, 3, 4]]
    assert sorted(place for batch in make_batches(PROBLEMS, 7) for place in batch) == list(range(200))
    assert max(map(len, make_batches(PROBLEMS, 7))) == 7


def test_an_attempt_goes_on_from_the_longest_journal(tmp_path):
    first = Journals.at(tmp_path, 10).own("problems")
    assert first.read_text() == ""
    first.write_text("header\nanswer\n")
    again = Journals.at(tmp_path, 10)  # another call, later
    (tmp_path / f"{first.name.split('-')[0]}-short.jsonl").write_text("header\n")
    again.own("others").write_text("header\nanswer\nanswer\n")
    second = again.own("problems")
    assert second != first
    assert second.read_text() == first.read_text()
    again.keep(second, "problems")
    assert len(list(tmp_path.iterdir())) == 2
    assert second.exists()


def test_a_batch_that_kills_its_actors_is_not_begun_for_ever(tmp_path):
    for _ in range(2):  # the attempts of an earlier call do not count
        journals = Journals.at(tmp_path, 3)
        for _ in range(3):
            journals.own("problems")
        with pytest.raises(RuntimeError, match="begun 3 times, and its actor died each time"):
            journals.own("problems")
        journals.own("others")


def test_an_actor_that_was_only_thought_dead_does_no_harm(tmp_path):
    journals = Journals.at(tmp_path, 10)
    thought_dead, other = journals.own("problems"), journals.own("problems")
    other.write_text("header\nanswer\n")
    journals.keep(other, "problems")
    journals.keep(thought_dead, "problems")  # it ends after the other
    assert list(tmp_path.iterdir()) == [other]


def test_lost_and_doubled_results_are_told():
    rows = [row_of([index], PROBLEMS) for index in range(3)]
    results = solve_batch(PROBLEMS[:3], RepeatedSampling(1), ToyGenerator())
    told = [{**row, "results": json.dumps([result.to_dict()])} for row, result in zip(rows, results, strict=True)]
    assert [index for index, _ in results_of(iter(told), 3, False)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="no result for 1 problems, the first one 1"):
        list(results_of(iter([told[0], told[2]]), 3, False))
    with pytest.raises(RuntimeError, match="the result of problem 2 twice"):
        list(results_of(iter([told[2], told[2]]), 3, False))


def test_bad_calls_are_refused_before_ray_is_started():
    with pytest.raises(ValueError, match="there are no problems to solve"):
        solve_dataset([], RepeatedSampling(2), ToyGenerator)
    with pytest.raises(ValueError, match="batch_size=0"):
        solve_dataset(["How many?"], RepeatedSampling(2), ToyGenerator, batch_size=0)
    with pytest.raises(ValueError, match=r"REBASE\(.*scores its nodes: pass make_reward_model"):
        solve_dataset(["How many?"], REBASE(2), ToyGenerator)
    with pytest.raises(ValueError, match=r"MajorityVote\(weighted=True.* reads scores: pass make_reward_model"):
        solve_dataset(["How many?"], RepeatedSampling(2), ToyGenerator, aggregator=MajorityVote(weighted=True))
    with pytest.raises(TypeError, match="takes a list of problems"):
        solve_dataset("How many?", RepeatedSampling(2), ToyGenerator)
    for name in ("num_actors", "max_attempts"):
        with pytest.raises(ValueError, match=f"{name}=0: give at least 1"):
            solve_dataset(["How many?"], RepeatedSampling(2), ToyGenerator, **{name: 0})
    with pytest.raises(TypeError, match="bugdet"):
        stream_dataset(["How many?"], RepeatedSampling(2), ToyGenerator, bugdet=Budget(tokens=30))
    with pytest.raises(ValueError, match="batch_size=0"):  # at once, and not when the first result is asked for
        stream_dataset(["How many?"], RepeatedSampling(2), ToyGenerator, batch_size=0)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ray.data", raising=False)
    with pytest.raises(ImportError, match=r'pip install "inferscale\[ray\]"'):
        solve_dataset(["How many?"], RepeatedSampling(2), ToyGenerator)
