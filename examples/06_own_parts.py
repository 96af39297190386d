# %% [markdown]
# # Your own strategy and your own reward
# Both are a few lines, and checked before any model runs. For your own model change the line `generator = ...`.

# %%
import re
from dataclasses import dataclass
from typing import ClassVar

import inferscale as isc
from inferscale.testing import check_reward_model, check_strategy


@dataclass(frozen=True)
class SuccessiveHalving(isc.SearchStrategy):
    """Samples `width` first steps; after every step only the better half goes on."""

    width: int = 16
    needs_scores: ClassVar[bool] = True

    def search(self, root, rng):
        nodes, count = [root], self.width
        while nodes:
            nodes = yield from isc.expand(nodes, count)
            yield from isc.score(nodes)
            ranked = sorted(nodes, key=lambda node: -node.score)[: (len(nodes) + 1) // 2]
            nodes, count = [node for node in ranked if not node.is_finished], 1
        return root.leaves()


check_strategy(SuccessiveHalving(width=4))

# %% [markdown]
# A reward is any function of nodes; this one looks whether the arithmetic of every line is right.

# %%
SUM = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def right_sums(nodes):
    return [min((is_right(*found) for found in SUM.findall(node.text)), default=0.5) for node in nodes]


def is_right(left, operator, right, result):
    a, b, c = int(left), int(right), int(result)
    return float({"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b * c == a}[operator])


reward = isc.RewardFunction(right_sums)
check_reward_model(reward)

# %%
generator = isc.HFGenerator(*isc.zoo.load("policy-s"), temperature=0.8, max_new_tokens=160)
problems = isc.zoo.problems("test")[:20]
for strategy in (isc.RepeatedSampling(8), SuccessiveHalving(16), isc.REBASE(width=8)):
    results = isc.solve_batch(problems, strategy, generator, reward_model=reward, aggregator=isc.BestOfN())
    right = sum(isc.same_answer(r.answer or "", r.problem.answer or "") for r in results)
    print(f"{right} of {len(results)} right, {sum(r.cost.tokens for r in results):,} tokens  {strategy}")
