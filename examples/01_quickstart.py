# %% [markdown]
# # Quickstart
# Solve word problems with an embedded model. For your own model change one line:
# `generator = isc.HFGenerator.from_pretrained("path/or/hub-id", temperature=0.8)`.

# %%
import inferscale as isc

model, tokenizer = isc.zoo.load("policy-s")
generator = isc.HFGenerator(model, tokenizer, temperature=0.8, max_new_tokens=160)
problems = isc.zoo.problems("test")[:20]
print(problems[0].prompt)

# %% [markdown]
# Sample sixteen solutions of each and vote. The votes below read the same samples; nothing is generated twice.

# %%
checker = isc.CheckerReward()  # the exact checker of this task: an oracle. Use your own reward model here.
sampled = isc.solve_batch(problems, isc.RepeatedSampling(16), generator, reward_model=checker)


def accuracy(results: list[isc.SearchResult]) -> float:
    return sum(r.answer is not None and isc.same_answer(r.answer, str(r.problem.answer)) for r in results) / len(
        results
    )


for vote in (isc.MajorityVote(), isc.MajorityVote(weighted=True), isc.BestOfN()):
    print(f"{accuracy([r.reaggregate(vote) for r in sampled]):.2f}  {vote}")

# %% [markdown]
# Search: REBASE gives good prefixes more children, for about the same number of tokens.

# %%
searched = isc.solve_batch(problems, isc.REBASE(width=16), generator, reward_model=checker)
print(f"{accuracy(searched):.2f}  REBASE")
for name, results in (("sampling", sampled), ("REBASE", searched)):
    cost = sum((r.cost for r in results), isc.Cost())
    print(f"{name}: {cost.tokens:,} tokens, {cost.generator_flops:.3g} generator FLOPs, {cost.seconds:.1f} s")

# %% [markdown]
# One tree, as text.

# %%
print(isc.render_tree(searched[0].root))
