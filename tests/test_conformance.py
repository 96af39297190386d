"""Every strategy of the package keeps the promises of `inferscale.testing.check_strategy`."""

import importlib
import pkgutil
from dataclasses import dataclass

import pytest

import inferscale.strategies
from inferscale.base import SearchStrategy
from inferscale.engine import SearchResult, solve
from inferscale.flow import expand, score
from inferscale.strategies import (
    ABMCTS,
    DEER,
    DORA,
    DVTS,
    ETS,
    MCTS,
    REBASE,
    AdaptiveConsistency,
    BeamSearch,
    BestFirst,
    BudgetForcing,
    Compare,
    ComputeOptimal,
    DeepConf,
    DepthFirst,
    Dynasor,
    EarlyStoppingConsistency,
    Fallback,
    GenSelect,
    Limited,
    MultiTemperature,
    NoThinking,
    ParallelSequential,
    ParticleFilter,
    ParticleGibbs,
    PowerMH,
    PowerSMC,
    RepeatedSampling,
    Restart,
    SelfRefine,
    ShortMofK,
    SpeculativeRejection,
    StepwiseGreedy,
    Then,
    Tournament,
    registry,
)
from inferscale.testing import ToyGenerator, ToyReward, check_strategy

STRATEGIES = [entry.make(6) for entry in registry().values()] + [
    ABMCTS(8, posterior="beta", num_parallel=3),
    ABMCTS(8, until="step", num_parallel=2),
    ABMCTS(8, posterior="mixed", num_parallel=2),
    AdaptiveConsistency(8, rule="dirichlet", num_parallel=3),
    BeamSearch(1, 2, lookahead=2),
    BeamSearch(2, 3, filter_duplicates=True),
    BeamSearch(2, 2, lookahead=1, granularity=2),
    BestFirst(6, 2, num_parallel=3, max_finished=1),
    BudgetForcing(9, num_waits=1),
    BudgetForcing(None, num_waits=1, n=2, max_depth=8),
    Compare(REBASE(4), 2),
    ComputeOptimal((RepeatedSampling(2), MCTS(4), REBASE(4)), (0.4, 0.6), num_probes=3),
    ComputeOptimal((RepeatedSampling(2), BeamSearch(1, 2)), (0.5,), num_probes=3, measure="agreement"),
    DEER(0.2, switches=(), n=2),
    DEER(0.2, switches=tuple("abcdefghijkl"), n=2),
    DORA(6, granularity=2),
    DVTS(2, 2, granularity=3),
    DeepConf(3, 8, keep=0.5, window=4, num_parallel=2),
    DepthFirst(6, 2, threshold=0.3, max_finished=None),
    Dynasor(3, 1, n=2),
    ETS(6, cost_weight=0.2, max_distance=0.7, granularity=2),
    EarlyStoppingConsistency(2, 7),
    Fallback(BeamSearch(1, 2, max_depth=2), MCTS(6)),
    GenSelect(BeamSearch(2, 2), 2, 2),
    Limited(ParticleFilter(4), 9),
    MCTS.paper(32),
    MCTS(6, selection="puct", prior="logprob", noise=0.25),
    MCTS(6, selection="gumbel", num_parallel=2),
    MCTS(6, evaluate="rollout"),
    MCTS(6, evaluate="mix", num_parallel=3),
    MCTS(12, widening=0.5, num_parallel=4),
    MultiTemperature(7, (0.5, 1.5), 1, None),
    ParticleFilter(4, 1.0, "residual", tempering="ess"),
    ParticleFilter(4, resampling="multinomial", weighting="its_hub"),
    ParticleFilter(4, resampling="stratified", weighting="paper"),
    ParticleFilter(4, 1.0, twist=0.5),
    ParticleGibbs(3, 2),
    PowerMH(2, 2.0, num_moves=3, block=2),
    PowerSMC(5, 2.0, bridge_depth=2, resampling="multinomial"),
    NoThinking(2, thought=" "),
    ParallelSequential(2, 2, best_of_chain=True),
    REBASE(6, truncate_ratio=0.5),
    REBASE(6, granularity=2),
    Restart(BeamSearch(1, 2, max_depth=3), 3),
    SelfRefine(2, n=2),
    ShortMofK(2, 5),
    SpeculativeRejection(6, 0.4, 12),
    StepwiseGreedy(3, granularity=2),
    Tournament(RepeatedSampling(5), "league", 3),
    Tournament(RepeatedSampling(4), judge="likelihood"),
    Tournament(RepeatedSampling(4), judge="score"),
    Then(ParticleFilter(3, max_depth=2), ParticleFilter(2)),
]


VARIANTS = len(registry())  # those behind one of each, which other files run in the slow suite
ONE_OF_EACH = [*STRATEGIES[:VARIANTS], *(pytest.param(each, marks=pytest.mark.slow) for each in STRATEGIES[VARIANTS:])]


def returns_particles(strategy):
    return "Particle" in repr(strategy) or "Power" in repr(strategy)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_its_result_survives_the_disk_and_no_leaf_votes_twice(strategy, tmp_path):
    result = solve("How many?", strategy, ToyGenerator(), reward_model=ToyReward())
    assert SearchResult.load(result.save(tmp_path / "result.json")).to_dict() == result.to_dict()
    assert returns_particles(strategy) or len(set(result.leaves)) == len(result.leaves)
    assert all(leaf.is_scored for leaf in result.leaves)
    assert not any(child for leaf in result.leaves for child in leaf.children)


def all_subclasses(kind):
    return {kind} | {found for child in kind.__subclasses__() for found in all_subclasses(child)}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_it_keeps_every_promise(strategy):
    check_strategy(strategy)


def test_a_strategy_that_reads_scores_must_say_so():
    @dataclass(frozen=True)
    class Silent(RepeatedSampling):
        def search(self, root, rng):
            leaves = yield from expand([root], self.n, until="end")
            yield from score(leaves)
            return leaves[:1]

    with pytest.raises(AssertionError, match="needs scores, and its needs_scores says that it does not"):
        check_strategy(Silent(2))


def ours():
    """Every strategy class that the package has; what several are built on (``_Name``) is none."""
    for module in pkgutil.iter_modules(inferscale.strategies.__path__, "inferscale.strategies."):
        importlib.import_module(module.name)
    found = {kind for kind in all_subclasses(SearchStrategy) if kind.__module__.startswith("inferscale.strategies.")}
    return {kind for kind in found if not kind.__name__.startswith("_")}


def test_the_registry_holds_every_strategy_under_a_name_and_in_any_size():
    entries = registry()
    assert {entry.cls for entry in entries.values()} == ours() - {inferscale.strategies.Recorded}  # it has no size
    assert [entry.name for entry in entries.values()] == list(entries)
    assert all(type(entry.make(n)) is entry.cls for entry in entries.values() for n in (1, 2, 3, 4, 16, 64))


def test_the_public_strategies_are_sorted_and_all_there():
    public = inferscale.strategies.__all__
    assert public == sorted(public)
    assert {entry.cls.__name__ for entry in registry().values()} <= set(public)


def test_equal_strategies_are_equal_and_can_be_keys():
    for strategy in STRATEGIES:
        assert hash(strategy) == hash(strategy)
        assert " at 0x" not in repr(strategy)
