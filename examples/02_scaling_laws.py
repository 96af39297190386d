# %% [markdown]
# # Scaling laws
# The question of Wu et al. ([arXiv:2408.00724](https://arxiv.org/abs/2408.00724)): for a given amount of compute at
# answer time, which strategy and which vote? On twenty problems of the embedded task, which is enough to see how it is
# done and too little to conclude; the [scaling study](../project/scaling_study.md) has the answer on 500 problems.

# %%
import matplotlib.pyplot as plt
import numpy as np

import inferscale as isc
from inferscale.scaling import (
    cost_ratio,
    estimate_voting_limit,
    paired_difference,
    pareto_frontier,
    scaling_curve,
)
from inferscale.viz import label_lines, plot_frontier, plot_scaling, to_frame

problems = isc.zoo.problems("dev")[:20]
generator = isc.HFGenerator(*isc.zoo.load("policy-s"), temperature=1.0, max_new_tokens=160)
judge = isc.HFProcessRewardModel(*isc.zoo.load("prm-s"), good_token="<good>", bad_token="<bad>", reduction="min")

# %% [markdown]
# One run of 16 samples holds every smaller run: the estimators average over all subsets. A search is one point for each
# size that is run.

# %%
points = scaling_curve(
    problems,
    [isc.RepeatedSampling(16), isc.REBASE(4), isc.REBASE(16)],
    generator,
    reward_model=judge,
    model="policy-s",
)
methods = [p for p in points if p.vote != "coverage"]
to_frame(methods)[["strategy", "vote", "n", "accuracy", "standard_error", "generator_flops", "reward_flops"]]

# %% [markdown]
# ## Error against compute
# On the left the bill that the paper draws: the policy alone. On the right the whole bill: the judge has five times the
# policy's parameters, and a majority vote does not need it.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
shown = [p for p in methods if p.vote != "best-of-n"]
plot_scaling(shown, y="error", x="generator_flops", ax=left)
plot_scaling(shown, y="error", x="flops", ax=right)
plot_frontier(methods, y="error", x="flops", ax=right)
label_lines(figure)

# %% [markdown]
# ## What to buy

# %%
for p in pareto_frontier(methods):
    print(
        f"{p.flops:9.3g} FLOPs  {100 * p.accuracy:5.1f} ± {100 * p.standard_error:4.1f} %  {p.strategy} {p.n}, {p.vote}"
    )
ratio = cost_ratio(methods, lambda p: p.strategy == "REBASE", lambda p: p.vote == "majority" and p.strategy != "REBASE")
print("REBASE for the best majority vote:", "never as good" if ratio is None else f"{ratio:.1f} times less")

# %% [markdown]
# ## Is the difference real?
# Both methods answered the same problems, so the difference is taken problem by problem.


# %%
def pick(strategy, vote):
    return next(p for p in points if (p.strategy, p.vote, p.n) == (strategy, vote, 16))


found = paired_difference(pick("REBASE", "weighted"), pick("RepeatedSampling", "majority"), np.random.default_rng(0))
print(f"{found.difference:+.2f}, 95 % interval {found.low:+.2f} to {found.high:+.2f}, p = {found.p_value:.3f}")

# %% [markdown]
# ## Where votes end
# With ever more samples a majority vote reaches the share of problems whose likeliest answer is right, and no more.

# %%
results = isc.solve_batch(problems, isc.RepeatedSampling(32), generator, seed=1)
known: dict[str | None, int] = {}
answers = [
    [-1 if t.answer is None else known.setdefault(t.answer, len(known)) for t in result.trajectories]
    for result in results
]
gold = [known.setdefault(problem.answer, len(known)) for problem in problems]
limit, low, high = estimate_voting_limit(answers, gold, np.random.default_rng(0))
print(f"{limit:.2f}, 95 % interval {low:.2f} to {high:.2f}")
