"""The process that compares answers with math-verify; it is run as a script and killed when it hangs.

It imports nothing of inferscale, reads one JSON object per line (``{"first": ..., "second": ...}``) and writes one
back (``{"same": ...}``). Whatever goes wrong in it ends it: the parent sees that, counts it and starts another one.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
from importlib import import_module
from typing import Any


def main(cpu_seconds: float, seconds: float, memory_bytes: int) -> None:
    """Answers until standard input ends.

    Args:
        cpu_seconds: Processor time of one comparison, beyond which the process ends by SIGPROF (where there is one).
        seconds: One comparison may take so long; the parent kills sooner, this is for when the parent is gone.
        memory_bytes: Most address space.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    nowhere = open(os.devnull, "w")  # noqa: SIM115  (open until the process ends: libraries may print into it)
    sys.stdout = sys.stderr = nowhere
    logging.disable()
    _limit_memory(memory_bytes)
    math_verify = import_module("math_verify")

    def parsed(answer: str) -> Any:
        return math_verify.parse(answer if "$" in answer else f"${answer}$", parsing_timeout=None)

    def reply(message: dict[str, bool]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    reply({"ready": True})
    for line in sys.stdin:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        _limit_processor(cpu_seconds)
        request = json.loads(line)
        first, second = parsed(request["first"]), parsed(request["second"])
        # verify() is not symmetric: an inequality is compared with an interval in one direction only
        pairs = ((first, second), (second, first))
        same = any(math_verify.verify(gold, answer, timeout_seconds=None) for gold, answer in pairs)
        _limit_processor(0)
        faulthandler.cancel_dump_traceback_later()
        reply({"same": bool(same)})


def _limit_processor(seconds: float) -> None:
    """Ends this process after so much more processor time, whatever it is doing; 0 takes the limit off."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends a process that does not handle it


def _limit_memory(memory_bytes: int) -> None:
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
