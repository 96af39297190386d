"""Problems, sampled steps, the search tree that they form, and records of its leaves (standard library only)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

FinishReason: TypeAlias = Literal["step", "eos", "length", "empty", "budget", "error"]
"""The reason why a step ended.

``"step"``: at the step delimiter or at ``max_step_tokens``; the path can go on. ``"eos"``: the model ended its
answer. ``"length"``: the path reached ``max_new_tokens``. ``"budget"``: the caller's budget ended it. ``"empty"``:
nothing but white space was sampled. ``"error"``: the sample failed (a remote server); the text says why.
"""


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt to answer.

    Attributes:
        prompt: The text that the model is given, without special tokens or chat template.
        answer: The gold answer; evaluation and oracle rewards read it, strategies never do.
        id: A name for tables and files.
    """

    prompt: str
    answer: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        """Refuse an empty prompt, and an answer that is no text."""
        if not isinstance(self.prompt, str) or not self.prompt:
            raise ValueError(f"a problem needs a prompt, a string that is not empty; got {self.prompt!r}")
        if self.answer is not None and not isinstance(self.answer, str):
            raise TypeError(f"a problem's answer is a text or None, not {self.answer!r:.80}: write str(answer)")


@dataclass(frozen=True, slots=True)
class Step:
    """One sampled continuation: an edge of the search tree, as a `Generator` returns it.

    Attributes:
        text: The sampled text, its delimiter included, after the forced text if there is any; end-of-sequence tokens
            are left out.
        token_ids: The ids of forced text and the sampled ones, end of sequence included; ``()`` when the generator
            cannot tell.
        logprob: Sum of the log-probabilities (nats) of the sampled tokens under the distribution they were drawn
            from; ``None`` when the generator cannot tell.
        confidence: Token-level confidence of the step, higher is surer; ``None`` when the generator cannot tell.
        finish_reason: Why sampling stopped, see `FinishReason`.
        inner_ends: Where the inner steps of a completion end, as ``(end in text, end in token_ids)`` pairs in
            order, the last one at the end; ``()`` means that the whole step is one.
        flops: FLOPs of sampling this step (a multiply-add is 2), prompt included where it was charged to this step.
        prompt_tokens: Prompt and forced tokens charged to this step; a shared prompt is charged once.
        thought_tokens: Hidden thought tokens sampled for this step; they are not in `token_ids`.
        num_tokens: Sampled tokens where `token_ids` is not known or holds forced ids; ``None`` means
            ``len(token_ids)``.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprob: float | None = None
    confidence: float | None = None
    finish_reason: FinishReason = "step"
    inner_ends: tuple[tuple[int, int], ...] = ()
    flops: int = 0
    prompt_tokens: int = 0
    thought_tokens: int = 0
    num_tokens: int | None = None

    @property
    def generated_tokens(self) -> int:
        """Number of sampled tokens, end of sequence included."""
        return len(self.token_ids) if self.num_tokens is None else self.num_tokens

    def inner_steps(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return text and ids of each inner step, in order; steps of white space alone are joined to the next one."""
        pieces, text_start, id_start = [], 0, 0
        for text_end, id_end in self.inner_ends or ((len(self.text), len(self.token_ids)),):
            piece = self.text[text_start:text_end]
            if piece.strip():
                pieces.append((piece, self.token_ids[id_start:id_end]))
                text_start, id_start = text_end, id_end
        return pieces


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One leaf's path as a frozen record.

    Attributes:
        problem: The problem.
        steps: Steps of the path, first to last.
        step_scores: A process reward model's score of each step (one each for inner steps), or ``None``.
        answer: The answer read out of the text; ``None`` abstains. An unfinished path always abstains.
        score: The reward model's score of the whole, or ``None``.
    """

    problem: Problem
    steps: tuple[Step, ...]
    step_scores: tuple[float, ...] | None = None
    answer: str | None = None
    score: float | None = None

    @property
    def text(self) -> str:
        """The solution, without the prompt."""
        return "".join(step.text for step in self.steps)

    @property
    def is_finished(self) -> bool:
        """True if the path had ended."""
        return bool(self.steps) and self.steps[-1].finish_reason != "step"

    @property
    def logprob(self) -> float | None:
        """Sum of the steps' log-probabilities, or ``None`` if one is not known."""
        values = [step.logprob for step in self.steps]
        return None if any(value is None for value in values) else float(sum(v for v in values if v is not None))


class UnscoredNodeError(AttributeError):
    """A score was read before a reward model gave one."""


class Node:
    """A prefix of a solution: the root, or a parent's prefix and one more `Step`.

    Nodes are made by the engine; strategies only read them. Two nodes are equal only if they are the same object:
    siblings with equal text are different samples.

    Attributes:
        problem: The problem that the tree belongs to.
        step: The step that leads here; ``None`` at the root.
        parent: The node before; ``None`` at the root.
        children: Nodes sampled from here, in the order of sampling; look-ahead is not among them.
        depth: Number of steps from the root.
        step_scores: A process reward model's score of each step of the path, or ``None``.
        stats: Numbers for people (visits, values); the library never reads them back.
        key: A 64-bit name of the path; random streams of samples from here derive from it.
        num_draws: Samples drawn from here so far, look-ahead included.
    """

    __slots__ = ("_score", "children", "depth", "key", "num_draws", "parent", "problem", "stats", "step", "step_scores")

    def __init__(self, problem: Problem, step: Step | None = None, parent: Node | None = None, key: int = 0) -> None:
        self.problem = problem
        self.step = step
        self.parent = parent
        self.children: list[Node] = []
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.step_scores: tuple[float, ...] | None = None
        self.stats: dict[str, Any] = {}
        self.key = key
        self.num_draws = 0
        self._score: float | None = None

    @property
    def score(self) -> float:
        """The reward model's score; higher is better.

        Raises:
            UnscoredNodeError: If the node has no score yet.
        """
        if self._score is None:
            raise UnscoredNodeError(
                f"{self!r} has no score yet: write `yield from score(nodes)` before reading `node.score`"
            )
        return self._score

    @score.setter
    def score(self, value: float) -> None:
        self._score = value

    @property
    def is_scored(self) -> bool:
        """True if a reward model has scored this node."""
        return self._score is not None

    @property
    def is_finished(self) -> bool:
        """True if the path has ended: it cannot be expanded."""
        return self.step is not None and self.step.finish_reason != "step"

    @property
    def is_failed(self) -> bool:
        """True if the path ended without a usable sample (nothing but white space, or an error)."""
        return self.step is not None and self.step.finish_reason in ("empty", "error")

    @property
    def root(self) -> Node:
        """The node of the bare prompt."""
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    @property
    def path(self) -> list[Node]:
        """Nodes from the root's child to this one; ``[]`` for the root."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    @property
    def steps(self) -> tuple[Step, ...]:
        """Steps of the path, first to last."""
        return tuple(node.step for node in self.path if node.step is not None)

    @property
    def text(self) -> str:
        """The solution so far, without the prompt."""
        return "".join(step.text for step in self.steps)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids along the path, sampled and forced, without the prompt."""
        return tuple(token for step in self.steps for token in step.token_ids)

    def inner_steps(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return text and ids of every step of the solution, completions split where their inner steps end."""
        return [piece for step in self.steps for piece in step.inner_steps()]

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below, parents first, children in the order of sampling."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def leaves(self) -> list[Node]:
        """Return the finished leaves below, or all leaves if none has finished: the one meaning of "best effort".

        A path whose further samples all failed ends before them; failed samples count only where nothing else is.
        """
        nodes = list(self.walk())
        ends = [n for n in nodes if n.step and not n.is_failed and all(child.is_failed for child in n.children)]
        return [n for n in ends if n.is_finished] or ends or [n for n in nodes if not n.children]

    def __repr__(self) -> str:
        """Depth, score and the last step's text."""
        score = "unscored" if self._score is None else f"score={self._score:.4g}"
        reason = "root" if self.step is None else self.step.finish_reason
        text = self.problem.prompt if self.step is None else self.step.text
        return f"<Node depth={self.depth} {score} {reason} {text[:40]!r}>"


# Keys name random streams. That of a sample is a hash of its parent's key and of its number among all draws from that
# parent, so it depends on the seed, the problem and the path alone: not on the batch, on the order in which nodes are
# expanded, or on what other nodes were sampled. Blake2b rather than `hash`, which Python salts anew in each process.


def branch_key(parent_key: int, draw: int) -> int:
    """Return the 64-bit key of the `draw`-th sample from the node with `parent_key`."""
    return int.from_bytes(blake2b(b"%d/%d" % (parent_key, draw), digest_size=8).digest(), "little")


def root_key(stream: str) -> int:
    """Return the 64-bit key of a problem's root, from ``f"{seed}/{prompt}"``."""
    return int.from_bytes(blake2b(stream.encode(), digest_size=8).digest(), "little")


__all__ = ["FinishReason", "Node", "Problem", "Step", "Trajectory", "UnscoredNodeError", "branch_key", "root_key"]
