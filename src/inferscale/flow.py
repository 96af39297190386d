"""Requests that a search yields, and the verbs that strategies are written in.

A search is a Python generator: it yields a request and is sent the answer. `expand`, `ask`, `score`, `answer`,
`embed` and `gather` build the requests; a strategy calls them with ``yield from``. Nothing here touches a model.
"""

from __future__ import annotations

import collections.abc
import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from numbers import Integral
from typing import Any, Literal, TypeAlias, TypeVar

from .tree import Node, Problem, Step

T = TypeVar("T")
Until: TypeAlias = Literal["step", "end"]


@dataclass(frozen=True, slots=True, eq=False)
class Race:
    """Samples of which only the first to arrive are wanted: all others end where the last of those has ended.

    They go side by side by their tokens, and by no clock: of each no more is kept, and charged, than the length at
    which that many have arrived (``finish_reason="budget"``). So the samples do not depend on which of them runs when.
    A generator may leave races out: its samples then end by themselves, and are charged whole.

    Attributes:
        places: Samples that are wanted.
        arrives: Says of a whole sample whether it has arrived.
        lengths: Tokens of those that have arrived before.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.flow import Race
        >>> race = Race(places=2, arrives=lambda step: step.finish_reason == "eos")  # the two shortest of four
        >>> root = isc.Node(isc.Problem("How many?"))
        >>> request = isc.GenerateRequest(root, n=4, until="end", race=race)
        >>> [steps] = isc.testing.ToyGenerator().generate([request])
        >>> [(step.generated_tokens, step.finish_reason) for step in steps]
        [(11, 'eos'), (14, 'budget'), (14, 'eos'), (14, 'budget')]
    """

    places: int
    arrives: Callable[[Step], bool]
    lengths: tuple[int, ...] = ()

    def line(self, lengths: Iterable[int]) -> int | None:
        """The length at which enough have arrived, given those of more that have; ``None`` if they are too few."""
        arrived = sorted((*self.lengths, *lengths))
        return arrived[self.places - 1] if len(arrived) >= self.places else None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    r"""A request for samples that continue one node.

    Attributes:
        node: The prefix to continue.
        n: Number of samples.
        until: ``"step"`` samples one step, ``"end"`` a whole completion.
        greedy: Take the likeliest token each time, whatever the generator's temperature.
        forced: Text put after the prefix before sampling; it becomes part of the step's text and is charged as
            prompt tokens.
        attach: True if the samples become children of the node. Look-ahead is not attached: it is charged, scored
            and forgotten.
        first: Number of samples drawn from the node before; sample ``i`` of this request has the key
            ``branch_key(node.key, first + i)``. Set by the engine.
        max_tokens: Most tokens for each sample; a sample cut there ends with ``finish_reason="budget"``. The engine
            lowers it where the caller's budget leaves less.
        stop: Texts that end the answer, besides those of the generator, and are left out of it; see `HFGenerator`. A
            generator that does not look at them samples on, and whoever asked cuts its text.
        temperature: Sampling temperature in place of the generator's own; 0 is ``greedy=True``.
        generator: Name of the generator that samples, where `solve` was given several; ``None`` is the one that sampled
            the node, and at a root the first.
        aside: True for a side prompt, see `ask`: the node is a root of its own, which the engine gives its key. Samples
            that are attached become leaves of the search's own tree.
        payer: The draw that is charged for the node's prefix: the first of this generator. Set by the engine.
        deadline: When its search runs out of time, on the clock of `time.monotonic`. Set by the engine.
        is_cancelled: Says whether its search has been cancelled, which another thread may do. Set by the engine.
        race: The race that its samples run, all at once with those of other requests that name it; see `Race`.
        ahead: Tokens that count for their lengths in it already.

    Raises:
        TypeError: If `node` is none, or `generator` no name.
        ValueError: If the node has finished, or an option is out of range.

    Example:
        >>> import inferscale as isc
        >>> generator = isc.testing.ToyGenerator()
        >>> root = isc.Node(isc.Problem("How many?"), key=7)
        >>> [steps] = generator.generate([isc.GenerateRequest(root, n=2, forced="Let me see: ", max_tokens=4)])
        >>> [(step.text, step.finish_reason) for step in steps]
        [('Let me see: p m\n', 'step'), ('Let me see: u o\n', 'step')]
    """

    node: Node
    n: int = 1
    until: Until = "step"
    greedy: bool = False
    forced: str = ""
    attach: bool = True
    first: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    generator: str | None = None
    aside: bool = False
    payer: int = 0
    deadline: float | None = None
    is_cancelled: Callable[[], bool] | None = field(default=None, repr=False, compare=False)
    race: Race | None = field(default=None, repr=False, compare=False)
    ahead: int = 0

    def __post_init__(self) -> None:
        """Refuse requests that no generator can serve."""
        if not isinstance(self.node, Node):
            raise TypeError(f"a search can only expand nodes, not {type(self.node).__name__}")
        if self.n < 1:
            raise ValueError(f"n={self.n}: ask for at least one sample of {self.node!r}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: give each sample at least one token, or None for no cap")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop={self.stop!r}: give a tuple of texts, none of them empty")
        if self.until not in ("step", "end"):
            raise ValueError(f'until={self.until!r}: choose "step" or "end"')
        if self.temperature is not None:
            if not 0 <= self.temperature < math.inf:
                raise ValueError(f"temperature={self.temperature!r}: give a finite number, 0 (greedy) or more, or None")
            if self.temperature == 0:
                object.__setattr__(self, "greedy", True)
        if self.generator is not None and not isinstance(self.generator, str):
            raise TypeError(f"generator={self.generator!r:.80}: give its name, a key of solve(..., generator={{...}})")
        if self.node.is_finished:
            raise ValueError(f"{self.node!r} has finished and cannot be expanded: keep nodes with `is_finished` out")

    @property
    def is_over(self) -> bool:
        """True once nobody waits for more: the deadline has passed, or the search was cancelled. It stays true.

        A generator that looks between two tokens returns what it has then, marked ``"budget"``; samples that it had not
        begun are steps without text and tokens. One that never looks is waited for.
        """
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or (self.is_cancelled is not None and self.is_cancelled())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it for other processes, which have neither this one's clock nor its searches."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        return partial(GenerateRequest, **told | {"deadline": None, "is_cancelled": None, "race": None}), ()


@dataclass(frozen=True, slots=True)
class Generate:
    """Answered with ``list[list[Node]]``: for each request its new nodes, in order."""

    requests: tuple[GenerateRequest, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Answered with ``None`` once every node has a score."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Answered with ``list[str | None]``: for each node the answer that is read in its text; see `answer`."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Embed:
    """Answered with an array `[n, d]`: for each text a vector; see `embed`."""

    texts: tuple[str, ...]


Request: TypeAlias = Generate | Score | Answer | Embed
Flow: TypeAlias = collections.abc.Generator[Request, Any, T]
"""A search while it runs: a Python generator that yields requests, is sent their answers, and returns a `T`.

Example:
    >>> import random
    >>> import inferscale as isc
    >>> root = isc.Node(isc.Problem("How many?"))
    >>> flow = isc.RepeatedSampling(2).search(root, random.Random(0))
    >>> request = next(flow)  # by hand, without a model
    >>> request.requests[0].n, request.requests[0].until
    (2, 'end')
    >>> leaves = [isc.Node(root.problem, isc.Step(f"The answer is {i}", finish_reason="eos"), root) for i in (4, 7)]
    >>> try:
    ...     flow.send([leaves])
    ... except StopIteration as stop:
    ...     print([leaf.text for leaf in stop.value])
    ['The answer is 4', 'The answer is 7']
"""


def as_request(request: object) -> Request:
    """Return `request` if it is one.

    Raises:
        TypeError: If a search yielded something that is no request; the message says what to write.
    """
    if isinstance(request, Request):
        return request
    hint = "a search yields only what `expand`, `ask`, `score`, `answer`, `embed` and `gather` build"
    if inspect.isgenerator(request):
        hint = f'write "yield from {request.__name__}(...)" instead of "yield {request.__name__}(...)"'
    raise TypeError(f"a search yielded {type(request).__name__}: {hint}")


def expand(
    nodes: Sequence[Node],
    n: int | Sequence[int] = 1,
    until: Until = "step",
    greedy: bool = False,
    forced: str = "",
    attach: bool = True,
    temperature: float | None = None,
    generator: str | None = None,
) -> Flow[list[Node]]:
    """Sample new nodes from `nodes`, the first node's first; write ``children = yield from expand(...)``.

    Args:
        nodes: Unfinished nodes.
        n: Samples of each node: one number for all, or one for each (0 skips the node).
        until: ``"step"`` for one step, ``"end"`` for whole completions.
        greedy: Take the likeliest token each time.
        forced: Text put after each prefix before sampling.
        attach: True if the samples become part of the tree.
        temperature: Sampling temperature in place of the generator's own.
        generator: Name of the generator that samples, where `solve` was given several.

    Returns:
        The new nodes. Failed samples (nothing but white space, or an error) stay in the tree and are left out here.

    Raises:
        ValueError: If a node has finished, `n` does not fit `nodes`, or a count is no whole number.

    Example:
        >>> import inferscale as isc
        >>> class Fork(isc.SearchStrategy):  # four first steps, each completed twice
        ...     def search(self, root, rng):
        ...         starts = yield from isc.expand([root], 4)
        ...         return (yield from isc.expand(starts, 2, until="end"))
        >>> result = isc.solve("How many?", Fork(), isc.testing.ToyGenerator())
        >>> len(result.root.children), len(result.trajectories)
        (4, 8)
    """
    counts = [_whole(n)] * len(nodes) if isinstance(n, int | Integral) else [_whole(count) for count in n]
    if len(counts) != len(nodes):
        raise ValueError(f"expand() was given {len(nodes)} nodes and {len(counts)} counts: give one count for each")
    requests = tuple(
        GenerateRequest(node, count, until, greedy, forced, attach, temperature=temperature, generator=generator)
        for node, count in zip(nodes, counts, strict=True)
        if count != 0
    )
    if not requests:
        return []
    answer: list[list[Node]] = yield Generate(requests)
    return [node for group in answer for node in group if not node.is_failed]


def ask(
    prompts: Sequence[str | Sequence[Mapping[str, Any]] | Problem],
    n: int = 1,
    *,
    greedy: bool = False,
    temperature: float | None = None,
    max_tokens: int | None = None,
    generator: str | None = None,
) -> Flow[list[list[str]]]:
    r"""Have the model answer prompts of your own, beside the solution; write ``texts = yield from ask([prompt])``.

    For judges, selectors and whatever else is no continuation of the problem. Replies are charged to the problem, also
    apart (``cost.shares["ask"]``), recorded in journals, and kept as side notes of the tree, `Node.side_notes`. They
    depend on the seed, the problem, and the number of side prompts that its search asked before.

    Args:
        prompts: Prompts: texts, conversations (lists of dictionaries with ``"role"`` and ``"content"``), or problems.
        n: Replies to each.
        greedy: Take the likeliest token each time.
        temperature: Sampling temperature in place of the generator's own.
        max_tokens: Most tokens of each reply; by default the generator's.
        generator: Name of the generator that replies, where `solve` was given several; by default the first.

    Returns:
        For each prompt the texts of its replies, thoughts left out; ``""`` for one that never left its thoughts.
        Failed samples are left out.

    Raises:
        TypeError: If a prompt stands alone, or is none.
        ValueError: If one is empty, or a number is out of range.

    Example:
        >>> import inferscale as isc
        >>> class AskFirst(isc.SearchStrategy):
        ...     def search(self, root, rng):
        ...         [[idea]] = yield from isc.ask([f"Give a hint, no solution: {root.problem.prompt}"], max_tokens=4)
        ...         return (yield from isc.expand([root], 4, until="end", forced=f"Hint: {idea}\n"))
        >>> result = isc.solve("How many?", AskFirst(), isc.testing.ToyGenerator())
        >>> result.answer, result.cost.tokens, result.cost.shares["ask"].tokens
        ('0', 69, 4)
    """
    groups = yield from replies(
        prompts, n, greedy=greedy, temperature=temperature, max_tokens=max_tokens, generator=generator
    )
    return [[node.final_text or "" for node in group] for group in groups]


def replies(
    prompts: Sequence[str | Sequence[Mapping[str, Any]] | Problem],
    n: int = 1,
    *,
    attach: bool = False,
    greedy: bool = False,
    temperature: float | None = None,
    max_tokens: int | None = None,
    generator: str | None = None,
) -> Flow[list[list[Node]]]:
    """Have the model answer prompts of your own; see `ask`, which returns the texts of these nodes.

    Args:
        prompts: As in `ask`.
        n: Replies to each.
        attach: True if the replies are solutions of the search's problem: they become leaves of its tree, below the
            root, to be scored and voted over as others are.
        greedy: Take the likeliest token each time.
        temperature: As in `ask`.
        max_tokens: As in `ask`.
        generator: As in `ask`.

    Returns:
        For each prompt the nodes of its replies; failed samples are left out.

    Raises:
        TypeError: If a prompt stands alone, or is none.
        ValueError: If one is empty, or a number is out of range.

    Example:
        >>> import inferscale as isc
        >>> class Reworded(isc.SearchStrategy):  # solves other wordings of the problem, and votes over all of them
        ...     def search(self, root, rng):
        ...         wordings = [root.problem.prompt, f"Think slowly. {root.problem.prompt}"]
        ...         groups = yield from isc.replies(wordings, 3, attach=True)
        ...         return [leaf for leaves in groups for leaf in leaves]
        >>> result = isc.solve("How many?", Reworded(), isc.testing.ToyGenerator())
        >>> isc.answer_weights(result.trajectories)
        {'0': 2.0, '3': 3.0, '2': 1.0}
    """
    if isinstance(prompts, str | Mapping | Problem) or any(isinstance(prompt, Mapping) for prompt in prompts):
        raise TypeError(f"ask() takes a list of prompts, not {prompts!r:.60}: write ask([prompt]), or ask([messages])")
    requests = tuple(
        GenerateRequest(
            Node(_side_problem(prompt)), _whole(n), "end", greedy, attach=attach, max_tokens=max_tokens,
            temperature=temperature, generator=generator, aside=True,
        )
        for prompt in prompts
    )  # fmt: skip
    if not requests:
        return []
    answer: list[list[Node]] = yield Generate(requests)
    return [[node for node in group if not node.is_failed] for group in answer]


def _side_problem(prompt: str | Sequence[Mapping[str, Any]] | Problem) -> Problem:
    if isinstance(prompt, Problem):
        return prompt
    return Problem(prompt) if isinstance(prompt, str) else Problem(messages=prompt)


def _whole(count: float) -> int:
    """A count as an `int`: allocations may come as NumPy's or torch's numbers."""
    whole = int(count)
    if whole != count:
        raise ValueError(f"expand() was given the count {count!r}: give whole numbers")
    return whole


def score(nodes: Iterable[Node]) -> Flow[None]:
    """Give every node a score; nodes that have one are not scored again. Write ``yield from score(nodes)``.

    Example:
        >>> import inferscale as isc
        >>> class Halve(isc.SearchStrategy):  # completes the better half of eight first steps
        ...     needs_scores = True
        ...     def search(self, root, rng):
        ...         starts = yield from isc.expand([root], 8)
        ...         yield from isc.score(starts)
        ...         best = sorted(starts, key=lambda node: node.score)[4:]
        ...         return (yield from isc.expand(best, until="end"))
        >>> result = isc.solve("How many?", Halve(), isc.testing.ToyGenerator(), reward_model=isc.testing.ToyReward())
        >>> result.cost.num_generated, len(result.trajectories)
        (12, 4)
    """
    unscored = tuple(dict.fromkeys(node for node in nodes if not node.is_scored))
    if unscored:
        yield Score(unscored)


def answer(nodes: Iterable[Node]) -> Flow[list[str | None]]:
    """Read the answers of `nodes`; write ``answers = yield from answer(nodes)``.

    Answers are read as those of the result are, by the reader that `solve` was given or that of the problem's kind. So
    a node abstains (``None``) if it has not finished, failed, or was cut before its answer was complete.

    Returns:
        For each node its answer. Answers that the vote holds to be the same come as one text, the first one read in
        this search, so that they can be counted as they are.

    Raises:
        TypeError: If one is no node.

    Example:
        >>> import inferscale as isc
        >>> class UntilTwoAgree(isc.SearchStrategy):
        ...     def search(self, root, rng):
        ...         answers = []
        ...         while len(answers) < 16 and len(set(answers)) == len(answers):
        ...             leaves = yield from isc.expand([root], until="end")
        ...             answers += yield from isc.answer(leaves)
        ...         return root.leaves()
        >>> result = isc.solve("How many?", UntilTwoAgree(), isc.testing.ToyGenerator())
        >>> [trajectory.answer for trajectory in result.trajectories]
        ['1', '2', '0', '0']
    """
    asked = tuple(nodes)
    for node in asked:
        if not isinstance(node, Node):
            raise TypeError(f"answer() reads the answers of nodes, not of {type(node).__name__} {node!r:.80}")
    if not asked:
        return []
    answers: list[str | None] = yield Answer(asked)
    return answers


def embed(texts: Sequence[str]) -> Flow[Any]:
    """Give texts vectors whose cosines say how alike they are; write ``vectors = yield from embed(texts)``.

    Returns:
        `[n, d]`: by the generator where it is an `Embedder`, as `HFGenerator` is, which is charged; by the texts'
        character n-grams otherwise.

    Example:
        >>> import inferscale as isc
        >>> class MostAlike(isc.SearchStrategy):  # returns the two samples that are most alike
        ...     def search(self, root, rng):
        ...         leaves = yield from isc.expand([root], 4, until="end")
        ...         vectors = yield from isc.embed([leaf.text for leaf in leaves])
        ...         alike = isc.functional.cosine_similarities(vectors)
        ...         i, j = max(((i, j) for i in range(4) for j in range(i)), key=lambda pair: alike[pair])
        ...         return [leaves[i], leaves[j]]
        >>> result = isc.solve("How many?", MostAlike(), isc.testing.ToyGenerator())
        >>> len(result.trajectories), len(result.root.children)
        (2, 4)
    """
    return (yield Embed(tuple(texts)))


def gather(flows: Iterable[Flow[T]]) -> Flow[list[T]]:
    """Run several searches side by side and return their results in order; their requests share calls.

    Answers are read, and texts embedded, at once. Searches that want samples are all answered before any that wants
    scores, so that those that catch up are scored together with the others. Each search is sent answers in its own
    order, whatever runs beside it.

    Example:
        >>> import inferscale as isc
        >>> class TwoBeams(isc.SearchStrategy):
        ...     needs_scores = True
        ...     def search(self, root, rng):
        ...         starts = yield from isc.expand([root], 2)
        ...         beam = isc.BeamSearch(2, 2)
        ...         groups = yield from isc.gather(beam.search(start, rng) for start in starts)
        ...         return [leaf for leaves in groups for leaf in leaves]
        >>> generator, reward = isc.testing.ToyGenerator(), isc.testing.ToyReward()
        >>> result = isc.solve("How many?", TwoBeams(), generator, reward_model=reward)
        >>> len(result.trajectories), generator.calls  # as many calls as one beam needs
        (8, 4)
    """
    running = list(flows)
    results: dict[int, T] = {}
    generating: dict[int, Generate] = {}
    scoring: dict[int, Score] = {}

    def resume(index: int, answer: Any) -> Flow[None]:
        while True:
            try:
                request = as_request(running[index].send(answer))
            except StopIteration as stop:
                results[index] = stop.value
                return
            if not isinstance(request, Answer | Embed):
                break
            answer = yield request
        if isinstance(request, Generate):
            generating[index] = request
        else:
            scoring[index] = request

    for index in range(len(running)):
        yield from resume(index, None)
    while generating or scoring:
        if generating:
            wave, generating = generating, {}
            groups = yield Generate(tuple(r for request in wave.values() for r in request.requests))
            remaining = iter(groups)
            for index, request in wave.items():
                yield from resume(index, [next(remaining) for _ in request.requests])
        else:
            judged, scoring = scoring, {}
            yield from score(node for request in judged.values() for node in request.nodes)
            for index in judged:
                yield from resume(index, None)
    return [results[index] for index in range(len(running))]


def rewrite(flow: Flow[T], change: Callable[[Generate], Generate]) -> Flow[T]:
    """Return the result of `flow`, whose requests for samples are changed by `change` before they are answered."""
    answer: Any = None
    while True:
        try:
            request = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = yield change(request) if isinstance(request, Generate) else request


class _SpentError(Exception):
    """A flow asked for more samples than it may."""


def limit(flow: Flow[list[Node]], root: Node, n: int) -> Flow[list[Node]]:
    """The result of `flow`, or ``root.leaves()`` when it asks for more than `n` samples in all.

    Example:
        >>> import inferscale as isc
        >>> class Cautious(isc.SearchStrategy):  # REBASE, ended before it would ask for a 21st step
        ...     needs_scores = True
        ...     def search(self, root, rng):
        ...         return isc.limit(isc.REBASE(8).search(root, rng), root, 20)
        >>> generator, reward = isc.testing.ToyGenerator(), isc.testing.ToyReward()
        >>> isc.solve("How many?", isc.REBASE(8), generator, reward_model=reward).cost.num_generated
        32
        >>> isc.solve("How many?", Cautious(), generator, reward_model=reward).cost.num_generated
        16
    """
    left = n

    def counted(request: Generate) -> Generate:
        nonlocal left
        left -= sum(r.n for r in request.requests)
        if left < 0:
            raise _SpentError
        return request

    try:
        return (yield from rewrite(flow, counted))
    except _SpentError:
        flow.close()
        return root.leaves()
