# %% [markdown]
# # Quickstart
# Wrap a model. This one is embedded in the package; for your own give the objects you have, or a path or hub id to
# `isc.HFGenerator.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct", temperature=0.8)`.

# %%
import inferscale as isc

model, tokenizer = isc.zoo.load("policy-s")
generator = isc.HFGenerator(model, tokenizer, temperature=0.8, max_new_tokens=160)
problem = isc.zoo.problems("test")[0]
print(problem.prompt)

# %% [markdown]
# ## Sample, and vote

# %%
result = isc.solve(problem, isc.RepeatedSampling(16), generator)
print(result.answer, "expected:", problem.answer)
print(isc.answer_weights(result.trajectories))

# %% [markdown]
# A result shows itself in a notebook: the answer, the votes, the bill, and the tree.

# %%
result

# %% [markdown]
# ## Search with a reward model
# A process reward model judges every step, and a search spends its samples where the steps are good. An embedded one
# here; any published one is `isc.HFProcessRewardModel.from_pretrained("...")`, and any function will do.

# %%
judge = isc.HFProcessRewardModel(*isc.zoo.load("prm-s"), good_token="<good>", bad_token="<bad>", reduction="min")
result = isc.solve(problem, isc.REBASE(width=8), generator, reward_model=judge)
print(isc.render_tree(result.root, max_text=40))

# %% [markdown]
# ## Many problems, one bill
# All problems of a call share their model calls, and none of them notices: each tree is the one that it would be alone.

# %%
problems = isc.zoo.problems("test")[:20]
sampled = isc.solve_batch(problems, isc.RepeatedSampling(8), generator, reward_model=judge)
searched = isc.solve_batch(problems, isc.REBASE(width=8), generator, reward_model=judge)


def accuracy(results):
    return sum(bool(r.is_correct) for r in results) / len(results)


for name, results in (("sampling", sampled), ("REBASE", searched)):
    cost = sum((r.cost for r in results), isc.Cost())
    print(
        f"{name}: {accuracy(results):.2f} right, {cost.tokens:,} tokens, "
        f"{cost.generator_flops:.3g} FLOPs to sample, {cost.reward_flops:.3g} to judge"
    )

# %% [markdown]
# Twenty problems say little about two methods: the standard error is eleven points. The
# [scaling study](../project/scaling_study.md) has 500.
#
# ## Vote again, for free
# Votes read what has been sampled; nothing is generated again.

# %%
for vote in (isc.MajorityVote(), isc.MajorityVote(weighted=True), isc.BestOfN()):
    print(f"{accuracy([r.reaggregate(vote) for r in sampled]):.2f}  {vote}")

# %% [markdown]
# ## Stop when it has cost enough
# A budget of tokens or samples is never passed; what was finished by then is returned, and `stopped_by` says why.

# %%
short = isc.solve(problem, isc.RepeatedSampling(64), generator, budget=isc.Budget(tokens=300))
print(short.cost.tokens, "tokens, stopped by", short.stopped_by, "with the answer", short.answer)

# %% [markdown]
# ## Keep it

# %%
import tempfile
from pathlib import Path

path = Path(tempfile.mkdtemp()) / "result.json"
short.save(path)
print(isc.SearchResult.load(path).answer == short.answer)
