"""One problem's search while it runs: its tree, its pending request and its bill."""

from __future__ import annotations

import inspect
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from inferscale.base import Generator, SearchStrategy
from inferscale.cost import Budget, Cost
from inferscale.flow import Flow, Generate, GenerateRequest, Request, Score, as_score, score
from inferscale.tree import Node, Problem, Step, Trajectory, branch_key, root_key

ExtractAnswer = Callable[[str], str | None]


class Search:
    """Drives one strategy's flow; the engine answers what it asks.

    After construction and after each answer, either `request` holds the pending request or `leaves` the result.
    """

    def __init__(
        self, index: int, problem: Problem, stream: str, strategy: SearchStrategy, budget: Budget | None, scored: bool
    ) -> None:
        self.index = index
        self.root = Node(problem, key=root_key(stream))
        self.strategy = strategy
        self.budget = budget
        self.started = time.perf_counter()
        self.replaying = False  # whether a journal has the next answer
        self.stopped_by: str | None = None
        self.request: Request | None = None
        self.leaves: list[Node] | None = None
        self.cost = Cost()
        self._scored = scored
        self._flow = self._whole(random.Random(stream))
        self._queue: deque[tuple[int, GenerateRequest]] = deque()
        self._groups: list[list[Node]] = []
        self._advance(None)

    # -- the flow ------------------------------------------------------------------------------------------------

    def _whole(self, rng: random.Random) -> Flow[list[Node]]:
        flow = self.strategy.search(self.root, rng)
        if not inspect.isgenerator(flow):
            raise TypeError(
                f"{self.strategy!r}.search() returned {type(flow).__name__}, not a flow: "
                "write it as a generator function (`yield from expand(...)`) or return one of the verbs"
            )
        leaves = yield from flow
        return (yield from self._closing(self._checked(leaves)))

    def _closing(self, leaves: list[Node]) -> Flow[list[Node]]:
        if self._scored:
            yield from score(leaf for leaf in leaves if leaf.step is not None and not leaf.is_failed)
        return leaves

    def _checked(self, leaves: Any) -> list[Node]:
        if not isinstance(leaves, list | tuple) or not all(isinstance(leaf, Node) for leaf in leaves):
            raise TypeError(f"{self.strategy!r}.search() must return a list of nodes, not {leaves!r:.200}")
        if leaves:
            self._check_attached(leaves)
            return list(leaves)
        best_effort = self.root.leaves()
        if any(node.is_failed for node in self.root.walk()):
            return best_effort  # a dead end: every sample that could have gone on failed
        raise ValueError(
            f"{self.strategy!r}.search() returned no leaf, though the tree has {len(best_effort)}: "
            "return `root.leaves()` when nothing better is at hand"
        )

    def _check_attached(self, leaves: Sequence[Node]) -> None:
        tree = set(self.root.walk())
        for leaf in leaves:
            if leaf not in tree:
                raise ValueError(
                    f"{self.strategy!r}.search() returned {leaf!r}, which is not in this search's tree: "
                    "return nodes of `root.walk()`, not look-ahead (attach=False) and not nodes of another search"
                )

    def _advance(self, answer: Any) -> None:
        self.request = None
        try:
            request: object = self._flow.send(answer)
        except StopIteration as stop:
            self.leaves = stop.value
            return
        if isinstance(request, Generate):
            self._queue.extend(enumerate(request.requests))
            self._groups = [[] for _ in request.requests]
            self.request = request
        else:
            self.request = as_score(request)

    def stop(self, reason: str) -> None:
        """Ends the search: the best effort so far becomes its result, once its leaves are scored."""
        self.stopped_by = reason
        self._flow.close()
        self._queue.clear()
        self._flow = self._closing(self.root.leaves())
        self._advance(None)

    def _spent(self) -> str | None:
        """The cap that is met; while answers are replayed, the clock meets none."""
        if self.budget is None:
            return None
        return self.budget.exhausted(self.cost, 0.0 if self.replaying else time.perf_counter() - self.started)

    # -- generating ----------------------------------------------------------------------------------------------

    def portion(self, generator: Generator) -> list[GenerateRequest]:
        """The part of the pending samples that surely fits the budget; ``[]`` if it is spent or none is pending."""
        if not isinstance(self.request, Generate):
            return []
        if not self._queue:
            self._advance(self._groups)
            return self.portion(generator)
        spent = self._spent()
        if spent is not None:
            self.stop(spent)
            return []
        portion: list[GenerateRequest] = []
        calls, tokens = self._room()
        for _, request in self._queue:
            bound = None if tokens is None else _bound(request, generator)
            fits, cap = _fitting(min(request.n, calls), bound, tokens, first=not portion)
            if fits == 0:
                break
            node = request.node
            own = request.max_tokens if cap is None else cap
            portion.append(replace(request, n=fits, first=node.num_draws, max_tokens=own))
            node.num_draws += fits
            calls -= fits
            if fits < request.n or cap is not None:
                break
            if tokens is not None and bound is not None:
                tokens -= fits * bound
        return portion

    def _room(self) -> tuple[float, int | None]:
        if self.budget is None:
            return float("inf"), None
        calls = float("inf") if self.budget.calls is None else self.budget.calls - self.cost.num_generated
        tokens = None if self.budget.tokens is None else self.budget.tokens - self.cost.tokens
        return calls, tokens

    def attach(self, portion: Sequence[GenerateRequest], answers: Sequence[Sequence[Step]], seconds: float) -> None:
        """Puts the sampled steps into the tree and on the bill; resumes the flow when all it asked for is there."""
        tokens = thoughts = prompts = flops = samples = 0
        for request, steps in zip(portion, answers, strict=True):
            position, whole = self._queue.popleft()
            if request.n < whole.n:
                self._queue.appendleft((position, replace(whole, n=whole.n - request.n)))
            group, parent = self._groups[position], request.node
            for draw, step in enumerate(steps, request.first):
                if not step.text.strip() and step.finish_reason in ("step", "eos") and not parent.text.strip():
                    step = replace(step, finish_reason="empty")
                node = Node(parent.problem, step, parent, branch_key(parent.key, draw))
                group.append(node)
                if request.attach:
                    parent.children.append(node)
                # NumPy's integers would overflow in silence.
                tokens += int(step.generated_tokens)
                thoughts += int(step.thought_tokens)
                prompts += int(step.prompt_tokens)
                flops += int(step.flops)
            samples += len(steps)
        self.cost += Cost(prompts, tokens, thoughts, 0, flops, 0, seconds, samples, 0)
        if not self._queue:
            self._advance(self._groups)

    # -- scoring -------------------------------------------------------------------------------------------------

    def to_score(self) -> tuple[Node, ...]:
        """Nodes that wait for a score."""
        if not isinstance(self.request, Score):
            return ()
        if not self.request.nodes:
            self._advance(None)
            return self.to_score()
        spent = self._spent() if self.stopped_by is None else None
        if spent in ("flops", "seconds"):
            self.stop(spent)
            return self.to_score()
        return self.request.nodes if isinstance(self.request, Score) else ()

    def scored(self, cost: Cost) -> None:
        """Bills the scores and resumes the flow."""
        self.cost += cost
        self._advance(None)


def _bound(request: GenerateRequest, generator: Generator) -> int | None:
    """The most tokens that one sample of `request` can have; ``None`` if there is no bound (0 cannot be one)."""
    return min((bound for bound in (generator.max_sample_tokens(request), request.max_tokens) if bound), default=None)


def _fitting(wanted: float, bound: int | None, tokens: int | None, first: bool) -> tuple[int, int | None]:
    """How many samples surely fit into `tokens`, and the cap for a single one that may not."""
    if tokens is None or wanted < 1:
        return int(wanted), None
    certain = 0 if bound is None else int(min(wanted, tokens // bound))
    if certain == 0 and first:
        return 1, tokens
    return certain, None


def trajectory(leaf: Node, extract_answer: ExtractAnswer) -> Trajectory:
    """A leaf's record; an unfinished or failed leaf abstains."""
    step_scores = leaf.step_scores
    if step_scores is None and leaf.step is not None and all(node.is_scored for node in leaf.path):
        step_scores = tuple(node.score for node in leaf.path)
    steps = leaf.steps
    answer = extract_answer("".join(step.text for step in steps)) if leaf.is_finished and not leaf.is_failed else None
    if answer is not None and not isinstance(answer, str):
        raise TypeError(f"extract_answer must return a string or None, not {type(answer).__name__}: {answer!r:.100}")
    return Trajectory(leaf.problem, steps, step_scores, answer, leaf.score if leaf.is_scored else None)
