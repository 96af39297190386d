"""One problem's search while it runs: its tree, its pending request and its bill."""

from __future__ import annotations

import inspect
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from inferscale.base import Embedder, Generator, RewardModel, SearchStrategy
from inferscale.cost import Budget, Cost
from inferscale.flow import Answer, Embed, Flow, Generate, GenerateRequest, Score, as_request, score
from inferscale.functional import ArrayLike, ngram_embeddings
from inferscale.strategies.pooling import Drawn
from inferscale.thinking import Thinking, thinking_for
from inferscale.tree import Node, Problem, Step, branch_key, root_key

from .journal import Journal, Samples, Scores
from .several import assigned


@dataclass(frozen=True, slots=True)
class SearchUpdate:
    """The answer that a search has just been given, for callbacks; its nodes are those of the tree, to be read only.

    Attributes:
        index: Place of the problem: number of searches begun before this one.
        problem: The problem.
        sampled: New nodes, look-ahead included.
        scored: Nodes that have their scores now.
        cost: The cost of the search until now.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyReward
        >>> def tell(update):
        ...     print(f"{len(update.sampled)} sampled, {len(update.scored)} scored, {update.cost.tokens} tokens so far")
        >>> strategy = isc.BeamSearch(2, 2, max_depth=2)
        >>> result = isc.solve("How many?", strategy, ToyGenerator(), reward_model=ToyReward(), on_step=tell)
        4 sampled, 0 scored, 20 tokens so far
        0 sampled, 4 scored, 20 tokens so far
        4 sampled, 0 scored, 34 tokens so far
        0 sampled, 4 scored, 34 tokens so far
    """

    index: int
    problem: Problem
    sampled: tuple[Node, ...]
    scored: tuple[Node, ...]
    cost: Cost


class Grant(NamedTuple):
    """What a search of a pool may have cost when it next waits: samples, and tokens if there is a bound."""

    samples: int = 0
    tokens: int | None = None


class Search:
    """One strategy's flow and the tree that it grows; `Session.start` begins one, and answers what it asks for.

    At any time either `request` holds what the flow waits for, or `leaves` holds what it returned. Whoever drives it
    asks for `next_samples` and `next_nodes`, has a model answer what they give, and hands the answer to `take_samples`
    or `take_scores`. All of it happens in one thread; only the models may run elsewhere.

    Attributes:
        index: Number of searches that its session started before.
        root: The root of the tree.
        cost: Its cost until now.
        stopped_by: The cap of the budget that ended it or cut its last sample, ``"cancel"``, or ``None``.
        abandoned: Set from any thread, ends the search at the next token, and nothing is scored any more: nobody waits
            for its result.
        on_step: Called with every answer that a model gives it, before it goes on; not with those out of a journal.
        leaves: The leaves to vote over once it has ended; ``None`` until then.
        grant: How far it may go before it waits for more, in a pool; ``None`` elsewhere.
        replayed_seconds: What the models took for the answers that a journal has given again.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyReward
        >>> solver = isc.Solver(isc.REBASE(4), ToyGenerator(), ToyReward())
        >>> with solver.session() as session:
        ...     search = session.start("How many?")
        ...     while search.leaves is None:
        ...         _ = session.advance()
        ...         print(type(search.request).__name__, search.cost.tokens)
        ...     result = session.finish(search)
        Generate 20
        Generate 32
        Generate 47
        NoneType 63
    """

    def __init__(
        self,
        index: int,
        problem: Problem,
        stream: str,
        strategy: SearchStrategy,
        budget: Budget | None,
        has_reward_model: bool,
        read: Callable[[Sequence[Node]], list[str | None]],
        journal: Journal | None = None,
        *,
        thinking: Thinking | None = None,
        cancel: threading.Event | None = None,
        abandoned: threading.Event | None = None,
        on_step: Callable[[SearchUpdate], object] | None = None,
        generator: Generator,
        grant: Grant | None = None,
    ) -> None:
        # One name seeds both streams of a search: the strategy's own `rng`, and by the root's key those of all samples.
        self.index = index
        self.root = Node(
            problem, key=root_key(stream), thinking=thinking_for(problem.prompt, problem.prefill, thinking)
        )
        self.strategy = strategy
        self.cost = Cost(first_answer=None)
        self._markers = thinking
        self._python = 0.0  # its own seconds since the last answer, billed with the next one
        self._payers: dict[tuple[Node, str | None], int] = {}  # the first draw of each generator from each root
        self.stopped_by: str | None = None
        self.request: Generate | Score | None = None
        self.leaves: list[Node] | None = None
        self.grant = grant
        self.replayed_seconds = 0.0
        self.abandoned = abandoned or threading.Event()
        self.on_step = on_step
        self._cancel = cancel
        self._budget = budget
        self._has_reward_model = has_reward_model
        self._read = read
        self._generator = generator
        self._journal = journal
        self._is_given = False  # what a journal holds: nothing of it is recorded or told again
        self._is_cut = False  # the tokens that were left did not do for the newest sample
        # What a journal holds: parts of an answer, by the keys of the branches, and answers.
        self._drawn = {} if journal is None else journal.samples(self.root)
        self._recorded = deque(() if journal is None else journal.answers(self.root))
        self._started = time.perf_counter()
        # A pending `Generate` may take several calls of the generator. `_queue` holds what has not been sampled yet,
        # with the place of each request in `_groups`, where new nodes gather until all are there.
        self._queue: deque[tuple[int, GenerateRequest]] = deque()
        self._groups: list[list[Node]] = []
        self._flow = self._whole(random.Random(stream))
        self._resume(None)

    # -- the flow ------------------------------------------------------------------------------------------------

    def _whole(self, rng: random.Random) -> Flow[list[Node]]:
        """The strategy's flow with its leaves checked, and scored where it left them unscored."""
        flow = self.strategy.search(self.root, rng)
        if not inspect.isgenerator(flow):
            raise TypeError(
                f"{self.strategy!r}.search() returned {type(flow).__name__}, not a flow: "
                "write it as a generator function (`yield from expand(...)`) or return one of the verbs"
            )
        leaves: object = yield from flow
        if not isinstance(leaves, list | tuple) or not all(isinstance(leaf, Node) for leaf in leaves):
            raise TypeError(f"{self.strategy!r}.search() must return a list of nodes, not {leaves!r:.200}")
        tree = set(self.root.walk())
        for leaf in leaves:
            if leaf not in tree:
                raise ValueError(
                    f"{self.strategy!r}.search() returned {leaf!r}, which is not in this search's tree: "
                    "return nodes of `root.walk()`, not look-ahead (attach=False) and not nodes of another search"
                )
        if not leaves:
            leaves = self.root.leaves()
            if not any(node.is_failed for node in tree):  # else a dead end: every sample that could have gone on failed
                raise ValueError(
                    f"{self.strategy!r}.search() returned no leaf, though the tree has {len(leaves)}: "
                    "return `root.leaves()` when nothing better is at hand"
                )
        return (yield from self._scored(list(leaves)))

    def _scored(self, leaves: list[Node]) -> Flow[list[Node]]:
        if self._has_reward_model:
            yield from score(leaf for leaf in leaves if leaf.step is not None and not leaf.is_failed)
        return leaves

    def _resume(self, answer: Any) -> None:
        """Give the flow its answer, and take what it asks for next; embedding is billed, its own time is not yet."""
        started, self._embedding = time.perf_counter(), 0.0
        try:
            self._go_on(answer)
        finally:
            self._python += time.perf_counter() - started - self._embedding

    def _go_on(self, answer: Any) -> None:
        self.request = None
        while True:
            try:
                request = as_request(self._flow.send(answer))
            except StopIteration as stop:
                self.leaves = stop.value
                if self._is_cut and self.stopped_by is None:  # it asked for no more, but had not all that it asked for
                    self.stopped_by = "tokens"
                return
            if isinstance(request, Answer):
                answer = self._read(request.nodes)  # needs no model, and is read again in a replay
            elif isinstance(request, Embed):
                answer = self._embedded(request.texts)
            else:
                break
        self.request = request
        if isinstance(request, Generate):
            for asked in request.requests:
                if asked.aside and asked.node not in self.root.side_notes:
                    self._note(asked.node)
            self._queue.extend(enumerate(request.requests))
            self._groups = [[] for _ in request.requests]

    def _embedded(self, texts: Sequence[str]) -> ArrayLike:
        """The vectors of texts, computed anew in a replay. Each search is embedded alone, so that no other matters."""
        embedder: object = self._generator
        if not isinstance(embedder, Embedder):
            return ngram_embeddings(texts)
        started = time.perf_counter()
        vectors = embedder.embed(texts)
        seconds = time.perf_counter() - started
        self._embedding += seconds
        price = self._generator.embedding_cost(texts)
        moved = price.generator_bytes or (None if price.generator_flops else 0)
        self.cost += replace(
            price, seconds=seconds, phases={"prefill": seconds}, generator_bytes=moved,
            cache_bytes=moved and price.cache_bytes, generator_joules=None if price.generator_flops else 0.0,
        )  # fmt: skip
        return vectors

    def _note(self, node: Node) -> None:
        """Name a side prompt by the root and its order among them, which names the streams of its replies."""
        notes, problem = self.root.side_notes, node.problem
        node.key = root_key(f"{self.root.key:016x}/ask/{len(notes)}")
        node.thinking = thinking_for(problem.prompt, problem.prefill, self._markers)
        notes.append(node)

    def stop(self, reason: str, by_clock: bool = False) -> None:
        """End the search: the best effort so far becomes its result, once its leaves are scored."""
        if by_clock or reason == "seconds":
            self._record(reason)
        self._end(reason)

    def _end(self, reason: str) -> None:
        self.stopped_by = reason
        self._flow.close()
        self._queue.clear()
        self._has_reward_model &= not self.abandoned.is_set()
        self._flow = self._scored(self.root.leaves())
        self._resume(None)

    def is_cancelled(self) -> bool:
        """Return True once it is to end with the best so far, or without a result; may be asked in any thread."""
        return self.abandoned.is_set() or (self._cancel is not None and self._cancel.is_set())

    @property
    def _seconds(self) -> float:
        """Time since it began, and what the models took for answers that a journal has given."""
        return time.perf_counter() - self._started + self.replayed_seconds

    @property
    def is_replaying(self) -> bool:
        """True while a journal has answers for it."""
        return self._is_given or bool(self._recorded)

    def _spent(self) -> str | None:
        """The reason that ends it here. No clock and no event does while a journal answers: it would end elsewhere."""
        if self.is_cancelled() and not self.is_replaying:
            return "cancel"
        if self._budget is None:
            return None
        return self._budget.exhausted(self.cost, 0.0 if self.is_replaying else self._seconds)

    # -- generating ----------------------------------------------------------------------------------------------

    def next_samples(self, generator: Generator) -> list[GenerateRequest]:
        """Return the pending requests for samples, as far as they surely fit the budget; ``[]`` if there are none.

        Tokens and calls are spent exactly. Samples are taken in their order, as many as fit if each has the most tokens
        that it can have, ``generator.max_sample_tokens(request)``; those that turn out shorter make room for more in
        the next call. Where not even one fits for sure, one is drawn alone, cut at the tokens that are left. So the cap
        is met and never passed, and a sample's place among the draws of its node does not depend on the budget.
        """
        while isinstance(self.request, Generate) and not self._queue:
            self._resume(self._groups)  # it asked for nothing
        if not isinstance(self.request, Generate):
            return []
        spent = self._spent()
        if spent is not None:
            self.stop(spent)
            return []
        if self.is_held:
            return []
        calls, tokens, deadline = float("inf"), None, None
        if self._budget is not None:
            if self._budget.calls is not None:
                calls = self._budget.calls - self.cost.num_generated
            if self._budget.tokens is not None:
                tokens = self._budget.tokens - self.cost.tokens
            if self._budget.seconds is not None:
                deadline = time.monotonic() + self._budget.seconds - self._seconds
        if self.grant is not None:
            calls = min(calls, self.grant.samples - self.cost.num_generated)
            if self.grant.tokens is not None:
                granted = self.grant.tokens - self.cost.tokens
                tokens = granted if tokens is None else min(tokens, granted)
        requests: list[GenerateRequest] = []
        for _, pending in self._queue:
            request = assigned(generator, pending)
            n, cap, node = int(min(request.n, calls)), request.max_tokens, request.node
            if tokens is not None and n:
                # A bound of 0 cannot be one, and says as little as none.
                bounds = [bound for bound in (generator.max_sample_tokens(request), request.max_tokens) if bound]
                fit = min(n, tokens // min(bounds)) if bounds else 0
                if fit == 0 and not requests:
                    n, cap = 1, tokens
                elif fit:
                    n, tokens = fit, tokens - fit * min(bounds)
                else:
                    break
            if n == 0:
                break
            payer = 0 if node.parent else self._payers.setdefault((node, request.generator), node.num_draws)
            asked = replace(
                request, n=n, first=node.num_draws, payer=payer, max_tokens=cap, deadline=deadline,
                is_cancelled=self.is_cancelled,
            )  # fmt: skip
            requests.append(asked)
            node.num_draws += n
            calls -= n
            if n < request.n or cap != request.max_tokens:
                break  # what follows has to wait: the samples of a search are drawn in order
        return requests

    @property
    def is_held(self) -> bool:
        """True if it wants samples, and has had all that it was granted."""
        if self.grant is None or not isinstance(self.request, Generate) or not self._queue:
            return False
        samples, tokens = self.grant
        return self.cost.num_generated >= samples or (tokens is not None and self.cost.tokens >= tokens)

    def most_next(self, generator: Generator) -> int | None:
        """Return the most tokens that its next sample can have; ``None`` if there is no bound."""
        request = assigned(generator, self._queue[0][1])
        return min((b for b in (generator.max_sample_tokens(request), request.max_tokens) if b), default=None)

    def state(self) -> Drawn:
        """Return what an allocation is told."""
        leaves = [node for node in self.root.walk() if node.is_finished and not node.is_failed]
        scores = tuple(leaf.score for leaf in leaves if leaf.is_scored)
        return Drawn(tuple(self._read(leaves)), scores, self.cost.num_generated)

    def take_samples(self, requests: Sequence[GenerateRequest], samples: Samples) -> None:
        """Put the answer to `next_samples` into the tree and on the bill; resume the flow when it has all of it.

        Where the clock or a cancellation cut samples short, the search ends with what there is. A cancelled search goes
        on when its journal is read again, so that such an answer is not recorded: the same tokens are drawn once more.
        """
        if not self._is_given:
            cut = any(step.finish_reason == "budget" for steps in samples.steps for step in steps)
            if cut and any(request.is_over for request in requests):
                samples = samples._replace(stopped_by="cancel" if self.is_cancelled() else "seconds")
            for request, steps in zip(requests, samples.steps, strict=True):
                for step in steps:
                    self.saw(request, step)
            samples = samples._replace(python=self._python, first_answer=self.cost.first_answer)
            if samples.stopped_by != "cancel":
                self._record(samples)
        elif samples.first_answer is not None:
            self.cost = replace(self.cost, first_answer=samples.first_answer)
        nodes: list[Node] = []
        for request, steps in zip(requests, samples.steps, strict=True):
            position, whole = self._queue.popleft()
            self._is_cut = request.max_tokens != whole.max_tokens and steps[0].finish_reason == "budget"
            if request.n < whole.n:
                self._queue.appendleft((position, replace(whole, n=whole.n - request.n)))
            for draw, step in enumerate(steps, request.first):
                if samples.stopped_by is not None and not _has_begun(step, request):
                    request.node.num_draws -= 1
                    continue
                nodes.append(self._grown(request, draw, step))
                self._groups[position].append(nodes[-1])
        self._bill(requests, samples, len(nodes))
        self._tell(sampled=tuple(nodes))
        if samples.stopped_by is not None:
            self._end(samples.stopped_by)
        elif not self._queue:
            self._resume(self._groups)

    def take_part(
        self, requests: Sequence[GenerateRequest], parts: Sequence[Mapping[int, Step]], samples: Samples
    ) -> None:
        """Put samples of an answer that will never be complete into the tree and on the bill, for the best so far."""
        for request, part in zip(requests, parts, strict=True):
            for index, step in sorted(part.items()):
                self._grown(request, request.first + index, step)
        steps = [list(part.values()) for part in parts]
        self._bill(requests, samples._replace(steps=steps), sum(map(len, parts)))

    def drawn(self, request: GenerateRequest) -> dict[int, Step]:
        """Return the samples of `request` that a journal holds, though not all of its answer, by their place."""
        keys = {branch_key(request.node.key, request.first + index): index for index in range(request.n)}
        return {keys[key]: self._drawn.pop(key) for key in keys if key in self._drawn}

    def record_part(self, request: GenerateRequest, index: int, step: Step) -> None:
        """Keep one sample of an answer that takes longer, in case this process is killed meanwhile.

        Not of one with forced text, which the first sample of a request pays for: the rest would be another request.
        Nor of one in a race, which the rest would run without it.
        """
        if self._journal is not None and not request.forced and request.race is None and not request.is_over:
            self._journal.record_sample(self.root, branch_key(request.node.key, request.first + index), step)

    def saw(self, request: GenerateRequest, step: Step) -> None:
        """Note the time of the first finished solution; look-ahead and side prompts are none."""
        if self.cost.first_answer is not None or not request.attach:
            return
        if step.finish_reason in ("eos", "length") and (request.node.text + step.text).strip():
            self.cost = replace(self.cost, first_answer=self._seconds)

    def _grown(self, request: GenerateRequest, draw: int, step: Step) -> Node:
        """The new node of a sample."""
        parent = request.node
        # A step of white space can go on; a path that ended with nothing else, or from which nothing came, cannot.
        is_over = step.finish_reason == "eos" or (step.finish_reason == "step" and not _has_begun(step, request))
        if is_over and not step.text.strip() and not parent.text.strip():
            step = replace(step, finish_reason="empty")
        home = self.root if request.aside and request.attach else parent  # solutions by another prompt are leaves too
        node = Node(home.problem, step, home, branch_key(parent.key, draw))
        if request.attach:
            home.children.append(node)
        if request.aside:
            parent.children.append(node)
        return node

    def _bill(self, requests: Sequence[GenerateRequest], samples: Samples, num_generated: int) -> None:
        groups, shares = samples.steps, dict[str, Cost]()
        whole = self._price(requests, samples, range(len(requests)))
        for name in ("ask", *dict.fromkeys(request.generator for request in requests)):
            own = [i for i, r in enumerate(requests) if (r.aside if name == "ask" else r.generator == name)]
            if name and own:
                shares[name] = self._price(requests, samples, own)
        pairs = [(request, step) for request, steps in zip(requests, groups, strict=True) for step in steps]
        if thought := sum(thinking_tokens(request.node, step, request.forced) for request, step in pairs):
            shares["thinking"] = Cost(generated_tokens=thought)
        phases = {**whole.phases, "python": samples.python or 0.0}
        self.cost += replace(whole, num_generated=num_generated, shares=shares, phases=phases)
        self._python = 0.0

    def _price(self, requests: Sequence[GenerateRequest], samples: Samples, places: Sequence[int]) -> Cost:
        """The cost of the requests at these places; NumPy's integers would overflow in silence."""
        groups = [samples.steps[place] for place in places]
        steps, own = [step for group in groups for step in group], [requests[place] for place in places]
        part = len(steps) / max(sum(map(len, samples.steps)), 1) if len(own) < len(requests) else 1.0
        seconds, moved = samples.seconds * part, self._generator.traffic(own, groups)
        phases = {"generate": seconds}
        if samples.prefill is not None:
            phases = {"prefill": samples.prefill * part, "decode": seconds - samples.prefill * part}
        return Cost(
            prompt_tokens=sum(int(step.prompt_tokens) for step in steps),
            generated_tokens=sum(int(step.generated_tokens) for step in steps),
            thought_tokens=sum(int(step.thought_tokens) for step in steps),
            generator_flops=sum(int(step.flops) for step in steps),
            seconds=seconds,
            num_generated=len(steps),
            resent_tokens=sum(int(s.sent_tokens) - int(s.prompt_tokens) for s in steps if s.sent_tokens is not None),
            cached_tokens=sum(int(step.cached_tokens) for step in steps),
            generator_bytes=None if moved is None else sum(moved),
            cache_bytes=None if moved is None else moved.cache,
            rounds=_rounds(own, groups),
            phases=phases,
            generator_joules=None if samples.joules is None else samples.joules * part,
        )

    # -- scoring -------------------------------------------------------------------------------------------------

    def next_nodes(self) -> tuple[Node, ...]:
        """Return the nodes that wait for a score; ``()`` if none do."""
        while isinstance(self.request, Score):
            if not self.request.nodes:
                self._resume(None)
                continue
            if not self._has_reward_model:
                raise ValueError(f"{self.strategy!r} scores its nodes: pass reward_model=...")
            spent = self._spent() if self.stopped_by is None or self.abandoned.is_set() else None
            if spent is None or spent in ("tokens", "calls"):  # scoring costs neither
                return self.request.nodes
            self.stop(spent)
        return ()

    def take_scores(self, nodes: Sequence[Node], scores: Scores) -> None:
        """Give the answer to `next_nodes` to the nodes, bill it and resume the flow."""
        for node, value, steps in zip(nodes, scores.values, scores.step_scores, strict=True):
            node.score = value
            node.step_scores = None if steps is None else tuple(steps)
        if not self._is_given:
            scores = scores._replace(cost=scores.cost + Cost(phases={"python": self._python}))
        self._python = 0.0
        self._record(scores)
        self.cost += scores.cost
        self._tell(scored=tuple(nodes))
        self._resume(None)

    def _tell(self, sampled: tuple[Node, ...] = (), scored: tuple[Node, ...] = ()) -> None:
        if self.on_step is not None and not self._is_given:
            self.on_step(SearchUpdate(self.index, self.root.problem, sampled, scored, self.cost))

    # -- going on from a journal ---------------------------------------------------------------------------------

    def _record(self, answer: Samples | Scores | str) -> None:
        if self._journal is not None and not self._is_given and self.stopped_by != "cancel":
            self._journal.record(self.root, answer)

    def replay(self, generator: Generator, reward_model: RewardModel | None = None) -> None:
        """Answer out of the journal for as long as it has answers, and the search of a pool is granted them.

        No model is run. A search is deterministic given its answers, so tree, scores and bill become what they were.
        What the models took then counts for the clock, as if it had been waited for again.

        Raises:
            ValueError: If what is recorded does not answer what this search asks for.
        """
        while self._recorded and not self.is_held:
            answer, self._is_given = self._recorded.popleft(), True
            if isinstance(answer, str):
                self.stop(answer)
            else:
                self._give(answer, generator, reward_model)
            self._is_given = False
            if self.leaves is not None:
                self._recorded.clear()

    def _give(self, answer: Samples | Scores, generator: Generator, reward_model: RewardModel | None) -> None:
        requests = self.next_samples(generator)
        nodes = () if requests else self.next_nodes()
        if self.leaves is not None:
            return
        if isinstance(answer, Samples) and [len(steps) for steps in answer.steps] == [r.n for r in requests]:
            self.replayed_seconds += answer.seconds
            self.take_samples(requests, answer)
        elif isinstance(answer, Scores) and nodes and len(answer.values) == len(nodes):
            self.replayed_seconds += answer.cost.seconds
            if reward_model is not None:
                reward_model.recall(nodes)
            self.take_scores(nodes, answer)
        else:
            raise ValueError("the journal does not fit this search: its code has changed since; delete the journal")


def _rounds(requests: Sequence[GenerateRequest], groups: Sequence[Sequence[Step]]) -> int:
    """Forwards that follow one another: one for each token of the longest sample, thoughts included.

    The first of them reads what no forward had before; where a sibling has read it, its logits are there. Where the
    tokens are not known, an answer is one round.
    """
    most = 0
    for request, steps in zip(requests, groups, strict=True):
        if steps:
            reads = request.first <= request.payer < request.first + request.n or bool(request.forced)
            tokens = max(int(step.generated_tokens + step.thought_tokens) for step in steps)
            most = max(most, tokens - (not reads), int(any(step.text for step in steps)))
    return most


def thinking_tokens(node: Node, step: Step, forced: str = "") -> int:
    """Sampled tokens of a step after `node` that are thoughts, their markers included; 0 where no setting tells.

    A piece that thoughts and answer share, an inner step or what was sampled as one, is divided by its characters.
    """
    thinking = node.thinking
    if thinking is None or not thinking.end:
        return 0
    begun = node.text
    if not thinking.start:  # then it begins with thoughts
        thinking = replace(thinking, prefilled=True)
    pieces, start = thinking.pieces(begun + step.text), len(begun)
    finals = [(a - start, b - start) for is_thought, a, b in pieces if not is_thought]
    unsampled = len(step.token_ids) - step.generated_tokens if step.token_ids else 0  # ids of the forced text
    whole, tokens = ((0, len(step.text)), (0, len(step.token_ids))), 0.0
    for (start, end), (first, last) in step.inner_spans() or [whole]:
        start = max(start, len(forced))
        sampled = max(last - max(first, unsampled), 0) if step.token_ids else step.generated_tokens
        answer = sum(max(min(end, b) - max(start, a), 0) for a, b in finals)
        tokens += sampled * (1 - answer / max(end - start, 1))
    return round(tokens)


def _has_begun(step: Step, request: GenerateRequest) -> bool:
    """True if anything was drawn for a sample, of which a generator need not know the tokens."""
    if step.token_ids or step.num_tokens is not None:
        return step.generated_tokens > 0 or step.thought_tokens > 0
    return step.text not in ("", request.forced)
