"""The four parts that a search is made of: generator, reward model, aggregator, strategy."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Protocol, Self, get_args, runtime_checkable

from .cost import Budget, Cost
from .flow import Flow, GenerateRequest
from .functional import ArrayLike, Reduction, reduce_steps
from .identity import Identified
from .thinking import Thinking
from .tree import FinishReason, Judge, Node, Step, Trajectory


class Traffic(NamedTuple):
    """Numbers, or bytes, that forwards move besides computing.

    Attributes:
        weights: Weights read.
        cache: Keys and values, and states of recurrent layers, read and written.
    """

    weights: int
    cache: int


class Generator(Identified, ABC):
    """Samples continuations. The only part that runs the language model.

    Attributes:
        concurrent: True if `generate` may be called from several threads at a time, as one that asks a server: each
            search then has a call of its own. `release` may come while calls for its search, whose answers nobody will
            read, are still running.
        thinking: The markers that the model writes around its thoughts; ``None`` if the generator cannot tell.
        takes_messages: True if it renders conversations (`Problem.messages`) as turns; another one reads their text,
            `Problem.prompt`.
        takes_temperature: True if it samples at ``request.temperature`` where a request gives one; a search that gives
            one to another generator is refused.

    Example:
        >>> import inferscale as isc
        >>> class Dice(isc.Generator):
        ...     def generate(self, requests):
        ...         return [[self.roll(request, draw) for draw in range(request.n)] for request in requests]
        ...     def roll(self, request, draw):
        ...         key = isc.tree.branch_key(request.node.key, request.first + draw)  # the sample's own random number
        ...         return isc.Step(f"The answer is {key % 6 + 1}", (key % 6,), finish_reason="eos")
        >>> result = isc.solve("A throw?", isc.RepeatedSampling(6), Dice())
        >>> [trajectory.answer for trajectory in result.trajectories]
        ['6', '6', '1', '3', '1', '1']
    """

    concurrent: bool = False
    thinking: Thinking | None = None
    set_later = ("thinking",)
    takes_messages: bool = False
    takes_temperature: bool = False

    @abstractmethod
    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """Return ``request.n`` steps for each request, in order.

        The `i`-th sample of a request must depend on nothing but the prefix and
        ``branch_key(request.node.key, request.first + i)``; then results do not depend on the batch.
        """

    def open(self) -> Sampling:
        """Return a session that requests join while others are sampled.

        By default `generate` answers it in rounds, or, if it is `concurrent`, in a call for each search. A session is
        used in one thread, and must give each request the steps that `generate` gives.
        """
        return Calls(self) if self.concurrent else Rounds(self)

    def max_sample_tokens(self, request: GenerateRequest) -> int | None:
        """Return the most tokens that one sample of `request` can have; ``None`` if there is no bound.

        The engine uses it to fill a token budget without passing it: with no bound, samples are drawn one at a
        time once there is a token budget.
        """
        return None

    def release(self, root: Node) -> None:
        """Forget what was cached for the search of ``root.problem``, which has ended."""

    def traffic(self, requests: Sequence[GenerateRequest], answers: Sequence[Sequence[Step]]) -> Traffic | None:
        """Return the bytes that sampling these steps in one call moves; ``None`` if they are not known.

        They must depend on requests and steps alone, see `inferscale.flops.traffic`. Of no requests it tells whether
        any are known.
        """
        return None

    def embedding_cost(self, texts: Sequence[str]) -> Cost:
        """Return the price of ``embed(texts)``, for a generator that is an `Embedder` too."""
        return Cost()


@dataclass(frozen=True, eq=False)
class Ticket:
    """One request that a `Sampling` was given; another one for the same request is another ticket.

    Attributes:
        request: The request.

    Example:
        >>> import inferscale as isc
        >>> root = isc.Node(isc.Problem("How many?"))
        >>> with isc.testing.ToyGenerator(ragged=True).open() as sampling:
        ...     kept, unwanted = [sampling.submit(isc.GenerateRequest(root, first=i)) for i in (0, 1)]
        ...     sampling.cancel(unwanted)
        ...     found = sampling.collect() + sampling.collect()
        >>> {("kept" if ticket is kept else "unwanted"): step.finish_reason for ticket, index, step in found}
        {'unwanted': 'budget', 'kept': 'step'}
    """

    request: GenerateRequest


class Sampling(ABC):
    """A session of a generator: samples are handed over as they end, and requests join while others are sampled.

    Closing it, as leaving the ``with`` statement does, drops what has not ended.

    Attributes:
        on_tokens: Called with the number of tokens just drawn, while `collect` waits for a sample to end. A session
            need not call it.
        prefill_seconds: Seconds in which it has read prompts and paths until now; ``None`` if it does not tell.

    Example:
        >>> import inferscale as isc
        >>> first = isc.Node(isc.Problem("How many?"), key=1)
        >>> second = isc.Node(isc.Problem("How many more?"), key=2)
        >>> with isc.testing.ToyGenerator(ragged=True).open() as sampling:
        ...     _ = sampling.submit(isc.GenerateRequest(first, n=3))
        ...     found = sampling.collect()  # waits for the shortest sample alone
        ...     _ = sampling.submit(isc.GenerateRequest(second))  # joins the others
        ...     while ended := sampling.collect():
        ...         found += ended
        >>> [(ticket.request.node.problem.prompt, index) for ticket, index, step in found]
        [('How many?', 0), ('How many?', 2), ('How many?', 1), ('How many more?', 0)]
    """

    on_tokens: Callable[[int], object] | None = None
    prefill_seconds: float | None = None

    def __enter__(self) -> Self:
        """The session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    @abstractmethod
    def submit(self, request: GenerateRequest) -> Ticket:
        """Take a request, all of whose samples `collect` will hand over.

        Raises:
            ValueError: If it cannot be answered, such as one whose prompt is too long; nothing of it is taken then.
        """

    @property
    def calls(self) -> Collection[Future[Any]]:
        """The calls under way in threads, for one of which `collect` waits; none where it samples itself."""
        return ()

    def begin(self) -> None:
        """Begin what was submitted, where threads sample it; `collect` does so too."""

    @abstractmethod
    def collect(self) -> list[tuple[Ticket, int, Step]]:
        """Sample until at least one sample has ended, and hand over those that have since the last call.

        Returns:
            For each its ticket, its place among the ``request.n`` samples of that, and its step; ``[]`` only if every
            sample has been handed over. After an error all that was not handed over is still to come.
        """

    @abstractmethod
    def cancel(self, ticket: Ticket) -> None:
        """End the samples of a request: `collect` hands over what was drawn of them, marked ``"budget"``."""

    def halt(self) -> None:
        """Begin nothing more; calls that are under way go on, and `collect` waits for none of them any more."""

    @abstractmethod
    def close(self) -> None:
        """Drop everything; the session must not be used again."""


class Rounds(Sampling):
    """The session of a generator that has none: one ``generate`` for all that was submitted since the last one."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._waiting: list[Ticket] = []
        self._ended: list[tuple[Ticket, int, Step]] = []

    def submit(self, request: GenerateRequest) -> Ticket:
        """Take a request for the next round."""
        self._waiting.append(Ticket(request))
        return self._waiting[-1]

    def collect(self) -> list[tuple[Ticket, int, Step]]:
        """Answer all requests that wait, in one call."""
        if self._waiting:
            self._ended += _generated(self._generator, self._waiting)
            self._waiting = []
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, ticket: Ticket) -> None:
        """Take a request out of the next round."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._ended += _unbegun(ticket)

    def close(self) -> None:
        """Drop what waits."""
        self._waiting, self._ended = [], []


class Calls(Sampling):
    """The session of a `concurrent` generator: one ``generate`` in a thread for what each tree asks for at a time.

    Calls begin in the order in which they were submitted, and see the context variables of who submitted them.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._pool = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="inferscale")
        self._new: dict[Node, list[Ticket]] = {}  # by the roots of their trees
        self._cancelled: list[Ticket] = []
        self._calls: dict[Future[list[tuple[Ticket, int, Step]]], list[Ticket]] = {}

    @property
    def calls(self) -> Collection[Future[Any]]:
        """The calls under way."""
        return self._calls

    def submit(self, request: GenerateRequest) -> Ticket:
        """Take a request for the next call of its tree."""
        ticket = Ticket(request)
        self._add(ticket)
        return ticket

    def _add(self, ticket: Ticket) -> None:
        self._new.setdefault(ticket.request.node.root, []).append(ticket)

    def begin(self) -> None:
        """Send what was submitted."""
        for tickets in self._new.values():
            self._calls[self._pool.submit(copy_context().run, _generated, self._generator, tickets)] = list(tickets)
        self._new = {}

    def collect(self) -> list[tuple[Ticket, int, Step]]:
        """Wait for a call to end; what came is handed over before an error that came with it is raised."""
        self.begin()
        ended = [sample for ticket in self._cancelled for sample in _unbegun(ticket)]
        self._cancelled = []
        if not ended and self._calls:
            answered, _ = wait(self._calls, return_when=FIRST_COMPLETED)
            for call in list(filter(came, answered)) or answered:
                tickets = self._calls.pop(call)
                if not came(call):
                    for ticket in tickets:  # asked for again, if anybody still collects
                        self._add(ticket)
                ended += [sample for sample in call.result() if sample[0] in tickets]
        return ended

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request; the call of a tree that was forgotten ends by itself, unwaited for."""
        groups = [*self._new.values(), *self._calls.values()]
        if tickets := next((group for group in groups if ticket in group), None):
            tickets.remove(ticket)
            self._cancelled.append(ticket)
        self._new = {root: group for root, group in self._new.items() if group}
        for call in [call for call, group in self._calls.items() if not group]:
            del self._calls[call]
            call.cancel()

    def halt(self) -> None:
        """Send nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._new = {}

    def close(self) -> None:
        """Let calls that are under way end by themselves."""
        self.halt()
        self._calls, self._cancelled = {}, []


MAX_CALLS = 64
"""Most calls of a model under way at a time, each in a thread."""


def came(call: Future[Any]) -> bool:
    """Return True if a call has brought an answer, and no error."""
    return call.done() and not call.cancelled() and call.exception() is None


def _generated(generator: Generator, tickets: Sequence[Ticket]) -> list[tuple[Ticket, int, Step]]:
    """The samples of requests, in one call."""
    requests = [ticket.request for ticket in tickets]
    answers = generator.generate(requests)
    check_steps(requests, answers, type(generator).__name__)
    pairs = zip(tickets, answers, strict=True)
    return [(ticket, index, step) for ticket, steps in pairs for index, step in enumerate(steps)]


def _unbegun(ticket: Ticket) -> list[tuple[Ticket, int, Step]]:
    """The samples of a request that was taken back before its first token."""
    return [(ticket, index, Step("", finish_reason="budget")) for index in range(ticket.request.n)]


class ContextLengthError(ValueError):
    r"""A solution, or a prompt alone, is longer than its reward model reads.

    Example:
        >>> import inferscale as isc
        >>> from inferscale import zoo
        >>> from inferscale.base import ContextLengthError
        >>> prm = isc.HFProcessRewardModel(*zoo.load("prm-xs"), good_token="<good>", bad_token="<bad>")
        >>> root = isc.Node(isc.Problem("1 + 1"))
        >>> try:
        ...     prm.cost([isc.Node(root.problem, isc.Step("1 + 1 = 2\n" * 200, finish_reason="eos"), root)])
        ... except ContextLengthError as error:
        ...     print(str(error).partition("has ")[2][:52])
        1204 tokens and LlamaForCausalLM reads 512: sample s
    """


class RewardModel(Identified, ABC):
    """Scores partial or complete solutions; higher is better.

    One of your own is given whole paths, and takes the part that it judges as ``node.part(self.judge)``.

    Attributes:
        concurrent: True if `cost` and `score` may be called from several threads at a time: each search is then scored
            as soon as its nodes wait, while others sample. `release` may come meanwhile, see `Generator`.
        judge: The part of a solution that is judged: ``"final"``, what follows the end of thinking; ``"thoughts"``; or
            ``"all"``.

    Example:
        >>> import inferscale as isc
        >>> class Short(isc.RewardModel):
        ...     def score(self, nodes):
        ...         return [1 / (1 + len(node.part(self.judge).text)) for node in nodes]
        >>> isc.testing.check_reward_model(Short())  # raises an error that says what is wrong
        >>> solver = isc.Solver(isc.RepeatedSampling(8), isc.testing.ToyGenerator(), Short(), isc.BestOfN())
        >>> result = solver.solve("How many?")
        >>> len(result.text), sorted(len(trajectory.text) for trajectory in result.trajectories)
        (35, [35, 37, 37, 37, 39, 39, 39, 45])
    """

    concurrent: bool = False
    judge: Judge = "all"
    set_later: ClassVar[tuple[str, ...]] = ("judge",)

    @abstractmethod
    def score(self, nodes: Sequence[Node]) -> list[float]:
        """Return one finite number for each node."""

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """Return the price of scoring each node (`scored_tokens` and `reward_flops`), asked before it is scored."""
        return [Cost()] * len(nodes)

    def recall(self, nodes: Sequence[Node]) -> None:
        """Take note that these nodes were scored, and paid for, in an earlier process, as its journal says.

        A model of which `cost` tells what is new, since it keeps what it knows, then asks no price for them again: the
        bill is that of a search which nobody ended, whatever is run once more. By default there is nothing to note.
        """

    def check_prompt(self, root: Node) -> None:
        """Raise a ValueError if no solution of ``root.problem`` can be scored; asked before anything is sampled.

        A prompt that is longer than the model reads is such a case. By default every prompt will do.
        """

    def release(self, root: Node) -> None:
        """Forget what was cached for the search of ``root.problem``, which has ended."""


class ProcessRewardModel(RewardModel):
    """Judges every step of a solution.

    With ``judge="final"`` or ``"thoughts"`` those steps are judged that hold something of the part; a path of which
    none does, such as one that is still thinking, has no step scores, and the score 0.

    Attributes:
        reduction: The way from step scores to one score: ``"last"``, ``"min"``, ``"prod"`` or ``"mean"``.

    Example:
        >>> import inferscale as isc
        >>> class Short(isc.ProcessRewardModel):
        ...     def step_scores(self, nodes):
        ...         parts = [node.part(self.judge) for node in nodes]
        ...         return [[1 / (1 + len(text)) for text, _ in part.inner_steps()] for part in parts]
        >>> isc.testing.check_reward_model(Short())  # raises an error that says what is wrong
        >>> result = isc.solve("How many?", isc.REBASE(4), isc.testing.ToyGenerator(), reward_model=Short())
        >>> [round(score, 2) for score in result.selected.step_scores]
        [0.09, 0.14, 0.11, 0.06]
    """

    reduction: Reduction = "last"
    set_later = ("judge", "reduction")

    @abstractmethod
    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """Return for each node one finite number for each of ``node.part(self.judge).inner_steps()``, in order."""

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """Return the step scores of each node, reduced."""
        return [self.reduced(scores) for scores in self.step_scores(nodes)]

    def reduced(self, step_scores: Sequence[float]) -> float:
        """Return one score for a path; 0 where nothing was judged."""
        return float(reduce_steps(step_scores, self.reduction)) if step_scores else 0.0


class Aggregator(Identified, ABC):
    """Picks the trajectory to report out of those that a search returned.

    Attributes:
        needs_scores: True if trajectories must have scores.
        reads_answers: True if it compares answers; a trajectory without one is then reported only if all have none.

    Example:
        >>> import inferscale as isc
        >>> class Shortest(isc.Aggregator):
        ...     def select(self, trajectories):
        ...         if not trajectories:
        ...             raise ValueError("no trajectories to choose from")
        ...         return min(trajectories, key=lambda trajectory: (trajectory.answer is None, len(trajectory.text)))
        >>> isc.testing.check_aggregator(Shortest())  # raises an error that says what is wrong
        >>> isc.solve("How many?", isc.RepeatedSampling(8), isc.testing.ToyGenerator(), aggregator=Shortest()).answer
        '1'
    """

    needs_scores: ClassVar[bool] = False
    reads_answers: ClassVar[bool] = True

    @abstractmethod
    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """Return one of `trajectories`."""


class SearchStrategy(Identified, ABC):
    """Decides what to sample next. Subclasses are frozen dataclasses of hyperparameters only.

    Attributes:
        needs_scores: True if `search` scores nodes, so that a reward model must be given.

    Example:
        >>> from dataclasses import dataclass
        >>> import inferscale as isc
        >>> @dataclass(frozen=True)
        ... class BestStep(isc.SearchStrategy):
        ...     n: int = 4
        ...     needs_scores = True
        ...     def search(self, root, rng):
        ...         node = root
        ...         while not node.is_finished:
        ...             children = yield from isc.expand([node], self.n)
        ...             yield from isc.score(children)
        ...             node = max(children, key=lambda child: child.score)
        ...         return [node]
        >>> isc.solve("How many?", BestStep(), isc.testing.ToyGenerator(), reward_model=isc.testing.ToyReward()).answer
        '2'
    """

    needs_scores: ClassVar[bool] = False

    @abstractmethod
    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Return the leaves to vote over, as a Python generator that yields requests (see `inferscale.flow`)."""


@runtime_checkable
class Embedder(Protocol):
    """Gives texts vectors whose cosines say how alike they are.

    Example:
        >>> import numpy as np
        >>> import inferscale as isc
        >>> class Letters:  # in place of a sentence encoder
        ...     def embed(self, texts):
        ...         return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
        >>> isinstance(Letters(), isc.Embedder)
        True
        >>> vectors = Letters().embed(["abc", "cab", "xyz"])
        >>> isc.functional.cosine_similarities(vectors).round(2).tolist()
        [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    def embed(self, texts: Sequence[str]) -> ArrayLike:
        """Return `[n, d]`, a row for each text, which depends on nothing but that text."""


class Planned(ABC):
    """A stand-in for a strategy: it chooses strategy, vote and reward model by what a problem may cost.

    A budget beside it says which choice is meant, as the mean cost of a problem, and cuts no search.
    """

    @abstractmethod
    def parts_for(
        self, generator: Generator, reward_model: RewardModel | None, budget: Budget | None
    ) -> tuple[SearchStrategy, Generator, RewardModel | None, Aggregator]:
        """Return strategy, generator (of several given by name, one), reward model and aggregator for a budget.

        Raises:
            ValueError: If the choice does not fit the generator or the reward model, or there is none.
        """


def check_judge(judge: Judge) -> Judge:
    """Return the part of a solution that is to be judged.

    Raises:
        ValueError: If there is no such part.
    """
    if judge not in get_args(Judge):
        raise ValueError(f"judge={judge!r}: choose one of {', '.join(map(repr, get_args(Judge)))}")
    return judge


def check_scores(
    reward_model: object | None, *parts: SearchStrategy | Aggregator, advice: str = "pass reward_model=..."
) -> None:
    """Raise a ValueError, which ends with `advice`, if one of `parts` needs scores and no reward model gives any."""
    for part in parts:
        if reward_model is None and part.needs_scores:
            does = "scores its nodes" if isinstance(part, SearchStrategy) else "reads scores"
            raise ValueError(f"{part!r} {does}: {advice}")


def check_steps(requests: Sequence[GenerateRequest], answers: Sequence[Sequence[Step]], name: str) -> None:
    """Raise an error if `answers` are not what the generator called `name` must return for `requests`.

    Raises:
        TypeError: If they are not lists of steps.
        ValueError: If their number or a ``finish_reason`` is wrong.
    """
    if not isinstance(answers, Sequence) or not all(isinstance(steps, Sequence) for steps in answers):
        raise TypeError(f"{name}.generate() must return a list of steps for each request, not {answers!r:.100}")
    if len(answers) != len(requests):
        raise ValueError(
            f"{name}.generate() answered {len(answers)} of {len(requests)} requests: answer each, in order"
        )
    for request, steps in zip(requests, answers, strict=True):
        if len(steps) != request.n:
            raise ValueError(f"{name}.generate() returned {len(steps)} steps where {request.n} were asked for")
        for step in steps:
            if not isinstance(step, Step):
                raise TypeError(f"{name}.generate() must return Step objects, not {type(step).__name__} {step!r:.80}")
            if not isinstance(step.text, str):
                raise TypeError(f"{name}.generate() returned a step whose text is {step.text!r:.80}, and no string")
            if step.finish_reason not in get_args(FinishReason):
                raise ValueError(
                    f"{name}.generate() returned a step with finish_reason={step.finish_reason!r}: "
                    f"choose one of {', '.join(map(repr, get_args(FinishReason)))}"
                )
            if request.until == "end" and step.finish_reason == "step":
                raise ValueError(
                    f'{name}.generate() ended a completion (until="end") with finish_reason="step", as if it could go '
                    'on: give "eos" or "length"'
                )
