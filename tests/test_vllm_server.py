"""Against vLLM's own server, started from the environment that ``INFERSCALE_VLLM_PYTHON`` names."""

import json
import os

import pytest
import torch

from benchmarks.vllm_server import VARIABLE, prefix_counts, vllm_server
from inferscale.engine import solve, solve_batch
from inferscale.generators import HFGenerator, OpenAIGenerator
from inferscale.rewards import HFOutcomeRewardModel, HFProcessRewardModel, VLLMOutcomeRewardModel, VLLMRewardModel
from inferscale.rewards.huggingface import Qwen2ForProcessRewardModel
from inferscale.strategies import REBASE, Greedy, RepeatedSampling
from inferscale.testing import ToyReward, check_reward_model
from tests.reward_checkpoints import causal, own_class, qwen_tokenizer, save, solution, with_marks
from tests.tiny_models import byte_tokenizer, tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no python of an environment with vLLM"),
]

SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
PROMPTS = ["What is 2 + 2?\n", "How many steps are left, and why? Say it in a few words.\n"]
NODES = [
    solution("What is 2 + 2?", ["2 + 2 = 4\n", "So it is <extra_0> 4.\n", "The answer is 4."], "eos"),
    solution("What is 2 + 2?", ["2 + 2 = 4\n"]),
    solution("How much is 3 x 5?", ["3 x 5 = 99\n", "The answer is 7."], "eos"),
]


class ConcurrentReward(ToyReward):
    concurrent = True


def test_searches_run_through_the_openai_generator_and_hit_the_prefix_cache(tmp_path):
    model, limits = (
        tiny_model("llama", vocab_size=len(byte_tokenizer()), **SIZES),
        {"max_step_tokens": 24, "max_new_tokens": 96},
    )
    folder = save(tmp_path / "tiny", model, byte_tokenizer())
    here = HFGenerator(model, byte_tokenizer(), **limits)
    with vllm_server(folder) as url:
        there = OpenAIGenerator(f"{url}/v1", "tiny", tokenizer=byte_tokenizer(), **limits)
        for prompt in PROMPTS:
            assert solve(prompt, Greedy(), there).text == solve(prompt, Greedy(), here).text
        votes = solve_batch(PROMPTS, RepeatedSampling(4), there)
        before = prefix_counts(url)
        together = solve_batch(PROMPTS, REBASE(8), there, reward_model=ConcurrentReward())
        alone = [solve(prompt, REBASE(8), there, reward_model=ConcurrentReward()) for prompt in PROMPTS]
        looked_up, hits = (now - then for now, then in zip(prefix_counts(url), before, strict=True))
    assert all(len(result.trajectories) == 4 for result in votes)
    for one, other in zip(together, alone, strict=True):
        assert [leaf.token_ids for leaf in one.leaves] == [leaf.token_ids for leaf in other.leaves]
    assert hits / looked_up > 0.5


def test_process_rewards_are_those_of_transformers(tmp_path):
    folder = save(
        tmp_path / "qwen-prm", own_class(Qwen2ForProcessRewardModel, qwen_tokenizer(), **SIZES), qwen_tokenizer()
    )
    local = HFProcessRewardModel.from_pretrained(folder, cache="none")
    with vllm_server(folder, "--runner", "pooling", "--pooler-config", '{"step_tag_id": 151651}') as url:
        reward = VLLMRewardModel(url, "tiny", checkpoint=folder)
        found = reward.step_scores(NODES)
        check_reward_model(reward)
    assert [len(row) for row in found] == [3, 1, 2]
    for row, expected in zip(found, local.step_scores(NODES), strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_a_language_model_that_judges_with_two_tokens_is_served_as_a_classifier_of_them(tmp_path):
    tokenizer = with_marks(" ки", " +", " -")
    folder = save(tmp_path / "er-prm", causal(tokenizer, **SIZES), tokenizer)
    local = HFProcessRewardModel.from_pretrained(folder, format="er-prm", cache="none")
    overrides = {
        "architectures": ["LlamaForSequenceClassification"],
        "classifier_from_token": [" +", " -"],
        "method": "no_post_processing",
    }
    options = ("--runner", "pooling", "--convert", "classify", "--hf-overrides", json.dumps(overrides))
    options += ("--pooler-config", '{"task": "token_classify"}')
    with vllm_server(folder, *options) as url:
        found = VLLMRewardModel(url, "tiny", checkpoint=folder, format="er-prm").step_scores(NODES)
    for row, expected in zip(found, local.step_scores(NODES), strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_outcome_rewards_are_the_sigmoids_of_transformers(tmp_path):
    model = tiny_model("qwen2", "SequenceClassification", num_labels=1, **SIZES)
    folder = save(tmp_path / "outcome", model, byte_tokenizer())
    expected = torch.tensor(HFOutcomeRewardModel.from_pretrained(folder).score(NODES)).sigmoid().tolist()
    with vllm_server(folder, "--runner", "pooling") as url:
        found = VLLMOutcomeRewardModel(url, "tiny", checkpoint=folder).score(NODES)
    assert found == pytest.approx(expected, abs=1e-5)
