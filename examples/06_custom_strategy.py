# %% [markdown]
# # Your own strategy
# A strategy is a frozen dataclass of hyperparameters with one generator function, `search`. It asks for samples with
# `yield from expand(...)` and for scores with `yield from score(...)`; it never touches a model. Batching over
# problems, budgets, costs, journals and seeds come from the engine.

# %%
import random
from dataclasses import dataclass
from typing import ClassVar

import inferscale as isc
from inferscale.flow import Generate
from inferscale.testing import check_strategy


@dataclass(frozen=True)
class SuccessiveHalving(isc.SearchStrategy):
    """Samples `width` first steps; after every step only the better half goes on."""

    width: int = 16
    needs_scores: ClassVar[bool] = True

    def search(self, root: isc.Node, rng: random.Random) -> isc.Flow[list[isc.Node]]:
        nodes, count = [root], self.width
        while nodes:
            nodes = yield from isc.expand(nodes, count)
            yield from isc.score(nodes)
            ranked = sorted(nodes, key=lambda node: -node.score)[: (len(nodes) + 1) // 2]
            nodes, count = [node for node in ranked if not node.is_finished], 1
        return root.leaves()


# %% [markdown]
# Does it keep the promises that every strategy makes? The same seed gives the same tree, alone and in any batch; any
# budget stops it with the best so far; it survives generators that fail; killed, it goes on from its journal.

# %%
check_strategy(SuccessiveHalving(width=4))

# %% [markdown]
# By hand: `next` is ask and `send` is tell, so a strategy is tested without any model.

# %%
root = isc.Node(isc.Problem("2 + 3 = ?"))
flow = SuccessiveHalving(width=2).search(root, random.Random(0))
request = next(flow)
assert isinstance(request, Generate)
print(request.requests[0].n, "samples of", request.requests[0].node)

# %% [markdown]
# With the embedded policy, beside REBASE. The reward is the exact checker of the task: an oracle.

# %%
model, tokenizer = isc.zoo.load("policy-s")
generator = isc.HFGenerator(model, tokenizer, temperature=0.8, max_new_tokens=160)
problems = isc.zoo.problems("test")[:20]
for strategy in (SuccessiveHalving(16), isc.REBASE(width=8)):
    results = isc.solve_batch(problems, strategy, generator, reward_model=isc.CheckerReward())
    right = sum(bool(r.is_correct) for r in results)
    print(f"{right} of {len(results)} right, {sum(r.cost.tokens for r in results):,} tokens  {strategy}")

# %% [markdown]
# The last tree. A dozen lines more would make it a strategy of the library: see `inferscale/strategies/levels.py`.

# %%
print(isc.render_tree(results[0].root, max_text=40))
