# %% [markdown]
# # Your own model
# Any causal language model of transformers: a folder, a hub id, or the objects you have. Change the next line to use
# yours, for example `MODEL = "Qwen/Qwen2.5-0.5B-Instruct"`.

# %%
import transformers

import inferscale as isc

MODEL = isc.zoo.path("policy-s")  # a folder with config.json, weights and tokenizer
QUESTION = isc.zoo.problems("test")[0]

# %% [markdown]
# By name: `dtype`, `device_map`, `attn_implementation`, `quantization_config` and the like go to transformers. A model
# with a chat template is given its prompts in it; `chat_template=False` sends them as they are.

# %%
generator = isc.HFGenerator.from_pretrained(MODEL, temperature=0.8, max_new_tokens=160, dtype="float32")
print(isc.solve(QUESTION, isc.RepeatedSampling(8), generator).answer, "expected:", QUESTION.answer)

# %% [markdown]
# By hand: whatever you did to the model (adapters, edits, `torch.compile`) stays. A model that the engine's shared
# prefixes do not fit is run plainly, and a warning says so.

# %%
model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
generator = isc.HFGenerator(model, tokenizer, temperature=0.8, max_new_tokens=160)

# %% [markdown]
# No reward model at hand? The model's own likelihood is one: here the least likely token of the least likely step.

# %%
likelihood = isc.LikelihoodReward.from_generator(
    generator,  # the same model, under the prompts that it answers
    token_reduction="min",
    reduction="min",
    use_token_ids=True,  # it judges the very tokens that it sampled
    step_separator=None,
)
result = isc.solve(QUESTION, isc.REBASE(width=8), generator, reward_model=likelihood)
print(result.answer, "expected:", QUESTION.answer)
print(f"{result.cost.generator_flops:,} FLOPs to sample, {result.cost.reward_flops:,} to judge")

# %% [markdown]
# What it would cost on a model that is not here: its configuration is enough.

# %%
llama_8b = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
llama_8b |= {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}
print(f"{isc.estimate_flops(llama_8b, prompt=200, new=400, n=16):.3g} FLOPs for 16 samples of 400 tokens")
