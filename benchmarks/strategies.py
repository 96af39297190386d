"""Every strategy at three equal budgets of total FLOPs on the embedded test problems.

Run with ``python -m benchmarks.strategies``. A budget is what so many plain samples cost, reward included. Each
strategy has one size (width, simulations, particles, ...), which is chosen so that its mean total FLOPs should meet
the budget: from what it spent on development problems, then from what it spent at the budget before. The table shows
what it really spent, and the most bytes that keys and values of a problem's tree take at one level. Standard errors are
over problems; ``--against "REBASE"`` adds differences to that row, paired by problem. ``--judge simulated`` is no
trained model: it is the exact label with noise of the AUC given, charged as one forward of the policy over every token
that it reads.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from inferscale import zoo
from inferscale.aggregators import BestOfN, BordaVote, ConfidenceVote, MajorityVote
from inferscale.base import Aggregator, Generator, ProcessRewardModel, RewardModel, SearchStrategy
from inferscale.cost import Cost
from inferscale.engine import SearchResult, solve_batch
from inferscale.functional import ngram_embeddings
from inferscale.generators import HFGenerator
from inferscale.rewards import HFProcessRewardModel
from inferscale.strategies import REBASE, ComputeOptimal, RepeatedSampling, SelfRefine, registry
from inferscale.thinking import Thinking
from inferscale.tree import Node, Problem

MAX_SIZE = 512


@dataclass(frozen=True)
class Family:
    """A strategy of any size, and the votes over what it returns.

    Attributes:
        make: The strategy of a size.
        votes: Names and aggregators; all read the same search.
        smallest: The least size that makes sense.
        judged: Whether votes read scores; otherwise the reward model is left out and not charged.
        unit: Sizes above it are multiples of it.
        thinking: What ends the thoughts of the search, where they end with something else than usual.
    """

    make: Callable[[int], SearchStrategy]
    votes: Sequence[tuple[str, Aggregator]]
    smallest: int = 1
    judged: bool = True
    unit: int = 1
    thinking: Thinking | None = None


def named(name: str, **options: Any) -> Callable[[int], SearchStrategy]:
    """A strategy of the registry, in any size, with options of its own."""
    return lambda n: cast(SearchStrategy, replace(cast(Any, registry()[name].make(n)), **options))


class NGrams:
    """What texts have in common is their character n-grams."""

    embed = staticmethod(ngram_embeddings)


WEIGHTED, MAJORITY = MajorityVote(weighted=True), MajorityVote()


def families() -> list[Family]:
    """The table's rows, in order."""
    answer = zoo.task.ANSWER_PREFIX.strip()
    return [
        Family(named("sampling"), [("sampling, majority", MAJORITY)], judged=False),
        Family(
            named("sampling"),
            [("sampling, weighted", WEIGHTED), ("sampling, best of n", BestOfN()), ("sampling, Borda", BordaVote())],
        ),
        Family(named("adaptive-consistency", num_parallel=4), [("adaptive consistency", MAJORITY)], 4, judged=False),
        Family(named("early-stopping", window=4), [("early stopping", MAJORITY)], 4, judged=False),
        Family(named("multi-temperature"), [("multi-temperature", MAJORITY)], 4, judged=False),
        Family(
            named("deepconf", window=16, num_parallel=8),
            [("DeepConf, majority", MAJORITY), ("DeepConf, confidence", ConfidenceVote(reduction="min"))],
            4,
            judged=False,
        ),
        Family(named("beam"), [("beam search", WEIGHTED)], unit=4),
        Family(named("beam", lookahead=1), [("beam search, look-ahead 1", WEIGHTED)], unit=4),
        Family(named("dvts"), [("DVTS", WEIGHTED)], unit=4),
        Family(named("rebase"), [("REBASE", WEIGHTED), ("REBASE, best of n", BestOfN())]),
        Family(named("rebase", granularity=2), [("REBASE, granularity 2", WEIGHTED)]),
        Family(named("beam", granularity=2), [("beam search, granularity 2", WEIGHTED)], unit=4),
        Family(named("dora"), [("DORA", WEIGHTED)]),
        Family(named("dora", embedder=NGrams()), [("DORA, n-grams", WEIGHTED)]),
        Family(named("ets"), [("ETS", WEIGHTED)]),
        Family(named("ets", embedder=NGrams()), [("ETS, n-grams", WEIGHTED)]),
        Family(named("speculative-rejection"), [("speculative rejection", BestOfN())]),
        Family(named("stepwise"), [("step-wise greedy", WEIGHTED)]),
        Family(named("best-first"), [("best first", WEIGHTED)]),
        Family(named("depth-first", branching=2, max_finished=None), [("depth first", WEIGHTED)]),
        Family(named("mcts"), [("MCTS (paper's rule)", WEIGHTED)]),
        Family(named("mcts", c_uct=0.1), [("MCTS, C = 0.1", WEIGHTED)]),
        Family(named("mcts", evaluate="rollout"), [("MCTS, roll-outs", WEIGHTED)]),
        Family(named("mcts", selection="puct"), [("MCTS, PUCT", WEIGHTED)]),
        Family(named("mcts", selection="gumbel"), [("MCTS, Gumbel root", WEIGHTED)]),
        Family(named("mcts", widening=0.5, c_uct=0.1), [("MCTS, widening, C = 0.1", WEIGHTED)]),
        Family(named("ab-mcts", num_parallel=4), [("AB-MCTS", WEIGHTED)]),
        Family(named("ab-mcts", num_parallel=4, posterior="mixed"), [("AB-MCTS, variant M", WEIGHTED)]),
        Family(named("ab-mcts", until="step", num_parallel=4), [("AB-MCTS over steps", WEIGHTED)]),
        Family(named("particle-filter"), [("particle filter", MAJORITY)]),
        Family(
            named("particle-filter", resampling="multinomial", weighting="its_hub"),
            [("particle filter, its_hub", MAJORITY)],
        ),
        Family(named("particle-filter", twist=0.5), [("particle filter, twist 0.5", MAJORITY)]),
        Family(named("power-smc", alpha=2.0, bridge_depth=4), [("power SMC, alpha 2", MAJORITY)], judged=False),
        Family(named("power-mh", alpha=2.0), [("power MH, alpha 2", MAJORITY)], judged=False),
        Family(named("particle-gibbs"), [("particle Gibbs", MAJORITY)], 8),
        Family(lambda n: SelfRefine(1, n=n), [("self-refine", WEIGHTED)]),
        Family(named("parallel-sequential"), [("parallel x sequential", WEIGHTED)]),
        Family(
            named("budget-forcing", max_thinking_tokens=None, wait=""),
            [("budget forcing", MAJORITY)],
            judged=False,
            thinking=Thinking("", answer),
        ),
        Family(named("short-m-of-k"), [("short-m@k", MAJORITY)], 3, judged=False, thinking=Thinking("", answer)),
        Family(
            named("deer", switches=(), inducer=answer, stop="", greedy=False),
            [("DEER", MAJORITY)],
            judged=False,
            thinking=Thinking("", answer),
        ),
        Family(
            named("dynasor", interval=16, patience=2, inducer=answer, stop=""),
            [("Dynasor", MAJORITY)],
            judged=False,
            thinking=Thinking("", answer),
        ),
        Family(
            lambda n: ComputeOptimal(
                (RepeatedSampling(max(1, n // 4)), REBASE(n), REBASE(2 * n)), (0.2, 0.5), max(1, n // 4)
            ),
            [("by difficulty, REBASE(n/4, n, 2n)", WEIGHTED)],
        ),
    ]


class SimulatedJudge(ProcessRewardModel):
    """The exact label with noise; charged as one forward of the policy."""

    def __init__(self, auc: float, parameters: int) -> None:
        self.auc, self.parameters = auc, parameters

    def step_scores(self, nodes: Sequence[Node]) -> list[list[float]]:
        """One score for each inner step."""
        return [self._scores(node) for node in nodes]

    def _scores(self, node: Node) -> list[float]:
        prompt, prefix, scores = node.problem.prompt, "", list[float]()
        for text, _ in node.inner_steps():
            prefix += text
            right = all(zoo.task.step_labels(prompt, prefix))
            scores.append(zoo.simulated_score(prompt + prefix, right, self.auc))
        return scores

    def cost(self, nodes: Sequence[Node]) -> list[Cost]:
        """The tokens of the last step, and the prompt's with the first child of a root."""
        return [self._cost(node) for node in nodes]

    def _cost(self, node: Node) -> Cost:
        first = node.parent is not None and node.parent.parent is None and node.parent.children[0] is node
        tokens = (len(node.step.token_ids) if node.step else 0) + (len(node.problem.prompt.split()) if first else 0)
        return Cost(scored_tokens=tokens, reward_flops=2 * self.parameters * tokens)


def judge(name: str, auc: float, policy: str) -> RewardModel:
    """The reward model of the run."""
    if name == "simulated":
        return SimulatedJudge(auc, zoo.card(policy).parameters)
    model, tokenizer = zoo.load(name)
    return HFProcessRewardModel(model, tokenizer, good_token="<good>", bad_token="<bad>", reduction="min")


def mean_flops(results: Sequence[SearchResult]) -> float:
    """Mean total FLOPs of a problem."""
    return sum(result.cost.flops for result in results) / len(results)


def resized(family: Family, size: int, spent: float, budget: float) -> int:
    """The size that would spend the budget if cost grew in proportion to it."""
    wanted = min(MAX_SIZE, max(family.smallest, round(size * budget / spent)))
    return wanted if wanted < family.unit else wanted - wanted % family.unit


def run(
    family: Family, size: int, problems: Sequence[Problem], generator: Generator, reward: RewardModel
) -> list[SearchResult]:
    """All problems searched with a family's strategy of one size."""
    strategy = family.make(size)
    scored = reward if family.judged or strategy.needs_scores else None
    return solve_batch(
        problems, strategy, generator, reward_model=scored, aggregator=family.votes[0][1], thinking=family.thinking
    )


def kv_tokens(result: SearchResult) -> int:
    """The most tokens whose keys and values one level of the tree needs: its nodes and all that they stand on."""
    held: dict[int, set[Node]] = {}
    for node in result.root.walk():
        held.setdefault(node.depth, set()).update(node.path)
    return max(sum(step.generated_tokens for node in nodes if (step := node.step)) for nodes in held.values())


def correct(results: Sequence[SearchResult], aggregator: Aggregator) -> list[bool]:
    """Whether each problem was answered rightly."""
    return [bool(result.reaggregate(aggregator).is_correct) for result in results]


def cell(results: Sequence[SearchResult], aggregator: Aggregator, budget: float, kv_bytes: int) -> str:
    """Accuracy in percent, its standard error over problems, the share of the budget spent, and kilobytes of cache."""
    right = correct(results, aggregator)
    accuracy = sum(right) / len(right)
    error = math.sqrt(accuracy * (1 - accuracy) / max(1, len(right) - 1))
    cached = kv_bytes * sum(map(kv_tokens, results)) / len(results) / 1000
    return f"{100 * accuracy:5.1f} ± {100 * error:3.1f} ({mean_flops(results) / budget:4.2f}, {cached:4.0f} kB)"


def difference(right: Sequence[bool], base: Sequence[bool]) -> str:
    """The mean difference to another row in percent, and its standard error over the same problems."""
    gains = [int(a) - int(b) for a, b in zip(right, base, strict=True)]
    mean = sum(gains) / len(gains)
    error = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / max(1, len(gains) - 1) / len(gains))
    return f"{100 * mean:+5.1f} ± {100 * error:3.1f}"


def main() -> None:
    """Prints the table, row by row as they are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=500, help="test problems, at most 500")
    parser.add_argument("--dev", type=int, default=20, help="development problems that sizes are chosen on")
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 4, 8], help="budgets, in plain samples")
    parser.add_argument("--policy", default="policy-s")
    parser.add_argument("--judge", default="prm-s", help="the name of an embedded reward model, or 'simulated'")
    parser.add_argument("--auc", type=float, default=0.9, help="of the simulated judge")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name holds one of these texts")
    parser.add_argument("--against", help="also print differences to the row of this name, paired by problem")
    options = parser.parse_args()
    started = time.perf_counter()
    model, tokenizer = zoo.load(options.policy)
    generator = HFGenerator(
        model, tokenizer, temperature=options.temperature, max_new_tokens=160, confidence="deepconf", micro_batch=256
    )
    reward = judge(options.judge, options.auc, options.policy)
    test = random.Random(0).sample(zoo.problems("test"), options.problems)
    dev = random.Random(0).sample(zoo.problems("dev"), options.dev)
    plain = mean_flops(run(Family(RepeatedSampling, [("", WEIGHTED)]), 8, dev, generator, reward)) / 8
    budgets = [plain * samples for samples in options.samples]
    print(f"{len(test)} test problems, policy {options.policy}, judge {options.judge}, T {options.temperature}")
    print(
        "accuracy in % ± standard error (share of the budget spent, most bytes of keys and values); "
        f"one sample is {plain:.3g} FLOPs, reward included"
    )
    print(f"{'':36}" + "".join(f"{f'{samples} samples':>31}" for samples in options.samples))
    outcomes = dict[str, list[list[bool]]]()
    config: Any = model.config
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    kv_bytes = 2 * config.num_hidden_layers * heads * torch.finfo(model.dtype).bits // 8  # of one token
    for family in families():
        if not any(text in name for name, _ in family.votes for text in options.only):
            continue
        size = max(family.smallest, 8)
        spent = mean_flops(run(family, size, dev, generator, reward))
        rows = list[list[SearchResult]]()
        for budget in budgets:
            size = resized(family, size, spent, budget)
            rows.append(run(family, size, test, generator, reward))
            spent = mean_flops(rows[-1])
        for name, aggregator in family.votes:
            cells = (cell(results, aggregator, budget, kv_bytes) for results, budget in zip(rows, budgets, strict=True))
            print(f"{name:36}" + "".join(f"{text:>31}" for text in cells), flush=True)
            outcomes[name] = [correct(results, aggregator) for results in rows]
    if options.against:
        print(f"difference to {options.against}, paired by problem")
        for name, rights in outcomes.items():
            pairs = zip(rights, outcomes[options.against], strict=True)
            print(f"{name:36}" + "".join(f"{difference(*pair):>31}" for pair in pairs))
    print(f"{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
