"""The engine's progress bar: what it says, when, and that it is silent when it should be."""

import io
import subprocess
import sys

import pytest
import tqdm.auto

from inferscale.engine import solve_batch, stream
from inferscale.engine.progress import ProgressBar
from inferscale.evaluate import run_evaluation
from inferscale.generators import HFGenerator
from inferscale.runtime import decoding
from inferscale.strategies import BeamSearch, RepeatedSampling
from inferscale.testing import BrokenGenerator, ToyGenerator, ToyReward
from inferscale.tree import Problem
from tests.tiny_models import byte_tokenizer, tiny_model

PROBLEMS = [Problem(f"How many in box {number}?", answer="1") for number in range(6)]


class Bar:
    """Stands for tqdm and keeps what it is told."""

    def __init__(self, **options):
        self.options, self.count, self.said, self.is_closed = options, 0, [], False

    def update(self, number):
        self.count += number

    def set_postfix(self, values, refresh):
        assert not refresh, "it is drawn by the clock"
        self.said.append((self.count, dict(values)))

    def refresh(self):
        assert not self.is_closed

    def close(self):
        self.is_closed = True


@pytest.fixture
def bars(monkeypatch):
    made = []

    def make(**options):
        made.append(Bar(**options))
        return made[-1]

    monkeypatch.setattr(tqdm.auto, "tqdm", make)
    return made


def test_it_counts_problems_rounds_tokens_and_right_answers(bars):
    results = solve_batch(PROBLEMS, RepeatedSampling(3), ToyGenerator(), batch_size=2, progress=True)
    [bar] = bars
    assert (bar.options["total"], bar.count, bar.is_closed) == (6, 6, True)
    done = [count for count, _ in bar.said]
    assert done == sorted(done)
    assert done[-1] == 6
    assert [said["rounds"] for _, said in bar.said] == list(range(1, len(done) + 1))
    assert all(float(said["tok/s"]) > 0 for _, said in bar.said)
    for count, said in bar.said:
        right = sum(result.answer == "1" for result in results[:count])
        assert said.get("accuracy") == (f"{right / count:.3f}" if count else None)
    assert 0 < sum(result.answer == "1" for result in results) < 6, "else the accuracy says nothing"


def test_tokens_of_searches_under_way_are_counted(bars, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr("inferscale.engine.progress.time.perf_counter", lambda: next(clock))
    results = solve_batch(PROBLEMS[:1], BeamSearch(2, 2), ToyGenerator(), reward_model=ToyReward(), progress=True)
    speeds = [float(said["tok/s"]) for _, said in bars[0].said]
    assert len(speeds) > 3, "a search of several levels says where it is before its end"
    assert all(speed > 0 for speed in speeds)
    assert results[0].cost.tokens > 0


def test_a_bar_is_refreshed_once_a_round_and_not_once_a_node(bars):
    toy = ToyGenerator()
    results = solve_batch(PROBLEMS, BeamSearch(4, 4), toy, reward_model=ToyReward(), progress=True)
    assert len(bars[0].said) <= 2 * toy.calls + 1
    assert sum(len(list(result.root.walk())) for result in results) > 10 * len(bars[0].said)


def test_no_accuracy_without_gold_answers_and_no_total_of_an_endless_stream(bars):
    endless = (Problem(f"How many, {number}?") for number in range(10**9))
    results = stream(endless, RepeatedSampling(2), ToyGenerator(), batch_size=2, progress=True)
    for _ in range(5):
        next(results)
    [bar] = bars
    assert bar.options["total"] is None
    assert bar.count >= 5
    assert not any("accuracy" in said for _, said in bar.said)
    assert not bar.is_closed
    results.close()
    assert bar.is_closed


def test_abstentions_are_wrong_and_problems_without_gold_do_not_count(bars):
    problems = [PROBLEMS[0], Problem("What?")]
    solve_batch(problems, RepeatedSampling(1), ToyGenerator(), read_answer=lambda text: None, progress=True)
    assert bars[0].said[-1][1]["accuracy"] == "0.000"


def test_it_is_taken_away_after_an_error(bars):
    with pytest.raises(KeyboardInterrupt):
        solve_batch(PROBLEMS, BeamSearch(2, 2), BrokenGenerator(die_after=1), reward_model=ToyReward(), progress=True)
    assert bars[0].is_closed


def run(progress):
    code = (
        "import sys, inferscale as isc\nfrom inferscale.testing import ToyGenerator\n"
        "problems = [isc.Problem(f'How many, {i}?', answer='1') for i in range(4)]\n"
        f"isc.solve_batch(problems, isc.RepeatedSampling(2), ToyGenerator(), progress={progress})\n"
        "sys.exit(sum(name.split('.')[0] in ('tqdm', 'IPython', 'ipywidgets') for name in sys.modules))"
    )
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)


def test_nothing_is_said_and_nothing_of_tqdm_is_imported_unless_it_is_asked_for():
    silent = run(progress=False)
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")


def test_a_log_gets_few_lines_and_the_last_numbers(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with ProgressBar(100) as bar:
        for number in range(100):
            now[0] += 1.0
            bar.count(10, number % 2 == 0)
            bar.show(rounds=number)
    lines = log.getvalue().splitlines()
    assert len(lines) == 5  # at the start, every 30 of 100 seconds, at the end
    assert "\r" not in log.getvalue()
    assert "0/100" in lines[0]
    assert "100/100" in lines[-1]
    assert "accuracy=0.500" in lines[-1]


def test_a_terminal_sees_a_bar_that_draws_over_itself(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar(3) as bar:
        bar.count(10, None)
    assert "\n" not in terminal.getvalue()
    assert terminal.getvalue().count("\r") > 2


def test_the_bar_is_on_standard_error():
    shown = run(progress=True)
    assert shown.returncode > 0, "tqdm is there"
    assert shown.stdout == ""
    assert "4/4" in shown.stderr
    for word in ("rounds=", "tok/s=", "accuracy="):
        assert word in shown.stderr


def hugging_face(**options):
    return HFGenerator(tiny_model(), byte_tokenizer(), **{"max_step_tokens": 30, "eos_token_id": 300, **options})


def test_tokens_are_counted_and_the_time_left_is_told_while_the_first_sample_is_drawn(bars, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("inferscale.engine.progress.time.perf_counter", lambda: now[0])
    letters = list(range(70, 80))
    generator = hugging_face(max_new_tokens=40, prefix_allowed_tokens_fn=lambda row, ids: letters)  # no end
    step = decoding.TreeDecoder.step

    def slow(self, tokens):
        now[0] += 1
        return step(self, tokens)

    monkeypatch.setattr(decoding.TreeDecoder, "step", slow)
    solve_batch(PROBLEMS[:4], RepeatedSampling(2), generator, progress=True)
    said = [said for count, said in bars[0].said if count == 0]
    assert int(said[0]["tokens"]) == 8 * 2, "the first tokens came at once"
    for seconds, each in enumerate(said, 1):
        tokens = int(each["tokens"])
        assert each["tok/s"] == f"{tokens / seconds:.0f}"
        left = round((4 * 2 * 40 - tokens) / (tokens / seconds))  # if all samples are as long as they can be
        assert each["left"] == f"{left // 60}:{left % 60:02d}"
    assert len(said) == 39
    assert bars[0].said[-1][1]["left"] == "0:00"


def test_a_run_shows_tokens_before_a_problem_is_done(bars, tmp_path, monkeypatch):
    monkeypatch.setattr("inferscale.engine.progress._INTERVAL", 0.0)
    run_evaluation(PROBLEMS, RepeatedSampling(1), hugging_face(max_new_tokens=9), tmp_path, progress=True)
    [bar] = bars
    assert bar.options["total"] == bar.count == 6
    assert sum(int(said["tokens"]) > 0 for count, said in bar.said if count == 0) >= 8
    assert int(bar.said[-1][1]["tokens"]) == 54
    assert "accuracy" in bar.said[-1][1]
