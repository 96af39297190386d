# %% [markdown]
# # Quiet-STaR against REBASE
# Two ways to spend compute at answer time: think before every token
# ([Quiet-STaR](https://arxiv.org/abs/2403.09629)), or search over the steps
# ([REBASE](https://arxiv.org/abs/2408.00724)); and both at once, as in
# [AbdElhameed and Halim](https://arxiv.org/abs/2412.16260). This notebook shows the parts on ten problems;
# `python -m studies.thoughts` is the study for any model.

# %%
import inferscale as isc
from inferscale.quiet_star import Objective, QuietSTaR, QuietSTaRGenerator, Recipe
from inferscale.quiet_star.train import start, task_batches, train

base, tokenizer = isc.zoo.load("policy-s")
thinker, _same = isc.zoo.load("policy-s")
problems = isc.zoo.problems("dev")[:10]

# %% [markdown]
# ## A model that thinks
# The wrapper adds a start and an end of thought and a small head that mixes the predictions with and without the
# thought. Untrained, it predicts exactly what the model predicts.

# %%
quiet = QuietSTaR(thinker, thought_length=3, start_token_id=tokenizer("-")["input_ids"][-1])
ids = tokenizer(problems[0].prompt, return_tensors="pt")["input_ids"]
print((quiet(ids).logits == base(ids).logits).all().item(), quiet.parallel_check)

# %% [markdown]
# Ten steps of training, to see it run; the figures of a real training are on the [page](../reference/quiet_star.md).

# %%
recipe = Recipe(
    Objective(talk_length=1, num_thoughts=2, reinforce_temperature=1.0),
    steps=10,
    accumulation=1,
    warmup_steps=0,
    lr=3e-4,
    head_lr_scale=10.0,
    embedding_lr_scale=10.0,
)
for report in train(start(quiet, recipe), task_batches(4, talk_length=1, level=1)):
    print(
        f"step {report.step}: {report.base:.3f} nats a token, thinking {report.talk:.3f}, "
        f"weight of thoughts {report.mixing_weight:.3f}"
    )
quiet = quiet.eval()

# %% [markdown]
# ## The comparison
# The same problems, four ways. REBASE is judged by the embedded reward model.

# %%
plain = isc.HFGenerator(base, tokenizer, max_new_tokens=100)
thinking = QuietSTaRGenerator(quiet, tokenizer, max_new_tokens=100)
judge = isc.HFProcessRewardModel(*isc.zoo.load("prm-s"), good_token="<good>", bad_token="<bad>", reduction="min")
ways = {
    "votes": (isc.RepeatedSampling(4), plain, None),
    "thoughts and votes": (isc.RepeatedSampling(4), thinking, None),
    "REBASE": (isc.REBASE(width=4), plain, judge),
    "thoughts and REBASE": (isc.REBASE(width=4), thinking, judge),
}
found = {
    name: isc.solve_batch(problems, strategy, generator, reward_model=reward)
    for name, (strategy, generator, reward) in ways.items()
}

# %%
for name, results in found.items():
    right = sum(bool(r.is_correct) for r in results)
    cost = sum((r.cost for r in results), isc.Cost())
    print(
        f"{name:20} {right:2} of {len(results)}  {cost.generated_tokens:5,} tokens and {cost.thought_tokens:6,} of "
        f"thought  {cost.generator_flops / 1e6:6,.0f} MFLOPs  judge {cost.reward_flops / 1e6:6,.0f}"
    )

# %% [markdown]
# Ten problems cannot tell these accuracies apart (the standard error is about sixteen points). The bill can be told:
# a thought of three tokens makes a visible token about five times as dear, and that is what it has to earn.
#
# ## What was thought?

# %%
recorded = QuietSTaRGenerator(quiet, tokenizer, record_thoughts=True, max_new_tokens=100)
result = isc.solve(problems[0], isc.Greedy(), recorded)
for thought, *_ in recorded.thoughts_of(result.leaves[0])[:5]:
    print(repr(tokenizer.decode(list(thought.token_ids))), f"weight {thought.mixing_weight:+.3f}")
