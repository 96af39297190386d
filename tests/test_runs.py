import json
import math
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inferscale import BestOfN, Budget, Cost, MajorityVote, RepeatedSampling
from inferscale.engine import Abstentions
from inferscale.evaluate import ChangedRunError, RunLockedError, load_run, run_evaluation
from inferscale.evaluate import runs as runs_module
from inferscale.evaluate.records import locked, problem_keys, read_records
from inferscale.rewards import CachedProcessReward
from inferscale.strategies import REBASE
from inferscale.testing import ToyGenerator, ToyProcessReward, ToyReward
from inferscale.tree import Problem
from tests.evaluation_worker import (
    PROBLEMS,
    STRATEGIES,
    SWEEP,
    bytes_written,
    embedded_policy,
    evaluate,
    evaluate_embedded,
)

ROOT = Path(__file__).parent.parent
TEN = [Problem(f"What is {index}?", str(index % 3), f"ten/{index}") for index in range(10)]
SAMPLING = RepeatedSampling(3)


def run_ten(folder, *, problems=TEN, strategy=SAMPLING, generator=ToyGenerator, **options):
    made = generator() if callable(generator) else generator
    return run_evaluation(problems, strategy, made, folder, reward_model=ToyReward(), **options)


def essence(record):
    """A record without what is measured by a clock."""
    result = {**record["result"], "cost": Cost.from_dict(record["result"]["cost"]).without_seconds()}
    return {**record, "measured": None, "result": result}


def essences(folder):
    return [essence(record) for record in load_run(folder).records]


def kill_at_random(folder, rng):
    """One run of the worker, killed (SIGKILL) in its first second of work; whether it was still at work."""
    code = f"from tests.evaluation_worker import evaluate; evaluate({str(folder)!r}, pause=0.01)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    started = time.perf_counter()
    while not any(Path(folder).glob("*/run.json")) and process.poll() is None and time.perf_counter() < started + 60:
        time.sleep(0.01)
    time.sleep(rng.random())
    process.kill()
    return process.wait() != 0


def without_rounding(record):
    """The essence of a record and, apart, what float32 arithmetic in other batches gives with other last digits."""
    steps = [node["step"] for node in record["result"]["nodes"] if "step" in node]
    rounded = [step.pop(name) for step in steps for name in ("logprob", "confidence", "model_logprob")]
    return essence(record), rounded


def same_records(straight, killed, problems, names):
    """Both folders hold the same complete runs."""
    for name in names:
        first, second = load_run(straight / name), load_run(killed / name)
        assert len(first.finished) == len(second.finished) == problems
        for one, other in zip(first.records, second.records, strict=True):
            (expected, rounded), (found, rounded_there) = without_rounding(one), without_rounding(other)
            assert found == expected
            assert rounded_there == pytest.approx(rounded, abs=1e-3)
        assert not (killed / name / "journal.jsonl").exists()


def test_killed_and_resumed_gives_the_same_records(tmp_path):
    evaluate(tmp_path / "straight")
    rng = random.Random(0)
    assert sum(kill_at_random(tmp_path / "killed", rng) for _ in range(2)) >= 1
    evaluate(tmp_path / "killed")
    same_records(tmp_path / "straight", tmp_path / "killed", len(PROBLEMS), STRATEGIES)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute and a half of work; other processes may have the cores
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_an_embedded_sweep_killed_twenty_times_and_resumed_gives_the_same_records(tmp_path):
    policy, straight, killed = embedded_policy(), tmp_path / "straight", tmp_path / "killed"
    evaluate_embedded(straight, policy)
    command = [sys.executable, "-m", "tests.evaluation_worker", str(killed), str(bytes_written(straight)), "20", "1"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "20\n"
    written = {path: path.read_bytes() for path in killed.glob("*/records.jsonl")}
    evaluate_embedded(killed, policy)
    for path, before in written.items():
        assert path.read_bytes().startswith(before[: before.rfind(b"\n") + 1]), "no record was lost or written anew"
    assert len(SWEEP) == 20
    same_records(straight, killed, 200, SWEEP)


def test_a_run_holds_what_the_searches_gave(tmp_path):
    run = run_ten(tmp_path / "run", aggregator=MajorityVote(), seed=5, config={"data": "ten"})
    assert run.is_complete
    results = list(run.results())
    right = [result.answer == problem.answer for result, problem in zip(results, TEN, strict=True)]
    assert run.accuracy == sum(right) / 10
    assert [record["correct"] for record in run.records] == right
    assert run.standard_error == pytest.approx(math.sqrt(run.accuracy * (1 - run.accuracy) / 9))
    for record, result in zip(run.records, results, strict=True):
        assert record["correct_each"] == [t.answer == result.problem.answer for t in result.trajectories]
        assert [t.answer for t in result.trajectories].count(record["answer"]) >= 1
    about = run.about
    assert about["strategy"] == "RepeatedSampling(n=3)"
    assert about["identity"]["strategy"]["n"] == 3
    assert about["identity"]["config"] == {"data": "ten"}
    assert about["versions"]["python"] == sys.version.split()[0]
    assert run.rows()[0]["generated_tokens"] == results[0].cost.generated_tokens
    assert run.abstentions == sum((result.abstentions for result in results), Abstentions()) == Abstentions(30)
    assert [run.rows()[0][name] for name in ("trajectories", "cut", "unread", "abstaining")] == [3, 0, 0, 0]
    assert run.peak_memory_bytes is None or run.peak_memory_bytes > 1e6
    pandas = pytest.importorskip("pandas")
    frame = run.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["correct"].mean() == run.accuracy


def test_calls_in_threads_give_the_records_of_rounds(tmp_path):
    class Concurrent(ToyGenerator):
        concurrent = True

        def identity(self):
            return ToyGenerator().identity()

    runs = [
        run_evaluation(TEN, RepeatedSampling(3), generator, tmp_path / type(generator).__name__, seed=np.int64(4))
        for generator in (ToyGenerator(), Concurrent())
    ]
    first, second = ([(r["key"], r["answer"], r["correct"]) for r in run.records] for run in runs)
    assert first == second
    assert run_evaluation(TEN, RepeatedSampling(3), Concurrent(), tmp_path / "ToyGenerator", seed=4).is_complete


def test_solved_problems_are_not_solved_again(tmp_path):
    run_ten(tmp_path)
    again = ToyGenerator()
    run_ten(tmp_path, generator=again)
    assert again.calls == 0
    assert len(read_records(tmp_path / "records.jsonl")) == 10


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": RepeatedSampling(4)},
        {"seed": 1},
        {"budget": Budget(tokens=50)},
        {"aggregator": BestOfN()},
        {"generator": lambda: ToyGenerator(depth=2)},
        {"problems": TEN[:9]},
        {"problems": [replace(TEN[0], answer="7"), *TEN[1:]]},
        {"config": {"prompt": "cot"}},
        {"read_answer": str.strip},
        {"thinking": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_configuration_is_refused(tmp_path, change):
    run_ten(tmp_path)
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(ChangedRunError, match=rf"another configuration \({next(iter(change))}(\.\w+)* was .*--force"):
        run_ten(tmp_path, **change)
    assert (tmp_path / "records.jsonl").read_bytes() == before
    forced = run_ten(tmp_path, **change, force=True)
    assert forced.is_complete
    run_ten(tmp_path / "fresh", **change)
    assert essences(tmp_path) == essences(tmp_path / "fresh")
    assert [path.read_bytes() for path in tmp_path.glob("records-*.jsonl")] == [before], "the old ones are put aside"


def test_more_problems_keep_what_is_solved(tmp_path):
    run_ten(tmp_path, problems=TEN[5:])
    generator = ToyGenerator()
    run_ten(tmp_path, generator=generator, force=True, batch_size=1)
    assert generator.calls == 5, "one call for each of the five new problems"
    run_ten(tmp_path / "fresh")
    assert essences(tmp_path) == essences(tmp_path / "fresh")


@pytest.mark.parametrize("calls", [1, 3, 5, 9])
def test_an_interrupted_run_records_its_best_so_far_and_goes_on(tmp_path, calls):
    options = {"strategy": REBASE(3), "batch_size": 4}
    with pytest.raises(KeyboardInterrupt):
        run_ten(tmp_path, generator=Interrupted(calls), **options)
    run = load_run(tmp_path)
    assert not run.is_complete
    assert {record["status"] for record in run.records} <= {"ok", "partial"}
    assert any(record["status"] == "partial" for record in run.records)
    again = Interrupted(10**6)
    run_ten(tmp_path, generator=again, **options)
    whole = Interrupted(10**6)
    run_ten(tmp_path / "fresh", generator=whole, **options)
    assert essences(tmp_path) == essences(tmp_path / "fresh")
    assert again.calls <= whole.calls - calls + 4, "what was sampled is not sampled again"


class Interrupted(ToyGenerator):
    """A toy that is interrupted in the call after so many."""

    def __init__(self, after):
        super().__init__()
        self._after = after

    def identity(self):
        return {}

    def generate(self, requests):
        if self.calls >= self._after:
            raise KeyboardInterrupt
        return super().generate(requests)


def test_equal_prompts_stay_different_problems_across_a_resume(tmp_path):
    same = [Problem("Which?", "1", f"same/{index}") for index in range(6)]
    one_object = [same[0]] * 2
    run_ten(tmp_path / "fresh", problems=same, generator=Interrupted(99))
    texts = {result.text for result in load_run(tmp_path / "fresh").results()}
    assert len(texts) > 1, "each has its own samples"
    with pytest.raises(KeyboardInterrupt):
        run_ten(tmp_path / "run", problems=same, generator=Interrupted(3), batch_size=1)
    run_ten(tmp_path / "run", problems=same, generator=Interrupted(99), batch_size=1)
    assert essences(tmp_path / "run") == essences(tmp_path / "fresh")
    assert len(run_ten(tmp_path / "object", problems=one_object).finished) == 2
    assert len(set(problem_keys(one_object, "c"))) == 2


def test_a_torn_last_line_is_cut_and_a_damaged_one_is_told(tmp_path):
    run_ten(tmp_path)
    records = tmp_path / "records.jsonl"
    whole = records.read_bytes()
    records.write_bytes(whole[:-20])
    assert len(load_run(tmp_path).records) == 9
    run_ten(tmp_path)
    assert sorted(records.read_bytes().splitlines())[0][:8] == b'{"v": 1,'
    assert len(load_run(tmp_path).records) == 10
    lines = whole.splitlines(keepends=True)
    records.write_bytes(lines[0] + lines[1][:-30] + b"\n" + b"".join(lines[2:]))
    with pytest.raises(ValueError, match="line 2 is damaged"):
        load_run(tmp_path)
    records.write_bytes(b'{"v": 99}\n')
    with pytest.raises(ValueError, match="newer inferscale"):
        load_run(tmp_path)


def test_what_was_put_aside_is_never_lost(tmp_path):
    run_ten(tmp_path)
    first = (tmp_path / "records.jsonl").read_bytes()
    run_ten(tmp_path, seed=1, force=True)
    run_ten(tmp_path, force=True)
    run_ten(tmp_path, seed=1, force=True)  # the same configuration is put aside for the second time
    aside = [path.read_bytes() for path in tmp_path.glob("records-*.jsonl")]
    assert first in aside
    assert len(aside) == 3


def test_a_call_that_is_killed_while_it_puts_aside_loses_nothing(tmp_path, monkeypatch):
    from inferscale.evaluate import runs as preparing

    run_ten(tmp_path)
    first = (tmp_path / "records.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            preparing, "_renumber", lambda task, records: 1 / 0
        )  # records are thinned, run.json is the old one
        with pytest.raises(ZeroDivisionError):
            run_ten(tmp_path, problems=TEN[:4], force=True)
    run_ten(tmp_path, problems=TEN[:4], force=True)
    assert first in [path.read_bytes() for path in tmp_path.glob("records-*.jsonl")]


def test_records_whose_description_is_gone_are_not_mixed_with_others(tmp_path):
    run_ten(tmp_path)
    (tmp_path / "run.json").unlink()
    generator = ToyGenerator()
    run_ten(tmp_path, generator=generator)
    assert generator.calls == 0, "they are of this configuration"
    (tmp_path / "run.json").unlink()
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(ChangedRunError, match=r"without the run\.json"):
        run_ten(tmp_path, seed=1)
    assert not (tmp_path / "run.json").exists()
    assert run_ten(tmp_path, seed=1, force=True).is_complete
    assert (tmp_path / "records-unknown.jsonl").read_bytes() == before


def test_a_configuration_with_nan_is_equal_to_itself(tmp_path):
    for _ in range(2):
        run_ten(tmp_path, config={"threshold": math.nan})


def test_two_writers_are_refused(tmp_path):
    code = f"import time; from pathlib import Path; from inferscale.evaluate.records import locked\nwith locked(Path({str(tmp_path / 'lock')!r})): print('held', flush=True); time.sleep(60)"  # noqa: E501
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunLockedError, match=rf"pid {holder.pid}\) is writing"):
            run_ten(tmp_path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    run_ten(tmp_path)  # a lock is gone with its process
    with locked(tmp_path / "lock"), pytest.raises(RunLockedError, match=f"pid {os.getpid()}"):
        run_ten(tmp_path)


def test_problems_without_gold_are_solved_and_not_graded(tmp_path):
    run = run_ten(tmp_path, problems=["Who?", "Why?"])
    assert [record["correct"] for record in run.records] == [None, None]
    assert math.isnan(run.accuracy)
    assert math.isnan(run.standard_error)
    with pytest.raises(ValueError, match="no problems"):
        run_ten(tmp_path / "none", problems=[])


def test_the_bar_shows_accuracy_and_starts_where_the_run_does(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run_ten(tmp_path, generator=Interrupted(4), batch_size=1)
    run_ten(tmp_path, generator=Interrupted(99), batch_size=1, progress=True)
    shown = capsys.readouterr().err
    assert "accuracy=" in shown
    assert "4/10" in shown
    assert "10/10" in shown


def test_folders_without_a_run(tmp_path):
    with pytest.raises(ValueError, match="there is no run in"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="not the description of a run"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match="not the description of a run"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "infer')
    with pytest.raises(ValueError, match=r"run\.json is damaged \(.*restore it"):
        run_ten(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format": "inferscale.Run", "version": 2}))
    with pytest.raises(ValueError, match="newer inferscale"):
        load_run(tmp_path)


def test_a_memory_of_scores_is_no_other_configuration_once_it_is_used(tmp_path):
    cached = CachedProcessReward(ToyProcessReward())
    run_evaluation(TEN, SAMPLING, ToyGenerator(), tmp_path, reward_model=cached)
    assert cached.misses > 0
    run_evaluation(TEN, SAMPLING, ToyGenerator(), tmp_path, reward_model=cached)


def test_memory_is_known_where_the_system_tells(monkeypatch):
    peak = runs_module.peak_memory_bytes()
    assert peak is None or peak > 1e6


def test_the_kind_of_a_problem_is_graded_and_is_another_problem(tmp_path):
    letters = [Problem("Which?", "(b)", kind="choice:AB")]

    class Letter(ToyGenerator):
        def generate(self, requests):
            return [[replace(step, text="The answer is B.") for step in of] for of in super().generate(requests)]

    run = run_evaluation(letters, SAMPLING, Letter(), tmp_path / "run")
    assert (run.accuracy, run.records[0]["answer"]) == (1.0, "B")
    assert next(run.results()).problem == letters[0]
    assert problem_keys(letters, "") != problem_keys([replace(letters[0], kind=None)], "")
    with pytest.raises(ChangedRunError):
        run_evaluation([replace(letters[0], kind="choice:ABC")], SAMPLING, Letter(), tmp_path / "run")
