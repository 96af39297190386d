"""Inference-time scaling of language models: search, voting and exact compute accounting on plain transformers.

Names load when they are first used, so that ``import inferscale`` does not import torch.

Example:
    >>> import inferscale as isc
    >>> policy = isc.HFGenerator(*isc.zoo.load("policy-xs"), max_new_tokens=16)  # or your model and tokenizer
    >>> judge = isc.HFProcessRewardModel(*isc.zoo.load("prm-xs"), good_token="<good>", bad_token="<bad>")
    >>> result = isc.solve("Tom has 3 apples and buys 4. How many?", isc.REBASE(4), policy, reward_model=judge)
    >>> len(result.trajectories), result.cost.flops > 0  # and result.answer
    (4, True)
"""

from typing import TYPE_CHECKING

from ._compat import late_names

if TYPE_CHECKING:
    from . import answers, evaluate, flops, functional, quiet_star, rewards, scaling, strategies, testing, viz, zoo
    from .aggregators import (
        BestOfN,
        BordaVote,
        ConfidenceVote,
        HedgedBestOfN,
        MajorityVote,
        Medoid,
        Oracle,
        answer_weights,
    )
    from .answers import normalize_answer, read_answer, same_answer
    from .base import Aggregator, Embedder, Generator, ProcessRewardModel, RewardModel, SearchStrategy
    from .cost import Budget, Cost, Price
    from .engine import SearchResult, SearchUpdate, Solver, asolve, solve, solve_batch, stream
    from .flops import FlopCounter, estimate_flops
    from .flow import Flow, GenerateRequest, answer, ask, embed, expand, gather, limit, replies, score
    from .generators import HFGenerator, OpenAIGenerator, RemoteError, VLLMGenerator
    from .rewards import (
        CheckerReward,
        HFOutcomeRewardModel,
        HFProcessRewardModel,
        LikelihoodReward,
        RewardFunction,
        VLLMRewardModel,
    )
    from .scaling import Plan, plan
    from .strategies import DVTS, MCTS, REBASE, BeamSearch, Greedy, ParticleFilter, RepeatedSampling
    from .thinking import Thinking
    from .tree import Node, Problem, Step, Trajectory, UnscoredNodeError
    from .viz import render_tree

_MODULES = (
    *("answers", "evaluate", "flops", "functional", "quiet_star"),
    *("rewards", "scaling", "strategies", "testing", "viz", "zoo"),
)
_NAMES = {
    "aggregators": (
        *("BestOfN", "BordaVote", "ConfidenceVote", "HedgedBestOfN", "MajorityVote", "Medoid", "Oracle"),
        "answer_weights",
    ),
    "answers": ("normalize_answer", "read_answer", "same_answer"),
    "base": ("Aggregator", "Embedder", "Generator", "ProcessRewardModel", "RewardModel", "SearchStrategy"),
    "cost": ("Budget", "Cost", "Price"),
    "engine": ("SearchResult", "SearchUpdate", "Solver", "asolve", "solve", "solve_batch", "stream"),
    "flops": ("FlopCounter", "estimate_flops"),
    "flow": ("Flow", "GenerateRequest", "answer", "ask", "embed", "expand", "gather", "limit", "replies", "score"),
    "generators": ("HFGenerator", "OpenAIGenerator", "RemoteError", "VLLMGenerator"),
    "viz": ("render_tree",),
    "rewards": (
        *("CheckerReward", "HFOutcomeRewardModel", "HFProcessRewardModel", "LikelihoodReward", "RewardFunction"),
        "VLLMRewardModel",
    ),
    "scaling": ("Plan", "plan"),
    "strategies": ("BeamSearch", "DVTS", "Greedy", "MCTS", "ParticleFilter", "REBASE", "RepeatedSampling"),
    "thinking": ("Thinking",),
    "tree": ("Node", "Problem", "Step", "Trajectory", "UnscoredNodeError"),
}
_HOME = {name: f".{module}" for module, names in _NAMES.items() for name in names}
_HOME |= {name: f".{name}" for name in _MODULES}

__version__ = "0.2.0"
__all__ = [
    "Aggregator",
    "BeamSearch",
    "BestOfN",
    "BordaVote",
    "Budget",
    "CheckerReward",
    "ConfidenceVote",
    "Cost",
    "DVTS",
    "Embedder",
    "FlopCounter",
    "Flow",
    "GenerateRequest",
    "Generator",
    "Greedy",
    "HFGenerator",
    "HFOutcomeRewardModel",
    "HFProcessRewardModel",
    "HedgedBestOfN",
    "LikelihoodReward",
    "MCTS",
    "MajorityVote",
    "Medoid",
    "Node",
    "OpenAIGenerator",
    "Oracle",
    "ParticleFilter",
    "Plan",
    "Price",
    "Problem",
    "ProcessRewardModel",
    "REBASE",
    "RemoteError",
    "RepeatedSampling",
    "RewardFunction",
    "RewardModel",
    "SearchResult",
    "SearchStrategy",
    "SearchUpdate",
    "Solver",
    "Step",
    "Thinking",
    "Trajectory",
    "UnscoredNodeError",
    "VLLMGenerator",
    "VLLMRewardModel",
    "answer",
    "answer_weights",
    "answers",
    "ask",
    "asolve",
    "embed",
    "estimate_flops",
    "evaluate",
    "expand",
    "flops",
    "functional",
    "gather",
    "limit",
    "normalize_answer",
    "plan",
    "quiet_star",
    "read_answer",
    "render_tree",
    "replies",
    "rewards",
    "same_answer",
    "scaling",
    "score",
    "solve",
    "solve_batch",
    "strategies",
    "stream",
    "testing",
    "viz",
    "zoo",
]


__getattr__ = late_names(__name__, _HOME)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
