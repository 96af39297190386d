"""A call of the engine: its parts, checked before any compute is spent, and what a search becomes in the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal, TypeAlias, get_args

from ._models import Models
from ._search import ExtractAnswer, Search, trajectory
from ._streams import Streams
from ._waves import Waves
from .aggregators import MajorityVote
from .base import Aggregator, Generator, ProcessRewardModel, RewardModel, SearchStrategy
from .cost import Budget
from .functional import Reduction
from .journal import Journal
from .result import SearchResult, voted
from .tree import Node, Problem

Schedule: TypeAlias = Literal["wave", "stream"]
"""When searches are resumed: all together, or each when its own answers are there."""


@dataclass(frozen=True)
class Task:
    """The arguments of a call; see `inferscale.engine.solve_batch`."""

    strategy: SearchStrategy
    generator: Generator
    reward_model: RewardModel | None
    aggregator: Aggregator | None
    extract_answer: ExtractAnswer
    budget: Budget | None
    seed: int
    schedule: Schedule
    batch_size: int | None

    def __post_init__(self) -> None:
        """Refuses parts that are not what they should be, or do not fit each other."""
        _check_part("strategy", self.strategy, SearchStrategy, "give an instance such as REBASE(width=16)")
        _check_part("generator", self.generator, Generator, "wrap a model: HFGenerator(model, tokenizer)")
        if self.aggregator is not None:
            _check_part("aggregator", self.aggregator, Aggregator, "give an instance such as MajorityVote()")
        if self.reward_model is not None:
            _check_part("reward_model", self.reward_model, RewardModel, "wrap a function: RewardFunction(f)")
        if self.budget is not None:
            _check_part("budget", self.budget, Budget, "give Budget(tokens=..., flops=..., seconds=..., calls=...)")
        if not callable(self.extract_answer):
            raise TypeError(f"extract_answer must be a function of the completion, not {self.extract_answer!r}")
        self._check_integers()
        if self.reward_model is None and self.strategy.needs_scores:
            raise ValueError(f"{self.strategy!r} scores its nodes: pass reward_model=...")
        if self.reward_model is None and self.vote.needs_scores:
            raise ValueError(f"{self.vote!r} reads scores: pass reward_model=...")
        self._check_reduction()
        self._check_schedule()

    def _check_reduction(self) -> None:
        judge = self.reward_model
        if isinstance(judge, ProcessRewardModel) and judge.reduction not in get_args(Reduction):
            choices = ", ".join(map(repr, get_args(Reduction)))
            raise ValueError(f"{type(judge).__name__} has reduction={judge.reduction!r}: choose one of {choices}")

    def _check_integers(self) -> None:
        seed: object = self.seed
        if not isinstance(seed, Integral):
            raise TypeError(f"seed must be an integer, not {seed!r}")
        object.__setattr__(self, "seed", int(seed))  # NumPy's are written differently, in the fingerprint too
        size: object = self.batch_size
        if size is not None:
            if not isinstance(size, Integral) or int(size) < 1:
                raise ValueError(f"batch_size={size}: at least one problem must be searched at a time")
            object.__setattr__(self, "batch_size", int(size))

    def _check_schedule(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ValueError(f'schedule={self.schedule!r}: choose "wave" or "stream"')
        if self.schedule == "wave":
            return
        for part in (self.generator, self.reward_model):
            if part is not None and not part.concurrent:
                name = type(part).__name__
                raise ValueError(
                    f'schedule="stream" calls {name} from several threads at a time, and its `concurrent` is False: '
                    f'use schedule="wave", or set `concurrent = True` on a {name} that can be called so'
                )

    @property
    def vote(self) -> Aggregator:
        """What picks the trajectory to report."""
        return self.aggregator or MajorityVote()

    def fingerprint(self) -> dict[str, str]:
        """What a journal must have been written with to be continued; the schedule does not matter."""
        return {"strategy": repr(self.strategy), "budget": repr(self.budget), "seed": repr(self.seed)}

    def scheduler(self, journal: Journal) -> Waves | Streams:
        """What resumes the searches."""
        models = Models(self.generator, self.reward_model, journal)
        return Waves(models) if self.schedule == "wave" else Streams(models)

    def start(self, index: int, problem: Problem, seen: Counter[str]) -> Search:
        """The search of a problem; `seen` counts equal prompts, which are different problems."""
        occurrence = seen[problem.prompt]
        seen[problem.prompt] += 1
        again = f"#{occurrence}" if occurrence else ""  # before the prompt, which may hold anything
        stream_name = f"{self.seed}{again}/{problem.prompt}"
        return Search(index, problem, stream_name, self.strategy, self.budget, self.reward_model is not None)

    def finish(self, search: Search) -> SearchResult:
        """The result of a search that has ended, which the models may forget then."""
        result = self.result(search)
        self.release(search.root)
        return result

    def result(self, search: Search) -> SearchResult:
        """What `search` has found until now."""
        stopped_by = "error" if search.leaves is None else search.stopped_by
        leaves = search.root.leaves() if search.leaves is None else search.leaves
        trajectories = tuple(trajectory(leaf, self.extract_answer) for leaf in leaves)
        unscored = self.vote.needs_scores and all(t.score is None for t in trajectories)  # all samples failed
        selected = trajectories[0] if unscored else voted(self.vote, trajectories)
        return SearchResult(
            search.root.problem, selected, trajectories, tuple(leaves), search.root, search.cost, stopped_by
        )

    def kept(self, search: Search) -> SearchResult:
        """`result` after an error, which may have come from reading answers or voting: then the tree without them."""
        try:
            return self.result(search)
        except Exception:
            return replace(self, extract_answer=_no_answer, aggregator=None).result(search)

    def release(self, root: Node) -> None:
        """Tells the models that a search has ended."""
        self.generator.release(root)
        if self.reward_model is not None:
            self.reward_model.release(root)


def coerced(problem: Problem | str) -> Problem:
    """The problem, of which a prompt may stand alone.

    Raises:
        TypeError: If it is neither.
        ValueError: If the prompt is empty or holds half a character.
    """
    given = Problem(problem) if isinstance(problem, str) else problem
    if not isinstance(given, Problem):
        raise TypeError(
            f"a problem is a Problem or a prompt, not {type(given).__name__} {given!r:.80}: "
            "write Problem(prompt, answer=...)"
        )
    try:
        given.prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the prompt {given.prompt!r:.80} holds half a character (a lone surrogate)") from None
    return given


def _no_answer(text: str) -> None:
    """Reads nothing."""


def _check_part(name: str, part: object, kind: type, hint: str) -> None:
    if not isinstance(part, kind):
        given = f"the class {part.__name__}" if isinstance(part, type) else f"{type(part).__name__} {part!r:.80}"
        raise TypeError(f"{name} must be {_with_article(kind.__name__)}, not {given}: {hint}")


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
