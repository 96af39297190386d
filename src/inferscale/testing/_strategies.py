"""Whether a strategy keeps its promises."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from inferscale.base import Generator, SearchStrategy
from inferscale.cost import Budget
from inferscale.engine import solve, solve_batch
from inferscale.flow import GenerateRequest
from inferscale.render import render_tree
from inferscale.result import SearchResult
from inferscale.tree import Node, Step, UnscoredNodeError

from ._toys import PROMPTS, BrokenGenerator, ToyGenerator, ToyReward, unit_hash


def check_strategy(strategy: SearchStrategy, prompts: Sequence[str] = PROMPTS) -> None:
    """Runs `strategy` on toy models and raises an `AssertionError` that says which promise it breaks.

    The promises: the same seed gives the same tree; a problem's tree is the same alone and in any batch; any budget
    stops it with the best so far; it survives a generator that ends at once, never ends, fails, or returns empty
    steps; killed and resumed from its journal it ends where it would have ended undisturbed; and it needs no reward
    model unless `needs_scores` says so.
    """
    for check in (_check_batch, _check_budgets, _check_survival, _check_journal, _check_needs):
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
        """Notes whether samples are asked for greedily."""

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


def _check_needs(strategy: SearchStrategy, prompts: Sequence[str]) -> None:
    if strategy.needs_scores:
        return
    try:
        solve_batch(list(prompts), strategy, ToyGenerator())
    except (UnscoredNodeError, ValueError) as error:
        raise AssertionError(
            f"{strategy!r} needs scores, and its needs_scores says that it does not: {error}"
        ) from error
