"""Fakes without weights, functions of the prefix and the draw number, and conformance checks for your own parts.

Example:
    >>> import inferscale as isc
    >>> isc.testing.check_strategy(isc.strategies.Restart(isc.RepeatedSampling(2)))  # or a strategy of your own
    >>> isc.solve("How many?", isc.RepeatedSampling(8), isc.testing.ToyGenerator()).answer  # no model is needed
    '1'
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any

from .base import Aggregator, Generator, ProcessRewardModel, RewardModel, Sampling, SearchStrategy, Ticket
from .cost import Budget, Cost
from .engine import solve, solve_batch
from .flow import GenerateRequest
from .functional import Reduction
from .tree import FinishReason, Node, Problem, Step, Trajectory, UnscoredNodeError, branch_key
from .viz import render_tree

PROMPTS = ("How many?", "How many more?", "How many are left, and why?")
"""The problems that the checks of this module search.

Example:
    >>> import inferscale as isc
    >>> from inferscale.testing import PROMPTS, ToyGenerator
    >>> [result.answer for result in isc.solve_batch(list(PROMPTS), isc.RepeatedSampling(4), ToyGenerator())]
    ['0', '2', '2']
"""


def unit_hash(text: str) -> float:
    """A number in (0, 1) that depends on `text` alone.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import unit_hash
        >>> round(unit_hash("The answer is 4"), 3)
        0.555
        >>> chance = isc.RewardFunction(lambda completions, **columns: [unit_hash(text) for text in completions])
        >>> result = isc.solve("How many?", isc.REBASE(4), isc.testing.ToyGenerator(), reward_model=chance)
        >>> len(result.trajectories)
        4
    """
    return (int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big") + 0.5) / 2**48


@dataclass
class ToyGenerator(Generator):
    r"""A language model that is a hash of the path: no weights, the same text for the same seed, problem and path.

    A step is ``"<letter> <letter> ...\n"`` of two to five tokens; after `depth` steps the path ends with
    ``"The answer is <digit>"``. Greedy requests read the text of the prefix instead of the branch's key, and those with
    a temperature this too. Forced text is one token a word.

    Attributes:
        depth: Steps before the answer; ``None`` never ends.
        num_answers: Number of different answers.
        calls: Number of `generate` calls so far; of a session, times that it began what it was asked.
        ragged: True hands samples over one by one, the shortest first, in a session; else `generate` answers in rounds.

    Example:
        >>> import inferscale as isc
        >>> generator = isc.testing.ToyGenerator(depth=1, num_answers=2)
        >>> result = isc.solve("How many?", isc.RepeatedSampling(3), generator)
        >>> [trajectory.text for trajectory in result.trajectories]
        ['u q w i c\nThe answer is 0', 't i l o k\nThe answer is 1', 'o b m b o\nThe answer is 1']
    """

    depth: int | None = 3
    num_answers: int = 4
    calls: int = 0
    ragged: bool = False
    no_effect = frozenset({"calls", "ragged"})
    takes_temperature = True

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """Steps that depend on each request's prefix and draw numbers alone."""
        self.calls += 1
        groups = [[self._sample(request, draw) for draw in range(request.n)] for request in requests]
        samples = [(request, draw) for request in requests for draw in range(request.n)]
        for race in {id(request.race): request.race for request in requests if request.race is not None}.values():
            lengths = [
                request.ahead + step.generated_tokens
                for (request, _), step in zip(samples, (step for steps in groups for step in steps), strict=True)
                if request.race is race and race.arrives(step)
            ]
            line = race.line(lengths)
            for request, steps in zip(requests, groups, strict=True):
                if request.race is race and line is not None:
                    steps[:] = [self._cut(request, draw, step, line - request.ahead) for draw, step in enumerate(steps)]
        return groups

    def _cut(self, request: GenerateRequest, draw: int, step: Step, most: int) -> Step:
        if step.generated_tokens <= most:
            return step
        if most <= 0:
            return Step("", finish_reason="budget")
        return self._sample(replace(request, max_tokens=most), draw)

    def open(self) -> Sampling:
        """A session."""
        return _Ragged(self) if self.ragged else super().open()

    def max_sample_tokens(self, request: GenerateRequest) -> int | None:
        """Five tokens for a step."""
        if request.until == "step":
            return 5
        return None if self.depth is None else 5 * (self.depth + 1)

    def _sample(self, request: GenerateRequest, draw: int) -> Step:
        prefix = request.node.text
        source = prefix if request.greedy else str(branch_key(request.node.key, request.first + draw))
        if request.temperature and not request.greedy:
            source += f" at {request.temperature}"
        pieces = list(self._pieces(request, source, prefix.count("\n")))
        words = [word for piece, _ in pieces for word in piece]
        reason: FinishReason = pieces[-1][1]
        if request.max_tokens is not None and len(words) >= request.max_tokens and reason == "step":
            reason = "budget"
        if request.max_tokens is not None and len(words) > request.max_tokens:
            words, reason = words[: request.max_tokens], "budget"
        if len(words) > 1 and request.is_over:  # it looks after the first token
            words, reason = words[:1], "budget"
        prompt = (
            len(request.node.problem.prompt.split())
            if not request.node.depth and request.first + draw == request.payer
            else 0
        )
        forced = tuple(ord(word[0]) for word in request.forced.split())
        prompt += len(forced) if draw == 0 else 0
        ends, text_end, id_end = [], len(request.forced), len(forced)
        for piece, _ in pieces:
            text_end, id_end = text_end + len("".join(piece)), id_end + len(piece)
            ends.append((text_end, id_end))
        return Step(
            text=request.forced + "".join(words),
            token_ids=forced + tuple(ord(word[0]) for word in words),
            logprob=-float(len(words)),
            model_logprob=-float(len(words)),
            confidence=-unit_hash(source),
            finish_reason=reason,
            inner_ends=tuple(ends) if len(forced) + len(words) == id_end and len(ends) > 1 else (),
            flops=1000 * (len(words) + prompt),
            prompt_tokens=prompt,
            num_tokens=len(words) if forced else None,
        )

    def _pieces(self, request: GenerateRequest, source: str, depth: int) -> Iterator[tuple[list[str], FinishReason]]:
        limit = 50 if self.depth is None else self.depth
        while True:
            u = unit_hash(f"{source}/{depth}")
            if self.depth is not None and depth >= limit:
                yield ["The ", "answer ", "is ", str(int(u * self.num_answers))], "eos"
                return
            words = [chr(97 + int(unit_hash(f"{source}/{depth}/{i}") * 26)) for i in range(2 + int(u * 4))]
            yield [word + " " for word in words[:-1]] + [words[-1] + "\n"], "step"
            depth += 1
            if request.until == "step":
                return
            if self.depth is None and depth > limit:
                yield ["cut "], "length"
                return


class _Ragged(Sampling):
    """Hands the samples of a toy over when as many tokens were drawn of each as the shortest has."""

    def __init__(self, toy: ToyGenerator) -> None:
        self._toy = toy
        self._new: list[Ticket] = []
        self._left: dict[tuple[Ticket, int], tuple[Step, int]] = {}  # what each sample will be, and tokens until then
        self._cut: list[tuple[Ticket, int, Step]] = []

    def submit(self, request: GenerateRequest) -> Ticket:
        """Take a request."""
        self._new.append(Ticket(request))
        return self._new[-1]

    def collect(self) -> list[tuple[Ticket, int, Step]]:
        """Draw tokens until a sample has ended."""
        if self._new:
            new, self._new = self._new, []
            for ticket, steps in zip(new, self._toy.generate([ticket.request for ticket in new]), strict=True):
                self._left |= {(ticket, draw): (step, step.generated_tokens) for draw, step in enumerate(steps)}
        for ticket in {ticket for ticket, _ in self._left if ticket.request.is_over}:
            self.cancel(ticket)
        if not self._cut:
            tokens = min((tokens for _, tokens in self._left.values()), default=0)
            self._cut = [(*sample, step) for sample, (step, left) in self._left.items() if left == tokens]
            self._left = {sample: (step, left - tokens) for sample, (step, left) in self._left.items() if left > tokens}
        ended, self._cut = self._cut, []
        return ended

    def cancel(self, ticket: Ticket) -> None:
        """Let the samples of a request end with their first token, or before they have begun."""
        if ticket in self._new:
            self._new.remove(ticket)
            self._cut += [(ticket, draw, Step("", finish_reason="budget")) for draw in range(ticket.request.n)]
        draws = [draw for other, draw in self._left if other is ticket]
        over = replace(ticket.request, deadline=0.0)
        self._cut += [(ticket, draw, self._toy._sample(over, draw)) for draw in draws]
        for draw in draws:
            del self._left[ticket, draw]

    def close(self) -> None:
        """Drop everything."""
        self._new, self._left, self._cut = [], {}, []


@dataclass
class ToyReward(RewardModel):
    """Scores in (0, 1) that are a hash of prompt and text.

    Attributes:
        calls: Number of `score` calls so far.

    Example:
        >>> import inferscale as isc
        >>> generator, reward = isc.testing.ToyGenerator(), isc.testing.ToyReward()
        >>> solver = isc.Solver(isc.RepeatedSampling(4), generator, reward, isc.BestOfN())
        >>> [round(trajectory.score, 2) for trajectory in solver.solve("How many?").trajectories]
        [0.63, 0.78, 0.75, 0.99]
    """

    calls: int = 0
    no_effect = frozenset({"calls"})

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """One number for each node."""
        self.calls += 1
        return [unit_hash(node.problem.prompt + node.text) for node in nodes]


@dataclass
class ToyProcessReward(ProcessRewardModel):
    """Step scores in (0, 1) that are a hash of the text up to the step's end.

    Attributes:
        reduction: How step scores become one score.

    Example:
        >>> import inferscale as isc
        >>> generator, reward = isc.testing.ToyGenerator(), isc.testing.ToyProcessReward("min")
        >>> result = isc.solve("How many?", isc.BeamSearch(2, 2), generator, reward_model=reward)
        >>> [round(score, 2) for score in result.selected.step_scores], round(result.selected.score, 2)
        ([0.68, 0.64, 0.21, 0.46], 0.21)
    """

    reduction: Reduction = "last"

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """One number for each inner step."""
        texts = ([node.problem.prompt, *(text for text, _ in node.inner_steps())] for node in nodes)
        return [[unit_hash(prefix) for prefix in accumulate(of_node)][1:] for of_node in texts]


def _unchanged(step: Step, node: Node) -> Step:
    return step


@dataclass
class BrokenGenerator(Generator):
    """A `ToyGenerator` whose steps are rewritten by `change`, for failures: empty steps, errors, an early end.

    Attributes:
        change: Called with a step and its request's node; returns the step that is given instead.
        die_after: Raises `KeyboardInterrupt` in the call after so many.
        toy: The generator whose steps are rewritten.

    Example:
        >>> import inferscale as isc
        >>> from dataclasses import replace
        >>> def sometimes_down(step, node):
        ...     return replace(step, text="server gone", finish_reason="error") if step.confidence < -0.7 else step
        >>> generator = isc.testing.BrokenGenerator(sometimes_down)
        >>> result = isc.solve("How many?", isc.RepeatedSampling(16), generator)
        >>> len(result.trajectories), result.answer  # failed samples have no vote
        (11, '1')
    """

    change: Callable[[Step, Node], Step] = field(default=_unchanged)
    die_after: int | None = None
    toy: ToyGenerator = field(default_factory=ToyGenerator)
    no_effect = frozenset({"die_after"})
    takes_temperature = True

    def identity(self) -> dict[str, Any]:
        """That of the toy if nothing is rewritten: a search that died goes on with it."""
        return self.toy.identity() if self.change is _unchanged else super().identity()

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """The toy's steps, changed."""
        if self.die_after is not None and self.toy.calls >= self.die_after:
            raise KeyboardInterrupt
        return [
            [self.change(step, request.node) for step in steps]
            for request, steps in zip(requests, self.toy.generate(requests), strict=True)
        ]

    def max_sample_tokens(self, request: GenerateRequest) -> int | None:
        """That of the toy."""
        return self.toy.max_sample_tokens(request)


def check_aggregator(aggregator: Aggregator) -> None:
    """Let an aggregator choose among toy trajectories and raise an `AssertionError` that says what it breaks.

    The promises: one of the given trajectories, the same again for the same ones; one that abstains (its answer is
    ``None``) only if all abstain, unless `reads_answers` is False; an answer that all agree on; scores are read only if
    `needs_scores` says so; nothing to choose from is a `ValueError`.

    Example:
        >>> import inferscale as isc
        >>> isc.testing.check_aggregator(isc.MajorityVote(weighted=True))
        >>> class First(isc.Aggregator):
        ...     def select(self, trajectories):
        ...         return trajectories[0]
        >>> isc.testing.check_aggregator(First())
        Traceback (most recent call last):
            ...
        AssertionError: <...First object at 0x...>: chose a trajectory without an answer though others have one
    """
    name = repr(aggregator)
    answers, mixed = ("4", None, "7", "4", None, "9", "7", "4"), list[Trajectory]()
    for place, answer in enumerate(answers):
        scores = (unit_hash(f"{place}/0"), unit_hash(f"{place}/1"))
        steps = (
            Step("a step\n", (1, 2), -1.0, unit_hash(f"{place}/sure"), "step"),
            Step(f"The answer is {answer or 'open'}", (3, 4), -1.0, unit_hash(f"{place}/surer"), "eos"),
        )
        mixed.append(Trajectory(Problem("How many?", "7"), steps, scores, answer, scores[-1]))
    for count in range(1, len(mixed) + 1):
        for given in (mixed[:count], mixed[-count:], mixed[:count][::-1]):
            chosen = _selected(aggregator, given)
            assert chosen is _selected(aggregator, given), f"{name}: another choice the second time"
            abstains = chosen.answer is None and any(each.answer is not None for each in given)
            passed_over = abstains and aggregator.reads_answers
            assert not passed_over, f"{name}: chose a trajectory without an answer though others have one"
    agreed = [replace(each, answer="4") for each in mixed]
    assert _selected(aggregator, agreed).answer == "4", f"{name}: all agree on 4, and it says something else"
    silent = [replace(each, answer=None) for each in mixed]
    assert _selected(aggregator, silent).answer is None, f"{name}: an answer where there is none"
    if not aggregator.needs_scores:
        _selected(aggregator, [replace(each, score=None, step_scores=None) for each in mixed])
    try:
        aggregator.select([])
    except ValueError:
        return
    raise AssertionError(f"{name}: no trajectories to choose from are a ValueError")


def _selected(aggregator: Aggregator, given: Sequence[Trajectory]) -> Trajectory:
    chosen = aggregator.select(given)
    known = any(chosen is each for each in given)
    assert known, f"{aggregator!r} returned {chosen!r}, which is none of the trajectories that it was given"
    return chosen


def check_generator(generator: Generator, prompts: Sequence[str] = PROMPTS, reproducible: bool = True) -> None:
    """Ask a generator for samples of every kind and raise an `AssertionError` that says which promise it breaks.

    The promises: ``request.n`` steps for each request, in order; no more tokens than the request and
    `max_sample_tokens` allow; a completion has ended; forced text stands first; inner steps end where the text ends.
    And, if it is `reproducible`: the same steps again, in any batch and order, however many are drawn at a time,
    before and after `release`; greedy samples that are all alike; other samples at another temperature, if it
    `takes_temperature`; and of a request that is over, no text but the beginning of what it would have been.

    Args:
        generator: The generator; a few hundred short samples are drawn.
        prompts: Prompts that it can read.
        reproducible: True if the last promises are checked: a server that takes no seed cannot keep them.

    Example:
        >>> import inferscale as isc
        >>> isc.testing.check_generator(isc.testing.ToyGenerator())
        >>> class Forgetful(isc.testing.ToyGenerator):
        ...     def generate(self, requests):
        ...         return [steps[:1] for steps in super().generate(requests)]
        >>> isc.testing.check_generator(Forgetful())
        Traceback (most recent call last):
            ...
        AssertionError: Forgetful gave 1 steps for n=2
    """
    roots = [Node(Problem(prompt), key=place + 1) for place, prompt in enumerate(prompts)]
    children = [
        Node(root.problem, steps[0], root, branch_key(root.key, 0))
        for root, steps in zip(roots, _asked(generator, [GenerateRequest(root) for root in roots]), strict=True)
    ]
    nodes = [*roots, *(node for node in children if not node.is_finished)]
    kinds: list[dict[str, Any]] = [{}, {"until": "end"}, {"greedy": True}, {"forced": "So "}, {"max_tokens": 2}]
    if generator.takes_temperature:
        kinds.append({"temperature": 0.5, "until": "end"})
    for options in kinds:
        requests = [GenerateRequest(node, n=2, **options) for node in nodes]
        groups = _asked(generator, requests)
        for request, steps in zip(requests, groups, strict=True):
            for step in steps:
                _check_step(generator, request, step)
        if reproducible:
            _check_repeats(generator, requests, groups)
            _check_over(generator, requests, groups)
    if generator.takes_temperature and reproducible:
        _check_temperature(generator, nodes)
    for root in roots:
        generator.release(root)


def _asked(generator: Generator, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
    name = type(generator).__name__
    groups = [list(steps) for steps in generator.generate(requests)]
    assert len(groups) == len(requests), f"{name} answered {len(requests)} requests with {len(groups)} groups of steps"
    for request, steps in zip(requests, groups, strict=True):
        assert len(steps) == request.n, f"{name} gave {len(steps)} steps for n={request.n}"
        assert all(isinstance(step, Step) for step in steps), f"{name} gave {steps!r}: give Step objects"
    return groups


def _check_step(generator: Generator, request: GenerateRequest, step: Step) -> None:
    what = f"{type(generator).__name__}: {step!r} for {request!r}"
    if step.finish_reason in ("empty", "error"):
        return
    if step.finish_reason == "step":
        assert request.until == "step", f"{what}: a completion ends with another reason than 'step'"
        assert step.text.strip(), f"{what}: a step of nothing but white space is 'empty'"
    for limit in (request.max_tokens, generator.max_sample_tokens(request)):
        assert limit is None or step.generated_tokens <= limit, f"{what}: more than {limit} tokens"
    assert step.text.startswith(request.forced), f"{what}: the text begins with the forced one"
    assert min(step.flops, step.prompt_tokens, step.thought_tokens) >= 0, f"{what}: a cost is negative"
    ends = [end for end, _ in step.inner_ends] or [len(step.text)]
    assert [*sorted(ends)[:-1], len(step.text)] == ends, f"{what}: inner steps end in order, the last with the text"


def _check_repeats(generator: Generator, requests: list[GenerateRequest], groups: list[list[Step]]) -> None:
    def content(steps: Sequence[Step]) -> list[tuple[str, tuple[int, ...], str, int]]:
        return [(step.text, step.token_ids, step.finish_reason, step.generated_tokens) for step in steps]

    expected = [content(steps) for steps in groups]

    def same(when: str, found: list[list[Step]]) -> None:
        for request, first, other in zip(requests, expected, found, strict=True):
            again = content(other)
            assert first == again, f"{type(generator).__name__}, {when}: {again} after {first} for {request!r}"

    same("asked again", _asked(generator, requests))
    same("in reversed order", _asked(generator, requests[::-1])[::-1])
    same("alone", [_asked(generator, [request])[0] for request in requests])
    one_each = [replace(request, n=1, first=draw) for request in requests for draw in range(request.n)]
    drawn = [steps[0] for steps in _asked(generator, one_each)]
    same("one sample a request", [drawn[at : at + 2] for at in range(0, len(drawn), 2)])
    for root in dict.fromkeys(request.node.root for request in requests):
        generator.release(root)
    same("after release", _asked(generator, requests))
    for request, steps in zip(requests, expected, strict=True):
        assert not request.greedy or steps[0] == steps[1], f"{type(generator).__name__}: greedy samples differ: {steps}"


def _check_temperature(generator: Generator, nodes: Sequence[Node]) -> None:
    """A temperature of 0 takes the likeliest tokens, and a high one does not."""

    def texts(**options: Any) -> list[list[str]]:
        requests = [GenerateRequest(node, n=3, until="end", **options) for node in nodes]
        return [[step.text for step in steps] for steps in _asked(generator, requests)]

    likeliest, name = texts(greedy=True), type(generator).__name__
    assert texts(temperature=0.0) == likeliest, f"{name}: temperature=0.0 is not greedy"
    hot = texts(temperature=2.0)
    assert hot not in (likeliest, texts(temperature=0.01)), (
        f"{name}: takes_temperature is True, and the same samples come at request.temperature = 0.01 and 2.0"
    )


def _check_over(generator: Generator, requests: list[GenerateRequest], groups: list[list[Step]]) -> None:
    over = [replace(request, deadline=0.0) for request in requests]
    for request, whole, cut in zip(over, groups, _asked(generator, over), strict=True):
        for step, expected in zip(cut, whole, strict=True):
            begins = expected.text.startswith(step.text.removesuffix("\ufffd"))  # half a character at its end
            name = type(generator).__name__
            assert begins or step.text == request.forced, f"{name}, its time over: {step!r} of {expected!r}"


def check_reward_model(
    reward_model: RewardModel, prompts: Sequence[str] = PROMPTS, nodes: Sequence[Node] | None = None
) -> None:
    r"""Run a reward model on toy solutions and raise an `AssertionError` that says which promise it breaks.

    The promises: one finite number for each node, in order; the same again, alone and in any batch and order, before
    and after `release`; one cost for each node, never negative; a process reward model gives one number for each
    inner step of the part that it judges, and its score is their reduction.

    Args:
        reward_model: The model.
        prompts: Problems to score solutions of.
        nodes: Solutions of your own instead, for a model that cannot read the toy's text.

    Example:
        >>> import inferscale as isc
        >>> isc.testing.check_reward_model(isc.RewardFunction(lambda nodes: [len(node.text) for node in nodes]))
        >>> isc.testing.check_reward_model(isc.RewardFunction(lambda nodes: [float("nan") for node in nodes]))
        Traceback (most recent call last):
            ...
        AssertionError: RewardFunction scored <Node depth=1 unscored step 'd x x e\n'> as nan: a score is a finite
            number
    """
    given = _solutions(prompts) if nodes is None else list(nodes)
    name = type(reward_model).__name__
    costs = reward_model.cost(given)
    assert len(costs) == len(given), f"{name}.cost() gave {len(costs)} costs for {len(given)} nodes"
    for cost in costs:
        assert isinstance(cost, Cost), f"{name}.cost() gave {cost!r}: give Cost objects"
        assert min(cost.scored_tokens, cost.reward_flops) >= 0, f"{name}.cost() gave the negative {cost!r}"
    scores = _scores(reward_model, given)
    assert _scores(reward_model, []) == [], f"{name} scores no nodes as something"
    _same(name, "scored twice", scores, _scores(reward_model, given))
    _same(name, "in reversed order", scores, _scores(reward_model, given[::-1])[::-1])
    _same(name, "alone", scores, [_scores(reward_model, [node])[0] for node in given])
    for root in dict.fromkeys(node.root for node in given):
        reward_model.release(root)
    _same(name, "after release", scores, _scores(reward_model, given))
    if isinstance(reward_model, ProcessRewardModel):
        for node, score, values in zip(given, scores, reward_model.step_scores(given), strict=True):
            steps = len(node.part(reward_model.judge).inner_steps())
            assert len(values) == steps, f"{name} gave {len(values)} step scores for the {steps} steps of {node!r}"
            reduced = reward_model.reduced(values)
            assert math.isclose(score, reduced, rel_tol=1e-4, abs_tol=1e-5), (
                f"{name} scores {node!r} {score!r}, but its step scores {values!r} reduce to {reduced!r}"
            )


def _solutions(prompts: Sequence[str]) -> list[Node]:
    """For each prompt two paths of one to four steps, and a completion in one piece."""
    generator, nodes = ToyGenerator(), []
    for place, prompt in enumerate(prompts):
        root = Node(Problem(prompt), key=place + 1)
        for draw in range(2):
            node = root
            while not node.is_finished:
                step = generator.generate([GenerateRequest(node, first=draw)])[0][0]
                node = Node(root.problem, step, node, branch_key(node.key, draw))
                nodes.append(node)
        whole = generator.generate([GenerateRequest(root, until="end", first=2)])[0][0]
        nodes.append(Node(root.problem, whole, root, branch_key(root.key, 2)))
    return nodes


def _scores(model: RewardModel, nodes: Sequence[Node]) -> list[float]:
    name = type(model).__name__
    scores = list(model.score(nodes))
    assert len(scores) == len(nodes), f"{name} gave {len(scores)} scores for {len(nodes)} nodes"
    for node, score in zip(nodes, scores, strict=True):
        finite = isinstance(score, int | float) and math.isfinite(score)
        assert finite, f"{name} scored {node!r} as {score!r}: a score is a finite number"
    return scores


def _same(name: str, when: str, expected: Sequence[float], found: Sequence[float]) -> None:
    for first, other in zip(expected, found, strict=True):
        close = math.isclose(first, other, rel_tol=1e-4, abs_tol=1e-5)
        assert close, f"{name} gives another score {when}: {first!r} and {other!r}"


def check_strategy(strategy: SearchStrategy, prompts: Sequence[str] = PROMPTS) -> None:
    """Run `strategy` on toy models and raise an `AssertionError` that says which promise it breaks.

    The promises: the same seed gives the same tree; all that is drawn, for side prompts too, depends on seed and
    problem; a problem's tree is the same alone and in any batch, whichever samples come first; any budget
    stops it with the best so far, and so does a cancellation, after which its journal leads to the whole tree; it
    survives a generator that ends at once, never ends, fails, or returns empty steps, and texts in which no answer is
    found; killed and resumed from its journal it ends where it would have ended undisturbed; and it needs no reward
    model unless `needs_scores` says so.

    Example:
        >>> import inferscale as isc
        >>> isc.testing.check_strategy(isc.Greedy())
        >>> class Nothing(isc.SearchStrategy):
        ...     def search(self, root, rng):
        ...         _ = yield from isc.expand([root], 2)
        ...         return []
        >>> isc.testing.check_strategy(Nothing())
        Traceback (most recent call last):
            ...
        ValueError: <...Nothing object at 0x...>.search() returned no leaf, though the tree has 2: return
            `root.leaves()` when nothing better is at hand
    """
    straight = _solve(strategy, prompts, ToyGenerator())
    for check in (_check_batch, _check_alone, _check_journal, _check_cancel):
        check(strategy, prompts, straight)
    _check_budgets(strategy, prompts)
    _check_survival(strategy, prompts)
    if not strategy.needs_scores:
        try:
            solve_batch(list(prompts), strategy, ToyGenerator())
        except (UnscoredNodeError, ValueError) as error:
            raise AssertionError(
                f"{strategy!r} needs scores, and its needs_scores says that it does not: {error}"
            ) from error


def _solve(strategy: SearchStrategy, prompts: Sequence[str], generator: Generator, **options: object) -> list[str]:
    """Tree, leaves and answer of each result, as text."""
    results = solve_batch(list(prompts), strategy, generator, reward_model=ToyReward(), **options)  # type: ignore[arg-type]
    return [
        f"{render_tree(result.root, max_text=999)}\nleaves {[leaf.text for leaf in result.leaves]}\n{result.answer}"
        for result in results
    ]


def _check_batch(strategy: SearchStrategy, prompts: Sequence[str], straight: list[str]) -> None:
    assert straight == _solve(strategy, prompts, ToyGenerator()), f"{strategy!r}: same seed, another tree"
    other = _solve(strategy, prompts, ToyGenerator(), seed=1)
    assert straight != other or len(set(straight)) == 1 or _is_greedy(strategy), (
        f"{strategy!r}: another seed gives the same trees"
    )
    assert straight == _solve(strategy, prompts, ToyGenerator(), batch_size=2), f"{strategy!r}: batch_size matters"
    ragged = _solve(strategy, prompts, ToyGenerator(ragged=True))
    assert straight == ragged, f"{strategy!r}: it matters which samples come first"


def _alone(strategy: SearchStrategy, prompt: str, seed: int = 0) -> tuple[str, list[GenerateRequest]]:
    """A search as text, and all that it asks of its generator."""
    seen: list[GenerateRequest] = []

    class Spy(ToyGenerator):
        """Notes what is asked for."""

        def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
            seen.extend(requests)
            return super().generate(requests)

    return _solve(strategy, [prompt], Spy(), seed=seed)[0], seen


def _is_greedy(strategy: SearchStrategy) -> bool:
    return all(request.greedy for request in _alone(strategy, PROMPTS[0])[1])


def _check_alone(strategy: SearchStrategy, prompts: Sequence[str], straight: list[str]) -> None:
    """Trees are those of the batch, and the keys of all draws differ between seeds and problems."""
    seen: dict[int, tuple[str, int]] = {}
    for course in ((prompts[0], 1), *((prompt, 0) for prompt in dict.fromkeys(prompts))):
        tree, requests = _alone(strategy, *course)
        assert course[1] or tree == straight[prompts.index(course[0])], (
            f"{strategy!r}: {course[0]!r} alone and in a batch give different trees"
        )
        for request in requests:
            for draw in range(request.first, request.first + request.n):
                key = branch_key(request.node.key, draw)
                assert request.greedy or seen.setdefault(key, course) == course, (
                    f"{strategy!r}: a sample after {request.node.problem.prompt!r:.80} is the same for another seed or "
                    "problem: ask side prompts by `yield from ask([prompt])`, which gives them streams of their own"
                )


def _check_budgets(strategy: SearchStrategy, prompts: Sequence[str]) -> None:
    whole = solve(prompts[0], strategy, ToyGenerator(), reward_model=ToyReward())
    budgets = [
        *(Budget(tokens=tokens) for tokens in (1, 7, 40)),
        *(Budget(calls=calls) for calls in (1, 3)),
        Budget(flops=5000),
        Budget(seconds=1e-9),
    ]
    for budget in budgets:
        result = solve(prompts[0], strategy, ToyGenerator(), reward_model=ToyReward(), budget=budget)
        assert result.trajectories, f"{strategy!r}: {budget} left no trajectory"
        if budget.tokens is not None:
            assert result.cost.tokens <= budget.tokens, f"{strategy!r}: {result.cost.tokens} tokens under {budget}"
        if budget.calls is not None:
            assert result.cost.num_generated <= budget.calls, f"{strategy!r}: too many samples under {budget}"
        if budget.calls is not None and whole.cost.num_generated > budget.calls:
            assert result.stopped_by == "calls", f"{strategy!r}: went on beyond {budget}"


def _check_survival(strategy: SearchStrategy, prompts: Sequence[str]) -> None:
    def blank(step: Step, node: Node) -> Step:
        return replace(step, text="", token_ids=(0,), finish_reason="empty", inner_ends=())

    def dead(step: Step, node: Node) -> Step:
        return replace(step, text="server gone", token_ids=(), finish_reason="error", inner_ends=())

    def ended(step: Step, node: Node) -> Step:
        return replace(step, text="", token_ids=(0,), finish_reason="eos", inner_ends=())

    def sometimes_blank(step: Step, node: Node) -> Step:
        return blank(step, node) if unit_hash(node.text + step.text) < 0.4 else step

    generators: dict[str, Generator] = {
        "ends at once": BrokenGenerator(ended),
        "returns empty steps": BrokenGenerator(blank),
        "returns empty steps now and then": BrokenGenerator(sometimes_blank),
        "fails": BrokenGenerator(dead),
    }
    budget = Budget(calls=2000, tokens=20_000)
    for what, generator in generators.items():
        for result in solve_batch(list(prompts), strategy, generator, reward_model=ToyReward(), budget=budget):
            assert result.trajectories, f"{strategy!r}: no trajectory from a generator that {what}"
    endless = solve(prompts[0], strategy, ToyGenerator(depth=None), reward_model=ToyReward(), budget=budget)
    assert endless.trajectories, f"{strategy!r}: no trajectory from a generator that never ends"
    silent = solve(
        prompts[0], strategy, ToyGenerator(), reward_model=ToyReward(), read_answer=lambda text: None, budget=budget
    )
    assert silent.trajectories, f"{strategy!r}: no trajectory where no answer is found"


def _check_journal(strategy: SearchStrategy, prompts: Sequence[str], straight: list[str]) -> None:
    """Killed again and again, each time after one more call, and resumed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        for _ in range(3):
            with suppress(KeyboardInterrupt):
                _solve(strategy, prompts, BrokenGenerator(die_after=1), journal=path)
        again = _solve(strategy, prompts, ToyGenerator(), journal=path)
        assert again == straight, f"{strategy!r}: killed after three calls and resumed, the trees differ"


def _check_cancel(strategy: SearchStrategy, prompts: Sequence[str], straight: list[str]) -> None:
    class Cancelling(ToyGenerator):
        """Cancels the searches that ask for something in its first, or second, call."""

        def identity(self) -> dict[str, Any]:
            return ToyGenerator().identity()

        def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
            if self.calls + 1 == call:
                asking.update(request.node.problem.prompt for request in requests)
                cancel.set()
            return super().generate(requests)

    for call in (1, 2):
        generator, cancel, asking = Cancelling(), threading.Event(), set[str]()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "journal.jsonl"
            results = solve_batch(
                list(prompts), strategy, generator, reward_model=ToyReward(), journal=path, cancel=cancel
            )
            assert generator.calls <= call, f"{strategy!r}: {generator.calls} calls, cancelled in call {call}"
            for result in results:
                assert result.trajectories, f"{strategy!r}: cancelled, it left no trajectory"
                ended = result.stopped_by == "cancel" or result.problem.prompt not in asking
                assert ended, f"{strategy!r}: went on after it was cancelled"
            again = _solve(strategy, prompts, ToyGenerator(), journal=path)
            assert again == straight, f"{strategy!r}: cancelled in call {call} and resumed, the trees differ"


__all__ = [
    "PROMPTS",
    "BrokenGenerator",
    "ToyGenerator",
    "ToyProcessReward",
    "ToyReward",
    "check_aggregator",
    "check_generator",
    "check_reward_model",
    "check_strategy",
    "unit_hash",
]
