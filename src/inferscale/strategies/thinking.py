"""Strategies for models that think: the first chains to finish, exits once an answer is sure, no thinking at all."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, Generate, GenerateRequest, Race, expand, gather
from inferscale.thinking import Thinking
from inferscale.tree import Node, Step

from .checks import check_counts
from .revising import sampled_text


def ends_thinking(node: Node, thinking: Thinking) -> bool:
    """True if thinking ends in the node's newest step."""
    return node.step is not None and thinking.end_in(node.step.text) >= 0


def arrives(step: Step, thinking: Thinking) -> bool:
    """True if a chain has thought to its end in this step; not if nothing but white space may have come of it."""
    ended = step.finish_reason in ("eos", "length") and bool(step.text.strip())
    return ended or (step.finish_reason == "step" and thinking.end_in(step.text) >= 0)


def is_cut(node: Node) -> bool:
    """True if a cap on its tokens ended the path."""
    return node.step is not None and node.step.finish_reason == "budget"


def finish(nodes: Sequence[Node], greedy: bool = False) -> Flow[list[Node]]:
    """The answers of `nodes`, which have thought; those that failed are missing.

    One that was cut in the middle of its answer is sampled anew from its parent, its step's text forced before.
    """
    requests = {
        node: GenerateRequest(node.parent, until="end", greedy=greedy, forced=node.step.text)
        if is_cut(node) and node.parent and node.step
        else GenerateRequest(node, until="end", greedy=greedy)
        for node in nodes
        if is_cut(node) or not node.is_finished
    }
    groups: list[list[Node]] = (yield Generate(tuple(requests.values()))) if requests else []
    answers = dict(zip(requests, (group[0] for group in groups), strict=True))
    return [answer for node in nodes if not (answer := answers.get(node, node)).is_failed]


@dataclass(frozen=True)
class ShortMofK(SearchStrategy):
    """The first `m` of `k` chains to finish thinking (short-m@k; Hassid et al. 2025, arXiv:2505.17813, section 4).

    `k` chains think side by side until `m` of them are done, which are the shortest ones; the others are stopped, and
    what they would still have thought is never sampled. Vote with `MajorityVote`: chains come back the shortest first,
    so that a tie goes to the shorter one, as in the paper.

    Which chains are first is told by their tokens and by no clock, so that a result does not depend on what else the
    model is busy with. Chains go on step by step, those that are ahead wait, and one that could still be among the
    first is sampled to the very token at which it no longer is, in the middle of a call too (`inferscale.flow.Race`).

    Differs from the paper: a chain's length is that of the steps up to the one in which thinking ends. With a generator
    that leaves races out, as servers do, chains that are stopped have run on to the end of their current step.

    What ends thinking is ``root.thinking``, the setting of the search; ``</think>`` where nothing tells. A chain that
    ends without it has thought to its end.

    Attributes:
        m: Chains that vote.
        k: Chains that begin.
        max_depth: Most steps of thinking; a chain that still thinks then is left out.

    Raises:
        ValueError: If a count is below 1, or `m` greater than `k`.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import ShortMofK
        >>> from inferscale.testing import ToyGenerator
        >>> result = isc.solve("How many?", ShortMofK(m=2, k=6), ToyGenerator())
        >>> everything = isc.solve("How many?", isc.RepeatedSampling(6), ToyGenerator())
        >>> len(result.trajectories), result.cost.tokens, everything.cost.tokens
        (2, 90, 96)
    """

    m: int = 3
    k: int = 8
    max_depth: int = 400

    def __post_init__(self) -> None:
        check_counts(self, "m", "k", "max_depth")
        if self.m > self.k:
            raise ValueError(f"ShortMofK(m={self.m}, k={self.k}): of k chains at most k can be the first, so m <= k")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The answers of the first `m` chains, the shortest first; of fewer, if the others failed."""
        thinking = root.thinking or Thinking()
        done: list[tuple[int, Node]] = []  # tokens of thinking, and the node where it ends
        going, longest = [(0, root)], None  # chains still thinking; tokens at which none can be among the first
        while going:
            # Those that are ahead wait, so that all are about as long when the m-th one ends.
            pace = sum(tokens for tokens, _ in going) / len(going)
            race = Race(self.m, lambda step: arrives(step, thinking), tuple(tokens for tokens, _ in done))
            moving = [chain for chain in going if chain[0] <= pace]
            waiting = [chain for chain in going if chain[0] > pace]
            groups: list[list[Node]] = yield Generate(
                tuple(
                    GenerateRequest(
                        node,
                        self.k if node is root else 1,
                        max_tokens=None if longest is None else longest - tokens,
                        race=race,
                        ahead=tokens,
                    )
                    for tokens, node in moving
                )
            )
            chains = [
                (tokens + (node.step.generated_tokens if node.step else 0), node)
                for (tokens, _), group in zip(moving, groups, strict=True)
                for node in group
                if not node.is_failed
            ]
            # One that a cap cut while it thought is neither done nor going.
            done += [
                (tokens, node)
                for tokens, node in chains
                if ends_thinking(node, thinking) or (node.is_finished and not is_cut(node))
            ]
            done = sorted(done, key=lambda chain: chain[0])[: self.m]  # stable: the earlier one on ties
            if len(done) == self.m:
                longest = done[-1][0]
            open_chains = [
                (tokens, node) for tokens, node in chains if not node.is_finished and not ends_thinking(node, thinking)
            ]
            going = [
                (tokens, node)
                for tokens, node in waiting + open_chains
                if (longest is None or tokens < longest) and node.depth - root.depth < self.max_depth
            ]
        return (yield from finish([node for _, node in done])) or root.leaves()


@dataclass(frozen=True)
class NoThinking(SearchStrategy):
    r"""Answers without thoughts: the model is told that it has thought (Ma et al. 2025, arXiv:2504.09858).

    The forced text is charged as prompt tokens. `n` answers, to vote over, are the paper's parallel scaling.

    Attributes:
        n: Completions.
        thought: What stands for the thoughts.

    Raises:
        ValueError: If `n` is below 1.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import NoThinking
        >>> from inferscale.testing import ToyGenerator
        >>> result = isc.solve("How many?", NoThinking(n=4), ToyGenerator(), thinking=isc.Thinking())
        >>> result.selected.thoughts, result.answer
        ('\nOkay, I think I have finished thinking.\n', '0')
    """

    n: int = 1
    thought: str = "\nOkay, I think I have finished thinking.\n"

    def __post_init__(self) -> None:
        check_counts(self, "n")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The completions, in the order of sampling."""
        thinking = root.thinking or Thinking()
        start = "" if thinking.prefilled else thinking.start
        forced = start + self.thought + thinking.forced_end + "\n\n" if thinking.end else ""
        return (yield from expand([root], self.n, until="end", forced=forced)) or root.leaves()


def trial(node: Node, inducer: str, max_tokens: int, stop: str) -> Flow[Node]:
    """A greedy answer from the middle of the thoughts, charged, which takes no part in the tree."""
    request = GenerateRequest(
        node,
        until="end",
        greedy=True,
        forced=inducer,
        attach=False,
        max_tokens=max_tokens,
        stop=(stop,) if stop else (),
    )
    groups: list[list[Node]] = yield Generate((request,))
    return groups[0][0]


def chain(root: Node, greedy: bool, max_depth: int, exit_at: Callable[[Node], Flow[Node | None]]) -> Flow[list[Node]]:
    """The answer of one chain of thoughts, alone, or nothing if its sample failed.

    Args:
        root: Where it begins.
        greedy: Take the likeliest token each time.
        max_depth: Most steps of thinking.
        exit_at: Asked after every step; returns the node from which to answer now, or ``None`` to think on.
    """
    thinking, node = root.thinking or Thinking(), root
    for _ in range(max_depth):
        new = yield from expand([node], greedy=greedy)
        if not new or ends_thinking(new[0], thinking) or new[0].is_finished:
            return (yield from finish([node for node in new if ends_thinking(node, thinking)], greedy)) or new
        node = new[0]
        if (last := (yield from exit_at(node))) is not None:
            node = last
            break
    return (yield from expand([node], until="end", greedy=greedy, forced=thinking.forced_end))


@dataclass(frozen=True)
class DEER(SearchStrategy):
    r"""Dynamic early exit: thinking ends once a trial answer is sure (Yang et al. 2025, arXiv:2504.15895, section 3).

    At a switch of thought, a step that begins with one of `switches`, the thoughts before it are followed by `inducer`
    and an answer is tried. Its confidence is the geometric mean of its tokens' probabilities::

        C = (prod_t max_v p(v | thoughts, inducer, a_<t))^(1/T)

    If C exceeds `threshold`, the end of thinking is forced and the answer is sampled; else thinking goes on. Trials are
    charged and take no part in the tree.

    Differs from the paper: a switch is seen once the step that it begins is there, which is sampled in vain at an exit;
    ``switches=()`` tries after every step instead, and wastes none. All tokens of a trial count (the released code
    leaves out the first one).

    What ends thinking is ``root.thinking``, the setting of the search; ``</think>`` where nothing tells.

    Attributes:
        threshold: lambda in the paper.
        switches: Beginnings of steps that switch the thought.
        inducer: Text that asks for an answer in the middle of the thoughts.
        stop: Text that ends a trial answer.
        max_trial_tokens: Most tokens of one.
        n: Independent chains.
        greedy: Take the likeliest token each time (as in the paper).
        max_depth: Most steps of thinking; then its end is forced.

    Raises:
        ValueError: If a count is below 1, or `threshold` not in (0, 1].

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import DEER
        >>> from inferscale.testing import ToyGenerator
        >>> strategy = DEER(threshold=0.3, switches=(), max_trial_tokens=2)
        >>> result = isc.solve("How many?", strategy, ToyGenerator(), thinking=isc.Thinking("", "</think>"))
        >>> result.selected.thoughts, result.answer  # it was sure after the first step
        ('u q w i c\n', '1')
    """

    threshold: float = 0.95
    switches: tuple[str, ...] = ("Wait", "Alternatively", "Hmm")
    inducer: str = "\n**Final Answer**\n\\boxed{"
    stop: str = "}"
    max_trial_tokens: int = 20
    n: int = 1
    greedy: bool = False
    max_depth: int = 400

    def __post_init__(self) -> None:
        check_counts(self, "max_trial_tokens", "n", "max_depth")
        object.__setattr__(self, "switches", tuple(self.switches))
        if not 0 < self.threshold <= 1:
            raise ValueError(f"DEER(threshold={self.threshold!r}): give a probability in (0, 1]")

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The answer of each chain."""

        def exit_at(node: Node) -> Flow[Node | None]:
            assert node.step is not None
            place: Node | None = node
            if self.switches:
                place = node.parent if node.step.text.lstrip().startswith(self.switches) else None
            if place is None or place is root:
                return None
            tried = yield from trial(place, self.inducer, self.max_trial_tokens, self.stop)
            node.stats["trial_confidence"] = sure = self.confidence(tried)
            return place if sure > self.threshold else None

        chains = yield from gather(chain(root, self.greedy, self.max_depth, exit_at) for _ in range(self.n))
        return [answer for answers in chains for answer in answers] or root.leaves()

    def confidence(self, tried: Node) -> float:
        """The geometric mean of the probabilities of a greedy answer's tokens; 0 if there is none.

        Raises:
            ValueError: If the generator reports no log-probability.
        """
        step = tried.step
        if step is None or tried.is_failed or not step.generated_tokens:
            return 0.0
        if step.logprob is None:
            raise ValueError(
                "DEER reads log-probabilities of greedy samples, and the generator reports none: use HFGenerator, or a "
                "server that returns them"
            )
        return math.exp(step.logprob / step.generated_tokens)


@dataclass(frozen=True)
class Dynasor(SearchStrategy):
    r"""Thinking until probes agree: Dynasor-CoT (Fu et al. 2025, "Reasoning without self-doubt"; arXiv:2412.20993).

    After every `interval` tokens of thinking an answer is probed as in `DEER`. When `patience` probes in a row say the
    same, none of them with a word of `hesitations`, the end of thinking is forced and the answer is sampled. Probes are
    charged and take no part in the tree.

    Differs from the paper: probes are taken between steps, and are greedy; the answer is sampled after the end of
    thinking, where the paper reports the probe.

    Attributes:
        interval: Tokens of thinking between two probes.
        patience: Probes in a row that must agree.
        hesitations: Words that make a probe count for nothing; case does not matter.
        inducer: As in `DEER`.
        stop: As in `DEER`.
        max_probe_tokens: Most tokens of a probe.
        n: Independent chains.
        greedy: Take the likeliest token each time.
        max_depth: Most steps of thinking; then its end is forced.

    Raises:
        ValueError: If a count is below 1.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Dynasor
        >>> from inferscale.testing import ToyGenerator
        >>> strategy = Dynasor(interval=8, patience=1)
        >>> result = isc.solve("How many?", strategy, ToyGenerator(depth=6), thinking=isc.Thinking("", "</think>"))
        >>> result.selected.thoughts, result.answer  # the first probe was enough
        ('u q w i c\ne x r\n', '3')
    """

    interval: int = 64
    patience: int = 3
    hesitations: tuple[str, ...] = ("wait", "hold", "but", "okay", "no", "hmm")
    inducer: str = "... Oh, I suddenly got the answer to the whole problem, **Final Answer**\n\n\\[ \\boxed{"
    stop: str = "}"
    max_probe_tokens: int = 20
    n: int = 1
    greedy: bool = False
    max_depth: int = 400

    def __post_init__(self) -> None:
        check_counts(self, "interval", "patience", "max_probe_tokens", "n", "max_depth")
        object.__setattr__(self, "hesitations", tuple(self.hesitations))

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The answer of each chain."""
        chains = yield from gather(chain(root, self.greedy, self.max_depth, self._probe()) for _ in range(self.n))
        return [answer for answers in chains for answer in answers] or root.leaves()

    def _probe(self) -> Callable[[Node], Flow[Node | None]]:
        """The rule of one chain, which remembers what its probes said."""
        said: list[str] = []
        tokens = 0

        def exit_at(node: Node) -> Flow[Node | None]:
            nonlocal tokens
            tokens += node.step.generated_tokens if node.step else 0
            if tokens < self.interval:
                return None
            tokens = 0
            probe = yield from trial(node, self.inducer, self.max_probe_tokens, self.stop)
            words = sampled_text(probe, self.inducer).strip()
            node.stats["probe"] = words
            said.append("" if any(word in self.hesitations for word in re.findall(r"\w+", words.lower())) else words)
            newest = said[-self.patience :]
            return node if len(newest) == self.patience and newest[0] and len(set(newest)) == 1 else None

        return exit_at
