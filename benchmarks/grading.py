"""How a grader's worker can be started: ``python -m benchmarks.grading`` (needs ``pip install pebble loky``).

Each way judges an easy pair, one that never ends, and another easy pair, in a script without ``if __name__ ==
"__main__"``, as people write them. Printed: the verdicts, how often the user's main module ran, and the seconds from
the hang to the next verdict, with the start of a new worker.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

WAYS = ("ours", "spawn", "forkserver", "empty main", "fork", "loky")
EASY, BOMB, OTHER = (r"2\pi", r"\pi+\pi"), ("9^{9^{9^9}}", "5"), (r"3\pi", r"2\pi+\pi")
SCRIPT = "print('main module runs', flush=True)\nfrom benchmarks.grading import judge\njudge({way!r})\n"


def same(first: str, second: str) -> bool:
    """What a pool's worker does."""
    from math_verify import parse, verify

    pair = [parse(f"${text}$", parsing_timeout=None) for text in (first, second)]
    return bool(verify(*pair, timeout_seconds=None))


def judge(way: str) -> None:
    """Prints the verdicts and the seconds after the hang."""
    ask = _ours() if way == "ours" else _pebble(way)
    print("verdict", ask(*EASY), flush=True)
    started = time.perf_counter()
    print("verdict", ask(*BOMB), flush=True)
    print("verdict", ask(*OTHER), flush=True)
    print("seconds", round(time.perf_counter() - started, 1), flush=True)


def _ours() -> Callable[[str, str], object]:
    from inferscale.evaluate import MathGrader

    return MathGrader(timeout=1).judge


def _pebble(way: str) -> Callable[[str, str], object]:
    import multiprocessing
    import types

    from loky.backend import get_context
    from pebble import ProcessPool

    method = "spawn" if way == "empty main" else way
    pool = ProcessPool(1, context=get_context("loky") if way == "loky" else multiprocessing.get_context(method))
    main = sys.modules["__main__"]

    def ask(first: str, second: str) -> str:
        if way == "empty main" and first == EASY[0]:  # the worker that replaces a killed one starts in pebble's thread
            sys.modules["__main__"] = types.ModuleType("__main__")
        future = pool.schedule(same, args=(first, second), timeout=1 if first == BOMB[0] else 60)
        sys.modules["__main__"] = main
        try:
            return "same" if future.result(timeout=60) else "different"
        except FutureTimeoutError:
            return "timeout"

    return ask


def main() -> None:
    """Prints the table as markdown."""
    print("| worker | verdicts | the user's main module runs | seconds after the hang |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "unguarded.py"
        for way in WAYS:
            script.write_text(SCRIPT.format(way=way))
            command = [sys.executable, str(script)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=_with_this_folder())
            lines = done.stdout.splitlines()
            verdicts = [line.split()[1] for line in lines if line.startswith("verdict")] + ["broken"] * done.returncode
            seconds = next((line.split()[1] for line in lines if line.startswith("seconds")), "")
            runs = lines.count("main module runs")
            print(f"| {way} | {', '.join(verdicts)} | {runs} | {seconds} |", flush=True)


def _with_this_folder() -> dict[str, str]:
    import os

    here = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}


if __name__ == "__main__":
    main()
