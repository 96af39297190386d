"""Budget forcing: thinking is cut short, or made to go on."""

from __future__ import annotations

import random
from dataclasses import dataclass

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, Generate, GenerateRequest, expand, gather
from inferscale.tree import Node

from ._checks import check_counts
from ._forcing import sampled_text


@dataclass(frozen=True)
class BudgetForcing(SearchStrategy):
    """Thinking of a chosen length (s1; Muennighoff et al. 2025, arXiv:2501.19393, section 3).

    Thinking is sampled step by step. When the model ends it, up to `num_waits` times the end is dropped and `wait` is
    put in its place; the thinking that follows draws on the same allowance. Once `max_thinking_tokens` are spent, the
    end of thinking and `final` are forced and the answer is sampled. ``num_waits=0`` without a cap is plain sampling.

    A node that has ended cannot be expanded, so "drop the end and go on" samples from its parent with the text of the
    last step up to the end, and `wait`, forced before it. Forced text is charged as prompt tokens and never counts as
    thinking.

    Differs from the paper: waits share the allowance (s1's harness starts it anew and cuts at the end); at least one
    token after "Wait" is not enforced; the end of thinking is found in the text, so its tokens must not be special
    ones that the generator leaves out, and a step that ``max_step_tokens`` cuts in the middle of it hides it.

    Attributes:
        max_thinking_tokens: Most tokens of thinking; ``None`` sets no cap.
        num_waits: How often an end of thinking is dropped.
        end_of_thinking: The text that ends thinking; ``""`` for models without one: then the end of the answer does.
        wait: What takes its place.
        final: Forced after `end_of_thinking` when the allowance is spent.
        n: Independent chains.
        greedy: Take the likeliest token each time (as in the paper).
        max_depth: Most steps of thinking; then the answer is forced as if the allowance were spent.
    """

    max_thinking_tokens: int | None = 32_000
    num_waits: int = 1
    end_of_thinking: str = "</think>"
    wait: str = "Wait"
    final: str = "\nFinal Answer:"
    n: int = 1
    greedy: bool = False
    max_depth: int = 400

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "n", "max_depth")
        check_counts(self, "num_waits", minimum=0)
        if self.max_thinking_tokens is not None:
            check_counts(self, "max_thinking_tokens", minimum=0)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The answer of each chain."""
        if self.num_waits == 0 and self.max_thinking_tokens is None:
            return (yield from expand([root], self.n, until="end", greedy=self.greedy)) or root.leaves()
        chains = yield from gather(self._chain(root) for _ in range(self.n))
        return [answer for chain in chains for answer in chain] or root.leaves()

    def _chain(self, root: Node) -> Flow[list[Node]]:
        node, forced, waits, left = root, "", self.num_waits, self.max_thinking_tokens
        for _ in range(self.max_depth):
            if left is not None and left <= 0:
                break
            step = yield from self._step(node, forced, left)
            if step is None:
                return []
            left = None if left is None else left - tokens_of(step)
            thought = self._thought(step, forced)
            if thought is None:  # still thinking
                cut = step.is_finished
                node, forced = (node, _text(step)) if cut else (step, "")
                if cut and not _was_capped(step):
                    return [step]  # the path is full
            elif waits:
                forced, waits = thought + self.wait, waits - 1
            elif _was_capped(step):
                return (yield from self._answer(node, _text(step)))
            else:
                return [step] if step.is_finished else (yield from self._answer(step, ""))
        return (yield from self._answer(node, forced + self.end_of_thinking + self.final))

    def _thought(self, step: Node, forced: str) -> str | None:
        """The text of the step up to the end of thinking, forced text included; ``None`` if thinking goes on."""
        text = _text(step)
        start = len(text) - len(sampled_text(step, forced))
        end = text.find(self.end_of_thinking, start) if self.end_of_thinking else -1
        if end >= 0:
            return text[:end]
        return text if step.step is not None and step.step.finish_reason == "eos" else None

    def _step(self, node: Node, forced: str, left: int | None) -> Flow[Node | None]:
        request = GenerateRequest(node, greedy=self.greedy, forced=forced, max_tokens=left)
        groups: list[list[Node]] = yield Generate((request,))
        return None if groups[0][0].is_failed else groups[0][0]

    def _answer(self, node: Node, forced: str) -> Flow[list[Node]]:
        return expand([node], until="end", greedy=self.greedy, forced=forced)


def tokens_of(node: Node) -> int:
    """Tokens sampled in the node's last step."""
    return 0 if node.step is None else node.step.generated_tokens


def _text(node: Node) -> str:
    return "" if node.step is None else node.step.text


def _was_capped(node: Node) -> bool:
    return node.step is not None and node.step.finish_reason == "budget"
