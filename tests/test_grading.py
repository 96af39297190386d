import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from inferscale.aggregators import MajorityVote, group_answers
from inferscale.answers import same_answer
from inferscale.evaluate import MathGrader
from inferscale.tree import Problem, Step, Trajectory
from tests import hostile

ROOT = Path(__file__).parent.parent
needs_math = pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed (extra math)")

SAME = [
    (r"\frac{\sqrt{8}}{2}", r"\sqrt{2}"),
    (r"2\pi", r"\pi + \pi"),
    ("x>5", r"(5,\infty)"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\frac{3}{6}", "0.5"),
    ("(x+1)^2", "x^2+2x+1"),
    ("1,234", "1234.0"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} \frac{2}{2} \\ 2 \end{pmatrix}"),
]
DIFFERENT = [
    ("10%", "0.1"), ("1e999999999", "1"), ("x^2", "x^3"), ("", "5"), (" ", "5"), ("0.33", "1/3"), ("[]", "5"),
    ("(1,2)", "(2,1)"), (r"\text{Monday}", r"\text{Tuesday}"), ("5" * 513, "5" * 514),
]  # fmt: skip
BOMBS = ["9^{9^{9^9}}", "(10^9)!", "2^{10^8}", r"\binom{10^9}{5 \cdot 10^8}", r"((10^9)!)!"]
MORE_BOMBS = [
    "(x+1)^{100000}", r"\sum_{n=1}^{10^9} \frac{1}{n}", r"\int_0^1 x^{x^{x^x}} dx", "9" * 400 + "^{" + "9" * 90 + "}",
    "(" * 200 + "1" + ")" * 200, r"\frac{" * 120 + "1" + "}{2}" * 120, r"\prod_{n=1}^{10^7} n",
]  # fmt: skip
PAYLOAD = "__import__('os').system('touch {0}')"
WRAPPINGS = ["{}", "${}$", r"\boxed{{{}}}", r"\text{{{}}}", "x={}", "({})", "{},1", r"\frac{{{}}}{{1}}", "'{}'"]


@pytest.fixture(scope="module")
def grader():
    if find_spec("math_verify") is None:
        pytest.skip("math-verify is not installed (extra math)")
    with MathGrader(timeout=60) as made:
        yield made


@pytest.mark.parametrize(("first", "second"), SAME)
def test_the_same_in_both_directions(grader, first, second):
    assert grader(first, second)
    assert grader(second, first)


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_different_in_both_directions(grader, first, second):
    assert grader.judge(first, second) == grader.judge(second, first) == "different"


def test_a_normal_form_is_the_same_as_itself_without_a_worker():
    if find_spec("math_verify") is None:
        pytest.skip("math-verify is not installed (extra math)")
    grader = MathGrader()
    assert grader("[]", "[]")
    assert grader("5%", "5")
    assert not grader("7", "8")
    assert (grader.stats.compared, grader.stats.in_process, grader.stats.seconds) == (3, 3, 0.0)
    grader("7", "8")
    assert grader.stats.compared == 3, "a pair seen before is not compared again"


@needs_math
def test_bombs_time_out_and_are_counted():
    with MathGrader(timeout=0.4) as grader:
        verdicts = [grader.judge(bomb, "5") for bomb in BOMBS[:3]]
        assert all(verdict in ("timeout", "crash", "different") for verdict in verdicts)
        assert "timeout" in verdicts
        assert grader.stats.timeouts == verdicts.count("timeout")
        grader.timeout = 60
        assert grader(r"2\pi", r"\pi+\pi"), "a new worker took the place of the killed one"


@needs_math
@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS + MORE_BOMBS)
def test_every_bomb_is_judged_in_time(bomb):
    with MathGrader(timeout=0.5) as grader:
        grader(r"2\pi", r"\pi+\pi")
        started = time.perf_counter()
        for other in ("5", "x"):
            assert grader.judge(bomb, other) in ("timeout", "crash", "different")
        assert time.perf_counter() - started < 120


def test_nothing_is_executed(grader, tmp_path):
    sign = tmp_path / "pwned"
    payload = PAYLOAD.format(sign)
    for wrapping in WRAPPINGS:
        for gold in ("5", r"\sqrt{2}"):
            assert grader.judge(wrapping.format(payload), gold) in ("different", "crash", "timeout")
            assert not same_answer(wrapping.format(payload), gold)
    assert not sign.exists()


def test_any_thread_may_grade(grader):
    verdicts: dict[int, bool] = {}

    def work(index: int) -> None:
        verdicts[index] = grader(f"{index}\\pi + \\pi", f"{index + 1}\\pi")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert verdicts == dict.fromkeys(range(2, 8), True)


@needs_math
def test_a_hang_in_a_thread_ends_too():
    verdicts = []
    with MathGrader(timeout=0.3) as grader:
        thread = threading.Thread(target=lambda: verdicts.append(grader.judge(BOMBS[1], "3")))
        thread.start()
        thread.join(30)
    assert verdicts == ["timeout"]


def test_a_running_event_loop_goes_on(grader):
    async def work() -> tuple[bool, bool, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        direct = grader(r"3\pi", r"2\pi+\pi")
        aside = await asyncio.to_thread(grader, "x^2+x+x", "x^2+2x")
        ticking.cancel()
        return direct, aside, ticks

    direct, aside, ticks = asyncio.run(work())
    assert direct
    assert aside
    assert ticks > 0


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no SIGALRM here")
def test_the_callers_alarm_is_left_alone(grader):
    signal.setitimer(signal.ITIMER_REAL, 50)
    try:
        grader("x+y", "y+x")
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@needs_math
def test_a_run_notices_other_limits():
    with MathGrader(timeout=2) as one, MathGrader(timeout=2) as twin, MathGrader(timeout=3) as other:
        assert one.identity() == twin.identity() != other.identity()


@needs_math
def test_the_total_time_is_kept():
    with MathGrader(timeout=60, total_seconds=1e-6) as grader:
        assert grader.judge(r"2\pi", r"\pi+\pi") == "same"
        assert grader.judge(r"3\pi", r"\pi+2\pi") == "skipped"
        assert grader.judge("3", "3.0") == "same", "normal forms still decide"
        assert grader.stats.skipped == 1


@needs_math
def test_a_worker_that_dies_is_a_crash_and_not_the_end(grader):
    grader(r"4\pi", r"\pi+3\pi")
    worker = grader._workers[0]
    os.kill(worker._process.pid, signal.SIGTERM)
    assert grader.judge("x+z", "z+x") in ("crash", "same")
    assert grader(r"5\pi", r"\pi+4\pi")


@needs_math
def test_workers_end_with_their_grader():
    grader = MathGrader()
    grader(r"2\pi", r"\pi+\pi")
    process = grader._workers[0]._process
    del grader
    gc.collect()
    assert process.poll() is not None


def test_votes_join_what_the_grader_joins(grader):
    answers = [r"\frac{\sqrt{8}}{2}", "7", r"\sqrt{2}", None]
    assert group_answers(answers, grader) == [[0, 2], [1]]
    problem = Problem("How much?", r"\sqrt{2}")
    trajectories = [
        Trajectory(problem, (Step("x", finish_reason="eos"),), answer=answer)
        for answer in ("7", r"\sqrt{2}", r"\frac{\sqrt{8}}{2}")
    ]
    assert MajorityVote().select(trajectories).answer == "7"
    assert MajorityVote(same_answer=grader).select(trajectories).answer == r"\sqrt{2}"


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setattr("inferscale.evaluate.grading.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"inferscale\[math\]"):
        MathGrader()


@needs_math
@pytest.mark.parametrize("option", ["timeout", "total_seconds", "workers"])
def test_limits_are_positive(option):
    with pytest.raises(ValueError, match=f"{option}=0"):
        MathGrader(**{option: 0})


@needs_math
def test_a_worker_that_cannot_start_is_told(monkeypatch):
    grader = MathGrader(startup_seconds=20)
    monkeypatch.setattr(grader._workers[0], "_command", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="did not start"):
        grader(r"2\pi", r"\pi+\pi")


REPORT = "import json\nfrom tests import hostile\nprint(json.dumps(hostile.report()))"


def in_the_main_thread(_):
    assert threading.current_thread() is threading.main_thread()
    return hostile.report()


def in_a_thread(_):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(hostile.report).result(timeout=200)


def in_a_running_event_loop(_):
    async def work():
        return hostile.report()

    return asyncio.run(work())


def in_a_notebook(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{REPORT}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
    return json.loads(notebook.cells[0].outputs[0]["text"])


def in_a_script_without_a_guard(tmp_path):
    script, seen = tmp_path / "script.py", tmp_path / "seen"
    script.write_text(f"open({str(seen)!r}, 'a').write('x')\n{REPORT}")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, str(script)], {**os.environ, "PYTHONPATH": path}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert seen.read_text() == "x", "the main module is not run again in the worker"
    return json.loads(shown)


@needs_math
@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [in_the_main_thread, in_a_thread, in_a_running_event_loop, in_a_notebook, in_a_script_without_a_guard],
    ids=lambda place: place.__name__,
)
def test_hostile_answers_are_judged_in_time_and_never_executed(place, tmp_path):
    report = place(tmp_path)
    assert set(report["bombs"]) <= {"timeout", "crash", "different"}
    assert "timeout" in report["bombs"]
    assert set(report["payloads"]) <= {"timeout", "crash", "different"}
    assert report["pairs"] == [True, True, True]
    assert not report["plain"]
    assert report["made"] == [], "a payload was executed"
