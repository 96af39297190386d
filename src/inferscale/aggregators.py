"""Votes and selections: the trajectory of a search that is reported."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Literal, TypeAlias, get_args

from .answers import Normalize, SameAnswer, group_answers
from .base import Aggregator
from .functional import (
    ArrayLike,
    Reduction,
    best_of_k_chances,
    cosine_similarities,
    ngram_embeddings,
    reduce_steps,
)
from .tree import Trajectory

StepReduction: TypeAlias = Reduction | Callable[[Sequence[float]], float]
r"""A named reduction of step scores, or a function of them (which may see scores outside [0, 1]).

Example:
    >>> import inferscale as isc
    >>> from statistics import median
    >>> def trajectory(answer, *step_scores):
    ...     steps = tuple(isc.Step(f"step {i}\n") for i in range(len(step_scores)))
    ...     return isc.Trajectory(isc.Problem("How many?"), steps, step_scores, answer)
    >>> found = [trajectory("4", 0.9, 0.1, 0.9), trajectory("7", 0.6, 0.7, 0.8)]
    >>> [isc.BestOfN(reduction=reduction).select(found).answer for reduction in ("last", "min", median)]
    ['4', '7', '4']
"""


Joining: TypeAlias = tuple[SameAnswer | None, Normalize | None]
"""The way in which a vote joins answers: the arguments `same_answer` and `normalize` of `group_answers`."""


def joining_of(aggregator: Aggregator) -> Joining:
    """Return how an aggregator joins answers; by the equality of their kind, if it has no way of its own."""
    if isinstance(aggregator, MajorityVote | BordaVote | ConfidenceVote | HedgedBestOfN):
        return aggregator.same_answer, aggregator.normalize
    return None, None


def answer_groups(
    trajectories: Sequence[Trajectory], voters: Container[int], joining: Joining = (None, None)
) -> list[list[int]]:
    """Return the positions of trajectories with the same answer; those that abstain or are no voters are left out."""
    answers = (t.answer if i in voters else None for i, t in enumerate(trajectories))
    return group_answers(answers, *joining, trajectories[0].equality) if trajectories else []


def vote(
    trajectories: Sequence[Trajectory],
    weights: Mapping[int, float],
    scores: Mapping[int, float],
    joining: Joining,
) -> Trajectory:
    """The best-scored trajectory of the group with the greatest weight.

    Args:
        trajectories: At least one.
        weights: By position; a trajectory without a weight or an answer abstains.
        scores: By position; they break ties between groups if all voters have one.
        joining: Which answers are the same.
    """
    groups = answer_groups(trajectories, weights, joining)
    if not groups:
        return trajectories[best(candidates(trajectories, scores), scores)]
    use_scores = all(i in scores for group in groups for i in group)

    def total(values: list[float]) -> float | Fraction:
        try:
            return math.fsum(values)  # the same in whatever order, so that ties are ties
        except OverflowError:
            return sum(map(Fraction, values), Fraction(0))

    def rank(group: Sequence[int]) -> tuple[float | Fraction, float | Fraction]:
        return total([weights[i] for i in group]), total([scores[i] for i in group] if use_scores else [])

    winner: list[int] = max(groups, key=rank)  # the first of equals
    return trajectories[best(winner, scores)]


def completeness(trajectory: Trajectory) -> int:
    """Return 2 for a whole text, 1 for one that was cut, left unfinished or all thoughts, 0 for one that failed."""
    if trajectory.is_failed:
        return 0
    return 1 if trajectory.is_cut or trajectory.final_text is None else 2


def most_complete(trajectories: Sequence[Trajectory], positions: Iterable[int]) -> list[int]:
    """Those of `positions` whose texts are most complete: a part of a text is reported only where there is no whole."""
    by_rank: defaultdict[int, list[int]] = defaultdict(list)
    for i in positions:
        by_rank[completeness(trajectories[i])].append(i)
    return by_rank[max(by_rank)]


def candidates(trajectories: Sequence[Trajectory], scores: Mapping[int, float]) -> list[int]:
    """Positions with an answer and a score; if there is none, with an answer; if there is none, all."""
    answered = [i for i, trajectory in enumerate(trajectories) if trajectory.answer is not None]
    return [i for i in answered if i in scores] or answered or list(range(len(trajectories)))


def best(positions: Iterable[int], scores: Mapping[int, float]) -> int:
    """The best-scored of `positions`, the first on ties; those without a score come last."""
    return max(positions, key=lambda i: scores.get(i, -math.inf))


def known_scores(
    aggregator: Aggregator, trajectories: Sequence[Trajectory], reduction: StepReduction | None
) -> dict[int, float]:
    """Scores by position, of the trajectories that have one.

    Raises:
        ValueError: If there are no trajectories, `aggregator` needs scores and there are none, or one is not finite.
    """
    require_some(aggregator, trajectories)
    scores: dict[int, float] = {}
    for i, trajectory in enumerate(trajectories):
        if reduction is None:
            if trajectory.score is not None:
                scores[i] = trajectory.score
        elif (steps := trajectory.step_scores) is not None:  # () where nothing was judged, which scores 0
            scores[i] = (
                float(reduction(steps) if callable(reduction) else reduce_steps(steps, reduction)) if steps else 0.0
            )
    if aggregator.needs_scores and not scores:
        missing = "scores: pass reward_model=..." if reduction is None else "step scores: use a ProcessRewardModel"
        raise ValueError(f"{aggregator!r} needs trajectories with {missing}")
    for score in scores.values():
        if not math.isfinite(score):
            raise ValueError(f"{aggregator!r} needs finite scores, got {score!r}")
    return scores


def as_weights(
    aggregator: Aggregator, scores: Mapping[int, float], advice: str = "rescale them, or use BordaVote()"
) -> Mapping[int, float]:
    """`scores`, if they can be weights.

    Raises:
        ValueError: If one is negative or not finite.
    """
    for score in scores.values():
        if not 0 <= score < math.inf:
            raise ValueError(f"{aggregator!r} needs weights of 0 or more, got {score!r}: {advice}")
    return scores


def check_reduction(aggregator: Aggregator, reduction: StepReduction | None) -> None:
    """Raise a ValueError unless `reduction` is a name or a function, or there is none."""
    if reduction is not None and not callable(reduction) and reduction not in get_args(Reduction):
        names = ", ".join(map(repr, get_args(Reduction)))
        raise ValueError(f"{type(aggregator).__name__}(reduction={reduction!r}): choose one of {names}, or a function")


def require_some(aggregator: Aggregator, trajectories: Sequence[Trajectory]) -> None:
    """Raise a ValueError if there are no trajectories."""
    if not trajectories:
        raise ValueError(f"{aggregator!r} has no trajectories to choose from: the list is empty")


@dataclass(frozen=True)
class MajorityVote(Aggregator):
    """The answer with the most trajectories, or with the greatest sum of scores (self-consistency, arXiv:2203.11171).

    Attributes:
        weighted: True if a trajectory counts by its score (which must be 0 or more) instead of by 1.
        reduction: Scores trajectories anew from their step scores; ``None`` takes the scores they have.
        same_answer: Joins answers, called as ``f(a, b) or f(b, a)`` with the first answer of each group; a measure of
            likeness for free text, say. ``None`` is the equality of their kind (`inferscale.answers.KINDS`).
        normalize: Gives an answer's normal form; answers with the same one are joined unasked. ``str`` compares answers
            as they are written; ``None`` is the normal form of their kind.

    Raises:
        ValueError: If `reduction` is neither a name nor a function.

    Example:
        >>> import inferscale as isc
        >>> def trajectory(answer, score):
        ...     return isc.Trajectory(isc.Problem("How many?"), (isc.Step(answer),), answer=answer, score=score)
        >>> found = [trajectory("4", 0.3), trajectory("4.0", 0.2), trajectory("7", 0.9), trajectory(None, 0.8)]
        >>> isc.MajorityVote().select(found).answer, isc.MajorityVote(weighted=True).select(found).answer
        ('4', '7')
        >>> result = isc.solve("How many?", isc.RepeatedSampling(8), isc.testing.ToyGenerator())  # by majority
    """

    weighted: bool = False
    reduction: StepReduction | None = None
    same_answer: SameAnswer | None = None
    normalize: Normalize | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_reduction(self, self.reduction)

    @property
    def needs_scores(self) -> bool:  # type: ignore[override]
        """True if trajectories must have scores."""
        return self.weighted or self.reduction is not None

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """The best-scored trajectory with the winning answer.

        Raises:
            ValueError: If there is none, or scores are needed and missing, negative (weighted) or not finite.
        """
        scores = known_scores(self, trajectories, self.reduction)
        weights = as_weights(self, scores) if self.weighted else dict.fromkeys(range(len(trajectories)), 1.0)
        return vote(trajectories, weights, scores, (self.same_answer, self.normalize))


@dataclass(frozen=True)
class BestOfN(Aggregator):
    """The trajectory with the greatest score; the earliest on ties.

    No answer is read, so it chooses among letters and programs as among solutions. A text that was cut (by its length
    or a budget, or left unfinished, or that never left its thoughts) is reported only if none ended by itself,
    whatever their scores: a reward model has judged the beginning of a text that nobody has seen the end of.

    Attributes:
        reduction: Scores trajectories anew from their step scores; ``None`` takes the scores they have.
        drop_abstentions: Choose among those with an answer instead, cut ones too if their answer was complete; among
            all others only if there is none.

    Raises:
        ValueError: If `reduction` is neither a name nor a function.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyProcessReward
        >>> solver = isc.Solver(isc.RepeatedSampling(8), ToyGenerator(), ToyProcessReward(), isc.BestOfN())
        >>> result = solver.solve("How many?")
        >>> result.selected.score == max(trajectory.score for trajectory in result.trajectories)
        True
        >>> result.reaggregate(isc.BestOfN(reduction="min")).answer  # by the worst step of each
        '2'
    """

    reduction: StepReduction | None = None
    drop_abstentions: bool = False
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_reduction(self, self.reduction)

    @property
    def reads_answers(self) -> bool:  # type: ignore[override]
        """True if trajectories without an answer are dropped."""
        return self.drop_abstentions

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """The best-scored trajectory.

        Raises:
            ValueError: If there is none, no trajectory has a score, or one is not finite.
        """
        scores = known_scores(self, trajectories, self.reduction)
        if self.drop_abstentions:
            return trajectories[best(candidates(trajectories, scores), scores)]
        return trajectories[best(most_complete(trajectories, scores), scores)]


@dataclass(frozen=True)
class BordaVote(Aggregator):
    """A vote weighted by rank: of n voters the r-th best by score has the weight ``(n - r + 1) ** p``.

    Kang et al. 2025 (arXiv:2502.18581) rank by self-certainty and use p = 0.5 in their script. With p = 0 it is the
    majority vote; the greater p, the closer to best-of-n.

    Attributes:
        p: The exponent, 0 or more.
        reduction: Scores trajectories anew from their step scores; ``None`` takes the scores they have.
        same_answer: As in `MajorityVote`.
        normalize: As in `MajorityVote`.

    Raises:
        ValueError: If `p` is negative or infinite, or `reduction` neither a name nor a function.

    Example:
        >>> import inferscale as isc
        >>> def trajectory(answer, score):  # log-probabilities, which cannot be weights
        ...     return isc.Trajectory(isc.Problem("How many?"), (isc.Step(answer),), answer=answer, score=score)
        >>> found = [trajectory("4", -9.0), trajectory("4", -8.0), trajectory("7", -1.0), trajectory("5", -5.0)]
        >>> [isc.BordaVote(p=p).select(found).answer for p in (0.0, 0.5, 2.0)]  # from majority towards best-of-n
        ['4', '4', '7']
    """

    p: float = 0.5
    reduction: StepReduction | None = None
    same_answer: SameAnswer | None = None
    normalize: Normalize | None = field(default=None, repr=False)
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.p) and self.p >= 0):
            raise ValueError(f"BordaVote: p must be 0 or more, got {self.p!r}")
        check_reduction(self, self.reduction)

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """The best-scored trajectory with the winning answer; equal scores rank in order of appearance.

        Raises:
            ValueError: If there is none, no trajectory has a score, or one is not finite.
        """
        scores = known_scores(self, trajectories, self.reduction)
        voters = [i for i in scores if trajectories[i].answer is not None]
        ranked = sorted(voters, key=scores.__getitem__, reverse=True)
        n = len(voters)
        # Sums of whole powers are exact, so ties are ties; where n^p is beyond float64, weights are shares of it.
        unit = 1 if (self.p + 1) * math.log(max(n, 1)) < 700 else n  # exp(700) is just within float64
        weights = {i: ((n - rank) / unit) ** self.p for rank, i in enumerate(ranked)}
        return vote(trajectories, weights, scores, (self.same_answer, self.normalize))


@dataclass(frozen=True)
class HedgedBestOfN(Aggregator):
    """The answer that the best of `n` most often has, over all choices of n of the samples: a pessimist's best-of-n.

    Best-of-n of many samples finds what the reward model wrongly likes: its accuracy rises with n and falls again, and
    an n in between is best (hedging; Khalaf et al. 2025, arXiv:2506.19248). Here that n is kept however many samples
    there are, and all of them are used: a sample of rank r (from the worst) among N has the weight
    ``C(r - 1, n - 1) / C(N, n)``, the chance that it is the best of n. With n = 1 it is the majority vote, with n = N
    best-of-n. `inferscale.functional.optimal_n` finds the best n of best-of-n on problems with known answers; of this
    vote the best one is often smaller.

    Differs from the paper: it draws n samples and reports the best of them; this reports the most likely outcome of
    that.

    Attributes:
        n: Samples among which the best is taken; all, if there are fewer.
        reduction: Scores trajectories anew from their step scores; ``None`` takes the scores they have.
        same_answer: As in `MajorityVote`.
        normalize: As in `MajorityVote`.

    Raises:
        ValueError: If `n` is no integer above 0, or `reduction` neither a name nor a function.

    Example:
        >>> import inferscale as isc
        >>> def trajectory(answer, score):
        ...     return isc.Trajectory(isc.Problem("How many?"), (isc.Step(answer),), answer=answer, score=score)
        >>> found = [trajectory("4", 0.6), trajectory("4", 0.7), trajectory("4", 0.5), trajectory("7", 0.9)]
        >>> [isc.HedgedBestOfN(n).select(found).answer for n in (1, 2, 4)]
        ['4', '4', '7']
    """

    n: int = 8
    reduction: StepReduction | None = None
    same_answer: SameAnswer | None = None
    normalize: Normalize | None = field(default=None, repr=False)
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"HedgedBestOfN(n={self.n!r}): n must be an integer >= 1")
        check_reduction(self, self.reduction)

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """The best-scored trajectory with the winning answer.

        Raises:
            ValueError: If there is none, no trajectory has a score, or one is not finite.
        """
        scores = known_scores(self, trajectories, self.reduction)
        voters = [i for i in scores if trajectories[i].answer is not None]
        weights: dict[int, float] = {}
        if voters:
            chances = best_of_k_chances([scores[i] for i in voters], min(self.n, len(voters)))
            weights = dict(zip(voters, chances.tolist(), strict=True))
        return vote(trajectories, weights, scores, (self.same_answer, self.normalize))


@dataclass(frozen=True)
class ConfidenceVote(Aggregator):
    """A vote weighted by the confidence that the generator reported with each step.

    ``reduction="min"`` is the lowest group of DeepConf (arXiv:2508.15260) with steps for groups.

    Attributes:
        reduction: Confidence of a trajectory from those of its steps: their ``"mean"`` over tokens, ``"min"`` or
            ``"last"``.
        same_answer: As in `MajorityVote`.
        normalize: As in `MajorityVote`.

    Raises:
        ValueError: If `reduction` is unknown.

    Example:
        >>> import inferscale as isc
        >>> def trajectory(answer, confidence):
        ...     step = isc.Step(f"The answer is {answer}", (1, 2), confidence=confidence, finish_reason="eos")
        ...     return isc.Trajectory(isc.Problem("How many?"), (step,), answer=answer)
        >>> unsure = [trajectory("4", 1.2), trajectory("4", 1.1), trajectory("7", 6.5)]
        >>> isc.MajorityVote().select(unsure).answer, isc.ConfidenceVote().select(unsure).answer
        ('4', '7')
    """

    reduction: Literal["mean", "min", "last"] = "mean"
    same_answer: SameAnswer | None = None
    normalize: Normalize | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "min", "last"):
            raise ValueError(f'ConfidenceVote: reduction must be "mean", "min" or "last", got {self.reduction!r}')

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """The most confident trajectory with the winning answer; one of unknown confidence abstains.

        Raises:
            ValueError: If there is none, no confidence is known, or one is negative or not finite.
        """
        require_some(self, trajectories)
        known = ((i, self._confidence(trajectory)) for i, trajectory in enumerate(trajectories))
        advice = 'a generator made with confidence="self_certainty" or "deepconf" reports such'
        weights = as_weights(self, {i: confidence for i, confidence in known if confidence is not None}, advice)
        if not weights:
            raise ValueError(f"{self!r} found no confidence: use a generator that reports it, or MajorityVote()")
        return vote(trajectories, weights, weights, (self.same_answer, self.normalize))

    def _confidence(self, trajectory: Trajectory) -> float | None:
        """Confidence of the whole, ``None`` unless all steps have one."""
        known = [step.confidence for step in trajectory.steps if step.confidence is not None]
        if not known or len(known) < len(trajectory.steps):
            return None
        if any(map(math.isnan, known)):
            return math.nan  # min() may pass over it
        if self.reduction != "mean":
            return min(known) if self.reduction == "min" else known[-1]
        tokens = [max(step.generated_tokens, 1) for step in trajectory.steps]
        return math.fsum(value * count for value, count in zip(known, tokens, strict=True)) / sum(tokens)


@dataclass(frozen=True)
class Oracle(Aggregator):
    """The first trajectory with a correct answer, for evaluation only: its accuracy is the coverage, pass@n.

    Without a correct one it is the first with an answer.

    Attributes:
        same_answer: Called with an answer and the problem's gold answer; ``None`` is the equality of their kind.

    Example:
        >>> import inferscale as isc
        >>> problem = isc.Problem("How many?", answer="3")
        >>> result = isc.solve(problem, isc.RepeatedSampling(8), isc.testing.ToyGenerator())
        >>> result.is_correct, result.reaggregate(isc.Oracle()).is_correct  # one of the samples is right
        (False, True)
    """

    same_answer: SameAnswer | None = field(default=None, repr=False)

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """A correct trajectory, if there is one.

        Raises:
            ValueError: If there is no trajectory, or the problem has no gold answer.
        """
        require_some(self, trajectories)
        gold = trajectories[0].problem.answer
        if gold is None:
            raise ValueError("Oracle compares with the gold answer: give Problem(prompt, answer=...)")
        answered = [t for t in trajectories if t.answer is not None]
        correct = (t for t in answered if (self.same_answer or t.equality.same)(t.answer or "", gold))
        return next(correct, (answered or trajectories)[0])


Similarity: TypeAlias = Callable[[str, str], float]
"""Tells how well a text (the first) does where another one (the second) would be right; higher is better."""

Embed: TypeAlias = Callable[[Sequence[str]], ArrayLike]
"""Gives each text a vector: `[texts, dimensions]`, in NumPy or torch."""


@dataclass(frozen=True)
class Medoid(Aggregator):
    """The text that is most like all the others: the vote for free text, of which no two are equal.

    This is minimum Bayes risk with the samples for the truth (Kumar and Byrne 2004; Bertsch et al. 2023,
    arXiv:2310.01387): ``argmax_i sum_{j != i} similarity(text_i, text_j)``. With a similarity of 0 or 1 it is the
    majority vote. Ties go to the greater score, then to the earliest. Cut texts neither count nor are reported unless
    all were cut, as in `BestOfN`.

    Attributes:
        similarity: Called for every two different texts, both ways round.
        embed: In its place, vectors whose cosines are the similarities; a sentence encoder, say. With neither, the
            texts' character n-grams (`inferscale.functional.ngram_embeddings`).
        of: Compares whole texts, thoughts left out, or the answers that were read in them.

    Raises:
        ValueError: If both `similarity` and `embed` are given, or `of` is unknown.

    Example:
        >>> import inferscale as isc
        >>> problem = isc.Problem("What is the capital of France?")
        >>> texts = ["Paris is the capital.", "The capital is Paris.", "Its capital: Paris", "I like cheese."]
        >>> found = [isc.Trajectory(problem, (isc.Step(text, finish_reason="eos"),)) for text in texts]
        >>> isc.Medoid().select(found).text
        'The capital is Paris.'
    """

    similarity: Similarity | None = None
    embed: Embed | None = None
    of: Literal["text", "answer"] = "text"

    def __post_init__(self) -> None:
        if self.similarity is not None and self.embed is not None:
            raise ValueError("Medoid takes similarity=... or embed=..., not both: which texts are alike is said once")
        if self.of not in ("text", "answer"):
            raise ValueError(f'Medoid(of={self.of!r}): choose "text" or "answer"')

    @property
    def reads_answers(self) -> bool:  # type: ignore[override]
        """True if answers are compared."""
        return self.of == "answer"

    def select(self, trajectories: Sequence[Trajectory]) -> Trajectory:
        """The trajectory of the text with the greatest sum of similarities.

        Raises:
            ValueError: If there is none, or a similarity or a vector is not finite or missing.
        """
        require_some(self, trajectories)
        scores = known_scores(self, trajectories, None)
        texts = {
            i: t.answer or "" if self.of == "answer" else t.text if t.final_text is None else t.final_text
            for i, t in enumerate(trajectories)
        }
        voters = most_complete(trajectories, texts)
        if self.of == "answer":
            voters = [i for i, t in enumerate(trajectories) if t.answer is not None] or voters
        counts = Counter(texts[i] for i in voters)
        # Of n copies of a text each has n - 1 others that are the same.
        alike = self._similarities(list(counts))
        totals = {
            text: math.fsum(
                value * (count - (other == text)) for value, (other, count) in zip(row, counts.items(), strict=True)
            )
            for text, row in zip(counts, alike, strict=True)
        }
        use_scores = all(i in scores for i in voters)
        return trajectories[max(voters, key=lambda i: (totals[texts[i]], scores[i] if use_scores else 0))]

    def _similarities(self, texts: Sequence[str]) -> list[list[float]]:
        """`[texts][texts]`: how well each does where another one would be right."""
        if self.similarity is not None:
            alike = [[float(self.similarity(text, other)) for other in texts] for text in texts]
            if not all(math.isfinite(value) for row in alike for value in row):
                raise ValueError(f"{self!r} needs similarities that are finite numbers")
            return alike
        cosines = cosine_similarities((self.embed or ngram_embeddings)(texts))
        if tuple(cosines.shape) != (len(texts), len(texts)):
            raise ValueError(f"{self!r} has {len(texts)} texts and {len(cosines)} vectors: give one for each text")
        similarities: list[list[float]] = cosines.tolist()
        return similarities


def answer_weights(
    trajectories: Sequence[Trajectory],
    weighted: bool = False,
    reduction: StepReduction | None = None,
    same_answer: SameAnswer | None = None,
    normalize: Normalize | None = None,
) -> dict[str, float]:
    """Total weight of each answer, in order of first appearance; abstentions are left out.

    Args:
        trajectories: The trajectories of a search.
        weighted: True if a trajectory counts by its score instead of by 1.
        reduction: As in `MajorityVote`.
        same_answer: As in `MajorityVote`.
        normalize: As in `MajorityVote`.

    Returns:
        The first answer of each group as it was written, with the group's weight; empty if all abstain.

    Raises:
        ValueError: If scores are needed and missing, negative or not finite.

    Example:
        >>> import inferscale as isc
        >>> from inferscale.testing import ToyGenerator, ToyReward
        >>> result = isc.solve("How many?", isc.RepeatedSampling(8), ToyGenerator(), reward_model=ToyReward())
        >>> isc.answer_weights(result.trajectories)
        {'1': 3.0, '2': 2.0, '0': 2.0, '3': 1.0}
        >>> weights = isc.answer_weights(result.trajectories, weighted=True)
        >>> [round(weight, 2) for weight in weights.values()]
        [2.08, 1.72, 1.74, 0.42]
    """
    if not trajectories:
        return {}
    majority = MajorityVote(weighted, reduction, same_answer)
    scores = known_scores(majority, trajectories, reduction)
    weights = as_weights(majority, scores) if weighted else dict.fromkeys(range(len(trajectories)), 1.0)
    groups = answer_groups(trajectories, weights, (same_answer, normalize))
    return {str(trajectories[group[0]].answer): math.fsum(weights[i] for i in group) for group in groups}


__all__ = [
    "BestOfN",
    "BordaVote",
    "ConfidenceVote",
    "HedgedBestOfN",
    "MajorityVote",
    "Medoid",
    "Normalize",
    "Oracle",
    "SameAnswer",
    "StepReduction",
    "answer_weights",
    "group_answers",
]
