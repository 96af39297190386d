"""The rules of the released study of arXiv:2412.16260 (AbdElhameed and Halim 2024), each to be mended alone.

There, 32.03 % of 128 GSM8K questions were right with Quiet-STaR, 10.94, 10.16 and 12.50 % with REBASE of width 3, 6 and
16, and 9.38 % with both. Its trees have depth 1: a step is 96 tokens, wherever that ends, and a path ends at once when
its last sentences hold a digit, so that the best-scored fragment of a solution is read for its last number. These rules
belong to that study alone, and no strategy of this library follows them.

Differs from the paper: a reward model marks every step (the released code marks the end of the text once), and a sample
that ends by itself is not asked for its answer again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from inferscale.base import Generator, SearchStrategy
from inferscale.evaluate.datasets import PromptStyle
from inferscale.flow import Flow, GenerateRequest, expand, score
from inferscale.functional import rebase_allocation
from inferscale.quiet_star import QuietSTaR
from inferscale.tree import Node, Step

CUE = "\nTherefore, the answer (arabic numerals) is"
ANSWER_TOKENS = 12
"""Visible tokens of an answer after the cue."""
STEP_TOKENS = 96
"""Tokens of a step of REBASE."""
NO_DELIMITER = re.compile("(?!)")
"""In no text: steps end at their length alone."""
PROMPTS = PromptStyle("Q: {question}\nA: Let's think step by step.", stop="\nQ:")
"""Prompt of a question."""

_ANSWER_PHRASES = ("the answer is", "####", "\\boxed")
_NUMBER = re.compile(r"(\d{1,3}(?:,\d{3})*|\d+)")


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of the released study that hold; all of them by default.

    Attributes:
        cut_steps: Steps of REBASE are cut at a number of tokens; else they end at newlines.
        digit_leaves: A path ends as soon as its last sentences hold a digit; else where the model ends it.
        floor: REBASE drops nodes that score 0.1 or less.
        best_of: REBASE reports its best-scored leaf; else a weighted vote.
        released_answers: The last match of a pattern is the answer, which reads 1248 as 8; else `read_answer`.
        cue: Samples that reach the token limit are asked for their answer.
    """

    cut_steps: bool = True
    digit_leaves: bool = True
    floor: bool = True
    best_of: bool = True
    released_answers: bool = True
    cue: bool = True


PRESETS = {
    "published": Rules(),
    "corrected": Rules(False, False, False, False, False, False),
}
"""Rules as they were released; and whole steps, paths that end where the model ends them, and votes."""

REPAIRS: tuple[tuple[str, dict[str, bool]], ...] = (
    ("as published", {}),
    ("no end at digits", {"digit_leaves": False}),
    ("and whole steps", {"cut_steps": False}),
    ("and a vote", {"best_of": False}),
    ("and answers read whole", {"released_answers": False}),
    ("and no floor", {"floor": False}),
)
"""From the published rules of REBASE to the corrected ones, one more mended at a time."""


def is_leaf(text: str) -> bool:
    """True if the released code ends a path: at an answer phrase, or any digit in the last two sentences."""
    last = re.split(r"(?<=[.!?\n])\s+", text.strip())[-2:]
    return any(phrase in text for phrase in _ANSWER_PHRASES) or any(c.isdigit() for c in " ".join(last))


def released_answer(text: str) -> str | None:
    """Extract an answer as the released code does, which takes 1248 for 8; ``None`` if there is no number."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


@torch.no_grad()
def overwrite_marks(quiet: QuietSTaR, token_id: int) -> None:
    """Set start and end to a token's embedding, as the released code does at its first forward, trained or not.

    Args:
        quiet: Changed in place.
        token_id: The first token of ``"---"``.
    """
    vector = quiet.backbone.embed(torch.tensor(token_id, device=quiet.start.device))
    quiet.start.copy_(vector)
    quiet.end.copy_(vector)


class ReleasedPaths(Generator):
    """Generator whose paths end where the released code would end them.

    Attributes:
        generator: Samples.
        digit_leaves: True if paths end at digits.
        answer_tokens: Most tokens of an answer after the cue, thoughts included.
    """

    def __init__(self, generator: Generator, digit_leaves: bool, answer_tokens: int = ANSWER_TOKENS) -> None:
        self.generator = generator
        self.digit_leaves = digit_leaves
        self.answer_tokens = answer_tokens

    def identity(self) -> dict[str, Any]:
        """The options of the constructor are all that there is."""
        return super().identity()

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Step]]:
        """Sample ``request.n`` steps for each request; those at which a path ends say ``"eos"``."""
        capped = [replace(r, max_tokens=self.answer_tokens) if r.forced else r for r in requests]
        answers = self.generator.generate(capped)
        return [[self._ended(r, step) for step in steps] for r, steps in zip(requests, answers, strict=True)]

    def max_sample_tokens(self, request: GenerateRequest) -> int | None:
        """Return the most tokens that one sample can have."""
        most = self.generator.max_sample_tokens(request)
        return min(most, self.answer_tokens) if request.forced and most is not None else most

    def release(self, root: Node) -> None:
        """Forget a search that has ended."""
        self.generator.release(root)

    def _ended(self, request: GenerateRequest, step: Step) -> Step:
        if self.digit_leaves and step.finish_reason == "step" and is_leaf(request.node.text + step.text):
            return replace(step, finish_reason="eos")
        return step


@dataclass(frozen=True)
class FlooredREBASE(SearchStrategy):
    """REBASE of the released study: nodes that score `floor` or less are dropped.

    Attributes:
        width: Leaves that the search may finish.
        softmax_temperature: T_b.
        floor: Greatest score of a dropped node.
        max_depth: Most steps in a path.
    """

    width: int = 6
    softmax_temperature: float = 0.2
    floor: float = 0.1
    max_depth: int = 10
    needs_scores: ClassVar[bool] = True

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Return the finished leaves that were kept, or the leaves there are if none was."""
        leaves: list[Node] = []
        nodes, counts = [root], [self.width]
        for _ in range(self.max_depth):
            children = yield from expand(nodes, counts)
            yield from score(children)
            kept = [node for node in children if node.score > self.floor]
            leaves += [node for node in kept if node.is_finished]
            nodes = [node for node in kept if not node.is_finished]
            if not nodes or len(leaves) >= self.width:
                break
            scores = [node.score for node in nodes]
            counts = rebase_allocation(scores, self.width - len(leaves), self.softmax_temperature)
        return leaves or root.leaves()


@dataclass(frozen=True)
class CuedVotes(SearchStrategy):
    """Samples up to the token limit, whose answers are then asked for with a cue.

    Attributes:
        n: Samples.
    """

    n: int = 6

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """Return the samples that ended by themselves, and the answers of the others."""
        first = yield from expand([root], self.n)
        open_nodes = [node for node in first if not node.is_finished]
        answers = (yield from expand(open_nodes, 1, forced=CUE)) if open_nodes else []
        return [node for node in first if node.is_finished] + answers
