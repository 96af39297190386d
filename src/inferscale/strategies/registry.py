"""One list of the strategies, which command lines, servers, tests and benchmarks read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inferscale.base import SearchStrategy

from .abmcts import ABMCTS
from .combinators import ComputeOptimal, Fallback, Limited, Restart, Then
from .levels import DORA, DVTS, ETS, REBASE, BeamSearch, BestFirst, DepthFirst, StepwiseGreedy
from .mcts import MCTS
from .particles import ParticleFilter, ParticleGibbs
from .revising import BudgetForcing, ParallelSequential, SelfRefine
from .sampling import (
    AdaptiveConsistency,
    DeepConf,
    EarlyStoppingConsistency,
    Greedy,
    MultiTemperature,
    RepeatedSampling,
    SpeculativeRejection,
)
from .selecting import Compare, GenSelect, RecursiveAggregation, Tournament
from .sharpening import PowerMH, PowerSMC
from .thinking import DEER, Dynasor, NoThinking, ShortMofK


@dataclass(frozen=True)
class Registered:
    """A strategy of the library, by its name on command lines; `registry` has them all.

    Attributes:
        name: Its name on command lines and in requests.
        make: The strategy of a size: about so many samples, leaves, expansions or particles.

    Example:
        >>> from inferscale.strategies import registry
        >>> beam = registry()["beam"]
        >>> beam.cls.__name__, beam.make(8).beam_width, beam.make(8).branching
        ('BeamSearch', 2, 4)
    """

    name: str
    make: Callable[[int], SearchStrategy]

    @property
    def default(self) -> SearchStrategy:
        """The strategy of size 16."""
        return self.make(16)

    @property
    def cls(self) -> type[SearchStrategy]:
        """Its class."""
        return type(self.default)


def registry() -> dict[str, Registered]:
    """Every strategy by its name on command lines and in requests to a server.

    Example:
        >>> from inferscale.strategies import registry
        >>> sorted(registry())[:4]
        ['ab-mcts', 'adaptive-consistency', 'beam', 'best-first']
        >>> registry()["rebase"].make(8)
        REBASE(width=8, softmax_temperature=0.1, max_depth=40, rounding='exact', truncate_ratio=None, granularity=1)
    """
    makers: dict[str, Callable[[int], SearchStrategy]] = {
        "greedy": lambda n: Greedy(),
        "sampling": RepeatedSampling,
        "beam": lambda n: BeamSearch(*_beams("beam", n)),
        "dvts": lambda n: DVTS(*_beams("dvts", n)),
        "rebase": REBASE,
        "dora": DORA,
        "ets": ETS,
        "stepwise": StepwiseGreedy,
        "best-first": BestFirst,
        "depth-first": DepthFirst,
        "mcts": MCTS,
        "ab-mcts": ABMCTS,
        "particle-filter": ParticleFilter,
        "particle-gibbs": lambda n: ParticleGibbs(max(2, n // 4), 4),
        "power-smc": PowerSMC,
        "power-mh": lambda n: PowerMH(max(1, n // 4), num_moves=2),
        "adaptive-consistency": AdaptiveConsistency,
        "early-stopping": lambda n: EarlyStoppingConsistency(min(5, n), n),
        "deepconf": lambda n: DeepConf(max(2, n // 4), n),
        "speculative-rejection": lambda n: SpeculativeRejection(n, max_live_tokens=16 * n),
        "multi-temperature": MultiTemperature,
        "gen-select": lambda n: GenSelect(RepeatedSampling(n)),
        "compare": lambda n: Compare(RepeatedSampling(n)),
        "tournament": lambda n: Tournament(RepeatedSampling(n)),
        "recursive-aggregation": lambda n: RecursiveAggregation(max(1, n // 4), max(1, min(4, n // 4)), 4),
        "self-refine": lambda n: SelfRefine(n=max(1, n // 4)),
        "parallel-sequential": lambda n: ParallelSequential(max(1, round(n**0.5)), max(1, round(n / round(n**0.5)))),
        "budget-forcing": lambda n: BudgetForcing(n=n),
        "short-m-of-k": lambda n: ShortMofK(max(1, n // 3), n),
        "deer": lambda n: DEER(n=n),
        "dynasor": lambda n: Dynasor(n=n),
        "no-thinking": NoThinking,
        "compute-optimal": lambda n: ComputeOptimal((RepeatedSampling(n), REBASE(n)), (0.5,)),
        "then": lambda n: Then(REBASE(n, max_depth=3), RepeatedSampling(2)),
        "fallback": lambda n: Fallback(RepeatedSampling(n), REBASE(n)),
        "restart": lambda n: Restart(REBASE(n)),
        "limited": lambda n: Limited(REBASE(n), 4 * n),
    }
    return {name: Registered(name, make) for name, make in makers.items()}


def _beams(name: str, n: int) -> tuple[int, int]:
    """Beams and the children of each, so that beams times children are `n`."""
    if n == 1:
        return 1, 1
    for children in (4, 3, 2):
        if n % children == 0:
            return n // children, children
    raise ValueError(
        f"{name} with a width of {n}: beams have 4, 3 or 2 children, which do not divide it: give another width, "
        "or the strategy in full, such as 'BeamSearch(beam_width=2, branching=4)'"
    )
