"""One readable search tree for each strategy; ``INFERSCALE_GOLDEN=write`` writes them anew."""

import os
from pathlib import Path

import pytest

from inferscale.base import SearchStrategy
from inferscale.engine import solve
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
    Greedy,
    Limited,
    MultiTemperature,
    NoThinking,
    ParallelSequential,
    ParticleFilter,
    ParticleGibbs,
    PowerMH,
    PowerSMC,
    RecursiveAggregation,
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
from inferscale.testing import ToyGenerator, ToyReward
from inferscale.viz import render_tree

FOLDER = Path(__file__).parent / "golden"

STRATEGIES: dict[str, SearchStrategy] = {
    "abmcts": ABMCTS(6, instruction=" Again: "),
    "abmcts_steps": ABMCTS(10, until="step"),
    "abmcts_mixed": ABMCTS(6, posterior="mixed", instruction=" Again: "),
    "adaptive_consistency": AdaptiveConsistency(8),
    "beam_search": BeamSearch(2, 2),
    "beam_search_granularity": BeamSearch(2, 2, granularity=2),
    "beam_search_lookahead": BeamSearch(1, 3, lookahead=1),
    "best_first": BestFirst(6, 2),
    "budget_forcing": BudgetForcing(12, num_waits=1, wait=" Wait ", final=" The answer is "),
    "compare": Compare(RepeatedSampling(3), 2, template="{problem} Mend {solutions}"),
    "compute_optimal": ComputeOptimal((RepeatedSampling(1), BeamSearch(1, 3)), (0.3,), num_probes=2),
    "deer": DEER(0.3, switches=(), inducer=" so ", stop=""),
    "deepconf": DeepConf(3, 6, keep=0.5, window=4, num_parallel=3),
    "depth_first": DepthFirst(6, 2, threshold=0.4),
    "dora": DORA(6, similarity_temperature=0.2),
    "dvts": DVTS(2, 2),
    "dynasor": Dynasor(4, 1, inducer=" so ", stop=""),
    "early_stopping": EarlyStoppingConsistency(2, 6),
    "ets": ETS(6, 0.3, max_distance=0.6),
    "fallback": Fallback(BeamSearch(1, 2, max_depth=2), RepeatedSampling(2)),
    "gen_select": GenSelect(RepeatedSampling(5), 3, 2, template="{problem} Which of {n}? {solutions}"),
    "greedy": Greedy(),
    "limited": Limited(REBASE(4), 9),
    "mcts": MCTS(6, root_branching=3),
    "mcts_gumbel": MCTS(6, root_branching=3, selection="gumbel"),
    "mcts_puct_rollout": MCTS(3, root_branching=3, selection="puct", prior="logprob", evaluate="rollout"),
    "mcts_widening": MCTS(12, widening=0.5),
    "multi_temperature": MultiTemperature(8, (0.5, 1.5), 1, 0.6),
    "no_thinking": NoThinking(2),
    "parallel_sequential": ParallelSequential(2, 2, instruction=" Again: "),
    "particle_filter": ParticleFilter(4),
    "particle_gibbs": ParticleGibbs(3, 2),
    "power_mh": PowerMH(1, 2.0, num_moves=1, block=2),
    "power_smc": PowerSMC(4, 2.0, bridge_depth=2),
    "rebase": REBASE(6),
    "recursive_aggregation": RecursiveAggregation(3, 2, 3, template="{problem} Mend {solutions}"),
    "repeated_sampling": RepeatedSampling(3),
    "restart": Restart(BeamSearch(1, 2, max_depth=3), 2),
    "self_refine": SelfRefine(1, feedback=" Feedback: ", revise=" Again: "),
    "short_m_of_k": ShortMofK(2, 4),
    "speculative_rejection": SpeculativeRejection(6, max_live_tokens=20),
    "stepwise_greedy": StepwiseGreedy(3),
    "tournament": Tournament(RepeatedSampling(5), template="{problem} A or B? {solutions}"),
    "then": Then(REBASE(3, max_depth=2), RepeatedSampling(2)),
}


def picture(strategy):
    result = solve("How many?", strategy, ToyGenerator(), reward_model=ToyReward(), thinking=False)
    selected = result.leaves[result.trajectories.index(result.selected)]
    return (
        f"{strategy!r}\nanswer {result.answer} of {len(result.leaves)} leaves, "
        f"{result.cost.num_generated} samples, {result.cost.tokens} tokens\n\n"
        f"{render_tree(result.root, selected, max_text=100)}\n"
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_tree_is_as_it_was(name):
    path, drawn = FOLDER / f"{name}.txt", picture(STRATEGIES[name])
    if os.environ.get("INFERSCALE_GOLDEN") == "write":
        path.write_text(drawn, encoding="utf-8")
    assert drawn == path.read_text(encoding="utf-8"), (
        f"the tree of {name} has changed; if it should, run with INFERSCALE_GOLDEN=write and look at the difference"
    )


def test_every_strategy_has_a_tree_and_every_file_a_strategy():
    assert {type(strategy) for strategy in STRATEGIES.values()} == {entry.cls for entry in registry().values()}
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(STRATEGIES)
