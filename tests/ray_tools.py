"""A generator that leaves traces, for actors that import it."""

import os
import signal
import time
from pathlib import Path

from inferscale.base import Generator
from inferscale.testing import ToyGenerator


class Diary(Generator):
    """The toy, which writes down what it sampled, and dies once, in the middle of its work."""

    def __init__(self, folder, deadly):
        self._toy, self._folder, self._deadly = ToyGenerator(), Path(folder), deadly
        self._diary = self._folder / f"diary-{os.getpid()}-{time.time_ns()}"

    def generate(self, requests):
        time.sleep(0.01)
        if self._deadly and self._toy.calls == 9:
            try:
                (self._folder / "killed").touch(exist_ok=False)
            except FileExistsError:
                self._deadly = False
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        steps = self._toy.generate(requests)
        with self._diary.open("a") as file:
            file.writelines(f"{request.node.key} {request.first}\n" for request in requests)
        return steps

    def max_sample_tokens(self, request):
        return self._toy.max_sample_tokens(request)
