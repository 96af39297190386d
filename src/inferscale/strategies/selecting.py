"""Selection and aggregation by the model itself: picks, merges, tournaments, populations that are merged again."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from inferscale.base import SearchStrategy
from inferscale.flow import Flow, answer, ask, expand, replies, score
from inferscale.identity import digest
from inferscale.tree import Node, Problem

from .checks import check_choice, check_counts, check_members
from .sampling import RepeatedSampling

PICK = """Problem:
{problem}

Here are {n} solutions of it.

{solutions}

Compare them and find the one that is most likely right. End with a line "Best: " and its number."""

MERGE = """Problem:
{problem}

Here are {n} attempts to solve it. Some may be wrong.

{solutions}

Review them, keep what is right, mend what is wrong, and write one complete solution of the problem."""

JUDGE = """Problem:
{problem}

{solutions}

Which of the two solutions is more likely right? Answer with one letter, A or B."""


def filled(template: str, problem: str, solutions: Sequence[str]) -> str:
    """The template with its places ``{problem}``, ``{solutions}`` and ``{n}`` filled, whatever the texts hold."""
    told = {"problem": problem, "solutions": "\n\n".join(solutions), "n": str(len(solutions))}
    return re.sub(r"\{(problem|solutions|n)\}", lambda place: told[place[1]], template)


def solution_of(node: Node) -> str:
    """What others are shown of a solution: the part that answers, without thoughts if they have ended."""
    return (node.final_text or node.text).strip()


def numbered(solutions: Sequence[str]) -> list[str]:
    """The solutions under their numbers, from 1 on."""
    return [f"Solution {number}:\n{text}" for number, text in enumerate(solutions, 1)]


def picked_number(reply: str, n: int) -> int | None:
    """The last whole number from 1 to `n` in a reply; ``None`` if there is none."""
    numbers = (int(digits) for digits in re.findall(r"(?<![\d.])\d{1,9}(?![\d]|\.\d)", reply))
    return next((number for number in reversed([*numbers]) if 1 <= number <= n), None)


def picked_letter(reply: str) -> str | None:
    """The last A or B that stands alone in a reply; ``None`` if there is none."""
    found: list[str] = re.findall(r"(?<![A-Za-z])[AB](?![A-Za-z])", reply)
    return found[-1] if found else None


def _check_template(owner: object, template: str) -> None:
    if missing := [place for place in ("{problem}", "{solutions}") if place not in template]:
        raise ValueError(f"{type(owner).__name__}: the template has no place {' and none '.join(missing)}")


def _candidates(strategy: SearchStrategy, root: Node, rng: random.Random) -> Flow[list[Node]]:
    """The leaves of `strategy` that can be chosen among: each once, finished ones if there are any."""
    leaves = yield from strategy.search(root, random.Random(rng.getrandbits(64)))
    usable = [leaf for leaf in dict.fromkeys(leaves) if leaf.step is not None and not leaf.is_failed]
    return [leaf for leaf in usable if leaf.is_finished] or usable


def _settled(leaves: Sequence[Node]) -> Flow[bool]:
    """True if there is nothing to choose: fewer than two leaves, or all have one and the same answer."""
    answers = yield from answer(leaves)
    return len(leaves) < 2 or (None not in answers and len(set(answers)) == 1)


@dataclass(frozen=True)
class _Selecting(SearchStrategy):
    """A strategy among whose leaves the model chooses."""

    strategy: SearchStrategy = field(default_factory=lambda: RepeatedSampling(8))

    def __post_init__(self) -> None:
        check_members(self, self.strategy)

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """True if the strategy scores its nodes."""
        return self.strategy.needs_scores


class Searched(Protocol):
    """What `Recorded` reads of a result."""

    @property
    def problem(self) -> Problem:
        """The problem."""

    @property
    def root(self) -> Node:
        """The root of its tree."""

    @property
    def leaves(self) -> Sequence[Node]:
        """The leaves that were voted over."""


@dataclass(frozen=True)
class Recorded(SearchStrategy):
    """The solutions that earlier searches voted over: nothing is sampled, and nothing that was paid is billed again.

    For what comes after sampling. Another reward model reads stored results: ``solve_batch(problems, Recorded(results),
    generator, reward_model=other)``; a model chooses among them: ``GenSelect(Recorded(results))``. The new tree holds
    the paths to their leaves, without scores. A strategy that samples more beside them, with the same seed, repeats no
    draw; it must not go on with paths of another generator.

    Attributes:
        results: Results of searches, one for each problem that is searched now. Two of one prompt are told apart only
            with the seed of the searches that they come from.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Recorded
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> results = isc.solve_batch(["How many?", "How many more?"], isc.RepeatedSampling(8), ToyGenerator())
        >>> solver = isc.Solver(Recorded(results), ToyGenerator(), ToyProcessReward("min"), isc.BestOfN())
        >>> again = solver.solve_batch(["How many?", "How many more?"])
        >>> [(result.answer, result.cost.num_generated, result.cost.num_scored) for result in again]
        [('2', 0, 8), ('2', 0, 8)]
    """

    results: Sequence[Searched] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", tuple(self.results))
        known: dict[int | str, Searched | None] = {}
        for result in self.results:
            stream = result.problem.stream
            known[result.root.key], known[stream] = result, None if stream in known else result
        object.__setattr__(self, "_known", known)

    def identity(self) -> dict[str, Any]:
        """Problems, and names and texts of the leaves."""
        leaves = [(r.problem.stream, [(leaf.key, leaf.text) for leaf in r.leaves]) for r in self.results]
        return {"class": "Recorded", "results": digest(leaves)}

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The leaves in their order, each as often as it was voted for.

        Raises:
            ValueError: If there is no result of the problem, or one of two.
        """
        known: dict[int | str, Searched | None] = self._known  # type: ignore[attr-defined]
        stream = root.problem.stream
        found = known.get(root.key) or known.get(stream)
        if found is None:
            told = "two results of one prompt, and this is not their seed" if stream in known else "no result"
            raise ValueError(f"Recorded(...) has {told}: {root.problem.prompt!r:.80}")
        root.num_draws += found.root.num_draws
        copies = {found.root: root}
        for node in (node for leaf in found.leaves for node in leaf.path):
            if node not in copies and node.parent is not None:
                parent = copies[node.parent]
                copies[node] = copy = Node(root.problem, node.step, parent, node.key)
                copy.num_draws = node.num_draws
                parent.children.append(copy)
        yield from ()
        return [copies[leaf] for leaf in found.leaves]


@dataclass(frozen=True)
class GenSelect(_Selecting):
    """Selection by the model, which reads the candidates side by side (Toshniwal et al. 2025, arXiv:2507.17797).

    With more than `group` candidates, groups of so many are read first, and their winners are compared again. The best
    alone comes back, so that every aggregator reports it; the others stay in the tree. Candidates that all have one
    answer are all returned, unasked.

    Differs from the paper: each of the `votes` replies reads the candidates in an order of its own, and the candidate
    named most often wins; a reply that names none abstains. The prompt is our own.

    Attributes:
        strategy: Finds the candidates.
        group: Most candidates in one prompt (16 in the paper).
        votes: Replies for each group.
        template: The prompt, with ``{problem}``, ``{solutions}`` and ``{n}``.
        generator: Name of the generator that judges, where the search has several.

    Raises:
        TypeError: If `strategy` is none.
        ValueError: If `group` is below 2, `votes` below 1, or the template lacks a place.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import GenSelect
        >>> from inferscale.testing import ToyGenerator
        >>> result = isc.solve("How many?", GenSelect(isc.RepeatedSampling(8), votes=3), ToyGenerator())
        >>> len(result.root.children), len(result.root.side_notes)  # candidates, and prompts that compare them
        (8, 3)
    """

    group: int = 16
    votes: int = 1
    template: str = PICK
    generator: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "group", minimum=2)
        check_counts(self, "votes")
        _check_template(self, self.template)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The candidate that was named, or all if they agree."""
        leaves = yield from _candidates(self.strategy, root, rng)
        if (yield from _settled(leaves)):
            return leaves or root.leaves()
        while len(leaves) > 1:
            groups = [leaves[at : at + self.group] for at in range(0, len(leaves), self.group)]
            # Every prompt shows one group in one order: position must not decide.
            orders = [(group, rng.sample(group, len(group))) for group in groups for _ in range(self.votes)]
            prompts = [
                filled(self.template, root.problem.prompt, numbered([solution_of(node) for node in order]))
                for _, order in orders
            ]
            told = yield from ask(prompts, generator=self.generator)
            tallies = [Counter[Node]() for _ in groups]
            for place, ((_, order), texts) in enumerate(zip(orders, told, strict=True)):
                number = picked_number(texts[0], len(order)) if texts else None
                if number is not None:
                    tallies[place // self.votes][order[number - 1]] += 1
            leaves = [
                max(group, key=tally.__getitem__)  # the earliest of equals
                for group, tally in zip(groups, tallies, strict=True)
            ]
        return leaves


@dataclass(frozen=True)
class Compare(_Selecting):
    """A solution that the model writes anew from all candidates (AggLM; Zhao et al. 2025, arXiv:2509.06870).

    What it writes are leaves of the tree, scored and voted over like others: an answer that no candidate had can win.

    Differs from the paper: the model was not trained to aggregate, and the prompt is our own. Candidates that all have
    one answer are returned as they are.

    Attributes:
        strategy: Finds the candidates.
        n: Solutions written from them, each with the candidates in an order of its own.
        template: The prompt, with ``{problem}``, ``{solutions}`` and ``{n}``.
        generator: Name of the generator that merges, where the search has several.

    Raises:
        TypeError: If `strategy` is none.
        ValueError: If `n` is below 1, or the template lacks a place.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Compare
        >>> from inferscale.testing import ToyGenerator
        >>> result = isc.solve("How many?", Compare(isc.RepeatedSampling(4), n=2), ToyGenerator())
        >>> len(result.root.children), len(result.trajectories)  # candidates and what was written from them
        (6, 2)
    """

    n: int = 1
    template: str = MERGE
    generator: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "n")
        _check_template(self, self.template)

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The solutions that were written, or the candidates if they agree or nothing came of it."""
        leaves = yield from _candidates(self.strategy, root, rng)
        if (yield from _settled(leaves)):
            return leaves or root.leaves()
        groups = [rng.sample(leaves, len(leaves)) for _ in range(self.n)]
        return (yield from _merged(root, groups, self.template, self.generator)) or leaves


def _merged(root: Node, groups: Sequence[Sequence[Node]], template: str, generator: str | None) -> Flow[list[Node]]:
    """One new solution from each group of earlier ones; those that failed are left out."""
    prompts = [
        filled(template, root.problem.prompt, numbered([solution_of(node) for node in group])) for group in groups
    ]
    written = yield from replies(prompts, attach=True, generator=generator)
    return [node for group in written for node in group]


@dataclass(frozen=True)
class Tournament(_Selecting):
    """A tournament of the candidates, judged in pairs until one is left (Chen et al. 2024, arXiv:2411.19477).

    ``"knockout"``: winners go on to the next round, K = `votes` judgements a pair, half with either solution first;
    `knockout_failure` bounds how often it fails. ``"league"``: every two candidates meet, and the best mean result
    wins.

    The judge is the model: by the letter in its reply (``"reply"``), or by the probability of that letter
    (``"likelihood"``): one greedy token in each order, whose log-probability gives the expected result of the pair
    (as in arXiv:2607.05391). ``"score"`` compares the reward model's scores, for comparison: a knockout of scores is
    best-of-n.

    Differs from the paper: candidates are shuffled once and not in every round; a tie goes to the earlier one; two with
    one answer are not judged, the earlier goes on; and for ``"likelihood"`` the letter that was not drawn is given all
    of the rest of the probability, since a generator reports no token but the drawn one.

    Attributes:
        strategy: Finds the candidates.
        kind: ``"knockout"`` (N - 1 pairs) or ``"league"`` (N (N - 1) / 2 pairs).
        votes: Judgements of each pair, an even number for as many in either order; of ``"likelihood"`` always 2.
        judge: ``"reply"``, ``"likelihood"`` or ``"score"``.
        template: The prompt, with ``{problem}`` and ``{solutions}``.
        generator: Name of the generator that judges, where the search has several.

    Raises:
        TypeError: If `strategy` is none.
        ValueError: If `votes` is below 1, a choice unknown, or the template lacks a place.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import Tournament
        >>> from inferscale.testing import ToyGenerator
        >>> result = isc.solve("How many?", Tournament(isc.RepeatedSampling(4), votes=2), ToyGenerator())
        >>> len(result.trajectories), result.cost.shares["ask"].num_generated  # judgements of pairs that do not agree
        (1, 4)
    """

    kind: Literal["knockout", "league"] = "knockout"
    votes: int = 2
    judge: Literal["reply", "likelihood", "score"] = "reply"
    template: str = JUDGE
    generator: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "votes")
        check_choice(self, "kind", ("knockout", "league"))
        check_choice(self, "judge", ("reply", "likelihood", "score"))
        _check_template(self, self.template)

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """True if the judge is the reward model, or the strategy scores its nodes."""
        return self.judge == "score" or self.strategy.needs_scores

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The winner, or all candidates if they agree."""
        leaves = yield from _candidates(self.strategy, root, rng)
        if (yield from _settled(leaves)):
            return leaves or root.leaves()
        left = rng.sample(leaves, len(leaves))
        if self.kind == "league":
            pairs = [(a, b) for place, a in enumerate(left) for b in left[place + 1 :]]
            results = yield from self._judged(root, pairs)
            totals = dict.fromkeys(left, 0.0)
            for (first, second), result in zip(pairs, results, strict=True):
                totals[first] += result
                totals[second] += 1 - result
            return [max(left, key=totals.__getitem__)]
        while len(left) > 1:
            pairs = [*zip(left[::2], left[1::2], strict=False)]
            results = yield from self._judged(root, pairs)
            winners = [a if result >= 0.5 else b for (a, b), result in zip(pairs, results, strict=True)]
            left = winners + left[2 * len(pairs) :]  # an odd one goes on unjudged
        return left

    def _judged(self, root: Node, pairs: Sequence[tuple[Node, Node]]) -> Flow[list[float]]:
        """For each pair the result of its first, from 0 to 1; all prompts are asked at once."""
        if self.judge == "score":
            yield from score(node for pair in pairs for node in pair)
            return [(1 + (a.score > b.score) - (a.score < b.score)) / 2 for a, b in pairs]
        answers = yield from answer([node for pair in pairs for node in pair])
        alike = [answers[2 * i] is not None and answers[2 * i] == answers[2 * i + 1] for i in range(len(pairs))]
        votes = 2 if self.judge == "likelihood" else self.votes
        asked = [(i, vote % 2 == 1) for i in range(len(pairs)) if not alike[i] for vote in range(votes)]
        prompts = []
        for i, swapped in asked:
            texts = [solution_of(node) for node in (pairs[i][::-1] if swapped else pairs[i])]
            shown = [f"Solution {letter}:\n{text}" for letter, text in zip("AB", texts, strict=True)]
            prompts.append(filled(self.template, root.problem.prompt, shown))
        sure = self.judge == "likelihood"
        told = yield from replies(prompts, greedy=sure, max_tokens=1 if sure else None, generator=self.generator)
        results: list[list[float]] = [[] for _ in pairs]
        for (i, swapped), nodes in zip(asked, told, strict=True):
            first = self._result(nodes[0]) if nodes else None
            if first is not None:
                results[i].append(1 - first if swapped else first)
        return [math.fsum(each) / len(each) if each else 0.5 for each in results]

    def _result(self, reply: Node) -> float | None:
        """The result of solution A in one judgement; ``None`` if there is none in it."""
        letter = picked_letter(reply.final_text or "")
        if letter is None or reply.step is None:
            return None
        if self.judge == "reply":
            return float(letter == "A")
        if reply.step.logprob is None:
            raise ValueError(f'{self!r} reads log-probabilities, and the generator reports none: use judge="reply"')
        probability = math.exp(min(reply.step.logprob, 0.0))
        return probability if letter == "A" else 1 - probability


def knockout_failure(p_candidate: float, p_judge: float, n: int, votes: int) -> float:
    """An upper bound on the chance that a knockout ends with a wrong candidate (arXiv:2411.19477, theorem 1).

    ``(1 - p_candidate)^n + ceil(log2 n) exp(-2 votes (p_judge - 1/2)^2)``: no candidate is right, or a right one loses
    one of its matches.

    Args:
        p_candidate: Chance that a candidate is right.
        p_judge: Chance that a right candidate is preferred to a wrong one in one judgement; above 1/2.
        n: Candidates.
        votes: Judgements of each pair.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from inferscale.strategies import knockout_failure
        >>> [round(knockout_failure(p_candidate=0.4, p_judge=0.8, n=8, votes=votes), 3) for votes in (8, 16, 32)]
        [0.728, 0.185, 0.026]
    """
    if not (0 <= p_candidate <= 1 and 0.5 < p_judge <= 1 and n >= 1 and votes >= 1):
        raise ValueError(
            f"knockout_failure(p_candidate={p_candidate!r}, p_judge={p_judge!r}, n={n!r}, votes={votes!r}): give "
            "chances in [0, 1] and (0.5, 1], and counts of at least 1"
        )
    bound = (1 - p_candidate) ** n + math.ceil(math.log2(n)) * math.exp(-2 * votes * (p_judge - 0.5) ** 2)
    return min(1.0, bound)


@dataclass(frozen=True)
class RecursiveAggregation(SearchStrategy):
    """A population of solutions, each rewritten from a few of the last ones (RSA; arXiv:2509.26626).

    The first of T = `rounds` populations is N = `population` samples. Each next one has N solutions, each written by
    the model from K = `group` different ones that are drawn from the population before. The last population comes back,
    to be voted over. ``rounds=1`` is repeated sampling; ``group=1`` refines each solution by itself.

    Differs from the paper: the model is not trained to aggregate, and the prompt is our own. Others are shown the part
    of a solution that answers, without its thoughts. A solution that fails is left out of its population; where all
    fail, the last population stays.

    Attributes:
        population: Solutions in each round (16 in the paper).
        group: Solutions that each new one is written from (4 in the paper).
        rounds: Populations, the first included (10 in the paper).
        template: The prompt, with ``{problem}``, ``{solutions}`` and ``{n}``.
        generator: Name of the generator that aggregates, where the search has several.

    Raises:
        ValueError: If a count is below 1, `group` greater than `population`, or the template lacks a place.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.strategies import RecursiveAggregation
        >>> from inferscale.testing import ToyGenerator
        >>> result = isc.solve("How many?", RecursiveAggregation(population=4, group=2, rounds=3), ToyGenerator())
        >>> len(result.trajectories), result.cost.num_generated
        (4, 12)
    """

    population: int = 16
    group: int = 4
    rounds: int = 10
    template: str = MERGE
    generator: str | None = None

    def __post_init__(self) -> None:
        check_counts(self, "population", "group", "rounds")
        _check_template(self, self.template)
        if self.group > self.population:
            raise ValueError(
                f"RecursiveAggregation(population={self.population}, group={self.group}): a group is drawn from the "
                "population, so it cannot be greater"
            )

    def search(self, root: Node, rng: random.Random) -> Flow[list[Node]]:
        """The last population."""
        current = yield from expand([root], self.population, until="end")
        for _ in range(self.rounds - 1):
            if not current:
                break
            groups = [rng.sample(current, min(self.group, len(current))) for _ in range(self.population)]
            current = (yield from _merged(root, groups, self.template, self.generator)) or current
        return current or root.leaves()
