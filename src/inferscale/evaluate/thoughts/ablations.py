"""One thing changed at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from inferscale.aggregators import BordaVote
from inferscale.quiet_star import EveryToken, HighEntropy, Never, StepStarts, ThoughtUtility, WithThoughts

from .released import PRESETS, REPAIRS, STEP_TOKENS, CuedVotes
from .row import StudyRow
from .study import ThoughtStudy


def rules(study: ThoughtStudy) -> Iterator[StudyRow]:
    """From the published rules of REBASE-6 to the corrected ones, one more mended in every row; both models."""
    published = replace(study, rules=PRESETS["published"])
    for thinks, kind in ((False, "base"), (True, "Quiet-STaR")):
        yield published.measure(f"{kind}, majority of {study.votes}", CuedVotes(study.votes), thinks)
        mended = published
        for name, repair in REPAIRS:
            mended = replace(mended, rules=replace(mended.rules, **repair))
            yield mended.measure(f"{kind}, REBASE-6 {name}", mended.rebase(6), thinks)


def pruning(study: ThoughtStudy) -> Iterator[StudyRow]:
    """Softmax temperature, width and step length, with thoughts."""
    for width in study.widths:
        for temperature in (0.05, 0.2, 1.0):
            yield study.measure(f"width {width}, T_b {temperature}", study.rebase(width, temperature), True)
    for tokens in (16, STEP_TOKENS, 256):
        yield study.measure(f"steps of at most {tokens}", study.rebase(6), True, step_tokens=tokens)


def length(study: ThoughtStudy) -> Iterator[StudyRow]:
    """Tokens of a thought."""
    for tokens in (0, 1, 3, 5, 9):
        yield study.measure(f"thoughts of {tokens} tokens", study.rebase(6), True, thought_length=tokens)


def when(study: ThoughtStudy) -> Iterator[StudyRow]:
    """Before every token, at step starts, where the model is unsure, never."""
    for rule in (EveryToken(), StepStarts(), HighEntropy(0.5), Never()):
        yield study.measure(repr(rule), study.rebase(6), True, when=rule)


def reward(study: ThoughtStudy) -> Iterator[StudyRow]:
    """Steps scored without and with what thoughts add to their tokens; votes by rank, since sums can be negative."""
    utility = ThoughtUtility(study.quiet, study.tokenizer)
    for weight in (0.0, 0.5, 2.0):
        both = WithThoughts(study.reward, utility, weight)
        name = f"reward + {weight} * utility"
        yield study.measure(name, study.rebase(6), True, reward=both, aggregator=BordaVote())


ABLATIONS: dict[str, Callable[[ThoughtStudy], Iterator[StudyRow]]] = {
    function.__name__: function for function in (rules, pruning, length, when, reward)
}
"""By name; each takes a study and yields its rows."""
