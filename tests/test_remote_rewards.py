"""Reward models on a server, against a stub that follows the documentation of vLLM and SGLang."""

import dataclasses
from dataclasses import replace
from functools import cache

import pytest
from transformers import AutoTokenizer

from inferscale import _http as retry
from inferscale._http import RemoteError
from inferscale.base import ContextLengthError
from inferscale.engine import solve_batch
from inferscale.rewards import (
    FORMATS,
    CalibratedReward,
    EnsembleReward,
    HFOutcomeRewardModel,
    HFProcessRewardModel,
    PlattCalibration,
    SGLangRewardModel,
    VLLMOutcomeRewardModel,
    VLLMRewardModel,
    WeightedReward,
)
from inferscale.strategies import REBASE, BeamSearch
from inferscale.testing import PROMPTS, ToyGenerator, check_reward_model
from tests.reward_checkpoints import classifier, qwen_prm, qwen_tokenizer, save, solution
from tests.reward_stub import serving
from tests.tiny_models import byte_tokenizer, tiny_model

TAG = 151651
NODES = [
    solution("What is 2 + 2?", ["2 + 2 = 4\n", "So it is <extra_0> 4.\n", "The answer is 4."], "eos"),
    solution("What is 2 + 2?", ["2 + 2 = 4\n"]),
    solution("How much is 3 x 5?", ["3 x 5 = 99\n", "The answer is 7."], "eos"),
]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.001)


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoints") / "qwen-prm", qwen_prm(), qwen_tokenizer())


@pytest.fixture(scope="module")
def local(qwen_folder):
    return HFProcessRewardModel.from_pretrained(qwen_folder, cache="none", reduction="min")


@pytest.fixture
def server(local):
    with serving(local.model, step_tag_id=TAG) as stub:
        yield stub


loaded = cache(AutoTokenizer.from_pretrained)  # its 151,000 tokens take a while


def remote(server, folder, **options):
    return VLLMRewardModel(server.url, "judge", loaded(folder), checkpoint=folder, reduction="min", **options)


def close(found, expected):
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def untold(costs):
    """Costs without what a server does not tell: the bytes that it moves."""
    return [replace(cost, reward_bytes=None, cache_bytes=None) for cost in costs]


def test_step_scores_and_costs_are_those_of_transformers(server, qwen_folder, local):
    reward = remote(server, qwen_folder)
    close(reward.step_scores(NODES), local.step_scores(NODES))
    assert reward.cost(NODES) == untold(local.cost(NODES))
    assert all(cost.reward_flops > 0 for cost in reward.cost(NODES))
    path, body, key = server.bodies[-1]
    assert (path, body["model"], body["task"], key) == ("/pooling", "judge", "token_classify", None)
    assert [ids.count(TAG) for ids in body["input"]] == [3, 1, 2]


def test_a_server_that_sends_every_token_is_read_at_the_steps(qwen_folder, local):
    with serving(local.model) as server:
        close(remote(server, qwen_folder).step_scores(NODES), local.step_scores(NODES))


@pytest.mark.parametrize("name", ["trl", "pure"])
def test_token_classifiers_are_read_at_the_steps(name, tmp_path):
    tokenizer = byte_tokenizer()
    folder = save(tmp_path / "judge", classifier(tokenizer), tokenizer)
    local = HFProcessRewardModel.from_pretrained(folder, format=name, cache="none")
    with serving(local.model) as server:
        reward = VLLMRewardModel(server.url, "judge", checkpoint=folder, format=name)
        close(reward.step_scores(NODES), local.step_scores(NODES))
        assert reward.cost(NODES) == untold(local.cost(NODES))


def test_it_keeps_the_promises_of_a_reward_model(server, qwen_folder):
    check_reward_model(remote(server, qwen_folder))


def test_a_search_is_the_same_as_in_process(server, qwen_folder):
    class Remote(ToyGenerator):
        concurrent = True

    # scores of the last step: minima tie, and the last bit would break the ties
    local = HFProcessRewardModel.from_pretrained(qwen_folder, cache="none", reduction="last")
    reward = VLLMRewardModel(server.url, "judge", checkpoint=qwen_folder, reduction="last")
    expected = solve_batch(PROMPTS, REBASE(6), ToyGenerator(), reward_model=local)
    for generator in (ToyGenerator(), Remote()):
        results = solve_batch(PROMPTS, REBASE(6), generator, reward_model=reward)
        assert [r.text for r in results] == [r.text for r in expected]
        assert [r.cost.reward_flops for r in results] == [r.cost.reward_flops for r in expected]


def test_many_nodes_are_sent_in_several_requests(server, qwen_folder, monkeypatch):
    reward = remote(server, qwen_folder)
    expected = reward.step_scores(NODES)
    monkeypatch.setattr("inferscale.rewards.remote.ROWS", 2)
    server.bodies.clear()
    close(reward.step_scores(NODES), expected)
    assert [len(body["input"]) for _, body, _ in server.bodies] == [2, 1]


@pytest.mark.parametrize(
    "faults", [["503"], ["429", "502"], ["half"], ["bytes"], ["reset"], ["500", "half", "503"], ["reversed"]]
)
def test_what_may_pass_is_asked_again(faults, server, qwen_folder, local):
    reward = remote(server, qwen_folder)
    server.faults = list(faults)
    close(reward.step_scores(NODES), local.step_scores(NODES))
    assert server.faults == []


def test_a_server_that_hangs_is_given_up_at_the_deadline(server, qwen_folder):
    reward = remote(server, qwen_folder, check=False, timeout=0.1, deadline=0.3)
    server.faults = ["hang"] * 9
    with pytest.raises(RemoteError, match=r"/pooling: no answer: ReadTimeout.*attempts"):
        reward.step_scores(NODES)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("few", "no list of 3 items"),
        ("null", "where finite numbers should be"),
        ("huge", "where finite numbers should be"),
        ("twice", r"numbered 3 items \[0, 0, 2\]"),
        ("fewer steps", r"2 scores for 3 steps.*step_tag_id of format 'qwen'"),
        ("logits", "where probabilities should be"),
        ("one label", "1 numbers for each step where format 'qwen' needs 2"),
        ("404", "check base_url and the model's name"),
        ("400", "status 400"),
    ],
)
def test_a_wrong_answer_is_an_error_at_once(fault, message, server, qwen_folder):
    reward = remote(server, qwen_folder)
    server.faults, before = [fault], len(server.bodies)
    with pytest.raises(RemoteError, match=message):
        reward.step_scores(NODES)
    assert len(server.bodies) == before + 1


def test_a_solution_that_does_not_fit_is_told_with_its_length(server, qwen_folder):
    reward = remote(server, qwen_folder)
    server.faults = ["too long"]
    longest = max(len(ids) for ids in (reward._path_of(node).ids for node in NODES))
    with pytest.raises(
        RemoteError, match=rf"context length is 8.*longest of these 3 texts has {longest} tokens"
    ) as error:
        reward.step_scores(NODES)
    assert error.value.kind == "too long"


@pytest.mark.parametrize(("told", "reads"), [(16, 16), (None, 512), (1024, 1024)])
def test_what_a_server_reads_is_asked_and_a_longer_path_is_not_sent(told, reads, server, qwen_folder):
    server.max_model_len = told  # a server that does not tell reads what the checkpoint does
    reward = remote(server, qwen_folder, check=False)
    long = solution("What is 2 + 2?", ["2 + 2 = 4\n"] * 400)
    for ask in (reward.cost, reward.step_scores):
        with pytest.raises(ContextLengthError, match=rf"tokens and judge at http://.* reads {reads}: sample shorter"):
            ask([NODES[1], long])
    assert not server.bodies
    outcome = VLLMOutcomeRewardModel(server.url, "judge", qwen_tokenizer(), checkpoint=qwen_folder)
    with pytest.raises(ContextLengthError, match=rf"the prompt .* reads {reads}: shorten it"):
        outcome.check_prompt(solution("2 + 2 = 4 " * 500, ["4"]).root)


def test_a_password_in_the_address_is_not_shown(server, qwen_folder):
    server.faults = ["404"]
    with pytest.raises(RemoteError, match=r"http://127\.0\.0\.1") as error:
        VLLMRewardModel(server.url.replace("//", "//me:secret@"), "judge", checkpoint=qwen_folder)
    assert "secret" not in str(error.value)


def test_keys_come_from_the_caller_or_the_environment_and_are_not_shown(server, qwen_folder, monkeypatch):
    server.api_key = "secret-key"
    with pytest.raises(RemoteError, match=r"status 401.*check api_key") as error:
        remote(server, qwen_folder, api_key="another-key")
    assert "another-key" not in str(error.value)
    reward = remote(server, qwen_folder, api_key="secret-key")
    assert "secret-key" not in repr(vars(reward))
    monkeypatch.setenv("VLLM_API_KEY", "secret-key")
    assert remote(server, qwen_folder).step_scores(NODES[:1])


def test_constant_scores_and_bad_arguments_are_refused(server, qwen_folder, monkeypatch):
    for url in ("localhost:8000", "ftp://host"):
        with pytest.raises(ValueError, match="give the address of a server"):
            VLLMRewardModel(url, "judge", checkpoint=qwen_folder)
    with pytest.raises(ValueError, match="choose one of auto"):
        VLLMRewardModel(server.url, "judge", checkpoint=qwen_folder, format="unknown")
    with pytest.raises(ValueError, match=r"'<extra_0>' is 9 tokens"):
        VLLMRewardModel(server.url, "judge", byte_tokenizer(), checkpoint=qwen_folder)
    monkeypatch.setattr(server, "pooled", lambda ids: [[0.5, 0.5]] * ids.count(TAG))
    with pytest.raises(ValueError, match="scores every step of two short solutions"):
        remote(server, qwen_folder)


def test_a_base_url_may_end_as_for_the_openai_client(server, qwen_folder):
    reward = VLLMRewardModel(server.url + "/v1/", "judge", checkpoint=qwen_folder)
    assert reward.step_scores(NODES[:1])


def test_a_format_of_ones_own(server, qwen_folder, local):
    form = dataclasses.replace(FORMATS["qwen"], name="mine")
    reward = VLLMRewardModel(server.url, "judge", checkpoint=qwen_folder, format=form)
    close(reward.step_scores(NODES), local.step_scores(NODES))


def test_what_is_made_of_remote_models_is_concurrent_too(server, qwen_folder, local):
    reward = remote(server, qwen_folder, check=False)
    assert EnsembleReward([reward, reward]).concurrent
    assert not EnsembleReward([reward, local]).concurrent
    assert WeightedReward([reward, reward]).concurrent
    assert not WeightedReward([reward, lambda prompts, completions: [0.0] * len(prompts)]).concurrent
    assert CalibratedReward(reward, PlattCalibration(1.0, 0.0)).concurrent
    assert not CalibratedReward(local, PlattCalibration(1.0, 0.0)).concurrent


# -- whole solutions --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome_folder(tmp_path_factory):
    model = tiny_model("llama", "SequenceClassification", vocab_size=len(byte_tokenizer()), num_labels=1)
    model.config.pad_token_id = 0
    return save(tmp_path_factory.mktemp("checkpoints") / "outcome", model, byte_tokenizer())


@pytest.fixture(scope="module")
def outcome(outcome_folder):
    return HFOutcomeRewardModel.from_pretrained(outcome_folder)


class OneByOne:
    """Runs a classifier on single rows, where transformers wants no pad id."""

    def __init__(self, model):
        self.model = model

    def __call__(self, input_ids):
        return self.model(input_ids=input_ids)


@pytest.mark.parametrize("kind", [VLLMOutcomeRewardModel, SGLangRewardModel])
def test_outcome_scores_are_those_of_transformers(kind, outcome_folder, outcome):
    with serving(OneByOne(outcome.model)) as server:
        reward = kind(server.url, "judge", checkpoint=outcome_folder)
        found, expected = reward.score(NODES), outcome.score(NODES)
        for cost, other in zip(reward.cost(NODES), outcome.cost(NODES), strict=True):
            assert cost.scored_tokens == other.scored_tokens
            heads = 2 * outcome.model.config.hidden_size * (cost.scored_tokens - 1)  # there at the end alone
            assert cost.reward_flops == other.reward_flops - heads
        check_reward_model(reward)
        results = solve_batch(PROMPTS, BeamSearch(2, 2), ToyGenerator(), reward_model=reward)
    if kind is VLLMOutcomeRewardModel:
        import torch

        expected = torch.tensor(expected).sigmoid().tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(set(found)) == 3
    assert all(result.selected.score is not None for result in results)
    assert server.bodies[0][0] == "/classify"


@pytest.mark.parametrize("kind", [VLLMOutcomeRewardModel, SGLangRewardModel])
def test_a_label_that_is_not_there_is_an_error(kind, outcome_folder, outcome):
    with serving(OneByOne(outcome.model)) as server, pytest.raises(ValueError, match="label=1, but"):
        kind(server.url, "judge", checkpoint=outcome_folder, label=1).score(NODES)
    with pytest.raises(ValueError, match="label=-1: outputs are counted from 0"):
        kind(server.url, "judge", checkpoint=outcome_folder, label=-1)
