"""Samples that a server draws, from the first request to the `Step` that each becomes (no torch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from inferscale.flops.formulas import ModelSpec
from inferscale.flow import GenerateRequest
from inferscale.tree import FinishReason, Step

from ._remote_replies import Choice
from ._remote_retry import RemoteError
from ._remote_server import Prefix
from .billing import sample_flops
from .branch import Limits

_NODE_BITS = 0x3FFFFFFF
_ROUND = 0x9E3779B1  # spreads the seeds of the requests that one sample may take
_SEED_BITS = 0x7FFFFFFF


def sample_seed(node_key: int, draw: int) -> int:
    """The seed of the `draw`-th sample from a node.

    Siblings have consecutive seeds: a server that gives the i-th choice of a request the seed plus i draws the same
    samples in one request and in several. Seeds fit into 31 bits: every server takes them.
    """
    return (node_key & _NODE_BITS) + draw


def tokens_of(choices: Sequence[Choice], total: int, asked: int) -> list[int]:
    """Tokens of each choice of a request for at most `asked` tokens each, which add up to `total`.

    Ids tell, or log-probabilities; without them, choices cut by their length have what was asked for, and the rest is
    divided by the lengths of the texts.
    """
    if all(choice.token_ids is not None for choice in choices):
        return [len(choice.token_ids or ()) for choice in choices]
    if (known := [len(choice.logprobs or ()) for choice in choices]) and sum(known) == total:
        return known
    cut = [choice.finish == "length" for choice in choices]
    full = min(asked, total // sum(cut)) if any(cut) else 0
    weights = [0 if is_cut else len(choice.text) + 1 for choice, is_cut in zip(choices, cut, strict=True)]
    rest, whole = total - full * sum(cut), max(sum(weights), 1)
    ends = [rest * sum(weights[: place + 1]) // whole for place in range(len(weights))]
    starts = [0, *ends[:-1]]
    parts = [full if is_cut else end - start for start, end, is_cut in zip(starts, ends, cut, strict=True)]
    parts[0] += total - sum(parts)  # sampled beyond what was asked for, and paid for all the same
    return parts


class RemoteSample(ABC):
    """One sample of a request.

    Attributes:
        request: What was asked for.
        index: Which sample of the request this is.
        limits: Lengths.
        finish: Why sampling stopped; ``None`` while it goes on.
        error: Why the sample failed.
        read: Tokens of the prefix, as the server counts them; 0 before its first answer.
        sampled: Tokens that the server sampled.
    """

    def __init__(self, request: GenerateRequest, index: int, limits: Limits, room: int) -> None:
        self.request = request
        self.index = index
        self.limits = limits
        self.finish: FinishReason | None = None if room else "length"
        self.error: RemoteError | None = None
        self.read = 0
        self.sampled = 0
        self._room = room
        self._spent = 0
        self._rounds = 0
        self._most: int | None = None
        self._logprobs: list[float] | None = []

    @property
    def seed(self) -> int:
        """The seed of the next request."""
        seed = sample_seed(self.request.node.key, self.request.first + self.index)
        return (seed + self._rounds * _ROUND) & _SEED_BITS

    @property
    def left(self) -> int:
        """The most tokens that the next request may sample."""
        caps = [self._room, self.request.max_tokens, self.limits.step if self.request.until == "step" else None]
        left = min(cap for cap in caps if cap is not None) - self._spent
        return max(left if self._most is None else min(left, self._most), 1)

    @abstractmethod
    def prefix(self) -> Prefix:
        """What the next request continues."""

    @abstractmethod
    def _extend(self, choice: Choice, cut_short: bool) -> None:
        """Takes the text; sets `finish` if the sample has ended."""

    @abstractmethod
    def _made(self) -> Step:
        """The finished step, without its price."""

    @property
    @abstractmethod
    def forced_tokens(self) -> int:
        """Tokens of the forced text."""

    def take(self, choice: Choice, tokens: int, read: int) -> None:
        """Takes an answer of `tokens` sampled tokens after a prefix of `read` tokens."""
        cut_short = tokens < self.left  # a sample that ends so by its length has met the end of the context
        self.read = self.read or read
        self.sampled += tokens
        self._spent += max(tokens, 1)
        self._rounds += 1
        known = None if choice.logprobs is None or len(choice.logprobs) != tokens else choice.logprobs
        self._logprobs = None if self._logprobs is None or known is None else [*self._logprobs, *known]
        if choice.finish == "filtered":
            self.fail(RemoteError("the server's content filter ended this sample"))
        else:
            self._extend(choice, cut_short)

    def fail(self, error: RemoteError) -> None:
        """Ends the sample with an error; one that asked for too many tokens may ask for fewer."""
        if error.kind == "too long" and self.left > 1:
            self._most = self.left // 2
        elif error.kind == "too long" and self._rounds:
            self.finish = "length"
        else:
            self.finish, self.error = "error", error

    def _reason_at_length(self, cut_short: bool) -> FinishReason | None:
        """Why a sample has ended that the server cut by its length."""
        if self._spent >= self._room or cut_short:
            return "length"
        if self.request.until == "step" and self._spent >= self.limits.step:
            return "step"
        if self.request.max_tokens is not None and self._spent >= self.request.max_tokens:
            return "budget"
        return None  # it was asked for fewer tokens than it may have, see `fail`

    def step(self, spec: ModelSpec | None, pays_node: bool, pays_forced: bool, plain: bool) -> Step:
        """The finished sample.

        Args:
            spec: The constants of the model's closed form, if known.
            pays_node: Whether it is charged with what nobody has read before: the prompt, or the node's last token.
            pays_forced: Whether it is charged with the forced text.
            plain: Whether tokens are drawn from the model's plain distribution, that of the log-probabilities.
        """
        if self.error is not None:
            flops = sample_flops(spec, self.read, 0, self.sampled)
            return Step(str(self.error), finish_reason="error", num_tokens=self.sampled, flops=flops)
        step = self._made()
        if not self.sampled:
            return step
        forced = self.forced_tokens if self.request.forced else 0
        prompt = self.read - forced if pays_node and self.request.node.step is None else 0
        unread = prompt if self.request.node.step is None else int(pays_node)
        paid_forced = forced if pays_forced else 0
        return replace(
            step,
            logprob=sum(self._logprobs) if self._logprobs is not None and plain else None,
            confidence=sum(self._logprobs) / len(self._logprobs) if self._logprobs else None,
            flops=sample_flops(spec, self.read, min(unread + paid_forced, self.read), self.sampled),
            prompt_tokens=prompt + paid_forced,
        )
