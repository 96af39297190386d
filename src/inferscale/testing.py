"""Fakes without weights, and conformance checks to run on your own strategies, generators and reward models."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from .base import Generator, ProcessRewardModel, RewardModel, SearchStrategy
from .cost import Budget
from .engine import solve, solve_batch
from .flow import GenerateRequest
from .functional import Reduction
from .render import render_tree
from .result import SearchResult
from .tree import FinishReason, Node, Step, branch_key

PROMPTS = ("How many?", "How many more?", "How many are left, and why?")


def unit_hash(text: str) -> float:
    """A number in (0, 1) that depends on `text` alone."""
    return (int.from_bytes(blake2b(text.encode(), digest_size=6).digest(), "big") + 0.5) / 2**48


@dataclass
class ToyGenerator(Generator):
    r"""A language model that is a hash of the path: no weights, the same text for the same seed, problem and path.

    A step is ``"<letter> <letter> ...\n"`` of two to five tokens; after `depth` steps the path ends with
    ``"The answer is <digit>"``. Greedy requests read the text of the prefix instead of the branch's key. Forced text is
    one token a word.

    Attributes:
        depth: Steps before the answer; ``None`` never ends.
        num_answers: How many different answers there are.
        calls: Number of `generate` calls so far.
    """

    depth: int | None = 3
    num_answers: int = 4
    calls: int = 0

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """Steps that depend on each request's prefix and draw numbers alone."""
        self.calls += 1
        return [[self._sample(request, draw) for draw in range(request.n)] for request in requests]

    def max_sample_tokens(self, request: GenerateRequest) -> int | None:
        """Five tokens for a step."""
        if request.until == "step":
            return 5
        return None if self.depth is None else 5 * (self.depth + 1)

    def _sample(self, request: GenerateRequest, draw: int) -> Step:
        source = request.node.text if request.greedy else str(branch_key(request.node.key, request.first + draw))
        pieces = list(self._pieces(request, source))
        words = [word for piece, _ in pieces for word in piece]
        reason: FinishReason = pieces[-1][1]
        if request.max_tokens is not None and len(words) >= request.max_tokens and reason == "step":
            reason = "budget"
        if request.max_tokens is not None and len(words) > request.max_tokens:
            words, reason = words[: request.max_tokens], "budget"
        prompt = len(request.node.problem.prompt.split()) if request.node.depth == request.first + draw == 0 else 0
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
            confidence=-unit_hash(source),
            finish_reason=reason,
            inner_ends=tuple(ends) if len(forced) + len(words) == id_end and len(ends) > 1 else (),
            flops=1000 * (len(words) + prompt),
            prompt_tokens=prompt,
            num_tokens=len(words) if forced else None,
        )

    def _pieces(self, request: GenerateRequest, source: str) -> Iterator[tuple[list[str], FinishReason]]:
        depth = request.node.text.count("\n")
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


@dataclass
class ToyReward(RewardModel):
    """Scores in (0, 1) that are a hash of prompt and text."""

    calls: int = 0

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """One number for each node."""
        self.calls += 1
        return [unit_hash(node.problem.prompt + node.text) for node in nodes]


@dataclass
class ToyProcessReward(ProcessRewardModel):
    """Step scores in (0, 1) that are a hash of the text up to the step's end."""

    reduction: Reduction = "last"

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """One number for each inner step."""
        return [self._scores(node) for node in nodes]

    def _scores(self, node: Node) -> list[float]:
        scores, prefix = [], node.problem.prompt
        for text, _ in node.inner_steps():
            prefix += text
            scores.append(unit_hash(prefix))
        return scores


@dataclass
class BrokenGenerator(Generator):
    """A `ToyGenerator` whose steps are rewritten by `change`, for failures: empty steps, errors, an early end.

    Attributes:
        change: Gets a step and its request's node.
        die_after: Raises `KeyboardInterrupt` in the call after so many.
    """

    change: Callable[[Step, Node], Step] = field(default=lambda step, node: step)
    die_after: int | None = None
    toy: ToyGenerator = field(default_factory=ToyGenerator)

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


def check_strategy(strategy: SearchStrategy, prompts: Sequence[str] = PROMPTS) -> None:
    """Runs `strategy` on toy models and raises an `AssertionError` that says which promise it breaks.

    The promises: the same seed gives the same tree; a problem's tree is the same alone and in any batch; any budget
    stops it with the best so far; it survives a generator that ends at once, never ends, fails, or returns empty
    steps; killed and resumed from its journal it ends where it would have ended undisturbed.
    """
    for check in (_check_batch, _check_budgets, _check_survival, _check_journal):
        check(strategy, prompts)


def _solve(strategy: SearchStrategy, prompts: Sequence[str], generator: Generator, **options: object) -> list[str]:
    results = solve_batch(list(prompts), strategy, generator, reward_model=ToyReward(), **options)  # type: ignore[arg-type]
    return [_picture(result) for result in results]


def _picture(result: SearchResult) -> str:
    leaves = [leaf.text for leaf in result.leaves]
    return f"{render_tree(result.root, max_text=999)}\nleaves {leaves}\nanswer {result.answer}"


def _check_batch(strategy: SearchStrategy, prompts: Sequence[str]) -> None:
    together = _solve(strategy, prompts, ToyGenerator())
    assert together == _solve(strategy, prompts, ToyGenerator()), f"{strategy!r}: same seed, another tree"
    assert (
        together != _solve(strategy, prompts, ToyGenerator(), seed=1) or len(set(together)) == 1 or _is_greedy(strategy)
    ), f"{strategy!r}: another seed gives the same trees"
    for prompt, expected in zip(prompts, together, strict=True):
        alone = _solve(strategy, [prompt], ToyGenerator())
        assert alone == [expected], f"{strategy!r}: {prompt!r} alone and in a batch give different trees"
    assert together == _solve(strategy, prompts, ToyGenerator(), batch_size=2), f"{strategy!r}: batch_size matters"


def _is_greedy(strategy: SearchStrategy) -> bool:
    seen: list[bool] = []

    class Spy(ToyGenerator):
        def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
            seen.extend(request.greedy for request in requests)
            return super().generate(requests)

    _solve(strategy, PROMPTS[:1], Spy())
    return all(seen)


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
        "never ends": ToyGenerator(depth=None),
    }
    for what, generator in generators.items():
        results = solve_batch(
            list(prompts), strategy, generator, reward_model=ToyReward(), budget=Budget(calls=2000, tokens=20_000)
        )
        for result in results:
            assert result.trajectories, f"{strategy!r}: no trajectory from a generator that {what}"


def _check_journal(strategy: SearchStrategy, prompts: Sequence[str]) -> None:
    straight = _solve(strategy, prompts, ToyGenerator())
    with tempfile.TemporaryDirectory() as folder:
        for calls in (1, 2, 3):
            path = Path(folder) / f"{calls}.jsonl"
            try:
                _solve(strategy, prompts, BrokenGenerator(die_after=calls), journal=path)
            except KeyboardInterrupt:
                resumed = ToyGenerator()
                again = _solve(strategy, prompts, resumed, journal=path)
                assert again == straight, f"{strategy!r}: killed after {calls} calls and resumed, the trees differ"
