"""Whether a generator keeps its promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from inferscale.base import Generator
from inferscale.flow import GenerateRequest
from inferscale.tree import Node, Problem, Step, branch_key

from ._toys import PROMPTS

_KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"until": "end"},
    {"greedy": True},
    {"forced": "So "},
    {"max_tokens": 2},
)
"""What a strategy or the engine may ask for, besides `n` and `first`."""


def check_generator(generator: Generator, prompts: Sequence[str] = PROMPTS, reproducible: bool = True) -> None:
    """Asks a generator for samples of every kind and raises an `AssertionError` that says which promise it breaks.

    The promises: ``request.n`` steps for each request, in order; no more tokens than the request and
    `max_sample_tokens` allow; a completion has ended; forced text stands first; inner steps end where the text ends.
    And, if it is `reproducible`: the same steps again, in any batch and order, however many are drawn at a time,
    before and after `release`; and greedy samples that are all alike.

    Args:
        generator: The generator; a few hundred short samples are drawn.
        prompts: Prompts that it can read.
        reproducible: Whether the last promises are checked: a server that takes no seed cannot keep them.
    """
    roots = [Node(Problem(prompt), key=place + 1) for place, prompt in enumerate(prompts)]
    nodes = [*roots, *_children(generator, roots)]
    for options in _KINDS:
        requests = [GenerateRequest(node, n=2, **options) for node in nodes]
        groups = _asked(generator, requests)
        for request, steps in zip(requests, groups, strict=True):
            for step in steps:
                _check_step(generator, request, step)
        if reproducible:
            _check_repeats(generator, requests, groups)
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


def _children(generator: Generator, roots: Sequence[Node]) -> list[Node]:
    """Open nodes one step below the roots."""
    groups = _asked(generator, [GenerateRequest(root) for root in roots])
    nodes = [
        Node(root.problem, steps[0], root, branch_key(root.key, 0)) for root, steps in zip(roots, groups, strict=True)
    ]
    return [node for node in nodes if not node.is_finished]


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
    expected = [[_content(step) for step in steps] for steps in groups]

    def same(when: str, found: list[list[Step]]) -> None:
        for request, first, other in zip(requests, expected, found, strict=True):
            again = [_content(step) for step in other]
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


def _content(step: Step) -> tuple[str, tuple[int, ...], str, int]:
    return step.text, step.token_ids, step.finish_reason, step.generated_tokens
