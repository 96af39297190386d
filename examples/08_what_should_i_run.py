# %% [markdown]
# # What should I run?
# Given a model, a reward model and what a problem may cost: which strategy, at which width, with which vote? Forty
# problems of the embedded task, which is enough to see how it is done; [the page](../howto/planning.md) says how it
# works.

# %%
import matplotlib.pyplot as plt

import inferscale as isc
from inferscale.scaling import device, predict_cost

problems = isc.zoo.problems("dev")[:40]
policy = isc.HFGenerator(*isc.zoo.load("policy-xs"), temperature=1.0, max_new_tokens=160)
judge = isc.HFProcessRewardModel(*isc.zoo.load("prm-xs"), good_token="<good>", bad_token="<bad>", reduction="min")

# %% [markdown]
# What would it cost, before anything is run? A roofline of the strategy's own calls, here on an H200.

# %%
for strategy in (isc.RepeatedSampling(8), isc.REBASE(8)):
    cost = predict_cost(
        policy.model.config,
        strategy,
        reward=judge.model.config,
        prompt=60,
        new=70,
        step=12,
        device=device("h200"),
        batch=64,
    )
    name = type(strategy).__name__
    print(f"{name}: {cost.flops:.2e} FLOPs, {cost.bytes:.2e} bytes, {cost.rounds:.0f} forwards in a row")

# %% [markdown]
# The plan: for two budgets of a problem, with a limit of what planning itself may cost. One pool of samples stands for
# every smaller number of samples and every vote; trees are voted on in every way.

# %%
plan = isc.plan(
    problems,
    policy,
    reward_model=judge,
    budgets=[isc.Budget(flops=1e8), isc.Budget(flops=4e8)],
    most=isc.Budget(flops=3e10),
    strategies=[isc.Greedy(), isc.RepeatedSampling(8), isc.REBASE(4), isc.BeamSearch(1, 4)],
)
print(plan)

# %%
plan.plot(ax=plt.subplots(figsize=(7, 4.5))[1])
plt.show()

# %% [markdown]
# Forty problems cannot tell neighbours apart, and the plan says how many would. What it chose is run by giving the plan
# in the place of a strategy, or by these lines:

# %%
print(plan.python(isc.Budget(flops=4e8)))

# %%
results = isc.solve_batch(isc.zoo.problems("test")[:20], plan, policy, budget=isc.Budget(flops=4e8))
print(sum(bool(result.is_correct) for result in results), "of", len(results), "on other problems")
