"""Strategies that go on from a finished answer: budget forcing, self-refinement, chains of revisions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, Generate, GenerateRequest, expand, gather, score
from inferscale.thinking import Thinking
from inferscale.tree import Node

from .checks import check_counts


def sampled_text(node: Node, forced: str) -> str:
    """The part of the node's last step that was sampled, without the text forced before it."""
    return "" if node.step is None else node.step.text.removeprefix(forced)


def attempts_in(nodes: Sequence[Node], forced: str) -> list[tuple[Node, str]]:
    """The nodes that hold more than the text forced before them, each with the text that was sampled.

    A path that the forced text has filled up ends without a token of its own; it would repeat an earlier answer.
    """
    pairs = [(node, sampled_text(node, forced)) for node in nodes]
    return [(node, text) for node, text in pairs if text.strip()]


def revision_prompt(attempts: Sequence[str], instruction: str) -> str:
    """The text forced before a revision: each earlier attempt, followed by the instruction to try again."""
    return "".join(attempt + instruction for attempt in attempts)


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
    token after "Wait" is not enforced; the end of thinking is found in the text, and a step that ``max_step_tokens``
    cuts in the middle of it hides it.

    What ends thinking is ``root.thinking``, the setting of the search; ``</think>`` where nothing tells. With
    ``thinking=False``, for models that do not think, the end of the answer ends it.

    Attributes:
        max_thinking_tokens: Most tokens of thinking; ``None`` sets no cap.
        num_waits: Ends of thinking that are dropped.
        wait: The text that takes the place of the end of thinking.
        final: Forced after the end of thinking when the allowance is spent.
        n: Independent chains.
        greedy: Take the likeliest token each time (as in the paper).
        max_depth: Most steps of thinking; then the answer is forced as if the allowance were spent.

    Raises:
        ValueError: If a count is negative, or there is no chain or no step.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import BudgetForcing
        >>> from inferscale.testing import ToyGenerator
        >>> strategy = BudgetForcing(max_thinking_tokens=12, num_waits=0)
        >>> result = isc.solve("How many?", strategy, ToyGenerator(depth=None), thinking=isc.Thinking("", "</think>"))
        >>> print(result.text[:65])
        u q w i c
        e x r
        d n q x
        </think>
        Final Answer:b j y d j
        q n n i q
    """

    max_thinking_tokens: int | None = 32_000
    num_waits: int = 1
    wait: str = "Wait"
    final: str = "\nFinal Answer:"
    n: int = 1
    greedy: bool = False
    max_depth: int = 400

    def __post_init__(self) -> None:
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
        thinking = root.thinking or Thinking()
        # What is sampled next continues `node` after `forced`; `left` tokens of thinking may still be spent.
        node, forced, waits, left = root, "", self.num_waits, self.max_thinking_tokens
        for _ in range(self.max_depth):
            if left is not None and left <= 0:
                break
            request = GenerateRequest(node, greedy=self.greedy, forced=forced, max_tokens=left)
            groups: list[list[Node]] = yield Generate((request,))
            new, step = groups[0][0], groups[0][0].step
            if step is None or new.is_failed:
                return []
            if left is not None:
                left -= step.generated_tokens
            # The thought is the step's text up to the end of thinking, forced text included; None while it goes on.
            end = thinking.end_in(step.text, len(forced))
            thought = step.text[:end] if end >= 0 else step.text if step.finish_reason == "eos" else None
            if thought is not None and waits:  # drop the end of thinking, and wait
                forced, waits = thought + self.wait, waits - 1
            elif thought is not None:
                if step.finish_reason == "budget":  # spent in the middle of the answer: it is sampled to its end
                    return (yield from self._answer(node, step.text))
                return [new] if new.is_finished else (yield from self._answer(new, ""))
            elif not new.is_finished:
                node, forced = new, ""
            elif step.finish_reason == "budget":
                forced = step.text
            else:
                return [new]  # the path is full
        return (yield from self._answer(node, forced + thinking.forced_end + self.final))

    def _answer(self, node: Node, forced: str) -> Flow[list[Node]]:
        return expand([node], until="end", greedy=self.greedy, forced=forced)


@dataclass(frozen=True)
class SelfRefine(SearchStrategy):
    """Answer, feedback by the same model, revision, and so on (Madaan et al. 2023, arXiv:2303.17651).

    All answers of the chain come back, so that the vote or the reward picks one: never blindly the last, which a
    naive chain makes worse as often as better (Snell et al. 2024, arXiv:2408.03314, section 6).

    A finished answer cannot be expanded, so a revision is sampled from the prompt with the history (answers,
    feedback, instructions) forced before it; that text is charged as prompt tokens and is part of the trajectory.
    Feedback is charged and takes no part in the tree or in votes.

    Attributes:
        num_iterations: Most revisions of each chain (4 in the paper).
        n: Independent chains.
        feedback: The text that asks for feedback.
        revise: The text that asks for a revision.
        stop: A chain ends when its feedback holds this text (case does not matter); ``""`` never stops.

    Raises:
        ValueError: If a count is below 1.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import SelfRefine
        >>> from inferscale.testing import ToyGenerator
        >>> result = isc.solve("How many?", SelfRefine(num_iterations=2), ToyGenerator(depth=1))
        >>> [trajectory.answer for trajectory in result.trajectories]
        ['1', '2', '0']
        >>> print(result.trajectories[1].text)
        u q w i c
        The answer is 1
        <BLANKLINE>
        Feedback on the solution above:
        t i l o k
        The answer is 3
        <BLANKLINE>
        Revised solution:
        o b m b o
        The answer is 2
    """

    num_iterations: int = 4
    n: int = 1
    feedback: str = "\n\nFeedback on the solution above:\n"
    revise: str = "\n\nRevised solution:\n"
    stop: str = "the solution is correct"

    def __post_init__(self) -> None:
        check_counts(self, "num_iterations", "n")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All answers, chain by chain."""
        first = yield from expand([root], self.n, until="end")
        chains = yield from gather(self._chain(root, answer) for answer in first)
        return [answer for chain in chains for answer in chain] or root.leaves()

    def _chain(self, root: Node, answer: Node) -> Flow[list[Node]]:
        answers, history = [answer], sampled_text(answer, "")
        for _ in range(self.num_iterations):
            # fb_t = M(x, y_0, fb_0, ..., y_t): feedback on the whole history
            asked = history + self.feedback
            said = yield from expand([root], until="end", forced=asked, attach=False)
            if not said or (self.stop and self.stop.lower() in sampled_text(said[0], asked).lower()):
                break
            # y_{t+1} = M(x, y_0, fb_0, ..., y_t, fb_t)
            forced = asked + sampled_text(said[0], asked) + self.revise
            revised = attempts_in((yield from expand([root], until="end", forced=forced)), forced)
            if not revised:
                break
            answers += [answer for answer, _ in revised]
            history = forced + revised[0][1]
        return answers


@dataclass(frozen=True)
class ParallelSequential(SearchStrategy):
    """Chains of revisions side by side (Snell et al. 2024, arXiv:2408.03314, section 6).

    ``n * chain_length`` answers: easy problems favour long chains, hard ones a balance. The best answer
    within each chain and then across chains is `BestOfN` over all that come back; `best_of_chain` leaves one answer
    of each chain to vote.

    Differs from the paper: its model was trained to revise; here the last `context` answers and `instruction` are
    forced before a revision, charged as prompt tokens, and are part of the trajectory.

    Attributes:
        n: Independent chains.
        chain_length: Answers of each chain, the first included.
        context: Earlier answers that a revision sees (4 in the paper).
        instruction: Text put after each of them.
        best_of_chain: Return only the best-scored answer of each chain, which needs a reward model.

    Raises:
        ValueError: If a count is below 1.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import ParallelSequential
        >>> from inferscale.testing import ToyGenerator
        >>> result = isc.solve("How many?", ParallelSequential(n=2, chain_length=3), ToyGenerator())
        >>> len(result.trajectories), result.answer
        (6, '0')
    """

    n: int = 4
    chain_length: int = 4
    context: int = 4
    instruction: str = "\nWait, let me check this and write it again.\n"
    best_of_chain: bool = False

    def __post_init__(self) -> None:
        check_counts(self, "n", "chain_length", "context")

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """True if the best of each chain is wanted."""
        return self.best_of_chain

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The answers of all chains, or the best of each."""
        chains = yield from gather(self._chain(root) for _ in range(self.n))
        if self.best_of_chain:
            yield from score(answer for chain in chains for answer in chain)
            chains = [[max(chain, key=lambda answer: answer.score)] for chain in chains if chain]
        return [answer for chain in chains for answer in chain] or root.leaves()

    def _chain(self, root: Node) -> Flow[list[Node]]:
        answers, attempts = list[Node](), list[str]()
        for _ in range(self.chain_length):
            forced = revision_prompt(attempts[-self.context :], self.instruction)
            new = attempts_in((yield from expand([root], until="end", forced=forced)), forced)
            if not new:
                break
            answers.append(new[0][0])
            attempts.append(new[0][1])
        return answers
