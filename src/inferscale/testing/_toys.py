"""Fakes without weights: functions of the prefix and the draw number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from inferscale.base import Generator, ProcessRewardModel, RewardModel
from inferscale.flow import GenerateRequest
from inferscale.functional import Reduction
from inferscale.tree import FinishReason, Node, Step, branch_key

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
