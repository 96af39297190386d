"""What is run: policies, reward models, strategies, seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from inferscale import zoo
from inferscale.base import RewardModel, SearchStrategy
from inferscale.generators import HFGenerator
from inferscale.rewards import CheckerReward, HFProcessRewardModel, LikelihoodReward
from inferscale.strategies import DVTS, REBASE, BeamSearch, RepeatedSampling
from studies.experiments import SimulatedReward

TEMPERATURE = 1.0
SAMPLES = 64
SOFTMAX_TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0)
NOISY_AUCS = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Cell:
    """One run over all problems: its key names it in the records."""

    policy: str
    reward: str
    strategy: SearchStrategy
    seed: int

    @property
    def key(self) -> str:
        """Unique name."""
        return f"{self.policy} | {self.reward} | {self.strategy!r} | seed {self.seed}"

    @property
    def n(self) -> int:
        """Samples or leaves."""
        match self.strategy:
            case RepeatedSampling(n=n):
                return n
            case REBASE(width=width):
                return width
            case BeamSearch(beam_width=beams, branching=branching):
                return beams * branching
            case DVTS(num_subtrees=subtrees, branching=branching):
                return subtrees * branching
        raise TypeError(f"no size known for {self.strategy!r}")


def cells(policies: Sequence[str], reward: str, seeds: Sequence[int], widths: Sequence[int]) -> Iterator[Cell]:
    """The main sweep, a seed at a time; beam search and DVTS at the sizes that four divides."""
    for seed in seeds:
        for policy in policies:
            yield Cell(policy, reward, RepeatedSampling(SAMPLES), seed)
            for width in widths:
                yield Cell(policy, reward, REBASE(width), seed)
        for policy in policies:
            for width in (w for w in widths if w >= 4):
                yield Cell(policy, reward, BeamSearch(width // 4, 4), seed)
                yield Cell(policy, reward, DVTS(width // 4, 4), seed)


def sensitivity_cells(policy: str, reward: str, seeds: Sequence[int], width: int) -> Iterator[Cell]:
    """REBASE against T_b, and against the quality of a noisy checker."""
    for seed in seeds:
        for temperature in SOFTMAX_TEMPERATURES:
            yield Cell(policy, reward, REBASE(width, temperature), seed)
        for auc in NOISY_AUCS:
            yield Cell(policy, f"simulated-{auc}", REBASE(width), seed)
            yield Cell(policy, f"simulated-{auc}", RepeatedSampling(width), seed)


@lru_cache(maxsize=4)
def generator(policy: str) -> HFGenerator:
    """The policy, sampling at the study's temperature."""
    return HFGenerator(*zoo.load(policy), temperature=TEMPERATURE, max_new_tokens=160, micro_batch=256)


@lru_cache(maxsize=4)
def reward_model(name: str) -> RewardModel:
    """A reward model by name: an embedded one, ``likelihood[:POLICY]``, ``checker`` or ``simulated-AUC``."""
    if name == "checker":
        return CheckerReward()
    if name.startswith("likelihood"):
        # Steps are read as they were sampled: no policy writes a separator after the answer.
        parts = zoo.load(name.removeprefix("likelihood").removeprefix(":") or "policy-m")
        return LikelihoodReward(*parts, token_reduction="min", reduction="min", use_token_ids=True, step_separator=None)
    if name.startswith("simulated-"):
        return SimulatedReward(float(name.removeprefix("simulated-")))
    return HFProcessRewardModel(*zoo.load(name), good_token="<good>", bad_token="<bad>", reduction="min")
