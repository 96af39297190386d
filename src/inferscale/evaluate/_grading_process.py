"""The parent's side of a grading process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal, TypeAlias

_OUT_OF_TIME = getattr(signal, "SIGPROF", 0)
_WORKER = Path(__file__).with_name("_math_worker.py")
_Lines: TypeAlias = "queue.SimpleQueue[str | None]"


class GradingProcess:
    """One process; used by one thread at a time."""

    def __init__(self, timeout: float, memory_bytes: int, startup_seconds: float) -> None:
        # processor time is the limit where the system can hold it, so that verdicts do not depend on the machine's load
        self._patience = timeout if os.name == "nt" else 10 * timeout + 10
        self._startup_seconds = startup_seconds
        limits = (timeout, self._patience + 5, memory_bytes)
        self._command = [sys.executable, "-P", str(_WORKER), *map(str, limits)]
        self._process: subprocess.Popen[str] | None = None
        self._replies: _Lines = queue.SimpleQueue()
        self._ready = False

    def compare(self, first: str, second: str) -> Literal["same", "different", "timeout", "crash"]:
        """The verdict on one pair; after a hang or a crash the process is another one."""
        process = self._started()
        if process.stdin is None:
            raise RuntimeError("the grading process has no standard input")
        try:
            process.stdin.write(json.dumps({"first": first, "second": second}) + "\n")
            process.stdin.flush()
            line = self._replies.get(timeout=self._patience)
        except queue.Empty:
            self._replace()
            return "timeout"
        except OSError:
            line = None
        except BaseException:
            self.kill()  # a reply that comes later must not be taken for the next one's
            raise
        if line is None:
            code = process.wait()
            self._replace()
            return "timeout" if code == -_OUT_OF_TIME else "crash"
        return "same" if json.loads(line)["same"] else "different"

    def kill(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):  # what was still to be written has no reader any more
                        stream.close()
            self._process = None

    def _replace(self) -> None:
        self.kill()
        self._launch()  # starts while the caller goes on

    def _launch(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            encoding="utf-8", start_new_session=os.name == "posix",
        )  # fmt: skip
        # a session of its own: Ctrl-C at the terminal is the parent's business
        self._process, self._replies, self._ready = process, queue.SimpleQueue(), False
        threading.Thread(target=_read_lines, args=(process, self._replies), daemon=True).start()
        return process

    def _started(self) -> subprocess.Popen[str]:
        process = self._process if self._process is not None else self._launch()
        if not self._ready:
            try:
                line = self._replies.get(timeout=self._startup_seconds)
            except queue.Empty:
                line = None
            if line is None:
                self.kill()
                raise RuntimeError(
                    "the grading process did not start: check that `python -c 'import math_verify'` works, or grade "
                    "with inferscale.answers.same_answer"
                )
            self._ready = True
        return process


def _read_lines(process: subprocess.Popen[str], replies: _Lines) -> None:
    """Hands over what the process writes, and ``None`` at its end."""
    if process.stdout is not None:
        with contextlib.suppress(ValueError):  # closed while reading
            for line in process.stdout:
                replies.put(line)
    replies.put(None)
