"""Clients of other projects against a served search: litellm and langchain, beside the official one."""

import pytest

from inferscale import REBASE, solve
from inferscale.serve import Service
from inferscale.testing import ToyGenerator, ToyReward
from tests.serve_tools import call, serving

pytestmark = [pytest.mark.servers, pytest.mark.filterwarnings("ignore")]
KEY = "not-a-secret"
TURNS = [{"role": "user", "content": "How many?"}]


@pytest.fixture(scope="module")
def server():
    with serving(Service(ToyGenerator(), ToyReward(), "toy", "rebase", 4, api_key=KEY)) as running:
        yield running


@pytest.fixture(scope="module")
def result():
    return solve("How many?", REBASE(4), ToyGenerator(), reward_model=ToyReward())


@pytest.fixture
def litellm(server, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # its prices are not asked for
    module = pytest.importorskip("litellm", reason="litellm is not installed: make test-servers")
    where = {"model": "openai/toy", "api_base": f"http://127.0.0.1:{server.port}/v1", "api_key": KEY, "num_retries": 0}

    def ask(**options):
        return module.completion(**{**where, "messages": TURNS, **options})

    ask.module = module
    return ask


def test_litellm_chats_and_knows_what_it_used(litellm, result):
    answer = litellm(extra_body={"inferscale": {"strategy": "rebase:4"}})
    assert answer.choices[0].message.content == result.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == result.cost.tokens
    assert answer.usage.prompt_tokens == result.cost.prompt_tokens


def test_litellm_streams(litellm, result):
    chunks = list(litellm(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == result.text
    assert [c.usage.completion_tokens for c in chunks if getattr(c, "usage", None)] == [result.cost.tokens]


def test_litellm_is_told_what_is_not_served(litellm):
    errors = litellm.module.exceptions
    with pytest.raises(errors.BadRequestError, match="a search reports one answer"):
        litellm(n=2)
    with pytest.raises(errors.AuthenticationError, match="no valid API key"):
        litellm(api_key="wrong")
    with pytest.raises(errors.NotFoundError, match="no model 'other'"):
        litellm(model="openai/other")


@pytest.fixture
def langchain(server):
    module = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed: make test-servers")

    def make(**options):
        where = {"base_url": f"http://127.0.0.1:{server.port}/v1", "api_key": KEY, "max_retries": 0}
        return module.ChatOpenAI(**{"model": "toy", **where, **options})

    return make


def test_langchain_chats_in_one_piece_and_in_a_stream(langchain, result):
    model = langchain()
    answer = model.invoke("How many?")
    assert answer.content == result.text
    assert answer.usage_metadata["output_tokens"] == result.cost.tokens
    assert "".join(str(chunk.content) for chunk in langchain(stream_usage=True).stream("How many?")) == result.text


def test_langchain_is_told_what_is_not_served(langchain):
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.BadRequestError, match="a search reports one answer"):
        langchain(n=2).invoke("How many?")
    with pytest.raises(openai.AuthenticationError, match="no valid API key"):
        langchain(api_key="wrong").invoke("How many?")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(openai.BadRequestError, match="without tools"):
        langchain().bind_tools([tool]).invoke("How many?")


def test_the_list_of_models_has_what_open_webui_reads(server):
    status, _, listed = call(server, "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    assert status == 200
    assert listed["object"] == "list"
    [card] = listed["data"]
    assert {"id", "object", "created", "owned_by", "name"} <= card.keys()
    assert (card["id"], card["name"], card["object"]) == ("toy", "toy", "model")
    assert type(card["created"]) is int
