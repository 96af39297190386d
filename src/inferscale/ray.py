"""Many problems over many machines: searches in an actor pool of Ray Data (extra ``ray``).

Each actor holds one generator and one reward model, on a GPU or a CPU, and solves batches of problems as `solve_batch`
does. On one machine nothing needs to be set up; on a cluster call ``ray.init(address="auto")`` before.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from inferscale.engine.files import as_plain
from inferscale.engine.progress import ProgressBar
from inferscale.engine.result import SearchResult
from inferscale.engine.solver import Solver, as_problems

from ._compat import require
from .answers import Reader
from .base import Aggregator, Generator, RewardModel, SearchStrategy, check_scores
from .cost import Budget
from .thinking import Thinking
from .tree import Problem


def make_batches(problems: Sequence[Problem], batch_size: int) -> list[list[int]]:
    """Divide problems into batches; return the places of the problems of each.

    Equal prompts stay together in their order: what tells their random streams apart is how many came before.

    Raises:
        ValueError: If there are no problems, or no room in a batch.
    """
    if not problems:
        raise ValueError("there are no problems to solve: pass at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give at least 1")
    equal: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        equal.setdefault(problem.stream, []).append(index)
    batches: list[list[int]] = [[]]
    for places in equal.values():
        if batches[-1] and len(batches[-1]) + len(places) > batch_size:
            batches.append([])
        batches[-1] += places
    return batches


def row_of(batch: Sequence[int], problems: Sequence[Problem]) -> dict[str, str]:
    """Return the row that stands for a batch, for an actor."""
    return {"places": json.dumps(batch), "problems": json.dumps([problems[index].to_dict() for index in batch])}


def results_of(rows: Iterator[Mapping[str, str]], total: int, progress: bool) -> Iterator[tuple[int, SearchResult]]:
    """Yield places and results of all rows; a result that is lost or comes twice is an error."""
    missing = set(range(total))
    with ProgressBar(total) if progress else nullcontext() as bar:
        for row in rows:
            for index, told in zip(json.loads(row["places"]), json.loads(row["results"]), strict=True):
                if index not in missing:
                    raise RuntimeError(f"Ray returned the result of problem {index} twice")
                missing.remove(index)
                result = SearchResult.from_dict(told)
                if bar is not None:
                    bar.finished(result)
                yield index, result
    if missing:
        raise RuntimeError(f"Ray returned no result for {len(missing)} problems, the first one {min(missing)}")


@dataclass(frozen=True)
class Journals:
    """The journals of one call, in a folder that all machines can write to.

    Attributes:
        folder: The folder; earlier calls may have left journals there.
        call: A name for this call.
        max_attempts: Most times that a batch is begun in it.
    """

    folder: Path
    call: str
    max_attempts: int

    @classmethod
    def at(cls, folder: str | os.PathLike[str], max_attempts: int) -> Journals:
        """Return the journals of a new call."""
        path = Path(folder).resolve()
        path.mkdir(parents=True, exist_ok=True)
        return cls(path, uuid.uuid4().hex[:8], max_attempts)

    def own(self, problems: str) -> Path:
        """Make a journal for another attempt at a batch, which begins with what the longest earlier one holds.

        Raises:
            RuntimeError: If there were too many attempts.
        """
        earlier = self._of(problems)
        attempt = sum(f"-{self.call}-" in path.name for path in earlier) + 1
        if attempt > self.max_attempts:
            raise RuntimeError(f"a batch was begun {self.max_attempts} times, and its actor died each time; it begins "
                               f"with {problems[:200]}")  # fmt: skip
        own = self.folder / f"{_name(problems)}-{self.call}-{uuid.uuid4().hex[:8]}.jsonl"
        if earlier:
            shutil.copyfile(max(earlier, key=lambda path: path.stat().st_size), own)
        else:
            own.touch()
        return own

    def keep(self, own: Path, problems: str) -> None:
        """Delete the journals of other attempts, unless one of them has deleted this one: the first to end wins."""
        if not own.exists():
            return
        for path in self._of(problems):
            if path != own:
                path.unlink(missing_ok=True)

    def _of(self, problems: str) -> list[Path]:
        return sorted(self.folder.glob(f"{_name(problems)}-*.jsonl"))


def _name(problems: str) -> str:
    return blake2b(problems.encode(), digest_size=8).hexdigest()


def solve_dataset(
    problems: Sequence[Problem | str],
    strategy: SearchStrategy,
    make_generator: Callable[[], Generator],
    make_reward_model: Callable[[], RewardModel] | None = None,
    *,
    aggregator: Aggregator | None = None,
    read_answer: Reader | None = None,
    thinking: Thinking | Literal[False] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    num_actors: int = 1,
    batch_size: int = 16,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_attempts: int = 10,
    storage: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> list[SearchResult]:
    """Return one `SearchResult` for each problem, in order; in float32 the results are those of `solve_batch`.

    An actor that dies is started again, and its batch goes on from its journal, or begins anew without `storage`. The
    same call with the same `storage` goes on where an earlier one was ended, and asks the models for nothing twice.

    Args:
        problems: Problems, or prompts.
        strategy: Decides what is sampled next.
        make_generator: Makes the generator, in the actor; a function that can be sent there.
        make_reward_model: Makes the reward model, in the actor.
        aggregator: Picks the trajectory to report; see `Solver` for this and the next four.
        read_answer: Reads the answer out of a completion; by default that of the problem's kind.
        thinking: The markers of thoughts.
        budget: The most that each problem may cost.
        seed: Any integer.
        num_actors: Actors, each with models of its own.
        batch_size: Problems that an actor searches at the same time; equal prompts stay together, however many.
        num_cpus: CPUs of an actor.
        num_gpus: GPUs of an actor.
        max_attempts: Most times that a batch is begun before the call fails, because its actor dies each time; kept
            where there is a `storage` (Ray alone would try for ever).
        storage: A folder for journals that all machines can write to. Each attempt writes a file of its own, so that
            an actor that was only thought dead does no harm.
        progress: Show a progress bar.

    Raises:
        ImportError: If Ray is not installed.
        TypeError: If `problems` is one prompt.
        ValueError: If the input is bad, or `storage` holds journals of another call.
        RuntimeError: If Ray lost a result.

    Example:
        Needs the extra ``ray``::

            from inferscale.ray import solve_dataset

            def make_generator():
                return isc.HFGenerator.from_pretrained("Qwen/Qwen2.5-1.5B-Instruct")

            results = solve_dataset(
                problems, isc.RepeatedSampling(16), make_generator, num_actors=8, num_gpus=1, storage="journals"
            )
    """
    results = dict(
        stream_dataset(
            problems, strategy, make_generator, make_reward_model, aggregator=aggregator,
            read_answer=read_answer, thinking=thinking, budget=budget, seed=seed, num_actors=num_actors,
            batch_size=batch_size, num_cpus=num_cpus, num_gpus=num_gpus, max_attempts=max_attempts, storage=storage,
            progress=progress,
        )
    )  # fmt: skip
    return [results[index] for index in range(len(problems))]


def stream_dataset(
    problems: Sequence[Problem | str],
    strategy: SearchStrategy,
    make_generator: Callable[[], Generator],
    make_reward_model: Callable[[], RewardModel] | None = None,
    *,
    aggregator: Aggregator | None = None,
    read_answer: Reader | None = None,
    thinking: Thinking | Literal[False] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    num_actors: int = 1,
    batch_size: int = 16,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_attempts: int = 10,
    storage: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Iterator[tuple[int, SearchResult]]:
    """Yield places of problems and their results, batch by batch as they finish; see `solve_dataset`.

    Actors do not run away from a slow reader: at most two batches for each actor are begun whose results have not been
    read to their end. What is held here does not grow with the results.

    Raises:
        ImportError: If Ray is not installed.
        TypeError: If `problems` is one prompt.
        ValueError: If the input is bad.
        RuntimeError: If Ray lost a result.

    Example:
        Needs the extra ``ray``::

            from inferscale.ray import stream_dataset

            for place, result in stream_dataset(problems, isc.RepeatedSampling(16), make_generator, num_actors=8):
                print(place, result.answer)
    """
    check_scores(
        make_reward_model, strategy, *([aggregator] if aggregator else []), advice="pass make_reward_model=..."
    )
    for name, count in (("num_actors", num_actors), ("max_attempts", max_attempts)):
        if count < 1:
            raise ValueError(f"{name}={count}: give at least 1")
    given = as_problems(problems, "solve_dataset")
    batches = [row_of(batch, given) for batch in make_batches(given, batch_size)]
    ray: Any = require("ray", "ray")
    data: Any = require("ray.data", "ray")
    journals = None if storage is None else Journals.at(storage, max_attempts)
    options = {
        "aggregator": aggregator, "read_answer": read_answer, "thinking": thinking, "budget": budget, "seed": seed
    }  # fmt: skip

    def rows() -> Iterator[Mapping[str, str]]:
        context = data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False  # a batch at the gate would wait for those before it
        with data.DataContext.current(context):
            # A block for each batch, or else Ray would hand several batches to one actor.
            dataset = data.from_items(batches, override_num_blocks=len(batches))
            batches.clear()  # Ray has them
            gate = ray.remote(_Gate).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(2 * num_actors)
            solved = dataset.map(
                _Actor,
                fn_constructor_args=(strategy, make_generator, make_reward_model, options, journals, gate),
                compute=data.ActorPoolStrategy(size=num_actors),
                num_cpus=num_cpus,
                num_gpus=num_gpus,
            )
            # Read ahead, a batch that is done would wait for the next one.
            for table in solved.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in table.to_pylist():
                    yield row
                    gate.leave.remote(row["places"])

    return results_of(rows(), len(given), progress)


class _Gate:
    """An actor that lets at most `most` batches be begun whose results have not been read."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside: set[str] = set()
        self._changed = asyncio.Condition()

    async def enter(self, batch: str) -> None:
        """Wait until a batch may begin; one that has begun already, in an actor that died, may at once."""
        async with self._changed:
            await self._changed.wait_for(lambda: batch in self._inside or len(self._inside) < self._most)
            self._inside.add(batch)

    async def leave(self, batch: str) -> None:
        """Let another batch in."""
        async with self._changed:
            self._inside.discard(batch)
            self._changed.notify_all()


class _Actor:
    """An actor: makes its models once, and solves batch after batch."""

    def __init__(
        self,
        strategy: SearchStrategy,
        make_generator: Callable[[], Generator],
        make_reward_model: Callable[[], RewardModel] | None,
        options: Mapping[str, Any],
        journals: Journals | None,
        gate: Any,
    ) -> None:
        reward_model = None if make_reward_model is None else make_reward_model()
        self._solver = Solver(strategy, make_generator(), reward_model, **options)
        self._journals, self._gate = journals, gate

    def __call__(self, row: Mapping[str, str]) -> dict[str, str]:
        """Return the results of one batch, as JSON."""
        require("ray", "ray").get(self._gate.enter.remote(row["places"]))
        problems = [Problem(**problem) for problem in json.loads(row["problems"])]
        journal = None if self._journals is None else self._journals.own(row["problems"])
        results = self._solver.solve_batch(problems, journal=journal)
        if self._journals is not None and journal is not None:
            self._journals.keep(journal, row["problems"])
        return {
            "places": row["places"],
            "results": json.dumps([result.to_dict() for result in results], default=as_plain),
        }


__all__ = ["solve_dataset", "stream_dataset"]
