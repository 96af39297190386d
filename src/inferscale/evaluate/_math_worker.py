"""The process that compares answers with math-verify; it is run as a script and killed when it hangs.

It imports nothing of inferscale, reads one JSON object per line (``{"first": ..., "second": ...}``) and writes one
back (``{"same": ...}``). Whatever goes wrong in it ends it: the parent sees that, counts it and starts another one.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
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
        answer = re.sub(r"\\mathrm\s*\{(\w)\}", r"\1", answer)
        found = math_verify.parse(answer if "$" in answer else f"${answer}$", parsing_timeout=None)
        return found if _is_whole(found, answer) else []

    def reply(message: dict[str, bool]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    reply({"ready": True})
    for line in sys.stdin:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        _limit_processor(cpu_seconds)
        request = json.loads(line)
        first, second = parsed(request["first"]), parsed(request["second"])
        same = math_verify.verify(second, first, timeout_seconds=None) and not _far_apart(first, second)
        _limit_processor(0)
        faulthandler.cancel_dump_traceback_later()
        reply({"same": bool(same)})


def _is_whole(found: list[Any], answer: str) -> bool:
    """True if no letter or digit of the answer was passed over: a part of an answer is another answer."""

    def signs(text: str) -> int:
        return len(re.findall(r"[A-Za-z0-9]", re.sub(r"\\[A-Za-z]+", "", text)))

    texts = [item for item in found if isinstance(item, str)]
    return not texts or max(map(signs, texts)) >= signs(answer)


def _far_apart(first: list[Any], second: list[Any]) -> bool:
    """True if two numbers differ by more than a millionth of the greater: math-verify rounds to six places."""
    numbers = [item for pair in (first, second) for item in pair[:1] if getattr(item, "is_number", False)]
    if len(numbers) != 2:
        return False
    one, two = (number.evalf(30) for number in numbers)
    size = max(abs(one), abs(two))
    return bool(size.is_finite and size > 0 and abs(one - two) > size * 1e-6)


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
