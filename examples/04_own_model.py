# %% [markdown]
# # Your own model
# Any causal language model of transformers can be searched with: by folder or hub id, or as the object that you have.
# This one is SmolLM2-135M-Instruct, which the extra `smollm2` brings; the outputs below took some minutes on two CPU
# cores.

# %%
import transformers

import inferscale as isc
from inferscale.testing import check_generator

folder = isc.zoo.path("smollm2-135m-instruct")  # yours: "Qwen/Qwen2.5-0.5B-Instruct", a folder, or a GGUF file
problems = isc.zoo.word_problems()[:6]
print(problems[0].prompt)

# %% [markdown]
# ## By name
# `dtype`, `device_map`, `attn_implementation`, `quantization_config` and the like go to transformers as they are.
# Sampling follows the options given here; the checkpoint's generation config is read for end-of-sequence ids alone.

# %%
generator = isc.HFGenerator.from_pretrained(folder, temperature=0.5, max_new_tokens=64, dtype="float32")
result = isc.solve(problems[0], isc.RepeatedSampling(8), generator)
print(result.text)
print(isc.answer_weights(result.trajectories), "expected:", problems[0].answer)

# %% [markdown]
# ## As an object
# Whatever was done to it stays: adapters, edited weights, another device.

# %%
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
generator = isc.HFGenerator(model, tokenizer, temperature=0.5, max_new_tokens=64)

# %% [markdown]
# Does it keep the promises of a generator? The same samples alone and in any batch, however many are asked for at a
# time; no more tokens than allowed; greedy when asked.

# %%
short = isc.HFGenerator(model, tokenizer, temperature=0.5, max_new_tokens=12)
check_generator(short, [problem.prompt for problem in problems[:2]])

# %% [markdown]
# ## What it is asked
# A model with a chat template is given its prompts in it, as a user's turn: `chat_template=False` sends them as they
# are, `system_prompt="..."` goes before. Worked examples are turns too.

# %%
shots = [("Anna has 5 red and 7 green apples. How many apples does she have?", "5 + 7 = 12\n\\boxed{12}"),
         ("A ticket costs 3 dollars. How much do 9 tickets cost?", "9 * 3 = 27\n\\boxed{27}")]  # fmt: skip
turns = [turn for q, a in shots for turn in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
chats = [
    isc.Problem(messages=[*turns, {"role": "user", "content": problem.prompt}], answer=problem.answer)
    for problem in problems
]
print(isc.solve(chats[0], isc.Greedy(), generator).text)

# %% [markdown]
# ## Steps
# A step ends at `step_delimiter`, a new line by default, or after `max_step_tokens`. Chat models write paragraphs:
# `step_delimiter="\n\n"`.

# %%
for node in isc.solve(chats[1], isc.Greedy(), generator).leaves[0].path:
    print(node.inner_steps())

# %% [markdown]
# ## What it runs
# A prompt is read once for all its branches, and every node once for all its children. The plain way, whole prefixes
# at every call, is `cache="none"`: the same tree, for more tokens.

# %%
trees = []
for cache in ("tree", "none"):
    each = isc.HFGenerator(model, tokenizer, temperature=0.5, max_new_tokens=32, cache=cache)
    likelihood = isc.LikelihoodReward.from_generator(each, cache=cache)
    result = isc.solve(chats[0], isc.BeamSearch(2, 2), each, reward_model=likelihood)
    trees.append([node.text for node in result.root.walk()])
    stats = each.stats
    print(f"{cache}: {stats.prefill_tokens} tokens read, {stats.reused_tokens} not, {stats.decoded_tokens} sampled")
print("the same tree:", trees[0] == trees[1])

# %% [markdown]
# ## A judge of its own
# With no reward model at hand, the model's own likelihood is one: here the least likely token of the least likely step.
# A model of this size solves hardly any of these problems, whatever is run: the costs are what to look at.

# %%
likelihood = isc.LikelihoodReward.from_generator(  # the same model, under the prompts that it answers
    generator, token_reduction="min", reduction="min", use_token_ids=True, step_separator=None
)
for strategy in (isc.Greedy(), isc.RepeatedSampling(4), isc.REBASE(width=4)):
    results = isc.solve_batch(
        chats, strategy, generator, reward_model=likelihood, aggregator=isc.MajorityVote(weighted=True)
    )
    right = sum(bool(r.is_correct) for r in results)
    cost = sum((r.cost for r in results), isc.Cost())
    print(
        f"{strategy}: {right} of {len(results)} right, {cost.generator_flops:.3g} FLOPs to sample, "
        f"{cost.reward_flops:.3g} to judge"
    )

# %% [markdown]
# ## Count what really runs
# `Cost` holds closed forms for each branch. A `FlopCounter` sees what the model computed, padding included.

# %%
with isc.FlopCounter(policy=generator) as counter:
    result = isc.solve(chats[0], isc.RepeatedSampling(4), generator)
print(f"{result.cost.generator_flops:,} by closed form, {counter.flops:,} ran")
print(counter.table(depth=0))
