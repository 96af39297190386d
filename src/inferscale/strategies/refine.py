"""Sequential scaling: an answer is looked at again and revised."""

from __future__ import annotations

import random
from dataclasses import dataclass

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, expand, gather, score
from inferscale.tree import Node

from ._checks import check_counts
from ._forcing import attempts_in, revision_prompt, sampled_text


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
        feedback: What asks for feedback.
        revise: What asks for a revision.
        stop: A chain ends when its feedback holds this text (case does not matter); ``""`` never stops.
    """

    num_iterations: int = 4
    n: int = 1
    feedback: str = "\n\nFeedback on the solution above:\n"
    revise: str = "\n\nRevised solution:\n"
    stop: str = "the solution is correct"

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "num_iterations", "n")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """All answers, chain by chain."""
        first = yield from expand([root], self.n, until="end")
        chains = yield from gather(self._chain(root, answer) for answer in first)
        return [answer for chain in chains for answer in chain] or root.leaves()

    def _chain(self, root: Node, answer: Node) -> Flow[list[Node]]:
        answers, history = [answer], sampled_text(answer, "")
        for _ in range(self.num_iterations):
            asked = history + self.feedback
            said = yield from expand([root], until="end", forced=asked, attach=False)
            if not said or (self.stop and self.stop.lower() in sampled_text(said[0], asked).lower()):
                break
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

    ``num_chains * chain_length`` answers: easy problems favour long chains, hard ones a balance. The best answer
    within each chain and then across chains is `BestOfN` over all that come back; `best_of_chain` leaves one answer
    of each chain to vote.

    Differs from the paper: its model was trained to revise; here the last `context` answers and `instruction` are
    forced before a revision, charged as prompt tokens, and are part of the trajectory.

    Attributes:
        num_chains: Independent chains.
        chain_length: Answers of each chain, the first included.
        context: How many earlier answers a revision sees (4 in the paper).
        instruction: What is put after each of them.
        best_of_chain: Return only the best-scored answer of each chain, which needs a reward model.
    """

    num_chains: int = 4
    chain_length: int = 4
    context: int = 4
    instruction: str = "\nWait, let me check this and write it again.\n"
    best_of_chain: bool = False

    def __post_init__(self) -> None:
        """Refuses hyperparameters out of range."""
        check_counts(self, "num_chains", "chain_length", "context")

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """Whether `search` scores nodes."""
        return self.best_of_chain

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The answers of all chains, or the best of each."""
        chains = yield from gather(self._chain(root) for _ in range(self.num_chains))
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
