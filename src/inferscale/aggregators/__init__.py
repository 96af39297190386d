"""Which of the trajectories that a search returned is reported.

All votes follow one rule. A trajectory without an answer abstains: it is picked only when all abstain. Answers are
grouped in order of appearance; the group with the greatest weight wins, equal ones go to the greater sum of scores,
then to the earliest; of the group the best-scored member is reported, the earliest on ties.
"""

from ._aggregators import BestOfN, MajorityVote, Oracle, answer_weights
from ._ranked import BordaVote, ConfidenceVote
from ._voting import Normalize, SameAnswer, StepReduction, group_answers

__all__ = [
    "BestOfN",
    "BordaVote",
    "ConfidenceVote",
    "MajorityVote",
    "Normalize",
    "Oracle",
    "SameAnswer",
    "StepReduction",
    "answer_weights",
    "group_answers",
]
