"""Rewards that are functions: any callable, and the exact checker of the embedded task."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

from inferscale.base import ProcessRewardModel, RewardModel, check_judge
from inferscale.functional import Reduction
from inferscale.tree import Judge, Node


class RewardFunction(RewardModel):
    """Any function as a reward model: ``f(nodes)``, or TRL's ``f(prompts, completions, **columns)``.

    A function that takes `completions` is called in TRL's way, with keywords, and is given those of these that it can
    take: `prompts`, `completions`, `completion_ids`, `answer` (the gold answers), `id`, the columns of the problems
    (`Problem.columns`; ``None`` for a problem that lacks one), those given here, and inert `trainer_state`, `log_extra`
    and `log_metric`. As with TRL, problems with messages come as lists of message dictionaries, completions too, and an
    assistant's turn that is gone on with stands at the beginning of the completion. Coroutine functions are run to
    their end.

    Attributes:
        function: The function.
        conversational: True if plain prompts come as lists of message dictionaries too.
        columns: Further keyword arguments. A callable is called with each node; anything else is repeated.
        judge: The part of a solution that the function is shown, where the policy thinks: ``"all"`` with the markers of
            thoughts, the ``"final"`` part or the ``"thoughts"``.

    Raises:
        TypeError: If `function` is none.
        ValueError: If its parameters fit neither way of calling it, or `judge` is unknown.

    Example:
        >>> import inferscale as isc
        >>> def brief(completions, answer, **columns):  # TRL's signature
        ...     return [-len(text) - 100 * (gold not in text) for text, gold in zip(completions, answer)]
        >>> solver = isc.Solver(
        ...     isc.RepeatedSampling(8), isc.testing.ToyGenerator(), isc.RewardFunction(brief), isc.BestOfN()
        ... )
        >>> solver.solve(isc.Problem("How many?", answer="3")).answer
        '3'
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        conversational: bool = False,
        columns: Mapping[str, Any] | None = None,
        judge: Judge = "all",
    ) -> None:
        if not callable(function):
            raise TypeError(f"RewardFunction wraps a function, not {type(function).__name__}")
        self.function = function
        self.conversational = conversational
        self.columns = dict(columns or {})
        self.judge = check_judge(judge)
        self.name = str(getattr(function, "__name__", type(function).__name__))
        self._parameters = inspect.signature(function).parameters
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in self._parameters.values())
        self._in_trl_style = "completions" in self._parameters
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        required = [n for n, p in self._parameters.items() if p.default is p.empty and p.kind not in variadic]
        self._required = frozenset(required) if self._in_trl_style else frozenset()
        if not self._in_trl_style and (len(required) > 1 or not self._parameters):
            raise ValueError(
                f"{self.name}({', '.join(self._parameters)}) is neither f(nodes) nor TRL's f(prompts, completions, ...)"
            )

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """The numbers that the function returns for `nodes`; the engine checks them.

        Raises:
            TypeError: If that is no list.
            ValueError: If the function needs a column that neither the problems nor this object has.
        """
        parts = [node.part(self.judge) for node in nodes]
        answer = self.function(**self._arguments(parts)) if self._in_trl_style else self.function(parts)
        if inspect.isawaitable(answer):
            awaitable = answer

            async def run() -> Any:
                return await awaitable

            # in a thread and a loop of its own: the caller may already be inside a running loop
            with ThreadPoolExecutor(max_workers=1) as pool:
                answer = pool.submit(asyncio.run, run()).result()
        answer = answer.tolist() if hasattr(answer, "tolist") else answer
        if not isinstance(answer, Iterable) or isinstance(answer, str | Mapping):
            raise TypeError(f"{self.name} returned {answer!r:.80}: return a list with one number for each node")
        return list(answer)

    def check_prompt(self, root: Node) -> None:
        """Refuses a problem without a column that the function needs."""
        self._check([*_SAMPLED, "answer", "id", *(root.problem.columns or {}), *self.columns])

    def _check(self, offered: Iterable[str]) -> None:
        if missing := sorted(self._required - set(offered)):
            raise ValueError(
                f"{self.name} needs {', '.join(missing)}: pass columns={{{missing[0]!r}: ...}} here, or to each Problem"
            )

    def __repr__(self) -> str:
        """Names the function."""
        return f"RewardFunction({self.name})"

    def _arguments(self, nodes: Sequence[Node]) -> dict[str, Any]:
        problems = [node.problem for node in nodes]
        chats = [self.conversational or problem.messages is not None for problem in problems]
        offered: dict[str, Any] = {
            "prompts": [p.question.turns if chat else p.prompt for p, chat in zip(problems, chats, strict=True)],
            "completions": [
                [{"role": "assistant", "content": node.problem.prefill + node.text}] if chat else node.text
                for node, chat in zip(nodes, chats, strict=True)
            ],
            "completion_ids": [list(node.token_ids) for node in nodes],
            "answer": [problem.answer for problem in problems],
            "id": [problem.id for problem in problems],
            "trainer_state": None,
            "log_extra": lambda *args, **kwargs: None,
            "log_metric": lambda *args, **kwargs: None,
        }
        rows = [problem.to_dict().get("columns", {}) for problem in problems]
        names = list(dict.fromkeys(name for row in rows for name in row))
        if clash := sorted(_SAMPLED.intersection(names)):
            raise ValueError(f"a column has the name {clash[0]!r}, under which the search gives its own: rename it")
        for name in names:
            own = offered.get(name, [None] * len(rows))  # of the problem itself: its answer, say
            offered[name] = [row.get(name, value) for row, value in zip(rows, own, strict=True)]
        for name, column in self.columns.items():
            offered[name] = [column(node) if callable(column) else column for node in nodes]
        self._check(offered)
        return {name: value for name, value in offered.items() if self._takes_all or name in self._parameters}


_SAMPLED = frozenset({"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"})
"""Keywords of a reward function that are no columns."""


class CheckerReward(ProcessRewardModel):
    """The exact checker of the embedded task: an oracle, not a model.

    A step scores 1.0 while every line so far is right, and 0.0 from the first wrong one on. Use it to see what a
    search can do with a perfect judge; results with it say nothing about a trained reward model.

    Attributes:
        reduction: How step scores become one score.

    Example:
        >>> import inferscale as isc
        >>> from inferscale import zoo
        >>> from inferscale.rewards import LabelledSolution
        >>> problem = zoo.task.generate(1, seed=7, level=2)[0]
        >>> steps = zoo.task.solution(problem.prompt).splitlines()
        >>> steps[1] += "0"  # a slip
        >>> leaf = LabelledSolution(problem, tuple(steps), (None,) * len(steps)).node()
        >>> isc.CheckerReward().step_scores([leaf])
        [[1.0, 0.0, 0.0, 0.0, 0.0]]
    """

    def __init__(self, reduction: Reduction = "last") -> None:
        self.reduction = reduction

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """For each node, 1.0 or 0.0 for each of its steps."""
        from inferscale.zoo.task import step_labels

        texts = [list(accumulate(piece for piece, _ in node.inner_steps())) for node in nodes]
        return [
            [float(all(step_labels(node.problem.prompt, text))) for text in prefixes]
            for node, prefixes in zip(nodes, texts, strict=True)
        ]
