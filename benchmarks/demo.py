"""CPU seconds of the demo, before and after a change, and where they go.

``python -m benchmarks.demo`` runs ``inferscale demo`` in a process of its own on one thread and prints its CPU seconds,
importing included. With ``--before PATH``, the root of an older checkout (``git worktree add PATH COMMIT``), both take
turns, and the ratio of the least of each is printed. ``--parts`` runs the searches in this process and prints the CPU
seconds of each part without those of the parts that it calls. Compare figures of one run only.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def demo_seconds(root: Path, problems: int) -> float:
    """CPU seconds of the demo of a checkout, in user and system mode."""
    env = {**os.environ, "PYTHONPATH": str(root.resolve() / "src"), "OMP_NUM_THREADS": "1"}
    env["TOKENIZERS_PARALLELISM"] = "false"
    command = [sys.executable, "-m", "inferscale", "demo", "--no-progress", "--problems", str(problems)]

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    start = spent()
    subprocess.run(command, env=env, cwd=root, stdout=subprocess.DEVNULL, check=True)
    return spent() - start


class Clock:
    """CPU seconds of functions, without those of the watched functions that they call."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._inner: list[float] = []  # seconds of watched calls, for each call that is under way

    def watch(self, owner: Any, name: str, label: str) -> None:
        """Times a method under a label from now on."""
        call: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            self._inner.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                passed = time.process_time() - start
                self.seconds[label] += passed - self._inner.pop()
                self.calls[label] += 1
                if self._inner:
                    self._inner[-1] += passed

        setattr(owner, name, staticmethod(timed) if isinstance(vars(owner)[name], staticmethod) else timed)


def parts(problems: int) -> None:
    """Prints where the CPU seconds of the searches go."""
    import torch

    from inferscale import zoo
    from inferscale.cli.demo import EMBEDDED, rows
    from inferscale.engine.scheduling import Scheduler
    from inferscale.evaluate.parts import make_generator, make_reward
    from inferscale.rewards.scorer import StepScorer, TreeScorer
    from inferscale.runtime.branch import Branch
    from inferscale.runtime.decoding import Rows, TokenBuffer, TreeDecoder
    from inferscale.runtime.kv import PromptPlan, RowBatch, RowPlan
    from inferscale.runtime.prefix_cache import PrefixCache
    from inferscale.runtime.sampling import Sampler
    from inferscale.runtime.session import Session

    torch.set_num_threads(1)
    print(f"{time.process_time():8.2f}  importing")
    generator, reward = make_generator("policy-s", EMBEDDED.temperature), make_reward(EMBEDDED.reward)
    clock = Clock()
    for owner, name, label in (
        (Session, "_forward", "linear layers, norms and activations of both models, and transformers"),
        (RowPlan, "_private", "attention of rows to their own tokens"),
        (RowPlan, "_shared", "attention of rows to prompts"),
        (RowPlan, "_store", "new keys and values"),
        (RowPlan, "attend", "attention: joining the parts"),
        (RowPlan, "__init__", "places, masks and positions of a forward"),
        (PromptPlan, "attend", "attention of prompts"),
        (RowBatch, "gathered", "rows copied at forks, and where others have ended or join"),
        (PrefixCache, "open", "prefixes found again"),
        (PrefixCache, "park", "prefixes parked"),
        (TreeDecoder, "start", "rows that begin"),
        (TreeDecoder, "keep", "rows that end"),
        (Sampler, "draw", "drawing tokens"),
        (TokenBuffer, "record", "looking for ends"),
        (Rows, "_draw", "the loop over tokens"),
        (Branch, "take", "text of tokens that may end a step"),
        (Branch, "step", "steps out of tokens"),
        (StepScorer, "paths", "encoding paths for the reward model"),
        (TreeScorer, "score", "scores of paths"),
        (TreeScorer, "_run", "scores of parts of paths"),
        (Scheduler, "advance", "searches, trees and costs"),
    ):
        clock.watch(owner, name, label)
    start = time.process_time()
    for _ in rows(zoo.problems("test")[:problems], generator, reward, EMBEDDED.width):
        pass
    total = time.process_time() - start
    clock.seconds["all else"] = total - sum(clock.seconds.values())
    for label, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"{seconds:8.2f}  {100 * seconds / total:4.1f} %  {clock.calls[label]:7d} calls  {label}")
    print(f"{total:8.2f}  searches of {problems} problems")


def main() -> None:
    """Prints the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="root of an older checkout")
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", action="store_true", help="where the seconds go")
    options = parser.parse_args()
    if options.parts:
        parts(options.problems)
        return
    roots = {"before": options.before, "now": ROOT} if options.before else {"now": ROOT}
    times: dict[str, list[float]] = {name: [] for name in roots}
    for _ in range(options.repeats):
        for name, root in roots.items():
            times[name].append(demo_seconds(root, options.problems))
            print(f"{times[name][-1]:8.2f} CPU seconds {name}", flush=True)
    if options.before:
        before, now = min(times["before"]), min(times["now"])
        print(f"{before:.2f} before, {now:.2f} now: {before / now:.2f} times as fast")


if __name__ == "__main__":
    main()
